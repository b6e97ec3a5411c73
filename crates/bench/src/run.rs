//! The run itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_client::{Client, Error};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::keys::{KeyChooser, ValueMaker};
use crate::plan::{Kind, Plan};
use crate::report::Report;

/// How long storing the keys that are to be read may take.
const PREPARATION_MAX: Duration = Duration::from_secs(120);

/// The least number of workers that store the keys to be read, however few clients are measured.
const PREPARATION_WORKERS: u32 = 64;

/// How long a worker rests after a failure: the client has tried again by itself already, and a
/// failure that comes at once must not become a busy loop.
const REST: Duration = Duration::from_millis(10);

/// Why there is no report.
#[derive(Debug)]
pub enum BenchError {
    /// The keys to read could not be stored.
    Preparation(Error),
    /// There were too many keys to store them in time.
    TooManyKeys {
        /// Keys that were stored.
        stored: u64,
        /// Keys that were to be stored.
        keys: u64,
    },
    /// A worker panicked, which is a defect.
    Worker(String),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::Preparation(error) => {
                write!(f, "the keys to read could not be stored: {error}")
            }
            BenchError::TooManyKeys { stored, keys } => {
                let seconds = PREPARATION_MAX.as_secs();
                write!(f, "only {stored} of {keys} keys could be stored in {seconds} s; take fewer")
            }
            BenchError::Worker(what) => write!(f, "a worker failed: {what}"),
        }
    }
}

impl std::error::Error for BenchError {}

/// Progress of a run, for a task that displays it.
#[derive(Debug, Default)]
pub struct Progress {
    prepared: AtomicU64,
    done: AtomicU64,
    measuring: AtomicBool,
    measured: Notify,
    end: AtomicBool,
}

impl Progress {
    /// Keys stored for being read later.
    pub fn prepared(&self) -> u64 {
        self.prepared.load(Ordering::Relaxed)
    }

    /// Operations that ended.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether the clock runs.
    pub fn measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// Waits until the clock runs: what is only written to be read is then stored. For one waiter.
    pub async fn begun_measuring(&self) {
        self.measured.notified().await;
    }

    /// Ends the run: nothing more is begun, and what was measured is reported.
    pub fn end(&self) {
        self.end.store(true, Ordering::Relaxed);
    }

    fn ended(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }
}

/// What all workers share.
struct Shared {
    plan: Plan,
    progress: Arc<Progress>,
    run: u64,
    begun: Instant,
    end: Instant,
    /// Operations begun, which numbers them for rate and count.
    numbers: AtomicU64,
}

impl Shared {
    /// When the next operation is due; `None` when the run is over.
    fn next_due(&self) -> Option<Instant> {
        if self.progress.ended() {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        if self.plan.count.is_some_and(|count| number >= count) {
            return None;
        }
        let due = match self.plan.rate {
            None => Instant::now(),
            Some(rate) => {
                let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate.max(1));
                self.begun + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX >> 2))
            }
        };
        (due < self.end).then_some(due)
    }
}

/// Runs the plan over these clients, one per connection wanted; at least one.
///
/// It takes at most the plan's duration and one timeout, and what comes before it: for plans that
/// read, storing the keys, which is bounded too.
pub async fn run(
    connections: &[Client],
    plan: Plan,
    progress: Arc<Progress>,
) -> Result<Report, BenchError> {
    assert!(!connections.is_empty(), "no client to run with");
    let run = rand::random();
    if plan.kind != Kind::Put {
        prepare(connections, &plan, run, &progress).await?;
    }
    let begun = Instant::now();
    let shared = Arc::new(Shared {
        end: begun + plan.duration,
        begun,
        run,
        numbers: AtomicU64::new(0),
        progress: Arc::clone(&progress),
        plan,
    });
    progress.measuring.store(true, Ordering::Relaxed);
    progress.measured.notify_one();
    let mut workers = JoinSet::new();
    for worker in 0..shared.plan.clients {
        let client = connections[worker as usize % connections.len()].clone();
        workers.spawn(work(client, worker, Arc::clone(&shared)));
    }
    let mut report = Report::default();
    let mut last = begun;
    while let Some(worked) = workers.join_next().await {
        let (part, ended) = worked.map_err(|error| BenchError::Worker(error.to_string()))?;
        report.merge(&part);
        last = last.max(ended);
    }
    // Only what ended in time was counted; a run that ended by its count ended with its last
    // operation.
    report.elapsed = last.min(shared.end).duration_since(begun);
    report.ended_early = progress.ended();
    Ok(report)
}

/// One worker: an operation after the other, until the run is over. When its last one ended.
async fn work(client: Client, worker: u32, shared: Arc<Shared>) -> (Report, Instant) {
    let plan = &shared.plan;
    let seed = plan.seed.wrapping_add(u64::from(worker).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut keys = KeyChooser::new(plan.distribution, plan.keys, seed);
    // The store of the keys that are read takes the numbers after the workers'.
    let mut values = ValueMaker::new(shared.run, worker, plan.value_size);
    let mut report = Report::default();
    let mut last = shared.begun;
    while let Some(due) = shared.next_due() {
        // A timer counts whole milliseconds: even one that is due already may take one to fire.
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        let key = plan.key(keys.next_key());
        let reads = keys.one_of(plan.kind.reads());
        let result = match reads {
            true => read(&client, plan, key).await,
            false => {
                let put = client.put(key, values.next_value()).timeout(plan.timeout);
                put.await.map(drop)
            }
        };
        let ended = Instant::now();
        shared.progress.done.fetch_add(1, Ordering::Relaxed);
        let operation = if reads { &mut report.get } else { &mut report.put };
        match result {
            Ok(()) if ended <= shared.end => {
                operation.latencies.record(ended.duration_since(due));
                last = ended;
            }
            // It was begun in time and ended after it: no part of what was measured.
            Ok(()) => last = shared.end,
            Err(error) => {
                *operation.failures.entry(error.detail().reason_name()).or_default() += 1;
                operation.unknown += u64::from(error.is_unknown());
                last = ended;
                tokio::time::sleep(REST).await;
            }
        }
    }
    // Without a count, the run lasts its duration, even where the last operation failed before its
    // end.
    if plan.count.is_none() && !shared.progress.ended() {
        last = shared.end;
    }
    (report, last)
}

async fn read(client: &Client, plan: &Plan, key: String) -> Result<(), Error> {
    let mut get = client.get(key).level(plan.level).timeout(plan.timeout);
    if let Some(staleness) = plan.max_staleness {
        get = get.max_staleness(staleness);
    }
    get.await.map(drop)
}

/// Stores every key once, so that reads find something.
async fn prepare(
    connections: &[Client],
    plan: &Plan,
    run: u64,
    progress: &Arc<Progress>,
) -> Result<(), BenchError> {
    let next = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicBool::new(false));
    let give_up = Instant::now() + PREPARATION_MAX;
    let mut workers = JoinSet::new();
    for worker in 0..plan.clients.max(PREPARATION_WORKERS) {
        let client = connections[worker as usize % connections.len()].clone();
        let (plan, next, progress) = (plan.clone(), Arc::clone(&next), Arc::clone(progress));
        let failed = Arc::clone(&failed);
        let mut values = ValueMaker::new(run, plan.clients + worker, plan.value_size);
        workers.spawn(async move {
            while Instant::now() < give_up && !progress.ended() && !failed.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= plan.keys {
                    break;
                }
                let put = client.put(plan.key(number), values.next_value());
                if let Err(error) = put.timeout(plan.timeout).await {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                progress.prepared.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Error>(())
        });
    }
    // Those under way are waited for, and one of unknown outcome is reported before one that was
    // refused.
    let mut worst: Option<Error> = None;
    while let Some(worked) = workers.join_next().await {
        let worked = worked.map_err(|error| BenchError::Worker(error.to_string()))?;
        if let Err(error) = worked
            && (worst.is_none() || error.is_unknown())
        {
            worst = Some(error);
        }
    }
    if let Some(error) = worst {
        return Err(BenchError::Preparation(error));
    }
    let stored = progress.prepared();
    if stored < plan.keys && !progress.ended() {
        return Err(BenchError::TooManyKeys { stored, keys: plan.keys });
    }
    Ok(())
}
