//! A sale's name: a UUID v7, ordered by time.

use uuid::{Builder, Uuid};

use crate::clock::new_id;

/// A name for a new sale: later than the known one, whatever this machine's clock says.
#[must_use]
pub fn epoch_after(known: Option<Uuid>) -> Uuid {
    let now = new_id();
    let Some(known) = known.filter(|known| *known >= now) else { return now };
    let mut random = [0; 10];
    random.copy_from_slice(&now.as_bytes()[6..]);
    // The time is the first 48 bits of a UUID v7.
    let millis = (known.as_u128() >> 80) as u64;
    Builder::from_unix_timestamp_millis(millis + 1, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_new_sale_is_later_than_a_known_one_whatever_the_clock_says() {
        let year = 365 * 24 * 3600;
        let ahead =
            uuid::Timestamp::from_unix(uuid::NoContext, Timestamp::now().as_second() as u64 + year, 0);
        let known = Uuid::new_v7(ahead);
        let next = epoch_after(Some(known));
        assert!(next > known && next.get_version_num() == 7, "{next} after {known}");
        assert_ne!(epoch_after(Some(known)), next);
        let now = Uuid::now_v7();
        assert!(epoch_after(Some(now)) > now && epoch_after(None) > now);
    }
}
