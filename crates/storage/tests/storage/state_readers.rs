//! Readers concurrent with apply, checkpoints and cleaning; pins, budgets and limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::model::*;
use bytes::Bytes;
use quorate_raft::{Membership, NodeId, Replica, ReplicaId};
use quorate_storage::{
    CheckpointJob, DeltaBudget, DeltaLevel, Finished, Lookup, RECORD_BYTES_MAX, ROW_KEY_BYTES_MAX,
    RowKey, RowKind, SCAN_PINS_MAX, ScanRange, ShardReader, ShardStore, StorageError,
};

const ENTRIES: u64 = 3_000;
/// Rows that every entry writes, all with its index.
const ROWS: u64 = 40;

/// Rows that take turns: each entry writes one of them. They spend most of their time in the tree.
const TURNS: u64 = 700;

fn turn(n: u64) -> RowKey {
    user(format!("turn {:03}", n % TURNS))
}

/// Entry `index` writes its number to every row and to the one whose turn it is, and the row `odd`
/// exists after odd entries only.
fn entry(index: u64) -> Vec<Write> {
    let record = Bytes::copy_from_slice(&index.to_le_bytes());
    let mut writes: Vec<Write> =
        (0..ROWS).map(|n| Write::Put(user(format!("row {n}")), record.clone())).collect();
    writes.push(Write::Put(turn(index), record.clone()));
    let odd = user("odd");
    writes.push(if index % 2 == 1 { Write::Put(odd, record) } else { Write::Delete(odd) });
    writes
}

fn number(record: &[u8]) -> u64 {
    u64::from_le_bytes(record.try_into().unwrap())
}

fn all() -> ScanRange {
    ScanRange { kind: RowKind::User, keyspace: 0, start: Bytes::new(), end: None }
}

/// Checks that the rows are exactly those after entry `index`.
fn assert_one_entry(rows: &[(RowKey, Bytes)], index: u64) {
    let expected = if index == 0 { 0 } else { ROWS + index % 2 + index.min(TURNS) };
    assert_eq!(rows.len() as u64, expected, "rows at {index}");
    for (key, record) in rows {
        let number = number(record);
        let newest = number == index;
        let in_turn = *key == turn(number) && number <= index && number + TURNS > index;
        assert!(newest || in_turn, "{key:?} of entry {number} at {index}");
    }
}

/// Pins and scans until `stop`; returns the number of different indexes that it saw.
fn scan_until(reader: &ShardReader, stop: &AtomicBool, reverse: bool) -> usize {
    let mut seen = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let applied = reader.applied();
        let pin = reader.pin().unwrap();
        assert!(pin.index() >= applied, "a pin sees the entries applied before it");
        for _ in 0..3 {
            let rows: Vec<_> = pin.scan(&all(), reverse).map(|row| row.unwrap()).collect();
            assert_one_entry(&rows, pin.index().0);
            thread::yield_now();
        }
        *seen.entry(pin.index()).or_insert(0) += 1;
    }
    seen.len()
}

/// Reads rows one after the other: the writes of an entry become visible atomically, and stay.
/// Returns the last number read.
fn get_until(reader: &ShardReader, stop: &AtomicBool) -> u64 {
    let mut last = 0;
    let mut next = 0;
    let keys = [user("row 0"), user("row 39"), user("row 7")];
    while !stop.load(Ordering::Relaxed) {
        for key in &keys {
            let applied = reader.applied().0;
            let record = match reader.try_get(key) {
                Lookup::Found(record) => Some(record),
                Lookup::Absent => None,
                Lookup::Tree => reader.get(key).unwrap(),
            };
            let now = record.map_or(0, |record| number(&record));
            assert!(now >= applied && now >= last, "{now} after {last}, applied {applied}");
            last = now;
        }
        for _ in 0..50 {
            next += 1;
            let applied = reader.applied().0;
            // The last entry at or before `applied` that wrote this row.
            let back = (applied % TURNS + TURNS - next % TURNS) % TURNS;
            let at_least = applied.saturating_sub(back);
            let record = reader.get(&turn(next)).unwrap();
            let now = record.map_or(0, |record| number(&record));
            assert!(now >= at_least || applied < back, "turn {next}: {now}, applied {applied}");
        }
    }
    last
}

/// Sends snapshots until the queue is closed; each is the state of one index.
fn send_until(reader: &ShardReader, snapshots: &mpsc::Receiver<quorate_storage::SnapshotSource>) {
    for mut source in snapshots {
        let header = source.header().clone();
        let mut bytes = 0;
        while let Some(chunk) = source.next_chunk().unwrap() {
            bytes += chunk.len();
        }
        // The source compared count and digest with the header; here it must not be empty.
        assert!(bytes as u64 > header.frontier.counts.bytes);
        reader.scrub(|_| {}).unwrap();
    }
}

#[test]
fn readers_see_one_state_each_during_entries_and_checkpoints() {
    // Room for some of the rows, so that rows are evicted.
    run_beside_readers(128 << 10);
}

#[test]
fn readers_see_one_state_each_without_a_cache() {
    // The tree is read while it is cleaned.
    run_beside_readers(0);
}

fn run_beside_readers(cache_bytes: u64) {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let budget = Arc::new(DeltaBudget::with_cache(64 << 20, cache_bytes));
    let mut store = create(&database, 1, &budget);
    let reader = store.reader();
    let (stop, checkpoints) = (AtomicBool::new(false), AtomicU64::new(0));
    let (jobs, job_queue) = mpsc::sync_channel::<CheckpointJob>(1);
    let (results, finished) = mpsc::channel::<Finished>();
    let (sources, source_queue) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let scanners = [false, true].map(|reverse| {
            let (reader, stop) = (reader.clone(), &stop);
            scope.spawn(move || scan_until(&reader, stop, reverse))
        });
        let getters = [0; 2].map(|_| scope.spawn(|| get_until(&reader, &stop)));
        let sender = reader.clone();
        scope.spawn(move || send_until(&sender, &source_queue));
        scope.spawn(move || {
            for job in job_queue {
                results.send(job.run().unwrap()).unwrap();
            }
        });
        for index in 1..=ENTRIES {
            apply_to_store(&mut store, index, &entry(index));
            if let Ok(done) = finished.try_recv() {
                store.finish(done);
                checkpoints.fetch_add(1, Ordering::Relaxed);
                if let Ok(source) = store.pin_snapshot() {
                    sources.try_send(source).ok();
                }
            }
            if let Some(job) = store.freeze() {
                jobs.send(job).unwrap();
            }
        }
        drop((jobs, sources));
        if let Ok(done) = finished.recv() {
            store.finish(done);
        }
        stop.store(true, Ordering::Relaxed);
        for scanner in scanners {
            assert!(scanner.join().unwrap() > 1, "a scanner saw only one state");
        }
        assert!(getters.map(|getter| getter.join().unwrap()).iter().all(|last| *last > 0));
    });
    assert!(checkpoints.load(Ordering::Relaxed) > 2);
    checkpoint(&mut store);
    if let Some(job) = store.clean() {
        job.run().unwrap();
    }
    let generation = store.header().generation;
    assert_eq!(versions_in(&database, generation).len() as u64, ROWS + TURNS);
}

/// A shard with one row, written by each of some entries.
fn overwritten(store: &mut ShardStore, entries: std::ops::RangeInclusive<u64>) {
    for index in entries {
        let write = Write::Put(user("row"), Bytes::copy_from_slice(&index.to_le_bytes()));
        apply_to_store(store, index, &[write]);
    }
}

#[test]
fn versions_wait_for_their_pins() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let budget = Arc::new(DeltaBudget::default());
    let mut store = create(&database, 1, &budget);
    let clean = |store: &ShardStore| store.clean().map_or((), |job| job.run().unwrap());
    let versions = || versions_in(&database, 1).len();
    overwritten(&mut store, 1..=1);
    checkpoint(&mut store);
    let first = store.reader().pin().unwrap();
    overwritten(&mut store, 2..=2);
    checkpoint(&mut store);
    let second = store.pin_snapshot().unwrap();
    overwritten(&mut store, 3..=3);
    checkpoint(&mut store);
    overwritten(&mut store, 4..=4);
    checkpoint(&mut store);
    clean(&store);
    assert_eq!(versions(), 3, "the newest and the two pinned ones");
    assert_eq!(number(&first.get(&user("row")).unwrap().unwrap()), 1);
    let scan = first.scan(&all(), false);
    drop(first);
    clean(&store);
    assert_eq!(versions(), 3, "a scan holds the pin");
    assert_eq!(scan.map(|row| number(&row.unwrap().1)).collect::<Vec<_>>(), [1]);
    clean(&store);
    assert_eq!(versions(), 2);
    drop(second);
    clean(&store);
    assert_eq!(versions(), 1);
    // A tombstone is removed with the rows that it hid.
    apply_to_store(&mut store, 5, &[Write::Delete(user("row"))]);
    checkpoint(&mut store);
    assert_eq!(versions(), 2);
    clean(&store);
    assert_eq!(versions(), 0);
}

#[test]
fn the_delta_keeps_versions_for_pins_only() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let budget = Arc::new(DeltaBudget::default());
    let mut store = create(&database, 1, &budget);
    overwritten(&mut store, 1..=100);
    let one = budget.used();
    let pins: Vec<_> = (101..=110)
        .map(|index| {
            overwritten(&mut store, index..=index);
            store.reader().pin().unwrap()
        })
        .collect();
    overwritten(&mut store, 111..=200);
    let eleven = budget.used();
    assert!(eleven > one + 10 * 8, "ten versions beside the newest: {eleven}");
    for pin in &pins {
        assert_eq!(number(&pin.get(&user("row")).unwrap().unwrap()), pin.index().0);
    }
    drop(pins);
    overwritten(&mut store, 201..=201);
    assert_eq!(budget.used(), one);
    // A pin holds its layer beyond the checkpoint, and the budget counts it.
    let pin = store.reader().pin().unwrap();
    checkpoint(&mut store);
    assert_eq!(budget.used(), one);
    drop(pin);
    assert_eq!(budget.used(), 0);
}

#[test]
fn pins_are_limited_and_can_be_released() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let store = create(&database, 1, &Arc::new(DeltaBudget::default()));
    let reader = store.reader();
    let mut pins: Vec<_> = (0..SCAN_PINS_MAX).map(|_| reader.pin().unwrap()).collect();
    let error = reader.pin().unwrap_err();
    assert_eq!(error.to_string(), "more than 64 scans of one shard at a time");
    assert!(!error.is_fatal());
    pins.pop();
    reader.pin().unwrap();
    let snapshots = [store.pin_snapshot().unwrap(), store.pin_snapshot().unwrap()];
    assert!(matches!(store.pin_snapshot(), Err(StorageError::TooManyPins { limit: 2, .. })));
    drop(snapshots);
    store.pin_snapshot().unwrap();
}

#[test]
fn the_budget_counts_held_layers() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let budget = Arc::new(DeltaBudget::new(1 << 20));
    let mut store = create(&database, 1, &budget);
    let mut levels = Vec::new();
    for index in 1..=9u64 {
        let write = Write::Put(user(index.to_be_bytes()), Bytes::from(vec![1; 250 << 10]));
        apply_to_store(&mut store, index, &[write]);
        assert!(budget.used() >= index * (250 << 10));
        levels.push(budget.level());
    }
    assert_eq!(levels[3..5], [DeltaLevel::Ok, DeltaLevel::Full]);
    assert_eq!(levels[7..9], [DeltaLevel::Full, DeltaLevel::Double]);
    let job = store.freeze().unwrap();
    assert_eq!(budget.level(), DeltaLevel::Double, "a frozen layer is still held");
    let finished = job.run().unwrap();
    store.finish(finished);
    assert_eq!((budget.used(), budget.level()), (0, DeltaLevel::Ok));
}

#[test]
fn the_largest_rows_go_through_tree_and_snapshot() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let engines = dirs.each_ref().map(|dir| open_database(dir.path()));
    let budget = Arc::new(DeltaBudget::with_cache(64 << 20, 0));
    let [mut store, mut other] = [1, 2].map(|id| create(&engines[id as usize - 1], id, &budget));
    let mut model = Model::default();
    for n in 0..3u8 {
        let key = RowKey::new(RowKind::User, 0, &[0xf0 + n; ROW_KEY_BYTES_MAX]);
        let record: Vec<u8> = (0..(1 << 20) + 100).map(|at| (at % 251) as u8 ^ n).collect();
        model.apply(vec![Write::Put(key, record.into())]);
    }
    replay(&mut store, &model, 3);
    checkpoint(&mut store);
    assert_state(&store, 3, model.at(3));
    let mut source = store.pin_snapshot().unwrap();
    let mut installer = other.begin_install(source.meta()).unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        installer.write(&chunk).unwrap();
    }
    let installed = installer.finish().unwrap();
    other.adopt(installed);
    assert_state(&other, 3, model.at(3));
    engines.iter().for_each(|database| database.check_blobs().unwrap());
    // Writes over the limits change nothing.
    let mut transaction = store.begin(log_id(4), stamp(4));
    let long = RowKey::new(RowKind::User, 0, &[1; ROW_KEY_BYTES_MAX + 1]);
    assert!(matches!(transaction.put(&long, b""), Err(StorageError::TooLarge { .. })));
    let record = vec![0; RECORD_BYTES_MAX + 1];
    assert!(matches!(transaction.put(&user("k"), &record), Err(StorageError::TooLarge { .. })));
    transaction.commit();
    assert_state(&store, 4, model.at(3));
}

#[test]
fn entries_without_effect_and_memberships_are_state_too() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let budget = Arc::new(DeltaBudget::default());
    let mut store = create(&database, 1, &budget);
    assert!(store.freeze().is_none(), "nothing was applied");
    let changed = Membership::of_voters([Replica::new(ReplicaId(1), NodeId(1))]);
    let mut transaction = store.begin(log_id(1), stamp(1));
    transaction.set_membership(changed.clone());
    transaction.commit();
    drop(store.begin(log_id(2), stamp(2)));
    assert_eq!(store.applied(), log_id(1), "a dropped transaction applies nothing");
    store.begin(log_id(2), stamp(1)).commit();
    assert_eq!((store.applied(), store.log_time()), (log_id(2), stamp(1)));
    assert_eq!(checkpoint(&mut store), Some(log_id(2)));
    drop(store);
    let store = open(&database, &budget);
    assert_eq!((store.applied(), store.log_time()), (log_id(2), stamp(1)));
    assert_eq!(*store.membership(), changed);
    assert_eq!(store.header().membership, changed);
}

#[test]
#[should_panic(expected = "g7: entry 3@1 applied after 1@1")]
fn an_entry_cannot_be_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let mut store = create(&database, 1, &Arc::new(DeltaBudget::default()));
    store.begin(log_id(1), stamp(1)).commit();
    store.begin(log_id(3), stamp(3)).commit();
}

#[test]
fn rows_of_a_kind_are_listed_over_all_keyspaces() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    let mut store = create(&database, 1, &Arc::new(DeltaBudget::default()));
    let row = |kind, keyspace, key: &str| RowKey::new(kind, keyspace, key.as_bytes());
    let sessions = [
        row(RowKind::Session, 0, "a"),
        row(RowKind::Session, 7, "\u{0}"),
        row(RowKind::Session, u32::MAX, "z"),
    ];
    let others = [row(RowKind::User, u32::MAX, "z"), row(RowKind::Meta, 0, "a")];
    for (at, key) in sessions.iter().chain(&others).enumerate() {
        let index = at as u64 + 1;
        apply_to_store(&mut store, index, &[Write::Put(key.clone(), Bytes::from_static(b"x"))]);
        if index == 2 {
            checkpoint(&mut store);
        }
    }
    let listed: Vec<_> = store.rows(RowKind::Session).unwrap().map(|row| row.unwrap().0).collect();
    assert_eq!(listed, sessions);
}
