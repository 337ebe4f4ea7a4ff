//! Audit of the books: every unit sold is recorded once, and seeded = left + sold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use consumer::ledger::{LISTED, SaleRecord};
use serde::Serialize;
use uuid::Uuid;

use crate::books::gaps::{self, Gaps, Runs};
use crate::journal::progress::{Trouble, recorded_all};
use crate::sale::Item;
use crate::stock::{Book, Walk};
use crate::world::World;

/// An audit's result; its JSON form is a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// Whether nothing is wrong. Sales in flight are not wrong.
    pub balanced: bool,
    /// Every sale of every item, the running one first.
    pub items: Vec<Finding>,
    /// Sales whose unit or order is recorded otherwise.
    pub conflicts: u64,
    /// Dead letters: messages that could not be read; they do not unbalance the books.
    pub dead_letters: u64,
    /// Sales neither in the ledger nor missing: the ledger lags behind.
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
    /// The item.
    pub item: String,
    /// The sale.
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
    /// How many there are in all.
    pub missing_count: u64,
    /// Serials written off by a restore.
    #[serde(skip)]
    pub void: u64,
    /// Serials in conflict, the first 1000.
    pub doubled: Vec<u64>,
}

/// Snapshot of the stock's side of one item, taken before the ledger is read.
struct Before {
    item: Item,
    books: Vec<Book>,
    /// The serials in the outbox by sale, in ascending runs.
    outbox: BTreeMap<Uuid, Runs>,
}

/// The items that stock or ledger know, except archived ones.
///
/// # Errors
/// What could not be read.
pub async fn known_items(world: &World) -> Result<BTreeSet<Item>, Trouble> {
    let recorded = world.ledger.sales(None).await?;
    let mut items: BTreeSet<Item> = recorded.iter().filter_map(|sale| sale.item.parse().ok()).collect();
    items.extend(world.stock.items().await?);
    Ok(items)
}

/// Audits one item, or all that stock or ledger know.
///
/// Sales move from the outbox to the journal to the ledger; reading in that order meets one that has moved on
/// further down.
///
/// # Errors
/// What could not be read, which leaves no result.
pub async fn audit(world: &World, only: Option<&Item>) -> Result<Audit, Trouble> {
    let items = match only {
        Some(item) => BTreeSet::from([item.clone()]),
        None => known_items(world).await?,
    };
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
        let books = world.stock.books(&item).await?;
        let mut outbox: BTreeMap<Uuid, Runs> = BTreeMap::new();
        let mut walk = Walk::through(&*world.stock, &item).await?;
        while let Some(entries) = walk.next().await? {
            audit.reasons.extend(entries.unreadable);
            for batch in entries.batches {
                let last = batch.serial + batch.attempts.len() as u64 - 1;
                outbox.entry(batch.epoch).or_default().push(batch.serial..=last);
            }
        }
        outbox.values_mut().for_each(|runs| *runs = merged(std::mem::take(runs)));
        before.push(Before { item, books, outbox });
    }
    let caught_up = recorded_all(&*world.journal, &*world.ledger).await?;
    let name = only.map(Item::name);
    let records = world.ledger.sales(name).await?;
    let archived = world.ledger.archived(name).await?;
    audit.dead_letters = world.ledger.faults().await?.dead_letters;
    audit.conflicts = records.iter().map(|sale| sale.conflicts).sum();
    if audit.conflicts > 0 {
        audit.reasons.push(format!("{} sales in conflict, see table seckill_conflict", audit.conflicts));
    }
    for Before { item, books, outbox } in before {
        let mut records: BTreeMap<Uuid, &SaleRecord> = records
            .iter()
            .filter(|record| record.item == item.name())
            .map(|record| (record.epoch, record))
            .collect();
        let away = |epoch: Uuid| archived.contains(&(item.name().to_owned(), epoch));
        for book in books.iter().filter(|book| !away(book.epoch)) {
            let record = records.remove(&book.epoch);
            let waiting = outbox.get(&book.epoch).map_or(&[][..], Vec::as_slice);
            let finding = audit.check(world, &item, book, record, waiting, caught_up).await?;
            audit.items.push(finding);
        }
        for (epoch, record) in records.into_iter().filter(|(_, record)| record.highest > 0) {
            // The stock has lost this sale: Redis was emptied. What it sold is recorded.
            log::warn!("{item}: sale {epoch} is known to the ledger alone, up to serial {}", record.highest);
            let account = world.ledger.account(item.name(), epoch).await?;
            let book = Book {
                epoch,
                term: account.term,
                serial: account.highest,
                left: 0,
                seeded: account.highest,
                on_sale: false,
                shut: false,
            };
            let finding = audit.check(world, &item, &book, Some(record), &[], caught_up).await?;
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
        outbox: &[RangeInclusive<u64>],
        caught_up: bool,
    ) -> Result<Finding, Trouble> {
        let mut finding = Finding {
            item: item.name().to_owned(),
            epoch: book.epoch,
            seeded: book.seeded,
            left: book.left,
            sold: book.serial,
            recorded: 0,
            outbox: gaps::length(outbox),
            missing: Vec::new(),
            missing_count: 0,
            void: 0,
            doubled: record.map(|record| record.doubled.clone()).unwrap_or_default(),
        };
        let mut found = Gaps::up_to(&*world.ledger, item.name(), book.epoch, book.serial);
        while let Some(absent) = found.next().await? {
            for run in absent.into_iter().flat_map(|run| gaps::without(run, outbox)) {
                if caught_up {
                    finding.missing_count += gaps::length(std::slice::from_ref(&run));
                    finding.missing.extend(run.take(LISTED as usize - finding.missing.len()));
                } else {
                    self.on_their_way += gaps::length(&[run]);
                }
            }
        }
        let count = found.counted();
        finding.recorded = count.recorded;
        finding.void = count.void;
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
        if count.highest > book.serial && self.sold_less(world, item, book, count.highest).await? {
            self.reasons.push(format!(
                "{name}: recorded up to serial {}, which the stock has not sold",
                count.highest
            ));
        }
        Ok(finding)
    }

    /// Whether the ledger has serials beyond those of the book, which is read again after the ledger.
    async fn sold_less(
        &self,
        world: &World,
        item: &Item,
        book: &Book,
        highest: u64,
    ) -> Result<bool, Trouble> {
        let books = world.stock.books(item).await?;
        let sold = books.iter().find(|now| now.epoch == book.epoch).map_or(0, |now| now.serial);
        Ok(highest > sold)
    }
}

/// Merges overlapping runs, ascending.
fn merged(mut runs: Runs) -> Runs {
    runs.sort_by_key(|run| *run.start());
    let mut merged = Runs::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.start() <= last.end() => *last = *last.start()..=*last.end().max(run.end()),
            _ => merged.push(run),
        }
    }
    merged
}

fn listed(serials: &[u64]) -> String {
    const SHOWN: usize = 20;
    let mut text = serials.iter().take(SHOWN).map(u64::to_string).collect::<Vec<_>>().join(", ");
    if serials.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
