//! The invariant check, from outside: buyers' answers against recorded sales.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use seckill::books::audit::Audit;
use seckill::journal::progress::Trouble;
use seckill::sale::{Item, OrderStatus, Purchase};
use tokio::time::Instant;
use uuid::Uuid;

use crate::run::Run;

/// From the ledger's detection until no node sells of that sale, with some ledger answers slow or lost.
const NOTICED_WITHIN: Duration = Duration::from_secs(15);

/// All violations; each starts with the name of its rule.
pub fn check(run: &Run, items: &[Item]) -> Vec<String> {
    let told = run.told.lock().expect("not poisoned");
    let mut state = run.sim.state();
    let books = state.books.clone();
    let disputed_at = state.disputed_at.clone();
    let (by_hand, lossy) =
        (*run.by_hand.lock().expect("not poisoned"), *run.lossy.lock().expect("not poisoned"));
    let rewound = *run.rewound.lock().expect("not poisoned");
    let mut wrong = std::mem::take(&mut state.seen_wrong);
    // Data went back unnoticed: what an unaware node sells is set aside and named, and selling ends soon
    // after.
    let excused = |order: Uuid, began: Instant| {
        let aside = books.conflicts.values().find(|(sale, _)| sale.order == order);
        let (Some(rewound), Some((sale, reason))) = (rewound, aside) else { return false };
        let noticed = if reason == "late" { Some(&rewound) } else { disputed_at.get(&sale.epoch) };
        noticed.is_some_and(|at| began <= *at + NOTICED_WITHIN)
    };

    let mut winners: BTreeMap<(Item, u64, Uuid), BTreeSet<Uuid>> = BTreeMap::new();
    for one in told.iter() {
        let name = one.key.map(|key| format!("k:{key}"));
        if let Some(Purchase::Bought { order, left, .. }) = one.said {
            match books.rows.get(&order).map(|row| &row.sale) {
                None if state.taken_behind.contains(&order) => {
                    wrong.push(format!("told by a node that knew better: {}", state.name(order)));
                }
                None if excused(order, one.began) => {}
                None => {
                    let short = state.name(order);
                    let late = books.conflicts.values().find(|(sale, _)| sale.order == order);
                    let late = late.map_or(String::new(), |(_, reason)| format!(", put aside as {reason}"));
                    wrong.push(format!("told and not recorded: {short} of {name:?}{late}"));
                }
                Some(sale) => {
                    if sale.remaining != left || sale.item != one.item.name() {
                        wrong.push(format!("told another unit than recorded: {}", state.name(order)));
                    }
                    if sale.attempt != name {
                        wrong.push(format!(
                            "told another's order: {:?} was told {} of {:?}",
                            name,
                            state.name(order),
                            sale.attempt
                        ));
                    }
                    if let Some(key) = one.key {
                        winners.entry((one.item.clone(), key, sale.epoch)).or_default().insert(order);
                    }
                }
            }
        }
        // The answer says "not taken", so there is no row.
        let refused = !matches!(one.said, None | Some(Purchase::Bought { .. } | Purchase::Pending { .. }));
        if let (true, Some(order)) = (refused, one.order)
            && books.rows.contains_key(&order)
        {
            wrong.push(format!("told {:?} and recorded: {}", one.said, state.name(order)));
        }
    }
    for (order, found) in run.looked_up.lock().expect("not poisoned").iter() {
        let recorded = books.rows.contains_key(order);
        let bought = told
            .iter()
            .any(|one| one.order == Some(*order) && matches!(one.said, Some(Purchase::Bought { .. })));
        let excused = told.iter().any(|one| one.order == Some(*order) && excused(*order, one.began));
        let wrongly = match found {
            OrderStatus::Recorded => !recorded,
            // A message from a lost outbox may still land.
            OrderStatus::Unknown => (bought && !excused) || (recorded && !lossy),
            OrderStatus::Accepted => !recorded && !lossy,
            OrderStatus::Pending => false,
            // Never for a log that lost nothing.
            OrderStatus::Undecided => true,
        };
        if wrongly {
            wrong.push(format!(
                "an order was said to be {found:?}, recorded: {recorded}: {}",
                state.name(*order)
            ));
        }
    }
    for ((item, key, _), orders) in &winners {
        // With the winners' names silently lost, a name may win again for a moment.
        let won = told.iter().filter(
            |one| matches!(one.said, Some(Purchase::Bought { order, .. }) if orders.contains(&order)),
        );
        let last = won.map(|one| one.began).max();
        let unseen = rewound.zip(last).is_some_and(|(rewound, last)| last <= rewound + NOTICED_WITHIN);
        if orders.len() > 1 && !unseen {
            let orders: Vec<String> = orders.iter().map(|order| state.name(*order)).collect();
            wrong.push(format!("one key, two orders told: {item} k:{key}: {orders:?}"));
        }
    }

    // Orders unknown to the simulator are matched by number.
    for item in items {
        let unknown = told
            .iter()
            .filter(|one| one.item == *item && one.key.is_none() && one.order.is_none())
            .filter(|one| matches!(one.said, None | Some(Purchase::Bought { .. } | Purchase::Pending { .. })))
            .count();
        let known: BTreeSet<Uuid> = told.iter().filter_map(|one| one.order).collect();
        let rows = books.rows.values().filter(|row| {
            row.sale.item == item.name() && row.sale.attempt.is_none() && !known.contains(&row.sale.order)
        });
        // With attempts missing from the messages every row looks anonymous.
        let forgotten = run.sim.mutation == Some(crate::faults::Mutation::ForgetAttempt);
        if !forgotten && rows.count() > unknown {
            wrong.push(format!(
                "told no and recorded: more anonymous rows of {item} than attempts that may have one"
            ));
        }
    }

    // A winner only ever gets its order, or a failure.
    for one in told.iter().filter(|one| one.key.is_some()) {
        let no = matches!(
            one.said,
            Some(Purchase::SoldOut | Purchase::NotOnSale | Purchase::Closed | Purchase::NotOpen)
        );
        if !no {
            continue;
        }
        for before in told.iter().filter(|before| before.item == one.item && before.key == one.key) {
            let Some(Purchase::Bought { order, .. }) = before.said else { continue };
            let same_round = before.round.0 == before.round.1
                && one.round.0 == one.round.1
                && before.round.0 == one.round.0;
            let running = state.redis.shelf(&one.item).book.epoch;
            let same_sale = one.last && books.rows.get(&order).map(|row| row.sale.epoch) == running;
            let known = books.rows.contains_key(&order) || !excused(order, before.began);
            if known && before.ended <= one.began && (same_round || same_sale) {
                wrong.push(format!(
                    "a winner told no: {} k:{:?} has {} and was told {:?}",
                    one.item,
                    one.key,
                    state.name(order),
                    one.said
                ));
            }
        }
    }

    for (place, (sale, reason)) in &books.conflicts {
        if reason != "late" && rewound.is_none() {
            wrong.push(format!("conflict: {reason}: {} at {place:?}", state.name(sale.order)));
        }
    }
    for (place, error) in &books.dead_letters {
        wrong.push(format!("dead letter: {place:?}: {error}"));
    }

    let mut epochs: BTreeMap<(String, Uuid), BTreeSet<u64>> = BTreeMap::new();
    for row in books.rows.values() {
        epochs.entry((row.sale.item.clone(), row.sale.epoch)).or_default().insert(row.sale.serial);
    }
    for (item, epoch, serial) in &books.voids {
        let fresh = epochs.entry((item.clone(), *epoch)).or_default().insert(*serial);
        if !fresh {
            wrong.push(format!("void and recorded: {item} {} {serial}", state.name(*epoch)));
        }
    }
    for item in items {
        let shelf = state.redis.shelf(item).clone();
        let told_of = run.begun.lock().expect("not poisoned").clone();
        let mut after = state.begun.iter().skip_while(|begun| Some(**begun) != shelf.book.epoch).skip(1);
        // Of two sales begun at once, the later epoch was requested later.
        let asked_later = |newer: &Uuid| shelf.book.epoch.is_some_and(|running| running < *newer);
        if rewound.is_none()
            && after.any(|newer| asked_later(newer) && told_of.contains(&(item.clone(), *newer)))
        {
            wrong.push(format!("an old sale lives again: {item}"));
        }
        if let Some(epoch) = shelf.book.epoch {
            let known = epochs.entry((item.name().to_owned(), epoch)).or_default();
            let missing: Vec<u64> =
                (1..=shelf.book.serial).filter(|serial| !known.contains(serial)).collect();
            if !missing.is_empty() {
                wrong.push(format!("missing serials of the running sale of {item}: {missing:?}"));
            }
            if known.last().copied().unwrap_or(0) > shelf.book.serial {
                wrong.push(format!("the book of {item} is behind the ledger"));
            }
        }
        let mut sold = 0;
        for ((of, epoch), serials) in epochs.iter().filter(|((of, _), _)| of == item.name()) {
            let rows =
                books.rows.values().filter(|row| row.sale.item == *of && row.sale.epoch == *epoch).count();
            sold += rows as i64;
            let highest = serials.last().copied().unwrap_or(0);
            let running = shelf.book.epoch == Some(*epoch);
            if (running || !state.hurt.contains(epoch)) && (serials.len() as u64) < highest {
                wrong.push(format!("missing serials of {of} {}: {serials:?}", state.name(*epoch)));
            }
            let units = books.terms.get(&(of.clone(), *epoch)).map_or(0, |(_, units)| *units);
            if !by_hand && units > 0 && rows as u64 > units {
                wrong.push(format!("sold more than seeded: {of} {}: {rows} of {units}", state.name(*epoch)));
            }
        }
        let granted = state.granted.get(item).copied().unwrap_or(0);
        if !lossy && sold > granted {
            wrong.push(format!("sold more than put on sale: {item}: {sold} of {granted}"));
        }
    }
    wrong
}

/// Whether the product's own audit agrees that all is well. Where Redis lost data it may report missing
/// serials.
pub fn audited(run: &Run, audit: &Result<Audit, Trouble>, well: bool) -> Option<String> {
    let lossy = *run.lossy.lock().expect("not poisoned");
    match audit {
        Err(why) => Some(format!("audit: {why}")),
        Ok(audit) if well && !audit.balanced && !lossy => Some(format!("audit: {:?}", audit.reasons)),
        Ok(audit) if well && !lossy && audit.on_their_way > 0 => Some("audit: on their way".into()),
        Ok(_) => None,
    }
}
