//! Watermark queries: the extent of a topic's log, outside of any group.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::metadata::{Metadata, MetadataPartition};
use rdkafka::types::RDKafkaErrorCode;

use super::{ANSWER_WITHIN, Apart, NO_RIGHT, Quiet, away, blocking, client, create};
use crate::progress::ReaderError;
use crate::progress::{Extent, Extents};
use crate::service::config::{ConfigError, Settings};

/// Queries watermarks, outside of any group.
#[derive(Clone)]
pub struct Watermarks {
    client: Arc<Apart<BaseConsumer<Quiet>>>,
}

impl Watermarks {
    /// Creates a client that connects on first use.
    ///
    /// # Errors
    /// When the settings are unusable.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let mut config = client(settings)?;
        // A query must not create a topic.
        config.set("allow.auto.create.topics", "false");
        // The log ends at the last stable offset.
        config.set("isolation.level", "read_committed");
        Ok(Self { client: Arc::new(Apart::new(create(&config, Quiet::default())?)) })
    }

    /// What the log holds of every partition of the topic.
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
    pub(super) async fn partitions(&self, topic: &str) -> Result<Option<Vec<i32>>, ReaderError> {
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

    /// The lowest replica count of any partition.
    pub(super) async fn replicas(&self, topic: &str) -> Result<usize, ReaderError> {
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

    pub(super) async fn brokers(&self) -> Result<i32, ReaderError> {
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

/// Drains the client's errors and log lines, which nothing else reads.
fn serve(client: &BaseConsumer<Quiet>) {
    while client.poll(Duration::ZERO).is_some() {}
}

/// The partitions of a topic; none when there is no such topic.
///
/// # Errors
/// When access is denied.
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

/// What a log holds of partitions; blocks.
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
