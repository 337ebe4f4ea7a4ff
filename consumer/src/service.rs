//! How a program runs: its settings, its HTTP server, what ops ask of it.

pub mod config;
pub mod ops;
pub mod web;
