//! `restore`: rebuilds the stock's books from ledger and journal after a loss.

use std::time::Duration;

use consumer::ledger::{Account, Restored, SaleRecord};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::books::audit::audit;
use crate::books::gaps::Gaps;
use crate::books::settle::{Settled, caught_up, holding, settle};
use crate::journal::progress::Trouble;
use crate::sale::Item;
use crate::sale::times::TAKE_OVER_AFTER;
use crate::stock::{Anew, Book, Claim, Claimed, Opening, Owner, Walk};
use crate::world::{Kind, World};

/// Sales scanned at a time for winners, which go to the stock: some megabytes.
const SALES_AT_ONCE: u32 = 10_000;

/// Progress is logged every so many winners.
const SAID_EVERY: usize = 100_000;

/// Poll interval while waiting for a claim.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// An operator's options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// Units left, whatever the books say.
    pub left: Option<u64>,
    /// The sale to continue, whatever others are known.
    pub epoch: Option<Uuid>,
}

/// What `restore` would do to an item, or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restoration {
    /// The sale is open and its books are trusted.
    Unneeded,
    /// Its books are trusted; an operator took it off sale.
    OffSale,
    /// Neither stock nor ledger knows a sale.
    Unknown,
    /// A stock that loses nothing: this many sales in conflict are accepted.
    Accepted(u64),
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
        /// Unreadable outbox entries, which are dropped with it.
        unreadable: Vec<String>,
    },
}

/// Rebuilds the stock's books from ledger and journal. Without `write`, a dry run, as exact as is possible
/// while the sale is not shut.
///
/// Never touches a sale that is open and trusted, and that the ledger does not contradict.
///
/// # Errors
/// A server is away, or a concurrent change interfered. Safe to retry.
pub async fn restore(world: &World, item: &Item, wish: Wish, write: bool) -> Result<Restoration, Trouble> {
    // What the journal has and the ledger lacks may be the very sale that was lost.
    caught_up(world).await?;
    let id = Uuid::now_v7();
    let chosen = match choose(world, item, wish).await? {
        Ok(chosen) => chosen,
        Err(otherwise) => {
            let shut = world.stock.books(item).await?.first().is_some_and(|book| book.shut);
            if write
                && shut
                && otherwise == Restoration::Unknown
                && claim(world, item, id, false).await?.is_some()
            {
                // A process claimed a nonexistent sale, and died.
                world.stock.claim(item, id, Claim::Drop).await?;
            }
            return Ok(otherwise);
        }
    };
    if !write {
        let account = account(world, item, chosen.epoch).await?;
        if let Kind::Embedded(..) = world.kind {
            return Ok(Restoration::Accepted(account.disputed));
        }
        let mut unreadable = Vec::new();
        let mut outbox = Walk::through(&*world.stock, item).await?;
        while let Some(entries) = outbox.next().await? {
            unreadable.extend(entries.unreadable);
        }
        let plan = Plan::of(&chosen, &account, wish);
        let void = Gaps::up_to(&*world.ledger, item.name(), plan.epoch, plan.serial).count().await?.missing;
        return Ok(plan.restoration(void, unreadable));
    }
    let claimed = match claim(world, item, id, chosen.overrule).await? {
        Some(claimed) => claimed,
        // A stock without claims loses nothing; conflicts there are for an operator to accept.
        None if chosen.overrule => {
            let account = account(world, item, chosen.epoch).await?;
            let plan = Plan::of(&chosen, &account, wish);
            world.ledger.restored(item.name(), plan.epoch, plan.restored(account.term)).await?;
            return Ok(Restoration::Accepted(account.disputed));
        }
        None => return Ok(Restoration::Unneeded),
    };
    let done = holding(world, item, id, &claimed, write_anew(world, item, &chosen, wish, id, &claimed)).await;
    if !matches!(done, Ok(Restoration::Book { .. })) {
        let _ = world.stock.claim(item, id, Claim::Release).await;
    }
    done
}

/// Waits in line for the claim.
async fn claim(world: &World, item: &Item, id: Uuid, overrule: bool) -> Result<Option<Claimed>, Trouble> {
    let mut waits: Option<(Owner, Instant)> = None;
    loop {
        let dead = waits.as_ref().filter(|(_, since)| since.elapsed() >= TAKE_OVER_AFTER);
        let from = dead.map(|(owner, _)| owner.clone());
        let claim = if overrule { Claim::Overrule(from) } else { Claim::Restore(from) };
        let claimed = world.stock.claim(item, id, claim).await?;
        let Some(claimed) = claimed else { return Ok(None) };
        if claimed.by.id == id.to_string() {
            return Ok(Some(claimed));
        }
        if waits.is_none() {
            log::info!("{item}: a node is checking the books; this goes on when it has done so");
        }
        if waits.as_ref().is_none_or(|(owner, _)| *owner != claimed.by) {
            waits = Some((claimed.by, Instant::now()));
        }
        sleep(ASK_EVERY).await;
    }
}

async fn write_anew(
    world: &World,
    item: &Item,
    chosen: &Chosen,
    wish: Wish,
    id: Uuid,
    claimed: &Claimed,
) -> Result<Restoration, Trouble> {
    log::info!("{item}: the sale is shut; waiting until nothing of it is under way");
    let Settled { account, unreadable, .. } = settle(world, item, chosen.epoch, id, claimed).await?;
    // Nothing changes from here on, so the earlier choice must still hold.
    let chosen = match choose(world, item, wish).await? {
        Ok(now) if now.epoch == chosen.epoch => now,
        Ok(_) => return Err("another sale came to light meanwhile; run it again".into()),
        Err(otherwise) => return Ok(otherwise),
    };
    if let (None, Some(newer)) = (wish.epoch, account.newer) {
        return Ok(Restoration::Refused(format!(
            "a newer sale, {newer}, is known; say with --epoch which of the two is to go on, {newer} or {}",
            chosen.epoch
        )));
    }
    let plan = Plan::of(&chosen, &account, wish);
    let (name, epoch) = (item.name(), plan.epoch);
    // Taken and lost before being reported: no message, no outbox entry.
    let mut gaps = Gaps::up_to(&*world.ledger, name, epoch, plan.serial);
    while let Some(runs) = gaps.next().await? {
        world.ledger.void(name, epoch, &runs).await?;
    }
    let void = gaps.counted().missing;
    let (mut after, mut handed) = (0, 0);
    loop {
        let page = world.ledger.page(name, epoch, after, SALES_AT_ONCE).await?;
        if page.rows == 0 {
            break;
        }
        let winners = world.ledger.winners(name, epoch, after, page.last).await?;
        after = page.last;
        if !winners.is_empty() {
            world.stock.prepare(item, id, &winners).await?;
            if (handed + winners.len()) / SAID_EVERY > handed / SAID_EVERY {
                log::info!("{item}: {} winners are known again", handed + winners.len());
            }
            handed += winners.len();
        }
    }
    for entry in &unreadable {
        log::warn!("{item}: this outbox entry cannot be read and is taken out: {entry}");
    }
    world.ledger.restored(name, epoch, plan.restored(account.term)).await?;
    let anew = Some(Anew { epoch, serial: plan.serial, left: plan.left });
    let opening = Opening { id, life: claimed.life.clone(), term: account.term, anew };
    match world.stock.open(item, &opening).await? {
        true => Ok(plan.restoration(void, unreadable)),
        false => Err("the stock was restarted once more; run it again".into()),
    }
}

async fn account(world: &World, item: &Item, epoch: Uuid) -> Result<Account, Trouble> {
    Ok(world.ledger.account(item.name(), epoch).await?)
}

/// The sale to restore, with its book if there is one.
struct Chosen {
    epoch: Uuid,
    book: Option<Book>,
    /// The stock trusts it; the ledger contradicts it.
    overrule: bool,
}

async fn choose(world: &World, item: &Item, wish: Wish) -> Result<Result<Chosen, Restoration>, Trouble> {
    let book = running(world, item).await?;
    let known: Vec<SaleRecord> = world.ledger.sales(Some(item.name())).await?;
    let newest = known.iter().map(|sale| sale.epoch).max();
    if let Some(epoch) = wish.epoch {
        let here = book.filter(|book| book.epoch == epoch);
        if here.is_none() && !known.iter().any(|sale| sale.epoch == epoch) {
            let names: Vec<String> = known.iter().map(|sale| sale.epoch.to_string()).collect();
            return Ok(Err(Restoration::Refused(format!(
                "no sale {epoch} of {item} is known; those known are {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ))));
        }
        let running = here.as_ref().is_some_and(|book| !book.shut);
        if running && !contradicted(world, item, here.as_ref()).await? {
            return Ok(Err(Restoration::Unneeded));
        }
        return Ok(Ok(Chosen { epoch, book: here, overrule: true }));
    }
    Ok(match (book, newest) {
        (Some(book), _) if !book.shut => {
            if contradicted(world, item, Some(&book)).await? {
                let epoch = newest.map_or(book.epoch, |newest| newest.max(book.epoch));
                Ok(Chosen { epoch, book: Some(book).filter(|book| book.epoch == epoch), overrule: true })
            } else if book.on_sale {
                Err(Restoration::Unneeded)
            } else {
                Err(Restoration::OffSale)
            }
        }
        (Some(book), Some(epoch)) if book.epoch > epoch && book.serial > 0 => {
            Err(Restoration::Refused(format!(
                "a newer sale, {}, has sold {}; say with --epoch which of the two is to go on, {} or {epoch}",
                book.epoch, book.serial, book.epoch
            )))
        }
        (book, Some(epoch)) => {
            Ok(Chosen { epoch, book: book.filter(|book| book.epoch == epoch), overrule: false })
        }
        (Some(book), None) => Ok(Chosen { epoch: book.epoch, book: Some(book), overrule: false }),
        (None, None) => Err(Restoration::Unknown),
    })
}

async fn running(world: &World, item: &Item) -> Result<Option<Book>, Trouble> {
    let books = world.stock.books(item).await?;
    Ok(books.into_iter().next().filter(|book| !book.epoch.is_nil()))
}

/// Whether the ledger contradicts a stock that reports no doubt; or an outbox entry is unreadable; or units
/// are missing for good, of a log that lost them and was skipped. The ledger is read first: it is never ahead
/// of a stock that lost nothing.
async fn contradicted(world: &World, item: &Item, book: Option<&Book>) -> Result<bool, Trouble> {
    let Some(book) = book else { return Ok(false) };
    let account = account(world, item, book.epoch).await?;
    let now = running(world, item).await?.filter(|now| now.epoch == book.epoch);
    let Some(now) = now else { return Ok(false) };
    let mut unreadable = false;
    let mut outbox = Walk::through(&*world.stock, item).await?;
    while let Some(entries) = outbox.next().await? {
        unreadable |= !entries.unreadable.is_empty();
    }
    let known = account.highest.max(account.void_upto);
    if known > now.serial || account.newer.is_some() || account.disputed > 0 || unreadable {
        return Ok(true);
    }
    let found = audit(world, Some(item)).await?;
    Ok(found.items.iter().any(|found| found.epoch == book.epoch && found.missing_count > 0))
}

/// The book to write.
struct Plan {
    epoch: Uuid,
    serial: u64,
    left: u64,
}

impl Plan {
    fn of(chosen: &Chosen, account: &Account, wish: Wish) -> Self {
        let booked = chosen.book.as_ref().map_or(0, |book| book.serial);
        // A book that is not behind includes operators' changes since the last sale; the ledger cannot.
        let left = wish.left.unwrap_or(match &chosen.book {
            Some(book) if book.on_sale && book.serial >= account.highest => book.left,
            _ => account.remaining,
        });
        Self { epoch: chosen.epoch, serial: account.highest.max(account.void_upto).max(booked), left }
    }

    fn restored(&self, term: u64) -> Restored {
        Restored { term, serial: self.serial, remaining: self.left }
    }

    fn restoration(self, void: u64, unreadable: Vec<String>) -> Restoration {
        let Self { epoch, serial, left } = self;
        Restoration::Book { epoch, serial, void, left, unreadable }
    }
}
