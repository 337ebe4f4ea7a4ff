//! The simulated Redis: the scripts' behaviour on a copyable value.
//!
//! A copy is a snapshot. A restart changes `life`; the run chooses what survives it.

use std::collections::{BTreeMap, BTreeSet};

use consumer::sale::Sale;
use seckill::sale::{Batch, Item};
use seckill::stock::{
    Book, Call, Claim, Claimed, Entries, EntryName, Known, Opening, Outcome, Owner, Reply, StockError,
};
use uuid::Uuid;

use crate::faults::Mutation;

/// The complete state.
#[derive(Debug, Clone, Default)]
pub struct Redis {
    pub life: Life,
    pub items: BTreeSet<Item>,
    pub shelves: BTreeMap<Item, Shelf>,
}

/// A process, and the history of its data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    pub process: u64,
    pub history: u64,
}

impl std::fmt::Display for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.process, self.history)
    }
}

/// The keys of one item.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    pub counter: Option<i64>,
    pub book: Hash,
    pub books: BTreeMap<Uuid, Earlier>,
    pub outbox: BTreeMap<Uuid, Batch>,
    pub attempts: BTreeMap<String, Record>,
    /// `{K}:attempts:ID`.
    pub prepared: BTreeMap<Uuid, BTreeMap<String, Record>>,
}

/// `{K}:book`. No epoch, no sale; it may still be shut.
#[derive(Debug, Clone, Default)]
pub struct Hash {
    pub epoch: Option<Uuid>,
    pub serial: u64,
    pub left: u64,
    pub seeded: i64,
    pub term: u64,
    pub run: Option<Life>,
    pub shut: Option<String>,
    pub beat: u64,
    pub next: Option<String>,
}

/// Whether a book of this life is valid in that one.
pub fn believed(book: &Hash, here: &Life, mutation: Option<Mutation>) -> bool {
    match (&book.run, mutation) {
        (_, Some(Mutation::BelieveARestart)) => true,
        (Some(run), Some(Mutation::BelieveAProcess)) => run.process == here.process,
        (run, _) => run.as_ref() == Some(here),
    }
}

/// An entry of `{K}:books`.
#[derive(Debug, Clone)]
pub struct Earlier {
    pub serial: u64,
    pub left: u64,
    pub seeded: i64,
}

/// An entry of `{K}:attempts`.
#[derive(Debug, Clone)]
pub struct Record {
    pub order: Uuid,
    pub remaining: u64,
    pub batch: Uuid,
}

impl Shelf {
    /// Negative counts as zero.
    pub fn stands(&self) -> u64 {
        self.counter.map_or(0, |counter| u64::try_from(counter).unwrap_or(0))
    }
}

impl Redis {
    pub fn shelf(&mut self, item: &Item) -> &mut Shelf {
        self.shelves.entry(item.clone()).or_default()
    }

    /// take.lua. `reused` is the epoch that a mutation reuses.
    pub fn take(
        &mut self,
        item: &Item,
        call: &Call,
        mutation: Option<Mutation>,
        reused: Option<Uuid>,
    ) -> Result<Reply, StockError> {
        let here = self.life.clone();
        let shelf = self.shelf(item);
        let stands = shelf.stands();
        let believed = believed(&shelf.book, &here, mutation);
        if shelf.book.shut.is_some() || (shelf.book.epoch.is_some() && !believed) {
            for batch in &call.settled {
                shelf.outbox.remove(batch);
            }
            return Ok(Reply {
                epoch: shelf.book.epoch,
                term: shelf.book.term,
                serial: 0,
                left: None,
                open: shelf.outbox.len() as u64,
                shut: true,
                taken: None,
                outcomes: vec![Outcome::Shut; call.attempts.len()],
                standing: Vec::new(),
            });
        }
        if shelf.book.epoch.is_none() && shelf.counter.is_some() {
            let offer = match (mutation, reused) {
                (Some(Mutation::ReuseEpoch), Some(epoch)) => epoch,
                _ => call.offer,
            };
            shelf.book = Hash {
                epoch: Some(offer),
                left: stands,
                seeded: stands as i64,
                run: Some(here.clone()),
                ..Hash::default()
            };
        } else if shelf.book.epoch.is_some() && stands != shelf.book.left {
            shelf.book.seeded += stands as i64 - shelf.book.left as i64;
            shelf.book.left = stands;
        }
        let may = shelf.counter.is_some() && call.taking;
        let units = if may { shelf.book.left } else { 0 };
        let left = shelf.book.left;
        let without = if !call.taking {
            Outcome::NotTaken
        } else if shelf.counter.is_none() {
            Outcome::NotOnSale
        } else {
            Outcome::SoldOut
        };
        let mut outcomes: Vec<Option<Outcome>> = vec![None; call.attempts.len()];
        let mut winners = Vec::new();
        let mut mine: BTreeMap<&str, usize> = BTreeMap::new();
        let mut standing: BTreeMap<Uuid, Batch> = BTreeMap::new();
        let skip = mutation == Some(Mutation::SkipLookUpWhenSoldOut) && units == 0;
        // The script processes the named attempts first, then the others.
        for (at, attempt) in call.attempts.iter().enumerate() {
            let Some(name) = attempt.name.as_deref() else { continue };
            let outcome = if let Some(record) = shelf.attempts.get(name).filter(|_| !skip) {
                let entry = shelf.outbox.get(&record.batch);
                if let Some(entry) = entry {
                    standing.insert(record.batch, entry.clone());
                }
                Outcome::Known(Known {
                    order: record.order,
                    remaining: record.remaining,
                    batch: record.batch,
                    open: entry.is_some(),
                })
            } else if let Some(index) = mine.get(name) {
                Outcome::Taken(*index)
            } else if (winners.len() as u64) < units {
                winners.push(attempt.clone());
                mine.insert(name, winners.len() - 1);
                Outcome::Taken(winners.len() - 1)
            } else {
                without.clone()
            };
            outcomes[at] = Some(outcome);
        }
        for (at, attempt) in call.attempts.iter().enumerate() {
            if attempt.name.is_some() {
                continue;
            }
            outcomes[at] = Some(if (winners.len() as u64) < units {
                winners.push(attempt.clone());
                Outcome::Taken(winners.len() - 1)
            } else {
                without.clone()
            });
        }
        let taken = if winners.is_empty() {
            None
        } else {
            let count = winners.len() as u64;
            let batch = Batch {
                id: call.id,
                item: item.clone(),
                epoch: shelf.book.epoch.expect("units are only left in a sale"),
                term: shelf.book.term,
                serial: shelf.book.serial + 1,
                remaining: left - 1,
                at: call.at,
                attempts: winners,
            };
            shelf.counter = shelf.counter.map(|counter| counter - count as i64);
            shelf.book.serial += count;
            shelf.book.left -= count;
            if mutation != Some(Mutation::SettleEarly) {
                shelf.outbox.insert(call.id, batch.clone());
            }
            for (index, attempt) in batch.attempts.iter().enumerate() {
                if let Some(name) = &attempt.name {
                    let record =
                        Record { order: attempt.order, remaining: left - 1 - index as u64, batch: call.id };
                    shelf.attempts.insert(name.clone(), record);
                }
            }
            Some(batch)
        };
        for batch in &call.settled {
            shelf.outbox.remove(batch);
        }
        if taken.is_some() && mutation == Some(Mutation::WriteBeforeChecks) {
            return Err(StockError::Refused("a key of the wrong type, seen too late".into()));
        }
        Ok(Reply {
            epoch: shelf.book.epoch,
            term: shelf.book.term,
            serial: shelf.book.serial,
            left: shelf.counter.map(|_| shelf.book.left),
            open: shelf.outbox.len() as u64,
            shut: false,
            taken,
            outcomes: outcomes.into_iter().map(|outcome| outcome.expect("each has one")).collect(),
            standing: standing.into_values().collect(),
        })
    }

    /// seed.lua. Returns whether a sale began.
    pub fn seed(&mut self, item: &Item, units: u64, epoch: Uuid) -> Result<bool, StockError> {
        self.items.insert(item.clone());
        let here = self.life.clone();
        let shelf = self.shelf(item);
        if shelf.book.epoch == Some(epoch) || shelf.books.contains_key(&epoch) {
            return Ok(false);
        }
        if shelf.book.shut.is_some() || (shelf.book.epoch.is_some() && shelf.book.run.as_ref() != Some(&here))
        {
            return Err(StockError::Refused("SHUT".into()));
        }
        if shelf.book.epoch.is_some_and(|running| running > epoch) {
            return Err(StockError::Refused("OUTDATED".into()));
        }
        if let Some(before) = shelf.book.epoch {
            let now = shelf.stands();
            let seeded = shelf.book.seeded + now as i64 - shelf.book.left as i64;
            shelf.books.insert(before, Earlier { serial: shelf.book.serial, left: now, seeded });
        }
        shelf.counter = Some(units as i64);
        shelf.attempts.clear();
        shelf.book = Hash {
            epoch: Some(epoch),
            left: units,
            seeded: units as i64,
            run: Some(here),
            ..Hash::default()
        };
        Ok(true)
    }

    /// add.lua. Returns the counter before and after.
    pub fn add(
        &mut self,
        item: &Item,
        units: u64,
        mutation: Option<Mutation>,
    ) -> Result<Option<(u64, u64)>, StockError> {
        let here = self.life.clone();
        let shelf = self.shelf(item);
        let shut = shelf.book.shut.is_some()
            || (shelf.book.epoch.is_some() && shelf.book.run.as_ref() != Some(&here));
        if shut && mutation != Some(Mutation::AddWhileShut) {
            return Err(StockError::Refused("SHUT".into()));
        }
        if shelf.counter.is_none() {
            return Ok(None);
        }
        let before = shelf.stands();
        shelf.counter = Some((before + units) as i64);
        Ok(Some((before, before + units)))
    }

    /// claim.lua.
    pub fn claim(
        &mut self,
        item: &Item,
        id: Uuid,
        claim: Claim,
        mutation: Option<Mutation>,
    ) -> Option<Claimed> {
        const FREE: &str = "free";
        let here = self.life.clone();
        let id = id.to_string();
        let book = &mut self.shelf(item).book;
        let owner = |book: &Hash| book.shut.clone().map(|id| Owner { id, beat: book.beat });
        let overrules = matches!(claim, Claim::Doubt(_) | Claim::Overrule(_));
        let (from, waits) = match claim {
            Claim::Renew(life) => {
                if book.shut.as_ref() != Some(&id) || life != here.to_string() {
                    return None;
                }
                book.beat += 1;
                return Some(self.claimed(item));
            }
            Claim::Release | Claim::Drop => {
                if book.shut.as_ref() != Some(&id) {
                    return None;
                }
                if claim == Claim::Drop && book.epoch.is_none() && book.next.is_none() {
                    *book = Hash::default();
                    return None;
                }
                book.shut = Some(book.next.take().unwrap_or_else(|| FREE.to_owned()));
                book.beat = 0;
                return Some(self.claimed(item));
            }
            Claim::Reopen(_) if book.shut.is_none() && book.epoch.is_none() => return None,
            Claim::Reopen(from) | Claim::Doubt(from) => (from, false),
            Claim::Restore(from) | Claim::Overrule(from) => (from, true),
        };
        if !overrules && book.shut.is_none() && book.epoch.is_some() && believed(book, &here, mutation) {
            return None;
        }
        let free =
            book.shut.is_none() || book.shut.as_deref() == Some(FREE) || book.shut.as_ref() == Some(&id);
        if free || (from.is_some() && owner(book) == from) {
            (book.shut, book.beat) = (Some(id.clone()), 0);
            book.next.take_if(|next| *next == id);
        } else if waits {
            book.next = Some(id);
        }
        Some(self.claimed(item))
    }

    fn claimed(&mut self, item: &Item) -> Claimed {
        let life = self.life.to_string();
        let book = &self.shelf(item).book;
        Claimed {
            by: Owner { id: book.shut.clone().unwrap_or_default(), beat: book.beat },
            life,
            epoch: book.epoch,
            serial: book.serial,
        }
    }

    pub fn prepare(&mut self, item: &Item, id: Uuid, winners: &[Sale]) {
        let prepared = self.shelf(item).prepared.entry(id).or_default();
        for sale in winners {
            let record = Record { order: sale.order, remaining: sale.remaining, batch: Uuid::nil() };
            prepared.extend(sale.attempt.clone().map(|name| (name, record)));
        }
    }

    /// open.lua.
    pub fn open(&mut self, item: &Item, opening: &Opening) -> bool {
        let here = self.life.clone();
        let shelf = self.shelf(item);
        if shelf.book.shut != Some(opening.id.to_string()) || here.to_string() != opening.life {
            return false;
        }
        if let Some(anew) = &opening.anew {
            if let Some(epoch) = shelf.book.epoch.filter(|epoch| *epoch != anew.epoch) {
                let Hash { serial, left, seeded, .. } = shelf.book;
                shelf.books.insert(epoch, Earlier { serial, left, seeded });
            }
            shelf.books.remove(&anew.epoch);
            shelf.book.epoch = Some(anew.epoch);
            shelf.book.serial = anew.serial;
            shelf.book.left = anew.left;
            shelf.book.seeded = (anew.serial + anew.left) as i64;
            shelf.counter = Some(anew.left as i64);
            shelf.attempts = shelf.prepared.remove(&opening.id).unwrap_or_default();
        }
        shelf.outbox.clear();
        shelf.book.run = Some(here);
        shelf.book.term = opening.term;
        (shelf.book.shut, shelf.book.beat, shelf.book.next) = (None, 0, None);
        true
    }

    pub fn outbox(&mut self, item: &Item) -> Vec<EntryName> {
        self.shelf(item).outbox.keys().map(|id| id.to_string().into_bytes()).collect()
    }

    pub fn entries(&mut self, item: &Item, names: &[EntryName]) -> Entries {
        let outbox = &self.shelf(item).outbox;
        let batch = |name: &EntryName| outbox.get(&Uuid::try_parse_ascii(name).ok()?).cloned();
        Entries { batches: names.iter().filter_map(batch).collect(), unreadable: Vec::new() }
    }

    pub fn books(&mut self, item: &Item) -> Vec<Book> {
        let here = self.life.clone();
        let shelf = self.shelf(item);
        let now = shelf.stands();
        let shut = shelf.book.shut.is_some()
            || (shelf.book.epoch.is_some() && shelf.book.run.as_ref() != Some(&here));
        let mut books = Vec::new();
        if let Some(epoch) = shelf.book.epoch {
            let seeded = shelf.book.seeded + now as i64 - shelf.book.left as i64;
            books.push(Book {
                epoch,
                term: shelf.book.term,
                serial: shelf.book.serial,
                left: now,
                seeded: u64::try_from(seeded).unwrap_or(0),
                on_sale: shelf.counter.is_some(),
                shut,
            });
        } else if shelf.counter.is_some() || shut {
            let on_sale = shelf.counter.is_some();
            books.push(Book {
                epoch: Uuid::nil(),
                term: 0,
                serial: 0,
                left: now,
                seeded: now,
                on_sale,
                shut,
            });
        }
        for (epoch, earlier) in &shelf.books {
            books.push(Book {
                epoch: *epoch,
                term: 0,
                serial: earlier.serial,
                left: earlier.left,
                seeded: u64::try_from(earlier.seeded).unwrap_or(0),
                on_sale: false,
                shut: false,
            });
        }
        books
    }
}
