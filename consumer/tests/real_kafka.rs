//! The reader on a real Kafka: what a mock cannot show.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consumer::config::Settings;
use consumer::kafka::{Watermarks, ensure_topic};
use consumer::ledger::sqlite::SqliteLedger;
use consumer::metrics::Metrics;
use consumer::reader::kafka::KafkaReader;
use consumer::reader::{Read, Reader, ReaderError};
use consumer::sqlite::SqliteFile;
use consumer::step::{Consumer, StepError};
use prometheus::Registry;
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::{Offset, TopicPartitionList};
use support::kafka::{admin, assigned, delete_topic, group_offset, messages, numbered, produce};
use support::{SOON, bytes, sale, serials, server, settings};
use tokio::time::timeout;

/// A topic of its own, gone with the test.
struct Topic {
    settings: Settings,
    brokers: String,
}

impl Topic {
    async fn create(partitions: i32) -> Self {
        let brokers = server("SECKILL_KAFKA_BROKERS");
        let mut settings = settings(&brokers);
        settings.kafka_partitions = partitions;
        let topic = Self { settings, brokers };
        ensure_topic(&topic.settings).await.expect("a topic");
        topic
    }

    fn name(&self) -> &str {
        &self.settings.kafka_topic
    }

    async fn produce(&self, values: &[Option<Vec<u8>>]) {
        produce(&self.brokers, self.name(), 0, values).await;
    }

    fn reader(&self) -> KafkaReader {
        KafkaReader::new(&self.settings).expect("a reader")
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let (brokers, name) = (self.brokers.clone(), self.name().to_owned());
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(delete_topic(&brokers, &name));
        })
        .join();
        drop(dropped);
    }
}

fn any(partitions: &[i32]) -> bool {
    !partitions.is_empty()
}

#[tokio::test]
async fn the_topic_is_made_once_and_kept_for_ever() {
    let topic = Topic::create(4).await;
    let (one, two) = tokio::join!(ensure_topic(&topic.settings), ensure_topic(&topic.settings));
    one.and(two).expect("there already");
    let ends = Watermarks::new(&topic.settings).expect("a client").ends(topic.name()).await.expect("ends");
    assert_eq!(ends, (0..4).map(|partition| (partition, 0)).collect());
    let resource = [ResourceSpecifier::Topic(topic.name())];
    let configs =
        admin(&topic.brokers).describe_configs(&resource, &AdminOptions::new()).await.expect("asked");
    let config = configs[0].as_ref().expect("described");
    assert_eq!(config.get("retention.ms").and_then(|entry| entry.value.clone()).as_deref(), Some("-1"));
}

#[tokio::test]
async fn a_topic_that_is_missing_is_waited_for_and_not_made_by_looking() {
    let settings = settings(&server("SECKILL_KAFKA_BROKERS"));
    let watermarks = Watermarks::new(&settings).expect("a client");
    for _ in 0..3 {
        let error = watermarks.ends(&settings.kafka_topic).await.expect_err("no such topic");
        assert!(matches!(&error, ReaderError::Away(why) if why.contains(&settings.kafka_topic)), "{error:?}");
    }
    let mut reader = KafkaReader::new(&settings).expect("a reader");
    timeout(SOON, async {
        loop {
            match reader.read(10, Duration::from_millis(100)).await {
                Err(ReaderError::Away(why)) if why.contains("there is no topic") => break,
                Ok(_) | Err(ReaderError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .expect("said");
    ensure_topic(&settings).await.expect("made");
    let topic = Topic { brokers: server("SECKILL_KAFKA_BROKERS"), settings };
    topic.produce(&numbered(1)).await;
    assigned(&mut reader, &BTreeMap::new(), any).await;
    assert_eq!(messages(&mut reader, 1).await, [(0, 0)]);
}

#[tokio::test]
async fn lag_tools_see_how_far_the_ledger_is() {
    let topic = Topic::create(1).await;
    topic.produce(&numbered(5)).await;
    let mut reader = topic.reader();
    assigned(&mut reader, &BTreeMap::new(), any).await;
    reader.report(&BTreeMap::from([(0, 3), (7, 9)])).await;
    timeout(SOON, async {
        loop {
            let (brokers, group, name) =
                (topic.brokers.clone(), topic.settings.kafka_group.clone(), topic.name().to_owned());
            let seen = tokio::task::spawn_blocking(move || group_offset(&brokers, &group, &name, 0)).await;
            if seen.expect("asked") == Some(3) {
                break;
            }
        }
    })
    .await
    .expect("committed");
}

#[tokio::test]
async fn what_retention_removed_unrecorded_stops() {
    let topic = Topic::create(1).await;
    topic.produce(&numbered(5)).await;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic.name(), 0, Offset::Offset(3)).expect("an offset");
    admin(&topic.brokers).delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    let mut reader = topic.reader();
    assigned(&mut reader, &BTreeMap::new(), any).await;
    assert_eq!(messages(&mut reader, 2).await, [(0, 3), (0, 4)]);
    for outside in [0, 2, 5, 6] {
        let started = reader.start(&BTreeMap::from([(0, outside)])).await;
        assert!(matches!(started, Err(ReaderError::Foreign(_))), "{outside}: {started:?}");
    }
}

#[tokio::test]
async fn a_topic_that_was_recreated_is_noticed() {
    let topic = Topic::create(1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteFile::open(&folder.path().join("seckill.db"), true).await.expect("a file");
    let ledger = Arc::new(SqliteLedger::open(&file).await.expect("a ledger"));
    let consumer = || {
        let metrics = Metrics::new(&Registry::new()).expect("registered");
        Consumer::new(Box::new(topic.reader()), ledger.clone(), metrics)
    };
    topic.produce(&[Some(bytes(&sale(1))), Some(bytes(&sale(2)))]).await;
    let mut first = consumer();
    timeout(SOON, async {
        while serials(&*ledger).await.len() < 2 {
            first.step().await.expect("a step");
        }
    })
    .await
    .expect("recorded");
    first.close().await;

    delete_topic(&topic.brokers, topic.name()).await;
    timeout(SOON, async {
        let watermarks = Watermarks::new(&topic.settings).expect("a client");
        while watermarks.ends(topic.name()).await.is_ok() {}
        while ensure_topic(&topic.settings).await.is_err() || watermarks.ends(topic.name()).await.is_err() {}
    })
    .await
    .expect("made anew");
    topic.produce(&[Some(bytes(&sale(3))), Some(bytes(&sale(4))), Some(bytes(&sale(5)))]).await;
    let mut second = consumer();
    let error = timeout(SOON, async {
        loop {
            if let Err(error) = second.step().await {
                break error;
            }
        }
    })
    .await
    .expect("noticed");
    assert!(matches!(&error, StepError::Foreign(why) if why.contains("recreated")), "{error}");
    assert_eq!(serials(&*ledger).await, [1, 2], "nothing of it was recorded");
}

/// Few large messages are a batch, too: memory is bounded in bytes.
#[tokio::test]
async fn a_batch_of_large_messages_is_cut() {
    const LARGE: usize = 900_000;
    let topic = Topic::create(1).await;
    let values: Vec<_> = (0..20).map(|_| Some(vec![b'x'; LARGE])).collect();
    topic.produce(&values).await;
    let mut reader = topic.reader();
    assigned(&mut reader, &BTreeMap::new(), any).await;
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < values.len() {
        // Enough for all of them to be fetched ahead.
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Read::Messages(messages) = reader.read(1000, SOON).await.expect("read") {
            sizes.push(messages.values().map(Vec::len).sum());
        }
    }
    assert!(sizes.iter().all(|size| size * LARGE < 8 * 1024 * 1024 + LARGE), "{sizes:?}");
}
