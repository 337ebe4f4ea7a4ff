//! An order's id: a UUID v7 whose last bytes say that this shop made it, so that made-up ones cost
//! no server a question.
//!
//! The check is a keyed hash of the other bytes. Ids of before there was a key have none: until
//! when such ids were made is kept beside the ledger, which all nodes share, and an older one is
//! looked up like any other.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use consumer::service::config::{ConfigError, Secret};
use siphasher::sip::SipHasher24;
use uuid::{Builder, Uuid};

use crate::clock::{new_id, now_ms};
use crate::sale::times::{CLOCK_SKEW, DELIVERY_DEADLINE};

/// Of an id's random bytes so many are the check: one made-up id in sixteen million passes it, and
/// 50 bits stay that keep two ids of one millisecond apart.
const CHECK_BYTES: usize = 3;

/// How ids are made here, and told from made-up ones.
pub struct Ids {
    key: OnceLock<SipHasher24>,
    /// Ids that are later than this, in Unix milliseconds, all carry the check; unknown at first.
    all_checked_after: AtomicI64,
}

impl Default for Ids {
    fn default() -> Self {
        Self { key: OnceLock::new(), all_checked_after: AtomicI64::new(i64::MAX) }
    }
}

impl Ids {
    /// From now on ids carry a check with this key; once.
    pub fn check_with(&self, key: Key) {
        let _ = self.key.set(SipHasher24::new_with_key(&key.0));
    }

    /// Ids that are later than this, in Unix milliseconds, were all made with this key.
    pub fn all_checked_after(&self, ms: i64) {
        self.all_checked_after.store(ms, Ordering::Relaxed);
    }

    /// By what name others know the key; it does not give it away. Empty without one.
    #[must_use]
    pub fn name(&self) -> String {
        self.key.get().map_or(String::new(), |key| format!("{:016x}", key.hash(b"name")))
    }

    /// A new one.
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

    /// Whether this shop has surely never made it. An order that it made is never said to be one.
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

/// When it was made, in Unix milliseconds by the clock of whoever made it; `None` for what is no id
/// of an order.
fn made_at(order: Uuid) -> Option<i64> {
    if order.get_version_num() != 7 {
        return None;
    }
    let (seconds, nanos) = order.get_timestamp()?.to_unix();
    i64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(i64::from(nanos / 1_000_000))
}

/// Whether an order may still be on its way into an outbox. One from the future, of a clock that
/// had jumped, is not believed to be: it is looked for.
#[must_use]
pub fn is_young(order: Uuid) -> bool {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let (skew, now) = (ms(CLOCK_SKEW), now_ms());
    made_at(order).is_some_and(|made| made <= now + skew && made + ms(DELIVERY_DEADLINE) + skew > now)
}

/// What the check is made with.
pub struct Key([u8; 16]);

impl Key {
    /// As it stands in `SECKILL_KEY`, or in the file that `SECKILL_KEY_FILE` names.
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

    /// 32 hex digits.
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
