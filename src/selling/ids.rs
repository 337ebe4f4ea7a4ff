//! Order ids: UUID v7 with a trailing keyed check, so that forged ids cost no server a lookup.
//!
//! The check is a keyed hash of the other bytes. Ids from before the key have none; the time until which such
//! ids were made is kept beside the ledger, shared by all nodes, and older ids are looked up normally.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use consumer::service::config::{ConfigError, Secret};
use siphasher::sip::SipHasher24;
use uuid::{Builder, Uuid};

use crate::clock::{new_id, now_ms};
use crate::sale::times::{CLOCK_SKEW, DELIVERY_DEADLINE};

/// How many of an id's random bytes are the check: one forged id in sixteen million passes, and the remaining
/// 50 bits keep two ids of one millisecond apart.
const CHECK_BYTES: usize = 3;

/// Makes order ids, and detects forged ones.
pub struct Ids {
    key: OnceLock<SipHasher24>,
    /// Ids later than this, in Unix milliseconds, all carry the check; unknown at first.
    all_checked_after: AtomicI64,
}

impl Default for Ids {
    fn default() -> Self {
        Self { key: OnceLock::new(), all_checked_after: AtomicI64::new(i64::MAX) }
    }
}

impl Ids {
    /// Sets the key of the check, once.
    pub fn check_with(&self, key: Key) {
        let _ = self.key.set(SipHasher24::new_with_key(&key.0));
    }

    /// Ids later than this, in Unix milliseconds, all carry this key's check.
    pub fn all_checked_after(&self, ms: i64) {
        self.all_checked_after.store(ms, Ordering::Relaxed);
    }

    /// The key's public fingerprint, which does not reveal it. Empty without a key.
    #[must_use]
    pub fn name(&self) -> String {
        self.key.get().map_or(String::new(), |key| format!("{:016x}", key.hash(b"name")))
    }

    /// Makes a new id.
    #[must_use]
    pub fn make(&self) -> Uuid {
        let id = new_id();
        self.key.get().map_or(id, |key| {
            let mut bytes = id.into_bytes();
            let (made, check) = bytes.split_at_mut(16 - CHECK_BYTES);
            check.copy_from_slice(&check_of(key, made));
            Builder::from_bytes(bytes).into_uuid()
        })
    }

    /// Whether the id is certainly forged. Never true for an order this shop made.
    #[must_use]
    pub fn is_made_up(&self, order: Uuid) -> bool {
        let Some(at) = made_at(order) else { return true };
        let Some(key) = self.key.get() else { return false };
        let (made, check) = order.as_bytes().split_at(16 - CHECK_BYTES);
        *check != check_of(key, made) && at > self.all_checked_after.load(Ordering::Relaxed)
    }
}

fn check_of(key: &SipHasher24, made: &[u8]) -> [u8; CHECK_BYTES] {
    let [one, two, three, ..] = key.hash(made).to_le_bytes();
    [one, two, three]
}

/// When the id was made, in Unix milliseconds by the maker's clock; `None` if it is no order id.
fn made_at(order: Uuid) -> Option<i64> {
    if order.get_version_num() != 7 {
        return None;
    }
    let (seconds, nanos) = order.get_timestamp()?.to_unix();
    i64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(i64::from(nanos / 1_000_000))
}

/// Whether an order may still be in flight to an outbox. An id from the future, made by a clock that had
/// jumped, does not count: it is looked up.
#[must_use]
pub fn is_young(order: Uuid) -> bool {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let (skew, now) = (ms(CLOCK_SKEW), now_ms());
    made_at(order).is_some_and(|made| made <= now + skew && made + ms(DELIVERY_DEADLINE) + skew > now)
}

/// The key of the check.
pub struct Key([u8; 16]);

impl Key {
    /// The key from `SECKILL_KEY`, or from the file named by `SECKILL_KEY_FILE`.
    ///
    /// # Errors
    /// When it is not 32 hex digits.
    pub fn of(secret: &Secret) -> Result<Self, ConfigError> {
        Self::from_hex(secret.reveal()).ok_or_else(|| {
            ConfigError(
                "SECKILL_KEY, or the file that SECKILL_KEY_FILE names: give 32 hex digits and nothing else; \
                 `openssl rand -hex 16` makes them"
                    .into(),
            )
        })
    }

    /// Parses 32 hex digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let plain = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = plain.then(|| u128::from_str_radix(hex, 16).ok())??;
        Some(Self(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(key: &str) -> Ids {
        let ids = Ids::default();
        ids.check_with(Key::from_hex(key).expect("a key"));
        ids
    }

    const KEY: &str = "000102030405060708090a0b0c0d0e0f";
    const OTHER: &str = "000102030405060708090a0b0c0d0e10";

    fn at(ms: i64) -> Uuid {
        Builder::from_unix_timestamp_millis(u64::try_from(ms).expect("a time"), &[7; 10]).into_uuid()
    }

    #[test]
    fn what_one_node_made_another_with_the_same_key_knows() {
        let (here, there, stranger) = (ids(KEY), ids(KEY), ids(OTHER));
        for node in [&here, &there, &stranger] {
            node.all_checked_after(0);
        }
        for _ in 0..1000 {
            let order = here.make();
            assert_eq!((order.get_version_num(), order.get_variant()), (7, uuid::Variant::RFC4122));
            assert!(!there.is_made_up(order));
            assert!(stranger.is_made_up(order), "but for one in sixteen million");
            assert!(there.is_made_up(Uuid::now_v7()));
        }
        assert_eq!(here.name(), there.name());
        assert_ne!(here.name(), stranger.name());
        assert_ne!(here.make(), here.make());
    }

    #[test]
    fn ids_of_before_the_key_are_looked_up() {
        let ids = ids(KEY);
        assert!(!ids.is_made_up(at(now_ms())), "as long as nobody knows since when");
        ids.all_checked_after(1_000_000);
        assert!(!ids.is_made_up(at(999_999)));
        assert!(!ids.is_made_up(at(1_000_000)));
        assert!(ids.is_made_up(at(1_000_001)));
        assert!(ids.is_made_up(at(now_ms() + 1_000_000_000)));
        assert!(!Ids::default().is_made_up(at(now_ms())), "without a key nobody can tell");
    }

    #[test]
    fn what_is_no_v7_is_no_order() {
        for ids in [Ids::default(), ids(KEY)] {
            assert!(ids.is_made_up(Uuid::nil()));
            assert!(ids.is_made_up(Uuid::max()));
            assert!(ids.is_made_up(uuid::uuid!("f47ac10b-58cc-4372-a567-0e02b2c3d479")));
        }
    }

    #[test]
    fn young_allows_for_clocks_that_differ() {
        let now = now_ms();
        for young in [0, -9_000, -18_000, 8_000] {
            assert!(is_young(at(now + young)), "{young}");
        }
        for old in [-25_000, -31_536_000_000, 15_000, 31_536_000_000] {
            assert!(!is_young(at(now + old)), "{old}: it is looked for");
        }
    }

    #[test]
    fn a_key_is_32_hex_digits() {
        assert!(Key::from_hex(&KEY.to_uppercase()).is_some());
        for wrong in
            ["", "00", "+00102030405060708090a0b0c0d0e0f", &KEY.replace('f', "g"), &format!("{KEY}0")]
        {
            assert!(Key::from_hex(wrong).is_none(), "{wrong}");
        }
    }
}
