//! The embedded world's file: opened only if it is ours, written in turn.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::Mutex;

use crate::config::ConfigError;

/// The tables, as they are made in SQLite.
static MIGRATIONS: Migrator = sqlx::migrate!("../sql/sqlite");

/// `SECK`, in the header of every file of ours (`pragma application_id`).
const APPLICATION_ID: u32 = 0x5345_434b;

/// How long a writer waits for one in another process, which holds the file for milliseconds.
const BUSY_WITHIN: Duration = Duration::from_secs(5);

/// What the write-ahead log keeps of the disk once its pages are in the file. SQLite moves them
/// there every 4 MiB; a reader that stays long lets it grow, and it would keep that size.
const WAL_BYTES: &str = "16777216";

/// Where a SQLite file says what it is: a magic, and the application's id.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const ID_AT: std::ops::Range<usize> = 68..72;
const HEADER_BYTES: usize = 100;

/// The file. Clones share the turn.
#[derive(Debug, Clone)]
pub struct SqliteFile {
    path: PathBuf,
    turn: Arc<Mutex<()>>,
}

/// How sure a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// On disk when it returns: for what cannot be made again, the journal.
    Full,
    /// May be lost with the power, never in part: for what the journal can make again.
    Normal,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not the file that was meant: an operator's mistake.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It could not be read or written.
    #[error("{0}")]
    Failed(String),
}

impl SqliteFile {
    /// Opens the file, and makes it when it is missing or empty and `create` says so.
    ///
    /// A file that is not ours is never written to.
    ///
    /// # Errors
    /// When its folder or (without `create`) the file is missing, it is not ours or made by a newer
    /// version, or it cannot be read or written.
    pub async fn open(path: &Path, create: bool) -> Result<Self, FileError> {
        let name = path.display();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(mistake(format!(
                "{name}: there is no folder {}; make it, or name another",
                folder.display()
            )));
        }
        let file = Self { path: path.to_owned(), turn: Arc::default() };
        match look(path).map_err(|error| FileError::Failed(format!("SECKILL_DATA={name}: {error}")))? {
            Found::Ours => {}
            Found::Nothing if create => {}
            Found::Nothing => {
                return Err(mistake(format!(
                    "{name}: there is no such file; `seckill` makes it when it starts"
                )));
            }
            Found::Foreign => return Err(foreign(path)),
        }
        file.migrate(create).await?;
        Ok(file)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writers of one process hold this while they write, so that they follow each other at once;
    /// SQLite's own waiting sleeps.
    #[must_use]
    pub fn turn(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.turn)
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn connect(&self, synchronous: Synchronous) -> Result<SqliteConnection, sqlx::Error> {
        let synchronous = match synchronous {
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Normal => SqliteSynchronous::Normal,
        };
        self.options().synchronous(synchronous).connect().await
    }

    fn options(&self) -> SqliteConnectOptions {
        // The journal mode is a property of the file (WAL, set when it was made), and locking is
        // never exclusive: `status` and `audit` read beside a running service.
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(BUSY_WITHIN)
            .pragma("journal_size_limit", WAL_BYTES)
            .disable_statement_logging()
    }

    async fn migrate(&self, create: bool) -> Result<(), FileError> {
        let failed =
            |error: sqlx::Error| FileError::Failed(format!("SECKILL_DATA={}: {error}", self.path.display()));
        let mut connection = self.options().create_if_missing(create).connect().await.map_err(failed)?;
        if !migrated(&mut connection).await.map_err(failed)? {
            // One transaction for all: of several programs that start at once one makes the tables,
            // and no other finds them half made.
            let mut transaction = connection.begin_with("begin immediate").await.map_err(failed)?;
            let id: u32 = sqlx::query_scalar("pragma application_id")
                .fetch_one(&mut *transaction)
                .await
                .map_err(failed)?;
            if id != APPLICATION_ID {
                let tables: i64 = sqlx::query_scalar("select count(*) from sqlite_master")
                    .fetch_one(&mut *transaction)
                    .await
                    .map_err(failed)?;
                if id != 0 || tables != 0 {
                    return Err(foreign(&self.path));
                }
                sqlx::query(sqlx::AssertSqlSafe(format!("pragma application_id = {APPLICATION_ID}")))
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
            MIGRATIONS.run(&mut *transaction).await.map_err(|error| match error {
                MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => mistake(format!(
                    "{}: made by another version of this program ({error}); use that one, or name another file",
                    self.path.display()
                )),
                other => FileError::Failed(format!("SECKILL_DATA={}: {other}", self.path.display())),
            })?;
            transaction.commit().await.map_err(failed)?;
        }
        // Readers beside a writer; stays with the file.
        sqlx::query("pragma journal_mode = wal").execute(&mut connection).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }
}

/// Whether the file is ours with every migration applied; writes nothing.
async fn migrated(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let id: u32 = sqlx::query_scalar("pragma application_id").fetch_one(&mut *connection).await?;
    let tables: i64 =
        sqlx::query_scalar("select count(*) from sqlite_master where name = '_sqlx_migrations'")
            .fetch_one(&mut *connection)
            .await?;
    if id != APPLICATION_ID || tables == 0 {
        return Ok(false);
    }
    let applied = sqlx::query("select version, checksum from _sqlx_migrations where success")
        .fetch_all(connection)
        .await?;
    let mut known = Vec::new();
    for row in &applied {
        known.push((row.try_get::<i64, _>("version")?, row.try_get::<Vec<u8>, _>("checksum")?));
    }
    // Also not one more: a newer version may have changed what ours means.
    Ok(known.len() == MIGRATIONS.iter().count()
        && MIGRATIONS.iter().all(|wanted| {
            known.iter().any(|(version, sum)| *version == wanted.version && **sum == *wanted.checksum)
        }))
}

enum Found {
    Nothing,
    Ours,
    Foreign,
}

/// Reads the header, without SQLite: it would take a foreign file's journal for its own.
fn look(path: &Path) -> std::io::Result<Found> {
    let mut header = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(HEADER_BYTES as u64).read_to_end(&mut header)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    Ok(match header.get(ID_AT) {
        _ if header.is_empty() => Found::Nothing,
        Some(id) if header.starts_with(MAGIC) && id == APPLICATION_ID.to_be_bytes() => Found::Ours,
        _ => Found::Foreign,
    })
}

fn mistake(message: String) -> FileError {
    FileError::Config(ConfigError(format!("SECKILL_DATA={message}")))
}

fn foreign(path: &Path) -> FileError {
    mistake(format!("{}: not a file of this program, so it is left alone; name another", path.display()))
}
