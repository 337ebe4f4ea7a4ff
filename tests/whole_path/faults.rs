//! Server outages, step by step; under load see `breaks.rs`. Tests that stop the shared Kafka or MariaDB run
//! alone, and scripts/test runs them apart from the others.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::buyers::{buy, client, count, crowd, told};
use crate::process::until;
use crate::world::{Node, Servers, get, ready};

static TURN: RwLock<()> = RwLock::const_new(());

/// A shared server that is restarted however the test ends.
pub struct Shared {
    name: &'static str,
    _turn: RwLockWriteGuard<'static, ()>,
}

/// While this guard is held, no test stops a shared server.
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
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
    // The same attempt gets its order, whichever node announced it.
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
#[ignore = "needs servers"]
async fn redis_away() {
    let _turn = undisturbed().await;
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

    // A timeout is not a refusal: the request may have been executed.
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
#[ignore = "needs servers"]
async fn servers_started_last() {
    let kafka = Shared::take("kafka").await;
    let mut servers = Servers::prepare();
    servers.make_database().await;
    kafka.is("stop");
    script(&["stop", "mariadb"]);
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
    servers.redis::<()>(&["SET", "counter", "10"]).await;
    node.reaches("open", Duration::from_secs(15)).await;
    let answers = crowd(&[node.buy_url()], 20, 20, false).await;
    assert_eq!(count(&answers, "success"), 10);
    assert!(consumer.running());
    servers.balance(&told(&answers), 10).await;
}

/// An emptied Redis is not refilled on its own; `restore` uses what ledger and journal know.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn redis_wiped_and_restored() {
    let _turn = undisturbed().await;
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

/// Several nodes inspect the books of one sale, the ledger is slow, and one begins a sale that must fail:
/// whichever opens it, later confirmed sales are recorded.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn redis_restarted_while_the_ledger_is_behind() {
    let _turn = undisturbed().await;
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
    // Longer than the node that shut a sale has it to itself: both inspect the books.
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

/// A restore does not put back an item that an operator took off sale.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn redis_healthy_and_restored() {
    let _turn = undisturbed().await;
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
