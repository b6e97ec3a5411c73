//! One slice of a visit: a closed loop of some clients for some seconds, and what it took.
//!
//! Operations count when they end between two readings of the processor times; operations of the
//! warm-up before and the last ones under way do not. Syncs are read while nothing is under way,
//! and divided by all writes that were acknowledged between the readings, warm-up included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_bench::{Distribution, KeyChooser, Latencies, ValueMaker};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::fatal::Fatal;
use super::store::{Refusal, Store};
use super::usage::{self, Usage};

/// How long the operations under way at the end of a slice may take.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// How long storing all keys may take.
const LOAD_PATIENCE: Duration = Duration::from_secs(600);

/// How long a client rests after a failure, which must not become a busy loop.
const REST: Duration = Duration::from_millis(10);

/// The servers that a slice drives, as far as it reads what they take.
pub(super) trait Servers {
    /// Checks that every server still runs.
    ///
    /// # Errors
    /// One has ended.
    fn check_alive(&mut self) -> Result<(), Fatal>;

    /// What all servers together have taken so far.
    ///
    /// # Errors
    /// A server has ended.
    fn usage(&self) -> Result<Usage, Fatal>;

    /// Syncs of the logs of all servers so far.
    ///
    /// # Errors
    /// A server's metrics cannot be read, or do not count its syncs.
    fn syncs(&self) -> impl Future<Output = Result<f64, Fatal>>;

    /// Bytes that the data of all servers takes on the disk, as allocated.
    ///
    /// # Errors
    /// It cannot be read.
    fn disk(&self) -> Result<u64, Fatal>;
}

/// What the clients of a slice do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// Store every key once; this slice ends when that is done, and the writes that failed are
    /// repeated.
    Load,
    /// Write keys that exist.
    Put,
    /// Read keys that exist.
    Get,
}

impl Work {
    /// The name of the operation.
    pub(super) fn name(self) -> &'static str {
        match self {
            Work::Load => "load",
            Work::Put => "put",
            Work::Get => "get",
        }
    }
}

/// What all slices of a run have in common.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shape {
    /// Number of different keys, at least 1; all are taken equally often.
    pub(super) keys: u64,
    /// Bytes of a value.
    pub(super) value_size: usize,
    /// How long the loop runs before it counts.
    #[serde(serialize_with = "seconds")]
    pub(super) warm_up: Duration,
    /// How long it counts.
    #[serde(serialize_with = "seconds")]
    pub(super) duration: Duration,
}

/// A duration as JSON has it: in seconds.
fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}

/// Which slice.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    /// What the clients do.
    pub(super) work: Work,
    /// How many there are; each has one operation under way.
    pub(super) clients: u32,
    /// What messages call it.
    pub(super) name: String,
    /// Makes its values and its choice of keys differ from those of other slices.
    pub(super) number: u64,
}

/// What a slice measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// Operations that were answered in the measured time.
    pub(super) operations: u64,
    /// Operations that failed in the measured time; they are in no other figure.
    pub(super) failed: u64,
    /// What the first of them said.
    pub(super) first_failure: Option<String>,
    /// The measured time, in seconds.
    pub(super) seconds: f64,
    /// Operations per second.
    pub(super) per_second: f64,
    /// Half of the operations took at most this, in microseconds.
    pub(super) p50_us: f64,
    /// Ninety-nine in a hundred took at most this, in microseconds.
    pub(super) p99_us: f64,
    /// Processor time of all servers together for one operation, in microseconds.
    pub(super) server_cpu_us: f64,
    /// Processor time of this process for one operation, in microseconds.
    pub(super) client_cpu_us: f64,
    /// Syncs of the logs of all servers for one acknowledged write; `None` for reads.
    pub(super) syncs_per_write: Option<f64>,
    /// Resident memory of all servers together at the end, in bytes.
    pub(super) memory_bytes: u64,
    /// What their data directories take on the disk after the end, in bytes.
    pub(super) disk_bytes: u64,
}

/// Where a slice stands: which operations count.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

struct Shared {
    phase: AtomicU8,
    /// The next key that is stored.
    next_key: AtomicU64,
    shape: Shape,
    slice: Slice,
}

impl Shared {
    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// The counts of one client.
#[derive(Default)]
struct Tally {
    latencies: Latencies,
    failed: u64,
    first_failure: Option<String>,
    /// Writes that were acknowledged, whether or not they count.
    writes: u64,
}

impl Tally {
    fn merge(&mut self, other: Tally) {
        self.latencies.merge(&other.latencies);
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.writes += other.writes;
    }
}

/// Runs a slice against a cluster that does nothing else.
///
/// It is bounded in time: by warm-up, duration and 10 s, or 10 minutes for a load.
///
/// # Errors
/// No operation succeeded, one had no answer in 10 s after the end, or a server ended.
pub(super) async fn run<S: Store>(
    store: &S,
    cluster: &mut impl Servers,
    shape: &Shape,
    slice: Slice,
) -> Result<Figures, Fatal> {
    let fails = |why: String| Fatal::Slice { slice: slice.name.clone(), why };
    let this_process = || {
        let usage = usage::of_process(std::process::id());
        usage.map_err(Fatal::machine("cannot read what this process takes"))
    };
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(Phase::WarmUp as u8),
        next_key: AtomicU64::new(0),
        shape: shape.clone(),
        slice: slice.clone(),
    });
    let syncs_before = cluster.syncs().await?;
    let mut clients = JoinSet::new();
    if slice.work == Work::Load {
        // What was begun before the first reading would not count.
        shared.enter(Phase::Measured);
    }
    let mut before = (cluster.usage()?, this_process()?, Instant::now());
    for number in 0..slice.clients {
        clients.spawn(work(store.clone(), number, Arc::clone(&shared)));
    }
    let mut sum = Tally::default();
    let joined = |clients: JoinSet<Tally>, patience| timeout(patience, clients.join_all());
    let after = if slice.work == Work::Load {
        let tallies = joined(clients, LOAD_PATIENCE).await.map_err(|_| {
            // Each client has a key under way.
            let begun = shared.next_key.load(Ordering::Relaxed).min(shape.keys);
            let stored = begun.saturating_sub(u64::from(slice.clients));
            let seconds = LOAD_PATIENCE.as_secs();
            fails(format!("{stored} of {} keys in {seconds} s; take fewer (--keys)", shape.keys))
        })?;
        tallies.into_iter().for_each(|tally| sum.merge(tally));
        (cluster.usage()?, this_process()?, Instant::now())
    } else {
        sleep(shape.warm_up).await;
        before = (cluster.usage()?, this_process()?, Instant::now());
        shared.enter(Phase::Measured);
        sleep(shape.duration).await;
        shared.enter(Phase::Over);
        let after = (cluster.usage()?, this_process()?, Instant::now());
        let tallies = joined(clients, LAST_PATIENCE).await.map_err(|_| {
            let seconds = LAST_PATIENCE.as_secs();
            fails(format!("an operation had no answer in {seconds} s after the end"))
        })?;
        tallies.into_iter().for_each(|tally| sum.merge(tally));
        after
    };
    cluster.check_alive()?;
    let operations = sum.latencies.count();
    if operations == 0 {
        let first = sum.first_failure.map(|first| format!(", the first: {first}"));
        let (failed, first) = (sum.failed, first.unwrap_or_default());
        return Err(fails(format!("no operation succeeded; {failed} failed{first}")));
    }
    let syncs = cluster.syncs().await? - syncs_before;
    let seconds = after.2.duration_since(before.2).as_secs_f64();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / operations as f64;
    let latency = sum.latencies.summary();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(Figures {
        operations,
        failed: sum.failed,
        first_failure: sum.first_failure,
        seconds,
        per_second: operations as f64 / seconds,
        p50_us: micros(latency.p50),
        p99_us: micros(latency.p99),
        server_cpu_us: each(after.0.cpu.saturating_sub(before.0.cpu)),
        client_cpu_us: each(after.1.cpu.saturating_sub(before.1.cpu)),
        syncs_per_write: (slice.work != Work::Get).then(|| syncs / sum.writes.max(1) as f64),
        memory_bytes: after.0.resident,
        disk_bytes: cluster.disk()?,
    })
}

/// One client: an operation after the other, until the slice is over.
async fn work<S: Store>(mut store: S, number: u32, shared: Arc<Shared>) -> Tally {
    let (shape, slice) = (&shared.shape, &shared.slice);
    let seed = (slice.number << 32) | u64::from(number);
    let mut keys = KeyChooser::new(Distribution::Uniform, shape.keys, seed);
    let mut values = ValueMaker::new(slice.number, number, shape.value_size);
    let mut tally = Tally::default();
    store.begin_at(number as usize);
    let mut again = None;
    while !shared.is(Phase::Over) {
        let chosen = match slice.work {
            Work::Load => {
                again.take().unwrap_or_else(|| shared.next_key.fetch_add(1, Ordering::Relaxed))
            }
            Work::Put | Work::Get => keys.next_key(),
        };
        if chosen >= shape.keys {
            break;
        }
        // All keys are of one length, so that they cost the same.
        let key = Bytes::from(format!("bench/{chosen:012}"));
        let value = (slice.work != Work::Get).then(|| Bytes::from(values.next_value()));
        let writes = value.is_some();
        let begun = Instant::now();
        let result = match value {
            Some(value) => store.put(key, value).await,
            None => store.get(key).await.and_then(|value| check(&value, shape.value_size)),
        };
        let took = begun.elapsed();
        let counts = shared.is(Phase::Measured);
        match result {
            Ok(()) => {
                tally.writes += u64::from(writes);
                if counts {
                    tally.latencies.record(took);
                }
            }
            Err(Refusal(sentence)) => {
                tally.failed += u64::from(counts);
                tally.first_failure.get_or_insert(sentence);
                again = Some(chosen);
                sleep(REST).await;
            }
        }
    }
    tally
}

/// An answer that is not what was written does not count.
fn check(value: &Bytes, size: usize) -> Result<(), Refusal> {
    if value.len() == size {
        return Ok(());
    }
    Err(Refusal(format!("a value of {} bytes was read, and {size} were written", value.len())))
}

#[cfg(test)]
mod tests;
