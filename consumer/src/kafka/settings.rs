//! Kafka client settings: the operator's options, and those that the programs own.

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;

use crate::service::config::{ConfigError, Settings};

/// Options that the programs set themselves, because the promise depends on them or they have their own
/// variable, with librdkafka's aliases.
const OWNED: [&str; 34] = [
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.offset.reset",
    "bootstrap.servers",
    "check.crcs",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "enabled_events",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "isolation.level",
    "linger.ms",
    "max.poll.interval.ms",
    "message.timeout.ms",
    "metadata.broker.list",
    "opaque",
    "partition.assignment.strategy",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "request.required.acks",
    "session.timeout.ms",
    "topic.metadata.refresh.interval.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// Whether the programs own an option: those above, callbacks, and test options that replace Kafka.
fn is_owned(key: &str) -> bool {
    OWNED.contains(&key) || key.ends_with("_cb") || key.starts_with("test.")
}

/// The base settings of every client: broker addresses, the operator's options, and a short reconnect delay.
///
/// # Errors
/// When brokers are missing or an option is invalid. The error names options, never their values: they may be
/// passwords.
pub fn client(settings: &Settings) -> Result<ClientConfig, ConfigError> {
    let Some(brokers) = &settings.secrets.kafka_brokers else {
        return Err(ConfigError("SECKILL_KAFKA_BROKERS is missing: give host:port,host:port".to_owned()));
    };
    // Keeps OpenSSL in place at exit: it would clean up under librdkafka's threads, in the middle of a
    // handshake, and the process would end with a segmentation fault.
    #[cfg(feature = "tls")]
    openssl_sys::init();
    let mut config = ClientConfig::new();
    // Appears in broker logs and quotas.
    config.set("client.id", "seckill");
    // Detects half-open connections, as firewalls leave them.
    config.set("socket.keepalive.enable", "true");
    // Timeout of a broker that accepts but does not answer (default: 60 s).
    config.set("socket.timeout.ms", "10000");
    // Timeout of a host that drops packets (default: 30 s).
    config.set("socket.connection.setup.timeout.ms", "5000");
    // The sale continues within 10 s after Kafka is back: reconnect at least every second.
    config.set("reconnect.backoff.max.ms", "1000");
    for (key, value) in options(settings)? {
        config.set(key, value);
    }
    // After the options: the address has its own variable.
    config.set("bootstrap.servers", brokers.reveal());
    match config.create_native_config() {
        Ok(_) => Ok(config),
        Err(error) => Err(refused(&error)),
    }
}

/// Splits `key=value,…`.
fn options(settings: &Settings) -> Result<Vec<(String, String)>, ConfigError> {
    let Some(options) = &settings.secrets.kafka_options else {
        return Ok(Vec::new());
    };
    let pairs = options.reveal().split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .enumerate()
        .map(|(index, pair)| match pair.split_once('=') {
            // Anything unlike a key may be part of a password that contains a comma.
            Some((key, value))
                if !key.trim().is_empty()
                    && key
                        .trim()
                        .bytes()
                        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_')) =>
            {
                if is_owned(key.trim()) {
                    return Err(ConfigError(format!(
                        "SECKILL_KAFKA_OPTIONS: {} is not to be set, the programs set it themselves; take it out",
                        key.trim()
                    )));
                }
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(ConfigError(format!("SECKILL_KAFKA_OPTIONS: number {} is not key=value", index + 1))),
        })
        .collect()
}

/// Why this build may lack an option.
fn not_built_in(key: &str) -> &'static str {
    match key.split('.').next() {
        Some("compression") => "; zstd is not built in: take lz4, snappy or gzip",
        Some("security" | "ssl" | "sasl" | "enable" | "https") => WITHOUT_TLS,
        _ => "",
    }
}

const WITHOUT_TLS: &str = if cfg!(feature = "tls") {
    ""
} else {
    "; for TLS or SCRAM build with `--features tls`, or use the Docker image"
};

/// librdkafka's error without the refused value.
fn refused(error: &KafkaError) -> ConfigError {
    match error {
        KafkaError::ClientConfig(_, _, key, _) if key == "bootstrap.servers" => {
            ConfigError("SECKILL_KAFKA_BROKERS: give host:port,host:port".to_owned())
        }
        KafkaError::ClientConfig(_, _, key, _) => ConfigError(format!(
            "SECKILL_KAFKA_OPTIONS: librdkafka does not take {key} with this value{}",
            not_built_in(key)
        )),
        _ => ConfigError(format!(
            "SECKILL_KAFKA_OPTIONS: librdkafka does not take these together{WITHOUT_TLS}"
        )),
    }
}

/// Creates a client.
///
/// # Errors
/// When librdkafka refuses the settings.
pub fn create<C, T>(config: &ClientConfig, context: C) -> Result<T, ConfigError>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    config.create_with_context(context).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::service::config::Secret;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn with(options: &str) -> Result<ClientConfig, ConfigError> {
        let mut settings = Cli::parse_from(["test"]).settings;
        settings.secrets.kafka_brokers = Some(Secret::new("127.0.0.1:9"));
        settings.secrets.kafka_options = Some(Secret::new(options));
        client(&settings)
    }

    /// Setting an owned option would be silently ignored, or break the promise.
    #[test]
    fn an_option_of_the_programs_own_is_refused_by_name() {
        let named =
            ["transactional.id", "acks", "group.id", "isolation.level", "error_cb", "test.mock.num.brokers"];
        for key in OWNED.into_iter().chain(named) {
            let error = with(&format!("socket.keepalive.enable=true, {key}=secret")).expect_err(key);
            assert!(error.0.contains(key) && error.0.contains("take it out"), "{error}");
            assert!(!error.0.contains("=secret"), "{error}");
        }
        with("security.protocol=plaintext,socket.timeout.ms=9000,client.id=x")
            .expect("others are the operator's");
    }
}
