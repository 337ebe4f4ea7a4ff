//! The ledger on MySQL or MariaDB: connection pool, timeouts, migrations.

mod promise;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPool, MySqlPoolOptions};
use sqlx::pool::PoolConnection;
use sqlx::{Arguments as _, ConnectOptions, Connection, Executor, MySql, Row as _};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use uuid::Uuid;

use super::post::{self, MAX_ROWS, Standing, Tables, Written};
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
use crate::service::config::ConfigError;
use refusal::{NO_SUCH_TABLE, failure, not_migrated, number, words};

/// The schema migrations for MySQL and MariaDB.
static MIGRATIONS: Migrator = sqlx::migrate!("../sql/mysql");

/// One posts, the others look up orders and audit.
const CONNECTIONS: u32 = 5;

/// Includes connecting; a buyer's request must not hang longer.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);

/// A batch takes milliseconds and an audit of a million rows a few seconds. A longer wait means that the
/// server is silently gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A migration may wait for another program's migration.
const MIGRATE_WITHIN: Duration = Duration::from_secs(60);

/// Sent before every operation, which also checks that the connection is alive.
///
/// Read committed: after a violation the conflicting row is visible, whenever it was committed. Strict: a
/// value that does not fit is refused, never truncated. The lock wait timeout is shorter than the answer
/// timeout. A program frozen in the middle of a transaction holds its locks at most 10 s (the default is 8
/// hours): then the server closes the connection, and the new owner of its partitions can post.
const SESSION: &str = "set session transaction isolation level read committed; \
     set session sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
     innodb_lock_wait_timeout = 5, wait_timeout = 10";

/// It takes a millisecond. A connection silent for this long is dead, or its server is.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);

/// Idle connections are closed before the server or a middlebox closes them.
const IDLE_WITHIN: Duration = Duration::from_secs(5);

/// A connection in use is replaced after this: the name may resolve to another server by now.
const LIVES: Duration = Duration::from_secs(5 * 60);

/// The smallest packet (`max_allowed_packet`) that fits every statement: the smallest default that MySQL or
/// MariaDB ever had. `MAX_BYTES` and `MAX_MESSAGE_BYTES` stay below it.
const LEAST_PACKET: u64 = 1024 * 1024;

const SILENT: &str = "no answer from the database in time";

// MariaDB lacks `for share`.
statements!(Statements, MySql, failure, words, MAX_ROWS, " for update", " lock in share mode");

/// The ledger in MySQL or MariaDB.
#[derive(Debug, Clone)]
pub struct MySqlLedger {
    pool: MySqlPool,
    /// Connections made before this time are not reused.
    anew: Arc<Mutex<Option<Instant>>>,
    /// See [`Statements::disputed`].
    settled: Arc<AtomicI64>,
}

impl MySqlLedger {
    /// A ledger that connects on first use.
    ///
    /// # Errors
    /// When `url` is invalid. The error never shows it: it may contain a password.
    pub fn connect_lazy(url: &str) -> Result<Self, ConfigError> {
        let wrong = || {
            ConfigError(
                "SECKILL_DATABASE_URL: give an address such as mysql://user:password@host:3306/seckill"
                    .to_owned(),
            )
        };
        if !(url.starts_with("mysql://") || url.starts_with("mariadb://")) {
            return Err(wrong());
        }
        let options = MySqlConnectOptions::from_str(url).map_err(|_| wrong())?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        let anew = Arc::new(Mutex::new(None));
        let since = Arc::clone(&anew);
        let pool = MySqlPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_WITHIN)
            .idle_timeout(IDLE_WITHIN)
            .max_lifetime(LIVES)
            // `connection` checks liveness, with a short timeout.
            .test_before_acquire(false)
            .before_acquire(move |_, is| {
                let since: Option<Instant> = *since.lock().unwrap_or_else(PoisonError::into_inner);
                let later = since.is_none_or(|since| is.age < since.elapsed());
                Box::pin(async move { Ok(later && is.idle_for < IDLE_WITHIN) })
            })
            .connect_lazy_with(options.disable_statement_logging());
        Ok(Self { pool, anew, settled: Arc::new(AtomicI64::new(0)) })
    }

    /// Closes the connections gracefully.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A live connection with our [`SESSION`]. Until there is one every error is retried: user, rights and
    /// database may be created later.
    async fn connection(&self) -> Result<PoolConnection<MySql>, LedgerError> {
        let mut why = String::new();
        // A dead connection invalidates all of its age, so the second is new.
        for _ in 0..2 {
            let mut connection = match self.pool.acquire().await {
                Ok(connection) => connection,
                Err(sqlx::Error::PoolTimedOut) => return Err(LedgerError::Away(self.why_not().await)),
                Err(error) => return Err(LedgerError::Away(words(&error))),
            };
            why = match timeout(ALIVE_WITHIN, connection.execute(SESSION)).await {
                Ok(Ok(_)) => return Ok(connection),
                Ok(Err(error)) => words(&error),
                Err(_) => SILENT.to_owned(),
            };
            self.discard(connection);
        }
        Err(LedgerError::Away(why))
    }

    /// Why there is no connection: the pool hides the error.
    async fn why_not(&self) -> String {
        let options = self.pool.connect_options();
        match timeout(ALIVE_WITHIN, options.connect()).await {
            Ok(Err(error)) => words(&error),
            Ok(Ok(_)) | Err(_) => "no connection to the database in time".to_owned(),
        }
    }

    /// Drops a connection and invalidates all made before now. The next ones resolve the name again: what one
    /// server refuses (read only after a failover) another may accept.
    fn discard(&self, connection: PoolConnection<MySql>) {
        drop(connection.detach());
        *self.anew.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns the connection to the pool, unless its answer is pending or was a transient error.
    fn done<T>(
        &self,
        connection: PoolConnection<MySql>,
        answer: Result<Result<T, LedgerError>, Elapsed>,
    ) -> Result<T, LedgerError> {
        let answer = answer.unwrap_or_else(|_| Err(LedgerError::Away(SILENT.to_owned())));
        if matches!(answer, Err(LedgerError::Away(_))) {
            self.discard(connection);
        }
        answer
    }
}

/// Runs one statement on a pooled connection.
macro_rules! asked {
    ($self:ident, $question:ident($($argument:expr),*)) => {{
        let mut connection = $self.connection().await?;
        let answer = timeout(ANSWER_WITHIN, Statements(&mut connection).$question($($argument),*)).await;
        $self.done(connection, answer)
    }};
}

#[async_trait]
impl Record for MySqlLedger {
    async fn checkpoints(&self, topic: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError> {
        asked!(self, checkpoints(topic))
    }

    async fn post(&self, batch: &Batch) -> Result<Posted, LedgerError> {
        let mut connection = self.connection().await?;
        let answer = timeout(ANSWER_WITHIN, async {
            let mut transaction = connection.begin().await.map_err(failed)?;
            let posted = post::post(&mut Statements(&mut transaction), batch).await;
            // Releases the locks now, not when the connection is reused.
            let ended = match &posted {
                Ok(_) => transaction.commit().await,
                Err(_) => transaction.rollback().await,
            };
            posted.and_then(|posted| ended.map(|()| posted).map_err(failed))
        })
        .await;
        self.done(connection, answer)
    }
}

#[async_trait]
impl Ledger for MySqlLedger {
    async fn migrate(&self) -> Result<(), LedgerError> {
        // A connection of its own: a failure closes it and releases the migration lock.
        let mut connection = self.connection().await?.detach();
        timeout(MIGRATE_WITHIN + ANSWER_WITHIN, async {
            make_tables(&mut connection).await?;
            Statements(&mut connection).well_shaped().await?;
            connection.close().await.map_err(failed)
        })
        .await
        .map_err(|_| LedgerError::Away(SILENT.to_owned()))?
    }

    async fn broken_promises(&self) -> Result<Vec<String>, LedgerError> {
        asked!(self, broken_promises())
    }

    async fn keys(&self, mine: &str, until: i64) -> Result<i64, LedgerError> {
        asked!(self, keys(mine, until))
    }

    async fn find(&self, order: Uuid) -> Result<Option<Sale>, LedgerError> {
        asked!(self, find(order))
    }

    async fn in_conflict(&self, order: Uuid) -> Result<bool, LedgerError> {
        asked!(self, in_conflict(order))
    }

    async fn begin_sale(&self, item: &str, epoch: Uuid, units: u64) -> Result<(), LedgerError> {
        asked!(self, begin_sale(item, epoch, units, &datetime(Timestamp::now())))
    }

    async fn withdraw_sale(&self, item: &str, epoch: Uuid) -> Result<(), LedgerError> {
        asked!(self, withdraw_sale(item, epoch))
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
        // Stock set by a plain SET never recorded that the sale began.
        self.begin_sale(item, epoch, 0).await?;
        asked!(self, raise_term(item, epoch, from))
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
        asked!(self, void(item, epoch, runs))
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
        asked!(self, restored(item, epoch, restored, &datetime(Timestamp::now())))
    }

    async fn disputed(&self) -> Result<Vec<(String, Uuid)>, LedgerError> {
        asked!(self, disputed(&self.settled))
    }

    async fn archive(&self, item: &str, epoch: Uuid, closed: Closed) -> Result<(), LedgerError> {
        asked!(self, archive(item, epoch, closed, &datetime(Timestamp::now())))
    }

    async fn archived(&self, item: Option<&str>) -> Result<BTreeSet<(String, Uuid)>, LedgerError> {
        asked!(self, archived(item))
    }

    async fn faults(&self) -> Result<Faults, LedgerError> {
        asked!(self, faults())
    }
}

/// Creates what is missing, one program at a time. MariaDB silently refuses the migrator's own lock, which
/// asks to wait forever.
async fn make_tables(connection: &mut MySqlConnection) -> Result<(), LedgerError> {
    if migrated(connection).await? {
        return Ok(());
    }
    let locked: Option<i64> =
        sqlx::query_scalar("select get_lock(concat('seckill-', left(sha2(database(), 256), 32)), ?)")
            .bind(MIGRATE_WITHIN.as_secs())
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
    if locked != Some(1) {
        return Err(LedgerError::Away("somebody else is making the tables".to_owned()));
    }
    forget_interrupted(connection).await?;
    // Closing the connection releases the lock.
    MIGRATIONS.run_direct(None, connection, false).await.map_err(not_migrated)
}

/// The program whose migration was interrupted is gone, with its lock; every migration can be applied again.
async fn forget_interrupted(connection: &mut MySqlConnection) -> Result<(), LedgerError> {
    // Reads first: a user without the delete right may migrate where nothing was interrupted.
    let interrupted = sqlx::query("select 1 from _sqlx_migrations where not success limit 1");
    match interrupted.fetch_optional(&mut *connection).await {
        Ok(None) => return Ok(()),
        Ok(Some(_)) => {}
        Err(error) if number(&error) == Some(NO_SUCH_TABLE) => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let forgotten = sqlx::query("delete from _sqlx_migrations where not success").execute(connection).await;
    forgotten.map(drop).map_err(|error| not_migrated(MigrateError::Execute(error)))
}

/// Whether every migration of this program is applied; needs only the right to read.
async fn migrated(connection: &mut MySqlConnection) -> Result<bool, LedgerError> {
    let applied = sqlx::query("select version, checksum from _sqlx_migrations where success")
        .fetch_all(connection)
        .await;
    let applied = match applied {
        Ok(rows) => rows,
        Err(error) if number(&error) == Some(NO_SUCH_TABLE) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let mut known = Vec::new();
    for row in &applied {
        let version: i64 = row.try_get("version").map_err(failed)?;
        let checksum: Vec<u8> = row.try_get("checksum").map_err(failed)?;
        known.push((version, checksum));
    }
    Ok(MIGRATIONS.iter().all(|wanted| {
        known.iter().any(|(version, sum)| *version == wanted.version && **sum == *wanted.checksum)
    }))
}

impl Statements<'_> {
    /// Server settings that break the durability promise, or refuse what we send.
    async fn broken_promises(&mut self) -> Result<Vec<String>, LedgerError> {
        let rows = self.0.fetch_all("show global variables").await.map_err(failed)?;
        let mut set = BTreeMap::new();
        for row in &rows {
            let text = |column| row.try_get::<String, _>(column).map_err(failed);
            set.insert(text(0)?.to_lowercase(), text(1)?.to_uppercase());
        }
        Ok(promise::broken(|name| set.get(name).map(String::as_str)))
    }
}
