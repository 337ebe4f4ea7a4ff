//! Recording: from the journal into the ledger, each sale exactly once.
//!
//! ```text
//!  journal ──▶ reader ──▶ step ──▶ ledger        rows and offsets in one transaction
//!  (Kafka, or a table)     ▲          │
//!                          └── offset ┘           the only checkpoint there is
//! ```
//!
//! The rooms, from the top; each uses those below it, and none above. The selling half, the package
//! `seckill`, uses them, too; the first two only where it runs an embedded consumer.
//!
//! | room | what stands in it |
//! |---|---|
//! | [`recording`] | the consumer: one finite step, the process around it, its lag and metrics |
//! | [`reader`] | where messages come from: Kafka, or a table |
//! | [`ledger`] | the books and the posting rule: MySQL and MariaDB, or SQLite |
//! | [`kafka`] | what both programs ask of Kafka |
//! | [`progress`] | checkpoints, held against what the log still has |
//! | [`sqlite`] | the embedded file |
//! | [`service`] | how a program runs: settings, HTTP, ops |
//! | [`sale`] | the message |

// What tests/support names `consumer` is this crate also in its own tests.
#[cfg(test)]
extern crate self as consumer;

pub mod kafka;
pub mod ledger;
pub mod progress;
pub mod reader;
pub mod recording;
pub mod sale;
pub mod service;
pub mod sqlite;
