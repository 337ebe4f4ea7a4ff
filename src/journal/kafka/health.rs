//! Readiness of Kafka, as reported by librdkafka's threads.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use consumer::kafka as client;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{NoCustomPartitioner, ProducerContext};

use crate::journal::{Delivery, Receipt};
use crate::sale::times::DELIVERY_DEADLINE;

/// Sales waiting for acknowledgement this long without a single one arriving: Kafka is away.
const STALLED_AFTER: Duration = Duration::from_millis(800);

/// Whether Kafka accepts sales; written by librdkafka's threads.
pub(super) struct Health {
    /// The topic was found or created.
    pub(super) topic: AtomicBool,
    /// Its partitions at the last probe; 0 before the first.
    pub(super) partitions: AtomicU32,
    /// The last probe was answered, and no connection was reported lost since.
    pub(super) reachable: AtomicBool,
    /// Why not.
    pub(super) away: Mutex<String>,
    /// The current producer's progress: a former one's sales are not waited for.
    pub(super) pace: ArcSwap<Pace>,
    /// A delivery failed, and none was acknowledged since.
    pub(super) refusing: AtomicBool,
    pub(super) refused: Mutex<Option<Refused>>,
    /// The last error from librdkafka, until something is acknowledged.
    pub(super) trouble: Mutex<Option<String>>,
}

/// A producer's progress.
pub(super) struct Pace {
    pub(super) started: Instant,
    pub(super) waiting: AtomicI64,
    /// Milliseconds from `started` to the last acknowledgement, or to when waiting began.
    pub(super) progress_ms: AtomicU64,
}

/// A failed sale. It is in the outbox, and its append is idempotent: retrying it again and again shows when
/// Kafka accepts sales.
#[derive(Clone)]
pub(super) struct Refused {
    pub(super) why: String,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// The opaque that librdkafka carries with a message and returns with its delivery report.
pub(super) struct Slip {
    pub(super) receipt: Arc<Receipt>,
    pub(super) index: usize,
}

pub(super) struct Acknowledger {
    pub(super) health: Arc<Health>,
    pub(super) pace: Arc<Pace>,
}

impl Slip {
    pub(super) fn note(&self, delivery: Delivery) {
        self.receipt.note(self.index, delivery);
    }
}

/// Ignores poisoning: these values are never left half changed.
pub(super) trait Locked<T> {
    fn locked(&self) -> MutexGuard<'_, T>;
}

impl<T> Locked<T> for Mutex<T> {
    fn locked(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    pub(super) fn is_away(&self, why: String) {
        *self.away.locked() = why;
        self.reachable.store(false, Ordering::Release);
    }

    /// A sale failed for good. Whatever the reason: until one is acknowledged, assume that others fail too.
    pub(super) fn refuse(&self, error: &KafkaError, key: &[u8], value: &[u8]) {
        let why = match error.rdkafka_error_code() {
            // The underlying error says more.
            Some(
                RDKafkaErrorCode::MessageTimedOut
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::PurgeInflight
                | RDKafkaErrorCode::Fatal,
            ) => match &*self.trouble.locked() {
                Some(trouble) => trouble.clone(),
                None => format!("no acknowledgement within {} s", DELIVERY_DEADLINE.as_secs()),
            },
            Some(code) => code.to_string(),
            None => error.to_string(),
        };
        let mut refused = self.refused.locked();
        // Keeps the first reason: it led to the others.
        refused.get_or_insert_with(|| Refused { why, key: key.to_vec(), value: value.to_vec() });
        self.refusing.store(true, Ordering::Release);
    }

    /// Nothing is acknowledged, and too few replicas are in sync: that is why.
    pub(super) fn note_short(&self, short: Option<String>) {
        if let (Some(refused), Some(short)) = (&mut *self.refused.locked(), short)
            && !refused.why.contains(&short)
        {
            refused.why = format!("{}; {short}", refused.why.split(';').next().unwrap_or_default());
        }
    }

    pub(super) fn accepted(&self) {
        if self.refusing.swap(false, Ordering::AcqRel) {
            *self.refused.locked() = None;
        }
    }
}

impl Pace {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), waiting: AtomicI64::new(0), progress_ms: AtomicU64::new(0) })
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn begin(&self) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) <= 0 {
            self.progress_ms.store(self.now_ms(), Ordering::Release);
        }
    }

    pub(super) fn end(&self, acknowledged: bool) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        if acknowledged {
            self.progress_ms.store(self.now_ms(), Ordering::Release);
        }
    }

    pub(super) fn stalled(&self) -> bool {
        let since =
            Duration::from_millis(self.now_ms().saturating_sub(self.progress_ms.load(Ordering::Acquire)));
        self.waiting.load(Ordering::Acquire) > 0 && since > STALLED_AFTER
    }
}

impl ClientContext for Acknowledger {
    fn error(&self, error: KafkaError, reason: &str) {
        match client::refusal(&error, reason) {
            Some(why) => log::warn!("kafka refuses: {why}"),
            None => log::debug!("kafka: {error}: {reason}"),
        }
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.health.is_away("kafka is away: no broker can be reached".to_owned());
        } else {
            *self.health.trouble.locked() = Some(client::without_times(reason).to_owned());
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The watch logs one line per state change; the library repeats itself.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                log::error!("librdkafka: {facility} {message}");
            }
            _ => log::debug!("librdkafka: {facility} {message}"),
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Acknowledger {
    type DeliveryOpaque = Box<Slip>;

    fn delivery(&self, result: &DeliveryResult<'_>, slip: Box<Slip>) {
        // Every delivery error is ambiguous. The waiting count drops last: a readiness check in between must
        // not find all well.
        match result {
            Ok(_) => {
                self.health.accepted();
                self.pace.end(true);
                slip.note(Delivery::Acknowledged);
            }
            Err((error, message)) => {
                let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
                self.health.refuse(error, key, value);
                self.pace.end(false);
                slip.note(Delivery::Unknown);
            }
        }
    }
}
