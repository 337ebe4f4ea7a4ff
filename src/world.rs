//! Wiring: the parts a sale runs on, servers or one file, chosen by configuration.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use consumer::ledger::mysql::MySqlLedger;
use consumer::ledger::sqlite::SqliteLedger;
use consumer::ledger::{Ledger, LedgerError};
use consumer::service::config::{ConfigError, Settings};
use consumer::sqlite::{FileError, SqliteFile};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::journal::Journal;
use crate::journal::kafka::KafkaJournal;
use crate::journal::sqlite::SqliteJournal;
use crate::sale::times::SETTLED_AFTER;
use crate::sale::{Item, epoch_after};
use crate::stock::memory::MemoryStock;
use crate::stock::redis::RedisStock;
use crate::stock::{Stock, StockError};

/// How long a refused `seed` retries, and how often.
const SEED_WITHIN: Duration = Duration::from_secs(10);
const SEED_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The parts.
#[derive(Clone)]
pub struct World {
    /// The units.
    pub stock: Arc<dyn Stock>,
    /// The durable log of sales.
    pub journal: Arc<dyn Journal>,
    /// The record of sales.
    pub ledger: Arc<dyn Ledger>,
    /// Servers or embedded.
    pub kind: Kind,
    /// How long after a sale was shut its books are counted: [`SETTLED_AFTER`].
    pub settled_after: Duration,
}

/// The two worlds, with what only they have.
#[derive(Clone)]
pub enum Kind {
    /// Redis, Kafka, and MySQL or MariaDB.
    Servers(Arc<KafkaJournal>),
    /// One SQLite file; the serving process holds its lock.
    Embedded(SqliteFile, Option<Arc<Lock>>),
}

/// Why a world cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// A wrong setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What an embedded file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To sell: creates a missing file, with the units of `SECKILL_STOCK`.
    Serve,
    /// To begin a sale: creates a missing file, if it was named explicitly.
    Seed,
    /// To read: the file must exist.
    Read,
}

impl World {
    /// Opens the world that the settings name.
    ///
    /// # Errors
    /// A setting is wrong, or the embedded file cannot be used. Unavailable servers are no error: they are
    /// waited for.
    pub async fn open(settings: &Settings, purpose: Purpose) -> Result<Self, WorldError> {
        let secrets = &settings.secrets;
        match (&secrets.redis_url, &secrets.kafka_brokers, &secrets.database_url) {
            (Some(redis), Some(_), Some(database)) => {
                let named = |name: &str, why: String| ConfigError(format!("{name}: {why}"));
                let stock = RedisStock::new(redis.reveal()).map_err(|why| named("SECKILL_REDIS_URL", why))?;
                let journal = Arc::new(KafkaJournal::new(settings).map_err(ConfigError)?);
                let ledger = MySqlLedger::connect_lazy(database.reveal())
                    .map_err(|error| named("SECKILL_DATABASE_URL", error.to_string()))?;
                Ok(Self {
                    stock: Arc::new(stock),
                    journal: Arc::<KafkaJournal>::clone(&journal),
                    ledger: Arc::new(ledger),
                    kind: Kind::Servers(journal),
                    settled_after: SETTLED_AFTER,
                })
            }
            (None, None, None) => Self::embedded(settings, purpose).await,
            (redis, kafka, database) => {
                let addresses = [
                    ("SECKILL_REDIS_URL", redis.is_some()),
                    ("SECKILL_KAFKA_BROKERS", kafka.is_some()),
                    ("SECKILL_DATABASE_URL", database.is_some()),
                ];
                let named = |set: bool| {
                    let names: Vec<&str> =
                        addresses.iter().filter(|(_, is)| *is == set).map(|(name, _)| *name).collect();
                    names.join(" and ")
                };
                Err(ConfigError(format!(
                    "{} without {}: set all three to sell on servers, or none to sell from one file",
                    named(true),
                    named(false)
                ))
                .into())
            }
        }
    }

    /// Its address, to tell worlds apart; never a password.
    #[must_use]
    pub fn place(settings: &Settings) -> String {
        let secrets = &settings.secrets;
        match (&secrets.redis_url, &secrets.kafka_brokers, &secrets.database_url) {
            (Some(redis), Some(kafka), Some(database)) => format!(
                "Redis {}, Kafka {} with topic {}, database {}",
                without_user(redis.reveal()),
                without_user(kafka.reveal()),
                settings.kafka_topic,
                without_user(database.reveal())
            ),
            _ => {
                let data = &settings.data;
                let whole = data.canonicalize().or_else(|_| std::path::absolute(data));
                format!("file {}", whole.as_ref().unwrap_or(data).display())
            }
        }
    }

    async fn embedded(settings: &Settings, purpose: Purpose) -> Result<Self, WorldError> {
        let failed =
            |why: String| WorldError::Failed(format!("SECKILL_DATA={}: {why}", settings.data.display()));
        // A sale would be begun in a file where it is not expected.
        if purpose == Purpose::Seed && !settings.data_named && !settings.data.exists() {
            return Err(ConfigError(format!(
                "there is no {0} here, and no servers are set: give `--data FILE` to begin a sale in a file, start \
                 `seckill` first, which makes {0}, or set SECKILL_REDIS_URL, SECKILL_KAFKA_BROKERS and \
                 SECKILL_DATABASE_URL",
                settings.data.display()
            ))
            .into());
        }
        let file =
            SqliteFile::open(&settings.data, purpose != Purpose::Read).await.map_err(
                |error| match error {
                    FileError::Config(error) => WorldError::Config(error),
                    FileError::Failed(why) => WorldError::Failed(why),
                },
            )?;
        let lock = (purpose == Purpose::Serve).then(|| Lock::take(&settings.data).map(Arc::new)).transpose();
        let lock = lock.map_err(WorldError::Failed)?;
        let journal = Arc::new(SqliteJournal::new(file.clone()));
        let stock = MemoryStock::open(Arc::clone(&journal)).await.map_err(failed)?;
        file.hold().map_err(|error| failed(error.to_string()))?;
        let ledger = SqliteLedger::open(&file).await.map_err(|error| failed(error.to_string()))?;
        let world = Self {
            stock: Arc::new(stock),
            journal,
            ledger: Arc::new(ledger),
            kind: Kind::Embedded(file, lock),
            settled_after: SETTLED_AFTER,
        };
        // An empty journal is a new file; one with rows is never refilled.
        let items = world.stock.items().await.map_err(|error| failed(error.to_string()))?;
        let mut empty = true;
        for item in &items {
            empty &= world.stock.books(item).await.map_err(|error| failed(error.to_string()))?.is_empty();
        }
        if purpose == Purpose::Serve && empty {
            world
                .seed(&Item::default(), settings.stock, &mut None)
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(world)
    }

    /// Begins a new sale and returns its epoch. Retries for a short time while a server is away or the sale
    /// is shut.
    ///
    /// # Errors
    /// Why no sale was begun; or that the outcome is unknown.
    pub async fn begin_sale(&self, item: &Item, units: u64) -> Result<Uuid, String> {
        let deadline = Instant::now() + SEED_WITHIN;
        let (mut said, mut epoch) = (String::new(), None);
        loop {
            let error = match self.seed(item, units, &mut epoch).await {
                Ok(epoch) => return Ok(epoch),
                // Not retried: it may have begun, sold, and been lost with Redis since.
                Err(error @ StockError::Silent(_)) => {
                    return Err(format!(
                        "nobody knows whether the sale began ({error}); look with `seckill status --item {item}`"
                    ));
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(self.withdrawn(item, epoch, &error.to_string()).await);
            }
            let why = error.to_string();
            if why != said {
                log::warn!("seed: {why}; trying again for up to {} s", SEED_WITHIN.as_secs());
                said = why;
            }
            sleep(SEED_AGAIN_AFTER).await;
        }
    }

    /// Adds units to the running sale; returns what is left then, or `None` when nothing is on sale. Retries
    /// for a short time while the sale is shut: what was refused was not added.
    ///
    /// # Errors
    /// As the stock's.
    pub async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError> {
        let deadline = Instant::now() + SEED_WITHIN;
        let mut said = String::new();
        loop {
            match self.stock.add(item, units).await {
                Err(StockError::Refused(why)) if Instant::now() < deadline && self.is_shut(item).await => {
                    if why != said {
                        log::warn!("seed: {why}; trying again for up to {} s", SEED_WITHIN.as_secs());
                        said = why;
                    }
                }
                done => return done,
            }
            sleep(SEED_AGAIN_AFTER).await;
        }
    }

    async fn is_shut(&self, item: &Item) -> bool {
        self.stock.books(item).await.is_ok_and(|books| books.first().is_some_and(|book| book.shut))
    }

    /// Withdraws a sale that never began, lest it look lost. Returns why it did not begin.
    async fn withdrawn(&self, item: &Item, epoch: Option<Uuid>, why: &str) -> String {
        let withdrawn = match epoch {
            Some(epoch) => self.ledger.withdraw_sale(item.name(), epoch).await.err(),
            None => None,
        };
        let after =
            withdrawn.map_or(String::new(), |error| format!("; the ledger may still name it: {error}"));
        format!("no sale was begun: {why}{after}")
    }

    /// Writes to the ledger first, so that a stock rolled back to before it cannot revive the old sale.
    /// Refused while the running one is shut. Retries reuse one `epoch`, which is later than every sale known
    /// when it is made, whatever this machine's clock says.
    async fn seed(&self, item: &Item, units: u64, epoch: &mut Option<Uuid>) -> Result<Uuid, StockError> {
        let refused = |error: LedgerError| StockError::Refused(error.to_string());
        // Fails if the stock is away; but a new sale may well repair an unreadable book.
        self.stock.knows(item).await?;
        let books = self.stock.books(item).await.unwrap_or_default();
        if books.first().is_some_and(|book| book.shut) {
            return Err(StockError::Refused(format!(
                "{item} is shut: its books are being checked, or lack something; see `seckill restore --item {item}`"
            )));
        }
        self.ledger.migrate().await.map_err(refused)?;
        let named = match *epoch {
            Some(named) => named,
            None => {
                let newest = self.ledger.newest().await.map_err(refused)?.get(item.name()).copied();
                *epoch.insert(epoch_after(newest.max(books.iter().map(|book| book.epoch).max())))
            }
        };
        self.ledger.begin_sale(item.name(), named, units).await.map_err(refused)?;
        if let Some(newer) = self.ledger.account(item.name(), named).await.map_err(refused)?.newer {
            return Err(StockError::Refused(format!(
                "another sale of {item} was begun in the same moment, {newer}"
            )));
        }
        self.stock.seed(item, units, named).await.map(|()| named)
    }
}

/// An address without user, password and options.
fn without_user(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    // A password may contain any character, delimiters included.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    host.split_once('?').map_or(host, |(host, _)| host)
}

/// Limits the embedded file to one `serve`; released on drop, and on a crash.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock beside `data`.
    ///
    /// # Errors
    /// When another `serve` has it, or the folder cannot be written.
    pub fn take(data: &Path) -> Result<Self, String> {
        // One lock for all names of the file.
        let real = data.canonicalize().unwrap_or_else(|_| data.to_owned());
        let mut path = real.into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| {
            format!(
                "SECKILL_DATA={}: {}: {error}; its folder must exist and be writable",
                data.display(),
                path.display()
            )
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(format!(
                "SECKILL_DATA={}: another seckill serves this file; stop it, or name another file",
                data.display()
            )),
            Err(std::fs::TryLockError::Error(error)) => Err(format!("{}: {error}", path.display())),
        }
    }
}
