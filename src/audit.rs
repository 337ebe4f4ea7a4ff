//! The check of the books: every unit sold is recorded once, and seeded = left + sold.

use std::collections::{BTreeMap, BTreeSet};

use consumer::ledger::{Checkpoint, SaleRecord};
use serde::Serialize;
use uuid::Uuid;

use crate::item::Item;
use crate::stock::Book;
use crate::world::World;

/// Serials listed by number; more are only counted.
const LISTED: usize = 1000;

/// What an audit found; its JSON form is a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// Whether nothing is wrong. Sales on their way are not wrong.
    pub balanced: bool,
    /// Every sale of every item, the running one first.
    pub items: Vec<Finding>,
    /// Sales whose unit or order is recorded otherwise.
    pub conflicts: u64,
    /// Messages that could not be read; they do not unbalance the books.
    pub dead_letters: u64,
    /// Sales neither in the ledger nor missing: the ledger has not caught up.
    #[serde(skip)]
    pub on_their_way: u64,
    /// What is wrong, in words.
    #[serde(skip)]
    pub reasons: Vec<String>,
}

/// One sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was sold.
    pub item: String,
    /// Which sale of it.
    pub epoch: Uuid,
    /// Units ever put on sale.
    pub seeded: u64,
    /// The counter now.
    pub left: u64,
    /// Units sold, by the stock's book.
    pub sold: u64,
    /// Rows in the ledger.
    pub recorded: u64,
    /// Units in the outbox.
    pub outbox: u64,
    /// Serials sold and recorded nowhere, the first 1000.
    pub missing: Vec<u64>,
    /// All of them.
    pub missing_count: u64,
    /// Serials in conflict, the first 1000.
    pub doubled: Vec<u64>,
}

/// What the stock said of one item, before the ledger was asked.
struct Before {
    item: Item,
    books: Vec<Book>,
    outbox: BTreeMap<Uuid, BTreeSet<u64>>,
}

/// Messages in the journal that the ledger has not posted.
#[must_use]
pub fn behind(ends: &BTreeMap<i32, i64>, posted: &BTreeMap<i32, Checkpoint>) -> u64 {
    ends.iter()
        .map(|(partition, end)| {
            let next = posted.get(partition).map_or(0, |checkpoint| checkpoint.next);
            u64::try_from(end - next).unwrap_or(0)
        })
        .sum()
}

/// Checks the books of one item, or of all that stock or ledger know.
///
/// Sales move from the outbox to the journal to the ledger, and are looked for in that order:
/// one that has passed on meanwhile is met again further down.
///
/// # Errors
/// What could not be read, so that nothing can be said.
pub async fn audit(world: &World, only: Option<&Item>) -> Result<Audit, String> {
    let known = world.ledger.sales().await.map_err(|error| error.to_string())?;
    let mut items: BTreeSet<Item> = match only {
        Some(item) => BTreeSet::from([item.clone()]),
        None => known.iter().filter_map(|sale| sale.item.parse().ok()).collect(),
    };
    if only.is_none() {
        items.extend(world.stock.items().await.map_err(|error| error.to_string())?);
    }
    let mut before = Vec::new();
    let mut audit = Audit {
        balanced: true,
        items: Vec::new(),
        conflicts: 0,
        dead_letters: 0,
        on_their_way: 0,
        reasons: Vec::new(),
    };
    for item in items {
        let books = world.stock.books(&item).await.map_err(|error| error.to_string())?;
        let entries = world.stock.outbox(&item).await.map_err(|error| error.to_string())?;
        audit.reasons.extend(entries.unreadable);
        let mut outbox: BTreeMap<Uuid, BTreeSet<u64>> = BTreeMap::new();
        for sale in entries.batches.iter().flat_map(|batch| batch.sales()) {
            outbox.entry(sale.epoch).or_default().insert(sale.serial);
        }
        before.push(Before { item, books, outbox });
    }
    let ends = world.journal.ends().await?;
    let posted = world.ledger.checkpoints(world.journal.topic()).await.map_err(|error| error.to_string())?;
    let caught_up = behind(&ends, &posted) == 0;
    let records = world.ledger.sales().await.map_err(|error| error.to_string())?;
    let faults = world.ledger.faults().await.map_err(|error| error.to_string())?;
    audit.conflicts = match only {
        Some(item) => {
            records.iter().filter(|sale| sale.item == item.name()).map(|sale| sale.doubled.len() as u64).sum()
        }
        None => faults.conflicts,
    };
    audit.dead_letters = faults.dead_letters;
    if audit.conflicts > 0 {
        audit.reasons.push(format!("{} sales in conflict, see table seckill_conflict", audit.conflicts));
    }
    for Before { item, books, outbox } in before {
        let mut records: BTreeMap<Uuid, &SaleRecord> = records
            .iter()
            .filter(|record| record.item == item.name())
            .map(|record| (record.epoch, record))
            .collect();
        for book in books {
            let record = records.remove(&book.epoch);
            let waiting = outbox.get(&book.epoch);
            let finding = audit.check(world, &item, &book, record, waiting, caught_up).await?;
            audit.items.push(finding);
        }
        for (epoch, record) in records.into_iter().filter(|(_, record)| record.highest > 0) {
            // The stock has forgotten this sale: Redis was emptied. What it sold is recorded.
            log::warn!("{item}: sale {epoch} is known to the ledger alone, up to serial {}", record.highest);
            let book = Book {
                epoch,
                serial: record.highest,
                left: 0,
                seeded: record.highest,
                on_sale: false,
                shut: false,
            };
            let finding = audit.check(world, &item, &book, Some(record), None, caught_up).await?;
            audit.items.push(finding);
        }
    }
    audit.balanced = audit.reasons.is_empty();
    Ok(audit)
}

impl Audit {
    async fn check(
        &mut self,
        world: &World,
        item: &Item,
        book: &Book,
        record: Option<&SaleRecord>,
        outbox: Option<&BTreeSet<u64>>,
        caught_up: bool,
    ) -> Result<Finding, String> {
        let recorded = record.map_or(0, |record| record.recorded);
        let empty = BTreeSet::new();
        let outbox = outbox.unwrap_or(&empty);
        let mut finding = Finding {
            item: item.name().to_owned(),
            epoch: book.epoch,
            seeded: book.seeded,
            left: book.left,
            sold: book.serial,
            recorded,
            outbox: outbox.len() as u64,
            missing: Vec::new(),
            missing_count: 0,
            doubled: record
                .map(|record| record.doubled.iter().copied().take(LISTED).collect())
                .unwrap_or_default(),
        };
        let void = record.map_or(0, |record| record.void);
        let whole =
            recorded + void >= book.serial && record.is_none_or(|record| record.highest <= recorded + void);
        if !whole {
            let serials =
                world.ledger.serials(item.name(), book.epoch).await.map_err(|error| error.to_string())?;
            let there: BTreeSet<u64> = serials.into_iter().collect();
            let absent =
                (1..=book.serial).filter(|serial| !there.contains(serial) && !outbox.contains(serial));
            if caught_up {
                for serial in absent {
                    finding.missing_count += 1;
                    if finding.missing.len() < LISTED {
                        finding.missing.push(serial);
                    }
                }
            } else {
                self.on_their_way += absent.count() as u64;
            }
        }
        self.on_their_way += finding.outbox;
        let name = format!("{item}, sale {}", book.epoch);
        if finding.missing_count > 0 {
            self.reasons.push(format!(
                "{name}: {} serials sold and recorded nowhere: {}",
                finding.missing_count,
                listed(&finding.missing)
            ));
        }
        if !finding.doubled.is_empty() {
            self.reasons.push(format!("{name}: serials in conflict: {}", listed(&finding.doubled)));
        }
        if book.seeded != book.left + book.serial {
            self.reasons.push(format!(
                "{name}: {} seeded, but {} left and {} sold",
                book.seeded, book.left, book.serial
            ));
        }
        if record.is_some_and(|record| record.highest > book.serial)
            && self.sold_more(world, item, book, record).await?
        {
            self.reasons.push(format!("{name}: recorded up to a serial that the stock has not sold"));
        }
        Ok(finding)
    }

    /// Whether the ledger has serials beyond the book's, read again after the ledger was.
    async fn sold_more(
        &self,
        world: &World,
        item: &Item,
        book: &Book,
        record: Option<&SaleRecord>,
    ) -> Result<bool, String> {
        let books = world.stock.books(item).await.map_err(|error| error.to_string())?;
        let sold = books.iter().find(|now| now.epoch == book.epoch).map_or(0, |now| now.serial);
        Ok(record.is_some_and(|record| record.highest > sold))
    }
}

fn listed(serials: &[u64]) -> String {
    const SHOWN: usize = 20;
    let mut text = serials.iter().take(SHOWN).map(u64::to_string).collect::<Vec<_>>().join(", ");
    if serials.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
