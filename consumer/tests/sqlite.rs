//! The embedded world's file, and the reader of its journal.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consumer::ledger::sqlite::SqliteLedger;
use consumer::progress::{Checkpoints, Extent};
use consumer::reader::sqlite::SqliteReader;
use consumer::reader::{Read, Reader, ReaderError};
use consumer::recording::metrics::Metrics;
use consumer::recording::step::{Consumer, Step};
use consumer::sqlite::{FileError, SqliteFile, Synchronous};
use prometheus::Registry;
use sqlx::{Connection, SqliteConnection};
use support::kafka::at;
use support::{bytes, sale, serials};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_millis(50);

async fn fresh() -> (SqliteFile, SqliteConnection, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteFile::open(&folder.path().join("seckill.db"), true).await.expect("a file");
    let connection = file.connect(Synchronous::Full).await.expect("a connection");
    (file, connection, folder)
}

async fn append(connection: &mut SqliteConnection, offset: i64, kind: &str, value: &str) {
    sqlx::query("insert into journal (\"offset\", kind, value) values (?, ?, ?)")
        .bind(offset)
        .bind(kind)
        .bind(value)
        .execute(connection)
        .await
        .expect("appended");
}

fn mistake(error: FileError) -> String {
    match error {
        FileError::Config(error) => error.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, b"my notes").expect("written");
    let short = folder.path().join("other.db");
    let url = format!("sqlite://{}?mode=rwc", short.display());
    let mut other = SqliteConnection::connect(&url).await.expect("a database");
    sqlx::query("create table theirs (a integer)").execute(&mut other).await.expect("made");
    other.close().await.expect("closed");
    for path in [&text, &short] {
        let before = std::fs::read(path).expect("read");
        let error = mistake(SqliteFile::open(path, true).await.expect_err("not ours"));
        assert!(
            error.starts_with("SECKILL_DATA=") && error.contains("not a file of this program"),
            "{error}"
        );
        assert_eq!(std::fs::read(path).expect("read"), before);
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 2, "nothing was put beside them");
}

#[tokio::test]
async fn a_folder_or_file_that_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("none").join("seckill.db");
    assert!(mistake(SqliteFile::open(&nowhere, true).await.expect_err("no folder")).contains("no folder"));
    let nothing = folder.path().join("seckill.db");
    assert!(mistake(SqliteFile::open(&nothing, false).await.expect_err("no file")).contains("no such file"));
    assert!(!nothing.exists());
}

#[tokio::test]
async fn an_empty_file_is_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("seckill.db");
    std::fs::write(&path, b"").expect("written");
    SqliteFile::open(&path, true).await.expect("made");
    SqliteFile::open(&path, false).await.expect("there");
}

#[tokio::test]
async fn several_may_make_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("seckill.db");
    let (one, two, three) = tokio::join!(
        SqliteFile::open(&path, true),
        SqliteFile::open(&path, true),
        SqliteFile::open(&path, true)
    );
    for opened in [one, two, three] {
        let mut connection = opened.expect("opened").connect(Synchronous::Full).await.expect("a connection");
        append_next(&mut connection).await;
    }
}

async fn append_next(connection: &mut SqliteConnection) {
    sqlx::query("insert into journal (kind, value) values ('seed', '{}')")
        .execute(connection)
        .await
        .expect("appended");
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone() {
    let (file, mut connection, _folder) = fresh().await;
    sqlx::query(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'x', true, x'00', 0)",
    )
    .execute(&mut connection)
    .await
    .expect("tampered");
    let error = mistake(SqliteFile::open(file.path(), false).await.expect_err("newer"));
    assert!(error.contains("another version"), "{error}");
}

#[tokio::test]
async fn seeds_are_passed_over() {
    let (file, mut journal, _folder) = fresh().await;
    append(&mut journal, 1, "seed", "{}").await;
    append(&mut journal, 2, "sale", "two").await;
    append(&mut journal, 3, "seed", "{}").await;
    append(&mut journal, 5, "sale", "five").await;
    append(&mut journal, 6, "seed", "{}").await;
    let mut reader = SqliteReader::open(&file).await.expect("opened");
    assert_eq!(reader.read(10, WAIT).await.expect("read"), Read::Assigned(vec![0]));
    reader.start(&Checkpoints::new()).await.expect("started");
    match reader.read(10, WAIT).await.expect("read") {
        Read::Messages(messages) => {
            let offsets: Vec<_> = messages[&0].iter().map(|message| message.offset).collect();
            assert_eq!(offsets, [2, 5]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.read(10, WAIT).await.expect("read"), Read::Quiet);
    assert_eq!(reader.extents().await.expect("extents")[&0], Extent { start: 0, end: 6 });
    append(&mut journal, 7, "sale", "seven").await;
    assert!(matches!(reader.read(10, support::SOON).await.expect("read"), Read::Messages(_)));
}

#[tokio::test]
async fn an_offset_outside_the_journal_stops() {
    let (file, mut journal, _folder) = fresh().await;
    append(&mut journal, 2, "sale", "two").await;
    let mut reader = SqliteReader::open(&file).await.expect("opened");
    for outside in [1, 3, 100] {
        let started = reader.start(&at(&BTreeMap::from([(0, outside)]))).await;
        assert!(matches!(started, Err(ReaderError::Foreign(_))), "{outside}: {started:?}");
    }
    reader.start(&at(&BTreeMap::from([(0, 2)]))).await.expect("inside");
}

#[tokio::test]
async fn from_the_journal_into_the_ledger_and_on_after_a_restart() {
    let (file, mut journal, _folder) = fresh().await;
    let text = |serial| String::from_utf8(bytes(&sale(serial))).expect("utf-8");
    append(&mut journal, 1, "seed", "{}").await;
    for serial in 1..=3 {
        append(&mut journal, 1 + i64::try_from(serial).expect("small"), "sale", &text(serial)).await;
    }
    let ledger = Arc::new(SqliteLedger::open(&file).await.expect("a ledger"));
    for recorded in [3_u64, 4] {
        let reader = SqliteReader::open(&file).await.expect("opened");
        let metrics = Metrics::new(&Registry::new()).expect("registered");
        let mut consumer = Consumer::new(Box::new(reader), ledger.clone(), metrics);
        while consumer.step().await.expect("a step") != Step::Quiet {}
        let serials = serials(&*ledger).await;
        assert_eq!(serials, (1..=recorded).collect::<Vec<_>>());
        if recorded == 3 {
            append(&mut journal, 10, "sale", &text(4)).await;
        }
    }
}
