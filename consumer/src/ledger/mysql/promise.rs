//! The durability promise: the database settings that keep recorded sales.

use super::LEAST_PACKET;

/// The server variables that break the promise; a missing variable breaks nothing.
pub(super) fn broken<'v>(value: impl Fn(&str) -> Option<&'v str>) -> Vec<String> {
    let lost = "a recorded sale can be lost with its offset when the server's machine fails";
    let logs = value("log_bin") == Some("ON");
    let mut broken = Vec::new();
    let mut must = |name: &str, ask: bool, good: &dyn Fn(&str) -> bool, why: &str, remedy: &str| {
        if let Some(value) = value(name).filter(|value| ask && !good(value)) {
            broken.push(format!("the database has {name}={value}: {why}; set {name}={remedy}"));
        }
    };
    // 3 is MariaDB's, and flushes more often than 1.
    must("innodb_flush_log_at_trx_commit", true, &|value| ["1", "3"].contains(&value), lost, "1");
    must("sync_binlog", logs, &|value| value == "1", lost, "1");
    let torn = "a page half written when the machine fails cannot be mended";
    let whole = |value: &str| !["OFF", "0", "DETECT_ONLY"].contains(&value);
    must("innodb_doublewrite", true, &whole, torn, "ON (unless the file system writes pages whole)");
    let flushed = |value: &str| !["NOSYNC", "LITTLESYNC"].contains(&value);
    must("innodb_flush_method", true, &flushed, lost, "O_DIRECT");
    let refused = "it refuses to record anything (error 1665)";
    must("binlog_format", logs, &|value| value != "STATEMENT", refused, "ROW");
    let enough = |value: &str| value.parse().is_ok_and(|bytes: u64| bytes >= LEAST_PACKET);
    must("max_allowed_packet", true, &enough, "it may refuse a batch (error 1153)", "1M or more");
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the variables in `set` that break the promise.
    fn named(set: &[(&str, &str)]) -> Vec<String> {
        let broken = broken(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| *value));
        broken.iter().map(|broken| broken.split([' ', '=']).nth(3).unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn what_does_not_keep_the_promise_is_named() {
        let safe = [
            ("innodb_flush_log_at_trx_commit", "1"),
            ("innodb_doublewrite", "ON"),
            ("log_bin", "ON"),
            ("sync_binlog", "1"),
            ("binlog_format", "ROW"),
            ("max_allowed_packet", "1048576"),
            ("innodb_flush_method", "FSYNC"),
        ];
        assert_eq!(named(&safe), [""; 0]);
        assert_eq!(named(&[]), [""; 0], "a server that does not have them");
        for (name, value) in [
            ("innodb_flush_log_at_trx_commit", "0"),
            ("innodb_flush_log_at_trx_commit", "2"),
            ("innodb_doublewrite", "OFF"),
            ("innodb_doublewrite", "DETECT_ONLY"),
            ("sync_binlog", "0"),
            ("sync_binlog", "100"),
            ("binlog_format", "STATEMENT"),
            ("max_allowed_packet", "65536"),
            ("innodb_flush_method", "NOSYNC"),
        ] {
            let set: Vec<_> =
                safe.iter().map(|known| if known.0 == name { (name, value) } else { *known }).collect();
            assert_eq!(named(&set), [name], "{value}");
        }
        let without_binlog = [("log_bin", "OFF"), ("sync_binlog", "0"), ("binlog_format", "STATEMENT")];
        assert_eq!(named(&without_binlog), [""; 0]);
        assert_eq!(named(&[("innodb_flush_log_at_trx_commit", "3")]), [""; 0], "MariaDB's, and safer");
    }
}
