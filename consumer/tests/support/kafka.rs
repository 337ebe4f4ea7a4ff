//! Kafka for tests: produce, look at a group, wait for what a reader brings.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "every test takes what it needs of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use consumer::ledger::{Checkpoint, Message};
use consumer::progress::Checkpoints;
use consumer::reader::kafka::KafkaReader;
use consumer::reader::{Read, Reader, ReaderError};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::timeout;

use super::SOON;

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

pub async fn produce(brokers: &str, topic: &str, partition: i32, values: &[Option<Vec<u8>>]) {
    let producer: FutureProducer = config(brokers).create().expect("a producer");
    for value in values {
        let mut record: FutureRecord<'_, str, Vec<u8>> =
            FutureRecord::to(topic).partition(partition).key("key");
        if let Some(value) = value {
            record = record.payload(value);
        }
        producer.send(record, SOON).await.expect("produced");
    }
}

/// `count` messages that say which they are.
pub fn numbered(count: usize) -> Vec<Option<Vec<u8>>> {
    (0..count).map(|number| Some(format!("message {number}").into_bytes())).collect()
}

fn member(brokers: &str, group: &str) -> BaseConsumer {
    config(brokers).set("group.id", group).create().expect("a consumer")
}

/// What the group says, as an operator would set it.
pub fn set_group_offset(brokers: &str, group: &str, topic: &str, partition: i32, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
    member(brokers, group).commit(&list, CommitMode::Sync).expect("committed");
}

/// What lag tools see.
pub fn group_offset(brokers: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let list = member(brokers, group).committed_offsets(list, SOON).expect("answered");
    match list.elements().first().expect("the partition").offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

pub fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    config(brokers).create().expect("an admin client")
}

pub async fn delete_topic(brokers: &str, topic: &str) {
    let options = AdminOptions::new().operation_timeout(Some(SOON));
    admin(brokers).delete_topics(&[topic], &options).await.expect("asked");
}

/// A producer of transactions.
pub struct Transactions(FutureProducer);

pub fn transactional(brokers: &str) -> Transactions {
    let id = uuid::Uuid::now_v7().to_string();
    let producer: FutureProducer = config(brokers).set("transactional.id", id).create().expect("a producer");
    producer.init_transactions(SOON).expect("transactions");
    Transactions(producer)
}

impl Transactions {
    pub async fn begin(&self, topic: &str, value: &[u8]) {
        self.0.begin_transaction().expect("begun");
        let record: FutureRecord<'_, str, [u8]> =
            FutureRecord::to(topic).partition(0).key("key").payload(value);
        self.0.send(record, SOON).await.expect("produced");
    }

    pub async fn commit(&self, topic: &str, value: &[u8]) {
        self.begin(topic, value).await;
        self.0.commit_transaction(SOON).expect("committed");
    }

    pub async fn abort(&self, topic: &str, value: &[u8]) {
        self.begin(topic, value).await;
        self.0.abort_transaction(SOON).expect("aborted");
    }
}

/// Checkpoints after the messages at these offsets.
pub fn at(last: &BTreeMap<i32, i64>) -> Checkpoints {
    let after = |offset: &i64| Checkpoint::after(&Message { offset: *offset, value: Vec::new() });
    last.iter().map(|(partition, offset)| (*partition, after(offset))).collect()
}

/// Reads until there is an assignment for which `is_it` holds, and starts it.
pub async fn assigned(
    reader: &mut KafkaReader,
    from: &BTreeMap<i32, i64>,
    is_it: impl Fn(&[i32]) -> bool,
) -> Vec<i32> {
    let assigned = timeout(SOON, async {
        loop {
            match reader.read(1000, Duration::from_millis(100)).await {
                Ok(Read::Assigned(partitions)) if is_it(&partitions) => break partitions,
                Ok(_) | Err(ReaderError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .expect("an assignment");
    reader.start(&at(from)).await.expect("started");
    assigned
}

/// Reads until `count` messages came; gives their partitions and offsets.
pub async fn messages(reader: &mut KafkaReader, count: usize) -> Vec<(i32, i64)> {
    timeout(SOON, async {
        let mut offsets = Vec::new();
        while offsets.len() < count {
            match reader.read(1000, Duration::from_millis(100)).await {
                Ok(Read::Messages(messages)) => {
                    for (partition, messages) in messages {
                        offsets.extend(messages.iter().map(|message| (partition, message.offset)));
                    }
                }
                Ok(Read::Quiet) | Err(ReaderError::Away(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        offsets
    })
    .await
    .expect("messages")
}
