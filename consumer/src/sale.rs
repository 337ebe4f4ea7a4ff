//! The sale message: one unit sold, as stored in the journal.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

/// The highest valid serial of a message. No sale comes near it: a higher one is not from this shop. It is
/// twice [`HIGHEST_SOLD`], so that a sale which continues after the oddest message still has room.
pub const MAX_SERIAL: u64 = 2 * HIGHEST_SOLD;

/// The highest serial from which a sale continues: the most units that can be put on sale at once.
pub const HIGHEST_SOLD: u64 = 1_000_000_000_000;

/// One unit sold. `(item, epoch, serial)` identifies the unit forever, `order` the purchase.
///
/// The reader defines the format: it ignores unknown members, and a test pins the wire form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sale {
    /// The buyer's order id, a UUID v7 created before the unit was taken.
    pub order: Uuid,
    /// The item; by default `counter`.
    pub item: String,
    /// Its sale; every `seckill seed` begins a new one.
    pub epoch: Uuid,
    /// Fencing term, raised whenever the sale is reopened; the ledger refuses older terms.
    #[serde(default)]
    pub term: u64,
    /// The unit's number within the epoch, from 1.
    pub serial: u64,
    /// Units left after this one.
    pub remaining: u64,
    /// The attempt that took it (`k:` and the idempotency key), if named.
    #[serde(default)]
    pub attempt: Option<String>,
    /// Reserved for logins.
    #[serde(default)]
    pub buyer: Option<String>,
    /// When it was taken, by the clock of the selling node.
    #[serde(serialize_with = "micros")]
    pub sold_at: Timestamp,
}

impl Sale {
    /// Encodes the sale for the journal.
    ///
    /// # Errors
    /// None in practice: every member has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// Decodes a sale from the journal.
    ///
    /// # Errors
    /// When it is not JSON, a member is missing or of the wrong type, or the serial is invalid.
    pub fn from_json(bytes: &[u8]) -> serde_json::Result<Self> {
        let sale: Self = serde_json::from_slice(bytes)?;
        if sale.serial == 0 {
            return Err(serde::de::Error::custom("serial is 0, the first unit is 1"));
        }
        if sale.serial > MAX_SERIAL {
            return Err(serde::de::Error::custom(format_args!("serial {} is beyond any sale", sale.serial)));
        }
        Ok(sale)
    }
}

/// Always six fractional digits, so that text order is time order.
fn micros<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: &str = r#"{"order":"01970000-0000-7000-8000-000000000001","item":"counter","epoch":"01970000-0000-7000-8000-0000000000ee","term":0,"serial":7,"remaining":993,"attempt":"k:abc","buyer":null,"soldAt":"2026-01-02T03:04:05.000006Z"}"#;

    #[test]
    fn the_wire_form_stays() {
        let sale = Sale::from_json(WIRE.as_bytes()).expect("readable");
        assert_eq!(String::from_utf8(sale.to_json().expect("json")).expect("utf-8"), WIRE);
        assert_eq!(sale.serial, 7);
    }

    #[test]
    fn unknown_members_are_ignored_and_missing_ones_named() {
        let more = WIRE.replace("\"item\"", "\"coupon\":1,\"item\"");
        assert!(Sale::from_json(more.as_bytes()).is_ok());
        let less = WIRE.replace("\"serial\":7,", "");
        let error = Sale::from_json(less.as_bytes()).expect_err("no serial");
        assert!(error.to_string().contains("serial"), "{error}");
        assert!(Sale::from_json(b"not json").is_err());
        assert!(Sale::from_json(WIRE.replace(":7,", ":0,").as_bytes()).is_err());
        let far = WIRE.replace(":7,", &format!(":{},", MAX_SERIAL + 1));
        let error = Sale::from_json(far.as_bytes()).expect_err("no sale is so large");
        assert!(error.to_string().contains("beyond any sale"), "{error}");
    }
}
