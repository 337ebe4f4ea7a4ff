//! The recording half: consumes the journal into the ledger, each sale exactly once.
//!
//! ```text
//!  journal ──▶ reader ──▶ step ──▶ ledger        rows and offsets in one transaction
//!  (Kafka, or a table)     ▲          │
//!                          └── offset ┘           the only checkpoint there is
//! ```
//!
//! The modules, top layer first; each depends only on those below it. The selling half, the package
//! `seckill`, uses them too; the first two only where it runs an embedded consumer.
//!
//! | module | contents |
//! |---|---|
//! | [`recording`] | the consumer: one finite step, the process around it, its lag and metrics |
//! | [`reader`] | message sources: Kafka, or a table |
//! | [`ledger`] | the ledger and the posting rule: MySQL and MariaDB, or SQLite |
//! | [`kafka`] | Kafka code shared by both programs |
//! | [`progress`] | checkpoints, compared with what the log still holds |
//! | [`sqlite`] | the embedded file |
//! | [`service`] | how a program runs: settings, HTTP, ops |
//! | [`sale`] | the message |

// `tests/support` calls this crate `consumer`, also in its own tests.
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
