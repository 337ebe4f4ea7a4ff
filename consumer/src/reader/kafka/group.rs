//! The consumer group member: how it joins, its assignment, and how it acknowledges one.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;

use crate::kafka::{self, Apart, REFRESH_METADATA_MS};
use crate::service::config::{ConfigError, Settings};

/// The assignment, as the rebalance callback left it.
#[derive(Default)]
pub(super) struct Assignment {
    state: Mutex<(Vec<i32>, bool)>,
    notify: Notify,
}

impl Assignment {
    pub(super) fn set(&self, partitions: Vec<i32>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (partitions, true);
        self.notify.notify_one();
    }

    /// Waits for a change since the last call.
    pub(super) async fn next(&self) {
        self.notify.notified().await;
    }

    /// The partitions, if they changed since the last call.
    pub(super) fn changed(&self) -> Option<Vec<i32>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.1).then(|| state.0.clone())
    }

    /// Whether a change is pending.
    pub(super) fn pending(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// The partitions.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// A group member.
pub(super) type Client = StreamConsumer<Context>;

/// Creates a client in the group, with its assignment.
pub(super) fn join(settings: &Settings) -> Result<(Arc<Apart<Client>>, Arc<Assignment>), ConfigError> {
    let mut config = kafka::client(settings)?;
    config.set("group.id", &settings.kafka_group);
    // The newer protocol assigns incrementally, which `start` does not support.
    config.set("group.protocol", "classic");
    // Whole assignments, for the same reason.
    config.set("partition.assignment.strategy", "range");
    // A consumer killed with -9 is replaced within 10 s.
    config.set("session.timeout.ms", "6000");
    config.set("heartbeat.interval.ms", "2000");
    // A hung consumer loses its partitions after this; a slow post takes 20 s.
    config.set("max.poll.interval.ms", "60000");
    // Outside the log: stop and report it, never skip.
    config.set("auto.offset.reset", "error");
    // The ledger keeps the offsets; commits are reports, made explicitly.
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    // Only `ensure_topic` creates the topic.
    config.set("allow.auto.create.topics", "false");
    // Reports that a partition was read to its end.
    config.set("enable.partition.eof", "true");
    // Aborted messages are no sales.
    config.set("isolation.level", "read_committed");
    // Notices added partitions within seconds.
    config.set("topic.metadata.refresh.interval.ms", REFRESH_METADATA_MS);
    // A sale waits for nothing.
    config.set("fetch.wait.max.ms", "100");
    // Bounds prefetching (default: 64 MB).
    config.set("queued.max.messages.kbytes", "16384");
    // Detects corruption on the wire or on disk.
    config.set("check.crcs", "true");
    let assignment = Arc::new(Assignment::default());
    let context = Context { assignment: Arc::clone(&assignment) };
    let consumer: Client = kafka::create(&config, context)?;
    consumer
        .subscribe(&[&settings.kafka_topic])
        .map_err(|_| ConfigError("SECKILL_KAFKA_TOPIC cannot be subscribed to".to_owned()))?;
    Ok((Arc::new(Apart::new(consumer)), assignment))
}

/// The callbacks of librdkafka.
pub(super) struct Context {
    assignment: Arc<Assignment>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log_line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        match kafka::refusal(&error, reason) {
            Some(why) => log::warn!("kafka refuses: {why}"),
            None => log::debug!("librdkafka: {error}: {reason}"),
        }
    }
}

impl ConsumerContext for Context {
    /// Acknowledges at once with an empty assignment: the group continues, and no partition starts at the
    /// group's offset. [`Reader::start`](crate::reader::Reader::start) assigns them at the ledger's.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let (acknowledged, partitions) = if assigned {
            let mut partitions: Vec<i32> = list.elements().iter().map(|entry| entry.partition()).collect();
            partitions.sort_unstable();
            (consumer.assign(&TopicPartitionList::new()), partitions)
        } else {
            (consumer.unassign(), Vec::new())
        };
        if let Err(error) = acknowledged {
            log::warn!("an assignment could not be acknowledged: {error}");
        }
        self.assignment.set(partitions);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            log::debug!("the group was not told how far the ledger is: {error}");
        }
    }
}
