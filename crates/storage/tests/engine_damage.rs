//! Flipped bits in the engine's own file: whatever it makes of them, opening and reading all there
//! is ends in answers or in errors of what was read, never in a panic and never in an error that
//! closes the engine, for both would cost the whole node at every start.

#![allow(clippy::unwrap_used, reason = "tests")]

mod model;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use model::*;
use quorate_storage::testing::{append, entry};
use quorate_storage::{
    DeltaBudget, Engine, EngineOptions, LogBackend, NodeRecords, RecordLog, ShardStore,
    StorageError,
};

/// Flips tried, spread evenly over the bytes that were ever written.
const FLIPS: usize = 24;

/// A directory with a log, a record of the node, and a shard with a checkpoint.
fn write_everything(dir: &Path) {
    let engine = open_engine(&dir.join("sled"));
    let (mut log, _) = RecordLog::open(LogBackend::Sled, &engine, dir).unwrap();
    for index in 1..=100 {
        log.append(&[append(1, vec![entry(1, index, 100_000)])]).unwrap();
    }
    let budget = Arc::new(DeltaBudget::with_cache(1 << 20, 0));
    let mut store = create(&engine, 1, &budget);
    let mut model = Model::default();
    for n in 0..20u8 {
        model.apply(vec![Write::Put(user([b'k', n]), Bytes::from(vec![n; 50 * n as usize]))]);
    }
    replay(&mut store, &model, model.applied());
    checkpoint(&mut store).unwrap();
    NodeRecords::open(&engine).unwrap().put("map", &[7; 9_000]).unwrap();
    log.close().unwrap();
}

/// All that a start reads, and then every row.
fn read_everything(dir: &Path, engine: &Engine) -> Result<(), StorageError> {
    RecordLog::open(LogBackend::Sled, engine, dir)?;
    NodeRecords::open(engine)?.get("map")?;
    let budget = Arc::new(DeltaBudget::with_cache(1 << 20, 0));
    for store in ShardStore::open_all(engine, &budget)?.into_values() {
        store?.reader().scrub(|_| {})?;
    }
    Ok(())
}

#[test]
fn a_flipped_bit_in_the_engines_file_is_damage_of_what_was_read_and_closes_nothing() {
    let pristine = tempfile::tempdir().unwrap();
    write_everything(pristine.path());
    let engine = open_engine(&pristine.path().join("sled"));
    read_everything(pristine.path(), &engine).unwrap();
    drop(engine);
    let bytes = fs::read(pristine.path().join("sled/db")).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut met = 0;
    for flip in 0..FLIPS {
        let dir = tempfile::tempdir().unwrap();
        copy(pristine.path(), dir.path());
        let mut bytes = bytes.clone();
        bytes[flip * written / FLIPS] ^= 1 << (flip % 8);
        fs::write(dir.path().join("sled/db"), &bytes).unwrap();
        // An engine that does not open at all has said so.
        let opened = Engine::open(&dir.path().join("sled"), EngineOptions::default());
        let Ok(engine) = opened else { continue };
        if let Err(error) = read_everything(dir.path(), &engine) {
            assert!(error.is_damage() && !error.is_fatal(), "flip {flip}: {error}");
            engine.check_poisoned().unwrap();
            met += 1;
        }
    }
    assert!(met > 0, "no flip was met behind the opening of the engine");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
