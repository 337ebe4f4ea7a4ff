//! A topic's state, from a broker's metadata.

use consumer::kafka::NO_RIGHT;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;

/// A topic's state.
pub(super) enum Look {
    Usable {
        partitions: u32,
        /// A partition with fewer in-sync replicas than required, in words.
        short: Option<String>,
    },
    Missing,
    Unusable(String),
}

impl Look {
    pub(super) fn at(metadata: &Metadata, topic: &str) -> Self {
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Self::Missing;
        };
        match found.error().map(RDKafkaErrorCode::from) {
            Some(code) if NO_RIGHT.contains(&code) => {
                return Self::Unusable(format!("kafka refuses topic {topic}: {code}"));
            }
            Some(_) => return Self::Missing,
            None if found.partitions().is_empty() => return Self::Missing,
            None => {}
        }
        if let Some(partition) = found.partitions().iter().find(|partition| partition.leader() < 0) {
            return Self::Unusable(format!(
                "kafka is away: partition {} of {topic} has no leader",
                partition.id()
            ));
        }
        let short = found.partitions().iter().find(|it| it.isr().len() < it.replicas().len()).map(|it| {
            format!(
                "partition {} has {} of {} replicas in sync",
                it.id(),
                it.isr().len(),
                it.replicas().len()
            )
        });
        Self::Usable { partitions: u32::try_from(found.partitions().len()).unwrap_or(0), short }
    }
}
