//! What is promised while a server is away. These stop the shared Kafka and MariaDB, so they
//! take turns, and scripts/test runs them apart from the others.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::buyers::{Answer, buy, client, count, crowd, told};
use crate::process::until;
use crate::world::{Node, Servers, get, ready};

static TURN: RwLock<()> = RwLock::const_new(());

/// A shared server that is put back to work however the test ends.
pub struct Shared {
    name: &'static str,
    _turn: RwLockWriteGuard<'static, ()>,
}

/// As long as this is held, no test stops a shared server.
pub async fn undisturbed() -> RwLockReadGuard<'static, ()> {
    TURN.read().await
}

fn script(args: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
    let done = Command::new(script).args(args).output().unwrap();
    assert!(done.status.success(), "scripts/servers {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Shared {
    pub async fn take(name: &'static str) -> Self {
        Shared { name, _turn: TURN.write().await }
    }

    pub fn is(&self, verb: &str) {
        script(&[verb, self.name]);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
        for verb in ["resume", "start"] {
            let _ = Command::new(script).args([verb, self.name]).output();
        }
    }
}

/// Buyers who come one after another, until told to stop.
fn stream(url: String) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<Vec<Answer>>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let buyers = tokio::spawn(async move {
        let mut answers = Vec::new();
        while stopped.try_recv().is_err() {
            answers.extend(crowd(std::slice::from_ref(&url), 10, 10, false).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        answers
    });
    (stop, buyers)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_take_and_acknowledgement() {
    let kafka = Shared::take("kafka").await;
    let servers = Servers::start().await;
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "50"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    kafka.is("pause");
    let answers = crowd(&[node.buy_url()], 20, 20, true).await;
    assert_eq!(count(&answers, "success"), 0, "nothing was acknowledged");
    let pending = count(&answers, "pending");
    assert!(pending > 0, "{answers:?}");
    let left: i64 = servers.redis(&["GET", "counter"]).await;
    let taken = usize::try_from(50 - left).unwrap();
    assert_eq!(taken, pending);
    let env = node.env();
    node.process.kill();
    kafka.is("resume");

    let node = Node::again(env, servers.folder.path());
    let _consumer = servers.consumer();
    until("it is ready", Duration::from_secs(20), async || ready(&node.ops).await).await;
    // The same attempt gets its order, whoever announced it.
    let client = client();
    let (number, first) = answers.iter().enumerate().find(|(_, answer)| answer.code == "pending").unwrap();
    until("the first buyer hears of the order", Duration::from_secs(30), async || {
        let again = buy(&client, &node.buy_url(), Some(&format!("buyer-{number}"))).await;
        again.code == "success" && again.order == first.order
    })
    .await;
    until("the outbox is empty", Duration::from_secs(60), async || {
        servers.redis::<i64>(&["HLEN", "{counter}:outbox"]).await == 0
    })
    .await;
    for answer in answers.iter().filter(|answer| answer.code == "pending") {
        let order = answer.order.clone().unwrap();
        until("the order is recorded", Duration::from_secs(30), async || {
            get(&format!("{}/seckill/orders/{order}", node.url)).await.1["status"] == "recorded"
        })
        .await;
    }
    let orders: Vec<String> = answers
        .iter()
        .filter(|answer| answer.code == "pending")
        .filter_map(|answer| answer.order.clone())
        .collect();
    servers.balance(&orders, taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_away_for_ten_seconds() {
    let kafka = Shared::take("kafka").await;
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "100000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let (stop, buyers) = stream(node.buy_url());
    kafka.is("stop");
    node.reaches("unavailable", Duration::from_secs(5)).await;
    let away = Instant::now();
    let refused = buy(&client(), &node.buy_url(), None).await;
    assert_eq!((refused.status.unwrap().as_u16(), refused.code.as_str()), (503, "unavailable"));
    assert!(!ready(&node.ops).await);
    tokio::time::sleep(Duration::from_secs(10).saturating_sub(away.elapsed())).await;
    kafka.is("start");
    node.reaches("open", Duration::from_secs(10)).await;
    let more = crowd(&[node.buy_url()], 50, 10, false).await;
    assert_eq!(count(&more, "success"), 50);
    stop.send(()).unwrap();
    let mut answers = buyers.await.unwrap();
    answers.extend(more);
    assert_eq!(count(&answers, "sold_out"), 0, "an outage is never sold out");
    until("the outbox is empty", Duration::from_secs(60), async || {
        servers.redis::<i64>(&["HLEN", "{counter}:outbox"]).await == 0
    })
    .await;
    let left: usize = servers.redis(&["GET", "counter"]).await;
    servers.balance(&told(&answers), 100_000 - left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away() {
    let mut servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "100000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let before = crowd(&[node.buy_url()], 100, 20, false).await;
    assert_eq!(count(&before, "success"), 100);
    servers.redis.take().unwrap().kill();
    node.reaches("unavailable", Duration::from_secs(2)).await;
    let asked = Instant::now();
    for key in [None, Some("with a key")] {
        let refused = client().post(node.buy_url());
        let refused = key.map_or(refused.try_clone().unwrap(), |key| refused.header("Idempotency-Key", key));
        let refused = refused.send().await.unwrap();
        assert_eq!(
            (refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()),
            (503, "1")
        );
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "waited for a Redis that is away");
    assert!(!ready(&node.ops).await);
    servers.start_redis().await;
    node.reaches("open", Duration::from_secs(10)).await;
    let after = crowd(&[node.buy_url()], 100, 20, false).await;
    assert_eq!(count(&after, "success"), 100);

    // Silence is another thing than absence: what was asked may have been done.
    servers.redis.as_ref().unwrap().signal("STOP");
    let silent = crowd(&[node.buy_url()], 20, 20, false).await;
    assert_eq!(count(&silent, "success") + count(&silent, "sold_out"), 0, "{silent:?}");
    servers.redis.as_ref().unwrap().signal("CONT");
    node.reaches("open", Duration::from_secs(10)).await;
    until("the outbox is empty", Duration::from_secs(60), async || {
        servers.redis::<i64>(&["HLEN", "{counter}:outbox"]).await == 0
    })
    .await;
    let left: usize = servers.redis(&["GET", "counter"]).await;
    let mut orders = told(&before);
    orders.extend(told(&after));
    servers.balance(&orders, 100_000 - left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_away() {
    let mariadb = Shared::take("mariadb").await;
    let servers = Servers::start().await;
    let mut consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "1000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let mut answers = crowd(&[node.buy_url()], 100, 20, false).await;
    servers.rows_reach(1, Duration::from_secs(20)).await;
    mariadb.is("kill");
    answers.extend(crowd(&[node.buy_url()], 400, 50, false).await);
    assert_eq!(count(&answers, "success"), 500, "the sale goes on");
    let order = told(&answers).pop().unwrap();
    assert_ne!(
        get(&format!("{}/seckill/orders/{order}", node.url)).await.0,
        404,
        "nobody can say that it is not there"
    );
    assert!(ready(&node.ops).await);
    assert_eq!(servers.operate(&["audit"]).status.code(), Some(69));
    assert!(consumer.running());
    mariadb.is("start");
    servers.balance(&told(&answers), 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_started_last() {
    let kafka = Shared::take("kafka").await;
    kafka.is("stop");
    script(&["stop", "mariadb"]);
    let mut servers = Servers::prepare();
    let node = servers.node(&[]);
    let mut consumer = servers.consumer();
    until("the service says that it waits", Duration::from_secs(10), async || {
        get(&format!("{}/livez", node.ops)).await.0 == 200 || node.state().await == "unavailable"
    })
    .await;
    node.reaches("unavailable", Duration::from_secs(10)).await;
    assert!(!ready(&node.ops).await);
    servers.start_redis().await;
    kafka.is("start");
    script(&["start", "mariadb"]);
    servers.make_database().await;
    servers.redis::<()>(&["SET", "counter", "10"]).await;
    node.reaches("open", Duration::from_secs(15)).await;
    let answers = crowd(&[node.buy_url()], 20, 20, false).await;
    assert_eq!(count(&answers, "success"), 10);
    assert!(consumer.running());
    servers.balance(&told(&answers), 10).await;
}

/// A restarted Redis is not believed until the books were seen to be complete; then the sale
/// opens by itself.
#[tokio::test(flavor = "multi_thread")]
async fn redis_restarted() {
    let mut servers = Servers::start().await;
    let _consumer = servers.consumer();
    let (node, other) = (servers.ready_node(&[]).await, servers.ready_node(&[]).await);
    servers.redis::<()>(&["SET", "counter", "1000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let (stop, buyers) = stream(node.buy_url());
    tokio::time::sleep(Duration::from_millis(300)).await;
    servers.redis.take().unwrap().kill();
    servers.start_redis().await;
    node.reaches("unavailable", Duration::from_secs(2)).await;
    node.reaches("open", Duration::from_secs(15)).await;
    other.reaches("open", Duration::from_secs(2)).await;
    let more = crowd(&[node.buy_url(), other.buy_url()], 20, 10, true).await;
    assert_eq!(count(&more, "success"), 20, "{more:?}");
    stop.send(()).unwrap();
    let mut answers = buyers.await.unwrap();
    answers.extend(more);
    until("the outbox is empty", Duration::from_secs(60), async || {
        servers.redis::<i64>(&["HLEN", "{counter}:outbox"]).await == 0
    })
    .await;
    let left: usize = servers.redis(&["GET", "counter"]).await;
    servers.balance(&told(&answers), 1000 - left).await;
}

/// A Redis that lost its tail sells nothing twice: it stays shut until `restore`.
#[tokio::test(flavor = "multi_thread")]
async fn redis_rolled_back_and_restored() {
    let mut servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "30"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let before = crowd(&[node.buy_url()], 5, 5, false).await;
    servers.rows_reach(5, Duration::from_secs(20)).await;
    let aof = servers.folder.path().join("appendonlydir");
    let saved = servers.folder.path().join("saved");
    assert!(Command::new("cp").arg("-r").args([&aof, &saved]).status().unwrap().success());
    let after = crowd(&[node.buy_url()], 8, 8, true).await;
    assert_eq!(count(&after, "success"), 8);
    servers.rows_reach(13, Duration::from_secs(20)).await;
    servers.redis.take().unwrap().kill();
    std::fs::remove_dir_all(&aof).unwrap();
    std::fs::rename(&saved, &aof).unwrap();
    servers.start_redis().await;

    until("it is seen to be incomplete", Duration::from_secs(20), async || {
        node.process.log().contains("seckill restore --item counter")
    })
    .await;
    assert_eq!(node.state().await, "unavailable");
    let refused = crowd(&[node.buy_url()], 20, 10, true).await;
    assert_eq!(count(&refused, "unavailable"), 20, "neither success nor sold out: {refused:?}");
    assert!(!ready(&node.ops).await);
    let shown = servers.operate(&["restore"]);
    assert!(String::from_utf8(shown.stdout).unwrap().contains("would be opened with serial 13"));
    assert_eq!(node.state().await, "unavailable", "nothing was changed");
    let done = servers.operate(&["restore", "--yes"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8(done.stdout).unwrap().contains("(0 of them void) and 17 left"));
    node.reaches("open", Duration::from_secs(2)).await;
    let again = servers.operate(&["restore", "--yes"]);
    assert!(again.status.success() && String::from_utf8(again.stdout).unwrap().contains("nothing to do"));

    // The winners are known, also those whom Redis had forgotten.
    for (number, won) in after.iter().enumerate() {
        let same = buy(&client(), &node.buy_url(), Some(&format!("buyer-{number}"))).await;
        assert_eq!(same.order, won.order);
    }
    let rest = crowd(&[node.buy_url()], 30, 10, false).await;
    assert_eq!((count(&rest, "success"), count(&rest, "sold_out")), (17, 13));
    let mut orders = told(&before);
    orders.extend(told(&after));
    orders.extend(told(&rest));
    servers.balance(&orders, 30).await;
}

/// An emptied Redis is not refilled by itself; `restore` has what ledger and journal know.
#[tokio::test(flavor = "multi_thread")]
async fn redis_wiped_and_restored() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    assert!(servers.operate(&["seed", "20"]).status.success());
    assert!(servers.operate(&["seed", "7", "--item", "shoe"]).status.success());
    node.reaches("open", Duration::from_secs(2)).await;
    let before = crowd(&[node.buy_url()], 6, 6, true).await;
    servers.rows_reach(6, Duration::from_secs(20)).await;
    servers.redis::<()>(&["FLUSHALL"]).await;
    node.reaches("not_on_sale", Duration::from_secs(2)).await;
    let done = servers.operate(&["restore", "--yes"]);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && said.contains("serial 6 (0 of them void) and 14 left"), "{said}");
    assert!(said.contains("serial 0 (0 of them void) and 7 left"), "{said}");
    node.reaches("open", Duration::from_secs(2)).await;
    let same = buy(&client(), &node.buy_url(), Some("buyer-3")).await;
    assert_eq!(same.order, before[3].order);
    let rest = crowd(&[node.buy_url()], 20, 10, false).await;
    assert_eq!(count(&rest, "success"), 14);
    let mut orders = told(&before);
    orders.extend(told(&rest));
    servers.balance(&orders, 20).await;
}

/// Several nodes look at the books of the same sale, the ledger is slow, and one begins a sale
/// that must fail: whoever opens it, what is told afterwards is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn redis_restarted_while_the_ledger_is_behind() {
    let mut servers = Servers::start().await;
    let (node, other) = (servers.ready_node(&[]).await, servers.ready_node(&[]).await);
    servers.redis::<()>(&["SET", "counter", "100"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    other.reaches("open", Duration::from_secs(2)).await;
    let before = crowd(&[node.buy_url()], 5, 5, true).await;
    assert_eq!(count(&before, "success"), 5);
    servers.redis.take().unwrap().kill();
    servers.start_redis().await;
    node.reaches("unavailable", Duration::from_secs(5)).await;
    // Longer than a node leaves a sale to the one that shut it: both get to look at the books.
    tokio::time::sleep(Duration::from_secs(34)).await;
    let refused = servers.operate(&["seed", "50"]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stdout));
    let _consumer = servers.consumer();
    node.reaches("open", Duration::from_secs(30)).await;
    let after = crowd(&[node.buy_url(), other.buy_url()], 20, 10, true).await;
    assert_eq!(count(&after, "success"), 20, "{after:?}");
    let done = servers.operate(&["restore", "--yes"]);
    assert!(String::from_utf8(done.stdout).unwrap().contains("nothing to do"));
    let mut orders = told(&before);
    orders.extend(
        after
            .iter()
            .filter_map(|answer| answer.order.clone())
            .filter(|order| !orders.contains(order))
            .collect::<Vec<_>>(),
    );
    let left: usize = servers.redis(&["GET", "counter"]).await;
    servers.balance(&orders, 100 - left).await;
}

/// An item that an operator took off sale is not put back by a restore.
#[tokio::test(flavor = "multi_thread")]
async fn redis_healthy_and_restored() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    assert!(servers.operate(&["seed", "20"]).status.success());
    node.reaches("open", Duration::from_secs(2)).await;
    let bought = crowd(&[node.buy_url()], 3, 3, false).await;
    for _ in 0..2 {
        let done = servers.operate(&["restore", "--yes"]);
        assert!(String::from_utf8(done.stdout).unwrap().contains("nothing to do"));
        servers.redis::<()>(&["DEL", "counter"]).await;
    }
    node.reaches("not_on_sale", Duration::from_secs(2)).await;
    servers.balance(&told(&bought), 3).await;
}
