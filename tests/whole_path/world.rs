//! The test world: its own folder and ports, and the check of its books.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use consumer::sale::Sale;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use sqlx::mysql::MySqlPool;
use sqlx::{Connection as _, Row as _};
use tempfile::TempDir;
use uuid::Uuid;

use crate::books::{Books, Row};
use crate::process::{Env, Process, command, free_port, output, until};

/// A service under test.
pub struct Node {
    pub process: Process,
    pub url: String,
    pub ops: String,
    env: Env,
}

impl Node {
    pub fn buy_url(&self) -> String {
        format!("{}/seckill/seckill", self.url)
    }

    pub async fn count(&self, query: &str) -> Value {
        get(&format!("{}/seckill/getCount{query}", self.url)).await.1
    }

    pub async fn state(&self) -> String {
        self.count("").await["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the sale has this state.
    pub async fn reaches(&self, state: &str, within: Duration) {
        until(&format!("state {state}"), within, async || self.state().await == state).await;
    }
}

/// Status and JSON of a GET; status 0 without an answer.
pub async fn get(url: &str) -> (u16, Value) {
    match crate::buyers::client().get(url).send().await {
        Ok(response) => (response.status().as_u16(), response.json().await.unwrap_or_default()),
        Err(_) => (0, Value::Null),
    }
}

/// The servers world: the test's own Redis; its own topic, group and database on the shared Kafka and
/// MariaDB.
pub struct Servers {
    pub folder: TempDir,
    pub redis: Option<Process>,
    pub redis_port: u16,
    pub topic: String,
    pub group: String,
    pub database: String,
    /// Where the check of the books reads the topic.
    pub brokers: String,
    pub env: Env,
}

/// The value of a variable of `scripts/servers env`.
pub fn shared(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run `scripts/servers up --with-mysql` and `eval \"$(scripts/servers env)\"`, or scripts/test")
    })
}

impl Servers {
    pub async fn start() -> Self {
        let mut servers = Self::prepare();
        servers.start_redis().await;
        servers.make_database().await;
        servers
    }

    /// Everything but the servers.
    pub fn prepare() -> Self {
        Self::prepare_on("SECKILL_DATABASE_URL")
    }

    /// With a database on the server that this variable names.
    pub fn prepare_on(variable: &str) -> Self {
        let name = Uuid::now_v7().simple().to_string();
        let folder = TempDir::new().unwrap();
        let redis_port = free_port();
        let database = shared(variable);
        let (server, _) = database.rsplit_once('/').unwrap();
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let topic = format!("test-{name}");
        let group = format!("test-{name}");
        let brokers = shared("SECKILL_KAFKA_BROKERS");
        let database = format!("{server}/seckill_test_{name}");
        let env = vec![
            set("SECKILL_REDIS_URL", &format!("redis://127.0.0.1:{redis_port}/0")),
            set("SECKILL_KAFKA_BROKERS", &brokers),
            set("SECKILL_DATABASE_URL", &database),
            set("SECKILL_KAFKA_TOPIC", &topic),
            set("SECKILL_KAFKA_GROUP", &group),
        ];
        Self { folder, redis: None, redis_port, topic, group, database, brokers, env }
    }

    /// Overrides a setting.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(set, _)| set != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub async fn start_redis(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.redis_port.to_string(), "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]);
        command.arg("--dir").arg(self.folder.path());
        self.redis = Some(Process::start("redis", command, &self.folder.path().join("redis.log")));
        self.redis_answers(self.redis_port).await;
    }

    /// A replica of this test's Redis, once in sync.
    pub async fn replica(&self) -> (Process, u16) {
        let (port, folder) = (free_port(), self.folder.path().join("replica"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--repl-diskless-sync-delay", "0", "--replicaof"]);
        command.arg(format!("127.0.0.1 {}", self.redis_port)).arg("--dir").arg(&folder);
        let replica = Process::start("replica", command, &folder.join("log"));
        self.redis_answers(port).await;
        self.follows(port).await;
        (replica, port)
    }

    /// Waits until the Redis at this port is in sync with its master.
    pub async fn follows(&self, port: u16) {
        until("it follows", Duration::from_secs(20), async || {
            self.redis_at::<String>(port, &["INFO", "replication"]).await.contains("master_link_status:up")
        })
        .await;
    }

    pub async fn redis_answers(&self, port: u16) {
        until("redis answers", Duration::from_secs(10), async || {
            let Ok(client) = redis::Client::open(format!("redis://127.0.0.1:{port}/0")) else {
                return false;
            };
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
            redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
        })
        .await;
    }

    pub async fn make_database(&self) {
        let (server, name) = self.database.rsplit_once('/').unwrap();
        let mut connection = sqlx::MySqlConnection::connect(&format!("{server}/seckill")).await.unwrap();
        let create = format!("create database if not exists {name} character set utf8mb4");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
    }

    /// One command to this test's Redis.
    pub async fn redis<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.redis_at(self.redis_port, words).await
    }

    /// One command to another Redis of this test.
    pub async fn redis_at<T: redis::FromRedisValue>(&self, port: u16, words: &[&str]) -> T {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}/0")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }

    /// Pipelined commands to this test's Redis.
    pub async fn redis_pipe(&self, pipe: &redis::Pipeline) {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/0", self.redis_port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        pipe.exec_async(&mut connection).await.unwrap();
    }

    /// Starts a service without waiting.
    pub fn node(&self, more: &[(&str, &str)]) -> Node {
        node(&self.env, more, self.folder.path())
    }

    /// Starts a service and waits until it is ready to sell.
    pub async fn ready_node(&self, more: &[(&str, &str)]) -> Node {
        let node = self.node(more);
        until("the service is ready", Duration::from_secs(10), async || ready(&node.ops).await).await;
        node
    }

    pub fn consumer(&self) -> Process {
        self.consumer_with(&[])
    }

    /// A consumer with this ops address.
    pub fn consumer_at(&self, ops: &str) -> Process {
        self.consumer_with(&[("SECKILL_CONSUMER_OPS_LISTEN", ops)])
    }

    /// A consumer with extra settings.
    pub fn consumer_with(&self, more: &[(&str, &str)]) -> Process {
        let mut env = self.env.clone();
        env.push(("SECKILL_CONSUMER_OPS_LISTEN".into(), format!("127.0.0.1:{}", free_port())));
        // No load balancer here.
        env.push(("SECKILL_DRAIN".into(), "0".into()));
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Process::start(
            "consumer",
            command("consumer", &env, &[], self.folder.path()),
            &self.folder.path().join("consumer.log"),
        )
    }

    pub async fn pool(&self) -> MySqlPool {
        MySqlPool::connect(&self.database).await.unwrap()
    }

    /// Rows of the ledger, 0 before it has tables.
    pub async fn rows(&self) -> usize {
        let Ok(pool) = MySqlPool::connect(&self.database).await else { return 0 };
        let rows = sqlx::query_scalar::<_, i64>("select count(*) from seckill").fetch_one(&pool).await;
        usize::try_from(rows.unwrap_or(0)).unwrap()
    }

    pub async fn rows_reach(&self, rows: usize, within: Duration) {
        until(&format!("{rows} rows"), within, async || self.rows().await >= rows).await;
    }

    /// All messages of the topic.
    pub async fn messages(&self) -> Vec<Vec<u8>> {
        let (topic, brokers) = (self.topic.clone(), self.brokers.clone());
        tokio::task::spawn_blocking(move || read_all(&topic, &brokers)).await.unwrap()
    }

    /// Runs a command of the consumer.
    pub fn consume(&self, args: &[&str]) -> std::process::Output {
        output("consumer", &self.env, args, self.folder.path())
    }

    pub fn operate(&self, args: &[&str]) -> std::process::Output {
        output("seckill", &self.env, args, self.folder.path())
    }

    /// Checks the books, from outside and by `audit`: every confirmed order is recorded, no unit twice, none
    /// missing, exactly `sold` rows, and every row has its message.
    pub async fn balance(&self, told: &[String], sold: usize) {
        until("the outbox is settled and the ledger has caught up", Duration::from_secs(60), async || {
            let audit: Value =
                serde_json::from_slice(&self.operate(&["audit", "--json"]).stdout).unwrap_or_default();
            audit["balanced"] == true
                && audit["items"].as_array().is_some_and(|items| {
                    items.iter().all(|item| item["outbox"] == 0 && item["recorded"] == item["sold"])
                })
        })
        .await;
        self.books().await.check(told, sold);
        assert_balanced(&self.operate(&["audit"]));
    }

    /// The contents of table and topic.
    pub async fn books(&self) -> Books {
        let pool = self.pool().await;
        let rows = sqlx::query("select order_id, item, epoch, serial, attempt from seckill");
        let rows = rows.fetch_all(&pool).await.unwrap();
        let conflicts = sqlx::query("select order_id, reason from seckill_conflict");
        let conflicts = conflicts.fetch_all(&pool).await.unwrap();
        let void: i64 = sqlx::query_scalar(crate::books::VOID).fetch_one(&pool).await.unwrap();
        let sales = self.messages().await;
        Books {
            rows: rows
                .iter()
                .map(|row| Row {
                    order: uuid(row, 0),
                    item: text(row, 1).unwrap(),
                    epoch: uuid(row, 2),
                    serial: row.get(3),
                    attempt: text(row, 4),
                })
                .collect(),
            conflicts: conflicts.iter().map(|row| (uuid(row, 0), text(row, 1).unwrap())).collect(),
            void: usize::try_from(void).unwrap(),
            journal: sales
                .iter()
                .filter_map(|value| Sale::from_json(value).ok())
                .map(|sale| sale.order)
                .collect(),
        }
    }
}

/// A column, whether its type is text or bytes.
fn text(row: &sqlx::mysql::MySqlRow, column: usize) -> Option<String> {
    let bytes: Option<Vec<u8>> = row.get_unchecked(column);
    bytes.map(|bytes| String::from_utf8(bytes).unwrap())
}

/// An order or epoch, whether the column is text or bytes.
fn uuid(row: &sqlx::mysql::MySqlRow, column: usize) -> Uuid {
    let bytes: Vec<u8> = row.get_unchecked(column);
    Uuid::from_slice(&bytes).or_else(|_| Uuid::try_parse_ascii(&bytes)).unwrap()
}

pub fn assert_balanced(audit: &std::process::Output) {
    assert!(
        audit.status.success(),
        "audit: {}{}",
        String::from_utf8_lossy(&audit.stdout),
        String::from_utf8_lossy(&audit.stderr)
    );
}

pub async fn ready(ops: &str) -> bool {
    get(&format!("{ops}/readyz")).await.0 == 200
}

fn node(env: &Env, more: &[(&str, &str)], folder: &Path) -> Node {
    start(listening(env, more), folder)
}

/// With its own ports.
fn listening(env: &Env, more: &[(&str, &str)]) -> Env {
    let (port, ops) = (free_port(), free_port());
    let mut env = env.clone();
    env.push(("SECKILL_LISTEN".into(), format!("127.0.0.1:{port}")));
    env.push(("SECKILL_OPS_LISTEN".into(), format!("127.0.0.1:{ops}")));
    // No load balancer here.
    env.push(("SECKILL_DRAIN".into(), "0".into()));
    env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

fn start(env: Env, folder: &Path) -> Node {
    let command = command("seckill", &env, &["serve"], folder);
    started(env, command, folder)
}

fn started(env: Env, command: Command, folder: &Path) -> Node {
    let address = |name: &str| {
        env.iter().rev().find(|(set, _)| set == name).map(|(_, address)| format!("http://{address}")).unwrap()
    };
    let (url, ops) = (address("SECKILL_LISTEN"), address("SECKILL_OPS_LISTEN"));
    let process = Process::start("seckill", command, &folder.join("seckill.log"));
    Node { process, url, ops, env }
}

impl Node {
    /// Restarts it on the same ports with the same settings.
    pub fn again(env: Env, folder: &Path) -> Node {
        start(env, folder)
    }

    pub fn env(&self) -> Env {
        self.env.clone()
    }
}

fn read_all(topic: &str, brokers: &str) -> Vec<Vec<u8>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test-reader")
        .create()
        .unwrap();
    let wait = Duration::from_secs(10);
    let metadata = consumer.fetch_metadata(Some(topic), wait).unwrap();
    let mut left = 0;
    let mut from = TopicPartitionList::new();
    let mut ends = std::collections::HashMap::new();
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), wait).unwrap();
        left += high - low;
        ends.insert(partition.id(), high);
        from.add_partition_offset(topic, partition.id(), Offset::Offset(low)).unwrap();
    }
    consumer.assign(&from).unwrap();
    let mut values = Vec::new();
    while left > 0 {
        let message = consumer.poll(wait).expect("a message").expect("readable");
        if message.offset() < ends[&message.partition()] {
            values.push(message.payload().unwrap_or_default().to_vec());
            left -= 1;
        }
    }
    values
}

/// The embedded world: one file in the test's own folder.
pub struct Embedded {
    pub folder: TempDir,
    pub env: Env,
}

impl Embedded {
    pub fn new(stock: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let env = vec![
            ("SECKILL_DATA".to_owned(), folder.path().join("sale.db").display().to_string()),
            ("SECKILL_STOCK".to_owned(), stock.to_string()),
        ];
        Self { folder, env }
    }

    pub async fn node(&self, more: &[(&str, &str)]) -> Node {
        let node = node(&self.env, more, self.folder.path());
        until("the service is ready", Duration::from_secs(10), async || ready(&node.ops).await).await;
        node
    }

    /// A service whose writes beyond the file size limit fail, as on a full disk, instead of killing it by
    /// SIGXFSZ.
    pub async fn node_with_little_room(&self) -> Node {
        let env = listening(&self.env, &[]);
        let plain = command("seckill", &env, &["serve"], self.folder.path());
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(plain.get_program())
            .args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(self.folder.path());
        let node = started(env, command, self.folder.path());
        until("the service is ready", Duration::from_secs(10), async || ready(&node.ops).await).await;
        node
    }

    pub fn operate(&self, args: &[&str]) -> std::process::Output {
        output("seckill", &self.env, args, self.folder.path())
    }

    /// Locks the file against all other writers.
    pub async fn lock(&self) -> FileLock {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.folder.path().join("sale.db"))
            .busy_timeout(Duration::from_secs(5));
        let mut file = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql("begin immediate").execute(&mut file).await.unwrap();
        FileLock(file)
    }

    /// The same check as [`Servers::balance`], on the file.
    pub async fn balance(&self, told: &[String], sold: usize) {
        until("the ledger has caught up", Duration::from_secs(20), async || {
            let audit: Value =
                serde_json::from_slice(&self.operate(&["audit", "--json"]).stdout).unwrap_or_default();
            audit["items"]
                .as_array()
                .is_some_and(|items| items.iter().all(|item| item["recorded"] == item["sold"]))
        })
        .await;
        self.books().await.check(told, sold);
        assert_balanced(&self.operate(&["audit"]));
    }

    /// The contents of the file's ledger and journal.
    pub async fn books(&self) -> Books {
        let path = self.folder.path().join("sale.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
        let mut file = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        let rows = sqlx::query("select order_id, item, epoch, serial, attempt from seckill");
        let rows = rows.fetch_all(&mut file).await.unwrap();
        let conflicts = sqlx::query("select order_id, reason from seckill_conflict");
        let conflicts = conflicts.fetch_all(&mut file).await.unwrap();
        let sales = sqlx::query_scalar::<_, String>("select value from journal where kind = 'sale'");
        let sales = sales.fetch_all(&mut file).await.unwrap();
        Books {
            rows: rows
                .iter()
                .map(|row| Row {
                    order: row.get::<String, _>(0).parse().unwrap(),
                    item: row.get(1),
                    epoch: row.get::<String, _>(2).parse().unwrap(),
                    serial: row.get(3),
                    attempt: row.get(4),
                })
                .collect(),
            conflicts: conflicts
                .iter()
                .map(|row| (row.get::<String, _>(0).parse().unwrap(), row.get(1)))
                .collect(),
            void: 0,
            journal: sales.iter().map(|value| Sale::from_json(value.as_bytes()).unwrap().order).collect(),
        }
    }
}

/// The embedded file's write lock, held.
pub struct FileLock(sqlx::SqliteConnection);

impl FileLock {
    pub async fn unlock(mut self) {
        sqlx::raw_sql("rollback").execute(&mut self.0).await.unwrap();
    }
}
