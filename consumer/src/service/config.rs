//! The settings of both programs: one struct, one documented field per variable.
//!
//! Each program accepts all of them and ignores those of the other.

mod env_file;
mod values;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Args, Parser};

pub use values::units;
use values::{address, as_meant, file, moment, origin, partitions, replicas, time_span, topic};

/// Exit code for an operator's mistake (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Every variable is also a flag, except those that may contain a password.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// Address for buyers; `:3030` means all of this machine's
    #[arg(
        long,
        global = true,
        env = "SECKILL_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:3030",
        value_parser = address
    )]
    pub listen: SocketAddr,

    /// Address for ops: /livez, /readyz, /metrics, /openapi.json
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

    /// Kafka topic for the sales; created when missing
    #[arg(long, global = true, env = "SECKILL_KAFKA_TOPIC", value_name = "NAME", default_value = "CAR_NUMBER", value_parser = topic)]
    pub kafka_topic: String,

    /// Partitions of the topic, when created
    #[arg(long, global = true, env = "SECKILL_KAFKA_PARTITIONS", value_name = "N", default_value_t = 3, value_parser = partitions)]
    pub kafka_partitions: i32,

    /// Replicas of the topic, when created [default: 3 with three brokers or more, else the cluster's
    /// default]
    #[arg(long, global = true, env = "SECKILL_KAFKA_REPLICATION", value_name = "N", value_parser = replicas)]
    pub kafka_replication: Option<i32>,

    /// The consumer's group, as lag tools show it
    #[arg(long, global = true, env = "SECKILL_KAFKA_GROUP", value_name = "NAME", default_value = "seckill", value_parser = topic)]
    pub kafka_group: String,

    /// The embedded SQLite file
    #[arg(long, global = true, env = "SECKILL_DATA", value_name = "FILE", default_value = "seckill.db", value_parser = file)]
    pub data: PathBuf,

    /// Whether the operator named that file.
    #[arg(skip)]
    pub data_named: bool,

    /// Units in a new embedded file; an existing file is never refilled
    #[arg(long, global = true, env = "SECKILL_STOCK", value_name = "N", default_value_t = 1000, value_parser = units)]
    pub stock: u64,

    /// Opening time, RFC 3339, or `+30s`, `+5m`, `+1h 30m` from each start, so that a restart closes a
    /// running sale for as long [default: open]
    #[arg(long, global = true, env = "SECKILL_OPENS_AT", value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub opens_at: Option<i64>,

    /// Closing time, likewise [default: never]
    #[arg(long, global = true, env = "SECKILL_CLOSES_AT", value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub closes_at: Option<i64>,

    /// How long a stopping node keeps serving, so that load balancers notice: 5s, 500ms, 0
    #[arg(long, global = true, env = "SECKILL_DRAIN", value_name = "TIME", default_value = "5s", value_parser = time_span)]
    pub drain: Duration,

    /// Other sites whose pages may buy here, as `https://shop.example,https://www.example` [default: none]
    #[arg(long, global = true, env = "SECKILL_ALLOWED_ORIGINS", value_name = "ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub allowed_origins: Vec<String>,

    /// Server addresses; no flags, since they may contain passwords.
    #[command(flatten)]
    pub secrets: Secrets,
}

/// Settings read only from the environment, `.env` or a file named by `…_FILE`.
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
    /// `SECKILL_KEY`: the key for this shop's order ids
    #[arg(skip)]
    pub key: Option<Secret>,
}

/// The variables of [`Secrets`] with their descriptions, as in `--help` and the README.
pub const SECRETS: [(&str, &str); 5] = [
    ("SECKILL_REDIS_URL", "Redis, as redis://[user:password@]host:port/db (TLS: rediss://)"),
    ("SECKILL_KAFKA_BROKERS", "Kafka, as host:port,host:port"),
    ("SECKILL_DATABASE_URL", "MySQL or MariaDB, as mysql://user:password@host:port/database"),
    ("SECKILL_KAFKA_OPTIONS", "librdkafka key=value,… (TLS, SASL)"),
    ("SECKILL_KEY", "for order ids: 32 hex digits, all nodes' alike (openssl rand -hex 16)"),
];

/// The `--help` text below the flags.
pub const AFTER_HELP: &str = "\
Environment only (also from .env; NAME_FILE names a file that holds the value):
  SECKILL_REDIS_URL      Redis, as redis://[user:password@]host:port/db (TLS: rediss://)
  SECKILL_KAFKA_BROKERS  Kafka, as host:port,host:port
  SECKILL_DATABASE_URL   MySQL or MariaDB, as mysql://user:password@host:port/database
  SECKILL_KAFKA_OPTIONS  librdkafka key=value,… (TLS, SASL)
  SECKILL_KEY            for order ids: 32 hex digits, all nodes' alike (openssl rand -hex 16)

With the three addresses the sale runs on servers, with none of them in one file.
Logs go to stderr; RUST_LOG sets how much (default: info).";

/// A value that logs and errors never show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for connecting.
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

/// An invalid setting: what, where, and what to do, in one line.
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
            key: secret("SECKILL_KEY")?,
        })
    }
}

fn secret(name: &str) -> Result<Option<Secret>, ConfigError> {
    let set = |name: &str| match std::env::var(name) {
        Ok(value) => Ok(Some(as_meant(&value).to_owned()).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(ConfigError(format!("{name}: it is no text in UTF-8"))),
    };
    if let Some(value) = set(name)? {
        return Ok(Some(Secret(value)));
    }
    let file = format!("{name}_FILE");
    let Some(path) = set(&file)? else { return Ok(None) };
    // A secret in place of a file name.
    let hex = path.len() == 32 && path.bytes().all(|byte| byte.is_ascii_hexdigit());
    let shown = if hex || path.contains([':', '=', '@']) { "…" } else { &path };
    let value = std::fs::read_to_string(&path).map_err(|error| {
        ConfigError(format!("{file}={shown}: {error}; name a file that this user may read"))
    })?;
    match value.trim() {
        "" => Err(ConfigError(format!("{file}={shown}: the file is empty; put the value of {name} into it"))),
        value => Ok(Some(Secret(value.to_owned()))),
    }
}

/// Reads `.env` (if it exists), then the command line and the environment, then the secrets. On a mistake, or
/// after `--help`, prints the message and returns the exit code.
///
/// # Errors
/// [`EXIT_USAGE`] for a mistake, success for `--help` and `--version`.
pub fn parse<P: Parser>(settings: fn(&mut P) -> &mut Settings) -> Result<P, ExitCode> {
    env_file::read().map_err(|why| usage(&format!(".env: {why}")))?;
    // An empty variable counts as unset.
    let set = |argument: &clap::Arg| {
        let value = argument.get_env().and_then(std::env::var_os);
        value.is_none_or(|value| value.to_str().is_none_or(|value| !as_meant(value).is_empty()))
    };
    let command =
        P::command().mut_args(|argument| if set(&argument) { argument } else { argument.env(None::<&str>) });
    let parsed = command.try_get_matches().and_then(|matches| {
        let parsed = P::from_arg_matches(&matches)?;
        // Before or after a subcommand's name.
        let matches = matches.subcommand().map_or(&matches, |(_, matches)| matches);
        Ok((parsed, matches.value_source("data") != Some(ValueSource::DefaultValue)))
    });
    let (mut parsed, data_named) = parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => usage(&one_line::<P>(&error)),
    })?;
    let secrets = Secrets::from_env().map_err(|error| usage(&error.0))?;
    let given = settings(&mut parsed);
    (given.secrets, given.data_named) = (secrets, data_named);
    Ok(parsed)
}

/// Logs to stderr: our lines from `info` on, the libraries' from `warn` on, unless `RUST_LOG` says otherwise.
/// sqlx from `error` on: it warns of waits, which we report; actix's HTTP off: it logs every malformed
/// request.
pub fn log_to_stderr() {
    let quiet = "info,librdkafka=warn,rdkafka=warn,sqlx=error,actix_server=warn,actix_http=off";
    let asked = std::env::var("RUST_LOG").map(|asked| as_meant(&asked).to_owned()).unwrap_or_default();
    let started = env_logger::Builder::new()
        .parse_filters(if asked.is_empty() { quiet } else { &asked })
        .format(|to, record| {
            let (at, level) = (to.timestamp(), record.level());
            let style = to.default_level_style(level);
            let said = one_line_of(&record.args().to_string());
            writeln!(to, "[{at} {style}{level:<5}{style:#} {}] {said}", record.target())
        })
        .try_init();
    // Tests may install a second logger in one process: ignored.
    drop(started);
}

/// External text (from a client, a broker or an operator's key) as part of one line: it can neither start a
/// new line nor control a terminal.
#[must_use]
pub fn one_line_of(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        let steers = matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || steers {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Every variable with its default, for the test that compares the documents with it.
#[must_use]
pub fn table() -> Vec<(String, Option<String>)> {
    let command = Settings::augment_args(clap::Command::new("settings"));
    let flags = command.get_arguments().filter_map(|argument| {
        let name = argument.get_env()?.to_string_lossy().into_owned();
        Some((name, argument.get_default_values().first().map(|value| value.to_string_lossy().into_owned())))
    });
    flags.chain(SECRETS.iter().map(|(name, _)| ((*name).to_owned(), None))).collect()
}

/// Prints an operator's mistake and returns its exit code.
#[allow(clippy::print_stderr, reason = "before the logger, and the one line a person sees")]
#[must_use]
pub fn usage(message: &str) -> ExitCode {
    eprintln!("error: {}", one_line_of(message));
    ExitCode::from(EXIT_USAGE)
}

/// Prints why the program cannot run and returns its exit code.
#[allow(clippy::print_stderr, reason = "the one line a person sees")]
#[must_use]
pub fn failure(message: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {}", one_line_of(&message.to_string()));
    ExitCode::FAILURE
}

/// clap's message in one line, naming the variable if the value may come from it.
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

    /// The setting that a flag or variable value yields.
    fn given(flag: &str, value: &str) -> Result<Settings, String> {
        let arguments = ["seed", "1", &format!("--{flag}={value}")].map(str::to_owned);
        Seed::try_parse_from(arguments).map(|seed| seed.settings).map_err(|error| one_line::<Seed>(&error))
    }

    /// Every setting, with typical input.
    #[test]
    fn what_people_type() {
        let accepted: [(&str, &[&str]); 11] = [
            (
                "listen",
                &[
                    "127.0.0.1:3030",
                    "localhost:3030",
                    ":3030",
                    "*:3030",
                    "0.0.0.0:3030",
                    "[::1]:3030",
                    "[::]:3030",
                    " 127.0.0.1:3030 ",
                    "\"127.0.0.1:3030\"",
                    "'127.0.0.1:3030'",
                    "127.0.0.1:0",
                ],
            ),
            ("ops-listen", &["localhost:3031", ":3031"]),
            ("consumer-ops-listen", &["localhost:3032", ":3032"]),
            ("kafka-topic", &["CAR_NUMBER", "sales.2026-11", " sales ", "\"sales\""]),
            ("kafka-partitions", &["1", "1000", " 3 ", "\"3\""]),
            ("kafka-replication", &["1", "'3'"]),
            ("kafka-group", &["seckill", "\"shop\""]),
            ("data", &["seckill.db", "./my sale.db", "\"/var/lib/sale.db\"", " sale.db "]),
            ("stock", &["0", "1000", " 1000 ", "'1000'", "+5"]),
            (
                "opens-at",
                &[
                    "2026-11-11T20:00:00+08:00",
                    "2026-11-11T12:00:00Z",
                    "2026-11-11 20:00:00+08:00",
                    "2026-11-11t12:00:00z",
                    "+30s",
                    "+5m",
                    "+1h",
                    "+ 5 s",
                    "+5 min",
                    "+1h 30m",
                    "+1h30m",
                    "+90 seconds",
                    "\"+5m\"",
                    " +5m ",
                ],
            ),
            ("closes-at", &["+2h"]),
        ];
        for (flag, values) in accepted {
            for value in values {
                assert!(given(flag, value).is_ok(), "{flag}={value}: {:?}", given(flag, value));
            }
        }
        let port = |value| given("listen", value).expect("an address").listen;
        assert_eq!(port(":3030"), ([0, 0, 0, 0], 3030).into());
        assert_eq!(port("localhost:3030"), ([127, 0, 0, 1], 3030).into());
        assert_eq!(given("data", "\"a b\"").expect("a file").data, PathBuf::from("a b"));

        let refused: [(&str, &[&str], &str); 9] = [
            (
                "listen",
                &[
                    "3030",
                    "127.0.0.1",
                    "http://127.0.0.1:3030",
                    "127.0.0.1:http",
                    "::1:3030",
                    "127.0.0.1:99999",
                    "",
                    "a b:1",
                ],
                "such as 127.0.0.1:3030",
            ),
            ("kafka-topic", &["a b", "a/b", "..", "ü", "", "\"\""], "a-z, A-Z, 0-9"),
            ("kafka-partitions", &["0", "-1", "three", "1001", "3.0", "1e3", ""], "from 1 to 1000"),
            ("kafka-replication", &["0", "101", "yes"], "from 1 to 100"),
            ("kafka-group", &["my group"], "a-z, A-Z, 0-9"),
            ("data", &["", "''", "sqlite://sale.db", "sqlite:sale.db"], "file"),
            ("stock", &["-3", "1k", "1,000", "1_000", "1000.0", "1e3", "many", "0x10"], "whole number"),
            (
                "opens-at",
                &[
                    "+",
                    "+5",
                    "5m",
                    "+-5m",
                    "+5d",
                    "tomorrow",
                    "+99999999999h",
                    "+五m",
                    "2026-11-11",
                    "20:00",
                    "2026-11-11T20:00:00",
                    "now",
                    "true",
                ],
                "2026-11-11T20:00:00+08:00",
            ),
            ("closes-at", &["+5 parsecs", "never"], "+30s"),
        ];
        for (flag, values, says) in refused {
            for value in values {
                let why = given(flag, value).expect_err(value);
                assert!(why.starts_with(&format!("--{flag}")) && why.contains(says), "{flag}={value}: {why}");
            }
        }
    }

    #[test]
    fn what_others_wrote_is_a_part_of_one_line() {
        assert_eq!(
            one_line_of("买 a\tb\r\n[2026] ok\u{1b}[31m\u{85}\u{202e}x\\"),
            "买 a\\tb\\r\\n[2026] ok\\u{1b}[31m\\u{85}\\u{202e}x\\"
        );
    }

    #[test]
    fn help_names_every_secret() {
        for (name, use_) in SECRETS {
            assert!(AFTER_HELP.contains(name) && AFTER_HELP.contains(use_), "{name}");
        }
    }
}
