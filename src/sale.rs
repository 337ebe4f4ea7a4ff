//! The words that every room uses.

pub mod item;
