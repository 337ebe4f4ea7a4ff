//! The contract of every stock, as one test that all implementations pass.

use uuid::Uuid;

use super::{Call, Outcome, Reply, Stock};
use crate::clock::moment;
use crate::sale::{Attempt, Item};

/// A call for these attempts; `None` is anonymous.
pub(crate) fn call(names: &[Option<&str>], taking: bool) -> Call {
    Call {
        id: Uuid::now_v7(),
        offer: Uuid::now_v7(),
        at: moment(),
        taking,
        attempts: names
            .iter()
            .map(|name| Attempt { order: Uuid::now_v7(), name: name.map(|name| format!("k:{name}")) })
            .collect(),
        settled: Vec::new(),
    }
}

fn order_of(reply: &Reply, index: usize) -> Uuid {
    match &reply.outcomes[index] {
        Outcome::Taken(place) => reply.taken.as_ref().expect("taken").attempts[*place].order,
        Outcome::Known(known) => known.order,
        other => panic!("no order: {other:?}"),
    }
}

/// Runs the contract on an unused item.
pub(crate) async fn keeps_the_contract(stock: &dyn Stock, item: &Item) {
    let absent = stock.take(item, &call(&[None, Some("a")], true)).await.expect("an answer");
    assert_eq!(absent.outcomes, [Outcome::NotOnSale, Outcome::NotOnSale]);
    assert_eq!((absent.left, absent.taken), (None, None));
    assert!(!stock.knows(item).await.expect("an answer"));
    assert_eq!(stock.add(item, 5).await.expect("an answer"), None, "nothing to add to");

    let epoch = Uuid::now_v7();
    stock.seed(item, 5, epoch).await.expect("seeded");
    stock.seed(item, 5, epoch).await.expect("the same epoch again");
    assert!(stock.knows(item).await.expect("an answer"));
    assert!(stock.items().await.expect("an answer").contains(item));
    let fresh = stock.take(item, &call(&[], true)).await.expect("a refresh");
    assert_eq!((fresh.left, fresh.epoch), (Some(5), Some(epoch)));

    // A name repeated in a batch takes once; serial and remaining count match.
    let first = call(&[None, Some("a"), Some("a"), None], true);
    let reply = stock.take(item, &first).await.expect("an answer");
    let batch = reply.taken.clone().expect("taken");
    assert_eq!((batch.epoch, batch.serial, batch.remaining, batch.attempts.len()), (epoch, 1, 4, 3));
    assert_eq!(reply.left, Some(2));
    assert_eq!(order_of(&reply, 1), order_of(&reply, 2));
    assert_eq!(order_of(&reply, 1), first.attempts[1].order);
    assert_eq!(order_of(&reply, 0), first.attempts[0].order);
    assert_eq!(order_of(&reply, 3), first.attempts[3].order);
    let sales: Vec<_> = batch.sales().map(|sale| (sale.serial, sale.remaining)).collect();
    assert_eq!(sales, [(1, 4), (2, 3), (3, 2)]);
    let winner = order_of(&reply, 1);

    // Without permission to take, attempts are only looked up.
    let looked = stock.take(item, &call(&[Some("a"), Some("b"), None], false)).await.expect("an answer");
    assert_eq!(order_of(&looked, 0), winner);
    assert_eq!(looked.outcomes[1..], [Outcome::NotTaken, Outcome::NotTaken]);
    assert_eq!(looked.left, Some(2));

    // Takes no more than there are; a winner stays known after the last unit is gone.
    let rest = stock.take(item, &call(&[Some("a"), None, None, None], true)).await.expect("an answer");
    assert_eq!(rest.taken.as_ref().map(|batch| (batch.serial, batch.attempts.len())), Some((4, 2)));
    assert_eq!(rest.outcomes.iter().filter(|outcome| **outcome == Outcome::SoldOut).count(), 1);
    let after = stock.take(item, &call(&[Some("a"), Some("c")], true)).await.expect("an answer");
    assert_eq!(order_of(&after, 0), winner);
    assert_eq!(after.outcomes[1], Outcome::SoldOut);
    // A sold-out attempt may retry when there is more.
    assert_eq!(stock.add(item, 1).await.expect("an answer"), Some(1));
    let late = stock.take(item, &call(&[Some("c")], true)).await.expect("an answer");
    assert_eq!(late.taken.as_ref().map(|batch| batch.serial), Some(6));

    let books = stock.books(item).await.expect("books");
    let book = &books[0];
    assert_eq!((book.seeded, book.left, book.serial, book.on_sale), (6, 0, 6, true));

    // A new sale forgets the winners and keeps the old books.
    let next = Uuid::now_v7();
    stock.seed(item, 2, next).await.expect("seeded");
    let again = stock.take(item, &call(&[Some("a")], true)).await.expect("an answer");
    assert_eq!(again.taken.as_ref().map(|batch| (batch.epoch, batch.serial)), Some((next, 1)));
    assert_ne!(order_of(&again, 0), winner);
    let books = stock.books(item).await.expect("books");
    assert_eq!((books[0].epoch, books[0].serial, books[0].left), (next, 1, 1));
    assert_eq!((books[1].epoch, books[1].seeded, books[1].serial, books[1].on_sale), (epoch, 6, 6, false));
}
