//! What may go wrong in a run, and which rules may be broken on purpose.

use crate::chance::Chance;

/// How often each thing goes wrong, in a thousand calls; 0 for what this run is spared.
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
    /// Transactions that are refused half-way.
    pub ledger_refuses: u64,
    /// So many rows at once, always; more take too long.
    pub ledger_takes: Option<u64>,
    // How many of each happen in a run.
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
    /// How often the clocks of all machines jump, each by itself.
    pub clocks: u64,
    /// Units that a node sold while the journal was away, and died.
    pub backlog: u64,
    pub journal_refuses: u64,
    pub journal_forgets: u64,
    pub markers: u64,
    pub cuts: u64,
    pub topics_made_anew: u64,
}

impl Faults {
    /// A random part of all that can go wrong, each as often as chance has it.
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
            // Drawn last, so that seeds of before mean what they meant.
            failbacks: often(2),
            adds: often(3),
            journal_refuses: often(2),
            journal_forgets: often(20),
            markers: often(300),
            ..Self::default()
        };
        // Rarer, since what is checked of a run is less once nobody can notice what happened.
        if chance.in_thousand(150) {
            faults.rewinds = chance.between(0, 2);
            faults.flushes = chance.between(0, 1);
        }
        // From a copy, so that seeds of before mean what they meant.
        let mut chance = chance.clone();
        if chance.in_thousand(300) {
            faults.clocks = chance.between(1, 300);
        }
        // An outbox of thousands is slow also here.
        if chance.in_thousand(1) {
            faults.backlog = chance.between(1000, 3000);
        }
        // Rarer still: once a log has lost something, what is checked is that everybody hears of it.
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

/// A rule taken out, in what is simulated: the product's code stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// take.lua does not compare `run`.
    BelieveARestart,
    /// take.lua compares the process alone, not the history of its data.
    BelieveAProcess,
    /// Units are added also while the sale is shut.
    AddWhileShut,
    /// The reply does not say how far the book is.
    HideSerial,
    /// A book behind the ledger shuts nothing before a unit is sold twice.
    IgnoreWhatIsFurther,
    /// A log that ends before what is recorded has nothing more to be recorded.
    EndBelowNextIsCaughtUp,
    /// A reader begins where the log does, whatever stood before.
    SkipTheHead,
    /// Sales are taken though the last one was refused.
    TakeAfterARefusal,
    /// A conflict in the ledger shuts nothing.
    IgnoreConflicts,
    /// The consumer's transaction does not read the term.
    NoFence,
    /// What is taken is not kept in the outbox.
    SettleEarly,
    /// A unit whose append is unknown is put back.
    PutBack,
    /// The journal acknowledges what it does not have.
    AcknowledgeWithoutLanding,
    /// After a wipe a counter set by hand goes on under the old name.
    ReuseEpoch,
    /// The message does not say whose attempt it was.
    ForgetAttempt,
    /// Winners are not looked up once all is sold.
    SkipLookUpWhenSoldOut,
    /// The script writes, then finds that it cannot go on.
    WriteBeforeChecks,
    /// What the ledger refuses for now is left out.
    SkipRefused,
    /// The reader begins at the group's offset, not at the ledger's.
    SeekToGroup,
    /// A take whose answer was lost is sent again.
    SendAgain,
    /// A sale that was shut is counted at once.
    CountAtOnce,
    /// Success is told whenever the journal acknowledges, however late.
    TellLate,
    /// A sale is begun without a word to the ledger.
    SeedInStockAlone,
    /// A master goes on though its replica hears nothing.
    SellWithoutReplica,
}
