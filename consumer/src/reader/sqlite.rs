//! The SQLite reader: reads the embedded journal table in order.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::time::{Instant, sleep};

use super::{Read, Reader, ReaderError};
use crate::ledger::Message;
use crate::progress::{Checkpoints, Extent, Extents};
use crate::sqlite::{BATCH, SqliteFile, Synchronous, TOPIC};

/// The file's only partition.
const PARTITION: i32 = 0;

/// Poll interval. One poll takes 30 µs, and no buyer waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Buyers go first in a rush: while more is sold than recorded, the next batch is delayed by this...
const STEP_ASIDE: Duration = Duration::from_millis(10);

/// ... unless the ledger lags by this many sales, which it catches up on in a few seconds.
const FAR_BEHIND: i64 = 100_000;

/// Reads a file's journal.
#[derive(Debug)]
pub struct SqliteReader {
    connection: SqliteConnection,
    next: Option<i64>,
    /// The journal's end at the last poll.
    end: i64,
    assigned: bool,
}

impl SqliteReader {
    /// Opens a reader of `file`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(file: &SqliteFile) -> Result<Self, ReaderError> {
        let connection = file.connect(Synchronous::Normal).await.map_err(away)?;
        Ok(Self { connection, next: None, end: 0, assigned: false })
    }

    /// Whether a batch or more was sold since the last poll, and the ledger is not far behind.
    async fn is_rush(&mut self, next: i64) -> Result<bool, ReaderError> {
        let end = self.end().await?;
        let before = std::mem::replace(&mut self.end, end);
        Ok(before > 0 && end - before >= BATCH as i64 && end - next < FAR_BEHIND)
    }

    async fn messages(&mut self, from: i64, max: usize) -> Result<Vec<Message>, ReaderError> {
        // Skips the seeds between the sales.
        let rows = sqlx::query(
            "select `offset`, value from journal where `offset` >= ? and kind = 'sale' order by `offset` limit ?",
        )
        .bind(from)
        .bind(i64::try_from(max).unwrap_or(i64::MAX))
        .fetch_all(&mut self.connection)
        .await
        .map_err(away)?;
        rows.iter()
            .map(|row| {
                let value: String = row.try_get("value").map_err(away)?;
                Ok(Message { offset: row.try_get("offset").map_err(away)?, value: value.into_bytes() })
            })
            .collect()
    }

    /// The offset after the last sale.
    async fn end(&mut self) -> Result<i64, ReaderError> {
        let last = self
            .edge("select `offset` from journal where kind = 'sale' order by `offset` desc limit 1")
            .await?;
        Ok(last.map_or(0, |last| last + 1))
    }

    async fn edge(&mut self, statement: &'static str) -> Result<Option<i64>, ReaderError> {
        sqlx::query_scalar(statement).fetch_optional(&mut self.connection).await.map_err(away)
    }
}

#[async_trait]
impl Reader for SqliteReader {
    fn topic(&self) -> &str {
        TOPIC
    }

    async fn read(&mut self, max: usize, wait: Duration) -> Result<Read, ReaderError> {
        if !self.assigned {
            self.assigned = true;
            return Ok(Read::Assigned(vec![PARTITION]));
        }
        let until = Instant::now() + wait;
        loop {
            if let Some(next) = self.next
                && max > 0
            {
                if self.is_rush(next).await? {
                    sleep(STEP_ASIDE).await;
                }
                let messages = self.messages(next, max.min(BATCH)).await?;
                if let Some(last) = messages.last() {
                    self.next = Some(last.offset + 1);
                    return Ok(Read::Messages(BTreeMap::from([(PARTITION, messages)])));
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Read::Quiet);
            }
            sleep(if max == 0 { left } else { left.min(LOOK_EVERY) }).await;
        }
    }

    async fn start(&mut self, from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError> {
        let first =
            self.edge("select `offset` from journal where kind = 'sale' order by `offset` limit 1").await?;
        let end = self.end().await?;
        let wanted = from.get(&PARTITION).map(|checkpoint| checkpoint.next - 1);
        if let Some(wanted) = wanted
            && (wanted >= end || first.is_none_or(|first| wanted < first))
        {
            return Err(ReaderError::Foreign(format!(
                "the ledger needs sale {wanted} of the journal, which ends before {end}: \
                 part of this file was lost or put back; restore all of it from one backup"
            )));
        }
        let begin = wanted.or(first).unwrap_or_default();
        self.next = Some(begin);
        Ok(BTreeMap::from([(PARTITION, begin)]))
    }

    async fn report(&mut self, _: &BTreeMap<i32, i64>) {}

    async fn extents(&mut self) -> Result<Extents, ReaderError> {
        // Nothing is deleted.
        Ok(BTreeMap::from([(PARTITION, Extent { start: 0, end: self.end().await? })]))
    }
}

fn away(error: sqlx::Error) -> ReaderError {
    ReaderError::Away(error.to_string())
}
