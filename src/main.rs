//! The command line: serve, and the operators' commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use consumer::service::config::{self, AFTER_HELP, Settings};
use seckill::books::restore::Wish;
use seckill::operating::commands as operate;
use seckill::operating::serve;
use seckill::sale::Item;
use uuid::Uuid;

/// A flash sale: N units become exactly N orders
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Sell (the default)
    Serve,
    /// Begin a new sale of N units, or add units to the running one
    #[command(
        after_help = "A new sale forgets who bought before; `SET counter N` in Redis keeps the old winners' answers."
    )]
    Seed {
        /// Units of a new sale
        #[arg(value_name = "N", value_parser = config::units, required_unless_present = "add")]
        units: Option<u64>,
        /// Add N units to the running sale instead
        #[arg(long, value_name = "N", value_parser = config::units, conflicts_with = "units")]
        add: Option<u64>,
        /// The item [default: counter]
        #[arg(long, value_name = "NAME")]
        item: Option<Item>,
    },
    /// Show what is on sale and how far each sale is
    Status {
        /// Only this item
        #[arg(long, value_name = "NAME")]
        item: Option<Item>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check the books: every unit sold is recorded exactly once
    #[command(after_help = "Exit code: 0 balanced, 1 not balanced, 69 could not be checked.")]
    Audit {
        /// Only this item
        #[arg(long, value_name = "NAME")]
        item: Option<Item>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Rebuild Redis' books from ledger and journal after a loss
    #[command(
        after_help = "Shows what it would do; --yes does it, with the sale shut meanwhile. Units added by hand after \
                            the last sale are known to nobody: say with --left how many are left. Safe to run twice, and while nodes run."
    )]
    Restore {
        /// Only this item
        #[arg(long, value_name = "NAME")]
        item: Option<Item>,
        /// Set N units left, whatever the books say
        #[arg(long, value_name = "N", value_parser = config::units, requires = "item")]
        left: Option<u64>,
        /// Continue this sale, whatever others are known
        #[arg(long, value_name = "EPOCH", value_parser = sale, requires = "item")]
        epoch: Option<Uuid>,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Archive finished sales: `status` and `audit` no longer show them
    #[command(
        after_help = "A sale is over when a later one has begun, or when its item was taken off sale. Only what balances is \
                            put away; its rows stay in the ledger, and its books as they were closed in seckill_archive."
    )]
    Archive {
        /// Only this item
        #[arg(long, value_name = "NAME")]
        item: Option<Item>,
    },
}

/// Parses a sale's name.
fn sale(text: &str) -> Result<Uuid, &'static str> {
    text.trim().parse().map_err(|_| "give a sale's name, as `seckill audit` and the log show it")
}

fn main() -> ExitCode {
    let Cli { command, settings } = match config::parse::<Cli>(|cli| &mut cli.settings) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    config::log_to_stderr();
    // One thread for tills and background tasks; client connections have a worker for each core.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return config::failure(&error),
    };
    let item = |item: Option<Item>| item.unwrap_or_default();
    runtime.block_on(async {
        match command {
            None | Some(Command::Serve) => serve::serve(settings).await,
            Some(Command::Seed { add: Some(units), item: name, .. }) => {
                operate::add(&settings, &item(name), units).await
            }
            Some(Command::Seed { units, item: name, .. }) => {
                operate::seed(&settings, &item(name), units.unwrap_or_default()).await
            }
            Some(Command::Status { item, json }) => operate::status(&settings, item.as_ref(), json).await,
            Some(Command::Restore { item, left, epoch, yes }) => {
                operate::restore(&settings, item.as_ref(), Wish { left, epoch }, yes).await
            }
            Some(Command::Archive { item }) => operate::archive(&settings, item.as_ref()).await,
            Some(Command::Audit { item, json }) => operate::audit(&settings, item.as_ref(), json).await,
        }
    })
}
