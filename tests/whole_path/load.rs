//! Load during a fault: buyers that retry like real clients, and all of their answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use uuid::Uuid;

use crate::buyers::buy;
use crate::process::until;

/// Of each kind: with a key, and without.
const BUYERS: usize = 12;
/// Between two purchases of one buyer: together some hundreds a second, which leaves two cores time for the
/// programs.
const PAUSE: Duration = Duration::from_millis(40);
/// Between two tries of one purchase, doubling up to a second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A client's timeout, after which it retries.
const PATIENCE: Duration = Duration::from_secs(5);
/// Once all is healed, buyers with a key get their final answer within this: the outbox's grace and some
/// tries.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One answer, or a missing one.
#[derive(Debug, Clone)]
pub struct Said {
    /// The key, or a unique name for an anonymous attempt.
    pub attempt: String,
    pub keyed: bool,
    pub code: String,
    pub order: Option<Uuid>,
    pub sent: Instant,
    pub heard: Instant,
}

impl Said {
    /// An answer that ends the retries.
    pub fn is_final(&self) -> bool {
        matches!(self.code.as_str(), "success" | "sold_out")
    }
}

/// Running buyers.
pub struct Load {
    began: Instant,
    stop: Arc<AtomicBool>,
    said: Arc<Mutex<Vec<Said>>>,
    buyers: JoinSet<()>,
}

impl Load {
    /// Starts the buyers on all these addresses.
    pub fn start(urls: &[String]) -> Self {
        let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut buyers = JoinSet::new();
        for number in 0..2 * BUYERS {
            let buyer = Buyer {
                name: format!("buyer-{number}"),
                keyed: number % 2 == 0,
                urls: urls.to_vec(),
                turn: number / 2,
                client: reqwest::Client::builder().timeout(PATIENCE).build().unwrap(),
                said: Arc::clone(&said),
            };
            buyers.spawn(buyer.shop(Arc::clone(&stop)));
        }
        Self { began: Instant::now(), stop, said, buyers }
    }

    /// Waits for so many successes.
    pub async fn sells(&self, units: usize) {
        until(&format!("{units} sold"), Duration::from_secs(20), async || self.sold() >= units).await;
    }

    /// Successes so far.
    pub fn sold(&self) -> usize {
        self.said().iter().filter(|said| said.code == "success").count()
    }

    /// Waits for a success requested after `moment`; returns its order and time.
    pub async fn sells_after(&self, moment: Instant, within: Duration) -> (Uuid, Instant) {
        let mut first = None;
        until("the sale goes on", within, async || {
            first = self
                .said()
                .iter()
                .filter(|said| said.code == "success" && said.sent >= moment)
                .min_by_key(|said| said.heard)
                .and_then(|said| Some((said.order?, said.heard)));
            first.is_some()
        })
        .await;
        first.unwrap()
    }

    /// Stops it: buyers with a key continue until they have their answer.
    pub async fn stop(mut self) -> Heard {
        self.stop.store(true, Ordering::Relaxed);
        let ended = Instant::now();
        let last = async { while self.buyers.join_next().await.is_some_and(|buyer| buyer.is_ok()) {} };
        assert!(
            tokio::time::timeout(LAST_ANSWER_WITHIN, last).await.is_ok() && self.buyers.is_empty(),
            "a buyer asks in vain"
        );
        let said = self.said().clone();
        Heard { silence: silence(&said, self.began, ended), said }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Vec<Said>> {
        self.said.lock().unwrap()
    }
}

/// The longest gap between the beginning, the final answers and the end.
fn silence(said: &[Said], began: Instant, ended: Instant) -> Duration {
    let mut heard: Vec<Instant> = said
        .iter()
        .filter(|said| said.is_final() && said.heard < ended)
        .map(|said| said.heard)
        .chain([began, ended])
        .collect();
    heard.sort();
    heard.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

struct Buyer {
    name: String,
    keyed: bool,
    urls: Vec<String>,
    /// The index of the next address.
    turn: usize,
    client: reqwest::Client,
    said: Arc<Mutex<Vec<Said>>>,
}

impl Buyer {
    async fn shop(mut self, stop: Arc<AtomicBool>) {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let mut attempt = format!("{}-{number}", self.name);
            let mut pause = BACKOFF.0;
            while !self.ask(&attempt).await && (self.keyed || !stop.load(Ordering::Relaxed)) {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(BACKOFF.1);
                if !self.keyed {
                    number += 1;
                    attempt = format!("{}-{number}", self.name);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks the next address; returns whether the answer is final.
    async fn ask(&mut self, attempt: &str) -> bool {
        self.turn += 1;
        let url = &self.urls[self.turn % self.urls.len()];
        let sent = Instant::now();
        let answer = buy(&self.client, url, self.keyed.then_some(attempt)).await;
        let said = Said {
            attempt: attempt.to_owned(),
            keyed: self.keyed,
            code: answer.code,
            order: answer.order.and_then(|order| order.parse().ok()),
            sent,
            heard: Instant::now(),
        };
        let is_final = said.is_final();
        self.said.lock().unwrap().push(said);
        is_final
    }
}

/// All answers to the buyers of a load.
pub struct Heard {
    pub said: Vec<Said>,
    /// The longest time without any final answer.
    pub silence: Duration,
}

impl Heard {
    /// Different attempts.
    pub fn attempts(&self) -> usize {
        self.said.iter().map(|said| said.attempt.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// The attempts with a success, each with its orders: one, or something is wrong.
    pub fn told(&self) -> BTreeMap<&str, BTreeSet<Uuid>> {
        self.orders(|said| said.code == "success")
    }

    /// The attempts that got an order, with any status.
    pub fn named(&self) -> BTreeMap<&str, BTreeSet<Uuid>> {
        self.orders(|_| true)
    }

    /// `pending` orders of anonymous buyers: they can look them up.
    pub fn pending(&self) -> Vec<(&str, Uuid)> {
        let pending = self.said.iter().filter(|said| !said.keyed && said.code == "pending");
        pending.filter_map(|said| Some((said.attempt.as_str(), said.order?))).collect()
    }

    /// How many answers have this `code`.
    pub fn count(&self, code: &str) -> usize {
        self.said.iter().filter(|said| said.code == code).count()
    }

    fn orders(&self, which: impl Fn(&Said) -> bool) -> BTreeMap<&str, BTreeSet<Uuid>> {
        let mut orders: BTreeMap<&str, BTreeSet<Uuid>> = BTreeMap::new();
        for said in self.said.iter().filter(|said| which(said)) {
            if let Some(order) = said.order {
                orders.entry(&said.attempt).or_default().insert(order);
            }
        }
        orders
    }
}
