//! The consumer's message source.

pub mod kafka;
pub mod sqlite;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

pub use crate::progress::ReaderError;
use crate::progress::{Checkpoints, Extents, Message};

/// The consuming end of a journal: partitions are assigned, started at an offset, read.
#[async_trait]
pub trait Reader: Send {
    /// The source topic.
    fn topic(&self) -> &str;

    /// What arrives within `wait`: an assignment, or up to `max` messages. With a `max` of 0 only an
    /// assignment: back-pressure for a consumer that stays a member of the group.
    async fn read(&mut self, max: usize, wait: Duration) -> Result<Read, ReaderError>;

    /// Starts the partitions assigned last, each at the last message recorded, or at the log's start if that
    /// message has left it; returns the offsets. A second start reads again from there.
    ///
    /// # Errors
    /// [`ReaderError::Foreign`] when the log contradicts the checkpoints: never skip.
    async fn start(&mut self, from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError>;

    /// Commits the ledger's progress for lag tools. A report, never a source.
    async fn report(&mut self, next: &BTreeMap<i32, i64>);

    /// What the log holds of each assigned partition.
    async fn extents(&mut self) -> Result<Extents, ReaderError>;

    /// Leaves the group, so that other members take over at once.
    async fn close(&mut self) {}
}

/// The result of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// All partitions this reader has from now on. Nothing is read before [`Reader::start`].
    Assigned(Vec<i32>),
    /// Messages by partition; never empty.
    Messages(BTreeMap<i32, Vec<Message>>),
    /// The log holds no message before these offsets; all earlier ones were returned.
    Passed(BTreeMap<i32, i64>),
    /// Nothing within the timeout.
    Quiet,
}
