//! The answers to an attempt, and later to an order query.

use uuid::Uuid;

/// The answer to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purchase {
    /// The unit is the buyer's, for good.
    Bought {
        /// The order.
        order: Uuid,
        /// Units left after it.
        left: u64,
        /// Its sale.
        epoch: Uuid,
    },
    /// None is left.
    SoldOut,
    /// Outcome unknown yet; the order can be queried for it.
    Pending {
        /// The order's id, if it was taken.
        order: Uuid,
        /// Its sale; `None` when the stock did not answer.
        epoch: Option<Uuid>,
    },
    /// Not made: the sale opens later.
    NotOpen,
    /// Not made: the sale is over.
    Closed,
    /// Not made: there is no such item on sale.
    NotOnSale,
    /// Not made: back-pressure, too many are waiting.
    Busy,
    /// Not made: a server is away, or the books are in doubt.
    Unavailable,
}

/// An order's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderStatus {
    /// Taken, not acknowledged by the journal; or not known yet.
    Pending,
    /// Acknowledged by the journal.
    Accepted,
    /// In the ledger.
    Recorded,
    /// No such order was made.
    Unknown,
    /// Unknown, and waiting does not help: the journal is not the one that was recorded.
    Undecided,
}
