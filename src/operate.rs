//! The operators' commands: seed, status, audit.

use std::io::Write as _;
use std::process::ExitCode;

use consumer::config::{Settings, failure, usage};
use serde::Serialize;
use uuid::Uuid;

use crate::audit::{self, Audit};
use crate::item::Item;
use crate::reopen::{self, Restoration};
use crate::stock::{Book, StockError};
use crate::world::{Kind, Purpose, World, WorldError};

/// The books could not be checked (`EX_UNAVAILABLE` of sysexits.h).
const EXIT_UNAVAILABLE: u8 = 69;

/// Opens the world, or prints why not.
///
/// # Errors
/// The exit code.
pub async fn open(settings: &Settings, purpose: Purpose) -> Result<World, ExitCode> {
    World::open(settings, purpose).await.map_err(|error| match error {
        WorldError::Config(error) => usage(&error.0),
        WorldError::Failed(why) => failure(&why),
    })
}

/// `seckill seed N`: a new sale of N units.
pub async fn seed(settings: &Settings, item: &Item, units: u64) -> ExitCode {
    let world = match open(settings, Purpose::Seed).await {
        Ok(world) => world,
        Err(code) => return code,
    };
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
    match world.stock.add(item, units).await {
        Ok(Some(left)) => print(&format!("{item}: {units} units added, {left} left")),
        Ok(None) => failure(&format!("{item} is not on sale; begin a sale with `seckill seed {units}`")),
        Err(StockError::Refused(why)) => failure(&format!("nothing was added: {why}")),
        Err(StockError::Silent(why)) => failure(&format!(
            "nobody knows whether {units} units were added ({why}); look with `seckill status` before you repeat it"
        )),
    }
}

/// `seckill restore`: the stock's books anew, from ledger and journal.
pub async fn restore(settings: &Settings, only: Option<&Item>, left: Option<u64>, write: bool) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    if let Kind::Embedded(..) = world.kind {
        return print("nothing to do: the embedded world makes its stock from its journal at every start");
    }
    let items = match items(&world, only).await {
        Ok(items) => items,
        Err(why) => return failure(&why),
    };
    let mut code = ExitCode::SUCCESS;
    for item in &items {
        let said = match reopen::restore(&world, item, left, write).await {
            Ok(Restoration::Unneeded) => {
                format!("{item}: nothing to do, the sale is open and its books are believed")
            }
            Ok(Restoration::Unknown) => format!("{item}: nothing to do, no sale is known"),
            Ok(Restoration::Book { epoch, serial, void, left }) => format!(
                "{item}: sale {epoch} {} with serial {serial} ({void} of them void) and {left} left",
                if write { "is open" } else { "would be opened" }
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

/// One item, or all that stock or ledger know.
async fn items(world: &World, only: Option<&Item>) -> Result<Vec<Item>, String> {
    if let Some(item) = only {
        return Ok(vec![item.clone()]);
    }
    let mut items = world.stock.items().await.map_err(|error| error.to_string())?;
    let recorded = world.ledger.sales().await.map_err(|error| error.to_string())?;
    items.extend(recorded.iter().filter_map(|sale| sale.item.parse().ok()));
    items.sort();
    items.dedup();
    Ok(items)
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
    let items = match only {
        Some(item) => vec![item.clone()],
        None => match world.stock.items().await {
            Ok(items) => items,
            Err(error) => return failure(&error),
        },
    };
    let mut lines = Vec::new();
    for item in &items {
        lines.push(line(&world, item).await);
    }
    if json {
        return print_json(&serde_json::json!({ "items": lines }));
    }
    let mut text = format!(
        "{:<32} {:<12} {:>10} {:>10} {:>10} {:>8}",
        "ITEM", "STATE", "LEFT", "SOLD", "SEEDED", "OUTBOX"
    );
    for line in lines {
        let Line { item, state, left, sold, seeded, outbox, error, .. } = line;
        text.push_str(&format!("\n{item:<32} {state:<12} {left:>10} {sold:>10} {seeded:>10} {outbox:>8}"));
        if let Some(error) = error {
            text.push_str(&format!("  {error}"));
        }
    }
    print(&text)
}

async fn line(world: &World, item: &Item) -> Line {
    let name = item.name().to_owned();
    let known = async { Ok((world.stock.books(item).await?, world.stock.outbox(item).await?)) };
    let known: Result<_, StockError> = known.await;
    match known {
        Err(error) => {
            Line { item: name, state: "unavailable", error: Some(error.to_string()), ..Line::default() }
        }
        Ok((books, outbox)) => {
            let outbox_sales = outbox.sales();
            let error = outbox.unreadable.into_iter().next();
            match books.into_iter().next() {
                None => {
                    Line { item: name, state: "not_on_sale", outbox: outbox_sales, error, ..Line::default() }
                }
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
            }
        }
    }
}

/// `seckill audit`: 0 balanced, 1 not, 69 could not be checked.
pub async fn audit(settings: &Settings, only: Option<&Item>, json: bool) -> ExitCode {
    let world = match open(settings, Purpose::Read).await {
        Ok(world) => world,
        Err(code) => return code,
    };
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
        text.push_str(&format!("wrong: {reason}\n"));
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

/// A command's result; a closed pipe is the reader's business.
fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failure(&format!("stdout: {error}")),
    }
}
