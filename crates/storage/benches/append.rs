//! Bench of appends: how fast entries become durable, with the log in the database and in files,
//! with and without the state to which they are applied, compared with a plain file that gets the
//! same bytes and `fdatasync`.
//!
//! `cargo bench -p quorate-storage --bench append`
//!
//! The values change with every entry (the database does not write a value that is stored already),
//! entries are purged and the head moves as in a running node. The contenders take turns of a
//! fraction of a second, so that the disk's fast and slow periods affect all of them. Only their
//! ratio is meaningful, and it is a ratio of medians, because a busy neighbour affects the slowest
//! barriers first.

#![allow(clippy::unwrap_used, reason = "a bench that cannot write has nothing to say")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_raft::{
    Entry, EntryKind, GroupId, Index, Membership, NodeId, Replica, ReplicaId, Term,
};
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, HashRange, LogBackend, RecordLog, RowKey, RowKind,
    Section, SectionKind, ShardInit, ShardStore,
};
use rustix::time::{ClockId, clock_gettime};

const VALUE_BYTES: usize = 256;
const GROUPS: u64 = 8;
/// Entries of a group that are kept when the others are purged.
const KEEP: u64 = 2_000;
/// Different keys that are written, over all groups.
const KEYS: u64 = 100_000;
/// Rows between two checkpoints of all groups.
const CHECKPOINT_INTERVAL: u64 = 50_000;
const ENTRIES_PER_BARRIER: [usize; 3] = [1, 32, 128];

/// Makes a batch of entries durable.
trait Appender {
    fn name(&self) -> &'static str;
    fn append(&mut self, values: &[Bytes]);
}

struct PlainFile(File);

impl Appender for PlainFile {
    fn name(&self) -> &'static str {
        "plain file"
    }

    fn append(&mut self, values: &[Bytes]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.iter().copied()).collect();
        self.0.write_all(&bytes).unwrap();
        self.0.sync_data().unwrap();
    }
}

struct Log {
    name: &'static str,
    database: Database,
    log: RecordLog,
    last: [u64; GROUPS as usize],
    next: u64,
}

impl Log {
    fn open(backend: LogBackend, dir: &Path) -> Self {
        let database = Database::open(&dir.join("sled"), DatabaseOptions::default()).unwrap();
        let (log, _) = RecordLog::open(backend, &database, dir).unwrap();
        Self { name: backend.name(), database, log, last: [0; GROUPS as usize], next: 0 }
    }

    /// Appends the values as entries of the next groups; each group with the entries it got.
    fn append(&mut self, values: &[Bytes]) -> Vec<(GroupId, Vec<Entry>)> {
        let per_group = values.len().div_ceil(GROUPS as usize);
        let mut appended = Vec::with_capacity(GROUPS as usize);
        for values in values.chunks(per_group) {
            let group = self.next % GROUPS;
            self.next += 1;
            let last = &mut self.last[group as usize];
            let entries = values.iter().zip(*last + 1..).map(|(value, index)| Entry {
                term: Term(3),
                index: Index(index),
                kind: EntryKind::Command,
                stamp: (1 << 56) + index,
                payload: value.clone(),
            });
            appended.push((GroupId(group), entries.collect::<Vec<_>>()));
            *last += values.len() as u64;
        }
        let sections = appended.iter().map(|(group, entries)| Section {
            group: *group,
            replica: replica(*group),
            kind: SectionKind::Append(entries.clone()),
        });
        self.log.append(&sections.collect::<Vec<_>>()).unwrap();
        appended
    }
}

fn replica(group: GroupId) -> ReplicaId {
    ReplicaId(group.0 + 100)
}

impl Appender for Log {
    fn name(&self) -> &'static str {
        self.name
    }

    fn append(&mut self, values: &[Bytes]) {
        for (group, _) in Log::append(self, values) {
            let through = self.last[group.0 as usize].saturating_sub(KEEP);
            self.log.purge(group, replica(group), Index(through));
        }
        self.log.maintain().unwrap();
    }
}

/// The log, and the state of every group with its checkpoints: everything that a node writes.
struct LogAndState {
    name: &'static str,
    log: Log,
    stores: Vec<ShardStore>,
    keys: Vec<RowKey>,
    written: u64,
    /// Rows written before the last checkpoint.
    checkpointed: u64,
}

impl LogAndState {
    fn open(backend: LogBackend, dir: &Path) -> Self {
        let log = Log::open(backend, dir);
        let budget = Arc::new(DeltaBudget::default());
        let store = |group| {
            let init = ShardInit {
                group: GroupId(group),
                replica: replica(GroupId(group)),
                membership: Membership::of_voters([Replica::new(ReplicaId(1), NodeId(1))]),
                range: HashRange::ALL,
                shard_epoch: 1,
            };
            ShardStore::create(&log.database, init, Arc::clone(&budget)).unwrap()
        };
        let stores = (0..GROUPS).map(store).collect();
        let key = |n| RowKey::new(RowKind::User, 0, format!("key-{n:08}").as_bytes());
        let keys = (0..KEYS).map(key).collect();
        let name = if backend == LogBackend::Sled { "sled + state" } else { "file + state" };
        Self { name, log, stores, keys, written: 0, checkpointed: 0 }
    }

    fn checkpoint(&mut self) {
        for store in &mut self.stores {
            let Some(job) = store.freeze() else { continue };
            let finished = job.run().unwrap();
            let through = store.finish(finished);
            let group = store.header().group;
            self.log.log.purge(group, replica(group), through.index);
        }
        self.log.log.maintain().unwrap();
    }
}

impl Appender for LogAndState {
    fn name(&self) -> &'static str {
        self.name
    }

    fn append(&mut self, values: &[Bytes]) {
        for (group, entries) in self.log.append(values) {
            let store = &mut self.stores[group.0 as usize];
            for entry in entries {
                // Keys in a scattered order, as from many clients.
                let key = self.written.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
                self.written += 1;
                let mut transaction = store.begin(entry.id(), entry.stamp);
                transaction.put(&self.keys[key as usize], &entry.payload).unwrap();
                transaction.commit();
            }
        }
        if self.written - self.checkpointed >= CHECKPOINT_INTERVAL {
            self.checkpointed = self.written;
            self.checkpoint();
        }
    }
}

/// Time and processor time spent by one appender.
#[derive(Default, Clone)]
struct Spent {
    /// How long each barrier took.
    barriers: Vec<Duration>,
    cpu: Duration,
}

impl Spent {
    fn median(&self) -> f64 {
        let mut sorted = self.barriers.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
    }

    fn rate(&self) -> f64 {
        self.barriers.len() as f64 / self.barriers.iter().sum::<Duration>().as_secs_f64()
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Values that never repeat; their creation is not measured.
fn values(count: usize, state: &mut u64) -> Vec<Bytes> {
    let mut value = || {
        let mut bytes = Vec::with_capacity(VALUE_BYTES);
        while bytes.len() < VALUE_BYTES {
            // A multiplicative generator: enough to be different each time.
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        Bytes::from(bytes)
    };
    (0..count).map(|_| value()).collect()
}

fn turn(appender: &mut dyn Appender, count: usize, length: Duration, state: &mut u64) -> Spent {
    let batches: Vec<Vec<Bytes>> = (0..64).map(|_| values(count, state)).collect();
    let mut spent = Spent::default();
    let (wall, cpu) = (Instant::now(), cpu_time());
    while wall.elapsed() < length {
        let before = Instant::now();
        appender.append(&batches[spent.barriers.len() % batches.len()]);
        spent.barriers.push(before.elapsed());
    }
    spent.cpu = cpu_time() - cpu;
    spent
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--test");
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let (rounds, length) = if quick { (1, 20) } else { (10, 300) };
    let length = Duration::from_millis(length);
    let mut state = 1;
    println!(
        "{:>16} {:>12} {:>11} {:>11} {:>13} {:>13} {:>8}",
        "entries/barrier",
        "kept in",
        "barriers/s",
        "entries/s",
        "median us",
        "cpu us/entry",
        "ratio"
    );
    for count in ENTRIES_PER_BARRIER {
        let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let [sled, file, sled_and_state, file_and_state] = dirs.each_ref().map(|dir| dir.path());
        let plain = tempfile::tempfile().unwrap();
        let mut appenders: [Box<dyn Appender>; 5] = [
            Box::new(PlainFile(plain)),
            Box::new(Log::open(LogBackend::Sled, sled)),
            Box::new(Log::open(LogBackend::File, file)),
            Box::new(LogAndState::open(LogBackend::Sled, sled_and_state)),
            Box::new(LogAndState::open(LogBackend::File, file_and_state)),
        ];
        let mut sums = appenders.each_ref().map(|_| Spent::default());
        for _ in 0..rounds {
            for (appender, sum) in appenders.iter_mut().zip(&mut sums) {
                let spent = turn(&mut **appender, count, length, &mut state);
                sum.barriers.extend(spent.barriers);
                sum.cpu += spent.cpu;
            }
        }
        for (appender, sum) in appenders.iter().zip(&sums) {
            let entries = (sum.barriers.len() * count) as f64;
            println!(
                "{count:>16} {:>12} {:>11.0} {:>11.0} {:>13.0} {:>13.2} {:>7.2}x",
                appender.name(),
                sum.rate(),
                sum.rate() * count as f64,
                sum.median() * 1e6,
                sum.cpu.as_secs_f64() * 1e6 / entries,
                sums[0].median() / sum.median(),
            );
        }
    }
}
