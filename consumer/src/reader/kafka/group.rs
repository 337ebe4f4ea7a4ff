//! The member of a consumer group: what it was assigned, and how it acknowledges that.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;

use crate::kafka;

/// What the group assigned, as its callback left it.
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

    /// Until they change, if they did not since the last call.
    pub(super) async fn next(&self) {
        self.notify.notified().await;
    }

    /// The partitions, if they changed since the last call.
    pub(super) fn changed(&self) -> Option<Vec<i32>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.1).then(|| state.0.clone())
    }

    /// Whether they changed.
    pub(super) fn pending(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// The partitions.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// What librdkafka calls back.
pub(super) struct Context {
    assignment: Arc<Assignment>,
}

impl Context {
    pub(super) fn new(assignment: Arc<Assignment>) -> Self {
        Self { assignment }
    }
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
    /// Acknowledges at once, with nothing: the group goes on, and no partition starts at the
    /// group's offset. [`Reader::start`](crate::reader::Reader::start) assigns them with the ledger's.
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
