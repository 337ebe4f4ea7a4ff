//! Where sales are recorded for good, and the rule by which a message becomes a row.
//!
//! `post` holds the procedure, `statements` the SQL of it; [`mysql`] and [`sqlite`] connect,
//! and say what an error of theirs means.

pub mod mysql;
pub mod post;
pub mod row;
pub mod sqlite;

mod batch;
#[cfg(test)]
mod contract;
mod statements;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use async_trait::async_trait;
use uuid::Uuid;

pub use crate::progress::{Checkpoint, Message, fingerprint};
use crate::sale::Sale;
pub use batch::{Batch, Part};

/// What a consumer writes: rows and the offsets they came from, in one transaction.
#[async_trait]
pub trait Record: Send + Sync {
    /// How far each partition of `topic` has been posted.
    async fn checkpoints(&self, topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError>;

    /// Records a batch and moves the checkpoints, or does neither.
    ///
    /// Refuses with [`LedgerError::Moved`] when a checkpoint is not where the batch expects it.
    async fn post(&self, batch: &Batch) -> Result<Posted, LedgerError>;
}

/// The books: what is recorded, what operators decided, and what both programs ask of it.
///
/// What every implementation keeps is written down as code in `ledger/contract.rs`.
#[async_trait]
pub trait Ledger: Record {
    /// Makes the tables, or brings them up to date, and looks whether they have their columns. Looks
    /// first: with everything in place it needs no right to create anything.
    async fn migrate(&self) -> Result<(), LedgerError>;

    /// Notes that order ids are made with this key until then, in Unix milliseconds, and says until
    /// when they are with any other. Nobody knows, where no such note is kept.
    async fn keys(&self, _mine: &str, _until: i64) -> Result<i64, LedgerError> {
        Ok(i64::MAX)
    }

    /// What the database is set to that does not keep the promise, each with its remedy.
    async fn broken_promises(&self) -> Result<Vec<String>, LedgerError> {
        Ok(Vec::new())
    }

    /// The sale recorded under `order`.
    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError>;

    /// Whether an order was put aside because its unit or itself is recorded otherwise: it was
    /// made, and what becomes of it is for a person to decide.
    async fn in_conflict(&self, order: Uuid) -> Result<bool, LedgerError>;

    /// Notes that a new sale begins. The epoch is its own idempotency key: once more is fine.
    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError>;

    /// Takes back that a sale began, if nothing of it was sold: it never did.
    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError>;

    /// The sales of one item, or of all: those begun by `seed` and those with rows, without those
    /// that were put away.
    async fn sales(&self, item: Option<&str>) -> Result<Vec<SaleRecord>, LedgerError>;

    /// The newest sale of every item, also one that was put away: a new one must be later.
    async fn newest(&self) -> Result<BTreeMap<String, Uuid>, LedgerError>;

    /// Which of these sales, as the stock has them, are further here: a later serial is recorded, or
    /// the term is over, and whatever is sold in it would be put aside.
    async fn ahead(&self, sales: &[Standpoint]) -> Result<Vec<Standpoint>, LedgerError>;

    /// What is known of a sale without counting it. True for the moment: more may be posted.
    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError>;

    /// Raises the term of a sale by one, if it still is `from`: else somebody else raised it, and
    /// may have opened the sale since. From then on sales of an older term are put aside as late,
    /// so that what is counted after it stays true.
    async fn raise_term(&self, item: &str, epoch: Uuid, from: u64) -> Result<bool, LedgerError>;

    /// From the next recorded serial after `after` so many serials: how many of them are recorded, and
    /// the last that is. As many as the numbers they span: none is missing between.
    async fn page(&self, item: &str, epoch: Uuid, after: u64, serials: u32) -> Result<Page, LedgerError>;

    /// The recorded serials after `after` and up to `upto`, ascending, each with its order.
    async fn orders(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<(u64, Uuid)>, LedgerError>;

    /// The runs of serials written off that have a part after `after` and up to `upto`, ascending.
    async fn voids(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<RangeInclusive<u64>>, LedgerError>;

    /// Writes off serials that were lost and told to nobody; once more is fine.
    async fn void(&self, item: &str, epoch: Uuid, runs: &[RangeInclusive<u64>]) -> Result<(), LedgerError>;

    /// The recorded sales of named attempts after the serial `after` and up to `upto`, ascending: by
    /// them a winner who asks again is known.
    async fn winners(&self, item: &str, epoch: Uuid, after: u64, upto: u64)
    -> Result<Vec<Sale>, LedgerError>;

    /// Notes an operator's decision: the sale goes on from here. Its conflicts up to now are
    /// accepted with it, and sales that are newer by their names do not outdate it.
    async fn restored(&self, item: &str, epoch: Uuid, restored: Restored) -> Result<(), LedgerError>;

    /// The sales with conflicts that no restore has accepted. Asked every second: as long as there
    /// are no new conflicts it costs a look at the table's end.
    async fn disputed(&self) -> Result<Vec<(String, Uuid)>, LedgerError>;

    /// Puts a sale away, with its books as they were closed; once more is fine.
    async fn archive(&self, item: &str, epoch: Uuid, closed: Closed) -> Result<(), LedgerError>;

    /// The sales of one item, or of all, that were put away.
    async fn archived(&self, item: Option<&str>) -> Result<BTreeSet<(String, Uuid)>, LedgerError>;

    /// What was put aside.
    async fn faults(&self) -> Result<Faults, LedgerError>;
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
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// Rows of `seckill_conflict`, reason `late` apart.
    pub conflicts: u64,
    /// Their serials, ascending, each once; not more than [`LISTED`] of all sales together.
    pub doubled: Vec<u64>,
}

/// Serials in conflict that are listed by number; more are only counted.
pub const LISTED: u32 = 1000;

/// What the ledger has of a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The term; 0 until it is first raised.
    pub term: u64,
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// The highest serial written off, 0 when none: it is not sold again either.
    pub void_upto: u64,
    /// Units left after the highest serial; what the sale began with, when none is recorded.
    pub remaining: u64,
    /// A newer sale of this item that is known, unless a restore decided for this one since.
    pub newer: Option<Uuid>,
    /// Sales in conflict that no restore has accepted.
    pub disputed: u64,
}

/// How far a sale is, as somebody has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standpoint {
    /// What is sold.
    pub item: String,
    /// Which sale of it.
    pub epoch: Uuid,
    /// The sale's term.
    pub term: u64,
    /// The last serial.
    pub serial: u64,
}

/// Some recorded serials that follow each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// How many.
    pub rows: u64,
    /// The last one; 0 when there is none.
    pub last: u64,
}

/// How a sale goes on after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The term of the sales made from then on.
    pub term: u64,
    /// The last serial.
    pub serial: u64,
    /// Units left after it.
    pub remaining: u64,
}

/// The books of a sale that is put away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Units ever put on sale.
    pub seeded: u64,
    /// Units left over.
    pub remaining: u64,
    /// Units sold.
    pub sold: u64,
    /// Rows.
    pub recorded: u64,
    /// Serials written off.
    pub void: u64,
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
    /// Not reachable, busy, or refusing for now: worth trying again.
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
    /// No waiting mends it (tables missing or of another shape, rights missing).
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
