//! Steps of the consumer, with a reader and a ledger that do as they are told.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use consumer::ledger::{Batch, Checkpoint, LedgerError, Message, Posted, Record, fingerprint};
use consumer::progress::{Checkpoints, Extent, Extents};
use consumer::reader::{Read, Reader, ReaderError};
use consumer::recording::metrics::Metrics;
use consumer::recording::run::{Health, Stop, run};
use consumer::recording::step::{Consumer, Step, StepError};
use prometheus::Registry;

type Shared<T> = Arc<Mutex<T>>;

/// A part as tests compare it: partition, expected checkpoint, offsets.
type Posting = (i32, Option<i64>, Vec<i64>);

/// What happened, in order.
#[derive(Default)]
struct Script {
    reads: VecDeque<Read>,
    starts: Vec<BTreeMap<i32, i64>>,
    reports: Vec<BTreeMap<i32, i64>>,
    posts: Vec<Batch>,
    answers: VecDeque<LedgerError>,
    slow: Option<Duration>,
    checkpoints: BTreeMap<i32, Checkpoint>,
    away: bool,
    closed: bool,
}

struct FakeReader(Shared<Script>);

#[async_trait]
impl Reader for FakeReader {
    fn topic(&self) -> &str {
        "T"
    }

    async fn read(&mut self, max: usize, wait: Duration) -> Result<Read, ReaderError> {
        {
            let mut script = self.0.lock().expect("the script");
            let next = script.reads.front();
            if next.is_some_and(|read| max > 0 || matches!(read, Read::Assigned(_))) {
                return Ok(script.reads.pop_front().expect("a read"));
            }
        }
        tokio::time::sleep(wait).await;
        Ok(Read::Quiet)
    }

    async fn start(&mut self, from: &Checkpoints) -> Result<BTreeMap<i32, i64>, ReaderError> {
        let begin = |checkpoint: &Checkpoint| checkpoint.last().unwrap_or(0);
        let from: BTreeMap<i32, i64> = from.iter().map(|(partition, it)| (*partition, begin(it))).collect();
        self.0.lock().expect("the script").starts.push(from.clone());
        Ok(from)
    }

    async fn report(&mut self, next: &BTreeMap<i32, i64>) {
        self.0.lock().expect("the script").reports.push(next.clone());
    }

    async fn extents(&mut self) -> Result<Extents, ReaderError> {
        Ok(BTreeMap::from([(0, Extent { start: 0, end: 10 }), (1, Extent { start: 0, end: 4 })]))
    }

    async fn close(&mut self) {
        self.0.lock().expect("the script").closed = true;
    }
}

struct FakeLedger(Shared<Script>);

#[async_trait]
impl Record for FakeLedger {
    async fn checkpoints(&self, _: &str) -> Result<BTreeMap<i32, Checkpoint>, LedgerError> {
        let script = self.0.lock().expect("the script");
        if script.away {
            return Err(LedgerError::Away("down".into()));
        }
        Ok(script.checkpoints.clone())
    }

    async fn post(&self, batch: &Batch) -> Result<Posted, LedgerError> {
        let slow = self.0.lock().expect("the script").slow.take();
        tokio::time::sleep(slow.unwrap_or_default()).await;
        let mut script = self.0.lock().expect("the script");
        script.posts.push(batch.clone());
        if let Some(error) = script.answers.pop_front() {
            return Err(error);
        }
        let mut posted = Posted::default();
        for part in &batch.parts {
            let to = match (part.messages.last(), part.upto) {
                (Some(last), _) => Checkpoint::after(last),
                (None, upto) => script.checkpoints[&part.partition].passed(upto.expect("no part is empty")),
            };
            posted.checkpoints.insert(part.partition, to.clone());
            script.checkpoints.insert(part.partition, to);
            posted.new += part.messages.len() as u64;
        }
        Ok(posted)
    }
}

struct Stage {
    script: Shared<Script>,
    consumer: Consumer,
    registry: Registry,
}

fn stage(reads: Vec<Read>, next: &[(i32, i64)]) -> Stage {
    let script = Shared::<Script>::default();
    {
        let mut script = script.lock().expect("the script");
        script.reads = reads.into();
        script.checkpoints = next
            .iter()
            .map(|(partition, next)| {
                (*partition, Checkpoint { next: *next, fingerprint: fingerprint(&value(*next - 1)) })
            })
            .collect();
    }
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).expect("registered");
    let consumer =
        Consumer::new(Box::new(FakeReader(script.clone())), Arc::new(FakeLedger(script.clone())), metrics);
    Stage { script, consumer, registry }
}

fn value(offset: i64) -> Vec<u8> {
    format!("message {offset}").into_bytes()
}

fn messages(partition: i32, offsets: std::ops::Range<i64>) -> Read {
    Read::Messages(BTreeMap::from([(
        partition,
        offsets.map(|offset| Message { offset, value: value(offset) }).collect(),
    )]))
}

impl Stage {
    async fn step(&mut self) -> Step {
        self.consumer.step().await.expect("a step")
    }

    fn posts(&self) -> Vec<Vec<Posting>> {
        let script = self.script.lock().expect("the script");
        let part = |part: &consumer::ledger::Part| {
            (part.partition, part.from, part.messages.iter().map(|message| message.offset).collect())
        };
        script.posts.iter().map(|batch| batch.parts.iter().map(part).collect()).collect()
    }

    fn metrics(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).expect("text")
    }
}

#[tokio::test(start_paused = true)]
async fn it_begins_one_before_the_checkpoint_and_posts_what_follows() {
    let mut stage = stage(vec![Read::Assigned(vec![0, 1]), messages(0, 4..7), messages(1, 0..2)], &[(0, 5)]);
    assert_eq!(stage.step().await, Step::Started(vec![0, 1]));
    assert_eq!(stage.script.lock().expect("the script").starts, [BTreeMap::from([(0, 4)])]);
    assert!(matches!(stage.step().await, Step::Posted(_)));
    assert!(matches!(stage.step().await, Step::Posted(_)));
    assert_eq!(stage.posts(), [vec![(0, Some(5), vec![5, 6])], vec![(1, None, vec![0, 1])]]);
    let reports = stage.script.lock().expect("the script").reports.clone();
    assert_eq!(reports.first(), Some(&BTreeMap::from([(0, 5)])));
    assert_eq!(reports.last(), Some(&BTreeMap::from([(0, 7), (1, 2)])));
}

#[tokio::test(start_paused = true)]
async fn the_message_before_the_checkpoint_alone_is_no_batch() {
    let mut stage = stage(vec![Read::Assigned(vec![0]), messages(0, 4..5), messages(0, 5..6)], &[(0, 5)]);
    stage.step().await;
    assert_eq!(stage.step().await, Step::Verified);
    assert!(matches!(stage.step().await, Step::Posted(_)));
    assert_eq!(stage.posts(), [vec![(0, Some(5), vec![5])]]);
}

#[tokio::test(start_paused = true)]
async fn another_message_before_the_checkpoint_stops() {
    let other =
        Read::Messages(BTreeMap::from([(0, vec![Message { offset: 4, value: b"another".to_vec() }])]));
    for (read, why) in [(other, "recreated"), (messages(0, 5..6), "compacted")] {
        let mut stage = stage(vec![Read::Assigned(vec![0]), read], &[(0, 5)]);
        stage.step().await;
        match stage.consumer.step().await {
            Err(StepError::Foreign(text)) => {
                assert!(text.contains(why) && text.contains("topic T partition 0"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert!(stage.posts().is_empty());
    }
}

/// Where no message is to be had the checkpoint goes on, and keeps the message by which the log is known.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_goes_on_over_what_is_no_message() {
    let passed = |upto| Read::Passed(BTreeMap::from([(0, upto)]));
    let reads = vec![Read::Assigned(vec![0]), passed(7), messages(0, 4..5), passed(7), passed(6)];
    let mut stage = stage(reads, &[(0, 5)]);
    stage.step().await;
    assert_eq!(stage.step().await, Step::Quiet, "it is not known yet whether the log is the same");
    assert_eq!(stage.step().await, Step::Verified);
    assert!(matches!(stage.step().await, Step::Posted(_)));
    assert_eq!(stage.posts(), [[(0, Some(5), vec![])]]);
    let at = stage.script.lock().expect("the script").checkpoints[&0].clone();
    assert_eq!((at.next, at.last()), (7, Some(4)));
    assert_eq!(stage.step().await, Step::Quiet, "never back");
}

#[tokio::test(start_paused = true)]
async fn with_nothing_to_post_it_notices_a_ledger_that_is_away() {
    let mut stage = stage(vec![Read::Assigned(vec![0]), Read::Quiet, Read::Quiet, Read::Quiet], &[]);
    stage.step().await;
    stage.script.lock().expect("the script").away = true;
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(matches!(stage.step().await, Step::Away(why) if why.contains("down")));
    stage.script.lock().expect("the script").away = false;
    assert_eq!(stage.step().await, Step::Quiet);
}

#[tokio::test(start_paused = true)]
async fn while_the_ledger_is_away_the_batch_is_kept() {
    let mut stage = stage(vec![Read::Assigned(vec![0]), messages(0, 0..3), messages(0, 3..4)], &[]);
    stage.step().await;
    for _ in 0..8 {
        stage.script.lock().expect("the script").answers.push_back(LedgerError::Away("down".into()));
    }
    let began = tokio::time::Instant::now();
    for _ in 0..8 {
        assert!(matches!(stage.step().await, Step::Away(why) if why.contains("down")));
        assert!(stage.consumer.in_hand());
    }
    // 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 2 + 2 + 2: it backs off, and not for ever.
    assert_eq!(began.elapsed(), Duration::from_millis(9100));
    assert!(matches!(stage.step().await, Step::Posted(posted) if posted.new == 1));
    assert!(matches!(stage.step().await, Step::Posted(posted) if posted.new == 2));
    assert!(!stage.consumer.in_hand());
    assert!(matches!(stage.step().await, Step::Posted(posted) if posted.new == 1));
    assert!(!stage.consumer.in_hand());
}

/// Refused in passing, a batch may have been too much: half of it is tried, down to one message.
/// Then it grows again, over all partitions, and leaves none out.
#[tokio::test(start_paused = true)]
async fn what_was_refused_is_posted_by_less() {
    let both = BTreeMap::from([0, 1].map(|partition| {
        (partition, (0..4).map(|offset| Message { offset, value: value(offset) }).collect())
    }));
    let mut stage = stage(vec![Read::Assigned(vec![0, 1]), Read::Messages(both), messages(0, 4..30)], &[]);
    stage.step().await;
    for _ in 0..4 {
        stage.script.lock().expect("the script").answers.push_back(LedgerError::Away("too slow".into()));
    }
    for _ in 0..4 {
        assert!(matches!(stage.step().await, Step::Away(_)));
    }
    while stage.consumer.in_hand() {
        assert!(matches!(stage.step().await, Step::Posted(_)));
    }
    let sizes = |posts: &[Vec<Posting>]| -> Vec<usize> {
        posts.iter().map(|parts| parts.iter().map(|(.., offsets)| offsets.len()).sum()).collect()
    };
    let posts = stage.posts();
    assert_eq!(sizes(&posts), [8, 4, 2, 1, 1, 2, 3, 2]);
    let at = |partition, from, offsets: &[i64]| (partition, from, offsets.to_vec());
    assert_eq!(
        posts[4..],
        [
            vec![at(0, None, &[0])],
            vec![at(0, Some(1), &[1, 2])],
            vec![at(0, Some(3), &[3]), at(1, None, &[0, 1])],
            vec![at(1, Some(2), &[2, 3])]
        ]
    );
    while !matches!(stage.step().await, Step::Quiet) {}
    assert_eq!(sizes(&stage.posts()[8..]), [5, 6, 7, 8], "it grows with each success");
    assert_eq!(stage.script.lock().expect("the script").checkpoints[&0].next, 30);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_dropped_is_done_again() {
    let mut stage = stage(vec![Read::Assigned(vec![0]), messages(0, 0..3)], &[]);
    stage.step().await;
    stage.script.lock().expect("the script").slow = Some(Duration::from_secs(9));
    assert!(tokio::time::timeout(Duration::from_secs(1), stage.consumer.step()).await.is_err());
    assert!(stage.consumer.in_hand());
    assert!(matches!(stage.step().await, Step::Posted(posted) if posted.new == 3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_partition_was_taken_away_is_dropped() {
    let mut stage = stage(vec![Read::Assigned(vec![0]), messages(0, 0..3)], &[]);
    stage.step().await;
    {
        let mut script = stage.script.lock().expect("the script");
        script.answers.push_back(LedgerError::Away("down".into()));
        script.reads.push_back(Read::Assigned(vec![]));
    }
    assert!(matches!(stage.step().await, Step::Away(_)));
    assert!(!stage.consumer.in_hand());
    assert_eq!(stage.step().await, Step::Quiet);
    assert_eq!(stage.posts().len(), 1, "tried once, and not again");
}

#[tokio::test(start_paused = true)]
async fn when_somebody_else_posted_it_begins_again_from_there() {
    let mut stage = stage(vec![Read::Assigned(vec![0]), messages(0, 0..3), messages(0, 6..9)], &[]);
    stage.step().await;
    {
        let mut script = stage.script.lock().expect("the script");
        script.answers.push_back(LedgerError::Moved { partition: 0, expected: None, found: Some(7) });
        script.checkpoints.insert(0, Checkpoint { next: 7, fingerprint: fingerprint(&value(6)) });
    }
    assert_eq!(stage.step().await, Step::Moved);
    assert_eq!(stage.step().await, Step::Started(vec![0]));
    assert!(matches!(stage.step().await, Step::Posted(_)));
    assert_eq!(stage.posts()[1], [(0, Some(7), vec![7, 8])]);
}

#[tokio::test(start_paused = true)]
async fn quiet_it_reports_every_five_seconds() {
    let mut stage = stage(vec![Read::Assigned(vec![0])], &[(0, 5)]);
    stage.step().await;
    let before = stage.script.lock().expect("the script").reports.len();
    let until = tokio::time::Instant::now() + Duration::from_secs(21);
    while tokio::time::Instant::now() < until {
        assert_eq!(stage.step().await, Step::Quiet);
    }
    let after = stage.script.lock().expect("the script").reports.len();
    assert_eq!(after - before, 4);
}

#[tokio::test(start_paused = true)]
async fn lag_is_shown_for_the_partitions_it_has() {
    let mut stage = stage(vec![Read::Assigned(vec![0, 1]), Read::Assigned(vec![])], &[(0, 7)]);
    for outcome in ["new", "duplicate", "conflict", "dead_letter"] {
        assert!(stage.metrics().contains(&format!("seckill_ledger_sales_total{{outcome=\"{outcome}\"}} 0")));
    }
    stage.step().await;
    let text = stage.metrics();
    assert!(text.contains("seckill_consumer_lag_messages{partition=\"0\",topic=\"T\"} 3"), "{text}");
    assert!(text.contains("seckill_consumer_lag_messages{partition=\"1\",topic=\"T\"} 4"), "{text}");
    stage.step().await;
    assert!(!stage.metrics().contains("partition="), "another has them now");
}

#[tokio::test(start_paused = true)]
async fn told_to_catch_up_it_reads_to_the_end() {
    let Stage { script, consumer, .. } =
        stage(vec![Read::Assigned(vec![0]), messages(0, 0..3), messages(0, 3..9)], &[]);
    let health = Health::default();
    assert!(health.check().is_err());
    run(consumer, health.clone(), async { Stop::CaughtUp(Duration::from_secs(5)) }).await.expect("stopped");
    let script = script.lock().expect("the script");
    assert_eq!(script.checkpoints[&0].next, 9);
    assert!(script.closed);
    assert_eq!(health.check(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_it_gives_up_on_a_ledger_that_stays_away() {
    let Stage { script, consumer, .. } = stage(vec![Read::Assigned(vec![0]), messages(0, 0..3)], &[]);
    for _ in 0..100 {
        script.lock().expect("the script").answers.push_back(LedgerError::Away("down".into()));
    }
    let began = tokio::time::Instant::now();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Stop::Now
    };
    run(consumer, Health::default(), stop).await.expect("stopped");
    assert!(began.elapsed() < Duration::from_secs(3 + 11), "{:?}", began.elapsed());
}
