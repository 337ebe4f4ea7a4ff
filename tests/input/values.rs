//! Values that people write: names, settings, addresses, and entries of an outbox in Redis.

use bolero::{TypeGenerator, check};
use clap::Parser;
use consumer::ledger::mysql::MySqlLedger;
use consumer::sale::Sale;
use consumer::service::config::{Secret, Settings, units};
use seckill::sale::{Attempt, Batch, Item};
use seckill::stock::redis::RedisStock;
use uuid::Uuid;

#[test]
fn an_item_is_a_name_or_an_error() {
    check!().with_iterations(100_000).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(item) = text.parse::<Item>() {
            assert_eq!(item.name(), text);
            assert!(
                item.key().bytes().all(|byte| byte.is_ascii_lowercase() || b"0123456789-:".contains(&byte))
            );
        }
    });
}

/// An entry as the script writes it, with a few bytes of it changed.
#[derive(Debug, TypeGenerator)]
struct Entry {
    orders: Vec<Option<u8>>,
    changes: Vec<(u16, u8)>,
    cut: Option<u16>,
    numbers: Option<[i128; 4]>,
}

/// What can be read of an outbox can be announced: its sales are messages that a consumer reads.
#[test]
fn an_outbox_entry_is_a_batch_or_an_error() {
    check!().with_type::<Entry>().with_iterations(30_000).for_each(|entry| {
        let epoch = Uuid::now_v7();
        let [term, serial, remaining, micros] = entry.numbers.unwrap_or([2, 7, 3, 1_767_322_000_000_000]);
        let mut text = format!("{epoch} {term} {serial} {remaining} {micros}\n");
        for name in &entry.orders {
            let name = name.map(|name| format!("k:{}", char::from(name)));
            Attempt { order: Uuid::now_v7(), name }.write_line(&mut text);
        }
        let mut bytes = text.into_bytes();
        for (at, byte) in &entry.changes {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *byte;
        }
        bytes.truncate(entry.cut.map_or(usize::MAX, usize::from));
        let text = String::from_utf8_lossy(&bytes);
        match Batch::from_entry(&Uuid::now_v7().to_string(), &Item::default(), &text) {
            Ok(batch) => {
                for sale in batch.sales() {
                    let read = Sale::from_json(&sale.to_json().unwrap()).unwrap();
                    assert_eq!(
                        (read.order, read.serial, read.attempt),
                        (sale.order, sale.serial, sale.attempt)
                    );
                }
            }
            Err(why) => assert!(!why.is_empty()),
        }
    });
}

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

const FLAGS: [&str; 8] = [
    "--stock",
    "--opens-at",
    "--closes-at",
    "--listen",
    "--kafka-topic",
    "--kafka-partitions",
    "--kafka-replication",
    "--kafka-group",
];

#[derive(Debug, TypeGenerator)]
enum Text {
    Any(String),
    /// Where numbers and times end.
    Near(u8, String, u8),
}

impl Text {
    fn text(&self) -> String {
        const BEGIN: [&str; 7] =
            ["+", "-", "+4294967295", "2026-11-11T20:00:00", "1000000000000", "127.0.0.1:", "0"];
        const END: [&str; 7] = ["", "s", "h", "+08:00", "Z", "65536", "[Etc/UTC]"];
        match self {
            Self::Any(text) => text.clone(),
            Self::Near(begin, text, end) => {
                let of = |table: [&'static str; 7], at: &u8| table[usize::from(*at) % table.len()];
                format!("{}{text}{}", of(BEGIN, begin), of(END, end))
            }
        }
    }
}

#[test]
fn a_setting_is_a_value_or_an_error_that_names_it() {
    check!().with_type::<(u8, Text)>().with_iterations(10_000).for_each(|(flag, text)| {
        let (flag, text) = (FLAGS[usize::from(*flag) % FLAGS.len()], text.text());
        match Cli::try_parse_from(["seckill", &format!("{flag}={text}")]) {
            Ok(cli) => assert!(cli.settings.stock <= 1_000_000_000_000 && cli.settings.kafka_partitions > 0),
            Err(error) => assert!(error.to_string().contains(flag), "{error}"),
        }
        let _ = units(&text);
    });
}

/// An address is taken or refused, and never shown: it may carry a password.
#[test]
fn an_address_never_shows() {
    check!().with_type::<(u8, String, String)>().with_iterations(10_000).for_each(|(scheme, user, rest)| {
        const SECRET: &str = "hush-hush";
        const SCHEMES: [&str; 7] =
            ["redis://", "rediss://", "redis+unix://", "mysql://", "mariadb://", "ssl.ca.location=", ""];
        let address = format!("{}{user}:{SECRET}@{rest}", SCHEMES[usize::from(*scheme) % SCHEMES.len()]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _within = runtime.enter();
        let mut said = String::new();
        said.extend(RedisStock::new(&address).err());
        said.extend(MySqlLedger::connect_lazy(&address).err().map(|error| error.to_string()));
        let mut settings = Cli::parse_from(["seckill"]).settings;
        settings.secrets.kafka_brokers = Some(Secret::new(address.clone()));
        settings.secrets.kafka_options = Some(Secret::new(format!("sasl.password={address}")));
        said.extend(consumer::kafka::client(&settings).err().map(|error| error.to_string()));
        assert!(!said.contains(SECRET), "{said}");
    });
}
