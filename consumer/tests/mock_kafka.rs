//! The reader on librdkafka's own mock cluster: assignments, offsets, troubles.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consumer::ledger::Ledger;
use consumer::ledger::sqlite::SqliteLedger;
use consumer::progress::Extent;
use consumer::reader::kafka::KafkaReader;
use consumer::reader::{Read, Reader, ReaderError};
use consumer::recording::metrics::Metrics;
use consumer::recording::step::{Consumer, Step};
use consumer::service::config::Settings;
use consumer::sqlite::SqliteFile;
use prometheus::Registry;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use support::kafka::{assigned, at, group_offset, messages, numbered, produce, set_group_offset};
use support::{SOON, bytes, sale, serials, settings};
use tokio::time::{Instant, timeout};

const SHORT: Duration = Duration::from_millis(100);

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster(partitions: i32) -> (Cluster, Settings, String) {
    let cluster = MockCluster::new(1).expect("a cluster");
    let brokers = cluster.bootstrap_servers();
    let settings = settings(&brokers);
    cluster.create_topic(&settings.kafka_topic, partitions, 1).expect("a topic");
    (cluster, settings, brokers)
}

fn reader(settings: &Settings) -> KafkaReader {
    KafkaReader::new(settings).expect("a reader")
}

fn any(partitions: &[i32]) -> bool {
    !partitions.is_empty()
}

#[tokio::test]
async fn it_starts_where_the_ledger_says_whatever_the_group_says() {
    let (_cluster, settings, brokers) = cluster(1);
    produce(&brokers, &settings.kafka_topic, 0, &numbered(10)).await;
    set_group_offset(&brokers, &settings.kafka_group, &settings.kafka_topic, 0, 0);
    let mut first = reader(&settings);
    assert_eq!(assigned(&mut first, &BTreeMap::from([(0, 6)]), any).await, [0]);
    assert_eq!(messages(&mut first, 4).await, [(0, 6), (0, 7), (0, 8), (0, 9)]);
    assert_eq!(first.extents().await.expect("extents"), BTreeMap::from([(0, Extent { start: 0, end: 10 })]));
    first.report(&BTreeMap::from([(0, 8)])).await;
    timeout(SOON, async {
        while group_offset(&brokers, &settings.kafka_group, &settings.kafka_topic, 0) != Some(8) {}
    })
    .await
    .expect("committed");
    first.close().await;

    let mut second = reader(&settings);
    assigned(&mut second, &BTreeMap::new(), any).await;
    assert_eq!(messages(&mut second, 10).await.first(), Some(&(0, 0)), "no row: from the log's start");
}

#[tokio::test]
async fn started_again_it_reads_again_from_there() {
    let (_cluster, settings, brokers) = cluster(1);
    produce(&brokers, &settings.kafka_topic, 0, &numbered(5)).await;
    let mut reader = reader(&settings);
    assigned(&mut reader, &BTreeMap::new(), any).await;
    assert_eq!(messages(&mut reader, 5).await.len(), 5);
    reader.start(&at(&BTreeMap::from([(0, 3)]))).await.expect("started");
    assert_eq!(messages(&mut reader, 2).await, [(0, 3), (0, 4)]);
}

#[tokio::test]
async fn wanting_nothing_it_stays_in_the_group_and_loses_nothing() {
    let (_cluster, settings, brokers) = cluster(1);
    produce(&brokers, &settings.kafka_topic, 0, &numbered(5)).await;
    let mut reader = reader(&settings);
    assigned(&mut reader, &BTreeMap::new(), any).await;
    for _ in 0..5 {
        assert_eq!(reader.read(0, SHORT).await.expect("read"), Read::Quiet);
    }
    assert_eq!(messages(&mut reader, 5).await, (0..5).map(|offset| (0, offset)).collect::<Vec<_>>());
    assert_eq!(reader.read(0, SHORT).await.expect("read"), Read::Quiet);
    produce(&brokers, &settings.kafka_topic, 0, &numbered(2)).await;
    assert_eq!(reader.read(0, SHORT).await.expect("read"), Read::Quiet);
    assert_eq!(messages(&mut reader, 2).await, [(0, 5), (0, 6)]);
}

#[tokio::test]
async fn a_second_consumer_shares_and_then_takes_over() {
    let (_cluster, settings, brokers) = cluster(2);
    for partition in [0, 1] {
        produce(&brokers, &settings.kafka_topic, partition, &numbered(3)).await;
    }
    let mut first = reader(&settings);
    assert_eq!(assigned(&mut first, &BTreeMap::new(), any).await, [0, 1]);
    let mut second = reader(&settings);
    let start = BTreeMap::from([(0, 1), (1, 2)]);
    // Both are needed for the group to settle, the first although it wants nothing.
    let (kept, given) = tokio::join!(
        async {
            timeout(SOON, async {
                loop {
                    match first.read(0, SHORT).await.expect("read") {
                        Read::Assigned(partitions) if partitions.len() == 1 => break partitions,
                        _ => {}
                    }
                }
            })
            .await
            .expect("one left")
        },
        assigned(&mut second, &start, |partitions| partitions.len() == 1)
    );
    assert_ne!(kept, given);
    first.close().await;
    assert_eq!(assigned(&mut second, &start, |partitions| partitions.len() == 2).await, [0, 1]);
    let mut offsets = messages(&mut second, 3).await;
    offsets.sort_unstable();
    assert_eq!(offsets, [(0, 1), (0, 2), (1, 2)]);
}

/// To librdkafka a partition stays paused beyond its assignment.
#[tokio::test]
async fn reassigned_while_nothing_was_wanted_it_reads_again() {
    let (_cluster, settings, brokers) = cluster(2);
    for partition in [0, 1] {
        produce(&brokers, &settings.kafka_topic, partition, &numbered(3)).await;
    }
    let mut first = reader(&settings);
    assigned(&mut first, &BTreeMap::new(), any).await;
    assert_eq!(first.read(0, SHORT).await.expect("read"), Read::Quiet);
    let mut second = reader(&settings);
    let other = async {
        loop {
            let _ = second.read(0, SHORT).await;
        }
    };
    let reads = async {
        let mut wanted = 0;
        loop {
            match first.read(wanted, SHORT).await {
                Ok(Read::Assigned(partitions)) if any(&partitions) => {
                    first.start(&at(&BTreeMap::new())).await.expect("started");
                    wanted = 1000;
                }
                Ok(Read::Messages(messages)) => break messages.len(),
                Ok(_) | Err(ReaderError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::select! {
        read = timeout(SOON, reads) => assert_eq!(read.expect("messages"), 1, "partitions"),
        () = other => {}
    }
}

#[tokio::test]
async fn an_offset_outside_the_log_stops() {
    let (_cluster, settings, brokers) = cluster(1);
    produce(&brokers, &settings.kafka_topic, 0, &numbered(5)).await;
    let mut reader = reader(&settings);
    assigned(&mut reader, &BTreeMap::new(), any).await;
    for outside in [5, 6, 1000] {
        match reader.start(&at(&BTreeMap::from([(0, outside)]))).await {
            Err(ReaderError::Foreign(why)) => {
                assert!(why.contains(&format!("{} partition 0", settings.kafka_topic)), "{why}");
                assert!(
                    why.contains(&format!("up to offset {}, and the log ends at 5", outside + 1)),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    reader.start(&at(&BTreeMap::from([(0, 4)]))).await.expect("inside");
}

#[tokio::test]
async fn brokers_that_go_away_are_waited_for() {
    goes_on_after(Duration::ZERO).await;
}

/// So long that the client was replaced.
#[tokio::test]
async fn brokers_that_are_away_for_long_are_found_again() {
    goes_on_after(Duration::from_secs(15)).await;
}

async fn goes_on_after(outage: Duration) {
    let (cluster, settings, brokers) = cluster(1);
    produce(&brokers, &settings.kafka_topic, 0, &numbered(2)).await;
    let mut reader = reader(&settings);
    assigned(&mut reader, &BTreeMap::new(), any).await;
    assert_eq!(messages(&mut reader, 2).await.len(), 2);
    cluster.broker_down(-1).expect("down");
    timeout(SOON, async { while !matches!(reader.read(10, SHORT).await, Err(ReaderError::Away(_))) {} })
        .await
        .expect("noticed");
    let until = Instant::now() + outage;
    while Instant::now() < until {
        let read = reader.read(10, SHORT).await;
        let nothing = matches!(&read, Err(ReaderError::Away(_)))
            || matches!(&read, Ok(Read::Assigned(partitions)) if partitions.is_empty());
        assert!(nothing, "{read:?}");
    }
    cluster.broker_up(-1).expect("up");
    produce(&brokers, &settings.kafka_topic, 0, &numbered(2)).await;
    timeout(SOON, async {
        let mut offsets = Vec::new();
        while offsets.last() != Some(&3) {
            match reader.read(10, SHORT).await {
                Ok(Read::Messages(messages)) => {
                    offsets.extend(messages[&0].iter().map(|message| message.offset))
                }
                // The group may have begun anew.
                Ok(Read::Assigned(partitions)) if !partitions.is_empty() => {
                    while reader.start(&at(&BTreeMap::from([(0, 1)]))).await.is_err() {}
                    offsets.clear();
                }
                Ok(_) | Err(ReaderError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .expect("goes on");
}

#[tokio::test]
async fn poison_is_put_aside_and_the_rest_recorded_also_after_a_restart() {
    let (_cluster, settings, brokers) = cluster(2);
    let topic = &settings.kafka_topic;
    let one = [Some(bytes(&sale(1))), Some(b"not json".to_vec()), None, Some(bytes(&sale(2)))];
    produce(&brokers, topic, 0, &one).await;
    produce(&brokers, topic, 1, &[Some(bytes(&sale(3)))]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteFile::open(&folder.path().join("seckill.db"), true).await.expect("a file");
    let ledger = Arc::new(SqliteLedger::open(&file).await.expect("a ledger"));
    for recorded in [3_u64, 4] {
        let metrics = Metrics::new(&Registry::new()).expect("registered");
        let mut consumer = Consumer::new(Box::new(reader(&settings)), ledger.clone(), metrics);
        timeout(SOON, async {
            while serials(&*ledger).await.len() < usize::try_from(recorded).expect("small") {
                if let Step::Posted(posted) = consumer.step().await.expect("a step") {
                    assert_eq!((posted.duplicate, posted.conflict), (0, 0));
                }
            }
        })
        .await
        .expect("recorded");
        assert_eq!(ledger.faults().await.expect("read").dead_letters, 2);
        assert_eq!(serials(&*ledger).await, (1..=recorded).collect::<Vec<_>>());
        consumer.close().await;
        if recorded == 3 {
            produce(&brokers, topic, 0, &[Some(bytes(&sale(4)))]).await;
        }
    }
}
