//! The log writer: the thread that owns the record log. It writes one record with one barrier for
//! all groups that have something to persist.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_raft::{Entry, Envelope, GroupId, Index, NodeId, Persist, PersistToken, ReplicaId};
use quorate_storage::{RecordLog, Section, SectionKind, StorageError, Syncs};

use super::Outbox;
use super::inbox::{Inbox, Weigh};
use super::input::Input;
use crate::metrics::EngineMetrics;

/// How long the thread sleeps when there is nothing to write, before it maintains the log.
const MAINTAIN_INTERVAL: Duration = Duration::from_millis(200);
/// How long it sleeps while dead records wait to be removed: long enough for an append to arrive.
const BEHIND_INTERVAL: Duration = Duration::from_millis(1);

/// Target size of a record, which ends with the write that reaches it. After a slow barrier the
/// backlog is split, so that a record stays far below the size that can be read back, the groups of
/// the first records continue while the last is being written, and no barrier takes as long as on a
/// failing disk.
const RECORD_BYTES: u64 = 4 << 20;

/// The inputs of the log writer.
#[derive(Debug)]
pub(super) enum LogInput {
    /// Persist the writes of one iteration of a loop.
    Write(Vec<Write>),
    /// Entries up to `through` are covered by a checkpoint and no longer needed by any follower.
    Purge { group: GroupId, replica: ReplicaId, through: Index },
    /// Write the inputs before this, close the log and end the thread.
    Close,
}

/// One group's part of a record.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) group: GroupId,
    pub(super) replica: ReplicaId,
    /// The number of the loop that drives the group.
    pub(super) engine_loop: usize,
    pub(super) persist: Persist,
}

impl Weigh for LogInput {
    fn weight(&self) -> usize {
        // All inputs are completions: the core's log holds the entries, and its bounds count them.
        1
    }
}

/// The progress of the log writer.
#[derive(Debug, Default)]
pub struct LogProgress {
    stored_bytes: AtomicU64,
    engine_bytes: AtomicU64,
    /// The sequence of the last durable record.
    durable: AtomicU64,
}

impl LogProgress {
    /// The sequence of the last durable record; 0 = none. Peers may rely on it: a durable record is
    /// never lost again.
    #[must_use]
    pub fn durable_sequence(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Publishes how far the log is durable. Called before anything that depends on it is sent.
    pub(super) fn set_durable(&self, sequence: u64) {
        self.durable.store(sequence, Ordering::Release);
    }

    /// Bytes of the records on disk, including dead ones that are not yet removed.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// How many of these bytes are in the storage engine.
    #[must_use]
    pub fn engine_bytes(&self) -> u64 {
        self.engine_bytes.load(Ordering::Relaxed)
    }
}

pub(super) struct LogWriter {
    pub(super) log: RecordLog,
    pub(super) inbox: Arc<Inbox<LogInput>>,
    pub(super) loops: Vec<Arc<Inbox<Input>>>,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) progress: Arc<LogProgress>,
    /// Where the watchdog sees the writes.
    pub(super) syncs: Arc<Syncs>,
    pub(super) metrics: Arc<EngineMetrics>,
}

/// The number of leading writes that make one record, given the bytes of their entries: at least
/// one unless there are none.
fn record_end(bytes: impl Iterator<Item = u64>) -> usize {
    let mut filled = 0;
    let fits = bytes.take_while(|bytes| {
        let fits = filled < RECORD_BYTES;
        filled += bytes;
        fits
    });
    fits.count()
}

/// Removes the leading writes that make one record; `None` if there are none.
fn next_record(writes: &mut Vec<Write>) -> Option<Vec<Write>> {
    let rest = writes.split_off(record_end(writes.iter().map(Write::entry_bytes)));
    let record = std::mem::replace(writes, rest);
    (!record.is_empty()).then_some(record)
}

impl Write {
    fn entry_bytes(&self) -> u64 {
        self.persist.entries.iter().map(Entry::bytes).sum()
    }
}

impl LogWriter {
    /// Writes until it is closed.
    ///
    /// # Errors
    /// A failed write or barrier; the caller ends the process, nothing is retried.
    pub(super) fn run(mut self) -> Result<(), StorageError> {
        let mut inputs = Vec::new();
        let mut writes = Vec::new();
        loop {
            let timeout = if self.log.is_behind() { BEHIND_INTERVAL } else { MAINTAIN_INTERVAL };
            self.inbox.drain(&mut inputs, timeout);
            let mut close = false;
            for input in inputs.drain(..) {
                match input {
                    LogInput::Write(mut more) => writes.append(&mut more),
                    LogInput::Purge { group, replica, through } => {
                        self.log.purge(group, replica, through);
                    }
                    LogInput::Close => close = true,
                }
            }
            while let Some(record) = next_record(&mut writes) {
                self.write(record)?;
            }
            self.watched(RecordLog::maintain)?;
            self.progress.set_durable(self.log.last_sequence());
            self.progress.stored_bytes.store(self.log.stored_bytes(), Ordering::Relaxed);
            self.progress.engine_bytes.store(self.log.engine_bytes(), Ordering::Relaxed);
            if close {
                return self.log.close();
            }
        }
    }

    /// Runs a step of the log, which may wait for the disk in any of its writes.
    fn watched<T>(&mut self, step: impl FnOnce(&mut RecordLog) -> T) -> T {
        let log = &mut self.log;
        self.syncs.watched("write", Path::new("the log"), || step(log))
    }

    fn write(&mut self, writes: Vec<Write>) -> Result<(), StorageError> {
        let started = Instant::now();
        let mut sections = Vec::with_capacity(writes.len() * 2);
        let mut done: Vec<Vec<(GroupId, PersistToken)>> = vec![Vec::new(); self.loops.len()];
        let mut send: Vec<(NodeId, Envelope)> = Vec::new();
        let (mut entries, mut bytes) = (0, 0);
        for Write { group, replica, engine_loop, persist } in writes {
            let mut push = |kind| sections.push(Section { group, replica, kind });
            if let Some(position) = persist.reset {
                push(SectionKind::Reset(position));
            }
            if let Some(hard_state) = persist.hard_state {
                push(SectionKind::HardState(hard_state));
            }
            if !persist.entries.is_empty() {
                entries += persist.entries.len() as u64;
                bytes += persist.entries.iter().map(Entry::bytes).sum::<u64>();
                push(SectionKind::Append(persist.entries));
            }
            done[engine_loop].push((group, persist.token));
            send.extend(
                persist.send_after.into_iter().map(|envelope| (envelope.to.node, envelope)),
            );
        }
        if !sections.is_empty() {
            self.watched(|log| log.append(&sections))?;
            self.progress.set_durable(self.log.last_sequence());
            self.metrics.fsync_seconds.observe_duration(started.elapsed());
            self.metrics.log_record_entries.observe(entries);
            self.metrics.log_record_bytes.observe(bytes);
        }
        // Acknowledgements to other nodes first: a leader there waits for them, while this node's
        // loops are only notified of their own writes.
        self.outbox.send_all(&mut send);
        for (inbox, done) in self.loops.iter().zip(done) {
            if !done.is_empty() {
                inbox.complete(Input::Persisted(done));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_raft::{
        Config, EntryKind, LogId, Message, Output, Raft, ReplicationSession, Term, Ticks, Timing,
    };
    use quorate_storage::{DeltaBudget, LogBackend, RecoveredGroup, ShardHeader};

    use super::*;
    use crate::replica::restore;
    use crate::testing::{GROUP, Peers, replica, sled, store};

    fn open(header: &ShardHeader, recovered: Option<RecoveredGroup>) -> Raft {
        let restored = restore(header, recovered).expect("log and state fit together");
        let raft = Raft::new(Config::default(), GROUP, replica(1), 1, restored, Ticks(1));
        raft.unwrap_or_else(|error| panic!("an intact replica is refused: {error}"))
    }

    /// The writes of a follower that was suspended and then finds more in its inbox than fits into
    /// a record: entries that the others have committed, and the heartbeat of the next leader.
    fn backlog(raft: &mut Raft) -> Vec<Write> {
        let mut deliver = |from: u64, term: u64, message| {
            let (from, to, term) = (replica(from), replica(1), Term(term));
            raft.step(Ticks(2), Envelope { group: GROUP, from, to, term, message });
        };
        let (commit, timing) = (Index(6), Timing::default());
        for index in 1..=6 {
            let prev = LogId { term: Term(u64::from(index > 1)), index: Index(index - 1) };
            let payload = Bytes::from(vec![0; (1 << 20) - Entry::OVERHEAD_BYTES as usize]);
            let (term, kind) = (Term(1), EntryKind::Command);
            let entries = vec![Entry { term, index: Index(index), kind, stamp: index, payload }];
            let session = ReplicationSession { term, counter: 1 };
            deliver(2, 1, Message::Append { session, prev, commit, entries, timing });
        }
        let session = ReplicationSession { term: Term(2), counter: 1 };
        deliver(3, 2, Message::Heartbeat { session, commit, timing });
        let mut writes = Vec::new();
        while raft.has_output() {
            let Output { persist, .. } = raft.take_output();
            let write =
                |persist| Write { group: GROUP, replica: replica(1).id, engine_loop: 0, persist };
            writes.extend(persist.map(write));
        }
        writes
    }

    #[test]
    fn a_replica_starts_whichever_record_of_a_backlog_was_the_last_to_become_durable() {
        let mut durable_entries = Vec::new();
        for records in 0.. {
            let dir = tempfile::tempdir().expect("a directory");
            let engine = sled(dir.path());
            let store = store(&engine, &Arc::new(DeltaBudget::new(1 << 20)), GROUP, 3);
            let header = store.header();
            let open_log =
                || RecordLog::open(LogBackend::Sled, &engine, dir.path()).expect("a log");
            let mut writer = LogWriter {
                log: open_log().0,
                inbox: Arc::new(Inbox::new(usize::MAX)),
                loops: vec![Arc::new(Inbox::new(usize::MAX))],
                outbox: Arc::<Peers>::default(),
                progress: Arc::default(),
                syncs: engine.syncs().clone(),
                metrics: Arc::new(EngineMetrics::unregistered()),
            };
            let mut writes = backlog(&mut open(header, None));
            for _ in 0..records {
                let record = next_record(&mut writes).expect("a record is left");
                writer.write(record).expect("it is written");
            }
            drop(writer);
            let recovered = open_log().1.remove(&(GROUP, replica(1).id));
            let started = open(header, recovered);
            assert_eq!(started.term(), Term(if records == 0 { 0 } else { 2 }));
            durable_entries.push(started.status().last.index.0);
            if writes.is_empty() {
                break;
            }
        }
        assert!(durable_entries.len() > 2, "more than one record: {durable_entries:?}");
        assert!(durable_entries.is_sorted() && durable_entries.ends_with(&[6]));
    }

    #[test]
    fn a_record_ends_with_the_write_that_reaches_the_target_size() {
        let records = |sizes: &[u64]| {
            let (mut rest, mut records) = (sizes, Vec::new());
            while !rest.is_empty() {
                let (record, after) = rest.split_at(record_end(rest.iter().copied()));
                records.push(record.len());
                rest = after;
            }
            records
        };
        assert_eq!(records(&[1, 0, 2]), [3]);
        assert_eq!(records(&[RECORD_BYTES - 1, 1, 1]), [2, 1]);
        assert_eq!(records(&[1, RECORD_BYTES * 9, RECORD_BYTES, 0, 0]), [2, 1, 2]);
    }
}
