//! The posting procedure: one batch in one transaction, alike for every database.

use std::collections::HashMap;

use async_trait::async_trait;
use uuid::Uuid;

use super::row::{MAX_MESSAGE_BYTES, Row};
use super::{Batch, Checkpoint, LATE, LedgerError, Message, Part, Posted, Verdict, judge};
use crate::progress::ANOTHER_TOPIC;
use crate::sale::Sale;

/// Rows per insert: 13 values each, and both databases accept at least 32,766 per statement. The insert of
/// the usual size is prepared once per connection, since preparing costs more than inserting; any other size
/// has another text and is prepared every time.
pub(super) const MAX_ROWS: usize = 500;

/// Message bytes per insert: with the other columns of a row, at most twice this and 310 bytes a row, an
/// insert stays below 1 MiB, the smallest packet limit of a database. Sales do not come near it: 500 of them
/// are 150 KiB.
const MAX_BYTES: usize = 256 * 1024;

/// How often rows of other transactions may conflict with one insert. Each retry finds the rows that
/// conflicted, so two are rare already.
const MAX_RACES: u32 = 10;

/// The longest error stored with a dead letter; parsers may quote their input.
const MAX_ERROR_CHARS: usize = 1000;

/// The tables within an open transaction.
#[async_trait]
pub trait Tables: Send {
    /// Reads a checkpoint and locks it until the transaction ends.
    async fn lock(&mut self, topic: &str, partition: i32) -> Result<Option<Checkpoint>, LedgerError>;

    /// Writes a checkpoint; `known` says that its row exists.
    async fn advance(
        &mut self,
        topic: &str,
        partition: i32,
        to: &Checkpoint,
        known: bool,
    ) -> Result<Written, LedgerError>;

    /// The term of a sale, locked until the transaction ends; `None` when it was never raised.
    async fn fence(&mut self, item: &str, epoch: Uuid) -> Result<Option<u64>, LedgerError>;

    /// Records all rows or none.
    async fn record(&mut self, rows: &[&Row<'_>]) -> Result<Written, LedgerError>;

    /// The recorded rows that share the place, the unit or the order with one of these.
    async fn standing(&mut self, rows: &[&Row<'_>]) -> Result<Vec<Standing>, LedgerError>;

    /// Sets a sale aside.
    async fn set_aside(&mut self, row: &Row<'_>, reason: &str) -> Result<Written, LedgerError>;

    /// Stores an unrecordable message as a dead letter.
    async fn bury(
        &mut self,
        topic: &str,
        partition: i32,
        message: &Message,
        error: &str,
    ) -> Result<Written, LedgerError>;
}

/// The outcome of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The row is written.
    Done,
    /// A unique key is taken; nothing was written.
    Taken,
    /// The database refuses a value itself (too long, out of range); nothing was written.
    Refused(String),
}

/// A conflicting row.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its source: the topic,
    pub topic: String,
    /// the partition,
    pub partition: i32,
    /// and the offset.
    pub offset: i64,
    /// The sale.
    pub sale: Sale,
}

/// Posts a batch; the caller commits on success and rolls back on error.
///
/// # Errors
/// As [`super::Record::post`]; nothing of the batch may be kept then.
pub async fn post(tables: &mut dyn Tables, batch: &Batch) -> Result<Posted, LedgerError> {
    // All consumers lock in partition order, so no two deadlock.
    let mut standing = Vec::with_capacity(batch.parts.len());
    for part in &batch.parts {
        let checkpoint = tables.lock(&batch.topic, part.partition).await?;
        let found = checkpoint.as_ref().map(|checkpoint| checkpoint.next);
        if found != part.from {
            return Err(LedgerError::Moved { partition: part.partition, expected: part.from, found });
        }
        standing.push(checkpoint.unwrap_or(Checkpoint::NOTHING));
    }
    let topic = &batch.topic;
    let mut posting = Posting { tables, topic, posted: Posted::default(), terms: HashMap::new() };
    let mut chunks = chunks(batch).into_iter().map(|chunk| read(topic, &chunk));
    let mut next = chunks.next();
    while let Some((rows, unreadable)) = next {
        for (partition, message, error) in unreadable {
            posting.bury(partition, message, &error).await?;
        }
        let rows = posting.fence(&rows).await?;
        // The next chunk is parsed while the database works on this one.
        let recorded;
        (recorded, next) = tokio::join!(biased; posting.record(rows), async { chunks.next() });
        recorded?;
    }
    for (part, standing) in batch.parts.iter().zip(standing) {
        posting.advance(part, &standing).await?;
    }
    Ok(posting.posted)
}

/// Splits a batch into inserts of at most [`MAX_ROWS`] and about [`MAX_BYTES`].
fn chunks<'a>(batch: &'a Batch) -> Vec<Vec<(&'a Part, &'a Message)>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    let messages = |part: &'a Part| part.messages.iter().map(move |message| (part, message));
    for message in batch.parts.iter().flat_map(messages) {
        let size = message.1.value.len();
        bytes += size;
        match chunks.last_mut() {
            Some(last) if last.len() < MAX_ROWS && bytes <= MAX_BYTES => last.push(message),
            _ => {
                bytes = size;
                chunks.push(vec![message]);
            }
        }
    }
    chunks
}

/// A message that cannot become a row: its partition, the message, and what is wrong with it.
type Unreadable<'a> = (i32, &'a Message, String);

/// Parses a chunk: the rows, and what cannot become one.
fn read<'a>(topic: &'a str, messages: &[(&Part, &'a Message)]) -> (Vec<Row<'a>>, Vec<Unreadable<'a>>) {
    let (mut rows, mut unreadable) = (Vec::with_capacity(messages.len()), Vec::new());
    for (part, message) in messages {
        match Row::read(topic, part, message) {
            Ok(row) => rows.push(row),
            Err(error) => unreadable.push((part.partition, *message, error)),
        }
    }
    (rows, unreadable)
}

struct Posting<'t> {
    tables: &'t mut dyn Tables,
    topic: &'t str,
    posted: Posted,
    /// The terms of sales seen so far, locked until commit.
    terms: HashMap<(String, Uuid), u64>,
}

impl Posting<'_> {
    /// Sets aside sales of an older term: the ledger was counted without them.
    async fn fence<'r, 'a>(&mut self, rows: &'r [Row<'a>]) -> Result<Vec<&'r Row<'a>>, LedgerError> {
        let (mut current, mut old) = (Vec::new(), Vec::new());
        for row in rows {
            let sale = (row.sale.item.clone(), row.sale.epoch);
            let term = match self.terms.get(&sale) {
                Some(term) => *term,
                None => {
                    let term = self.tables.fence(&sale.0, sale.1).await?.unwrap_or(0);
                    *self.terms.entry(sale).or_insert(term)
                }
            };
            if row.sale.term < term { old.push(row) } else { current.push(row) }
        }
        if !old.is_empty() {
            // A sale that was recorded in time is an ordinary duplicate.
            for row in self.sort_out(&old, Some(LATE)).await? {
                self.set_aside(row, LATE).await?;
            }
        }
        Ok(current)
    }

    /// Records rows by plain inserts; reads the recorded rows only after a unique key violation.
    async fn record(&mut self, chunk: Vec<&Row<'_>>) -> Result<(), LedgerError> {
        let mut races = 0;
        let mut todo = vec![chunk];
        while let Some(mut rows) = todo.pop() {
            if rows.is_empty() {
                continue;
            }
            match self.tables.record(&rows).await? {
                Written::Done => self.posted.new += rows.len() as u64,
                Written::Taken => {
                    let fresh = self.sort_out(&rows, None).await?;
                    races += u32::from(fresh.len() == rows.len());
                    if races > MAX_RACES {
                        return Err(LedgerError::Away(
                            "a unique key is taken by rows that cannot be seen".into(),
                        ));
                    }
                    todo.push(fresh);
                }
                Written::Refused(error) => match rows.as_slice() {
                    [row] => self.bury(row.partition, row.message, &error).await?,
                    // Split in halves, the earlier one first, until each refused row is alone.
                    _ => {
                        todo.push(rows.split_off(rows.len() / 2));
                        todo.push(rows);
                    }
                },
            }
        }
        Ok(())
    }

    /// Counts duplicates, sets conflicts aside, and returns the rows without a conflict. With `why`,
    /// conflicts are set aside for that reason: the unit of a late sale may have been sold again since, and
    /// that is no fault.
    async fn sort_out<'r, 'a>(
        &mut self,
        rows: &[&'r Row<'a>],
        why: Option<&str>,
    ) -> Result<Vec<&'r Row<'a>>, LedgerError> {
        let mut known = Known::default();
        for standing in self.tables.standing(rows).await? {
            known.places.insert((standing.topic, standing.partition, standing.offset), standing.sale.order);
            known.note(standing.sale);
        }
        let mut fresh = Vec::new();
        for row in rows {
            let place = (row.topic.to_owned(), row.partition, row.message.offset);
            match known.places.get(&place) {
                Some(order) if *order != row.sale.order => return Err(recreated(row, *order)),
                _ => {}
            }
            match known.verdict(&row.sale) {
                None => {
                    known.note(row.sale.clone());
                    fresh.push(*row);
                }
                Some(Verdict::Duplicate) => self.posted.duplicate += 1,
                Some(Verdict::Conflict(reason)) => self.set_aside(row, why.unwrap_or(reason)).await?,
            }
        }
        Ok(fresh)
    }

    async fn set_aside(&mut self, row: &Row<'_>, reason: &str) -> Result<(), LedgerError> {
        match self.tables.set_aside(row, reason).await? {
            Written::Done if reason == LATE => self.posted.late += 1,
            Written::Done => self.posted.conflict += 1,
            Written::Taken => self.posted.duplicate += 1,
            Written::Refused(error) => self.bury(row.partition, row.message, &error).await?,
        }
        Ok(())
    }

    async fn bury(&mut self, partition: i32, message: &Message, error: &str) -> Result<(), LedgerError> {
        let error: String = error.chars().take(MAX_ERROR_CHARS).collect();
        let kept;
        let message = if message.value.len() > MAX_MESSAGE_BYTES {
            kept = Message { offset: message.offset, value: message.value[..MAX_MESSAGE_BYTES].to_vec() };
            &kept
        } else {
            message
        };
        match self.tables.bury(self.topic, partition, message, &error).await? {
            Written::Done => self.posted.dead_letter += 1,
            Written::Taken => self.posted.duplicate += 1,
            Written::Refused(error) => {
                return Err(LedgerError::Broken(format!("seckill_dead_letter refuses a message: {error}")));
            }
        }
        Ok(())
    }

    async fn advance(&mut self, part: &Part, standing: &Checkpoint) -> Result<(), LedgerError> {
        let to = match (part.messages.last(), part.upto) {
            (Some(last), _) => Checkpoint::after(last),
            (None, Some(upto)) if upto > standing.next => standing.passed(upto),
            (None, _) => return Ok(()),
        };
        match self.tables.advance(self.topic, part.partition, &to, part.from.is_some()).await? {
            Written::Done => {
                self.posted.checkpoints.insert(part.partition, to);
                Ok(())
            }
            // Only a first row can be taken: another consumer started this partition meanwhile.
            Written::Taken => {
                Err(LedgerError::Moved { partition: part.partition, expected: part.from, found: None })
            }
            Written::Refused(error) => {
                Err(LedgerError::Broken(format!("journal_offset refuses a row: {error}")))
            }
        }
    }
}

/// The conflicting rows, by key.
#[derive(Default)]
struct Known {
    places: HashMap<(String, i32, i64), Uuid>,
    orders: HashMap<Uuid, Sale>,
    units: HashMap<(String, Uuid, u64), Sale>,
}

impl Known {
    fn note(&mut self, sale: Sale) {
        self.units.insert((sale.item.clone(), sale.epoch, sale.serial), sale.clone());
        self.orders.insert(sale.order, sale);
    }

    fn verdict(&self, sale: &Sale) -> Option<Verdict> {
        let standing = self
            .orders
            .get(&sale.order)
            .or_else(|| self.units.get(&(sale.item.clone(), sale.epoch, sale.serial)))?;
        Some(judge(sale, standing))
    }
}

fn recreated(row: &Row<'_>, recorded: Uuid) -> LedgerError {
    LedgerError::Foreign(format!(
        "topic {} partition {} offset {} holds order {}, but the ledger has order {recorded} from there: \
         the topic was recreated; {ANOTHER_TOPIC}",
        row.topic, row.partition, row.message.offset, row.sale.order
    ))
}
