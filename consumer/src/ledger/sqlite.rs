//! The ledger on SQLite, in the embedded file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Arguments as _, Connection, Row as _, Sqlite};
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};
use uuid::Uuid;

use super::post::{self, Standing, Tables, Written};
use super::row::{Row, datetime, timestamp};
use super::statements::{
    Failure, RUNS_AT_ONCE, SALES_AT_ONCE, SET_ASIDE, TABLES, broken, insert, odd, select_sale, signed,
    statements, unrecorded,
};
use super::{
    Account, Batch, Checkpoint, Closed, Faults, Ledger, LedgerError, Message, Page, Posted, Record, Restored,
    SaleRecord, Standpoint,
};
use crate::sale::Sale;
use crate::sqlite::BATCH;
use crate::sqlite::{SqliteFile, Synchronous};

// A writing transaction begins by taking the file's only write lock.
statements!(Statements, Sqlite, failure, ToString::to_string, BATCH, "", "");

/// The ledger in the embedded file.
#[derive(Debug)]
pub struct SqliteLedger {
    file: SqliteFile,
    /// None after an error: SQLite may have rolled back on its own, unknown to sqlx.
    writer: Mutex<Option<SqliteConnection>>,
    /// Looks up orders without waiting for a batch in flight.
    reader: Mutex<SqliteConnection>,
    /// See [`Statements::disputed`].
    settled: AtomicI64,
}

impl SqliteLedger {
    /// Opens the ledger in `file`.
    ///
    /// # Errors
    /// When it cannot be opened, or a table lacks a column.
    pub async fn open(file: &SqliteFile) -> Result<Self, LedgerError> {
        let mut reader = file.connect(Synchronous::Normal).await.map_err(failed)?;
        Statements(&mut reader).well_shaped().await?;
        Ok(Self {
            file: file.clone(),
            writer: Mutex::default(),
            reader: Mutex::new(reader),
            settled: AtomicI64::new(0),
        })
    }
}

/// The write lock, and the connection for it.
struct Writer<'l> {
    _turn: OwnedMutexGuard<()>,
    held: MutexGuard<'l, Option<SqliteConnection>>,
}

impl SqliteLedger {
    async fn writer(&self) -> Writer<'_> {
        let turn = self.file.turn().lock_owned().await;
        Writer { _turn: turn, held: self.writer.lock().await }
    }

    async fn connected<'w>(
        &self,
        writer: &'w mut Writer<'_>,
    ) -> Result<&'w mut SqliteConnection, LedgerError> {
        self.file.in_place().map_err(LedgerError::Away)?;
        let connection = match writer.held.take() {
            Some(connection) => connection,
            // Rows lost in a power failure are recorded again from the journal.
            None => self.file.connect(Synchronous::Normal).await.map_err(failed)?,
        };
        Ok(writer.held.insert(connection))
    }
}

impl Writer<'_> {
    fn done<T>(mut self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if result.is_err() {
            *self.held = None;
        }
        result
    }
}

/// Runs one query on the reading connection.
macro_rules! asked {
    ($self:ident, $question:ident($($argument:expr),*)) => {
        Statements(&mut *$self.reader.lock().await).$question($($argument),*).await
    };
}

/// Runs one statement on the writing connection.
macro_rules! changed {
    ($self:ident, $change:ident($($argument:expr),*)) => {{
        let mut writer = $self.writer().await;
        let done = match $self.connected(&mut writer).await {
            Ok(connection) => Statements(connection).$change($($argument),*).await,
            Err(error) => Err(error),
        };
        writer.done(done)
    }};
}

#[async_trait]
impl Record for SqliteLedger {
    async fn checkpoints(&self, topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError> {
        asked!(self, checkpoints(topic))
    }

    async fn post(&self, batch: &Batch) -> Result<Posted, LedgerError> {
        let mut writer = self.writer().await;
        let posted = async {
            let connection = self.connected(&mut writer).await?;
            let mut transaction = connection.begin_with("begin immediate").await.map_err(failed)?;
            let posted = post::post(&mut Statements(&mut transaction), batch).await?;
            transaction.commit().await.map_err(failed)?;
            Ok(posted)
        };
        let posted = posted.await;
        writer.done(posted)
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    /// No-op: opening the file creates or checks the tables.
    async fn migrate(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn keys(&self, mine: &str, until: i64) -> Result<i64, LedgerError> {
        changed!(self, keys(mine, until))
    }

    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError> {
        asked!(self, find(order))
    }

    async fn in_conflict(&self, order: Uuid) -> Result<bool, LedgerError> {
        asked!(self, in_conflict(order))
    }

    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError> {
        changed!(self, begin_sale(item, epoch, units, &datetime(Timestamp::now())))
    }

    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError> {
        changed!(self, withdraw_sale(item, epoch))
    }

    async fn sales(&self, item: Option<&str>) -> Result<Vec<SaleRecord>, LedgerError> {
        asked!(self, sales(item))
    }

    async fn newest(&self) -> Result<BTreeMap<String, Uuid>, LedgerError> {
        asked!(self, newest())
    }

    async fn ahead(&self, sales: &[Standpoint]) -> Result<Vec<Standpoint>, LedgerError> {
        asked!(self, ahead(sales))
    }

    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError> {
        asked!(self, account(item, epoch))
    }

    async fn raise_term(&self, item: &str, epoch: Uuid, from: u64) -> Result<bool, LedgerError> {
        self.begin_sale(item, epoch, 0).await?;
        changed!(self, raise_term(item, epoch, from))
    }

    async fn page(&self, item: &str, epoch: Uuid, after: u64, serials: u32) -> Result<Page, LedgerError> {
        asked!(self, page(item, epoch, after, serials))
    }

    async fn orders(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<(u64, Uuid)>, LedgerError> {
        asked!(self, orders(item, epoch, after, upto))
    }

    async fn voids(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<RangeInclusive<u64>>, LedgerError> {
        asked!(self, voids(item, epoch, after, upto))
    }

    async fn void(&self, item: &str, epoch: Uuid, runs: &[RangeInclusive<u64>]) -> Result<(), LedgerError> {
        changed!(self, void(item, epoch, runs))
    }

    async fn winners(
        &self,
        item: &str,
        epoch: Uuid,
        after: u64,
        upto: u64,
    ) -> Result<Vec<Sale>, LedgerError> {
        asked!(self, winners(item, epoch, after, upto))
    }

    async fn restored(&self, item: &str, epoch: Uuid, restored: Restored) -> Result<(), LedgerError> {
        changed!(self, restored(item, epoch, restored, &datetime(Timestamp::now())))
    }

    async fn disputed(&self) -> Result<Vec<(String, Uuid)>, LedgerError> {
        asked!(self, disputed(&self.settled))
    }

    async fn archive(&self, item: &str, epoch: Uuid, closed: Closed) -> Result<(), LedgerError> {
        changed!(self, archive(item, epoch, closed, &datetime(Timestamp::now())))
    }

    async fn archived(&self, item: Option<&str>) -> Result<BTreeSet<(String, Uuid)>, LedgerError> {
        asked!(self, archived(item))
    }

    async fn faults(&self) -> Result<Faults, LedgerError> {
        asked!(self, faults())
    }
}

/// Primary result codes that retrying does not fix: `SQLITE_ERROR` (a table or a column is missing),
/// `SQLITE_READONLY`, `SQLITE_CORRUPT`, `SQLITE_CONSTRAINT` (of foreign origin), `SQLITE_MISUSE`,
/// `SQLITE_AUTH`, `SQLITE_RANGE`, `SQLITE_NOTADB`. Any other code is transient: a lock, a limit or a disk
/// that an operator can fix, while the journal keeps the sales.
const FOR_GOOD: [u32; 8] = [1, 8, 11, 19, 21, 23, 25, 26];

/// Value errors: `SQLITE_TOOBIG`, `SQLITE_MISMATCH`, and (extended) of a check, a null, a type.
const VALUE: [u32; 2] = [18, 20];
const VALUE_EXTENDED: [u32; 3] = [275, 1299, 3091];

fn failure(error: &sqlx::Error) -> Failure {
    let Some(database) = error.as_database_error() else {
        // Another file has replaced this one: it may be put back.
        return if matches!(error, sqlx::Error::Io(_)) { Failure::Away } else { Failure::Broken };
    };
    if database.is_unique_violation() {
        return Failure::Taken;
    }
    let code: u32 = database.code().and_then(|code| code.parse().ok()).unwrap_or_default();
    let primary = code & 0xff;
    if VALUE.contains(&primary) || VALUE_EXTENDED.contains(&code) {
        Failure::Refused
    } else if FOR_GOOD.contains(&primary) {
        Failure::Broken
    } else {
        Failure::Away
    }
}
