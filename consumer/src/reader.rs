//! Where messages come from.

pub mod kafka;
pub mod sqlite;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

pub use crate::progress::ReaderError;
use crate::progress::{Checkpoints, Extents, Message};

/// A journal seen from its end: partitions are assigned, started at an offset, read.
#[async_trait]
pub trait Reader: Send {
    /// The topic it reads.
    fn topic(&self) -> &str;

    /// What came next, within `wait`: an assignment, or up to `max` messages. With a `max` of 0
    /// only an assignment: for one who cannot take more and stays a member of the group.
    async fn read(&mut self, max: usize, wait: Duration) -> Result<Read, ReaderError>;

    /// Starts the partitions assigned last, each at the last message recorded, or where the log
    /// begins if that has left it; and says where. Started once more, they are read again from there.
    ///
    /// # Errors
    /// [`ReaderError::Foreign`] when the log contradicts the checkpoints: never skip.
    async fn start(&mut self, from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError>;

    /// Reports to lag tools how far the ledger is. A report, never a source.
    async fn report(&mut self, next: &BTreeMap<i32, i64>);

    /// What the log has of each assigned partition.
    async fn extents(&mut self) -> Result<Extents, ReaderError>;

    /// Leaves the group, so that others take over at once.
    async fn close(&mut self) {}
}

/// What a read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The partitions this reader has from now on, all of them. Nothing is read before
    /// [`Reader::start`].
    Assigned(Vec<i32>),
    /// Messages by partition; never empty.
    Messages(BTreeMap<i32, Vec<Message>>),
    /// No message is to be had before these offsets, all before them was brought.
    Passed(BTreeMap<i32, i64>),
    /// Nothing within the time given.
    Quiet,
}
