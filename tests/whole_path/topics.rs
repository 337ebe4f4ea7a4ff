//! A topic that is not the recorded one, or incomplete: no confirmed order is denied, nothing is opened or
//! restored on its basis, and the operator's remedy works.

use std::time::Duration;

use serde_json::Value;

use crate::breaks::{copy_topic, cut, delete};
use crate::buyers::{buy, client, count, crowd, told};
use crate::faults::undisturbed;
use crate::process::until;
use crate::world::{Node, Servers, get};

/// Everything expected happens within this.
const SOON: Duration = Duration::from_secs(60);

async fn sell(node: &Node, units: usize) -> Vec<String> {
    let answers = crowd(&[node.buy_url()], units, 10, false).await;
    assert_eq!(count(&answers, "success"), units, "{answers:?}");
    told(&answers)
}

/// Orders of a deleted and recreated topic: the log ends before the checkpoint, and so proves nothing about
/// them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn told_orders_are_not_denied_when_a_topic_was_made_anew() {
    let _turn = undisturbed().await;
    let mut servers = Servers::start().await;
    let consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    // This node sells nothing: it must ask for what it did not acknowledge itself.
    let other = servers.ready_node(&[]).await;
    assert!(servers.operate(&["seed", "100"]).status.success());
    node.reaches("open", SOON).await;
    let mut orders = sell(&node, 40).await;
    servers.rows_reach(40, SOON).await;
    consumer.kill();
    delete(&servers.topic).await;
    until("the topic is made anew", SOON, async || {
        servers.operate(&["status"]);
        buy(&client(), &node.buy_url(), Some("first")).await.code == "success"
    })
    .await;
    let first = buy(&client(), &node.buy_url(), Some("first")).await;
    let since = sell(&node, 4).await;

    let at = |order: &str| format!("{}/seckill/orders/{order}", other.url);
    let mut said = (0, Value::Null);
    until("nobody says pending any more", SOON, async || {
        said = get(&at(&since[3])).await;
        said.1["status"] != "pending"
    })
    .await;
    assert_eq!((said.0, &said.1["code"]), (503, &"unavailable".into()), "{}", said.1);
    for order in &since {
        assert_ne!(get(&at(order)).await.0, 404, "{order} was told");
    }
    let here = get(&format!("{}/seckill/orders/{}", node.url, since[3])).await;
    assert_eq!(here.1["status"], "accepted", "who acknowledged it knows");
    let audit = servers.operate(&["audit"]);
    assert_eq!(audit.status.code(), Some(69), "{audit:?}");
    let restored = servers.operate(&["restore", "--yes"]);
    assert!(!restored.status.success(), "{restored:?}");
    for output in [&audit, &restored] {
        assert!(String::from_utf8_lossy(&output.stderr).contains("was recreated"), "{output:?}");
    }
    let status = servers.operate(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("the journal: topic"), "{status:?}");
    let skipped = servers.consume(&["skip", "--yes"]);
    assert!(!skipped.status.success(), "only another topic helps: {skipped:?}");

    // As docs/operations.md says: stop the nodes, start the consumers with a new name, copy what is left.
    let env = node.env();
    assert!(node.process.stop().await.success() && other.process.stop().await.success());
    let old = servers.topic.clone();
    let new = format!("{old}-2");
    servers.set("SECKILL_KAFKA_TOPIC", &new);
    servers.topic.clone_from(&new);
    let ops = format!("127.0.0.1:{}", crate::process::free_port());
    let _consumer = servers.consumer_at(&ops);
    until("the topic is there", SOON, async || crate::world::ready(&format!("http://{ops}")).await).await;
    copy_topic(&old, &new);
    let renamed = |(name, value): (String, String)| match name.as_str() {
        "SECKILL_KAFKA_TOPIC" => (name, new.clone()),
        _ => (name, value),
    };
    let node = Node::again(env.into_iter().map(renamed).collect(), servers.folder.path());
    node.reaches("open", SOON).await;
    orders.extend(since);
    orders.extend(first.order);
    servers.rows_reach(45, SOON).await;
    let rest = crowd(&[node.buy_url()], 70, 10, false).await;
    orders.extend(told(&rest));
    assert_eq!(count(&rest, "success"), 55);
    until("all is recorded", SOON, async || servers.rows().await == 100).await;
    let books = servers.books().await;
    assert!(books.missing() == 0 && books.conflicts.is_empty(), "{books:?}");
    crate::world::assert_balanced(&servers.operate(&["audit"]));
    for order in &orders {
        assert!(books.rows.iter().any(|row| row.order.to_string() == *order), "{order} was told");
    }
}

/// Units lost from the topic before they were recorded.
const LOST: usize = 4;

/// A sale of 30 units: six recorded, [`LOST`] more confirmed and then cut off the topic.
async fn with_the_head_lost() -> (Servers, Node, Vec<String>) {
    let servers = Servers::start().await;
    let consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    assert!(servers.operate(&["seed", "30"]).status.success());
    node.reaches("open", SOON).await;
    let orders = sell(&node, 6).await;
    servers.rows_reach(6, SOON).await;
    consumer.kill();
    sell(&node, LOST).await;
    cut(&servers.topic).await;
    (servers, node, orders)
}

/// The same while the sale is open: missing units are voided once an operator says so.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn an_open_sale_is_made_whole_after_its_topic_was_cut() {
    let _turn = undisturbed().await;
    let (servers, node, mut orders) = with_the_head_lost().await;
    assert!(servers.consume(&["skip", "--yes"]).status.success());
    let _consumer = servers.consumer();
    until("they are missing", SOON, async || servers.operate(&["audit"]).status.code() == Some(1)).await;
    let restored = servers.operate(&["restore", "--yes"]);
    let said = String::from_utf8_lossy(&restored.stdout);
    assert!(said.contains("with serial 10 (4 of them void) and 20 left"), "{restored:?}");
    node.reaches("open", SOON).await;
    let rest = crowd(&[node.buy_url()], 30, 10, false).await;
    assert_eq!(count(&rest, "success"), 20);
    orders.extend(told(&rest));
    until("all is recorded", SOON, async || servers.rows().await == 26).await;
    assert_eq!(servers.books().await.void, LOST);
    crate::world::assert_balanced(&servers.operate(&["audit"]));
    assert_eq!(orders.len(), 26);
}

/// A log that lost its unrecorded head: a shut sale stays shut until an operator skips the gap; then it can
/// be restored.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_sale_is_restored_after_its_topic_was_cut() {
    let _turn = undisturbed().await;
    let (mut servers, node, mut orders) = with_the_head_lost().await;
    servers.redis.take().unwrap().kill();
    servers.start_redis().await;
    until("it is said why the sale is shut", SOON, async || node.process.log().contains("consumer skip"))
        .await;
    assert_eq!(node.state().await, "unavailable");
    let refused = servers.operate(&["restore", "--yes"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("consumer skip"), "{refused:?}");
    assert!(servers.consume(&["skip", "--yes"]).status.success());
    let _consumer = servers.consumer();
    until("it waits for an operator", SOON, async || node.process.log().contains("the ledger lacks 4")).await;
    until("it is restored", SOON, async || servers.operate(&["restore", "--yes"]).status.success()).await;
    node.reaches("open", SOON).await;
    let rest = crowd(&[node.buy_url()], 30, 10, false).await;
    assert_eq!(count(&rest, "success"), 20);
    orders.extend(told(&rest));
    until("all is recorded", SOON, async || servers.rows().await == 26).await;
    let books = servers.books().await;
    assert_eq!((books.void, books.missing(), books.conflicts.len()), (LOST, 0, 0));
    for order in &orders {
        assert!(books.rows.iter().any(|row| row.order.to_string() == *order), "{order} was told");
    }
    crate::world::assert_balanced(&servers.operate(&["audit"]));
}
