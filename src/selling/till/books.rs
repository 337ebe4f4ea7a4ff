//! The till's in-flight state: batches on their way into the journal, and whether this node trusts the stock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::elapsed;
use crate::journal::{Delivery, Receipt};
use crate::sale::times::TELL_WITHIN;
use crate::sale::{Batch, Purchase};
use crate::selling::mark::Mark;
use crate::stock::{Known, Outcome, Reply};

/// Acknowledged batches a node remembers, to say `accepted` before the ledger has them.
const REMEMBERED: usize = 64;

/// Why a node itself shuts a sale.
const BEHIND: &str = "shut: its data went back behind what this node sold";

/// Batches in flight to the journal, and those acknowledged.
#[derive(Default)]
pub(super) struct Books {
    /// The number of the call whose reply the level shows.
    pub(super) shown: u64,
    /// Batches being appended, and appended ones not yet settled in the stock.
    pub(super) flights: BTreeMap<Uuid, Arc<Flight>>,
    /// Acknowledged; sent to the stock with the next call, kept until a reply confirms it.
    pub(super) settled: Vec<Uuid>,
    /// Acknowledged in time, and settled.
    pub(super) remembered: VecDeque<Arc<Batch>>,
    /// High-water mark of the stock's books.
    pub(super) mark: Mark,
    /// Why this node distrusts the stock, though the stock itself reports no doubt.
    pub(super) doubt: Option<Doubt>,
    /// The newest sale in the ledger.
    pub(super) newest: Option<Uuid>,
}

/// A doubt about a sale's books at this term: it ends when they are reconciled with the ledger, which raises
/// the term, or when another sale begins.
pub(super) struct Doubt {
    pub(super) why: Arc<str>,
    pub(super) epoch: Uuid,
    pub(super) term: u64,
}

/// A batch being appended.
pub(super) struct Flight {
    pub(super) batch: Arc<Batch>,
    pub(super) receipt: Arc<Receipt>,
    /// When the stock call behind it was made; `None` if it was found in an outbox.
    pub(super) asked: Option<Instant>,
    /// Acknowledged while the stock's reply still counted. After a later acknowledgement the books may have
    /// been reopened without it: only the ledger can tell.
    pub(super) in_time: AtomicBool,
}

impl Books {
    /// Checks a reply against what is known. If the data went back, or the sale is in doubt otherwise, the
    /// whole reply is void: what it took is left in the outbox for the recovery, and answered `pending`.
    pub(super) fn judge(&mut self, reply: &mut Reply) -> Option<Arc<str>> {
        let epoch = reply.epoch?;
        if self.mark.is_behind(epoch, reply.term, reply.serial) {
            self.doubt = Some(Doubt { why: BEHIND.into(), epoch, term: reply.term });
        } else if self.doubt.as_ref().is_some_and(|doubt| (doubt.epoch, doubt.term) != (epoch, reply.term)) {
            self.doubt = None;
        }
        let why = Arc::clone(&self.doubt.as_ref()?.why);
        (reply.taken, reply.standing) = (None, Vec::new());
        for outcome in reply.outcomes.iter_mut().filter(|outcome| !matches!(outcome, Outcome::Taken(_))) {
            *outcome = Outcome::Shut;
        }
        Some(why)
    }

    /// The stock has settled these.
    pub(super) fn forget(&mut self, settled: &[Uuid]) {
        self.settled.retain(|batch| !settled.contains(batch));
        for batch in settled {
            if let Some(flight) = self.flights.remove(batch).filter(|flight| flight.in_time()) {
                self.remembered.push_back(Arc::clone(&flight.batch));
            }
        }
        let excess = self.remembered.len().saturating_sub(REMEMBERED);
        self.remembered.drain(..excess);
    }
}

impl Flight {
    /// Whether what is acknowledged of it by now was so in time.
    pub(super) fn in_time(&self) -> bool {
        self.in_time.load(Ordering::Acquire) || self.asked.is_some_and(|asked| elapsed(asked) <= TELL_WITHIN)
    }

    /// The answer for the sale at `index`.
    pub(super) fn told(&self, index: usize) -> Purchase {
        let sale = &self.batch.attempts[index];
        match self.receipt.of(index) {
            Delivery::Acknowledged => Purchase::Bought {
                order: sale.order,
                left: self.batch.remaining.saturating_sub(index as u64),
                epoch: self.batch.epoch,
            },
            Delivery::Waiting | Delivery::Unknown => {
                Purchase::Pending { order: sale.order, epoch: Some(self.batch.epoch) }
            }
        }
    }
}

impl Known {
    pub(super) fn place(&self, flights: &BTreeMap<Uuid, Arc<Flight>>) -> Option<(Arc<Flight>, usize)> {
        let flight = flights.get(&self.batch)?;
        Some((Arc::clone(flight), flight.batch.position(self.order)?))
    }
}
