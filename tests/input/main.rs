//! Bad input: whatever comes from outside may be refused, in words that name it; it never panics,
//! costs a unit, or stops what comes after it.
//!
//! Property tests of `bolero`, on stable Rust: each a few hundred or thousand inputs in the test
//! command. Longer: `BOLERO_RANDOM_ITERATIONS=1000000 cargo test --release --test input`; what
//! failed once more: `BOLERO_RANDOM_SEED=…`, which the failure names. With `cargo bolero` each
//! is a fuzz target: `cargo bolero test --rustc-bootstrap --sanitizer NONE NAME`.
//!
//! `front` and `http` ask the real server over a socket, `journal` gives messages to the real consumer over
//! a file, `values` reads what stands in Redis, in settings and on the command line. What Redis
//! itself, Kafka and MariaDB make of such values is in `tests/whole_path/input.rs`.

#![allow(unreachable_pub, reason = "one binary, many files")]
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod front;
mod http;
mod journal;
mod values;
