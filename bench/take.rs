//! Calls the take script as a till does, nothing else: `N` batches of `SIZE` attempts, each of
//! which settles the one before. Redis' own `commandstats` say what it cost.
//!
//! Usage: take BATCHES SIZE anonymous|keyed, with `SECKILL_REDIS_URL`

use seckill::clock::moment;
use seckill::sale::{Attempt, Item};
use seckill::stock::redis::RedisStock;
use seckill::stock::{Call, Stock as _};
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: take BATCHES SIZE anonymous|keyed";
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [batches, size, kind] = &args[..] else { return Err(usage.into()) };
    let (batches, size): (usize, usize) = (batches.parse()?, size.parse()?);
    let stock = RedisStock::new(&std::env::var("SECKILL_REDIS_URL")?)?;
    let item = Item::default();
    let mut settled = Vec::new();
    for _ in 0..batches {
        let attempt = || {
            let order = Uuid::now_v7();
            Attempt { order, name: (kind == "keyed").then(|| format!("k:{order}")) }
        };
        let call = Call {
            id: Uuid::now_v7(),
            offer: Uuid::now_v7(),
            at: moment(),
            taking: true,
            attempts: (0..size).map(|_| attempt()).collect(),
            settled: std::mem::take(&mut settled),
        };
        let reply = stock.take(&item, &call).await?;
        let taken = reply.taken.ok_or("nothing was taken: put enough on sale first")?;
        if taken.attempts.len() != size {
            return Err("not enough on sale".into());
        }
        settled.push(taken.id);
    }
    Ok(())
}
