//! Time limits shared between modules, and how they depend on one another.

use std::time::Duration;

/// How often a till refreshes its view: an operator's change shows on every node within 200 ms.
pub const REFRESH_EVERY: Duration = Duration::from_millis(100);

/// A view older than this is not relied on: "unavailable", never "sold out".
pub const STALE_AFTER: Duration = Duration::from_secs(1);

/// How long an attempt may wait for a stock call; after this it gets `busy` instead of no answer.
pub const WAIT_WITHIN: Duration = Duration::from_secs(2);

/// Timeout of a Redis reply: longer than a slow disk's fsync, short enough for an answer within a second.
pub const REPLY_WITHIN: Duration = Duration::from_millis(800);

/// Timeout of connecting to it; on a live network that takes a few round trips.
pub const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// The kernel's limit for retransmission: a call that timed out cannot arrive later.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

/// Success is reported only within this time of the stock call behind it; later the books may have been
/// reopened without it.
pub const TELL_WITHIN: Duration = Duration::from_secs(2);

/// An attempt is answered within this.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long a shutdown waits for attempts in flight.
pub const BUYERS_WITHIN: Duration = Duration::from_secs(6);

/// Then for what was taken to be acknowledged, ...
pub const CLOSE_WITHIN: Duration = Duration::from_secs(4);

/// ... for the producer's flush, ...
pub const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// ... and for the embedded consumer to catch up.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

/// A node told to stop is gone after this and `SECKILL_DRAIN`: a supervisor must wait longer.
pub const GONE_WITHIN: Duration = Duration::from_secs(15);

/// After this no success can be reported any more from a stock reply of before the sale was shut. With a
/// replica, the old master's replies are older by at most `min-replicas-max-lag`; give it that time before a
/// failover.
pub const SETTLED_AFTER: Duration = TELL_WITHIN.saturating_add(Duration::from_millis(200));

/// The journal gives up on a sale after this timeout; the outbox relay then appends it again.
pub const DELIVERY_DEADLINE: Duration = Duration::from_secs(10);

/// After this a batch without a delivery report, not even a failed one, counts as unknown.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(12);

/// An outbox entry is left to its taker for this long, by this node's monotonic clock from when it first saw
/// the entry; then any node relays it.
pub const GRACE: Duration = Duration::from_secs(15);

/// How often the owner of a claim to a shut sale renews it.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);

/// A claim not renewed for this long has a dead owner: ten renewals, so that a server outage of some seconds
/// costs no claim.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

/// The clocks of two machines may differ by this much.
pub const CLOCK_SKEW: Duration = Duration::from_secs(10);

const fn comes_before(one: Duration, other: Duration) -> bool {
    one.as_millis() < other.as_millis()
}

// A view survives some late refreshes.
const _: () = assert!(comes_before(REFRESH_EVERY.saturating_mul(5), STALE_AFTER));
// The longest wait, stock call and report still meet the deadline.
const _: () = assert!(comes_before(WAIT_WITHIN.saturating_add(TELL_WITHIN), ANSWER_WITHIN));
const CALL: Duration = CONNECT_WITHIN.saturating_mul(2).saturating_add(REPLY_WITHIN);
const _: () = assert!(comes_before(WAIT_WITHIN.saturating_add(CALL), ANSWER_WITHIN));
const _: () = assert!(comes_before(ANSWER_WITHIN, BUYERS_WITHIN));
const _: () = assert!(comes_before(
    BUYERS_WITHIN.saturating_add(CLOSE_WITHIN).saturating_add(FLUSH_WITHIN).saturating_add(CATCH_UP_WITHIN),
    GONE_WITHIN
));
// An order that is no longer young cannot get into an outbox any more.
const _: () = assert!(comes_before(
    WAIT_WITHIN.saturating_add(CALL).saturating_add(FORGOTTEN_AFTER),
    DELIVERY_DEADLINE
));
// Books are counted when no success can be reported any more.
const _: () = assert!(comes_before(TELL_WITHIN, SETTLED_AFTER));
// The journal, then the till, then the outbox gives up on a sale: no two append it at a time.
const _: () = assert!(comes_before(DELIVERY_DEADLINE, GIVEN_UP_AFTER));
const _: () = assert!(comes_before(REPLY_WITHIN.saturating_add(GIVEN_UP_AFTER), GRACE));
// No claim is lost while a sale in flight may still arrive.
const _: () = assert!(comes_before(DELIVERY_DEADLINE, TAKE_OVER_AFTER));
const _: () = assert!(comes_before(RENEW_EVERY.saturating_mul(5), TAKE_OVER_AFTER));
