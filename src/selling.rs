//! The sale's rule: which attempt gets a unit, and what each client is told.

pub mod gate;
pub mod ids;
pub mod mailbox;
pub mod mark;
pub mod outbox;
pub mod shop;
pub mod till;
