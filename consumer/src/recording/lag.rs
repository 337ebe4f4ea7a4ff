//! How far behind: for each partition, what the journal has and the ledger has not.

use std::collections::BTreeSet;

use crate::progress::Extents;
use crate::recording::metrics::Metrics;

/// The lag of the partitions that this consumer has.
#[derive(Debug)]
pub struct Lag {
    topic: String,
    metrics: Metrics,
    shown: BTreeSet<i32>,
}

impl Lag {
    /// No partition yet.
    #[must_use]
    pub fn new(topic: &str, metrics: Metrics) -> Self {
        Self { topic: topic.to_owned(), metrics, shown: BTreeSet::new() }
    }

    /// Shows the lag, given what the log has and the offset that the ledger wants next of a partition.
    pub fn show(&mut self, extents: &Extents, next: impl Fn(i32) -> i64) {
        for (&partition, extent) in extents {
            self.shown.insert(partition);
            self.metrics.lag(&self.topic, partition, extent.behind(next(partition)));
        }
    }

    /// Keeps the partitions in `assigned`, and no other.
    pub fn keep(&mut self, assigned: &[i32]) {
        let gone = self.shown.iter().filter(|partition| !assigned.contains(partition)).copied().collect();
        self.metrics.forget_lag(&self.topic, &gone);
        self.shown.retain(|partition| assigned.contains(partition));
    }
}
