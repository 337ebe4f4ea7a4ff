//! Whole-path tests: the real programs, real servers, many buyers. Each test ends in the same check of the
//! books ([`world::Servers::balance`], [`world::Embedded::balance`], and under load [`books::Books`]).
//!
//! Needs the servers of `scripts/servers up`; `scripts/test` starts them. Fails without them.

#![allow(unreachable_pub, reason = "one binary, many files")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may stop where it stands")]

mod books;
mod breaks;
mod buyers;
mod database;
mod embedded;
mod faults;
mod goes_back;
mod in_place;
mod input;
mod limits;
mod listeners;
mod load;
mod made_up;
mod process;
mod proxy;
mod secrets;
mod servers;
mod settings;
mod tls;
mod topics;
mod world;
