//! The ledger: permanent storage for sales, and the rule that turns a message into a row.
//!
//! `post` holds the procedure, `statements` its SQL; [`mysql`] and [`sqlite`] connect and classify database
//! errors.

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

/// What a consumer writes: rows and their source offsets, in one transaction.
#[async_trait]
pub trait Record: Send + Sync {
    /// The checkpoint of each partition of `topic`.
    async fn checkpoints(&self, topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError>;

    /// Records a batch and moves the checkpoints, or does neither.
    ///
    /// Fails with [`LedgerError::Moved`] when a checkpoint is not where the batch expects it.
    async fn post(&self, batch: &Batch) -> Result<Posted, LedgerError>;
}

/// The ledger: recorded sales, operator decisions, and the queries of both programs.
///
/// `ledger/contract.rs` tests the contract of every implementation.
#[async_trait]
pub trait Ledger: Record {
    /// Creates or migrates the tables, and checks that they have their columns. Reads first: with everything
    /// in place it needs no right to create anything.
    async fn migrate(&self) -> Result<(), LedgerError>;

    /// Notes that this key makes order ids until then, in Unix milliseconds, and returns until when any other
    /// key does. Unknown where no such note is kept.
    async fn keys(&self, _mine: &str, _until: i64) -> Result<i64, LedgerError> {
        Ok(i64::MAX)
    }

    /// Database settings that break the durability promise, each with its remedy.
    async fn broken_promises(&self) -> Result<Vec<String>, LedgerError> {
        Ok(Vec::new())
    }

    /// The sale recorded under `order`.
    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError>;

    /// Whether an order was set aside because it or its unit is recorded otherwise: the order exists, and a
    /// person must decide what becomes of it.
    async fn in_conflict(&self, order: Uuid) -> Result<bool, LedgerError>;

    /// Notes that a new sale begins. Idempotent: the epoch is the idempotency key.
    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError>;

    /// Undoes [`Ledger::begin_sale`], if nothing of the sale was sold.
    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError>;

    /// The sales of one item, or of all: those begun by `seed` and those with rows, without the archived
    /// ones.
    async fn sales(&self, item: Option<&str>) -> Result<Vec<SaleRecord>, LedgerError>;

    /// The newest sale of every item, archived or not: a new one must be later.
    async fn newest(&self) -> Result<BTreeMap<String, Uuid>, LedgerError>;

    /// Those of these sales, as the stock has them, that the ledger is ahead of: a later serial is recorded,
    /// or the term is over and further sales would be set aside.
    async fn ahead(&self, sales: &[Standpoint]) -> Result<Vec<Standpoint>, LedgerError>;

    /// What is known of a sale without counting it. A snapshot: more may be posted.
    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError>;

    /// Raises the term of a sale by one if it still is `from` (compare-and-set): otherwise another node
    /// raised it and may have opened the sale since. From then on sales of an older term are set aside as
    /// late, so that later counts stay true.
    async fn raise_term(&self, item: &str, epoch: Uuid, from: u64) -> Result<bool, LedgerError>;

    /// How many of the `serials` serials from the first recorded one after `after` are recorded, and the last
    /// that is. No gap if their number equals their span.
    async fn page(&self, item: &str, epoch: Uuid, after: u64, serials: u32) -> Result<Page, LedgerError>;

    /// The recorded serials after `after` up to `upto`, ascending, each with its order.
    async fn orders(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<(u64, Uuid)>, LedgerError>;

    /// The voided runs of serials that overlap `after` (exclusive) to `upto`, ascending.
    async fn voids(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<RangeInclusive<u64>>, LedgerError>;

    /// Voids serials that were lost and never confirmed to a buyer. Idempotent.
    async fn void(&self, item: &str, epoch: Uuid, runs: &[RangeInclusive<u64>]) -> Result<(), LedgerError>;

    /// The recorded sales of named attempts after the serial `after` up to `upto`, ascending: they identify a
    /// winner that retries.
    async fn winners(&self, item: &str, epoch: Uuid, after: u64, upto: u64)
    -> Result<Vec<Sale>, LedgerError>;

    /// Records an operator's decision that the sale continues from here. It also accepts the sale's conflicts
    /// up to now, and sales with newer epochs do not outdate it.
    async fn restored(&self, item: &str, epoch: Uuid, restored: Restored) -> Result<(), LedgerError>;

    /// The sales with conflicts that no restore has accepted. Called every second: without new conflicts it
    /// costs a look at the table's end.
    async fn disputed(&self) -> Result<Vec<(String, Uuid)>, LedgerError>;

    /// Archives a sale with its final accounts. Idempotent.
    async fn archive(&self, item: &str, epoch: Uuid, closed: Closed) -> Result<(), LedgerError>;

    /// The archived sales of one item, or of all.
    async fn archived(&self, item: Option<&str>) -> Result<BTreeSet<(String, Uuid)>, LedgerError>;

    /// Totals of what was set aside.
    async fn faults(&self) -> Result<Faults, LedgerError>;
}

/// The outcome of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Posted {
    /// The checkpoints after it.
    pub checkpoints: BTreeMap<i32, Checkpoint>,
    /// Sales recorded now.
    pub new: u64,
    /// Sales recorded before.
    pub duplicate: u64,
    /// Sales whose unit or order is recorded otherwise.
    pub conflict: u64,
    /// Sales of an older term: never confirmed.
    pub late: u64,
    /// Messages that cannot be read or recorded.
    pub dead_letter: u64,
}

/// One sale in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRecord {
    /// The item.
    pub item: String,
    /// The sale's epoch.
    pub epoch: Uuid,
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// Rows of `seckill_conflict`, reason `late` apart.
    pub conflicts: u64,
    /// Their serials, ascending, distinct; at most [`LISTED`] over all sales.
    pub doubled: Vec<u64>,
}

/// How many serials in conflict are listed by number; more are only counted.
pub const LISTED: u32 = 1000;

/// What the ledger holds of a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The term; 0 until it is first raised.
    pub term: u64,
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// The highest serial voided, 0 when none: it is not sold again either.
    pub void_upto: u64,
    /// Units left after the highest serial; the initial units when none is recorded.
    pub remaining: u64,
    /// A newer sale of this item, unless a restore has decided for this one since.
    pub newer: Option<Uuid>,
    /// Sales in conflict that no restore has accepted.
    pub disputed: u64,
}

/// How far a sale is, from a caller's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standpoint {
    /// The item.
    pub item: String,
    /// The sale's epoch.
    pub epoch: Uuid,
    /// The sale's term.
    pub term: u64,
    /// The last serial.
    pub serial: u64,
}

/// A run of recorded serials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// How many rows.
    pub rows: u64,
    /// The last serial; 0 when there is none.
    pub last: u64,
}

/// Where a sale continues after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The term of later sales.
    pub term: u64,
    /// The last serial.
    pub serial: u64,
    /// Units left after it.
    pub remaining: u64,
}

/// The final accounts of an archived sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Units ever put on sale.
    pub seeded: u64,
    /// Units left over.
    pub remaining: u64,
    /// Units sold.
    pub sold: u64,
    /// Rows recorded.
    pub recorded: u64,
    /// Serials voided.
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

/// Why a ledger operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Unreachable, busy, or temporarily refusing: retry.
    #[error("the ledger is away: {0}")]
    Away(String),
    /// Another consumer posted this partition meanwhile: read the checkpoints again.
    #[error("partition {partition} was posted up to {found:?} by somebody else, expected {expected:?}")]
    Moved {
        /// The partition.
        partition: i32,
        /// Where the batch expected it.
        expected: Option<i64>,
        /// Where it is.
        found: Option<i64>,
    },
    /// The journal is not the one this ledger was recorded from: stop and report it.
    #[error("{0}")]
    Foreign(String),
    /// Retrying does not help (tables missing or of another shape, rights missing).
    #[error("the ledger cannot be used: {0}")]
    Broken(String),
}

/// Reason for setting aside a sale of an older term; no fault in the ledger.
pub(crate) const LATE: &str = "late";

/// How a sale relates to a recorded row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The recorded row is this very sale.
    Duplicate,
    /// The recorded row is another sale; with the reason.
    Conflict(&'static str),
}

/// THE posting rule: `sale` violated a unique key; `standing` is the conflicting row.
///
/// The row conflicts because it has the same order, or the same unit.
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
