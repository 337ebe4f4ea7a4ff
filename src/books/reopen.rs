//! Recovery after a Redis restart or failover: checks a sale's books against the ledger, then reopens it.
//!
//! A Redis that was restarted or replaced may have lost its last writes and would sell those units again. So
//! it sells nothing until ledger and journal are proven to lack nothing of its book. Every node does this by
//! itself; incomplete books wait for `seckill restore`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consumer::ledger::Standpoint;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::books::gaps::Gaps;
use crate::books::settle::{TAKEN, holding, settle};
use crate::journal::progress::Trouble;
use crate::metrics::Metrics;
use crate::sale::Item;
use crate::sale::times::TAKE_OVER_AFTER;
use crate::selling::shop::Shop;
use crate::selling::till::Till;
use crate::stock::{Claim, Claimed, Opening, Owner};
use crate::world::World;

/// How often shut sales are looked for.
const PASS_EVERY: Duration = Duration::from_millis(500);

/// How often the ledger is polled for sales in conflict, and for the newest of each item.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Own trials a node remembers: more than it makes while a server is away.
const TRIALS_REMEMBERED: usize = 64;

/// Incomplete books are checked again after this: they may have been repaired.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How long a till may take to see its sale open: ten of its refreshes.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Why a node shuts a sale that is in conflict.
const DISPUTED: &str =
    "shut: sales of it are in conflict, so its data went back; see seckill_conflict, and `seckill restore`";

/// Why a node shuts a sale that is behind the ledger.
const BEHIND: &str = "shut: its data went back behind what the ledger has of it";

/// The result of checking a shut sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This call opened it.
    Opened,
    /// It is open; another opened it.
    Open,
    /// Another has a claim to it.
    Theirs(Owner),
    /// The books lack something: why.
    Incomplete(String),
}

/// Reopens sales that are shut because the stock's data is not trusted.
pub struct Reopener {
    shop: Arc<Shop>,
    world: World,
    metrics: Metrics,
    shut: Mutex<BTreeMap<Item, Seen>>,
}

/// What a node remembers of a sale while it is shut.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// The ids of this node's trials. Every trial has a new one, so that a late opening of an earlier trial
    /// opens nothing.
    ours: Vec<String>,
    /// The claim's owner, and since when it is known.
    owner: Option<(Owner, Instant)>,
    /// Back-off: not checked before this.
    rests_until: Option<Instant>,
    /// The last message logged, to log it once.
    said: String,
}

impl Seen {
    /// The owner whose claim may be taken over: this node's own, or one that stands still.
    fn dead_owner(&self) -> Option<Owner> {
        let (owner, since) = self.owner.as_ref()?;
        let dead = self.ours.contains(&owner.id) || since.elapsed() >= TAKE_OVER_AFTER;
        dead.then(|| owner.clone())
    }
}

impl Reopener {
    /// Recovery for the items of a shop.
    #[must_use]
    pub fn new(shop: &Arc<Shop>, world: &World, metrics: &Metrics) -> Arc<Self> {
        let (shop, world, metrics) = (Arc::clone(shop), world.clone(), metrics.clone());
        Arc::new(Self { shop, world, metrics, shut: Mutex::default() })
    }

    /// Runs passes forever.
    pub async fn run(self: Arc<Self>) {
        let watching = Arc::clone(&self);
        let watch = async move {
            let mut looks = tokio::time::interval(WATCH_EVERY);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                watching.watch().await;
            }
        };
        let pass = async move {
            let mut passes = tokio::time::interval(PASS_EVERY);
            passes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                passes.tick().await;
                self.pass().await;
            }
        };
        tokio::join!(watch, pass);
    }

    /// Tells the tills what the ledger has: the newest sales, and what contradicts a stock that reports no
    /// doubt. A sale with a unit sold twice in the ledger is disputed; one whose next unit is there already
    /// has gone back.
    pub async fn watch(&self) {
        let tills = self.shop.tills();
        let ledger = &self.world.ledger;
        if let Ok(newest) = ledger.newest().await {
            for till in &tills {
                newest.get(till.item().name()).into_iter().for_each(|epoch| till.knows_newest(*epoch));
            }
        }
        // Snapshot from before the ledger is read: whatever is opened meanwhile has another term.
        let sales: Vec<_> = tills.iter().filter_map(|till| till.sale().map(|sale| (till, sale))).collect();
        let open: Vec<Standpoint> = sales.iter().map(|(_, sale)| sale.clone()).collect();
        let ahead = ledger.ahead(&open).await.unwrap_or_default();
        let disputed = ledger.disputed().await;
        let asked = Instant::now();
        for (till, sale) in &sales {
            if let Ok(disputed) = &disputed {
                if disputed.contains(&(sale.item.clone(), sale.epoch)) {
                    till.distrust(sale, DISPUTED);
                } else if till.doubt().as_deref() == Some(DISPUTED) {
                    till.trust();
                }
            }
            // Only if the stock, called after the ledger was read, still says the same.
            if ahead.contains(sale) && till.said_since(asked).await.as_ref() == Some(sale) {
                till.distrust(sale, BEHIND);
            }
        }
    }

    /// Tries once to open all shut sales, concurrently: each waits for the same things.
    pub async fn pass(self: &Arc<Self>) {
        let mut trials = tokio::task::JoinSet::new();
        let tills = self.shop.tills();
        // Kept while the stock does not answer: earlier claims are still this node's own.
        let of_interest = |till: &Arc<Till>| till.is_shut() || till.ready().is_err();
        self.shut().retain(|item, _| tills.iter().any(|till| till.item() == item && of_interest(till)));
        for till in tills {
            self.metrics.shut(till.item().name(), till.is_shut());
            if till.is_shut() {
                let this = Arc::clone(self);
                trials.spawn(async move { this.attempt(&till).await });
            }
        }
        trials.join_all().await;
    }

    async fn attempt(&self, till: &Till) {
        let item = till.item();
        let mut seen = self.shut().get(item).cloned().unwrap_or_default();
        if seen.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let id = Uuid::now_v7();
        seen.ours.push(id.to_string());
        let excess = seen.ours.len().saturating_sub(TRIALS_REMEMBERED);
        seen.ours.drain(..excess);
        let doubt = till.doubt();
        let trial = reopen(&self.world, item, id, seen.dead_owner(), doubt.is_some()).await;
        let said = match trial {
            Ok(verdict @ (Verdict::Opened | Verdict::Open)) => {
                self.shut().remove(item);
                if verdict == Verdict::Opened {
                    log::info!("{item}: the books are complete, the sale goes on");
                    // The next pass must not see the sale as shut through a stale view.
                    let _ = timeout(HEARD_WITHIN, till.said_since(Instant::now())).await;
                }
                return;
            }
            Ok(Verdict::Theirs(by)) => {
                if seen.owner.as_ref().is_none_or(|(known, _)| *known != by) {
                    seen.owner = Some((by, Instant::now()));
                }
                "its books are being checked, by another node or by an operator".to_owned()
            }
            Ok(Verdict::Incomplete(why)) => {
                seen.rests_until = Some(Instant::now() + LOOK_AGAIN_AFTER);
                format!("{why}; run `seckill restore --item {item}`, which shows what it would do")
            }
            Err(trouble) => trouble.to_string(),
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

/// Claims a sale that is not trusted, by the stock or (with `doubt`) by this node, and opens it when nothing
/// of it is missing.
///
/// # Errors
/// A required server is away, or a concurrent change interfered; the sale stays shut.
pub async fn reopen(
    world: &World,
    item: &Item,
    id: Uuid,
    from: Option<Owner>,
    doubt: bool,
) -> Result<Verdict, Trouble> {
    let books = world.stock.books(item).await?;
    let Some(book) = books.first().filter(|book| book.shut || doubt) else { return Ok(Verdict::Open) };
    if book.epoch.is_nil() {
        return Ok(Verdict::Incomplete("it was emptied, or is being restored".into()));
    }
    let claim = if doubt { Claim::Doubt(from) } else { Claim::Reopen(from) };
    let claimed = world.stock.claim(item, id, claim).await?;
    let Some(claimed) = claimed else {
        // A stock without claims: a dispute is for an operator to decide there, too.
        let account = world.ledger.account(item.name(), book.epoch).await?;
        return Ok(match (doubt, account.disputed) {
            (true, sales @ 1..) => Verdict::Incomplete(in_conflict(sales)),
            _ => Verdict::Open,
        });
    };
    if claimed.by.id != id.to_string() {
        return Ok(Verdict::Theirs(claimed.by));
    }
    let found = holding(world, item, id, &claimed, examine(world, item, book.epoch, id, &claimed)).await;
    if found != Ok(Verdict::Opened) {
        // So that the next claim, perhaps an operator's, need not wait until this one is stale.
        let _ = world.stock.claim(item, id, Claim::Release).await;
    }
    found
}

/// Opens a claimed sale if the ledger accounts for every serial of the book and every order of its outbox,
/// and has no further serial and no newer sale.
async fn examine(
    world: &World,
    item: &Item,
    epoch: Uuid,
    id: Uuid,
    claimed: &Claimed,
) -> Result<Verdict, Trouble> {
    if claimed.epoch != Some(epoch) {
        return Err("another sale began meanwhile".into());
    }
    let settled = settle(world, item, epoch, id, claimed).await?;
    let account = settled.account;
    if let Some(entry) = settled.unreadable.first() {
        return Ok(Verdict::Incomplete(format!("an outbox entry cannot be read: {entry}")));
    }
    if let Some(order) = settled.unrecorded {
        // A stock reset to before an earlier loss may have the right count with another sale in it.
        return Ok(Verdict::Incomplete(format!("order {order} of its outbox is not recorded")));
    }
    if let Some(newer) = account.newer {
        return Ok(Verdict::Incomplete(format!("the ledger knows a newer sale, {newer}")));
    }
    if account.disputed > 0 {
        return Ok(Verdict::Incomplete(in_conflict(account.disputed)));
    }
    let count = Gaps::up_to(&*world.ledger, item.name(), epoch, claimed.serial).count().await?;
    let upto = account.highest.max(account.void_upto);
    if count.missing > 0 || upto > claimed.serial {
        return Ok(Verdict::Incomplete(format!(
            "the stock says {} sold, of which the ledger lacks {}; it has serials up to {upto}",
            claimed.serial, count.missing
        )));
    }
    let opening = Opening { id, life: claimed.life.clone(), term: account.term, anew: None };
    match world.stock.open(item, &opening).await? {
        true => Ok(Verdict::Opened),
        false => Err(TAKEN.into()),
    }
}

fn in_conflict(sales: u64) -> String {
    format!(
        "{sales} sales of it are in conflict, see seckill_conflict: its data went back, and units were sold twice"
    )
}
