//! Reading a log that may be damaged: what is before the damage is read, the damage has its record,
//! and nothing is removed.

use std::fs;
use std::path::PathBuf;

use quorate_storage::testing::{append, entries, hard_state, key};
use quorate_storage::{
    Database, DatabaseOptions, LogBackend, LogReading, LogTuning, RecordLog, log_backend, read_log,
};

const RECORDS: u64 = 9;

/// A problem: its record and its sentence.
type Said = (Option<u64>, String);

struct Log {
    dir: tempfile::TempDir,
    database: Database,
    backend: LogBackend,
}

impl Log {
    /// A log of nine records, each with one entry and the hard state.
    fn new(backend: LogBackend, is_closed: bool) -> Log {
        let dir = tempfile::tempdir().unwrap();
        let sled = dir.path().join("sled");
        let database = Database::open(&sled, DatabaseOptions::default()).unwrap();
        let tuning = LogTuning { file_bytes: 400, ..LogTuning::default() };
        assert_eq!(log_backend(dir.path()).unwrap(), None);
        let (mut log, _) = RecordLog::open_tuned(backend, tuning, &database, dir.path()).unwrap();
        for index in 1..=RECORDS {
            log.append(&[append(1, entries(1, index, index)), hard_state(1, 1, index)]).unwrap();
        }
        if is_closed {
            log.close().unwrap();
        }
        assert_eq!(log_backend(dir.path()).unwrap(), Some(backend));
        Log { dir, database, backend }
    }

    fn read(&self) -> LogReading {
        read_log(self.backend, &self.database, self.dir.path()).unwrap()
    }

    /// What is read: the records, the indexes of the entries, the commit index, and the problems.
    fn seen(&self) -> (u64, u64, Vec<u64>, u64, Vec<Said>) {
        let read = self.read();
        let group = read.groups.get(&key(1)).cloned().unwrap_or_default();
        let indexes = group.entries.iter().map(|entry| entry.index.0).collect();
        let problems = read.problems.iter();
        let problems =
            problems.map(|problem| (problem.record, problem.error.to_string())).collect();
        (read.first, read.last, indexes, group.hard_state.commit.0, problems)
    }

    fn tree_keys(&self, sequence: u64) -> Vec<Vec<u8>> {
        let from = sequence.to_be_bytes().to_vec();
        let to = (sequence + 1).to_be_bytes().to_vec();
        let tree = self.database.tree(b"log").unwrap();
        tree.range(from..to).map(|item| item.unwrap().0.to_vec()).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("log")).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

#[test]
fn a_whole_log_is_read_whole() {
    for backend in [LogBackend::Sled, LogBackend::File] {
        let log = Log::new(backend, true);
        assert_eq!(log.seen(), (1, RECORDS, (1..=RECORDS).collect(), RECORDS, Vec::new()));
        assert!(!log.read().has_tail);
    }
}

#[test]
fn damage_ends_what_is_read_and_is_named_with_all_that_follows() {
    let log = Log::new(LogBackend::Sled, true);
    let tree = log.database.tree(b"log").unwrap();
    let first = &log.tree_keys(4)[0];
    let mut value = tree.get(first).unwrap().unwrap().to_vec();
    value[20] ^= 1;
    tree.insert(first, &value).unwrap();
    for sequence in [6, 7] {
        log.tree_keys(sequence).iter().for_each(|key| tree.remove(key).unwrap());
    }
    let durable = "of the log is missing, though records up to 9 had been made durable";
    let problems = vec![
        (
            Some(4),
            "damaged: record 4 of the log fails its checksum, though records up to 9 had been made \
             durable"
                .to_owned(),
        ),
        (Some(6), format!("damaged: record 6, and each up to 7, {durable}")),
    ];
    assert_eq!(log.seen(), (1, 3, vec![1, 2, 3], 3, problems));
    // It was read, and not repaired.
    assert_eq!(log.tree_keys(9).len(), 1);
}

#[test]
fn a_lost_beginning_hides_only_itself() {
    let log = Log::new(LogBackend::Sled, true);
    let tree = log.database.tree(b"log").unwrap();
    log.tree_keys(1).iter().for_each(|key| tree.remove(key).unwrap());
    let (first, last, indexes, commit, problems) = log.seen();
    assert_eq!((first, last, indexes, commit), (2, 9, (2..=9).collect(), 9));
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].0, Some(1));
}

#[test]
fn an_unfinished_record_is_no_damage() {
    // The mark says nothing of the last record, as after a kill, and neither does a later one.
    let log = Log::new(LogBackend::File, false);
    let path = log.files().pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let read = log.read();
    assert_eq!((read.last, read.has_tail), (RECORDS - 1, true), "{:?}", read.problems);
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    assert_eq!(fs::read(&path).unwrap(), bytes, "it was not removed");
}

#[test]
fn a_file_of_the_log_is_named_where_its_record_is() {
    let log = Log::new(LogBackend::File, true);
    let files = log.files();
    assert!(files.len() > 2, "{files:?}");
    let mut bytes = fs::read(&files[1]).unwrap();
    // Behind the header of the file and the envelope of the record.
    bytes[32 + 16 + 12] ^= 1;
    fs::write(&files[1], bytes).unwrap();
    let read = log.read();
    assert_eq!(read.problems.len(), 1, "{:?}", read.problems);
    let problem = &read.problems[0];
    assert_eq!(problem.file.as_ref(), Some(&files[1]));
    let name = files[1].file_stem().unwrap().to_str().unwrap();
    assert_eq!(problem.record, Some(name.parse().unwrap()));
    assert_eq!(Some(read.last + 1), problem.record);

    // A file of another kind hides no other.
    fs::write(log.dir.path().join("log/notes.txt"), "mine").unwrap();
    let read = log.read();
    let said = read.problems[0].error.to_string();
    assert!(said.ends_with("notes.txt is not a file of the log"), "{said}");
    assert_eq!((read.first, read.problems.len()), (1, 2));
}
