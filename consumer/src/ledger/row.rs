//! A message parsed into the row it becomes, or why it cannot become one.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::TimeZone;

use super::{Message, Part};
use crate::sale::Sale;

/// The longest message stored whole. Far above a sale, which takes 300 bytes, and far below the smallest
/// packet limit of a database (1 MiB): no message can block the rest.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// The longest item name that the tables hold.
const MAX_ITEM_BYTES: usize = 32;

/// The longest attempt or buyer name that the tables hold.
const MAX_NAME_CHARS: usize = 128;

/// The years that a `datetime` can hold.
const YEARS: RangeInclusive<i16> = 1000..=9999;

/// One row of `seckill`, or of `seckill_conflict`.
#[derive(Debug)]
pub struct Row<'a> {
    /// The source topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The message.
    pub message: &'a Message,
    /// Its text.
    pub info: &'a str,
    /// The sale it carries.
    pub sale: Sale,
    /// Its time, as `datetime(6)` is written.
    pub sold_at: String,
    /// The sale's term, in the column's type.
    pub term: i64,
    /// The serial, likewise.
    pub serial: i64,
    /// What remained, likewise.
    pub remaining: i64,
}

impl<'a> Row<'a> {
    /// Parses a message; the error says what is wrong with it.
    pub(super) fn read(topic: &'a str, part: &Part, message: &'a Message) -> Result<Self, String> {
        if message.value.len() > MAX_MESSAGE_BYTES {
            return Err(format!("{} bytes, more than {MAX_MESSAGE_BYTES}", message.value.len()));
        }
        let info = std::str::from_utf8(&message.value).map_err(|error| error.to_string())?;
        let sale = Sale::from_json(&message.value).map_err(|error| error.to_string())?;
        if !is_item(&sale.item) {
            return Err("item is not 1 to 32 of a-z, 0-9, '-'".to_owned());
        }
        for (member, name) in [("attempt", &sale.attempt), ("buyer", &sale.buyer)] {
            let length = name.as_ref().map_or(0, |name| name.chars().count());
            if length > MAX_NAME_CHARS {
                return Err(format!("{member} has {length} characters, more than {MAX_NAME_CHARS}"));
            }
        }
        if !YEARS.contains(&TimeZone::UTC.to_datetime(sale.sold_at).year()) {
            return Err(format!("soldAt {} is beyond every year of a sale", sale.sold_at));
        }
        Ok(Self {
            topic,
            partition: part.partition,
            message,
            info,
            sold_at: datetime(sale.sold_at),
            term: number("term", sale.term)?,
            serial: number("serial", sale.serial)?,
            remaining: number("remaining", sale.remaining)?,
            sale,
        })
    }
}

/// The names that the selling half assigns; others would compare differently in each database.
fn is_item(name: &str) -> bool {
    (1..=MAX_ITEM_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn number(member: &str, value: u64) -> Result<i64, String> {
    i64::try_from(value).map_err(|_| format!("{member} {value} is out of range"))
}

/// A space between date and time, and microseconds; faster than `strftime`.
const DATETIME: DateTimePrinter = DateTimePrinter::new().separator(b' ').precision(Some(6));

/// A time as `datetime(6)` is written, in UTC.
pub(super) fn datetime(at: Timestamp) -> String {
    DATETIME.datetime_to_string(&TimeZone::UTC.to_datetime(at))
}

/// Parses a `datetime(6)`.
pub(super) fn timestamp(text: &str) -> Result<Timestamp, jiff::Error> {
    let civil: jiff::civil::DateTime = text.parse()?;
    Ok(civil.to_zoned(TimeZone::UTC)?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microseconds_survive() {
        for text in ["2026-01-02 03:04:05.000006", "1999-12-31 23:59:59.999999", "2026-01-02 03:04:05.000000"]
        {
            assert_eq!(datetime(timestamp(text).expect("a time")), text);
        }
        let finer: Timestamp = "2026-01-02T03:04:05.123456789Z".parse().expect("a time");
        assert_eq!(datetime(finer), "2026-01-02 03:04:05.123456");
    }
}
