//! The stock in Redis: an operator's plain counter, and its books beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::{Connection, Manager, Pool, PoolError, Runtime};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, Script,
    ScriptInvocation, Value,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Attempt, Batch, Book, Call, Known, Opening, Outbox, Outcome, Reply, Shut, Shutting, Stock, StockError,
};
use crate::item::Item;

/// Longer than a slow disk's fsync, short enough that a buyer hears within a second.
const REPLY_WITHIN: Duration = Duration::from_millis(800);
/// A connection on a live network is made in a few round trips.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// The kernel's limit for what it sends again and again: long before anybody is told that an
/// order did not come about.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);
/// How often a silent Redis is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// A call in flight needs one, and so do the outbox scan, probes and operators' commands.
const MAX_CONNECTIONS: usize = 16;
/// Entries asked for at once when reading an outbox.
const SCAN_COUNT: usize = 64;
/// Winners written at once when attempts are made anew.
const RECORDS_AT_ONCE: usize = 1000;
/// How long attempts made anew stay when whoever made them dies before they are put in place, in
/// seconds: longer than any reopening.
const PREPARED_FOR_S: u32 = 3600;
/// The set of all items' names.
const ITEMS: &str = "seckill:items";

/// A single Redis, spoken to through a few connections of its own.
pub struct RedisStock {
    link: Arc<Link>,
    take: Script,
    seed: Script,
    shut: Script,
    open: Script,
    books: Script,
}

struct Link {
    pool: Pool,
    /// One for each connection: whoever has it finds one idle, or makes one.
    permits: Semaphore,
    /// Connections known to work: the pool would ask each with a `PING` before handing it out.
    idle: Mutex<Vec<Connection>>,
    /// While Redis does not answer, nothing that changes anything is sent.
    silent: AtomicBool,
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
}

impl RedisStock {
    /// Prepares to speak to the Redis at `url`; connects when first asked.
    ///
    /// # Errors
    /// When the URL cannot be used; the message does not contain it.
    pub fn new(url: &str) -> Result<Self, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(REPLY_WITHIN));
        // A question that was given up must not arrive when the network is mended.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(FORGOTTEN_AFTER);
        let manager = url
            .into_connection_info()
            .and_then(|info| Manager::new_with_config(info.set_tcp_settings(tcp), config))
            .map_err(|error| format!("not a Redis URL ({:?}); give redis://host:port/db", error.kind()))?;
        let pool = Pool::builder(manager)
            .max_size(MAX_CONNECTIONS)
            .wait_timeout(Some(CONNECT_WITHIN))
            .create_timeout(Some(CONNECT_WITHIN))
            .recycle_timeout(Some(CONNECT_WITHIN))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            link: Arc::new(Link {
                pool,
                permits: Semaphore::new(MAX_CONNECTIONS),
                idle: Mutex::default(),
                silent: AtomicBool::new(false),
            }),
            take: Script::new(include_str!("take.lua")),
            seed: Script::new(include_str!("seed.lua")),
            shut: Script::new(include_str!("shut.lua")),
            open: Script::new(include_str!("open.lua")),
            books: Script::new(include_str!("books.lua")),
        })
    }

    /// One question: a connection, the question once, the connection back.
    ///
    /// Never sent again, by nobody: whoever hears nothing does not know whether it was done.
    async fn ask(
        &self,
        question: impl AsyncFnOnce(&mut Connection) -> Result<Value, RedisError>,
    ) -> Result<Value, StockError> {
        if self.link.silent.load(Ordering::Acquire) {
            return Err(StockError::Refused("redis does not answer".into()));
        }
        let refused = |why: &str| StockError::Refused(format!("redis is away: {why}"));
        let permit = timeout(CONNECT_WITHIN, self.link.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(refused("all connections are busy")) };
        let mut connection = self.link.connect().await.map_err(|error| refused(&error.to_string()))?;
        match question(&mut connection).await {
            Ok(answer) => {
                self.link.give_back(connection);
                Ok(answer)
            }
            Err(error) => match error.kind() {
                ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Client => {
                    self.link.give_back(connection);
                    Err(StockError::Refused(words(&error)))
                }
                _ => {
                    // Not back to the pool: an answer may still come on it.
                    drop(Connection::take(connection));
                    self.link.fall_silent();
                    Err(StockError::Silent(words(&error)))
                }
            },
        }
    }

    /// A question that changes nothing, or may be asked again: an answer that cannot be read is
    /// a value put there by hand, and `about` names it.
    async fn read<T: FromRedisValue>(&self, about: &str, command: &redis::Cmd) -> Result<T, StockError> {
        let answer = self.ask(async |connection| command.query_async(connection).await).await;
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

/// What Redis said; our own scripts name the key.
fn words(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some("BADKEY" | "SHUT" | "OUTDATED"), Some(detail)) => format!("redis: {detail}"),
        _ => format!("redis: {error}"),
    }
}

impl Link {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Connection, PoolError> {
        let idle = self.idle().pop();
        match idle {
            Some(connection) => Ok(connection),
            None => self.pool.get().await,
        }
    }

    fn give_back(&self, connection: Connection) {
        if !self.silent.load(Ordering::Acquire) {
            self.idle().push(connection);
        }
    }

    /// From now on nothing is asked, until a `PING` is answered.
    fn fall_silent(self: &Arc<Self>) {
        if self.silent.swap(true, Ordering::AcqRel) {
            return;
        }
        self.idle().clear();
        let link = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                if let Ok(mut connection) = link.pool.get().await {
                    let answer: Result<(), _> = redis::cmd("PING").query_async(&mut connection).await;
                    // An error reply (loading its file, say) is an answer.
                    if answer.map_or_else(|error| matches!(error.kind(), ErrorKind::Server(_)), |()| true) {
                        link.silent.store(false, Ordering::Release);
                        return;
                    }
                    drop(Connection::take(connection));
                }
            }
        });
    }
}

#[async_trait]
impl Stock for RedisStock {
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError> {
        let (named, anonymous) = call.by_name();
        let script = self.taking(item, call);
        let answer = self.ask(async |connection| script.invoke_async(connection).await).await?;
        let answer: Answer = redis::from_redis_value(answer)
            .map_err(|error| StockError::Silent(format!("redis: the script's answer: {error}")))?;
        Ok(answer.into_reply(item, call, &named, &anonymous))
    }

    async fn outbox(&self, item: &Item) -> Result<Outbox, StockError> {
        let key = Keys::of(item).outbox;
        let mut outbox = Outbox::default();
        let mut seen = std::collections::HashSet::new();
        let mut cursor = 0_u64;
        loop {
            let scan = redis::cmd("HSCAN").arg(&key).arg(cursor).arg("COUNT").arg(SCAN_COUNT).to_owned();
            let (next, fields): (u64, Vec<(Vec<u8>, Vec<u8>)>) = self.read(&key, &scan).await?;
            // A scan may bring a field twice.
            for (id, entry) in fields.into_iter().filter(|(id, _)| seen.insert(id.clone())) {
                let id = String::from_utf8_lossy(&id);
                match Batch::from_entry(&id, item, &String::from_utf8_lossy(&entry)) {
                    Ok(batch) => outbox.batches.push(batch),
                    Err(why) => outbox.unreadable.push(format!("{key} {id}: {why}")),
                }
            }
            if next == 0 {
                return Ok(outbox);
            }
            cursor = next;
        }
    }

    async fn items(&self) -> Result<Vec<Item>, StockError> {
        let names: Vec<String> = self.read(ITEMS, redis::cmd("SMEMBERS").arg(ITEMS)).await?;
        let mut items: Vec<Item> = names.iter().filter_map(|name| name.parse().ok()).collect();
        items.push(Item::default());
        items.sort();
        items.dedup();
        Ok(items)
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
        self.ask(async |connection| {
            redis::cmd("SADD").arg(ITEMS).arg(item.name()).query_async::<()>(connection).await?;
            script.invoke_async(connection).await
        })
        .await
        .map(drop)
    }

    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError> {
        let key = item.key();
        let add = Script::new(
            "if redis.call('EXISTS', KEYS[1]) == 1 then return redis.call('INCRBY', KEYS[1], ARGV[1]) end",
        );
        let answer =
            self.ask(async |connection| add.key(&key).arg(units).invoke_async(connection).await).await?;
        let left: Option<i64> = redis::from_redis_value(answer)
            .map_err(|error| StockError::Silent(format!("redis: {key}: {error}")))?;
        Ok(left.map(not_negative))
    }

    async fn shut(&self, item: &Item, id: Uuid, why: Shutting) -> Result<Option<Shut>, StockError> {
        let keys = Keys::of(item);
        let (why, from) = match why {
            Shutting::Reopen(from) => ("reopen", from),
            Shutting::Restore => ("restore", None),
        };
        let mut script = self.shut.prepare_invoke();
        script.key(&keys.book).arg(id.to_string()).arg(why);
        script.arg(from.map(|from| from.to_string()).unwrap_or_default());
        let answer = self.ask(async |connection| script.invoke_async(connection).await).await?;
        let found: Option<Vec<String>> = redis::from_redis_value(answer)
            .map_err(|error| StockError::Refused(format!("redis: {}: {error}", keys.book)))?;
        let Some(found) = found else { return Ok(None) };
        let bad = || StockError::Refused(format!("redis: {}: cannot be read", keys.book));
        let [by, run, epoch, serial] = &found[..] else { return Err(bad()) };
        let epoch = Some(epoch).filter(|epoch| !epoch.is_empty());
        Ok(Some(Shut {
            by: by.clone(),
            run: run.clone(),
            epoch: epoch.map(|epoch| epoch.parse()).transpose().map_err(|_| bad())?,
            serial: serial.parse().map_err(|_| bad())?,
        }))
    }

    async fn open(&self, item: &Item, opening: &Opening) -> Result<bool, StockError> {
        let keys = Keys::of(item);
        let prepared = format!("{}:{}", keys.attempts, opening.id);
        if let Some(anew) = &opening.anew {
            for winners in anew.winners.chunks(RECORDS_AT_ONCE) {
                let mut command = redis::cmd("HSET");
                command.arg(&prepared);
                for sale in winners {
                    // Not in the outbox any more: no batch.
                    let record = format!("{} {} {}", sale.order, sale.remaining, Uuid::nil());
                    command.arg(sale.attempt.as_deref()).arg(record);
                }
                self.read::<Value>(&prepared, &command).await?;
                self.read::<Value>(&prepared, redis::cmd("EXPIRE").arg(&prepared).arg(PREPARED_FOR_S))
                    .await?;
            }
        }
        let mut script = self.open.prepare_invoke();
        script.key(&keys.counter).key(&keys.book).key(&keys.outbox).key(&keys.attempts).key(&prepared);
        script.arg(opening.id.to_string()).arg(&opening.run).arg(opening.term);
        if let Some(anew) = &opening.anew {
            script.arg(anew.epoch.to_string()).arg(anew.serial).arg(anew.left);
        }
        let answer = self.ask(async |connection| script.invoke_async(connection).await).await?;
        redis::from_redis_value(answer).map_err(|error| StockError::Silent(format!("redis: {error}")))
    }

    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError> {
        let keys = Keys::of(item);
        self.well_typed(&keys).await?;
        type Fields = (Option<String>, Vec<Option<String>>, Vec<(String, String)>, String);
        let mut script = self.books.prepare_invoke();
        script.key(&keys.counter).key(&keys.book).key(&keys.books);
        let answer = self.ask(async |connection| script.invoke_async(connection).await).await?;
        let bad = |key: &str| StockError::Refused(format!("redis: {key}: cannot be read"));
        let (counter, book, earlier, run): Fields =
            redis::from_redis_value(answer).map_err(|_| bad(&keys.book))?;
        let counter = counter
            .map(|counter| {
                let wrong = || StockError::Refused(format!("redis: {}: not a whole number", keys.counter));
                whole(&counter).ok_or_else(wrong)
            })
            .transpose()?;
        let number = |index: usize| book[index].as_deref().and_then(whole);
        let epoch = book[0].as_deref().map(Uuid::try_parse).transpose().map_err(|_| bad(&keys.book))?;
        let shut = book[4].is_some() || (epoch.is_some() && book[5].as_deref() != Some(&*run));
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
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let (left, epoch, term, serial, remaining, unnamed, open, outcomes, entries) =
            redis::from_redis_value(value)?;
        Ok(Self { left, epoch, term, serial, remaining, unnamed, open, outcomes, entries })
    }
}

impl Answer {
    fn into_reply(self, item: &Item, call: &Call, named: &[&Attempt], anonymous: &[&Attempt]) -> Reply {
        let epoch = self.epoch.parse().ok();
        if self.left == SHUT {
            let outcomes = vec![Outcome::Shut; call.attempts.len()];
            return Reply { epoch, open: self.open, shut: true, outcomes, ..Reply::default() };
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
    use super::*;
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
            Err(StockError::Refused(why)) => assert!(why.contains("a newer sale"), "{why}"),
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
        assert_eq!(stock.outbox(&item).await.expect("an outbox").batches, std::slice::from_ref(&batch));

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
        assert!(stock.outbox(&item).await.expect("an outbox").batches.is_empty());
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
