//! The rule of the sale: who gets a unit, and who is told.

pub mod desk;
pub mod gate;
pub mod ids;
pub mod mark;
pub mod outbox;
pub mod shop;
pub mod till;
