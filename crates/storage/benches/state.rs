//! Bench of the state: the cost of one entry on one thread, for reads and applies by the place of
//! the old row, and for checkpoints.
//!
//! `cargo bench -p quorate-storage --bench state`
//!
//! Each row is one put of a 256-byte value that never repeats, or one get. Processor time is that
//! of the whole process, so a checkpoint's includes the database's own threads.

#![allow(clippy::unwrap_used, reason = "a bench that cannot write has nothing to say")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_raft::{GroupId, Index, LogId, Membership, NodeId, Replica, ReplicaId, Term};
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, HashRange, RowKey, RowKind, ShardInit, ShardStore,
};
use rustix::time::{ClockId, clock_gettime};

const VALUE_BYTES: usize = 256;

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs `work` over `count` items and prints the time per item.
fn measure(what: &str, count: u64, work: impl FnOnce()) {
    let (wall, cpu) = (Instant::now(), cpu_time());
    work();
    let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
    let each = |time: Duration| time.as_nanos() as f64 / 1000.0 / count as f64;
    println!("{what:<44} {count:>9} {:>12.3} {:>12.3}", each(wall), each(cpu));
}

/// Keys in a scattered order.
fn key(n: u64) -> RowKey {
    RowKey::new(
        RowKind::User,
        0,
        format!("key-{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_bytes(),
    )
}

struct Bench {
    store: ShardStore,
    index: u64,
    value: [u8; VALUE_BYTES],
}

impl Bench {
    fn put(&mut self, key: &RowKey) {
        self.index += 1;
        self.value[..8].copy_from_slice(&self.index.to_le_bytes());
        let at = LogId::new(Term(1), Index(self.index));
        let mut transaction = self.store.begin(at, self.index);
        black_box(transaction.get(key).unwrap());
        transaction.put(key, &self.value).unwrap();
        transaction.commit();
    }

    fn checkpoint(&mut self) {
        let job = self.store.freeze().unwrap();
        let finished = job.run().unwrap();
        self.store.finish(finished);
    }
}

fn main() {
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let count: u64 = if std::env::args().any(|arg| arg == "--test") { 500 } else { 50_000 };
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
    let init = ShardInit {
        group: GroupId(1),
        replica: ReplicaId(1),
        membership: Membership::of_voters([Replica::new(ReplicaId(1), NodeId(1))]),
        range: HashRange::ALL,
        shard_epoch: 1,
    };
    let budget = Arc::new(DeltaBudget::default());
    let store = ShardStore::create(&database, init, Arc::clone(&budget)).unwrap();
    let mut bench = Bench { store, index: 0, value: [7; VALUE_BYTES] };
    let keys: Vec<RowKey> = (0..count).map(key).collect();
    println!("{:<44} {:>9} {:>12} {:>12}", "", "times", "wall us", "cpu us");
    measure("put, no old row", count, || keys.iter().for_each(|key| bench.put(key)));
    measure("put, old row in the delta", count, || keys.iter().for_each(|key| bench.put(key)));
    let reader = bench.store.reader();
    measure("get from the delta", count, || {
        keys.iter().for_each(|key| drop(black_box(reader.try_get(key))));
    });
    measure("checkpoint, rows are new", count, || bench.checkpoint());
    measure("get from the cache", count, || {
        keys.iter().for_each(|key| drop(black_box(reader.try_get(key))));
    });
    measure("put, old row in the cache", count, || keys.iter().for_each(|key| bench.put(key)));
    measure("checkpoint, rows are there", count, || bench.checkpoint());
    measure("cleaning", count, || bench.store.clean().unwrap().run().unwrap());
    // Another store over the same files has nothing cached.
    drop((reader, bench));
    let budget = Arc::new(DeltaBudget::default());
    let mut shards = ShardStore::open_all(&database, &budget).unwrap();
    let store = shards.remove(&GroupId(1)).unwrap().unwrap();
    let mut bench = Bench { index: store.applied().index.0, store, value: [7; VALUE_BYTES] };
    let (first, second) = keys.split_at(keys.len() / 2);
    let reader = bench.store.reader();
    measure("get from the tree", first.len() as u64, || {
        first.iter().for_each(|key| drop(black_box(reader.get(key).unwrap())));
    });
    measure("put, old row in the tree", second.len() as u64, || {
        second.iter().for_each(|key| bench.put(key));
    });
    println!("delta {} KiB, cache {} KiB", budget.used() >> 10, budget.cache_used() >> 10);
}
