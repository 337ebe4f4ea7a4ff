//! The journal in Kafka: an idempotent producer, acknowledged by all in-sync replicas.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use consumer::config::Settings;
use consumer::kafka::{self as client, Watermarks};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext, ThreadedProducer};

use super::{Delivery, Journal, Receipt};
use crate::stock::Batch;
use crate::till::DELIVERY_DEADLINE;

/// Sales waiting for acknowledgement this long without a single one coming: Kafka is away.
const STALLED_AFTER: Duration = Duration::from_millis(800);
/// How often Kafka is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How long it may think about that.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// Sales in the producer's queue: what half a minute's outage of a fast sale leaves there is
/// bounded by [`STALLED_AFTER`]; beyond this a sale stays in the outbox.
const QUEUE_SALES: &str = "100000";

type Producer = ThreadedProducer<Acknowledger>;

/// The producing end of a topic.
pub struct KafkaJournal {
    settings: Settings,
    config: ClientConfig,
    producer: RwLock<Arc<Producer>>,
    health: Arc<Health>,
    /// Appended so far.
    batches: AtomicU32,
    /// Made when first asked: most nodes never are. Made anew after an error.
    watermarks: Mutex<Option<Watermarks>>,
}

/// Whether Kafka takes what it is given; written by librdkafka's threads.
struct Health {
    started: Instant,
    /// The topic was found or made.
    topic: AtomicBool,
    /// Its partitions, as the last probe found them; 0 before the first.
    partitions: AtomicU32,
    /// The last probe was answered, and no connection was reported lost since.
    reachable: AtomicBool,
    waiting: AtomicI64,
    /// Milliseconds from `started` to the last acknowledgement, or to when waiting began.
    progress_ms: AtomicU64,
}

/// What librdkafka carries with a message and hands back with its acknowledgement.
struct Slip {
    receipt: Arc<Receipt>,
    index: usize,
}

struct Acknowledger {
    health: Arc<Health>,
}

impl KafkaJournal {
    /// Prepares a producer; connects in the background.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut config = client::client(settings).map_err(|error| error.to_string())?;
        // No sale twice in the log for a retry of the client's own.
        config.set("enable.idempotence", "true");
        // Acknowledged means: by every in-sync replica.
        config.set("acks", "all");
        // After it a sale counts as unknown and the outbox announces it again.
        config.set("message.timeout.ms", DELIVERY_DEADLINE.as_millis().to_string());
        // The till has batched already; a moment still joins the partitions' requests.
        config.set("linger.ms", "0.2");
        config.set("queue.buffering.max.messages", QUEUE_SALES);
        config.set("queue.buffering.max.kbytes", "65536");
        // A sale goes on within seconds after the broker is back.
        config.set("reconnect.backoff.max.ms", "1000");
        config.set("retry.backoff.max.ms", "1000");
        config.set("socket.nagle.disable", "true");
        config.set("allow.auto.create.topics", "false");
        let health = Arc::new(Health {
            started: Instant::now(),
            topic: AtomicBool::new(false),
            partitions: AtomicU32::new(0),
            reachable: AtomicBool::new(false),
            waiting: AtomicI64::new(0),
            progress_ms: AtomicU64::new(0),
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

    /// Makes the topic when it is missing, and finds out whether Kafka is there, for ever.
    pub async fn watch(self: Arc<Self>) {
        let mut said: Option<String> = Some(String::new());
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut away: Option<Instant> = None;
        loop {
            ticks.tick().await;
            let probed = self.probe().await.err();
            if probed.is_none() || !self.health.topic.load(Ordering::Acquire) {
                away = None;
            } else if away.get_or_insert_with(Instant::now).elapsed() > DELIVERY_DEADLINE {
                // What it has is given up with it. A client that was told by a broker just back that
                // there are no brokers may never look for one again (librdkafka 2.12); another
                // begins at the addresses, and does no harm where it is Kafka itself that is away.
                away = None;
                log::debug!("the producer has not found Kafka for long and is replaced");
                self.replace();
            }
            let state = probed.or_else(|| self.ready().err());
            if state != said {
                match &state {
                    Some(why) => log::warn!("the journal cannot be used: {why}"),
                    None => log::info!("the journal is ready: topic {}", self.settings.kafka_topic),
                }
                said = state;
            }
        }
    }

    /// Asks Kafka, unless all is well without asking.
    async fn probe(&self) -> Result<(), String> {
        if !self.health.topic.load(Ordering::Acquire) {
            client::ensure_topic(&self.settings).await.map_err(|error| format!("kafka is away: {error}"))?;
            self.health.topic.store(true, Ordering::Release);
        }
        if self.health.reachable.load(Ordering::Acquire) && !self.health.stalled() {
            return Ok(());
        }
        let (producer, topic) = (self.producer(), self.settings.kafka_topic.clone());
        let answer = tokio::task::spawn_blocking(move || {
            let metadata = producer
                .client()
                .fetch_metadata(Some(&topic), PROBE_WITHIN)
                .map_err(|error| error.to_string())?;
            match metadata.topics().iter().find(|found| found.name() == topic) {
                Some(found) if found.error().is_some() || found.partitions().is_empty() => Ok(None),
                Some(found) => match found.partitions().iter().find(|partition| partition.leader() < 0) {
                    Some(partition) => Err(format!("partition {} of {topic} has no leader", partition.id())),
                    None => Ok(Some(u32::try_from(found.partitions().len()).unwrap_or(0))),
                },
                None => Ok(None),
            }
        })
        .await
        .map_err(|error| error.to_string())?;
        match answer {
            Ok(Some(partitions)) => {
                self.health.partitions.store(partitions, Ordering::Release);
                self.health.reachable.store(true, Ordering::Release);
            }
            Ok(None) => {
                // Somebody deleted the topic.
                self.health.topic.store(false, Ordering::Release);
                return Err(format!("topic {} is missing", self.settings.kafka_topic));
            }
            Err(error) => {
                self.health.reachable.store(false, Ordering::Release);
                return Err(format!("kafka is away: {error}"));
            }
        }
        Ok(())
    }

    /// The producer to use now; one that failed for good is replaced. What it had open stays in
    /// the outbox.
    fn producer(&self) -> Arc<Producer> {
        let producer = self.current();
        let Some((_, reason)) = producer.client().fatal_error() else { return producer };
        log::warn!("the producer failed for good and is replaced: {reason}");
        self.replace();
        self.current()
    }

    /// Puts a new producer in the place of the one there was.
    fn replace(&self) {
        match make(&self.config, &self.health) {
            Ok(producer) => {
                let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *current, Arc::new(producer));
                // It waits for its threads, which may wait for a network that is away.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => log::error!("no new producer: {error}"),
        }
    }

    fn current(&self) -> Arc<Producer> {
        Arc::clone(&self.producer.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn make(config: &ClientConfig, health: &Arc<Health>) -> Result<Producer, KafkaError> {
    Producer::from_config_and_context(config, Acknowledger { health: Arc::clone(health) })
}

#[async_trait]
impl Journal for KafkaJournal {
    fn append(&self, batch: &Batch) -> Arc<Receipt> {
        let receipt = Receipt::new(batch.attempts.len());
        let producer = self.producer();
        // One partition for a batch, another for the next: a request of few large pieces costs the
        // broker less than one of many small ones.
        let partition = match self.health.partitions.load(Ordering::Acquire) {
            0 => None,
            partitions => i32::try_from(self.batches.fetch_add(1, Ordering::Relaxed) % partitions).ok(),
        };
        for (index, sale) in batch.sales().enumerate() {
            let slip = Box::new(Slip { receipt: Arc::clone(&receipt), index });
            let key = sale.order.to_string();
            let value = sale.to_json().unwrap_or_default();
            self.health.begin();
            let mut record =
                BaseRecord::with_opaque_to(&self.settings.kafka_topic, slip).key(&key).payload(&value);
            record.partition = partition;
            if let Err((error, record)) = producer.send(record) {
                log::debug!("order {key} stays in the outbox: {error}");
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition) {
                    // Somebody made the topic anew with fewer: look again.
                    self.health.reachable.store(false, Ordering::Release);
                }
                self.health.end(false);
                record.delivery_opaque.receipt.note(index, Delivery::Unknown);
            }
        }
        receipt
    }

    fn ready(&self) -> Result<(), String> {
        if !self.health.topic.load(Ordering::Acquire) || !self.health.reachable.load(Ordering::Acquire) {
            Err("kafka is away".into())
        } else if self.health.stalled() {
            Err("kafka does not acknowledge".into())
        } else {
            Ok(())
        }
    }

    fn topic(&self) -> &str {
        &self.settings.kafka_topic
    }

    async fn ends(&self) -> Result<BTreeMap<i32, i64>, String> {
        let kept = self.watermarks.lock().unwrap_or_else(PoisonError::into_inner).take();
        let watermarks = kept.map_or_else(|| Watermarks::new(&self.settings), Ok);
        let watermarks = watermarks.map_err(|error| error.to_string())?;
        let ends = watermarks.ends(&self.settings.kafka_topic).await.map_err(|error| error.to_string())?;
        *self.watermarks.lock().unwrap_or_else(PoisonError::into_inner) = Some(watermarks);
        Ok(ends)
    }

    async fn flush(&self, within: Duration) {
        let producer = self.producer();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(within)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            log::warn!("the producer was not flushed in time; the outbox keeps what is open");
        }
    }
}

impl Health {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn begin(&self) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) <= 0 {
            self.progress_ms.store(self.now_ms(), Ordering::Release);
        }
    }

    fn end(&self, acknowledged: bool) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        if acknowledged {
            self.progress_ms.store(self.now_ms(), Ordering::Release);
        }
    }

    fn stalled(&self) -> bool {
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
            self.health.reachable.store(false, Ordering::Release);
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // One line per change of state is the watcher's; the library repeats itself.
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
        // Every delivery error is ambiguous by nature.
        let delivery = match result {
            Ok(_) => Delivery::Acknowledged,
            Err(_) => Delivery::Unknown,
        };
        self.health.end(result.is_ok());
        slip.receipt.note(slip.index, delivery);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use consumer::config::Secret;
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

    /// Without an acknowledgement for a while nothing more is taken; with one it goes on.
    #[tokio::test]
    async fn a_broker_that_is_away_is_noticed_and_found_again() {
        found_again_after(Duration::ZERO).await;
    }

    /// So long that the producer was replaced.
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
