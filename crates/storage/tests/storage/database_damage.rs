//! Flipped bits in the database's own file: opening and reading everything ends in results or in
//! errors of the records read, never in a panic and never in an error that closes the database,
//! because either would stop the whole node at every start.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::model::*;
use crate::support::copy_dir;
use bytes::Bytes;
use quorate_storage::testing::{append, entry};
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, LogBackend, NodeRecords, RecordLog, ShardStore,
    StorageError,
};

/// The number of flips, spread evenly over the bytes that were ever written.
const FLIPS: usize = 24;

/// A directory with a log, a record of the node, and a shard with a checkpoint.
fn write_everything(dir: &Path) {
    let database = open_database(&dir.join("sled"));
    let (mut log, _) = RecordLog::open(LogBackend::Sled, &database, dir).unwrap();
    for index in 1..=100 {
        log.append(&[append(1, vec![entry(1, index, 100_000)])]).unwrap();
    }
    let budget = Arc::new(DeltaBudget::with_cache(1 << 20, 0));
    let mut store = create(&database, 1, &budget);
    let mut model = Model::default();
    for n in 0..20u8 {
        model.apply(vec![Write::Put(user([b'k', n]), Bytes::from(vec![n; 50 * n as usize]))]);
    }
    replay(&mut store, &model, model.applied());
    checkpoint(&mut store).unwrap();
    NodeRecords::open(&database).unwrap().put("map", &[7; 9_000]).unwrap();
    log.close().unwrap();
}

/// Reads everything that a start reads, and then every row.
fn read_everything(dir: &Path, database: &Database) -> Result<(), StorageError> {
    RecordLog::open(LogBackend::Sled, database, dir)?;
    NodeRecords::open(database)?.get("map")?;
    let budget = Arc::new(DeltaBudget::with_cache(1 << 20, 0));
    for store in ShardStore::open_all(database, &budget)?.into_values() {
        store?.reader().scrub(|_| {})?;
    }
    Ok(())
}

#[test]
fn a_flipped_bit_in_the_databases_file_is_damage_of_a_record_and_closes_nothing() {
    let pristine = tempfile::tempdir().unwrap();
    write_everything(pristine.path());
    let database = open_database(&pristine.path().join("sled"));
    read_everything(pristine.path(), &database).unwrap();
    drop(database);
    let bytes = fs::read(pristine.path().join("sled/db")).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut met = 0;
    for flip in 0..FLIPS {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(pristine.path(), dir.path());
        let mut bytes = bytes.clone();
        bytes[flip * written / FLIPS] ^= 1 << (flip % 8);
        fs::write(dir.path().join("sled/db"), &bytes).unwrap();
        // A database that does not open has reported the damage.
        let opened = Database::open(&dir.path().join("sled"), DatabaseOptions::default());
        let Ok(database) = opened else { continue };
        if let Err(error) = read_everything(dir.path(), &database) {
            assert!(error.is_damage() && !error.is_fatal(), "flip {flip}: {error}");
            database.check_poisoned().unwrap();
            met += 1;
        }
    }
    assert!(met > 0, "no flip was found after the opening of the database");
}
