//! Appends `N` sales to the topic as the service does, so that the consumer has something to
//! record. Prints the seconds until the last was acknowledged.
//!
//! Usage: fill N, with the settings of the service

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use consumer::service::config::{Secrets, Settings};
use seckill::clock::moment;
use seckill::journal::Journal as _;
use seckill::journal::kafka::KafkaJournal;
use seckill::sale::{Attempt, Batch, Item};
use uuid::Uuid;

#[derive(Parser)]
struct Cli {
    /// Sales
    sales: u64,
    #[command(flatten)]
    settings: Settings,
}

const BATCH: u64 = 256;
/// Batches on their way at a time.
const AT_ONCE: usize = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Cli { sales, mut settings } = Cli::parse();
    settings.secrets = Secrets::from_env()?;
    let journal = Arc::new(KafkaJournal::new(&settings)?);
    tokio::spawn(Arc::clone(&journal).watch());
    while journal.ready().is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (epoch, started) = (Uuid::now_v7(), Instant::now());
    let mut open = std::collections::VecDeque::new();
    let mut serial = 1;
    while serial <= sales {
        let size = BATCH.min(sales - serial + 1);
        let batch = Batch {
            id: Uuid::now_v7(),
            item: Item::default(),
            epoch,
            term: 0,
            serial,
            remaining: sales - serial,
            at: moment(),
            attempts: (0..size).map(|_| Attempt { order: Uuid::now_v7(), name: None }).collect(),
        };
        serial += size;
        open.push_back(journal.append(&batch));
        if open.len() >= AT_ONCE
            && let Some(oldest) = open.pop_front()
        {
            oldest.done().await;
        }
    }
    for receipt in open {
        receipt.done().await;
        if !receipt.complete() {
            return Err("Kafka did not acknowledge everything".into());
        }
    }
    #[allow(clippy::print_stdout, reason = "its result")]
    {
        println!("{:.3}", started.elapsed().as_secs_f64());
    }
    Ok(())
}
