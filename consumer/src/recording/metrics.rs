//! The consumer's Prometheus metrics.

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::ledger::Posted;

/// From a single row on a fast disk to a batch that waits for a lock.
const POST_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0];

/// The consumer's metrics; clones share counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    lag: IntGaugeVec,
    sales: IntCounterVec,
    post_seconds: Histogram,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let lag = IntGaugeVec::new(
            Opts::new(
                "seckill_consumer_lag_messages",
                "Messages in the journal that the ledger has not posted",
            ),
            &["topic", "partition"],
        )?;
        let sales = IntCounterVec::new(
            Opts::new("seckill_ledger_sales_total", "Messages posted to the ledger, by what became of them"),
            &["outcome"],
        )?;
        let post_seconds = Histogram::with_opts(
            HistogramOpts::new("seckill_ledger_post_duration_seconds", "Time to post one batch")
                .buckets(POST_SECONDS.to_vec()),
        )?;
        registry.register(Box::new(lag.clone()))?;
        registry.register(Box::new(sales.clone()))?;
        registry.register(Box::new(post_seconds.clone()))?;
        let metrics = Self { lag, sales, post_seconds };
        // All outcomes from the start: an alert on one that never happened needs a zero.
        metrics.count(&Posted::default());
        Ok(metrics)
    }

    pub(crate) fn posted(&self, posted: &Posted, took: Duration) {
        self.count(posted);
        self.post_seconds.observe(took.as_secs_f64());
    }

    fn count(&self, posted: &Posted) {
        for (outcome, count) in [
            ("new", posted.new),
            ("duplicate", posted.duplicate),
            ("conflict", posted.conflict),
            ("late", posted.late),
            ("dead_letter", posted.dead_letter),
        ] {
            self.sales.with_label_values(&[outcome]).inc_by(count);
        }
    }

    pub(crate) fn lag(&self, topic: &str, partition: i32, messages: u64) {
        let messages = i64::try_from(messages).unwrap_or(i64::MAX);
        self.lag.with_label_values(&[topic, &partition.to_string()]).set(messages);
    }

    /// Removes the gauges of partitions that moved to other consumers.
    pub(crate) fn forget_lag(&self, topic: &str, partitions: &BTreeSet<i32>) {
        for partition in partitions {
            // A missing gauge is fine.
            let _ = self.lag.remove_label_values(&[topic, &partition.to_string()]);
        }
    }
}
