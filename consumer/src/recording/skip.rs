//! `consumer skip`: an operator's decision to continue where a log begins, although unrecorded messages
//! before it are gone. Nothing else skips.

use std::fmt::Write as _;

use crate::ledger::{Batch, LedgerError, Part, Record};
use crate::progress::{Extents, behind, gone};

/// What was found, or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// Nothing can be skipped; what there is instead.
    Nothing(String),
    /// What is skipped, or would be; in words.
    Gone(String),
}

/// Moves the checkpoints of partitions whose head is gone to where the log begins; of one partition, or of
/// all. Without `write` it only reports what that would skip.
///
/// # Errors
/// The ledger is away; or a consumer posts just now.
pub async fn skip(
    ledger: &dyn Record,
    topic: &str,
    extents: &Extents,
    only: Option<i32>,
    write: bool,
) -> Result<Skip, LedgerError> {
    let checkpoints = ledger.checkpoints(topic).await?;
    let mut gone = gone(extents, &checkpoints);
    gone.retain(|partition, _| only.is_none_or(|only| only == *partition));
    if gone.is_empty() {
        return Ok(Skip::Nothing(match behind(topic, &checkpoints, extents, &checkpoints) {
            Ok(messages) => {
                format!("topic {topic}: the log has all that is not recorded yet, {messages} messages")
            }
            Err(contradiction) => contradiction.to_string(),
        }));
    }
    let mut said = String::new();
    let mut parts = Vec::new();
    for (partition, (next, start)) in gone {
        let (passed, pass) = if write { ("are", "goes") } else { ("would be", "would go") };
        let _ = writeln!(
            said,
            "topic {topic} partition {partition}: offsets {next} to {} {passed} given up, {} of them, which are in \
             no log and not recorded; recording {pass} on at {start}",
            start - 1,
            start - next
        );
        let from = checkpoints.get(&partition).map(|checkpoint| checkpoint.next);
        parts.push(Part { partition, from, messages: Vec::new(), upto: Some(start) });
    }
    if write {
        ledger.post(&Batch { topic: topic.to_owned(), parts }).await?;
    }
    Ok(Skip::Gone(said.trim_end().to_owned()))
}
