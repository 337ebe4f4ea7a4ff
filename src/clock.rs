//! This machine's clocks: the wall clock, and elapsed time that includes suspension.
//!
//! Wall clocks differ between machines and may jump: nothing is decided by them alone. The monotonic clock
//! measures elapsed time, but stops while a machine is suspended, and the servers elsewhere go on: a node
//! that wakes up would take stale replies for fresh.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

/// The two clocks are read one after the other, in milliseconds; a real sleep is longer than that.
const AWAKE_MS: u64 = 100;

thread_local! {
    /// How far this thread's simulated machine's clock is ahead, in milliseconds.
    static AHEAD_MS: Cell<i64> = const { Cell::new(0) };
}

/// Sets the clock ahead by this much, or back: for simulated machines, on this thread.
#[doc(hidden)]
pub fn jump(ahead_ms: i64) {
    AHEAD_MS.set(ahead_ms);
}

/// This machine's wall-clock time.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.checked_add(SignedDuration::from_millis(AHEAD_MS.get())).unwrap_or(now)
}

/// The same, in Unix milliseconds.
#[must_use]
pub fn now_ms() -> i64 {
    now().as_millisecond()
}

/// The time, at the precision of messages and ledger.
#[must_use]
pub fn moment() -> Timestamp {
    let now = now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// A new UUID v7, from this machine's time.
#[must_use]
pub fn new_id() -> Uuid {
    let id = Uuid::now_v7();
    if AHEAD_MS.get() == 0 {
        return id;
    }
    let mut random = [0; 10];
    random.copy_from_slice(&id.as_bytes()[6..]);
    let ms = u64::try_from(now().as_millisecond()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// The time since `at`; [`Duration::MAX`] if the machine has slept since.
#[must_use]
pub fn elapsed(at: Instant) -> Duration {
    static SLEEP: Sleep = Sleep::none();
    SLEEP.elapsed(at, slept_ms())
}

/// How long the machine has slept since boot.
fn slept_ms() -> u64 {
    let ms = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec * 1000 + time.tv_nsec / 1_000_000
    };
    // In this order: a delay in between makes the result shorter, not longer.
    let boot = ms(ClockId::Boottime);
    u64::try_from(boot - ms(ClockId::Monotonic)).unwrap_or(0)
}

/// What is known of the machine's sleep.
struct Sleep {
    /// The sleep noticed so far; unknown at first.
    noticed_ms: AtomicU64,
    /// Whether there was some since.
    slept: AtomicBool,
    /// When it was last noticed.
    woke: Mutex<Option<Instant>>,
}

impl Sleep {
    const fn none() -> Self {
        Self { noticed_ms: AtomicU64::new(u64::MAX), slept: AtomicBool::new(false), woke: Mutex::new(None) }
    }

    fn elapsed(&self, at: Instant, slept_ms: u64) -> Duration {
        let woke = || self.woke.lock().unwrap_or_else(PoisonError::into_inner);
        let noticed = self.noticed_ms.load(Ordering::Acquire);
        if slept_ms > noticed.saturating_add(AWAKE_MS) {
            *woke() = Some(Instant::now());
            self.slept.store(true, Ordering::Release);
        }
        if noticed == u64::MAX || slept_ms > noticed.saturating_add(AWAKE_MS) {
            self.noticed_ms.store(slept_ms, Ordering::Release);
        }
        // Replies between the wake-up and its detection count as old, too.
        if self.slept.load(Ordering::Acquire) && woke().is_some_and(|woke| at <= woke) {
            return Duration::MAX;
        }
        at.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_before_a_sleep_is_old() {
        let (sleep, second) = (Sleep::none(), Duration::from_secs(1));
        let before = Instant::now();
        assert_eq!(sleep.elapsed(before, 5_000_000), Duration::ZERO, "an earlier sleep is none of ours");
        tokio::time::advance(second).await;
        assert_eq!(sleep.elapsed(before, 5_000_001), second);
        assert_eq!(sleep.elapsed(before, 5_002_500), Duration::MAX, "the monotonic clock says a second");
        assert_eq!(sleep.elapsed(before, 5_002_500), Duration::MAX);
        tokio::time::advance(second).await;
        let after = Instant::now();
        tokio::time::advance(second).await;
        assert_eq!(sleep.elapsed(after, 5_002_500), second);
        assert_eq!(sleep.elapsed(after, 5_002_700), Duration::MAX, "asleep once more");
    }

    #[test]
    fn the_clocks_can_be_read() {
        let one = slept_ms();
        assert!(slept_ms() <= one + AWAKE_MS, "awake");
    }
}
