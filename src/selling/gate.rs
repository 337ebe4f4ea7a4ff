//! Answers that need no stock call: not open, closed, sold out, unavailable.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::elapsed;
use crate::sale::times::STALE_AFTER;
use crate::sale::{Purchase, State, View, Window};

/// A node's cached view of an item, from the stock's last reply.
#[derive(Debug, Clone)]
pub struct Level {
    /// When the stock call was made.
    pub asked: Instant,
    /// The sale's epoch.
    pub epoch: Option<Uuid>,
    /// Its fencing term.
    pub term: u64,
    /// Its last serial; 0 while it is shut.
    pub serial: u64,
    /// Units left; `None`: not on sale.
    pub left: Option<u64>,
    /// Entries in the outbox.
    pub open: u64,
    /// The sale is shut, or this node distrusts it.
    pub shut: bool,
    /// Why the stock gave no usable reply, if so.
    pub trouble: Option<Arc<str>>,
}

/// Whether an anonymous attempt may go on to the till.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open,
    /// It is answered here.
    Shut(Purchase),
}

impl Level {
    /// Why this view cannot be relied on, if so.
    #[must_use]
    pub fn doubt(&self) -> Option<Arc<str>> {
        match &self.trouble {
            Some(trouble) => Some(Arc::clone(trouble)),
            None if elapsed(self.asked) > STALE_AFTER => Some("the stock does not answer".into()),
            None => None,
        }
    }

    /// Answers an anonymous attempt without a stock call.
    #[must_use]
    pub fn gate(&self, window: Window, journal_ready: bool) -> Gate {
        match self.view(window, journal_ready).state {
            State::Open => Gate::Open,
            State::NotOpen => Gate::Shut(Purchase::NotOpen),
            State::SoldOut => Gate::Shut(Purchase::SoldOut),
            State::Closed => Gate::Shut(Purchase::Closed),
            State::NotOnSale => Gate::Shut(Purchase::NotOnSale),
            State::Unavailable => Gate::Shut(Purchase::Unavailable),
        }
    }

    /// What the page shows.
    #[must_use]
    pub fn view(&self, window: Window, journal_ready: bool) -> View {
        let doubt = self.doubt().is_some();
        let state = match self.left {
            _ if doubt => State::Unavailable,
            None => State::NotOnSale,
            _ if window.before_opening() => State::NotOpen,
            _ if window.after_closing() => State::Closed,
            Some(0) => State::SoldOut,
            // Comes after `SoldOut`: only taking a unit needs the journal.
            Some(_) if !journal_ready => State::Unavailable,
            Some(_) => State::Open,
        };
        let total = self.left.filter(|_| !self.shut).map(|left| left.saturating_add(self.serial));
        View { state, left: self.left.unwrap_or(0), total, epoch: self.epoch }
    }
}
