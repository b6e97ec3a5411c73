//! Kills the process at every write and every barrier of a fixed workload, and opens the directory.
//!
//! The test starts itself once for each crash point. The child runs the workload over one shard
//! (creation, checkpoints, cleaning, an install, an abandoned install) and dies of SIGKILL at that
//! point; before that it records in a file what was reported to it as durable. The parent opens the
//! directory and compares it with the model: the state is exactly the one at the header's index,
//! nothing acknowledged is missing, and later entries, applied again, have the same outcomes as
//! before.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::model::*;
use crate::support::at_each_point;
use bytes::Bytes;
use quorate_raft::SnapshotMeta;
use quorate_storage::{Database, DeltaBudget, RowKey, RowKind, ShardStore, crash};

/// The variable that gives a child its directory and its crash point.
const CHILD: &str = "QUORATE_STATE_CRASH_CHILD";
/// The index at which the snapshot is installed.
const INSTALLED: u64 = 14;
/// The index of the last entry.
const LAST: u64 = 20;

/// Entries with puts, deletes and comparisons over few rows, one of them long.
fn workload() -> Model {
    let mut model = Model::default();
    let session = RowKey::new(RowKind::Session, 0, b"client");
    for index in 1..=LAST {
        let key = |n: u64| user(format!("row {}", n % 5));
        let record = |n: u64| Bytes::from(format!("record {n} of entry {index}"));
        let seen = model.newest().get(&key(index)).cloned();
        let mut writes = vec![
            Write::Put(key(index + 1), record(1)),
            // Every other comparison is one that fails.
            Write::CompareAndSet(key(index), seen.filter(|_| index % 2 == 0), record(2)),
            Write::Put(session.clone(), record(3)),
        ];
        if index % 3 == 0 {
            writes.push(Write::Delete(key(index + 2)));
        }
        if index % 4 == 0 {
            let long = Bytes::from(vec![index as u8; 13_000]);
            writes.push(Write::Put(user("long"), long));
        }
        if index == 10 {
            writes.push(Write::Delete(user("long")));
        }
        model.apply(writes);
    }
    model
}

/// A snapshot of the state at [`INSTALLED`], as another replica makes it.
fn snapshot(dir: &Path, model: &Model) -> (SnapshotMeta, Vec<Bytes>) {
    let database = open_database(dir);
    let mut donor = create(&database, 2, &Arc::new(DeltaBudget::default()));
    replay(&mut donor, model, INSTALLED);
    checkpoint(&mut donor).unwrap();
    let mut source = donor.pin_snapshot().unwrap();
    let chunks = std::iter::from_fn(|| source.next_chunk().unwrap()).collect();
    (source.meta(), chunks)
}

/// Runs in the child. `note` is called with the index that is durable from then on.
fn run(
    database: &Database,
    model: &Model,
    meta: &SnapshotMeta,
    chunks: &[Bytes],
    note: impl Fn(u64),
) {
    let budget = Arc::new(DeltaBudget::default());
    let mut store = create(database, 1, &budget);
    note(0);
    for through in [3, 6, 8, 9] {
        replay(&mut store, model, through);
        checkpoint(&mut store).unwrap();
        note(through);
    }
    store.clean().unwrap().run().unwrap();
    // Abandoned half way.
    let mut installer = store.begin_install(meta.clone()).unwrap();
    installer.write(&chunks[0]).unwrap();
    installer.write(&chunks[1]).unwrap();
    drop(installer);
    // A checkpoint that is written, and finished only after the install.
    replay(&mut store, model, 11);
    let job = store.freeze().unwrap();
    let mut installer = store.begin_install(meta.clone()).unwrap();
    let (first, rest) = chunks.split_at(2);
    first.iter().for_each(|chunk| installer.write(chunk).unwrap());
    let finished = job.run().unwrap();
    note(11);
    rest.iter().for_each(|chunk| installer.write(chunk).unwrap());
    let installed = installer.finish().unwrap();
    note(INSTALLED);
    store.adopt(installed);
    assert_eq!(store.finish(finished).index.0, INSTALLED);
    for through in [17, 19] {
        replay(&mut store, model, through);
        checkpoint(&mut store).unwrap();
        note(through);
    }
    store.clean().unwrap().run().unwrap();
    assert_state(&store, 19, model.at(19));
}

/// Runs in the child: prepares, arms the crash point and runs the workload.
fn child(dir: &Path, fatal: u64) {
    let model = workload();
    let (meta, chunks) = snapshot(&dir.join("donor"), &model);
    assert!(chunks.len() >= 3, "{} chunks", chunks.len());
    let database = open_database(&dir.join("shard"));
    let notes = File::create(dir.join("notes")).unwrap();
    let note = |index: u64| writeln!(&notes, "{index}").unwrap();
    crash::arm(fatal);
    run(&database, &model, &meta, &chunks, note);
    let passed = crash::passed();
    crash::arm(0);
    fs::write(dir.join("passed"), passed.to_string()).unwrap();
}

/// Starts this test again as a child; true if the child was killed at its crash point.
fn start(dir: &Path, fatal: u64) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "state_crash::a_kill_at_any_write_leaves_one_of_the_states",
            "--nocapture",
        ])
        .env(CHILD, format!("{fatal}:{}", dir.display()))
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    killed
}

/// The last index reported to the child as durable; `None` before the creation.
fn noted(dir: &Path) -> Option<u64> {
    let notes = fs::read_to_string(dir.join("notes")).unwrap();
    notes.lines().last().map(|line| line.parse().unwrap())
}

/// Opens a child's directory and compares it with the model.
fn inspect(dir: &Path, model: &Model) -> Option<u64> {
    let noted = noted(dir);
    let database = open_database(&dir.join("shard"));
    let budget = Arc::new(DeltaBudget::default());
    let mut shards = ShardStore::open_all(&database, &budget).unwrap();
    let Some(shard) = shards.remove(&GROUP) else {
        assert_eq!(noted, None, "a shard is lost");
        assert_eq!(database.tree_names(), [b"shards"], "a tree without a header is left");
        return None;
    };
    let mut store = shard.unwrap();
    let header = store.header().clone();
    let applied = header.applied().index.0;
    assert!(noted.is_none_or(|noted| applied >= noted), "{applied} after {noted:?}");
    assert_state(&store, applied, model.at(applied));
    store.reader().scrub(|_| {}).unwrap();
    let installed = applied >= INSTALLED;
    assert_eq!(header.log_valid_from.0, if installed { INSTALLED + 1 } else { 1 });
    // No other tree of the shard, and no version above the header.
    assert_eq!(database.tree_names().len(), 2, "{:?}", database.tree_names());
    let versions = versions_in(&database, header.generation);
    assert!(versions.iter().all(|(_, number)| *number <= header.number), "{versions:?}");
    // Entries applied again find the same rows as before; so do those after another opening.
    let half = applied + (LAST - applied) / 2;
    replay(&mut store, model, half);
    checkpoint(&mut store);
    assert_state(&store, half, model.at(half));
    drop(store);
    drop(database);
    let database = open_database(&dir.join("shard"));
    let mut store = open(&database, &budget);
    assert_state(&store, half, model.at(half));
    replay(&mut store, model, LAST);
    checkpoint(&mut store);
    if let Some(job) = store.clean() {
        job.run().unwrap();
    }
    assert_state(&store, LAST, model.at(LAST));
    let versions = versions_in(&database, store.header().generation);
    let rows: Vec<_> = versions.into_iter().map(|(row, _)| row).collect();
    assert_eq!(rows, model.newest().keys().cloned().collect::<Vec<_>>());
    database.check_blobs().unwrap();
    Some(applied)
}

#[test]
fn a_kill_at_any_write_leaves_one_of_the_states() {
    if let Ok(child_of) = std::env::var(CHILD) {
        let (fatal, dir) = child_of.split_once(':').unwrap();
        return child(Path::new(dir), fatal.parse().unwrap());
    }
    let model = workload();
    let whole = tempfile::tempdir().unwrap();
    assert!(!start(whole.path(), 0));
    let passed = fs::read_to_string(whole.path().join("passed")).unwrap();
    let points: u64 = passed.parse().unwrap();
    assert_eq!(inspect(whole.path(), &model), Some(19));
    let seen = Mutex::new(BTreeSet::new());
    at_each_point(points, 4, |point| {
        let dir = tempfile::tempdir().unwrap();
        assert!(start(dir.path(), point), "passed point {point} of {points}");
        let left = inspect(dir.path(), &model);
        seen.lock().unwrap().insert(left);
    });
    // Every possible state was left by some kill.
    let expected = [None, Some(0), Some(3), Some(6), Some(8), Some(9), Some(11)];
    let expected = expected.into_iter().chain([INSTALLED, 17, 19].map(Some)).collect();
    assert_eq!(seen.into_inner().unwrap(), expected);
}
