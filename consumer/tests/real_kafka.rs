//! The reader on a real Kafka: what a mock cannot show.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consumer::kafka::{Watermarks, ensure_topic};
use consumer::ledger::Record as _;
use consumer::ledger::sqlite::SqliteLedger;
use consumer::progress::{Checkpoints, Extent, behind};
use consumer::reader::kafka::KafkaReader;
use consumer::reader::{Read, Reader, ReaderError};
use consumer::recording::metrics::Metrics;
use consumer::recording::skip::{Skip, skip};
use consumer::recording::step::{Consumer, StepError};
use consumer::service::config::Settings;
use consumer::sqlite::SqliteFile;
use prometheus::Registry;
use rdkafka::admin::{AdminOptions, NewPartitions, ResourceSpecifier};
use rdkafka::{Offset, TopicPartitionList};
use support::kafka::{
    admin, assigned, at, delete_topic, group_offset, messages, numbered, produce, transactional,
};
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

    /// Takes out what stands before an offset.
    async fn cut(&self, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.name(), 0, Offset::Offset(before)).expect("an offset");
        admin(&self.brokers).delete_records(&list, &AdminOptions::new()).await.expect("deleted");
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
#[ignore = "needs servers"]
async fn the_topic_is_made_once_and_kept_for_ever() {
    let topic = Topic::create(4).await;
    let (one, two) = tokio::join!(ensure_topic(&topic.settings), ensure_topic(&topic.settings));
    one.and(two).expect("there already");
    let watermarks = Watermarks::new(&topic.settings).expect("a client");
    let extents = watermarks.extents(topic.name()).await.expect("extents");
    assert_eq!(extents, (0..4).map(|partition| (partition, Extent::default())).collect());
    let resource = [ResourceSpecifier::Topic(topic.name())];
    let configs =
        admin(&topic.brokers).describe_configs(&resource, &AdminOptions::new()).await.expect("asked");
    let config = configs[0].as_ref().expect("described");
    assert_eq!(config.get("retention.ms").and_then(|entry| entry.value.clone()).as_deref(), Some("-1"));
}

#[tokio::test]
#[ignore = "needs servers"]
async fn a_topic_that_is_missing_is_waited_for_and_not_made_by_looking() {
    let settings = settings(&server("SECKILL_KAFKA_BROKERS"));
    let watermarks = Watermarks::new(&settings).expect("a client");
    for _ in 0..3 {
        let error = watermarks.extents(&settings.kafka_topic).await.expect_err("no such topic");
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
#[ignore = "needs servers"]
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
#[ignore = "needs servers"]
async fn what_retention_removed_unrecorded_stops() {
    let topic = Topic::create(1).await;
    topic.produce(&numbered(5)).await;
    topic.cut(3).await;
    let mut reader = topic.reader();
    // What was recorded may go, also the message by which the log would be known again.
    assigned(&mut reader, &BTreeMap::from([(0, 2)]), any).await;
    assert_eq!(messages(&mut reader, 2).await, [(0, 3), (0, 4)]);
    for (outside, advice) in [(0, "consumer skip"), (1, "consumer skip"), (5, "new name"), (6, "new name")] {
        let started = reader.start(&at(&BTreeMap::from([(0, outside)]))).await;
        assert!(
            matches!(&started, Err(ReaderError::Foreign(why)) if why.contains(advice)),
            "{outside}: {started:?}"
        );
    }
    let unknown = reader.start(&Checkpoints::new()).await;
    assert!(
        matches!(&unknown, Err(ReaderError::Foreign(why)) if why.contains("consumer skip")),
        "{unknown:?}"
    );
}

/// A ledger in a file.
async fn books() -> (Arc<SqliteLedger>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteFile::open(&folder.path().join("seckill.db"), true).await.expect("a file");
    (Arc::new(SqliteLedger::open(&file).await.expect("a ledger")), folder)
}

fn consumer(topic: &Topic, ledger: &Arc<SqliteLedger>) -> Consumer {
    let metrics = Metrics::new(&Registry::new()).expect("registered");
    Consumer::new(Box::new(topic.reader()), Arc::<SqliteLedger>::clone(ledger), metrics)
}

/// Steps until it ends, or until `done`.
async fn steps(consumer: &mut Consumer, mut done: impl AsyncFnMut() -> bool) -> Result<(), StepError> {
    timeout(SOON, async {
        while !done().await {
            consumer.step().await?;
        }
        Ok(())
    })
    .await
    .expect("in time")
}

/// What is gone unrecorded is passed over by an operator's decision, and by nothing else.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_head_that_is_gone_is_skipped_on_request() {
    let topic = Topic::create(2).await;
    let (ledger, _folder) = books().await;
    let values: Vec<_> = (1..=5).map(|serial| Some(bytes(&sale(serial)))).collect();
    topic.produce(&values[..2]).await;
    let mut first = consumer(&topic, &ledger);
    steps(&mut first, async || serials(&*ledger).await.len() == 2).await.expect("recorded");
    first.close().await;
    topic.produce(&values[2..4]).await;
    topic.cut(3).await;
    let watermarks = Watermarks::new(&topic.settings).expect("a client");
    let extents = watermarks.extents(topic.name()).await.expect("extents");

    let mut second = consumer(&topic, &ledger);
    let error = steps(&mut second, async || false).await.expect_err("it stops");
    assert!(error.to_string().contains("partition 0: the log begins at offset 3"), "{error}");
    second.close().await;
    let shown = skip(&*ledger, topic.name(), &extents, None, false).await.expect("shown");
    assert!(
        matches!(&shown, Skip::Gone(said) if said.contains("partition 0: offsets 2 to 2 would be")),
        "{shown:?}"
    );
    let other = skip(&*ledger, topic.name(), &extents, Some(1), true).await.expect("shown");
    assert!(matches!(other, Skip::Nothing(_)), "{other:?}");
    assert_eq!(ledger.checkpoints(topic.name()).await.expect("read")[&0].next, 2, "nothing was changed");
    let done = skip(&*ledger, topic.name(), &extents, None, true).await.expect("done");
    assert!(matches!(&done, Skip::Gone(said) if said.contains("1 of them")), "{done:?}");
    let again = skip(&*ledger, topic.name(), &extents, None, true).await.expect("safe");
    assert!(matches!(&again, Skip::Nothing(said) if said.contains("1 messages")), "{again:?}");

    topic.produce(&values[4..]).await;
    let mut third = consumer(&topic, &ledger);
    steps(&mut third, async || serials(&*ledger).await == [1, 2, 4, 5]).await.expect("it goes on");
    third.close().await;
}

/// A log of which nothing is left and nothing was recorded: not behind for ever, and not caught up.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_log_that_was_emptied_before_it_was_recorded_is_skipped_on_request() {
    let topic = Topic::create(1).await;
    let (ledger, _folder) = books().await;
    topic.produce(&[Some(bytes(&sale(1)))]).await;
    topic.cut(1).await;
    let watermarks = Watermarks::new(&topic.settings).expect("a client");
    let extents = watermarks.extents(topic.name()).await.expect("extents");
    let nothing = Checkpoints::new();
    assert!(behind(topic.name(), &nothing, &extents, &nothing).is_err());
    let mut first = consumer(&topic, &ledger);
    steps(&mut first, async || false).await.expect_err("it stops");
    first.close().await;
    skip(&*ledger, topic.name(), &extents, None, true).await.expect("done");
    let posted = ledger.checkpoints(topic.name()).await.expect("read");
    assert_eq!(behind(topic.name(), &posted, &extents, &posted), Ok(0));
    topic.produce(&[Some(bytes(&sale(2)))]).await;
    let mut second = consumer(&topic, &ledger);
    steps(&mut second, async || serials(&*ledger).await == [2]).await.expect("it goes on");
    second.close().await;
}

/// The marker of a transaction, and what one gave up, is no message to wait for; nor is what one that
/// goes on has not decided yet.
#[tokio::test]
#[ignore = "needs servers"]
async fn what_transactions_leave_in_the_log_is_passed_over() {
    let topic = Topic::create(1).await;
    let (ledger, _folder) = books().await;
    let transaction = transactional(&topic.brokers);
    let watermarks = Watermarks::new(&topic.settings).expect("a client");
    let caught_up = async || {
        let extents = watermarks.extents(topic.name()).await.expect("extents");
        let posted = ledger.checkpoints(topic.name()).await.expect("read");
        behind(topic.name(), &posted, &extents, &posted) == Ok(0)
    };
    // Before anything was recorded; then after it; then after a restart.
    transaction.abort(topic.name(), &bytes(&sale(7))).await;
    let mut first = consumer(&topic, &ledger);
    steps(&mut first, &caught_up).await.expect("passed over");
    transaction.commit(topic.name(), &bytes(&sale(1))).await;
    steps(&mut first, async || serials(&*ledger).await == [1] && caught_up().await).await.expect("recorded");
    transaction.abort(topic.name(), &bytes(&sale(8))).await;
    first.close().await;
    let mut second = consumer(&topic, &ledger);
    steps(&mut second, &caught_up).await.expect("passed over");
    transaction.commit(topic.name(), &bytes(&sale(2))).await;
    steps(&mut second, async || serials(&*ledger).await == [1, 2] && caught_up().await)
        .await
        .expect("recorded");
    transaction.begin(topic.name(), &bytes(&sale(3))).await;
    steps(&mut second, &caught_up).await.expect("nothing of it can be had yet");
    second.close().await;
    assert_eq!(serials(&*ledger).await, [1, 2]);
}

/// Partitions that are added to a live topic are read within seconds.
#[tokio::test]
#[ignore = "needs servers"]
async fn partitions_that_are_added_are_read() {
    let topic = Topic::create(1).await;
    let mut reader = topic.reader();
    assigned(&mut reader, &BTreeMap::new(), any).await;
    let added = admin(&topic.brokers)
        .create_partitions([&NewPartitions::new(topic.name(), 3)], &AdminOptions::new())
        .await
        .expect("asked");
    assert!(added.iter().all(Result::is_ok), "{added:?}");
    assert_eq!(assigned(&mut reader, &BTreeMap::new(), |partitions| partitions.len() == 3).await, [0, 1, 2]);
    assert_eq!(reader.extents().await.expect("extents").len(), 3, "each has a lag");
}

#[tokio::test]
#[ignore = "needs servers"]
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
        while watermarks.extents(topic.name()).await.is_ok() {}
        while ensure_topic(&topic.settings).await.is_err() || watermarks.extents(topic.name()).await.is_err()
        {
        }
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
#[ignore = "needs servers"]
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
