//! High-water mark of an item's books on this node: detects data that went back.
//!
//! A restart or a failover shows as a new life of the data. A running server's data can also go back: a
//! restored backup, or a machine reset to a snapshot. Only a node that sold more than the books say detects
//! that.

use std::collections::BTreeMap;

use uuid::Uuid;

/// Sales remembered: more than are ever in question at the same time.
const REMEMBERED: usize = 8;

/// The furthest state seen of each of the last sales: its term and last serial.
#[derive(Debug, Default)]
pub struct Mark(BTreeMap<Uuid, (u64, u64)>);

impl Mark {
    /// Records what the books say; returns whether they are behind what they said before.
    ///
    /// A higher term is never behind: the books were reconciled with the ledger in between, and may lack
    /// sales never reported as a success. Nor is a later sale, or an earlier one whose term was raised: an
    /// operator went back to it.
    pub fn is_behind(&mut self, epoch: Uuid, term: u64, serial: u64) -> bool {
        let later = self.newest().is_some_and(|newest| newest > epoch);
        let behind = match self.0.get(&epoch) {
            Some(&(seen, _)) if later => term <= seen,
            Some(&seen) => (term, serial) < seen,
            None => later,
        };
        if behind {
            // Reconciling with the ledger raises the term above this one.
            self.0.entry(epoch).or_insert((term, serial));
        } else {
            self.0.split_off(&epoch);
            self.0.insert(epoch, (term, serial));
            while self.0.len() > REMEMBERED {
                self.0.pop_first();
            }
        }
        behind
    }

    /// The newest sale seen.
    #[must_use]
    pub fn newest(&self) -> Option<Uuid> {
        self.0.keys().next_back().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sale(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn a_sale_goes_on() {
        let mut mark = Mark::default();
        for (term, serial) in [(0, 0), (0, 3), (0, 3), (0, 9), (1, 7), (1, 8), (4, 8)] {
            assert!(!mark.is_behind(sale(1), term, serial), "{term} {serial}");
        }
        assert!(!mark.is_behind(sale(2), 0, 0), "the next sale");
    }

    #[test]
    fn data_that_goes_back_is_noticed_until_it_was_held_against_the_ledger() {
        let mut mark = Mark::default();
        assert!(!mark.is_behind(sale(1), 1, 30));
        assert!(mark.is_behind(sale(1), 1, 10));
        assert!(mark.is_behind(sale(1), 1, 29), "sold again");
        assert!(mark.is_behind(sale(1), 0, 40));
        assert!(!mark.is_behind(sale(1), 2, 28), "reopened");
    }

    #[test]
    fn an_earlier_sale_that_is_back_is_noticed() {
        let mut mark = Mark::default();
        assert!(!mark.is_behind(sale(1), 0, 5));
        assert!(!mark.is_behind(sale(2), 0, 0));
        assert!(mark.is_behind(sale(1), 0, 6));
        assert!(mark.is_behind(sale(1), 0, 7));
        assert!(!mark.is_behind(sale(1), 1, 7), "an operator went back to it");
        assert!(!mark.is_behind(sale(1), 1, 8));
        // A sale this node has never seen.
        let mut mark = Mark::default();
        assert!(!mark.is_behind(sale(2), 0, 5));
        assert!(mark.is_behind(sale(1), 3, 90));
        assert!(!mark.is_behind(sale(1), 4, 90));
    }
}
