//! Selling: everything between a client's request and the journal.
//!
//! ```text
//!  browser ─POST /seckill/seckill─▶ http ─▶ selling ──take───▶ stock     Redis: one script, atomic
//!                                              │                (counter − n, book, outbox + n)
//!                                              └─append─▶ journal       Kafka: acks=all, idempotent
//!                                                              │
//!                           consumer (own process) ◀───reads───┘
//!                               └──post──▶ ledger                MySQL: rows and offsets together
//! ```
//!
//! The modules, top down; each uses only those below it. The other half of the path is the package
//! `consumer`.
//!
//! | module | contents |
//! |---|---|
//! | [`operating`] | the selling process and the operators' commands |
//! | [`http`] | the HTTP API: requests and answers |
//! | [`books`] | reconciliation: audit, recovery (reopening), restore, archive |
//! | [`world`] | wiring: servers, or one file |
//! | [`selling`] | the sale's rule, from attempt to answer |
//! | [`stock`] | the units: the trait, Redis, memory |
//! | [`journal`] | durable sales: the trait, Kafka, SQLite, and the ledger's lag |
//! | [`sale`], [`clock`], [`metrics`] | shared types, time, metrics |

pub mod books;
pub mod clock;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod operating;
pub mod sale;
pub mod selling;
pub mod stock;
pub mod world;
