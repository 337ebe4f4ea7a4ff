//! Redis rollback, in every way that its data can go back: it is detected, no confirmed sale is lost, and
//! `restore` fixes it while nodes run.

use std::time::Duration;

use serde_json::Value;

use crate::buyers::{buy, client, count, crowd, told};
use crate::faults::undisturbed;
use crate::process::{Process, until};
use crate::world::{Node, Servers, ready};

const SOON: Duration = Duration::from_secs(20);

/// A young order may still be recorded; after this an unknown order is denied.
const DENIED_AFTER: Duration = Duration::from_secs(90);

/// The keys of one item.
const KEYS: [&str; 4] = ["counter", "{counter}:book", "{counter}:outbox", "{counter}:attempts"];

/// Two nodes, a consumer, and units on sale.
async fn on_sale(units: u64) -> (Servers, Process, [Node; 2]) {
    let servers = Servers::start().await;
    let consumer = servers.consumer();
    let nodes = [servers.ready_node(&[]).await, servers.ready_node(&[]).await];
    assert!(servers.operate(&["seed", &units.to_string()]).status.success());
    for node in &nodes {
        node.reaches("open", SOON).await;
    }
    (servers, consumer, nodes)
}

fn urls(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(Node::buy_url).collect()
}

/// All buyers are told of an outage, and ops see why.
async fn is_shut(nodes: &[Node]) {
    for node in nodes {
        node.reaches("unavailable", SOON).await;
        assert!(!ready(&node.ops).await, "a node says that it could sell");
        let refused = buy(&client(), &node.buy_url(), Some("in vain")).await;
        assert!(["unavailable", "pending"].contains(&refused.code.as_str()), "{refused:?}");
    }
}

async fn restored(servers: &Servers, nodes: &[Node]) -> String {
    let done = servers.operate(&["restore", "--yes"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    for node in nodes {
        node.reaches("open", SOON).await;
    }
    said
}

/// A master demoted and promoted again has another's data under the same `run_id`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_master_is_demoted_and_promoted_again() {
    let _turn = undisturbed().await;
    let (servers, _consumer, nodes) = on_sale(50).await;
    let (_replica, port) = servers.replica().await;
    // A first replica starts a history: one check of the books, then reopened.
    until("the books were looked at", SOON, async || nodes[0].process.log().contains("the sale goes on"))
        .await;
    for node in &nodes {
        node.reaches("open", SOON).await;
    }
    let first = crowd(&urls(&nodes), 10, 5, true).await;
    assert_eq!(count(&first, "success"), 10);
    let theirs = |words: &'static [&'static str]| servers.redis_at::<String>(port, words);
    until("the replica has it all", SOON, async || {
        servers.redis_at::<Option<String>>(port, &["HGET", "{counter}:book", "serial"]).await.as_deref()
            == Some("10")
    })
    .await;
    theirs(&["REPLICAOF", "NO", "ONE"]).await;
    let second = crowd(&urls(&nodes), 20, 5, false).await;
    assert_eq!(count(&second, "success"), 20);
    servers.rows_reach(30, SOON).await;

    let run = servers.redis::<String>(&["INFO", "server"]).await;
    servers.redis::<String>(&["REPLICAOF", "127.0.0.1", &port.to_string()]).await;
    servers.follows(servers.redis_port).await;
    let serial = servers.redis::<Option<String>>(&["HGET", "{counter}:book", "serial"]).await;
    assert_eq!(serial.as_deref(), Some("10"), "it has the other's data");
    servers.redis::<String>(&["REPLICAOF", "NO", "ONE"]).await;
    let id = |info: &str| info.lines().find(|line| line.starts_with("run_id")).map(str::to_owned);
    assert_eq!(id(&servers.redis::<String>(&["INFO", "server"]).await), id(&run), "the same process");

    is_shut(&nodes).await;
    let shown = servers.operate(&["restore"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("would be opened with serial 30"), "{shown:?}");
    let said = restored(&servers, &nodes).await;
    assert!(said.contains("is open with serial 30 (0 of them void) and 20 left"), "{said}");
    let last = crowd(&urls(&nodes), 30, 10, false).await;
    assert_eq!((count(&last, "success"), count(&last, "sold_out")), (20, 10));
    let again = buy(&client(), &nodes[1].buy_url(), Some("buyer-3")).await;
    assert_eq!(again.order, first[3].order, "a winner is known again");
    let orders = [told(&first), told(&second), told(&last)].concat();
    servers.balance(&orders, 50).await;
}

/// Copies of the current keys.
async fn back_up(servers: &Servers) {
    for key in KEYS {
        servers.redis::<i64>(&["COPY", key, &format!("{key}.bak"), "REPLACE"]).await;
    }
}

/// Restores the copies while Redis keeps running.
async fn put_back(servers: &Servers) {
    let mut pipe = redis::pipe();
    pipe.atomic();
    for key in KEYS {
        pipe.cmd("DEL").arg(key).ignore();
        pipe.cmd("COPY").arg(format!("{key}.bak")).arg(key).ignore();
    }
    servers.redis_pipe(&pipe).await;
}

/// A node that has sold more than the books say shuts the sale.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_backup_is_put_into_a_living_redis() {
    let _turn = undisturbed().await;
    let (servers, _consumer, nodes) = on_sale(60).await;
    let first = crowd(&urls(&nodes), 10, 5, true).await;
    back_up(&servers).await;
    let second = crowd(&urls(&nodes), 20, 5, false).await;
    servers.rows_reach(30, SOON).await;
    put_back(&servers).await;
    is_shut(&nodes).await;
    let log = nodes[0].process.log() + &nodes[1].process.log();
    assert!(log.contains("went back behind what this node sold"), "{log}");
    restored(&servers, &nodes).await;
    let last = crowd(&urls(&nodes), 40, 10, false).await;
    assert_eq!((count(&last, "success"), count(&last, "sold_out")), (30, 10));
    servers.balance(&[told(&first), told(&second), told(&last)].concat(), 60).await;
}

/// When no aware node is left, the ledger detects it before a unit is sold twice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_backup_is_put_in_and_every_node_is_new() {
    let _turn = undisturbed().await;
    let (servers, _consumer, nodes) = on_sale(60).await;
    let first = crowd(&urls(&nodes), 10, 5, true).await;
    back_up(&servers).await;
    let second = crowd(&urls(&nodes), 20, 5, false).await;
    servers.rows_reach(30, SOON).await;
    for node in nodes {
        assert!(node.process.stop().await.success());
    }
    put_back(&servers).await;
    let nodes = [servers.node(&[]), servers.node(&[])];
    is_shut(&nodes).await;
    restored(&servers, &nodes).await;
    let last = crowd(&urls(&nodes), 40, 10, false).await;
    assert_eq!((count(&last, "success"), count(&last, "sold_out")), (30, 10));
    servers.balance(&[told(&first), told(&second), told(&last)].concat(), 60).await;
}

/// When the ledger is unaware too, the first unit that it sees sold twice shuts the sale.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_backup_is_put_in_and_the_ledger_is_behind() {
    let _turn = undisturbed().await;
    let (servers, consumer, nodes) = on_sale(60).await;
    let first = crowd(&urls(&nodes), 10, 5, true).await;
    servers.rows_reach(10, SOON).await;
    consumer.stop().await;
    back_up(&servers).await;
    let second = crowd(&urls(&nodes), 20, 5, false).await;
    for node in nodes {
        assert!(node.process.stop().await.success());
    }
    put_back(&servers).await;
    let nodes = [servers.node(&[]), servers.node(&[])];
    nodes[0].reaches("open", SOON).await;
    let twice = buy(&client(), &nodes[0].buy_url(), None).await;
    assert_eq!(twice.code, "success", "nobody can know");
    let _consumer = servers.consumer();
    is_shut(&nodes).await;
    let audit = servers.operate(&["audit"]);
    let said = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(audit.status.code() == Some(1) && said.contains("1 sales in conflict"), "{said}");
    let order = format!("{}/seckill/orders/{}", nodes[0].url, twice.order.clone().unwrap());
    // The consumer may have met either of the two orders of one unit first.
    until("what was told is not denied", DENIED_AFTER, async || {
        let status = crate::world::get(&order).await.1["status"].clone();
        status == "accepted" || status == "recorded"
    })
    .await;
    restored(&servers, &nodes).await;
    let last = crowd(&urls(&nodes), 40, 10, false).await;
    assert_eq!((count(&last, "success"), count(&last, "sold_out")), (30, 10));
    servers.rows_reach(60, SOON).await;
    // The unit sold twice stays in the books, by name.
    let books = servers.books().await;
    let mut orders = [told(&first), told(&second), told(&last), told(&[twice])].concat();
    let aside: Vec<String> = books.conflicts.iter().map(|(order, _)| order.to_string()).collect();
    orders.retain(|order| !books.rows.iter().any(|row| row.order.to_string() == *order));
    assert_eq!((books.rows.len(), aside.len(), &aside), (60, 1, &orders));
}

/// Run while nodes inspect the books themselves: it succeeds every time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn restore_beside_nodes_that_reopen() {
    let _turn = undisturbed().await;
    let (mut servers, _consumer, nodes) = on_sale(10_000).await;
    let mut orders = Vec::new();
    for round in 0..8 {
        orders.extend(told(&crowd(&urls(&nodes), 30, 10, false).await));
        servers.redis.take().unwrap().kill();
        servers.start_redis().await;
        tokio::time::sleep(Duration::from_millis(400 * (round % 4))).await;
        restored(&servers, &nodes).await;
    }
    orders.extend(told(&crowd(&urls(&nodes), 30, 10, false).await));
    let sold = orders.len();
    servers.balance(&orders, sold).await;
}

/// Operator commands beside nodes and under load work each time, and report what they did.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn operators_beside_nodes_under_load() {
    let _turn = undisturbed().await;
    let (servers, _consumer, nodes) = on_sale(1_000_000).await;
    let load = crate::load::Load::start(&urls(&nodes));
    load.sells(100).await;
    for _ in 0..20 {
        for args in
            [&["seed", "--add", "7"][..], &["status"], &["restore", "--yes"], &["audit"], &["archive"]]
        {
            let done = servers.operate(args);
            // A sale in flight is no fault; a sale cannot be archived under load, and need not be.
            let late = args[0] == "archive" && String::from_utf8_lossy(&done.stderr).contains("on their way");
            assert!(late || done.status.success(), "{args:?}: {done:?}");
        }
    }
    let heard = load.stop().await;
    let left: u64 = servers.redis(&["GET", "counter"]).await;
    assert_eq!(u64::try_from(heard.told().len()).unwrap() + left, 1_000_000 + 20 * 7);
    let orders: Vec<String> = heard.told().into_values().flatten().map(|order| order.to_string()).collect();
    servers.balance(&orders, orders.len()).await;
}

/// A mistyped name, an item off sale, a negative counter: reported, with the right advice.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn advice_can_be_followed() {
    let _turn = undisturbed().await;
    let (servers, _consumer, nodes) = on_sale(5).await;
    let said = |args: &[&str]| {
        let done = servers.operate(args);
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr),
        )
    };
    assert!(said(&["seed", "3", "--item", "shoe"]).0 == Some(0));
    let (code, text) = said(&["seed", "--add", "5", "--item", "sheo"]);
    assert!(code == Some(1) && text.contains("known are counter, shoe"), "{text}");
    assert!(text.contains("`seckill seed 5 --item sheo`"), "not the default item's sale: {text}");
    for command in ["audit", "status", "restore", "archive"] {
        let (code, text) = said(&[command, "--item", "sheo"]);
        assert!(code == Some(64) && text.contains("there is no item sheo"), "{command}: {text}");
    }
    servers.redis::<i64>(&["DECRBY", "counter", "10"]).await;
    let (code, text) = said(&["seed", "--add", "200"]);
    assert!(code == Some(0) && text.contains("200 units added, 200 left"), "{text}");

    // A counter set by an operator shows before any client asks for it.
    servers.redis::<()>(&["SET", "counter:hat", "9"]).await;
    servers.redis::<()>(&["SET", "counter:Hat", "9"]).await;
    let (_, text) = said(&["status"]);
    assert!(text.contains("hat ") && text.contains("counter:Hat"), "{text}");
    let metrics = async || {
        let metrics = client().get(format!("{}/metrics", nodes[0].ops)).send().await.unwrap();
        metrics.text().await.unwrap()
    };
    until("metrics have it", SOON, async || metrics().await.contains("seckill_stock_left{item=\"hat\"} 9"))
        .await;
    let audit: Value = serde_json::from_slice(&servers.operate(&["audit", "--json"]).stdout).unwrap();
    assert!(audit["items"].as_array().unwrap().iter().any(|item| item["item"] == "hat"), "{audit}");

    // Off sale: nothing reports it as open, and the advice puts it back.
    let bought = crowd(&[format!("{}?item=hat", nodes[0].buy_url())], 2, 2, false).await;
    servers.redis::<()>(&["DEL", "counter:hat"]).await;
    let (_, text) = said(&["restore", "--item", "hat", "--yes"]);
    assert!(text.contains("taken off sale") && !text.contains("is open"), "{text}");
    let (code, text) = said(&["seed", "--add", "4", "--item", "hat"]);
    assert!(code == Some(1) && text.contains("`SET counter:hat 4`"), "{text}");
    servers.redis::<()>(&["SET", "counter:hat", "4"]).await;
    until("it is on sale again", SOON, async || nodes[0].count("?item=hat").await["num"] == 4).await;
    let more = crowd(&[format!("{}?item=hat", nodes[0].buy_url())], 6, 2, false).await;
    assert_eq!((count(&bought, "success"), count(&more, "success")), (2, 4));

    // Also before anything of it was sold.
    assert!(said(&["seed", "3", "--item", "cap"]).0 == Some(0));
    servers.redis::<()>(&["DEL", "counter:cap"]).await;
    let (_, text) = said(&["restore", "--item", "cap", "--yes"]);
    assert!(text.contains("taken off sale") && !text.contains("is open"), "{text}");
    // Redis was emptied: none of the advice ends the lost sale.
    servers.redis::<()>(&["DEL", "{counter:cap}:book"]).await;
    let (code, text) = said(&["seed", "--add", "4", "--item", "cap"]);
    assert!(code == Some(1) && text.contains("`seckill restore --item cap`"), "{text}");
    let (_, text) = said(&["restore", "--item", "cap", "--yes"]);
    assert!(text.contains("is open with serial 0") && text.contains("3 left"), "{text}");
    servers.redis::<()>(&["DEL", "counter:cap"]).await;

    // Ended sales are archived.
    servers.redis::<()>(&["DEL", "counter:hat"]).await;
    assert!(said(&["seed", "4", "--item", "shoe"]).0 == Some(0));
    until("all is recorded", SOON, async || servers.rows().await == 6).await;
    until("put away", SOON, async || said(&["archive"]).0 == Some(0)).await;
    let (_, text) = said(&["status"]);
    assert!(!text.contains("hat ") && text.contains("shoe "), "{text}");
    let (code, text) = said(&["audit"]);
    assert!(code == Some(0) && text.contains("balanced") && !text.contains("hat"), "{text}");
    assert_eq!(said(&["audit", "--item", "hat"]).0, Some(0), "it is known all the same");
    servers.redis::<()>(&["SET", "counter:hat", "1"]).await;
    until("it is on sale again", SOON, async || nodes[0].count("?item=hat").await["num"] == 1).await;
    let last = crowd(&[format!("{}?item=hat", nodes[0].buy_url())], 1, 1, false).await;
    servers.balance(&[told(&bought), told(&more), told(&last)].concat(), 7).await;
}

/// An unreadable entry can be removed safely: no buyer in it gets a success that was never journaled.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn an_unreadable_outbox_entry_is_taken_out_by_restore() {
    let _turn = undisturbed().await;
    let (servers, _consumer, nodes) = on_sale(50).await;
    let first = crowd(&urls(&nodes), 10, 5, true).await;
    servers.rows_reach(10, SOON).await;
    // An operator's slip: a winner whose entry is malformed.
    let (batch, order) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    let record = format!("{order} 39 {batch}");
    servers.redis::<i64>(&["HSET", "{counter}:attempts", "k:slipped", &record]).await;
    servers.redis::<i64>(&["HSET", "{counter}:outbox", &batch.to_string(), "no entry"]).await;
    servers.redis::<i64>(&["DECRBY", "counter", "1"]).await;
    let attempt = async || buy(&client(), &nodes[0].buy_url(), Some("slipped")).await;
    assert_eq!(attempt().await.code, "pending");
    let said = restored(&servers, &nodes).await;
    assert!(said.contains("is open with serial 10"), "{said}");
    let own = attempt().await;
    assert!(own.code == "success" && own.order != Some(order.to_string()), "{own:?}");
    servers.balance(&[told(&first), told(&[own])].concat(), 11).await;
}

/// An absurd message neither stops the audit nor wedges its item.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn odd_serials_wedge_nothing() {
    let _turn = undisturbed().await;
    let (mut servers, _consumer, nodes) = on_sale(50).await;
    let first = crowd(&urls(&nodes), 10, 5, true).await;
    servers.rows_reach(10, SOON).await;
    let epoch = nodes[0].count("").await["epoch"].as_str().unwrap().to_owned();
    let odd = |serial: u64| {
        format!(
            r#"{{"order":"{}","item":"counter","epoch":"{epoch}","term":0,"serial":{serial},"remaining":3,"attempt":null,"buyer":null,"soldAt":"2026-01-02T03:04:05.000006Z"}}"#,
            uuid::Uuid::now_v7()
        )
    };
    let values = [odd(u64::MAX / 2), odd(1 << 60), odd(1_500_000_000_000), odd(5_000_000)];
    crate::servers::produce(&servers, values.iter().map(String::as_bytes)).await;
    servers.rows_reach(12, SOON).await;
    let audit = servers.operate(&["audit"]);
    let said = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(audit.status.code() == Some(1) && said.contains("which the stock has not sold"), "{said}");
    assert!(said.contains("dead letters 2"), "{said}");
    let more = crowd(&urls(&nodes), 5, 5, false).await;
    assert_eq!(count(&more, "success"), 5, "the sale goes on");
    servers.rows_reach(17, SOON).await;
    servers.redis.take().unwrap().kill();
    servers.start_redis().await;
    let said = {
        let done = servers.operate(&["restore", "--item", "counter", "--left", "35", "--yes"]);
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    assert!(said.contains("with serial 5000000 (4999984 of them void) and 35 left"), "{said}");
    for node in &nodes {
        node.reaches("open", SOON).await;
    }
    let last = crowd(&urls(&nodes), 40, 5, false).await;
    assert_eq!((count(&last, "success"), count(&last, "sold_out")), (35, 5));
    servers.rows_reach(52, SOON).await;
    let recorded: Vec<String> = servers.books().await.rows.iter().map(|row| row.order.to_string()).collect();
    let orders = [told(&first), told(&more), told(&last)].concat();
    assert!(orders.iter().all(|order| recorded.contains(order)), "told and not recorded");
}
