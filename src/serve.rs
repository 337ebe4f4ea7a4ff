//! The process that sells: its parts, from the first listener to the last flush.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use consumer::config::{Settings, failure, usage};
use consumer::ledger::LedgerError;
use consumer::reader::sqlite::SqliteReader;
use consumer::run::{Health, Stop};
use consumer::step::Consumer;
use prometheus::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::gate::Window;
use crate::http;
use crate::metrics::Metrics;
use crate::operate;
use crate::outbox::Announcer;
use crate::reopen::Reopener;
use crate::shop::Shop;
use crate::world::{Kind, Purpose, World};

/// Connections that may wait to be accepted: a whole sale arrives in one second.
const BACKLOG: i32 = 8192;

/// The limit of open files that a shell usually sets, when the system does not say.
const USUAL_OPEN_FILES: u64 = 1024;

/// The parts of a shut-down after the draining, whose sum stays within 15 s: buyers in flight have 6 s (see
/// [`http`]), then what was taken has this to be acknowledged, ...
const CLOSE_WITHIN: Duration = Duration::from_secs(4);
/// ... the producer this, ...
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// ... and the embedded consumer this to catch up.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);

/// Sells until SIGTERM or SIGINT; 0 after a drained end.
pub async fn serve(settings: Settings) -> ExitCode {
    let window = Window { opens_at: settings.opens_at, closes_at: settings.closes_at };
    if let (Some(opens), Some(closes)) = (window.opens_at, window.closes_at)
        && closes <= opens
    {
        return usage(
            "SECKILL_CLOSES_AT: the sale would close before it opens; give a time after SECKILL_OPENS_AT",
        );
    }
    // Every buyer is an open file; the shell's usual 1024 is no limit anyone chose.
    let open_files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        log::warn!("the limit of open files stays as it is: {error}");
        rlimit::Resource::NOFILE.get_soft().unwrap_or(USUAL_OPEN_FILES)
    });
    let buyers = match bind("SECKILL_LISTEN", settings.listen) {
        Ok(listener) => listener,
        Err(why) => return failure(&why),
    };
    let ops = match bind("SECKILL_OPS_LISTEN", settings.ops_listen) {
        Ok(listener) => listener,
        Err(why) => return failure(&why),
    };
    let world = match operate::open(&settings, Purpose::Serve).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    if matches!(world.kind, Kind::Servers(_)) && std::env::var_os("SECKILL_STOCK").is_some() {
        log::warn!("SECKILL_STOCK is for the embedded world; here `seckill seed N` puts units on sale");
    }
    let (drain, origins) = (settings.drain, settings.allowed_origins);
    match run(window, world, buyers, ops, open_files, drain, origins).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failure(&why),
    }
}

async fn run(
    window: Window,
    world: World,
    buyers: TcpListener,
    ops: TcpListener,
    open_files: u64,
    drain: Duration,
    origins: Vec<String>,
) -> Result<(), String> {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).map_err(|error| error.to_string())?;
    let shop = Shop::open(
        Arc::clone(&world.stock),
        Arc::clone(&world.journal),
        Arc::clone(&world.ledger),
        window,
        metrics.clone(),
    );
    let (stop, stopped) = oneshot::channel();
    let recording = background(world.clone(), registry.clone(), async { stopped.await.unwrap_or(Stop::Now) });
    let mut recording = tokio::spawn(recording);
    let mut reopening = tokio::spawn(Reopener::new(&shop, &world, &metrics).run());
    let mut announcing = tokio::spawn(Announcer::new(&shop, &world.stock, &world.journal, &metrics).run());

    let draining = Arc::new(AtomicBool::new(false));
    let ready = {
        let (shop, draining) = (Arc::clone(&shop), Arc::clone(&draining));
        Arc::new(
            move || if draining.load(Ordering::Acquire) { Err("draining".to_owned()) } else { shop.ready() },
        )
    };
    let describe =
        |listener: &TcpListener| listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    log::info!("seckill {version} sells on http://{}, ops on http://{}", describe(&buyers), describe(&ops));
    log::info!("the sale is open {window}");
    if window.before_opening() && std::env::var("SECKILL_OPENS_AT").is_ok_and(|set| set.starts_with('+')) {
        log::warn!(
            "SECKILL_OPENS_AT counts from each start: a restart shuts the sale as long again; give a time"
        );
    }
    let ops = consumer::ops::serve(ops, registry, ready).map_err(|error| error.to_string())?;
    let ops_handle = ops.handle();
    let front =
        http::Front { shop: Arc::clone(&shop), window, metrics, origins, draining: Arc::clone(&draining) };
    let server = http::serve(buyers, front, open_files).map_err(|error| error.to_string())?;
    let server_handle = server.handle();
    let (server, ops) = (tokio::spawn(server), tokio::spawn(ops));

    // A dead part ends the process; buyers in flight get their answer all the same.
    let (mut recorded, ended) = tokio::select! {
        () = terminated() => (None, Ok(())),
        _ = &mut reopening => (None, Err("the reopening of shut sales has died".to_owned())),
        _ = &mut announcing => (None, Err("the outbox's announcer has died".to_owned())),
        ended = &mut recording => (Some(()), Err(match ended {
            Ok(Ok(())) => "the consumer ended of itself".to_owned(),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        })),
    };
    draining.store(true, Ordering::Release);
    if ended.is_ok() && !drain.is_zero() {
        log::info!("stopping in {drain:?}, when balancers have noticed; a second signal stops at once");
        let _ = tokio::time::timeout(drain, terminated()).await;
    }
    log::info!("stopping: buyers in flight get their answer");
    server_handle.stop(true).await;
    let _ = server.await;
    shop.close(CLOSE_WITHIN).await;
    world.journal.flush(FLUSH_WITHIN).await;
    let _ = stop.send(Stop::CaughtUp(CATCH_UP_WITHIN));
    if recorded.take().is_none() && tokio::time::timeout(CATCH_UP_WITHIN, &mut recording).await.is_err() {
        log::warn!("stopped before the ledger had caught up; the next start goes on from there");
    }
    ops_handle.stop(false).await;
    let _ = ops.await;
    ended
}

/// What runs beside the selling, as the world needs it: a watch on Kafka, or the embedded
/// consumer. Ends when it is told to stop, or when it cannot go on.
async fn background(
    world: World,
    registry: Registry,
    stop: impl Future<Output = Stop> + Send + 'static,
) -> Result<(), String> {
    match &world.kind {
        Kind::Servers(journal) => {
            let mut watch = tokio::spawn(Arc::clone(journal).watch());
            let tables = tokio::spawn(make_tables(world.clone()));
            let ended = tokio::select! {
                _ = stop => Ok(()),
                _ = &mut watch => Err("the watch on Kafka has died".to_owned()),
            };
            watch.abort();
            tables.abort();
            ended
        }
        Kind::Embedded(file, _) => {
            let metrics = consumer::metrics::Metrics::new(&registry).map_err(|error| error.to_string())?;
            let reader = SqliteReader::open(file).await.map_err(|error| error.to_string())?;
            let consumer = Consumer::new(Box::new(reader), world.ledger, metrics);
            consumer::run::run(consumer, Health::default(), stop).await.map_err(|error| error.to_string())
        }
    }
}

/// Makes the ledger's tables when nobody has yet: orders are looked up in them.
async fn make_tables(world: World) {
    let mut wait = tokio::time::interval(Duration::from_secs(1));
    let mut said = String::new();
    loop {
        wait.tick().await;
        match world.ledger.migrate().await {
            Ok(()) => return,
            Err(LedgerError::Away(why)) if why == said => {}
            Err(LedgerError::Away(why)) => {
                log::warn!("orders cannot be looked up yet, the ledger is away: {why}");
                said = why;
            }
            Err(error) => return log::error!("orders cannot be looked up: {error}"),
        }
    }
}

/// A listener with room for a whole sale, or a line that names the variable.
fn bind(variable: &str, address: SocketAddr) -> Result<TcpListener, String> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // So that a restart need not wait for the old connections to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        std::io::Result::Ok(socket.into())
    };
    bound().map_err(|error| {
        format!("{variable}={address}: {error}; stop what listens there, or give another address")
    })
}

/// SIGTERM or SIGINT.
async fn terminated() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
