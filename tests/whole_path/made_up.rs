//! Forged order ids cost nothing; all nodes recognise this shop's own, even those from before it had a key.

use std::time::Duration;

use uuid::{Builder, Uuid};

use crate::buyers::{buy, client, told};
use crate::process::{Env, free_port, output, until};
use crate::world::{Embedded, Node, Servers, get};

const SOON: Duration = Duration::from_secs(30);

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

fn at(node: &Node, order: &str) -> String {
    format!("{}/seckill/orders/{order}", node.url)
}

/// An unsigned id, this many seconds old.
fn made_up(ago: u64) -> Uuid {
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
    Builder::from_unix_timestamp_millis(now - ago * 1000, Uuid::now_v7().as_bytes()[6..].try_into().unwrap())
        .into_uuid()
}

fn key_file(folder: &std::path::Path, hex: &str) -> String {
    let file = folder.join(format!("{hex}.key"));
    std::fs::write(&file, format!("{hex}\n")).unwrap();
    file.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn on_servers_they_are_told_from_ours_without_a_question() {
    let mut servers = Servers::start().await;
    let _consumer = servers.consumer();
    let key = key_file(servers.folder.path(), KEY);
    let one = servers.ready_node(&[("SECKILL_KEY_FILE", &key)]).await;
    let two = servers.ready_node(&[("SECKILL_KEY_FILE", &key)]).await;
    servers.redis::<()>(&["SET", "counter", "9"]).await;
    one.reaches("open", SOON).await;
    let bought = buy(&client(), &one.buy_url(), None).await;
    let order = bought.order.clone().unwrap();
    until("the other node finds it", SOON, async || get(&at(&two, &order)).await.1["status"] == "recorded")
        .await;
    // Once all nodes are known to use the key, an id without it is rejected locally, however young.
    until("it is known", SOON, async || get(&at(&two, &made_up(1).to_string())).await.0 == 404).await;
    let asked = async || -> u64 {
        let text: String = servers.redis(&["INFO", "commandstats"]).await;
        let lines = text.lines().filter(|line| !line.contains("_info:"));
        lines
            .filter(|line| line.contains("hgetall") || line.contains("hkeys") || line.contains("scan"))
            .filter_map(|line| line.split(['=', ',']).nth(1)?.parse::<u64>().ok())
            .sum()
    };
    let before = asked().await;
    for number in 0..200 {
        assert_eq!(get(&at(&two, &made_up(number * 600).to_string())).await.0, 404);
    }
    let far = Uuid::parse_str("ffffffff-0000-7000-8000-000000000001").unwrap();
    assert_eq!(get(&at(&two, &far.to_string())).await.0, 404);
    assert!(asked().await < before + 100, "what was made up was looked for");
    // Also without Redis: no lookup is needed.
    servers.redis.take().unwrap().kill();
    assert_eq!(get(&at(&two, &made_up(60).to_string())).await.0, 404);
    servers.start_redis().await;
    one.reaches("open", SOON).await;
    servers.balance(&told(&[bought]), 1).await;
}

/// A shop that adds a key, node by node, and one with a wrong key by mistake: a buyer is never told that an
/// existing order is missing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn orders_of_before_the_key_and_of_another_one() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let plain = servers.ready_node(&[]).await;
    assert!(plain.process.log().contains("no SECKILL_KEY_FILE"), "{}", plain.process.log());
    servers.redis::<()>(&["SET", "counter", "9"]).await;
    plain.reaches("open", SOON).await;
    let before = buy(&client(), &plain.buy_url(), None).await;
    let key = key_file(servers.folder.path(), KEY);
    let keyed = servers.ready_node(&[("SECKILL_KEY_FILE", &key)]).await;
    let other = servers.ready_node(&[("SECKILL_KEY", &KEY.replace('0', "f"))]).await;
    let mut bought = vec![before];
    for node in [&plain, &keyed, &other, &plain, &other] {
        node.reaches("open", SOON).await;
        bought.push(buy(&client(), &node.buy_url(), None).await);
        for node in [&plain, &keyed, &other] {
            for answer in &bought {
                let (status, found) = get(&at(node, answer.order.as_ref().unwrap())).await;
                assert_eq!(status, 200, "{found}");
            }
        }
    }
    for answer in &bought {
        until("it is recorded", SOON, async || {
            get(&at(&keyed, answer.order.as_ref().unwrap())).await.1["status"] == "recorded"
        })
        .await;
    }
    servers.balance(&told(&bought), 6).await;
}

/// An order from a clock that had jumped is in the outbox, whatever its id says: its node died before
/// announcing it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn an_order_from_the_future() {
    let servers = Servers::start().await;
    let _consumer = servers.consumer();
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "9"]).await;
    node.reaches("open", SOON).await;
    let epoch = node.count("").await["epoch"].as_str().unwrap().to_owned();
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
    let order = Builder::from_unix_timestamp_millis(now + 31_536_000_000, &[3; 10]).into_uuid().to_string();
    let mut taken = redis::pipe();
    taken.atomic().cmd("DECR").arg("counter").cmd("HINCRBY").arg("{counter}:book").arg("serial").arg(1);
    taken.cmd("HINCRBY").arg("{counter}:book").arg("left").arg(-1);
    let entry = format!("{epoch} 0 1 8 {}\n{order}\n", now * 1000);
    taken.cmd("HSET").arg("{counter}:outbox").arg(Uuid::now_v7().to_string()).arg(entry);
    servers.redis_pipe(&taken).await;
    let (status, found) = get(&at(&node, &order)).await;
    assert_eq!((status, &found["status"]), (200, &"pending".into()), "{found}");
    until("it is announced and recorded", Duration::from_secs(40), async || {
        get(&at(&node, &order)).await.1["status"] == "recorded"
    })
    .await;
    servers.balance(&[order], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_a_key_of_its_own() {
    let world = Embedded::new(3);
    let node = world.node(&[]).await;
    let bought = buy(&client(), &node.buy_url(), None).await;
    assert_eq!(get(&at(&node, &made_up(1).to_string())).await.0, 404);
    let env = node.env();
    assert!(node.process.stop().await.success());
    let node = Node::again(env, world.folder.path());
    node.reaches("open", SOON).await;
    let order = bought.order.clone().unwrap();
    until("it is recorded", SOON, async || get(&at(&node, &order)).await.1["status"] == "recorded").await;
    assert_eq!(get(&at(&node, &made_up(1).to_string())).await.0, 404);
    world.balance(&told(&[bought]), 1).await;
}

/// A file of an older version, whose orders have no check that this version knows.
#[tokio::test(flavor = "multi_thread")]
async fn orders_in_a_file_of_before() {
    use sqlx::Connection as _;
    let world = Embedded::new(3);
    let node = world.node(&[]).await;
    let mut bought = vec![buy(&client(), &node.buy_url(), None).await];
    let env = node.env();
    assert!(node.process.stop().await.success());
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.folder.path().join("sale.db"));
    let mut file = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let before =
        "drop table seckill_key; drop table order_key; delete from _sqlx_migrations where version = 4";
    sqlx::raw_sql(before).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
    let node = Node::again(env, world.folder.path());
    node.reaches("open", SOON).await;
    bought.push(buy(&client(), &node.buy_url(), None).await);
    for answer in &bought {
        let order = answer.order.clone().unwrap();
        until("it is recorded", SOON, async || {
            get(&at(&node, &order)).await == (200, serde_json::json!({"order": order, "status": "recorded"}))
        })
        .await;
    }
    world.balance(&told(&bought), 2).await;
}

#[test]
fn a_key_that_is_none() {
    let world = Embedded::new(1);
    let folder = world.folder.path();
    let run = |name: &str, value: &str| {
        let mut env: Env = world.env.clone();
        env.push(("SECKILL_LISTEN".into(), format!("127.0.0.1:{}", free_port())));
        env.push((name.into(), value.into()));
        let ended = output("seckill", &env, &["serve"], folder);
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    for wrong in ["hush", "000102030405060708090a0b0c0d0e0f00", "000102030405060708090a0b0c0d0e0g"] {
        let (code, said) = run("SECKILL_KEY_FILE", &key_file(folder, wrong));
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("SECKILL_KEY_FILE") && said.contains("openssl rand -hex 16"), "{said}");
        assert!(run("SECKILL_KEY", wrong).1.contains("32 hex digits"));
    }
    let empty = folder.join("empty");
    std::fs::write(&empty, "\n").unwrap();
    assert!(run("SECKILL_KEY_FILE", &empty.display().to_string()).1.contains("the file is empty"));
    assert!(run("SECKILL_KEY_FILE", "/nowhere/key").1.contains("SECKILL_KEY_FILE=/nowhere/key"));
    // The key in place of a file name.
    let (code, said) = run("SECKILL_KEY_FILE", KEY);
    assert!(code == Some(64) && !said.contains(KEY), "{said}");
}
