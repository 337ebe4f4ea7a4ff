//! Contract tests for every ledger; run on SQLite, and on a real MariaDB and a real MySQL.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row;
use uuid::Uuid;

use super::mysql::MySqlLedger;
use super::sqlite::SqliteLedger;
use super::statements::TABLES;
use super::{
    Account, Batch, Checkpoint, Closed, Faults, Ledger, LedgerError, Message, Part, Posted, Record, Restored,
    SaleRecord, Standpoint, fingerprint,
};
use crate::sale::Sale;
use crate::sqlite::{SqliteFile, Synchronous};
use support::{Database, EPOCH, bytes, sale};

#[path = "../../tests/support/mod.rs"]
mod support;

const TOPIC: &str = "CAR_NUMBER";

/// A fresh ledger, and what only its database can do.
#[async_trait]
trait Books {
    fn ledger(&self) -> &dyn Ledger;
    /// Runs a statement behind the ledger's back.
    async fn tamper(&self, statement: &'static str);
}

struct OnSqlite {
    ledger: SqliteLedger,
    file: SqliteFile,
    _folder: tempfile::TempDir,
}

async fn sqlite() -> OnSqlite {
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteFile::open(&folder.path().join("seckill.db"), true).await.expect("a file");
    let ledger = SqliteLedger::open(&file).await.expect("a ledger");
    ledger.migrate().await.expect("migrated");
    OnSqlite { ledger, file, _folder: folder }
}

#[async_trait]
impl Books for OnSqlite {
    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    async fn tamper(&self, statement: &'static str) {
        let mut connection = self.file.connect(Synchronous::Normal).await.expect("a connection");
        sqlx::query(statement).execute(&mut connection).await.expect("a statement");
    }
}

struct OnMySql {
    ledger: MySqlLedger,
    database: Database,
}

async fn mariadb() -> OnMySql {
    on_server("SECKILL_DATABASE_URL").await
}

async fn mysql() -> OnMySql {
    on_server("SECKILL_TEST_MYSQL_URL").await
}

async fn on_server(variable: &str) -> OnMySql {
    let database = Database::on(variable).await;
    let ledger = MySqlLedger::connect_lazy(&database.url).expect("an address");
    ledger.migrate().await.expect("migrated");
    OnMySql { ledger, database }
}

#[async_trait]
impl Books for OnMySql {
    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    async fn tamper(&self, statement: &'static str) {
        self.database.inside(statement).await;
    }
}

macro_rules! contract {
    ($($rule:ident)*) => {
        mod on_sqlite { $(#[tokio::test] async fn $rule() { super::$rule(&super::sqlite().await).await; })* }
        mod on_mariadb { $(#[tokio::test] #[ignore = "needs servers"] async fn $rule() { super::$rule(&super::mariadb().await).await; })* }
        mod on_mysql { $(#[tokio::test] #[ignore = "needs servers"] async fn $rule() { super::$rule(&super::mysql().await).await; })* }
    };
}

contract! {
    a_sale_is_found_as_it_was_sold
    keys_are_known_until_when_they_were_used
    checkpoints_are_written_with_the_rows
    a_checkpoint_passes_over_what_is_no_message
    the_same_batch_again_has_moved
    two_at_once_post_once
    a_batch_is_posted_whole_or_not_at_all
    the_same_sale_produced_twice_is_one_row
    a_unit_sold_to_two_orders_is_a_conflict
    an_order_for_two_units_is_a_conflict
    what_cannot_be_recorded_is_put_aside_and_the_rest_goes_on
    large_messages_are_recorded
    one_poisoned_row_among_many_is_found
    read_again_from_the_start_nothing_changes
    another_order_at_a_known_offset_stops
    names_are_told_apart_by_case
    a_sale_begun_twice_began_once
    sales_and_orders_are_listed
    serials_are_counted_page_by_page
    migrating_again_changes_nothing
    after_the_term_is_raised_older_sales_are_late
    what_the_ledger_knows_of_a_sale
    a_serial_out_of_all_reason_is_not_the_highest
    serials_are_written_off_by_the_run
    a_restore_is_an_operators_decision
    a_sale_that_was_put_away_is_not_listed
    a_sale_that_never_began_is_withdrawn
}

fn part(partition: i32, from: Option<i64>, first: i64, values: &[Vec<u8>]) -> Part {
    let messages =
        (first..).zip(values).map(|(offset, value)| Message { offset, value: value.clone() }).collect();
    Part { partition, from, messages, upto: None }
}

fn batch(parts: Vec<Part>) -> Batch {
    Batch { topic: TOPIC.to_owned(), parts }
}

fn first(sales: &[Sale]) -> Batch {
    batch(vec![part(0, None, 0, &sales.iter().map(bytes).collect::<Vec<_>>())])
}

async fn post(books: &dyn Books, batch: &Batch) -> Posted {
    books.ledger().post(batch).await.expect("posted")
}

fn counts(posted: &Posted) -> (u64, u64, u64, u64) {
    (posted.new, posted.duplicate, posted.conflict, posted.dead_letter)
}

async fn serials(books: &dyn Books) -> Vec<u64> {
    support::serials(books.ledger()).await
}

async fn sales(books: &dyn Books) -> Vec<SaleRecord> {
    books.ledger().sales(None).await.expect("sales")
}

async fn account(books: &dyn Books, epoch: Uuid) -> Account {
    books.ledger().account("counter", epoch).await.expect("account")
}

async fn raise(books: &dyn Books, epoch: Uuid, from: u64) -> bool {
    books.ledger().raise_term("counter", epoch, from).await.expect("answered")
}

async fn faults(books: &dyn Books) -> (u64, u64) {
    let Faults { conflicts, dead_letters } = books.ledger().faults().await.expect("faults");
    (conflicts, dead_letters)
}

async fn keys_are_known_until_when_they_were_used(books: &dyn Books) {
    let keys = async |name, until| books.ledger().keys(name, until).await.expect("noted");
    assert_eq!(keys("one", 1_000).await, -1, "nobody made orders before");
    assert_eq!(keys("one", 2_000).await, -1);
    assert_eq!(keys("two", 1_500).await, 2_000);
    assert_eq!(keys("one", 1_800).await, 1_500, "a clock that goes back takes nothing back");
    assert_eq!(keys("", 1_200).await, 2_000);
    assert_eq!(keys("three", 1_796_000_000_000).await, 2_000);
}

async fn a_sale_is_found_as_it_was_sold(books: &dyn Books) {
    let mut named = sale(1);
    named.attempt = Some("k:Abc DEF ".to_owned());
    named.buyer = Some("买家".to_owned());
    named.term = 3;
    named.sold_at = "2026-01-02T03:04:05.000006Z".parse().expect("a time");
    let anonymous = sale(2);
    post(books, &first(&[named.clone(), anonymous.clone()])).await;
    assert_eq!(books.ledger().find(named.order).await.expect("found"), Some(named));
    assert_eq!(books.ledger().find(anonymous.order).await.expect("found"), Some(anonymous));
    assert_eq!(books.ledger().find(Uuid::now_v7()).await.expect("looked"), None);
}

async fn checkpoints_are_written_with_the_rows(books: &dyn Books) {
    assert_eq!(books.ledger().checkpoints(TOPIC).await.expect("read"), BTreeMap::new());
    let (one, two, three) = (bytes(&sale(1)), bytes(&sale(2)), bytes(&sale(3)));
    // Offset 1 of partition 2 never existed: logs may have gaps.
    let gap = Part {
        partition: 2,
        from: None,
        messages: vec![Message { offset: 0, value: two }, Message { offset: 2, value: three.clone() }],
        upto: None,
    };
    let posted = post(books, &batch(vec![part(0, None, 7, std::slice::from_ref(&one)), gap])).await;
    let expected = BTreeMap::from([
        (0, Checkpoint { next: 8, fingerprint: fingerprint(&one) }),
        (2, Checkpoint { next: 3, fingerprint: fingerprint(&three) }),
    ]);
    assert_eq!(posted.checkpoints, expected);
    assert_eq!(books.ledger().checkpoints(TOPIC).await.expect("read"), expected);
    let four = bytes(&sale(4));
    post(books, &batch(vec![part(0, Some(8), 8, std::slice::from_ref(&four))])).await;
    let moved = &books.ledger().checkpoints(TOPIC).await.expect("read")[&0];
    assert_eq!(*moved, Checkpoint { next: 9, fingerprint: fingerprint(&four) });
}

async fn a_checkpoint_passes_over_what_is_no_message(books: &dyn Books) {
    let upto = |from, upto| batch(vec![Part { partition: 0, from, messages: Vec::new(), upto: Some(upto) }]);
    let at =
        async || books.ledger().checkpoints(TOPIC).await.expect("read").remove(&0).expect("a checkpoint");
    post(books, &upto(None, 5)).await;
    assert_eq!((at().await.next, at().await.last()), (5, None), "nothing was recorded yet");
    let one = Message { offset: 7, value: bytes(&sale(1)) };
    post(books, &batch(vec![Part { partition: 0, from: Some(5), messages: vec![one.clone()], upto: None }]))
        .await;
    post(books, &upto(Some(8), 9)).await;
    post(books, &upto(Some(9), 2_000_000_000_000)).await;
    let far = at().await;
    assert_eq!((far.next, far.last()), (2_000_000_000_000, Some(7)));
    assert!(far.is_after(&one) && !far.is_after(&Message { offset: 7, value: bytes(&sale(2)) }));
    assert!(matches!(books.ledger().post(&upto(Some(9), 10)).await, Err(LedgerError::Moved { .. })));
    post(books, &upto(Some(far.next), 3)).await;
    assert_eq!(at().await, far, "never back");
}

async fn the_same_batch_again_has_moved(books: &dyn Books) {
    let batch = first(&[sale(1), sale(2)]);
    post(books, &batch).await;
    match books.ledger().post(&batch).await {
        Err(LedgerError::Moved { partition: 0, expected: None, found: Some(2) }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(serials(books).await, [1, 2]);
}

async fn two_at_once_post_once(books: &dyn Books) {
    let batch = first(&[sale(1), sale(2), sale(3)]);
    let (one, two) = tokio::join!(books.ledger().post(&batch), books.ledger().post(&batch));
    let posted = [&one, &two].into_iter().filter(|posted| posted.is_ok()).count();
    assert_eq!(posted, 1, "{one:?} {two:?}");
    for error in [one.err(), two.err()].into_iter().flatten() {
        assert!(matches!(error, LedgerError::Moved { .. } | LedgerError::Away(_)), "{error:?}");
    }
    assert_eq!(serials(books).await, [1, 2, 3]);
}

async fn a_batch_is_posted_whole_or_not_at_all(books: &dyn Books) {
    post(books, &first(&[sale(1)])).await;
    let late = batch(vec![part(1, None, 0, &[bytes(&sale(2))]), part(2, Some(5), 5, &[bytes(&sale(3))])]);
    match books.ledger().post(&late).await {
        Err(LedgerError::Moved { partition: 2, expected: Some(5), found: None }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(serials(books).await, [1]);
    assert_eq!(books.ledger().checkpoints(TOPIC).await.expect("read").len(), 1);
}

async fn the_same_sale_produced_twice_is_one_row(books: &dyn Books) {
    let (one, two) = (sale(1), sale(2));
    let posted = post(books, &first(&[one.clone(), one.clone(), two.clone()])).await;
    assert_eq!(counts(&posted), (2, 1, 0, 0));
    let again =
        batch(vec![part(0, Some(3), 3, &[bytes(&two)]), part(1, None, 0, &[bytes(&one), bytes(&sale(3))])]);
    assert_eq!(counts(&post(books, &again).await), (1, 2, 0, 0));
    assert_eq!(serials(books).await, [1, 2, 3]);
    assert_eq!(faults(books).await, (0, 0));
}

async fn a_unit_sold_to_two_orders_is_a_conflict(books: &dyn Books) {
    let one = sale(1);
    let posted = post(books, &first(&[one.clone(), sale(1), sale(2)])).await;
    assert_eq!(counts(&posted), (2, 0, 1, 0));
    let posted = post(books, &batch(vec![part(0, Some(3), 3, &[bytes(&sale(2)), bytes(&sale(3))])])).await;
    assert_eq!(counts(&posted), (1, 0, 1, 0));
    assert_eq!(faults(books).await, (2, 0));
    assert_eq!((sales(books).await[0].conflicts, &sales(books).await[0].doubled), (2, &vec![1, 2]));
    assert_eq!(books.ledger().find(one.order).await.expect("found"), Some(one), "who was first stays");
}

async fn an_order_for_two_units_is_a_conflict(books: &dyn Books) {
    let one = sale(1);
    let order = one.order;
    let other = Sale { serial: 2, ..one.clone() };
    let posted = post(books, &first(&[one, other, sale(3)])).await;
    assert_eq!(counts(&posted), (2, 0, 1, 0));
    assert_eq!(serials(books).await, [1, 3]);
    assert_eq!(faults(books).await, (1, 0));
    assert!(books.ledger().in_conflict(order).await.expect("asked"));
    assert!(!books.ledger().in_conflict(Uuid::now_v7()).await.expect("asked"));
}

async fn what_cannot_be_recorded_is_put_aside_and_the_rest_goes_on(books: &dyn Books) {
    let long = Sale { attempt: Some("k".repeat(129)), ..sale(2) };
    let ancient = Sale { sold_at: "0999-12-31T23:59:59Z".parse().expect("a time"), ..sale(2) };
    // The longest allowed, in the widest characters.
    let longest = Sale { attempt: Some("🛒".repeat(128)), buyer: Some("买".repeat(128)), ..sale(3) };
    let far = Sale { serial: u64::MAX, ..sale(1) };
    let odd = Sale { item: "Café".to_owned(), ..sale(1) };
    let mut broken = bytes(&sale(1));
    broken.insert(2, 0xff);
    let huge = vec![b'x'; 2 * 1024 * 1024];
    // A million bytes, otherwise a valid sale.
    let padded = format!("{{\"padding\":\"{}\",{}", "x".repeat(1_000_000), &utf8(&sale(2))[1..]).into_bytes();
    let values = [
        bytes(&sale(1)),
        b"not json".to_vec(),
        Vec::new(),
        bytes(&long),
        bytes(&far),
        bytes(&odd),
        bytes(&ancient),
        broken,
        huge,
        padded,
        bytes(&sale(2)),
        bytes(&longest),
    ];
    let posted = post(books, &batch(vec![part(0, None, 0, &values)])).await;
    assert_eq!(counts(&posted), (3, 0, 0, 9));
    assert_eq!(serials(books).await, [1, 2, 3]);
    assert_eq!(books.ledger().find(longest.order).await.expect("found"), Some(longest));
    assert_eq!(faults(books).await, (0, 9));
    assert_eq!(posted.checkpoints[&0].next, 12);
}

fn utf8(sale: &Sale) -> String {
    String::from_utf8(bytes(sale)).expect("json")
}

/// Statements stay small however large the messages are: 100 messages of 100 kB.
async fn large_messages_are_recorded(books: &dyn Books) {
    let large = |serial| {
        format!("{{\"padding\":\"{}\",{}", "x".repeat(100_000), &utf8(&sale(serial))[1..]).into_bytes()
    };
    let values: Vec<_> = (1..=100).map(large).collect();
    let posted = post(books, &batch(vec![part(0, None, 0, &values)])).await;
    assert_eq!(counts(&posted), (100, 0, 0, 0));
}

async fn one_poisoned_row_among_many_is_found(books: &dyn Books) {
    let mut sales: Vec<Sale> = (1..=1201).map(sale).collect();
    sales[700].buyer = Some("b".repeat(200));
    let posted = post(books, &first(&sales)).await;
    assert_eq!(counts(&posted), (1200, 0, 0, 1));
    let expected: Vec<u64> = (1..=1201).filter(|serial| *serial != 701).collect();
    assert_eq!(serials(books).await, expected);
}

async fn read_again_from_the_start_nothing_changes(books: &dyn Books) {
    let one = sale(1);
    let values = [bytes(&one), bytes(&sale(1)), b"not json".to_vec(), bytes(&sale(2)), bytes(&one)];
    let batch = batch(vec![part(0, None, 0, &values)]);
    assert_eq!(counts(&post(books, &batch).await), (2, 1, 1, 1));
    books.tamper("delete from journal_offset").await;
    assert_eq!(counts(&post(books, &batch).await), (0, 5, 0, 0));
    assert_eq!(serials(books).await, [1, 2]);
    assert_eq!(faults(books).await, (1, 1));
}

async fn another_order_at_a_known_offset_stops(books: &dyn Books) {
    post(books, &first(&[sale(1), sale(2)])).await;
    books.tamper("delete from journal_offset").await;
    match books.ledger().post(&first(&[sale(3)])).await {
        Err(LedgerError::Foreign(why)) => assert!(why.contains("CAR_NUMBER partition 0 offset 0"), "{why}"),
        // Only the place matches, neither the unit nor the order.
        other => panic!("{other:?}"),
    }
    assert_eq!(serials(books).await, [1, 2]);
}

async fn names_are_told_apart_by_case(books: &dyn Books) {
    post(books, &first(&[sale(1)])).await;
    let lower = Batch { topic: "car_number".to_owned(), parts: vec![part(0, None, 0, &[bytes(&sale(2))])] };
    assert_eq!(counts(&post(books, &lower).await), (1, 0, 0, 0));
    assert_eq!(books.ledger().checkpoints("car_number").await.expect("read")[&0].next, 1);
    assert!(books.ledger().checkpoints("Car_Number").await.expect("read").is_empty());
    assert!(books.ledger().orders("COUNTER", EPOCH, 0, 9).await.expect("read").is_empty());
}

async fn a_sale_begun_twice_began_once(books: &dyn Books) {
    let ledger = books.ledger();
    ledger.begin_sale("counter", EPOCH, 1000).await.expect("begun");
    ledger.begin_sale("counter", EPOCH, 1000).await.expect("begun again");
    let sales = sales(books).await;
    assert_eq!(sales.len(), 1);
    assert_eq!((sales[0].highest, sales[0].epoch), (0, EPOCH));
}

async fn sales_and_orders_are_listed(books: &dyn Books) {
    let next = Uuid::now_v7();
    books.ledger().begin_sale("counter", next, 5).await.expect("begun");
    let other = Sale { item: "x-1".to_owned(), epoch: next, ..sale(1) };
    let three = sale(3);
    post(books, &first(&[three.clone(), sale(1), other, sale(7)])).await;
    let listed: Vec<_> =
        sales(books).await.iter().map(|sale| (sale.item.clone(), sale.epoch, sale.highest)).collect();
    let named = |item: &str, epoch, highest| (item.to_owned(), epoch, highest);
    assert_eq!(listed, [named("counter", EPOCH, 7), named("counter", next, 0), named("x-1", next, 1)]);
    let of_one = books.ledger().sales(Some("x-1")).await.expect("sales");
    assert_eq!(of_one.iter().map(|sale| sale.epoch).collect::<Vec<_>>(), [next]);
    assert_eq!(serials(books).await, [1, 3, 7]);
    let some = books.ledger().orders("counter", EPOCH, 1, 3).await.expect("orders");
    assert_eq!(some, [(3, three.order)]);
    assert!(books.ledger().orders("counter", next, 0, 9).await.expect("orders").is_empty());
    let newest = books.ledger().newest().await.expect("the newest");
    assert_eq!(newest, BTreeMap::from([("counter".to_owned(), next), ("x-1".to_owned(), next)]));
}

/// No serial is missing when there are as many rows as numbers.
async fn serials_are_counted_page_by_page(books: &dyn Books) {
    post(books, &first(&[1, 2, 3, 5, 6, 9].map(sale))).await;
    let page = async |after, serials| {
        let page = books.ledger().page("counter", EPOCH, after, serials).await.expect("a page");
        (page.rows, page.last)
    };
    assert_eq!(page(0, 3).await, (3, 3));
    assert_eq!(page(3, 2).await, (2, 6));
    assert_eq!(page(3, 4).await, (2, 6));
    assert_eq!(page(3, 5).await, (3, 9));
    assert_eq!(page(6, 2).await, (1, 9));
    assert_eq!(page(9, 2).await, (0, 0));
    assert_eq!(page(u64::MAX, 2).await, (0, 0));
}

async fn a_sale_that_never_began_is_withdrawn(books: &dyn Books) {
    let epoch = Uuid::now_v7();
    post(books, &first(&[sale(1)])).await;
    books.ledger().begin_sale("counter", epoch, 9).await.expect("begun");
    assert_eq!(account(books, EPOCH).await.newer, Some(epoch));
    books.ledger().withdraw_sale("counter", epoch).await.expect("withdrawn");
    books.ledger().withdraw_sale("counter", EPOCH).await.expect("asked");
    let known: Vec<Uuid> = sales(books).await.iter().map(|sale| sale.epoch).collect();
    assert_eq!(known, [EPOCH], "one that has sold stays");
    assert_eq!(account(books, EPOCH).await.newer, None);
}

async fn after_the_term_is_raised_older_sales_are_late(books: &dyn Books) {
    let (known, late, current) = (sale(1), sale(2), Sale { term: 1, ..sale(2) });
    post(books, &first(std::slice::from_ref(&known))).await;
    assert!(raise(books, EPOCH, 0).await);
    let raised = account(books, EPOCH).await;
    assert_eq!((raised.term, raised.highest), (1, 1));
    let current = Sale { order: Uuid::now_v7(), ..current };
    let values: Vec<_> = [&known, &late, &current].map(bytes).into();
    let posted = post(books, &batch(vec![part(0, Some(1), 1, &values)])).await;
    assert_eq!(counts(&posted), (1, 1, 0, 0), "a sale that was recorded in time is a duplicate");
    assert_eq!(posted.late, 1);
    assert_eq!(books.ledger().find(late.order).await.expect("looked"), None);
    assert_eq!(books.ledger().find(current.order).await.expect("looked"), Some(current));
    assert_eq!(faults(books).await, (0, 0), "late is no fault");
    assert_eq!(books.ledger().disputed().await.expect("asked"), [], "late is no dispute");
}

async fn what_the_ledger_knows_of_a_sale(books: &dyn Books) {
    let newer = Uuid::now_v7();
    books.ledger().begin_sale("counter", newer, 70).await.expect("begun");
    assert!(raise(books, newer, 0).await);
    let expected = Account { term: 1, highest: 0, void_upto: 0, remaining: 70, newer: None, disputed: 0 };
    assert_eq!(account(books, newer).await, expected);
    let named = Sale { attempt: Some("k:a".into()), ..sale(3) };
    let more = Sale { attempt: Some("k:b".into()), ..sale(4) };
    post(books, &first(&[sale(1), named.clone(), more.clone()])).await;
    assert!(raise(books, EPOCH, 0).await);
    let expected = Account {
        term: 1,
        highest: 4,
        void_upto: 0,
        remaining: more.remaining,
        newer: Some(newer),
        disputed: 0,
    };
    assert_eq!(account(books, EPOCH).await, expected, "the newer sale is known");
    assert!(raise(books, EPOCH, 1).await);
    assert!(!raise(books, EPOCH, 1).await, "somebody else raised it");
    assert_eq!(account(books, EPOCH).await.term, 2);
    let at = |epoch, term, serial| Standpoint { item: "counter".into(), epoch, term, serial };
    let level = [at(EPOCH, 2, 4), at(newer, 1, 0), at(Uuid::now_v7(), 0, 0)];
    assert_eq!(books.ledger().ahead(&level).await.expect("asked"), []);
    // Serial 2 is not recorded, 1 and 4 are; 2 is the term.
    let behind = [
        at(EPOCH, 2, 3),
        at(EPOCH, 1, 3),
        at(EPOCH, 1, 4),
        at(EPOCH, 2, 1),
        at(EPOCH, 2, 0),
        at(EPOCH, 0, 0),
    ];
    let asked = [&level[..], &behind].concat();
    assert_eq!(books.ledger().ahead(&asked).await.expect("asked"), behind);
    assert_eq!(books.ledger().ahead(&[]).await.expect("asked"), []);
    let many: Vec<_> = asked.iter().cycle().take(20 * asked.len()).cloned().collect();
    assert_eq!(books.ledger().ahead(&many).await.expect("asked").len(), 120);
    let winners =
        async |after, upto| books.ledger().winners("counter", EPOCH, after, upto).await.expect("winners");
    assert_eq!(winners(0, named.serial).await, std::slice::from_ref(&named));
    assert_eq!(winners(named.serial, more.serial - 1).await, []);
    assert_eq!(winners(named.serial, 9).await, std::slice::from_ref(&more));
    assert_eq!(winners(0, more.serial).await, [named, more]);
}

/// A message far out of a sale's range does not move the sale there.
async fn a_serial_out_of_all_reason_is_not_the_highest(books: &dyn Books) {
    use crate::sale::{HIGHEST_SOLD, MAX_SERIAL};
    let posted = post(books, &first(&[sale(1), sale(HIGHEST_SOLD + 1), sale(MAX_SERIAL + 1), sale(2)])).await;
    assert_eq!(counts(&posted), (3, 0, 0, 1));
    assert_eq!(account(books, EPOCH).await.highest, 2);
    assert_eq!(sales(books).await[0].highest, HIGHEST_SOLD + 1, "and is named");
}

async fn serials_are_written_off_by_the_run(books: &dyn Books) {
    post(books, &first(&[sale(1), sale(4)])).await;
    // The form that an earlier version wrote.
    books.tamper("insert into seckill_void (item, epoch, serial) values ('counter', '01970000-0000-7000-8000-0000000000ee', 9)").await;
    let void = async |runs: &[RangeInclusive<u64>]| {
        books.ledger().void("counter", EPOCH, runs).await.expect("written off");
    };
    void(&[2..=3]).await;
    void(&[2..=3, 11..=1_000_000_000]).await;
    let voids = async |after, upto| books.ledger().voids("counter", EPOCH, after, upto).await.expect("voids");
    assert_eq!(voids(0, u64::MAX).await, [2..=3, 9..=9, 11..=1_000_000_000]);
    assert_eq!(voids(2, 8).await, [2..=3]);
    assert_eq!(voids(3, 10).await, [9..=9]);
    assert_eq!(voids(50, 60).await, [11..=1_000_000_000]);
    let many: Vec<_> = (0..1201).map(|number| 2_000_000_000 + 3 * number).map(|at| at..=at + 1).collect();
    void(&many).await;
    assert_eq!(voids(1_000_000_000, u64::MAX).await, many);
    let known = account(books, EPOCH).await;
    assert_eq!((known.highest, Some(&known.void_upto)), (4, many.last().map(|run| run.end())));
}

/// An operator's decision holds until something new arrives.
async fn a_restore_is_an_operators_decision(books: &dyn Books) {
    let ledger = books.ledger();
    let newer = Uuid::now_v7();
    post(books, &first(&[sale(1), sale(1)])).await;
    ledger.begin_sale("counter", newer, 9).await.expect("begun");
    let before = account(books, EPOCH).await;
    assert_eq!((before.newer, before.disputed), (Some(newer), 1));
    let disputed = [("counter".to_owned(), EPOCH)];
    assert_eq!(ledger.disputed().await.expect("asked"), disputed);
    let restored = Restored { term: 1, serial: 1, remaining: 3 };
    ledger.restored("counter", EPOCH, restored).await.expect("noted");
    ledger.restored("counter", EPOCH, restored).await.expect("noted once");
    let after = account(books, EPOCH).await;
    assert_eq!((after.newer, after.disputed), (None, 0), "decided");
    assert_eq!(ledger.disputed().await.expect("asked"), []);
    assert_eq!(ledger.disputed().await.expect("asked again"), []);
    post(books, &batch(vec![part(0, Some(2), 2, &[bytes(&sale(1))])])).await;
    assert_eq!(ledger.disputed().await.expect("asked"), disputed, "a further one was not accepted");
    let newest = Uuid::now_v7();
    ledger.begin_sale("counter", newest, 9).await.expect("begun");
    let again = account(books, EPOCH).await;
    assert_eq!((again.newer, again.disputed), (Some(newest), 1), "nor was what began since");
}

async fn a_sale_that_was_put_away_is_not_listed(books: &dyn Books) {
    let ledger = books.ledger();
    post(books, &first(&[sale(1), sale(2)])).await;
    let closed = Closed { seeded: 5, remaining: 3, sold: 2, recorded: 2, void: 0 };
    ledger.archive("counter", EPOCH, closed).await.expect("put away");
    ledger.archive("counter", EPOCH, closed).await.expect("once");
    assert_eq!(sales(books).await, []);
    let away = BTreeSet::from([("counter".to_owned(), EPOCH)]);
    assert_eq!(ledger.archived(None).await.expect("asked"), away);
    assert_eq!(ledger.archived(Some("counter")).await.expect("asked"), away);
    assert_eq!(ledger.archived(Some("shoe")).await.expect("asked"), BTreeSet::new());
    assert_eq!(
        ledger.newest().await.expect("asked")["counter"],
        EPOCH,
        "and a new one is later all the same"
    );
}

async fn migrating_again_changes_nothing(books: &dyn Books) {
    post(books, &first(&[sale(1)])).await;
    books.ledger().migrate().await.expect("migrated");
    assert_eq!(serials(books).await, [1]);
}

/// Only the database may know what is wrong with a row.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_row_that_the_database_refuses_is_found_among_many() {
    for books in [mariadb().await, mysql().await] {
        books.tamper("alter table seckill add constraint odd check (serial <> 701)").await;
        let sales: Vec<Sale> = (1..=1201).map(sale).collect();
        assert_eq!(counts(&post(&books, &first(&sales)).await), (1200, 0, 0, 1));
        let expected: Vec<u64> = (1..=1201).filter(|serial| *serial != 701).collect();
        assert_eq!(serials(&books).await, expected);
    }
}

#[tokio::test]
#[ignore = "needs servers"]
async fn two_programs_make_the_tables_at_once() {
    let database = Database::on("SECKILL_TEST_MYSQL_URL").await;
    let ledgers: Vec<_> =
        (0..3).map(|_| Arc::new(MySqlLedger::connect_lazy(&database.url).expect("an address"))).collect();
    let (one, two, three) = tokio::join!(ledgers[0].migrate(), ledgers[1].migrate(), ledgers[2].migrate());
    for migrated in [one, two, three] {
        migrated.expect("migrated");
    }
}

#[tokio::test]
#[ignore = "needs servers"]
async fn tables_whose_making_was_interrupted_are_made_again() {
    let database = Database::create().await;
    let ledger = MySqlLedger::connect_lazy(&database.url).expect("an address");
    ledger.migrate().await.expect("migrated");
    database.inside("update _sqlx_migrations set success = false where version = 1").await;
    database.inside("delete from _sqlx_migrations where version > 1").await;
    database.inside("drop table seckill_conflict").await;
    ledger.migrate().await.expect("migrated again");
}

#[tokio::test]
#[ignore = "needs servers"]
async fn both_schemas_have_the_same_columns() {
    let mysql = mysql().await;
    let sqlite = sqlite().await;
    let mut there =
        <sqlx::MySqlConnection as sqlx::Connection>::connect(&mysql.database.url).await.expect("up");
    let mut here = sqlite.file.connect(Synchronous::Normal).await.expect("a connection");
    for (table, _) in TABLES {
        let theirs = sqlx::query(
            "select column_name as name, is_nullable = 'NO' as needed from information_schema.columns \
             where table_schema = database() and table_name = ? order by ordinal_position",
        )
        .bind(table)
        .fetch_all(&mut there)
        .await
        .expect("columns");
        let theirs: Vec<(String, bool)> =
            theirs.iter().map(|row| (row.get("name"), row.get::<i64, _>("needed") != 0)).collect();
        let ours = sqlx::query("select name, \"notnull\" as needed from pragma_table_info(?)")
            .bind(table)
            .fetch_all(&mut here)
            .await
            .expect("columns");
        let ours: Vec<(String, bool)> =
            ours.iter().map(|row| (row.get("name"), row.get::<i64, _>("needed") != 0)).collect();
        assert_eq!(ours, theirs, "{table}");
        assert!(!ours.is_empty(), "{table}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_away() {
    let ledger = MySqlLedger::connect_lazy("mysql://user:hunter2@127.0.0.1:1/seckill").expect("an address");
    let error = ledger.checkpoints(TOPIC).await.expect_err("nobody listens there");
    assert!(matches!(error, LedgerError::Away(_)), "{error:?}");
    assert!(error.to_string().contains("onnection refused"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

/// The ledger waits for user, password and database to appear.
#[tokio::test]
#[ignore = "needs servers"]
async fn a_wrong_password_or_database_is_waited_for_and_not_shown() {
    for variable in ["SECKILL_DATABASE_URL", "SECKILL_TEST_MYSQL_URL"] {
        let database = Database::on(variable).await;
        let (scheme, rest) = database.url.split_once("://").expect("an address");
        let (_, host) = rest.rsplit_once('@').expect("a user");
        for (url, number) in [
            (format!("{}_none", database.url), "1049"),
            (format!("{scheme}://seckill:seckill@{}/mysql", host.split_once('/').expect("a name").0), "1044"),
            (format!("{scheme}://seckill:hunter2@{host}"), "1045"),
            (format!("{scheme}://nobody:hunter2@{host}"), "1045"),
        ] {
            let ledger = MySqlLedger::connect_lazy(&url).expect("an address");
            let error = ledger.migrate().await.expect_err("refused");
            assert!(matches!(error, LedgerError::Away(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(number) && !text.contains("hunter2"), "{text}");
        }
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_not_shown() {
    for url in ["hunter2", "postgres://u:hunter2@h/db", "mysql://u:hunter2@h", "mysql://u:hunter2@h:port/db"]
    {
        let error = MySqlLedger::connect_lazy(url).expect_err("not an address");
        assert!(error.0.starts_with("SECKILL_DATABASE_URL: "), "{error}");
        assert!(!error.0.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs servers"]
async fn without_the_tables_the_ledger_is_broken() {
    let database = Database::create().await;
    let ledger = MySqlLedger::connect_lazy(&database.url).expect("an address");
    let error = ledger.checkpoints(TOPIC).await.expect_err("no tables");
    assert!(matches!(error, LedgerError::Broken(_)), "{error:?}");
}
