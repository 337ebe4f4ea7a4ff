//! Transient database errors on a real MariaDB and MySQL: the programs wait, report once in the server's
//! words, and lose nothing.

use std::time::Duration;

use consumer::ledger::mysql::MySqlLedger;
use consumer::ledger::{Batch, Ledger as _, Message, Part, Record as _};
use consumer::sale::Sale;
use tokio::sync::RwLock;
use uuid::Uuid;

use crate::buyers::{client, count, crowd, told};
use crate::process::{Process, free_port, output, until};
use crate::servers::servers_tool;
use crate::world::{Node, Servers, ready};

const SOON: Duration = Duration::from_secs(60);

/// A test that changes a global setting of MySQL runs alone.
static MYSQL: RwLock<()> = RwLock::const_new(());

/// The SQLSTATE of a denied login, by 1045 or 1698.
const NOT_LET_IN: &str = "(28000)";

const MARIADB_URL: &str = "SECKILL_DATABASE_URL";
const MYSQL_URL: &str = "SECKILL_TEST_MYSQL_URL";

/// Runs statements as root; returns their output.
fn root(variable: &str, statements: &str) -> String {
    let tool = if variable == MYSQL_URL { "mysql-root" } else { "mariadb-root" };
    let done = servers_tool(&[tool, "-N", "-e", statements]);
    assert!(done.status.success(), "{statements}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The test's own database user, dropped with it.
struct User {
    variable: &'static str,
    name: String,
}

impl User {
    /// Creates nothing yet.
    fn named(variable: &'static str) -> Self {
        let name = Uuid::now_v7().simple().to_string();
        Self { variable, name: format!("test_{}", &name[12..]) }
    }

    /// With all rights on the test's database.
    fn create(variable: &'static str, servers: &Servers, limits: &str) -> Self {
        let user = Self::named(variable);
        user.does("create", &format!("identified by 'first' {limits}"));
        user.granted(servers);
        user
    }

    fn does(&self, verb: &str, rest: &str) {
        root(self.variable, &format!("{verb} user {}@127.0.0.1 {rest}", self.name));
    }

    fn granted(&self, servers: &Servers) {
        root(self.variable, &format!("grant all on {}.* to {}@127.0.0.1", database(servers), self.name));
    }

    fn url(&self, servers: &Servers, password: &str) -> String {
        let (_, place) = servers.database.rsplit_once('@').unwrap();
        format!("mysql://{}:{password}@{place}", self.name)
    }

    /// Kills its connections, so that new ones get the current settings.
    fn disconnected(&self) {
        let list = format!("select id from information_schema.processlist where user = '{}'", self.name);
        for id in root(self.variable, &list).lines() {
            // One that has closed meanwhile is fine.
            let tool = if self.variable == MYSQL_URL { "mysql-root" } else { "mariadb-root" };
            servers_tool(&[tool, "-e", &format!("kill {id}")]);
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let tool = if self.variable == MYSQL_URL { "mysql-root" } else { "mariadb-root" };
        servers_tool(&[tool, "-e", &format!("drop user if exists {}@127.0.0.1", self.name)]);
    }
}

/// Sets a global variable of MySQL, and restores it on drop.
struct Global(&'static str, String);

impl Global {
    fn set(name: &'static str, value: &str) -> Self {
        let before = root(MYSQL_URL, &format!("select @@global.{name}")).trim().to_owned();
        root(MYSQL_URL, &format!("set global {name} = {value}"));
        Self(name, before)
    }
}

impl Drop for Global {
    fn drop(&mut self) {
        let quoted = if self.1.parse::<u64>().is_ok() { self.1.clone() } else { format!("'{}'", self.1) };
        servers_tool(&["mysql-root", "-e", &format!("set global {} = {quoted}", self.0)]);
    }
}

fn database(servers: &Servers) -> &str {
    servers.database.rsplit_once('/').unwrap().1
}

async fn world(variable: &str) -> Servers {
    let mut servers = Servers::prepare_on(variable);
    servers.start_redis().await;
    servers
}

/// A consumer, and its ops address.
fn consumer(servers: &Servers, url: &str) -> (Process, String) {
    let ops = format!("127.0.0.1:{}", free_port());
    let more = [("SECKILL_CONSUMER_OPS_LISTEN", ops.as_str()), ("SECKILL_DATABASE_URL", url)];
    (servers.consumer_with(&more), format!("http://{ops}"))
}

async fn text(url: &str) -> String {
    match client().get(url).send().await {
        Ok(answer) => answer.text().await.unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// Waits until readiness reports the reason; then also the metric.
async fn waits(ops: &str, why: &str) {
    until(&format!("it waits: {why}"), SOON, async || {
        text(&format!("{ops}/readyz")).await.contains(why)
            && text(&format!("{ops}/metrics")).await.contains("seckill_ready 0")
    })
    .await;
}

async fn goes_on(ops: &str) {
    until("it goes on", SOON, async || {
        ready(ops).await && text(&format!("{ops}/metrics")).await.contains("seckill_ready 1")
    })
    .await;
}

/// Warnings that name this.
fn warnings(process: &Process, why: &str) -> usize {
    process.log().lines().filter(|line| line.contains("WARN") && line.contains(why)).count()
}

async fn sells(servers: &Servers, node: &Node, units: usize) -> Vec<String> {
    let before = servers.redis::<Option<i64>>(&["GET", "counter"]).await;
    if before.is_none() {
        servers.redis::<()>(&["SET", "counter", "10000"]).await;
    }
    node.reaches("open", SOON).await;
    let answers = crowd(&[node.buy_url()], units, 32, false).await;
    assert_eq!(count(&answers, "success"), units);
    told(&answers)
}

/// First neither user nor database exists; then the user without rights, then with them, then the database.
/// Both programs wait, and report each reason once.
async fn nothing_is_there_yet(variable: &'static str) {
    let mut servers = world(variable).await;
    let user = User::named(variable);
    servers.set("SECKILL_DATABASE_URL", &user.url(&servers, "first"));
    let (consumer, ops) = consumer(&servers, &user.url(&servers, "first"));
    let node = servers.node(&[]);
    let said = async |why: &str| {
        waits(&ops, why).await;
        until(&format!("the service says {why}"), SOON, async || warnings(&node.process, why) > 0).await;
    };
    said(NOT_LET_IN).await;
    user.does("create", "identified by 'first'");
    said("1044").await;
    user.granted(&servers);
    said("1049").await;
    servers.make_database().await;
    goes_on(&ops).await;
    for process in [&consumer, &node.process] {
        // MariaDB reports an unknown user in either of two ways.
        assert!(warnings(process, NOT_LET_IN) > 0);
        for why in ["1044", "1049"] {
            assert_eq!(warnings(process, why), 1, "{why}: {}", process.log());
        }
    }
    let orders = sells(&servers, &node, 20).await;
    servers.balance(&orders, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn nothing_is_there_yet_in_mariadb() {
    nothing_is_there_yet(MARIADB_URL).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn nothing_is_there_yet_in_mysql() {
    let _others = MYSQL.read().await;
    nothing_is_there_yet(MYSQL_URL).await;
}

/// A permanent error exits at once: a command that waits forever helps no one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn commands_do_not_wait() {
    let mut servers = world(MARIADB_URL).await;
    let user = User::named(MARIADB_URL);
    servers.set("SECKILL_DATABASE_URL", &user.url(&servers, "first"));
    // It creates the topic.
    let _node = servers.ready_node(&[]).await;
    let migrate = |servers: &Servers| output("consumer", &servers.env, &["migrate"], servers.folder.path());
    let ended = [servers.operate(&["audit"]), servers.operate(&["seed", "5"]), migrate(&servers)];
    for ended in ended {
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success() && said.contains(NOT_LET_IN), "{said}");
    }
    servers.make_database().await;
    let url = servers.database.clone();
    servers.set("SECKILL_DATABASE_URL", &url);
    assert!(migrate(&servers).status.success());
    servers.balance(&[], 0).await;
}

/// This user may have a single connection, and another client holds it.
async fn a_single_connection(variable: &'static str) {
    use sqlx::Connection as _;
    let servers = world(variable).await;
    servers.make_database().await;
    let user = User::create(variable, &servers, "with max_user_connections 1");
    let url = user.url(&servers, "first");
    let held = sqlx::MySqlConnection::connect(&url).await.unwrap();
    let node = servers.ready_node(&[]).await;
    let (consumer, ops) = consumer(&servers, &url);
    let orders = sells(&servers, &node, 20).await;
    waits(&ops, "1226").await;
    held.close().await.unwrap();
    goes_on(&ops).await;
    servers.rows_reach(20, SOON).await;
    assert!(warnings(&consumer, "1226") >= 1, "{}", consumer.log());
    servers.balance(&orders, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_single_connection_to_mariadb() {
    a_single_connection(MARIADB_URL).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_single_connection_to_mysql() {
    let _others = MYSQL.read().await;
    a_single_connection(MYSQL_URL).await;
}

/// Each row takes 10 ms, a statement at most half a second: 300 rows at once always time out.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn what_takes_too_long_is_posted_by_less() {
    let servers = world(MARIADB_URL).await;
    servers.make_database().await;
    let user = User::create(MARIADB_URL, &servers, "with max_statement_time 0.5");
    let node = servers.ready_node(&[]).await;
    let orders = sells(&servers, &node, 300).await;
    let made = format!(
        "create trigger {0}.slow before insert on {0}.seckill for each row do sleep(0.01)",
        database(&servers)
    );
    until("the tables are there", SOON, async || {
        servers_tool(&["mariadb-root", "-e", &made]).status.success()
    })
    .await;
    let (consumer, ops) = consumer(&servers, &user.url(&servers, "first"));
    waits(&ops, "1969").await;
    servers.rows_reach(300, SOON).await;
    root(MARIADB_URL, &format!("drop trigger {}.slow", database(&servers)));
    goes_on(&ops).await;
    assert!(warnings(&consumer, "1969") > 0);
    servers.balance(&orders, 300).await;
}

/// The password changes at run time: denied programs report it, and continue with the new one.
async fn another_password(variable: &'static str) {
    let servers = world(variable).await;
    servers.make_database().await;
    let user = User::create(variable, &servers, "");
    let url = user.url(&servers, "first");
    let node = servers.ready_node(&[("SECKILL_DATABASE_URL", url.as_str())]).await;
    let (first, ops) = consumer(&servers, &url);
    let mut orders = sells(&servers, &node, 10).await;
    servers.rows_reach(10, SOON).await;
    user.does("alter", "identified by 'second'");
    user.disconnected();
    orders.extend(sells(&servers, &node, 10).await);
    waits(&ops, "1045").await;
    until("the service says so too", SOON, async || {
        text(&format!("{}/metrics", node.ops)).await.contains("seckill_ledger_away 1")
            && warnings(&node.process, "start again with the new one") == 1
    })
    .await;
    assert_eq!(warnings(&first, "start again with the new one"), 1, "{}", first.log());
    assert!(first.stop().await.success());
    let (_second, ops) = consumer(&servers, &user.url(&servers, "second"));
    goes_on(&ops).await;
    servers.balance(&orders, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn another_password_in_mariadb() {
    another_password(MARIADB_URL).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn another_password_in_mysql() {
    let _others = MYSQL.read().await;
    another_password(MYSQL_URL).await;
}

/// A sale on a default MySQL: `caching_sha2_password`, without TLS, and a password new to the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_sale_on_mysql_without_tls() {
    let _others = MYSQL.read().await;
    let mut servers = world(MYSQL_URL).await;
    servers.make_database().await;
    let user = User::create(MYSQL_URL, &servers, "");
    let url = format!("{}?ssl-mode=DISABLED", user.url(&servers, "first"));
    servers.set("SECKILL_DATABASE_URL", &url);
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "1000"]).await;
    node.reaches("open", SOON).await;
    let answers = crowd(&[node.buy_url()], 3000, 500, true).await;
    assert_eq!((count(&answers, "success"), count(&answers, "sold_out")), (1000, 2000));
    servers.balance(&told(&answers), 1000).await;
}

/// One error after the other, under one consumer: it waits for each and survives.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn mysql_refuses_for_a_while() {
    let _alone = MYSQL.write().await;
    let servers = world(MYSQL_URL).await;
    servers.make_database().await;
    let user = User::create(MYSQL_URL, &servers, "");
    let node = servers.ready_node(&[]).await;
    let (mut process, ops) = consumer(&servers, &user.url(&servers, "first"));
    let mut orders = sells(&servers, &node, 5).await;
    servers.rows_reach(5, SOON).await;
    for (name, value, why) in [
        ("max_prepared_stmt_count", "0", "1461"),
        ("read_only", "1", "1290"),
        ("super_read_only", "1", "1290"),
        ("offline_mode", "1", "3032"),
        ("binlog_format", "'STATEMENT'", "set binlog_format to ROW or MIXED"),
    ] {
        let refusal = Global::set(name, value);
        if name == "binlog_format" {
            user.disconnected();
        }
        orders.extend(sells(&servers, &node, 5).await);
        waits(&ops, why).await;
        drop(refusal);
        root(MYSQL_URL, "set global super_read_only = 0; set global read_only = 0");
        goes_on(&ops).await;
        servers.rows_reach(orders.len(), SOON).await;
        assert!(process.running(), "{why}");
    }
    servers.balance(&orders, orders.len()).await;
}

/// A server that permanently accepts less than one batch.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn small_packets_are_enough() {
    let _alone = MYSQL.write().await;
    let servers = world(MYSQL_URL).await;
    servers.make_database().await;
    let user = User::create(MYSQL_URL, &servers, "");
    let mebibyte = Global::set("max_allowed_packet", "1048576");
    let ledger = MySqlLedger::connect_lazy(&user.url(&servers, "first")).unwrap();
    ledger.migrate().await.unwrap();
    let large = |serial| {
        let sale = Sale {
            order: Uuid::now_v7(),
            item: "large".to_owned(),
            epoch: Uuid::nil(),
            term: 0,
            serial,
            remaining: 0,
            attempt: None,
            buyer: None,
            sold_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        let json = String::from_utf8(sale.to_json().unwrap()).unwrap();
        format!("{{\"padding\":\"{}\",{}", "x".repeat(100_000), &json[1..]).into_bytes()
    };
    let messages = (0..30).map(|offset| Message { offset, value: large(1 + offset as u64) }).collect();
    let part = Part { partition: 0, from: None, messages, upto: None };
    let posted = ledger.post(&Batch { topic: "large".to_owned(), parts: vec![part] }).await.unwrap();
    assert_eq!(posted.new, 30);
    root(MYSQL_URL, &format!("delete from {0}.seckill; delete from {0}.seckill_term", database(&servers)));
    drop(mebibyte);

    // Less than any sensible value: batches are halved until they fit.
    let _little = Global::set("max_allowed_packet", "65536");
    let node = servers.ready_node(&[]).await;
    let orders = sells(&servers, &node, 1200).await;
    let (consumer, ops) = consumer(&servers, &user.url(&servers, "first"));
    servers.rows_reach(1200, SOON).await;
    goes_on(&ops).await;
    let named = "max_allowed_packet=65536";
    assert!(warnings(&consumer, named) == 1 && warnings(&node.process, named) == 1, "{}", consumer.log());
    servers.balance(&orders, 1200).await;
}

/// At startup: the broken promises, with remedies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_database_that_flushes_later_is_warned_of() {
    let _alone = MYSQL.write().await;
    let servers = world(MYSQL_URL).await;
    servers.make_database().await;
    let _flush = Global::set("innodb_flush_log_at_trx_commit", "2");
    let _sync = Global::set("sync_binlog", "0");
    let node = servers.ready_node(&[]).await;
    let (consumer, ops) = consumer(&servers, &servers.database);
    goes_on(&ops).await;
    for process in [&consumer, &node.process] {
        for why in ["innodb_flush_log_at_trx_commit=2", "sync_binlog=0"] {
            until(why, SOON, async || warnings(process, why) == 1).await;
        }
        assert!(process.log().contains("set sync_binlog=1"));
        assert_eq!(warnings(process, "doublewrite"), 0);
    }
    let orders = sells(&servers, &node, 5).await;
    servers.balance(&orders, 5).await;
}
