//! The till's limits, on the real one: attempts that wait, and an outbox that is full.
//!
//! A program of its own, because it looks at its memory.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may stop where it stands")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use consumer::ledger::sqlite::SqliteLedger;
use consumer::sqlite::SqliteFile;
use prometheus::Registry;
use seckill::journal::sqlite::SqliteJournal;
use seckill::metrics::Metrics;
use seckill::sale::{Item, Purchase, State, Window};
use seckill::selling::mailbox::Mailbox;
use seckill::selling::shop::Shop;
use seckill::stock::memory::MemoryStock;
use seckill::stock::{Book, Call, Entries, EntryName, Reply, Stock, StockError};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

/// What 20,000 waiting attempts may add to the process, their tasks in this test included. Measured:
/// 23 MiB.
const MEMORY_KB: u64 = 64 * 1024;

const WAITING: usize = 20_000;

/// More than may wait, with two calls in flight.
const TOO_MANY: usize = 22_000;

/// As ARCHITECTURE has it.
const MAX_OPEN: u64 = 20_000;

/// The embedded stock, behind a door that the test opens and shuts.
struct Behind {
    stock: MemoryStock,
    door: watch::Receiver<bool>,
    /// Entries that its outbox is said to have.
    open: AtomicU64,
    /// Attempts that it was asked to take units for.
    asked: AtomicU64,
}

#[async_trait]
impl Stock for Behind {
    async fn take(&self, item: &Item, call: &Call) -> Result<Reply, StockError> {
        let mut door = self.door.clone();
        door.wait_for(|open| *open).await.unwrap();
        if call.taking {
            self.asked.fetch_add(call.attempts.len() as u64, Ordering::AcqRel);
        }
        let reply = self.stock.take(item, call).await?;
        Ok(Reply { open: self.open.load(Ordering::Acquire), ..reply })
    }

    async fn outbox(&self, item: &Item) -> Result<Vec<EntryName>, StockError> {
        self.stock.outbox(item).await
    }

    async fn entries(&self, item: &Item, names: &[EntryName]) -> Result<Entries, StockError> {
        self.stock.entries(item, names).await
    }

    async fn items(&self) -> Result<Vec<Item>, StockError> {
        self.stock.items().await
    }

    async fn knows(&self, item: &Item) -> Result<bool, StockError> {
        self.stock.knows(item).await
    }

    async fn seed(&self, item: &Item, units: u64, epoch: Uuid) -> Result<(), StockError> {
        self.stock.seed(item, units, epoch).await
    }

    async fn add(&self, item: &Item, units: u64) -> Result<Option<u64>, StockError> {
        self.stock.add(item, units).await
    }

    async fn books(&self, item: &Item) -> Result<Vec<Book>, StockError> {
        self.stock.books(item).await
    }
}

struct World {
    shop: Arc<Shop>,
    stock: Arc<Behind>,
    journal: Arc<SqliteJournal>,
    door: watch::Sender<bool>,
    _folder: TempDir,
}

async fn world(units: u64) -> World {
    let folder = TempDir::new().unwrap();
    let file = SqliteFile::open(&folder.path().join("sale.db"), true).await.unwrap();
    let journal = Arc::new(SqliteJournal::new(file.clone()));
    let (door, open) = watch::channel(true);
    let stock = Arc::new(Behind {
        stock: MemoryStock::open(Arc::clone(&journal)).await.unwrap(),
        door: open,
        open: AtomicU64::new(0),
        asked: AtomicU64::new(0),
    });
    stock.seed(&Item::default(), units, Uuid::now_v7()).await.unwrap();
    let ledger = Arc::new(SqliteLedger::open(&file).await.unwrap());
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let shop =
        Shop::open(Arc::clone(&stock) as _, Arc::clone(&journal) as _, ledger, Window::default(), metrics);
    let world = World { shop, stock, journal, door, _folder: folder };
    world.reaches(State::Open).await;
    world
}

impl World {
    async fn reaches(&self, state: State) {
        let reached = async {
            while self.shop.view(&Item::default()).await.state != state {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), reached).await.expect("in time");
    }

    /// Rows of sales in the journal: what was sold.
    async fn sold(&self) -> u64 {
        let book = &self.stock.books(&Item::default()).await.unwrap()[0];
        assert_eq!(book.seeded, book.left + book.serial);
        let reopened = MemoryStock::open(Arc::clone(&self.journal)).await.unwrap();
        assert_eq!(&reopened.books(&Item::default()).await.unwrap()[0], book, "the journal has the same");
        book.serial
    }
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_wait_and_the_rest_is_told_busy() {
    let world = world(100_000).await;
    let before = resident_kb();
    world.door.send_replace(false);
    let mut attempts = JoinSet::new();
    for number in 0..TOO_MANY {
        let shop = Arc::clone(&world.shop);
        // As long as a key may be.
        let key = format!("{number:0>64}");
        attempts.spawn(async move { shop.buy(&Mailbox::open(), &Item::default(), Some(&key)).await });
    }
    let mut busy = 0;
    let refused = async {
        while attempts.len() > WAITING + 1504 {
            assert_eq!(attempts.join_next().await.unwrap().unwrap(), Purchase::Busy);
            busy += 1;
        }
    };
    timeout(Duration::from_secs(10), refused).await.expect("those beyond the limit are told at once");
    let memory = resident_kb().saturating_sub(before);
    assert!(attempts.len() >= WAITING, "they wait");
    // What the page shows is answered all the same.
    timeout(Duration::from_secs(1), world.shop.view(&Item::default())).await.expect("answered");

    world.door.send_replace(true);
    let mut bought = std::collections::HashSet::new();
    while let Some(answer) = attempts.join_next().await {
        match answer.unwrap() {
            Purchase::Bought { order, .. } => assert!(bought.insert(order), "{order} was told twice"),
            Purchase::Busy => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    eprintln!("{memory} KiB while they wait; {} bought, {busy} busy", bought.len());
    assert_eq!(bought.len() + busy, TOO_MANY);
    assert!(bought.len() >= 1024, "the calls in flight at least");
    assert_eq!(world.sold().await, bought.len() as u64, "busy is not sold");
    assert!(memory < MEMORY_KB, "{memory} KiB");
}

/// Before the decrement, not after: the stock is not asked for units at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_is_unavailable_and_takes_nothing() {
    let world = world(10).await;
    let item = Item::default();
    assert!(matches!(world.shop.buy(&Mailbox::open(), &item, None).await, Purchase::Bought { .. }));
    world.stock.open.store(MAX_OPEN, Ordering::Release);
    // From the next refresh on; before it, one may still be sold.
    let full = async {
        while world.shop.tills()[0].open_entries() < MAX_OPEN {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), full).await.expect("seen");
    let asked = world.stock.asked.load(Ordering::Acquire);
    for key in [None, Some("named")] {
        assert_eq!(world.shop.buy(&Mailbox::open(), &item, key).await, Purchase::Unavailable);
    }
    assert_eq!(world.stock.asked.load(Ordering::Acquire), asked, "no unit was asked for");
    assert_eq!(world.sold().await, 1);
    world.stock.open.store(MAX_OPEN - 1, Ordering::Release);
    let again = async {
        while !matches!(world.shop.buy(&Mailbox::open(), &item, Some("named")).await, Purchase::Bought { .. })
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), again).await.expect("it goes on when there is room");
    assert_eq!(world.sold().await, 2);
}
