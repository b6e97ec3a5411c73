//! Disk space of the log: it follows the live bytes, however large a record is.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_raft::Index;
use quorate_storage::testing::{append, entry, key};
use quorate_storage::{
    Database, DatabaseOptions, DiskLevel, LogBackend, LogTuning, RecordLog, Space,
};
use tempfile::TempDir;

struct Place {
    dir: TempDir,
    database: Database,
    log: RecordLog,
    backend: LogBackend,
}

impl Place {
    fn new(backend: LogBackend, tuning: LogTuning) -> Self {
        Self::with_options(backend, tuning, DatabaseOptions::default())
    }

    fn with_options(backend: LogBackend, tuning: LogTuning, options: DatabaseOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("sled"), options).unwrap();
        let (log, _) = RecordLog::open_tuned(backend, tuning, &database, dir.path()).unwrap();
        Self { dir, database, log, backend }
    }

    /// Bytes of the records in the back end.
    fn stored(&self) -> u64 {
        match self.backend {
            LogBackend::Sled => {
                let pieces = self.database.tree(b"log").unwrap();
                let sizes = pieces.range::<&[u8]>(..).map(|item| {
                    let (key, value) = item.unwrap();
                    (key.len() + value.len()) as u64
                });
                sizes.sum()
            }
            LogBackend::File => folder_bytes(&self.dir.path().join("log")),
        }
    }

    /// Appends `bytes` to a group, in entries of a 64th of it.
    fn append(&mut self, group: u64, record: u64, bytes: usize) {
        let first = record * 64 + 1;
        let entries = (first..first + 64).map(|index| entry(1, index, bytes / 64)).collect();
        self.log.append(&[append(group, entries)]).unwrap();
    }

    fn purge(&mut self, group: u64, record: u64) {
        let (group, replica) = key(group);
        self.log.purge(group, replica, Index(record * 64 + 64));
    }
}

fn folder_bytes(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// A record of 4 MiB is 700 pieces in the database.
fn removal_keeps_up(backend: LogBackend) {
    let tuning = LogTuning { file_bytes: 1 << 20, ..LogTuning::default() };
    let mut place = Place::new(backend, tuning);
    let record_bytes = 4 << 20;
    for record in 0..16 {
        place.append(1, record, record_bytes);
        place.purge(1, record);
        place.log.maintain().unwrap();
        // The one just written, and the one before it, whose removal waits for the next head.
        let (stored, bound) = (place.stored(), 3 * record_bytes as u64);
        assert!(stored <= bound, "{stored} bytes are stored after {record} records, all dead");
    }
}

#[test]
fn removal_keeps_up_with_large_records_in_sled() {
    removal_keeps_up(LogBackend::Sled);
}

#[test]
fn removal_keeps_up_with_large_records_in_files() {
    removal_keeps_up(LogBackend::File);
}

/// One group keeps its entries, in many small records at the head, while another appends and
/// purges.
fn moving_keeps_up(backend: LogBackend) {
    let tuning = LogTuning { move_from_bytes: 64 << 10, move_bytes: 16 << 10, file_bytes: 1 << 16 };
    let mut place = Place::new(backend, tuning);
    for record in 0..64 {
        place.append(2, record, 8 << 10);
    }
    let record_bytes = 128 << 10;
    for record in 0..40 {
        place.append(1, record, record_bytes);
        place.purge(1, record);
        place.log.maintain().unwrap();
        let (bytes, live) = (place.log.bytes(), place.log.live_bytes());
        let bound = 2 * live + 3 * record_bytes as u64;
        assert!(bytes <= bound, "{bytes} bytes for {live} live ones after {record} records");
    }
}

#[test]
fn moving_the_head_keeps_up_with_large_records_in_sled() {
    moving_keeps_up(LogBackend::Sled);
}

#[test]
fn moving_the_head_keeps_up_with_large_records_in_files() {
    moving_keeps_up(LogBackend::File);
}

/// In a second 140 MB can be written, which is half of the reserve: every record must be checked.
#[test]
fn the_free_space_is_checked_with_every_record() {
    for backend in [LogBackend::Sled, LogBackend::File] {
        let free = Arc::new(AtomicU64::new(1 << 30));
        let seen = Arc::clone(&free);
        let options = DatabaseOptions {
            space: Arc::new(move |_| {
                Ok(Space { total: 1 << 30, free: seen.load(Ordering::SeqCst) })
            }),
            ..DatabaseOptions::default()
        };
        let mut place = Place::with_options(backend, LogTuning::default(), options);
        for (record, left, level) in
            [(0, 300, DiskLevel::Ok), (1, 255, DiskLevel::Low), (2, 63, DiskLevel::Critical)]
        {
            free.store(left << 20, Ordering::SeqCst);
            place.append(1, record, 64 << 10);
            assert_eq!(place.database.disk().level(), level, "{backend:?}, {left} MiB are free");
        }
    }
}
