//! The selling process and the operators' commands.

pub mod commands;
pub mod serve;
