//! The embedded world: one file, no server.

use std::time::Duration;

use serde_json::Value;

use crate::buyers::{buy, client, count, crowd, told};
use crate::process::until;
use crate::world::{Embedded, Node, get};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_units_and_five_hundred_buyers() {
    let world = Embedded::new(100);
    let node = world.node(&[]).await;
    let answers = crowd(&[node.buy_url()], 500, 500, false).await;
    assert_eq!((count(&answers, "success"), count(&answers, "sold_out")), (100, 400));
    assert_eq!(node.count("").await["num"], 0);
    assert_eq!(node.state().await, "sold_out");
    world.balance(&told(&answers), 100).await;
    assert!(node.process.stop().await.success());
}

/// The order of JSON members is part of the contract: people read them with `grep`.
#[tokio::test]
async fn the_answers_of_the_contract() {
    let world = Embedded::new(2);
    let node = world.node(&[]).await;
    let client = client();
    let first = buy(&client, &node.buy_url(), Some("key one")).await;
    assert_eq!(first.body["code"], "success");
    assert_eq!(first.body["messages"], "购买成功，还剩下1个");
    assert_eq!(first.body["num"], 1);
    assert_eq!(first.body["epoch"], node.count("").await["epoch"], "an answer names its sale");
    let again = buy(&client, &node.buy_url(), Some("key one")).await;
    assert_eq!(again.body, first.body, "the first answer again");
    let english =
        client.post(node.buy_url()).header("Accept-Language", "en-GB,zh;q=0.5").send().await.unwrap();
    let english: Value = english.json().await.unwrap();
    assert_eq!(english["messages"], "Bought, 0 left");
    let late = buy(&client, &node.buy_url(), Some("key two")).await;
    assert_eq!(late.body, serde_json::json!({"code":"sold_out","messages":"抢完了","num":0}));
    let winner = buy(&client, &node.buy_url(), Some("key one")).await;
    assert_eq!(winner.body["order"], first.body["order"], "a winner is not told sold out");

    let order = first.order.clone().unwrap();
    until("the order is recorded", Duration::from_secs(5), async || {
        get(&format!("{}/seckill/orders/{order}", node.url)).await.1["status"] == "recorded"
    })
    .await;
    assert_eq!(
        get(&format!("{}/seckill/orders/00000000-0000-7000-8000-000000000000", node.url)).await.0,
        404
    );
    assert_eq!(get(&format!("{}/seckill/orders/none", node.url)).await.0, 400);

    for (method, path, key, status, code) in [
        ("POST", "/seckill/seckill?item=nothing", None, 404, "not_on_sale"),
        ("POST", "/seckill/seckill?item=NOT+A+NAME", None, 400, "bad_request"),
        ("POST", "/seckill/seckill", Some("k".repeat(65)), 400, "bad_request"),
        ("POST", "/seckill/seckill", Some("schlüssel".to_owned()), 400, "bad_request"),
        ("GET", "/seckill/seckill", None, 405, "method_not_allowed"),
        ("GET", "/elsewhere", None, 404, "not_found"),
    ] {
        let mut request = client.request(method.parse().unwrap(), format!("{}{path}", node.url));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key.as_bytes());
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json; charset=utf-8");
        let body: Value = answer.json().await.unwrap();
        assert_eq!((body["code"].as_str(), body["status"].as_u64()), (Some(code), Some(status.into())));
        assert!(body["messages"].is_string());
    }
    let page = client.get(&node.url).send().await.unwrap();
    assert!(page.headers().contains_key("content-security-policy"));
    assert!(page.text().await.unwrap().contains("<html"));
    world.balance(&told(&[first]), 2).await;
}

/// Confirmed sales survive a crash, and a restart refills nothing.
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_the_load() {
    let world = Embedded::new(100);
    let node = world.node(&[]).await;
    let (env, url) = (node.env(), node.buy_url());
    let load = tokio::spawn(async move { crowd(&[url], 500, 20, false).await });
    until("some are sold", Duration::from_secs(10), async || {
        node.count("").await["num"].as_u64().is_some_and(|left| left < 70)
    })
    .await;
    node.process.kill();
    let mut answers = load.await.unwrap();
    let node = Node::again(env, world.folder.path());
    until("it is back", Duration::from_secs(10), async || {
        node.state().await == "open" || node.state().await == "sold_out"
    })
    .await;
    let before = told(&answers).len();
    answers.extend(crowd(&[node.buy_url()], 200, 50, true).await);
    assert_eq!(node.count("").await["num"], 0);
    assert!(told(&answers).len() >= before);
    world.balance(&told(&answers), 100).await;
}

#[tokio::test]
async fn operators_work_beside_the_service() {
    let world = Embedded::new(5);
    let node = world.node(&[]).await;
    let client = client();
    let first = buy(&client, &node.buy_url(), Some("same")).await;
    let epoch = node.count("").await["epoch"].clone();
    assert!(world.operate(&["seed", "--add", "3"]).status.success());
    until("seven are left", Duration::from_secs(2), async || node.count("").await["num"] == 7).await;
    assert_eq!(node.count("").await["epoch"], epoch);
    assert!(world.operate(&["seed", "4"]).status.success());
    until("four are left", Duration::from_secs(2), async || node.count("").await["num"] == 4).await;
    assert_ne!(node.count("").await["epoch"], epoch, "a new sale has a new name");
    let second = buy(&client, &node.buy_url(), Some("same")).await;
    assert_ne!(first.order, second.order, "a new sale forgets who bought before");

    assert!(world.operate(&["seed", "2", "--item", "shoe"]).status.success());
    let shoe = format!("{}?item=shoe", node.buy_url());
    let answers = crowd(&[shoe], 5, 5, false).await;
    assert_eq!((count(&answers, "success"), count(&answers, "sold_out")), (2, 3));
    assert_eq!(node.count("?item=shoe").await["state"], "sold_out");
    assert_eq!(node.count("?item=hat").await["state"], "not_on_sale");
    let status: Value = serde_json::from_slice(&world.operate(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["items"][0]["item"], "counter");
    assert_eq!(status["items"][1]["sold"], 2);
    let mut orders = told(&answers);
    orders.extend(told(&[first, second]));
    world.balance(&orders, 4).await;
}

#[tokio::test]
async fn one_serve_a_file() {
    let world = Embedded::new(1);
    let node = world.node(&[]).await;
    let port = crate::process::free_port().to_string();
    let listen = format!("127.0.0.1:{port}");
    let ops = format!("127.0.0.1:{}", crate::process::free_port());
    let second = world.operate(&["serve", "--listen", &listen, "--ops-listen", &ops]);
    let error = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(error.contains("sale.db") && error.contains("another seckill"), "{error}");
    assert_eq!(node.state().await, "open");
    world.balance(&[], 0).await;
}

/// A request in flight is answered, the shutdown is graceful, and the port is free at once.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_under_load_and_started_at_once() {
    let world = Embedded::new(100_000);
    let node = world.node(&[]).await;
    let (env, url) = (node.env(), node.buy_url());
    let load = tokio::spawn(async move { crowd(&[url], 5_000, 64, false).await });
    until("it sells", Duration::from_secs(10), async || {
        node.count("").await["num"].as_u64().is_some_and(|left| left < 99_500)
    })
    .await;
    let status = node.process.stop().await;
    assert!(status.success(), "{status}");
    let node = Node::again(env, world.folder.path());
    node.reaches("open", Duration::from_secs(10)).await;
    let answers = load.await.unwrap();
    let sold = 100_000 - node.count("").await["num"].as_u64().unwrap();
    let known = told(&answers).len();
    // Answered, or cut before it was sent; no request in flight stayed unanswered.
    assert_eq!(usize::try_from(sold).unwrap(), known, "sold and not told");
    world.balance(&told(&answers), known).await;
}

/// Moving the opening time does not put an order in doubt.
#[tokio::test]
async fn a_winner_who_asks_again_before_the_opening() {
    let world = Embedded::new(3);
    let node = world.node(&[]).await;
    let client = client();
    let bought = buy(&client, &node.buy_url(), Some("winner")).await;
    assert_eq!(bought.code, "success");
    let mut env = node.env();
    assert!(node.process.stop().await.success());
    env.push(("SECKILL_OPENS_AT".into(), "+1h".into()));
    let node = Node::again(env, world.folder.path());
    node.reaches("not_open", Duration::from_secs(10)).await;
    let again = buy(&client, &node.buy_url(), Some("winner")).await;
    assert_eq!((again.code.as_str(), &again.order), ("success", &bought.order));
    for key in [None, Some("another")] {
        assert_eq!(buy(&client, &node.buy_url(), key).await.code, "not_open", "{key:?}");
    }
    world.balance(&told(&[bought]), 1).await;
}

/// Load balancers see it, and connections close with an answer, before requests are refused.
#[tokio::test]
async fn going_away() {
    let world = Embedded::new(3);
    let mut node = world.node(&[("SECKILL_DRAIN", "60s")]).await;
    let before = client();
    let first = buy(&before, &node.buy_url(), None).await;
    node.process.signal("TERM");
    until("ops see it", Duration::from_secs(10), async || {
        let ready = client().get(format!("{}/readyz", node.ops)).send().await.unwrap();
        ready.status() == 503 && ready.text().await.unwrap() == "draining"
    })
    .await;
    let bought = client().post(node.buy_url()).send().await.unwrap();
    assert_eq!(bought.headers()["connection"], "close");
    assert_eq!(bought.status(), 200, "new connections are taken");
    let second: Value = bought.json().await.unwrap();
    let page = client().get(&node.url).send().await.unwrap();
    assert_eq!(page.headers()["connection"], "close");
    // A second signal means now.
    node.process.signal("TERM");
    assert!(node.process.ended(Duration::from_secs(20)).await.success());
    let orders = [first.order, second["order"].as_str().map(str::to_owned)];
    world.balance(&orders.into_iter().flatten().collect::<Vec<_>>(), 2).await;
}

#[tokio::test]
async fn the_window() {
    let world = Embedded::new(3);
    let node = world.node(&[("SECKILL_OPENS_AT", "+2s"), ("SECKILL_CLOSES_AT", "+4s")]).await;
    let client = client();
    let early = buy(&client, &node.buy_url(), None).await;
    assert_eq!((early.status.unwrap().as_u16(), early.code.as_str()), (403, "not_open"));
    assert_eq!(node.state().await, "not_open");
    let count = node.count("").await;
    assert_eq!(count["closesAt"].as_i64().unwrap() - count["opensAt"].as_i64().unwrap(), 2000);
    node.reaches("open", Duration::from_secs(4)).await;
    let bought = buy(&client, &node.buy_url(), Some("winner")).await;
    assert_eq!(bought.code, "success");
    node.reaches("closed", Duration::from_secs(4)).await;
    let late = buy(&client, &node.buy_url(), None).await;
    assert_eq!((late.status.unwrap().as_u16(), late.code.as_str()), (403, "closed"));
    assert_eq!(buy(&client, &node.buy_url(), Some("loser")).await.code, "closed");
    assert_eq!(
        buy(&client, &node.buy_url(), Some("winner")).await.order,
        bought.order,
        "the order outlives the sale"
    );
    world.balance(&told(&[bought]), 1).await;
}
