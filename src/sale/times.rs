//! Every time limit that two rooms must agree on, and how they depend on one another.

use std::time::Duration;

/// How often a till refreshes its view: what an operator does shows on every node within 200 ms.
pub const REFRESH_EVERY: Duration = Duration::from_millis(100);

/// A view older than this vouches for nothing: "unavailable", never "sold out".
pub const STALE_AFTER: Duration = Duration::from_secs(1);

/// An attempt waits so long for a call to the stock; whoever could not be put to it by then hears
/// `busy` instead of nothing.
pub const WAIT_WITHIN: Duration = Duration::from_secs(2);

/// Redis has so long for a reply: longer than a slow disk's fsync, short enough that a buyer hears
/// within a second.
pub const REPLY_WITHIN: Duration = Duration::from_millis(800);

/// A connection to it on a live network is made in a few round trips.
pub const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// The kernel's limit for what it sends again and again: a call that is given up cannot arrive later.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

/// Success is told at most this long after the stock was asked for what vouches for it; later
/// the books may have been reopened without it.
pub const TELL_WITHIN: Duration = Duration::from_secs(2);

/// An attempt is answered within this.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A shut-down waits so long for buyers in flight.
pub const BUYERS_WITHIN: Duration = Duration::from_secs(6);

/// Then what was taken has so long to be acknowledged, ...
pub const CLOSE_WITHIN: Duration = Duration::from_secs(4);

/// ... the producer to be flushed, ...
pub const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// ... and the embedded consumer to catch up.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

/// A node that was told to stop is gone after this and `SECKILL_DRAIN`: whoever stops it waits longer.
pub const GONE_WITHIN: Duration = Duration::from_secs(15);

/// After this nobody can still be told success on the strength of what the stock said before it
/// was shut. With a replica, what the old master vouched for is older by at most
/// `min-replicas-max-lag`; give it that time before a failover.
pub const SETTLED_AFTER: Duration = TELL_WITHIN.saturating_add(Duration::from_millis(200));

/// The journal gives up on a sale after this; the outbox then announces it again.
pub const DELIVERY_DEADLINE: Duration = Duration::from_secs(10);

/// Of a batch that the journal says nothing of, also not that it was given up, nobody knows anything
/// after this.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(12);

/// An outbox entry is left to whoever took it for so long, by this node's monotonic clock from when
/// it first saw the entry; then any node announces it again.
pub const GRACE: Duration = Duration::from_secs(15);

/// How often the claim to a shut sale is renewed by whoever works on it.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);

/// A claim that was not renewed for so long is of somebody who died: ten renewals, so that a
/// server that is away for some seconds costs nobody a claim.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

/// The clocks of two machines may differ by so much.
pub const CLOCK_SKEW: Duration = Duration::from_secs(10);

const fn comes_before(one: Duration, other: Duration) -> bool {
    one.as_millis() < other.as_millis()
}

// A view survives some refreshes that are late.
const _: () = assert!(comes_before(REFRESH_EVERY.saturating_mul(5), STALE_AFTER));
// Who waits, is put to the stock and is told last is told in time.
const _: () = assert!(comes_before(WAIT_WITHIN.saturating_add(TELL_WITHIN), ANSWER_WITHIN));
const CALL: Duration = CONNECT_WITHIN.saturating_mul(2).saturating_add(REPLY_WITHIN);
const _: () = assert!(comes_before(WAIT_WITHIN.saturating_add(CALL), ANSWER_WITHIN));
const _: () = assert!(comes_before(ANSWER_WITHIN, BUYERS_WITHIN));
const _: () = assert!(comes_before(
    BUYERS_WITHIN.saturating_add(CLOSE_WITHIN).saturating_add(FLUSH_WITHIN).saturating_add(CATCH_UP_WITHIN),
    GONE_WITHIN
));
// An order that no longer is young cannot get into an outbox any more.
const _: () = assert!(comes_before(
    WAIT_WITHIN.saturating_add(CALL).saturating_add(FORGOTTEN_AFTER),
    DELIVERY_DEADLINE
));
// Books are counted when nobody can be told success any more.
const _: () = assert!(comes_before(TELL_WITHIN, SETTLED_AFTER));
// The journal, then the till, then the outbox gives a sale up: never two that send it at a time.
const _: () = assert!(comes_before(DELIVERY_DEADLINE, GIVEN_UP_AFTER));
const _: () = assert!(comes_before(REPLY_WITHIN.saturating_add(GIVEN_UP_AFTER), GRACE));
// Nobody loses a claim while a sale that was sent may still arrive.
const _: () = assert!(comes_before(DELIVERY_DEADLINE, TAKE_OVER_AFTER));
const _: () = assert!(comes_before(RENEW_EVERY.saturating_mul(5), TAKE_OVER_AFTER));
