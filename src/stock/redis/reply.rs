//! Parses the scripts' replies into the trait's types.

use redis::{FromRedisValue, Value};

use crate::sale::{Attempt, Batch, Item};
use crate::stock::{Book, Call, Known, Outcome, Reply};

/// Parses `serial left seeded`, as seed.lua writes it.
pub(super) fn earlier_book(epoch: &str, book: &str) -> Option<Book> {
    let mut numbers =
        book.split(' ').map(|number| whole(number).and_then(|number| u64::try_from(number).ok()));
    let mut number = || numbers.next()?;
    Some(Book {
        epoch: epoch.parse().ok()?,
        serial: number()?,
        left: number()?,
        seeded: number()?,
        on_sale: false,
        shut: false,
        term: 0,
    })
}

/// Parses a number as the scripts do: plain digits, and exact in Lua.
pub(super) fn whole(text: &str) -> Option<i64> {
    const MAX: i64 = (1 << 53) - 1;
    text.parse().ok().filter(|number: &i64| (-MAX..=MAX).contains(number) && number.to_string() == text)
}

pub(super) fn not_negative(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// What take.lua returns as left when the sale is shut.
pub(super) const SHUT: i64 = -2;

/// What take.lua returns.
pub(super) struct Answer {
    left: i64,
    epoch: String,
    term: u64,
    serial: u64,
    remaining: u64,
    unnamed: usize,
    open: u64,
    outcomes: Vec<Value>,
    entries: Vec<String>,
    last: u64,
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let (left, epoch, term, serial, remaining, unnamed, open, outcomes, entries, last) =
            redis::from_redis_value(value)?;
        Ok(Self { left, epoch, term, serial, remaining, unnamed, open, outcomes, entries, last })
    }
}

impl Answer {
    pub(super) fn into_reply(
        self,
        item: &Item,
        call: &Call,
        named: &[&Attempt],
        anonymous: &[&Attempt],
    ) -> Reply {
        let epoch = self.epoch.parse().ok();
        if self.left == SHUT {
            let outcomes = vec![Outcome::Shut; call.attempts.len()];
            return Reply {
                epoch,
                term: self.term,
                open: self.open,
                shut: true,
                outcomes,
                ..Reply::default()
            };
        }
        let mut winners: Vec<Attempt> = Vec::new();
        let outcomes: Vec<Outcome> =
            self.outcomes.iter().map(|outcome| self.named_outcome(outcome, call)).collect();
        for (attempt, outcome) in named.iter().zip(&outcomes) {
            // A name repeated in a batch takes once.
            if *outcome == Outcome::Taken(winners.len()) {
                winners.push((*attempt).clone());
            }
        }
        let by_name = winners.len();
        winners.extend(anonymous.iter().take(self.unnamed).map(|attempt| (*attempt).clone()));

        let (mut named, mut taken) = (outcomes.into_iter(), 0);
        let outcomes = call
            .attempts
            .iter()
            .map(|attempt| {
                if attempt.name.is_some() {
                    named.next().unwrap_or(Outcome::Unreadable)
                } else if taken < self.unnamed {
                    taken += 1;
                    Outcome::Taken(by_name + taken - 1)
                } else {
                    self.without_unit(call)
                }
            })
            .collect();
        let standing = self
            .entries
            .chunks_exact(2)
            .filter_map(|entry| Batch::from_entry(&entry[0], item, &entry[1]).ok())
            .collect();
        let taken = epoch.filter(|_| !winners.is_empty()).map(|epoch| Batch {
            id: call.id,
            item: item.clone(),
            epoch,
            term: self.term,
            serial: self.serial,
            remaining: self.remaining,
            at: call.at,
            attempts: winners,
        });
        Reply {
            epoch,
            left: u64::try_from(self.left).ok(),
            term: self.term,
            serial: self.last,
            open: self.open,
            shut: false,
            taken,
            outcomes,
            standing,
        }
    }

    fn without_unit(&self, call: &Call) -> Outcome {
        if self.left < 0 {
            Outcome::NotOnSale
        } else if call.taking {
            Outcome::SoldOut
        } else {
            Outcome::NotTaken
        }
    }

    /// `n`: taken as the n-th, 0: none; `o…` and `k…`: known, in the outbox or not.
    fn named_outcome(&self, outcome: &Value, call: &Call) -> Outcome {
        let known = |open, record: &str| {
            let mut fields = record.split(' ');
            let mut field = || fields.next();
            Some(Outcome::Known(Known {
                order: field()?.parse().ok()?,
                remaining: field()?.parse().ok()?,
                batch: field()?.parse().ok()?,
                open,
            }))
        };
        let found = match outcome {
            Value::Int(0) => Some(self.without_unit(call)),
            Value::Int(nth) => usize::try_from(*nth - 1).ok().map(Outcome::Taken),
            Value::BulkString(text) => {
                match str::from_utf8(text).ok().and_then(|it| it.split_at_checked(1)) {
                    Some(("o", record)) => known(true, record),
                    Some((_, record)) => known(false, record),
                    None => None,
                }
            }
            _ => None,
        };
        found.unwrap_or(Outcome::Unreadable)
    }
}
