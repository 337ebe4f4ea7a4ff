//! The ledger in the embedded world's file.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row as _, Sqlite};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::post::{self, Standing, Tables, Written};
use super::row::{Row, datetime, timestamp};
use super::statements::{Failure, columns, odd, select_sale, statements, unrecorded};
use super::{Account, Batch, Checkpoint, Faults, Ledger, LedgerError, Message, Posted, SaleRecord};
use crate::sale::Sale;
use crate::sqlite::{SqliteFile, Synchronous};

// A transaction that will write begins by taking the file's only write lock.
statements!(Statements, Sqlite, failure, "", "");

/// The books in the embedded world's file.
#[derive(Debug)]
pub struct SqliteLedger {
    file: SqliteFile,
    writer: Mutex<SqliteConnection>,
    /// Looks up orders without waiting for a batch that is being posted.
    reader: Mutex<SqliteConnection>,
}

impl SqliteLedger {
    /// A ledger in `file`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(file: &SqliteFile) -> Result<Self, LedgerError> {
        // Rows that are lost with the power are made again from the journal.
        let writer = file.connect(Synchronous::Normal).await.map_err(failed)?;
        let reader = file.connect(Synchronous::Normal).await.map_err(failed)?;
        Ok(Self { file: file.clone(), writer: Mutex::new(writer), reader: Mutex::new(reader) })
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
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_with("begin immediate").await.map_err(failed)?;
        let posted = post::post(&mut Statements(&mut transaction), batch).await;
        // The file's lock ends here, before another has the turn.
        let ended = match &posted {
            Ok(_) => transaction.commit().await,
            Err(_) => transaction.rollback().await,
        };
        posted.and_then(|posted| ended.map(|()| posted).map_err(failed))
    }

    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError> {
        Statements(&mut *self.reader.lock().await).find(order).await
    }

    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError> {
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let at = datetime(Timestamp::now());
        Statements(&mut *self.writer.lock().await).begin_sale(item, epoch, units, &at).await
    }

    async fn sales(&self) -> Result<Vec<SaleRecord>, LedgerError> {
        Statements(&mut *self.reader.lock().await).sales().await
    }

    async fn serials(&self, item: &str, epoch: Uuid) -> Result<Vec<u64>, LedgerError> {
        Statements(&mut *self.reader.lock().await).serials(item, epoch).await
    }

    async fn raise_term(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError> {
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_with("begin immediate").await.map_err(failed)?;
        let at = datetime(Timestamp::now());
        let raised = Statements(&mut transaction).raise_term(item, epoch, &at).await;
        let ended = match &raised {
            Ok(_) => transaction.commit().await,
            Err(_) => transaction.rollback().await,
        };
        raised.and_then(|raised| ended.map(|()| raised).map_err(failed))
    }

    async fn account(&self, item: &str, epoch: Uuid) -> Result<Account, LedgerError> {
        Statements(&mut *self.reader.lock().await).account(item, epoch).await
    }

    async fn winners(&self, item: &str, epoch: Uuid) -> Result<Vec<Sale>, LedgerError> {
        Statements(&mut *self.reader.lock().await).winners(item, epoch).await
    }

    async fn void(&self, item: &str, epoch: Uuid, serials: &[u64]) -> Result<(), LedgerError> {
        let turn = self.file.turn();
        let _turn = turn.lock().await;
        Statements(&mut *self.writer.lock().await).void(item, epoch, serials).await
    }

    async fn faults(&self) -> Result<Faults, LedgerError> {
        Statements(&mut *self.reader.lock().await).faults().await
    }
}

/// Primary result codes that pass: `SQLITE_BUSY`, `SQLITE_LOCKED`, `SQLITE_FULL`.
const PASSING: [u32; 3] = [5, 6, 13];

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
