//! SQLite journal: a table in the embedded world's file, with sales and the seeds between them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use consumer::progress::{Extent, Extents};
use consumer::sale::Sale;
use consumer::sqlite::{SqliteFile, Synchronous};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Journal, Receipt};
use crate::sale::Batch;

/// The topic's name in checkpoints and rows.
pub use consumer::sqlite::TOPIC;

/// Rows read at a time when the stock is rebuilt: bounds memory. A text of megabytes costs SQLite twice the
/// time.
const READ_AT_ONCE: i64 = 2_000;

/// Separates rows in one text: this character never occurs in JSON, not even in a string.
const BETWEEN: char = '\u{1e}';

/// Whether this sale was seeded before: a query on the seeds alone, while attempts wait.
const BEGUN: &str = "select 1 from journal where kind = 'seed' and ? = 0 and value -> '$.epoch' = ? \
     and value -> '$.add' = 'false' limit 1";

/// Consecutive rows of the journal, as one text: at least one.
#[derive(Debug)]
pub(crate) struct Rows {
    /// The offset of the last row.
    pub(crate) last: i64,
    text: String,
}

impl Rows {
    /// Each row's offset and entry; an error for a foreign row.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<(i64, Entry<'_>), String>> {
        self.text.split(BETWEEN).map(entry)
    }
}

/// One row of the journal.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// Units put on sale.
    Seed(Seed),
    /// A unit sold.
    Sale(Sold<'a>),
}

/// What the stock keeps of a [`Sale`].
#[derive(Debug, Deserialize)]
pub(crate) struct Sold<'a> {
    pub(crate) order: Uuid,
    #[serde(borrow)]
    pub(crate) item: Cow<'a, str>,
    pub(crate) epoch: Uuid,
    pub(crate) serial: u64,
    pub(crate) remaining: u64,
    pub(crate) attempt: Option<String>,
}

impl From<Sale> for Sold<'_> {
    fn from(Sale { order, item, epoch, serial, remaining, attempt, .. }: Sale) -> Self {
        Self { order, item: item.into(), epoch, serial, remaining, attempt }
    }
}

/// Units put on sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// The item.
    pub item: String,
    /// The sale that begins, or, with `add`, the running one.
    pub epoch: Uuid,
    /// How many.
    pub units: u64,
    /// Whether they are added to a running sale.
    pub add: bool,
    /// When.
    pub at: Timestamp,
}

/// Why rows were not written.
#[derive(Debug)]
pub enum WriteError {
    /// Another process wrote at this offset first: nothing was written.
    Overtaken,
    /// The write failed; the file itself shows whether it took effect.
    Failed(String),
}

/// The file's journal, with two connections: one writes, one reads.
pub struct SqliteJournal {
    file: SqliteFile,
    writer: Mutex<Option<SqliteConnection>>,
    reader: Mutex<Option<SqliteConnection>>,
}

impl SqliteJournal {
    /// The journal of `file`.
    #[must_use]
    pub fn new(file: SqliteFile) -> Self {
        Self { file, writer: Mutex::default(), reader: Mutex::default() }
    }

    /// The rows from offset `from` on, up to `READ_AT_ONCE`; `None` at the end.
    pub(crate) async fn read(&self, from: i64) -> Result<Option<Rows>, String> {
        let mut held = self.reader.lock().await;
        let connection = self.connected(&mut held, Synchronous::Normal).await?;
        // One text: sqlx takes longer to return a row than SQLite to read it.
        let (last, text): (Option<i64>, Option<String>) = sqlx::query_as(
            r#"select max("offset"), group_concat("offset" || kind || value, char(30))
               from journal, (select min("offset") as first from journal where "offset" >= ?)
               where "offset" >= first and "offset" < first + ?"#,
        )
        .bind(from)
        .bind(READ_AT_ONCE)
        .fetch_one(connection)
        .await
        .map_err(|error| error.to_string())?;
        let Some((last, text)) = last.zip(text) else { return Ok(None) };
        let offsets = text.split(BETWEEN).map(|row| numbered(row).0.parse::<i64>().ok());
        if !offsets.is_sorted_by(|one, next| one < next) {
            return Err(format!("the journal from offset {from} was not read in its order"));
        }
        Ok(Some(Rows { last, text }))
    }

    /// Writes sales at offset `at` and on, all or none; returns once they are on disk.
    ///
    /// The offset works as a compare-and-set: if a seed by another process was written there first, the
    /// insert fails.
    pub(crate) async fn write(&self, at: i64, sales: impl Iterator<Item = Sale>) -> Result<(), WriteError> {
        let mut array = String::from("[");
        for sale in sales {
            let json = sale.to_json().ok().and_then(|json| String::from_utf8(json).ok());
            array.push_str(&json.ok_or_else(|| WriteError::Failed(format!("{sale:?} has no JSON")))?);
            array.push(',');
        }
        array.pop();
        array.push(']');
        // One prepared statement for any number of sales.
        self.in_place().await.map_err(WriteError::Failed)?;
        let insert = sqlx::query(
            r#"insert into journal ("offset", kind, value) select ? + key, 'sale', value from json_each(?)"#,
        )
        .bind(at)
        .bind(array);
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let mut held = self.writer.lock().await;
        let connection = self.connected(&mut held, Synchronous::Full).await.map_err(WriteError::Failed)?;
        match insert.execute(connection).await {
            // Reported only once seen to be in the file that the next start reads.
            Ok(_) => self.file.in_place().map_err(WriteError::Failed),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(WriteError::Overtaken),
            Err(error) => {
                *held = None;
                Err(WriteError::Failed(error.to_string()))
            }
        }
    }

    /// Whether writes reach the file that the next start reads. If not, moves all committed data into the
    /// open file, so that a copy of it alone is complete.
    ///
    /// # Errors
    /// What happened to the file, and what to do.
    pub(crate) async fn in_place(&self) -> Result<(), String> {
        let lost = match self.file.in_place() {
            Ok(()) => return Ok(()),
            Err(lost) => lost,
        };
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let mut held = self.reader.lock().await;
        let connection = self.connected(&mut held, Synchronous::Normal).await?;
        let saved =
            sqlx::query_scalar::<_, i64>("pragma wal_checkpoint(truncate)").fetch_one(connection).await;
        Err(if matches!(saved, Ok(0)) { lost } else { format!("{lost} (but it is still being written)") })
    }

    /// Appends a seed, idempotent by epoch unless it is an addition, together with the ledger's record of the
    /// new sale.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn seed(&self, seed: &Seed) -> Result<(), String> {
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let mut held = self.writer.lock().await;
        let connection = self.connected(&mut held, Synchronous::Full).await?;
        let written = async {
            let mut transaction = connection.begin_with("begin immediate").await?;
            let value = serde_json::to_string(seed).unwrap_or_default();
            let there: Option<i64> = sqlx::query_scalar(BEGUN)
                .bind(i64::from(seed.add))
                .bind(format!("\"{}\"", seed.epoch))
                .fetch_optional(&mut *transaction)
                .await?;
            if there.is_none() {
                sqlx::query(
                    r#"insert into journal ("offset", kind, value) select coalesce(max("offset"), -1) + 1, 'seed', ? from journal"#,
                )
                .bind(value)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await
        };
        let written: Result<(), sqlx::Error> = written.await;
        written.map_err(|error| {
            // SQLite may have rolled back by itself, unknown to sqlx.
            *held = None;
            error.to_string()
        })?;
        self.file.in_place()
    }

    /// Writes a value without meaning, to test whether the file is writable again.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) async fn probe(&self) -> Result<(), String> {
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let mut held = self.writer.lock().await;
        let connection = self.connected(&mut held, Synchronous::Full).await?;
        let version: i32 = sqlx::query_scalar("pragma user_version")
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| error.to_string())?;
        // It is not used otherwise, and changing it takes a page on disk.
        let next = format!("pragma user_version = {}", (version + 1) % 1000);
        let written = sqlx::raw_sql(sqlx::AssertSqlSafe(next)).execute(connection).await;
        written.map(drop).map_err(|error| {
            *held = None;
            error.to_string()
        })
    }

    async fn connected<'a>(
        &self,
        held: &'a mut Option<SqliteConnection>,
        synchronous: Synchronous,
    ) -> Result<&'a mut SqliteConnection, String> {
        let connection = match held.take() {
            Some(connection) => connection,
            None => self.file.connect(synchronous).await.map_err(|error| error.to_string())?,
        };
        Ok(held.insert(connection))
    }
}

/// Splits a row into its offset, and its kind and value.
fn numbered(row: &str) -> (&str, &str) {
    row.split_at(row.find(char::is_alphabetic).unwrap_or_default())
}

/// Parses a row of offset, kind and value.
fn entry(row: &str) -> Result<(i64, Entry<'_>), String> {
    let (offset, row) = numbered(row);
    let failed = |error: &dyn std::fmt::Display| format!("journal offset {offset}: {error}");
    let entry = match row.strip_prefix("seed") {
        Some(seed) => serde_json::from_str(seed).map(Entry::Seed),
        None => serde_json::from_str(row.strip_prefix("sale").unwrap_or(row)).map(Entry::Sale),
    };
    match entry.map_err(|error| failed(&error))? {
        Entry::Sale(Sold { serial: 0, .. }) => Err(failed(&"serial is 0, the first unit is 1")),
        entry => Ok((offset.parse().map_err(|error| failed(&error))?, entry)),
    }
}

#[async_trait]
impl Journal for SqliteJournal {
    /// The embedded stock commits a sale to the journal before it reports it: the take is the commit.
    fn append(&self, batch: &Batch) -> Arc<Receipt> {
        Receipt::acknowledged(batch.attempts.len())
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn topic(&self) -> &str {
        TOPIC
    }

    async fn extents(&self) -> Result<Extents, String> {
        let mut held = self.reader.lock().await;
        let connection = self.connected(&mut held, Synchronous::Normal).await?;
        let end: i64 =
            sqlx::query_scalar(r#"select coalesce(max("offset"), -1) + 1 from journal where kind = 'sale'"#)
                .fetch_one(connection)
                .await
                .map_err(|error| error.to_string())?;
        Ok(Extents::from([(0, Extent { start: 0, end })]))
    }

    async fn flush(&self, _within: Duration) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::keeps_the_contract;
    use crate::sale::Item;
    use crate::stock::Stock as _;
    use crate::stock::contract::call;
    use crate::stock::memory::MemoryStock;

    #[tokio::test]
    async fn the_contract() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = SqliteFile::open(&folder.path().join("sale.db"), true).await.expect("a file");
        let journal = Arc::new(SqliteJournal::new(file));
        let stock = MemoryStock::open(Arc::clone(&journal)).await.expect("a stock");
        let item = Item::default();
        stock.seed(&item, 9, Uuid::now_v7()).await.expect("seeded");
        let taken = stock.take(&item, &call(&[None, Some("a"), None], true)).await.expect("taken");
        keeps_the_contract(&*journal, &taken.taken.expect("a batch")).await;
    }

    #[tokio::test]
    async fn whoever_comes_second_writes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = SqliteFile::open(&folder.path().join("sale.db"), true).await.expect("a file");
        let (one, two) = (SqliteJournal::new(file.clone()), SqliteJournal::new(file));
        let sales = crate::journal::contract::batch(2);
        one.write(0, sales.sales()).await.expect("written");
        let late = crate::journal::contract::batch(3);
        assert!(matches!(two.write(1, late.sales()).await, Err(WriteError::Overtaken)));
        assert_eq!(two.read(0).await.expect("read").expect("rows").entries().count(), 2);
        two.write(2, late.sales()).await.expect("written");
    }

    /// A seed holds the write lock for as long as there are seeds, not sales.
    #[tokio::test]
    async fn a_seed_looks_at_seeds_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = SqliteFile::open(&folder.path().join("sale.db"), true).await.expect("a file");
        let mut connection = file.connect(Synchronous::Normal).await.expect("a connection");
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(format!("explain query plan {BEGUN}")))
                .bind(0)
                .bind("")
                .fetch_all(&mut connection)
                .await
                .expect("a plan");
        assert!(plan.iter().all(|(.., step)| step.contains("journal_seed")), "{plan:?}");
    }
}
