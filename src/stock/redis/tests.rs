//! The Redis stock beyond the contract.

use std::sync::Arc;

use super::*;
use crate::sale::{Attempt, Batch, Item};
use crate::stock::Anew;
use crate::stock::Outcome;
use crate::stock::contract::{call, keeps_the_contract};

/// A stock on the tests' Redis, and an unused item.
fn stock() -> (RedisStock, Item) {
    let url = std::env::var("SECKILL_REDIS_URL")
        .expect("SECKILL_REDIS_URL: run `scripts/servers up` and `eval \"$(scripts/servers env)\"`");
    let item = format!("t{}", &Uuid::now_v7().simple().to_string()[1..]).parse().expect("a name");
    (RedisStock::new(&url).expect("a URL"), item)
}

async fn by_hand(stock: &RedisStock, words: &[&str]) -> Value {
    let mut command = redis::cmd(words[0]);
    stock.read("by hand", command.arg(&words[1..])).await.expect("an answer")
}

#[tokio::test]
#[ignore = "needs servers"]
async fn the_contract() {
    let (stock, item) = stock();
    keeps_the_contract(&stock, &item).await;
}

#[tokio::test]
#[ignore = "needs servers"]
async fn of_two_sales_begun_at_once_the_later_stays() {
    let (stock, item) = stock();
    let (earlier, later) = (Uuid::now_v7(), Uuid::now_v7());
    stock.seed(&item, 2, later).await.expect("seeded");
    match stock.seed(&item, 9, earlier).await {
        Err(StockError::Refused(why)) => assert!(why.contains(&later.to_string()), "{why}"),
        other => panic!("{other:?}"),
    }
    let book = stock.books(&item).await.expect("books").remove(0);
    assert_eq!((book.epoch, book.left), (later, 2));
}

#[tokio::test]
#[ignore = "needs servers"]
async fn what_is_taken_stays_in_the_outbox_until_it_is_settled() {
    let (stock, item) = stock();
    stock.seed(&item, 9, Uuid::now_v7()).await.expect("seeded");
    let taken = stock.take(&item, &call(&[None, Some("a b"), None], true)).await.expect("taken");
    let batch = taken.taken.expect("a batch");
    assert_eq!(taken.open, 1);
    let names = stock.outbox(&item).await.expect("an outbox");
    assert_eq!(names, [batch.id.to_string().into_bytes()]);
    let entries = stock.entries(&item, &names).await.expect("entries");
    assert_eq!(entries.batches, std::slice::from_ref(&batch));

    let known = stock.take(&item, &call(&[Some("a b")], true)).await.expect("an answer");
    let Outcome::Known(open) = &known.outcomes[0] else { panic!("{known:?}") };
    assert!(open.open);
    assert_eq!(known.standing, std::slice::from_ref(&batch), "whoever has to announce it is told what it is");

    let settle = Call { settled: vec![batch.id, Uuid::now_v7()], ..call(&[Some("a b")], true) };
    let known = stock.take(&item, &settle).await.expect("an answer");
    assert_eq!(known.open, 0);
    let known = stock.take(&item, &call(&[Some("a b")], true)).await.expect("an answer");
    let Outcome::Known(closed) = &known.outcomes[0] else { panic!("{known:?}") };
    assert!(!closed.open && closed.order == open.order);
    assert!(stock.outbox(&item).await.expect("an outbox").is_empty());
    assert!(stock.entries(&item, &names).await.expect("entries").batches.is_empty(), "settled meanwhile");
}

async fn claims(stock: &RedisStock, item: &Item, id: Uuid, claim: Claim) -> Option<Claimed> {
    stock.claim(item, id, claim).await.expect("an answer")
}

fn is_of(claimed: &Option<Claimed>, id: Uuid) -> bool {
    claimed.as_ref().is_some_and(|claimed| claimed.by.id == id.to_string())
}

/// Moves a book to another life of the data, as a restart does.
async fn lives_anew(stock: &RedisStock, item: &Item) {
    by_hand(stock, &["HSET", &format!("{{{}}}:book", item.key()), "run", "another:life"]).await;
}

/// One owner at a time, an operator next; an owner that does not renew loses the claim.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_sale_is_claimed_by_one_at_a_time() {
    let (stock, item) = stock();
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::now_v7()).collect();
    assert_eq!(claims(&stock, &item, ids[0], Claim::Reopen(None)).await, None, "there is nothing");
    let epoch = Uuid::now_v7();
    stock.seed(&item, 5, epoch).await.expect("seeded");
    stock.take(&item, &call(&[None], true)).await.expect("taken");
    for claim in [Claim::Reopen(None), Claim::Restore(None), Claim::Renew("any".into()), Claim::Release] {
        assert_eq!(claims(&stock, &item, ids[0], claim).await, None, "it is open and believed");
    }
    lives_anew(&stock, &item).await;
    assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
    let first = claims(&stock, &item, ids[0], Claim::Reopen(None)).await.expect("claimed");
    assert_eq!((first.by.id.clone(), first.epoch, first.serial), (ids[0].to_string(), Some(epoch), 1));
    let second = claims(&stock, &item, ids[1], Claim::Reopen(None)).await.expect("another's");
    assert_eq!(second.by, first.by);
    // Renewed: its beat no longer matches.
    assert!(is_of(&claims(&stock, &item, ids[0], Claim::Renew(first.life.clone())).await, ids[0]));
    assert_eq!(claims(&stock, &item, ids[0], Claim::Renew("another:life".into())).await, None);
    let stale = claims(&stock, &item, ids[1], Claim::Reopen(Some(second.by))).await.expect("another's");
    assert_eq!((stale.by.id.clone(), stale.by.beat), (ids[0].to_string(), 1));
    // An operator waits, and comes next.
    assert!(is_of(&claims(&stock, &item, ids[2], Claim::Restore(None)).await, ids[0]));
    assert!(is_of(&claims(&stock, &item, ids[0], Claim::Release).await, ids[2]));
    assert!(is_of(&claims(&stock, &item, ids[1], Claim::Reopen(None)).await, ids[2]));
    let mine = claims(&stock, &item, ids[2], Claim::Restore(None)).await.expect("claimed");
    assert!(is_of(&Some(mine.clone()), ids[2]));
    // A stale owner is taken over.
    assert!(is_of(&claims(&stock, &item, ids[1], Claim::Reopen(Some(mine.by))).await, ids[1]));
    let late = Opening { id: ids[2], life: mine.life.clone(), term: 1, anew: None };
    assert!(!stock.open(&item, &late).await.expect("an answer"), "no longer its own");
    assert!(stock.seed(&item, 5, Uuid::now_v7()).await.is_err());
    assert!(stock.add(&item, 5).await.is_err(), "what is added now might be lost");
    // Released with none waiting, it stays shut and can be claimed.
    assert!(claims(&stock, &item, ids[1], Claim::Release).await.is_some());
    assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
    let last = claims(&stock, &item, ids[3], Claim::Reopen(None)).await.expect("claimed");
    let opening = Opening { id: ids[3], life: last.life, term: 7, anew: None };
    assert!(stock.open(&item, &opening).await.expect("opened"));
    let reply = stock.take(&item, &call(&[None], true)).await.expect("taken");
    assert_eq!((reply.term, reply.serial, reply.taken.map(|batch| batch.term)), (7, 2, Some(7)));
}

/// A doubt, or an operator, can also claim an open and trusted sale.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_sale_that_believes_itself_is_claimed_in_doubt() {
    for claim in [Claim::Doubt(None), Claim::Overrule(None)] {
        let (stock, item) = stock();
        stock.seed(&item, 5, Uuid::now_v7()).await.expect("seeded");
        let id = Uuid::now_v7();
        assert!(is_of(&claims(&stock, &item, id, claim).await, id));
        assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
    }
}

/// A check of an unknown item does not leave it shut.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_claim_to_nothing_is_dropped() {
    let (stock, item) = stock();
    let id = Uuid::now_v7();
    assert!(is_of(&claims(&stock, &item, id, Claim::Restore(None)).await, id));
    by_hand(&stock, &["SET", &item.key(), "5"]).await;
    assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
    assert_eq!(claims(&stock, &item, id, Claim::Drop).await, None);
    assert_eq!(stock.take(&item, &call(&[None], true)).await.expect("taken").left, Some(4));
}

/// A rebuild sets counter, serial and winners; the previous sale is kept with the earlier ones.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_book_is_made_anew() {
    let (stock, item) = stock();
    let (chosen, other) = (Uuid::now_v7(), Uuid::now_v7());
    stock.seed(&item, 9, other).await.expect("seeded");
    stock.take(&item, &call(&[None, Some("x")], true)).await.expect("taken");
    let id = Uuid::now_v7();
    let life = claims(&stock, &item, id, Claim::Overrule(None)).await.expect("claimed").life;
    let batch = Batch {
        id,
        item: item.clone(),
        epoch: chosen,
        term: 0,
        serial: 1,
        remaining: 6,
        at: crate::clock::moment(),
        attempts: (0..2500)
            .map(|number| Attempt { order: Uuid::now_v7(), name: Some(format!("k:{number}")) })
            .collect(),
    };
    let winners: Vec<Sale> = batch.sales().collect();
    stock.prepare(&item, id, &winners[..1200]).await.expect("prepared");
    stock.prepare(&item, id, &winners[1200..]).await.expect("prepared");
    let anew = Some(Anew { epoch: chosen, serial: 2500, left: 3 });
    assert!(stock.open(&item, &Opening { id, life, term: 2, anew }).await.expect("opened"));
    let reply = stock.take(&item, &call(&[Some("2499"), Some("x"), None], true)).await.expect("taken");
    assert!(matches!(&reply.outcomes[0], Outcome::Known(known) if known.order == winners[2499].order));
    assert_eq!((reply.epoch, reply.serial, reply.left), (Some(chosen), 2502, Some(1)));
    let books = stock.books(&item).await.expect("books");
    assert_eq!((books[1].epoch, books[1].serial, books[1].left), (other, 2, 7));
    assert_eq!(by_hand(&stock, &["TTL", &format!("{{{}}}:attempts", item.key())]).await, Value::Int(-1));
}

#[tokio::test]
#[ignore = "needs servers"]
async fn units_are_added_to_what_is_shown() {
    let (stock, item) = stock();
    let key = item.key();
    for (before, after) in [("-5", 200), ("0", 200), ("7", 207)] {
        by_hand(&stock, &["SET", &key, before]).await;
        assert_eq!(stock.add(&item, 200).await, Ok(Some(after)), "{before}");
    }
    for wrong in ["many", "1.5", "9007199254740991"] {
        by_hand(&stock, &["SET", &key, wrong]).await;
        let error = stock.add(&item, 5).await.expect_err(wrong);
        assert!(matches!(&error, StockError::Refused(why) if why.contains(&key)), "{wrong}: {error}");
    }
    by_hand(&stock, &["DEL", &key]).await;
    by_hand(&stock, &["LPUSH", &key, "1"]).await;
    assert!(stock.add(&item, 5).await.expect_err("a list").to_string().contains(&key));
}

/// Counters that operators set are found without a client asking first.
#[tokio::test]
#[ignore = "needs servers"]
async fn counters_set_by_hand_are_found() {
    let (stock, item) = stock();
    by_hand(&stock, &["SET", &item.key(), "9"]).await;
    let odd = format!("counter:{}X", item.name());
    by_hand(&stock, &["SET", &odd, "9"]).await;
    assert!(stock.discover(None).await.expect("looked").contains(&odd));
    assert!(stock.items().await.expect("items").contains(&item));
    // Step by step, on from the cursor.
    let (stock, item) = self::stock();
    by_hand(&stock, &["SET", &item.key(), "9"]).await;
    let mut steps = 0;
    while !stock.items().await.expect("items").contains(&item) {
        stock.discover(Some(1)).await.expect("looked");
        steps += 1;
        assert!(steps < 10_000, "not found");
    }
    by_hand(&stock, &["DEL", &odd]).await;
}

#[tokio::test]
#[ignore = "needs servers"]
async fn what_is_over_is_forgotten() {
    let (stock, item) = stock();
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    stock.seed(&item, 3, first).await.expect("seeded");
    stock.seed(&item, 3, second).await.expect("seeded");
    stock.forget(&item, &[first], true).await.expect("forgotten");
    let books = stock.books(&item).await.expect("books");
    assert_eq!(books.iter().map(|book| book.epoch).collect::<Vec<_>>(), [second], "it is on sale");
    by_hand(&stock, &["DEL", &item.key()]).await;
    stock.forget(&item, &[], false).await.expect("heard");
    assert!(stock.items().await.expect("items").contains(&item), "winners may stand in its book");
    stock.forget(&item, &[], true).await.expect("forgotten");
    assert!(!stock.items().await.expect("items").contains(&item));
    assert!(!stock.knows(&item).await.expect("an answer"));
}

/// A connection that the server closed while idle costs no answer.
#[tokio::test]
#[ignore = "needs servers"]
async fn idle_connections_that_were_ended_are_not_used() {
    let (stock, item) = stock();
    stock.seed(&item, 100, Uuid::now_v7()).await.expect("seeded");
    let stock = Arc::new(stock);
    let crowd = async || {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let (stock, item) = (Arc::clone(&stock), item.clone());
                tokio::spawn(async move { stock.take(&item, &call(&[None], true)).await.is_ok() })
            })
            .collect();
        let mut all = true;
        for call in calls {
            all &= call.await.expect("no panic");
        }
        all
    };
    assert!(crowd().await);
    let other = RedisStock::new(&std::env::var("SECKILL_REDIS_URL").expect("servers")).expect("a URL");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    // As a `timeout` does, or a NAT that drops state.
    for id in stock.link.ids().await {
        by_hand(&other, &["CLIENT", "KILL", "ID", &id]).await;
    }
    assert!(crowd().await, "made anew");
}

/// After a demotion the old connections are not used again.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_read_only_server_loses_its_connections() {
    let (stock, item) = stock();
    stock.seed(&item, 100, Uuid::now_v7()).await.expect("seeded");
    let before = stock.link.ids().await;
    let demoted =
        redis::Cmd::new().arg("EVAL").arg("return redis.error_reply('READONLY no longer')").arg(0).to_owned();
    let answer: Result<Value, _> = stock.read("by hand", &demoted).await;
    assert!(matches!(answer, Err(StockError::Refused(_))), "{answer:?}");
    stock.take(&item, &call(&[None], true)).await.expect("taken");
    let after = stock.link.ids().await;
    assert!(before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
}

#[tokio::test]
#[ignore = "needs servers"]
async fn the_books_know_what_operators_do_by_hand() {
    let (stock, item) = stock();
    let key = item.key();
    by_hand(&stock, &["SET", &key, "5"]).await;
    let refreshed = stock.take(&item, &call(&[], true)).await.expect("a refresh");
    assert!(refreshed.epoch.is_some(), "a counter without a book is a new sale");
    stock.take(&item, &call(&[None, None], true)).await.expect("taken");
    by_hand(&stock, &["INCRBY", &key, "7"]).await;
    let books = stock.books(&item).await.expect("books");
    assert_eq!((books[0].seeded, books[0].left, books[0].serial), (12, 10, 2), "before the next batch");
    stock.take(&item, &call(&[None], true)).await.expect("taken");
    by_hand(&stock, &["DECRBY", &key, "100"]).await;
    let below = stock.take(&item, &call(&[None], true)).await.expect("an answer");
    assert_eq!((below.left, &below.outcomes[0]), (Some(0), &Outcome::SoldOut), "below zero is zero");
    by_hand(&stock, &["DEL", &key]).await;
    let gone = stock.take(&item, &call(&[None], true)).await.expect("an answer");
    assert_eq!((gone.left, &gone.outcomes[0]), (None, &Outcome::NotOnSale));
    by_hand(&stock, &["SET", &key, "4"]).await;
    let back = stock.take(&item, &call(&[None], true)).await.expect("taken");
    assert_eq!(back.epoch, refreshed.epoch, "the sale goes on");
    assert_eq!(back.taken.map(|batch| batch.serial), Some(4));
    let book = &stock.books(&item).await.expect("books")[0];
    assert_eq!((book.seeded, book.left, book.serial), (7, 3, 4));
}

/// Keys are checked before any write: nothing is taken, and the error names the key.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_value_that_is_none_is_named_and_nothing_is_taken() {
    let (stock, item) = stock();
    let key = item.key();
    for wrong in ["many", "", "1.5", "007", "+3", " 3", "9007199254740993", "-9007199254740993", "1e9"] {
        by_hand(&stock, &["SET", &key, wrong]).await;
        let error = stock.take(&item, &call(&[None], true)).await.expect_err(wrong);
        assert!(matches!(&error, StockError::Refused(why) if why.contains(&key)), "{wrong}: {error}");
        let error = stock.books(&item).await.expect_err(wrong);
        assert!(error.to_string().contains(&key), "{wrong}: {error}");
    }
    by_hand(&stock, &["DEL", &key]).await;
    by_hand(&stock, &["LPUSH", &key, "1"]).await;
    assert!(stock.take(&item, &call(&[None], true)).await.is_err());
    by_hand(&stock, &["DEL", &key]).await;
    for beside in ["book", "outbox", "attempts"] {
        by_hand(&stock, &["SET", &key, "3"]).await;
        let beside = format!("{{{key}}}:{beside}");
        by_hand(&stock, &["DEL", &beside]).await;
        by_hand(&stock, &["SET", &beside, "x"]).await;
        for names in [&[][..], &[None, Some("a")]] {
            let error = stock.take(&item, &call(names, true)).await.expect_err(&beside);
            assert!(error.to_string().contains(&beside), "{error}");
        }
        let error = stock.books(&item).await.expect_err(&beside);
        assert!(error.to_string().contains(&beside), "{error}");
        assert_eq!(by_hand(&stock, &["GET", &key]).await, Value::BulkString(b"3".into()));
        by_hand(&stock, &["DEL", &beside]).await;
    }
    let well = stock.take(&item, &call(&[None], true)).await.expect("an answer");
    assert_eq!(well.left, Some(2));
}

/// A book edited by hand is not written to, and its numbers cause no panic.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_book_with_odd_values_sells_nothing() {
    let (stock, item) = stock();
    let (key, book) = (item.key(), format!("{{{}}}:book", item.key()));
    for (field, wrong) in [
        ("epoch", "not-a-uuid"),
        ("serial", "-5"),
        ("left", "x"),
        ("seeded", "9007199254740991"),
        ("term", "-1"),
        ("serial", "18446744073709551615"),
    ] {
        by_hand(&stock, &["DEL", &key, &book]).await;
        stock.seed(&item, 3, Uuid::now_v7()).await.expect("seeded");
        by_hand(&stock, &["INCRBY", &key, "1"]).await;
        by_hand(&stock, &["HSET", &book, field, wrong]).await;
        let error = stock.take(&item, &call(&[None], true)).await.expect_err(field);
        assert!(error.to_string().contains(&book), "{field}: {error}");
        let _ = stock.books(&item).await;
        assert_eq!(by_hand(&stock, &["GET", &key]).await, Value::BulkString(b"4".into()));
    }
    by_hand(&stock, &["SET", &key, "9223372036854775807"]).await;
    assert!(stock.books(&item).await.is_err());
    stock.seed(&item, 5, Uuid::now_v7()).await.expect("a new sale mends it");
    assert_eq!(stock.take(&item, &call(&[None], true)).await.expect("taken").left, Some(4));
}

/// A late or repeated seed does not revive an earlier sale.
#[tokio::test]
#[ignore = "needs servers"]
async fn an_epoch_is_never_begun_twice() {
    let (stock, item) = stock();
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    stock.seed(&item, 3, first).await.expect("seeded");
    stock.take(&item, &call(&[None], true)).await.expect("taken");
    stock.seed(&item, 5, second).await.expect("seeded");
    stock.seed(&item, 3, first).await.expect("heard");
    let running = stock.take(&item, &call(&[], true)).await.expect("a refresh");
    assert_eq!((running.epoch, running.left), (Some(second), Some(5)));
}

/// More concurrent calls than connections: they take turns.
#[tokio::test]
#[ignore = "needs servers"]
async fn many_at_once_share_the_connections() {
    let (stock, item) = stock();
    let stock = Arc::new(stock);
    let asked: Vec<_> = (0..500)
        .map(|_| {
            let (stock, item) = (Arc::clone(&stock), item.clone());
            tokio::spawn(async move { stock.knows(&item).await })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.expect("no panic"), Ok(false));
    }
}

#[tokio::test]
#[ignore = "needs servers"]
async fn scripts_survive_a_flush() {
    let (stock, item) = stock();
    stock.seed(&item, 2, Uuid::now_v7()).await.expect("seeded");
    by_hand(&stock, &["SCRIPT", "FLUSH"]).await;
    assert_eq!(stock.take(&item, &call(&[None], true)).await.expect("taken").left, Some(1));
}

#[tokio::test]
#[ignore = "needs servers"]
async fn a_full_batch_of_names() {
    let (stock, item) = stock();
    stock.seed(&item, 600, Uuid::now_v7()).await.expect("seeded");
    let names: Vec<String> = (0..crate::stock::MAX_ATTEMPTS).map(|number| number.to_string()).collect();
    let names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    let settled = (0..crate::stock::MAX_SETTLED).map(|_| Uuid::now_v7()).collect();
    let reply = stock.take(&item, &Call { settled, ..call(&names, true) }).await.expect("taken");
    assert_eq!(reply.left, Some(88));
    let again = stock.take(&item, &call(&names, true)).await.expect("an answer");
    assert!(again.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Known(_))));
    assert_eq!(again.standing.len(), 1);
}
