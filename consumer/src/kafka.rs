//! What both programs ask of Kafka alike: a client's settings, the topic, what its log has.

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

/// For one question to a broker. Long enough for a leader election, short enough that a person
/// who waits at a prompt does not give up.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How often clients look whether a topic has more partitions (default: 5 minutes).
pub const REFRESH_METADATA_MS: &str = "10000";

/// That a client may not do what it must: a person mends it, no waiting does.
pub const NO_RIGHT: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::TopicAuthorizationFailed,
    RDKafkaErrorCode::GroupAuthorizationFailed,
    RDKafkaErrorCode::ClusterAuthorizationFailed,
    RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
    RDKafkaErrorCode::SaslAuthenticationFailed,
];

/// A context whose client tells of its troubles through results only.
#[derive(Debug, Clone, Default)]
pub struct Quiet {
    /// The last refusal of a certificate or a password.
    refusal: Arc<Mutex<Option<String>>>,
}

impl Quiet {
    /// The client's error, with the refusal that led to it: by itself it is a time-out.
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

/// Why a broker and a client do not trust one another, if that is what the client says: the other
/// troubles pass, this one an operator must mend.
#[must_use]
pub fn refusal(error: &KafkaError, reason: &str) -> Option<String> {
    let untrusted =
        matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication));
    untrusted.then(|| format!("{} (SECKILL_KAFKA_OPTIONS)", without_times(reason)))
}

/// A reason of librdkafka's without how long it took, and what was suppressed: that differs each time.
#[must_use]
pub fn without_times(reason: &str) -> &str {
    reason.split_once(" (after ").map_or(reason, |(reason, _)| reason)
}

/// Passes a line of librdkafka's on. That a broker cannot be reached, or does not answer, is a
/// debug line: whoever waits for it says so once, and librdkafka would every few seconds.
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

/// A client that ends on a thread of its own when it is dropped: librdkafka waits for its threads,
/// and for the group's coordinator, which would hold up everything else.
pub(crate) struct Apart<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Apart<T> {
    pub(crate) fn new(client: T) -> Self {
        Self(Some(client))
    }

    /// Ends it here and now; blocks.
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

/// Runs what blocks beside the asynchronous threads.
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
