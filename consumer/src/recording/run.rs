//! The consumer's run loop: runs steps until stopped, as a process or as a task.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::ledger::LedgerError;
use crate::progress::ReaderError;
use crate::recording::step::{Consumer, Step, StepError};
use crate::service::ops::Ready;

/// Time for the batch in flight when the consumer must stop at once.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// Retry interval for a server that is away at startup.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After the batch in flight.
    Now,
    /// Once the journal is read to its end, or after this time.
    CaughtUp(Duration),
}

/// The consumer's readiness, shared with `/readyz`.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<Option<String>>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some("starting".to_owned()))))
    }
}

impl Health {
    /// For [`crate::service::ops::serve`].
    #[must_use]
    pub fn ready(&self) -> Ready {
        let health = self.clone();
        Arc::new(move || health.check())
    }

    /// Whether the consumer is ready.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// Sets the state and logs each change once.
    fn note(&self, trouble: Option<&str>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.as_deref() == trouble {
            return;
        }
        match trouble {
            Some(why) => log::warn!("waiting: {why}"),
            None => log::info!("ready"),
        }
        *state = trouble.map(str::to_owned);
    }
}

/// Why a startup attempt failed.
#[derive(Debug)]
pub enum Unready {
    /// Transient: retry.
    Away(String),
    /// Permanent.
    Broken(StepError),
}

impl From<LedgerError> for Unready {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Away(_) | LedgerError::Moved { .. } => Self::Away(error.to_string()),
            LedgerError::Foreign(why) => Self::Broken(StepError::Foreign(why)),
            LedgerError::Broken(_) => Self::Broken(StepError::Broken(error.to_string())),
        }
    }
}

impl From<ReaderError> for Unready {
    fn from(error: ReaderError) -> Self {
        match error {
            ReaderError::Away(_) => Self::Away(error.to_string()),
            ReaderError::Outside(why) | ReaderError::Foreign(why) => Self::Broken(StepError::Foreign(why)),
        }
    }
}

/// Retries until it succeeds: waits for a server that is away.
///
/// # Errors
/// When retrying does not help.
pub async fn until_up<T, E, F>(health: &Health, mut attempt: impl FnMut() -> F) -> Result<T, StepError>
where
    F: Future<Output = Result<T, E>>,
    E: Into<Unready>,
{
    loop {
        match attempt().await.map_err(Into::into) {
            Ok(up) => return Ok(up),
            Err(Unready::Broken(error)) => return Err(error),
            Err(Unready::Away(why)) => health.note(Some(&why)),
        }
        sleep(TRY_EVERY).await;
    }
}

/// Runs steps until `stop` resolves, then leaves the group.
///
/// # Errors
/// When a step fails permanently.
pub async fn run(
    mut consumer: Consumer,
    health: Health,
    stop: impl Future<Output = Stop>,
) -> Result<(), StepError> {
    let mut stop = pin!(stop);
    let mut note = Noted { health, started: false };
    let how = loop {
        let mut step = pin!(consumer.step());
        tokio::select! {
            biased;
            how = &mut stop => {
                // The current step is not cancelled: it may hold a batch.
                let until = Instant::now() + FINISH_WITHIN;
                if let Ok(done) = timeout_at(until, step).await {
                    note.step(&done?);
                }
                break how;
            }
            done = &mut step => note.step(&done?),
        }
    };
    if let Err(error) = finish(&mut consumer, how).await {
        consumer.close().await;
        return Err(error);
    }
    consumer.close().await;
    Ok(())
}

/// Updates the readiness from the steps.
struct Noted {
    health: Health,
    started: bool,
}

impl Noted {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Away(why) => self.health.note(Some(why)),
            // Says nothing about the servers; neither does quiet before the first assignment, nor losing all
            // partitions.
            Step::Moved => {}
            Step::Started(partitions) if partitions.is_empty() => self.started = true,
            Step::Quiet if !self.started => {}
            Step::Started(_) | Step::Verified | Step::Posted(_) | Step::Quiet => {
                self.started = true;
                self.health.note(None);
            }
        }
    }
}

/// Runs the last steps.
async fn finish(consumer: &mut Consumer, how: Stop) -> Result<(), StepError> {
    let within = match how {
        Stop::Now => FINISH_WITHIN,
        Stop::CaughtUp(within) => within,
    };
    let until = Instant::now() + within;
    while consumer.in_hand() || how != Stop::Now {
        match timeout_at(until, consumer.step()).await {
            Ok(Ok(Step::Quiet)) => break,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                log::warn!("stopped before everything was recorded; the journal keeps it for the next start");
                break;
            }
        }
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}
