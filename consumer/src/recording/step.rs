//! One finite step of the consumer: takes an assignment, or reads and posts a batch.
//!
//! Only the outermost caller loops. A step uses no clock but tokio's and starts no thread, so a simulation
//! can drive it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::ledger::{Batch, Checkpoint, LedgerError, Message, Part, Posted, Record};
use crate::progress::{ANOTHER_TOPIC, Extents};
use crate::reader::{Read, Reader, ReaderError};
use crate::recording::lag::Lag;
use crate::recording::metrics::Metrics;

/// Messages per transaction: enough to share the cost of a commit, few enough that it takes well under a
/// second and holds its locks briefly. If none of them can become a row, each takes a statement of its own;
/// these must finish within the answer timeout.
pub const MAX_BATCH: usize = 2000;

/// After a refusal batches grow by an eighth each time: back to full size within seconds, with little
/// overshoot of a slow ledger's limit.
const GROWTH: usize = 8;

/// Read timeout of a step; also bounds how soon a shutdown is noticed.
const READ_WAIT: Duration = Duration::from_millis(500);

/// When quiet, commits the offsets to the group again: an operator may have reset them.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Lag measurements cost a broker request: not every batch.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// Retry backoff while a server is away: short at first, then at most this long, so that the sale continues
/// within 10 s after it is back.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(2);

/// Moves sales to a ledger.
pub struct Consumer {
    reader: Box<dyn Reader>,
    ledger: Arc<dyn Record>,
    metrics: Metrics,
    lag: Lag,
    topic: String,
    assigned: Vec<i32>,
    /// Whether the assigned partitions were started at the ledger's checkpoints.
    started: bool,
    /// Whether they were restarted because the last read was outside the log.
    once_more: bool,
    checkpoints: BTreeMap<i32, Checkpoint>,
    /// Partitions whose message before the checkpoint is not verified yet.
    unverified: BTreeMap<i32, Checkpoint>,
    /// Read but not posted yet.
    batch: Option<Batch>,
    /// Messages per post: halved after a refusal, then growing with each success.
    at_once: usize,
    backoff: Duration,
    reported: Option<Instant>,
    measured: Option<Instant>,
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Has these partitions now, each started at the ledger's checkpoint.
    Started(Vec<i32>),
    /// The messages before the checkpoints are still the same.
    Verified,
    /// A batch was posted.
    Posted(Posted),
    /// Another consumer posted meanwhile; restarts from the new checkpoints.
    Moved,
    /// There was nothing to do.
    Quiet,
    /// A server is away; nothing is lost, the next step retries.
    Away(String),
}

/// Why no further step is possible.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The journal is not the one this ledger was recorded from.
    #[error("{0}")]
    Foreign(String),
    /// One of our own parts is broken.
    #[error("{0}")]
    Broken(String),
}

/// What prevents a step.
enum Trouble {
    Away(String),
    Moved,
    Outside(String),
    Fatal(StepError),
}

impl From<LedgerError> for Trouble {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Away(_) => Self::Away(error.to_string()),
            LedgerError::Moved { .. } => {
                log::info!("{error}");
                Self::Moved
            }
            LedgerError::Foreign(why) => Self::Fatal(StepError::Foreign(why)),
            LedgerError::Broken(_) => Self::Fatal(StepError::Broken(error.to_string())),
        }
    }
}

impl From<ReaderError> for Trouble {
    fn from(error: ReaderError) -> Self {
        match error {
            ReaderError::Away(_) => Self::Away(error.to_string()),
            ReaderError::Outside(why) => Self::Outside(why),
            ReaderError::Foreign(why) => Self::Fatal(StepError::Foreign(why)),
        }
    }
}

impl Consumer {
    /// A new consumer; the first step takes an assignment.
    #[must_use]
    pub fn new(reader: Box<dyn Reader>, ledger: Arc<dyn Record>, metrics: Metrics) -> Self {
        let topic = reader.topic().to_owned();
        Self {
            lag: Lag::new(&topic, metrics.clone()),
            reader,
            ledger,
            metrics,
            topic,
            assigned: Vec::new(),
            started: true,
            once_more: false,
            checkpoints: BTreeMap::new(),
            unverified: BTreeMap::new(),
            batch: None,
            at_once: MAX_BATCH,
            backoff: *BACKOFF.start(),
            reported: None,
            measured: None,
        }
    }

    /// Does the next unit of work, within seconds. Cancel-safe: the next step does it again.
    ///
    /// # Errors
    /// When no later step can succeed: what and where, and what a person can do.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        let done = if !self.started {
            self.start().await
        } else if self.batch.is_some() {
            self.post().await
        } else {
            self.read().await
        };
        match done {
            Ok(step) => {
                self.backoff = *BACKOFF.start();
                Ok(step)
            }
            Err(Trouble::Fatal(error)) => Err(error),
            Err(Trouble::Moved) => {
                self.started = false;
                self.wait().await?;
                Ok(Step::Moved)
            }
            // The log may lack only recorded messages: the checkpoints tell.
            Err(Trouble::Outside(_)) if !self.once_more => {
                (self.once_more, self.started) = (true, false);
                Ok(Step::Moved)
            }
            Err(Trouble::Outside(why)) => Err(StepError::Foreign(why)),
            Err(Trouble::Away(why)) => {
                self.wait().await?;
                Ok(Step::Away(why))
            }
        }
    }

    /// Whether a batch is read but not posted yet.
    #[must_use]
    pub fn in_hand(&self) -> bool {
        self.batch.is_some()
    }

    /// Leaves the group.
    pub async fn close(&mut self) {
        self.reader.close().await;
    }

    /// Reads the checkpoints and starts each partition one message before its own.
    async fn start(&mut self) -> Result<Step, Trouble> {
        self.checkpoints = self.ledger.checkpoints(&self.topic).await?;
        self.checkpoints.retain(|partition, _| self.assigned.contains(partition));
        let began = self.reader.start(&self.checkpoints).await?;
        self.unverified = self.checkpoints.clone();
        // A message that has left the log cannot be verified.
        self.unverified.retain(|partition, checkpoint| {
            let last = checkpoint.last().unwrap_or(i64::MAX);
            began.get(partition).is_none_or(|began| *began <= last)
        });
        self.started = true;
        self.report().await;
        self.measure().await;
        Ok(Step::Started(self.assigned.clone()))
    }

    async fn read(&mut self) -> Result<Step, Trouble> {
        match self.reader.read(MAX_BATCH, READ_WAIT).await? {
            Read::Assigned(partitions) => {
                self.assign(partitions);
                if self.assigned.is_empty() {
                    return Ok(Step::Started(Vec::new()));
                }
                self.start().await
            }
            Read::Messages(messages) => {
                self.once_more = false;
                let mut parts = Vec::new();
                for (partition, messages) in messages {
                    parts.extend(self.part(partition, messages)?);
                }
                if parts.is_empty() {
                    return Ok(Step::Verified);
                }
                self.batch = Some(Batch { topic: self.topic.clone(), parts });
                self.post().await
            }
            Read::Passed(upto) => {
                let parts: Vec<Part> =
                    upto.into_iter().filter_map(|(partition, upto)| self.passed(partition, upto)).collect();
                if parts.is_empty() {
                    return Ok(Step::Quiet);
                }
                self.batch = Some(Batch { topic: self.topic.clone(), parts });
                self.post().await
            }
            Read::Quiet => {
                if self.assigned.is_empty() {
                    return Ok(Step::Quiet);
                }
                if self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
                    // Checks that the ledger is available.
                    self.ledger.checkpoints(&self.topic).await?;
                    self.report().await;
                }
                if self.measured.is_none_or(|at| at.elapsed() >= LAG_EVERY) {
                    self.measure().await;
                }
                Ok(Step::Quiet)
            }
        }
    }

    /// Other partitions, or none: the new owners read again what was read of the former ones.
    fn assign(&mut self, partitions: Vec<i32>) {
        log::info!("topic {}: partitions {partitions:?} assigned", self.topic);
        self.lag.keep(&partitions);
        self.assigned = partitions;
        self.started = self.assigned.is_empty();
        self.batch = None;
        self.checkpoints.clear();
        self.unverified.clear();
    }

    /// Messages from the checkpoint on; the one before it is verified and dropped.
    fn part(&mut self, partition: i32, mut messages: Vec<Message>) -> Result<Option<Part>, Trouble> {
        if let Some(first) = messages.first()
            && let Some(checkpoint) = self.unverified.get(&partition)
        {
            let same = match checkpoint.last() {
                Some(_) => checkpoint.is_after(first),
                // Nothing recorded before the checkpoint.
                None => first.offset >= checkpoint.next,
            };
            if !same {
                return Err(Trouble::Fatal(self.another(partition, first, checkpoint)));
            }
            self.unverified.remove(&partition);
        }
        let from = self.checkpoints.get(&partition).map(|checkpoint| checkpoint.next);
        messages.retain(|message| from.is_none_or(|from| message.offset >= from));
        Ok((!messages.is_empty()).then_some(Part { partition, from, messages, upto: None }))
    }

    /// The log holds no message before `upto`; proves nothing for a partition that is not verified yet.
    fn passed(&self, partition: i32, upto: i64) -> Option<Part> {
        let from = self.checkpoints.get(&partition).map(|checkpoint| checkpoint.next);
        let known = self.unverified.get(&partition).is_none_or(|checkpoint| checkpoint.last().is_none());
        let further = known && from.is_none_or(|from| from < upto);
        further.then_some(Part { partition, from, messages: Vec::new(), upto: Some(upto) })
    }

    fn another(&self, partition: i32, found: &Message, checkpoint: &Checkpoint) -> StepError {
        let last = checkpoint.last().unwrap_or(checkpoint.next - 1);
        let what = if found.offset <= last {
            "is another one now: the topic was recreated, or an older backup put back"
        } else {
            "is gone, and those before it are there: the topic was compacted (cleanup.policy), or is another one"
        };
        StepError::Foreign(format!(
            "topic {} partition {partition}: the last message recorded, offset {last}, {what}; {ANOTHER_TOPIC}",
            self.topic
        ))
    }

    /// Posts the batch in hand, or its beginning. The batch stays while the ledger is away, and later posts
    /// are smaller: the refused one may have taken too long, or too much room.
    async fn post(&mut self) -> Result<Step, Trouble> {
        let Some(batch) = &mut self.batch else {
            return Ok(Step::Quiet);
        };
        let began = Instant::now();
        let some = batch.first(self.at_once);
        let size = some.size();
        let post = async { (self.ledger.post(&some).await, began.elapsed()) };
        let due = self.measured.is_none_or(|at| at.elapsed() >= LAG_EVERY);
        // Queries Kafka concurrently: queued behind its fetches, the answer takes as long as a post.
        let extents = async { if due { Some(self.reader.extents().await) } else { None } };
        let ((posted, took), extents) = tokio::join!(biased; post, extents);
        drop(some);
        match &posted {
            Ok(posted) => {
                batch.posted(&posted.checkpoints);
                self.at_once = (self.at_once + self.at_once / GROWTH + 1).min(MAX_BATCH);
                self.checkpoints.extend(posted.checkpoints.clone());
            }
            Err(LedgerError::Away(_)) => self.at_once = (size / 2).max(1),
            Err(_) => batch.parts.clear(),
        }
        if batch.parts.is_empty() {
            self.batch = None;
        }
        if let Some(extents) = extents {
            self.show(extents);
        }
        let posted = posted?;
        self.metrics.posted(&posted, took);
        if posted.conflict + posted.dead_letter > 0 {
            log::warn!(
                "topic {}: {} sales in conflict and {} dead letters put aside, see seckill_conflict and seckill_dead_letter",
                self.topic,
                posted.conflict,
                posted.dead_letter
            );
        }
        self.report().await;
        Ok(Step::Posted(posted))
    }

    /// Waits before a retry, and stays a member of the group: partitions may move to a consumer that can
    /// post.
    async fn wait(&mut self) -> Result<(), StepError> {
        let until = Instant::now() + self.backoff;
        match self.reader.read(0, self.backoff).await.map_err(Trouble::from) {
            Ok(Read::Assigned(partitions)) => self.assign(partitions),
            Ok(Read::Quiet | Read::Passed(_))
            | Err(Trouble::Away(_) | Trouble::Moved | Trouble::Outside(_)) => sleep_until(until).await,
            // Unrequested. Nothing is lost: it restarts from the ledger's checkpoints.
            Ok(Read::Messages(_)) => {
                self.batch = None;
                self.started = false;
            }
            Err(Trouble::Fatal(error)) => return Err(error),
        }
        self.backoff = (self.backoff * 2).min(*BACKOFF.end());
        Ok(())
    }

    async fn report(&mut self) {
        let next =
            self.checkpoints.iter().map(|(partition, checkpoint)| (*partition, checkpoint.next)).collect();
        self.reader.report(&next).await;
        self.reported = Some(Instant::now());
    }

    async fn measure(&mut self) {
        let extents = self.reader.extents().await;
        self.show(extents);
    }

    fn show(&mut self, extents: Result<Extents, ReaderError>) {
        match extents {
            Ok(extents) => self
                .lag
                .show(&extents, |partition| self.checkpoints.get(&partition).map_or(0, |known| known.next)),
            Err(error) => log::debug!("the lag is not known: {error}"),
        }
        self.measured = Some(Instant::now());
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("topic", &self.topic).field("assigned", &self.assigned).finish()
    }
}
