//! Parsers for setting values, with error messages for people.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

/// The intended value: without surrounding spaces, and without quotes that a shell would remove and Docker's
/// `--env-file` keeps.
pub(super) fn as_meant(text: &str) -> &str {
    let text = text.trim();
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).map_or(text, str::trim)
}

/// Parses a number of units.
///
/// # Errors
/// When it is no number, or beyond any sale.
pub fn units(text: &str) -> Result<u64, String> {
    const MAX_UNITS: u64 = crate::sale::HIGHEST_SOLD;
    match as_meant(text).parse::<u64>() {
        Ok(units) if units <= MAX_UNITS => Ok(units),
        _ => Err(format!("give a whole number from 0 to {MAX_UNITS}, such as 1000")),
    }
}

pub(super) fn topic(text: &str) -> Result<String, String> {
    let text = as_meant(text);
    let fits = (1..=200).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && text != "."
        && text != "..";
    if fits {
        Ok(text.to_owned())
    } else {
        Err("give 1 to 200 of the characters a-z, A-Z, 0-9, '.', '_', '-'".into())
    }
}

/// `host:port`, or `:port` for all addresses of this machine.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let text = as_meant(text);
    let wrong = |why: &str| {
        format!("{why}; give an address and a port, such as 127.0.0.1:3030, or :3030 for all addresses")
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Err(wrong("it is no host:port")) };
    let port: u16 = port.parse().map_err(|_| wrong("it does not end in a port"))?;
    match host {
        "" | "*" => Ok(([0, 0, 0, 0], port).into()),
        _ if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) => {
            Err(wrong("it is no host:port"))
        }
        _ => {
            let found: Vec<SocketAddr> =
                (host, port).to_socket_addrs().map_err(|error| wrong(&error.to_string()))?.collect();
            // `localhost` is both: clients try this one first, or at least also.
            found
                .iter()
                .find(|found| found.is_ipv4())
                .or(found.first())
                .copied()
                .ok_or_else(|| wrong("no such host"))
        }
    }
}

/// `5s`, `500ms`, `1m`, or a whole number of seconds.
pub(super) fn time_span(text: &str) -> Result<Duration, String> {
    /// An orchestrator kills a stopping program after some time.
    const LONGEST: Duration = Duration::from_secs(300);
    let text = as_meant(text);
    let seconds = || text.parse().ok().map(Duration::from_secs);
    let span = || text.parse::<jiff::SignedDuration>().ok().and_then(|span| span.try_into().ok());
    let span: Option<Duration> = seconds().or_else(span);
    span.filter(|span| *span <= LONGEST).ok_or_else(|| "give a time such as 5s, 500ms, or 0, up to 5m".into())
}

/// As browsers send it: scheme and host, plus a non-default port.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let text = as_meant(text).trim_end_matches('/');
    let secure = text.strip_prefix("https://").map(|host| ("https", host.trim_end_matches(":443")));
    match secure.or_else(|| text.strip_prefix("http://").map(|host| ("http", host.trim_end_matches(":80")))) {
        Some((scheme, host)) if !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']) => {
            Ok(format!("{scheme}://{host}"))
        }
        _ => {
            Err("give origins such as https://shop.example, without a path, one after the other with commas"
                .into())
        }
    }
}

pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    match as_meant(text) {
        "" => Err("give a file's name".into()),
        name if name.starts_with("sqlite:") => Err("give a file's name, not an address".into()),
        name => Ok(name.into()),
    }
}

pub(super) fn partitions(text: &str) -> Result<i32, String> {
    number(text, 1000)
}

pub(super) fn replicas(text: &str) -> Result<i32, String> {
    number(text, 100)
}

pub(super) fn number(text: &str, most: i32) -> Result<i32, String> {
    let number = as_meant(text).parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("give a whole number from 1 to {most}"))
}

/// Unix milliseconds of an RFC 3339 time, or of a time from now: `+30s`, `+5 min`, `+1h 30m`.
pub(super) fn moment(text: &str) -> Result<i64, String> {
    let text = as_meant(text);
    let wrong = || "give a time such as 2026-11-11T20:00:00+08:00, or +30s, +5m, +1h from start".to_owned();
    if let Some(ahead) = text.strip_prefix('+') {
        let ahead: jiff::SignedDuration = ahead.trim().parse().map_err(|_| wrong())?;
        if ahead.is_negative() {
            return Err(wrong());
        }
        let at = jiff::Timestamp::now().checked_add(ahead).map_err(|_| wrong())?;
        return Ok(at.as_millisecond());
    }
    text.parse::<jiff::Timestamp>().map(|at| at.as_millisecond()).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(moment("2026-11-11T20:00:00+08:00"), Ok(1_794_398_400_000));
        let ahead = moment("+5m").expect("a time") - jiff::Timestamp::now().as_millisecond();
        assert!((290_000..=300_000).contains(&ahead), "{ahead}");
    }

    #[test]
    fn addresses_spans_and_origins_are_read() {
        assert_eq!(address(":3030").map(|it| it.to_string()), Ok("0.0.0.0:3030".into()));
        assert!(address("localhost:3030").is_ok_and(|it| it.ip().is_loopback() && it.port() == 3030));
        assert_eq!(address("[::1]:3030").map(|it| it.port()), Ok(3030));
        for wrong in ["", ":", "localhost", ":99999", "3030", "everywhere"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        for (text, millis) in [
            ("0", 0),
            ("5s", 5_000),
            ("5 s", 5_000),
            ("\"5s\"", 5_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("2", 2_000),
            ("5m", 300_000),
        ] {
            assert_eq!(time_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "-1s", "6m", "1h", "99999999999s"] {
            assert!(time_span(wrong).is_err(), "{wrong}");
        }
        assert_eq!(origin(" https://shop.example:8443"), Ok("https://shop.example:8443".into()));
        assert_eq!(origin("'https://shop.example:443/'"), Ok("https://shop.example".into()));
        for wrong in
            ["", "shop.example", "https://", "https://shop.example/buy", "https://*.example", "ftp://s"]
        {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }
}
