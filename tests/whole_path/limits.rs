//! HTTP limits, by raw socket against the program, and its memory under very many clients.

use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::buyers::{all_different, buy, client, told};
use crate::process::{Process, command, free_port, until};
use crate::world::{Embedded, Node, Servers, get};

/// Resident memory of the service with 10,000 idle connections and 5,000 waiting attempts. Measured: 229 MiB
/// at most, 126 MiB with the idle ones alone; the rest is headroom.
const MEMORY_KB: u64 = 384 * 1024;

const IDLE: usize = 10_000;
const WAITING: usize = 5_000;

/// Longer than any slow-client timeout.
const PATIENCE: Duration = Duration::from_secs(25);

const BUY: &str = "POST /seckill/seckill HTTP/1.1\r\nHost: x\r\n";
const COUNT: &str = "GET /seckill/getCount HTTP/1.1\r\nHost: x\r\n\r\n";

async fn connect(url: &str) -> TcpStream {
    TcpStream::connect(url.trim_start_matches("http://")).await.unwrap()
}

/// Reads until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer counts as a close.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection is closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One answer on a keep-alive connection: status and body.
async fn answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut bytes = Vec::new();
    let text = timeout(PATIENCE, async {
        loop {
            let mut some = [0; 2048];
            let read = stream.read(&mut some).await.unwrap();
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&some[..read]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.to_lowercase();
            let length = length.split("content-length: ").nth(1).unwrap().lines().next().unwrap().to_owned();
            if body.len() >= length.parse::<usize>().unwrap() {
                return text.into_owned();
            }
        }
    })
    .await
    .expect("an answer");
    parse(&text)
}

fn parse(text: &str) -> (u16, Value) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

/// Sends a request at once; returns the answer, after which the connection must close.
async fn refused(url: &str, request: &[u8]) -> (u16, Value) {
    let mut stream = connect(url).await;
    let (mut reader, mut writer) = stream.split();
    let request = request.to_vec();
    let mut bytes = Vec::new();
    // It may be refused and closed before all of it is sent.
    let _ =
        timeout(PATIENCE, async { tokio::join!(writer.write_all(&request), reader.read_to_end(&mut bytes)) })
            .await
            .expect("the connection is closed");
    parse(&String::from_utf8_lossy(&bytes))
}

/// Sends `piece` repeatedly until the other side gives up; returns its answer, and when.
async fn dripped(url: &str, first: &str, piece: &str, every: Duration) -> (String, Duration) {
    let stream = connect(url).await;
    let (mut reader, mut writer) = stream.into_split();
    let began = Instant::now();
    let (first, piece) = (first.to_owned(), piece.to_owned());
    let dripping = tokio::spawn(async move {
        let _ = writer.write_all(first.as_bytes()).await;
        while writer.write_all(piece.as_bytes()).await.is_ok() {
            sleep(every).await;
        }
    });
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, reader.read_to_end(&mut bytes)).await.expect("the connection is closed");
    let took = began.elapsed();
    dripping.abort();
    (String::from_utf8_lossy(&bytes).into_owned(), took)
}

/// A line of `/proc/PID/status`, in KiB.
fn memory_kb(node: &Node, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The service's soft and hard limits of open files.
fn open_files(node: &Node) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.process.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large() {
    let world = Embedded::new(5);
    let node = world.node(&[]).await;
    let large = "x".repeat(100_000);

    let body = format!("{BUY}Content-Length: {}\r\n\r\n{large}", large.len());
    let (status, problem) = refused(&node.url, body.as_bytes()).await;
    assert_eq!((status, &problem["code"], &problem["status"]), (413, &"too_large".into(), &413.into()));
    assert!(problem["messages"].is_string());

    let (status, problem) =
        refused(&node.url, format!("{BUY}Content-Length: 99999999999999999999999\r\n\r\n").as_bytes()).await;
    assert!(status == 400 || status == 413, "{status} {problem}");

    // Every chunk is small, their sum is not, and there is no end.
    let chunks = format!("{BUY}Transfer-Encoding: chunked\r\n\r\n");
    let (said, _) =
        dripped(&node.url, &chunks, &format!("400\r\n{}\r\n", &large[..1024]), Duration::from_millis(5))
            .await;
    let (status, problem) = parse(&said);
    assert_eq!((status, &problem["code"]), (413, &"too_large".into()), "{said}");

    // A complete head, an incomplete one, and one with very many headers.
    let head = format!("{BUY}X: {}\r\n\r\n", &large[..20_000]);
    let (status, problem) = refused_or_kept(&node.url, head.as_bytes()).await;
    assert_eq!((status, &problem["code"]), (431, &"too_large".into()));
    let target = format!("POST /seckill/seckill?{} HTTP/1.1\r\nHost: x\r\n\r\n", &large[..20_000]);
    assert_eq!(refused_or_kept(&node.url, target.as_bytes()).await.0, 431);
    let endless = format!("{BUY}X: {}", "x".repeat(200_000));
    assert_eq!(refused(&node.url, endless.as_bytes()).await.0, 431);
    let many = format!("{BUY}{}\r\n", "X: y\r\n".repeat(200));
    assert_eq!(refused(&node.url, many.as_bytes()).await.0, 431);
    assert_eq!(refused(&node.url, b"nonsense\r\n\r\n").await.0, 400);

    // The ops listener has the same limits.
    let body = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{large}", large.len());
    assert_eq!(refused(&node.ops, body.as_bytes()).await.0, 413);

    assert!(
        node.process.log().lines().count() < 10,
        "no line for what clients do wrong: {}",
        node.process.log()
    );
    // A small body is read and ignored, and the connection stays open.
    let mut stream = connect(&node.url).await;
    let mut orders = Vec::new();
    for request in [
        format!("{BUY}Content-Length: 2\r\n\r\n{{}}"),
        format!("{BUY}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let (status, body) = answer(&mut stream).await;
        assert_eq!((status, &body["code"]), (200, &"success".into()));
        orders.push(body["order"].as_str().unwrap().to_owned());
    }
    world.balance(&orders, 2).await;
}

/// Like [`refused`], for fully read requests: the connection may stay.
async fn refused_or_kept(url: &str, request: &[u8]) -> (u16, Value) {
    let mut stream = connect(url).await;
    stream.write_all(request).await.unwrap();
    answer(&mut stream).await
}

/// Slow loris: a header a second, a body byte a second, a chunk a second after the answer, and a second
/// request on an idle connection: each is closed, while others are served.
#[tokio::test(flavor = "multi_thread")]
async fn too_slow() {
    let world = Embedded::new(5);
    let node = world.node(&[]).await;
    let second = Duration::from_secs(1);
    let length = format!("{BUY}Content-Length: 1000\r\n\r\n");
    let chunked = format!("{BUY}Transfer-Encoding: chunked\r\n\r\n");
    let after = format!("{chunked}fff\r\n{}\r\nfff\r\n{}\r\n", "x".repeat(0xfff), "x".repeat(0xfff));
    let again = format!("{COUNT}{BUY}");
    let silent = Duration::from_secs(60);
    let (head, body, chunks, drained, second_head, nothing, ops) = tokio::join!(
        dripped(&node.url, BUY, "X: y\r\n", second),
        dripped(&node.url, &length, "x", second),
        dripped(&node.url, &chunked, "1\r\nx\r\n", second),
        dripped(&node.url, &after, "1\r\nx\r\n", second),
        dripped(&node.url, &again, "X: y\r\n", second),
        dripped(&node.url, "", "", silent),
        dripped(&node.ops, "GET /metrics HTTP/1.1\r\nHost: x\r\n", "X: y\r\n", second),
    );
    for ((said, took), status) in
        [(&head, 408), (&body, 408), (&chunks, 408), (&drained, 413), (&nothing, 408), (&ops, 408)]
    {
        assert_eq!(parse(said).0, status, "after {took:?}: {said}");
    }
    assert_eq!(parse(&body.0).1["code"], "too_slow");
    assert_eq!(parse(&chunks.0).1["code"], "too_slow");
    // The first request was answered, and the second never completed.
    assert!(second_head.0.starts_with("HTTP/1.1 200"), "{second_head:?}");
    assert_eq!(second_head.0.matches("HTTP/1.1").count(), 1, "{second_head:?}");

    let bought = buy(&client(), &node.buy_url(), None).await;
    assert_eq!(bought.code, "success");
    world.balance(&told(&[bought]), 1).await;
}

/// A client that sends requests but never reads is dropped, with its requests.
#[tokio::test(flavor = "multi_thread")]
async fn never_read() {
    let world = Embedded::new(5);
    let node = world.node(&[]).await;
    let mut stream = connect(&node.url).await;
    let requests = COUNT.repeat(1000);
    let ended = timeout(Duration::from_secs(60), async {
        while stream.write_all(requests.as_bytes()).await.is_ok() {}
    });
    ended.await.expect("the connection is closed");
    assert!(memory_kb(&node, "VmHWM") < MEMORY_KB);
    assert_eq!(node.state().await, "open");
    world.balance(&[], 0).await;
}

/// Pipelined requests are answered in order; a connection reset within a request, or before its answer,
/// leaves nothing behind but perhaps a sale.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_and_reset() {
    let world = Embedded::new(1000);
    let node = world.node(&[]).await;
    let mut stream = connect(&node.url).await;
    let attempts: String = (0..40).map(|number| format!("{BUY}Idempotency-Key: p{number}\r\n\r\n")).collect();
    stream.write_all(attempts.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answers = rest(&mut stream).await;
    let orders: Vec<String> = answers
        .split("\"order\":\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert_eq!(orders.len(), 40, "{answers}");
    all_different(&orders);

    for number in 0..200 {
        let mut stream = connect(&node.url).await;
        let whole = format!("{BUY}Idempotency-Key: r{number}\r\n\r\n");
        let part = if number % 2 == 0 { &whole[..40] } else { &whole };
        stream.write_all(part.as_bytes()).await.unwrap();
        // An abortive close: the other side sees a reset.
        stream.set_zero_linger().unwrap();
    }
    // A retry after the reset gets the existing order.
    let mut stream = connect(&node.url).await;
    let mut asked_again = Vec::new();
    for number in 0..200 {
        stream.write_all(format!("{BUY}Idempotency-Key: r{number}\r\n\r\n").as_bytes()).await.unwrap();
        asked_again.push(answer(&mut stream).await.1["order"].as_str().unwrap().to_owned());
    }
    let all = [orders, asked_again].concat();
    world.balance(&all, 240).await;
}

/// 10,000 idle connections and 5,000 attempts that wait for a locked file: the process answers others, stays
/// within its memory, and answers them too.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_and_five_thousand_waiting() {
    let needed = (IDLE + WAITING + 1000) as u64;
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        files >= needed,
        "this test needs {needed} open files, and the hard limit is {files}: ulimit -Hn"
    );
    let world = Embedded::new(100_000);
    let node = world.node(&[]).await;
    let (soft, hard) = open_files(&node);
    assert_eq!(soft, hard, "the soft limit is raised to the hard one");
    let fresh = memory_kb(&node, "VmRSS");

    let mut idle = connected(&node.url, IDLE).await;
    let with_idle = memory_kb(&node, "VmRSS");

    let bought = buy(&client(), &node.buy_url(), None).await;
    assert_eq!(bought.code, "success", "beside the idle ones");

    let mut waiting = connected(&node.url, WAITING).await;
    let lock = world.lock().await;
    for (number, stream) in waiting.iter_mut().enumerate() {
        let key = "k".repeat(50);
        stream.write_all(format!("{BUY}Idempotency-Key: {key}-{number}\r\n\r\n").as_bytes()).await.unwrap();
    }
    // Other requests are answered while they wait.
    assert_eq!(get(&format!("{}/seckill/getCount", node.url)).await.0, 200);
    assert_ne!(get(&format!("{}/readyz", node.ops)).await.0, 0);
    let mut early = 0;
    for stream in &waiting {
        early += usize::from(answered(stream).await);
    }
    assert!(early < WAITING / 10, "{early} of them do not wait");
    lock.unlock().await;

    let mut orders: Vec<String> = bought.order.into_iter().collect();
    let (mut pending, mut refused) = (0, 0);
    for stream in &mut waiting {
        let (status, body) = answer(stream).await;
        match body["code"].as_str().unwrap() {
            "success" => orders.push(body["order"].as_str().unwrap().to_owned()),
            // Sold, but the lock was held too long to confirm it.
            "pending" => pending += 1,
            "busy" | "unavailable" => refused += 1,
            other => panic!("{status} {other}"),
        }
    }
    let bought = buy(&client(), &node.buy_url(), None).await;
    assert_eq!(bought.code, "success");
    orders.extend(bought.order);
    // The idle connections are still served.
    for stream in idle.iter_mut().step_by(500) {
        stream.write_all(COUNT.as_bytes()).await.unwrap();
        assert_eq!(answer(stream).await.0, 200);
    }
    let peak = memory_kb(&node, "VmHWM");
    eprintln!(
        "{fresh} KiB fresh, {with_idle} with {IDLE} idle, {peak} at most; {pending} pending, {refused} refused"
    );
    assert!(peak < MEMORY_KB, "{peak} KiB");
    let sold = 100_000 - usize::try_from(node.count("").await["num"].as_u64().unwrap()).unwrap();
    assert!((orders.len()..=orders.len() + pending).contains(&sold), "{sold} sold, {} told", orders.len());
    world.balance(&orders, sold).await;
}

/// Connections after one request each, idle from then on.
async fn connected(url: &str, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut some = Vec::new();
        for _ in 0..250 {
            let mut stream = connect(url).await;
            stream.write_all(COUNT.as_bytes()).await.unwrap();
            some.push(stream);
        }
        for stream in &mut some {
            assert_eq!(answer(stream).await.0, 200);
        }
        all.extend(some);
    }
    all
}

/// Whether data has arrived; it stays in the buffer.
async fn answered(stream: &TcpStream) -> bool {
    let mut byte = [0; 1];
    let peek =
        std::future::poll_fn(|cx| Poll::Ready(stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)).is_ready()));
    // tokio's budget allows only 128 polls per task, then nothing looks ready.
    tokio::task::unconstrained(peek).await
}

/// A process with few open files reserves some: excess buyers wait to be accepted, and it keeps working.
#[tokio::test(flavor = "multi_thread")]
async fn more_buyers_than_open_files() {
    const FILES: usize = 700;
    const KEPT: usize = 512;
    let world = Embedded::new(5);
    let (listen, ops) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let mut env = world.env.clone();
    env.push(("SECKILL_LISTEN".into(), listen.clone()));
    env.push(("SECKILL_OPS_LISTEN".into(), ops.clone()));
    let plain = command("seckill", &env, &["serve"], world.folder.path());
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {FILES} && exec \"$0\" \"$@\"")]);
    limited.arg(plain.get_program()).args(plain.get_args()).current_dir(world.folder.path());
    limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    for (name, _) in plain.get_envs().filter(|(_, value)| value.is_none()) {
        limited.env_remove(name);
    }
    let _process = Process::start("seckill", limited, &world.folder.path().join("seckill.log"));
    let (url, ops) = (format!("http://{listen}"), format!("http://{ops}"));
    until("the service is ready", Duration::from_secs(10), async || crate::world::ready(&ops).await).await;

    let workers = std::thread::available_parallelism().unwrap().get();
    let room = (FILES - KEPT) / workers * workers;
    let mut buyers = Vec::new();
    for _ in 0..2 * FILES {
        let mut buyer = connect(&url).await;
        buyer.write_all(COUNT.as_bytes()).await.unwrap();
        buyers.push(buyer);
    }
    let served = async |buyers: &[TcpStream]| {
        let mut served = 0;
        for buyer in buyers {
            served += usize::from(answered(buyer).await);
        }
        served
    };
    until("there is no more room", Duration::from_secs(10), async || served(&buyers).await >= room).await;
    // The ops listener has its own, and the file can still be opened and written.
    assert_eq!(get(&format!("{ops}/readyz")).await.0, 200);
    assert!(world.operate(&["seed", "--add", "1"]).status.success());
    assert_eq!(served(&buyers).await, room, "the others wait");
    // Served clients leave, and the others are accepted.
    until("all are served", Duration::from_secs(20), async || {
        let mut waiting = Vec::new();
        for buyer in std::mem::take(&mut buyers) {
            if !answered(&buyer).await {
                waiting.push(buyer);
            }
        }
        buyers = waiting;
        buyers.is_empty()
    })
    .await;
    let bought = buy(&client(), &format!("{url}/seckill/seckill"), None).await;
    assert_eq!(bought.body["num"], 5, "one more than it began with, and one sold");
    world.balance(&told(&[bought]), 1).await;
}

/// Made-up items and orders cost no key, no metric and no till.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers"]
async fn names_made_up_by_clients_leave_nothing() {
    let mut servers = Servers::prepare();
    servers.start_redis().await;
    servers.make_database().await;
    let node = servers.ready_node(&[]).await;
    servers.redis::<()>(&["SET", "counter", "10"]).await;
    node.reaches("open", Duration::from_secs(2)).await;
    let metrics = async || {
        let url = format!("{}/metrics", node.ops);
        client().get(url).send().await.unwrap().text().await.unwrap().lines().count()
    };
    let bought = buy(&client(), &node.buy_url(), Some("one")).await;
    until("it is settled and looked after", Duration::from_secs(5), async || {
        servers.redis::<i64>(&["HLEN", "{counter}:outbox"]).await == 0
            && servers.redis::<bool>(&["EXISTS", "seckill:items"]).await
    })
    .await;
    let (lines, keys): (usize, i64) = (metrics().await, servers.redis(&["DBSIZE"]).await);
    let mut stream = connect(&node.url).await;
    for number in 0..5_000 {
        let request = format!("GET /seckill/getCount?item=made-up-{number} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await.1["state"], "not_on_sale");
        let request = format!("GET /seckill/orders/{} HTTP/1.1\r\nHost: x\r\n\r\n", uuid::Uuid::now_v7());
        if number % 50 == 0 {
            stream.write_all(request.as_bytes()).await.unwrap();
            assert_eq!(answer(&mut stream).await.1["status"], "pending");
        }
    }
    assert_eq!(metrics().await, lines);
    assert_eq!(servers.redis::<i64>(&["DBSIZE"]).await, keys);
    let _consumer = servers.consumer();
    until("the sale is settled", Duration::from_secs(20), async || servers.rows().await == 1).await;
    servers.balance(&told(&[bought]), 1).await;
}
