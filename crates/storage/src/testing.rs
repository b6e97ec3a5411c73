//! Test support: an obviously correct twin of the log, and a contract suite that runs against the
//! twin and both back ends alike.

pub mod suite;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use quorate_raft::{Entry, EntryKind, GroupId, HardState, Index, LogId, ReplicaId, Term};

pub use crate::codec::encode as encode_record;
use crate::database::{Database, DatabaseOptions};
use crate::error::{Result, StorageError};
use crate::log::{
    LogBackend, LogTuning, RecordLog, RecoveredGroup, ReplicaKey, Section, SectionKind,
};

/// Everything a log holds after it was opened.
pub type Groups = BTreeMap<ReplicaKey, RecoveredGroup>;

/// A log under test: [`RecordLog`] or the twin.
pub trait Log {
    /// See [`RecordLog::append`].
    ///
    /// # Errors
    /// As [`RecordLog::append`].
    fn append(&mut self, sections: &[Section]) -> Result<()>;
    /// See [`RecordLog::purge`].
    fn purge(&mut self, key: ReplicaKey, through: Index);
    /// See [`RecordLog::forget`].
    fn forget(&mut self, key: ReplicaKey);
    /// See [`RecordLog::maintain`].
    ///
    /// # Errors
    /// As [`RecordLog::maintain`].
    fn maintain(&mut self) -> Result<()>;
    /// See [`RecordLog::close`].
    ///
    /// # Errors
    /// As [`RecordLog::close`].
    fn close(self: Box<Self>) -> Result<()>;
    /// The log itself, if it is a real one: the twin has no head and no bytes.
    fn real(&self) -> Option<&RecordLog>;
}

impl Log for RecordLog {
    fn append(&mut self, sections: &[Section]) -> Result<()> {
        RecordLog::append(self, sections)
    }

    fn purge(&mut self, key: ReplicaKey, through: Index) {
        RecordLog::purge(self, key.0, key.1, through);
    }

    fn forget(&mut self, key: ReplicaKey) {
        RecordLog::forget(self, key.0, key.1);
    }

    fn maintain(&mut self) -> Result<()> {
        RecordLog::maintain(self)
    }

    fn close(self: Box<Self>) -> Result<()> {
        RecordLog::close(*self)
    }

    fn real(&self) -> Option<&RecordLog> {
        Some(self)
    }
}

/// A place in which a log outlives its openings.
pub trait Home {
    /// Opens the log there. The log opened before must have been dropped or closed.
    ///
    /// # Errors
    /// As [`RecordLog::open`].
    fn open(&mut self) -> Result<(Box<dyn Log>, Groups)>;
}

/// A data directory with a real log. If the log is in files, the database stays open between
/// openings of the log.
#[derive(Debug)]
pub struct DirHome {
    dir: PathBuf,
    backend: LogBackend,
    tuning: LogTuning,
    database: Option<Database>,
}

impl DirHome {
    /// The log of the data directory `dir`.
    #[must_use]
    pub fn new(dir: &Path, backend: LogBackend, tuning: LogTuning) -> Self {
        Self { dir: dir.to_owned(), backend, tuning, database: None }
    }

    /// The database, while it is open.
    #[must_use]
    pub fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }
}

impl Home for DirHome {
    fn open(&mut self) -> Result<(Box<dyn Log>, Groups)> {
        if self.backend == LogBackend::Sled {
            self.database = None;
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => Database::open(&self.dir.join("sled"), DatabaseOptions::default())?,
        };
        let database = self.database.insert(database);
        let (log, groups) = RecordLog::open_tuned(self.backend, self.tuning, database, &self.dir)?;
        Ok((Box::new(log), groups))
    }
}

/// The log of one replica, by the rules only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TwinGroup {
    recovered: RecoveredGroup,
    purged: Index,
}

/// The obviously correct log: all in memory, nothing ever moved.
#[derive(Debug, Clone, Default)]
pub struct Twin {
    groups: BTreeMap<ReplicaKey, TwinGroup>,
    forgotten: BTreeSet<ReplicaKey>,
}

impl TwinGroup {
    fn next_index(&self) -> Option<Index> {
        let last = self.recovered.entries.last().map(|entry| entry.index);
        let reset = self.recovered.reset.map(|reset| reset.index);
        let purged = (self.purged.0 > 0).then_some(self.purged);
        last.max(reset).max(purged).map(Index::next)
    }

    fn apply(&mut self, kind: &SectionKind) -> Result<()> {
        let recovered = &mut self.recovered;
        match kind {
            SectionKind::HardState(state) => recovered.hard_state = *state,
            SectionKind::Reset(to) => {
                recovered.entries.clear();
                recovered.reset = Some(*to);
                self.purged = Index(0);
            }
            SectionKind::Append(entries) => {
                let Some(first) = entries.first() else { return Ok(()) };
                let follows = entries.windows(2).all(|w| w[0].index.next() == w[1].index);
                if !follows || self.next_index().is_some_and(|next| first.index > next) {
                    return Err(StorageError::Invalid { what: "a gap".to_owned() });
                }
                let recovered = &mut self.recovered;
                recovered.entries.retain(|entry| entry.index < first.index);
                recovered.entries.extend(entries.iter().cloned());
            }
        }
        Ok(())
    }

    fn purge(&mut self, through: Index) {
        self.purged = self.purged.max(through);
        self.recovered.entries.retain(|entry| entry.index > through);
        self.recovered.reset = self.recovered.reset.filter(|reset| reset.index > through);
    }
}

impl Twin {
    /// Applies one record.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] as [`RecordLog::append`]; nothing has changed then.
    pub fn append(&mut self, sections: &[Section]) -> Result<()> {
        let mut next = self.clone();
        for section in sections {
            if matches!(&section.kind, SectionKind::Append(entries) if entries.is_empty()) {
                continue;
            }
            let group = next.groups.entry((section.group, section.replica)).or_default();
            group.apply(&section.kind)?;
        }
        *self = next;
        Ok(())
    }

    /// See [`RecordLog::purge`].
    pub fn purge(&mut self, key: ReplicaKey, through: Index) {
        if let Some(group) = self.groups.get_mut(&key) {
            group.purge(through);
        }
    }

    /// See [`RecordLog::forget`].
    pub fn forget(&mut self, key: ReplicaKey) {
        self.groups.remove(&key);
        self.forgotten.insert(key);
    }

    /// The groups that an opening must recover.
    #[must_use]
    pub fn groups(&self) -> Groups {
        self.groups.iter().map(|(key, group)| (*key, group.recovered.clone())).collect()
    }

    /// Compares `recovered` with the groups that must be there. Purged entries and resets, and
    /// forgotten replicas, may come back.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, recovered: &Groups) -> Result<(), String> {
        for (key, found) in recovered {
            if self.forgotten.contains(key) {
                continue;
            }
            let group = self.groups.get(key).ok_or_else(|| format!("{key:?} is unknown"))?;
            if !found.entries.windows(2).all(|w| w[0].index.next() == w[1].index) {
                return Err(format!("{key:?} has a gap: {:?}", found.entries));
            }
            let mut found = TwinGroup { recovered: found.clone(), purged: Index(0) };
            if group.purged.0 > 0 {
                found.purge(group.purged);
            }
            if found != *group {
                return Err(format!("{key:?} is {found:?}, expected {group:?}"));
            }
        }
        // A replica without live sections need not be found again.
        let mut live = self.groups.iter().filter(|(_, g)| g.recovered != RecoveredGroup::default());
        match live.find(|(key, _)| !recovered.contains_key(key)) {
            Some((key, group)) => Err(format!("{key:?} is lost: {group:?}")),
            None => Ok(()),
        }
    }

    /// Compares the entries that a log counts as live with those that are. A log that counts live
    /// entries as dead loses them when its head moves.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_live(&self, log: &RecordLog) -> Result<(), String> {
        for (key, group) in &self.groups {
            let entries = &group.recovered.entries;
            let run = entries.first().zip(entries.last());
            let expected: Vec<_> = run.into_iter().map(|(a, b)| (a.index, b.index)).collect();
            let live = log.live_runs(*key);
            if live != expected {
                return Err(format!("{live:?} of {key:?} is live, expected {expected:?}"));
            }
        }
        Ok(())
    }

    /// Repeats this twin's purges and forgotten replicas to `log`, as a node does after a restart.
    pub fn repeat_purges(&self, log: &mut dyn Log) {
        for (key, group) in &self.groups {
            if group.purged.0 > 0 {
                log.purge(*key, group.purged);
            }
        }
        self.forgotten.iter().for_each(|key| log.forget(*key));
    }
}

/// A place in which a twin outlives its openings.
#[derive(Debug, Default)]
pub struct TwinHome(Rc<RefCell<Twin>>);

struct TwinLog(Rc<RefCell<Twin>>);

impl Home for TwinHome {
    fn open(&mut self) -> Result<(Box<dyn Log>, Groups)> {
        let groups = self.0.borrow().groups();
        Ok((Box::new(TwinLog(Rc::clone(&self.0))), groups))
    }
}

impl Log for TwinLog {
    fn append(&mut self, sections: &[Section]) -> Result<()> {
        self.0.borrow_mut().append(sections)
    }

    fn purge(&mut self, key: ReplicaKey, through: Index) {
        self.0.borrow_mut().purge(key, through);
    }

    fn forget(&mut self, key: ReplicaKey) {
        self.0.borrow_mut().forget(key);
    }

    fn maintain(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }

    fn real(&self) -> Option<&RecordLog> {
        None
    }
}

/// Group `group`'s replica on this node.
#[must_use]
pub fn key(group: u64) -> ReplicaKey {
    (GroupId(group), ReplicaId(group * 10 + 1))
}

/// An entry whose payload is `len` bytes that depend on term and index.
#[must_use]
pub fn entry(term: u64, index: u64, len: usize) -> Entry {
    let seed = (term * 31 + index * 7) as usize;
    let payload: Bytes = (0..len).map(|i| ((seed + i) % 251) as u8).collect();
    Entry { term: Term(term), index: Index(index), kind: EntryKind::Command, stamp: index, payload }
}

/// Entries `first..=last` of `term`, 100 bytes each.
#[must_use]
pub fn entries(term: u64, first: u64, last: u64) -> Vec<Entry> {
    (first..=last).map(|index| entry(term, index, 100)).collect()
}

fn section(group: u64, kind: SectionKind) -> Section {
    let (group, replica) = key(group);
    Section { group, replica, kind }
}

/// A section that appends `entries`.
#[must_use]
pub fn append(group: u64, entries: Vec<Entry>) -> Section {
    section(group, SectionKind::Append(entries))
}

/// A section that resets the log to `index@term`.
#[must_use]
pub fn reset(group: u64, term: u64, index: u64) -> Section {
    section(group, SectionKind::Reset(LogId::new(Term(term), Index(index))))
}

/// A section with a hard state.
#[must_use]
pub fn hard_state(group: u64, term: u64, commit: u64) -> Section {
    let vote = Some(ReplicaId(term % 3));
    let state = HardState { term: Term(term), vote, commit: Index(commit) };
    section(group, SectionKind::HardState(state))
}
