//! Public view of an item: the sale's state, and what is left.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// What the page shows of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// What an attempt would get now.
    pub state: State,
    /// Units left.
    pub left: u64,
    /// Units left and units sold; unknown while the sale is shut.
    pub total: Option<u64>,
    /// The sale's epoch, when there is one.
    pub epoch: Option<Uuid>,
}

/// The states of a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it, and the wire carries them")]
pub enum State {
    NotOpen,
    Open,
    SoldOut,
    Closed,
    NotOnSale,
    Unavailable,
}
