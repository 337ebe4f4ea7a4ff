//! The ledger in the embedded world's file.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Arguments as _, Connection, Row as _, Sqlite};
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};
use uuid::Uuid;

use super::post::{self, Standing, Tables, Written};
use super::row::{Row, datetime, timestamp};
use super::statements::{
    Failure, SET_ASIDE, TABLES, broken, insert, odd, select_sale, statements, unrecorded,
};
use super::{Account, Batch, Checkpoint, Faults, Ledger, LedgerError, Message, Posted, SaleRecord};
use crate::reader::sqlite::BATCH;
use crate::sale::Sale;
use crate::sqlite::{SqliteFile, Synchronous};

// A transaction that will write begins by taking the file's only write lock.
statements!(Statements, Sqlite, failure, BATCH, "", "");

/// The books in the embedded world's file.
#[derive(Debug)]
pub struct SqliteLedger {
    file: SqliteFile,
    /// None after an error: SQLite may have rolled back by itself, and sqlx would not know.
    writer: Mutex<Option<SqliteConnection>>,
    /// Looks up orders without waiting for a batch that is being posted.
    reader: Mutex<SqliteConnection>,
}

impl SqliteLedger {
    /// A ledger in `file`.
    ///
    /// # Errors
    /// When it cannot be opened, or a table lacks a column.
    pub async fn open(file: &SqliteFile) -> Result<Self, LedgerError> {
        let mut reader = file.connect(Synchronous::Normal).await.map_err(failed)?;
        Statements(&mut reader).well_shaped().await?;
        Ok(Self { file: file.clone(), writer: Mutex::default(), reader: Mutex::new(reader) })
    }
}

/// The turn to write, and the connection for it.
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
        let connection = match writer.held.take() {
            Some(connection) => connection,
            // Rows that are lost with the power are made again from the journal.
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

#[async_trait]
impl Ledger for SqliteLedger {
    /// Nothing: the tables were made, or looked at, when the file was opened.
    async fn migrate(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn checkpoints(&self, topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError> {
        Statements(&mut *self.reader.lock().await).checkpoints(topic).await
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

    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError> {
        Statements(&mut *self.reader.lock().await).find(order).await
    }

    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError> {
        let mut writer = self.writer().await;
        let at = datetime(Timestamp::now());
        let begun = match self.connected(&mut writer).await {
            Ok(connection) => Statements(connection).begin_sale(item, epoch, units, &at).await,
            Err(error) => Err(error),
        };
        writer.done(begun)
    }

    async fn sales(&self) -> Result<Vec<SaleRecord>, LedgerError> {
        Statements(&mut *self.reader.lock().await).sales().await
    }

    async fn serials(&self, item: &str, epoch: Uuid) -> Result<Vec<u64>, LedgerError> {
        Statements(&mut *self.reader.lock().await).serials(item, epoch).await
    }

    async fn raise_term(&self, item: &str, epoch: Uuid, from: u64) -> Result<Option<Account>, LedgerError> {
        self.begin_sale(item, epoch, 0).await?;
        let mut writer = self.writer().await;
        let raised = async {
            let connection = self.connected(&mut writer).await?;
            let mut transaction = connection.begin_with("begin immediate").await.map_err(failed)?;
            let raised = Statements(&mut transaction).raise_term(item, epoch, from).await?;
            transaction.commit().await.map_err(failed)?;
            Ok(raised)
        };
        let raised = raised.await;
        writer.done(raised)
    }

    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError> {
        let mut writer = self.writer().await;
        let withdrawn = match self.connected(&mut writer).await {
            Ok(connection) => Statements(connection).withdraw_sale(item, epoch).await,
            Err(error) => Err(error),
        };
        writer.done(withdrawn)
    }

    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError> {
        Statements(&mut *self.reader.lock().await).account(item, epoch).await
    }

    async fn winners(&self, item: &str, epoch: Uuid) -> Result<Vec<Sale>, LedgerError> {
        Statements(&mut *self.reader.lock().await).winners(item, epoch).await
    }

    async fn void(&self, item: &str, epoch: Uuid, serials: &[u64]) -> Result<(), LedgerError> {
        let mut writer = self.writer().await;
        let void = match self.connected(&mut writer).await {
            Ok(connection) => Statements(connection).void(item, epoch, serials).await,
            Err(error) => Err(error),
        };
        writer.done(void)
    }

    async fn faults(&self) -> Result<Faults, LedgerError> {
        Statements(&mut *self.reader.lock().await).faults().await
    }
}

/// Primary result codes that pass: `SQLITE_BUSY`, `SQLITE_LOCKED`, `SQLITE_IOERR` (a limit or a disk
/// that somebody can mend, while the journal keeps what was sold), `SQLITE_FULL`.
const PASSING: [u32; 4] = [5, 6, 10, 13];

/// Of a value: `SQLITE_TOOBIG`, `SQLITE_MISMATCH`, and (extended) of a check, a null, a type.
const VALUE: [u32; 2] = [18, 20];
const VALUE_EXTENDED: [u32; 3] = [275, 1299, 3091];

fn failure(error: &sqlx::Error) -> Failure {
    let Some(database) = error.as_database_error() else {
        return Failure::Broken;
    };
    if database.is_unique_violation() {
        return Failure::Taken;
    }
    let code: u32 = database.code().and_then(|code| code.parse().ok()).unwrap_or_default();
    let primary = code & 0xff;
    if PASSING.contains(&primary) {
        Failure::Away
    } else if VALUE.contains(&primary) || VALUE_EXTENDED.contains(&code) {
        Failure::Refused
    } else {
        Failure::Broken
    }
}
