//! Fault tests under load: one thing breaks while many buyers buy; then it is healed, and the books must be
//! whole. One routine checks every kind of fault alike.
//!
//! `scripts/faults` runs each many times; docs/faults.md explains what is measured.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, RwLockReadGuard};
use tokio::time::sleep_until;
use uuid::Uuid;

use crate::books::{Books, Comparison};
use crate::buyers::{buy, client, count, crowd};
use crate::faults::{Shared, undisturbed};
use crate::load::{Heard, Load};
use crate::process::{Env, Process, free_port, until};
use crate::proxy::{Answers, Proxy};
use crate::world::{Embedded, Node, Servers, assert_balanced, get, ready, shared};

/// What can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Service,
    Consumer,
    Kafka,
    Redis,
    MariaDb,
}

/// How it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SIGKILL, and a restart.
    Kill(Part),
    /// SIGSTOP, and SIGCONT after longer than any timeout.
    Stop(Part),
    /// By the proxy in front of it.
    Answers(Part, Answers),
    /// FLUSHALL, and `restore`.
    RedisWiped,
    /// Restarted with an older file, and `restore`.
    RedisRolledBack,
    /// Demoted to follow its replica, which lacks the last sales, then master again in the same process; and
    /// `restore`.
    Failback,
    /// Deleted, recreated by the service, and healed as docs/operations.md says.
    TopicRecreated,
    /// Unrecorded messages deleted, and skipped as docs/operations.md says.
    TopicCut,
    /// A topic setting that makes Kafka refuse every sale: name, value, and the value to restore.
    Refusing(&'static str, &'static str, &'static str),
    /// Under the embedded file.
    DiskFull,
}

/// What buyers must see during the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// The sale continues.
    Sold,
    /// No sale, and every buyer is told so.
    Shut(&'static str),
    /// Either, by chance.
    Either,
}

macro_rules! kinds {
    ($($name:ident: $kind:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            #[ignore = "needs servers"]
            async fn $name() {
                run(&stringify!($name).replace('_', "-"), $kind).await;
            }
        )*
    };
}

// A take answered later than this counts as unknown (`REPLY_WITHIN`: 800 ms); an acknowledgement as failed
// (`STALLED_AFTER`: 800 ms; `TELL_WITHIN`: 2 s).
const LATE_REDIS: Answers = Answers::Delay(Duration::from_millis(1200));
const LATE_KAFKA: Answers = Answers::Delay(Duration::from_millis(2500));
const LATE_MARIADB: Answers = Answers::Delay(Duration::from_millis(2500));

kinds! {
    kill_service: Kind::Kill(Part::Service);
    kill_consumer: Kind::Kill(Part::Consumer);
    kill_kafka: Kind::Kill(Part::Kafka);
    kill_redis: Kind::Kill(Part::Redis);
    kill_mariadb: Kind::Kill(Part::MariaDb);
    stop_service: Kind::Stop(Part::Service);
    stop_consumer: Kind::Stop(Part::Consumer);
    stop_kafka: Kind::Stop(Part::Kafka);
    stop_redis: Kind::Stop(Part::Redis);
    stop_mariadb: Kind::Stop(Part::MariaDb);
    cut_redis: Kind::Answers(Part::Redis, Answers::Cut);
    cut_kafka: Kind::Answers(Part::Kafka, Answers::Cut);
    cut_mariadb: Kind::Answers(Part::MariaDb, Answers::Cut);
    delay_redis: Kind::Answers(Part::Redis, LATE_REDIS);
    delay_kafka: Kind::Answers(Part::Kafka, LATE_KAFKA);
    delay_mariadb: Kind::Answers(Part::MariaDb, LATE_MARIADB);
    swallow_redis: Kind::Answers(Part::Redis, Answers::Swallow);
    swallow_kafka: Kind::Answers(Part::Kafka, Answers::Swallow);
    swallow_mariadb: Kind::Answers(Part::MariaDb, Answers::Swallow);
    redis_wiped: Kind::RedisWiped;
    redis_rolled_back: Kind::RedisRolledBack;
    failback: Kind::Failback;
    topic_recreated: Kind::TopicRecreated;
    topic_cut: Kind::TopicCut;
    refusing_kafka: Kind::Refusing("max.message.bytes", "100", "1048588");
    disk_full: Kind::DiskFull;
}

/// More than any load buys, so that "sold out" is never true.
const UNITS: usize = 1_000_000;
/// Sold before the fault, so that it hits a running sale.
const SOLD_BEFORE: usize = 300;
/// Sold between the copy of Redis's file and its loss.
const SOLD_AND_FORGOTTEN: usize = 200;
/// Sold after healing.
const SOLD_AFTER: usize = 200;
/// Units left for the last check, and buyers who want one.
const LAST_UNITS: usize = 40;
const LAST_BUYERS: usize = 60;
/// Winners who retry with their keys.
const ASKED_AGAIN: usize = 20;
/// An outage detected at once: 503 within about a second.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);
/// From healing to an open sale: the longest path is that of a restarted Redis, which waits for a consumer
/// that waits for its database.
const OPEN_WITHIN: Duration = Duration::from_secs(60);
/// Until nothing is in flight: the outbox's grace of 15 s, twice.
const RESTS_WITHIN: Duration = Duration::from_secs(60);
/// Maximum file size while the disk is full: more than the log of the service needs, less than its database.
const ROOM: u32 = 64 * 1024;

impl Kind {
    /// How long it stays broken.
    fn lasts(self) -> Duration {
        match self {
            // Longer than `max.poll.interval.ms`, 60 s: the longest timeout of a consumer.
            Kind::Stop(Part::Consumer) => Duration::from_secs(62),
            // Longer than `ANSWER_WITHIN` of the ledger, 20 s: the longest timeout of a call.
            Kind::Stop(_) => Duration::from_secs(22),
            _ => Duration::from_secs(4),
        }
    }

    fn meanwhile(self) -> Meanwhile {
        match self {
            Kind::Kill(Part::Redis | Part::Kafka) | Kind::Stop(Part::Redis | Part::Kafka) => {
                Meanwhile::Shut("unavailable")
            }
            Kind::Answers(Part::Redis | Part::Kafka, Answers::Swallow) => Meanwhile::Shut("unavailable"),
            Kind::RedisRolledBack | Kind::Failback | Kind::DiskFull | Kind::Refusing(..) => {
                Meanwhile::Shut("unavailable")
            }
            Kind::RedisWiped => Meanwhile::Shut("not_on_sale"),
            Kind::Kill(_) | Kind::Stop(_) | Kind::Answers(Part::MariaDb, _) => Meanwhile::Sold,
            Kind::TopicCut => Meanwhile::Sold,
            Kind::Answers(..) | Kind::TopicRecreated => Meanwhile::Either,
        }
    }
}

async fn run(name: &str, kind: Kind) {
    let began = Instant::now();
    let mut stage = Stage::set(kind).await;
    let load = Load::start(&stage.urls);
    load.sells(SOLD_BEFORE).await;

    let broken = Instant::now();
    stage.break_it(&load).await;
    stage.meanwhile(&load).await;
    sleep_until((broken + kind.lasts()).into()).await;
    stage.before_healing(&load, broken).await;
    let healing = Instant::now();
    stage.heal().await;
    let (order, sold) = load.sells_after(healing, OPEN_WITHIN).await;
    stage.is_well(order).await;
    let recorded = Instant::now();
    load.sells(load.sold() + SOLD_AFTER).await;

    let heard = load.stop().await;
    stage.rests().await;
    let left = stage.left().await;
    let (later, gone) = stage.look_up(&heard.pending()).await;
    let last = stage.sell_the_last(&heard).await;
    stage.rests().await;

    let books = stage.books().await;
    let compared = Comparison::new(&books, &heard, &later, &gone);
    report(&json!({
        "kind": name,
        "attempts": heard.attempts(),
        "told": compared.told,
        "recorded": compared.recorded - last,
        "lost": compared.lost.len(),
        "doubled": compared.doubled.len(),
        "silence_s": heard.silence.as_secs_f64(),
        "heal_s": (sold - healing).as_secs_f64(),
        "recorded_s": (recorded - healing).as_secs_f64(),
        "run_s": began.elapsed().as_secs_f64(),
    }));
    eprintln!("{name}: {} rows, {} void, heard {}", books.rows.len(), books.void, tally(&heard));

    assert_eq!(heard.count("sold_out"), 0, "units were left");
    assert_eq!(compared.doubled, Vec::<String>::new());
    stage.compare(&books, &compared);
    let accounted = books.rows.len() + books.void + usize::try_from(books.missing()).unwrap();
    assert_eq!(accounted, UNITS - left + last, "seeded − left");
}

fn tally(heard: &Heard) -> String {
    let codes: std::collections::BTreeSet<&str> = heard.said.iter().map(|said| said.code.as_str()).collect();
    codes.iter().map(|code| format!("{} {code}", heard.count(code))).collect::<Vec<_>>().join(", ")
}

/// Appends a line to the file that `scripts/faults` names.
fn report(line: &Value) {
    if let Some(path) = std::env::var_os("SECKILL_FAULTS_REPORT") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

/// A sale before its fault.
struct Stage {
    kind: Kind,
    nodes: Vec<Node>,
    /// The settings of the killed node.
    down: Option<Env>,
    consumers: Vec<Process>,
    urls: Vec<String>,
    /// Settings of nodes and consumers beside those of their world.
    more: Vec<(String, String)>,
    proxy: Option<Proxy>,
    world: World,
    shared: Option<Shared>,
    _turn: Option<RwLockReadGuard<'static, ()>>,
    _kafka_proxy: Option<MutexGuard<'static, ()>>,
}

enum World {
    Servers(Box<Servers>),
    Embedded(Embedded),
}

impl Stage {
    /// A world with everything running, and units on sale.
    async fn set(kind: Kind) -> Self {
        let (mut turn, mut taken) = (None, None);
        match kind {
            Kind::Kill(Part::Kafka) | Kind::Stop(Part::Kafka) => taken = Some(Shared::take("kafka").await),
            Kind::Kill(Part::MariaDb) | Kind::Stop(Part::MariaDb) => {
                taken = Some(Shared::take("mariadb").await);
            }
            _ => turn = Some(undisturbed().await),
        }
        let world = match kind {
            Kind::DiskFull => World::Embedded(Embedded::new(UNITS as u64)),
            _ => World::Servers(Box::new(Servers::start().await)),
        };
        let mut stage = Self {
            kind,
            nodes: Vec::new(),
            down: None,
            consumers: Vec::new(),
            urls: Vec::new(),
            more: Vec::new(),
            proxy: None,
            world,
            shared: taken,
            _turn: turn,
            _kafka_proxy: None,
        };
        if let Kind::Answers(part, _) = kind {
            stage.put_a_proxy_before(part).await;
        }
        stage.start().await;
        stage
    }

    async fn start(&mut self) {
        let more = self.more.clone();
        let more: Vec<(&str, &str)> =
            more.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        match &self.world {
            World::Servers(servers) => {
                // One more where one is lost: the other takes its partitions over.
                let spare = matches!(self.kind, Kind::Kill(Part::Consumer) | Kind::Stop(Part::Consumer));
                for _ in 0..1 + usize::from(spare) {
                    self.consumers.push(servers.consumer_with(&more));
                }
                for _ in 0..2 {
                    self.nodes.push(servers.ready_node(&more).await);
                }
                servers.redis::<()>(&["SET", "counter", &UNITS.to_string()]).await;
            }
            World::Embedded(embedded) => self.nodes.push(embedded.node_with_little_room().await),
        }
        for node in &self.nodes {
            node.reaches("open", NOTICED_WITHIN).await;
        }
        self.urls = self.nodes.iter().map(Node::buy_url).collect();
    }

    /// Puts a proxy before this part, for nodes and consumers only.
    async fn put_a_proxy_before(&mut self, part: Part) {
        let servers = self.servers();
        let (port, server, setting) = match part {
            Part::Redis => {
                let port = free_port();
                let url = format!("redis://127.0.0.1:{port}/0");
                (port, format!("127.0.0.1:{}", servers.redis_port), ("SECKILL_REDIS_URL", url))
            }
            Part::MariaDb => {
                let port = free_port();
                let (login, rest) = servers.database.rsplit_once('@').unwrap();
                let (server, database) = rest.split_once('/').unwrap();
                let url = format!("{login}@127.0.0.1:{port}/{database}");
                (port, server.to_owned(), ("SECKILL_DATABASE_URL", url))
            }
            Part::Kafka => {
                // A broker advertises its address. `scripts/servers` gives Kafka a second listener, two above
                // its port, advertised three above.
                let brokers = shared("SECKILL_KAFKA_BROKERS");
                let (host, port) = brokers.split_once(':').unwrap();
                let port: u16 = port.parse().unwrap();
                self._kafka_proxy = Some(KAFKA_PROXY.lock().await);
                let proxied = format!("127.0.0.1:{}", port + 3);
                (port + 3, format!("{host}:{}", port + 2), ("SECKILL_KAFKA_BROKERS", proxied))
            }
            Part::Service | Part::Consumer => unreachable!("no server"),
        };
        self.proxy = Some(Proxy::start(port, server).await);
        self.more.push((setting.0.to_owned(), setting.1));
    }

    async fn break_it(&mut self, load: &Load) {
        match self.kind {
            Kind::Kill(Part::Service) => {
                let node = self.nodes.remove(0);
                self.down = Some(node.env());
                node.process.kill();
            }
            Kind::Kill(Part::Consumer) => self.consumers.remove(0).kill(),
            Kind::Kill(Part::Redis) => self.servers_mut().redis.take().unwrap().kill(),
            Kind::Kill(Part::Kafka | Part::MariaDb) => self.shared().is("kill"),
            Kind::Stop(Part::Kafka | Part::MariaDb) => self.shared().is("pause"),
            Kind::Stop(part) => self.process(part).signal("STOP"),
            Kind::Answers(_, answers) => self.proxy.as_ref().unwrap().answers(answers),
            Kind::RedisWiped => self.servers().redis::<()>(&["FLUSHALL"]).await,
            Kind::RedisRolledBack => {
                let folder = self.servers().folder.path().to_owned();
                let (file, copy) = (folder.join("appendonlydir"), folder.join("older"));
                assert!(Command::new("cp").arg("-r").args([&file, &copy]).status().unwrap().success());
                load.sells(load.sold() + SOLD_AND_FORGOTTEN).await;
                self.servers_mut().redis.take().unwrap().kill();
                std::fs::remove_dir_all(&file).unwrap();
                std::fs::rename(&copy, &file).unwrap();
                self.servers_mut().start_redis().await;
            }
            Kind::Failback => {
                let servers = self.servers();
                let (_replica, port) = servers.replica().await;
                load.sells_after(Instant::now(), OPEN_WITHIN).await;
                servers.redis_at::<()>(port, &["REPLICAOF", "NO", "ONE"]).await;
                load.sells(load.sold() + SOLD_AND_FORGOTTEN).await;
                servers.redis::<()>(&["REPLICAOF", "127.0.0.1", &port.to_string()]).await;
                servers.follows(servers.redis_port).await;
                servers.redis::<()>(&["REPLICAOF", "NO", "ONE"]).await;
            }
            Kind::TopicRecreated => {
                delete(&self.servers().topic).await;
                let status = self.consumers[0].ended(OPEN_WITHIN).await;
                let log = self.consumers.remove(0).log();
                assert!(!status.success() && log.contains("recreated"), "{status}: {log}");
            }
            Kind::TopicCut => {
                self.consumers.remove(0).kill();
                load.sells(load.sold() + SOLD_AND_FORGOTTEN).await;
                cut(&self.servers().topic).await;
                // A consumer told to record the rest reports what is missing, and exits.
                let mut consumer = self.servers().consumer();
                let status = consumer.ended(OPEN_WITHIN).await;
                assert!(
                    !status.success() && consumer.log().contains("consumer skip"),
                    "{status}: {}",
                    consumer.log()
                );
            }
            Kind::Refusing(setting, refusing, _) => alter(&self.servers().topic, setting, refusing).await,
            Kind::DiskFull => self.limit_file_size(&ROOM.to_string()),
        }
    }

    /// Checks what buyers see until healing.
    async fn meanwhile(&self, load: &Load) {
        match self.kind.meanwhile() {
            Meanwhile::Either => {}
            Meanwhile::Sold => {
                load.sells_after(Instant::now(), NOTICED_WITHIN).await;
                if self.kind == Kind::Kill(Part::MariaDb) {
                    assert_eq!(self.operate(&["audit"]).status.code(), Some(69), "not to be checked");
                }
            }
            Meanwhile::Shut(state) => {
                for node in &self.nodes {
                    node.reaches(state, NOTICED_WITHIN).await;
                    for key in [None, Some("in vain")] {
                        let refused = buy(&client(), &node.buy_url(), key).await;
                        // Silence is unknown, and an error is no purchase; nothing is sold out.
                        let expected = [state, "pending"];
                        assert!(expected.contains(&refused.code.as_str()), "{refused:?}");
                    }
                    let able = self.kind == Kind::RedisWiped || self.kind == Kind::DiskFull;
                    assert!(able || !ready(&node.ops).await, "a node says that it could sell");
                }
            }
        }
    }

    async fn before_healing(&self, load: &Load, broken: Instant) {
        if matches!(self.kind, Kind::Kill(Part::Consumer) | Kind::Stop(Part::Consumer)) {
            // The other consumer has taken over.
            let (order, _) = load.sells_after(broken, NOTICED_WITHIN).await;
            self.is_recorded(order).await;
        }
        if matches!(self.kind, Kind::RedisRolledBack | Kind::Failback) {
            until("it is seen to be incomplete", OPEN_WITHIN, async || {
                self.nodes.iter().any(|node| node.process.log().contains("seckill restore --item counter"))
            })
            .await;
            let shown = self.operate(&["restore"]);
            assert!(String::from_utf8_lossy(&shown.stdout).contains("would be opened"), "{shown:?}");
            for node in &self.nodes {
                assert_eq!(node.state().await, "unavailable", "it stays shut");
            }
        }
    }

    async fn heal(&mut self) {
        match self.kind {
            Kind::Kill(Part::Service) => {
                let env = self.down.take().unwrap();
                self.nodes.insert(0, Node::again(env, self.servers().folder.path()));
            }
            Kind::Kill(Part::Consumer) => self.consumers.push(self.servers().consumer()),
            Kind::Kill(Part::Redis) => self.servers_mut().start_redis().await,
            Kind::Kill(Part::Kafka | Part::MariaDb) => self.shared().is("start"),
            Kind::Stop(Part::Kafka | Part::MariaDb) => self.shared().is("resume"),
            Kind::Stop(part) => self.process(part).signal("CONT"),
            Kind::Answers(..) => self.proxy.as_ref().unwrap().answers(Answers::Pass),
            Kind::RedisWiped | Kind::RedisRolledBack | Kind::Failback => {
                let restored = self.operate(&["restore", "--yes"]);
                assert!(restored.status.success(), "{restored:?}");
                let again = self.operate(&["restore", "--yes"]);
                assert!(String::from_utf8_lossy(&again.stdout).contains("nothing to do"), "{again:?}");
            }
            Kind::TopicRecreated => self.move_to_a_new_topic().await,
            Kind::TopicCut => {
                let servers = self.servers();
                let shown = servers.consume(&["skip"]);
                assert!(String::from_utf8_lossy(&shown.stdout).contains("would be given up"), "{shown:?}");
                let mut before = servers.consumer();
                assert!(!before.ended(OPEN_WITHIN).await.success(), "nothing was changed");
                assert!(servers.consume(&["skip", "--yes"]).status.success());
                let again = servers.consume(&["skip", "--yes"]);
                assert!(
                    String::from_utf8_lossy(&again.stderr).contains("has all that is not recorded"),
                    "{again:?}"
                );
                let consumer = servers.consumer();
                self.consumers.push(consumer);
            }
            Kind::Refusing(setting, _, taking) => {
                // The nodes of a world share one log file.
                let log = self.nodes[0].process.log();
                assert_eq!(log.matches("does not take sales").count(), self.nodes.len(), "said once: {log}");
                let status = self.operate(&["status"]);
                assert!(String::from_utf8_lossy(&status.stdout).contains("the journal: "), "{status:?}");
                alter(&self.servers().topic, setting, taking).await;
            }
            Kind::DiskFull => self.limit_file_size("unlimited"),
        }
    }

    /// As docs/operations.md says: the nodes stop, the consumers restart with a new topic name, the old topic
    /// is copied, and only then the nodes start with the new name.
    async fn move_to_a_new_topic(&mut self) {
        let (old, new) = (self.servers().topic.clone(), format!("{}-2", self.servers().topic));
        let renamed = |env: &mut Env| {
            for (_, value) in env.iter_mut().filter(|(name, _)| name == "SECKILL_KAFKA_TOPIC") {
                value.clone_from(&new);
            }
        };
        let folder = self.servers().folder.path().to_owned();
        let mut envs = Vec::new();
        for node in self.nodes.drain(..) {
            let mut env = node.env();
            renamed(&mut env);
            envs.push(env);
            assert!(node.process.stop().await.success());
        }
        let servers = self.servers_mut();
        renamed(&mut servers.env);
        servers.topic.clone_from(&new);
        let ops = format!("127.0.0.1:{}", free_port());
        let consumer = self.servers().consumer_at(&ops);
        self.consumers.push(consumer);
        until("the topic is there", OPEN_WITHIN, async || ready(&format!("http://{ops}")).await).await;
        copy_topic(&old, &new);
        for env in envs {
            self.nodes.push(Node::again(env, &folder));
        }
        for node in &self.nodes {
            until("the service is ready", OPEN_WITHIN, async || ready(&node.ops).await).await;
        }
    }

    /// Everything is as before: open on every node, and recording.
    async fn is_well(&mut self, order: Uuid) {
        for node in &self.nodes {
            node.reaches("open", OPEN_WITHIN).await;
            until("the service is ready", NOTICED_WITHIN, async || ready(&node.ops).await).await;
        }
        for consumer in &mut self.consumers {
            assert!(consumer.running(), "a consumer has ended");
        }
        self.is_recorded(order).await;
    }

    /// Waits until nothing is in flight.
    async fn rests(&self) {
        let mut audit = Value::Null;
        until("rest", RESTS_WITHIN, async || {
            let void = self.void().await;
            audit = serde_json::from_slice(&self.operate(&["audit", "--json"]).stdout).unwrap_or_default();
            let Some(item) = audit["items"].as_array().and_then(|items| items.first()) else { return false };
            let number = |name: &str| item[name].as_u64().unwrap();
            let accounted = number("recorded") + void + number("missingCount");
            number("outbox") == 0 && number("sold") == accounted
        })
        .await;
    }

    async fn left(&self) -> usize {
        match &self.world {
            World::Servers(servers) => servers.redis(&["GET", "counter"]).await,
            World::Embedded(_) => {
                usize::try_from(self.nodes[0].count("").await["num"].as_u64().unwrap()).unwrap()
            }
        }
    }

    /// Looks up the orders of anonymous buyers who got `pending`: recorded, or failed.
    async fn look_up<'a>(&self, pending: &[(&'a str, Uuid)]) -> (Vec<(&'a str, Uuid)>, Vec<Uuid>) {
        let (mut later, mut gone) = (Vec::new(), Vec::new());
        for (attempt, order) in pending {
            until("an order's end is known", OPEN_WITHIN, async || match self.order(*order).await {
                (404, _) => {
                    gone.push(*order);
                    true
                }
                (200, found) if found["status"] == "recorded" => {
                    later.push((*attempt, *order));
                    true
                }
                _ => false,
            })
            .await;
        }
        (later, gone)
    }

    /// Sells the last units, not one more, and checks that winners are remembered. Returns how many it sold.
    async fn sell_the_last(&self, heard: &Heard) -> usize {
        let (mut buyers, mut sold_out) = (LAST_UNITS, 0);
        if let World::Servers(servers) = &self.world {
            (buyers, sold_out) = (LAST_BUYERS, LAST_BUYERS - LAST_UNITS);
            servers.redis::<()>(&["SET", "counter", &LAST_UNITS.to_string()]).await;
            for node in &self.nodes {
                until("the last units are seen", NOTICED_WITHIN, async || {
                    node.count("").await["num"] == LAST_UNITS
                })
                .await;
            }
        }
        let last = crowd(&self.urls, buyers, 20, false).await;
        assert_eq!((count(&last, "success"), count(&last, "sold_out")), (LAST_UNITS, sold_out), "{last:?}");
        let told = heard.told();
        let keyed = heard.said.iter().filter(|said| said.keyed && said.code == "success").take(ASKED_AGAIN);
        for (number, said) in keyed.enumerate() {
            let again = buy(&client(), &self.urls[number % self.urls.len()], Some(&said.attempt)).await;
            assert_eq!(again.code, "success", "{again:?}");
            assert!(told[said.attempt.as_str()].contains(&again.order.unwrap().parse().unwrap()));
        }
        for answer in last.iter().filter(|answer| answer.code == "success") {
            let order = answer.order.as_ref().unwrap().parse().unwrap();
            self.is_recorded(order).await;
        }
        LAST_UNITS
    }

    async fn books(&self) -> Books {
        match &self.world {
            World::Servers(servers) => {
                let mut books = servers.books().await;
                if matches!(self.kind, Kind::TopicRecreated | Kind::TopicCut) {
                    // Messages recorded and then deleted are in no topic any more.
                    books.journal.extend(books.rows.iter().map(|row| row.order));
                }
                books
            }
            World::Embedded(embedded) => embedded.books().await,
        }
    }

    /// The books are whole, and `audit` agrees.
    fn compare(&self, books: &Books, compared: &Comparison) {
        let audit = self.operate(&["audit", "--json"]);
        let found: Value = serde_json::from_slice(&audit.stdout).unwrap();
        if matches!(self.kind, Kind::TopicRecreated | Kind::TopicCut) && books.missing() > 0 {
            // What the deleted topic lost stays lost; it is named.
            assert_eq!(found["items"][0]["missingCount"], books.missing());
            assert_eq!((audit.status.code(), compared.wrong.len()), (Some(1), 1), "{:?}", compared.wrong);
            assert!(compared.lost.len() as i64 <= books.missing());
        } else {
            assert_eq!(compared.wrong, Vec::<String>::new());
            assert_eq!(compared.lost, Vec::<Uuid>::new());
            assert_balanced(&audit);
            assert_eq!(found["balanced"], true);
        }
        let loses = matches!(self.kind, Kind::RedisWiped | Kind::RedisRolledBack);
        assert!(loses || books.void == 0, "serials were written off");
    }

    async fn is_recorded(&self, order: Uuid) {
        until("what was sold is recorded", OPEN_WITHIN, async || {
            self.order(order).await.1["status"] == "recorded"
        })
        .await;
    }

    async fn order(&self, order: Uuid) -> (u16, Value) {
        get(&format!("{}/seckill/orders/{order}", self.nodes[0].url)).await
    }

    async fn void(&self) -> u64 {
        let World::Servers(servers) = &self.world else { return 0 };
        let pool = servers.pool().await;
        let void: i64 = sqlx::query_scalar(crate::books::VOID).fetch_one(&pool).await.unwrap();
        u64::try_from(void).unwrap()
    }

    fn operate(&self, args: &[&str]) -> std::process::Output {
        match &self.world {
            World::Servers(servers) => servers.operate(args),
            World::Embedded(embedded) => embedded.operate(args),
        }
    }

    fn process(&self, part: Part) -> &Process {
        match part {
            Part::Service => &self.nodes[0].process,
            Part::Consumer => &self.consumers[0],
            Part::Redis => self.servers().redis.as_ref().unwrap(),
            Part::Kafka | Part::MariaDb => unreachable!("shared"),
        }
    }

    fn shared(&self) -> &Shared {
        self.shared.as_ref().unwrap()
    }

    fn servers(&self) -> &Servers {
        let World::Servers(servers) = &self.world else { unreachable!("embedded") };
        servers
    }

    fn servers_mut(&mut self) -> &mut Servers {
        let World::Servers(servers) = &mut self.world else { unreachable!("embedded") };
        servers
    }

    /// The soft limit, which can be raised again without special rights.
    fn limit_file_size(&self, bytes: &str) {
        let pid = self.nodes[0].process.id().to_string();
        let done =
            Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:")]).status().unwrap();
        assert!(done.success(), "prlimit --fsize={bytes}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = match &mut self.world {
                World::Servers(servers) => &mut servers.folder,
                World::Embedded(embedded) => &mut embedded.folder,
            };
            folder.disable_cleanup(true);
            eprintln!("--- the logs of all programs: {}", folder.path().display());
        }
    }
}

/// One test at a time listens where Kafka's second listener sends clients.
static KAFKA_PROXY: Mutex<()> = Mutex::const_new(());

/// Deletes all records of a topic.
pub async fn cut(topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", shared("SECKILL_KAFKA_BROKERS")).create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..3 {
        list.add_partition_offset(topic, partition, Offset::End).unwrap();
    }
    let options = AdminOptions::new();
    let deleted = admin.delete_records(&list, &options).await.unwrap();
    assert!(deleted.elements().iter().all(|partition| partition.error().is_ok()), "{deleted:?}");
}

/// Changes a topic's configuration, as `kafka-configs.sh` does.
async fn alter(topic: &str, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", shared("SECKILL_KAFKA_BROKERS")).create().unwrap();
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("retention.ms", "-1").set(name, value);
    let altered = admin.alter_configs([&config], &AdminOptions::new()).await.unwrap();
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

pub async fn delete(topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", shared("SECKILL_KAFKA_BROKERS")).create().unwrap();
    let deleted = admin.delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
    assert_eq!(deleted, [Ok(topic.to_owned())]);
}

/// Copies keys and values with kcat, as operators do.
pub fn copy_topic(from: &str, to: &str) {
    let brokers = shared("SECKILL_KAFKA_BROKERS");
    let kcat = |args: &[&str]| {
        let mut command = Command::new("kcat");
        command.args(["-b", &brokers, "-K", "\t"]).args(args);
        command
    };
    let mut reading =
        kcat(&["-C", "-q", "-e", "-o", "beginning", "-t", from]).stdout(Stdio::piped()).spawn().unwrap();
    let written = kcat(&["-P", "-t", to]).stdin(reading.stdout.take().unwrap()).status().unwrap();
    assert!(written.success() && reading.wait().unwrap().success(), "{from} was not copied to {to}");
}
