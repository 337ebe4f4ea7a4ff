//! Selling: what happens between the buyer and the journal.
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
//! The rooms, from the top; each uses those below it, and none above. The other half of the path is
//! the package `consumer`.
//!
//! | room | what stands in it |
//! |---|---|
//! | [`operating`] | the process that sells, and the operators' commands |
//! | [`http`] | what a client can ask, and what it hears |
//! | [`books`] | audit, reopening, restoring, archiving: the books held against one another |
//! | [`world`] | servers, or one file |
//! | [`selling`] | the rule of the sale, from the attempt to its answer |
//! | [`stock`] | where units are: the trait, Redis, memory |
//! | [`journal`] | where sales are made durable: the trait, Kafka, SQLite, and how far behind the ledger is |
//! | [`sale`], [`clock`], [`metrics`] | the words that every room uses, the time, what is counted |

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
