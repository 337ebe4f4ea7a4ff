//! Where units are: the trait every stock keeps, and what goes in and out of one call.

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

/// The units on sale, and the books of who took which.
///
/// What every implementation keeps is written down as code in its contract test.
#[async_trait]
pub trait Stock: Send + Sync {
    /// Settles, looks up and takes, all in one atomic step. A call without attempts is how a
    /// node keeps its view fresh.
    ///
    /// # Errors
    /// [`StockError::Refused`]: nothing was done. [`StockError::Silent`]: nobody knows.
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError>;

    /// The names of the entries of the outbox: what was taken and is not settled yet.
    async fn outbox(&self, item: &Item) -> Result<Vec<EntryName>, StockError>;

    /// These entries of the outbox, as far as they are still there; not more than
    /// [`ENTRIES_AT_ONCE`].
    async fn entries(&self, item: &Item, names: &[EntryName]) -> Result<Entries, StockError>;

    /// The items known to be on sale, or to have been.
    async fn items(&self) -> Result<Vec<Item>, StockError>;

    /// Looks for counters that operators set, at `most` keys or at all of them, from where the
    /// last look ended. Items found are among [`Stock::items`] from then on; returned are the keys
    /// that look like a counter and name no item.
    async fn discover(&self, _most: Option<usize>) -> Result<Vec<String>, StockError> {
        Ok(Vec::new())
    }

    /// Whether this item is on sale or was: it has a counter, or a book in which winners may
    /// stand. One that it knows is among [`Stock::items`] from then on.
    async fn knows(&self, item: &Item) -> Result<bool, StockError>;

    /// Begins a new sale of `units`, named `epoch`. The same epoch again changes nothing.
    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError>;

    /// Adds units to the running sale; what is left then, or `None` when nothing is on sale.
    /// Refused while the sale is shut.
    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError>;

    /// Takes, keeps or gives back the claim to a sale under `id`. While anybody has it nothing is
    /// taken, looked up or seeded. `None`: there is nothing to claim; or, to keep or to give back,
    /// it is not under this id. A stock that cannot lose anything has no claims.
    async fn claim(&self, _item: &Item, _id: Uuid, _claim: Claim) -> Result<Option<Claimed>, StockError> {
        Ok(None)
    }

    /// Makes winners ready for an [`Opening`] under `id`, some of them at a time.
    async fn prepare(&self, _item: &Item, _id: Uuid, _winners: &[Sale]) -> Result<(), StockError> {
        Ok(())
    }

    /// Opens the sale, unless somebody else claimed it meanwhile, or its data changed: then nothing
    /// happens and it says `false`.
    async fn open(&self, _item: &Item, _opening: &Opening) -> Result<bool, StockError> {
        Ok(false)
    }

    /// The running sale's book, then those of earlier sales.
    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError>;

    /// Puts away what it keeps of these earlier sales; with `all`, of an item that is not on sale,
    /// whatever there is, unless somebody put it on sale meanwhile.
    async fn forget(&self, _item: &Item, _epochs: &[Uuid], _all: bool) -> Result<(), StockError> {
        Ok(())
    }

    /// Settings of the server under which told sales can be lost, each with its remedy.
    async fn broken_promises(&self) -> Result<Vec<String>, StockError> {
        Ok(Vec::new())
    }
}

/// An entry's name in the outbox: a batch's id, if nobody meddled with it.
pub type EntryName = Vec<u8>;

/// Entries read at a time: 64 × 512 sales are a few megabytes.
pub const ENTRIES_AT_ONCE: usize = 64;

/// One question to the stock.
#[derive(Debug, Clone)]
pub struct Call {
    /// Names what is taken by it, in the outbox.
    pub id: Uuid,
    /// The epoch to adopt if the counter has no book yet.
    pub offer: Uuid,
    /// The moment of sale, by this node's clock, to the microsecond ([`moment`](crate::clock::moment)).
    pub at: Timestamp,
    /// Whether units may be taken; without it attempts are only looked up.
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

/// Attempts a call: beyond this, a script holds up Redis for longer than it saves round trips.
pub const MAX_ATTEMPTS: usize = 512;

/// Settles a call: enough for all that can be acknowledged in a refresh interval.
pub const MAX_SETTLED: usize = 1000;

/// Goes through an outbox, some of its entries at a time.
pub struct Walk<'s> {
    stock: &'s dyn Stock,
    item: &'s Item,
    names: Vec<EntryName>,
}

impl<'s> Walk<'s> {
    /// Begins at its first entry.
    ///
    /// # Errors
    /// As the stock's.
    pub async fn through(stock: &'s dyn Stock, item: &'s Item) -> Result<Self, StockError> {
        Ok(Self { stock, item, names: stock.outbox(item).await? })
    }

    /// The next entries; none: that was all.
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

/// What one call brought.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// The sale's name; `None` when there is no book.
    pub epoch: Option<Uuid>,
    /// Units left after the call; `None`: not on sale.
    pub left: Option<u64>,
    /// The sale's term, when there is a book.
    pub term: u64,
    /// Units sold after the call: the last serial. Not known while the sale is shut.
    pub serial: u64,
    /// Entries in the outbox after the call.
    pub open: u64,
    /// The sale is shut: nothing was taken or looked up.
    pub shut: bool,
    /// What was taken.
    pub taken: Option<Batch>,
    /// One for each attempt, in order.
    pub outcomes: Vec<Outcome>,
    /// The outbox entries in which known attempts still stand.
    pub standing: Vec<Batch>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A unit is its: this place in [`Reply::taken`].
    Taken(usize),
    /// It had a unit before.
    Known(Known),
    /// No unit: there is none left.
    SoldOut,
    /// No unit: there is no counter.
    NotOnSale,
    /// No unit: taking was not allowed.
    NotTaken,
    /// What stands under its name cannot be read.
    Unreadable,
    /// No unit: the sale is shut.
    Shut,
}

/// A sale that an earlier attempt of the same name made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The order it was told, or is to be told.
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
    /// Those that can be read.
    pub batches: Vec<Batch>,
    /// What is wrong with the others; they stay where they are.
    pub unreadable: Vec<String>,
}

/// The books of one sale: `seeded = left + serial`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// The sale's name; nil: there is a counter and no sale yet.
    pub epoch: Uuid,
    /// Its term, while it is the running sale.
    pub term: u64,
    /// Units sold: the last serial.
    pub serial: u64,
    /// Units left: the counter now.
    pub left: u64,
    /// Units ever put on sale, with what an operator did by hand.
    pub seeded: u64,
    /// Whether it is the running sale, and its counter exists.
    pub on_sale: bool,
    /// Whether it is the running sale, and shut or not believed.
    pub shut: bool,
}

/// What is asked about the claim to a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is wanted because the stock was restarted; a sale that is open and believed stays open.
    Reopen(Option<Owner>),
    /// It is wanted because of a doubt: also when the sale is open and believed.
    Doubt(Option<Owner>),
    /// It is wanted by an operator who has its books made anew, after whoever has it now.
    Restore(Option<Owner>),
    /// The same, also when the sale is open and believed.
    Overrule(Option<Owner>),
    /// It is kept, in this life of the stock's data.
    Renew(String),
    /// It is given back; the sale stays shut.
    Release,
    /// It is given back, and there is no sale: a counter set by hand begins one.
    Drop,
}

/// Whose a claim is, and how often it was renewed: one that does not change for long is of
/// somebody who died, and may be taken over by naming it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Under which id it was claimed.
    pub id: String,
    /// Its renewals.
    pub beat: u64,
}

/// A sale that somebody has a claim to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Who has it; under another id than asked for: somebody else.
    pub by: Owner,
    /// Which life of the stock's data this is.
    pub life: String,
    /// The book's sale; `None` when there is no book.
    pub epoch: Option<Uuid>,
    /// Units sold, by the book.
    pub serial: u64,
}

/// How a sale is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The id under which it was claimed.
    pub id: Uuid,
    /// The life of the stock's data that was looked at.
    pub life: String,
    /// The term its sales have from now on.
    pub term: u64,
    /// The book, when it is to be made anew; its winners are [`Stock::prepare`]d before.
    pub anew: Option<Anew>,
}

/// A book as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anew {
    /// The sale.
    pub epoch: Uuid,
    /// Its last serial.
    pub serial: u64,
    /// Units left.
    pub left: u64,
}

/// Why the stock did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StockError {
    /// Nothing was done: an error reply, or the question was never sent.
    #[error("{0}")]
    Refused(String),
    /// The question was sent and no answer came: it may have been done, or be done later.
    #[error("no answer: {0}")]
    Silent(String),
}

impl From<StockError> for Trouble {
    fn from(error: StockError) -> Self {
        Self::Passing(error.to_string())
    }
}
