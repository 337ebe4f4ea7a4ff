//! Where units are: the trait every stock keeps, and what goes in and out of one call.

pub mod memory;
pub mod redis;

#[cfg(test)]
pub(crate) mod contract;

use std::fmt::Write as _;

use async_trait::async_trait;
use consumer::sale::Sale;
use jiff::Timestamp;
use uuid::Uuid;

use crate::item::Item;

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

    /// Everything taken and not yet settled, and how many entries could not be read.
    async fn outbox(&self, item: &Item) -> Result<Outbox, StockError>;

    /// The items known to be on sale, or to have been.
    async fn items(&self) -> Result<Vec<Item>, StockError>;

    /// Whether this item is on sale or was: it has a counter, or a book in which winners may
    /// stand. One that it knows is among [`Stock::items`] from then on.
    async fn knows(&self, item: &Item) -> Result<bool, StockError>;

    /// Begins a new sale of `units`, named `epoch`. The same epoch again changes nothing.
    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError>;

    /// Adds units to the running sale; what is left then, or `None` when nothing is on sale.
    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError>;

    /// Shuts the sale under `id`: nothing is taken, looked up or seeded until it is opened. What
    /// was found, or `None` when there is nothing to reopen. A stock that cannot lose anything
    /// is never shut.
    async fn shut(&self, _item: &Item, _id: Uuid, _why: Shutting) -> Result<Option<Shut>, StockError> {
        Ok(None)
    }

    /// Opens the sale, unless somebody else shut it meanwhile: then nothing happens and it says
    /// `false`.
    async fn open(&self, _item: &Item, _opening: &Opening) -> Result<bool, StockError> {
        Ok(false)
    }

    /// The running sale's book, then those of earlier sales.
    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError>;
}

/// Somebody's wish for one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The order it becomes if a unit is taken for it.
    pub order: Uuid,
    /// What makes it the same attempt when it comes again; `None`: anonymous.
    pub name: Option<String>,
}

/// One question to the stock.
#[derive(Debug, Clone)]
pub struct Call {
    /// Names what is taken by it, in the outbox.
    pub id: Uuid,
    /// The epoch to adopt if the counter has no book yet.
    pub offer: Uuid,
    /// The moment of sale, by this node's clock, to the microsecond ([`moment`]).
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

/// Now, as exactly as messages and ledger keep it.
#[must_use]
pub fn moment() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// What one call brought.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// The sale's name; `None` when there is no book.
    pub epoch: Option<Uuid>,
    /// Units left after the call; `None`: not on sale.
    pub left: Option<u64>,
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

/// Units taken by one call: one entry in the outbox, settled together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its name in the outbox.
    pub id: Uuid,
    /// What was sold.
    pub item: Item,
    /// The sale.
    pub epoch: Uuid,
    /// The sale's term.
    pub term: u64,
    /// The first unit's serial; the others follow.
    pub serial: u64,
    /// Units left after the first.
    pub remaining: u64,
    /// When.
    pub at: Timestamp,
    /// Who took them.
    pub attempts: Vec<Attempt>,
}

impl Batch {
    /// The sale at `index`.
    #[must_use]
    pub fn sale(&self, index: usize) -> Sale {
        let nth = index as u64;
        Sale {
            order: self.attempts[index].order,
            item: self.item.name().to_owned(),
            epoch: self.epoch,
            term: self.term,
            serial: self.serial + nth,
            remaining: self.remaining.saturating_sub(nth),
            attempt: self.attempts[index].name.clone(),
            buyer: None,
            sold_at: self.at,
        }
    }

    /// All its sales, in order.
    pub fn sales(&self) -> impl Iterator<Item = Sale> {
        (0..self.attempts.len()).map(|index| self.sale(index))
    }

    /// Where `order` stands in it.
    #[must_use]
    pub fn position(&self, order: Uuid) -> Option<usize> {
        self.attempts.iter().position(|attempt| attempt.order == order)
    }

    /// Reads an outbox entry: a line `epoch term serial remaining micros`, then a line for each
    /// unit, `order` or `order name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_entry(id: &str, item: &Item, entry: &str) -> Result<Self, String> {
        let id = id.parse().map_err(|_| format!("the field {id:?} is not a UUID"))?;
        let (head, lines) = entry.split_once('\n').ok_or("no line of its sale")?;
        let head: Vec<&str> = head.split(' ').collect();
        let [epoch, term, serial, remaining, micros] = head[..] else {
            return Err("the first line is not `epoch term serial remaining micros`".into());
        };
        // No more than a row can hold, with room for the lines.
        let number = |text: &str| match text.parse::<u64>() {
            Ok(number) if number <= i64::MAX as u64 / 2 => Ok(number),
            _ => Err(format!("{text:?} is not a number")),
        };
        let attempts = lines
            .lines()
            .map(|line| {
                let (order, name) =
                    line.split_once(' ').map_or((line, None), |(order, name)| (order, Some(name)));
                let order = order.parse().map_err(|_| format!("{order:?} is not an order"))?;
                Ok(Attempt { order, name: name.map(str::to_owned) })
            })
            .collect::<Result<Vec<_>, String>>()?;
        if attempts.is_empty() || number(serial)? == 0 {
            return Err("it holds no unit".into());
        }
        Ok(Self {
            id,
            item: item.clone(),
            epoch: epoch.parse().map_err(|_| format!("{epoch:?} is not an epoch"))?,
            term: number(term)?,
            serial: number(serial)?,
            remaining: number(remaining)?,
            at: micros
                .parse()
                .ok()
                .and_then(|micros| Timestamp::from_microsecond(micros).ok())
                .ok_or_else(|| format!("{micros:?} is not a time"))?,
            attempts,
        })
    }
}

impl Attempt {
    /// Its line in an outbox entry.
    pub fn write_line(&self, into: &mut String) {
        // Writing into a String cannot fail.
        let _ = match &self.name {
            Some(name) => writeln!(into, "{} {name}", self.order),
            None => writeln!(into, "{}", self.order),
        };
    }
}

/// What stands in an item's outbox.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    /// The entries that can be read.
    pub batches: Vec<Batch>,
    /// What is wrong with the others; they stay where they are.
    pub unreadable: Vec<String>,
}

impl Outbox {
    /// Units taken and not yet settled.
    #[must_use]
    pub fn sales(&self) -> u64 {
        self.batches.iter().map(|batch| batch.attempts.len() as u64).sum()
    }
}

/// The books of one sale: `seeded = left + serial`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// The sale's name.
    pub epoch: Uuid,
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

/// Why a sale is to be shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutting {
    /// Because its stock was restarted; one that is open and believed stays open. Takes over
    /// from who has shut it under this id.
    Reopen(Option<Uuid>),
    /// Because an operator wants its books made anew; one that is open and believed stays open.
    Restore,
}

/// A sale that is shut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shut {
    /// Under which id; another one than asked for: somebody else is at it.
    pub by: String,
    /// Which life of the stock this is.
    pub run: String,
    /// The book's sale; `None` when there is no book.
    pub epoch: Option<Uuid>,
    /// Units sold, by the book.
    pub serial: u64,
}

/// How a sale is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The id under which it was shut.
    pub id: Uuid,
    /// The life of the stock that was looked at.
    pub run: String,
    /// The term its sales have from now on.
    pub term: u64,
    /// The book, when it is to be made anew.
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
    /// The sales of named attempts.
    pub winners: Vec<Sale>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_entry_is_read_as_it_was_written() {
        let orders: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let (id, epoch, at) = (Uuid::now_v7(), Uuid::now_v7(), moment());
        let attempts: Vec<Attempt> = orders
            .iter()
            .zip([None, Some("k:a b "), None])
            .map(|(order, name)| Attempt { order: *order, name: name.map(str::to_owned) })
            .collect();
        let mut entry = format!("{epoch} 2 7 3 {}\n", at.as_microsecond());
        attempts.iter().for_each(|attempt| attempt.write_line(&mut entry));
        let item = Item::default();
        let batch = Batch::from_entry(&id.to_string(), &item, &entry).expect("readable");
        assert_eq!(
            batch,
            Batch { id, item: item.clone(), epoch, term: 2, serial: 7, remaining: 3, at, attempts }
        );
        assert_eq!(batch.sale(2).serial, 9);
        for wrong in [
            "",
            "x",
            &entry.replace(" 7 ", " 0 "),
            &entry.replace(" 7 ", " 18446744073709551615 "),
            &entry.replace(" 2 ", " -2 "),
            &entry.replace(&orders[1].to_string(), "someone"),
            &entry[..entry.find('\n').expect("a line")],
            &format!("{epoch} 2 7 3 9999999999999999999\n{}\n", orders[0]),
        ] {
            assert!(Batch::from_entry(&id.to_string(), &item, wrong).is_err(), "{wrong}");
        }
        assert!(Batch::from_entry("by hand", &item, &entry).is_err());
    }
}
