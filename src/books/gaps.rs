//! Serials missing from a ledger, found page by page: memory and time depend only on how many are recorded,
//! not on how far apart they are.

use std::ops::RangeInclusive;

use consumer::ledger::{Ledger, LedgerError};
use uuid::Uuid;

/// Rows counted at a time: some 20 ms of an index, far from any time limit.
const PAGE: u32 = 100_000;

/// Serials in ascending runs that do not touch.
pub type Runs = Vec<RangeInclusive<u64>>;

/// The counts of a sale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Rows, including those beyond the serial up to which gaps are searched.
    pub recorded: u64,
    /// The highest serial recorded, 0 when none.
    pub highest: u64,
    /// Serials up to it that are written off and not recorded.
    pub void: u64,
    /// Serials up to it that are neither recorded nor written off.
    pub missing: u64,
}

/// Iterates over the gaps of a sale up to a serial, ascending, some at a time, and counts on the way.
pub struct Gaps<'l> {
    ledger: &'l dyn Ledger,
    item: &'l str,
    epoch: Uuid,
    upto: u64,
    after: u64,
    ended: bool,
    count: Count,
}

impl<'l> Gaps<'l> {
    /// Starts at the first serial.
    #[must_use]
    pub fn up_to(ledger: &'l dyn Ledger, item: &'l str, epoch: Uuid, upto: u64) -> Self {
        Self { ledger, item, epoch, upto, after: 0, ended: false, count: Count::default() }
    }

    /// The next gaps; `None` at the end.
    ///
    /// # Errors
    /// As the ledger's.
    pub async fn next(&mut self) -> Result<Option<Runs>, LedgerError> {
        while !self.ended {
            let missing = self.page().await?;
            if !missing.is_empty() {
                return Ok(Some(missing));
            }
        }
        Ok(None)
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// As the ledger's.
    pub async fn count(mut self) -> Result<Count, LedgerError> {
        while self.next().await?.is_some() {}
        Ok(self.count)
    }

    /// The counts so far: final once there is no next.
    #[must_use]
    pub fn counted(&self) -> Count {
        self.count
    }

    async fn page(&mut self) -> Result<Runs, LedgerError> {
        let Self { ledger, item, epoch, upto, after, .. } = *self;
        let page = ledger.page(item, epoch, after, PAGE).await?;
        self.ended = page.rows == 0;
        self.after = page.last;
        self.count.recorded += page.rows;
        self.count.highest = self.count.highest.max(page.last);
        let last = if self.ended { upto } else { page.last.min(upto) };
        // As many rows as the numbers they span: none is missing between.
        if last <= after || (!self.ended && page.rows == page.last - after) {
            return Ok(Runs::new());
        }
        let recorded = if self.ended { Vec::new() } else { ledger.orders(item, epoch, after, last).await? };
        let absent = between(after, last, recorded.into_iter().map(|(serial, _)| serial..=serial));
        let voids = ledger.voids(item, epoch, after, last).await?;
        let all = length(&absent);
        let missing: Runs = absent.into_iter().flat_map(|run| without(run, &voids)).collect();
        self.count.missing += length(&missing);
        self.count.void += all - length(&missing);
        Ok(missing)
    }
}

/// How many numbers the runs contain.
#[must_use]
pub fn length(runs: &[RangeInclusive<u64>]) -> u64 {
    runs.iter().map(|run| run.end() - run.start() + 1).sum()
}

/// Subtracts others, which are ascending and do not overlap, from a run.
#[must_use]
pub fn without(run: RangeInclusive<u64>, others: &[RangeInclusive<u64>]) -> Runs {
    let from = others.partition_point(|other| other.end() < run.start());
    between(
        run.start() - 1,
        *run.end(),
        others[from..].iter().take_while(|other| other.start() <= run.end()).cloned(),
    )
}

/// What is after `after`, up to `upto`, and in none of these, which are ascending.
fn between(after: u64, upto: u64, taken: impl Iterator<Item = RangeInclusive<u64>>) -> Runs {
    let mut free = Vec::new();
    let mut next = after.saturating_add(1);
    for run in taken {
        let end = upto.min(run.start() - 1);
        if next <= end {
            free.push(next..=end);
        }
        next = next.max(run.end().saturating_add(1));
    }
    if next <= upto {
        free.push(next..=upto);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_run() {
        assert_eq!(without(3..=9, &[]), [3..=9]);
        assert_eq!(without(3..=9, &[1..=2, 10..=12]), [3..=9]);
        assert_eq!(without(3..=9, &[1..=3, 5..=5, 7..=20]), [4..=4, 6..=6]);
        assert_eq!(without(3..=9, &[1..=20]), Runs::new());
        assert_eq!(between(0, 5, [2..=2, 4..=4].into_iter()), [1..=1, 3..=3, 5..=5]);
        assert_eq!(between(0, 5, [7..=7].into_iter()), [1..=5]);
        assert_eq!(length(&[1..=1, 3..=5]), 4);
    }
}
