//! The process that sells, and what operators do beside it.

pub mod commands;
pub mod serve;
