//! Torn tails, flipped bytes and lost files of the log: which are an unfinished write, and which
//! are damage.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_raft::Index;
use quorate_storage::testing::{Groups, append, encode_record, entries, entry, hard_state, key};
use quorate_storage::{Database, DatabaseOptions, LogBackend, LogTuning, RecordLog, StorageError};

/// A data directory whose database stays open, for logs in files.
struct Dir {
    dir: tempfile::TempDir,
    database: Database,
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database =
            Database::open(&dir.path().join("sled"), DatabaseOptions::default()).unwrap();
        Self { dir, database }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self, backend: LogBackend) -> Result<(RecordLog, Groups), StorageError> {
        let tuning = LogTuning { file_bytes: 2_000, ..LogTuning::default() };
        RecordLog::open_tuned(backend, tuning, &self.database, self.path())
    }

    /// Writes one record for each of the indexes `1..=last`.
    fn fill(&self, backend: LogBackend, last: u64) -> RecordLog {
        let (mut log, _) = self.open(backend).unwrap();
        for index in 1..=last {
            log.append(&[append(1, entries(1, index, index)), hard_state(1, 1, index)]).unwrap();
        }
        log
    }

    /// The files of the log, oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path().join("log")).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// Opens with the newest file changed to `bytes`, and puts everything back.
fn open_with(dir: &Dir, file: &Path, bytes: &[u8]) -> Result<Groups, StorageError> {
    let kept: Vec<_> = dir.files().into_iter().chain([dir.path().join("MARK")]).collect();
    let kept: Vec<_> = kept.into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    fs::write(file, bytes).unwrap();
    let result = dir.open(LogBackend::File).map(|(_, groups)| groups);
    dir.files().iter().for_each(|path| fs::remove_file(path).unwrap());
    kept.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    result
}

fn last_index(groups: &Groups) -> u64 {
    groups.get(&key(1)).and_then(|group| group.entries.last()).map_or(0, |entry| entry.index.0)
}

/// The bytes of a file without the zeros written ahead of the records. No record used here ends in
/// a zero.
fn records_of(file: &Path) -> Vec<u8> {
    let mut bytes = fs::read(file).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
    bytes
}

/// The newest file, where its last record begins, and its bytes.
fn last_record(dir: &Dir) -> (PathBuf, usize, Vec<u8>) {
    drop(dir.fill(LogBackend::File, 4));
    let file = dir.files().pop().unwrap();
    let before = records_of(&file).len();
    let (mut log, _) = dir.open(LogBackend::File).unwrap();
    log.append(&[append(1, entries(1, 5, 5))]).unwrap();
    let bytes = records_of(&file);
    (file, before, bytes)
}

#[test]
fn a_tail_cut_at_every_byte_is_removed() {
    let dir = Dir::new();
    let (file, before, bytes) = last_record(&dir);
    for len in before..=bytes.len() {
        let mut cut = bytes[..len].to_vec();
        let expected = if len == bytes.len() { 5 } else { 4 };
        let groups = open_with(&dir, &file, &cut).unwrap();
        assert_eq!(last_index(&groups), expected, "cut at {len}");
        // As if the rest had not been written over the zeros.
        cut.resize(2_000, 0);
        let groups = open_with(&dir, &file, &cut).unwrap();
        assert_eq!(last_index(&groups), expected, "zeros from {len} on");
    }
}

#[test]
fn a_tail_cut_after_a_clean_stop_is_damage() {
    let dir = Dir::new();
    let (file, before, bytes) = last_record(&dir);
    dir.open(LogBackend::File).unwrap().0.close().unwrap();
    for len in before..bytes.len() {
        let mut cut = bytes[..len].to_vec();
        for rest in [0, bytes.len() - len] {
            cut.resize(len + rest, 0);
            let error = open_with(&dir, &file, &cut).unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("record 5 "), "{len}: {error}");
        }
    }
}

#[test]
fn a_flipped_byte_is_the_tail_only_in_the_last_record() {
    let dir = Dir::new();
    let (file, before, bytes) = last_record(&dir);
    for at in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[at] ^= 0x10;
        match open_with(&dir, &file, &broken) {
            Ok(groups) => assert_eq!((at >= before, last_index(&groups)), (true, 4), "byte {at}"),
            Err(error) => assert!(at < before && error.is_damage(), "byte {at}: {error}"),
        }
    }
}

/// Garbage behind the end is what a file system may leave of an unfinished write.
#[test]
fn garbage_after_the_end_is_removed_and_the_log_continues() {
    for garbage in [vec![1; 5_000], (0..5_000u32).map(|i| ((i * 7919) >> 3) as u8).collect()] {
        let dir = Dir::new();
        drop(dir.fill(LogBackend::File, 3));
        let file = dir.files().pop().unwrap();
        let whole = records_of(&file);
        fs::write(&file, [&whole[..], &garbage].concat()).unwrap();
        let (mut log, groups) = dir.open(LogBackend::File).unwrap();
        assert_eq!(last_index(&groups), 3);
        assert_eq!(fs::read(&file).unwrap(), whole);
        log.append(&[append(1, entries(2, 4, 4))]).unwrap();
        assert_eq!(last_index(&dir.open(LogBackend::File).unwrap().1), 4);
    }
}

/// A user may store the bytes of a log as a value. In a torn tail they must not look like records.
#[test]
fn a_value_that_looks_like_a_log_is_not_one() {
    let other = Dir::new();
    drop(other.fill(LogBackend::File, 9));
    let forged: Vec<u8> = other.files().iter().flat_map(|path| fs::read(path).unwrap()).collect();
    let dir = Dir::new();
    let mut log = dir.fill(LogBackend::File, 3);
    let file = dir.files().pop().unwrap();
    let mut value = entry(1, 4, 0);
    value.payload = Bytes::from(forged);
    log.append(&[append(1, vec![value])]).unwrap();
    let bytes = records_of(&file);
    let groups = open_with(&dir, &file, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(last_index(&groups), 3);
}

#[test]
fn a_missing_file_is_damage_unless_the_head_is_above_it() {
    let dir = Dir::new();
    drop(dir.fill(LogBackend::File, 40));
    let files = dir.files();
    assert!(files.len() >= 3, "{files:?}");
    for file in &files {
        let bytes = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        match dir.open(LogBackend::File) {
            Ok((_, groups)) => {
                // Only the newest file can be missing unnoticed: MARK is not newer here.
                assert_eq!(Some(file), files.last());
                assert!(last_index(&groups) < 40);
            }
            Err(error) => assert!(error.to_string().contains("is missing"), "{error}"),
        }
        fs::write(file, bytes).unwrap();
    }
}

#[test]
fn a_missing_or_broken_mark_is_damage() {
    for backend in [LogBackend::Sled, LogBackend::File] {
        let dir = Dir::new();
        dir.fill(backend, 3).close().unwrap();
        let mark = dir.path().join("MARK");
        let bytes = fs::read(&mark).unwrap();
        fs::remove_file(&mark).unwrap();
        let error = dir.open(backend).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("MARK"), "{error}");
        fs::write(&mark, vec![0; bytes.len()]).unwrap();
        assert!(dir.open(backend).unwrap_err().to_string().contains("MARK"));
        fs::write(&mark, bytes).unwrap();
        assert_eq!(last_index(&dir.open(backend).unwrap().1), 3);
    }
}

#[test]
fn a_log_that_ends_below_the_mark_is_damage() {
    for backend in [LogBackend::Sled, LogBackend::File] {
        let (long, short) = (Dir::new(), Dir::new());
        long.fill(backend, 7).close().unwrap();
        short.fill(backend, 3).close().unwrap();
        fs::copy(long.path().join("MARK"), short.path().join("MARK")).unwrap();
        let error = short.open(backend).unwrap_err().to_string();
        assert!(error.contains("record 4 ") && error.contains("up to 7"), "{error}");
        // A missing log is not a new log either.
        let empty = Dir::new();
        fs::copy(long.path().join("MARK"), empty.path().join("MARK")).unwrap();
        assert!(empty.open(backend).unwrap_err().is_damage());
    }
}

#[test]
fn the_other_back_end_is_rejected_with_its_name() {
    let dir = Dir::new();
    dir.fill(LogBackend::File, 2).close().unwrap();
    let error = dir.open(LogBackend::Sled).unwrap_err();
    assert!(matches!(error, StorageError::WrongBackend { .. }), "{error}");
    assert!(error.to_string().contains("--log-store file"), "{error}");
    assert_eq!(last_index(&dir.open(LogBackend::File).unwrap().1), 2);
}

/// Key of a piece of a record in the database.
fn piece(sequence: u64, number: u16) -> Vec<u8> {
    [&sequence.to_be_bytes()[..], &number.to_be_bytes()].concat()
}

#[test]
fn a_lost_piece_is_the_tail_only_in_the_last_record() {
    let dir = Dir::new();
    let (mut log, _) = dir.open(LogBackend::Sled).unwrap();
    for index in 1..=3 {
        log.append(&[append(1, vec![entry(1, index, 20_000)])]).unwrap();
    }
    drop(log);
    let tree = dir.database.tree(b"log").unwrap();
    for number in 0..4 {
        let lost = tree.get(&piece(2, number)).unwrap().unwrap();
        tree.remove(&piece(2, number)).unwrap();
        let error = dir.open(LogBackend::Sled).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("record 2 "), "{error}");
        let mut flipped = lost.to_vec();
        flipped[100] ^= 1;
        tree.insert(&piece(2, number), &flipped).unwrap();
        assert!(dir.open(LogBackend::Sled).unwrap_err().is_damage());
        tree.insert(&piece(2, number), &lost).unwrap();
    }
    tree.remove(&piece(3, 1)).unwrap();
    let (mut log, groups) = dir.open(LogBackend::Sled).unwrap();
    assert_eq!(last_index(&groups), 2);
    assert_eq!(tree.range(piece(3, 0)..).count(), 0, "the tail is removed");
    log.append(&[append(1, entries(2, 3, 3))]).unwrap();
    assert_eq!(last_index(&dir.open(LogBackend::Sled).unwrap().1), 3);
}

/// Records below the head are removed from the disk too, and only once a durable record carries
/// that head.
#[test]
fn dead_records_leave_the_disk() {
    for backend in [LogBackend::Sled, LogBackend::File] {
        let dir = Dir::new();
        let mut log = dir.fill(backend, 100);
        log.purge(key(1).0, key(1).1, Index(100));
        for _ in 0..3 {
            log.maintain().unwrap();
        }
        let size = |dir: &Dir| match backend {
            LogBackend::Sled => dir.database.tree(b"log").unwrap().range::<&[u8]>(..).count(),
            LogBackend::File => dir.files().len(),
        };
        let full = size(&dir);
        assert_eq!(log.head(), 100, "the newest hard state is there");
        log.append(&[hard_state(1, 2, 100)]).unwrap();
        assert_eq!(size(&dir), full + usize::from(backend == LogBackend::Sled));
        log.maintain().unwrap();
        assert_eq!(size(&dir), if backend == LogBackend::Sled { 2 } else { 1 });
        log.close().unwrap();
        let groups = dir.open(backend).unwrap().1;
        assert_eq!(groups[&key(1)].hard_state.commit, Index(100));
    }
}

/// A record of a later format is not reported as damage.
#[test]
fn a_newer_format_is_reported_as_newer() {
    let dir = Dir::new();
    drop(dir.fill(LogBackend::Sled, 1));
    let tree = dir.database.tree(b"log").unwrap();
    let newer = encode_record(2, &(1u64, 0u32)).unwrap();
    tree.insert(&piece(1, 0), &newer).unwrap();
    let error = dir.open(LogBackend::Sled).unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, .. }), "{error}");

    let dir = Dir::new();
    drop(dir.fill(LogBackend::File, 1));
    let file = dir.files().pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[7] = 2;
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let error = dir.open(LogBackend::File).unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, .. }), "{error}");
}
