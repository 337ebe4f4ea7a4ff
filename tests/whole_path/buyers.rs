//! Simulated buyers: many at once, and each one's answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::sync::Semaphore;

/// The answer to one attempt.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `None` when the connection was lost.
    pub status: Option<StatusCode>,
    pub code: String,
    pub order: Option<String>,
    pub body: Value,
}

/// One buyer's client.
pub fn client() -> Client {
    Client::builder().timeout(Duration::from_secs(15)).pool_max_idle_per_host(0).build().unwrap()
}

/// One attempt, with a key or without.
pub async fn buy(client: &Client, url: &str, key: Option<&str>) -> Answer {
    let mut request = client.post(url);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    let lost = Answer { status: None, code: "lost".into(), order: None, body: Value::Null };
    let Ok(response) = request.send().await else { return lost };
    let status = Some(response.status());
    let Ok(body) = response.json::<Value>().await else { return lost };
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    Answer { status, code: text("code").unwrap_or_default(), order: text("order"), body }
}

/// `attempts` attempts, at most `at_once` in flight, spread over the URLs.
pub async fn crowd(urls: &[String], attempts: usize, at_once: usize, keyed: bool) -> Vec<Answer> {
    let client = Client::builder().timeout(Duration::from_secs(15)).build().unwrap();
    let places = Arc::new(Semaphore::new(at_once));
    let buyers: Vec<_> = (0..attempts)
        .map(|number| {
            let (client, places) = (client.clone(), Arc::clone(&places));
            let url = urls[number % urls.len()].clone();
            tokio::spawn(async move {
                let _place = places.acquire().await;
                let key = keyed.then(|| format!("buyer-{number}"));
                buy(&client, &url, key.as_deref()).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for buyer in buyers {
        answers.push(buyer.await.unwrap());
    }
    answers
}

/// How many answers have this `code`.
pub fn count(answers: &[Answer], code: &str) -> usize {
    answers.iter().filter(|answer| answer.code == code).count()
}

/// The orders confirmed as success.
pub fn told(answers: &[Answer]) -> Vec<String> {
    answers
        .iter()
        .filter(|answer| answer.code == "success")
        .filter_map(|answer| answer.order.clone())
        .collect()
}

/// Fails if two are equal.
pub fn all_different(orders: &[String]) {
    let different: HashSet<&String> = orders.iter().collect();
    assert_eq!(different.len(), orders.len(), "one order was told twice");
}
