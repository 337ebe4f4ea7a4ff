//! What both programs ask of Kafka alike: a client's settings, the topic, its ends.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;

use crate::config::{ConfigError, Settings};
use crate::reader::ReaderError;

/// For one question to a broker. Long enough for a leader election, short enough that a person
/// who waits at a prompt does not give up.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// With so many brokers a topic survives the loss of one.
const SAFE_BROKERS: i32 = 3;

/// What every client starts from: where the brokers are, the operator's options, and how soon a
/// broker that is back is found again.
///
/// # Errors
/// When no brokers are given or an option is not one. The error names options, never their values:
/// they may be passwords.
pub fn client(settings: &Settings) -> Result<ClientConfig, ConfigError> {
    let Some(brokers) = &settings.secrets.kafka_brokers else {
        return Err(ConfigError("SECKILL_KAFKA_BROKERS is missing: give host:port,host:port".to_owned()));
    };
    let mut config = ClientConfig::new();
    // What a broker sees in its logs and quotas.
    config.set("client.id", "seckill");
    // Half-open connections, as firewalls leave them, are noticed.
    config.set("socket.keepalive.enable", "true");
    // A broker that accepts and says nothing is given up after this (default: 60 s).
    config.set("socket.timeout.ms", "10000");
    // A host that drops packets is given up after this (default: 30 s).
    config.set("socket.connection.setup.timeout.ms", "5000");
    // The sale goes on within 10 s after Kafka is back: ask again at least every second.
    config.set("reconnect.backoff.max.ms", "1000");
    for (key, value) in options(settings)? {
        config.set(key, value);
    }
    // After the options: the address has a variable of its own.
    config.set("bootstrap.servers", brokers.reveal());
    match config.create_native_config() {
        Ok(_) => Ok(config),
        Err(error) => Err(refused(&error)),
    }
}

/// Cuts `key=value,…` apart.
fn options(settings: &Settings) -> Result<Vec<(String, String)>, ConfigError> {
    let Some(options) = &settings.secrets.kafka_options else {
        return Ok(Vec::new());
    };
    let pairs = options.reveal().split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .enumerate()
        .map(|(index, pair)| match pair.split_once('=') {
            // What does not look like a key may be a piece of a password with a comma in it.
            Some((key, value))
                if !key.trim().is_empty()
                    && key
                        .trim()
                        .bytes()
                        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_')) =>
            {
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(ConfigError(format!("SECKILL_KAFKA_OPTIONS: number {} is not key=value", index + 1))),
        })
        .collect()
}

/// Why an option may be refused that others take.
fn not_built_in(key: &str) -> &'static str {
    match key.split('.').next() {
        Some("compression") => "; zstd is not built in: take lz4, snappy or gzip",
        Some("security" | "ssl" | "sasl" | "enable" | "https") => WITHOUT_TLS,
        _ => "",
    }
}

const WITHOUT_TLS: &str = if cfg!(feature = "tls") {
    ""
} else {
    "; for TLS or SCRAM build with `--features tls`, or use the Docker image"
};

/// librdkafka's refusal without the value it refuses.
fn refused(error: &KafkaError) -> ConfigError {
    match error {
        KafkaError::ClientConfig(_, _, key, _) if key == "bootstrap.servers" => {
            ConfigError("SECKILL_KAFKA_BROKERS: give host:port,host:port".to_owned())
        }
        KafkaError::ClientConfig(_, _, key, _) => ConfigError(format!(
            "SECKILL_KAFKA_OPTIONS: librdkafka does not take {key} with this value{}",
            not_built_in(key)
        )),
        _ => ConfigError(format!(
            "SECKILL_KAFKA_OPTIONS: librdkafka does not take these together{WITHOUT_TLS}"
        )),
    }
}

/// Makes a client.
///
/// # Errors
/// When librdkafka refuses the settings.
pub fn create<C, T>(config: &ClientConfig, context: C) -> Result<T, ConfigError>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    config.create_with_context(context).map_err(|error| refused(&error))
}

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
    // How long it took, and what was suppressed, differs each time.
    let (reason, _) = reason.split_once(" (after ").unwrap_or((reason, ""));
    untrusted.then(|| format!("{reason} (SECKILL_KAFKA_OPTIONS)"))
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

/// Makes the topic when it is missing; that somebody else did is fine.
///
/// # Errors
/// [`ReaderError::Away`] while Kafka is; [`ReaderError::Foreign`] for settings that cannot be used.
pub async fn ensure_topic(settings: &Settings) -> Result<(), ReaderError> {
    let watermarks = Watermarks::new(settings).map_err(|error| ReaderError::Foreign(error.0))?;
    let topic = settings.kafka_topic.as_str();
    if watermarks.partitions(topic).await?.is_some() {
        return Ok(());
    }
    let brokers = watermarks.brokers().await?;
    let replication =
        settings.kafka_replication.unwrap_or(if brokers >= SAFE_BROKERS { SAFE_BROKERS } else { 1 });
    let mut wanted = NewTopic::new(topic, settings.kafka_partitions, TopicReplication::Fixed(replication))
        // The journal is what the ledger is made from: it is kept.
        .set("retention.ms", "-1");
    if replication >= SAFE_BROKERS {
        // What was acknowledged stands on two of three.
        wanted = wanted.set("min.insync.replicas", "2");
    }
    let admin: Apart<AdminClient<Quiet>> = client(settings)
        .and_then(|config| create(&config, Quiet::default()))
        .map(Apart::new)
        .map_err(|error| ReaderError::Foreign(error.0))?;
    let options =
        AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN));
    let made = admin.create_topics([&wanted], &options).await.map_err(away)?;
    match made.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) => Err(ReaderError::Away(format!(
            "topic {topic} needs {replication} brokers and there are {brokers} (SECKILL_KAFKA_REPLICATION)"
        ))),
        Some(Err((_, code))) => Err(ReaderError::Away(format!("topic {topic} could not be made: {code}"))),
        Some(Ok(_)) | None => {
            log::info!(
                "made topic {topic} with {} partitions, {replication} replicas each",
                settings.kafka_partitions
            );
            Ok(())
        }
    }
}

/// Asks how far topics reach, outside of any group.
#[derive(Clone)]
pub struct Watermarks {
    client: Arc<Apart<BaseConsumer<Quiet>>>,
}

impl Watermarks {
    /// A client of its own; it connects when it is first asked.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let mut config = client(settings)?;
        // To look is not to make.
        config.set("allow.auto.create.topics", "false");
        Ok(Self { client: Arc::new(Apart::new(create(&config, Quiet::default())?)) })
    }

    /// The end of every partition: the offset of the next message to come.
    ///
    /// # Errors
    /// When Kafka is away, or the topic missing.
    pub async fn ends(&self, topic: &str) -> Result<BTreeMap<i32, i64>, ReaderError> {
        let Some(partitions) = self.partitions(topic).await? else {
            return Err(ReaderError::Away(format!("there is no topic {topic}")));
        };
        let client = Arc::clone(&self.client);
        let topic = topic.to_owned();
        let ends = blocking(move || watermarks(&**client, &topic, &partitions)).await??;
        Ok(ends.into_iter().map(|(partition, (_, end))| (partition, end)).collect())
    }

    /// The topic's partitions; none when there is no such topic.
    async fn partitions(&self, topic: &str) -> Result<Option<Vec<i32>>, ReaderError> {
        let client = Arc::clone(&self.client);
        let topic = topic.to_owned();
        blocking(move || {
            serve(&client);
            let metadata = client.fetch_metadata(Some(&topic), ANSWER_WITHIN).map_err(|error| {
                serve(&client);
                client.context().away(error)
            })?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let partitions: Vec<i32> = found
                .into_iter()
                .flat_map(|found| found.partitions())
                .map(|partition| partition.id())
                .collect();
            Ok(Some(partitions).filter(|partitions| !partitions.is_empty()))
        })
        .await?
    }

    async fn brokers(&self) -> Result<i32, ReaderError> {
        let client = Arc::clone(&self.client);
        blocking(move || {
            let metadata = client.fetch_metadata(None, ANSWER_WITHIN).map_err(away)?;
            Ok(i32::try_from(metadata.brokers().len()).unwrap_or(i32::MAX))
        })
        .await?
    }
}

impl std::fmt::Debug for Watermarks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watermarks")
    }
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

/// Takes the client's errors and log lines off its queue, which nobody else reads.
fn serve(client: &BaseConsumer<Quiet>) {
    while client.poll(Duration::ZERO).is_some() {}
}

/// The first offset and the end of partitions; blocks.
pub(crate) fn watermarks<C: ConsumerContext>(
    client: &impl Consumer<C>,
    topic: &str,
    partitions: &[i32],
) -> Result<BTreeMap<i32, (i64, i64)>, ReaderError> {
    partitions
        .iter()
        .map(|partition| {
            let ends = client.client().fetch_watermarks(topic, *partition, ANSWER_WITHIN).map_err(away)?;
            Ok((*partition, ends))
        })
        .collect()
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
