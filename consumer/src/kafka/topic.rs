//! The Kafka topic: created when missing, and checked for durability.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::types::RDKafkaErrorCode;

use super::{ANSWER_WITHIN, Apart, Quiet, Watermarks, away, client, create};
use crate::progress::ReaderError;
use crate::service::config::{ConfigError, Settings};

/// From this many brokers on a topic survives the loss of one.
const SAFE_BROKERS: i32 = 3;

/// Creates the topic if missing; a concurrent creation is fine. Logs every setting that breaks the promise.
///
/// # Errors
/// [`ReaderError::Away`] while Kafka is; [`ReaderError::Foreign`] for unusable settings.
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
    // Other brokers may still be starting: then the cluster's default applies.
    let default = if brokers >= SAFE_BROKERS { SAFE_BROKERS } else { BROKERS_DEFAULT };
    let replication = settings.kafka_replication.unwrap_or(default);
    let mut wanted = NewTopic::new(topic, settings.kafka_partitions, TopicReplication::Fixed(replication))
        // The ledger is derived from the journal: never delete it.
        .set("retention.ms", "-1")
        .set("retention.bytes", "-1")
        .set("cleanup.policy", "delete");
    if replication >= SAFE_BROKERS {
        // Acknowledged messages are on two of three brokers.
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

/// Requests the brokers' default number of replicas.
const BROKERS_DEFAULT: i32 = -1;

fn asking() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

/// Topic settings that break the promise, each with its remedy. Unreadable settings count as fine: a selling
/// user does not need the right to read a topic's configuration.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

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
