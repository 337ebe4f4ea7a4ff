//! `archive`: drops finished sales from the stock, and keeps their closed books in the ledger.

use consumer::ledger::Closed;
use uuid::Uuid;

use crate::books::audit::audit;
use crate::journal::progress::Trouble;
use crate::sale::Item;
use crate::world::World;

/// The result for an item's sales.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archived {
    /// These were archived.
    Sales(Vec<Uuid>),
    /// None was: why.
    Refused(String),
}

/// Archives the earlier sales of an item, and the last one too when the item was taken off sale. Only what
/// balances and has nothing in flight.
///
/// The stock forgets first: if the rest fails, the ledger still has them and `audit` shows them.
///
/// # Errors
/// What could not be read or written. Safe to retry.
pub async fn archive(world: &World, item: &Item) -> Result<Archived, Trouble> {
    let found = audit(world, Some(item)).await?;
    if let Some(reason) = found.reasons.first() {
        return Ok(Archived::Refused(format!("the books do not balance: {reason}")));
    }
    if found.on_their_way > 0 {
        return Ok(Archived::Refused(
            "sales are on their way into the ledger; run it again in a moment".into(),
        ));
    }
    let books = world.stock.books(item).await?;
    if books.first().is_some_and(|book| book.shut) {
        return Ok(Archived::Refused("the sale is shut; see `seckill restore`".into()));
    }
    let running = books.first().filter(|book| book.on_sale).map(|book| book.epoch);
    let over: Vec<_> = found.items.iter().filter(|finding| Some(finding.epoch) != running).collect();
    let away = world.ledger.archived(Some(item.name())).await?;
    // Includes those left behind by an interrupted call.
    let earlier: Vec<Uuid> =
        books.iter().map(|book| book.epoch).filter(|epoch| Some(*epoch) != running).collect();
    if earlier.is_empty() && over.is_empty() {
        return Ok(Archived::Sales(Vec::new()));
    }
    world.stock.forget(item, &earlier, running.is_none()).await?;
    let kept: Vec<Uuid> =
        world.stock.books(item).await?.iter().filter(|book| book.on_sale).map(|book| book.epoch).collect();
    let mut sales = Vec::new();
    for finding in over.into_iter().filter(|finding| !kept.contains(&finding.epoch)) {
        let closed = Closed {
            seeded: finding.seeded,
            remaining: finding.left,
            sold: finding.sold,
            recorded: finding.recorded,
            void: finding.void,
        };
        world.ledger.archive(item.name(), finding.epoch, closed).await?;
        if !away.contains(&(item.name().to_owned(), finding.epoch)) {
            sales.push(finding.epoch);
        }
    }
    Ok(Archived::Sales(sales))
}
