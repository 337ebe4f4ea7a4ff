//! The program against a real Kafka and a real MariaDB: recorded once, whatever ends it.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use consumer::kafka::ensure_topic;
use consumer::ledger::mysql::MySqlLedger;
use consumer::service::config::Settings;
use support::kafka::{delete_topic, group_offset, produce};
use support::{Database, SOON, bytes, sale, serials, server, settings};

/// A consumer that is ended with the test.
struct Running {
    child: Child,
    ops: String,
}

impl Running {
    fn start(settings: &Settings, brokers: &str, database: &str) -> Self {
        let ops =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").to_string();
        let child = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .env("SECKILL_KAFKA_BROKERS", brokers)
            .env("SECKILL_DATABASE_URL", database)
            .env("SECKILL_KAFKA_TOPIC", &settings.kafka_topic)
            .env("SECKILL_KAFKA_GROUP", &settings.kafka_group)
            .env("SECKILL_CONSUMER_OPS_LISTEN", &ops)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        Self { child, ops }
    }

    /// The answer to a GET, if it listens.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.ops).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn until(&self, path: &str, holds: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + SOON;
        loop {
            let answer = self.get(path);
            if let Some(answer) = answer.as_deref().filter(|answer| holds(answer)) {
                return answer.to_owned();
            }
            assert!(Instant::now() < until, "{path}: {answer:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    fn ended(&mut self, within: Duration) -> ExitStatus {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("asked") {
                return status;
            }
            assert!(Instant::now() < until, "still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn recorded(ledger: &MySqlLedger, count: u64) {
    let until = Instant::now() + SOON;
    let wanted: Vec<u64> = (1..=count).collect();
    loop {
        let serials = serials(ledger).await;
        if serials == wanted {
            return;
        }
        assert!(Instant::now() < until, "{} of {count} recorded", serials.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn killed_or_stopped_it_goes_on_where_the_ledger_is() {
    let brokers = server("SECKILL_KAFKA_BROKERS");
    let database = Database::create().await;
    let settings = settings(&brokers);
    let topic = &settings.kafka_topic;
    ensure_topic(&settings).await.expect("a topic");
    let ledger = MySqlLedger::connect_lazy(&database.url).expect("an address");
    let sales: Vec<_> = (1..=60).map(|serial| Some(bytes(&sale(serial)))).collect();

    produce(&brokers, topic, 0, &sales[..20]).await;
    let mut first = Running::start(&settings, &brokers, &database.url);
    first.until("/readyz", |answer| answer.starts_with("HTTP/1.0 200"));
    recorded(&ledger, 20).await;
    assert!(first.until("/livez", |answer| answer.starts_with("HTTP/1.0 200")).ends_with("ok"));
    let metrics = first.until("/metrics", |answer| answer.contains("outcome=\"new\"} 20"));
    for line in [
        "seckill_ledger_sales_total{outcome=\"dead_letter\"} 0",
        "seckill_ledger_post_duration_seconds_count",
        &format!("seckill_consumer_lag_messages{{partition=\"0\",topic=\"{topic}\"}} "),
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    first.signal("-KILL");
    first.ended(SOON);

    produce(&brokers, topic, 0, &sales[20..40]).await;
    let killed = Instant::now();
    let mut second = Running::start(&settings, &brokers, &database.url);
    recorded(&ledger, 40).await;
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    second.until("/metrics", |answer| answer.contains(&format!("topic=\"{topic}\"}} 0")));
    second.signal("-TERM");
    assert_eq!(second.ended(Duration::from_secs(15)).code(), Some(0));

    // It left the group, so that the next one has the partitions at once.
    produce(&brokers, topic, 0, &sales[40..]).await;
    let mut third = Running::start(&settings, &brokers, &database.url);
    recorded(&ledger, 60).await;
    let until = Instant::now() + SOON;
    loop {
        let (brokers, group, topic) = (brokers.clone(), settings.kafka_group.clone(), topic.clone());
        let seen = tokio::task::spawn_blocking(move || group_offset(&brokers, &group, &topic, 0)).await;
        if seen.expect("asked") == Some(60) {
            break;
        }
        assert!(Instant::now() < until, "lag tools do not see it");
    }
    third.signal("-INT");
    assert_eq!(third.ended(Duration::from_secs(15)).code(), Some(0));
    delete_topic(&brokers, topic).await;
}

#[tokio::test]
#[ignore = "needs servers"]
async fn servers_that_are_away_are_waited_for() {
    let database = Database::create().await;
    let settings = settings("127.0.0.1:1");
    let mut without_kafka = Running::start(&settings, "127.0.0.1:1", &database.url);
    let answer = without_kafka.until("/readyz", |answer| answer.contains("the journal is away"));
    assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
    let mut without_database =
        Running::start(&settings, &server("SECKILL_KAFKA_BROKERS"), "mysql://u:hunter2@127.0.0.1:1/d");
    let answer = without_database.until("/readyz", |answer| answer.contains("the ledger is away"));
    assert!(answer.starts_with("HTTP/1.0 503") && !answer.contains("hunter2"), "{answer}");
    for waiting in [&mut without_kafka, &mut without_database] {
        waiting.signal("-TERM");
        assert_eq!(waiting.ended(Duration::from_secs(15)).code(), Some(0));
    }
}

#[tokio::test]
#[ignore = "needs servers"]
async fn a_broken_ledger_ends_it() {
    let database = Database::create().await;
    let brokers = server("SECKILL_KAFKA_BROKERS");
    let settings = settings(&brokers);
    // A table of this name that is not ours.
    database.inside("create table seckill (id int)").await;
    let mut running = Running::start(&settings, &brokers, &database.url);
    assert_eq!(running.ended(SOON).code(), Some(1));
}
