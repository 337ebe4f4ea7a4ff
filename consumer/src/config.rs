//! The settings of both programs: one struct, one documented field per variable.
//!
//! Both programs accept the whole table and leave alone what is not theirs.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser};

/// Exit code for an operator's mistake (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Every variable is a flag too, except those that may carry a password.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// Address for buyers; `:3030` stands for all of this machine's
    #[arg(
        long,
        global = true,
        env = "SECKILL_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:3030",
        value_parser = address
    )]
    pub listen: SocketAddr,

    /// Address for ops: /livez, /readyz, /metrics
    #[arg(
        long,
        global = true,
        env = "SECKILL_OPS_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:3031",
        value_parser = address
    )]
    pub ops_listen: SocketAddr,

    /// The consumer's own address for ops
    #[arg(
        long,
        global = true,
        env = "SECKILL_CONSUMER_OPS_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:3032",
        value_parser = address
    )]
    pub consumer_ops_listen: SocketAddr,

    /// Kafka topic that carries the sales; made when missing
    #[arg(long, global = true, env = "SECKILL_KAFKA_TOPIC", value_name = "NAME", default_value = "CAR_NUMBER", value_parser = topic)]
    pub kafka_topic: String,

    /// Partitions of the topic, when it is made
    #[arg(long, global = true, env = "SECKILL_KAFKA_PARTITIONS", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub kafka_partitions: i32,

    /// Replicas of the topic, when it is made [default: 3 where there are three brokers, else 1]
    #[arg(long, global = true, env = "SECKILL_KAFKA_REPLICATION", value_name = "N", value_parser = clap::value_parser!(i32).range(1..=100))]
    pub kafka_replication: Option<i32>,

    /// The consumer's group, as lag tools show it
    #[arg(long, global = true, env = "SECKILL_KAFKA_GROUP", value_name = "NAME", default_value = "seckill", value_parser = topic)]
    pub kafka_group: String,

    /// The embedded world's file
    #[arg(long, global = true, env = "SECKILL_DATA", value_name = "FILE", default_value = "seckill.db")]
    pub data: PathBuf,

    /// Units a new embedded file starts with; an existing file is never refilled
    #[arg(long, global = true, env = "SECKILL_STOCK", value_name = "N", default_value_t = 1000, value_parser = units)]
    pub stock: u64,

    /// Opening time, RFC 3339, or `+30s`, `+5m`, `+1h` from start: from each start anew, so that a
    /// restart shuts a running sale for as long [default: open]
    #[arg(long, global = true, env = "SECKILL_OPENS_AT", value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub opens_at: Option<i64>,

    /// Closing time, likewise [default: never]
    #[arg(long, global = true, env = "SECKILL_CLOSES_AT", value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub closes_at: Option<i64>,

    /// How long a node that was told to stop goes on serving, so that balancers notice: 5s, 500ms, 0
    #[arg(long, global = true, env = "SECKILL_DRAIN", value_name = "TIME", default_value = "5s", value_parser = time_span)]
    pub drain: Duration,

    /// Other sites whose pages may buy here, as https://shop.example,https://www.example [default: none]
    #[arg(long, global = true, env = "SECKILL_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub allowed_origins: Vec<String>,

    /// The addresses of the servers world; they may carry passwords, so they are no flags.
    #[command(flatten)]
    pub secrets: Secrets,
}

/// What comes from the environment, `.env` or a file named by `…_FILE` only.
#[derive(Debug, Clone, Default, Args)]
pub struct Secrets {
    /// `SECKILL_REDIS_URL`
    #[arg(skip)]
    pub redis_url: Option<Secret>,
    /// `SECKILL_KAFKA_BROKERS`
    #[arg(skip)]
    pub kafka_brokers: Option<Secret>,
    /// `SECKILL_DATABASE_URL`
    #[arg(skip)]
    pub database_url: Option<Secret>,
    /// `SECKILL_KAFKA_OPTIONS`: librdkafka `key=value,…`
    #[arg(skip)]
    pub kafka_options: Option<Secret>,
}

/// The variables of [`Secrets`] with what they are for, as `--help` and the README show them.
pub const SECRETS: [(&str, &str); 4] = [
    ("SECKILL_REDIS_URL", "Redis, as redis://[user:password@]host:port/db (TLS: rediss://)"),
    ("SECKILL_KAFKA_BROKERS", "Kafka, as host:port,host:port"),
    ("SECKILL_DATABASE_URL", "MySQL or MariaDB, as mysql://user:password@host:port/database"),
    ("SECKILL_KAFKA_OPTIONS", "librdkafka key=value,… (TLS, SASL)"),
];

/// What `--help` says below the flags.
pub const AFTER_HELP: &str = "\
Environment only (also from .env; NAME_FILE names a file that holds the value):
  SECKILL_REDIS_URL      Redis, as redis://[user:password@]host:port/db (TLS: rediss://)
  SECKILL_KAFKA_BROKERS  Kafka, as host:port,host:port
  SECKILL_DATABASE_URL   MySQL or MariaDB, as mysql://user:password@host:port/database
  SECKILL_KAFKA_OPTIONS  librdkafka key=value,… (TLS, SASL)

With the three addresses the sale runs on servers, with none of them in one file.
Logs go to stderr; RUST_LOG sets how much (default: info).";

/// A value that never shows in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one who connects with it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// A setting that cannot be used: what, where, and what to do, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Secrets {
    /// Reads them from the environment.
    ///
    /// # Errors
    /// When a file named by `…_FILE` cannot be read.
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self {
            redis_url: secret("SECKILL_REDIS_URL")?,
            kafka_brokers: secret("SECKILL_KAFKA_BROKERS")?,
            database_url: secret("SECKILL_DATABASE_URL")?,
            kafka_options: secret("SECKILL_KAFKA_OPTIONS")?,
        })
    }
}

fn secret(name: &str) -> Result<Option<Secret>, ConfigError> {
    let value = match std::env::var(name) {
        Ok(value) => Some(value),
        Err(std::env::VarError::NotPresent) => None,
        Err(error) => return Err(ConfigError(format!("{name}: {error}"))),
    };
    let file = format!("{name}_FILE");
    let value = match (
        value.filter(|value| !value.is_empty()),
        std::env::var_os(&file).filter(|path| !path.is_empty()),
    ) {
        (Some(value), _) => Some(value),
        (None, Some(path)) => Some(std::fs::read_to_string(&path).map_err(|error| {
            let path = path.to_string_lossy();
            // The secret itself, where a file's name should stand.
            let shown = if path.contains([':', '=', '@']) { "…" } else { &path };
            ConfigError(format!("{file}={shown}: {error}; name a file that this user may read"))
        })?),
        (None, None) => None,
    };
    Ok(value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty()).map(Secret))
}

/// Reads `.env` (if there is one), then the command line and the environment, then the secrets.
/// On a mistake, or after `--help`, returns the exit code; the message was printed.
///
/// # Errors
/// [`EXIT_USAGE`] for a mistake, success for `--help` and `--version`.
pub fn parse<P: Parser>(settings: fn(&mut P) -> &mut Settings) -> Result<P, ExitCode> {
    match dotenvy::from_path(".env") {
        Ok(()) => {}
        Err(error) if error.not_found() => {}
        // A line may hold a password.
        Err(dotenvy::Error::LineParse(..)) => {
            return Err(usage(".env: a line is not NAME=value; put values with spaces in quotes"));
        }
        Err(error) => return Err(usage(&format!(".env: {error}; mend the file or move it away"))),
    }
    // A variable that is empty counts as unset.
    let set = |argument: &clap::Arg| {
        argument.get_env().is_none_or(|name| std::env::var_os(name) != Some("".into()))
    };
    let command =
        P::command().mut_args(|argument| if set(&argument) { argument } else { argument.env(None::<&str>) });
    let parsed = command.try_get_matches().and_then(|matches| P::from_arg_matches(&matches));
    let mut parsed = parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => usage(&one_line::<P>(&error)),
    })?;
    settings(&mut parsed).secrets = Secrets::from_env().map_err(|error| usage(&error.0))?;
    Ok(parsed)
}

/// Sends the log to stderr: ours from `info` on, the libraries' from `warn` on (sqlx's own
/// from `error` on: it warns of waiting, which is ours to tell; actix's HTTP not at
/// all: it writes a line for every malformed request), unless `RUST_LOG`
/// says otherwise.
pub fn log_to_stderr() {
    let quiet = "info,librdkafka=warn,rdkafka=warn,sqlx=error,actix_server=warn,actix_http=off";
    let started =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(quiet)).try_init();
    // A second logger in one process, as tests may have, changes nothing.
    drop(started);
}

/// Every variable with its default, for the test that holds the documents to it.
#[must_use]
pub fn table() -> Vec<(String, Option<String>)> {
    let command = Settings::augment_args(clap::Command::new("settings"));
    let flags = command.get_arguments().filter_map(|argument| {
        let name = argument.get_env()?.to_string_lossy().into_owned();
        Some((name, argument.get_default_values().first().map(|value| value.to_string_lossy().into_owned())))
    });
    flags.chain(SECRETS.iter().map(|(name, _)| ((*name).to_owned(), None))).collect()
}

/// Prints an operator's mistake and gives its exit code.
#[allow(clippy::print_stderr, reason = "before the logger, and the one line a person sees")]
#[must_use]
pub fn usage(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(EXIT_USAGE)
}

/// Prints why the program cannot run and gives its exit code.
#[allow(clippy::print_stderr, reason = "the one line a person sees")]
#[must_use]
pub fn failure(message: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}

/// clap's message in one line, with the variable's name where the value may come from it.
fn one_line<P: Parser>(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    if let (Some(argument), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) {
        let long = argument.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default().to_owned();
        let command = P::command();
        let name = command
            .get_arguments()
            .find(|known| known.get_long() == Some(&long))
            .and_then(|known| known.get_env())
            .filter(|name| std::env::var(name).is_ok_and(|set| set == value))
            .map_or_else(
                || argument.split([' ', '=']).next().unwrap_or_default().to_owned(),
                |name| name.to_string_lossy().into_owned(),
            );
        return match std::error::Error::source(error) {
            Some(why) => format!("{name}={value}: {why}"),
            None if value.is_empty() => format!("{name}: give a value"),
            None => format!("{name}={value}: {}", error.kind()),
        };
    }
    if let (ErrorKind::MissingRequiredArgument, Some(missing)) = (error.kind(), text(ContextKind::InvalidArg))
    {
        return format!("{missing} is missing; see --help");
    }
    let whole = error.to_string();
    let first = whole.lines().next().unwrap_or_default().trim_start_matches("error: ");
    format!("{first}; see --help")
}

/// Reads a number of units.
///
/// # Errors
/// When it is none, or beyond any sale.
pub fn units(text: &str) -> Result<u64, String> {
    const MAX_UNITS: u64 = crate::sale::HIGHEST_SOLD;
    match text.parse::<u64>() {
        Ok(units) if units <= MAX_UNITS => Ok(units),
        _ => Err(format!("give a whole number from 0 to {MAX_UNITS}, such as 1000")),
    }
}

fn topic(text: &str) -> Result<String, String> {
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

/// `127.0.0.1:3030`, `[::1]:3030`, `localhost:3030`, or `:3030`.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()) {
        return Ok(SocketAddr::from(([0, 0, 0, 0], port)));
    }
    let known = text.to_socket_addrs().ok().and_then(|mut known| known.next());
    known.ok_or_else(|| "give an address such as 127.0.0.1:3030, localhost:3030, or :3030 for all".into())
}

/// `5s`, `500ms`, `1m`, or a whole number of seconds.
fn time_span(text: &str) -> Result<Duration, String> {
    /// Whoever stops a program ends it the hard way after some time.
    const LONGEST: Duration = Duration::from_secs(300);
    let (number, unit) = text.split_at(text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len()));
    let span = number.parse::<u32>().ok().and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number.into())),
        "s" | "" => Some(Duration::from_secs(number.into())),
        "m" => Some(Duration::from_secs(60 * u64::from(number))),
        _ => None,
    });
    span.filter(|span| *span <= LONGEST).ok_or_else(|| "give a time such as 5s, 500ms, or 0, up to 5m".into())
}

/// As browsers say it: scheme and host, and a port where it is not the scheme's own.
fn origin(text: &str) -> Result<String, String> {
    let text = text.trim();
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']) => {
            Ok(text.to_owned())
        }
        _ => {
            Err("give origins such as https://shop.example, without a path, one after the other with commas"
                .into())
        }
    }
}

/// Unix milliseconds of an RFC 3339 time, or of `+30s`, `+5m`, `+1h` from now.
fn moment(text: &str) -> Result<i64, String> {
    let wrong = || "give a time such as 2026-11-11T20:00:00+08:00, or +30s, +5m, +1h from start".to_owned();
    if let Some(ahead) = text.strip_prefix('+') {
        let (number, unit) = ahead.split_at_checked(ahead.len().saturating_sub(1)).ok_or_else(wrong)?;
        let number: i64 = number.parse::<u32>().map_err(|_| wrong())?.into();
        let millis = match unit {
            "s" => number * 1000,
            "m" => number * 60_000,
            "h" => number * 3_600_000,
            _ => return Err(wrong()),
        };
        return Ok(jiff::Timestamp::now().as_millisecond() + millis);
    }
    text.parse::<jiff::Timestamp>().map(|at| at.as_millisecond()).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Seed {
        units: u64,
        #[command(flatten)]
        settings: Settings,
    }

    fn mistake(arguments: &[&str]) -> String {
        let arguments = std::iter::once("seed").chain(arguments.iter().copied());
        one_line::<Seed>(&Seed::try_parse_from(arguments).expect_err("a mistake"))
    }

    #[test]
    fn every_mistake_is_one_line_that_says_where() {
        assert_eq!(mistake(&["many"]), "<UNITS>=many: invalid digit found in string");
        assert_eq!(mistake(&[]), "<UNITS> is missing; see --help");
        assert_eq!(mistake(&["1", "--data"]), "--data: give a value");
        assert_eq!(mistake(&["1", "--nonsense"]), "unexpected argument '--nonsense' found; see --help");
        let line = mistake(&["1", "--opens-at=-5m"]);
        assert!(line.starts_with("--opens-at=-5m: give a time such as "), "{line}");
    }

    #[test]
    fn times_are_read() {
        assert_eq!(moment("2026-11-11T20:00:00+08:00"), Ok(1_794_398_400_000));
        let ahead = moment("+5m").expect("a time") - jiff::Timestamp::now().as_millisecond();
        assert!((290_000..=300_000).contains(&ahead), "{ahead}");
        for wrong in ["", "+", "+5", "5m", "+-5m", "+5d", "tomorrow", "+99999999999h", "+五m", "2026-11-11"]
        {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_spans_and_origins_are_read() {
        assert_eq!(address(":3030").map(|it| it.to_string()), Ok("0.0.0.0:3030".into()));
        assert!(address("localhost:3030").is_ok_and(|it| it.ip().is_loopback() && it.port() == 3030));
        assert_eq!(address("[::1]:3030").map(|it| it.port()), Ok(3030));
        for wrong in ["", ":", "localhost", ":99999", "3030", "everywhere"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        for (text, millis) in [("0", 0), ("5s", 5_000), ("500ms", 500), ("2", 2_000), ("5m", 300_000)] {
            assert_eq!(time_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "-1s", "6m", "1h", "5 s", "99999999999s", "1.5s"] {
            assert!(time_span(wrong).is_err(), "{wrong}");
        }
        assert_eq!(origin(" https://shop.example:8443"), Ok("https://shop.example:8443".into()));
        for wrong in ["", "shop.example", "https://", "https://shop.example/", "https://*.example", "ftp://s"]
        {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn help_names_every_secret() {
        for (name, use_) in SECRETS {
            assert!(AFTER_HELP.contains(name) && AFTER_HELP.contains(use_), "{name}");
        }
    }
}
