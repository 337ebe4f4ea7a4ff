//! Progress of the ledger in a journal: checkpoints compared with what the log still holds.
//!
//! Only readable offsets count: from the log's start to its last stable offset, excluding messages and
//! markers of an open transaction. A log that contradicts the checkpoints is never "caught up": confirmed
//! sales may be lost, and an operator must know.

mod checkpoint;

use std::collections::BTreeMap;

use What::{Gone, Missing, Short};
pub use checkpoint::{Checkpoint, Message, fingerprint};

use crate::sqlite::TOPIC as EMBEDDED;

/// What a log holds of a partition: the offsets from `start` up to, without, `end`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// The first offset still in the log.
    pub start: i64,
    /// The next offset to be written.
    pub end: i64,
}

/// What a log holds, by partition.
pub type Extents = BTreeMap<i32, Extent>;

/// The checkpoint of each partition.
pub type Checkpoints = BTreeMap<i32, Checkpoint>;

/// A log that is not the one the checkpoints refer to, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    topic: String,
    partition: i32,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// Unrecorded messages have left the log.
    Gone { next: i64, start: i64 },
    /// The log ends before the checkpoint.
    Short { next: i64, end: i64 },
    /// The topic has no such partition.
    Missing { next: i64 },
}

impl Extent {
    /// Messages that the ledger lacks from offset `next` on; those that have left the log do not count.
    #[must_use]
    pub fn behind(self, next: i64) -> u64 {
        u64::try_from(self.end - next.max(self.start)).unwrap_or(0)
    }
}

/// Messages in the log that the ledger has not posted. The checkpoints are read before and after the
/// watermarks: both advance meanwhile.
///
/// # Errors
/// When the two contradict each other.
pub fn behind(
    topic: &str,
    before: &Checkpoints,
    extents: &Extents,
    after: &Checkpoints,
) -> Result<u64, Contradiction> {
    let contradiction = |partition: i32, what| Contradiction { topic: topic.to_owned(), partition, what };
    for (&partition, checkpoint) in before {
        let next = checkpoint.next;
        match extents.get(&partition) {
            None => return Err(contradiction(partition, Missing { next })),
            Some(&Extent { end, .. }) if next > end => {
                return Err(contradiction(partition, Short { next, end }));
            }
            Some(_) => {}
        }
    }
    let mut messages = 0;
    for (&partition, extent) in extents {
        let next = after.get(&partition).map_or(0, |checkpoint| checkpoint.next);
        if next < extent.start {
            return Err(contradiction(partition, Gone { next, start: extent.start }));
        }
        messages += extent.behind(next);
    }
    Ok(messages)
}

/// The start offset of each partition: the message before the checkpoint, which identifies the log, or the
/// log's start if that message has left it.
///
/// # Errors
/// When log and checkpoints contradict each other.
pub fn begin(
    topic: &str,
    extents: &Extents,
    checkpoints: &Checkpoints,
) -> Result<BTreeMap<i32, i64>, Contradiction> {
    let known = checkpoints.iter().filter(|(partition, _)| extents.contains_key(partition));
    let known: Checkpoints = known.map(|(partition, checkpoint)| (*partition, checkpoint.clone())).collect();
    behind(topic, &known, extents, &known)?;
    let last = |partition| known.get(partition).and_then(Checkpoint::last).unwrap_or(0);
    Ok(extents.iter().map(|(partition, extent)| (*partition, last(partition).max(extent.start))).collect())
}

/// The partitions whose messages left the log before they were recorded: the checkpoint, and where the log
/// starts.
#[must_use]
pub fn gone(extents: &Extents, checkpoints: &Checkpoints) -> BTreeMap<i32, (i64, i64)> {
    let next = |partition| checkpoints.get(partition).map_or(0, |checkpoint| checkpoint.next);
    let wanted = extents.iter().map(|(partition, extent)| (*partition, (next(partition), extent.start)));
    wanted.filter(|(_, (next, start))| next < start).collect()
}

/// The remedy when a topic is not the one that was recorded.
pub(crate) const ANOTHER_TOPIC: &str = "nothing is skipped: stop every `seckill` node, start the consumers with a \
     new name in SECKILL_KAFKA_TOPIC, copy what this topic holds to it, and only then start the nodes with that name \
     (docs/operations.md, \"After the topic was lost\")";

impl std::fmt::Display for Contradiction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { topic, partition, what } = self;
        if topic == EMBEDDED {
            let (Gone { next, .. } | Short { next, .. } | Missing { next }) = what;
            return write!(
                f,
                "the ledger has the journal up to {next}, and the journal does not reach from its beginning to there: \
                 part of this file was lost or put back; restore all of it from one backup"
            );
        }
        write!(f, "topic {topic} partition {partition}: ")?;
        match what {
            Gone { next, start } => write!(
                f,
                "the log begins at offset {start}, and the ledger has recorded up to {next} only: what stood between has \
                 left the log unrecorded (its retention, or somebody deleted records). Nothing is skipped in silence: \
                 `consumer skip` shows what is gone, and with --yes recording goes on at {start}; afterwards \
                 `seckill audit` names the units that are missing"
            ),
            Short { next, end } => write!(
                f,
                "the ledger has recorded up to offset {next}, and the log ends at {end}: the topic was recreated, or \
                 lost its tail; {ANOTHER_TOPIC}"
            ),
            Missing { next } => write!(
                f,
                "the ledger has recorded up to offset {next}, and the topic has no such partition: it was recreated; \
                 {ANOTHER_TOPIC}"
            ),
        }
    }
}

impl std::error::Error for Contradiction {}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// Unreachable: retry.
    #[error("the journal is away: {0}")]
    Away(String),
    /// The next offset is not in the log any more: restart from the checkpoints, which tell whether that
    /// matters.
    #[error("{0}")]
    Outside(String),
    /// The log contradicts the checkpoints: stop and report it.
    #[error("{0}")]
    Foreign(String),
}

impl From<Contradiction> for ReaderError {
    fn from(contradiction: Contradiction) -> Self {
        Self::Foreign(contradiction.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(next: i64) -> Checkpoints {
        BTreeMap::from([(0, Checkpoint { next, fingerprint: "f".repeat(32) })])
    }

    fn log(start: i64, end: i64) -> Extents {
        BTreeMap::from([(0, Extent { start, end })])
    }

    fn judged(before: &Checkpoints, extents: &Extents, after: &Checkpoints) -> Result<u64, What> {
        behind("T", before, extents, after).map_err(|contradiction| contradiction.what)
    }

    #[test]
    fn what_can_still_be_had_is_waited_for() {
        let none = Checkpoints::new();
        for (checkpoints, extents, expected) in [
            (&none, log(0, 0), Ok(0)),
            (&none, log(0, 7), Ok(7)),
            (&at(7), log(0, 7), Ok(0)),
            (&at(5), log(0, 7), Ok(2)),
            (&at(5), log(5, 7), Ok(2)),
            (&at(7), log(7, 7), Ok(0)),
            // The head is gone, even where nothing is left or nothing was ever recorded.
            (&at(5), log(6, 7), Err(Gone { next: 5, start: 6 })),
            (&at(5), log(7, 7), Err(Gone { next: 5, start: 7 })),
            (&none, log(1, 7), Err(Gone { next: 0, start: 1 })),
            (&none, log(7, 7), Err(Gone { next: 0, start: 7 })),
            // Another log.
            (&at(8), log(0, 7), Err(Short { next: 8, end: 7 })),
            (&at(8), log(0, 0), Err(Short { next: 8, end: 0 })),
            (&at(8), Extents::new(), Err(Missing { next: 8 })),
        ] {
            assert_eq!(judged(checkpoints, &extents, checkpoints), expected, "{checkpoints:?} {extents:?}");
        }
    }

    #[test]
    fn what_moves_on_meanwhile_is_no_contradiction() {
        assert_eq!(judged(&at(5), &log(0, 7), &at(9)), Ok(0), "recorded since");
        assert_eq!(judged(&at(5), &log(6, 9), &at(7)), Ok(2), "recorded, then gone");
    }

    #[test]
    fn it_begins_at_the_message_by_which_the_log_is_known() {
        let begins = |extents: &Extents, checkpoints: &Checkpoints| {
            begin("T", extents, checkpoints)
                .map(|begins| begins[&0])
                .map_err(|contradiction| contradiction.what)
        };
        assert_eq!(begins(&log(0, 9), &Checkpoints::new()), Ok(0));
        assert_eq!(begins(&log(0, 9), &at(9)), Ok(8));
        assert_eq!(begins(&log(9, 9), &at(9)), Ok(9), "that has left the log, and nothing else");
        assert_eq!(begins(&log(0, 9), &at(10)), Err(Short { next: 10, end: 9 }));
        assert_eq!(begins(&log(3, 9), &at(2)), Err(Gone { next: 2, start: 3 }));
        let passed = BTreeMap::from([(0, at(5)[&0].passed(9))]);
        assert_eq!(begins(&log(0, 9), &passed), Ok(4), "before what is no message");
        let skipped = BTreeMap::from([(0, Checkpoint::NOTHING.passed(5))]);
        assert_eq!(begins(&log(5, 9), &skipped), Ok(5));
        assert_eq!(begins(&log(0, 9), &skipped), Ok(0), "where it would be seen to be another log");
        // Another consumer's partitions do not matter.
        let others = BTreeMap::from([(7, Checkpoint { next: 3, fingerprint: String::new() })]);
        assert_eq!(begin("T", &log(0, 9), &others).map(|begins| begins[&0]), Ok(0));
    }

    #[test]
    fn each_contradiction_says_what_to_do() {
        for (checkpoints, extents, advice) in [
            (at(5), log(6, 7), "consumer skip"),
            (at(8), log(0, 7), "new name"),
            (at(8), Extents::new(), "new name"),
        ] {
            let said =
                behind("T", &checkpoints, &extents, &checkpoints).expect_err("contradiction").to_string();
            assert!(said.contains(advice) && said.contains("topic T partition 0"), "{said}");
            let said = behind(EMBEDDED, &checkpoints, &extents, &checkpoints)
                .expect_err("contradiction")
                .to_string();
            assert!(said.contains("one backup"), "{said}");
        }
    }
}
