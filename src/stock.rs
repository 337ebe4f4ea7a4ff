//! The stock: the trait that every stock implements, and a call's input and output.

pub mod memory;
pub mod redis;

#[cfg(test)]
pub(crate) mod contract;

use async_trait::async_trait;
use consumer::sale::Sale;
use jiff::Timestamp;
use uuid::Uuid;

use crate::journal::progress::Trouble;
use crate::sale::{Attempt, Batch, Item};

/// The units on sale, and the books of which attempt took which.
///
/// The contract of every implementation is its contract test.
#[async_trait]
pub trait Stock: Send + Sync {
    /// Settles, looks up and takes in one atomic step. A call without attempts refreshes a node's view.
    ///
    /// # Errors
    /// [`StockError::Refused`]: nothing was done. [`StockError::Silent`]: outcome unknown.
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError>;

    /// The names of the outbox entries: what was taken and is not settled yet.
    async fn outbox(&self, item: &Item) -> Result<Vec<EntryName>, StockError>;

    /// These outbox entries, if still there; at most [`ENTRIES_AT_ONCE`].
    async fn entries(&self, item: &Item, names: &[EntryName]) -> Result<Entries, StockError>;

    /// The items known to be on sale, or to have been.
    async fn items(&self) -> Result<Vec<Item>, StockError>;

    /// Scans for counters that operators set: at most `most` keys or all of them, from where the last scan
    /// ended. Items found are in [`Stock::items`] from then on; returns the keys that look like a counter and
    /// name no item.
    async fn discover(&self, _most: Option<usize>) -> Result<Vec<String>, StockError> {
        Ok(Vec::new())
    }

    /// Whether this item is or was on sale: it has a counter, or a book that may hold winners. A known item
    /// is in [`Stock::items`] from then on.
    async fn knows(&self, item: &Item) -> Result<bool, StockError>;

    /// Begins a new sale of `units`, named `epoch`. Idempotent by epoch.
    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError>;

    /// Adds units to the running sale; returns what is left then, or `None` when nothing is on sale. Refused
    /// while the sale is shut.
    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError>;

    /// Takes, keeps or gives back the claim to a sale under `id`. While a sale is claimed, nothing is taken,
    /// looked up or seeded. `None`: there is nothing to claim; or, to keep or to give back, it is not under
    /// this id. A stock that cannot lose anything has no claims.
    async fn claim(&self, _item: &Item, _id: Uuid, _claim: Claim) -> Result<Option<Claimed>, StockError> {
        Ok(None)
    }

    /// Stages winners for an [`Opening`] under `id`, some at a time.
    async fn prepare(&self, _item: &Item, _id: Uuid, _winners: &[Sale]) -> Result<(), StockError> {
        Ok(())
    }

    /// Opens the sale; changes nothing and returns `false` if another claimed it meanwhile, or its data
    /// changed.
    async fn open(&self, _item: &Item, _opening: &Opening) -> Result<bool, StockError> {
        Ok(false)
    }

    /// The running sale's book, then those of earlier sales.
    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError>;

    /// Removes what is kept of these earlier sales; with `all`, also everything of an item not on sale,
    /// unless it was put on sale meanwhile.
    async fn forget(&self, _item: &Item, _epochs: &[Uuid], _all: bool) -> Result<(), StockError> {
        Ok(())
    }

    /// Server settings under which reported sales can be lost, each with its remedy.
    async fn broken_promises(&self) -> Result<Vec<String>, StockError> {
        Ok(Vec::new())
    }
}

/// An outbox entry's name: a batch's id, unless edited by hand.
pub type EntryName = Vec<u8>;

/// Entries read at a time: 64 × 512 sales are a few megabytes.
pub const ENTRIES_AT_ONCE: usize = 64;

/// One call to the stock.
#[derive(Debug, Clone)]
pub struct Call {
    /// Names the batch it takes, in the outbox.
    pub id: Uuid,
    /// The epoch to adopt if the counter has no book yet.
    pub offer: Uuid,
    /// The time of sale, by this node's clock, to the microsecond ([`moment`](crate::clock::moment)).
    pub at: Timestamp,
    /// Whether units may be taken; if not, attempts are only looked up.
    pub taking: bool,
    /// The attempts, at most [`MAX_ATTEMPTS`].
    pub attempts: Vec<Attempt>,
    /// Batches acknowledged by the journal, at most [`MAX_SETTLED`].
    pub settled: Vec<Uuid>,
}

impl Call {
    /// The attempts with a name, and those without.
    #[must_use]
    pub fn by_name(&self) -> (Vec<&Attempt>, Vec<&Attempt>) {
        self.attempts.iter().partition(|attempt| attempt.name.is_some())
    }
}

/// Attempts a call: beyond this, a script blocks Redis for longer than it saves round trips.
pub const MAX_ATTEMPTS: usize = 512;

/// Settles a call: enough for all that can be acknowledged in a refresh interval.
pub const MAX_SETTLED: usize = 1000;

/// Iterates over an outbox, some entries at a time.
pub struct Walk<'s> {
    stock: &'s dyn Stock,
    item: &'s Item,
    names: Vec<EntryName>,
}

impl<'s> Walk<'s> {
    /// Starts at its first entry.
    ///
    /// # Errors
    /// As the stock's.
    pub async fn through(stock: &'s dyn Stock, item: &'s Item) -> Result<Self, StockError> {
        Ok(Self { stock, item, names: stock.outbox(item).await? })
    }

    /// The next entries; `None` at the end.
    ///
    /// # Errors
    /// As the stock's.
    pub async fn next(&mut self) -> Result<Option<Entries>, StockError> {
        if self.names.is_empty() {
            return Ok(None);
        }
        let names = self.names.split_off(self.names.len().saturating_sub(ENTRIES_AT_ONCE));
        self.stock.entries(self.item, &names).await.map(Some)
    }
}

/// The result of one call.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// The sale's epoch; `None` when there is no book.
    pub epoch: Option<Uuid>,
    /// Units left after the call; `None`: not on sale.
    pub left: Option<u64>,
    /// The sale's fencing term, when there is a book.
    pub term: u64,
    /// Units sold after the call: the last serial. Unknown while the sale is shut.
    pub serial: u64,
    /// Entries in the outbox after the call.
    pub open: u64,
    /// The sale is shut: nothing was taken or looked up.
    pub shut: bool,
    /// What was taken.
    pub taken: Option<Batch>,
    /// One for each attempt, in order.
    pub outcomes: Vec<Outcome>,
    /// The outbox entries that still hold known attempts.
    pub standing: Vec<Batch>,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It took a unit: this index in [`Reply::taken`].
    Taken(usize),
    /// It took a unit in an earlier call.
    Known(Known),
    /// No unit: none is left.
    SoldOut,
    /// No unit: there is no counter.
    NotOnSale,
    /// No unit: taking was off.
    NotTaken,
    /// The record under its name cannot be read.
    Unreadable,
    /// No unit: the sale is shut.
    Shut,
}

/// A sale made by an earlier attempt of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The order it was answered, or will be.
    pub order: Uuid,
    /// Units left after it.
    pub remaining: u64,
    /// The batch it was taken in.
    pub batch: Uuid,
    /// Whether that batch is still in the outbox.
    pub open: bool,
}

/// Some of the entries of an item's outbox.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    /// The readable ones.
    pub batches: Vec<Batch>,
    /// What is wrong with the others; they stay in the outbox.
    pub unreadable: Vec<String>,
}

/// The books of one sale: `seeded = left + serial`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// The sale's epoch; nil: there is a counter and no sale yet.
    pub epoch: Uuid,
    /// Its fencing term, while it is the running sale.
    pub term: u64,
    /// Units sold: the last serial.
    pub serial: u64,
    /// Units left: the counter now.
    pub left: u64,
    /// Units ever put on sale, including changes by hand.
    pub seeded: u64,
    /// Whether it is the running sale, and its counter exists.
    pub on_sale: bool,
    /// Whether it is the running sale, and shut or not trusted.
    pub shut: bool,
}

/// A request about the claim to a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Take it after a restart of the stock; a sale that is open and trusted stays open.
    Reopen(Option<Owner>),
    /// Take it because of a doubt, even if the sale is open and trusted.
    Doubt(Option<Owner>),
    /// Take it for an operator who rebuilds its books, after the current owner.
    Restore(Option<Owner>),
    /// The same, even if the sale is open and trusted.
    Overrule(Option<Owner>),
    /// Keep it, in this life of the stock's data.
    Renew(String),
    /// Give it back; the sale stays shut.
    Release,
    /// Give it back without a sale: a counter set by hand begins one.
    Drop,
}

/// The owner of a claim, and its renewals: if those stand still for long, the owner is dead, and naming both
/// takes the claim over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The id of the claim.
    pub id: String,
    /// Its renewals.
    pub beat: u64,
}

/// A claimed sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The owner; another id than the caller's: the claim is another's.
    pub by: Owner,
    /// The life of the stock's data.
    pub life: String,
    /// The book's sale; `None` when there is no book.
    pub epoch: Option<Uuid>,
    /// Units sold, by the book.
    pub serial: u64,
}

/// How a sale is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The id of its claim.
    pub id: Uuid,
    /// The life of the stock's data that was checked.
    pub life: String,
    /// The fencing term of its sales from now on.
    pub term: u64,
    /// The book, when it is rebuilt; its winners are staged by [`Stock::prepare`] before.
    pub anew: Option<Anew>,
}

/// A book rebuilt from the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anew {
    /// The sale.
    pub epoch: Uuid,
    /// Its last serial.
    pub serial: u64,
    /// Units left.
    pub left: u64,
}

/// Why a stock call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StockError {
    /// Nothing was done: an error reply, or the call was never sent.
    #[error("{0}")]
    Refused(String),
    /// The call was sent and got no answer: it may have run, or may still run.
    #[error("no answer: {0}")]
    Silent(String),
}

impl From<StockError> for Trouble {
    fn from(error: StockError) -> Self {
        Self::Passing(error.to_string())
    }
}
