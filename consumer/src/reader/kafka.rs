//! The Kafka reader: the group assigns partitions, the ledger's checkpoints say where to start.
//!
//! librdkafka lets an application acknowledge an assignment at once with an empty one, and assign partitions
//! with its own offsets later. So the group never waits for the ledger, and the group's own offsets are never
//! read.

mod group;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Read, Reader, ReaderError};
use crate::kafka::{Apart, NO_RIGHT, away, blocking, partitions, watermarks};
use crate::ledger::{Checkpoint, Message};
use crate::progress::{self, ANOTHER_TOPIC, Checkpoints, Extents, begin};
use crate::service::config::{ConfigError, Settings};
use group::{Assignment, Client, join};

/// Leaving the group takes one round trip to its coordinator; a dead one must not delay the exit.
const CLOSE_WITHIN: Duration = Duration::from_secs(4);

/// Timeout of a liveness probe of Kafka. Short, so that `/readyz` is not late.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// Interval of liveness probes while no messages arrive.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// A client without contact for this long is replaced: one that a restarted broker told that there are no
/// brokers may never look for one again (librdkafka 2.12), and a new client does no harm where Kafka itself
/// is down.
const REPLACED_AFTER: Duration = Duration::from_secs(10);

/// A message between threads of one process.
const SEEK_WITHIN: Duration = Duration::from_secs(1);

/// Bytes in one batch, but for the last message: a sale has 300, but a topic takes messages of 1 MiB from
/// any producer, and a thousand of them would be a gigabyte.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Reads a topic as a group member.
pub struct KafkaReader {
    settings: Settings,
    topic: String,
    /// None once closed.
    consumer: Option<Arc<Apart<Client>>>,
    assignment: Arc<Assignment>,
    /// The next offset to read of each started partition.
    positions: BTreeMap<i32, i64>,
    /// The log's end at the last query.
    ends: BTreeMap<i32, i64>,
    /// Partitions read again from their positions, with the log's end before: reaching that end first means
    /// that there is no message between.
    again: BTreeMap<i32, i64>,
    /// No message up to here; not returned yet.
    passed: BTreeMap<i32, i64>,
    paused: bool,
    /// Messages that arrived during back-pressure.
    held: BTreeMap<i32, Vec<Message>>,
    /// Why Kafka is away, until it answers.
    trouble: Option<String>,
    /// Why Kafka refuses, until it delivers something: another answer proves nothing.
    refused: Option<String>,
    /// When Kafka last answered, or this client was created.
    heard: Instant,
    /// librdkafka requested an offset that the log does not have, and stopped fetching: the cause is reported
    /// as soon as Kafka answers.
    outside: bool,
}

impl KafkaReader {
    /// Joins the group.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let (consumer, assignment) = join(settings)?;
        Ok(Self {
            settings: settings.clone(),
            topic: settings.kafka_topic.clone(),
            consumer: Some(consumer),
            assignment,
            positions: BTreeMap::new(),
            ends: BTreeMap::new(),
            again: BTreeMap::new(),
            passed: BTreeMap::new(),
            paused: false,
            held: BTreeMap::new(),
            trouble: None,
            refused: None,
            heard: Instant::now(),
            outside: false,
        })
    }

    /// Joins the group with a new client. The old one's assignment is void.
    fn replace(&mut self) {
        log::debug!("the consumer has not heard of Kafka for long and joins anew");
        self.heard = Instant::now();
        match join(&self.settings) {
            Ok((consumer, assignment)) => {
                if self.assignment.pending() || !self.assignment.partitions().is_empty() {
                    assignment.set(Vec::new());
                }
                (self.consumer, self.assignment) = (Some(consumer), assignment);
                self.forget();
            }
            Err(error) => log::error!("no new client: {}", error.0),
        }
    }

    /// Drops what another member may own now.
    fn forget(&mut self) {
        self.begin(BTreeMap::new());
        self.paused = false;
    }

    /// Sets the positions and drops everything read.
    fn begin(&mut self, positions: BTreeMap<i32, i64>) {
        self.positions = positions;
        self.held.clear();
        self.ends.clear();
        self.again.clear();
        self.passed.clear();
        self.outside = false;
    }

    /// The log's end is past our position and nothing arrives: the offsets between may hold no message
    /// (transaction markers or aborted messages), and librdkafka does not report how far it has read. Seeking
    /// back to the position makes it report the end again.
    fn look_again(&mut self, consumer: &Client) -> Result<(), ReaderError> {
        let further = |(partition, end): (&i32, &i64)| {
            let position = *self.positions.get(partition)?;
            (position < *end && !self.again.contains_key(partition)).then_some((*partition, *end))
        };
        let again: BTreeMap<i32, i64> = self.ends.iter().filter_map(further).collect();
        self.ends.clear();
        if again.is_empty() {
            return Ok(());
        }
        let list = self.list(again.keys().map(|it| (*it, Offset::Offset(self.positions[it]))));
        let sought = consumer.seek_partitions(list, SEEK_WITHIN).map_err(away)?;
        // The others may still report an end that was reached earlier.
        let done: Vec<i32> =
            sought.elements().iter().filter(|it| it.error().is_ok()).map(|it| it.partition()).collect();
        self.again.extend(again.into_iter().filter(|(partition, _)| done.contains(partition)));
        Ok(())
    }

    /// Handles a partition's end.
    fn met_the_end(&mut self, partition: i32) {
        self.answered();
        if let Some(end) = self.again.remove(&partition)
            && let Some(position) = self.positions.get_mut(&partition)
            && *position < end
        {
            *position = end;
            self.passed.insert(partition, end);
        }
    }

    fn consumer(&self) -> Result<Arc<Apart<Client>>, ReaderError> {
        self.consumer.clone().ok_or_else(|| ReaderError::Away("this reader was closed".to_owned()))
    }

    /// Pauses or resumes fetching, so that the group is served under back-pressure.
    fn pause(&mut self, consumer: &Client, pause: bool) -> Result<(), ReaderError> {
        if self.paused != pause && !self.positions.is_empty() {
            let list = self.list(self.positions.keys().map(|partition| (*partition, Offset::Invalid)));
            if pause { consumer.pause(&list) } else { consumer.resume(&list) }.map_err(away)?;
            self.paused = pause;
        }
        Ok(())
    }

    /// Takes one message and returns its size, or what arrived instead.
    fn take(
        &mut self,
        consumer: &Client,
        received: KafkaResult<rdkafka::message::BorrowedMessage<'_>>,
        messages: &mut BTreeMap<i32, Vec<Message>>,
    ) -> Result<Option<usize>, Trouble> {
        match received {
            Ok(message) => {
                self.answered();
                let offset = message.offset();
                match self.positions.get_mut(&message.partition()) {
                    Some(next) if offset >= *next => {
                        *next = offset + 1;
                        let value = message.payload().unwrap_or_default().to_vec();
                        let size = value.len();
                        messages.entry(message.partition()).or_default().push(Message { offset, value });
                        Ok(Some(size))
                    }
                    // Fetched for a revoked assignment.
                    _ => Ok(None),
                }
            }
            Err(KafkaError::PartitionEOF(partition)) => {
                self.met_the_end(partition);
                Ok(None)
            }
            Err(error) => Err(trouble(&error, consumer.client().fatal_error().map(|(_, text)| text))),
        }
    }

    fn answered(&mut self) {
        self.trouble = None;
        self.refused = None;
        self.heard = Instant::now();
    }

    /// Nothing arrived. After an error, or a long silence, probes the broker for the reason.
    async fn quiet(&mut self) -> Result<Read, ReaderError> {
        if let Some(why) = &self.refused {
            return Err(ReaderError::Away(why.clone()));
        }
        if self.trouble.is_none() && self.heard.elapsed() < PROBE_EVERY {
            return Ok(Read::Quiet);
        }
        let consumer = self.consumer()?;
        let topic = self.topic.clone();
        let answer = blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), PROBE_WITHIN).map_err(away)?;
            Ok(partitions(&metadata, &topic))
        })
        .await?;
        match answer {
            Ok(Ok(Some(_))) => {
                self.answered();
                Ok(Read::Quiet)
            }
            Ok(Ok(None)) => {
                self.heard = Instant::now();
                Err(ReaderError::Away(format!("there is no topic {}", self.topic)))
            }
            Ok(Err(refused)) => {
                self.heard = Instant::now();
                Err(refused)
            }
            Err(ReaderError::Away(why)) => {
                // Not at the first error: a long post hears nothing either.
                if self.trouble.is_some() && self.heard.elapsed() > REPLACED_AFTER {
                    self.replace();
                }
                Err(ReaderError::Away(self.trouble.get_or_insert(why).clone()))
            }
            Err(error) => Err(error),
        }
    }

    /// Reports which partition's offset is outside the log.
    async fn outside(&mut self) -> ReaderError {
        self.outside = true;
        let wanted = self.positions.iter();
        let wanted: Checkpoints = wanted.map(|(it, next)| (*it, Checkpoint::NOTHING.passed(*next))).collect();
        match self.watermarks(wanted.keys().copied().collect()).await {
            Ok(extents) => {
                ReaderError::Outside(match progress::behind(&self.topic, &wanted, &extents, &wanted) {
                    Err(contradiction) => contradiction.to_string(),
                    Ok(_) => format!(
                        "topic {}: Kafka no longer has an offset that it had: the topic was recreated, or lost its tail; \
                     {ANOTHER_TOPIC}",
                        self.topic
                    ),
                })
            }
            Err(error) => error,
        }
    }

    async fn watermarks(&self, partitions: Vec<i32>) -> Result<Extents, ReaderError> {
        let consumer = self.consumer()?;
        let topic = self.topic.clone();
        blocking(move || watermarks(&**consumer, &topic, &partitions)).await?
    }

    fn list(&self, entries: impl Iterator<Item = (i32, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in entries {
            // Offsets of a log are always valid; librdkafka refuses any other.
            if list.add_partition_offset(&self.topic, partition, offset).is_err() {
                list.add_partition(&self.topic, partition);
            }
        }
        list
    }
}

#[async_trait]
impl Reader for KafkaReader {
    fn topic(&self) -> &str {
        &self.topic
    }

    async fn read(&mut self, max: usize, wait: Duration) -> Result<Read, ReaderError> {
        if self.outside {
            return Err(self.outside().await);
        }
        let consumer = self.consumer()?;
        let until = Instant::now() + wait;
        self.pause(&consumer, max == 0)?;
        let mut messages = if max == 0 { BTreeMap::new() } else { std::mem::take(&mut self.held) };
        let mut count: usize = messages.values().map(Vec::len).sum();
        let mut bytes: usize = messages.values().flatten().map(|message| message.value.len()).sum();
        let assignment = Arc::clone(&self.assignment);
        loop {
            if let Some(partitions) = assignment.changed() {
                self.forget();
                // A client that lost its group by silence revokes its own partitions.
                if !partitions.is_empty() {
                    self.answered();
                }
                return Ok(Read::Assigned(partitions));
            }
            if max > 0 && count == 0 && !self.passed.is_empty() {
                return Ok(Read::Passed(std::mem::take(&mut self.passed)));
            }
            if max == 0 && count > 0 {
                for (partition, more) in std::mem::take(&mut messages) {
                    self.held.entry(partition).or_default().extend(more);
                }
                (count, bytes) = (0, 0);
            }
            let received = if count == 0 {
                tokio::select! {
                    biased;
                    () = assignment.next() => continue,
                    received = consumer.recv() => received,
                    () = sleep_until(until) => {
                        if max > 0 {
                            self.look_again(&consumer)?;
                        }
                        return self.quiet().await;
                    }
                }
            } else {
                tokio::select! {
                    biased;
                    received = consumer.recv() => received,
                    // Nothing more is buffered: return without waiting, but report a pending assignment
                    // first.
                    () = std::future::ready(()) => match assignment.pending() {
                        true => continue,
                        false => return Ok(Read::Messages(messages)),
                    },
                }
            };
            match self.take(&consumer, received, &mut messages) {
                Ok(Some(size)) => {
                    count += 1;
                    bytes += size;
                }
                Ok(None) => {}
                Err(Trouble::Outside) => return Err(self.outside().await),
                Err(Trouble::Fatal(why)) => return Err(ReaderError::Foreign(why)),
                Err(Trouble::Refused(why)) => {
                    self.refused = Some(why);
                    if count == 0 {
                        return self.quiet().await;
                    }
                }
                Err(Trouble::Away(why)) => {
                    self.trouble = Some(why);
                    if count == 0 {
                        return self.quiet().await;
                    }
                }
            }
            let full = count >= max || bytes >= MAX_BATCH_BYTES;
            if count > 0 && full && max > 0 && !assignment.pending() {
                return Ok(Read::Messages(messages));
            }
        }
    }

    async fn start(&mut self, from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError> {
        let consumer = self.consumer()?;
        let extents = self.watermarks(self.assignment.partitions()).await?;
        let positions = begin(&self.topic, &extents, from)?;
        let list = self.list(positions.iter().map(|(partition, start)| (*partition, Offset::Offset(*start))));
        // A pause outlives its assignment: a partition may come back paused.
        consumer.resume(&list).map_err(away)?;
        self.paused = false;
        consumer.assign(&list).map_err(away)?;
        self.begin(positions.clone());
        self.answered();
        Ok(positions)
    }

    async fn report(&mut self, next: &BTreeMap<i32, i64>) {
        let Ok(consumer) = self.consumer() else {
            return;
        };
        let started = next.iter().filter(|(partition, _)| self.positions.contains_key(partition));
        let list = self.list(started.map(|(partition, next)| (*partition, Offset::Offset(*next))));
        if list.count() > 0
            && let Err(error) = consumer.commit(&list, CommitMode::Async)
        {
            log::debug!("the group was not told how far the ledger is: {error}");
        }
    }

    async fn extents(&mut self) -> Result<Extents, ReaderError> {
        let extents = self.watermarks(self.positions.keys().copied().collect()).await?;
        self.ends = extents.iter().map(|(partition, extent)| (*partition, extent.end)).collect();
        Ok(extents)
    }

    async fn close(&mut self) {
        let Some(consumer) = self.consumer.take() else {
            return;
        };
        self.positions.clear();
        // A request in flight holds it a moment longer; then it closes on its own.
        let leave = blocking(move || Arc::into_inner(consumer).map(Apart::end));
        if timeout(CLOSE_WITHIN, leave).await.is_err() {
            log::warn!("the group was left without a word: its coordinator does not answer");
        }
    }
}

impl std::fmt::Debug for KafkaReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaReader").field("topic", &self.topic).field("positions", &self.positions).finish()
    }
}

/// The meaning of an error in place of a message.
enum Trouble {
    Away(String),
    /// Kafka is up but denies access.
    Refused(String),
    Outside,
    Fatal(String),
}

fn trouble(error: &KafkaError, fatal: Option<String>) -> Trouble {
    match (error, error.rdkafka_error_code()) {
        (KafkaError::MessageConsumptionFatal(code), _) => {
            Trouble::Fatal(format!("librdkafka gave up: {}", fatal.unwrap_or_else(|| code.to_string())))
        }
        (
            _,
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation
                | RDKafkaErrorCode::NoOffset,
            ),
        ) => Trouble::Outside,
        (_, Some(code)) if NO_RIGHT.contains(&code) => {
            Trouble::Refused(format!("kafka refuses to be read, see SECURITY.md for the rights: {code}"))
        }
        (_, Some(code)) => Trouble::Away(code.to_string()),
        (error, None) => Trouble::Away(error.to_string()),
    }
}
