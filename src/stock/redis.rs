//! Redis stock: an operator's plain counter, and its books beside it.

mod link;
mod promise;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use consumer::sale::Sale;
use redis::{FromRedisValue, RedisError, Script, ScriptInvocation, Value};
use uuid::Uuid;

use reply::{Answer, earlier_book, not_negative, whole};

use super::{Book, Call, Claim, Claimed, Entries, EntryName, Opening, Owner, Reply, Stock, StockError};
use crate::sale::{Batch, Item};
use link::Link;

/// Keys scanned in one step of the search for counters: well under a millisecond of Redis' time.
const SCAN_COUNT: usize = 1000;
/// Winners written at once when attempts are rebuilt.
const RECORDS_AT_ONCE: usize = 1000;
/// TTL of staged attempts, in seconds, if the process dies before it puts them in place: longer than any
/// reopening.
const PREPARED_FOR_S: u32 = 3600;
/// The set of all items' names.
const ITEMS: &str = "seckill:items";
/// The counters that operators set, except the default item's.
const COUNTERS: &str = "counter:*";

/// A single Redis and its connection pool.
pub struct RedisStock {
    link: Link,
    take: Script,
    seed: Script,
    add: Script,
    claim: Script,
    open: Script,
    books: Script,
    forget: Script,
    /// Cursor of the search for counters.
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

    /// Where winners are staged for an opening.
    fn prepared(&self, id: Uuid) -> String {
        format!("{}:{id}", self.attempts)
    }
}

impl RedisStock {
    /// Creates a client of the Redis at `url`; connects on first use.
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

    /// A read, or an idempotent call: an unreadable answer is a value set by hand, named by `about`.
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
    /// The script invocation of a call.
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

    /// An error that names the item's first key of a wrong type: Redis itself says only that one of them is.
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

/// Prefixes a script with `life.lua`.
fn script(body: &str) -> Script {
    Script::new(&[include_str!("life.lua"), body].concat())
}

/// Redis' error message; our own scripts name the key.
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
                // No longer in the outbox: no batch.
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
                // It answered just now, so `CONFIG` is forbidden.
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
