//! The sale's rule: the one place that decides what a client is told.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use consumer::ledger::Ledger;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use crate::journal::Journal;
use crate::journal::progress::{Trouble, recorded_all};
use crate::metrics::Metrics;
use crate::sale::{Attempt, Item, OrderStatus, Purchase, State, View, Window};
use crate::selling::gate::Gate;
use crate::selling::ids::{Ids, is_young};
use crate::selling::mailbox::Mailbox;
use crate::selling::till::{Standing, Till};
use crate::stock::{Stock, StockError, Walk};

/// Concurrent stock lookups of unknown items, and of old orders: what callers make up costs no more than
/// this, and leaves nothing behind.
const LOOKUPS_AT_ONCE: usize = 8;

/// How long a lookup waits for its turn.
const LOOKUP_WITHIN: Duration = Duration::from_secs(1);

/// Concurrent order lookups, including those after a client disconnect: a database that does not answer holds
/// each for 24 s.
const ORDERS_AT_ONCE: usize = 256;

/// An order query answers `pending` after this if its lookup has no result.
const ORDER_WITHIN: Duration = Duration::from_secs(3);

/// One shop on one node: all items, each with its till.
pub struct Shop {
    stock: Arc<dyn Stock>,
    journal: Arc<dyn Journal>,
    ledger: Arc<dyn Ledger>,
    metrics: Metrics,
    window: Window,
    counter: Arc<Till>,
    others: RwLock<BTreeMap<Item, Arc<Till>>>,
    /// Limits for unknown items and for old orders.
    lookups: Arc<Semaphore>,
    orders: Arc<Semaphore>,
    old_orders: Semaphore,
    ids: Ids,
    /// The runtime that outlives requests: it owns tills and connections.
    runtime: Handle,
}

impl Shop {
    /// Opens the shop; the default item's till starts to refresh its view at once.
    pub fn open(
        stock: Arc<dyn Stock>,
        journal: Arc<dyn Journal>,
        ledger: Arc<dyn Ledger>,
        window: Window,
        metrics: Metrics,
    ) -> Arc<Self> {
        let runtime = Handle::current();
        let counter = Till::open(Item::default(), &stock, &journal, window, &metrics, &runtime);
        Arc::new(Self {
            stock,
            journal,
            ledger,
            metrics,
            window,
            counter,
            others: RwLock::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
            orders: Arc::new(Semaphore::new(ORDERS_AT_ONCE)),
            old_orders: Semaphore::new(LOOKUPS_AT_ONCE),
            ids: Ids::default(),
            runtime,
        })
    }

    /// How order ids are made.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// One attempt to buy one unit; the answer goes to `mailbox`. Idempotent by `key`.
    pub async fn buy(&self, mailbox: &Mailbox, item: &Item, key: Option<&str>) -> Purchase {
        // A winner's retry must get its order whatever window and gate say.
        if key.is_none() && self.window.before_opening() {
            return Purchase::NotOpen;
        }
        let till = match self.till(item).await {
            Ok(till) => till,
            Err(refusal) => return refusal,
        };
        if key.is_none()
            && let Gate::Shut(refusal) = till.gate()
        {
            return refusal;
        }
        let attempt = Attempt { order: self.ids.make(), name: key.map(|key| format!("k:{key}")) };
        till.attempt(mailbox, attempt).await
    }

    /// The item's till, if it exists and has heard from the stock: using it never blocks.
    pub fn at_hand(&self, item: &Item) -> Option<Arc<Till>> {
        let till = if item.is_default() { Arc::clone(&self.counter) } else { self.known(item)? };
        till.is_refreshed().then_some(till)
    }

    /// What the page shows, from the node's view: for an item on sale never a stock call per request.
    pub async fn view(&self, item: &Item) -> View {
        match self.till(item).await {
            Ok(till) => till.view(),
            Err(Purchase::NotOnSale) => View { state: State::NotOnSale, left: 0, total: None, epoch: None },
            Err(_) => View { state: State::Unavailable, left: 0, total: None, epoch: None },
        }
    }

    /// The status of `order`.
    ///
    /// A sale moves from outbox to journal to ledger; a lookup in that order never misses it.
    pub async fn order(self: &Arc<Self>, order: Uuid) -> OrderStatus {
        if self.ids.is_made_up(order) {
            return OrderStatus::Unknown;
        }
        let Ok(Ok(permit)) = timeout(LOOKUP_WITHIN, Arc::clone(&self.orders).acquire_owned()).await else {
            return OrderStatus::Pending;
        };
        let shop = Arc::clone(self);
        let looked = self.runtime.spawn(async move {
            // Held until the lookup ends, even after a client disconnect.
            let _permit = permit;
            shop.look_up(order).await
        });
        match timeout(ORDER_WITHIN, looked).await {
            Ok(Ok(status)) => status,
            Ok(Err(_)) | Err(_) => OrderStatus::Pending,
        }
    }

    async fn look_up(&self, order: Uuid) -> OrderStatus {
        let here = self.tills().iter().find_map(|till| till.standing(order));
        if here == Some(Standing::Pending) {
            return OrderStatus::Pending;
        }
        let unsure = if here.is_some() { OrderStatus::Accepted } else { OrderStatus::Pending };
        match self.ledger.find(order).await {
            Ok(Some(_)) => return OrderStatus::Recorded,
            Ok(None) if here.is_none() => {}
            Ok(None) | Err(_) => return unsure,
        }
        if is_young(order) {
            return OrderStatus::Pending;
        }
        let Ok(Ok(_permit)) = timeout(LOOKUP_WITHIN, self.old_orders.acquire()).await else { return unsure };
        let Ok(items) = self.stock.items().await else { return OrderStatus::Pending };
        for item in items {
            match self.in_outbox(&item, order).await {
                Ok(false) => {}
                Ok(true) | Err(_) => return OrderStatus::Pending,
            }
        }
        match recorded_all(&*self.journal, &*self.ledger).await {
            Ok(true) => {}
            Ok(false) | Err(Trouble::Passing(_)) => return OrderStatus::Pending,
            Err(Trouble::Contradiction(_)) => return OrderStatus::Undecided,
        }
        match (self.ledger.find(order).await, self.ledger.in_conflict(order).await) {
            (Ok(Some(_)), _) => OrderStatus::Recorded,
            // In conflict with another recorded sale: an operator decides.
            (Ok(None), Ok(true)) => OrderStatus::Accepted,
            (Ok(None), Ok(false)) => OrderStatus::Unknown,
            _ => OrderStatus::Pending,
        }
    }

    /// Whether an order is in an item's outbox, or may be: an unreadable entry may hold it.
    async fn in_outbox(&self, item: &Item, order: Uuid) -> Result<bool, StockError> {
        let mut outbox = Walk::through(&*self.stock, item).await?;
        while let Some(entries) = outbox.next().await? {
            let there = entries.batches.iter().any(|batch| batch.position(order).is_some());
            if there || !entries.unreadable.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All tills.
    pub fn tills(&self) -> Vec<Arc<Till>> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(&self.counter).chain(others.values()).cloned().collect()
    }

    /// Whether this node could sell if the sale were open.
    ///
    /// # Errors
    /// The reason why not.
    pub fn ready(&self) -> Result<(), String> {
        self.journal.ready()?;
        // A counter corrupted by hand makes its item unready, not the node.
        let mut tills = self.tills().into_iter();
        let first = tills.next().map_or(Ok(()), |till| till.ready());
        first.or_else(|why| if tills.any(|till| till.ready().is_ok()) { Ok(()) } else { Err(why) })
    }

    /// Opens tills for items put on sale elsewhere, so that their outboxes are relayed even if no client asks
    /// here.
    pub async fn discover(&self) {
        for item in self.stock.items().await.unwrap_or_default() {
            if !item.is_default() && self.known(&item).is_none() {
                self.open_till(item).await;
            }
        }
    }

    /// Stops accepting attempts; waits until those in flight are answered and what they took is acknowledged
    /// or given up.
    pub async fn close(&self, within: Duration) {
        let mut closing = tokio::task::JoinSet::new();
        for till in self.tills() {
            closing.spawn(async move { till.close().await });
        }
        if timeout(within, closing.join_all()).await.is_err() {
            log::warn!("closed with sales not acknowledged; the outbox keeps them");
        }
    }

    fn known(&self, item: &Item) -> Option<Arc<Till>> {
        self.others.read().unwrap_or_else(PoisonError::into_inner).get(item).cloned()
    }

    async fn till(&self, item: &Item) -> Result<Arc<Till>, Purchase> {
        if item.is_default() {
            return Ok(Arc::clone(&self.counter));
        }
        // Bounded, so the attempt keeps its own time; a finished lookup serves the next attempt.
        timeout(LOOKUP_WITHIN, self.look_up_till(item)).await.unwrap_or(Err(Purchase::Unavailable))
    }

    async fn look_up_till(&self, item: &Item) -> Result<Arc<Till>, Purchase> {
        if let Some(till) = self.known(item) {
            till.refreshed().await;
            return Ok(till);
        }
        let Ok(Ok(permit)) = timeout(LOOKUP_WITHIN, Arc::clone(&self.lookups).acquire_owned()).await else {
            return Err(Purchase::Busy);
        };
        let (stock, asked) = (Arc::clone(&self.stock), item.clone());
        let known = self.runtime.spawn(async move {
            let _permit = permit;
            stock.knows(&asked).await
        });
        match known.await {
            Ok(Ok(true)) => Ok(self.open_till(item.clone()).await),
            Ok(Ok(false)) => Err(Purchase::NotOnSale),
            Ok(Err(_)) | Err(_) => Err(Purchase::Unavailable),
        }
    }

    async fn open_till(&self, item: Item) -> Arc<Till> {
        let till = {
            let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
            let till = others.entry(item.clone()).or_insert_with(|| {
                Till::open(item, &self.stock, &self.journal, self.window, &self.metrics, &self.runtime)
            });
            Arc::clone(till)
        };
        till.refreshed().await;
        till
    }
}
