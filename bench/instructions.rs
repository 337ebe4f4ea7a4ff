//! How many instructions the pieces of a purchase take, counted by callgrind: the same at every
//! run of the same program. `scripts/instructions` compares them with bench/instructions.json.
//!
//! Stock, journal and ledger answer at once; everything else is the service's own.

#![allow(missing_docs, unused_qualifications, reason = "made by the macros")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{AppConfig, Service as _, ServiceFactory as _};
use actix_web::{App, HttpResponse, body, test, web};
use async_trait::async_trait;
use consumer::ledger::Ledger;
use consumer::ledger::mysql::MySqlLedger;
use consumer::progress::Extents;
use gungraun::{library_benchmark, library_benchmark_group, main};
use prometheus::Registry;
use seckill::clock::moment;
use seckill::http::{self, Front};
use seckill::journal::{Journal, Receipt};
use seckill::metrics::Metrics;
use seckill::sale::{Attempt, Batch, Item, Purchase, Window};
use seckill::selling::mailbox::Mailbox;
use seckill::selling::shop::Shop;
use seckill::selling::till::Till;
use seckill::stock::redis::RedisStock;
use seckill::stock::{Book, Call, Entries, EntryName, Outcome, Reply, Stock, StockError};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::LocalSet;
use uuid::Uuid;

/// Attempts of a full call, and requests of a run.
const MANY: usize = 256;

/// A stock that has as many units as are asked for, or none.
struct Units(u64);

#[async_trait]
impl Stock for Units {
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError> {
        let count = call.attempts.len();
        let epoch = Uuid::nil();
        let taken = (self.0 > 0 && count > 0).then(|| Batch {
            id: call.id,
            item: item.clone(),
            epoch,
            term: 0,
            serial: 1,
            remaining: self.0,
            at: call.at,
            attempts: call.attempts.clone(),
        });
        let outcome = |index| if self.0 > 0 { Outcome::Taken(index) } else { Outcome::SoldOut };
        let outcomes = (0..count).map(outcome).collect();
        Ok(Reply { epoch: Some(epoch), left: Some(self.0), taken, outcomes, ..Reply::default() })
    }

    async fn outbox(&self, _: &Item) -> Result<Vec<EntryName>, StockError> {
        Ok(Vec::new())
    }

    async fn entries(&self, _: &Item, _: &[EntryName]) -> Result<Entries, StockError> {
        Ok(Entries::default())
    }

    async fn items(&self) -> Result<Vec<Item>, StockError> {
        Ok(vec![Item::default()])
    }

    async fn knows(&self, _: &Item) -> Result<bool, StockError> {
        Ok(true)
    }

    async fn seed(&self, _: &Item, _: u64, _: Uuid) -> Result<(), StockError> {
        Ok(())
    }

    async fn add(&self, _: &Item, _: u64) -> Result<Option<u64>, StockError> {
        Ok(None)
    }

    async fn books(&self, _: &Item) -> Result<Vec<Book>, StockError> {
        Ok(Vec::new())
    }
}

/// A journal that acknowledges at once.
struct AtOnce;

#[async_trait]
impl Journal for AtOnce {
    fn append(&self, batch: &Batch) -> Arc<Receipt> {
        Receipt::acknowledged(batch.attempts.len())
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn topic(&self) -> &str {
        "none"
    }

    async fn extents(&self) -> Result<Extents, String> {
        Ok(Extents::new())
    }

    async fn flush(&self, _: Duration) {}
}

/// What is measured, with everything made ready before.
type Piece = Box<dyn FnOnce()>;

/// One thread, and a clock that stands: no refresh falls into the count.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}

fn attempts(named: bool) -> Vec<Attempt> {
    let name = |number| named.then(|| format!("k:buyer-{number}"));
    (0..MANY).map(|number| Attempt { order: Uuid::now_v7(), name: name(number) }).collect()
}

/// `MANY` requests over the application, one after the other: parsed, decided, answered.
fn requests(units: u64, request: fn() -> test::TestRequest) -> Piece {
    let runtime = runtime();
    let local = LocalSet::new();
    let (app, requests) = local.block_on(&runtime, async {
        let (stock, journal): (Arc<dyn Stock>, Arc<dyn Journal>) = (Arc::new(Units(units)), Arc::new(AtOnce));
        let ledger: Arc<dyn Ledger> =
            Arc::new(MySqlLedger::connect_lazy("mysql://nobody@127.0.0.1:1/none").expect("an address"));
        let metrics = Metrics::register(&Registry::new()).expect("registered");
        let window = Window::default();
        let shop = Shop::open(stock, journal, ledger, window, metrics.clone());
        for till in shop.tills() {
            till.refreshed().await;
        }
        let app = http::service(web::Data::new(Front {
            shop,
            window,
            metrics,
            origins: Vec::new(),
            draining: Arc::default(),
        }));
        let app = app.new_service(AppConfig::default()).await.expect("a service");
        let one = |_| request().to_request();
        let mut requests: Vec<_> = (0..=MANY).map(one).collect();
        let first = app.call(requests.pop().expect("one")).await.expect("an answer");
        assert!(first.status().is_success());
        (app, requests)
    });
    Box::new(move || {
        local.block_on(&runtime, async {
            for request in requests {
                let answer = app.call(request).await.expect("an answer");
                let _ = black_box(body::to_bytes(answer.into_body()).await);
            }
        });
    })
}

/// The baseline of scripts/bench, for comparison.
fn hello() -> Piece {
    let runtime = runtime();
    let local = LocalSet::new();
    let app = local.block_on(&runtime, async {
        let hello = async || {
            let answer = r#"{"code":"sold_out","messages":"Sold out","num":0}"#;
            HttpResponse::Ok().insert_header(("Content-Type", "application/json")).body(answer)
        };
        let app = test::init_service(App::new().default_service(web::to(hello))).await;
        test::call_service(&app, test::TestRequest::post().to_request()).await;
        app
    });
    let requests: Vec<_> = (0..MANY).map(|_| test::TestRequest::post().to_request()).collect();
    Box::new(move || {
        local.block_on(&runtime, async {
            for request in requests {
                let answer = test::call_service(&app, request).await;
                let _ = black_box(body::to_bytes(answer.into_body()).await);
            }
        });
    })
}

fn sold_out() -> Piece {
    requests(0, || test::TestRequest::post().uri("/seckill/seckill"))
}

fn bought() -> Piece {
    requests(1 << 40, || test::TestRequest::post().uri("/seckill/seckill"))
}

fn bought_with_a_key() -> Piece {
    requests(1 << 40, || {
        test::TestRequest::post().uri("/seckill/seckill").insert_header(("Idempotency-Key", "buyer"))
    })
}

fn polled() -> Piece {
    requests(1 << 40, || test::TestRequest::get().uri("/seckill/getCount"))
}

/// One full batch through the till.
fn till() -> Piece {
    let runtime = runtime();
    let till = runtime.block_on(async {
        let (stock, journal): (Arc<dyn Stock>, Arc<dyn Journal>) =
            (Arc::new(Units(1 << 40)), Arc::new(AtOnce));
        let metrics = Metrics::register(&Registry::new()).expect("registered");
        let till =
            Till::open(Item::default(), &stock, &journal, Window::default(), &metrics, &Handle::current());
        till.refreshed().await;
        till
    });
    let attempts = attempts(false);
    Box::new(move || {
        runtime.block_on(async {
            let mailbox = Mailbox::open();
            let all = attempts.into_iter().map(|attempt| till.attempt(&mailbox, attempt));
            for told in join_all(all).await {
                assert!(matches!(told, Purchase::Bought { .. }));
            }
        });
    })
}

async fn join_all(all: impl Iterator<Item = impl Future<Output = Purchase>>) -> Vec<Purchase> {
    let mut waiting: Vec<_> = all.map(Box::pin).collect();
    // Each is asked before any is waited for.
    std::future::poll_fn(|cx| {
        for one in &mut waiting {
            let _ = one.as_mut().poll(cx).is_pending();
        }
        std::task::Poll::Ready(())
    })
    .await;
    let mut told = Vec::with_capacity(waiting.len());
    for one in waiting {
        told.push(one.await);
    }
    told
}

/// What a full call sends to Redis.
fn script(named: bool) -> Piece {
    let stock = RedisStock::new("redis://127.0.0.1:1").expect("an address");
    let call = Call {
        id: Uuid::now_v7(),
        offer: Uuid::now_v7(),
        at: moment(),
        taking: true,
        attempts: attempts(named),
        settled: vec![Uuid::now_v7()],
    };
    Box::new(move || {
        black_box(stock.taking(&Item::default(), &call));
    })
}

fn script_anonymous() -> Piece {
    script(false)
}

fn script_named() -> Piece {
    script(true)
}

/// The messages of a full batch.
fn messages() -> Piece {
    let batch = Batch {
        id: Uuid::now_v7(),
        item: Item::default(),
        epoch: Uuid::now_v7(),
        term: 0,
        serial: 1,
        remaining: 1_000_000,
        at: moment(),
        attempts: attempts(true),
    };
    Box::new(move || {
        for sale in batch.sales() {
            let _ = black_box(sale.to_json());
        }
    })
}

#[library_benchmark]
#[bench::hello(hello())]
#[bench::sold_out(sold_out())]
#[bench::bought(bought())]
#[bench::bought_with_a_key(bought_with_a_key())]
#[bench::polled(polled())]
#[bench::till(till())]
#[bench::script_anonymous(script_anonymous())]
#[bench::script_named(script_named())]
#[bench::messages(messages())]
fn instructions(piece: Piece) {
    piece();
}

library_benchmark_group!(name = hot_path, benchmarks = instructions);
main!(library_benchmark_groups = hot_path);
