//! Connection pool of one Redis: connects on demand, discards connections that may be dead.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, Runtime};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind, Value};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::words;
use crate::sale::times::{CONNECT_WITHIN, FORGOTTEN_AFTER, REPLY_WITHIN};
use crate::stock::StockError;

/// How often an unresponsive Redis is probed.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// Shared by a call in flight, the outbox scan, probes and operators' commands.
const MAX_CONNECTIONS: usize = 16;
/// Idle connections are closed after this: a server's `timeout` (1 s at least) or a NAT may have dropped one
/// silently, and a take sent on it would be lost.
const IDLE_WITHIN: Duration = Duration::from_millis(900);

/// The pool; clones share it.
#[derive(Clone)]
pub(super) struct Link(Arc<Inner>);

struct Inner {
    pool: Pool,
    /// One per connection: a holder takes an idle one, or connects.
    permits: Semaphore,
    /// Recently used connections: the pool would send each a `PING` before handing it out.
    idle: Mutex<Vec<Idle>>,
    /// Raised to retire all earlier connections.
    generation: AtomicU64,
    /// While Redis does not answer, only probes are sent.
    silent: AtomicBool,
    /// Why the last call got no answer.
    reason: Mutex<String>,
}

struct Idle {
    connection: Connection,
    generation: u64,
    since: Instant,
}

impl Link {
    /// Creates a client of the Redis at `url`; connects on first use.
    ///
    /// # Errors
    /// When the URL cannot be used; the message does not contain it.
    pub(super) fn new(url: &str) -> Result<Self, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(REPLY_WITHIN));
        // A call that timed out must not arrive once the network recovers.
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
        Ok(Self(Arc::new(Inner {
            pool,
            permits: Semaphore::new(MAX_CONNECTIONS),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            reason: Mutex::default(),
        })))
    }

    /// One call: takes a connection, sends once, returns the connection.
    ///
    /// Never retried, here or in the client: after a timeout it may have run.
    pub(super) async fn ask(
        &self,
        question: impl AsyncFnOnce(&mut Connection) -> Result<Value, RedisError>,
    ) -> Result<Value, StockError> {
        if self.0.silent.load(Ordering::Acquire) {
            let reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Err(StockError::Refused(format!("redis does not answer{reason}")));
        }
        let refused = |why: &str| StockError::Refused(format!("redis is away: {why}"));
        let permit = timeout(CONNECT_WITHIN, self.0.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(refused("all connections are busy")) };
        let generation = self.0.generation.load(Ordering::Acquire);
        let mut connection = match self.recent() {
            Some(connection) => connection,
            None => self.0.pool.get().await.map_err(|error| refused(&error.to_string()))?,
        };
        match question(&mut connection).await {
            Ok(answer) => {
                self.give_back(connection, generation);
                Ok(answer)
            }
            Err(error) => match error.kind() {
                ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                    // Demoted master: reconnecting by name may find the new one.
                    close(connection);
                    self.close_all();
                    Err(StockError::Refused(words(&error)))
                }
                ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Client => {
                    self.give_back(connection, generation);
                    Err(StockError::Refused(words(&error)))
                }
                _ => {
                    // A late answer may still arrive on it.
                    close(connection);
                    self.close_all();
                    if error.is_timeout() {
                        self.fall_silent();
                    }
                    Err(StockError::Silent(words(&error)))
                }
            },
        }
    }

    /// The server's ids of the idle connections.
    #[cfg(test)]
    pub(super) async fn ids(&self) -> Vec<String> {
        let idle = std::mem::take(&mut *self.idle());
        let mut ids = Vec::new();
        let mut asked = Vec::new();
        for mut one in idle {
            let id: i64 =
                redis::cmd("CLIENT").arg("ID").query_async(&mut one.connection).await.expect("an id");
            ids.push(id.to_string());
            asked.push(one);
        }
        self.idle().extend(asked);
        ids
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A recently used connection.
    fn recent(&self) -> Option<Connection> {
        let mut idle = self.idle();
        let last = idle.pop()?;
        let current = last.generation == self.0.generation.load(Ordering::Acquire);
        if current && last.since.elapsed() < IDLE_WITHIN {
            return Some(last.connection);
        }
        // Those below it are older still.
        let old = std::mem::take(&mut *idle);
        drop(idle);
        old.into_iter().chain([last]).for_each(|old| close(old.connection));
        None
    }

    fn give_back(&self, connection: Connection, generation: u64) {
        if generation == self.0.generation.load(Ordering::Acquire) {
            self.idle().push(Idle { connection, generation, since: Instant::now() });
        } else {
            close(connection);
        }
    }

    /// Closes every connection: the next call reconnects by the server's name.
    fn close_all(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        let old = std::mem::take(&mut *self.idle());
        old.into_iter().for_each(|old| close(old.connection));
    }

    /// Sends nothing more until a `PING` is answered.
    fn fall_silent(&self) {
        if self.0.silent.swap(true, Ordering::AcqRel) {
            return;
        }
        let link = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                let reason = match link.probe().await {
                    Ok(()) => String::new(),
                    Err(why) => format!(": {why}"),
                };
                let answers = reason.is_empty();
                *link.0.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
                if answers {
                    return link.0.silent.store(false, Ordering::Release);
                }
            }
        });
    }

    async fn probe(&self) -> Result<(), String> {
        let mut connection = self.0.pool.get().await.map_err(|error| error.to_string())?;
        let answer: Result<(), RedisError> = redis::cmd("PING").query_async(&mut connection).await;
        close(connection);
        match answer {
            Err(error) if !matches!(error.kind(), ErrorKind::Server(_)) => Err(words(&error)),
            // An error reply (still loading its file, say) is an answer.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Closes it instead of returning it to the pool.
fn close(connection: Connection) {
    drop(Connection::take(connection));
}
