//! The apply pool: threads that apply committed entries, answer their proposers and open the gates
//! for readers.
//!
//! Each group belongs to one thread, which owns its state: there is one writer per state and no
//! lock around it. Checkpoints run elsewhere ([`super::checkpointer`]); this thread only freezes
//! and finishes them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorate_machine::SessionLimits;
use quorate_machine::{Applied, ApplyError, Map, Ownership, StateMachine};
use quorate_raft::{GroupId, Install, LogId, ReplicationSession, SnapshotMeta};
use quorate_storage::{
    CheckpointJob, DeltaBudget, DeltaLevel, Finished, Installer, RowKind, ShardStore,
    SnapshotSource, StorageError,
};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::Shard;
use super::group::Committed;
use super::inbox::{Inbox, Weigh};
use super::input::Input;
use super::request::{Answer, answer_all};
use super::snapshots::Staged;
use crate::error::{InstallError, ScrubError};
use crate::fatal::FatalHook;
use crate::map_cell::MapCell;
use crate::metrics::EngineMetrics;
use crate::quarantine::guarded;

/// Longest wait for input: how often a thread checks whether the delta budget lets it apply again.
const RESUME_INTERVAL: Duration = Duration::from_millis(50);

/// The inputs of an apply thread.
pub(super) enum ApplyInput {
    /// Apply the entries of this replica from now on.
    Add(Box<Applier>),
    /// Committed entries, in order.
    Entries { group: GroupId, entries: Vec<Committed> },
    /// Replace the state by a received snapshot.
    Install { group: GroupId, install: Install },
    /// The core has decided about a received snapshot: if it still waits, it is not wanted.
    Decided { group: GroupId, session: ReplicationSession },
    /// The state was compared with its header: it is sound, or why not.
    Scrubbed { group: GroupId, outcome: Result<(), ScrubError> },
    /// Begin a checkpoint; the reply is `None` when there is nothing to write.
    Freeze { group: GroupId, reply: oneshot::Sender<Option<CheckpointJob>> },
    /// A checkpoint is durable; the reply is the log position that it covers.
    Finish { group: GroupId, finished: Finished, reply: oneshot::Sender<LogId> },
    /// Another thread found that the state cannot be read: the replica stops.
    Damaged { group: GroupId, why: String },
    /// Begin to receive a snapshot into a generation that is not visible yet.
    BeginInstall {
        group: GroupId,
        meta: SnapshotMeta,
        reply: oneshot::Sender<Result<Installer, InstallError>>,
    },
    /// Pin the last checkpoint, to be sent.
    Pin { group: GroupId, reply: oneshot::Sender<Result<SnapshotSource, StorageError>> },
    /// End the thread after the inputs before this.
    Stop,
}

impl Weigh for ApplyInput {
    fn weight(&self) -> usize {
        // All inputs are completions. The core bounds the entries: it hands out at most
        // `max_committed_bytes` before they are reported as applied.
        1
    }
}

/// The state of one replica, with what its thread needs to apply entries.
pub(super) struct Applier {
    pub(super) shard: Arc<Shard>,
    pub(super) store: ShardStore,
    pub(super) machine: StateMachine,
    pub(super) engine_loop: Arc<Inbox<Input>>,
    pub(super) fatal: FatalHook,
    /// Set when the replica cannot apply any more; further entries are dropped.
    pub(super) stopped: bool,
    /// Entries committed while the state is being scrubbed; `None` once they may be applied.
    pub(super) held: Option<Vec<Committed>>,
}

/// The handle of all apply threads.
pub(super) struct ApplyPool {
    threads: Vec<Arc<Inbox<ApplyInput>>>,
}

impl ApplyPool {
    pub(super) fn new(threads: usize) -> Self {
        let inbox = || Arc::new(Inbox::new(usize::MAX));
        Self { threads: (0..threads).map(|_| inbox()).collect() }
    }

    pub(super) fn push(&self, group: GroupId, input: ApplyInput) {
        self.threads[group.0 as usize % self.threads.len()].complete(input);
    }

    pub(super) fn inboxes(&self) -> impl Iterator<Item = &Arc<Inbox<ApplyInput>>> {
        self.threads.iter()
    }

    pub(super) fn stop(&self) {
        for inbox in &self.threads {
            inbox.complete(ApplyInput::Stop);
        }
    }
}

pub(super) struct ApplyThread {
    pub(super) inbox: Arc<Inbox<ApplyInput>>,
    pub(super) budget: Arc<DeltaBudget>,
    pub(super) map: MapCell,
    pub(super) staged: Arc<Staged>,
    pub(super) metrics: Arc<EngineMetrics>,
    pub(super) fatal: FatalHook,
    pub(super) appliers: BTreeMap<GroupId, Applier>,
}

impl ApplyThread {
    /// Applies until it is stopped.
    pub(super) fn run(mut self) {
        let mut inputs = Vec::new();
        // Inputs that wait because the deltas are at twice their budget. Control inputs overtake
        // them: the checkpoint that makes room needs this thread in order to finish.
        let mut parked: VecDeque<ApplyInput> = VecDeque::new();
        loop {
            self.inbox.drain(&mut inputs, RESUME_INTERVAL);
            let mut stop = false;
            for input in inputs.drain(..) {
                match input {
                    ApplyInput::Stop => stop = true,
                    ApplyInput::Entries { .. }
                    | ApplyInput::Install { .. }
                    | ApplyInput::Decided { .. } => {
                        parked.push_back(input);
                    }
                    control => self.handle(control),
                }
            }
            while self.budget.level() < DeltaLevel::Double {
                let Some(input) = parked.pop_front() else { break };
                self.handle(input);
            }
            if stop {
                return;
            }
        }
    }

    fn handle(&mut self, input: ApplyInput) {
        match input {
            ApplyInput::Add(applier) => self.add(*applier),
            ApplyInput::Entries { group, entries } => self.apply(group, entries),
            ApplyInput::Install { group, install } => self.install(group, &install),
            // A wanted snapshot was taken out by its install before this. An unwanted one is
            // removed on this thread, because that waits for the disk, and soon, because while it
            // exists no other snapshot can be received.
            ApplyInput::Decided { group, session } => drop(self.staged.take(group, session)),
            ApplyInput::Scrubbed { group, outcome } => self.finish_scrub(group, outcome),
            ApplyInput::Freeze { group, reply } => {
                let job = self.appliers.get_mut(&group).and_then(|applier| applier.freeze());
                // The checkpointer may have ended with the node: the next start applies again.
                let _ = reply.send(job);
            }
            ApplyInput::Finish { group, finished, reply } => {
                if let Some(applier) = self.appliers.get_mut(&group) {
                    let through = applier.store.finish(finished);
                    applier.publish();
                    let _ = reply.send(through);
                }
            }
            ApplyInput::Damaged { group, why } => {
                if let Some(applier) = self.appliers.get_mut(&group) {
                    applier.stop(&why);
                }
            }
            ApplyInput::BeginInstall { group, meta, reply } => {
                let applier = self.appliers.get(&group).ok_or(InstallError::NoReplica(group));
                let _ = reply.send(applier.and_then(|applier| applier.begin_install(meta)));
            }
            ApplyInput::Pin { group, reply } => {
                if let Some(applier) = self.appliers.get(&group).filter(|a| a.held.is_none()) {
                    let _ = reply.send(applier.store.pin_snapshot());
                }
            }
            ApplyInput::Stop => unreachable!("the thread ends before it handles a stop"),
        }
    }

    fn add(&mut self, applier: Applier) {
        self.publish_map(&applier);
        applier.publish();
        let group = applier.shard.group;
        let before = self.appliers.insert(group, applier);
        assert!(before.is_none(), "group {group} was added twice");
    }

    fn publish_map(&self, applier: &Applier) {
        if let Some(map) = applier.machine.map() {
            self.map.offer(Map::new(map.as_ref().clone()));
        }
    }

    fn apply(&mut self, group: GroupId, entries: Vec<Committed>) {
        let Some(applier) = self.appliers.get_mut(&group) else { return };
        if applier.stopped {
            // Dropping the entries drops the handlers' channels: their outcome is unknown here.
            return;
        }
        if let Some(held) = &mut applier.held {
            held.extend(entries);
            return;
        }
        let started = Instant::now();
        let count = entries.len();
        // A panic in apply means bytes that this replica cannot apply. Stop only this replica:
        // ending the process would stop its sound shards too.
        let applied = guarded(|| applier.apply_all(entries));
        match applied {
            Ok(Ok(())) => {}
            Ok(Err(ApplyError::Storage(error))) => self.fatal.end(&error),
            Ok(Err(error)) => applier.stop(&error.to_string()),
            Err(panicked) => applier.stop(&panicked.to_string()),
        }
        let applier = &self.appliers[&group];
        applier.publish();
        if group == GroupId(0) {
            self.publish_map(applier);
        }
        self.metrics.apply_seconds.observe_duration(started.elapsed());
        self.metrics.apply_batch_entries.observe(count as u64);
    }

    fn finish_scrub(&mut self, group: GroupId, outcome: Result<(), ScrubError>) {
        let Some(applier) = self.appliers.get_mut(&group) else { return };
        // `None`: an install has meanwhile replaced the state that was scrubbed.
        let Some(held) = applier.held.take() else { return };
        match outcome {
            Ok(()) => {
                applier.shard.set_scrubbing(false);
                self.apply(group, held);
            }
            Err(error) => applier.stop(&error.to_string()),
        }
    }

    fn install(&mut self, group: GroupId, install: &Install) {
        let Some(applier) = self.appliers.get_mut(&group) else { return };
        let outcome = match self.staged.take(group, install.session) {
            Some(installer) => applier.install(installer),
            None => Err(InstallError::Superseded),
        };
        match outcome {
            Ok(()) => {
                self.metrics.snapshots_installed.inc();
                let last = install.meta.last;
                info!(shard = group.0, index = last.index.0, "snapshot: installed");
                let applier = &self.appliers[&group];
                applier.shard.gate.open(last.index);
                applier.publish();
                self.publish_map(applier);
                applier.engine_loop.complete(Input::Installed(group, install.meta.clone()));
            }
            Err(error) => {
                warn!(shard = group.0, %error, "snapshot: not installed");
                applier.engine_loop.complete(Input::InstallFailed(group));
            }
        }
    }
}

impl Applier {
    /// Applies entries in order, answering each proposer right after its entry.
    fn apply_all(&mut self, entries: Vec<Committed>) -> Result<(), ApplyError> {
        let mut last = None;
        for Committed { entry, answers } in entries {
            let at = LogId { term: entry.term, index: entry.index };
            if entry.index <= self.store.applied().index {
                // Replayed after an install that overtook it. The core handed it out, so it is
                // reported as applied like any other entry that is in the state.
                last = Some(entry.index);
                continue;
            }
            let mut transaction = self.store.begin(at, entry.stamp);
            let applied = self.machine.apply_entry(&entry, &mut transaction)?;
            let result = match applied {
                Applied::Noop => None,
                Applied::Membership(membership) => {
                    transaction.set_membership(membership);
                    None
                }
                Applied::Command(result) => Some(result),
            };
            transaction.commit();
            last = Some(entry.index);
            if let Some(answer) = result {
                answer_all(answers, Answer::Applied { at, log_time: entry.stamp, answer });
            }
        }
        if let Some(index) = last {
            self.shard.gate.open(index);
            self.engine_loop.complete(Input::Applied(self.shard.group, index));
        }
        Ok(())
    }

    fn install(&mut self, installer: Installer) -> Result<(), InstallError> {
        let installed = match installer.finish() {
            Ok(installed) => installed,
            Err(error) if error.is_fatal() => self.fatal.end(&error),
            Err(error) => return Err(error.into()),
        };
        self.store.adopt(installed);
        self.held = None;
        self.shard.set_scrubbing(false);
        self.machine = match load_machine(&self.store) {
            Ok(machine) => machine,
            Err(ApplyError::Storage(error)) => self.fatal.end(&error),
            Err(error) => {
                // The bytes passed their checksums and the digest, so the sender has the same rows.
                self.stop(&error.to_string());
                return Err(InstallError::State(error));
            }
        };
        Ok(())
    }

    fn begin_install(&self, meta: SnapshotMeta) -> Result<Installer, InstallError> {
        match self.store.begin_install(meta) {
            Ok(installer) => Ok(installer),
            Err(error) if error.is_fatal() => self.fatal.end(&error),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a checkpoint. A stopped replica is checkpointed as well: the state that it had
    /// applied is intact, because an uncommitted transaction leaves nothing behind, and would
    /// otherwise stay in memory.
    fn freeze(&mut self) -> Option<CheckpointJob> {
        if self.held.is_some() { None } else { self.store.freeze() }
    }

    fn stop(&mut self, why: &str) {
        error!(shard = self.shard.group.0, why, "replica: stopped applying");
        self.stopped = true;
        self.shard.set_damaged(why);
    }

    fn publish(&self) {
        let stats = &self.shard.stats;
        stats.delta_bytes.store(self.store.active_bytes(), Ordering::Relaxed);
        let sessions = self.machine.sessions().map_or(0, |table| table.len() as u64);
        stats.sessions.store(sessions, Ordering::Relaxed);
    }
}

/// Loads the state machine from the rows of a store.
///
/// # Errors
/// Rows that do not decode, or a failure to read them.
pub fn load_machine(store: &ShardStore) -> Result<StateMachine, ApplyError> {
    let header = store.header();
    if header.group == GroupId(0) {
        return StateMachine::load_meta(store.rows(RowKind::Meta)?);
    }
    let ownership = Ownership {
        shard: header.group.0,
        shard_epoch: header.shard_epoch,
        first: header.range.first,
        last: header.range.last,
    };
    let rows = store.rows(RowKind::Session)?;
    StateMachine::load_shard(ownership, SessionLimits::LEVEL_1, rows)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_raft::{Entry, EntryKind, Index, Membership, NodeId, Replica, ReplicaId, Term};
    use quorate_storage::{Database, DatabaseOptions, HashRange, ShardInit};

    use super::*;

    #[test]
    fn entries_that_the_state_already_contains_are_reported_as_applied() {
        let dir = tempfile::tempdir().expect("a directory");
        let sled = Database::open(dir.path(), DatabaseOptions::default()).expect("sled");
        let (group, replica) = (GroupId(1), Replica { id: ReplicaId(1), node: NodeId(1) });
        let init = ShardInit {
            group,
            replica: replica.id,
            membership: Membership::of_voters([replica]),
            range: HashRange::ALL,
            shard_epoch: 1,
        };
        let budget = Arc::new(DeltaBudget::new(1 << 20));
        let store = ShardStore::create(&sled, init, budget).expect("a store");
        let engine_loop = Arc::new(Inbox::new(usize::MAX));
        let mut applier = Applier {
            fatal: FatalHook(|error| panic!("the storage failed: {error}")),
            shard: Arc::new(Shard::new(group, replica, HashRange::ALL, 1, store.reader())),
            machine: load_machine(&store).expect("a machine"),
            store,
            engine_loop: engine_loop.clone(),
            stopped: false,
            held: None,
        };
        let entry = |index| Entry {
            term: Term(1),
            index: Index(index),
            kind: EntryKind::Noop,
            stamp: index,
            payload: Bytes::new(),
        };
        let mut reported = |indexes: std::ops::RangeInclusive<u64>| {
            let entries =
                indexes.map(|index| Committed { entry: entry(index), answers: Vec::new() });
            applier.apply_all(entries.collect()).expect("they are applied");
            let mut inputs = Vec::new();
            engine_loop.drain(&mut inputs, Duration::ZERO);
            match inputs[..] {
                [] => None,
                [Input::Applied(_, index)] => Some(index.0),
                _ => panic!("one report for all"),
            }
        };
        assert_eq!(reported(1..=3), Some(3));
        // The core counts the entries that it handed out until they are reported, up to a bound.
        assert_eq!(reported(2..=3), Some(3));
        assert_eq!(reported(3..=4), Some(4));
    }
}
