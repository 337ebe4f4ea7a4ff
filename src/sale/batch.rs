//! Attempts, and the units that one call takes for them.

use std::fmt::Write as _;

use consumer::sale::Sale;
use jiff::Timestamp;
use uuid::Uuid;

use crate::sale::Item;

/// A request for one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The order it becomes if a unit is taken for it.
    pub order: Uuid,
    /// Idempotency key: identifies a retry of the same attempt; `None`: anonymous.
    pub name: Option<String>,
}

/// Units taken by one call: one entry in the outbox, settled together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its name in the outbox.
    pub id: Uuid,
    /// The item sold.
    pub item: Item,
    /// The sale.
    pub epoch: Uuid,
    /// The sale's fencing term.
    pub term: u64,
    /// The first unit's serial; the others follow.
    pub serial: u64,
    /// Units left after the first.
    pub remaining: u64,
    /// When.
    pub at: Timestamp,
    /// The attempts that took them.
    pub attempts: Vec<Attempt>,
}

impl Batch {
    /// The sale at `index`.
    #[must_use]
    pub fn sale(&self, index: usize) -> Sale {
        let nth = index as u64;
        Sale {
            order: self.attempts[index].order,
            item: self.item.name().to_owned(),
            epoch: self.epoch,
            term: self.term,
            serial: self.serial + nth,
            remaining: self.remaining.saturating_sub(nth),
            attempt: self.attempts[index].name.clone(),
            buyer: None,
            sold_at: self.at,
        }
    }

    /// All its sales, in order.
    pub fn sales(&self) -> impl Iterator<Item = Sale> {
        (0..self.attempts.len()).map(|index| self.sale(index))
    }

    /// The index of `order`.
    #[must_use]
    pub fn position(&self, order: Uuid) -> Option<usize> {
        self.attempts.iter().position(|attempt| attempt.order == order)
    }

    /// Parses an outbox entry: a line `epoch term serial remaining micros`, then a line for each unit,
    /// `order` or `order name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_entry(id: &str, item: &Item, entry: &str) -> Result<Self, String> {
        let id = id.parse().map_err(|_| format!("the field {id:?} is not a UUID"))?;
        let (head, lines) = entry.split_once('\n').ok_or("no line of its sale")?;
        let head: Vec<&str> = head.split(' ').collect();
        let [epoch, term, serial, remaining, micros] = head[..] else {
            return Err("the first line is not `epoch term serial remaining micros`".into());
        };
        // At most what a row can hold, with room for the lines.
        let number = |text: &str| match text.parse::<u64>() {
            Ok(number) if number <= i64::MAX as u64 / 2 => Ok(number),
            _ => Err(format!("{text:?} is not a number")),
        };
        let attempts = lines
            .lines()
            .map(|line| {
                let (order, name) =
                    line.split_once(' ').map_or((line, None), |(order, name)| (order, Some(name)));
                let order = order.parse().map_err(|_| format!("{order:?} is not an order"))?;
                Ok(Attempt { order, name: name.map(str::to_owned) })
            })
            .collect::<Result<Vec<_>, String>>()?;
        if attempts.is_empty() || number(serial)? == 0 {
            return Err("it holds no unit".into());
        }
        Ok(Self {
            id,
            item: item.clone(),
            epoch: epoch.parse().map_err(|_| format!("{epoch:?} is not an epoch"))?,
            term: number(term)?,
            serial: number(serial)?,
            remaining: number(remaining)?,
            at: micros
                .parse()
                .ok()
                .and_then(|micros| Timestamp::from_microsecond(micros).ok())
                .ok_or_else(|| format!("{micros:?} is not a time"))?,
            attempts,
        })
    }
}

impl Attempt {
    /// Appends its line of an outbox entry.
    pub fn write_line(&self, into: &mut String) {
        // Writing into a String cannot fail.
        let _ = match &self.name {
            Some(name) => writeln!(into, "{} {name}", self.order),
            None => writeln!(into, "{}", self.order),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::moment;

    #[test]
    fn an_outbox_entry_is_read_as_it_was_written() {
        let orders: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let (id, epoch, at) = (Uuid::now_v7(), Uuid::now_v7(), moment());
        let attempts: Vec<Attempt> = orders
            .iter()
            .zip([None, Some("k:a b "), None])
            .map(|(order, name)| Attempt { order: *order, name: name.map(str::to_owned) })
            .collect();
        let mut entry = format!("{epoch} 2 7 3 {}\n", at.as_microsecond());
        attempts.iter().for_each(|attempt| attempt.write_line(&mut entry));
        let item = Item::default();
        let batch = Batch::from_entry(&id.to_string(), &item, &entry).expect("readable");
        assert_eq!(
            batch,
            Batch { id, item: item.clone(), epoch, term: 2, serial: 7, remaining: 3, at, attempts }
        );
        assert_eq!(batch.sale(2).serial, 9);
        for wrong in [
            "",
            "x",
            &entry.replace(" 7 ", " 0 "),
            &entry.replace(" 7 ", " 18446744073709551615 "),
            &entry.replace(" 2 ", " -2 "),
            &entry.replace(&orders[1].to_string(), "someone"),
            &entry[..entry.find('\n').expect("a line")],
            &format!("{epoch} 2 7 3 9999999999999999999\n{}\n", orders[0]),
        ] {
            assert!(Batch::from_entry(&id.to_string(), &item, wrong).is_err(), "{wrong}");
        }
        assert!(Batch::from_entry("by hand", &item, &entry).is_err());
    }
}
