//! Reading a log for people: everything that can be read, and what is wrong with the rest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file_store::FileStore;
use super::recovery::{self, Readable};
use super::store::LogStore;
use super::tree_store::TreeStore;
use super::{LogBackend, LogTuning, RecoveredGroup, ReplicaKey};
use crate::database::Database;
use crate::error::{Result, StorageError};
use crate::mark::Mark;

/// One thing that is wrong with a log.
#[derive(Debug, Clone)]
pub struct LogProblem {
    /// The file, if it is known; `None` also for the tree of the database.
    pub file: Option<PathBuf>,
    /// The first record concerned, if it is known.
    pub record: Option<u64>,
    /// What is wrong.
    pub error: StorageError,
}

/// What can be read of the log of a data directory, without [opening](super::RecordLog::open) it.
#[derive(Debug)]
pub struct LogReading {
    /// The first record that was read.
    pub first: u64,
    /// The last record that was read; below `first` if there is none. Records after damage are not
    /// read.
    pub last: u64,
    /// Bytes of all records in the back end, dead ones included.
    pub bytes: u64,
    /// Whether the remains of a record follow that was being written when the process died, which
    /// is not damage.
    pub has_tail: bool,
    /// The part of each replica, as far as the records say.
    pub groups: BTreeMap<ReplicaKey, RecoveredGroup>,
    /// What is wrong; empty if all is well.
    pub problems: Vec<LogProblem>,
}

/// The back end of the log of a data directory; `None` if it has no log yet.
///
/// # Errors
/// `MARK`, which names the back end, cannot be read or names one that this version does not know.
pub fn log_backend(dir: &Path) -> Result<Option<LogBackend>> {
    let Some(mark) = open_mark(dir)? else { return Ok(None) };
    let known = [LogBackend::Sled, LogBackend::File];
    let named = known.into_iter().find(|backend| backend.number() == mark.backend());
    named.map(Some).ok_or_else(|| {
        let (path, number) = (dir.join("MARK"), mark.backend());
        let what = format!("{} names the unknown back end {number} of the log", path.display());
        StorageError::damaged(what)
    })
}

/// Reads the log in `dir`, a copy of a data directory: nothing is appended to it. Without `MARK`
/// the loss of the last records cannot be noticed.
///
/// # Errors
/// The back end as a whole cannot be opened.
pub fn read_log(backend: LogBackend, database: &Database, dir: &Path) -> Result<LogReading> {
    let mut problems = Vec::new();
    let mut store: Box<dyn LogStore> = match backend {
        LogBackend::Sled => Box::new(TreeStore::open(database)?),
        LogBackend::File => {
            let mut note = |error| {
                problems.push(LogProblem { file: None, record: None, error });
                Ok(())
            };
            let tuning = LogTuning::default();
            Box::new(FileStore::open_with(database, dir, tuning.file_bytes, &mut note)?)
        }
    };
    // One that cannot be read is reported where the back end is asked for.
    let marked = open_mark(dir).ok().flatten().map_or(0, |mark| mark.sequence());
    let Readable { first, last, has_tail, groups, problems: found } =
        recovery::read(&mut *store, marked, !problems.is_empty());
    problems.extend(found.into_iter().map(|(record, error)| {
        let file = record.and_then(|record| store.file_of(record)).map(Path::to_owned);
        LogProblem { file, record, error }
    }));
    let bytes = store.stored_bytes();
    Ok(LogReading { first, last, bytes, has_tail, groups, problems })
}

fn open_mark(dir: &Path) -> Result<Option<Mark>> {
    Mark::open(dir, std::sync::Arc::default())
}
