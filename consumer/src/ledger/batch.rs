//! A batch: what is posted together.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::progress::{Checkpoint, Message};

/// Messages of one topic, by partition, posted together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The source topic.
    pub topic: String,
    /// One entry per partition, ascending.
    pub parts: Vec<Part>,
}

impl Batch {
    /// How many messages it holds.
    #[must_use]
    pub fn size(&self) -> usize {
        self.parts.iter().map(|part| part.messages.len()).sum()
    }

    /// Its first `count` messages.
    #[must_use]
    pub fn first(&self, count: usize) -> Cow<'_, Self> {
        if self.size() <= count {
            return Cow::Borrowed(self);
        }
        let mut some = Self { topic: self.topic.clone(), parts: Vec::new() };
        let mut left = count;
        for part in &self.parts {
            let messages = &part.messages[..left.min(part.messages.len())];
            left -= messages.len();
            if !messages.is_empty() || part.messages.is_empty() {
                some.parts.push(Part { messages: messages.to_vec(), ..*part });
            }
        }
        Cow::Owned(some)
    }

    /// Removes what was posted up to these checkpoints.
    pub fn posted(&mut self, checkpoints: &BTreeMap<i32, Checkpoint>) {
        for part in &mut self.parts {
            if let Some(to) = checkpoints.get(&part.partition) {
                part.from = Some(to.next);
                part.messages.retain(|message| message.offset >= to.next);
            }
        }
        self.parts.retain(|part| !part.messages.is_empty() || part.upto > part.from);
    }
}

/// Consecutive messages of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The partition's number.
    pub partition: i32,
    /// The expected checkpoint of the ledger; `None` when it has no row yet.
    pub from: Option<i64>,
    /// The messages, offsets ascending (gaps are possible).
    pub messages: Vec<Message>,
    /// Without messages: the log has none before this offset, so the checkpoint moves there.
    pub upto: Option<i64>,
}
