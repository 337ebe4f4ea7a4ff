//! What ops can watch of the selling side.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The selling side's metrics; a clone counts into the same.
#[derive(Clone)]
pub struct Metrics {
    attempts: IntCounterVec,
    purchase_seconds: Histogram,
    /// Attempts that went to the stock together.
    pub take_batch_attempts: Histogram,
    left: IntGaugeVec,
    outbox: IntGaugeVec,
    shut: IntGaugeVec,
    /// 1 while the ledger cannot be asked.
    pub ledger_away: IntGauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When a name is taken in this registry.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            attempts: IntCounterVec::new(
                Opts::new("seckill_attempts_total", "Attempts to buy, by the answer's code."),
                &["outcome"],
            )?,
            purchase_seconds: Histogram::with_opts(
                HistogramOpts::new("seckill_purchase_duration_seconds", "From an attempt to its answer.")
                    .buckets(prometheus::exponential_buckets(0.000_5, 2.0, 14)?),
            )?,
            take_batch_attempts: Histogram::with_opts(
                HistogramOpts::new(
                    "seckill_take_batch_attempts",
                    "Attempts that went to the stock in one call.",
                )
                .buckets(prometheus::exponential_buckets(1.0, 2.0, 10)?),
            )?,
            left: IntGaugeVec::new(Opts::new("seckill_stock_left", "Units left."), &["item"])?,
            outbox: IntGaugeVec::new(
                Opts::new("seckill_outbox_sales", "Units taken and not yet acknowledged by the journal."),
                &["item"],
            )?,
            shut: IntGaugeVec::new(
                Opts::new("seckill_shut", "1 while the books are checked or in doubt and nothing is sold."),
                &["item"],
            )?,
            ledger_away: IntGauge::new(
                "seckill_ledger_away",
                "1 while the ledger cannot be asked: it sells on, but no shut sale is opened.",
            )?,
        };
        registry.register(Box::new(metrics.ledger_away.clone()))?;
        registry.register(Box::new(metrics.shut.clone()))?;
        registry.register(Box::new(metrics.attempts.clone()))?;
        registry.register(Box::new(metrics.purchase_seconds.clone()))?;
        registry.register(Box::new(metrics.take_batch_attempts.clone()))?;
        registry.register(Box::new(metrics.left.clone()))?;
        registry.register(Box::new(metrics.outbox.clone()))?;
        Ok(metrics)
    }

    /// Counts an attempt that was answered.
    pub fn answered(&self, outcome: &str, took: Duration) {
        self.attempts.with_label_values(&[outcome]).inc();
        self.purchase_seconds.observe(took.as_secs_f64());
    }

    /// Shows what is left of an item; one that is not on sale has no such line.
    pub fn stock_left(&self, item: &str, left: Option<u64>) {
        match left {
            Some(left) => self.left.with_label_values(&[item]).set(i64::try_from(left).unwrap_or(i64::MAX)),
            // Not there before, either: nothing to remove.
            None => drop(self.left.remove_label_values(&[item])),
        }
    }

    /// Shows whether an item is shut.
    pub fn shut(&self, item: &str, shut: bool) {
        self.shut.with_label_values(&[item]).set(i64::from(shut));
    }

    /// Shows how many units of an item stand in the outbox.
    pub fn outbox_sales(&self, item: &str, sales: u64) {
        self.outbox.with_label_values(&[item]).set(i64::try_from(sales).unwrap_or(i64::MAX));
    }
}
