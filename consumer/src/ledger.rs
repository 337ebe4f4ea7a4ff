//! Where sales are recorded for good, and the rule by which a message becomes a row.
//!
//! `post` holds the procedure, `statements` the SQL of it; [`mysql`] and [`sqlite`] connect,
//! and say what an error of theirs means.

pub mod mysql;
pub mod post;
pub mod row;
pub mod sqlite;

#[cfg(test)]
mod contract;
mod statements;

use std::collections::BTreeMap;

use async_trait::async_trait;
use uuid::Uuid;

use crate::sale::Sale;

/// The books: rows and the offsets they came from, written in one transaction.
///
/// What every implementation keeps is written down as code in `ledger/contract.rs`.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Makes the tables, or brings them up to date, and looks whether they have their columns. Looks
    /// first: with everything in place it needs no right to create anything.
    async fn migrate(&self) -> Result<(), LedgerError>;

    /// How far each partition of `topic` has been posted.
    async fn checkpoints(&self, topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError>;

    /// Records a batch and moves the checkpoints, or does neither.
    ///
    /// Refuses with [`LedgerError::Moved`] when a checkpoint is not where the batch expects it.
    async fn post(&self, batch: &Batch) -> Result<Posted, LedgerError>;

    /// The sale recorded under `order`.
    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError>;

    /// Notes that a new sale begins. The epoch is its own idempotency key: once more is fine.
    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError>;

    /// Every sale the ledger knows: those begun by `seed` and those with rows.
    async fn sales(&self) -> Result<Vec<SaleRecord>, LedgerError>;

    /// The serials of one sale that are accounted for, recorded or void, ascending.
    async fn serials(&self, item: &str, epoch: Uuid) -> Result<Vec<u64>, LedgerError>;

    /// Raises the term of a sale by one and says what is recorded of it, in one transaction:
    /// from then on its sales of an older term are put aside as late, so that the answer stays
    /// true. `None`, and nothing is changed, when the term is not `from` any more: somebody else
    /// raised it, and may have opened the sale since.
    async fn raise_term(&self, item: &str, epoch: Uuid, from: u64) -> Result<Option<Account>, LedgerError>;

    /// Takes back that a sale began, if nothing of it was sold: it never did.
    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError>;

    /// The same without raising the term: true only for the moment.
    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError>;

    /// The recorded sales of named attempts, by which a winner who asks again is known.
    async fn winners(&self, item: &str, epoch: Uuid) -> Result<Vec<Sale>, LedgerError>;

    /// Writes off serials that were lost and told to nobody; once more is fine.
    async fn void(&self, item: &str, epoch: Uuid, serials: &[u64]) -> Result<(), LedgerError>;

    /// What was put aside.
    async fn faults(&self) -> Result<Faults, LedgerError>;
}

/// Messages of one topic, by partition, to be posted together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The topic all of it came from.
    pub topic: String,
    /// One entry a partition, ascending; none is empty.
    pub parts: Vec<Part>,
}

/// Consecutive messages of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The partition's number.
    pub partition: i32,
    /// The next offset that the ledger is expected to want; `None` when it has no row yet.
    pub from: Option<i64>,
    /// The messages, offsets ascending (gaps are possible).
    pub messages: Vec<Message>,
}

/// A message as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its place in the partition.
    pub offset: i64,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// How far a partition has been posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The offset to be read next.
    pub next: i64,
    /// [`fingerprint`] of the message before it.
    pub fingerprint: String,
}

/// What became of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Posted {
    /// The checkpoints after it.
    pub checkpoints: BTreeMap<i32, Checkpoint>,
    /// Sales recorded now.
    pub new: u64,
    /// Sales that were recorded already.
    pub duplicate: u64,
    /// Sales whose unit or order is recorded otherwise.
    pub conflict: u64,
    /// Sales of a term that is over: told to nobody.
    pub late: u64,
    /// Messages that could not be read or recorded.
    pub dead_letter: u64,
}

/// One sale as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRecord {
    /// What is sold.
    pub item: String,
    /// Which sale of it.
    pub epoch: Uuid,
    /// Rows recorded.
    pub recorded: u64,
    /// Serials written off.
    pub void: u64,
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// Serials in conflict (reason `late` apart), ascending, each once.
    pub doubled: Vec<u64>,
}

/// What the ledger has of a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The term; 0 until it is first raised.
    pub term: u64,
    /// Serials accounted for: recorded or void.
    pub accounted: u64,
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// Units left after the highest serial; what the sale began with, when none is recorded.
    pub remaining: u64,
    /// Whether the ledger knows a newer sale of this item.
    pub outdated: bool,
}

/// Totals of the side tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Rows of `seckill_conflict`, reason `late` apart.
    pub conflicts: u64,
    /// Rows of `seckill_dead_letter`.
    pub dead_letters: u64,
}

/// Why the ledger could not answer.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Not reachable, or busy (lock, deadlock): worth trying again.
    #[error("the ledger is away: {0}")]
    Away(String),
    /// Somebody else posted this partition meanwhile: read the checkpoints again.
    #[error("partition {partition} was posted up to {found:?} by somebody else, expected {expected:?}")]
    Moved {
        /// The partition.
        partition: i32,
        /// Where the batch expected it.
        expected: Option<i64>,
        /// Where it is.
        found: Option<i64>,
    },
    /// The journal is not the one these books were kept from: stop and say so.
    #[error("{0}")]
    Foreign(String),
    /// A part of our own is broken (tables missing or of another shape, rights missing).
    #[error("the ledger cannot be used: {0}")]
    Broken(String),
}

/// Why a sale of a term that is over is put aside; no fault in the books.
pub(crate) const LATE: &str = "late";

/// What a message turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The row that stands is this very sale.
    Duplicate,
    /// The row that stands is another sale; with the reason.
    Conflict(&'static str),
}

/// THE posting rule: a unique key was violated by `sale`; `standing` is the row in its way.
///
/// A row stands in the way because it has the same order, or the same unit.
#[must_use]
pub fn judge(sale: &Sale, standing: &Sale) -> Verdict {
    let same_order = sale.order == standing.order;
    let same_unit =
        (&sale.item, sale.epoch, sale.serial) == (&standing.item, standing.epoch, standing.serial);
    match (same_order, same_unit) {
        (true, true) => Verdict::Duplicate,
        (true, false) => Verdict::Conflict("order of another unit"),
        (false, _) => Verdict::Conflict("unit of another order"),
    }
}

/// Tells one message from another: the start of its bytes' SHA-256, in hexadecimal.
#[must_use]
pub fn fingerprint(value: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(value).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
