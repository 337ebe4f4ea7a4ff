//! Why a restarted Redis is not believed, and how a sale is opened again.
//!
//! A Redis that was restarted may have lost its tail: what it sold it would sell once more. So it
//! sells nothing until ledger and journal were seen to lack nothing of what its book says. Any
//! node does this by itself; what it finds incomplete waits for `seckill restore`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consumer::ledger::Account;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::audit::behind;
use crate::item::Item;
use crate::metrics::Metrics;
use crate::shop::Shop;
use crate::stock::{Anew, Book, Opening, Outbox, Shutting};
use crate::till::{DELIVERY_DEADLINE, TELL_WITHIN};
use crate::world::World;

/// After this nobody can still be told success on the strength of what the stock said before it
/// was shut. With a replica, what the old master vouched for is older by at most
/// `min-replicas-max-lag`; give it that time before a failover.
pub const SETTLED_AFTER: Duration = TELL_WITHIN.saturating_add(Duration::from_millis(200));

/// How long the journal may take for all of an outbox, and the ledger to catch up.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// How often the ledger is asked whether it has caught up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often shut sales are looked for.
const PASS_EVERY: Duration = Duration::from_millis(500);

/// Whoever shut a sale and has not opened it by then has died, or found it incomplete: others
/// may look, too.
const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

/// Of its own trials a node remembers so many: more than it makes while a server is away.
const TRIALS_REMEMBERED: usize = 64;

/// What is incomplete is looked at again after this: perhaps somebody mended it.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What was found of a sale that was shut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is open.
    Open,
    /// Somebody else shut it, and is at it.
    Theirs(String),
    /// The books lack something: why.
    Incomplete(String),
}

/// Reopens what a restart of the stock has shut.
pub struct Reopener {
    shop: Arc<Shop>,
    world: World,
    metrics: Metrics,
    shut: Mutex<BTreeMap<Item, Seen>>,
}

/// What a node remembers of a sale while it is shut.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// The ids under which this node tried. Every trial has a new one, so that an opening of an
    /// earlier trial that arrives late opens nothing.
    ours: Vec<Uuid>,
    /// The one of them that stands, so that the next trial may go on at once.
    stands: Option<Uuid>,
    /// Who else shut it, and since when that is known.
    theirs: Option<(String, Instant)>,
    /// Not to be looked at before.
    rests_until: Option<Instant>,
    /// What was said last; once is enough.
    said: String,
}

impl Reopener {
    /// Looks after the items of a shop.
    #[must_use]
    pub fn new(shop: &Arc<Shop>, world: &World, metrics: &Metrics) -> Arc<Self> {
        let (shop, world, metrics) = (Arc::clone(shop), world.clone(), metrics.clone());
        Arc::new(Self { shop, world, metrics, shut: Mutex::default() })
    }

    /// Passes for ever.
    pub async fn run(self: Arc<Self>) {
        let mut passes = tokio::time::interval(PASS_EVERY);
        passes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            passes.tick().await;
            self.pass().await;
        }
    }

    /// Tries once to open everything that is shut, all at a time: each waits for the same things.
    pub async fn pass(self: &Arc<Self>) {
        let mut trials = tokio::task::JoinSet::new();
        let tills = self.shop.tills();
        self.shut().retain(|item, _| tills.iter().any(|till| till.item() == item && till.is_shut()));
        for till in tills {
            self.metrics.shut(till.item().name(), till.is_shut());
            if till.is_shut() {
                let (this, item) = (Arc::clone(self), till.item().clone());
                trials.spawn(async move { this.attempt(&item).await });
            }
        }
        trials.join_all().await;
    }

    async fn attempt(&self, item: &Item) {
        let mut seen = self.shut().get(item).cloned().unwrap_or_default();
        if seen.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let dead = seen.theirs.as_ref().filter(|(_, since)| since.elapsed() >= TAKE_OVER_AFTER);
        let from = dead.and_then(|(by, _)| by.parse().ok()).or(seen.stands).or(seen.ours.last().copied());
        let id = Uuid::now_v7();
        seen.ours.push(id);
        let excess = seen.ours.len().saturating_sub(TRIALS_REMEMBERED);
        seen.ours.drain(..excess);
        let trial = reopen(&self.world, item, id, from).await;
        seen.stands = match &trial {
            Ok(Verdict::Theirs(by)) => by.parse().ok().filter(|by| seen.ours.contains(by)),
            _ => None,
        };
        let said = match trial {
            Ok(Verdict::Open) => {
                self.shut().remove(item);
                return log::info!("{item}: the books are complete, the sale goes on");
            }
            Ok(Verdict::Theirs(by)) => {
                if seen.theirs.as_ref().is_none_or(|(known, _)| *known != by) {
                    seen.theirs = Some((by, Instant::now()));
                }
                "somebody else is looking at its books".to_owned()
            }
            Ok(Verdict::Incomplete(why)) => {
                seen.rests_until = Some(Instant::now() + LOOK_AGAIN_AFTER);
                format!("{why}; run `seckill restore --item {item}`")
            }
            Err(why) => why,
        };
        if said != seen.said {
            log::warn!("{item}: the sale is shut: {said}");
            seen.said = said;
        }
        self.shut().insert(item.clone(), seen);
    }

    fn shut(&self) -> std::sync::MutexGuard<'_, BTreeMap<Item, Seen>> {
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shuts a sale that is not believed, and opens it when nothing of it is missing.
///
/// # Errors
/// A server that is needed for it is away, or somebody else came in between; the sale stays shut.
pub async fn reopen(world: &World, item: &Item, id: Uuid, from: Option<Uuid>) -> Result<Verdict, String> {
    let books = world.stock.books(item).await.map_err(|error| error.to_string())?;
    let Some(book) = books.first().filter(|book| book.shut) else { return Ok(Verdict::Open) };
    if book.epoch.is_nil() {
        return Ok(Verdict::Incomplete("it was emptied, or is being restored".into()));
    }
    // Read before the sale is shut under this id: whoever opens it in between raises the term.
    let term = term_of(world, item, book.epoch).await?;
    let shut = world.stock.shut(item, id, Shutting::Reopen(from)).await.map_err(|error| error.to_string())?;
    let Some(shut) = shut else { return Ok(Verdict::Open) };
    if shut.by != id.to_string() {
        return Ok(Verdict::Theirs(shut.by));
    }
    if shut.epoch != Some(book.epoch) {
        return Err("another sale began meanwhile".into());
    }
    let (account, outbox) = settle(world, item, book.epoch, term).await?;
    for order in outbox.batches.iter().flat_map(|batch| &batch.attempts).map(|attempt| attempt.order) {
        // A stock put back to before an earlier loss may count right with another sale in it.
        if world.ledger.find(order).await.map_err(|error| error.to_string())?.is_none() {
            return Ok(Verdict::Incomplete(format!("order {order} of its outbox is not recorded")));
        }
    }
    if account.outdated {
        return Ok(Verdict::Incomplete("the ledger knows a newer sale".into()));
    }
    if (account.accounted, account.highest.max(shut.serial)) != (shut.serial, shut.serial) {
        return Ok(Verdict::Incomplete(format!(
            "the stock says {} sold, the ledger has {} and serials up to {}",
            shut.serial, account.accounted, account.highest
        )));
    }
    let opening = Opening { id, run: shut.run, term: account.term, anew: None };
    match world.stock.open(item, &opening).await.map_err(|error| error.to_string())? {
        true => Ok(Verdict::Open),
        false => Err("somebody else shut it meanwhile, or the stock was restarted once more".into()),
    }
}

async fn term_of(world: &World, item: &Item, epoch: Uuid) -> Result<u64, String> {
    let account = world.ledger.account(item.name(), epoch).await.map_err(|error| error.to_string())?;
    Ok(account.term)
}

/// Waits until nothing of what a shut sale sold is under way any more, and counts it for good:
/// the term it is counted under follows `term`, or somebody else opens the sale.
async fn settle(world: &World, item: &Item, epoch: Uuid, term: u64) -> Result<(Account, Outbox), String> {
    sleep(world.settled_after).await;
    let outbox = world.stock.outbox(item).await.map_err(|error| error.to_string())?;
    readable(&outbox)?;
    for batch in &outbox.batches {
        let receipt = world.journal.append(batch);
        let _ = timeout(DELIVERY_DEADLINE, receipt.done()).await;
        if !receipt.complete() {
            return Err("the journal does not acknowledge the outbox".into());
        }
    }
    caught_up(world).await?;
    let raised =
        world.ledger.raise_term(item.name(), epoch, term).await.map_err(|error| error.to_string())?;
    raised.map(|account| (account, outbox)).ok_or_else(|| "somebody else is opening the sale".to_owned())
}

fn readable(outbox: &Outbox) -> Result<(), String> {
    match outbox.unreadable.first() {
        Some(entry) => {
            Err(format!("an outbox entry cannot be read; mend it, or take it out with HDEL: {entry}"))
        }
        None => Ok(()),
    }
}

/// Waits until the ledger has all that is in the journal now.
async fn caught_up(world: &World) -> Result<(), String> {
    let ends = world.journal.ends().await?;
    let looking = async {
        loop {
            let posted = world.ledger.checkpoints(world.journal.topic()).await;
            if posted.map_err(|error| error.to_string()).map(|posted| behind(&ends, &posted))? == 0 {
                return Ok::<(), String>(());
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(CAUGHT_UP_WITHIN, looking).await.map_err(|_| "the ledger has not caught up".to_owned())?
}

/// What `restore` would do to an item, or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restoration {
    /// The sale is open and its books are believed.
    Unneeded,
    /// Neither stock nor ledger know of a sale.
    Unknown,
    /// Refused: why.
    Refused(String),
    /// The book that is written.
    Book {
        /// The sale.
        epoch: Uuid,
        /// The last serial.
        serial: u64,
        /// Serials written off.
        void: u64,
        /// Units left.
        left: u64,
    },
}

/// Makes the stock's books anew from ledger and journal. Without `write` it only says what it
/// would do, as far as can be said while the sale is not shut.
///
/// A sale that is open and believed is never touched.
///
/// # Errors
/// A server is away, or somebody else came in between. Once more is safe.
pub async fn restore(
    world: &World,
    item: &Item,
    left: Option<u64>,
    write: bool,
) -> Result<Restoration, String> {
    // What the journal holds and the ledger lacks may be the very sale that was lost.
    caught_up(world).await?;
    let chosen = match choose(world, item).await? {
        Ok(chosen) => chosen,
        Err(otherwise) => return Ok(otherwise),
    };
    if !write {
        readable(&world.stock.outbox(item).await.map_err(|error| error.to_string())?)?;
        let account =
            world.ledger.account(item.name(), chosen.epoch).await.map_err(|error| error.to_string())?;
        return Ok(anew(world, item, &chosen, &account, left).await?.0);
    }
    let term = term_of(world, item, chosen.epoch).await?;
    let id = Uuid::now_v7();
    let shut = world.stock.shut(item, id, Shutting::Restore).await.map_err(|error| error.to_string())?;
    let Some(shut) = shut else { return Ok(Restoration::Unneeded) };
    let (account, _) = settle(world, item, chosen.epoch, term).await?;
    // From here on nothing changes any more, so what was chosen before must still be right.
    match choose(world, item).await? {
        Ok(now) if now.epoch == chosen.epoch && !account.outdated => {
            let (restoration, missing) = anew(world, item, &now, &account, left).await?;
            let Restoration::Book { epoch, serial, left, .. } = restoration else { return Ok(restoration) };
            world.ledger.void(item.name(), epoch, &missing).await.map_err(|error| error.to_string())?;
            let winners =
                world.ledger.winners(item.name(), epoch).await.map_err(|error| error.to_string())?;
            let anew = Some(Anew { epoch, serial, left, winners });
            let opening = Opening { id, run: shut.run, term: account.term, anew };
            match world.stock.open(item, &opening).await.map_err(|error| error.to_string())? {
                true => Ok(restoration),
                false => {
                    Err("somebody else shut the sale meanwhile, or Redis was restarted once more".into())
                }
            }
        }
        Ok(_) => Err("another sale came to light meanwhile; run it again".into()),
        Err(otherwise) => Ok(otherwise),
    }
}

/// The sale that is to be restored, with its book if there is one.
struct Chosen {
    epoch: Uuid,
    book: Option<Book>,
}

async fn choose(world: &World, item: &Item) -> Result<Result<Chosen, Restoration>, String> {
    let books = world.stock.books(item).await.map_err(|error| error.to_string())?;
    let book = books
        .into_iter()
        .next()
        .filter(|book| !book.epoch.is_nil() && (book.shut || book.on_sale || book.serial > 0));
    let known = world.ledger.sales().await.map_err(|error| error.to_string())?;
    let recorded = known.iter().filter(|sale| sale.item == item.name()).map(|sale| sale.epoch).max();
    Ok(match (book, recorded) {
        // Also when its counter was taken away: nothing was lost.
        (Some(book), _) if !book.shut => Err(Restoration::Unneeded),
        (Some(book), Some(epoch)) if book.epoch > epoch && book.serial > 0 => {
            Err(Restoration::Refused(format!("a newer sale, {}, has sold {}", book.epoch, book.serial)))
        }
        (book, Some(epoch)) => Ok(Chosen { epoch, book: book.filter(|book| book.epoch == epoch) }),
        (Some(book), None) => Ok(Chosen { epoch: book.epoch, book: Some(book) }),
        (None, None) => Err(Restoration::Unknown),
    })
}

/// The book as it is to be, and the serials that are to be written off.
async fn anew(
    world: &World,
    item: &Item,
    chosen: &Chosen,
    account: &Account,
    left: Option<u64>,
) -> Result<(Restoration, Vec<u64>), String> {
    let epoch = chosen.epoch;
    // Taken and lost before anybody heard of them: no message, no outbox entry.
    // And a serial that was written off once is not sold again.
    let serials = world.ledger.serials(item.name(), epoch).await.map_err(|error| error.to_string())?;
    let booked = chosen.book.as_ref().map_or(0, |book| book.serial);
    let serial = account.highest.max(booked).max(serials.last().copied().unwrap_or(0));
    let missing: Vec<u64> = (1..=serial).filter(|serial| serials.binary_search(serial).is_err()).collect();
    // A book that is not behind knows what operators did since the last sale; the ledger cannot.
    let left = left.unwrap_or(match &chosen.book {
        Some(book) if book.on_sale && book.serial >= account.highest => book.left,
        _ => account.remaining,
    });
    Ok((Restoration::Book { epoch, serial, void: missing.len() as u64, left }, missing))
}
