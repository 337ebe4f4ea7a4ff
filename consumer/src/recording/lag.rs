//! The lag metric: per partition, the messages in the journal that the ledger lacks.

use std::collections::BTreeSet;

use crate::progress::Extents;
use crate::recording::metrics::Metrics;

/// The lag of this consumer's partitions.
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

    /// Publishes the lag, from what the log holds and each partition's next offset in the ledger.
    pub fn show(&mut self, extents: &Extents, next: impl Fn(i32) -> i64) {
        for (&partition, extent) in extents {
            self.shown.insert(partition);
            self.metrics.lag(&self.topic, partition, extent.behind(next(partition)));
        }
    }

    /// Removes all partitions but those in `assigned`.
    pub fn keep(&mut self, assigned: &[i32]) {
        let gone = self.shown.iter().filter(|partition| !assigned.contains(partition)).copied().collect();
        self.metrics.forget_lag(&self.topic, &gone);
        self.shown.retain(|partition| assigned.contains(partition));
    }
}
