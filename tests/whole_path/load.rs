//! Load that goes on while something breaks: buyers who retry like real clients do, and all that
//! each of them was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use uuid::Uuid;

use crate::buyers::buy;
use crate::process::until;

/// Of each sort: with a key, and without.
const BUYERS: usize = 12;
/// Between two purchases of one buyer: together some hundreds a second, so that two cores have
/// time left for the programs.
const PAUSE: Duration = Duration::from_millis(40);
/// Between two tries of one purchase, doubled up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A client gives up on an answer after this, and asks again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Once all is well again, whoever has a key hears the end of it within this: the outbox's grace
/// and some tries.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One answer, or its absence.
#[derive(Debug, Clone)]
pub struct Said {
    /// Whose it is: the key, or a name that no other anonymous attempt has.
    pub attempt: String,
    pub keyed: bool,
    pub code: String,
    pub order: Option<Uuid>,
    pub sent: Instant,
    pub heard: Instant,
}

impl Said {
    /// An answer after which nobody asks again.
    pub fn is_final(&self) -> bool {
        matches!(self.code.as_str(), "success" | "sold_out")
    }
}

/// Buyers at work.
pub struct Load {
    began: Instant,
    stop: Arc<AtomicBool>,
    said: Arc<Mutex<Vec<Said>>>,
    buyers: JoinSet<()>,
}

impl Load {
    /// Lets them loose on all these addresses.
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

    /// Waits for a success that was asked for after `moment`; who had it, and when.
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

    /// Ends it: those with a key go on until they have their answer.
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

/// The longest span between two neighbours among the beginning, the final answers and the end.
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
    /// Whose turn it is of the addresses.
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

    /// Asks the next address; whether it was answered for good.
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

/// All that the buyers of a load heard.
pub struct Heard {
    pub said: Vec<Said>,
    /// The longest time without a final answer to anybody.
    pub silence: Duration,
}

impl Heard {
    /// Different attempts.
    pub fn attempts(&self) -> usize {
        self.said.iter().map(|said| said.attempt.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// The attempts that were told success, each with its orders: one, or something is wrong.
    pub fn told(&self) -> BTreeMap<&str, BTreeSet<Uuid>> {
        self.orders(|said| said.code == "success")
    }

    /// The attempts that heard of an order, whatever was said of it.
    pub fn named(&self) -> BTreeMap<&str, BTreeSet<Uuid>> {
        self.orders(|_| true)
    }

    /// Orders that anonymous buyers were told are `pending`: they can look them up.
    pub fn pending(&self) -> Vec<(&str, Uuid)> {
        let pending = self.said.iter().filter(|said| !said.keyed && said.code == "pending");
        pending.filter_map(|said| Some((said.attempt.as_str(), said.order?))).collect()
    }

    /// How often `code` was said.
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
