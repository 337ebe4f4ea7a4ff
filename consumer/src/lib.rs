//! Recording: from the journal into the ledger, each sale exactly once.
//!
//! ```text
//!  journal ──▶ reader ──▶ step ──▶ ledger        rows and offsets in one transaction
//!  (Kafka, or a table)     ▲          │
//!                          └── offset ┘           the only checkpoint there is
//! ```
//!
//! Read in this order: [`sale`] (the message), [`ledger`] (the books and the posting rule),
//! [`reader`] (where messages come from), [`step`] (one finite step of the consumer),
//! [`progress`] and [`lag`] (how far behind), [`run`] (the process around it).
//!
//! Beside the path: [`skip`] (an operator's decision), [`config`] (the settings of both programs), [`kafka`] and [`sqlite`] (what
//! both programs ask of them alike), [`metrics`] and [`ops`] (what a person sees), [`web`] (how HTTP is served).

// What tests/support names `consumer` is this crate also in its own tests.
#[cfg(test)]
extern crate self as consumer;

pub mod config;
pub mod kafka;
pub mod lag;
pub mod ledger;
pub mod metrics;
pub mod ops;
pub mod progress;
pub mod reader;
pub mod run;
pub mod sale;
pub mod skip;
pub mod sqlite;
pub mod step;
pub mod web;
