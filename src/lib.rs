//! Selling: what happens between the buyer and the journal.
//!
//! ```text
//!  browser ─POST /seckill/seckill─▶ http ─▶ shop ──take───▶ stock     Redis: one script, atomic
//!                                             │               (counter − n, book, outbox + n)
//!                                             └─append─▶ journal      Kafka: acks=all, idempotent
//!                                                            │
//!                          consumer (own process) ◀──reads───┘
//!                              └──post──▶ ledger              MySQL: rows and offsets together
//! ```
//!
//! Read in this order: [`http`] (what a client can ask), [`shop`] (the rule of the sale),
//! [`gate`] (what is answered without asking anyone), [`till`] (many attempts become one call),
//! [`order`] (an order's id), [`desk`] (many answers wake a thread once), [`stock`] (where units are), [`journal`] (where sales are made durable), [`outbox`] (what was
//! taken and not acknowledged), [`reopen`] (why a restarted Redis is not believed). The other half of the path is the package `consumer`.
//!
//! Around them: [`world`] (servers, or one file), [`serve`] (the process), [`audit`] (the check
//! of the books) and [`operate`] (the operators' commands).

pub mod archive;
pub mod audit;
pub mod clock;
pub mod desk;
pub mod gaps;
pub mod gate;
pub mod http;
pub mod item;
pub mod journal;
pub mod mark;
pub mod metrics;
pub mod operate;
pub mod order;
pub mod outbox;
pub mod reopen;
pub mod restore;
pub mod serve;
pub mod settle;
pub mod shop;
pub mod stock;
pub mod till;
pub mod world;
