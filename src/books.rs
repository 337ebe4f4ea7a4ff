//! Reconciliation of the books: audit, recovery, restore, archive.

pub mod archive;
pub mod audit;
pub mod gaps;
pub mod reopen;
pub mod restore;
pub mod settle;
