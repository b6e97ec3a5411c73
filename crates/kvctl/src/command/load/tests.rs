use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::*;
use crate::cli::RecordFormat;

fn layout() -> Layout {
    let key_prefix = Bytes::new();
    Layout { format: RecordFormat::Tsv, delimiter: None, key_field: None, key_prefix }
}

fn limits() -> Limits {
    Limits { in_flight: 8, rate: None, max_failures: 0 }
}

async fn load<S, F>(text: &str, limits: Limits, journal: Option<Journal>, store: S) -> Loaded
where
    S: Fn(Bytes, Bytes) -> F,
    F: Future<Output = Result<Stored>>,
{
    let records = read_records(io::Cursor::new(text.to_owned().into_bytes()), layout());
    let loading = Loading::new(store, limits, journal, Progress::silent());
    loading.run(records, &Interrupt::listen()).await
}

fn put(revision: u64) -> Stored {
    Stored { unchanged: false, revision, shard: 1 }
}

#[tokio::test]
async fn many_at_a_time_but_each_key_in_order() {
    let text: String = (0..300).map(|i| format!("{}\t{i}\n", i % 7)).collect();
    let (under_way, most) = (Cell::new(0), Cell::new(0));
    let last: RefCell<HashMap<Bytes, u32>> = RefCell::default();
    let loaded = load(&text, limits(), None, |key: Bytes, value: Bytes| {
        under_way.set(under_way.get() + 1);
        most.set(most.get().max(under_way.get()));
        let (under_way, last) = (&under_way, &last);
        async move {
            // The first records take longest, so that the order is not kept by accident.
            let number: u32 = str::from_utf8(&value).unwrap().parse().unwrap();
            for _ in 0..(7 - number % 7) * 3 {
                tokio::task::yield_now().await;
            }
            under_way.set(under_way.get() - 1);
            let before = last.borrow_mut().insert(key, number);
            assert!(before.is_none_or(|before| before < number), "{before:?} after {number}");
            Ok(put(1))
        }
    })
    .await;
    assert_eq!(loaded.counts, Counts { put: 300, ..Counts::default() });
    assert_eq!(loaded.exit, Exit::Done);
    assert!(most.get() > 1 && most.get() <= 8, "{} at a time", most.get());
}

#[tokio::test]
async fn a_malformed_line_stops_but_what_is_before_it_is_stored() {
    let text = "a\t1\nb\t2\nmalformed\nc\t3\n";
    let stored = RefCell::new(Vec::new());
    let loaded = load(text, limits(), None, |key: Bytes, _| {
        stored.borrow_mut().push(key);
        async { Ok(put(1)) }
    })
    .await;
    assert_eq!(*stored.borrow(), ["a", "b"]);
    assert_eq!(loaded.counts.put, 2);
    assert_eq!(loaded.exit, Exit::Usage);
    let stopped = loaded.stopped.unwrap().message;
    assert!(stopped.starts_with("line 3: expected a key and a value"), "{stopped}");
}

#[tokio::test]
async fn failures_are_counted_and_the_weightiest_decides() {
    let text = "a\t\nb\t\nc\t\nd\t\n";
    let loaded = load(text, limits(), None, |key: Bytes, _| async move {
        match &key[..] {
            b"a" => Err(Failure::of(Exit::Unavailable, "no leader")),
            b"b" => Err(Failure::of(Exit::Unknown, "lost")),
            b"c" => Ok(Stored { unchanged: true, ..put(1) }),
            _ => Ok(put(2)),
        }
    })
    .await;
    assert_eq!(loaded.counts, Counts { put: 1, unchanged: 1, failed: 1, unknown: 1 });
    assert_eq!(loaded.exit, Exit::Unknown);
    assert!(loaded.stopped.is_none());
}

#[tokio::test]
async fn too_many_failures_stop_the_load() {
    let text: String = (0..1_000).map(|i| format!("{i}\t\n")).collect();
    let limits = Limits { in_flight: 4, rate: None, max_failures: 10 };
    let loaded = load(&text, limits, None, |_, _| async {
        Err(Failure::of(Exit::Unavailable, "no leader"))
    })
    .await;
    // Records in flight when the tenth failed are counted too.
    assert!((10..=14).contains(&loaded.counts.failed), "{:?}", loaded.counts);
    assert!(loaded.stopped.unwrap().message.contains("after 10 failures"));
    assert_eq!(loaded.exit, Exit::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_an_upper_bound() {
    let text: String = (0..50).map(|i| format!("{i}\t\n")).collect();
    let begun = Instant::now();
    let limits = Limits { rate: Some(200), ..limits() };
    let loaded = load(&text, limits, None, |_, _| async { Ok(put(1)) }).await;
    assert_eq!(loaded.counts.put, 50);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(49 * 5), "50 records at 200/s took {took:?}");
}

#[tokio::test]
async fn the_journal_has_a_line_for_each_acknowledgement() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Journal::create(&path).unwrap();
    let limits = Limits { in_flight: 1, ..limits() };
    let loaded = load(
        "a\\t\t1\nb\t2\nc\t3\n",
        limits,
        Some(journal),
        |key: Bytes, value: Bytes| async move {
            let revision = str::from_utf8(&value).unwrap().parse().unwrap();
            if key == "b" { Err(Failure::of(Exit::Unknown, "lost")) } else { Ok(put(revision)) }
        },
    )
    .await;
    assert_eq!(loaded.counts.unknown, 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\\t\t1\t1\nc\t3\t1\n");
    assert!(Journal::create(&path).is_err(), "an old journal was overwritten");
}

/// A record may become due between two readings of the clock, with nothing in flight that would
/// wake the load again.
#[tokio::test]
async fn a_record_that_becomes_due_during_the_check_does_not_stall_the_load() {
    let text: String = (0..100_000).map(|i| format!("{i}\t\n")).collect();
    let limits = Limits { rate: Some(100_000), ..limits() };
    let loading = load(&text, limits, None, |_, _| async { Ok(put(1)) });
    let loaded = tokio::time::timeout(Duration::from_secs(20), loading).await;
    assert_eq!(loaded.expect("the load does not stall").counts.put, 100_000);
}
