//! Requests, well formed and not, to the server that buyers speak to.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bolero::{TypeGenerator, check};
use consumer::ledger::sqlite::SqliteLedger;
use consumer::sqlite::SqliteFile;
use prometheus::Registry;
use seckill::http::{Front, serve};
use seckill::journal::sqlite::SqliteJournal;
use seckill::metrics::Metrics;
use seckill::sale::{Item, Window};
use seckill::selling::shop::Shop;
use seckill::stock::Stock;
use seckill::stock::memory::MemoryStock;
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

/// More than all inputs of a long run can buy.
const UNITS: u64 = 1_000_000_000;

/// A shop that sells from one file, served on a port of its own.
pub struct Served {
    pub address: SocketAddr,
    stock: Arc<MemoryStock>,
    runtime: tokio::runtime::Runtime,
    pub registry: Registry,
    _folder: TempDir,
}

impl Served {
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let registry = Registry::new();
        let stock = runtime.block_on(async {
            let file = SqliteFile::open(&folder.path().join("sale.db"), true).await.unwrap();
            let journal = Arc::new(SqliteJournal::new(file.clone()));
            let stock = Arc::new(MemoryStock::open(Arc::clone(&journal)).await.unwrap());
            stock.seed(&Item::default(), UNITS, Uuid::now_v7()).await.unwrap();
            let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
            let metrics = Metrics::register(&registry).unwrap();
            let (window, sold) = (Window::default(), Arc::<MemoryStock>::clone(&stock));
            let shop = Shop::open(sold, journal, ledger, window, metrics.clone());
            shop.tills()[0].refreshed().await;
            let origins = vec!["https://shop.example".into()];
            let front = Front { shop, window, metrics, origins, draining: Arc::default() };
            tokio::spawn(serve(listener, front, 4096).unwrap());
            stock
        });
        Self { address, stock, runtime, registry, _folder: folder }
    }

    /// Sends these bytes, then nothing more, and returns all that comes back.
    pub fn send(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // A server that has refused already may have closed.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&answer)),
        }
        answer
    }

    pub fn sold(&self) -> u64 {
        self.runtime.block_on(self.stock.books(&Item::default())).unwrap()[0].serial
    }
}

/// One answer: its status, its headers in lower case, its body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn is(&self, kind: &str) -> bool {
        self.head.contains(&format!("content-type: {kind}"))
    }

    /// What every answer keeps: the shape that its status has.
    fn check(&self, head_only: bool) -> Value {
        assert!(self.status < 500, "{} {}", self.head, self.body);
        if head_only {
            return Value::Null;
        }
        if self.status == 204 {
            assert!(self.head.contains("allow: "), "{}", self.head);
            return Value::Null;
        }
        if self.status < 300 && !self.is("application/json") {
            assert!(
                ["text/html", "text/css", "text/javascript", "image/svg+xml"]
                    .iter()
                    .any(|kind| self.is(kind))
            );
            return Value::Null;
        }
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body));
        if self.status >= 300 {
            assert!(self.is("application/problem+json; charset=utf-8"), "{}", self.head);
            assert_eq!(body["status"], self.status);
            assert!(body["code"].is_string() && body["messages"].is_string(), "{body}");
        }
        body
    }
}

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "BREW"];
const PATHS: [&str; 9] = [
    "/",
    "/app.js",
    "/seckill/seckill",
    "/seckill/getCount",
    "/seckill/orders/01970000-0000-7000-8000-000000000001",
    "/seckill/orders/",
    "/seckill/seckill/",
    "/metrics",
    "//..%2f",
];
const QUERIES: [&str; 5] = ["item=counter", "item=", "item=shoe", "item", "item=a&item=b"];
const HEADERS: [&str; 9] = [
    "Idempotency-Key",
    "Idempotency-Key",
    "Accept-Language",
    "Content-Type",
    "Accept-Encoding",
    "If-None-Match",
    "Range",
    "Cookie",
    "X-Forwarded-For",
];

/// A request that is one as far as its lines go, with anything in them.
#[derive(Debug, TypeGenerator)]
struct Request {
    method: u8,
    path: u8,
    more_path: Option<Vec<u8>>,
    query: Option<u8>,
    more_query: Option<Vec<u8>>,
    headers: Vec<(u8, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

impl Request {
    fn method(&self) -> &'static str {
        METHODS[usize::from(self.method) % METHODS.len()]
    }

    /// Whether it means to buy the default item, whatever else stands in it.
    fn buys(&self) -> bool {
        self.method() == "POST"
            && PATHS[usize::from(self.path) % PATHS.len()] == "/seckill/seckill"
            && self.more_path.as_ref().is_none_or(|more| target(more).is_empty())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            format!("{} {}", self.method(), PATHS[usize::from(self.path) % PATHS.len()]).into_bytes();
        bytes.extend(self.more_path.as_deref().map(target).unwrap_or_default());
        if let Some(query) = self.query {
            bytes.push(b'?');
            bytes.extend(QUERIES[usize::from(query) % QUERIES.len()].as_bytes());
        }
        if let Some(more) = &self.more_query {
            bytes.extend(if self.query.is_some() { b"&" } else { b"?" });
            bytes.extend(target(more));
        }
        bytes.extend(b" HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n");
        for (name, value) in &self.headers {
            bytes.extend(HEADERS[usize::from(*name) % HEADERS.len()].as_bytes());
            bytes.extend(b": ");
            bytes.extend(value.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
            bytes.extend(b"\r\n");
        }
        if let Some(body) = &self.body {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
            bytes.extend(body);
        } else {
            bytes.extend(b"\r\n");
        }
        bytes
    }
}

/// What can stand in the first line without ending a part of it.
fn target(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n' | b' ' | b'?' | b'#')).collect()
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(Served::start)
}

/// Both in one test: they count the units of one shop.
#[test]
fn a_request_is_answered_in_our_words_and_costs_nothing_unless_it_buys() {
    check!().with_type::<Request>().with_iterations(3000).for_each(|request| {
        let shop = served();
        let before = shop.sold();
        let bytes = request.bytes();
        let answer = Answer::read(&shop.send(&bytes));
        let body = answer.check(request.method() == "HEAD");
        let taken = shop.sold() - before;
        if taken > 0 {
            assert!(request.buys() && taken == 1, "{taken} taken by {}", String::from_utf8_lossy(&bytes));
        }
        if body["code"] == "success" {
            assert!(body["order"].is_string() && body["num"].is_u64(), "{body}");
        } else {
            assert_eq!(taken, 0, "{body}");
        }
    });
    let before = served().sold();
    let plain = b"POST /seckill/seckill HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    assert_eq!(Answer::read(&served().send(plain)).check(false)["code"], "success", "the shop sells");
    assert_eq!(served().sold(), before + 1);
}

/// Bytes that need not be HTTP: parts of requests, in any order, with anything between them.
#[derive(Debug, TypeGenerator)]
enum Piece {
    Known(u8),
    Bytes(Vec<u8>),
}

const PIECES: [&str; 22] = [
    "GET / HTTP/1.1\r\n",
    "POST /seckill/seckill HTTP/1.1\r\n",
    "GET /seckill/getCount HTTP/1.0\r\n",
    "Host: shop\r\n",
    "\r\n",
    "\r\n\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: -1\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, identity\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: h2c\r\nConnection: Upgrade\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "Idempotency-Key: a\r\nIdempotency-Key: b\r\n",
    "Idempotency-Key: \u{540d}\r\n",
    "GET http://elsewhere/ HTTP/1.1\r\n",
    "CONNECT shop:443 HTTP/1.1\r\n",
    "X: y\r\n z\r\n",
];

#[test]
fn bytes_that_are_no_request_harm_nobody() {
    check!().with_type::<Vec<Piece>>().with_iterations(3000).for_each(|pieces| {
        static ANOTHER: OnceLock<Served> = OnceLock::new();
        let shop = ANOTHER.get_or_init(Served::start);
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Known(which) => PIECES[usize::from(*which) % PIECES.len()].as_bytes(),
                Piece::Bytes(bytes) => bytes,
            })
            .copied()
            .collect();
        let before = shop.sold();
        let answer = shop.send(&bytes);
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains("HTTP/1.1 5"), "{text}");
        if !answer.is_empty() && !text.starts_with("HTTP/1.1 1") {
            assert!(text.starts_with("HTTP/1."), "{text}");
        }
        let asked = bytes.windows(21).filter(|part| part == b"POST /seckill/seckill").count() as u64;
        assert!(shop.sold() - before <= asked, "{}", String::from_utf8_lossy(&bytes));
        let well = Answer::read(
            &shop.send(b"GET /seckill/getCount HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"),
        );
        assert_eq!(well.check(false)["state"], "open", "the rest goes on");
    });
}
