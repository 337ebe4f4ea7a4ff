//! Messages that are no sales, between those that are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bolero::{TypeGenerator, check};
use consumer::ledger::sqlite::SqliteLedger;
use consumer::ledger::{Ledger as _, Message, Record};
use consumer::progress::{Checkpoints, Extent, Extents};
use consumer::reader::{Read, Reader, ReaderError};
use consumer::recording::metrics::Metrics;
use consumer::recording::step::{Consumer, Step};
use consumer::sale::Sale;
use consumer::sqlite::{SqliteFile, Synchronous};
use prometheus::Registry;
use sqlx::Row as _;
use tempfile::TempDir;
use uuid::Uuid;

#[test]
fn a_message_is_a_sale_or_an_error() {
    check!().with_iterations(100_000).for_each(|bytes: &[u8]| {
        let _ = Sale::from_json(bytes);
    });
}

/// A message with the members of a sale, some of them odd or missing.
#[derive(Debug, Clone, TypeGenerator)]
enum Odd {
    Bytes(Vec<u8>),
    Sale { serial: u8, order: u8, spoiled: Option<(u8, u8)> },
    Cut(u8),
}

const MEMBERS: [&str; 10] =
    ["order", "item", "epoch", "term", "serial", "remaining", "attempt", "buyer", "soldAt", "coupon"];

fn odd_values() -> Vec<serde_json::Value> {
    use serde_json::json;
    vec![
        json!(null),
        json!(""),
        json!("x"),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(i64::MAX),
        json!([]),
        json!({}),
        json!("a".repeat(129)),
        json!("a".repeat(70_000)),
        json!("nul\u{0}nul"),
        json!("\u{1F45F}"),
        json!("counter\n"),
        json!("-009999-01-02T01:59:59Z"),
        json!("9999-12-30T22:00:00.999999999Z"),
        json!("0000-01-01T00:00:00Z"),
        json!("2026-01-02T03:04:05+08:00"),
        json!("00000000-0000-0000-0000-000000000000"),
    ]
}

impl Odd {
    fn message(&self, epoch: Uuid) -> Vec<u8> {
        let order = |number: u8| Uuid::from_u128(epoch.as_u128() ^ u128::from(number) << 64);
        let sale = |serial: u8, number: u8| {
            serde_json::json!({
                "order": order(number), "item": "counter", "epoch": epoch, "term": 0,
                "serial": u64::from(serial) + 1, "remaining": 255 - serial, "attempt": null, "buyer": null,
                "soldAt": "2026-01-02T03:04:05.000006Z",
            })
        };
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Cut(at) => {
                let whole = sale(*at, *at).to_string().into_bytes();
                whole[..usize::from(*at).min(whole.len())].to_vec()
            }
            Self::Sale { serial, order, spoiled } => {
                let mut sale = sale(*serial, *order);
                if let Some((member, value)) = spoiled {
                    let values = odd_values();
                    let members = sale.as_object_mut().unwrap();
                    let member = MEMBERS[usize::from(*member) % MEMBERS.len()];
                    match values.get(usize::from(*value) % (values.len() + 1)) {
                        Some(value) => members.insert(member.to_owned(), value.clone()),
                        None => members.remove(member),
                    };
                }
                sale.to_string().into_bytes()
            }
        }
    }
}

/// What is to be read, once.
struct Given {
    topic: String,
    reads: VecDeque<Read>,
    end: i64,
}

#[async_trait]
impl Reader for Given {
    fn topic(&self) -> &str {
        &self.topic
    }

    async fn read(&mut self, _max: usize, _wait: Duration) -> Result<Read, ReaderError> {
        Ok(self.reads.pop_front().unwrap_or(Read::Quiet))
    }

    async fn start(&mut self, _from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError> {
        Ok(BTreeMap::new())
    }

    async fn report(&mut self, _next: &BTreeMap<i32, i64>) {}

    async fn extents(&mut self) -> Result<Extents, ReaderError> {
        Ok(BTreeMap::from([(0, Extent { start: 0, end: self.end })]))
    }
}

/// A ledger in a file.
struct Books {
    runtime: tokio::runtime::Runtime,
    file: SqliteFile,
    ledger: Arc<SqliteLedger>,
    metrics: Metrics,
    _folder: TempDir,
}

impl Books {
    fn open() -> Self {
        let folder = TempDir::new().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (file, ledger) = runtime.block_on(async {
            let file = SqliteFile::open(&folder.path().join("books.db"), true).await.unwrap();
            let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
            (file, ledger)
        });
        Self { runtime, file, ledger, metrics: Metrics::new(&Registry::new()).unwrap(), _folder: folder }
    }
}

/// Every message is a row, a duplicate, a conflict or a dead letter with its bytes and its error;
/// a sale after it is recorded, and the checkpoint passes all of them.
#[test]
fn the_consumer_passes_what_it_cannot_read_and_keeps_it() {
    check!().with_type::<Vec<Odd>>().with_iterations(300).for_each(|odd| {
        static BOOKS: OnceLock<Books> = OnceLock::new();
        let books = BOOKS.get_or_init(Books::open);
        let (epoch, topic) = (Uuid::now_v7(), Uuid::now_v7().to_string());
        let last = Sale {
            order: Uuid::now_v7(),
            item: "shoe".into(),
            epoch,
            term: 0,
            serial: 1,
            remaining: 0,
            attempt: None,
            buyer: None,
            sold_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        let mut values: Vec<Vec<u8>> = odd.iter().map(|odd| odd.message(epoch)).collect();
        values.push(last.to_json().unwrap());
        let messages: Vec<Message> =
            (0..).zip(&values).map(|(offset, value)| Message { offset, value: value.clone() }).collect();
        let reader = Given {
            topic: topic.clone(),
            end: messages.len() as i64,
            reads: [Read::Assigned(vec![0]), Read::Messages(BTreeMap::from([(0, messages)]))].into(),
        };
        books.runtime.block_on(async {
            let ledger = Arc::<SqliteLedger>::clone(&books.ledger);
            let mut consumer = Consumer::new(Box::new(reader), ledger, books.metrics.clone());
            assert_eq!(consumer.step().await.unwrap(), Step::Started(vec![0]));
            let Step::Posted(posted) = consumer.step().await.unwrap() else { panic!("not posted") };
            let told = posted.new + posted.duplicate + posted.conflict + posted.late + posted.dead_letter;
            assert_eq!(told as usize, values.len(), "each is one of them: {posted:?}");
            assert!(books.ledger.find(last.order).await.unwrap().is_some(), "the rest goes on");
            assert_eq!(books.ledger.checkpoints(&topic).await.unwrap()[&0].next, values.len() as i64);

            let mut connection = books.file.connect(Synchronous::Normal).await.unwrap();
            let letters =
                sqlx::query("select `offset`, bytes, error from seckill_dead_letter where topic = ?")
                    .bind(&topic)
                    .fetch_all(&mut connection)
                    .await
                    .unwrap();
            let mut kept = BTreeSet::new();
            for letter in &letters {
                let offset: i64 = letter.get(0);
                assert_eq!(letter.get::<Vec<u8>, _>(1), values[offset as usize]);
                assert!(!letter.get::<String, _>(2).is_empty());
                kept.insert(offset);
            }
            for (offset, value) in (0..).zip(&values) {
                assert!(
                    Sale::from_json(value).is_ok() || kept.contains(&offset),
                    "lost: {}",
                    String::from_utf8_lossy(value)
                );
            }
            // What stands in the books can be read again.
            for sale in books.ledger.sales(None).await.unwrap().iter().filter(|sale| sale.epoch == epoch) {
                books.ledger.winners(&sale.item, epoch, 0, u64::MAX).await.unwrap();
                books.ledger.account(&sale.item, epoch).await.unwrap();
            }
        });
    });
}
