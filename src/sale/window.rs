//! When the sale is open.

use jiff::Timestamp;

use crate::clock::now_ms;

/// When the sale is open, in Unix milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Opening time; unset: open from the start.
    pub opens_at: Option<i64>,
    /// Closing time, exclusive; unset: never.
    pub closes_at: Option<i64>,
}

impl Window {
    /// Whether the opening is still to come.
    #[must_use]
    pub fn before_opening(&self) -> bool {
        self.opens_at.is_some_and(|at| now_ms() < at)
    }

    /// Whether the sale is over.
    #[must_use]
    pub fn after_closing(&self) -> bool {
        self.closes_at.is_some_and(|at| now_ms() >= at)
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |ms: Option<i64>, otherwise: &str| {
            let at = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
            at.map_or_else(|| otherwise.to_owned(), |at| at.to_string())
        };
        write!(f, "from {} until {}", at(self.opens_at, "now on"), at(self.closes_at, "it is sold out"))
    }
}
