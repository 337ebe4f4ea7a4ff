//! Outbox relay: appends again what was taken but never acknowledged by the journal.
//!
//! The process that took it may have died, or the broker was away. Every node relays whatever has been in the
//! outbox long enough; the ledger drops duplicates.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::journal::{Journal, Receipt};
use crate::metrics::Metrics;
use crate::sale::Item;
use crate::sale::times::GRACE;
use crate::selling::shop::Shop;
use crate::selling::till::Till;
use crate::stock::{ENTRIES_AT_ONCE, EntryName, Stock, StockError};

/// How often the outboxes are scanned.
const SCAN_EVERY: Duration = Duration::from_secs(1);

/// Sales relayed and unacknowledged at a time: a fifth of the producer's queue, which leaves room for current
/// attempts.
const ANNOUNCED_AT_ONCE: usize = 20_000;

/// How long one item is relayed before the next gets its turn.
const TURN: Duration = Duration::from_secs(1);

/// Stock keys scanned for new counters in a pass: 20 ms of Redis' time.
const SEARCHED_AT_ONCE: usize = 20_000;

/// Relays the outboxes of all items of a shop.
pub struct Announcer {
    shop: Arc<Shop>,
    stock: Arc<dyn Stock>,
    journal: Arc<dyn Journal>,
    metrics: Metrics,
    seen: BTreeMap<Item, BTreeMap<EntryName, Seen>>,
    complained: BTreeSet<String>,
    /// Every node takes the entries in its own order, which spreads the work: an entry that one node has
    /// relayed is settled when another reaches it.
    order: RandomState,
}

/// A known entry: read when it is new, and again to be relayed.
struct Seen {
    since: Instant,
    sales: u64,
}

impl Announcer {
    /// A relay that has seen nothing yet.
    pub fn new(
        shop: &Arc<Shop>,
        stock: &Arc<dyn Stock>,
        journal: &Arc<dyn Journal>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            shop: Arc::clone(shop),
            stock: Arc::clone(stock),
            journal: Arc::clone(journal),
            metrics: metrics.clone(),
            seen: BTreeMap::new(),
            complained: BTreeSet::new(),
            order: RandomState::new(),
        }
    }

    /// Runs passes forever.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(SCAN_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // `status` reports keys that are no item.
            let _ = self.stock.discover(Some(SEARCHED_AT_ONCE)).await;
            self.shop.discover().await;
            self.pass().await;
        }
    }

    /// Scans every outbox once and relays what is due.
    pub async fn pass(&mut self) {
        let mut complaints = BTreeSet::new();
        for till in self.shop.tills() {
            // Redis may have been emptied: keeps items on sale registered there.
            let _ = self.stock.knows(till.item()).await;
            if till.open_entries() == 0 {
                self.seen.remove(till.item());
                self.metrics.outbox_sales(till.item().name(), 0);
                continue;
            }
            // The till reports an unavailable stock.
            let Ok(due) = self.look(&till, &mut complaints).await else { continue };
            // Entries of a shut sale belong to its recovery.
            if !till.is_shut() {
                let _ = self.announce(&till, due).await;
            }
        }
        for entry in complaints.difference(&self.complained) {
            log::error!("an outbox entry cannot be read and stays where it is: {entry}");
        }
        self.complained = complaints;
    }

    /// Reads an item's new outbox entries; returns what is due.
    async fn look(
        &mut self,
        till: &Till,
        complaints: &mut BTreeSet<String>,
    ) -> Result<Vec<EntryName>, StockError> {
        let item = till.item();
        let names: BTreeSet<EntryName> = self.stock.outbox(item).await?.into_iter().collect();
        let seen = self.seen.entry(item.clone()).or_default();
        seen.retain(|name, _| names.contains(name));
        let new: Vec<EntryName> = names.iter().filter(|name| !seen.contains_key(*name)).cloned().collect();
        let since = Instant::now();
        for names in new.chunks(ENTRIES_AT_ONCE) {
            let entries = self.stock.entries(item, names).await?;
            for batch in &entries.batches {
                let name = batch.id.to_string().into_bytes();
                seen.insert(name, Seen { since, sales: batch.attempts.len() as u64 });
            }
            // Not remembered, so they are read again.
            complaints.extend(entries.unreadable);
        }
        self.metrics.outbox_sales(item.name(), seen.values().map(|entry| entry.sales).sum());
        let mut due: Vec<EntryName> = seen
            .iter()
            .filter(|(_, entry)| entry.since.elapsed() >= GRACE)
            .map(|(name, _)| name.clone())
            .collect();
        due.sort_by_cached_key(|name| self.order.hash_one(name));
        Ok(due)
    }

    /// Appends entries as fast as the journal acknowledges them, and stops when it does not.
    async fn announce(&self, till: &Arc<Till>, due: Vec<EntryName>) -> Result<(), StockError> {
        let until = Instant::now() + TURN;
        let mut waiting: VecDeque<(Arc<Receipt>, usize)> = VecDeque::new();
        let (mut batches, mut sales, mut announced) = (0, 0, 0);
        for names in due.chunks(ENTRIES_AT_ONCE) {
            if Instant::now() >= until || self.journal.ready().is_err() {
                break;
            }
            // Read late, since another node may have relayed it meanwhile.
            for batch in self.stock.entries(till.item(), names).await?.batches {
                if till.has(batch.id) {
                    continue;
                }
                (batches, announced) = (batches + 1, announced + batch.attempts.len());
                sales += batch.attempts.len();
                let size = batch.attempts.len();
                waiting.push_back((till.announce(batch), size));
            }
            while sales > ANNOUNCED_AT_ONCE
                && let Some((receipt, size)) = waiting.pop_front()
            {
                if timeout_at(until + TURN, receipt.done()).await.is_err() {
                    return Ok(());
                }
                sales -= size;
            }
        }
        if batches > 0 {
            log::info!("{}: announced {batches} batches with {announced} sales again", till.item());
        }
        Ok(())
    }
}
