//! Prometheus metrics of the selling side.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Buckets in seconds: a purchase takes a millisecond when all is well, and 5 s at most.
const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Outcomes of an attempt: the `code`s of its answers.
const OUTCOMES: [&str; 10] = [
    "success",
    "sold_out",
    "pending",
    "not_open",
    "closed",
    "not_on_sale",
    "busy",
    "unavailable",
    "bad_request",
    "cross_site",
];

/// The statuses of refusals and errors.
const REFUSALS: [&str; 9] = ["400", "403", "404", "405", "408", "413", "431", "500", "503"];

/// The selling side's metrics; clones share the counters.
#[derive(Clone)]
pub struct Metrics {
    /// By outcome, found without a look-up.
    attempts: [(&'static str, IntCounter); OUTCOMES.len()],
    refusals: IntCounterVec,
    purchase_seconds: Histogram,
    /// Attempts per stock call.
    pub take_batch_attempts: Histogram,
    left: IntGaugeVec,
    outbox: IntGaugeVec,
    shut: IntGaugeVec,
    /// 1 while the ledger is unavailable.
    pub ledger_away: IntGauge,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// When a name is taken in this registry.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        // A counter created on its first increment would hide that increment.
        let attempts = IntCounterVec::new(
            Opts::new("seckill_attempts_total", "Attempts to buy, by the answer's code."),
            &["outcome"],
        )?;
        registry.register(Box::new(attempts.clone()))?;
        let metrics = Self {
            attempts: OUTCOMES.map(|outcome| (outcome, attempts.with_label_values(&[outcome]))),
            refusals: IntCounterVec::new(
                Opts::new("seckill_http_refusals_total", "Answers with a status of 400 and more."),
                &["status"],
            )?,
            purchase_seconds: Histogram::with_opts(
                HistogramOpts::new("seckill_purchase_duration_seconds", "From an attempt to its answer.")
                    .buckets(SECONDS.to_vec()),
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
        for status in REFUSALS {
            drop(metrics.refusals.with_label_values(&[status]));
        }
        registry.register(Box::new(metrics.refusals.clone()))?;
        registry.register(Box::new(metrics.shut.clone()))?;
        registry.register(Box::new(metrics.purchase_seconds.clone()))?;
        registry.register(Box::new(metrics.take_batch_attempts.clone()))?;
        registry.register(Box::new(metrics.left.clone()))?;
        registry.register(Box::new(metrics.outbox.clone()))?;
        Ok(metrics)
    }

    /// Counts an answered attempt, and how long it took, if it needed a stock call.
    pub fn answered(&self, outcome: &str, took: Option<Duration>) {
        if let Some((_, attempts)) = self.attempts.iter().find(|(known, _)| *known == outcome) {
            attempts.inc();
        }
        if let Some(took) = took {
            self.purchase_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts a refusal or an error.
    pub fn refused(&self, status: u16) {
        self.refusals.with_label_values(&[&status.to_string()]).inc();
    }

    /// Sets what is left of an item; one not on sale has no such series.
    pub fn stock_left(&self, item: &str, left: Option<u64>) {
        match left {
            Some(left) => self.left.with_label_values(&[item]).set(i64::try_from(left).unwrap_or(i64::MAX)),
            // Absent before, too: nothing to remove.
            None => drop(self.left.remove_label_values(&[item])),
        }
    }

    /// Sets whether an item is shut.
    pub fn shut(&self, item: &str, shut: bool) {
        self.shut.with_label_values(&[item]).set(i64::from(shut));
    }

    /// Sets an item's units in the outbox.
    pub fn outbox_sales(&self, item: &str, sales: u64) {
        self.outbox.with_label_values(&[item]).set(i64::try_from(sales).unwrap_or(i64::MAX));
    }
}
