//! Announces again what was taken and never acknowledged by the journal.
//!
//! The process that took it may have died, or the broker was away. Every node does it, for
//! whatever has stood in the outbox long enough; the ledger drops what arrives twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::item::Item;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::shop::Shop;
use crate::stock::Stock;

/// How often the outboxes are looked through.
const SCAN_EVERY: Duration = Duration::from_secs(1);

/// An entry is left to whoever took it for so long, by this node's monotonic clock from when it
/// first saw the entry: longer than the journal's delivery deadline.
pub const GRACE: Duration = Duration::from_secs(15);

/// Batches announced in one pass: 32 × 512 sales are a few megabytes in the producer's queue.
const ANNOUNCED_AT_ONCE: usize = 32;

/// Looks after the outboxes of all items of a shop.
pub struct Announcer {
    shop: Arc<Shop>,
    stock: Arc<dyn Stock>,
    journal: Arc<dyn Journal>,
    metrics: Metrics,
    first_seen: BTreeMap<(Item, Uuid), Instant>,
    complained: BTreeSet<String>,
}

impl Announcer {
    /// An announcer that has seen nothing yet.
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
            first_seen: BTreeMap::new(),
            complained: BTreeSet::new(),
        }
    }

    /// Passes for ever.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(SCAN_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.shop.discover().await;
            self.pass().await;
        }
    }

    /// Looks through every outbox once and announces what is due.
    pub async fn pass(&mut self) {
        for till in self.shop.tills() {
            let item = till.item().clone();
            // Somebody may have emptied Redis: whoever sells an item sees that it is known there.
            let _ = self.stock.knows(&item).await;
            if till.open_entries() == 0 {
                self.metrics.outbox_sales(item.name(), 0);
                self.first_seen.retain(|(of, _), _| *of != item);
                continue;
            }
            // The till says so when the stock is away.
            let Ok(outbox) = self.stock.outbox(&item).await else { continue };
            self.metrics.outbox_sales(item.name(), outbox.sales());
            for entry in outbox.unreadable {
                if self.complained.insert(entry.clone()) {
                    log::error!("an outbox entry cannot be read and stays where it is: {entry}");
                }
            }
            let stands: BTreeSet<Uuid> = outbox.batches.iter().map(|batch| batch.id).collect();
            self.first_seen.retain(|(of, id), _| *of != item || stands.contains(id));
            let mut announced = 0;
            for batch in outbox.batches {
                let seen = *self.first_seen.entry((item.clone(), batch.id)).or_insert_with(Instant::now);
                let due = seen.elapsed() >= GRACE && self.journal.ready().is_ok() && !till.has(batch.id);
                if due && announced < ANNOUNCED_AT_ONCE {
                    announced += 1;
                    log::info!(
                        "{item}: announcing {} sales of batch {} again",
                        batch.attempts.len(),
                        batch.id
                    );
                    till.announce(batch);
                }
            }
        }
    }
}
