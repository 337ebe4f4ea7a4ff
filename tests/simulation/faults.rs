//! Fault injection: what may go wrong in a run, and the mutations that disable a rule.

use crate::chance::Chance;

/// How often each fault occurs, per thousand calls; 0 if this run excludes it.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub stock_refuses: u64,
    pub stock_is_slow: u64,
    pub stock_loses_answers: u64,
    pub stock_is_late: u64,
    pub journal_is_slow: u64,
    pub journal_lands_unknown: u64,
    pub journal_drops: u64,
    pub journal_lands_late: u64,
    pub journal_doubles: u64,
    pub journal_ends_away: u64,
    pub journal_is_down: u64,
    pub reader_away: u64,
    pub rebalance: u64,
    pub ledger_away: u64,
    pub ledger_answer_lost: u64,
    pub ledger_moved: u64,
    /// Transactions that are refused halfway.
    pub ledger_refuses: u64,
    /// A constant row limit; larger statements time out.
    pub ledger_takes: Option<u64>,
    // How many of each occur in a run.
    pub crashes: u64,
    pub consumer_crashes: u64,
    pub second_consumer: bool,
    pub group_resets: u64,
    pub restarts: u64,
    pub rollbacks: u64,
    pub wipes: u64,
    pub failovers: u64,
    pub failbacks: u64,
    pub rewinds: u64,
    pub flushes: u64,
    pub adds: u64,
    pub by_hand: u64,
    pub new_sales: u64,
    pub restores: u64,
    /// How often the clocks of all machines jump, independently.
    pub clocks: u64,
    /// Units sold by a node while the journal was away, before it died.
    pub backlog: u64,
    pub journal_refuses: u64,
    pub journal_forgets: u64,
    pub markers: u64,
    pub cuts: u64,
    pub topics_made_anew: u64,
}

impl Faults {
    /// A random subset of all faults, with random rates.
    pub fn draw(chance: &mut Chance) -> Self {
        let mut often = |most: u64| if chance.in_thousand(400) { chance.between(1, most) } else { 0 };
        let mut faults = Self {
            stock_refuses: often(100),
            stock_is_slow: often(300),
            stock_loses_answers: often(60),
            stock_is_late: often(60),
            journal_is_slow: often(300),
            journal_lands_unknown: often(200),
            journal_drops: often(300),
            journal_lands_late: often(300),
            journal_doubles: often(200),
            journal_ends_away: often(200),
            journal_is_down: often(2),
            reader_away: often(100),
            rebalance: often(2),
            ledger_away: often(200),
            ledger_answer_lost: often(200),
            ledger_moved: often(100),
            crashes: often(4),
            consumer_crashes: often(4),
            second_consumer: often(2) > 0,
            group_resets: often(2),
            restarts: often(2),
            rollbacks: often(2),
            wipes: often(1),
            failovers: often(1),
            by_hand: often(5),
            new_sales: often(2),
            restores: often(2),
            // Drawn last, so that older seeds keep their meaning.
            failbacks: often(2),
            adds: often(3),
            journal_refuses: often(2),
            journal_forgets: often(20),
            markers: often(300),
            ..Self::default()
        };
        // Rarer, since less can be checked once a loss goes unnoticed.
        if chance.in_thousand(150) {
            faults.rewinds = chance.between(0, 2);
            faults.flushes = chance.between(0, 1);
        }
        // From a copy, so that older seeds keep their meaning.
        let mut chance = chance.clone();
        if chance.in_thousand(300) {
            faults.clocks = chance.between(1, 300);
        }
        // An outbox of thousands is slow here too.
        if chance.in_thousand(1) {
            faults.backlog = chance.between(1000, 3000);
        }
        // Rarer still: after a log has lost something, the check is that every part reports it.
        if chance.in_thousand(100) {
            faults.cuts = chance.between(0, 2);
            faults.topics_made_anew = u64::from(faults.cuts == 0);
        }
        if chance.in_thousand(300) {
            faults.ledger_refuses = chance.between(1, 100);
        }
        faults.ledger_takes = chance.in_thousand(300).then(|| chance.between(1, 20));
        faults
    }
}

/// A disabled rule, in the simulation only: the product's code stays unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// take.lua does not compare `run`.
    BelieveARestart,
    /// take.lua compares only the process, not the history of its data.
    BelieveAProcess,
    /// Units are also added while the sale is shut.
    AddWhileShut,
    /// The reply omits the progress of the book.
    HideSerial,
    /// A book behind the ledger keeps selling until a unit is sold twice.
    IgnoreWhatIsFurther,
    /// A log that ends before the checkpoint counts as caught up.
    EndBelowNextIsCaughtUp,
    /// A reader starts where the log does, whatever was there before.
    SkipTheHead,
    /// Takes continue although the last sale was refused.
    TakeAfterARefusal,
    /// A conflict in the ledger shuts nothing.
    IgnoreConflicts,
    /// The consumer's transaction does not read the term.
    NoFence,
    /// Taken units are not kept in the outbox.
    SettleEarly,
    /// A unit with an unknown append result is put back.
    PutBack,
    /// The journal acknowledges what it does not store.
    AcknowledgeWithoutLanding,
    /// After a wipe a counter set by hand reuses the old epoch.
    ReuseEpoch,
    /// The message omits the attempt.
    ForgetAttempt,
    /// Winners are not looked up once the sale is sold out.
    SkipLookUpWhenSoldOut,
    /// The script writes before its checks fail.
    WriteBeforeChecks,
    /// Temporarily refused batches are skipped.
    SkipRefused,
    /// The reader starts at the group's offset, not at the ledger's.
    SeekToGroup,
    /// A take whose answer was lost is retried.
    SendAgain,
    /// A shut sale is counted at once.
    CountAtOnce,
    /// Success is reported whenever the journal acknowledges, however late.
    TellLate,
    /// A sale begins without a note in the ledger.
    SeedInStockAlone,
    /// A master continues although its replica is cut off.
    SellWithoutReplica,
}
