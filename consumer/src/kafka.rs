//! What both programs ask of Kafka alike: a client's settings, the topic, what its log has.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::metadata::{Metadata, MetadataPartition};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;

use crate::config::{ConfigError, Settings};
use crate::progress::{Extent, Extents};
use crate::reader::ReaderError;

/// For one question to a broker. Long enough for a leader election, short enough that a person
/// who waits at a prompt does not give up.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// With so many brokers a topic survives the loss of one.
const SAFE_BROKERS: i32 = 3;

/// How often clients look whether a topic has more partitions (default: 5 minutes).
pub const REFRESH_METADATA_MS: &str = "10000";

/// That a client may not do what it must: a person mends it, no waiting does.
pub const NO_RIGHT: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::TopicAuthorizationFailed,
    RDKafkaErrorCode::GroupAuthorizationFailed,
    RDKafkaErrorCode::ClusterAuthorizationFailed,
    RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
    RDKafkaErrorCode::SaslAuthenticationFailed,
];

/// Options that the programs set themselves, because the promise hangs on them or a variable of its
/// own is for them, with librdkafka's other names for the same.
const OWNED: [&str; 34] = [
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.offset.reset",
    "bootstrap.servers",
    "check.crcs",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "enabled_events",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "isolation.level",
    "linger.ms",
    "max.poll.interval.ms",
    "message.timeout.ms",
    "metadata.broker.list",
    "opaque",
    "partition.assignment.strategy",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "request.required.acks",
    "session.timeout.ms",
    "topic.metadata.refresh.interval.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// Whether an option is the programs' own: those, callbacks, and what makes a client of something else
/// than Kafka.
fn is_owned(key: &str) -> bool {
    OWNED.contains(&key) || key.ends_with("_cb") || key.starts_with("test.")
}

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
                if is_owned(key.trim()) {
                    return Err(ConfigError(format!(
                        "SECKILL_KAFKA_OPTIONS: {} is not to be set, the programs set it themselves; take it out",
                        key.trim()
                    )));
                }
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(ConfigError(format!("SECKILL_KAFKA_OPTIONS: number {} is not key=value", index + 1))),
        })
        .collect()
}

/// Why an option may be refused that others take.
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
            "SECKILL_KAFKA_OPTIONS: librdkafka does not take {key} with this value{WITHOUT_TLS}"
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
    untrusted.then(|| format!("{} (SECKILL_KAFKA_OPTIONS)", without_times(reason)))
}

/// A reason of librdkafka's without how long it took, and what was suppressed: that differs each time.
#[must_use]
pub fn without_times(reason: &str) -> &str {
    reason.split_once(" (after ").map_or(reason, |(reason, _)| reason)
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

/// Makes the topic when it is missing; that somebody else did is fine. Says what of it does not keep
/// the promise.
///
/// # Errors
/// [`ReaderError::Away`] while Kafka is; [`ReaderError::Foreign`] for settings that cannot be used.
pub async fn ensure_topic(settings: &Settings) -> Result<(), ReaderError> {
    let unusable = |error: ConfigError| ReaderError::Foreign(error.0);
    let watermarks = Watermarks::new(settings).map_err(unusable)?;
    let admin: Apart<AdminClient<Quiet>> = client(settings)
        .and_then(|config| create(&config, Quiet::default()))
        .map(Apart::new)
        .map_err(unusable)?;
    let topic = settings.kafka_topic.as_str();
    if watermarks.partitions(topic).await?.is_none() {
        make_topic(settings, &admin, watermarks.brokers().await?).await?;
    }
    for weakness in weaknesses(topic, &watermarks, &admin).await {
        log::warn!("topic {topic}: {weakness}");
    }
    Ok(())
}

async fn make_topic(
    settings: &Settings,
    admin: &AdminClient<Quiet>,
    brokers: i32,
) -> Result<(), ReaderError> {
    let topic = settings.kafka_topic.as_str();
    // Fewer may be there because others are still starting: the cluster itself knows what it wants.
    let default = if brokers >= SAFE_BROKERS { SAFE_BROKERS } else { BROKERS_DEFAULT };
    let replication = settings.kafka_replication.unwrap_or(default);
    let mut wanted = NewTopic::new(topic, settings.kafka_partitions, TopicReplication::Fixed(replication))
        // The journal is what the ledger is made from: it is kept.
        .set("retention.ms", "-1")
        .set("retention.bytes", "-1")
        .set("cleanup.policy", "delete");
    if replication >= SAFE_BROKERS {
        // What was acknowledged stands on two of three.
        wanted = wanted.set("min.insync.replicas", "2");
    }
    let replicas = match replication {
        BROKERS_DEFAULT => "the cluster's default.replication.factor".to_owned(),
        replicas => format!("{replicas}"),
    };
    let made = admin.create_topics([&wanted], &asking()).await.map_err(away)?;
    match made.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) => Err(ReaderError::Away(format!(
            "topic {topic} is to have so many replicas: {replicas}, and of brokers there are {brokers} \
             (SECKILL_KAFKA_REPLICATION)"
        ))),
        Some(Err((_, code))) => Err(ReaderError::Away(format!("topic {topic} could not be made: {code}"))),
        Some(Ok(_)) | None => {
            let partitions = settings.kafka_partitions;
            log::info!("made topic {topic}: {partitions} partitions, replicas of each: {replicas}");
            Ok(())
        }
    }
}

/// Asks for as many replicas as the brokers are told to make by default.
const BROKERS_DEFAULT: i32 = -1;

fn asking() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

/// What of a topic does not keep the promise, each with its remedy. What cannot be asked is not held
/// against it: a user who sells need not have the right to see how a topic is configured.
async fn weaknesses(topic: &str, watermarks: &Watermarks, admin: &AdminClient<Quiet>) -> Vec<String> {
    let replicas = watermarks.replicas(topic).await.ok();
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &asking()).await;
    let config = described.ok().and_then(|found| found.into_iter().next()?.ok());
    let Some(config) = config else {
        log::info!(
            "topic {topic}: whether its configuration keeps the promise could not be asked (right DESCRIBE_CONFIGS)"
        );
        return Vec::new();
    };
    weak(topic, replicas, |name| config.get(name)?.value.clone())
}

fn weak(topic: &str, replicas: Option<usize>, value: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut weak = Vec::new();
    let mut say = |name: &str, is: &str, why: &str, better: &str| {
        weak.push(format!(
            "{name}={is}: {why}; `kafka-configs.sh --bootstrap-server HOST:9092 --alter --entity-type topics \
             --entity-name {topic} --add-config {better}`"
        ));
    };
    let compacts = value("cleanup.policy").filter(|is| is.contains("compact"));
    if let Some(is) = &compacts {
        say("cleanup.policy", is, "older sales may be taken out", "cleanup.policy=delete");
    }
    for (name, why) in [
        ("retention.ms", "sales are deleted when they are so old, recorded or not"),
        ("retention.bytes", "sales are deleted when there are more, recorded or not"),
    ] {
        if let Some(is) = value(name).filter(|is| is != "-1") {
            say(name, &is, why, &format!("{name}=-1"));
        }
    }
    if let Some(is) = value("unclean.leader.election.enable").filter(|is| is == "true") {
        let (name, why) = ("unclean.leader.election.enable", "a replica that missed sales may lead");
        say(name, &is, why, &format!("{name}=false"));
    }
    let insync = value("min.insync.replicas").and_then(|is| is.parse::<usize>().ok());
    match (replicas, insync) {
        (Some(replicas), _) if replicas < 2 => weak.push(format!(
            "it has {replicas} replica: an acknowledged sale lives on one disk; three brokers and \
             `kafka-reassign-partitions.sh` to three replicas, then min.insync.replicas=2"
        )),
        (Some(_), Some(insync)) if insync < 2 => say(
            "min.insync.replicas",
            &insync.to_string(),
            "an acknowledged sale may live on one disk",
            "min.insync.replicas=2",
        ),
        (Some(replicas), Some(insync)) if insync >= replicas => weak.push(format!(
            "min.insync.replicas={insync} of {replicas} replicas: the sale stops when one broker does; \
             `kafka-reassign-partitions.sh` to {} replicas",
            insync + 1
        )),
        _ => {}
    }
    weak
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
        // A log ends where a reader of what is committed does.
        config.set("isolation.level", "read_committed");
        Ok(Self { client: Arc::new(Apart::new(create(&config, Quiet::default())?)) })
    }

    /// What the log has of every partition that the topic has.
    ///
    /// # Errors
    /// When Kafka is away, or the topic missing.
    pub async fn extents(&self, topic: &str) -> Result<Extents, ReaderError> {
        let Some(partitions) = self.partitions(topic).await? else {
            return Err(ReaderError::Away(format!("there is no topic {topic}")));
        };
        let client = Arc::clone(&self.client);
        let topic = topic.to_owned();
        blocking(move || watermarks(&**client, &topic, &partitions)).await?
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
            partitions(&metadata, &topic)
        })
        .await?
    }

    /// The replicas that the partition with the fewest has.
    async fn replicas(&self, topic: &str) -> Result<usize, ReaderError> {
        let client = Arc::clone(&self.client);
        let topic = topic.to_owned();
        blocking(move || {
            let metadata = client.fetch_metadata(Some(&topic), ANSWER_WITHIN).map_err(away)?;
            let partitions = metadata.topics().iter().flat_map(|found| found.partitions());
            partitions
                .map(|partition| partition.replicas().len())
                .min()
                .ok_or_else(|| ReaderError::Away(format!("there is no topic {topic}")))
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

/// The partitions of a topic; none when there is no such topic.
///
/// # Errors
/// That it is refused.
pub(crate) fn partitions(metadata: &Metadata, topic: &str) -> Result<Option<Vec<i32>>, ReaderError> {
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    if let Some(code) = found.error().map(RDKafkaErrorCode::from).filter(|code| NO_RIGHT.contains(code)) {
        return Err(ReaderError::Away(format!(
            "topic {topic} is refused, see SECURITY.md for the rights: {code}"
        )));
    }
    let partitions: Vec<i32> = found.partitions().iter().map(MetadataPartition::id).collect();
    Ok(Some(partitions).filter(|partitions| !partitions.is_empty()))
}

/// What a log has of partitions; blocks.
pub(crate) fn watermarks<C: ConsumerContext>(
    client: &impl Consumer<C>,
    topic: &str,
    partitions: &[i32],
) -> Result<Extents, ReaderError> {
    partitions
        .iter()
        .map(|partition| {
            let (start, end) =
                client.client().fetch_watermarks(topic, *partition, ANSWER_WITHIN).map_err(away)?;
            Ok((*partition, Extent { start, end }))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser as _;

    use super::*;
    use crate::config::Secret;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn with(options: &str) -> Result<ClientConfig, ConfigError> {
        let mut settings = Cli::parse_from(["test"]).settings;
        settings.secrets.kafka_brokers = Some(Secret::new("127.0.0.1:9"));
        settings.secrets.kafka_options = Some(Secret::new(options));
        client(&settings)
    }

    /// What the programs set themselves would be lost without a word, or break the promise.
    #[test]
    fn an_option_of_the_programs_own_is_refused_by_name() {
        let named =
            ["transactional.id", "acks", "group.id", "isolation.level", "error_cb", "test.mock.num.brokers"];
        for key in OWNED.into_iter().chain(named) {
            let error = with(&format!("socket.keepalive.enable=true, {key}=secret")).expect_err(key);
            assert!(error.0.contains(key) && error.0.contains("take it out"), "{error}");
            assert!(!error.0.contains("=secret"), "{error}");
        }
        with("security.protocol=plaintext,socket.timeout.ms=9000,client.id=x")
            .expect("others are the operator's");
    }

    #[test]
    fn what_does_not_keep_the_promise_is_named_with_its_remedy() {
        let good = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("unclean.leader.election.enable", "false"),
            ("min.insync.replicas", "2"),
        ];
        let said = |replicas, name: &str, value: &str| {
            let mut config = BTreeMap::from(good);
            config.insert(name, value);
            weak("T", Some(replicas), |name| config.get(name).map(|value| (*value).to_owned()))
        };
        assert_eq!(said(3, "retention.ms", "-1"), Vec::<String>::new());
        for (name, value) in [
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1073741824"),
            ("unclean.leader.election.enable", "true"),
            ("min.insync.replicas", "1"),
        ] {
            let found = said(3, name, value);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{name}={value}: ")), "{found:?}");
            assert!(found[0].contains("--entity-name T --add-config"), "{found:?}");
        }
        assert!(said(1, "min.insync.replicas", "1")[0].contains("1 replica:"));
        assert!(said(2, "min.insync.replicas", "2")[0].contains("min.insync.replicas=2 of 2"));
    }
}
