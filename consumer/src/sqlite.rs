//! The embedded SQLite file: ownership check, write lock, migrations.

use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::Mutex;

use crate::service::config::ConfigError;

/// The schema migrations for SQLite.
static MIGRATIONS: Migrator = sqlx::migrate!("../sql/sqlite");

/// The journal's name in checkpoints.
pub const TOPIC: &str = "journal";

/// Sales per post: an insert of this size is prepared once. The file's only write lock is held meanwhile,
/// about 1 ms, and buyers wait.
pub(crate) const BATCH: usize = 100;

/// `SECK`, in the header of all our files (`pragma application_id`).
const APPLICATION_ID: u32 = 0x5345_434b;

/// Lock timeout against another process, which holds the file for milliseconds.
const BUSY_WITHIN: Duration = Duration::from_secs(5);

/// Size limit of the write-ahead log after a checkpoint. SQLite checkpoints every 4 MiB; a long-running
/// reader lets the log grow, and it would keep that size.
const WAL_BYTES: &str = "16777216";

/// A SQLite file's header: a magic, and the application id.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const ID_AT: std::ops::Range<usize> = 68..72;
const HEADER_BYTES: usize = 100;

/// SQLite's two companion files: the last commits, and their index.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The file. Clones share the write lock.
#[derive(Debug, Clone)]
pub struct SqliteFile {
    path: PathBuf,
    turn: Arc<Mutex<()>>,
    /// The open files, each by name.
    open: Arc<OnceLock<Vec<(PathBuf, Identity)>>>,
}

/// Device and inode of a file: unique while a process has it open.
type Identity = (u64, u64);

/// The durability of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// On disk when it returns: for data that cannot be restored, the journal.
    Full,
    /// May be lost in a power failure, never in part: for data that the journal can restore.
    Normal,
}

/// Why the file is unusable.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not the intended file: an operator's mistake.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An I/O error.
    #[error("{0}")]
    Failed(String),
}

impl SqliteFile {
    /// Opens the file; with `create`, creates it when missing or empty.
    ///
    /// Never writes to a foreign file.
    ///
    /// # Errors
    /// When its folder or (without `create`) the file is missing, it is foreign or made by a newer version,
    /// or on an I/O error.
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
        let file = Self { path: path.to_owned(), turn: Arc::default(), open: Arc::default() };
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

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writers of one process hold this lock while they write, to follow each other at once; SQLite's own
    /// waiting sleeps.
    #[must_use]
    pub fn turn(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.turn)
    }

    /// Remembers the current files while a connection that has read is open: from then on
    /// [`SqliteFile::in_place`] checks that they are still there.
    ///
    /// # Errors
    /// When they cannot be inspected.
    pub fn hold(&self) -> std::io::Result<()> {
        let names = ["", BESIDE[0], BESIDE[1]].map(|end| {
            let mut name = self.path.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        });
        let open = names.into_iter().map(|name| identity(&name).map(|identity| (name, identity)));
        let open = open.collect::<std::io::Result<_>>()?;
        let _ = self.open.set(open);
        Ok(())
    }

    /// Whether the open files still have their names: writes to renamed or deleted files are lost with the
    /// process. Moving the file back fixes it.
    ///
    /// # Errors
    /// What happened, and what to do.
    pub fn in_place(&self) -> Result<(), String> {
        for (name, open) in self.open.get().into_iter().flatten() {
            let shown = name.display();
            let what = match identity(name) {
                Ok(found) if found == *open => continue,
                Ok(_) => format!("another file was put where {shown} was"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    format!("{shown} was deleted or moved")
                }
                Err(error) => format!("{shown} cannot be looked at: {error}"),
            };
            return Err(format!(
                "SECKILL_DATA={}: {what} while it was in use; {}",
                self.path.display(),
                self.way_out(name)
            ));
        }
        Ok(())
    }

    /// The remedy for a file that is not in its place.
    fn way_out(&self, name: &Path) -> String {
        if name != self.path {
            return "what was sold is in the file itself: start the program again".into();
        }
        let Some((_, open)) = self.open.get().and_then(|open| open.first()) else { return String::new() };
        let mine = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let mine = mine.map(|entry| entry.path()).find(|fd| identity(fd).is_ok_and(|found| found == *open));
        let fd = mine.and_then(|fd| fd.file_name().map(|fd| fd.to_string_lossy().into_owned()));
        let saved = fd.map_or(String::new(), |fd| {
            format!(
                "; if it was deleted, `cp /proc/{}/fd/{fd} SAVED.db` before this program ends, and start again with SAVED.db in its place",
                std::process::id()
            )
        });
        format!("nothing is sold meanwhile; move the file back, and the sale goes on{saved}")
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// When the file cannot be opened, or another one is in its place.
    pub async fn connect(&self, synchronous: Synchronous) -> Result<SqliteConnection, sqlx::Error> {
        let synchronous = match synchronous {
            Synchronous::Full => SqliteSynchronous::Full,
            Synchronous::Normal => SqliteSynchronous::Normal,
        };
        self.in_place().map_err(|why| sqlx::Error::Io(std::io::Error::other(why)))?;
        self.options().synchronous(synchronous).connect().await
    }

    /// The key for order ids in this file, as 32 hex digits.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn order_key(&self) -> Result<String, sqlx::Error> {
        let mut connection = self.connect(Synchronous::Normal).await?;
        let key = sqlx::query_scalar("select hex from order_key").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(key)
    }

    fn options(&self) -> SqliteConnectOptions {
        // The journal mode is a file property (WAL, set at creation), and locking is never exclusive:
        // `status` and `audit` read beside a running service.
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
            // One transaction for all: of several programs that start at once one creates the tables, and no
            // other sees them incomplete.
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
        // Readers run beside a writer; persists in the file.
        sqlx::query("pragma journal_mode = wal").execute(&mut connection).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }
}

/// Whether the file is ours with every migration applied; read-only.
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
    // Nor one more: a newer version may have changed the meaning of ours.
    Ok(known.len() == MIGRATIONS.iter().count()
        && MIGRATIONS.iter().all(|wanted| {
            known.iter().any(|(version, sum)| *version == wanted.version && **sum == *wanted.checksum)
        }))
}

fn identity(path: &Path) -> std::io::Result<Identity> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

enum Found {
    Nothing,
    Ours,
    Foreign,
}

/// Reads the header without SQLite, which would take a foreign file's journal for its own.
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
