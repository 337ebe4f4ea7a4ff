//! The selling process: its parts, from the first listener to the last flush.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use consumer::reader::sqlite::SqliteReader;
use consumer::recording::run::{Health, Stop};
use consumer::recording::step::Consumer;
use consumer::service::config::{Settings, failure, usage};
use prometheus::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::books::reopen::Reopener;
use crate::clock::now_ms;
use crate::http;
use crate::metrics::Metrics;
use crate::operating::commands;
use crate::sale::Window;
use crate::sale::times::{CATCH_UP_WITHIN, CLOSE_WITHIN, FLUSH_WITHIN};
use crate::selling::ids::{Ids, Key};
use crate::selling::outbox::Announcer;
use crate::selling::shop::Shop;
use crate::stock::Stock;
use crate::world::{Kind, Purpose, World};

/// Connections that may wait to be accepted: a whole sale arrives in one second.
const BACKLOG: i32 = 8192;

/// How often a node registers its key in the ledger, and for how long that counts: longer than a ledger is
/// usually away.
const KEY_NOTED_EVERY: Duration = Duration::from_secs(1);
const KEY_USED_FOR: Duration = Duration::from_secs(60);

/// After a ledger outage every node has registered its key again within this.
const KEY_NOTED_AGAIN_WITHIN: Duration = Duration::from_secs(10);

/// Timeout of a registration.
const KEY_NOTED_WITHIN: Duration = Duration::from_secs(3);

/// How often the stock's settings are checked.
const LOOK_AT_SETTINGS_EVERY: Duration = Duration::from_secs(10);

/// How often the ledger is probed.
const LEDGER_LOOKS_EVERY: Duration = Duration::from_secs(1);

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
    let key = match settings.secrets.key.as_ref().map(Key::of).transpose() {
        Ok(key) => key,
        Err(error) => return usage(&error.0),
    };
    // Every connection is an open file; the shell's usual 1024 is no deliberate limit.
    let open_files = match consumer::service::web::open_files(http::files_needed()) {
        Ok(open_files) => open_files,
        Err(why) => return failure(&why),
    };
    let buyers = match bind("SECKILL_LISTEN", settings.listen) {
        Ok(listener) => listener,
        Err(why) => return failure(&why),
    };
    let ops = match bind("SECKILL_OPS_LISTEN", settings.ops_listen) {
        Ok(listener) => listener,
        Err(why) => return failure(&why),
    };
    let world = match commands::open(&settings, Purpose::Serve).await {
        Ok(world) => world,
        Err(code) => return code,
    };
    if matches!(world.kind, Kind::Servers(_)) && std::env::var_os("SECKILL_STOCK").is_some() {
        log::warn!("SECKILL_STOCK is for the embedded world; here `seckill seed N` puts units on sale");
    }
    let (drain, origins) = (settings.drain, settings.allowed_origins);
    match run(window, world, key, (buyers, ops), open_files, drain, origins).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failure(&why),
    }
}

async fn run(
    window: Window,
    world: World,
    key: Option<Key>,
    (buyers, ops): (TcpListener, TcpListener),
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
    check_ids(shop.ids(), &world, key).await?;
    let (stop, stopped) = oneshot::channel();
    let until = async { stopped.await.unwrap_or(Stop::Now) };
    let recording = background(Arc::clone(&shop), world.clone(), registry.clone(), metrics.clone(), until);
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
    let contract = http::contract(&format!("http://{}", describe(&buyers))).to_json();
    let contract = contract.map_err(|error| error.to_string())?;
    let ops = consumer::service::ops::serve(ops, registry, ready, Some(contract))
        .map_err(|error| error.to_string())?;
    let ops_handle = ops.handle();
    let front =
        http::Front { shop: Arc::clone(&shop), window, metrics, origins, draining: Arc::clone(&draining) };
    let server = http::serve(buyers, front, open_files).map_err(|error| error.to_string())?;
    let server_handle = server.handle();
    let (server, ops) = (tokio::spawn(server), tokio::spawn(ops));

    // A dead part ends the process; attempts in flight still get their answers.
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
        let _ = timeout(drain, terminated()).await;
    }
    log::info!("stopping: buyers in flight get their answer");
    server_handle.stop(true).await;
    let _ = server.await;
    shop.close(CLOSE_WITHIN).await;
    world.journal.flush(FLUSH_WITHIN).await;
    let _ = stop.send(Stop::CaughtUp(CATCH_UP_WITHIN));
    if recorded.take().is_none() && timeout(CATCH_UP_WITHIN, &mut recording).await.is_err() {
        log::warn!("stopped before the ledger had caught up; the next start goes on from there");
    }
    ops_handle.stop(false).await;
    let _ = ops.await;
    ended
}

/// Background work of the world: a watch on every server, or the embedded consumer. Ends on `stop`, or when
/// it cannot go on.
async fn background(
    shop: Arc<Shop>,
    world: World,
    registry: Registry,
    metrics: Metrics,
    stop: impl Future<Output = Stop> + Send + 'static,
) -> Result<(), String> {
    match &world.kind {
        Kind::Servers(journal) => {
            let mut watch = tokio::spawn(Arc::clone(journal).watch());
            let mut beside = JoinSet::new();
            beside.spawn(watch_stock(Arc::clone(&world.stock)));
            beside.spawn(watch_ledger(world.clone(), metrics));
            beside.spawn(async move { keep_key_noted(shop.ids(), &world).await });
            let ended = tokio::select! {
                _ = stop => Ok(()),
                _ = &mut watch => Err("the watch on Kafka has died".to_owned()),
            };
            watch.abort();
            ended
        }
        Kind::Embedded(file, _) => {
            let metrics =
                consumer::recording::metrics::Metrics::new(&registry).map_err(|error| error.to_string())?;
            let reader = SqliteReader::open(file).await.map_err(|error| error.to_string())?;
            let consumer = Consumer::new(Box::new(reader), world.ledger, metrics);
            consumer::recording::run::run(consumer, Health::default(), stop)
                .await
                .map_err(|error| error.to_string())
        }
    }
}

/// Sets up the check of order ids. A file has its own key; on servers the nodes must share one.
async fn check_ids(ids: &Ids, world: &World, key: Option<Key>) -> Result<(), String> {
    let Kind::Embedded(file, _) = &world.kind else {
        match key {
            Some(key) => ids.check_with(key),
            None => log::warn!(
                "no SECKILL_KEY_FILE: every made-up order id that somebody asks for costs queries; see --help"
            ),
        }
        // Registers before the first sale here, so that nodes with another key know in time.
        let noted = timeout(KEY_NOTED_WITHIN, async {
            // The first node of a shop may also be the first to need the tables.
            world.ledger.migrate().await.ok()?;
            note_key(ids, world).await
        });
        let noted = noted.await;
        if noted.is_ok_and(|others| others.is_some_and(|others| others >= now_ms())) {
            log::warn!(
                "other nodes make orders with another key, or without: give all the same SECKILL_KEY_FILE"
            );
            sleep(KEY_NOTED_EVERY * 2).await;
        }
        return Ok(());
    };
    if key.is_some() {
        log::warn!("SECKILL_KEY is for the servers world; here the file has a key of its own");
    }
    let hex = file.order_key().await.map_err(|error| error.to_string())?;
    ids.check_with(Key::from_hex(&hex).ok_or("the file's order_key is not 32 hex digits")?);
    // No other process makes orders in this file.
    let others = world.ledger.keys(&ids.name(), now_ms()).await;
    ids.all_checked_after(others.map_err(|error| error.to_string())?);
    Ok(())
}

/// Keeps the key registered. While the ledger is away nodes with another key cannot register: then, and until
/// all have had time to, no order counts as forged.
async fn keep_key_noted(ids: &Ids, world: &World) {
    let mut broken = None;
    loop {
        // A hanging ledger counts as away: other nodes must not wait longer for this one.
        if !timeout(KEY_NOTED_WITHIN, note_key(ids, world)).await.is_ok_and(|noted| noted.is_some()) {
            broken = Some(Instant::now());
        }
        if broken.is_some_and(|at| at.elapsed() < KEY_NOTED_AGAIN_WITHIN) {
            ids.all_checked_after(i64::MAX);
        }
        sleep(KEY_NOTED_EVERY).await;
    }
}

/// Registers this node's key, or its lack of one, for all nodes; reads until when other nodes use another.
async fn note_key(ids: &Ids, world: &World) -> Option<i64> {
    let used_for = i64::try_from(KEY_USED_FOR.as_millis()).unwrap_or_default();
    let others = world.ledger.keys(&ids.name(), now_ms() + used_for).await.ok()?;
    ids.all_checked_after(others);
    Some(others)
}

/// Creates the ledger's tables if missing, then watches whether it answers: selling goes on without it, but
/// order lookups and the opening of shut sales need it.
async fn watch_ledger(world: World, metrics: Metrics) {
    let mut looks = tokio::time::interval(LEDGER_LOOKS_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut made, mut said) = (false, None);
    loop {
        looks.tick().await;
        let asked = if made {
            world.ledger.checkpoints(world.journal.topic()).await.map(drop)
        } else {
            world.ledger.migrate().await
        };
        if asked.is_ok() && !made {
            made = true;
            for broken in world.ledger.broken_promises().await.unwrap_or_default() {
                log::warn!("{broken}");
            }
        }
        let why = asked.err().map(|error| error.to_string());
        metrics.ledger_away.set(i64::from(why.is_some()));
        if why != said {
            match &why {
                Some(why) => log::warn!("orders cannot be looked up, nor shut sales opened: {why}"),
                None => log::info!("the ledger answers"),
            }
            said = why;
        }
    }
}

/// Logs which settings of the stock put reported sales at risk, once each: at the start, and when a failover
/// or a new replica changes them.
async fn watch_stock(stock: Arc<dyn Stock>) {
    let mut looks = tokio::time::interval(LOOK_AT_SETTINGS_EVERY);
    let mut said = Vec::new();
    loop {
        looks.tick().await;
        // Away: the tills report that.
        let Ok(broken) = stock.broken_promises().await else { continue };
        broken.iter().filter(|it| !said.contains(*it)).for_each(|it| log::warn!("redis: {it}"));
        said = broken;
    }
}

/// A listener with room for a whole sale, or an error that names the variable.
fn bind(variable: &str, address: SocketAddr) -> Result<TcpListener, String> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // So that a restart need not wait for old connections in TIME_WAIT.
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

/// Waits for SIGTERM or SIGINT.
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
