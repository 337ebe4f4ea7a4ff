//! The simulated servers, and their interfaces to the product's code.
//!
//! All servers are one value behind one lock; a call waits, then changes it in one step. Every node has its
//! own interfaces: those of a dead node never answer again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use consumer::ledger::{
    Account, Batch as Posting, Checkpoint, Closed, Faults as Aside, Ledger, LedgerError, Message, Page,
    Posted, Record, Restored, SaleRecord, Standpoint, post,
};
use consumer::progress::{Checkpoints, Extent, Extents, begin};
use consumer::reader::{Read, Reader, ReaderError};
use consumer::sale::Sale;
use seckill::clock;
use seckill::journal::{Delivery, Journal, Receipt};
use seckill::sale::{Batch, Item};
use seckill::stock::{Book, Call, Claim, Claimed, Entries, EntryName, Opening, Reply, Stock, StockError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::chance::Chance;
use crate::faults::{Faults, Mutation};
use crate::ledger::{Books, Patience};
use crate::redis::{Life, Redis};

pub const TOPIC: &str = "CAR_NUMBER";
/// The client's timeout, as in the real one.
const REPLY_WITHIN: Duration = Duration::from_millis(800);
const DELIVERY_DEADLINE: Duration = Duration::from_secs(10);
/// The retry interval of refused sales.
const OFFER_EVERY: Duration = Duration::from_secs(1);
/// Longer than any run.
const NEVER: Duration = Duration::from_secs(1_000_000);
/// `min-replicas-max-lag`: a master refuses when its replica was silent for longer.
pub const MAX_LAG: Duration = Duration::from_secs(2);

/// All servers.
pub struct State {
    pub chance: Chance,
    pub faults: Faults,
    pub redis: Redis,
    pub lives: u64,
    /// Since when the master's replica is cut off.
    pub cut_off: Option<Instant>,
    /// The old master after a failover, and until when each node uses it.
    pub old: Option<Redis>,
    pub loyal: BTreeMap<String, Instant>,
    pub log: Vec<Log>,
    partitions: BTreeMap<Uuid, usize>,
    pub books: Books,
    pub group: Group,
    pub journal_down_until: Option<Instant>,
    /// Until then every sale is refused at once.
    pub refusing_until: Option<Instant>,
    /// By node: the sale refused last, if none was acknowledged since.
    pub refused: BTreeMap<String, bool>,
    /// A log lost unrecorded messages, or is another one.
    pub broken: bool,
    /// The orders that left a log unrecorded, each with its place.
    pub cut: BTreeMap<Uuid, (i32, i64)>,
    /// Operations in flight, even if nothing waits for them.
    pub in_air: u64,
    /// Units put on sale by the operator, net of withdrawals.
    pub granted: BTreeMap<Item, i64>,
    /// Units added while the sale was shut.
    pub added_while_shut: BTreeMap<Item, u64>,
    /// Violations visible at once.
    pub seen_wrong: Vec<String>,
    /// The furthest state of a sale that each node has seen: term and serial.
    pub heard: BTreeMap<(String, Uuid), (u64, u64)>,
    /// Orders taken by a node from books behind what it had seen.
    pub taken_behind: BTreeSet<Uuid>,
    /// When the first conflict of a sale was recorded.
    pub disputed_at: BTreeMap<Uuid, Instant>,
    /// Sales of which a server lost data.
    pub hurt: BTreeSet<Uuid>,
    /// Attempts whose record was lost in a wipe or a new sale, by item: a new round begins.
    pub rounds: BTreeMap<Item, u64>,
    pub wiped: BTreeSet<Item>,
    pub reused: BTreeMap<Item, Uuid>,
    /// The sales begun by `seed`, oldest first.
    pub begun: Vec<Uuid>,
    pub trace: Vec<String>,
    names: BTreeMap<Uuid, String>,
}

/// One partition.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// The messages from `start` on; `None`: a transaction marker, which readers do not get.
    pub held: Vec<Option<Vec<u8>>>,
    pub start: i64,
}

impl Log {
    pub fn end(&self) -> i64 {
        self.start + self.held.len() as i64
    }

    pub fn extent(&self) -> Extent {
        Extent { start: self.start, end: self.end() }
    }

    fn push(&mut self, value: Option<Vec<u8>>) {
        self.held.push(value);
    }

    /// Deletes everything before an offset.
    pub fn cut(&mut self, before: i64) {
        let gone = (before - self.start).clamp(0, self.held.len() as i64);
        self.held.drain(..gone as usize);
        self.start += gone;
    }

    /// The messages from an offset on, and a reader's position after `most` of them.
    fn read(&self, from: i64, most: usize) -> (Vec<Message>, i64) {
        let (mut messages, mut next) = (Vec::new(), from.max(self.start));
        while messages.len() < most && next < self.end() {
            if let Some(value) = &self.held[(next - self.start) as usize] {
                messages.push(Message { offset: next, value: value.clone() });
            }
            next += 1;
        }
        (messages, next)
    }
}

/// The consumer group.
#[derive(Debug, Clone, Default)]
pub struct Group {
    pub members: Vec<u64>,
    pub generation: u64,
    pub offsets: BTreeMap<i32, i64>,
    next: u64,
}

impl Group {
    pub fn rebalance(&mut self) {
        self.generation += 1;
    }

    fn share(&self, member: u64, partitions: usize) -> Vec<i32> {
        let Some(place) = self.members.iter().position(|known| *known == member) else { return Vec::new() };
        (0..partitions).filter(|p| p % self.members.len() == place).map(|p| p as i32).collect()
    }
}

const HOUR_MS: u64 = 3_600_000;
const YEAR_MS: u64 = 365 * 24 * HOUR_MS;

/// The servers, shared.
pub struct Sim {
    state: Mutex<State>,
    pub mutation: Option<Mutation>,
    tracing: bool,
    began: Instant,
}

impl Sim {
    pub fn new(seed: u64, mutation: Option<Mutation>, tracing: bool) -> Arc<Self> {
        let mut chance = Chance::new(seed);
        clock::jump(0);
        let faults = Faults::draw(&mut chance);
        let partitions = chance.between(1, 3) as usize;
        let redis = Redis::default();
        let state = State {
            chance,
            faults,
            redis,
            lives: 0,
            cut_off: None,
            old: None,
            loyal: BTreeMap::new(),
            log: vec![Log::default(); partitions],
            partitions: BTreeMap::new(),
            books: Books { no_fence: mutation == Some(Mutation::NoFence), ..Books::default() },
            group: Group::default(),
            journal_down_until: None,
            refusing_until: None,
            refused: BTreeMap::new(),
            broken: false,
            cut: BTreeMap::new(),
            in_air: 0,
            granted: BTreeMap::new(),
            added_while_shut: BTreeMap::new(),
            seen_wrong: Vec::new(),
            heard: BTreeMap::new(),
            taken_behind: BTreeSet::new(),
            disputed_at: BTreeMap::new(),
            hurt: BTreeSet::new(),
            rounds: BTreeMap::new(),
            wiped: BTreeSet::new(),
            reused: BTreeMap::new(),
            begun: Vec::new(),
            trace: Vec::new(),
            names: BTreeMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), mutation, tracing, began: Instant::now() })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the servers in hand")
    }

    pub fn log(&self, what: impl FnOnce(&mut State) -> String) {
        if self.tracing {
            let mut state = self.state();
            let what = what(&mut state);
            let at = self.began.elapsed().as_millis();
            state.trace.push(format!("{at:>7} ms  {what}"));
        }
    }
}

impl State {
    pub fn of(&mut self, faults: impl FnOnce(&Faults) -> u64) -> bool {
        self.clocks_jump();
        let times = faults(&self.faults);
        times > 0 && self.chance.in_thousand(times)
    }

    /// The next clock read, on any machine, may differ from the one before.
    fn clocks_jump(&mut self) {
        if self.faults.clocks > 0 && self.chance.in_thousand(self.faults.clocks) {
            let furthest = [0, 20_000, HOUR_MS, YEAR_MS][self.chance.between(0, 3) as usize];
            let ahead = self.chance.between(0, furthest) as i64;
            clock::jump(if self.chance.in_thousand(500) { ahead } else { -ahead });
        }
    }

    pub fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.chance.between(low, high))
    }

    /// A short name for an id that differs from run to run.
    pub fn name(&mut self, id: Uuid) -> String {
        let next = self.names.len();
        self.names.entry(id).or_insert_with(|| format!("#{next}")).clone()
    }

    fn partition(&mut self, order: Uuid) -> usize {
        let drawn = self.chance.next() as usize % self.log.len();
        *self.partitions.entry(order).or_insert(drawn)
    }

    /// Changes a counter by hand, and accounts for it.
    pub fn by_hand(&mut self, item: &Item, change: impl FnOnce(Option<i64>) -> Option<i64>) {
        let shelf = self.redis.shelf(item);
        let before = shelf.stands();
        shelf.counter = change(shelf.counter);
        let after = shelf.stands();
        *self.granted.entry(item.clone()).or_default() += after as i64 - before as i64;
    }

    /// Records what a reply tells a node, and what it takes although it knows better.
    fn hears(&mut self, node: &str, reply: &Reply) {
        let Some(epoch) = reply.epoch.filter(|_| !reply.shut) else { return };
        let now = (reply.term, reply.serial);
        let heard = self.heard.entry((node.to_owned(), epoch)).or_insert(now);
        if now < *heard && now.0 == heard.0 {
            let taken = reply.taken.iter().flat_map(|batch| &batch.attempts);
            self.taken_behind.extend(taken.map(|attempt| attempt.order));
        }
        *heard = now.max(*heard);
    }

    /// Whether this node still uses the old master.
    fn loyal(&self, node: &str) -> bool {
        self.old.is_some() && self.loyal.get(node).is_some_and(|until| Instant::now() < *until)
    }

    /// The process that this node uses.
    fn process_seen_by(&self, node: &str) -> u64 {
        self.old.as_ref().filter(|_| self.loyal(node)).unwrap_or(&self.redis).life.process
    }

    /// Does a node's work on its Redis, if that is still `process`.
    fn work<T>(
        &mut self,
        node: &str,
        process: u64,
        mutation: Option<Mutation>,
        work: impl FnOnce(&mut Self) -> Result<T, StockError>,
    ) -> Option<Result<T, StockError>> {
        let loyal = self.loyal(node);
        if self.process_seen_by(node) != process {
            return None;
        }
        let alone =
            self.cut_off.is_some_and(|since| since.elapsed() > MAX_LAG) && loyal == self.old.is_some();
        if alone && mutation != Some(Mutation::SellWithoutReplica) {
            return Some(Err(StockError::Refused("NOREPLICAS".into())));
        }
        let swap = |state: &mut Self| {
            if let Some(old) = state.old.as_mut().filter(|_| loyal) {
                std::mem::swap(&mut state.redis, old);
            }
        };
        swap(self);
        let done = work(self);
        swap(self);
        Some(done)
    }

    /// Whether the ledger silently skipped missing messages.
    pub fn skipped_in_silence(&self) -> bool {
        self.cut.iter().any(|(order, (partition, offset))| {
            let next = self.books.checkpoints.get(partition).map_or(0, |known| known.next);
            let recorded = self.books.rows.contains_key(order);
            let aside = self.books.conflicts.values().any(|(sale, _)| sale.order == *order);
            next > *offset && !recorded && !aside
        })
    }

    /// Truncates the head of a partition's log, or recreates the log.
    pub fn cut(&mut self, partition: usize, anew: bool) {
        let next = self.books.checkpoints.get(&(partition as i32)).map_or(0, |known| known.next);
        let Extent { start, end } = self.log[partition].extent();
        if anew {
            self.broken |= next > 0 || end > 0;
            self.log[partition] = Log::default();
        } else {
            let before = self.chance.between(start as u64, end as u64) as i64;
            self.broken |= before > next;
            let (messages, _) = self.log[partition].read(next, usize::MAX);
            for message in messages.iter().filter(|message| message.offset < before) {
                let sale = Sale::from_json(&message.value).expect("a sale");
                self.cut.insert(sale.order, (partition as i32, message.offset));
            }
            self.log[partition].cut(before);
        }
    }

    /// Another process, with the surviving data.
    pub fn restart(&mut self, kept: Redis) {
        self.lives += 1;
        self.redis = Redis { life: Life { process: self.lives, history: self.lives }, ..kept };
    }

    /// The same process, demoted to a replica of another and promoted again: it has the other's data.
    pub fn fail_back(&mut self, kept: Redis) {
        self.lives += 1;
        self.redis = Redis { life: Life { process: self.redis.life.process, history: self.lives }, ..kept };
    }

    /// Silently replaces the data: by a backup, or by nothing.
    pub fn replace(&mut self, kept: Redis) {
        self.redis = Redis { life: self.redis.life.clone(), ..kept };
    }
}

/// One process that can die.
pub struct Node {
    pub sim: Arc<Sim>,
    pub name: String,
    alive: watch::Sender<bool>,
    silent_until: Mutex<Option<Instant>>,
}

impl Node {
    pub fn new(sim: &Arc<Sim>, name: &str) -> Arc<Self> {
        Arc::new(Self {
            sim: Arc::clone(sim),
            name: name.to_owned(),
            alive: watch::Sender::new(true),
            silent_until: Mutex::default(),
        })
    }

    pub fn kill(&self) {
        self.alive.send_replace(false);
    }

    /// Resolves when the node dies.
    pub async fn dead(&self) {
        let _ = self.alive.subscribe().wait_for(|alive| !alive).await;
    }

    /// Blocks forever on a dead node.
    async fn here(&self) {
        if !*self.alive.borrow() {
            std::future::pending::<()>().await;
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut State) -> Result<T, StockError> + Send + 'static,
    ) -> Result<T, StockError> {
        self.here().await;
        let silent = *self.silent_until.lock().expect("not poisoned");
        if silent.is_some_and(|until| Instant::now() < until) {
            return Err(StockError::Refused("redis does not answer".into()));
        }
        let (there, back, refused, process) = {
            let mut state = self.sim.state();
            let process = state.process_seen_by(&self.name);
            let mut there = state.ms(0, 2);
            let mut back = state.ms(0, 2);
            if state.of(|faults| faults.stock_is_slow) {
                (there, back) = (state.ms(0, 500), state.ms(0, 400));
            }
            if state.of(|faults| faults.stock_is_late) {
                there = state.ms(700, 2500);
            }
            if state.of(|faults| faults.stock_loses_answers) {
                back = REPLY_WITHIN;
            }
            (there, back, state.of(|faults| faults.stock_refuses), process)
        };
        if refused {
            return Err(StockError::Refused("refused".into()));
        }
        let silence = async |after: Duration| {
            sleep(after).await;
            self.here().await;
            let pause = self.sim.state().ms(100, 1500);
            *self.silent_until.lock().expect("not poisoned") = Some(Instant::now() + pause);
            self.sim.log(|_| format!("{}: {what}: silence", self.name));
            Err(StockError::Silent("no answer".into()))
        };
        if there + back < REPLY_WITHIN {
            sleep(there).await;
            let done = {
                let mut state = self.sim.state();
                state.work(&self.name, process, self.sim.mutation, work)
            };
            sleep(back).await;
            self.here().await;
            return match done {
                Some(done) => done,
                None => silence(Duration::ZERO).await,
            };
        }
        // Once sent it is executed, even if the caller is gone.
        let sim = Arc::clone(&self.sim);
        let name = self.name.clone();
        sim.state().in_air += 1;
        tokio::spawn(async move {
            sleep(there).await;
            let mut state = sim.state();
            state.in_air -= 1;
            if state.work(&name, process, sim.mutation, work).is_some() {
                drop(state);
                sim.log(|_| format!("{name}: {what}: done, and nobody hears of it"));
            }
        });
        silence(REPLY_WITHIN).await
    }

    /// A call to the ledger: refused before, done, or done with the answer lost.
    async fn book<T>(
        &self,
        what: &'static str,
        work: impl AsyncFnOnce(&mut Books) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.here().await;
        let (there, back, away, lost) = {
            let mut state = self.sim.state();
            let slow = if state.of(|faults| faults.ledger_away) { 3000 } else { 3 };
            (
                state.ms(0, slow),
                state.ms(0, slow),
                state.of(|faults| faults.ledger_away),
                state.of(|faults| faults.ledger_answer_lost),
            )
        };
        sleep(there).await;
        self.here().await;
        if away {
            return Err(LedgerError::Away("away".into()));
        }
        // One transaction at a time, as with strict locks: `work` awaits nothing that waits.
        let mut books = self.sim.state().books.clone();
        let done = work(&mut books).await;
        if done.is_ok() {
            self.sim.state().books = books;
        }
        sleep(back).await;
        self.here().await;
        if lost {
            self.sim.log(|_| format!("{}: {what}: the ledger's answer is lost", self.name));
            return Err(LedgerError::Away("the answer is lost".into()));
        }
        done
    }
}

/// The interfaces of the servers for one node.
#[derive(Clone)]
pub struct Face(pub Arc<Node>);

#[async_trait]
impl Stock for Face {
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError> {
        let mutation = self.0.sim.mutation;
        let (item, call, node) = (item.clone(), call.clone(), Arc::clone(&self.0));
        if call.taking && !call.attempts.is_empty() {
            let mut state = node.sim.state();
            if state.refused.get(&node.name) == Some(&true) {
                state.seen_wrong.push(format!("taken though the last was refused: by {}", node.name));
            }
        }
        let ask = |node: Arc<Node>, call: Call| {
            let item = item.clone();
            let sim = Arc::clone(&node.sim);
            async move {
                let name = node.name.clone();
                let seller = name.clone();
                let noted = call.clone();
                let reply = node
                    .ask("take", move |state| {
                        let reused = state.reused.get(&item).copied();
                        let mut reply = state.redis.take(&item, &call, mutation, reused);
                        if let Ok(reply) = &mut reply {
                            state.hears(&seller, reply);
                            if mutation == Some(Mutation::HideSerial) {
                                reply.serial = u64::MAX;
                            }
                        }
                        if let Some(epoch) = state.redis.shelf(&item).book.epoch {
                            state.reused.insert(item.clone(), epoch);
                        }
                        reply
                    })
                    .await;
                if !noted.attempts.is_empty() {
                    sim.log(|state| {
                        let orders: Vec<String> = noted
                            .attempts
                            .iter()
                            .map(|attempt| {
                                format!(
                                    "{}={}",
                                    state.name(attempt.order),
                                    attempt.name.as_deref().unwrap_or("-")
                                )
                            })
                            .collect();
                        let said = match &reply {
                            Ok(reply) => format!(
                                "{:?}, {} left{}",
                                reply.taken.as_ref().map(|batch| (
                                    state.name(batch.epoch),
                                    batch.term,
                                    batch.serial
                                )),
                                reply.left.map_or("-".into(), |left| left.to_string()),
                                if reply.shut { ", shut" } else { "" }
                            ),
                            Err(error) => error.to_string(),
                        };
                        format!("{name}: take {}: {said}", orders.join(" "))
                    });
                }
                reply
            }
        };
        let reply = ask(Arc::clone(&node), call.clone()).await;
        match reply {
            Err(StockError::Silent(_)) if mutation == Some(Mutation::SendAgain) => {
                sleep(Duration::from_millis(1500)).await;
                ask(node, call).await
            }
            reply => reply,
        }
    }

    async fn outbox(&self, item: &Item) -> Result<Vec<EntryName>, StockError> {
        let item = item.clone();
        self.0.ask("outbox", move |state| Ok(state.redis.outbox(&item))).await
    }

    async fn entries(&self, item: &Item, names: &[EntryName]) -> Result<Entries, StockError> {
        let (item, names) = (item.clone(), names.to_vec());
        self.0.ask("entries", move |state| Ok(state.redis.entries(&item, &names))).await
    }

    async fn items(&self) -> Result<Vec<Item>, StockError> {
        self.0
            .ask("items", |state| {
                let mut items = state.redis.items.clone();
                items.insert(Item::default());
                Ok(items.into_iter().collect())
            })
            .await
    }

    async fn discover(&self, _most: Option<usize>) -> Result<Vec<String>, StockError> {
        self.0
            .ask("discover", |state| {
                let shelves = state.redis.shelves.iter();
                let on_sale: Vec<Item> = shelves
                    .filter(|(_, shelf)| shelf.counter.is_some())
                    .map(|(item, _)| item.clone())
                    .collect();
                state.redis.items.extend(on_sale);
                Ok(Vec::new())
            })
            .await
    }

    async fn knows(&self, item: &Item) -> Result<bool, StockError> {
        let item = item.clone();
        self.0
            .ask("on_sale", move |state| {
                let shelf = state.redis.shelf(&item);
                let exists = shelf.counter.is_some() || shelf.book.epoch.is_some();
                if exists {
                    state.redis.items.insert(item);
                }
                Ok(exists)
            })
            .await
    }

    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError> {
        let item = item.clone();
        self.0
            .ask("seed", move |state| {
                let before = state.redis.shelf(&item).stands();
                if state.redis.seed(&item, units, epoch)? {
                    state.begun.push(epoch);
                    *state.granted.entry(item.clone()).or_default() += units as i64 - before as i64;
                    *state.rounds.entry(item).or_default() += 1;
                }
                Ok(())
            })
            .await
    }

    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError> {
        let (item, mutation) = (item.clone(), self.0.sim.mutation);
        self.0
            .ask("add", move |state| {
                let shut = state.redis.books(&item).first().is_some_and(|book| book.shut);
                let added = state.redis.add(&item, units, mutation)?;
                if let Some((before, after)) = added {
                    *state.granted.entry(item.clone()).or_default() += after as i64 - before as i64;
                    if shut {
                        *state.added_while_shut.entry(item).or_default() += units;
                    }
                }
                Ok(added.map(|(_, after)| after))
            })
            .await
    }

    async fn claim(&self, item: &Item, id: Uuid, claim: Claim) -> Result<Option<Claimed>, StockError> {
        let (asked, what, mutation) = (item.clone(), format!("{claim:?}"), self.0.sim.mutation);
        let found =
            self.0.ask("claim", move |state| Ok(state.redis.claim(&asked, id, claim, mutation))).await;
        self.0.sim.log(|state| {
            let found = match &found {
                Ok(None) => "not to be had".to_owned(),
                Ok(Some(found)) => {
                    let epoch = found.epoch.map(|epoch| state.name(epoch));
                    let whose = if found.by.id == id.to_string() { "its own" } else { "another's" };
                    format!("{whose}, in {}, {epoch:?} serial {}", found.life, found.serial)
                }
                Err(error) => error.to_string(),
            };
            format!(
                "{}: claim {item} {}: {found}",
                self.0.name,
                what.split(['(', '{']).next().unwrap_or_default()
            )
        });
        found
    }

    async fn prepare(&self, item: &Item, id: Uuid, winners: &[Sale]) -> Result<(), StockError> {
        let (item, winners) = (item.clone(), winners.to_vec());
        self.0
            .ask("prepare", move |state| {
                state.redis.prepare(&item, id, &winners);
                Ok(())
            })
            .await
    }

    async fn open(&self, item: &Item, opening: &Opening) -> Result<bool, StockError> {
        let (asked, given) = (item.clone(), opening.clone());
        let done = self
            .0
            .ask("open", move |state| {
                let before = state.redis.shelf(&asked).stands();
                let epoch = state.redis.shelf(&asked).book.epoch;
                let opened = state.redis.open(&asked, &given);
                // A restore may end in a sale that only the ledger knew.
                if opened && given.anew.as_ref().is_some_and(|anew| Some(anew.epoch) != epoch) {
                    *state.rounds.entry(asked.clone()).or_default() += 1;
                }
                let added = if opened { state.added_while_shut.remove(&asked).unwrap_or(0) } else { 0 };
                if opened && given.anew.is_some() {
                    let after = state.redis.shelf(&asked).stands();
                    if added > 0 && after < before {
                        state.seen_wrong.push(format!("units added are gone: {added} of {asked}"));
                    }
                    *state.granted.entry(asked.clone()).or_default() += after as i64 - before as i64;
                    state.wiped.remove(&asked);
                }
                Ok(opened)
            })
            .await;
        let anew = opening.anew.as_ref().map(|anew| (anew.serial, anew.left));
        self.0.sim.log(|_| {
            format!(
                "{}: open {item} term {} anew (serial, left) {anew:?}: {done:?}",
                self.0.name, opening.term
            )
        });
        done
    }

    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError> {
        let item = item.clone();
        self.0.ask("books", move |state| Ok(state.redis.books(&item))).await
    }
}

/// The fate of one sale on its way into the log.
struct Fate {
    /// When it leaves the process.
    sent: Duration,
    /// When it lands after that; `None`: never.
    lands: Option<Duration>,
    doubled: Option<Duration>,
    /// The result the process sees, and when after sending.
    heard: (Duration, Delivery),
}

impl State {
    /// Appends a sale to the log, and perhaps a marker after it.
    fn lands(&mut self, partition: usize, value: Vec<u8>) {
        self.log[partition].push(Some(value));
        if self.of(|faults| faults.markers) {
            self.log[partition].push(None);
        }
    }

    fn fate(&mut self) -> Fate {
        let sent = self.ms(0, 2);
        let lands = self.ms(0, 3);
        let mut fate =
            Fate { sent, lands: Some(lands), doubled: None, heard: (lands + sent, Delivery::Acknowledged) };
        if self.of(|faults| faults.journal_is_slow) {
            let lands = self.ms(0, 4000);
            fate.lands = Some(lands);
            // Half of them are acknowledged soon: within a buyer's timeout.
            let most = if self.chance.in_thousand(500) { 200 } else { 5000 };
            fate.heard.0 = lands + self.ms(0, most);
        }
        if self.refusing_until.is_some_and(|until| Instant::now() < until) {
            return Fate { sent, lands: None, doubled: None, heard: (self.ms(0, 3), Delivery::Unknown) };
        }
        if self.of(|faults| faults.journal_forgets) {
            // It lands or not; the sender never learns of it.
            fate.lands = fate.lands.filter(|_| self.chance.in_thousand(500));
            fate.heard.0 = NEVER;
            return fate;
        }
        if self.journal_down_until.is_some_and(|until| Instant::now() < until)
            || self.of(|faults| faults.journal_drops)
        {
            fate = Fate { sent, lands: None, doubled: None, heard: (self.ms(0, 9_900), Delivery::Unknown) };
        }
        if self.of(|faults| faults.journal_lands_unknown) {
            fate.lands = Some(self.ms(0, 2000));
            fate.heard = (self.ms(0, 9_900), Delivery::Unknown);
        }
        if self.of(|faults| faults.journal_lands_late) {
            fate.lands = Some(self.ms(5_000, 40_000));
            fate.heard = (self.ms(0, 9_900), Delivery::Unknown);
        }
        if self.of(|faults| faults.journal_doubles) {
            fate.doubled = Some(self.ms(0, 15_000));
        }
        // The real one gives up at its deadline.
        fate.heard.0 = fate.heard.0.min(DELIVERY_DEADLINE);
        fate
    }
}

#[async_trait]
impl Journal for Face {
    fn append(&self, batch: &Batch) -> Arc<Receipt> {
        let receipt = Receipt::new(batch.attempts.len());
        for (index, mut sale) in batch.sales().enumerate() {
            let mutation = self.0.sim.mutation;
            if mutation == Some(Mutation::ForgetAttempt) {
                sale.attempt = None;
            }
            let (mut fate, partition) = {
                let mut state = self.0.sim.state();
                let partition = state.partition(sale.order);
                (state.fate(), partition)
            };
            if mutation == Some(Mutation::AcknowledgeWithoutLanding) {
                fate.heard.1 = Delivery::Acknowledged;
            }
            let (node, receipt) = (Arc::clone(&self.0), Arc::clone(&receipt));
            let value = sale.to_json().expect("a sale has a JSON form");
            tokio::spawn(async move {
                sleep(fate.sent).await;
                node.here().await;
                let sim = Arc::clone(&node.sim);
                for after in [fate.lands, fate.doubled].into_iter().flatten() {
                    let (sim, value) = (Arc::clone(&sim), value.clone());
                    let sale = sale.clone();
                    sim.state().in_air += 1;
                    tokio::spawn(async move {
                        sleep(after).await;
                        let mut state = sim.state();
                        state.in_air -= 1;
                        state.lands(partition, value);
                        drop(state);
                        sim.log(|state| {
                            let offset = state.log[partition].end() - 1;
                            format!(
                                "journal {partition}/{offset}: {} ({}, term {}, {}) lands",
                                state.name(sale.order),
                                state.name(sale.epoch),
                                sale.term,
                                sale.serial
                            )
                        });
                    });
                }
                sleep(fate.heard.0).await;
                node.here().await;
                sim.state().refused.insert(node.name.clone(), fate.heard.1 == Delivery::Unknown);
                if fate.heard.1 == Delivery::Unknown {
                    sim.log(|state| format!("{}: {} is unknown", node.name, state.name(sale.order)));
                    if mutation == Some(Mutation::PutBack) {
                        let item: Item = sale.item.parse().expect("an item");
                        let mut state = sim.state();
                        let shelf = state.redis.shelf(&item);
                        shelf.counter = shelf.counter.map(|counter| counter + 1);
                    }
                }
                receipt.note(index, fate.heard.1);
            });
        }
        receipt
    }

    fn ready(&self) -> Result<(), String> {
        let mut state = self.0.sim.state();
        let now = Instant::now();
        if state.refused.get(&self.0.name) == Some(&true)
            && self.0.sim.mutation != Some(Mutation::TakeAfterARefusal)
        {
            // As the real one: it retries a refused sale until it is accepted.
            if state.refusing_until.is_none_or(|until| now > until + OFFER_EVERY) {
                state.refused.insert(self.0.name.clone(), false);
            } else {
                return Err("the journal takes no sales".into());
            }
        }
        if state.journal_down_until.is_some_and(|until| now < until) {
            return Err("the journal is away".into());
        }
        if state.of(|faults| faults.journal_refuses) {
            let until = now + state.ms(500, 8000);
            state.refusing_until = Some(until);
        }
        if state.of(|faults| faults.journal_is_down) {
            let until = now + state.ms(500, 8000);
            state.journal_down_until = Some(until);
        }
        Ok(())
    }

    fn topic(&self) -> &str {
        TOPIC
    }

    async fn extents(&self) -> Result<Extents, String> {
        self.0.here().await;
        let (wait, away) = {
            let mut state = self.0.sim.state();
            (state.ms(0, 20), state.of(|faults| faults.journal_ends_away))
        };
        sleep(wait).await;
        self.0.here().await;
        if away {
            return Err("the journal is away".into());
        }
        let state = self.0.sim.state();
        let next = |p: i32| state.books.checkpoints.get(&p).map_or(0, |known| known.next);
        Ok((0..).zip(&state.log).map(|(p, log)| (p, self.extent(log, next(p)))).collect())
    }

    async fn flush(&self, _within: Duration) {}
}

impl Face {
    /// A mutation shows a truncated log at its former extent.
    fn extent(&self, log: &Log, next: i64) -> Extent {
        let Extent { start, end } = log.extent();
        match self.0.sim.mutation {
            // Then the only check is whether the ledger is past the end.
            Some(Mutation::EndBelowNextIsCaughtUp) => Extent { start: 0, end: end.max(next) },
            Some(Mutation::SkipTheHead) => Extent { start: 0, end },
            _ => Extent { start, end },
        }
    }
}

#[async_trait]
impl Record for Face {
    async fn checkpoints(&self, _topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError> {
        self.0.book("checkpoints", async |books| Ok(books.checkpoints.clone())).await
    }

    async fn post(&self, batch: &Posting) -> Result<Posted, LedgerError> {
        if self.0.sim.state().of(|faults| faults.ledger_moved) {
            return Err(LedgerError::Moved { partition: 0, expected: None, found: None });
        }
        let patience = {
            let mut state = self.0.sim.state();
            let refused = state.of(|faults| faults.ledger_refuses);
            let calls = refused.then(|| state.chance.between(0, 6));
            Patience { calls, rows: state.faults.ledger_takes }
        };
        let skips = self.0.sim.mutation == Some(Mutation::SkipRefused);
        let work = async |books: &mut Books| {
            books.patience = patience;
            let posted = post::post(books, batch).await;
            books.patience = Patience::default();
            match posted {
                Err(LedgerError::Away(_)) if skips => Ok(books.skip(batch)),
                posted => posted,
            }
        };
        let posted = self.0.book("post", work).await;
        {
            let state = &mut *self.0.sim.state();
            for (sale, _) in state.books.conflicts.values().filter(|(_, reason)| reason != "late") {
                state.disputed_at.entry(sale.epoch).or_insert_with(Instant::now);
            }
        }
        self.0.sim.log(|_| {
            let parts: Vec<_> =
                batch.parts.iter().map(|part| (part.partition, part.from, part.messages.len())).collect();
            let said = match &posted {
                Ok(p) => format!("new {} dup {} conflict {} late {}", p.new, p.duplicate, p.conflict, p.late),
                Err(error) => error.to_string(),
            };
            format!("{}: post {parts:?}: {said}", self.0.name)
        });
        posted
    }
}

#[async_trait]
impl Ledger for Face {
    async fn migrate(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError> {
        self.0.book("find", async |books| Ok(books.rows.get(&order).map(|row| row.sale.clone()))).await
    }

    async fn in_conflict(&self, order: Uuid) -> Result<bool, LedgerError> {
        self.0
            .book("in_conflict", async |books| {
                Ok(books.conflicts.values().any(|(sale, reason)| sale.order == order && reason != "late"))
            })
            .await
    }

    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError> {
        if self.0.sim.mutation == Some(Mutation::SeedInStockAlone) {
            return Ok(());
        }
        self.0
            .book("begin_sale", async |books| {
                books.begin_sale(item, epoch, units);
                Ok(())
            })
            .await
    }

    async fn sales(&self, item: Option<&str>) -> Result<Vec<SaleRecord>, LedgerError> {
        let mut sales = self.0.book("sales", async |books| Ok(books.sales())).await?;
        sales.retain(|sale| item.is_none_or(|item| sale.item == item));
        Ok(sales)
    }

    async fn newest(&self) -> Result<BTreeMap<String, Uuid>, LedgerError> {
        self.0.book("newest", async |books| Ok(books.newest())).await
    }

    async fn ahead(&self, sales: &[Standpoint]) -> Result<Vec<Standpoint>, LedgerError> {
        let mutation = self.0.sim.mutation;
        self.0
            .book("ahead", async |books| {
                let further = |sale: &&Standpoint| {
                    let at = |serial| (sale.item.clone(), sale.epoch, serial);
                    let sold =
                        books.units.range(at(sale.serial.saturating_add(1))..=at(u64::MAX)).next().is_some();
                    let over =
                        books.terms.get(&(sale.item.clone(), sale.epoch)).is_some_and(|it| it.0 > sale.term);
                    (sold || over) && mutation != Some(Mutation::IgnoreWhatIsFurther)
                };
                Ok(sales.iter().filter(further).cloned().collect())
            })
            .await
    }

    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError> {
        self.0
            .book("withdraw_sale", async |books| {
                books.withdraw_sale(item, epoch);
                Ok(())
            })
            .await
    }

    async fn raise_term(&self, item: &str, epoch: Uuid, from: u64) -> Result<bool, LedgerError> {
        let raised = self.0.book("raise_term", async |books| Ok(books.raise_term(item, epoch, from))).await;
        self.0.sim.log(|state| {
            let account = state.books.account(item, epoch);
            format!(
                "{}: raise_term {item} {} from {from}: {raised:?}, {account:?}",
                self.0.name,
                state.name(epoch)
            )
        });
        raised
    }

    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError> {
        self.0.book("account", async |books| Ok(books.account(item, epoch))).await
    }

    async fn page(&self, item: &str, epoch: Uuid, after: u64, serials: u32) -> Result<Page, LedgerError> {
        // Small pages, so that there are several.
        let serials = u64::from(serials.min(3));
        self.0
            .book("page", async |books| {
                let page: Vec<u64> = books
                    .orders(item, epoch)
                    .into_iter()
                    .map(|(serial, _)| serial)
                    .filter(|it| *it > after)
                    .collect();
                let before = page.first().map_or(0, |first| first.saturating_add(serials));
                let page: Vec<u64> = page.into_iter().filter(|it| *it < before).collect();
                Ok(Page { rows: page.len() as u64, last: page.last().copied().unwrap_or(0) })
            })
            .await
    }

    async fn orders(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<(u64, Uuid)>, LedgerError> {
        let mut orders = self.0.book("orders", async |books| Ok(books.orders(item, epoch))).await?;
        orders.retain(|(serial, _)| *serial > after && *serial <= upto);
        Ok(orders)
    }

    async fn voids(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<RangeInclusive<u64>>, LedgerError> {
        let voids = self.0.book("voids", async |books| Ok(books.voids(item, epoch))).await?;
        Ok(voids.into_iter().filter(|serial| *serial > after && *serial <= upto).map(|it| it..=it).collect())
    }

    async fn winners(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<Sale>, LedgerError> {
        let mut winners = self.0.book("winners", async |books| Ok(books.winners(item, epoch))).await?;
        winners.sort_by_key(|sale| sale.serial);
        winners.retain(|sale| sale.serial > after && sale.serial <= upto);
        Ok(winners)
    }

    async fn void(&self, item: &str, epoch: Uuid, runs: &[RangeInclusive<u64>]) -> Result<(), LedgerError> {
        self.0.sim.log(|_| format!("{}: void {item} {runs:?}", self.0.name));
        self.0
            .book("void", async |books| {
                let serials = runs.iter().cloned().flatten();
                books.voids.extend(serials.map(|serial| (item.to_owned(), epoch, serial)));
                Ok(())
            })
            .await
    }

    async fn restored(&self, item: &str, epoch: Uuid, restored: Restored) -> Result<(), LedgerError> {
        self.0
            .book("restored", async |books| {
                books.restored(item, epoch, restored.term);
                Ok(())
            })
            .await
    }

    async fn disputed(&self) -> Result<Vec<(String, Uuid)>, LedgerError> {
        if self.0.sim.mutation == Some(Mutation::IgnoreConflicts) {
            return Ok(Vec::new());
        }
        self.0.book("disputed", async |books| Ok(books.disputed())).await
    }

    async fn archive(&self, item: &str, epoch: Uuid, _: Closed) -> Result<(), LedgerError> {
        self.0
            .book("archive", async |books| {
                books.archived.insert((item.to_owned(), epoch));
                Ok(())
            })
            .await
    }

    async fn archived(&self, item: Option<&str>) -> Result<BTreeSet<(String, Uuid)>, LedgerError> {
        let mut archived = self.0.book("archived", async |books| Ok(books.archived.clone())).await?;
        archived.retain(|(of, _)| item.is_none_or(|item| of == item));
        Ok(archived)
    }

    async fn faults(&self) -> Result<Aside, LedgerError> {
        let conflicts = self.0.book("faults", async |books| Ok(books.conflicts.clone())).await?;
        let conflicts = conflicts.values().filter(|(_, reason)| reason != "late").count() as u64;
        Ok(Aside { conflicts, dead_letters: 0 })
    }
}

/// A member of the consumer group.
pub struct Member {
    node: Arc<Node>,
    id: u64,
    generation: u64,
    mine: Vec<i32>,
    /// The next offset to read; a partition that was not started is not read.
    at: BTreeMap<i32, i64>,
    /// Offsets without a message, not reported yet.
    passed: BTreeMap<i32, i64>,
}

impl Member {
    pub fn join(node: &Arc<Node>) -> Self {
        let mut state = node.sim.state();
        state.group.next += 1;
        let id = state.group.next;
        state.group.members.push(id);
        state.group.rebalance();
        Self {
            node: Arc::clone(node),
            id,
            generation: 0,
            mine: Vec::new(),
            at: BTreeMap::new(),
            passed: BTreeMap::new(),
        }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    fn assigned(&mut self) -> Option<Read> {
        let mut state = self.node.sim.state();
        if state.of(|faults| faults.rebalance) {
            state.group.rebalance();
        }
        if state.group.generation == self.generation {
            return None;
        }
        self.generation = state.group.generation;
        self.mine = state.group.share(self.id, state.log.len());
        self.at.clear();
        self.passed.clear();
        Some(Read::Assigned(self.mine.clone()))
    }
}

#[async_trait]
impl Reader for Member {
    fn topic(&self) -> &str {
        TOPIC
    }

    async fn read(&mut self, max: usize, wait: Duration) -> Result<Read, ReaderError> {
        self.node.here().await;
        if let Some(assigned) = self.assigned() {
            return Ok(assigned);
        }
        for turn in 0..2 {
            if max > 0 {
                let mut state = self.node.sim.state();
                if state.of(|faults| faults.reader_away) {
                    return Err(ReaderError::Away("away".into()));
                }
                let max = state.chance.between(1, 8).min(max as u64) as usize;
                let (mut read, mut passed) = (BTreeMap::new(), std::mem::take(&mut self.passed));
                for (partition, at) in &mut self.at {
                    let log = &state.log[*partition as usize];
                    if (*at < log.start || *at > log.end())
                        && self.node.sim.mutation != Some(Mutation::SkipTheHead)
                    {
                        let why =
                            format!("topic {TOPIC} partition {partition}: offset {at} is not in the log");
                        return Err(ReaderError::Outside(why));
                    }
                    let (messages, next) = log.read(*at, max);
                    if let Some(last) = messages.last() {
                        *at = last.offset + 1;
                        read.insert(*partition, messages);
                    } else if next > *at {
                        passed.insert(*partition, next);
                        *at = next;
                    }
                }
                if !read.is_empty() {
                    self.passed = passed;
                    return Ok(Read::Messages(read));
                }
                if !passed.is_empty() {
                    return Ok(Read::Passed(passed));
                }
            }
            if turn == 0 {
                sleep(wait).await;
                self.node.here().await;
            }
        }
        Ok(self.assigned().unwrap_or(Read::Quiet))
    }

    async fn start(&mut self, from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError> {
        self.node.here().await;
        let mut state = self.node.sim.state();
        if state.of(|faults| faults.reader_away) {
            return Err(ReaderError::Away("away".into()));
        }
        let mutation = self.node.sim.mutation;
        let mine = self.mine.iter();
        let mut extents: Extents = mine.map(|p| (*p, state.log[*p as usize].extent())).collect();
        if mutation == Some(Mutation::SkipTheHead) {
            extents.values_mut().for_each(|extent| extent.start = 0);
        }
        let mut begins = begin(TOPIC, &extents, from)?;
        if mutation == Some(Mutation::SeekToGroup) {
            let group = &state.group.offsets;
            begins.iter_mut().for_each(|(partition, at)| *at = group.get(partition).copied().unwrap_or(*at));
        }
        self.at = begins.clone();
        self.passed.clear();
        Ok(begins)
    }

    async fn report(&mut self, next: &BTreeMap<i32, i64>) {
        self.node.here().await;
        self.node.sim.state().group.offsets.extend(next);
    }

    async fn extents(&mut self) -> Result<Extents, ReaderError> {
        let state = self.node.sim.state();
        Ok(self.mine.iter().map(|p| (*p, state.log[*p as usize].extent())).collect())
    }
}
