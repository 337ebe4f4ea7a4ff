//! The consumer: from the journal into the ledger, step by step.

pub mod lag;
pub mod metrics;
pub mod run;
pub mod skip;
pub mod step;
