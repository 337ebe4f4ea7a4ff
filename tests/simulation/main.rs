//! The deterministic simulator: the real shop, till, outbox, reopening, consumer step and posting rule on
//! simulated servers with real faults, in simulated time. One seed is one run.
//!
//! `SECKILL_SIM_RUNS=n` runs more seeds, `SECKILL_SIM_SEED=n` one of them, with its trace, and
//! `SECKILL_SIM_FAILURES=n` continues until n have failed.
//!
//! Read in this order: `chance` (the seed), `faults` (faults and mutations), `redis` and `ledger` (the
//! servers' data), `servers` (their interfaces to the product's code), `run` (the actors, and how everything
//! heals), `check` (the invariants, from outside).
//!
//! Not simulated: concurrent ledger transactions (each is one step, as with strict locks), and the embedded
//! world.

#![allow(unreachable_pub, reason = "one binary, many files")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may stop where it stands")]

mod chance;
mod check;
mod faults;
mod ledger;
mod redis;
mod run;
mod servers;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use faults::Mutation;

/// Seeds by default: the test command runs ten times as many.
const RUNS: u64 = 1_000;

/// Seeds within which a mutation must be caught.
const MUTANTS: u64 = 10_000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Runs seeds on all cores until one fails, or collects up to `stop_at` failures. With `by`, ignores failures
/// for other reasons.
fn search(
    seeds: u64,
    mutation: Option<Mutation>,
    by: &[&str],
    stop_at: usize,
) -> (u64, Vec<(u64, Vec<String>)>) {
    let (told, rows) = (AtomicU64::new(0), AtomicU64::new(0));
    let next = AtomicU64::new(1);
    let failed = Mutex::new(Vec::new());
    let done = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds || failed.lock().expect("not poisoned").len() >= stop_at {
                        return;
                    }
                    let outcome = run::run(seed, mutation, false);
                    done.fetch_add(1, Ordering::Relaxed);
                    told.fetch_add(outcome.told as u64, Ordering::Relaxed);
                    rows.fetch_add(outcome.rows as u64, Ordering::Relaxed);
                    // A seed that fails anyway says nothing about the mutation.
                    let its_own = || mutation.is_none() || run::run(seed, None, false).failures.is_empty();
                    let named = outcome.failures.iter().any(|why| by.iter().any(|by| why.starts_with(by)));
                    if !outcome.failures.is_empty() && (named || by.is_empty()) && its_own() {
                        failed.lock().expect("not poisoned").push((seed, outcome.failures));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("not poisoned");
    failed.sort();
    if mutation.is_none() {
        eprintln!("{} answers, {} rows", told.into_inner(), rows.into_inner());
    }
    (done.into_inner(), failed)
}

fn replay(seed: u64) -> bool {
    let outcome = run::run(seed, None, true);
    if outcome.failures.is_empty() {
        return true;
    }
    for line in &outcome.trace {
        eprintln!("{line}");
    }
    for line in &outcome.failures {
        eprintln!("seed {seed}: {line}");
    }
    eprintln!("again: SECKILL_SIM_SEED={seed} cargo test --test simulation nothing_is_lost");
    false
}

/// The promise, over every seed.
#[test]
fn nothing_is_lost_and_nothing_is_doubled() {
    if let Some(seed) = setting("SECKILL_SIM_SEED") {
        assert!(replay(seed), "seed {seed} fails");
        return;
    }
    let began = Instant::now();
    let seeds = setting("SECKILL_SIM_RUNS").unwrap_or(RUNS);
    let stop_at = setting("SECKILL_SIM_FAILURES").unwrap_or(1) as usize;
    let (done, failed) = search(seeds, None, &[], stop_at);
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{done} runs in {seconds:.1} s, {:.0} a second", done as f64 / seconds);
    for (seed, why) in &failed {
        eprintln!("seed {seed}: {}", why.join("; "));
    }
    if let Some((seed, _)) = failed.first() {
        replay(*seed);
        panic!("{} of {done} runs fail, the first with seed {seed}", failed.len());
    }
}

/// Asserts that the check catches a mutation, for a reason that names what broke.
fn caught(mutation: Mutation, by: &[&str]) {
    let (done, failed) = search(MUTANTS, Some(mutation), by, 1);
    let Some((seed, why)) = failed.first() else { panic!("{mutation:?}: not seen in {done} runs") };
    eprintln!("{mutation:?}: after {done} runs, seed {seed}: {}", why.join("; "));
}

macro_rules! mutations {
    ($($name:ident: $mutation:ident, $by:expr;)*) => {
        /// Each rule disabled alone, and what breaks without it.
        ///
        /// Not here: the grace of the outbox, without which messages are sent twice and nothing breaks; and
        /// comparing serials after the answer, a rule that was not adopted.
        mod mutations {
            use super::*;
            $(#[test]
            #[ignore = "takes long"]
            fn $name() {
                caught(Mutation::$mutation, &$by);
            })*
        }
    };
}

mutations! {
    a_restarted_stock_is_believed: BelieveARestart, ["an old sale", "conflict", "told", "missing", "sold more", "one key", "the book of", "a winner told no"];
    only_another_process_is_another_life: BelieveAProcess, ["an old sale", "conflict", "told", "missing", "sold more", "one key", "the book of", "a winner told no"];
    a_node_forgets_how_far_the_books_were: HideSerial, ["told by a node that knew better"];
    a_book_behind_the_ledger_shuts_nothing: IgnoreWhatIsFurther, ["the book of"];
    a_log_that_ends_early_is_all_recorded: EndBelowNextIsCaughtUp, ["a told order is denied"];
    a_log_is_read_from_wherever_it_begins: SkipTheHead, ["a log that lost its head"];
    sales_are_taken_after_a_refusal: TakeAfterARefusal, ["taken though the last was refused"];
    a_conflict_shuts_nothing: IgnoreConflicts, ["told and not recorded"];
    units_are_added_while_the_sale_is_shut: AddWhileShut, ["units added are gone"];
    no_fence_in_the_ledger: NoFence, ["conflict", "void and recorded", "told and not", "missing", "one key", "the book of", "sold more"];
    settled_before_the_acknowledgement: SettleEarly, ["missing"];
    a_unit_is_put_back: PutBack, ["sold more"];
    success_on_the_strength_of_the_stock: AcknowledgeWithoutLanding, ["told and not recorded"];
    an_epoch_is_used_again: ReuseEpoch, ["conflict", "told", "an old sale"];
    the_message_does_not_name_the_attempt: ForgetAttempt, ["told another's order"];
    winners_are_not_looked_up_when_sold_out: SkipLookUpWhenSoldOut, ["a winner told no"];
    written_before_all_keys_are_checked: WriteBeforeChecks, ["told"];
    what_the_ledger_refuses_is_left_out: SkipRefused, ["missing", "told and not", "an order", "no rest"];
    the_consumer_seeks_to_the_group: SeekToGroup, ["a consumer stops", "missing", "told and not", "no rest", "an order"];
    a_shut_sale_is_counted_at_once: CountAtOnce, ["told and not recorded"];
    success_is_told_late: TellLate, ["told and not recorded"];
    a_sale_is_begun_in_the_stock_alone: SeedInStockAlone, ["an old sale lives again"];
    an_old_master_goes_on_without_its_replica: SellWithoutReplica, ["told and not recorded"];
    a_silent_take_is_sent_again: SendAgain, ["conflict", "missing", "a winner told no", "told"];
}
