//! An item's name, and its counter that operators set.

use std::fmt;
use std::sync::{Arc, LazyLock};

/// 1 to 32 of `a-z`, `0-9`, `-`. The default item is called `counter` everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item(Arc<str>);

/// The default item's name.
const DEFAULT: &str = "counter";

/// Short enough for a metric label, long enough for a product code.
const MAX_LENGTH: usize = 32;

impl Item {
    /// The operator's key in Redis: `counter`, or `counter:NAME`.
    #[must_use]
    pub fn key(&self) -> String {
        if self.is_default() { DEFAULT.to_owned() } else { format!("{DEFAULT}:{}", self.0) }
    }

    /// Whether this is the item meant when no name is given.
    #[must_use]
    pub fn is_default(&self) -> bool {
        &*self.0 == DEFAULT
    }

    /// The name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Default for Item {
    /// One shared text: most requests use it.
    fn default() -> Self {
        static ITEM: LazyLock<Item> = LazyLock::new(|| Item(DEFAULT.into()));
        ITEM.clone()
    }
}

impl std::str::FromStr for Item {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let fits = (1..=MAX_LENGTH).contains(&name.len())
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits {
            Ok(Self(name.into()))
        } else {
            Err(format!("an item's name is 1 to {MAX_LENGTH} of a-z, 0-9 and '-'"))
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys() {
        assert_eq!(Item::default().key(), "counter");
        let shoe: Item = "shoe-42".parse().expect("a name");
        assert_eq!(shoe.key(), "counter:shoe-42");
        assert_eq!("counter".parse::<Item>().expect("a name"), Item::default());
        for wrong in ["", "Shoe", "a b", "a:b", "{x}", "ü", &"x".repeat(33)] {
            assert!(wrong.parse::<Item>().is_err(), "{wrong}");
        }
    }
}
