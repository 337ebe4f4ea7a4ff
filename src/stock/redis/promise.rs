//! Required Redis settings: without them a reported sale may be lost.

use std::collections::HashMap;

/// The settings checked, one query each: `CONFIG GET` takes one pattern before Redis 7.
pub(super) const ASKED: [&str; 4] =
    ["appendonly", "appendfsync", "maxmemory-policy", "min-replicas-to-write"];

/// What is wrong with these settings, each with the remedy. A setting this Redis does not have is not
/// checked.
pub(super) fn broken(settings: &HashMap<String, String>, replicas: u64) -> Vec<String> {
    let is = |name: &str, wanted: &str| settings.get(name).is_none_or(|value| value == wanted);
    let mut broken = Vec::new();
    if !is("appendonly", "yes") {
        broken.push(
            "appendonly is no: a restart loses what was told to buyers; run CONFIG SET appendonly yes, and put it into redis.conf"
                .to_owned(),
        );
    } else if let Some(value) = settings.get("appendfsync").filter(|value| *value != "always") {
        broken.push(format!(
            "appendfsync is {value}: a power cut loses what was told to buyers last; run CONFIG SET appendfsync always, and put it into redis.conf"
        ));
    }
    if let Some(value) = settings.get("maxmemory-policy").filter(|value| *value != "noeviction") {
        broken.push(format!(
            "maxmemory-policy is {value}: Redis may throw a counter or a winner's answer away; run CONFIG SET maxmemory-policy noeviction, and put it into redis.conf"
        ));
    }
    if replicas > 0 && settings.get("min-replicas-to-write").is_some_and(|value| value == "0") {
        broken.push(
            "min-replicas-to-write is 0 though it has replicas: a failover loses what they had not got; run CONFIG SET min-replicas-to-write 1, and put it into the redis.conf of each"
                .to_owned(),
        );
    }
    broken
}

/// The finding for a server that hides its settings, as many managed ones do.
pub(super) fn not_told(why: &str) -> String {
    format!(
        "its settings cannot be asked for ({why}); see to it that they are appendonly yes, appendfsync always, maxmemory-policy noeviction and, with replicas, min-replicas-to-write 1"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(changed: &[(&str, &str)], replicas: u64) -> Vec<String> {
        let good = [
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("maxmemory-policy", "noeviction"),
            ("min-replicas-to-write", "0"),
        ];
        let settings = good.iter().chain(changed).map(|(name, value)| ((*name).into(), (*value).into()));
        broken(&settings.collect(), replicas)
    }

    #[test]
    fn each_setting_that_breaks_the_promise_is_named() {
        assert!(judged(&[], 0).is_empty());
        assert!(judged(&[("min-replicas-to-write", "1")], 2).is_empty());
        for (name, value, replicas) in [
            ("appendonly", "no", 0),
            ("appendfsync", "everysec", 0),
            ("appendfsync", "no", 0),
            ("maxmemory-policy", "allkeys-lru", 0),
            ("min-replicas-to-write", "0", 1),
        ] {
            let said = judged(&[(name, value)], replicas);
            assert_eq!(said.len(), 1, "{name} {value}");
            assert!(said[0].starts_with(&format!("{name} is {value}")), "{}", said[0]);
            assert!(said[0].contains("CONFIG SET"), "{}", said[0]);
        }
    }

    #[test]
    fn what_was_not_told_is_not_judged() {
        assert!(broken(&HashMap::new(), 3).is_empty());
    }
}
