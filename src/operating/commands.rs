//! The operators' commands: seed, status, audit, restore, archive.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use consumer::service::config::{Settings, failure, one_line_of, usage};
use serde::Serialize;
use tokio::time::timeout;
use uuid::Uuid;

use crate::books::archive::{Archived, archive as put_away};
use crate::books::audit::{self, Audit};
use crate::books::restore::{Restoration, Wish, restore as make_anew};
use crate::books::settle::recorded;
use crate::journal::progress::{Trouble, recorded_all};
use crate::sale::times::TELL_WITHIN;
use crate::sale::{Batch, Item};
use crate::stock::{Book, StockError, Walk};
use crate::world::{Kind, Purpose, World, WorldError};

/// How long `status` waits for the journal to take a sale: as long as an attempt would.
const OFFERED_FOR: Duration = TELL_WITHIN;

/// The books could not be checked (`EX_UNAVAILABLE` of sysexits.h).
const EXIT_UNAVAILABLE: u8 = 69;

/// Opens the world, or prints why not.
///
/// # Errors
/// The exit code.
pub async fn open(settings: &Settings, purpose: Purpose) -> Result<World, ExitCode> {
    let world = World::open(settings, purpose).await.map_err(|error| match error {
        WorldError::Config(error) => usage(&error.0),
        WorldError::Failed(why) => failure(&why),
    })?;
    log::info!("{}", World::place(settings));
    Ok(world)
}

/// `seckill seed N`: a new sale of N units.
pub async fn seed(settings: &Settings, item: &Item, units: u64) -> ExitCode {
    let world = match open(settings, Purpose::Seed).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    if let Some(lost) = lost(&world, item).await {
        log::warn!(
            "{item}: Redis knows nothing of its sale {lost}, which the ledger has; a new one takes its place. If Redis was \
             emptied by mistake, `seckill restore --item {item} --epoch {lost}` shows how it would go on"
        );
    }
    match world.begin_sale(item, units).await {
        Ok(epoch) => print(&format!("{item}: a new sale of {units} units, {epoch}")),
        Err(why) => failure(&why),
    }
}

/// `seckill seed --add N`: N more units for the running sale.
pub async fn add(settings: &Settings, item: &Item, units: u64) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    match world.add(item, units).await {
        Ok(Some(left)) => print(&format!("{item}: {units} units added, {left} left")),
        Ok(None) => failure(&format!("nothing was added: {}", not_on_sale(&world, item, units).await)),
        Err(StockError::Refused(why)) => failure(&format!("nothing was added: {why}")),
        Err(StockError::Silent(why)) => failure(&format!(
            "nobody knows whether {units} units were added ({why}); look with `seckill status --item {item}` before \
             you repeat it"
        )),
    }
}

/// The newest sale of an item that the ledger has and the stock has lost, if so.
async fn lost(world: &World, item: &Item) -> Option<Uuid> {
    if matches!(world.kind, Kind::Embedded(..))
        || world.stock.books(item).await.map_or(true, |books| !books.is_empty())
    {
        return None;
    }
    let known = world.ledger.sales(Some(item.name())).await.ok()?;
    known.iter().map(|sale| sale.epoch).max()
}

/// Why nothing can be added, and what can be done: a mistyped name, an item taken off sale, or one that was
/// never on sale.
async fn not_on_sale(world: &World, item: &Item, units: u64) -> String {
    let off_sale = world.stock.books(item).await.is_ok_and(|books| !books.is_empty());
    let servers = matches!(world.kind, Kind::Servers(_));
    if off_sale && servers {
        return format!(
            "{item} was taken off sale; `SET {} {units}` in Redis goes on with the sale it had",
            item.key()
        );
    }
    if lost(world, item).await.is_some() {
        return format!("its books are lost; `seckill restore --item {item}` shows what it would bring back");
    }
    let mut others = world.stock.items().await.unwrap_or_default();
    others.retain(|other| other != item);
    let known: Vec<&str> = others.iter().map(Item::name).collect();
    let known = if known.is_empty() { String::new() } else { format!("; known are {}", known.join(", ")) };
    format!("{item} is not on sale{known}; `seckill seed {units} --item {item}` begins a sale of it")
}

/// Whether stock or ledger know an item requested by name.
async fn known(world: &World, item: &Item) -> Result<bool, Trouble> {
    Ok(item.is_default()
        || world.stock.knows(item).await?
        || !world.ledger.sales(Some(item.name())).await?.is_empty()
        || !world.ledger.archived(Some(item.name())).await?.is_empty())
}

/// The items of a command: the named one, or all that are known.
///
/// # Errors
/// The exit code: an unknown name is an operator's mistake.
async fn items(world: &World, only: Option<&Item>, unreadable: u8) -> Result<Vec<Item>, ExitCode> {
    let asked = async {
        // Includes counters that operators set and no client has requested yet.
        for odd in world.stock.discover(None).await? {
            log::warn!("{odd:?} in Redis is no counter: an item's name is 1 to 32 of a-z, 0-9 and '-'");
        }
        match only {
            Some(item) if known(world, item).await? => Ok(vec![item.clone()]),
            Some(_) => Ok(Vec::new()),
            None => Ok::<_, Trouble>(audit::known_items(world).await?.into_iter().collect()),
        }
    };
    match (asked.await, only) {
        (Ok(items), Some(item)) if items.is_empty() => {
            Err(usage(&format!("there is no item {item}; `seckill status` shows those that there are")))
        }
        (Ok(items), _) => Ok(items),
        (Err(why), _) => {
            let _ = failure(&why);
            Err(ExitCode::from(unreadable))
        }
    }
}

/// `seckill restore`: rebuilds the stock's books from ledger and journal.
pub async fn restore(settings: &Settings, only: Option<&Item>, wish: Wish, write: bool) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    let items = match items(&world, only, 1).await {
        Ok(items) => items,
        Err(code) => return code,
    };
    let mut code = ExitCode::SUCCESS;
    for item in &items {
        let said = match make_anew(&world, item, wish, write).await {
            Ok(Restoration::Unneeded) => {
                format!("{item}: nothing to do, the sale is open and its books are believed")
            }
            Ok(Restoration::OffSale) => format!(
                "{item}: nothing to do, its books are believed; it was taken off sale, and `SET {} N` in Redis goes on with it",
                item.key()
            ),
            Ok(Restoration::Unknown) => format!("{item}: nothing to do, no sale is known"),
            Ok(Restoration::Book { epoch, serial, void, left, unreadable }) => {
                for entry in unreadable {
                    log::warn!("{item}: an outbox entry cannot be read and goes: {entry}");
                }
                if void > 0 {
                    log::warn!(
                        "{item}: {void} serials are in no journal and are written off; their buyers were told nothing \
                         certain, unless a topic was lost since"
                    );
                }
                format!(
                    "{item}: sale {epoch} {} with serial {serial} ({void} of them void) and {left} left",
                    if write { "is open" } else { "would be opened" }
                )
            }
            Ok(Restoration::Accepted(sales)) => format!(
                "{item}: {sales} sales in conflict {} accepted",
                if write { "are" } else { "would be" }
            ),
            Ok(Restoration::Refused(why)) => {
                code = failure(&format!("{item}: not restored: {why}"));
                continue;
            }
            Err(why) => {
                code = failure(&format!("{item}: not restored: {why}"));
                continue;
            }
        };
        if print(&said) != ExitCode::SUCCESS {
            code = ExitCode::FAILURE;
        }
    }
    if !write {
        log::info!("nothing was changed; --yes does it, with the sale shut meanwhile");
        log::info!("units added by hand after the last sale are known to nobody; --left N says what is left");
    }
    code
}

/// `seckill archive`: archives finished sales.
pub async fn archive(settings: &Settings, only: Option<&Item>) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    let items = match items(&world, only, EXIT_UNAVAILABLE).await {
        Ok(items) => items,
        Err(code) => return code,
    };
    let mut code = ExitCode::SUCCESS;
    for item in &items {
        match put_away(&world, item).await {
            Ok(Archived::Sales(sales)) if sales.is_empty() && only.is_some() => {
                let _ = print(&format!(
                    "{item}: nothing to put away; a sale is over when a later one has begun, or its item is off sale \
                     (`DEL {}` in Redis)",
                    item.key()
                ));
            }
            Ok(Archived::Sales(sales)) => {
                for epoch in sales {
                    let _ = print(&format!("{item}: sale {epoch} is put away"));
                }
            }
            Ok(Archived::Refused(why)) => code = failure(&format!("{item}: nothing is put away: {why}")),
            Err(why) => code = failure(&format!("{item}: not put away: {why}")),
        }
    }
    code
}

/// One item, as `status --json` shows it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    item: String,
    state: &'static str,
    epoch: Option<Uuid>,
    left: u64,
    sold: u64,
    seeded: u64,
    outbox: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `seckill status`: what is on sale, and how far each sale is.
pub async fn status(settings: &Settings, only: Option<&Item>, json: bool) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    let items = match status_items(&world, only).await {
        Ok(items) => items,
        Err(code) => return code,
    };
    let mut lines = Vec::new();
    for item in &items {
        lines.push(line(&world, item).await);
    }
    let trouble = journal_trouble(&world, &items).await;
    if json {
        let mut found = serde_json::json!({ "items": lines });
        if let (Some(trouble), Some(members)) = (trouble, found.as_object_mut()) {
            members.insert("journal".into(), trouble.into());
        }
        return print_json(&found);
    }
    let mut text = format!(
        "{:<32} {:<12} {:>10} {:>10} {:>10} {:>8}",
        "ITEM", "STATE", "LEFT", "SOLD", "SEEDED", "OUTBOX"
    );
    for line in lines {
        let Line { item, state, left, sold, seeded, outbox, error, .. } = line;
        text.push_str(&format!("\n{item:<32} {state:<12} {left:>10} {sold:>10} {seeded:>10} {outbox:>8}"));
        if let Some(error) = error {
            text.push_str(&format!("  {}", one_line_of(&error)));
        }
    }
    if let Some(trouble) = trouble {
        text.push_str(&format!("\nthe journal: {trouble}"));
    }
    print(&text)
}

/// What is wrong with the journal, if anything. Only an append shows whether it takes sales: appends one of
/// the outbox, as every node would.
async fn journal_trouble(world: &World, items: &[Item]) -> Option<String> {
    match recorded_all(&*world.journal, &*world.ledger).await {
        Err(trouble @ Trouble::Contradiction(_)) => return Some(trouble.to_string()),
        // Tells which of the two is away: only the journal matters here.
        Err(Trouble::Passing(_)) => {
            if let Err(why) = world.journal.extents().await {
                return Some(why);
            }
        }
        Ok(_) => {}
    }
    for item in items {
        let Ok(Some(batch)) = offered(world, item).await else { continue };
        let receipt = world.journal.append(&batch);
        let _ = timeout(OFFERED_FOR, receipt.done()).await;
        if receipt.complete() {
            return None;
        }
        let why = world.journal.refusal();
        return Some(why.unwrap_or_else(|| "it does not acknowledge what stands in the outbox".into()));
    }
    None
}

/// As [`items`], but from the stock alone: it must work while the ledger is away.
async fn status_items(world: &World, only: Option<&Item>) -> Result<Vec<Item>, ExitCode> {
    if only.is_some() {
        return items(world, only, 1).await;
    }
    let found = async {
        for odd in world.stock.discover(None).await? {
            log::warn!("{odd:?} in Redis is no counter: an item's name is 1 to 32 of a-z, 0-9 and '-'");
        }
        world.stock.items().await
    };
    found.await.map_err(|error| failure(&error))
}

/// An outbox sale that any node would relay: its sale is not shut, and its unit is not recorded under any
/// order.
async fn offered(world: &World, item: &Item) -> Result<Option<Batch>, Trouble> {
    if world.stock.books(item).await?.first().is_none_or(|book| book.shut) {
        return Ok(None);
    }
    let mut outbox = Walk::through(&*world.stock, item).await?;
    let batch = outbox.next().await?.and_then(|entries| entries.batches.into_iter().next());
    let Some(batch) = batch.map(|batch| Batch { attempts: batch.attempts[..1].to_vec(), ..batch }) else {
        return Ok(None);
    };
    let recorded = recorded(&*world.ledger, &batch).await?;
    Ok(Some(batch).filter(|_| recorded == [None]))
}

/// The running sale's book, the units in the outbox, and what of it cannot be read.
async fn standing(world: &World, item: &Item) -> Result<(Vec<Book>, u64, Option<String>), StockError> {
    let books = world.stock.books(item).await?;
    let (mut sales, mut unreadable) = (0, None);
    let mut outbox = Walk::through(&*world.stock, item).await?;
    while let Some(entries) = outbox.next().await? {
        sales += entries.batches.iter().map(|batch| batch.attempts.len() as u64).sum::<u64>();
        unreadable = unreadable.or(entries.unreadable.into_iter().next());
    }
    Ok((books, sales, unreadable))
}

async fn line(world: &World, item: &Item) -> Line {
    let name = item.name().to_owned();
    match standing(world, item).await {
        Err(error) => {
            Line { item: name, state: "unavailable", error: Some(error.to_string()), ..Line::default() }
        }
        Ok((books, outbox_sales, error)) => match books.into_iter().next() {
            None => Line { item: name, state: "not_on_sale", outbox: outbox_sales, error, ..Line::default() },
            Some(book) => Line {
                item: name,
                state: match book {
                    Book { shut: true, .. } => "shut",
                    Book { on_sale: false, .. } => "not_on_sale",
                    Book { left: 0, .. } => "sold_out",
                    _ => "open",
                },
                epoch: Some(book.epoch).filter(|epoch| !epoch.is_nil()),
                left: book.left,
                sold: book.serial,
                seeded: book.seeded,
                outbox: outbox_sales,
                error,
            },
        },
    }
}

/// `seckill audit`: 0 balanced, 1 not, 69 could not be checked.
pub async fn audit(settings: &Settings, only: Option<&Item>, json: bool) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    if let Err(code) = items(&world, only, EXIT_UNAVAILABLE).await {
        return code;
    }
    let audit = match audit::audit(&world, only).await {
        Ok(audit) => audit,
        Err(why) => {
            let _ = failure(&format!("the books could not be checked: {why}"));
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    let printed = if json { print_json(&audit) } else { print(&in_words(&audit)) };
    if json {
        for reason in &audit.reasons {
            log::error!("{reason}");
        }
    }
    if audit.balanced { printed } else { ExitCode::FAILURE }
}

fn in_words(audit: &Audit) -> String {
    let mut text = String::new();
    for found in &audit.items {
        text.push_str(&format!(
            "{}, sale {}: seeded {}, left {}, sold {}, recorded {}, outbox {}\n",
            found.item, found.epoch, found.seeded, found.left, found.sold, found.recorded, found.outbox
        ));
    }
    text.push_str(&format!("conflicts {}, dead letters {}\n", audit.conflicts, audit.dead_letters));
    if audit.on_their_way > 0 {
        text.push_str(&format!("{} sales are on their way into the ledger\n", audit.on_their_way));
    }
    for reason in &audit.reasons {
        text.push_str(&format!("wrong: {}\n", one_line_of(reason)));
    }
    text.push_str(if audit.balanced { "balanced" } else { "NOT balanced" });
    text
}

fn print_json(value: &impl Serialize) -> ExitCode {
    match serde_json::to_string(value) {
        Ok(text) => print(&text),
        Err(error) => failure(&error),
    }
}

/// Prints a command's result; a closed pipe is the reader's business.
fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failure(&format!("stdout: {error}")),
    }
}
