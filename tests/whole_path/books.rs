//! The invariant check from outside: ledger and journal against the buyers' answers, without `audit`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use crate::load::Heard;

/// The voided serials, stored as runs.
pub const VOID: &str =
    "select cast(coalesce(sum(coalesce(last_serial, serial) - serial + 1), 0) as signed) from seckill_void";

/// One row of the ledger.
#[derive(Debug, Clone)]
pub struct Row {
    pub order: Uuid,
    pub item: String,
    pub epoch: Uuid,
    pub serial: i64,
    pub attempt: Option<String>,
}

/// The contents of ledger and journal.
#[derive(Debug, Default)]
pub struct Books {
    pub rows: Vec<Row>,
    /// Orders set aside, with the reason.
    pub conflicts: Vec<(Uuid, String)>,
    /// Serials voided by a restore.
    pub void: usize,
    /// The distinct orders in the journal.
    pub journal: HashSet<Uuid>,
}

impl Books {
    /// Confirmed ⊆ recorded; one order per unit; no serial missing; exactly `sold`, and as many in the
    /// journal.
    pub fn check(&self, told: &[String], sold: usize) {
        crate::buyers::all_different(told);
        let recorded = self.recorded();
        for order in told {
            assert!(recorded.contains(&order.parse().unwrap()), "order {order} was told and is not recorded");
        }
        assert_eq!(self.doubled(), Vec::<String>::new());
        assert_eq!(self.rows.len(), sold, "rows in the ledger");
        assert_eq!(self.missing(), 0, "serials are missing");
        assert_eq!(self.conflicts, [], "rows in seckill_conflict");
        assert_eq!(self.journal.len(), sold, "different orders in the journal");
    }

    fn recorded(&self) -> HashSet<Uuid> {
        self.rows.iter().map(|row| row.order).collect()
    }

    /// Serials that are neither recorded nor voided.
    pub fn missing(&self) -> i64 {
        let mut highest: HashMap<(&str, Uuid), i64> = HashMap::new();
        for row in &self.rows {
            let top = highest.entry((&row.item, row.epoch)).or_default();
            *top = row.serial.max(*top);
        }
        highest.values().sum::<i64>() - (self.rows.len() + self.void) as i64
    }

    /// Orders and units with two rows, and attempts with two orders.
    fn doubled(&self) -> Vec<String> {
        let (mut orders, mut units, mut attempts) = (HashSet::new(), HashSet::new(), HashSet::new());
        let mut doubled = Vec::new();
        for row in &self.rows {
            if !orders.insert(row.order) {
                doubled.push(format!("order {} is recorded twice", row.order));
            }
            if !units.insert((&row.item, row.epoch, row.serial)) {
                doubled.push(format!("unit {} of {} is recorded twice", row.serial, row.epoch));
            }
            if let Some(attempt) = &row.attempt
                && !attempts.insert((&row.item, row.epoch, attempt))
            {
                doubled.push(format!("attempt {attempt} is recorded twice"));
            }
        }
        doubled
    }
}

/// The buyers' answers under a load, compared with the books.
#[derive(Debug)]
pub struct Comparison {
    /// Distinct orders confirmed as success, at once or later.
    pub told: usize,
    pub recorded: usize,
    /// Confirmed as success, but not recorded.
    pub lost: Vec<Uuid>,
    /// All duplicates, in words.
    pub doubled: Vec<String>,
    /// All other faults, in words.
    pub wrong: Vec<String>,
}

impl Comparison {
    /// `later`: `pending` orders that anonymous buyers found recorded on look-up. `gone`: those that the
    /// look-up reported as failed.
    pub fn new(books: &Books, heard: &Heard, later: &[(&str, Uuid)], gone: &[Uuid]) -> Self {
        let recorded = books.recorded();
        let (mut doubled, mut wrong) = (books.doubled(), Vec::new());
        let mut told = heard.told();
        for (attempt, order) in later {
            told.entry(attempt).or_default().insert(*order);
        }
        for (attempt, orders) in &told {
            if orders.len() > 1 {
                doubled.push(format!("{attempt} was told {orders:?}"));
            }
        }
        let mut whose: BTreeMap<Uuid, &str> = BTreeMap::new();
        for (attempt, orders) in heard.named() {
            for order in &orders {
                if let Some(other) = whose.insert(*order, attempt) {
                    doubled.push(format!("{order} was named to {other} and to {attempt}"));
                }
            }
            // A `pending` order may fail, and another take its place.
            if orders.iter().filter(|order| recorded.contains(order)).count() > 1 {
                doubled.push(format!("{attempt} has more than one of {orders:?}"));
            }
        }
        let told: BTreeSet<Uuid> = told.into_values().flatten().collect();
        let lost = told.iter().filter(|order| !recorded.contains(order)).copied().collect();
        for order in gone.iter().filter(|order| recorded.contains(order)) {
            wrong.push(format!("{order} did not come about, it was said, and is recorded"));
        }
        for (order, reason) in &books.conflicts {
            // Of an older term: confirmed to no buyer.
            if reason != "late" || told.contains(order) {
                wrong.push(format!("{order} is in seckill_conflict: {reason}"));
            }
        }
        let aside: HashSet<Uuid> = books.conflicts.iter().map(|(order, _)| *order).collect();
        let only_sent =
            books.journal.iter().filter(|order| !recorded.contains(order) && !aside.contains(order));
        for order in only_sent {
            wrong.push(format!("{order} is in the journal and not in the ledger"));
        }
        for order in recorded.iter().filter(|order| !books.journal.contains(order)) {
            wrong.push(format!("{order} is in the ledger and not in the journal"));
        }
        if books.missing() != 0 {
            wrong.push(format!("{} serials are missing", books.missing()));
        }
        Self { told: told.len(), recorded: books.rows.len(), lost, doubled, wrong }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::load::Said;

    fn order(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn row(number: u128, serial: i64) -> Row {
        let item = "counter".to_owned();
        Row { order: order(number), item, epoch: Uuid::nil(), serial, attempt: None }
    }

    fn said(attempt: &str, code: &str, number: u128) -> Said {
        let now = Instant::now();
        let (attempt, code, order) = (attempt.to_owned(), code.to_owned(), Some(order(number)));
        Said { attempt, keyed: true, code, order, sent: now, heard: now }
    }

    fn books(rows: &[Row]) -> Books {
        Books { rows: rows.to_vec(), journal: rows.iter().map(|row| row.order).collect(), ..Books::default() }
    }

    fn compare(books: &Books, said: &[Said]) -> (usize, usize, usize) {
        let heard = Heard { said: said.to_vec(), silence: Duration::ZERO };
        let found = Comparison::new(books, &heard, &[], &[order(9)]);
        (found.lost.len(), found.doubled.len(), found.wrong.len())
    }

    /// Each fault is detected: a check that finds nothing proves nothing.
    #[test]
    fn every_fault_is_seen() {
        let whole = books(&[row(1, 1), row(2, 2)]);
        // A failed `pending` order, replaced by another, is no fault.
        let buyers = [said("a", "pending", 3), said("a", "success", 1), said("b", "success", 2)];
        assert_eq!(compare(&whole, &buyers), (0, 0, 0));

        assert_eq!(compare(&whole, &[said("a", "success", 3)]), (1, 0, 0), "told and not recorded");
        let two = [said("a", "success", 1), said("a", "success", 2)];
        assert_eq!(compare(&whole, &two), (0, 2, 0), "two orders for one attempt");
        let shared = [said("a", "success", 1), said("b", "success", 1)];
        assert_eq!(compare(&whole, &shared), (0, 1, 0), "one order for two");
        let twice = [said("a", "pending", 1), said("a", "success", 2)];
        assert_eq!(compare(&whole, &twice), (0, 1, 0), "both of an attempt's orders recorded");
        assert_eq!(compare(&books(&[row(1, 1), row(2, 1)]), &[]), (0, 1, 1), "one unit, two orders");
        let mut again = [row(1, 1), row(2, 2)];
        again.iter_mut().for_each(|row| row.attempt = Some("k:a".to_owned()));
        assert_eq!(compare(&books(&again), &[]), (0, 1, 0), "one attempt, two rows");
        assert_eq!(compare(&books(&[row(1, 1), row(2, 3)]), &[]), (0, 0, 1), "a serial is missing");
        assert_eq!(compare(&books(&[row(9, 1)]), &[]), (0, 0, 1), "said to be gone, and recorded");
        let mut only_sent = books(&[row(1, 1)]);
        only_sent.journal.insert(order(2));
        assert_eq!(compare(&only_sent, &[]), (0, 0, 1), "in the journal alone");
        let mut only_recorded = books(&[row(1, 1)]);
        only_recorded.journal.clear();
        assert_eq!(compare(&only_recorded, &[]), (0, 0, 1), "in the ledger alone");
        let mut conflict = books(&[row(1, 1)]);
        conflict.conflicts.push((order(2), "unit".to_owned()));
        assert_eq!(compare(&conflict, &[]), (0, 0, 1), "a conflict");
        let mut late = books(&[row(1, 1)]);
        late.conflicts.push((order(2), "late".to_owned()));
        assert_eq!(compare(&late, &[]), (0, 0, 0), "told to nobody");
        assert_eq!(compare(&late, &[said("a", "success", 2)]), (1, 0, 1), "late, and told");
    }
}
