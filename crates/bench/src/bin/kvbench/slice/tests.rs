//! Slices over a store and servers that are made up, in a time that stands still unless all wait.

use std::cell::Cell;
use std::sync::Mutex;

use super::*;

/// What a made-up store was asked and does.
#[derive(Default)]
struct Asked {
    /// Keys that were written, in order.
    written: Vec<Bytes>,
    values: std::collections::BTreeSet<Bytes>,
    reads: u64,
}

#[derive(Clone)]
struct Scripted {
    asked: Arc<Mutex<Asked>>,
    /// How long an operation takes.
    takes: Duration,
    /// Every n-th write of all fails; 0 = none.
    fails_each: usize,
    /// Bytes of what is read.
    reads: usize,
}

impl Scripted {
    fn new(takes: Duration) -> Scripted {
        Scripted { asked: Arc::default(), takes, fails_each: 0, reads: 100 }
    }
}

impl Store for Scripted {
    fn begin_at(&mut self, _: usize) {}

    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Refusal> {
        sleep(self.takes).await;
        let mut asked = self.asked.lock().unwrap();
        asked.written.push(key);
        assert_eq!(value.len(), 100);
        assert!(asked.values.insert(value), "a value was written twice");
        match asked.written.len().checked_rem(self.fails_each) {
            Some(0) => Err(Refusal("it is full".to_owned())),
            _ => Ok(()),
        }
    }

    async fn get(&mut self, _: Bytes) -> Result<Bytes, Refusal> {
        sleep(self.takes).await;
        self.asked.lock().unwrap().reads += 1;
        Ok(Bytes::from(vec![0; self.reads]))
    }
}

/// Servers that take 40 ms of CPU for each 100 ms, and sync three times for each write.
struct Idle {
    begun: Instant,
    asked: Arc<Mutex<Asked>>,
    checked: Cell<bool>,
}

impl Idle {
    fn of(store: &Scripted) -> Idle {
        Idle { begun: Instant::now(), asked: Arc::clone(&store.asked), checked: Cell::new(false) }
    }
}

impl Servers for Idle {
    fn check_alive(&mut self) -> Result<(), Fatal> {
        self.checked.set(true);
        Ok(())
    }

    fn usage(&self) -> Result<Usage, Fatal> {
        Ok(Usage { cpu: self.begun.elapsed() * 2 / 5, resident: 7 })
    }

    async fn syncs(&self) -> Result<f64, Fatal> {
        Ok(1_000.0 + 3.0 * self.asked.lock().unwrap().written.len() as f64)
    }

    fn disk(&self) -> Result<u64, Fatal> {
        Ok(9)
    }
}

fn shape() -> Shape {
    let (warm_up, duration) = (Duration::from_secs(3), Duration::from_secs(2));
    Shape { keys: 50, value_size: 100, warm_up, duration }
}

async fn measure(store: &Scripted, work: Work, clients: u32) -> Result<Figures, Fatal> {
    let mut servers = Idle::of(store);
    let slice = Slice { work, clients, name: "it".to_owned(), number: 3 };
    let figures = run(store, &mut servers, &shape(), slice).await;
    assert!(servers.checked.get() || figures.is_err(), "the servers were looked after");
    figures
}

#[tokio::test(start_paused = true)]
async fn the_warm_up_is_in_no_figure_but_that_of_syncs() {
    let store = Scripted::new(Duration::from_millis(10));
    let figures = measure(&store, Work::Put, 4).await.unwrap();
    // Four clients for 2 s at 10 ms; who ends at the very edge may count or not.
    assert!((790..=808).contains(&figures.operations), "{figures:?}");
    assert!((figures.seconds - 2.0).abs() < 0.01, "{figures:?}");
    assert!((figures.per_second - 400.0).abs() < 5.0, "{figures:?}");
    assert!((9_900.0..=11_100.0).contains(&figures.p50_us), "{figures:?}");
    // 800 ms of CPU for 800 operations.
    assert!((figures.server_cpu_us - 1_000.0).abs() < 15.0, "{figures:?}");
    // The made-up servers sync three times for each write, those of the warm-up too.
    assert_eq!(figures.syncs_per_write, Some(3.0));
    assert_eq!((figures.memory_bytes, figures.disk_bytes, figures.failed), (7, 9, 0));
}

#[tokio::test(start_paused = true)]
async fn a_load_stores_every_key_and_repeats_what_failed() {
    let store = Scripted { fails_each: 5, ..Scripted::new(Duration::from_millis(10)) };
    let figures = measure(&store, Work::Load, 4).await.unwrap();
    assert_eq!(figures.operations, 50);
    let asked = store.asked.lock().unwrap();
    assert_eq!(figures.failed, asked.written.len() as u64 - 50);
    assert!(figures.failed >= 10, "{figures:?}");
    assert_eq!(figures.first_failure.as_deref(), Some("it is full"));
    let keys: std::collections::BTreeSet<&Bytes> = asked.written.iter().collect();
    assert_eq!(keys.len(), 50, "every key");
    // What failed is in the syncs of these servers, and not among the acknowledged writes.
    assert_eq!(figures.syncs_per_write, Some(3.0 * asked.written.len() as f64 / 50.0));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_must_be_what_was_written() {
    let store = Scripted::new(Duration::from_millis(10));
    let figures = measure(&store, Work::Get, 2).await.unwrap();
    assert_eq!((figures.failed, figures.syncs_per_write), (0, None));
    assert!(store.asked.lock().unwrap().reads >= figures.operations);
    let store = Scripted { reads: 99, ..store };
    let sentence = measure(&store, Work::Get, 2).await.unwrap_err().to_string();
    let expected = "the first: a value of 99 bytes was read, and 100 were written";
    assert!(sentence.starts_with("it: no operation succeeded; "), "{sentence}");
    assert!(sentence.ends_with(expected), "{sentence}");
}

#[tokio::test(start_paused = true)]
async fn an_operation_without_an_answer_ends_the_run() {
    let begun = Instant::now();
    let store = Scripted::new(Duration::from_secs(3_600));
    let sentence = measure(&store, Work::Put, 1).await.unwrap_err().to_string();
    assert_eq!(sentence, "it: an operation had no answer in 10 s after the end");
    assert!(begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
    let sentence = measure(&store, Work::Load, 2).await.unwrap_err().to_string();
    assert_eq!(sentence, "it: 0 of 50 keys in 600 s; take fewer (--keys)");
}
