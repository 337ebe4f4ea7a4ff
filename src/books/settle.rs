//! Shared by reopening and restoring: a claim renewed during work, and the wait until a shut sale has nothing
//! in flight.

use std::time::Duration;

use consumer::ledger::{Account, Ledger, LedgerError};
use consumer::progress::behind;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::journal::progress::Trouble;
use crate::sale::times::{DELIVERY_DEADLINE, RENEW_EVERY};
use crate::sale::{Attempt, Batch, Item};
use crate::stock::{Claim, Claimed, Walk};
use crate::world::World;

/// How long the ledger may stand still while it is behind.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// Poll interval while the ledger catches up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Retries of a raise of the term that loses to a concurrent one.
const RAISES: u32 = 10;

/// Why work on a claimed sale ends early.
pub const TAKEN: &str = "somebody else took the sale over, or the stock was restarted once more";

/// The state of a sale with nothing in flight.
pub struct Settled {
    /// The ledger's account of it, under the fencing term of its sales from now on.
    pub account: Account,
    /// An order of the outbox that is not recorded.
    pub unrecorded: Option<Uuid>,
    /// Entries of the outbox that cannot be read.
    pub unreadable: Vec<String>,
}

/// Runs some work while renewing the claim.
///
/// # Errors
/// Those of the work; or the claim is another's.
pub async fn holding<T>(
    world: &World,
    item: &Item,
    id: Uuid,
    claimed: &Claimed,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    let renewing = async {
        loop {
            sleep(RENEW_EVERY).await;
            // An unavailable server proves nothing; the end of the work shows who owns the claim.
            if let Ok(None) = world.stock.claim(item, id, Claim::Renew(claimed.life.clone())).await {
                return;
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = renewing => Err(TAKEN.into()),
    }
}

/// Waits until nothing that a shut sale sold is in flight. Raises the fencing term, so that late arrivals are
/// rejected and counts from here on stay true.
///
/// # Errors
/// A server is away, or the claim is another's.
pub async fn settle(
    world: &World,
    item: &Item,
    epoch: Uuid,
    id: Uuid,
    claimed: &Claimed,
) -> Result<Settled, Trouble> {
    sleep(world.settled_after).await;
    announce(world, item).await?;
    caught_up(world).await?;
    raise(world, item, epoch, id, claimed).await?;
    // Whatever was relayed is posted by now, or will never be.
    let (mut unrecorded, mut unreadable) = (None, Vec::new());
    let mut outbox = Walk::through(&*world.stock, item).await?;
    while let Some(entries) = outbox.next().await? {
        unreadable.extend(entries.unreadable);
        for batch in &entries.batches {
            let there = recorded(&*world.ledger, batch).await?;
            let absent =
                batch.attempts.iter().zip(there).find(|(attempt, there)| *there != Some(attempt.order));
            unrecorded = unrecorded.or(absent.map(|(attempt, _)| attempt.order));
        }
    }
    let account = world.ledger.account(item.name(), epoch).await?;
    Ok(Settled { account, unrecorded, unreadable })
}

/// Appends what is in the outbox, is not recorded, and can be: a unit recorded under another order was sold
/// by data that had gone back.
async fn announce(world: &World, item: &Item) -> Result<(), Trouble> {
    let mut outbox = Walk::through(&*world.stock, item).await?;
    while let Some(entries) = outbox.next().await? {
        let mut receipts = Vec::new();
        for batch in &entries.batches {
            let there = recorded(&*world.ledger, batch).await?;
            let taken =
                |(attempt, there): (&Attempt, &Option<Uuid>)| there.is_some_and(|it| it != attempt.order);
            if there.contains(&None) && !batch.attempts.iter().zip(&there).any(taken) {
                receipts.push(world.journal.append(batch));
            }
        }
        let deadline = Instant::now() + DELIVERY_DEADLINE;
        for receipt in receipts {
            let _ = timeout_at(deadline, receipt.done()).await;
            if !receipt.complete() {
                let why = world.journal.refusal().map_or(String::new(), |why| format!(": {why}"));
                return Err(format!("the journal does not acknowledge the outbox{why}").into());
            }
        }
    }
    Ok(())
}

/// The orders under which the units of a batch are recorded.
///
/// # Errors
/// Those of the ledger.
pub async fn recorded(ledger: &dyn Ledger, batch: &Batch) -> Result<Vec<Option<Uuid>>, LedgerError> {
    let (before, units) = (batch.serial - 1, batch.attempts.len() as u64);
    let mut orders = vec![None; batch.attempts.len()];
    for (serial, order) in ledger.orders(batch.item.name(), batch.epoch, before, before + units).await? {
        if let Some(there) = orders.get_mut((serial - batch.serial) as usize) {
            *there = Some(order);
        }
    }
    Ok(orders)
}

/// Raises the sale's term by compare-and-set. Another may raise it concurrently; but while the claim is seen
/// to hold *after* the term was read, the sale has not been opened under that term.
async fn raise(world: &World, item: &Item, epoch: Uuid, id: Uuid, claimed: &Claimed) -> Result<(), Trouble> {
    for _ in 0..RAISES {
        let account = world.ledger.account(item.name(), epoch).await?;
        if world.stock.claim(item, id, Claim::Renew(claimed.life.clone())).await?.is_none() {
            return Err(TAKEN.into());
        }
        if world.ledger.raise_term(item.name(), epoch, account.term).await? {
            return Ok(());
        }
    }
    Err("the sale's term is raised again and again by others".into())
}

/// Waits until the ledger has all that is in the journal now, for as long as it progresses.
///
/// # Errors
/// A server is away, the journal contradicts the ledger, or the ledger stands still.
pub async fn caught_up(world: &World) -> Result<(), Trouble> {
    let topic = world.journal.topic();
    let before = world.ledger.checkpoints(topic).await?;
    let extents = world.journal.extents().await?;
    let (mut left, mut moved) = (u64::MAX, Instant::now());
    loop {
        let after = world.ledger.checkpoints(topic).await?;
        let now = behind(topic, &before, &extents, &after)?;
        if now == 0 {
            return Ok(());
        }
        if now < left {
            (left, moved) = (now, Instant::now());
        }
        if moved.elapsed() > CAUGHT_UP_WITHIN {
            return Err(format!(
                "the ledger is {now} messages behind and does not move: is the consumer running?"
            )
            .into());
        }
        sleep(LOOK_EVERY).await;
    }
}
