//! What the tests share: real servers, databases of their own, sales.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "every test takes what it needs of it")]

pub mod kafka;

use std::time::Duration;

use clap::Parser;
use consumer::ledger::Ledger;
use consumer::sale::Sale;
use consumer::service::config::{Secret, Settings};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use uuid::Uuid;

/// Far longer than anything takes; only a failure lasts so long.
pub const SOON: Duration = Duration::from_secs(30);

/// The address of a real server. Missing is a failure: a skipped test proves nothing.
pub fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set; start the servers first: scripts/servers up --with-mysql && eval \"$(scripts/servers env)\"")
    })
}

/// A database of its own, gone with the test.
pub struct Database {
    pub url: String,
    server: String,
    name: String,
}

impl Database {
    /// In MariaDB.
    pub async fn create() -> Self {
        Self::on("SECKILL_DATABASE_URL").await
    }

    /// On the server that this variable names.
    pub async fn on(variable: &str) -> Self {
        let address = server(variable);
        let (server, _) = address.rsplit_once('/').expect("an address with a database");
        let name = format!("seckill_test_{}", Uuid::now_v7().simple());
        let database = Self { url: format!("{server}/{name}"), server: server.to_owned(), name };
        database.run(&format!("create database {}", database.name)).await;
        database
    }

    /// Runs a statement outside of any ledger.
    pub async fn run(&self, statement: &str) {
        let mut connection =
            MySqlConnection::connect(&format!("{}/", self.server)).await.expect("the database is up");
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .expect("a statement");
        connection.close().await.expect("closed");
    }

    /// Runs a statement inside this database.
    pub async fn inside(&self, statement: &str) {
        let mut connection = MySqlConnection::connect(&self.url).await.expect("the database is up");
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .expect("a statement");
        connection.close().await.expect("closed");
    }
}

impl Drop for Database {
    /// Also after a failure, with the test's own connections still there: they are ended first.
    fn drop(&mut self) {
        let (server, name) = (format!("{}/", self.server), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(remove(&server, &name)).expect("the database is up");
        })
        .join();
        if dropped.is_err() && !std::thread::panicking() {
            panic!("the database {} could not be dropped", self.name);
        }
    }
}

async fn remove(server: &str, name: &str) -> sqlx::Result<()> {
    let mut connection = MySqlConnection::connect(server).await?;
    let busy: Vec<i64> =
        sqlx::query_scalar("select cast(id as signed) from information_schema.processlist where db = ?")
            .bind(name)
            .fetch_all(&mut connection)
            .await?;
    for id in busy {
        // One that ended meanwhile is fine.
        drop(sqlx::raw_sql(AssertSqlSafe(format!("kill {id}"))).execute(&mut connection).await);
    }
    sqlx::raw_sql(AssertSqlSafe(format!("drop database if exists {name}"))).execute(&mut connection).await?;
    connection.close().await
}

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    settings: Settings,
}

/// Settings for a topic and a group of their own.
pub fn settings(brokers: &str) -> Settings {
    let mut settings = Defaults::parse_from(["test"]).settings;
    settings.secrets.kafka_brokers = Some(Secret::new(brokers));
    settings.kafka_topic = format!("test-{}", Uuid::now_v7());
    settings.kafka_group = format!("test-{}", Uuid::now_v7());
    settings
}

pub const EPOCH: Uuid = Uuid::from_u128(0x0197_0000_0000_7000_8000_0000_0000_00ee);

/// The unit `serial`, sold to an order of its own.
pub fn sale(serial: u64) -> Sale {
    Sale {
        order: Uuid::now_v7(),
        item: "counter".to_owned(),
        epoch: EPOCH,
        term: 0,
        serial,
        remaining: 1000 - serial.min(1000),
        attempt: None,
        buyer: None,
        sold_at: "2026-11-11T12:00:00.000001Z".parse().expect("a time"),
    }
}

pub fn bytes(sale: &Sale) -> Vec<u8> {
    sale.to_json().expect("json")
}

/// The serials recorded of [`EPOCH`], ascending; none while they cannot be read.
pub async fn serials(ledger: &dyn Ledger) -> Vec<u64> {
    let orders = ledger.orders("counter", EPOCH, 0, u64::MAX).await.unwrap_or_default();
    orders.into_iter().map(|(serial, _)| serial).collect()
}
