//! The simulated Redis: what take, seed, shut and open do, over a value that can be copied.
//!
//! A copy is a snapshot. A restart changes `run`; what it keeps is for the run to choose.

use std::collections::{BTreeMap, BTreeSet};

use seckill::item::Item;
use seckill::stock::{Batch, Book, Call, Known, Opening, Outbox, Outcome, Reply, Shut, Shutting, StockError};
use uuid::Uuid;

use crate::faults::Mutation;

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Redis {
    pub run: String,
    pub items: BTreeSet<Item>,
    pub shelves: BTreeMap<Item, Shelf>,
}

/// The keys of one item.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    pub counter: Option<i64>,
    pub book: Hash,
    pub books: BTreeMap<Uuid, Earlier>,
    pub outbox: BTreeMap<Uuid, Batch>,
    pub attempts: BTreeMap<String, Record>,
}

/// `{K}:book`. Without an epoch there is no sale; it may be shut all the same.
#[derive(Debug, Clone, Default)]
pub struct Hash {
    pub epoch: Option<Uuid>,
    pub serial: u64,
    pub left: u64,
    pub seeded: i64,
    pub term: u64,
    pub run: Option<String>,
    pub shut: Option<String>,
}

/// One of `{K}:books`.
#[derive(Debug, Clone)]
pub struct Earlier {
    pub serial: u64,
    pub left: u64,
    pub seeded: i64,
}

/// One of `{K}:attempts`.
#[derive(Debug, Clone)]
pub struct Record {
    pub order: Uuid,
    pub remaining: u64,
    pub batch: Uuid,
}

impl Shelf {
    /// Below zero counts as zero.
    pub fn stands(&self) -> u64 {
        self.counter.map_or(0, |counter| u64::try_from(counter).unwrap_or(0))
    }
}

impl Redis {
    pub fn shelf(&mut self, item: &Item) -> &mut Shelf {
        self.shelves.entry(item.clone()).or_default()
    }

    /// take.lua. `reused` is the epoch that a mutation brings back.
    pub fn take(
        &mut self,
        item: &Item,
        call: &Call,
        mutation: Option<Mutation>,
        reused: Option<Uuid>,
    ) -> Result<Reply, StockError> {
        let run = self.run.clone();
        let shelf = self.shelf(item);
        let stands = shelf.stands();
        let believed =
            shelf.book.run.as_deref() == Some(&*run) || mutation == Some(Mutation::BelieveARestart);
        if shelf.book.shut.is_some() || (shelf.book.epoch.is_some() && !believed) {
            for batch in &call.settled {
                shelf.outbox.remove(batch);
            }
            return Ok(Reply {
                epoch: shelf.book.epoch,
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
                run: Some(run.clone()),
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
        // The script sees the named ones first, then the others.
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
            left: shelf.counter.map(|_| shelf.book.left),
            open: shelf.outbox.len() as u64,
            shut: false,
            taken,
            outcomes: outcomes.into_iter().map(|outcome| outcome.expect("each has one")).collect(),
            standing: standing.into_values().collect(),
        })
    }

    /// seed.lua. Whether a sale was begun.
    pub fn seed(&mut self, item: &Item, units: u64, epoch: Uuid) -> Result<bool, StockError> {
        self.items.insert(item.clone());
        let run = self.run.clone();
        let shelf = self.shelf(item);
        if shelf.book.epoch == Some(epoch) || shelf.books.contains_key(&epoch) {
            return Ok(false);
        }
        if shelf.book.shut.is_some()
            || (shelf.book.epoch.is_some() && shelf.book.run.as_deref() != Some(&*run))
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
        shelf.book =
            Hash { epoch: Some(epoch), left: units, seeded: units as i64, run: Some(run), ..Hash::default() };
        Ok(true)
    }

    /// shut.lua.
    pub fn shut(&mut self, item: &Item, id: Uuid, why: Shutting) -> Option<Shut> {
        let here = self.run.clone();
        let book = &mut self.shelf(item).book;
        let believed = book.epoch.is_none() || book.run.as_deref() == Some(&*here);
        // An open sale that is believed is left alone; without a book only a restore shuts.
        if book.shut.is_none() && book.epoch.is_some() && believed {
            return None;
        }
        let from = match why {
            Shutting::Reopen(_) if book.shut.is_none() && book.epoch.is_none() => return None,
            Shutting::Reopen(from) => from.map(|from| from.to_string()),
            Shutting::Restore => book.shut.clone(),
        };
        if book.shut.is_none() || book.shut == from {
            book.shut = Some(id.to_string());
        }
        Some(Shut {
            by: book.shut.clone().unwrap_or_default(),
            run: here,
            epoch: book.epoch,
            serial: book.serial,
        })
    }

    /// open.lua.
    pub fn open(&mut self, item: &Item, opening: &Opening) -> bool {
        let here = self.run.clone();
        let shelf = self.shelf(item);
        if shelf.book.shut != Some(opening.id.to_string()) || here != opening.run {
            return false;
        }
        if let Some(anew) = &opening.anew {
            shelf.book.epoch = Some(anew.epoch);
            shelf.book.serial = anew.serial;
            shelf.book.left = anew.left;
            shelf.book.seeded = (anew.serial + anew.left) as i64;
            shelf.counter = Some(anew.left as i64);
            shelf.attempts = anew
                .winners
                .iter()
                .filter_map(|sale| {
                    let record = Record { order: sale.order, remaining: sale.remaining, batch: Uuid::nil() };
                    Some((sale.attempt.clone()?, record))
                })
                .collect();
        }
        shelf.outbox.clear();
        shelf.book.run = Some(here);
        shelf.book.term = opening.term;
        shelf.book.shut = None;
        true
    }

    pub fn outbox(&mut self, item: &Item) -> Outbox {
        Outbox { batches: self.shelf(item).outbox.values().cloned().collect(), unreadable: Vec::new() }
    }

    pub fn books(&mut self, item: &Item) -> Vec<Book> {
        let here = self.run.clone();
        let shelf = self.shelf(item);
        let now = shelf.stands();
        let shut = shelf.book.shut.is_some()
            || (shelf.book.epoch.is_some() && shelf.book.run.as_deref() != Some(&*here));
        let mut books = Vec::new();
        if let Some(epoch) = shelf.book.epoch {
            let seeded = shelf.book.seeded + now as i64 - shelf.book.left as i64;
            books.push(Book {
                epoch,
                serial: shelf.book.serial,
                left: now,
                seeded: u64::try_from(seeded).unwrap_or(0),
                on_sale: shelf.counter.is_some(),
                shut,
            });
        } else if shelf.counter.is_some() {
            books.push(Book { epoch: Uuid::nil(), serial: 0, left: now, seeded: now, on_sale: true, shut });
        }
        for (epoch, earlier) in &shelf.books {
            books.push(Book {
                epoch: *epoch,
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
