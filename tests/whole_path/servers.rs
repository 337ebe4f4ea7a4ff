//! The servers world: a real Redis, Kafka and MariaDB.

use std::time::Duration;

use consumer::sale::Sale;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::Value;
use sqlx::Row as _;

use crate::buyers::{all_different, buy, client, count, crowd, told};
use crate::process::until;
use crate::world::{Node, Servers, get};

const DRAINED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn a_thousand_units_and_three_thousand_buyers_twice() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    node.reaches("not_on_sale", Duration::from_secs(5)).await;

    servers.redis::<()>(&["SET", "counter", "1000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let first = crowd(&[node.buy_url()], 3000, 3000, false).await;
    assert_eq!((count(&first, "success"), count(&first, "sold_out")), (1000, 2000));
    servers.rows_reach(1000, DRAINED).await;
    assert_eq!(servers.messages().await.len(), 1000);

    // A second sale of the same size is not "duplicate".
    servers.redis::<()>(&["SET", "counter", "1000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let second = crowd(&[node.buy_url()], 3000, 3000, false).await;
    assert_eq!((count(&second, "success"), count(&second, "sold_out")), (1000, 2000));
    let mut orders = told(&first);
    orders.extend(told(&second));
    servers.balance(&orders, 2000).await;

    let audit: Value = serde_json::from_slice(&servers.operate(&["audit", "--json"]).stdout).unwrap();
    let item = &audit["items"][0];
    assert_eq!(
        (&item["item"], &item["seeded"], &item["left"], &item["sold"], &item["recorded"]),
        (&"counter".into(), &2000.into(), &0.into(), &2000.into(), &2000.into())
    );
    assert!(node.process.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn one_key_fifty_times_on_two_nodes() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let (one, two) = (servers.ready_node(&[]).await, servers.ready_node(&[]).await);
    servers.redis::<()>(&["SET", "counter", "3"]).await;
    one.reaches("open", Duration::from_secs(2)).await;
    two.reaches("open", Duration::from_secs(2)).await;

    let client = client();
    let urls = [one.buy_url(), two.buy_url()];
    let attempts: Vec<_> = (0..50)
        .map(|number| {
            let (client, url) = (client.clone(), urls[number % 2].clone());
            tokio::spawn(async move { buy(&client, &url, Some("the same")).await })
        })
        .collect();
    let mut answers = Vec::new();
    for attempt in attempts {
        answers.push(attempt.await.unwrap());
    }
    let order = answers[0].order.clone().unwrap();
    for answer in &answers {
        assert_eq!((answer.code.as_str(), answer.order.as_ref()), ("success", Some(&order)), "{answer:?}");
    }
    one.reaches("open", Duration::from_secs(2)).await;
    assert_eq!(one.count("").await["num"], 2);

    let rest = crowd(&urls, 10, 10, false).await;
    assert_eq!(count(&rest, "success"), 2);
    two.reaches("sold_out", Duration::from_secs(2)).await;
    for url in &urls {
        let again = buy(&client, url, Some("the same")).await;
        assert_eq!(again.order.as_ref(), Some(&order), "a winner is not told sold out");
        assert_eq!(buy(&client, url, Some("another")).await.code, "sold_out");
    }
    let mut orders = told(&rest);
    orders.push(order);
    servers.balance(&orders, 3).await;
}

/// Items have separate books; operator commands work beside the service.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn items_and_operators() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    let client = client();
    let at = |item: &str| format!("{}?item={item}", node.buy_url());
    assert_eq!(buy(&client, &at("shoe"), None).await.code, "not_on_sale");

    servers.redis::<()>(&["SET", "counter:shoe", "2"]).await;
    let shoes = crowd(&[at("shoe")], 6, 3, false).await;
    assert_eq!((count(&shoes, "success"), count(&shoes, "sold_out")), (2, 4));
    servers.redis::<()>(&["INCRBY", "counter:shoe", "1"]).await;
    until("the shoe is on sale again", Duration::from_secs(2), async || {
        node.count("?item=shoe").await["num"] == 1
    })
    .await;

    assert!(servers.operate(&["seed", "--add", "5"]).status.code() == Some(1), "nothing to add to");
    assert!(servers.operate(&["seed", "4"]).status.success());
    node.reaches("open", Duration::from_secs(2)).await;
    let epoch = node.count("").await["epoch"].clone();
    let winner = buy(&client, &node.buy_url(), Some("key")).await;
    assert!(servers.operate(&["seed", "--add", "2"]).status.success());
    until("five are left", Duration::from_secs(2), async || node.count("").await["num"] == 5).await;
    // A plain SET keeps the sale and the winner's answer; a new sale drops it.
    servers.redis::<()>(&["SET", "counter", "9"]).await;
    until("nine are left", Duration::from_secs(2), async || node.count("").await["num"] == 9).await;
    assert_eq!(node.count("").await["epoch"], epoch);
    assert_eq!(buy(&client, &node.buy_url(), Some("key")).await.order, winner.order);
    assert!(servers.operate(&["seed", "7"]).status.success());
    until("a new sale", Duration::from_secs(2), async || node.count("").await["epoch"] != epoch).await;
    let other = buy(&client, &node.buy_url(), Some("key")).await;
    assert_ne!(other.order, winner.order);

    // An invalid value affects its item alone.
    servers.redis::<()>(&["SET", "counter:hat", "many"]).await;
    let hat = buy(&client, &at("hat"), None).await;
    assert_eq!((hat.status.unwrap().as_u16(), hat.code.as_str()), (503, "unavailable"));
    assert_eq!(node.state().await, "open");
    let status = servers.operate(&["status"]);
    assert!(String::from_utf8(status.stdout).unwrap().contains("counter:hat"));
    servers.redis::<()>(&["DEL", "counter:hat"]).await;
    until("the hat is not on sale", Duration::from_secs(2), async || {
        node.count("?item=hat").await["state"] == "not_on_sale"
    })
    .await;

    // Off sale, a winner is still known, also to a node that has never seen the item.
    servers.redis::<()>(&["SET", "counter:bag", "1"]).await;
    let bag = buy(&client, &at("bag"), Some("key")).await;
    servers.redis::<()>(&["DEL", "counter:bag"]).await;
    let second = servers.ready_node(&[]).await;
    let url = format!("{}?item=bag", second.buy_url());
    assert_eq!(buy(&client, &url, Some("key")).await.order, bag.order);
    assert_eq!(buy(&client, &url, Some("nobody")).await.code, "not_on_sale");

    let mut orders = told(&shoes);
    orders.extend(told(&[winner, other, bag]));
    servers.balance(&orders, 5).await;
}

/// A killed consumer, reset offsets, duplicate messages, a malformed message.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn the_consumer_records_each_sale_once() {
    let servers = Servers::start().await;
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "5000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let answers = crowd(&[node.buy_url()], 5200, 300, false).await;
    assert_eq!(count(&answers, "success"), 5000);

    let consumer = servers.consumer();
    servers.rows_reach(1, DRAINED).await;
    consumer.kill();
    let produced = servers.messages().await;
    assert_eq!(produced.len(), 5000);
    produce(&servers, produced.iter().step_by(10).map(Vec::as_slice)).await;
    produce(&servers, [b"not json".as_slice()].into_iter()).await;
    let again = servers.consumer();
    servers.rows_reach(5000, DRAINED).await;
    again.stop().await;

    reset_group_to_the_beginning(&servers).await;
    let _third = servers.consumer();
    let pool = servers.pool().await;
    until("the poison is in the dead letters", DRAINED, async || {
        let letters = sqlx::query("select bytes from seckill_dead_letter").fetch_all(&pool).await.unwrap();
        letters.len() == 1 && letters[0].get::<Vec<u8>, _>(0) == b"not json"
    })
    .await;
    let more = crowd(&[node.buy_url()], 5, 5, false).await;
    assert_eq!(count(&more, "sold_out"), 5);
    until("the group's lag is shown as nothing", DRAINED, async || lag(&servers).await == 0).await;
    servers.balance(&told(&answers), 5000).await;
    let audit: Value = serde_json::from_slice(&servers.operate(&["audit", "--json"]).stdout).unwrap();
    assert_eq!(
        (&audit["balanced"], &audit["deadLetters"], &audit["conflicts"]),
        (&true.into(), &1.into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn several_consumers_share_the_partitions() {
    let servers = Servers::start().await;
    let (one, _two) = (servers.consumer(), servers.consumer());
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "3000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let first = crowd(&[node.buy_url()], 1500, 200, false).await;
    one.kill();
    let second = crowd(&[node.buy_url()], 1500, 200, true).await;
    let mut orders = told(&first);
    orders.extend(told(&second));
    servers.balance(&orders, 3000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn stopped_under_load_and_started_at_once() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "100000"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let (env, url) = (node.env(), node.buy_url());
    let load = tokio::spawn(async move { crowd(&[url], 4000, 64, false).await });
    until("it sells", Duration::from_secs(10), async || {
        node.count("").await["num"].as_u64().is_some_and(|left| left < 99_500)
    })
    .await;
    let status = node.process.stop().await;
    assert!(status.success(), "{status}");
    let node = Node::again(env, servers.folder.path());
    node.reaches("open", Duration::from_secs(10)).await;
    let answers = load.await.unwrap();
    let orders = told(&answers);
    let sold = 100_000 - node.count("").await["num"].as_u64().unwrap();
    assert_eq!(usize::try_from(sold).unwrap(), orders.len(), "sold and not told");
    servers.balance(&orders, orders.len()).await;
}

/// The status of an order until it is in the ledger; an order that never existed is not found.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn an_order_is_followed_into_the_ledger() {
    let servers = Servers::start().await;
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "2"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let bought = buy(&client(), &node.buy_url(), None).await;
    let at = |order: &str| format!("{}/seckill/orders/{order}", node.url);
    let order = bought.order.clone().unwrap();
    assert_eq!(get(&at(&order)).await.1["status"], "accepted", "nobody records yet");
    let _consumer = servers.consumer();
    until("it is recorded", DRAINED, async || get(&at(&order)).await.1["status"] == "recorded").await;
    let young = uuid::Uuid::now_v7().to_string();
    assert_eq!(get(&at(&young)).await.1["status"], "pending", "it may still come about");
    until("it did not", DRAINED, async || get(&at(&young)).await.0 == 404).await;
    let metrics = client().get(format!("{}/metrics", node.ops)).send().await.unwrap().text().await.unwrap();
    for line in [
        "seckill_attempts_total{outcome=\"success\"} 1",
        "seckill_stock_left{item=\"counter\"} 1",
        "seckill_outbox_sales{item=\"counter\"} 0",
        "seckill_purchase_duration_seconds_count 1",
        "seckill_take_batch_attempts_count 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    servers.balance(&told(&[bought]), 1).await;
}

pub async fn produce(servers: &Servers, values: impl Iterator<Item = &[u8]>) {
    let brokers = std::env::var("SECKILL_KAFKA_BROKERS").unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    for value in values {
        let key = Sale::from_json(value).map_or_else(|_| "none".to_owned(), |sale| sale.order.to_string());
        producer
            .send(BaseRecord::to(&servers.topic).key(&key).payload(value))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    tokio::task::spawn_blocking(move || producer.flush(Duration::from_secs(10))).await.unwrap().unwrap();
}

/// Does what `kafka-consumer-groups --reset-offsets --to-earliest` does.
async fn reset_group_to_the_beginning(servers: &Servers) {
    let reset = servers_tool(&[
        "groups",
        "--reset-offsets",
        "--to-earliest",
        "--execute",
        "--group",
        &servers.group,
        "--topic",
        &servers.topic,
    ]);
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
}

/// The lag as Kafka's own tool shows it.
async fn lag(servers: &Servers) -> i64 {
    let shown = servers_tool(&["groups", "--describe", "--group", &servers.group]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let lags: Vec<Option<i64>> = text
        .lines()
        .filter(|line| line.contains(&servers.topic))
        .map(|line| line.split_whitespace().nth(5).and_then(|lag| lag.parse().ok()))
        .collect();
    if lags.is_empty() {
        i64::MAX
    } else {
        lags.into_iter().map(|lag| lag.unwrap_or(i64::from(u32::MAX))).sum()
    }
}

pub fn servers_tool(args: &[&str]) -> std::process::Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
    std::process::Command::new(script).arg("tool").args(args).output().unwrap()
}

#[test]
fn orders_told_twice_are_noticed() {
    let twice = vec!["a".to_owned(), "a".to_owned()];
    assert!(std::panic::catch_unwind(|| all_different(&twice)).is_err());
}

/// A Redis that refuses writes is an outage, not "sold out".
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn redis_out_of_memory() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "100"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let before = crowd(&[node.buy_url()], 10, 10, true).await;
    assert_eq!(count(&before, "success"), 10);
    servers.redis::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = crowd(&[node.buy_url()], 10, 10, false).await;
    assert_eq!(count(&refused, "unavailable"), 10, "{refused:?}");
    assert_eq!(servers.redis::<i64>(&["GET", "counter"]).await, 90);
    servers.redis::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let after = crowd(&[node.buy_url()], 100, 10, false).await;
    assert_eq!((count(&after, "success"), count(&after, "sold_out")), (90, 10));
    let mut orders = told(&before);
    orders.extend(told(&after));
    servers.balance(&orders, 100).await;
}

/// Bad Redis settings are reported at startup, and when they change.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn redis_settings_that_break_the_promise_are_said() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    servers.redis::<()>(&["CONFIG", "SET", "appendfsync", "everysec"]).await;
    let node = servers.ready_node(&[]).await;
    let says = |words: &'static str| {
        let log = || node.process.log();
        until(words, Duration::from_secs(20), async move || log().contains(words))
    };
    says("appendfsync is everysec").await;
    servers.redis::<()>(&["CONFIG", "SET", "appendfsync", "always"]).await;
    servers.redis::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    says("maxmemory-policy is allkeys-lru").await;
    let (_replica, _) = servers.replica().await;
    says("min-replicas-to-write is 0 though it has replicas").await;
    assert_eq!(node.process.log().matches("appendfsync is").count(), 1, "once is enough");
    servers.redis::<()>(&["SET", "counter", "10"]).await;
    node.reaches("open", Duration::from_secs(20)).await;
    let heard = crowd(&[node.buy_url()], 12, 4, false).await;
    servers.balance(&told(&heard), 10).await;
}
