//! The durable log of sales: the trait that every journal implements, and a batch's receipt.

pub mod kafka;
pub mod progress;
pub mod sqlite;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use consumer::progress::Extents;
use tokio::sync::Notify;

use crate::sale::Batch;

/// An append-only log of sales.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Starts to append every sale of the batch; the receipt fills as they are acknowledged.
    ///
    /// An unacknowledged sale may be in the log all the same, or appear later. Appending a sale again is
    /// idempotent: the ledger keeps one.
    fn append(&self, batch: &Batch) -> Arc<Receipt>;

    /// Readiness: whether sales can be appended now; if not, why.
    ///
    /// # Errors
    /// The reason, for `/readyz`.
    fn ready(&self) -> Result<(), String>;

    /// Why the last sales failed, if none has been acknowledged since.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// The topic's name in checkpoints.
    fn topic(&self) -> &str;

    /// The log's extent in every partition.
    ///
    /// # Errors
    /// Why it could not be read.
    async fn extents(&self) -> Result<Extents, String>;

    /// Waits until everything appended is acknowledged or given up.
    async fn flush(&self, within: Duration);
}

/// Delivery state of a batch. Updated from any thread, awaited by many.
#[derive(Debug)]
pub struct Receipt {
    states: Box<[AtomicU8]>,
    waiting: AtomicUsize,
    done: Notify,
}

/// Delivery state of one sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing yet.
    Waiting,
    /// Durably in the log.
    Acknowledged,
    /// Given up; it may be in the log all the same.
    Unknown,
}

impl Receipt {
    /// A receipt for `sales` sales, none of them acknowledged.
    #[must_use]
    pub fn new(sales: usize) -> Arc<Self> {
        Arc::new(Self {
            states: (0..sales).map(|_| AtomicU8::new(Delivery::Waiting as u8)).collect(),
            waiting: AtomicUsize::new(sales),
            done: Notify::new(),
        })
    }

    /// A receipt for `sales` sales that are in the log already.
    #[must_use]
    pub fn acknowledged(sales: usize) -> Arc<Self> {
        let receipt = Self::new(sales);
        (0..sales).for_each(|index| receipt.note(index, Delivery::Acknowledged));
        receipt
    }

    /// Records the outcome of the sale at `index`; once for each.
    pub fn note(&self, index: usize, delivery: Delivery) {
        self.states[index].store(delivery as u8, Ordering::Release);
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_waiters();
        }
    }

    /// The delivery state of the sale at `index`.
    #[must_use]
    pub fn of(&self, index: usize) -> Delivery {
        match self.states.get(index).map(|state| state.load(Ordering::Acquire)) {
            Some(state) if state == Delivery::Acknowledged as u8 => Delivery::Acknowledged,
            Some(state) if state == Delivery::Waiting as u8 => Delivery::Waiting,
            _ => Delivery::Unknown,
        }
    }

    /// Whether all of it was acknowledged.
    #[must_use]
    pub fn complete(&self) -> bool {
        (0..self.states.len()).all(|index| self.of(index) == Delivery::Acknowledged)
    }

    /// Whether every sale has its outcome.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    /// Waits until it has.
    pub async fn done(&self) {
        loop {
            let notified = self.done.notified();
            if self.is_done() {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
pub(crate) mod contract {
    use super::*;
    use crate::clock::moment;
    use crate::sale::Attempt;
    use crate::sale::Item;
    use uuid::Uuid;

    /// A batch of sales such as a stock takes.
    pub(crate) fn batch(sales: usize) -> Batch {
        Batch {
            id: Uuid::now_v7(),
            item: Item::default(),
            epoch: Uuid::now_v7(),
            term: 0,
            serial: 1,
            remaining: 999,
            at: moment(),
            attempts: (0..sales).map(|_| Attempt { order: Uuid::now_v7(), name: None }).collect(),
        }
    }

    /// Runs the contract: what was acknowledged is in the log, and nothing hangs.
    pub(crate) async fn keeps_the_contract(journal: &dyn Journal, batch: &Batch) {
        let within = Duration::from_secs(20);
        journal.ready().expect("ready");
        let receipt = journal.append(batch);
        tokio::time::timeout(within, receipt.done()).await.expect("the journal says something of every sale");
        assert!(receipt.complete());
        let extents = journal.extents().await.expect("extents");
        let all: i64 = extents.values().map(|extent| extent.end - extent.start).sum();
        assert!(all >= batch.attempts.len() as i64, "{extents:?}");
        let once_more = journal.append(batch);
        journal.flush(within).await;
        assert!(once_more.complete(), "flushed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receipt_is_done_when_every_sale_was_noted() {
        let receipt = Receipt::new(2);
        receipt.note(1, Delivery::Acknowledged);
        assert_eq!((receipt.of(0), receipt.of(1)), (Delivery::Waiting, Delivery::Acknowledged));
        let waiter = tokio::spawn({
            let receipt = Arc::clone(&receipt);
            async move { receipt.done().await }
        });
        receipt.note(0, Delivery::Unknown);
        waiter.await.expect("done");
        assert!(!receipt.complete());
        assert_eq!(receipt.of(2), Delivery::Unknown, "what was never appended is not vouched for");
    }
}
