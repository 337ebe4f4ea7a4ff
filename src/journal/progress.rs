//! The ledger's lag behind the journal, defined once.

use consumer::ledger::{Ledger, LedgerError};
use consumer::progress::{Contradiction, behind};

use super::Journal;

/// Whether the ledger has all that is in the journal now.
///
/// # Errors
/// A server is away, or the journal contradicts the ledger.
pub async fn recorded_all(journal: &dyn Journal, ledger: &dyn Ledger) -> Result<bool, Trouble> {
    let before = ledger.checkpoints(journal.topic()).await?;
    let extents = journal.extents().await?;
    let after = ledger.checkpoints(journal.topic()).await?;
    Ok(behind(journal.topic(), &before, &extents, &after)? == 0)
}

/// Why an operation cannot proceed: which server is away, or which concurrent change interfered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Transient.
    #[error("{0}")]
    Passing(String),
    /// Permanent: the journal is not the one that was recorded, or not all of it.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Passing(why)
    }
}

impl From<&str> for Trouble {
    fn from(why: &str) -> Self {
        Self::Passing(why.to_owned())
    }
}

impl From<LedgerError> for Trouble {
    fn from(error: LedgerError) -> Self {
        Self::Passing(error.to_string())
    }
}
