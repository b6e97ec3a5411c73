//! The run itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_client::{Client, Error};
use tokio::sync::{Notify, Semaphore};
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
    /// Operations that were due, which numbers them for rate and count.
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
    match shared.plan.rate {
        None => {
            for worker in 0..shared.plan.clients {
                let client = connections[worker as usize % connections.len()].clone();
                workers.spawn(work(client, worker, Arc::clone(&shared)));
            }
        }
        Some(_) => {
            let places = Arc::new(Semaphore::new(shared.plan.in_flight as usize));
            for (number, client) in connections.iter().enumerate() {
                let (client, places) = (client.clone(), Arc::clone(&places));
                workers.spawn(begin_on_time(client, number as u32, Arc::clone(&shared), places));
            }
        }
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

/// The end of one operation.
struct Ended {
    reads: bool,
    due: Instant,
    at: Instant,
    result: Result<(), Error>,
}

/// Carries one operation out; `value` = none for a read.
async fn operate(
    client: &Client,
    plan: &Plan,
    key: String,
    value: Option<Vec<u8>>,
    due: Instant,
) -> Ended {
    let reads = value.is_none();
    let result = match value {
        None => read(client, plan, key).await,
        Some(value) => client.put(key, value).timeout(plan.timeout).await.map(drop),
    };
    Ended { reads, due, at: Instant::now(), result }
}

/// The counts of one task.
struct Tally {
    shared: Arc<Shared>,
    report: Report,
    last: Instant,
}

impl Tally {
    fn new(shared: Arc<Shared>) -> Self {
        let last = shared.begun;
        Tally { shared, report: Report::default(), last }
    }

    fn count(&mut self, ended: &Ended) {
        self.shared.progress.done.fetch_add(1, Ordering::Relaxed);
        let end = self.shared.end;
        let operation = if ended.reads { &mut self.report.get } else { &mut self.report.put };
        match &ended.result {
            Ok(()) if ended.at <= end => {
                operation.latencies.record(ended.at.duration_since(ended.due));
                self.last = self.last.max(ended.at);
            }
            // It was begun in time and ended after it: no part of what was measured.
            Ok(()) => {
                operation.late += 1;
                self.last = end;
            }
            Err(error) => {
                let (reason, sentence) = (error.detail().reason_name(), &error.detail().message);
                *operation.failures.entry(reason).or_default() += 1;
                operation.sentences.entry(reason).or_insert_with(|| sentence.clone());
                operation.unknown += u64::from(error.is_unknown());
                self.last = self.last.max(ended.at);
            }
        }
    }

    /// The counts, and when the last operation ended. Without a count, the run lasts its duration,
    /// even where the last operation failed before its end.
    fn end(mut self) -> (Report, Instant) {
        if self.shared.plan.count.is_none() && !self.shared.progress.ended() {
            self.last = self.shared.end;
        }
        (self.report, self.last)
    }
}

/// What the operations of one task take and write.
struct Choices {
    keys: KeyChooser,
    values: ValueMaker,
}

impl Choices {
    fn new(shared: &Shared, task: u32) -> Self {
        let plan = &shared.plan;
        let seed = plan.seed.wrapping_add(u64::from(task).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Choices {
            keys: KeyChooser::new(plan.distribution, plan.keys, seed),
            // The store of the keys that are read takes the numbers after the tasks'.
            values: ValueMaker::new(shared.run, task, plan.value_size),
        }
    }

    /// The key of the next operation, and the value that it writes; none for a read.
    fn next_operation(&mut self, plan: &Plan) -> (String, Option<Vec<u8>>) {
        let key = plan.key(self.keys.next_key());
        let reads = self.keys.one_of(plan.kind.reads());
        (key, (!reads).then(|| self.values.next_value()))
    }
}

/// One worker of a closed loop: an operation after the other, until the run is over.
async fn work(client: Client, worker: u32, shared: Arc<Shared>) -> (Report, Instant) {
    let plan = &shared.plan;
    let mut choices = Choices::new(&shared, worker);
    let mut tally = Tally::new(Arc::clone(&shared));
    while let Some(due) = shared.next_due() {
        let (key, value) = choices.next_operation(plan);
        let ended = operate(&client, plan, key, value, due).await;
        tally.count(&ended);
        if ended.result.is_err() {
            tokio::time::sleep(REST).await;
        }
    }
    tally.end()
}

/// Begins the operations of an open loop when they are due, and waits for their ends afterwards.
async fn begin_on_time(
    client: Client,
    task: u32,
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
) -> (Report, Instant) {
    let mut choices = Choices::new(&shared, task);
    let mut tally = Tally::new(Arc::clone(&shared));
    let mut under_way = JoinSet::new();
    while let Some(due) = shared.next_due() {
        // A timer counts whole milliseconds: even one that is due already may take one to fire.
        match due > Instant::now() {
            true => tokio::time::sleep_until(due).await,
            // Behind time, it must not keep its thread from those under way.
            false => tokio::task::consume_budget().await,
        }
        while let Some(ended) = under_way.try_join_next() {
            tally.count(&joined(ended));
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tally.report.skipped += 1;
            continue;
        };
        let (key, value) = choices.next_operation(&shared.plan);
        let (client, shared) = (client.clone(), Arc::clone(&shared));
        under_way.spawn(async move {
            let ended = operate(&client, &shared.plan, key, value, due).await;
            drop(place);
            ended
        });
    }
    while let Some(ended) = under_way.join_next().await {
        tally.count(&joined(ended));
    }
    tally.end()
}

/// The result of a task that is never aborted.
fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> T {
    // A panic of the task continues here, as if this task had done the work itself.
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
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
        let number = plan.clients.max(connections.len() as u32) + worker;
        let mut values = ValueMaker::new(run, number, plan.value_size);
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
