//! The stock in Redis: an operator's plain counter, and its books beside it.

mod link;
mod promise;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use consumer::sale::Sale;
use redis::{FromRedisValue, RedisError, Script, ScriptInvocation, Value};
use uuid::Uuid;

use super::{
    Book, Call, Claim, Claimed, Entries, EntryName, Known, Opening, Outcome, Owner, Reply, Stock, StockError,
};
use crate::sale::{Attempt, Batch, Item};
use link::Link;

/// Keys looked at in one step of the search for counters: well under a millisecond of Redis' time.
const SCAN_COUNT: usize = 1000;
/// Winners written at once when attempts are made anew.
const RECORDS_AT_ONCE: usize = 1000;
/// How long attempts made anew stay when whoever made them dies before they are put in place, in
/// seconds: longer than any reopening.
const PREPARED_FOR_S: u32 = 3600;
/// The set of all items' names.
const ITEMS: &str = "seckill:items";
/// The counters that operators set, but for the default item's.
const COUNTERS: &str = "counter:*";

/// A single Redis, spoken to through a few connections of its own.
pub struct RedisStock {
    link: Link,
    take: Script,
    seed: Script,
    add: Script,
    claim: Script,
    open: Script,
    books: Script,
    forget: Script,
    /// Where the search for counters goes on.
    searched: AtomicU64,
}

/// The keys of one item, in one cluster slot.
struct Keys {
    counter: String,
    book: String,
    books: String,
    outbox: String,
    attempts: String,
}

impl Keys {
    fn of(item: &Item) -> Self {
        let counter = item.key();
        Self {
            book: format!("{{{counter}}}:book"),
            books: format!("{{{counter}}}:books"),
            outbox: format!("{{{counter}}}:outbox"),
            attempts: format!("{{{counter}}}:attempts"),
            counter,
        }
    }

    /// Where winners are made ready for an opening.
    fn prepared(&self, id: Uuid) -> String {
        format!("{}:{id}", self.attempts)
    }
}

impl RedisStock {
    /// Prepares to speak to the Redis at `url`; connects when first asked.
    ///
    /// # Errors
    /// When the URL cannot be used; the message does not contain it.
    pub fn new(url: &str) -> Result<Self, String> {
        Ok(Self {
            link: Link::new(url)?,
            take: script(include_str!("take.lua")),
            seed: script(include_str!("seed.lua")),
            add: script(include_str!("add.lua")),
            claim: script(include_str!("claim.lua")),
            open: script(include_str!("open.lua")),
            books: script(include_str!("books.lua")),
            forget: script(include_str!("forget.lua")),
            searched: AtomicU64::new(0),
        })
    }

    /// A question that changes nothing, or may be asked again: an answer that cannot be read is
    /// a value put there by hand, and `about` names it.
    async fn read<T: FromRedisValue>(&self, about: &str, command: &redis::Cmd) -> Result<T, StockError> {
        let answer = self.link.ask(async |connection| command.query_async(connection).await).await;
        let answer = answer.map_err(|error| match error {
            StockError::Refused(why) => StockError::Refused(format!("{why} ({about})")),
            silent @ StockError::Silent(_) => silent,
        })?;
        redis::from_redis_value(answer)
            .map_err(|error| StockError::Refused(format!("redis: {about}: {error}")))
    }
}

impl RedisStock {
    /// What a call sends to Redis.
    pub fn taking<'s>(&'s self, item: &Item, call: &Call) -> ScriptInvocation<'s> {
        let keys = Keys::of(item);
        let (named, anonymous) = call.by_name();
        let mut lines = String::with_capacity(anonymous.len() * 37);
        for attempt in &anonymous {
            attempt.write_line(&mut lines);
        }
        let mut script = self.take.prepare_invoke();
        script
            .key(&keys.counter)
            .key(&keys.book)
            .key(&keys.outbox)
            .key(&keys.attempts)
            .arg(call.offer.to_string())
            .arg(call.at.as_microsecond())
            .arg(call.id.to_string())
            .arg(u8::from(call.taking))
            .arg(anonymous.len())
            .arg(lines)
            .arg(named.len());
        for attempt in &named {
            script.arg(attempt.name.as_deref());
        }
        for attempt in &named {
            script.arg(attempt.order.to_string());
        }
        for settled in &call.settled {
            script.arg(settled.to_string());
        }
        script
    }

    /// An error that names the first of an item's keys that is of another type than ours: Redis
    /// itself says only that one of those asked for is.
    async fn well_typed(&self, keys: &Keys) -> Result<(), StockError> {
        let wanted = [
            (&keys.counter, "string"),
            (&keys.book, "hash"),
            (&keys.books, "hash"),
            (&keys.outbox, "hash"),
            (&keys.attempts, "hash"),
        ];
        for (key, wanted) in wanted {
            let found: String = self.read(key, redis::cmd("TYPE").arg(key)).await?;
            if found != wanted && found != "none" {
                return Err(StockError::Refused(format!("redis: {key}: a {found}, not a {wanted}")));
            }
        }
        Ok(())
    }
}

/// A script of ours, which may ask which life of its data this Redis is.
fn script(body: &str) -> Script {
    Script::new(&[include_str!("life.lua"), body].concat())
}

/// What Redis said; our own scripts name the key.
fn words(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some("BADKEY" | "SHUT" | "OUTDATED" | "NOLIFE"), Some(detail)) => format!("redis: {detail}"),
        _ => format!("redis: {error}"),
    }
}

#[async_trait]
impl Stock for RedisStock {
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError> {
        let (named, anonymous) = call.by_name();
        let script = self.taking(item, call);
        let answer = self.link.ask(async |connection| script.invoke_async(connection).await).await?;
        let answer: Answer = redis::from_redis_value(answer)
            .map_err(|error| StockError::Silent(format!("redis: the script's answer: {error}")))?;
        Ok(answer.into_reply(item, call, &named, &anonymous))
    }

    async fn outbox(&self, item: &Item) -> Result<Vec<EntryName>, StockError> {
        let key = Keys::of(item).outbox;
        self.read(&key, redis::cmd("HKEYS").arg(&key)).await
    }

    async fn entries(&self, item: &Item, names: &[EntryName]) -> Result<Entries, StockError> {
        let mut entries = Entries::default();
        if names.is_empty() {
            return Ok(entries);
        }
        let key = Keys::of(item).outbox;
        let found: Vec<Option<Vec<u8>>> = self.read(&key, redis::cmd("HMGET").arg(&key).arg(names)).await?;
        for (name, entry) in names.iter().zip(found) {
            let (name, Some(entry)) = (String::from_utf8_lossy(name), entry) else { continue };
            match Batch::from_entry(&name, item, &String::from_utf8_lossy(&entry)) {
                Ok(batch) => entries.batches.push(batch),
                Err(why) => entries.unreadable.push(format!("{key} {name}: {why}")),
            }
        }
        Ok(entries)
    }

    async fn items(&self) -> Result<Vec<Item>, StockError> {
        let names: Vec<String> = self.read(ITEMS, redis::cmd("SMEMBERS").arg(ITEMS)).await?;
        let mut items: Vec<Item> = names.iter().filter_map(|name| name.parse().ok()).collect();
        items.push(Item::default());
        items.sort();
        items.dedup();
        Ok(items)
    }

    async fn discover(&self, most: Option<usize>) -> Result<Vec<String>, StockError> {
        let (mut cursor, mut looked) = (most.map_or(0, |_| self.searched.load(Ordering::Relaxed)), 0);
        let mut odd = Vec::new();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(COUNTERS).arg("COUNT").arg(SCAN_COUNT);
            let (next, keys): (u64, Vec<Vec<u8>>) = self.read(COUNTERS, &scan).await?;
            for key in keys {
                let key = String::from_utf8_lossy(&key);
                match key.trim_start_matches(COUNTERS.trim_end_matches('*')).parse() {
                    Ok(item) => drop(self.knows(&item).await?),
                    Err(_) => odd.push(key.into_owned()),
                }
            }
            (cursor, looked) = (next, looked + SCAN_COUNT);
            if cursor == 0 || most.is_some_and(|most| looked >= most) {
                self.searched.store(cursor, Ordering::Relaxed);
                odd.sort();
                odd.dedup();
                return Ok(odd);
            }
        }
    }

    async fn knows(&self, item: &Item) -> Result<bool, StockError> {
        let keys = Keys::of(item);
        let exists: i64 =
            self.read(&keys.counter, redis::cmd("EXISTS").arg(&keys.counter).arg(&keys.book)).await?;
        if exists > 0 {
            self.read::<Value>(ITEMS, redis::cmd("SADD").arg(ITEMS).arg(item.name())).await?;
        }
        Ok(exists > 0)
    }

    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError> {
        let keys = Keys::of(item);
        let mut script = self.seed.prepare_invoke();
        script
            .key(&keys.counter)
            .key(&keys.book)
            .key(&keys.books)
            .key(&keys.attempts)
            .arg(epoch.to_string())
            .arg(units);
        self.link
            .ask(async |connection| {
                redis::cmd("SADD").arg(ITEMS).arg(item.name()).query_async::<()>(connection).await?;
                script.invoke_async(connection).await
            })
            .await
            .map(drop)
    }

    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError> {
        let keys = Keys::of(item);
        let mut script = self.add.prepare_invoke();
        script.key(&keys.counter).key(&keys.book).arg(units);
        let answer = self.link.ask(async |connection| script.invoke_async(connection).await).await?;
        let left: Option<i64> = redis::from_redis_value(answer)
            .map_err(|error| StockError::Silent(format!("redis: {}: {error}", keys.counter)))?;
        Ok(left.map(not_negative))
    }

    async fn claim(&self, item: &Item, id: Uuid, claim: Claim) -> Result<Option<Claimed>, StockError> {
        let keys = Keys::of(item);
        let (what, from) = match claim {
            Claim::Reopen(from) => ("reopen", from),
            Claim::Doubt(from) => ("doubt", from),
            Claim::Restore(from) => ("restore", from),
            Claim::Overrule(from) => ("overrule", from),
            Claim::Renew(life) => ("renew", Some(Owner { id: life, beat: 0 })),
            Claim::Release => ("release", None),
            Claim::Drop => ("drop", None),
        };
        let mut script = self.claim.prepare_invoke();
        script.key(&keys.book).arg(id.to_string()).arg(what);
        if let Some(Owner { id, beat }) = from {
            script.arg(id).arg(beat);
        }
        let answer = self.link.ask(async |connection| script.invoke_async(connection).await).await?;
        let found: Option<Vec<String>> = redis::from_redis_value(answer)
            .map_err(|error| StockError::Refused(format!("redis: {}: {error}", keys.book)))?;
        let Some(found) = found else { return Ok(None) };
        let bad = || StockError::Refused(format!("redis: {}: cannot be read", keys.book));
        let [by, beat, life, epoch, serial] = &found[..] else { return Err(bad()) };
        let epoch = Some(epoch).filter(|epoch| !epoch.is_empty());
        Ok(Some(Claimed {
            by: Owner { id: by.clone(), beat: beat.parse().map_err(|_| bad())? },
            life: life.clone(),
            epoch: epoch.map(|epoch| epoch.parse()).transpose().map_err(|_| bad())?,
            serial: serial.parse().map_err(|_| bad())?,
        }))
    }

    async fn prepare(&self, item: &Item, id: Uuid, winners: &[Sale]) -> Result<(), StockError> {
        let prepared = Keys::of(item).prepared(id);
        for winners in winners.chunks(RECORDS_AT_ONCE) {
            let mut command = redis::cmd("HSET");
            command.arg(&prepared);
            for sale in winners {
                // Not in the outbox any more: no batch.
                let record = format!("{} {} {}", sale.order, sale.remaining, Uuid::nil());
                command.arg(sale.attempt.as_deref()).arg(record);
            }
            self.read::<Value>(&prepared, &command).await?;
            self.read::<Value>(&prepared, redis::cmd("EXPIRE").arg(&prepared).arg(PREPARED_FOR_S)).await?;
        }
        Ok(())
    }

    async fn open(&self, item: &Item, opening: &Opening) -> Result<bool, StockError> {
        let keys = Keys::of(item);
        let mut script = self.open.prepare_invoke();
        script.key(&keys.counter).key(&keys.book).key(&keys.books).key(&keys.outbox).key(&keys.attempts);
        script.key(keys.prepared(opening.id));
        script.arg(opening.id.to_string()).arg(&opening.life).arg(opening.term);
        if let Some(anew) = &opening.anew {
            script.arg(anew.epoch.to_string()).arg(anew.serial).arg(anew.left);
        }
        let answer = self.link.ask(async |connection| script.invoke_async(connection).await).await?;
        redis::from_redis_value(answer).map_err(|error| StockError::Silent(format!("redis: {error}")))
    }

    async fn forget(&self, item: &Item, epochs: &[Uuid], all: bool) -> Result<(), StockError> {
        let keys = Keys::of(item);
        let mut script = self.forget.prepare_invoke();
        script.key(&keys.counter).key(&keys.book).key(&keys.books).key(&keys.outbox).key(&keys.attempts);
        script.arg(u8::from(all));
        for epoch in epochs {
            script.arg(epoch.to_string());
        }
        let answer = self.link.ask(async |connection| script.invoke_async(connection).await).await?;
        let gone: bool =
            redis::from_redis_value(answer).map_err(|error| StockError::Silent(format!("redis: {error}")))?;
        if gone {
            self.read::<Value>(ITEMS, redis::cmd("SREM").arg(ITEMS).arg(item.name())).await?;
        }
        Ok(())
    }

    async fn broken_promises(&self) -> Result<Vec<String>, StockError> {
        let about: String = self.read("INFO", redis::cmd("INFO").arg("replication")).await?;
        let replicas =
            about.lines().find_map(|line| line.strip_prefix("connected_slaves:")?.trim().parse().ok());
        let mut settings = HashMap::new();
        for name in promise::ASKED {
            let answer = self.read("CONFIG GET", redis::cmd("CONFIG").arg("GET").arg(name)).await;
            match answer {
                Ok(told) => settings.extend::<HashMap<String, String>>(told),
                // It answered just now: it may not be asked.
                Err(StockError::Refused(why)) => return Ok(vec![promise::not_told(&why)]),
                Err(silent @ StockError::Silent(_)) => return Err(silent),
            }
        }
        Ok(promise::broken(&settings, replicas.unwrap_or(0)))
    }

    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError> {
        let keys = Keys::of(item);
        self.well_typed(&keys).await?;
        type Fields = (Option<String>, Vec<Option<String>>, Vec<(String, String)>, String);
        let mut script = self.books.prepare_invoke();
        script.key(&keys.counter).key(&keys.book).key(&keys.books);
        let answer = self.link.ask(async |connection| script.invoke_async(connection).await).await?;
        let bad = |key: &str| StockError::Refused(format!("redis: {key}: cannot be read"));
        let (counter, book, earlier, life): Fields =
            redis::from_redis_value(answer).map_err(|_| bad(&keys.book))?;
        let counter = counter
            .map(|counter| {
                let wrong = || StockError::Refused(format!("redis: {}: not a whole number", keys.counter));
                whole(&counter).ok_or_else(wrong)
            })
            .transpose()?;
        let number = |index: usize| book[index].as_deref().and_then(whole);
        let epoch = book[0].as_deref().map(Uuid::try_parse).transpose().map_err(|_| bad(&keys.book))?;
        let shut = book[4].is_some() || (epoch.is_some() && book[5].as_deref() != Some(&*life));
        let mut books = Vec::new();
        let now = counter.map_or(0, not_negative);
        if let Some(epoch) = epoch {
            let (Some(serial), Some(left), Some(seeded)) = (number(1), number(2), number(3)) else {
                return Err(bad(&keys.book));
            };
            let by_hand = i64::try_from(now).unwrap_or(0) - left;
            books.push(Book {
                epoch,
                serial: not_negative(serial),
                left: now,
                seeded: not_negative(seeded + by_hand),
                on_sale: counter.is_some(),
                shut,
                term: number(6).map_or(0, not_negative),
            });
        } else if book[1..4].iter().any(Option::is_some) {
            return Err(bad(&keys.book));
        } else if counter.is_some() || shut {
            books.push(Book {
                epoch: Uuid::nil(),
                serial: 0,
                left: now,
                seeded: now,
                on_sale: counter.is_some(),
                shut,
                term: 0,
            });
        }
        for (epoch, book) in earlier {
            books.push(earlier_book(&epoch, &book).ok_or_else(|| bad(&format!("{} {epoch}", keys.books)))?);
        }
        Ok(books)
    }
}

/// `serial left seeded`, as seed.lua writes it.
fn earlier_book(epoch: &str, book: &str) -> Option<Book> {
    let mut numbers =
        book.split(' ').map(|number| whole(number).and_then(|number| u64::try_from(number).ok()));
    let mut number = || numbers.next()?;
    Some(Book {
        epoch: epoch.parse().ok()?,
        serial: number()?,
        left: number()?,
        seeded: number()?,
        on_sale: false,
        shut: false,
        term: 0,
    })
}

/// A number as the scripts read it: written plainly, and exact in Lua.
fn whole(text: &str) -> Option<i64> {
    const MAX: i64 = (1 << 53) - 1;
    text.parse().ok().filter(|number: &i64| (-MAX..=MAX).contains(number) && number.to_string() == text)
}

fn not_negative(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// What take.lua says is left when the sale is shut.
const SHUT: i64 = -2;

/// What take.lua returns.
struct Answer {
    left: i64,
    epoch: String,
    term: u64,
    serial: u64,
    remaining: u64,
    unnamed: usize,
    open: u64,
    outcomes: Vec<Value>,
    entries: Vec<String>,
    last: u64,
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let (left, epoch, term, serial, remaining, unnamed, open, outcomes, entries, last) =
            redis::from_redis_value(value)?;
        Ok(Self { left, epoch, term, serial, remaining, unnamed, open, outcomes, entries, last })
    }
}

impl Answer {
    fn into_reply(self, item: &Item, call: &Call, named: &[&Attempt], anonymous: &[&Attempt]) -> Reply {
        let epoch = self.epoch.parse().ok();
        if self.left == SHUT {
            let outcomes = vec![Outcome::Shut; call.attempts.len()];
            return Reply {
                epoch,
                term: self.term,
                open: self.open,
                shut: true,
                outcomes,
                ..Reply::default()
            };
        }
        let mut winners: Vec<Attempt> = Vec::new();
        let outcomes: Vec<Outcome> =
            self.outcomes.iter().map(|outcome| self.named_outcome(outcome, call)).collect();
        for (attempt, outcome) in named.iter().zip(&outcomes) {
            // A name that comes twice in a batch takes once.
            if *outcome == Outcome::Taken(winners.len()) {
                winners.push((*attempt).clone());
            }
        }
        let by_name = winners.len();
        winners.extend(anonymous.iter().take(self.unnamed).map(|attempt| (*attempt).clone()));

        let (mut named, mut taken) = (outcomes.into_iter(), 0);
        let outcomes = call
            .attempts
            .iter()
            .map(|attempt| {
                if attempt.name.is_some() {
                    named.next().unwrap_or(Outcome::Unreadable)
                } else if taken < self.unnamed {
                    taken += 1;
                    Outcome::Taken(by_name + taken - 1)
                } else {
                    self.without_unit(call)
                }
            })
            .collect();
        let standing = self
            .entries
            .chunks_exact(2)
            .filter_map(|entry| Batch::from_entry(&entry[0], item, &entry[1]).ok())
            .collect();
        let taken = epoch.filter(|_| !winners.is_empty()).map(|epoch| Batch {
            id: call.id,
            item: item.clone(),
            epoch,
            term: self.term,
            serial: self.serial,
            remaining: self.remaining,
            at: call.at,
            attempts: winners,
        });
        Reply {
            epoch,
            left: u64::try_from(self.left).ok(),
            term: self.term,
            serial: self.last,
            open: self.open,
            shut: false,
            taken,
            outcomes,
            standing,
        }
    }

    fn without_unit(&self, call: &Call) -> Outcome {
        if self.left < 0 {
            Outcome::NotOnSale
        } else if call.taking {
            Outcome::SoldOut
        } else {
            Outcome::NotTaken
        }
    }

    /// `n` taken as the n-th, 0: none; `o…` and `k…` known, in the outbox or not.
    fn named_outcome(&self, outcome: &Value, call: &Call) -> Outcome {
        let known = |open, record: &str| {
            let mut fields = record.split(' ');
            let mut field = || fields.next();
            Some(Outcome::Known(Known {
                order: field()?.parse().ok()?,
                remaining: field()?.parse().ok()?,
                batch: field()?.parse().ok()?,
                open,
            }))
        };
        let found = match outcome {
            Value::Int(0) => Some(self.without_unit(call)),
            Value::Int(nth) => usize::try_from(*nth - 1).ok().map(Outcome::Taken),
            Value::BulkString(text) => {
                match str::from_utf8(text).ok().and_then(|it| it.split_at_checked(1)) {
                    Some(("o", record)) => known(true, record),
                    Some((_, record)) => known(false, record),
                    None => None,
                }
            }
            _ => None,
        };
        found.unwrap_or(Outcome::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::stock::Anew;
    use crate::stock::contract::{call, keeps_the_contract};

    /// A stock on the tests' Redis, and an item that nobody has used.
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
    async fn the_contract() {
        let (stock, item) = stock();
        keeps_the_contract(&stock, &item).await;
    }

    #[tokio::test]
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
        assert_eq!(
            known.standing,
            std::slice::from_ref(&batch),
            "whoever has to announce it is told what it is"
        );

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

    /// What a book says of another life of the data, as after a restart.
    async fn lives_anew(stock: &RedisStock, item: &Item) {
        by_hand(stock, &["HSET", &format!("{{{}}}:book", item.key()), "run", "another:life"]).await;
    }

    /// One at a time has a sale, an operator next; who does not renew loses it.
    #[tokio::test]
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
        // Renewed, it is not who it was seen to be.
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
        // Whoever stands still is taken over.
        assert!(is_of(&claims(&stock, &item, ids[1], Claim::Reopen(Some(mine.by))).await, ids[1]));
        let late = Opening { id: ids[2], life: mine.life.clone(), term: 1, anew: None };
        assert!(!stock.open(&item, &late).await.expect("an answer"), "no longer its own");
        assert!(stock.seed(&item, 5, Uuid::now_v7()).await.is_err());
        assert!(stock.add(&item, 5).await.is_err(), "what is added now might be lost");
        // Released to nobody it stays shut, and anybody may claim it.
        assert!(claims(&stock, &item, ids[1], Claim::Release).await.is_some());
        assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
        let last = claims(&stock, &item, ids[3], Claim::Reopen(None)).await.expect("claimed");
        let opening = Opening { id: ids[3], life: last.life, term: 7, anew: None };
        assert!(stock.open(&item, &opening).await.expect("opened"));
        let reply = stock.take(&item, &call(&[None], true)).await.expect("taken");
        assert_eq!((reply.term, reply.serial, reply.taken.map(|batch| batch.term)), (7, 2, Some(7)));
    }

    /// A doubt, and an operator, claim also what believes itself.
    #[tokio::test]
    async fn a_sale_that_believes_itself_is_claimed_in_doubt() {
        for claim in [Claim::Doubt(None), Claim::Overrule(None)] {
            let (stock, item) = stock();
            stock.seed(&item, 5, Uuid::now_v7()).await.expect("seeded");
            let id = Uuid::now_v7();
            assert!(is_of(&claims(&stock, &item, id, claim).await, id));
            assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
        }
    }

    /// What nothing is known of is not shut for ever by who looked.
    #[tokio::test]
    async fn a_claim_to_nothing_is_dropped() {
        let (stock, item) = stock();
        let id = Uuid::now_v7();
        assert!(is_of(&claims(&stock, &item, id, Claim::Restore(None)).await, id));
        by_hand(&stock, &["SET", &item.key(), "5"]).await;
        assert!(stock.take(&item, &call(&[None], true)).await.expect("an answer").shut);
        assert_eq!(claims(&stock, &item, id, Claim::Drop).await, None);
        assert_eq!(stock.take(&item, &call(&[None], true)).await.expect("taken").left, Some(4));
    }

    /// Made anew: counter, serial and winners; the sale it had before is kept with the earlier ones.
    #[tokio::test]
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
    async fn counters_set_by_hand_are_found() {
        let (stock, item) = stock();
        by_hand(&stock, &["SET", &item.key(), "9"]).await;
        let odd = format!("counter:{}X", item.name());
        by_hand(&stock, &["SET", &odd, "9"]).await;
        assert!(stock.discover(None).await.expect("looked").contains(&odd));
        assert!(stock.items().await.expect("items").contains(&item));
        // Step by step, on from where it was.
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

    /// A connection that the server ended while nobody looked costs nobody an answer.
    #[tokio::test]
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
        // As `timeout` does it, or a NAT that forgets.
        for id in stock.link.ids().await {
            by_hand(&other, &["CLIENT", "KILL", "ID", &id]).await;
        }
        assert!(crowd().await, "made anew");
    }

    /// A master that was demoted is not asked again by its old connections.
    #[tokio::test]
    async fn a_read_only_server_loses_its_connections() {
        let (stock, item) = stock();
        stock.seed(&item, 100, Uuid::now_v7()).await.expect("seeded");
        let before = stock.link.ids().await;
        let demoted = redis::Cmd::new()
            .arg("EVAL")
            .arg("return redis.error_reply('READONLY no longer')")
            .arg(0)
            .to_owned();
        let answer: Result<Value, _> = stock.read("by hand", &demoted).await;
        assert!(matches!(answer, Err(StockError::Refused(_))), "{answer:?}");
        stock.take(&item, &call(&[None], true)).await.expect("taken");
        let after = stock.link.ids().await;
        assert!(before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
    }

    #[tokio::test]
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

    /// Checked before anything is written: nothing is taken, and the key is named.
    #[tokio::test]
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

    /// A book that somebody has touched is not written to, and nothing panics on its numbers.
    #[tokio::test]
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

    /// A late or repeated seed brings no earlier sale to life.
    #[tokio::test]
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

    /// More questions at once than connections: they take turns.
    #[tokio::test]
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
    async fn scripts_survive_a_flush() {
        let (stock, item) = stock();
        stock.seed(&item, 2, Uuid::now_v7()).await.expect("seeded");
        by_hand(&stock, &["SCRIPT", "FLUSH"]).await;
        assert_eq!(stock.take(&item, &call(&[None], true)).await.expect("taken").left, Some(1));
    }

    #[tokio::test]
    async fn a_full_batch_of_names() {
        let (stock, item) = stock();
        stock.seed(&item, 600, Uuid::now_v7()).await.expect("seeded");
        let names: Vec<String> = (0..super::super::MAX_ATTEMPTS).map(|number| number.to_string()).collect();
        let names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
        let settled = (0..super::super::MAX_SETTLED).map(|_| Uuid::now_v7()).collect();
        let reply = stock.take(&item, &Call { settled, ..call(&names, true) }).await.expect("taken");
        assert_eq!(reply.left, Some(88));
        let again = stock.take(&item, &call(&names, true)).await.expect("an answer");
        assert!(again.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Known(_))));
        assert_eq!(again.standing.len(), 1);
    }
}
