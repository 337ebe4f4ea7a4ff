//! Manual damage to Redis and the ledger: a clear error names it, the rest continues, and once it is fixed
//! nothing is lost.

use std::time::Duration;

use serde_json::Value;
use sqlx::Connection as _;
use uuid::Uuid;

use crate::buyers::{buy, client, crowd, told};
use crate::process::until;
use crate::world::{Embedded, Node, Servers, get};

const SOON: Duration = Duration::from_secs(2);

/// The replacement for a key; the words after it are commands on the key.
type Damage = (&'static str, &'static str, &'static [&'static [&'static str]]);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn values_in_redis_that_are_none() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "100"]).await;
    node.reaches("open", SOON).await;
    let damages: [Damage; 11] = [
        ("abc", "counter:abc", &[&["SET", "abc"]]),
        ("list", "counter:list", &[&["RPUSH", "1"]]),
        ("beyond-i64", "counter:beyond-i64", &[&["SET", "92233720368547758080"]]),
        ("beyond-lua", "counter:beyond-lua", &[&["SET", "9007199254740993"]]),
        ("below-lua", "counter:below-lua", &[&["SET", "-9007199254740993"]]),
        ("book", "{counter:book}:book", &[&["SET", "x"]]),
        ("epoch", "{counter:epoch}:book", &[&["HSET", "epoch", "today"]]),
        ("fields", "{counter:fields}:book", &[&["HSET", "left", "5"]]),
        ("outbox", "{counter:outbox}:outbox", &[&["SADD", "x"]]),
        ("attempts", "{counter:attempts}:attempts", &[&["SET", "x"]]),
        ("books", "{counter:books}:books", &[&["SET", "x"]]),
    ];
    let mut orders = Vec::new();
    for (item, key, words) in damages {
        let url = format!("{}?item={item}", node.buy_url());
        let state = async || node.count(&format!("?item={item}")).await["state"].clone();
        let counter = format!("counter:{item}");
        servers.redis::<()>(&["SET", &counter, "5"]).await;
        let winner = buy(&client(), &url, Some("winner")).await;
        assert_eq!(winner.code, "success", "{item}");
        until("it is settled", SOON, async || {
            servers.redis::<i64>(&["HLEN", &format!("{{{counter}}}:outbox")]).await == 0
        })
        .await;

        let there = servers.redis::<bool>(&["EXISTS", key]).await;
        if there {
            servers.redis::<()>(&["RENAME", key, "aside"]).await;
        }
        for words in words {
            let damage: Vec<&str> = [&words[..1], &[key], &words[1..]].concat();
            servers.redis::<redis::Value>(&damage).await;
        }
        // Earlier sales' books are for the audit: selling does not read them.
        if item != "books" {
            until("it is unavailable", SOON, async || state().await == "unavailable").await;
            for key in [None, Some("winner"), Some("another")] {
                let refused = buy(&client(), &url, key).await;
                assert_eq!(
                    (refused.status.unwrap().as_u16(), &*refused.code),
                    (503, "unavailable"),
                    "{item}"
                );
            }
            assert!(node.process.log().contains(key), "{key} in the log");
        }
        let status = String::from_utf8(servers.operate(&["status"]).stdout).unwrap();
        assert!(status.lines().any(|line| line.starts_with(item) && line.contains(key)), "{key} in {status}");
        let audit = servers.operate(&["audit"]);
        assert_eq!(audit.status.code(), Some(69), "{item}");
        assert!(String::from_utf8(audit.stderr).unwrap().contains(key), "{key} by audit");
        let other = buy(&client(), &node.buy_url(), None).await;
        assert_eq!(other.code, "success", "other items go on");

        servers.redis::<()>(&["DEL", key]).await;
        if there {
            servers.redis::<()>(&["RENAME", "aside", key]).await;
        }
        until("it goes on", SOON, async || state().await == "open").await;
        let again = buy(&client(), &url, Some("winner")).await;
        assert_eq!((again.code.as_str(), &again.order), ("success", &winner.order), "{item}");
        let next = buy(&client(), &url, None).await;
        assert_eq!(next.code, "success", "{item}");
        assert_eq!(node.count(&format!("?item={item}")).await["num"], 3, "{item}: none lost");
        orders.extend(told(&[winner, other, next]));
    }
    // Negative counts as zero, without an error.
    servers.redis::<()>(&["SET", "counter", "-7"]).await;
    node.reaches("sold_out", SOON).await;
    servers.redis::<()>(&["SET", "counter", "1"]).await;
    node.reaches("open", SOON).await;
    let sold = orders.len();
    servers.balance(&orders, sold).await;
}

/// An unreadable outbox entry stays, and is named; the others are announced.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn an_outbox_entry_that_cannot_be_read() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "9"]).await;
    node.reaches("open", SOON).await;
    let epoch = node.count("").await["epoch"].as_str().unwrap().to_owned();
    let first = buy(&client(), &node.buy_url(), None).await;
    let outbox = "{counter}:outbox";
    let entries = async || servers.redis::<i64>(&["HLEN", outbox]).await;
    until("it is settled", SOON, async || entries().await == 0).await;

    let standing = Uuid::now_v7().to_string();
    let entry = format!("{epoch} 0 1 8 {}\n{}\n", 1_767_322_000_000_000_u64, first.order.clone().unwrap());
    servers.redis::<()>(&["HSET", outbox, "by hand", "what is this?", &standing, &entry]).await;
    let second = buy(&client(), &node.buy_url(), None).await;
    assert_eq!(second.code, "success", "the sale goes on");
    until("it is named", Duration::from_secs(10), async || {
        node.process.log().contains("{counter}:outbox by hand")
    })
    .await;
    until("the readable one is announced and settled", Duration::from_secs(30), async || {
        entries().await == 1
    })
    .await;
    let status = String::from_utf8(servers.operate(&["status"]).stdout).unwrap();
    assert!(status.contains("{counter}:outbox by hand"), "{status}");
    let audit = servers.operate(&["audit"]);
    assert_eq!(audit.status.code(), Some(1));
    assert!(String::from_utf8(audit.stdout).unwrap().contains("{counter}:outbox by hand"));
    assert_eq!(servers.redis::<String>(&["HGET", outbox, "by hand"]).await, "what is this?", "never dropped");
    servers.redis::<()>(&["HDEL", outbox, "by hand"]).await;
    servers.balance(&told(&[first, second]), 2).await;
}

/// The consumer reports what is missing and exits; restarted after the fix, it continues.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_ledger_with_columns_missing() {
    let servers = Servers::start().await;
    let mut consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "20"]).await;
    node.reaches("open", SOON).await;
    let mut orders = told(&crowd(&[node.buy_url()], 3, 3, false).await);
    servers.rows_reach(3, Duration::from_secs(30)).await;
    let pool = servers.pool().await;
    let alter = async |table: &str, from: &str, to: &str| {
        let alter = format!("alter table {table} rename column {from} to {to}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(alter)).execute(&pool).await.unwrap();
    };
    for (table, column) in
        [("seckill", "remaining"), ("journal_offset", "fingerprint"), ("seckill_term", "term")]
    {
        alter(table, column, "gone").await;
        let bought = told(&crowd(&[node.buy_url()], 2, 2, false).await);
        assert_eq!(bought.len(), 2, "the sale goes on");
        assert_eq!(consumer.ended(Duration::from_secs(20)).await.code(), Some(1));
        let log = consumer.log();
        assert!(log.contains(&format!("Unknown column '{column}'")) && log.contains("put back"), "{log}");
        let (status, standing) = get(&format!("{}/seckill/orders/{}", node.url, bought[0])).await;
        assert_eq!(status, 200, "nobody can say that it is not there: {standing}");

        let mut early = servers.consumer();
        assert_eq!(early.ended(Duration::from_secs(20)).await.code(), Some(1));
        assert!(early.log().contains(&format!("table {table}: ")), "{}", early.log());
        alter(table, "gone", column).await;
        consumer = servers.consumer();
        orders.extend(bought);
        servers.rows_reach(orders.len(), Duration::from_secs(30)).await;
    }
    let sold = orders.len();
    servers.balance(&orders, sold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_ledger_with_a_column_missing() {
    let embedded = Embedded::new(9);
    let mut node = embedded.node(&[]).await;
    let mut orders = told(&[buy(&client(), &node.buy_url(), None).await]);
    let alter = async |from: &str, to: &str| {
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(embedded.folder.path().join("sale.db"));
        let mut file = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        let alter = format!("alter table seckill rename column {from} to {to}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(alter)).execute(&mut file).await.unwrap();
    };
    until("it is recorded", SOON, async || {
        get(&format!("{}/seckill/orders/{}", node.url, orders[0])).await.1["status"] == "recorded"
    })
    .await;
    alter("remaining", "gone").await;
    orders.extend(told(&[buy(&client(), &node.buy_url(), None).await]));
    assert_eq!(node.process.ended(Duration::from_secs(20)).await.code(), Some(1));
    assert!(node.process.log().contains("remaining") && node.process.log().contains("put back"));
    let again = embedded.operate(&["status"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("table seckill: "));
    alter("gone", "remaining").await;
    let node = Node::again(node.env(), embedded.folder.path());
    node.reaches("open", Duration::from_secs(10)).await;
    let third = buy(&client(), &node.buy_url(), None).await;
    orders.extend(told(&[third]));
    embedded.balance(&orders, 3).await;
    let audit: Value = serde_json::from_slice(&embedded.operate(&["audit", "--json"]).stdout).unwrap();
    assert_eq!(audit["items"][0]["left"], 6);
}
