//! Kafka journal: an idempotent producer, acknowledged by all in-sync replicas.

mod health;
mod look;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use consumer::kafka::{self as client, REFRESH_METADATA_MS, Watermarks};
use consumer::progress::Extents;
use consumer::service::config::Settings;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use super::{Delivery, Journal, Receipt};
use crate::sale::Batch;
use crate::sale::times::DELIVERY_DEADLINE;
use health::{Acknowledger, Health, Locked, Pace, Slip};
use look::Look;

/// How often Kafka is probed while it is away.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// Timeout of a probe.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// Retry interval of a failed sale: selling resumes within seconds after Kafka recovers, and the broker's log
/// gains a line a second from each node meanwhile.
const OFFER_EVERY: Duration = Duration::from_secs(1);
/// Added partitions are used after this.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Sales in the producer's queue: `STALLED_AFTER` bounds what half a minute's outage of a fast sale leaves
/// there; beyond this a sale stays in the outbox.
const QUEUE_SALES: &str = "100000";

type Producer = ThreadedProducer<Acknowledger>;

/// The producer of a topic.
pub struct KafkaJournal {
    settings: Settings,
    config: ClientConfig,
    producer: RwLock<Arc<Producer>>,
    health: Arc<Health>,
    /// Batches appended so far.
    batches: AtomicU32,
    /// Created on first use, which most nodes never have; recreated after an error.
    watermarks: Mutex<Option<Watermarks>>,
}

/// The watch's state between probes.
#[derive(Default)]
struct Watched {
    /// Since when Kafka cannot be reached.
    away: Option<Instant>,
    /// When the topic's metadata was last read.
    looked: Option<Instant>,
    /// The last retry, and when it was sent.
    offered: Option<(Arc<Receipt>, Instant)>,
}

impl KafkaJournal {
    /// Creates a producer; it connects in the background.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut config = client::client(settings).map_err(|error| error.to_string())?;
        // The client's own retries put no sale into the log twice.
        config.set("enable.idempotence", "true");
        // Acknowledged means: by every in-sync replica.
        config.set("acks", "all");
        // After this timeout a sale counts as unknown and the outbox relay appends it again.
        config.set("message.timeout.ms", DELIVERY_DEADLINE.as_millis().to_string());
        // The till has batched already; a short linger still joins the partitions' requests.
        config.set("linger.ms", "0.2");
        config.set("queue.buffering.max.messages", QUEUE_SALES);
        config.set("queue.buffering.max.kbytes", "65536");
        // Selling resumes within seconds after the broker is back.
        config.set("reconnect.backoff.max.ms", "1000");
        config.set("retry.backoff.max.ms", "1000");
        config.set("socket.nagle.disable", "true");
        config.set("allow.auto.create.topics", "false");
        config.set("topic.metadata.refresh.interval.ms", REFRESH_METADATA_MS);
        let health = Arc::new(Health {
            topic: AtomicBool::new(false),
            partitions: AtomicU32::new(0),
            reachable: AtomicBool::new(false),
            away: Mutex::new("kafka was not asked yet".to_owned()),
            pace: ArcSwap::new(Pace::new()),
            refusing: AtomicBool::new(false),
            refused: Mutex::default(),
            trouble: Mutex::default(),
        });
        let producer = make(&config, &health).map_err(|error| format!("SECKILL_KAFKA_OPTIONS: {error}"))?;
        Ok(Self {
            settings: settings.clone(),
            config,
            producer: RwLock::new(Arc::new(producer)),
            health,
            batches: AtomicU32::new(0),
            watermarks: Mutex::new(None),
        })
    }

    /// Creates the topic when it is missing, and watches whether Kafka is reachable and accepts sales,
    /// forever.
    pub async fn watch(self: Arc<Self>) {
        let mut said: Option<String> = Some(String::new());
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watched = Watched::default();
        loop {
            ticks.tick().await;
            let probed = self.probe(&mut watched).await;
            if probed.is_ok() || !self.health.topic.load(Ordering::Acquire) {
                watched.away = None;
            } else if watched.away.get_or_insert_with(Instant::now).elapsed() > DELIVERY_DEADLINE {
                // Drops the producer with its queue. A client told by a restarting broker that there are no
                // brokers may never look for one again (librdkafka 2.12); a new one starts from the bootstrap
                // addresses, and does no harm if Kafka itself is away.
                watched.away = None;
                log::debug!("the producer has not found Kafka for long and is replaced");
                self.replace();
            }
            if probed.is_ok() {
                self.offer(&mut watched);
            }
            let state = self.ready().err();
            if state != said {
                match &state {
                    Some(why) => log::warn!("the journal cannot be used: {why}"),
                    None => log::info!("the journal is ready: topic {}", self.settings.kafka_topic),
                }
                said = state;
            }
        }
    }

    /// Probes Kafka, unless known to be well. Reports why it is away to the health state.
    async fn probe(&self, watched: &mut Watched) -> Result<(), ()> {
        let health = &self.health;
        let away = |why: String| {
            health.is_away(why);
            Err(())
        };
        if !health.topic.load(Ordering::Acquire) {
            if let Err(error) = client::ensure_topic(&self.settings).await {
                return away(error.to_string());
            }
            health.topic.store(true, Ordering::Release);
        }
        let well = health.reachable.load(Ordering::Acquire) && !health.pace.load().stalled();
        if well && watched.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        watched.looked = Some(Instant::now());
        let (producer, topic) = (self.producer(), self.settings.kafka_topic.clone());
        let answer = tokio::task::spawn_blocking(move || {
            let metadata = producer.client().fetch_metadata(Some(&topic), PROBE_WITHIN);
            metadata.map(|metadata| Look::at(&metadata, &topic)).map_err(|error| error.to_string())
        });
        match answer.await.map_err(|error| error.to_string()).flatten() {
            Ok(Look::Usable { partitions, short }) => {
                health.partitions.store(partitions, Ordering::Release);
                health.reachable.store(true, Ordering::Release);
                health.note_short(short);
                Ok(())
            }
            // The topic was deleted.
            Ok(Look::Missing) => {
                health.topic.store(false, Ordering::Release);
                away(format!("topic {} is missing", self.settings.kafka_topic))
            }
            Ok(Look::Unusable(why)) => away(why),
            // Recent acknowledgements count for more than one slow probe.
            Err(_) if well => Ok(()),
            Err(why) => away(format!("kafka is away: {why}")),
        }
    }

    /// Retries the failed sale.
    fn offer(&self, watched: &mut Watched) {
        let Some(refused) = self.health.refused.locked().clone() else {
            watched.offered = None;
            return;
        };
        let under_way = watched.offered.as_ref().is_some_and(|(receipt, at)| {
            let given_up = at.elapsed() > DELIVERY_DEADLINE + OFFER_EVERY;
            at.elapsed() < OFFER_EVERY || (!receipt.is_done() && !given_up)
        });
        if under_way {
            return;
        }
        let receipt = Receipt::new(1);
        watched.offered = Some((Arc::clone(&receipt), Instant::now()));
        let slip = Box::new(Slip { receipt, index: 0 });
        self.send(&self.producer(), &refused.key, &refused.value, self.next_partition(), slip);
    }

    fn send(&self, producer: &Producer, key: &[u8], value: &[u8], partition: Option<i32>, slip: Box<Slip>) {
        let pace = &producer.client().context().pace;
        pace.begin();
        let mut record = BaseRecord::with_opaque_to(&self.settings.kafka_topic, slip).key(key).payload(value);
        record.partition = partition;
        if let Err((error, record)) = producer.send(record) {
            match error.rdkafka_error_code() {
                // Local back-pressure; it passes.
                Some(RDKafkaErrorCode::QueueFull) => {}
                // An entry written by hand; no other sale may wait for it.
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => log::error!(
                    "order {} of the outbox is larger than any message may be, and stays there",
                    String::from_utf8_lossy(key)
                ),
                // The topic was recreated with fewer partitions: read its metadata again.
                Some(RDKafkaErrorCode::UnknownPartition) => {
                    self.health.is_away(format!("partition {partition:?} is not known"));
                }
                _ => self.health.refuse(&error, key, value),
            }
            pace.end(false);
            record.delivery_opaque.note(Delivery::Unknown);
        }
    }

    /// Round robin by batch: a request of few large pieces costs the broker less than one of many small ones.
    fn next_partition(&self) -> Option<i32> {
        match self.health.partitions.load(Ordering::Acquire) {
            0 => None,
            partitions => i32::try_from(self.batches.fetch_add(1, Ordering::Relaxed) % partitions).ok(),
        }
    }

    /// The current producer; replaced after a fatal error. What it had in flight stays in the outbox.
    fn producer(&self) -> Arc<Producer> {
        let producer = self.current();
        let Some((_, reason)) = producer.client().fatal_error() else { return producer };
        log::debug!("the producer failed for good and is replaced: {reason}");
        *self.health.trouble.locked() = Some(reason);
        self.replace();
        self.current()
    }

    /// Replaces the producer.
    fn replace(&self) {
        match make(&self.config, &self.health) {
            Ok(producer) => {
                let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *current, Arc::new(producer));
                // The drop joins its threads, which may be blocked on an unreachable network.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => log::error!("no new producer: {error}"),
        }
    }

    fn current(&self) -> Arc<Producer> {
        Arc::clone(&self.producer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// This process' only client that reads the topic's watermarks.
    fn watermarks(&self) -> Result<Watermarks, String> {
        let mut kept = self.watermarks.locked();
        match &*kept {
            Some(watermarks) => Ok(watermarks.clone()),
            None => {
                let made = Watermarks::new(&self.settings).map_err(|error| error.to_string())?;
                Ok(kept.insert(made).clone())
            }
        }
    }
}

fn make(config: &ClientConfig, health: &Arc<Health>) -> Result<Producer, KafkaError> {
    let pace = Pace::new();
    let acknowledger = Acknowledger { health: Arc::clone(health), pace: Arc::clone(&pace) };
    let producer = Producer::from_config_and_context(config, acknowledger)?;
    health.pace.store(pace);
    Ok(producer)
}

#[async_trait]
impl Journal for KafkaJournal {
    fn append(&self, batch: &Batch) -> Arc<Receipt> {
        let receipt = Receipt::new(batch.attempts.len());
        let (producer, partition) = (self.producer(), self.next_partition());
        for (index, sale) in batch.sales().enumerate() {
            let slip = Box::new(Slip { receipt: Arc::clone(&receipt), index });
            let value = sale.to_json().unwrap_or_default();
            self.send(&producer, sale.order.to_string().as_bytes(), &value, partition, slip);
        }
        receipt
    }

    fn ready(&self) -> Result<(), String> {
        let health = &self.health;
        if let Some(why) = self.refusal() {
            Err(why)
        } else if !health.topic.load(Ordering::Acquire) || !health.reachable.load(Ordering::Acquire) {
            Err(health.away.locked().clone())
        } else if health.pace.load().stalled() {
            Err("kafka does not acknowledge".into())
        } else {
            Ok(())
        }
    }

    fn refusal(&self) -> Option<String> {
        if !self.health.refusing.load(Ordering::Acquire) {
            return None;
        }
        self.health
            .refused
            .locked()
            .as_ref()
            .map(|refused| format!("kafka does not take sales: {}", refused.why))
    }

    fn topic(&self) -> &str {
        &self.settings.kafka_topic
    }

    async fn extents(&self) -> Result<Extents, String> {
        let extents = self.watermarks()?.extents(&self.settings.kafka_topic).await;
        extents.map_err(|error| {
            *self.watermarks.locked() = None;
            error.to_string()
        })
    }

    async fn flush(&self, within: Duration) {
        let producer = self.producer();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(within)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            log::warn!("the producer was not flushed in time; the outbox keeps what is open");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use consumer::service::config::Secret;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::journal::contract::{batch, keeps_the_contract};

    type Cluster = MockCluster<'static, DefaultProducerContext>;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    async fn ready(brokers: &str, topic: &str) -> Arc<KafkaJournal> {
        let mut settings = Cli::parse_from(["test", "--kafka-topic", topic]).settings;
        settings.secrets.kafka_brokers = Some(Secret::new(brokers));
        let journal = Arc::new(KafkaJournal::new(&settings).expect("settings"));
        assert!(journal.ready().is_err(), "nobody has looked yet");
        tokio::spawn(Arc::clone(&journal).watch());
        reaches(&journal, true).await;
        journal
    }

    async fn reaches(journal: &KafkaJournal, ready: bool) {
        let waiting = async {
            while journal.ready().is_ok() != ready {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time");
    }

    async fn mock() -> (Cluster, Arc<KafkaJournal>) {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("CAR_NUMBER", 3, 1).expect("a topic");
        let journal = ready(&cluster.bootstrap_servers(), "CAR_NUMBER").await;
        (cluster, journal)
    }

    #[tokio::test]
    async fn the_contract_on_the_mock() {
        let (_cluster, journal) = mock().await;
        keeps_the_contract(&*journal, &batch(512)).await;
    }

    #[tokio::test]
    #[ignore = "needs servers"]
    async fn the_contract_on_kafka() {
        let brokers = std::env::var("SECKILL_KAFKA_BROKERS")
            .expect("SECKILL_KAFKA_BROKERS: run `scripts/servers up` and `eval \"$(scripts/servers env)\"`");
        let topic = format!("test-{}", uuid::Uuid::now_v7().simple());
        let journal = ready(&brokers, &topic).await;
        keeps_the_contract(&*journal, &batch(512)).await;
    }

    /// A fatal error ends a producer, not the sale.
    #[tokio::test]
    async fn a_producer_that_failed_for_good_is_replaced() {
        let (cluster, journal) = mock().await;
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
        cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let receipt = journal.append(&batch(1));
        tokio::time::timeout(Duration::from_secs(20), receipt.done()).await.expect("given up");
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        reaches(&journal, true).await;
        keeps_the_contract(&*journal, &batch(3)).await;
    }

    /// What fails at once is retried, and nothing else is taken until it is accepted.
    #[tokio::test]
    async fn after_a_refusal_nothing_is_taken_until_a_sale_is_acknowledged() {
        let (cluster, journal) = mock().await;
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 100];
        cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let receipt = journal.append(&batch(2));
        tokio::time::timeout(Duration::from_secs(20), receipt.done()).await.expect("refused");
        let why = journal.ready().expect_err("not ready at once");
        assert!(why.contains("Topic authorization failed"), "{why}");
        assert_eq!(journal.refusal(), Some(why.clone()));
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(journal.ready(), Err(why.clone()), "it is offered, and refused again");
        }
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        reaches(&journal, true).await;
        assert_eq!(journal.refusal(), None);
        keeps_the_contract(&*journal, &batch(3)).await;
    }

    /// Too few in-sync replicas: librdkafka retries until its deadline, and the sale must not open each time
    /// that ends.
    #[tokio::test]
    async fn what_times_out_was_refused_as_well() {
        let (cluster, journal) = mock().await;
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1000];
        cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let receipt = journal.append(&batch(2));
        reaches(&journal, false).await;
        let until = Instant::now() + DELIVERY_DEADLINE + Duration::from_secs(2);
        while Instant::now() < until {
            assert!(journal.ready().is_err(), "it opened");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(receipt.is_done() && journal.refusal().is_some());
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        reaches(&journal, true).await;
        keeps_the_contract(&*journal, &batch(3)).await;
    }

    /// What a replaced producer had in flight is not waited for.
    #[tokio::test]
    async fn a_lost_notice_leaves_the_journal_ready() {
        let (_cluster, journal) = mock().await;
        // As if the former producer's delivery report never came.
        journal.current().client().context().pace.begin();
        reaches(&journal, false).await;
        journal.replace();
        reaches(&journal, true).await;
        keeps_the_contract(&*journal, &batch(3)).await;
    }

    /// Without an acknowledgement for a while nothing more is taken; with one it resumes.
    #[tokio::test]
    async fn a_broker_that_is_away_is_noticed_and_found_again() {
        found_again_after(Duration::ZERO).await;
    }

    /// Long enough that the producer was replaced.
    #[tokio::test]
    async fn a_broker_that_was_away_for_long_is_found_again() {
        found_again_after(DELIVERY_DEADLINE + Duration::from_secs(5)).await;
    }

    async fn found_again_after(outage: Duration) {
        let (cluster, journal) = mock().await;
        cluster.broker_down(1).expect("down");
        let receipt = journal.append(&batch(2));
        reaches(&journal, false).await;
        let first = Arc::as_ptr(&journal.current());
        tokio::time::sleep(outage).await;
        assert_eq!(Arc::as_ptr(&journal.current()) != first, outage > DELIVERY_DEADLINE, "replaced");
        cluster.broker_up(1).expect("up");
        reaches(&journal, true).await;
        tokio::time::timeout(Duration::from_secs(20), receipt.done()).await.expect("delivered or given up");
        keeps_the_contract(&*journal, &batch(3)).await;
    }
}
