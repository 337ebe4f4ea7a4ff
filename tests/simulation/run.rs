//! One run: nodes, consumers, buyers and an operator under faults; then everything heals, and the invariants
//! are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use consumer::ledger::Ledger;
use consumer::recording::step::Consumer;
use consumer::sale::Sale;
use consumer::sqlite::SqliteFile;
use prometheus::Registry;
use seckill::books::audit;
use seckill::books::reopen::Reopener;
use seckill::books::restore::{Restoration, Wish, restore};
use seckill::clock::moment;
use seckill::journal::Journal;
use seckill::metrics::Metrics;
use seckill::sale::times::SETTLED_AFTER;
use seckill::sale::{Attempt, Item, OrderStatus, Purchase, Window};
use seckill::selling::gate::Gate;
use seckill::selling::mailbox::Mailbox;
use seckill::selling::outbox::Announcer;
use seckill::selling::shop::Shop;
use seckill::stock::{self, Call, Stock};
use seckill::world::{Kind, World};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::check;
use crate::faults::{Faults, Mutation};
use crate::redis::Redis;
use crate::servers::{Face, MAX_LAG, Member, Node, Sim, TOPIC};

/// Everything must be at rest this soon after healing.
const REST_WITHIN: Duration = Duration::from_secs(400);
/// Without faults, nodes know this soon what the ledger knows.
const WATCHED_WITHIN: Duration = Duration::from_secs(3);
/// The time that the process gives its tills.
const CLOSE_WITHIN: Duration = Duration::from_secs(4);
/// After this an order recorded nowhere never appears.
const ORDER_AGE: Duration = Duration::from_secs(12);
/// A sale that the product has not reopened by then waits for the operator.
const RESTORE_AFTER: Duration = Duration::from_secs(40);

/// The result of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub failures: Vec<String>,
    pub trace: Vec<String>,
    pub told: usize,
    pub rows: usize,
}

/// The answer to one attempt.
#[derive(Debug, Clone)]
pub struct Told {
    pub item: Item,
    pub key: Option<u64>,
    /// The order, if the attempt was anonymous and the simulator created it.
    pub order: Option<Uuid>,
    /// `None`: the buyer gave up, or the node died.
    pub said: Option<Purchase>,
    pub began: Instant,
    pub ended: Instant,
    pub round: (u64, u64),
    /// Sent after everything had healed.
    pub last: bool,
}

/// How Redis loses data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Another process has an older state.
    Restart,
    /// The same process has another's state, with another history.
    Failback,
    /// The same process silently has an older state.
    Unseen,
}

/// How the error of a consumer that rejects the current log begins.
const FOREIGN: &str = "topic CAR_NUMBER partition";

/// The order in a buyer's answer.
fn told_of(told: &Told) -> Option<Uuid> {
    match told.said {
        Some(Purchase::Bought { order, .. }) => Some(order),
        _ => None,
    }
}

/// The parts of one node.
struct Process {
    node: Arc<Node>,
    shop: Arc<Shop>,
}

/// The state of a run.
pub struct Run {
    pub sim: Arc<Sim>,
    nodes: Mutex<Vec<Arc<Process>>>,
    consumers: Mutex<Vec<(Arc<Node>, u64)>>,
    pub told: Mutex<Vec<Told>>,
    pub fatal: Mutex<Vec<String>>,
    /// Operators changed counters by hand.
    pub by_hand: Mutex<bool>,
    /// Redis lost data.
    pub lossy: Mutex<bool>,
    /// When its data last went back silently.
    pub rewound: Mutex<Option<Instant>>,
    /// The sales whose beginning was confirmed to an operator.
    pub begun: Mutex<BTreeSet<(Item, Uuid)>>,
    /// Orders looked up, with the status returned.
    pub looked_up: Mutex<Vec<(Uuid, OrderStatus)>>,
}

/// The metrics registries do not matter here: all runs share them.
fn metrics() -> &'static (Metrics, consumer::recording::metrics::Metrics) {
    static METRICS: OnceLock<(Metrics, consumer::recording::metrics::Metrics)> = OnceLock::new();
    METRICS.get_or_init(|| {
        let registry = Registry::new();
        let selling = Metrics::register(&registry).expect("fresh registry");
        (selling, consumer::recording::metrics::Metrics::new(&registry).expect("fresh registry"))
    })
}

/// A world needs a kind, though nothing here asks for it; a file that is never used will do.
fn kind() -> &'static Kind {
    static KIND: OnceLock<Kind> = OnceLock::new();
    KIND.get_or_init(|| {
        // Runs start within a runtime, where blocking on another is not allowed.
        let made = std::thread::spawn(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(SqliteFile::open(&folder.path().join("unused.db"), true)).expect("a file")
        });
        Kind::Embedded(made.join().expect("no panic"), None)
    })
}

/// An order id, an hour old, so that a later lookup is not told to wait: the caller checks its age by the
/// run's clock.
fn old_order() -> Uuid {
    let hour_ago = uuid::Timestamp::now(uuid::NoContext).to_unix().0 - 3600;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, hour_ago, 0))
}

fn world(node: &Arc<Node>) -> World {
    let face = Arc::new(Face(Arc::clone(node)));
    let (stock, journal, ledger): (Arc<dyn Stock>, Arc<dyn Journal>, Arc<dyn Ledger>) =
        (Arc::<Face>::clone(&face), Arc::<Face>::clone(&face), face);
    let at_once = node.sim.mutation == Some(Mutation::CountAtOnce);
    let settled_after = if at_once { Duration::ZERO } else { SETTLED_AFTER };
    World { stock, journal, ledger, kind: kind().clone(), settled_after }
}

/// Runs one seed.
pub fn run(seed: u64, mutation: Option<Mutation>, tracing: bool) -> Outcome {
    let _ = kind();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let run = Arc::new(Run {
            sim: Sim::new(seed, mutation, tracing),
            nodes: Mutex::default(),
            consumers: Mutex::default(),
            told: Mutex::default(),
            fatal: Mutex::default(),
            by_hand: Mutex::default(),
            lossy: Mutex::default(),
            rewound: Mutex::default(),
            begun: Mutex::default(),
            looked_up: Mutex::default(),
        });
        let mut failures = run.drive().await;
        failures.extend(run.fatal.lock().expect("not poisoned").iter().cloned());
        let told = run.told.lock().expect("not poisoned").len();
        let state = run.sim.state();
        Outcome { failures, trace: state.trace.clone(), told, rows: state.books.rows.len() }
    })
}

impl Run {
    fn start_node(&self, name: &str) -> Arc<Process> {
        let node = Node::new(&self.sim, name);
        let world = world(&node);
        let metrics = &metrics().0;
        let shop = Shop::open(
            Arc::clone(&world.stock),
            Arc::clone(&world.journal),
            Arc::clone(&world.ledger),
            Window::default(),
            metrics.clone(),
        );
        tokio::spawn(Reopener::new(&shop, &world, metrics).run());
        tokio::spawn(Announcer::new(&shop, &world.stock, &world.journal, metrics).run());
        Arc::new(Process { node, shop })
    }

    fn start_consumer(self: &Arc<Self>, name: &str) {
        let node = Node::new(&self.sim, name);
        let member = Member::join(&node);
        let id = member.id();
        let world = world(&node);
        let mut consumer = Consumer::new(Box::new(member), world.ledger, metrics().1.clone());
        let run = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                if let Err(error) = consumer.step().await {
                    // The message to verify has left the log meanwhile. A supervisor restarts the consumer,
                    // and it starts at its checkpoints.
                    if error.to_string().contains("is not in the log") {
                        run.sim.log(|_| format!("a consumer stops, and is started again: {error}"));
                        run.leave(id);
                        run.start_consumer("consumer again");
                        return;
                    }
                    run.sim.log(|_| format!("a consumer stops: {error}"));
                    run.fatal.lock().expect("not poisoned").push(format!("a consumer stops: {error}"));
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        self.consumers.lock().expect("not poisoned").push((node, id));
    }

    fn nodes(&self) -> Vec<Arc<Process>> {
        self.nodes.lock().expect("not poisoned").clone()
    }

    fn round(&self, item: &Item) -> u64 {
        self.sim.state().rounds.get(item).copied().unwrap_or(0)
    }

    async fn buy(
        self: &Arc<Self>,
        at: usize,
        item: &Item,
        key: Option<u64>,
        patience: Duration,
        last: bool,
    ) -> Option<Purchase> {
        let process = Arc::clone(&self.nodes()[at]);
        let began = Instant::now();
        let round = self.round(item);
        let shop = &process.shop;
        let till = shop.tills().into_iter().find(|till| till.item() == item);
        let own = old_order();
        let direct = key.is_none() && till.is_some() && self.sim.state().chance.in_thousand(700);
        let asking = async {
            match till {
                // As the shop does it, with an order that the check knows.
                Some(till) if direct => match till.gate() {
                    Gate::Shut(refusal) => refusal,
                    Gate::Open => till.attempt(&Mailbox::open(), Attempt { order: own, name: None }).await,
                },
                _ => shop.buy(&Mailbox::open(), item, key.map(|key| key.to_string()).as_deref()).await,
            }
        };
        let said = tokio::select! {
            biased;
            () = process.node.dead() => None,
            () = sleep(patience) => None,
            said = self.later(asking) => Some(said),
        };
        let told = Told {
            item: item.clone(),
            key,
            order: direct.then_some(own),
            said,
            began,
            ended: Instant::now(),
            round: (round, self.round(item)),
            last,
        };
        self.sim.log(|state| {
            let said = match told.said {
                Some(Purchase::Bought { order, left, .. }) => {
                    format!("BOUGHT {} left {left}", state.name(order))
                }
                Some(Purchase::Pending { order, .. }) => format!("pending {}", state.name(order)),
                other => format!("{other:?}"),
            };
            let who = told.key.map_or("anonymous".into(), |key| format!("k:{key}"));
            format!(
                "{}: {who} wants {item} (asked {} ms ago): {said}",
                process.node.name,
                began.elapsed().as_millis()
            )
        });
        self.told.lock().expect("not poisoned").push(told);
        said
    }

    /// The answer of a shop without `TELL_WITHIN`.
    async fn later(&self, asking: impl Future<Output = Purchase>) -> Purchase {
        let said = asking.await;
        let Purchase::Pending { order, .. } = said else { return said };
        while self.sim.mutation == Some(Mutation::TellLate) {
            let in_the_log = {
                let state = self.sim.state();
                let held = state.log.iter().flat_map(|log| log.held.iter().flatten());
                let mut sales = held.filter_map(|value| Sale::from_json(value).ok());
                sales.find(|sale| sale.order == order)
            };
            if let Some(sale) = in_the_log {
                return Purchase::Bought { order, left: sale.remaining, epoch: sale.epoch };
            }
            sleep(Duration::from_millis(100)).await;
        }
        said
    }

    /// Asks a node for an order's status.
    async fn look_up(&self, at: usize, order: Uuid) -> Option<OrderStatus> {
        let process = Arc::clone(&self.nodes()[at]);
        let found = tokio::select! {
            biased;
            () = process.node.dead() => return None,
            () = sleep(Duration::from_secs(60)) => return None,
            found = process.shop.order(order) => found,
        };
        self.sim.log(|state| format!("{}: {} is {found:?}", process.node.name, state.name(order)));
        self.looked_up.lock().expect("not poisoned").push((order, found));
        Some(found)
    }

    async fn drive(self: &Arc<Self>) -> Vec<String> {
        let default = Item::default();
        let (units, by_set, ms, faults, second) = {
            let mut state = self.sim.state();
            let faults = state.faults.clone();
            let second = state.chance.in_thousand(200);
            (
                state.chance.between(1, 12),
                state.chance.in_thousand(200),
                state.chance.between(4_000, 30_000),
                faults,
                second,
            )
        };
        self.sim.log(|state| format!("{:?}, {} partitions", state.faults, state.log.len()));
        let mut items = vec![default];
        if second {
            items.push("shoe".parse().expect("an item"));
        }
        for item in &items {
            if by_set {
                self.sim.state().by_hand(item, |_| Some((units + faults.backlog) as i64));
                self.sim.log(|_| format!("operator: SET {item} {units}"));
            } else {
                self.new_sale(item, units + faults.backlog).await;
            }
            if faults.backlog > 0 {
                self.fill_outbox(item, faults.backlog);
            }
        }
        for name in ["a0", "b0"] {
            let process = self.start_node(name);
            self.nodes.lock().expect("not poisoned").push(process);
        }
        self.start_consumer("consumer0");
        if faults.second_consumer {
            self.start_consumer("consumer1");
        }

        let mut tasks = tokio::task::JoinSet::new();
        let at = |most: u64| {
            let mut state = self.sim.state();
            state.ms(0, most)
        };
        let buyers = { self.sim.state().chance.between(3, 40) };
        for _ in 0..buyers {
            let (run, when) = (Arc::clone(self), at(ms));
            let item = items[at(1000).as_millis() as usize % items.len()].clone();
            tasks.spawn(async move {
                sleep(when).await;
                run.buyer(&item).await;
            });
        }
        for _ in 0..faults.crashes {
            let (run, when, which) = (Arc::clone(self), at(ms), at(1).as_millis() as usize);
            tasks.spawn(async move {
                sleep(when).await;
                run.crash(which).await;
            });
        }
        for _ in 0..faults.consumer_crashes {
            let (run, when, away, leave) = (Arc::clone(self), at(ms), at(5000), at(6000));
            tasks.spawn(async move {
                sleep(when).await;
                let gone = run.consumers.lock().expect("not poisoned").pop();
                if let Some((node, id)) = gone {
                    run.sim.log(|_| format!("{} dies", node.name));
                    node.kill();
                    sleep(leave).await;
                    run.leave(id);
                }
                sleep(away).await;
                run.start_consumer("consumer+");
            });
        }
        for _ in 0..faults.group_resets {
            let (run, when) = (Arc::clone(self), at(ms));
            tasks.spawn(async move {
                sleep(when).await;
                let mut state = run.sim.state();
                for partition in 0..state.log.len() {
                    let to = state.chance.between(0, 20) as i64;
                    state.group.offsets.insert(partition as i32, to);
                }
                state.group.rebalance();
                drop(state);
                run.sim.log(|state| format!("operator: group offsets to {:?}", state.group.offsets));
            });
        }
        for _ in 0..faults.restarts {
            let (run, when) = (Arc::clone(self), at(ms));
            tasks.spawn(async move {
                sleep(when).await;
                let mut state = run.sim.state();
                let kept = state.redis.clone();
                state.restart(kept);
                drop(state);
                run.sim.log(|_| "redis: restarted, nothing lost".into());
            });
        }
        for _ in 0..faults.rollbacks {
            // Half of them lose less than a buyer's timeout.
            let far = if at(1).is_zero() { 500 } else { 5000 };
            let (run, when, later) = (Arc::clone(self), at(ms), at(far));
            tasks.spawn(async move {
                sleep(when).await;
                let kept = run.sim.state().redis.clone();
                sleep(later).await;
                run.roll_back(kept, Loss::Restart, &format!("rolled back by {} ms", later.as_millis()));
            });
        }
        for _ in 0..faults.failbacks {
            let far = if at(1).is_zero() { 500 } else { 5000 };
            let (run, when, later) = (Arc::clone(self), at(ms), at(far));
            tasks.spawn(async move {
                sleep(when).await;
                let kept = run.sim.state().redis.clone();
                sleep(later).await;
                let what = format!("demoted and promoted again, {} ms back", later.as_millis());
                run.roll_back(kept, Loss::Failback, &what);
            });
        }
        for _ in 0..faults.rewinds {
            let far = if at(1).is_zero() { 500 } else { 5000 };
            let (run, when, later) = (Arc::clone(self), at(ms), at(far));
            tasks.spawn(async move {
                sleep(when).await;
                let kept = run.sim.state().redis.clone();
                sleep(later).await;
                *run.rewound.lock().expect("not poisoned") = Some(Instant::now());
                let what = format!("put back by {} ms", later.as_millis());
                run.roll_back(kept.clone(), Loss::Unseen, &what);
                // Half of the time no aware node is left; some restore the data twice.
                let (forgets, twice, after) = {
                    let mut state = run.sim.state();
                    (state.chance.in_thousand(500), state.chance.in_thousand(300), state.ms(3000, 9000))
                };
                if forgets {
                    tokio::join!(run.crash(0), run.crash(1));
                }
                if twice {
                    sleep(after).await;
                    *run.rewound.lock().expect("not poisoned") = Some(Instant::now());
                    run.roll_back(kept, Loss::Unseen, &format!("{what}, once more"));
                    tokio::join!(run.crash(0), run.crash(1));
                }
            });
        }
        for nth in 0..faults.cuts + faults.topics_made_anew {
            let (run, when) = (Arc::clone(self), at(ms));
            let anew = nth >= faults.cuts;
            tasks.spawn(async move {
                sleep(when).await;
                let mut state = run.sim.state();
                let partitions = state.log.len();
                let which = state.chance.between(0, partitions as u64 - 1) as usize;
                for partition in 0..partitions {
                    if anew || partition == which {
                        state.cut(partition, anew);
                    }
                }
                drop(state);
                run.sim.log(|state| {
                    let extents: Vec<_> = state.log.iter().map(|log| log.extent()).collect();
                    format!("journal: {}: {extents:?}", if anew { "made anew" } else { "cut" })
                });
            });
        }
        for _ in 0..faults.flushes {
            let (run, when) = (Arc::clone(self), at(ms));
            tasks.spawn(async move {
                sleep(when).await;
                *run.rewound.lock().expect("not poisoned") = Some(Instant::now());
                run.roll_back(Redis::default(), Loss::Unseen, "flushed");
            });
        }
        for _ in 0..faults.adds {
            let (run, when, units) = (Arc::clone(self), at(ms), at(5).as_millis() as u64);
            let item = items[at(1000).as_millis() as usize % items.len()].clone();
            tasks.spawn(async move {
                sleep(when).await;
                let node = Node::new(&run.sim, "add");
                // More is on sale now than the sale began with.
                *run.by_hand.lock().expect("not poisoned") = true;
                let added = world(&node).add(&item, units).await;
                run.sim.log(|_| format!("operator: seed --add {units} of {item}: {added:?}"));
            });
        }
        for _ in 0..faults.wipes {
            let (run, when) = (Arc::clone(self), at(ms));
            tasks.spawn(async move {
                sleep(when).await;
                run.roll_back(Redis::default(), Loss::Restart, "wiped");
            });
        }
        for _ in 0..faults.failovers {
            let (run, when, later) = (Arc::clone(self), at(ms), at(3000));
            tasks.spawn(async move {
                sleep(when).await;
                run.fail_over(later).await;
            });
        }
        for _ in 0..faults.by_hand {
            let (run, when, what) = (Arc::clone(self), at(ms), at(9));
            let item = items[at(1000).as_millis() as usize % items.len()].clone();
            let count = at(8).as_millis() as i64;
            tasks.spawn(async move {
                sleep(when).await;
                run.by_hand(&item, what.as_millis() as u64, count);
            });
        }
        for _ in 0..faults.new_sales {
            let (run, when, units) = (Arc::clone(self), at(ms), at(8).as_millis() as u64);
            let item = items[at(1000).as_millis() as usize % items.len()].clone();
            tasks.spawn(async move {
                sleep(when).await;
                run.new_sale(&item, units).await;
            });
        }
        for _ in 0..faults.restores {
            let (run, when, dies) = (Arc::clone(self), at(ms), at(20_000));
            let item = items[at(1000).as_millis() as usize % items.len()].clone();
            tasks.spawn(async move {
                sleep(when).await;
                run.restore(&item, dies).await;
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no task of a run panics");
        }
        self.heal(&items).await
    }

    /// The outbox of a node that sold this many, one by one, while the journal was away, and died.
    fn fill_outbox(&self, item: &Item, sales: u64) {
        let (began, round) = (Instant::now(), (self.round(item), self.round(item)));
        let mut state = self.sim.state();
        for _ in 0..sales {
            let order = old_order();
            let call = Call {
                id: Uuid::now_v7(),
                offer: Uuid::now_v7(),
                at: moment(),
                taking: true,
                attempts: vec![Attempt { order, name: None }],
                settled: Vec::new(),
            };
            // The seed's answer may have been lost with the sale.
            let taken = state.redis.take(item, &call, None, None);
            if taken.is_ok_and(|reply| matches!(reply.outcomes[..], [stock::Outcome::Taken(_)])) {
                self.told.lock().expect("not poisoned").push(Told {
                    item: item.clone(),
                    key: None,
                    order: Some(order),
                    said: None,
                    began,
                    ended: began,
                    round,
                    last: false,
                });
            }
        }
        drop(state);
        self.sim.log(|_| format!("a node sold {sales} of {item} while the journal was away, and died"));
    }

    fn leave(&self, id: u64) {
        let mut state = self.sim.state();
        state.group.members.retain(|member| *member != id);
        state.group.rebalance();
    }

    /// Buys, and retries until the answer is certain, as pages do.
    async fn buyer(self: &Arc<Self>, item: &Item) {
        let (key, tries, patience) = {
            let mut state = self.sim.state();
            let key = state.chance.in_thousand(700).then(|| state.chance.between(1, 8));
            let patience =
                if state.chance.in_thousand(200) { state.ms(0, 3000) } else { Duration::from_secs(60) };
            (key, if key.is_some() { state.chance.between(1, 4) } else { 1 }, patience)
        };
        for _ in 0..tries {
            let (at, pause) = {
                let mut state = self.sim.state();
                (state.chance.between(0, 1) as usize, state.ms(0, 4000))
            };
            let said = self.buy(at, item, key, patience, false).await;
            let over =
                matches!(said, Some(Purchase::Bought { .. })) && self.sim.state().chance.in_thousand(500);
            if over {
                return;
            }
            sleep(pause).await;
        }
        let (asks, at) = {
            let mut state = self.sim.state();
            (key.is_none() && state.chance.in_thousand(50), state.chance.between(0, 1) as usize)
        };
        let own = self.told.lock().expect("not poisoned").iter().rev().find_map(|told| told.order);
        if let Some(order) = own.filter(|_| asks) {
            sleep(ORDER_AGE).await;
            self.look_up(at, order).await;
        }
    }

    async fn crash(self: &Arc<Self>, which: usize) {
        let process = Arc::clone(&self.nodes()[which]);
        // Every third shuts down gracefully.
        if self.sim.state().chance.in_thousand(333) {
            self.sim.log(|_| format!("{} closes", process.node.name));
            process.shop.close(CLOSE_WITHIN).await;
        }
        self.sim.log(|_| format!("{} dies", process.node.name));
        process.node.kill();
        let away = self.sim.state().ms(0, 6000);
        sleep(away).await;
        let name = format!("{}'", process.node.name);
        // Another one may have started it meanwhile.
        if Arc::ptr_eq(&self.nodes()[which], &process) {
            let fresh = self.start_node(&name);
            self.nodes.lock().expect("not poisoned")[which] = fresh;
            self.sim.log(|_| format!("{name} starts"));
        }
    }

    fn roll_back(&self, kept: Redis, loss: Loss, what: &str) {
        *self.lossy.lock().expect("not poisoned") = true;
        let mut state = self.sim.state();
        let before = state.redis.clone();
        for (item, shelf) in &before.shelves {
            if loss == Loss::Unseen {
                *state.rounds.entry(item.clone()).or_default() += 1;
            }
            let epochs = shelf.book.epoch.into_iter().chain(shelf.books.keys().copied());
            state.hurt.extend(epochs.chain(shelf.outbox.values().map(|batch| batch.epoch)));
            let now = kept.shelves.get(item);
            let same = now.is_some_and(|now| now.book.epoch == shelf.book.epoch);
            if !same {
                *state.rounds.entry(item.clone()).or_default() += 1;
            }
            if now.is_none_or(|now| now.book.epoch.is_none() && now.counter.is_none()) {
                state.wiped.insert(item.clone());
            } else {
                state.wiped.remove(item);
            }
        }
        // A wiped item may be back.
        let empty = |item: &Item| {
            kept.shelves.get(item).is_none_or(|now| now.book.epoch.is_none() && now.counter.is_none())
        };
        state.wiped.retain(empty);
        match loss {
            Loss::Restart => state.restart(kept),
            Loss::Failback => state.fail_back(kept),
            Loss::Unseen => state.replace(kept),
        }
        drop(state);
        self.sim.log(|state| {
            let shelves: Vec<String> = state
                .redis
                .clone()
                .shelves
                .iter()
                .map(|(item, shelf)| {
                    let epoch = shelf.book.epoch.map(|epoch| state.name(epoch));
                    format!("{item}: {:?} {epoch:?} serial {}", shelf.counter, shelf.book.serial)
                })
                .collect();
            format!("redis: {what}: {}", shelves.join("; "))
        });
    }

    /// Cuts the replica off, and promotes it when the old master has refused for `later`; nodes find it one
    /// by one.
    async fn fail_over(&self, later: Duration) {
        let kept = {
            let mut state = self.sim.state();
            state.cut_off = Some(Instant::now());
            state.redis.clone()
        };
        self.sim.log(|_| "redis: the replica hears nothing".into());
        sleep(MAX_LAG + later).await;
        let old = self.sim.state().redis.clone();
        self.roll_back(kept, Loss::Restart, "failed over");
        let names: Vec<String> = self.nodes().iter().map(|process| process.node.name.clone()).collect();
        {
            let mut state = self.sim.state();
            state.old = Some(old);
            for name in names {
                let until = Instant::now() + state.ms(0, 6000);
                state.loyal.insert(name, until);
            }
        }
        sleep(Duration::from_secs(6)).await;
        let mut state = self.sim.state();
        (state.old, state.cut_off) = (None, None);
    }

    fn by_hand(&self, item: &Item, what: u64, count: i64) {
        *self.by_hand.lock().expect("not poisoned") = true;
        let mut state = self.sim.state();
        let said = match what {
            0..=2 => {
                state.by_hand(item, |_| Some(count));
                format!("SET {item} {count}")
            }
            3..=5 => {
                state.by_hand(item, |counter| Some(counter.unwrap_or(0) + count));
                format!("INCRBY {item} {count}")
            }
            6..=7 => {
                state.by_hand(item, |counter| Some(counter.unwrap_or(0) - count));
                format!("DECRBY {item} {count}")
            }
            _ => {
                state.by_hand(item, |_| None);
                format!("DEL {item}")
            }
        };
        // Setting a counter after a wipe begins a new sale.
        if state.redis.shelf(item).counter.is_some() {
            state.wiped.remove(item);
        }
        drop(state);
        self.sim.log(|_| format!("operator: {said}"));
    }

    /// As `seckill seed` does it.
    async fn new_sale(&self, item: &Item, units: u64) {
        let node = Node::new(&self.sim, "seed");
        let done = world(&node).begin_sale(item, units).await;
        if let Ok(epoch) = done {
            self.sim.state().wiped.remove(item);
            self.begun.lock().expect("not poisoned").insert((item.clone(), epoch));
        }
        self.sim.log(|state| {
            let done = done.map(|epoch| state.name(epoch));
            format!("operator: seed {item} {units}: {done:?}")
        });
    }

    /// As `seckill restore --yes` does it, killed after `dies` if it takes longer.
    async fn restore(&self, item: &Item, dies: Duration) -> Option<Restoration> {
        let node = Node::new(&self.sim, "restore");
        let world = world(&node);
        self.sim.log(|_| format!("operator: restore {item}"));
        let done = tokio::time::timeout(dies, restore(&world, item, Wish::default(), true)).await;
        node.kill();
        self.sim.log(|_| format!("operator: restore {item}: {done:?}"));
        done.ok()?.ok()
    }

    async fn heal(self: &Arc<Self>, items: &[Item]) -> Vec<String> {
        {
            let mut state = self.sim.state();
            // A slow ledger stays slow.
            let ledger_takes = state.faults.ledger_takes;
            seckill::clock::jump(0);
            state.faults = Faults { ledger_takes, ..Faults::default() };
            state.journal_down_until = None;
            state.refusing_until = None;
        }
        self.sim.log(|_| "everything heals".into());
        if self.sim.state().broken {
            let wrong = self.mend_the_log().await;
            self.fatal.lock().expect("not poisoned").retain(|why| !why.contains(FOREIGN));
            return wrong;
        }
        if self.consumers.lock().expect("not poisoned").is_empty() {
            self.start_consumer("consumer last");
        }
        if let Some(why) = self.rest(items).await {
            return vec![why];
        }
        if self.rewound.lock().expect("not poisoned").is_some() {
            // By now all nodes know what the ledger knows.
            sleep(WATCHED_WITHIN).await;
            if let Some(why) = self.rest(items).await {
                return vec![why];
            }
        }
        // Every buyer with a key retries once more.
        let asked: BTreeMap<(Item, u64), ()> = self
            .told
            .lock()
            .expect("not poisoned")
            .iter()
            .filter_map(|told| Some(((told.item.clone(), told.key?), ())))
            .collect();
        for (item, key) in asked.keys() {
            self.buy(usize::from(*key % 2 == 0), item, Some(*key), Duration::from_secs(60), true).await;
        }
        if let Some(why) = self.rest(items).await {
            return vec![why];
        }
        // Some latecomers: by now all nodes know what the ledger knows.
        for item in items {
            for key in [None, Some(100), Some(101)] {
                self.buy(key.is_some().into(), item, key, Duration::from_secs(60), true).await;
            }
        }
        if let Some(why) = self.rest(items).await {
            return vec![why];
        }
        // Waiting takes time here too, so not in every run.
        let asks = self.sim.state().chance.in_thousand(250);
        let orders: Vec<Uuid> =
            self.told.lock().expect("not poisoned").iter().filter_map(|told| told.order).collect();
        if asks && !orders.is_empty() {
            sleep(ORDER_AGE).await;
        }
        for order in orders.into_iter().filter(|_| asks) {
            let found = self.look_up(0, order).await;
            let recorded = self.sim.state().books.rows.contains_key(&order);
            let aside = self.sim.state().books.conflicts.values().any(|(sale, _)| sale.order == order);
            if !aside && recorded != (found == Some(OrderStatus::Recorded)) {
                return vec![format!("an order is said to be {found:?}, recorded: {recorded}")];
            }
        }
        let mut wrong = check::check(self, items);
        let audit = audit::audit(&world(&Node::new(&self.sim, "audit")), None).await;
        wrong.extend(check::audited(self, &audit, wrong.is_empty()));
        wrong
    }

    /// A log lost unrecorded messages for good: every part must report it. An operator skips them, and
    /// recording continues.
    async fn mend_the_log(self: &Arc<Self>) -> Vec<String> {
        let stopped = || self.fatal.lock().expect("not poisoned").iter().any(|why| why.contains(FOREIGN));
        // A consumer reads its place in the log now, if none has yet.
        self.start_consumer("consumer mending");
        let until = Instant::now() + WATCHED_WITHIN * 10;
        let mut heard = stopped();
        while !heard && Instant::now() < until {
            sleep(Duration::from_millis(500)).await;
            heard = stopped();
        }
        let contradicted = || {
            let state = self.sim.state();
            let next = |p: usize| state.books.checkpoints.get(&(p as i32)).map_or(0, |known| known.next);
            state.log.iter().enumerate().any(|(p, log)| next(p) > log.end() || next(p) < log.start)
        };
        if self.sim.state().skipped_in_silence() || (!heard && contradicted()) {
            return vec!["a log that lost its head was read on in silence".into()];
        }
        sleep(ORDER_AGE).await;
        if !contradicted() {
            // A recreated log has grown as long as the old one: its messages reveal it, not its length.
            return Vec::new();
        }
        let told: Vec<Uuid> = self.told.lock().expect("not poisoned").iter().filter_map(told_of).collect();
        for order in told {
            let recorded = self.sim.state().books.rows.contains_key(&order);
            if !recorded && self.look_up(0, order).await == Some(OrderStatus::Unknown) {
                return vec!["a told order is denied, though nobody can say".into()];
            }
        }
        let node = Node::new(&self.sim, "skip");
        let world = world(&node);
        let extents = world.journal.extents().await.unwrap_or_default();
        let skipped = consumer::recording::skip::skip(&*world.ledger, TOPIC, &extents, None, true).await;
        self.sim.log(|_| format!("operator: skip: {skipped:?}"));
        let state = self.sim.state();
        let next = |p: usize| state.books.checkpoints.get(&(p as i32)).map_or(0, |known| known.next);
        let gone = (0..).zip(&state.log).any(|(p, log)| next(p) < log.start);
        if gone { vec!["what is gone stands in the way after it was given up".into()] } else { Vec::new() }
    }

    /// Waits until nothing is in flight, as an operator would who restores what is shut.
    async fn rest(self: &Arc<Self>, items: &[Item]) -> Option<String> {
        let began = Instant::now();
        let mut restored = None;
        loop {
            let (why, help) = self.unrest(items);
            let why = why?;
            if began.elapsed() > REST_WITHIN {
                return Some(format!("no rest: {why}"));
            }
            let patient = restored.unwrap_or(began).elapsed() < RESTORE_AFTER;
            if let Some(item) = help.filter(|_| !patient) {
                restored = Some(Instant::now());
                let done = self.restore(&item, Duration::from_secs(300)).await;
                // A sale begun by SET without recorded rows: nothing can know of it.
                if done == Some(Restoration::Unknown) {
                    self.sim.state().wiped.remove(&item);
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// What is not at rest, and whether it is a sale that waits for `restore`.
    fn unrest(&self, items: &[Item]) -> (Option<String>, Option<Item>) {
        let mut state = self.sim.state();
        for item in items {
            let here = state.redis.life.clone();
            let wiped = state.wiped.contains(item);
            let shelf = state.redis.shelf(item);
            let believed = shelf.book.epoch.is_none() || shelf.book.run.as_ref() == Some(&here);
            if shelf.book.shut.is_some() || !believed {
                return (Some(format!("{item} is shut")), Some(item.clone()));
            }
            if wiped && shelf.counter.is_none() {
                return (Some(format!("{item} was wiped")), Some(item.clone()));
            }
            if !shelf.outbox.is_empty() {
                return (Some(format!("{item}: the outbox is not empty")), None);
            }
        }
        if state.in_air > 0 {
            return (Some("something is in the air".into()), None);
        }
        let behind = state.log.iter().enumerate().any(|(partition, log)| {
            let next = state.books.checkpoints.get(&(partition as i32)).map_or(0, |known| known.next);
            next < log.end()
        });
        (behind.then(|| "the ledger is behind".into()), None)
    }
}
