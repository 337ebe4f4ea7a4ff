//! Kafka code shared by both programs: client settings, the topic, watermarks.

mod settings;
mod topic;
mod watermarks;

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;

use crate::progress::ReaderError;

pub use settings::{client, create};
pub use topic::ensure_topic;
pub use watermarks::Watermarks;
pub(crate) use watermarks::{partitions, watermarks};

/// Timeout of one broker request. Long enough for a leader election, short enough for a person who waits at a
/// prompt.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How often clients refresh metadata to notice new partitions (default: 5 minutes).
pub const REFRESH_METADATA_MS: &str = "10000";

/// Missing rights: an operator must grant them, retrying does not help.
pub const NO_RIGHT: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::TopicAuthorizationFailed,
    RDKafkaErrorCode::GroupAuthorizationFailed,
    RDKafkaErrorCode::ClusterAuthorizationFailed,
    RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
    RDKafkaErrorCode::SaslAuthenticationFailed,
];

/// A client context that reports errors through results only.
#[derive(Debug, Clone, Default)]
pub struct Quiet {
    /// The last refusal of a certificate or a password.
    refusal: Arc<Mutex<Option<String>>>,
}

impl Quiet {
    /// The client's error, with the refusal behind it: on its own it is a timeout.
    fn away(&self, error: KafkaError) -> ReaderError {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        refusal.map_or_else(|| away(error), ReaderError::Away)
    }
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        log::debug!("librdkafka: {error}: {reason}");
        if let Some(refusal) = refusal(&error, reason) {
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        }
    }
}

impl ConsumerContext for Quiet {}

/// Why a broker and a client do not trust each other, if that is the client's error: other errors pass, this
/// one an operator must fix.
#[must_use]
pub fn refusal(error: &KafkaError, reason: &str) -> Option<String> {
    let untrusted =
        matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication));
    untrusted.then(|| format!("{} (SECKILL_KAFKA_OPTIONS)", without_times(reason)))
}

/// A librdkafka reason without durations and suppressed counts, which differ each time.
#[must_use]
pub fn without_times(reason: &str) -> &str {
    reason.split_once(" (after ").map_or(reason, |(reason, _)| reason)
}

/// Forwards a librdkafka log line. Unreachable or silent brokers are a debug line: the waiting component
/// reports them once, and librdkafka would every few seconds.
pub fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let level = match (level, facility) {
        (_, "FAIL" | "ERROR" | "REQTMOUT" | "SESSTMOUT" | "COMMITFAIL") => log::Level::Debug,
        (
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error,
            _,
        ) => log::Level::Error,
        (RDKafkaLogLevel::Warning, _) => log::Level::Warn,
        (RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info, _) => log::Level::Info,
        (RDKafkaLogLevel::Debug, _) => log::Level::Debug,
    };
    log::log!(target: "librdkafka", level, "librdkafka: {facility} {message}");
}

/// A client that closes on its own thread when dropped: librdkafka waits for its threads, and for the group's
/// coordinator, which would block everything else.
pub(crate) struct Apart<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Apart<T> {
    pub(crate) fn new(client: T) -> Self {
        Self(Some(client))
    }

    /// Closes it on this thread; blocks.
    pub(crate) fn end(mut self) {
        drop(self.0.take());
    }
}

impl<T: Send + 'static> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("taken by `end` and `drop` only, which have it to themselves")
    }
}

impl<T: Send + 'static> Drop for Apart<T> {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            std::thread::spawn(move || drop(client));
        }
    }
}

/// Runs blocking work outside the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReaderError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ReaderError::Away(error.to_string()))
}

pub(crate) fn away(error: KafkaError) -> ReaderError {
    match error.rdkafka_error_code() {
        Some(code) => ReaderError::Away(code.to_string()),
        None => ReaderError::Away(error.to_string()),
    }
}
