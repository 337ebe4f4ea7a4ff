//! The books held against one another: checked, opened again after a loss, put away.

pub mod archive;
pub mod audit;
pub mod gaps;
pub mod reopen;
pub mod restore;
pub mod settle;
