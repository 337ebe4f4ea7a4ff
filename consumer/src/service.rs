//! The runtime of a program: settings, HTTP server, ops endpoints.

pub mod config;
pub mod ops;
pub mod web;
