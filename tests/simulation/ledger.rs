//! The simulated ledger: copyable tables. A transaction is a copy that the real procedure posts to and that
//! replaces the tables or is dropped.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use consumer::ledger::post::{Standing, Tables, Written};
use consumer::ledger::row::Row;
use consumer::ledger::{Account, Batch, Checkpoint, LedgerError, Message, Posted, SaleRecord, fingerprint};
use consumer::sale::Sale;
use uuid::Uuid;

/// All tables.
#[derive(Debug, Clone, Default)]
pub struct Books {
    pub rows: BTreeMap<Uuid, Recorded>,
    pub units: BTreeMap<(String, Uuid, u64), Uuid>,
    pub places: BTreeMap<(i32, i64), Uuid>,
    pub checkpoints: BTreeMap<i32, Checkpoint>,
    pub terms: BTreeMap<(String, Uuid), (u64, u64)>,
    pub voids: BTreeSet<(String, Uuid, u64)>,
    pub conflicts: BTreeMap<(i32, i64), (Sale, String)>,
    pub dead_letters: BTreeMap<(i32, i64), String>,
    /// By sale and term: how many conflicts were accepted, and the newest sale known then.
    pub restores: BTreeMap<(String, Uuid, u64), (u64, Uuid)>,
    pub archived: BTreeSet<(String, Uuid)>,
    /// A mutation: posting does not read terms.
    pub no_fence: bool,
    /// Of the open transaction.
    pub patience: Patience,
}

/// How many statements a transaction may run before a temporary refusal; `None`: no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    pub calls: Option<u64>,
    /// More rows at once time out.
    pub rows: Option<u64>,
}

/// A row of `seckill`.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub partition: i32,
    pub offset: i64,
    pub sale: Sale,
}

impl Books {
    /// Counts a statement of a transaction.
    fn asked(&mut self, rows: usize) -> Result<(), LedgerError> {
        let refused = |why: &str| LedgerError::Away(why.to_owned());
        if let Some(calls) = &mut self.patience.calls {
            *calls = calls.checked_sub(1).ok_or_else(|| refused("refused for now"))?;
        }
        if let Some(left) = &mut self.patience.rows {
            *left = left.checked_sub(rows as u64).ok_or_else(|| refused("it takes too long"))?;
        }
        Ok(())
    }

    /// A mutation: treats a refused batch as posted.
    pub fn skip(&mut self, batch: &Batch) -> Posted {
        let mut posted = Posted::default();
        for part in &batch.parts {
            let last = part.messages.last().expect("no part is empty");
            let to = Checkpoint { next: last.offset + 1, fingerprint: fingerprint(&last.value) };
            self.checkpoints.insert(part.partition, to.clone());
            posted.checkpoints.insert(part.partition, to);
        }
        posted
    }

    pub fn begin_sale(&mut self, item: &str, epoch: Uuid, units: u64) {
        self.terms.entry((item.to_owned(), epoch)).or_insert((0, units));
    }

    pub fn raise_term(&mut self, item: &str, epoch: Uuid, from: u64) -> bool {
        self.begin_sale(item, epoch, 0);
        match self.terms.get_mut(&(item.to_owned(), epoch)) {
            Some((term, _)) if *term == from => {
                *term += 1;
                true
            }
            _ => false,
        }
    }

    /// Undoes the beginning of a sale, if nothing of it was sold.
    pub fn withdraw_sale(&mut self, item: &str, epoch: Uuid) {
        if self.orders(item, epoch).is_empty() {
            self.terms.remove(&(item.to_owned(), epoch));
        }
    }

    pub fn account(&self, item: &str, epoch: Uuid) -> Account {
        let (term, units) = self.terms.get(&(item.to_owned(), epoch)).copied().unwrap_or_default();
        let of = |sale: &Sale| sale.item == item && sale.epoch == epoch;
        let last =
            self.rows.values().map(|row| &row.sale).filter(|sale| of(sale)).max_by_key(|sale| sale.serial);
        let (accepted, decided) = self.decided(item, epoch);
        let newest = self.newest().get(item).copied().filter(|newest| *newest > decided.max(epoch));
        Account {
            term,
            highest: last.map_or(0, |sale| sale.serial),
            void_upto: self.voids(item, epoch).last().copied().unwrap_or(0),
            remaining: last.map_or(units, |sale| sale.remaining),
            newer: newest,
            disputed: self.in_conflict(item, epoch).saturating_sub(accepted),
        }
    }

    fn in_conflict(&self, item: &str, epoch: Uuid) -> u64 {
        let its = |sale: &Sale| sale.item == item && sale.epoch == epoch;
        self.conflicts.values().filter(|(sale, reason)| its(sale) && reason != "late").count() as u64
    }

    /// The conflicts accepted, and the newest sale that this one overrides.
    fn decided(&self, item: &str, epoch: Uuid) -> (u64, Uuid) {
        let its = self.restores.iter().filter(|((of, sale, _), _)| of == item && *sale == epoch);
        its.fold((0, Uuid::nil()), |(conflicts, newest), (_, known)| {
            (known.0.max(conflicts), known.1.max(newest))
        })
    }

    pub fn restored(&mut self, item: &str, epoch: Uuid, term: u64) {
        let newest = self.newest().get(item).copied().unwrap_or(epoch).max(epoch);
        let conflicts = self.in_conflict(item, epoch);
        self.restores.entry((item.to_owned(), epoch, term)).or_insert((conflicts, newest));
    }

    pub fn disputed(&self) -> Vec<(String, Uuid)> {
        let sales: BTreeSet<(String, Uuid)> =
            self.conflicts.values().map(|(sale, _)| (sale.item.clone(), sale.epoch)).collect();
        let disputed =
            |(item, epoch): &(String, Uuid)| self.in_conflict(item, *epoch) > self.decided(item, *epoch).0;
        sales.into_iter().filter(disputed).collect()
    }

    pub fn newest(&self) -> BTreeMap<String, Uuid> {
        let mut newest = BTreeMap::new();
        let sold = self.rows.values().map(|row| (row.sale.item.clone(), row.sale.epoch));
        for (item, epoch) in self.terms.keys().cloned().chain(sold) {
            let known = newest.entry(item).or_insert(epoch);
            *known = epoch.max(*known);
        }
        newest
    }

    /// Serials and orders, ascending.
    pub fn orders(&self, item: &str, epoch: Uuid) -> Vec<(u64, Uuid)> {
        let from = (item.to_owned(), epoch, 0);
        let its = self.units.range(from..).take_while(|((of, sale, _), _)| of == item && *sale == epoch);
        its.map(|((.., serial), order)| (*serial, *order)).collect()
    }

    pub fn voids(&self, item: &str, epoch: Uuid) -> Vec<u64> {
        let its = self.voids.iter().filter(|(of, sale, _)| of == item && *sale == epoch);
        its.map(|(.., serial)| *serial).collect()
    }

    pub fn winners(&self, item: &str, epoch: Uuid) -> Vec<Sale> {
        let sales = self.rows.values().map(|row| &row.sale);
        sales
            .filter(|sale| sale.item == item && sale.epoch == epoch && sale.attempt.is_some())
            .cloned()
            .collect()
    }

    pub fn sales(&self) -> Vec<SaleRecord> {
        let mut names: BTreeSet<(String, Uuid)> = self.terms.keys().cloned().collect();
        names.extend(self.rows.values().map(|row| (row.sale.item.clone(), row.sale.epoch)));
        names.extend(self.voids.iter().map(|(item, epoch, _)| (item.clone(), *epoch)));
        names
            .into_iter()
            .filter(|sale| !self.archived.contains(sale))
            .map(|(item, epoch)| SaleRecord {
                epoch,
                highest: self.account(&item, epoch).highest,
                conflicts: self.in_conflict(&item, epoch),
                doubled: Vec::new(),
                item,
            })
            .collect()
    }
}

#[async_trait]
impl Tables for Books {
    async fn lock(&mut self, _topic: &str, partition: i32) -> Result<Option<Checkpoint>, LedgerError> {
        self.asked(0)?;
        Ok(self.checkpoints.get(&partition).cloned())
    }

    async fn advance(
        &mut self,
        _topic: &str,
        partition: i32,
        to: &Checkpoint,
        known: bool,
    ) -> Result<Written, LedgerError> {
        self.asked(0)?;
        if !known && self.checkpoints.contains_key(&partition) {
            return Ok(Written::Taken);
        }
        self.checkpoints.insert(partition, to.clone());
        Ok(Written::Done)
    }

    async fn fence(&mut self, item: &str, epoch: Uuid) -> Result<Option<u64>, LedgerError> {
        if self.no_fence {
            return Ok(None);
        }
        Ok(self.terms.get(&(item.to_owned(), epoch)).map(|(term, _)| *term))
    }

    async fn record(&mut self, rows: &[&Row<'_>]) -> Result<Written, LedgerError> {
        self.asked(rows.len())?;
        let before = self.clone();
        for row in rows {
            let sale = &row.sale;
            let unit = (sale.item.clone(), sale.epoch, sale.serial);
            let place = (row.partition, row.message.offset);
            let taken = self.rows.contains_key(&sale.order)
                || self.units.contains_key(&unit)
                || self.places.contains_key(&place);
            if taken {
                *self = before;
                return Ok(Written::Taken);
            }
            self.units.insert(unit, sale.order);
            self.places.insert(place, sale.order);
            let recorded =
                Recorded { partition: row.partition, offset: row.message.offset, sale: sale.clone() };
            self.rows.insert(sale.order, recorded);
        }
        Ok(Written::Done)
    }

    async fn standing(&mut self, rows: &[&Row<'_>]) -> Result<Vec<Standing>, LedgerError> {
        self.asked(0)?;
        let mut found = BTreeSet::new();
        for row in rows {
            let sale = &row.sale;
            found.extend(self.rows.contains_key(&sale.order).then_some(sale.order));
            found.extend(self.units.get(&(sale.item.clone(), sale.epoch, sale.serial)));
            found.extend(self.places.get(&(row.partition, row.message.offset)));
        }
        let standing = found.iter().filter_map(|order| self.rows.get(order)).map(|row| Standing {
            topic: rows[0].topic.to_owned(),
            partition: row.partition,
            offset: row.offset,
            sale: row.sale.clone(),
        });
        Ok(standing.collect())
    }

    async fn set_aside(&mut self, row: &Row<'_>, reason: &str) -> Result<Written, LedgerError> {
        self.asked(0)?;
        let place = (row.partition, row.message.offset);
        if self.conflicts.contains_key(&place) {
            return Ok(Written::Taken);
        }
        self.conflicts.insert(place, (row.sale.clone(), reason.to_owned()));
        Ok(Written::Done)
    }

    async fn bury(
        &mut self,
        _topic: &str,
        partition: i32,
        message: &Message,
        error: &str,
    ) -> Result<Written, LedgerError> {
        self.asked(0)?;
        if self.dead_letters.contains_key(&(partition, message.offset)) {
            return Ok(Written::Taken);
        }
        self.dead_letters.insert((partition, message.offset), error.to_owned());
        Ok(Written::Done)
    }
}
