//! The program `consumer`: records sales from Kafka in the ledger, until it is stopped.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use consumer::kafka;
use consumer::kafka::Watermarks;
use consumer::ledger::Ledger;
use consumer::ledger::mysql::MySqlLedger;
use consumer::reader::kafka::KafkaReader;
use consumer::recording::metrics::Metrics;
use consumer::recording::run::{Health, Stop, run, until_up};
use consumer::recording::skip::{Skip, skip};
use consumer::recording::step::{Consumer, StepError};
use consumer::service::config::{self, AFTER_HELP, ConfigError, Secret, Settings};
use consumer::service::{ops, web};
use prometheus::Registry;
use tokio::signal::unix::{SignalKind, signal};

/// An orchestrator sends SIGKILL 15 s after SIGTERM: exit before, whatever hangs.
const END_WITHIN: Duration = Duration::from_secs(14);

/// Open files of a consumer: servers, libraries, and ops connections.
const OPEN_FILES: u64 = 512;

/// Records the sales of seckill: from Kafka into MySQL or MariaDB, each exactly once
#[derive(Debug, Parser)]
#[command(name = "consumer", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Create or migrate the ledger's tables, and exit
    Migrate,
    /// Continue where the topic's log begins, though earlier messages were never recorded
    #[command(
        after_help = "For a topic that lost its head: retention, or somebody deleted records. Shows what is gone; --yes \
                      gives it up. What was sold and is gone is named by `seckill audit` afterwards. Safe to run twice, and \
                      while consumers run. The topic is that of SECKILL_KAFKA_TOPIC, or --kafka-topic."
    )]
    Skip {
        /// Only this partition
        #[arg(long, value_name = "P", value_parser = clap::value_parser!(i32).range(0..))]
        partition: Option<i32>,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

fn main() -> ExitCode {
    let cli = match config::parse::<Cli>(|cli| &mut cli.settings) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    config::log_to_stderr();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return config::failure(&error),
    };
    let code = runtime.block_on(async {
        match cli.command {
            None => work(&cli.settings).await,
            Some(Command::Migrate) => migrate(&cli.settings).await,
            Some(Command::Skip { partition, yes }) => give_up(&cli.settings, partition, yes).await,
        }
    });
    // Waits for nothing more: what matters is committed or in the journal.
    runtime.shutdown_background();
    code.unwrap_or_else(|error| match error {
        Error::Config(error) => config::usage(&error.0),
        Error::Failed(why) => config::failure(&why),
    })
}

enum Error {
    Config(ConfigError),
    Failed(String),
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<StepError> for Error {
    fn from(error: StepError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn ledger(settings: &Settings) -> Result<MySqlLedger, ConfigError> {
    let url = required(settings.secrets.database_url.as_ref(), "SECKILL_DATABASE_URL")?;
    MySqlLedger::connect_lazy(url.reveal())
}

fn required<'s>(secret: Option<&'s Secret>, name: &str) -> Result<&'s Secret, ConfigError> {
    secret.ok_or_else(|| ConfigError(format!("{name} is missing: the consumer needs it (see --help)")))
}

async fn migrate(settings: &Settings) -> Result<ExitCode, Error> {
    let ledger = ledger(settings)?;
    ledger.migrate().await.map_err(|error| Error::Failed(error.to_string()))?;
    log::info!("the ledger's tables are in place");
    Ok(ExitCode::SUCCESS)
}

async fn give_up(settings: &Settings, only: Option<i32>, yes: bool) -> Result<ExitCode, Error> {
    required(settings.secrets.kafka_brokers.as_ref(), "SECKILL_KAFKA_BROKERS")?;
    let ledger = ledger(settings)?;
    let topic = &settings.kafka_topic;
    let failed = |why: String| Error::Failed(format!("nothing was skipped: {why}"));
    let extents =
        Watermarks::new(settings)?.extents(topic).await.map_err(|error| failed(error.to_string()))?;
    if let Some(partition) = only.filter(|partition| !extents.contains_key(partition)) {
        return Err(failed(format!(
            "topic {topic} has no partition {partition}, but 0 to {}",
            extents.len() - 1
        )));
    }
    match skip(&ledger, topic, &extents, only, yes).await {
        Ok(Skip::Nothing(why)) => Err(failed(why)),
        Ok(Skip::Gone(said)) => {
            // A closed pipe is the reader's business.
            let _ = writeln!(std::io::stdout(), "{said}");
            if yes {
                log::info!("`seckill audit` names the units that are missing now");
            } else {
                log::info!("nothing was changed; --yes does it. Have you looked for a copy of the log?");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

async fn work(settings: &Settings) -> Result<ExitCode, Error> {
    required(settings.secrets.kafka_brokers.as_ref(), "SECKILL_KAFKA_BROKERS")?;
    let ledger = Arc::new(ledger(settings)?);
    kafka::client(settings)?;
    web::open_files(OPEN_FILES).map_err(Error::Failed)?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).map_err(|error| Error::Failed(error.to_string()))?;
    let address = settings.consumer_ops_listen;
    let listener = TcpListener::bind(address).map_err(|error| {
        Error::Failed(format!("SECKILL_CONSUMER_OPS_LISTEN={address}: {error}; name a free address"))
    })?;
    let health = Health::default();
    let ops = ops::serve(listener, registry, health.ready(), None)
        .map_err(|error| Error::Failed(error.to_string()))?;
    let stop = stopped().map_err(|error| Error::Failed(error.to_string()))?;
    tokio::pin!(stop);
    let ended = tokio::select! {
        ended = record(settings, ledger, metrics, health, &mut stop) => ended,
        served = ops => served.map_err(|error| Error::Failed(format!("SECKILL_CONSUMER_OPS_LISTEN={address}: {error}"))),
    };
    ended.map(|()| ExitCode::SUCCESS)
}

/// Waits for the servers, creates what is missing, records until stopped.
async fn record(
    settings: &Settings,
    ledger: Arc<MySqlLedger>,
    metrics: Metrics,
    health: Health,
    mut stop: impl Future<Output = ()> + Unpin,
) -> Result<(), Error> {
    let up = async {
        until_up(&health, || ledger.migrate()).await?;
        for broken in ledger.broken_promises().await.unwrap_or_default() {
            log::warn!("{broken}");
        }
        until_up(&health, || kafka::ensure_topic(settings)).await
    };
    tokio::select! {
        up = up => up?,
        () = &mut stop => return Ok(()),
    }
    let (topic, group) = (&settings.kafka_topic, &settings.kafka_group);
    log::info!("topic {topic}: waiting for what group {group} assigns");
    let reader = KafkaReader::new(settings)?;
    let consumer = Consumer::new(Box::new(reader), ledger, metrics);
    let stop = async {
        stop.await;
        Stop::Now
    };
    run(consumer, health, stop).await?;
    log::info!("stopped");
    Ok(())
}

/// Resolves on SIGTERM or SIGINT; then the process exits in time.
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::info!("stopping");
        std::thread::spawn(|| {
            std::thread::sleep(END_WITHIN);
            std::process::exit(0);
        });
    })
}
