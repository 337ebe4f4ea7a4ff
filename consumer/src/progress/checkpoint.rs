//! Checkpoint: how far a partition is posted, and a fingerprint that identifies the log.

/// A message as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its offset in the partition.
    pub offset: i64,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// How far a partition is posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The next offset to read.
    pub next: i64,
    /// [`fingerprint`] of the last message recorded, which identifies the log. If that message is not right
    /// before `next`: its first digits, `+`, and the number of offsets between; empty before the first
    /// message is recorded.
    pub fingerprint: String,
}

/// Digits of a fingerprint kept beside a distance: 48 bits, and room for any distance.
const SHORT_PRINT: usize = 12;

impl Checkpoint {
    /// Before the first message.
    pub const NOTHING: Self = Self { next: 0, fingerprint: String::new() };

    /// Right after this message.
    #[must_use]
    pub fn after(message: &Message) -> Self {
        Self { next: message.offset + 1, fingerprint: fingerprint(&message.value) }
    }

    /// Advances to `upto`: the log holds no message between.
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

/// Identifies a message: the start of its bytes' SHA-256, in hexadecimal.
#[must_use]
pub fn fingerprint(value: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(value).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
