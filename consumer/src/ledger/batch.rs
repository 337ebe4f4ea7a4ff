//! What is posted together, and how far a partition has been.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Messages of one topic, by partition, to be posted together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The topic all of it came from.
    pub topic: String,
    /// One entry a partition, ascending.
    pub parts: Vec<Part>,
}

impl Batch {
    /// How many messages it has.
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

    /// Takes out what was posted up to these checkpoints.
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
    /// The next offset that the ledger is expected to want; `None` when it has no row yet.
    pub from: Option<i64>,
    /// The messages, offsets ascending (gaps are possible).
    pub messages: Vec<Message>,
    /// Without messages: there is none to be had before this offset, and the checkpoint goes there.
    pub upto: Option<i64>,
}

/// A message as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its place in the partition.
    pub offset: i64,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// How far a partition has been posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The offset to be read next.
    pub next: i64,
    /// [`fingerprint`] of the last message recorded, by which the log is known again. Where no message
    /// stands right before `next`, the beginning of it, `+`, and how many offsets lie between; empty
    /// when no message was recorded yet.
    pub fingerprint: String,
}

/// So much of a fingerprint is kept beside a distance: 48 bits, and room for any distance.
const SHORT_PRINT: usize = 12;

impl Checkpoint {
    /// Before anything was recorded.
    pub const NOTHING: Self = Self { next: 0, fingerprint: String::new() };

    /// After this message.
    #[must_use]
    pub fn after(message: &Message) -> Self {
        Self { next: message.offset + 1, fingerprint: fingerprint(&message.value) }
    }

    /// Further on, at `upto`: there is no message to be had between.
    #[must_use]
    pub fn passed(&self, upto: i64) -> Self {
        let (print, between) = self.parts();
        let fingerprint = match print {
            "" => String::new(),
            print => format!("{:.SHORT_PRINT$}+{}", print, between + upto - self.next),
        };
        Self { next: upto, fingerprint }
    }

    /// The offset of the last message recorded, if there is one.
    #[must_use]
    pub fn last(&self) -> Option<i64> {
        let (print, between) = self.parts();
        (!print.is_empty()).then_some(self.next - 1 - between)
    }

    /// Whether this is the last message recorded.
    #[must_use]
    pub fn is_after(&self, message: &Message) -> bool {
        self.last() == Some(message.offset) && fingerprint(&message.value).starts_with(self.parts().0)
    }

    fn parts(&self) -> (&str, i64) {
        match self.fingerprint.split_once('+') {
            Some((print, between)) => (print, between.parse().unwrap_or(0)),
            None => (&self.fingerprint, 0),
        }
    }
}

/// Tells one message from another: the start of its bytes' SHA-256, in hexadecimal.
#[must_use]
pub fn fingerprint(value: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(value).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
