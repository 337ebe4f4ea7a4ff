//! Micro-batching of one item's attempts: what arrives while a stock call is in flight goes together in the
//! next.
//!
//! There is no timer. The till owns what it takes: a client disconnect changes nothing.

mod books;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use consumer::ledger::Standpoint;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use crate::clock::{elapsed, moment};
use crate::journal::{Delivery, Journal, Receipt};
use crate::metrics::Metrics;
use crate::sale::times::{GIVEN_UP_AFTER, REFRESH_EVERY, TELL_WITHIN, WAIT_WITHIN};
use crate::sale::{Attempt, Batch, Item, Purchase, View, Window, epoch_after};
use crate::selling::gate::{Gate, Level};
use crate::selling::mailbox::{Mailbox, Replies, Waiter};
use crate::stock::{Call, MAX_ATTEMPTS, MAX_SETTLED, Outcome, Reply, Stock, StockError};
use books::{Books, Doubt, Flight};

/// One call in flight batches best; two only make smaller batches. A Redis 20 ms away limits an item to
/// 25,600 attempts a second on a node.
const CALLS_IN_FLIGHT: usize = 1;

/// Attempts that may wait; beyond it, `busy`. At 512 a call they wait for 40 calls.
const MAX_WAITING: usize = 20_480;

/// Back-pressure: beyond this many outbox entries the journal is not keeping up, and nothing more is taken.
const MAX_OPEN: u64 = 20_000;

/// Why nothing is sold while a sale is shut, as `/readyz` and the log say it.
const SHUT: &str = "shut: its books are being checked, or lack something; see the log, and `seckill restore`";

/// One item's till on one node.
pub struct Till {
    item: Item,
    stock: Arc<dyn Stock>,
    journal: Arc<dyn Journal>,
    window: Window,
    metrics: Metrics,
    queue: mpsc::Sender<Waiting>,
    level: ArcSwap<Level>,
    /// Counts replies, to wait for a fresh one.
    replies: watch::Sender<u64>,
    calls: Arc<Semaphore>,
    last_call: AtomicU64,
    closing: watch::Sender<bool>,
    running: Mutex<Option<JoinHandle<()>>>,
    books: Mutex<Books>,
}

struct Waiting {
    since: Instant,
    attempt: Attempt,
    buyer: Waiter,
}

/// What a node itself knows of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In flight to the journal.
    Pending,
    /// In the journal.
    Accepted,
}

impl Till {
    /// Opens the till: it starts to refresh its view and to take attempts.
    pub fn open(
        item: Item,
        stock: &Arc<dyn Stock>,
        journal: &Arc<dyn Journal>,
        window: Window,
        metrics: &Metrics,
        runtime: &Handle,
    ) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let level = Level {
            asked: Instant::now(),
            epoch: None,
            term: 0,
            serial: 0,
            left: None,
            open: 0,
            shut: false,
            trouble: Some("the stock was not asked yet".into()),
        };
        let till = Arc::new(Self {
            item,
            stock: Arc::clone(stock),
            journal: Arc::clone(journal),
            window,
            metrics: metrics.clone(),
            queue,
            level: ArcSwap::from_pointee(level),
            replies: watch::Sender::new(0),
            calls: Arc::new(Semaphore::new(CALLS_IN_FLIGHT)),
            last_call: AtomicU64::new(0),
            closing: watch::Sender::new(false),
            running: Mutex::default(),
            books: Mutex::default(),
        });
        // Not on a request's thread, which ends before what it took is acknowledged.
        let running = runtime.spawn(Arc::clone(&till).run(waiting));
        *till.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        till
    }

    /// The item it sells.
    pub fn item(&self) -> &Item {
        &self.item
    }

    /// Answers an anonymous attempt without a stock call.
    pub fn gate(&self) -> Gate {
        self.level.load().gate(self.window, self.journal.ready().is_ok())
    }

    /// What the page shows.
    pub fn view(&self) -> View {
        self.level.load().view(self.window, self.journal.ready().is_ok())
    }

    /// Whether the sale is shut by the stock's last reply, or this node distrusts it.
    pub fn is_shut(&self) -> bool {
        self.level.load().shut
    }

    /// Why this node distrusts the stock about the sale, if so.
    pub fn doubt(&self) -> Option<Arc<str>> {
        self.books().doubt.as_ref().map(|doubt| Arc::clone(&doubt.why))
    }

    /// The sale's progress, by the stock's last reply.
    pub fn sale(&self) -> Option<Standpoint> {
        let level = self.level.load();
        let item = self.item.name().to_owned();
        level.epoch.map(|epoch| Standpoint { item, epoch, term: level.term, serial: level.serial })
    }

    /// The same, from a call made after this; `None` unless the sale is usable then.
    pub async fn said_since(&self, asked: Instant) -> Option<Standpoint> {
        let mut replies = self.replies.subscribe();
        while self.level.load().asked <= asked {
            replies.changed().await.ok()?;
        }
        self.sale().filter(|_| self.level.load().doubt().is_none())
    }

    /// Distrusts the stock about this sale in this term, until its books are reconciled with the ledger.
    pub fn distrust(&self, sale: &Standpoint, why: &str) {
        let level = self.level.load();
        if (level.epoch, level.term) == (Some(sale.epoch), sale.term) {
            let doubt = Doubt { why: why.into(), epoch: sale.epoch, term: sale.term };
            self.books().doubt.get_or_insert(doubt);
        }
    }

    /// Trusts the stock again: the doubt was resolved elsewhere.
    pub fn trust(&self) {
        self.books().doubt = None;
    }

    /// Sets the newest sale in the ledger: a sale begun by a counter set by hand gets a later epoch, whatever
    /// the clock says.
    pub fn knows_newest(&self, newest: Uuid) {
        self.books().newest = Some(newest);
    }

    /// Entries in the outbox, by the last reply.
    pub fn open_entries(&self) -> u64 {
        self.level.load().open
    }

    /// Whether the stock answers for this item.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), String> {
        self.level.load().doubt().map_or(Ok(()), |doubt| Err(format!("{}: {doubt}", self.item)))
    }

    /// Whether the stock has replied at least once, successfully or not.
    pub fn is_refreshed(&self) -> bool {
        *self.replies.borrow() > 0
    }

    /// Waits until it has.
    pub async fn refreshed(&self) {
        // Fails only when the till is dropped.
        let _ = self.replies.subscribe().wait_for(|replies| *replies > 0).await;
    }

    /// Queues an attempt and waits at the mailbox for its answer.
    pub async fn attempt(&self, mailbox: &Mailbox, attempt: Attempt) -> Purchase {
        let order = attempt.order;
        let (buyer, answered) = mailbox.wait();
        match self.queue.try_send(Waiting { since: Instant::now(), attempt, buyer }) {
            Ok(()) => answered.await.unwrap_or(Purchase::Pending { order, epoch: None }),
            Err(mpsc::error::TrySendError::Full(_)) => Purchase::Busy,
            Err(mpsc::error::TrySendError::Closed(_)) => Purchase::Unavailable,
        }
    }

    /// What this node itself knows of `order`.
    pub fn standing(&self, order: Uuid) -> Option<Standing> {
        let books = self.books();
        for flight in books.flights.values() {
            if let Some(index) = flight.batch.position(order) {
                return match flight.receipt.of(index) {
                    Delivery::Acknowledged => flight.in_time().then_some(Standing::Accepted),
                    Delivery::Waiting | Delivery::Unknown => Some(Standing::Pending),
                };
            }
        }
        let remembered = books.remembered.iter().any(|batch| batch.position(order).is_some());
        remembered.then_some(Standing::Accepted)
    }

    /// Appends a batch of the outbox again, unless it is in flight.
    pub fn announce(self: &Arc<Self>, batch: Batch) -> Arc<Receipt> {
        Arc::clone(&self.launch(Arc::new(batch), None).receipt)
    }

    /// Whether this batch is in flight to the journal, or there already.
    pub fn has(&self, batch: Uuid) -> bool {
        self.books().flights.contains_key(&batch)
    }

    /// Stops accepting attempts; returns when those in flight are answered, what they took is acknowledged or
    /// given up, and the stock has settled it.
    pub async fn close(self: &Arc<Self>) {
        self.closing.send_replace(true);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            let _ = running.await;
        }
        // Holding all permits means no call is in flight.
        let Ok(_all) = self.calls.acquire_many(CALLS_IN_FLIGHT as u32).await else { return };
        let flights: Vec<_> = self.books().flights.values().cloned().collect();
        for flight in flights {
            flight.receipt.done().await;
            self.land(&flight);
        }
        while !self.books().settled.is_empty() {
            if self.ask(Vec::new()).await.is_err() {
                return;
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Batches waiting attempts while the till is open.
    async fn run(self: Arc<Self>, mut queue: mpsc::Receiver<Waiting>) {
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut closing = self.closing.subscribe();
        loop {
            let Ok(permit) = Arc::clone(&self.calls).acquire_owned().await else { return };
            let mut waiting = Vec::new();
            tokio::select! {
                biased;
                Ok(()) = closing.changed() => {
                    // Drain what is queued, then stop.
                    queue.close();
                    continue;
                }
                received = queue.recv_many(&mut waiting, MAX_ATTEMPTS) => if received == 0 { return },
                _ = refresh.tick() => {}
            }
            tokio::spawn(Arc::clone(&self).call(waiting, permit));
        }
    }

    /// One call: take, append, answer.
    async fn call(self: Arc<Self>, waiting: Vec<Waiting>, permit: OwnedSemaphorePermit) {
        let asked = Instant::now();
        let mut answers = Replies::default();
        let (mut attempts, mut buyers) =
            (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
        for Waiting { since, attempt, buyer } in waiting {
            if asked - since <= WAIT_WITHIN {
                buyers.push((buyer, attempt.order));
                attempts.push(attempt);
            } else {
                answers.add(buyer, Purchase::Busy);
            }
        }
        if !attempts.is_empty() {
            self.metrics.take_batch_attempts.observe(attempts.len() as f64);
        }
        drop(answers);
        let reply = match self.ask(attempts).await {
            Ok((reply, taking)) => (reply, taking),
            Err(error) => {
                drop(permit);
                let mut answers = Replies::default();
                for (buyer, order) in buyers {
                    let told = match error {
                        StockError::Refused(_) => Purchase::Unavailable,
                        StockError::Silent(_) => Purchase::Pending { order, epoch: None },
                    };
                    answers.add(buyer, told);
                }
                return;
            }
        };
        let (Reply { epoch, left, taken, outcomes, standing, .. }, not_taken) = reply;
        // Sold out wins over an unavailable journal.
        let not_taken = match (left, not_taken) {
            (Some(0), Purchase::Unavailable) => Purchase::SoldOut,
            (_, not_taken) => not_taken,
        };
        let flight = taken.map(|batch| self.launch(Arc::new(batch), Some(asked)));
        let flights: BTreeMap<Uuid, Arc<Flight>> =
            standing.into_iter().map(|batch| (batch.id, self.launch(Arc::new(batch), None))).collect();
        // The next call may start: the rest concerns only the journal and these answers.
        drop(permit);

        let (mut answers, mut later) = (Replies::default(), Vec::new());
        for ((buyer, order), outcome) in buyers.into_iter().zip(outcomes) {
            let told = match outcome {
                Outcome::Taken(index) => match &flight {
                    Some(flight) => {
                        later.push((buyer, Arc::clone(flight), index));
                        continue;
                    }
                    None => Purchase::Pending { order, epoch },
                },
                Outcome::Known(known) if known.open => match known.place(&flights) {
                    Some((flight, index)) => {
                        later.push((buyer, flight, index));
                        continue;
                    }
                    None => Purchase::Pending { order: known.order, epoch },
                },
                Outcome::Known(known) => match epoch {
                    Some(epoch) => Purchase::Bought { order: known.order, left: known.remaining, epoch },
                    None => Purchase::Pending { order: known.order, epoch },
                },
                Outcome::SoldOut => Purchase::SoldOut,
                Outcome::NotOnSale => Purchase::NotOnSale,
                Outcome::NotTaken => not_taken,
                Outcome::Unreadable | Outcome::Shut => Purchase::Unavailable,
            };
            answers.add(buyer, tell(asked, told));
        }
        drop(answers);
        let deadline = asked + TELL_WITHIN;
        let mut answers = Replies::default();
        for (buyer, flight, index) in later {
            if !flight.receipt.is_done() {
                // Deliver the finished answers before waiting for the others.
                answers = Replies::default();
                let _ = timeout_at(deadline, flight.receipt.done()).await;
            }
            answers.add(buyer, tell(asked, flight.told(index)));
        }
    }

    /// Calls the stock and publishes its reply as the level. Also returns the answer for attempts not served
    /// because taking was off.
    async fn ask(&self, attempts: Vec<Attempt>) -> Result<(Reply, Purchase), StockError> {
        let number = self.last_call.fetch_add(1, Ordering::Relaxed) + 1;
        let level = self.level.load();
        let (settled, newest, doubted) = {
            let books = self.books();
            let settled: Vec<Uuid> = books.settled.iter().copied().take(MAX_SETTLED).collect();
            (settled, books.newest.max(books.mark.newest()), books.doubt.is_some())
        };
        let not_taken = if self.window.after_closing() {
            Some(Purchase::Closed)
        } else if self.window.before_opening() {
            Some(Purchase::NotOpen)
        } else if doubted || self.journal.ready().is_err() || level.open >= MAX_OPEN {
            Some(Purchase::Unavailable)
        } else {
            None
        };
        let call = Call {
            id: Uuid::now_v7(),
            offer: epoch_after(newest),
            at: moment(),
            taking: not_taken.is_none(),
            attempts,
            settled,
        };
        let asked = Instant::now();
        let mut answer = self.stock.take(&self.item, &call).await;
        let mut books = self.books();
        if answer.is_ok() {
            books.forget(&call.settled);
        }
        let shown = match &mut answer {
            Ok(reply) => {
                let why = if reply.shut { Some(SHUT.into()) } else { books.judge(reply) };
                Level {
                    asked,
                    epoch: reply.epoch,
                    term: reply.term,
                    serial: reply.serial,
                    left: reply.left,
                    open: reply.open,
                    shut: why.is_some(),
                    trouble: why,
                }
            }
            Err(error) => {
                Level { asked, shut: false, trouble: Some(error.to_string().into()), ..(**level).clone() }
            }
        };
        // Replies may arrive out of order; the later call wins.
        if number > books.shown {
            books.shown = number;
            self.show(shown);
        }
        drop(books);
        self.replies.send_modify(|replies| *replies += 1);
        answer.map(|reply| (reply, not_taken.unwrap_or(Purchase::Unavailable)))
    }

    fn show(&self, level: Level) {
        let before = self.level.load();
        match (&before.trouble, &level.trouble) {
            (None, Some(trouble)) => log::warn!("{}: the stock cannot be used: {trouble}", self.item),
            (Some(before), Some(trouble)) if before != trouble => log::warn!("{}: {trouble}", self.item),
            (Some(_), None) => log::info!("{}: the stock answers", self.item),
            _ => {}
        }
        if level.trouble.is_none() {
            self.metrics.stock_left(self.item.name(), level.left);
        }
        self.level.store(Arc::new(level));
    }

    /// Appends a batch to the journal, or finds its append in flight.
    fn launch(self: &Arc<Self>, batch: Arc<Batch>, asked: Option<Instant>) -> Arc<Flight> {
        let mut books = self.books();
        if let Some(flight) = books.flights.get(&batch.id) {
            return Arc::clone(flight);
        }
        let receipt = self.journal.append(&batch);
        let flight = Arc::new(Flight { batch, receipt, asked, in_time: AtomicBool::new(false) });
        books.flights.insert(flight.batch.id, Arc::clone(&flight));
        drop(books);
        let (till, flown) = (Arc::clone(self), Arc::clone(&flight));
        tokio::spawn(async move {
            // Bounded: a delivery report may be lost with its producer.
            let _ = timeout(GIVEN_UP_AFTER, flown.receipt.done()).await;
            till.land(&flown);
        });
        flight
    }

    /// The journal is done with this batch.
    fn land(&self, flight: &Flight) {
        // Before the batch can be seen as settled.
        flight.in_time.store(flight.in_time(), Ordering::Release);
        let mut books = self.books();
        let id = flight.batch.id;
        if !flight.receipt.complete() {
            // Still in the outbox: the relay appends it again.
            books.flights.remove(&id);
        } else if books.flights.contains_key(&id) && !books.settled.contains(&id) {
            books.settled.push(id);
        }
    }
}

/// Downgrades a success that comes too late to pending.
fn tell(asked: Instant, told: Purchase) -> Purchase {
    match told {
        Purchase::Bought { order, epoch, .. } if elapsed(asked) > TELL_WITHIN => {
            Purchase::Pending { order, epoch: Some(epoch) }
        }
        told => told,
    }
}
