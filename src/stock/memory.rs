//! In-memory stock of the embedded world, rebuilt from the journal; a take is the group commit.
//!
//! A batch is decided in memory and written at the journal's next offset in one insert. Memory changes only
//! once that is on disk, so nothing is ever rolled back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use indexmap::IndexMap;
use jiff::Timestamp;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Book, Call, Entries, EntryName, Known, Outcome, Reply, Stock, StockError};
use crate::journal::sqlite::{Entry, Rows, Seed, Sold, SqliteJournal, WriteError};
use crate::sale::{Batch, Item};

/// The stock of one embedded file.
pub struct MemoryStock {
    journal: Arc<SqliteJournal>,
    shelves: Mutex<Shelves>,
}

/// The state derived from the journal up to `next`.
#[derive(Default)]
struct Shelves {
    /// The offset of the next unread row.
    next: i64,
    /// The last write failed: nothing is taken until the file is writable again.
    failed: bool,
    items: BTreeMap<String, Shelf>,
}

/// One item.
#[derive(Default)]
struct Shelf {
    running: Running,
    earlier: Vec<Book>,
}

#[derive(Default)]
struct Running {
    epoch: Uuid,
    seeded: u64,
    serial: u64,
    /// A `HashMap` of a million takes twice the time: growing rehashes every name.
    attempts: IndexMap<String, Known>,
}

impl Running {
    fn left(&self) -> u64 {
        self.seeded.saturating_sub(self.serial)
    }

    fn book(&self, on_sale: bool) -> Book {
        Book {
            epoch: self.epoch,
            term: 0,
            serial: self.serial,
            left: self.left(),
            seeded: self.seeded,
            on_sale,
            shut: false,
        }
    }
}

impl Shelves {
    fn see(&mut self, rows: &Rows) -> Result<(), String> {
        for entry in rows.entries() {
            let (offset, entry) = entry?;
            match entry {
                Entry::Seed(seed) => self.seeded(seed),
                Entry::Sale(sale) => self.sold(sale),
            }
            self.next = offset + 1;
        }
        Ok(())
    }

    fn seeded(&mut self, seed: Seed) {
        let shelf = self.items.entry(seed.item).or_default();
        if seed.add {
            shelf.running.seeded += seed.units;
        } else {
            let running = Running { epoch: seed.epoch, seeded: seed.units, ..Running::default() };
            let before = std::mem::replace(&mut shelf.running, running);
            if !before.epoch.is_nil() {
                shelf.earlier.push(before.book(false));
            }
        }
    }

    fn sold(&mut self, sale: Sold<'_>) {
        let Some(Shelf { running, .. }) = self.items.get_mut(&*sale.item) else { return };
        if running.epoch != sale.epoch {
            return;
        }
        running.serial = running.serial.max(sale.serial);
        if let Some(name) = sale.attempt {
            let known =
                Known { order: sale.order, remaining: sale.remaining, batch: Uuid::nil(), open: false };
            running.attempts.insert(name, known);
        }
    }

    /// Computes the call's result without applying it.
    fn decide(&self, item: &Item, call: &Call) -> Reply {
        let Some(running) = self.items.get(item.name()).map(|shelf| &shelf.running) else {
            return Reply { outcomes: vec![Outcome::NotOnSale; call.attempts.len()], ..Reply::default() };
        };
        let units = if call.taking { running.left() } else { 0 };
        let mut winners = Vec::new();
        let mut mine: HashMap<&str, usize> = HashMap::new();
        let outcomes = call
            .attempts
            .iter()
            .map(|attempt| {
                let name = attempt.name.as_deref();
                if let Some(known) = name.and_then(|name| running.attempts.get(name)) {
                    return Outcome::Known(*known);
                }
                if let Some(index) = name.and_then(|name| mine.get(name)) {
                    return Outcome::Taken(*index);
                }
                if winners.len() as u64 >= units {
                    return if call.taking { Outcome::SoldOut } else { Outcome::NotTaken };
                }
                if let Some(name) = name {
                    mine.insert(name, winners.len());
                }
                winners.push(attempt.clone());
                Outcome::Taken(winners.len() - 1)
            })
            .collect();
        let left = running.left();
        let taken = (!winners.is_empty()).then(|| Batch {
            id: call.id,
            item: item.clone(),
            epoch: running.epoch,
            term: 0,
            serial: running.serial + 1,
            remaining: left - 1,
            at: call.at,
            attempts: winners,
        });
        let sold = taken.as_ref().map_or(0, |batch| batch.attempts.len() as u64);
        Reply {
            epoch: Some(running.epoch),
            left: Some(left - sold),
            term: 0,
            serial: running.serial + sold,
            open: 0,
            shut: false,
            taken,
            outcomes,
            standing: Vec::new(),
        }
    }
}

impl MemoryStock {
    /// Rebuilds the stock from the journal.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn open(journal: Arc<SqliteJournal>) -> Result<Self, String> {
        let stock = Self { journal, shelves: Mutex::default() };
        stock.catch_up(&mut *stock.shelves.lock().await).await?;
        Ok(stock)
    }

    /// Applies what is new in the journal.
    async fn catch_up(&self, shelves: &mut Shelves) -> Result<(), String> {
        let mut read = self.journal.read(shelves.next).await?;
        while let Some(rows) = read {
            // SQLite's thread reads ahead while these are applied.
            let (more, seen) = tokio::join!(self.journal.read(rows.last + 1), async { shelves.see(&rows) });
            seen?;
            read = more?;
        }
        Ok(())
    }
}

#[async_trait]
impl Stock for MemoryStock {
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError> {
        let mut shelves = self.shelves.lock().await;
        self.journal.in_place().await.map_err(StockError::Refused)?;
        if call.attempts.is_empty() || shelves.failed {
            self.catch_up(&mut shelves).await.map_err(StockError::Refused)?;
        }
        if shelves.failed {
            self.journal.probe().await.map_err(StockError::Refused)?;
            shelves.failed = false;
        }
        loop {
            let reply = shelves.decide(item, call);
            let Some(batch) = &reply.taken else { return Ok(reply) };
            let at = shelves.next;
            match self.journal.write(at, batch.sales()).await {
                Ok(()) => {
                    for sale in batch.sales() {
                        shelves.sold(sale.into());
                    }
                    shelves.next = at + batch.attempts.len() as i64;
                    return Ok(reply);
                }
                // A seed came in between: apply it and decide again.
                Err(WriteError::Overtaken) => {
                    self.catch_up(&mut shelves).await.map_err(StockError::Refused)?
                }
                Err(WriteError::Failed(error)) => {
                    shelves.failed = true;
                    // Read the file back for the outcome: all of the batch is there, or none.
                    let first = batch.attempts.first().map(|attempt| attempt.order);
                    let ours = self.journal.read(at).await.and_then(|rows| {
                        let Some(rows) = rows else { return Ok(false) };
                        shelves.see(&rows)?;
                        let sale = rows.entries().next();
                        Ok(matches!(sale, Some(Ok((_, Entry::Sale(sale)))) if Some(sale.order) == first))
                    });
                    let Ok(ours) = ours else { return Err(StockError::Silent(error)) };
                    if !ours {
                        return Err(StockError::Refused(error));
                    }
                    // The file may have been replaced, so nothing reads this one again.
                    return self.journal.in_place().await.map(|()| reply).map_err(StockError::Silent);
                }
            }
        }
    }

    /// Nothing is taken that is not in the journal.
    async fn outbox(&self, _item: &Item) -> Result<Vec<EntryName>, StockError> {
        Ok(Vec::new())
    }

    async fn entries(&self, _item: &Item, _names: &[EntryName]) -> Result<Entries, StockError> {
        Ok(Entries::default())
    }

    async fn items(&self) -> Result<Vec<Item>, StockError> {
        let mut shelves = self.shelves.lock().await;
        self.catch_up(&mut shelves).await.map_err(StockError::Refused)?;
        let mut items: Vec<Item> = shelves.items.keys().filter_map(|name| name.parse().ok()).collect();
        items.push(Item::default());
        items.sort();
        items.dedup();
        Ok(items)
    }

    async fn knows(&self, item: &Item) -> Result<bool, StockError> {
        Ok(self.items().await?.contains(item) && !self.books(item).await?.is_empty())
    }

    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError> {
        let seed = Seed { item: item.name().to_owned(), epoch, units, add: false, at: Timestamp::now() };
        self.journal.seed(&seed).await.map_err(StockError::Silent)?;
        self.books(item).await.map(drop)
    }

    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError> {
        let Some(book) = self.books(item).await?.into_iter().find(|book| book.on_sale) else {
            return Ok(None);
        };
        let seed =
            Seed { item: item.name().to_owned(), epoch: book.epoch, units, add: true, at: Timestamp::now() };
        self.journal.seed(&seed).await.map_err(StockError::Silent)?;
        Ok(self.books(item).await?.first().map(|book| book.left))
    }

    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError> {
        let mut shelves = self.shelves.lock().await;
        self.catch_up(&mut shelves).await.map_err(StockError::Refused)?;
        let Some(shelf) = shelves.items.get(item.name()) else { return Ok(Vec::new()) };
        Ok(std::iter::once(shelf.running.book(true)).chain(shelf.earlier.iter().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stock::contract::{call, keeps_the_contract};
    use consumer::sqlite::SqliteFile;

    async fn stock(folder: &tempfile::TempDir) -> MemoryStock {
        let file = SqliteFile::open(&folder.path().join("sale.db"), true).await.expect("a file");
        MemoryStock::open(Arc::new(SqliteJournal::new(file))).await.expect("a stock")
    }

    #[tokio::test]
    async fn the_contract() {
        let folder = tempfile::tempdir().expect("a folder");
        let stock = stock(&folder).await;
        keeps_the_contract(&stock, &Item::default()).await;
        keeps_the_contract(&stock, &"shoe".parse().expect("a name")).await;
    }

    #[tokio::test]
    async fn rebuilt_from_the_journal_it_is_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = stock(&folder).await;
        let item = Item::default();
        before.seed(&item, 3, Uuid::now_v7()).await.expect("seeded");
        let taken = before.take(&item, &call(&[Some("a"), None], true)).await.expect("taken");
        let after = stock(&folder).await;
        assert_eq!(after.books(&item).await.expect("books"), before.books(&item).await.expect("books"));
        let again = after.take(&item, &call(&[Some("a")], true)).await.expect("an answer");
        let Outcome::Known(known) = &again.outcomes[0] else { panic!("{again:?}") };
        assert_eq!(Some(known.order), taken.taken.map(|batch| batch.attempts[0].order));
    }

    /// More rows than one read returns.
    #[tokio::test]
    async fn rebuilt_from_a_long_journal_it_is_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = stock(&folder).await;
        let item = Item::default();
        before.seed(&item, 20_000, Uuid::now_v7()).await.expect("seeded");
        let names: Vec<String> = (0..10_500).map(|number| number.to_string()).collect();
        for names in names.chunks(500) {
            let names: Vec<_> = names.iter().map(|name| Some(name.as_str())).collect();
            before.take(&item, &call(&names, true)).await.expect("taken");
        }
        let after = stock(&folder).await;
        assert_eq!(after.books(&item).await.expect("books"), before.books(&item).await.expect("books"));
        let last = after.take(&item, &call(&[Some("10499")], true)).await.expect("an answer");
        assert!(matches!(last.outcomes[0], Outcome::Known(Known { remaining: 9_500, .. })), "{last:?}");
    }

    /// A seed by another process between two batches: the batch is decided again.
    #[tokio::test]
    async fn overtaken_by_a_new_sale() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (stock(&folder).await, stock(&folder).await);
        let item = Item::default();
        ours.seed(&item, 3, Uuid::now_v7()).await.expect("seeded");
        ours.take(&item, &call(&[None], true)).await.expect("taken");
        let epoch = Uuid::now_v7();
        theirs.seed(&item, 9, epoch).await.expect("seeded");
        let taken = ours.take(&item, &call(&[None], true)).await.expect("taken").taken.expect("a unit");
        assert_eq!((taken.epoch, taken.serial, taken.remaining), (epoch, 1, 8));
    }
}
