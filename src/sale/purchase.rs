//! What a buyer is told of an attempt, and later of an order.

use uuid::Uuid;

/// What a buyer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purchase {
    /// The unit is the buyer's, for good.
    Bought {
        /// The order.
        order: Uuid,
        /// Units left after it.
        left: u64,
        /// The sale it is from.
        epoch: Uuid,
    },
    /// There is none left.
    SoldOut,
    /// Nobody knows yet; the order says where the outcome will stand.
    Pending {
        /// The order it is, if it comes about.
        order: Uuid,
        /// The sale it is from; `None` when the stock did not answer.
        epoch: Option<Uuid>,
    },
    /// Not made: the sale opens later.
    NotOpen,
    /// Not made: the sale is over.
    Closed,
    /// Not made: there is no such item on sale.
    NotOnSale,
    /// Not made: too many are waiting.
    Busy,
    /// Not made: a server is away, or the books are in doubt.
    Unavailable,
}

/// How far an order has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderStatus {
    /// Taken, not acknowledged by the journal; or nobody can say yet.
    Pending,
    /// Acknowledged by the journal.
    Accepted,
    /// In the ledger.
    Recorded,
    /// It did not come about.
    Unknown,
    /// Nobody can say, and no waiting helps: the journal is not the one that was recorded.
    Undecided,
}
