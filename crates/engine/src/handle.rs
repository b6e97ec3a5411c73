//! The handle of the engine: start, stop, and the requests that other threads make.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::limits::Limits;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use quorate_raft::{
    Config as RaftConfig, Envelope, GroupId, Index, Message, NodeId, Raft, Replica, ReplicaId,
    ReplicationSession, SnapshotMeta, Status, TransferError,
};
use quorate_storage::{
    DeltaBudget, Installer, RecordLog, RecoveredGroup, ShardStore, SnapshotSource, StorageError,
};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::Outbox;
use super::apply_pool::{Applier, ApplyInput, ApplyPool, ApplyThread, load_machine};
use super::checkpointer::{CheckpointControl, Checkpointer};
use super::event_loop::{EventLoop, Outputs, State};
use super::group::Group;
use super::inbox::{Inbox, Refused};
use super::input::Input;
use super::log_writer::{LogInput, LogProgress, LogWriter};
use super::replica::{OpenReplicaError, restore};
use super::request::{Proposal, ReadRequest};
use super::shard::{Shard, Shards};
use super::snapshots::{SnapshotOrder, Staged};

use crate::clock::Clock;
use crate::error::{InstallError, ScrubError};
use crate::fatal::FatalHook;
use crate::map_cell::MapCell;
use crate::metrics::EngineMetrics;
use crate::watchdog::Watchdog;

/// The parts from which the engine is started.
pub struct Parts {
    /// This node.
    pub node: NodeId,
    /// Seeds the randomised election timeouts together with the group: incarnation and boot
    /// counter.
    pub seed: u64,
    /// The Raft settings of every group.
    pub raft: RaftConfig,
    /// The memory that the engine may use.
    pub limits: Limits,
    /// The record log; the log writer owns it from here on.
    pub log: RecordLog,
    /// The memory that all deltas share.
    pub budget: Arc<DeltaBudget>,
    /// The transport to the other nodes.
    pub outbox: Arc<dyn Outbox>,
    /// The cell in which group 0's map is published.
    pub map: MapCell,
    /// The queue of the snapshots that the node has to send.
    pub snapshots: mpsc::Sender<SnapshotOrder>,
    /// The metrics of the engine.
    pub metrics: Arc<EngineMetrics>,
    /// Ends the process after a failure of the storage.
    pub fatal: FatalHook,
    /// How long a barrier may take before the disk counts as hung, which is such a failure:
    /// [`crate::BARRIER_MAX`], but in tests.
    pub barrier_max: Duration,
}

/// The handle of the engine; its methods may be called from any thread and never block.
pub struct Engine {
    node: NodeId,
    seed: u64,
    raft: RaftConfig,
    clock: Clock,
    loops: Vec<Arc<Inbox<Input>>>,
    last_iterations: Vec<Arc<AtomicU64>>,
    log: Arc<Inbox<LogInput>>,
    progress: Arc<LogProgress>,
    fatal: FatalHook,
    apply: Arc<ApplyPool>,
    checkpoints: Arc<CheckpointControl>,
    shards: Arc<Shards>,
    staged: Arc<Staged>,
    threads: Mutex<Threads>,
    /// Looks for as long as the engine is there, beyond [`Engine::stop`].
    watchdog: Watchdog,
}

#[derive(Default)]
struct Threads {
    checkpointer: Option<JoinHandle<()>>,
    loops: Vec<JoinHandle<()>>,
    apply: Vec<JoinHandle<()>>,
    log: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the threads. There are no replicas yet.
    ///
    /// # Errors
    /// The system did not start a thread.
    pub fn start(parts: Parts) -> io::Result<Arc<Engine>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // More loops would only take cores from the threads that the loops feed.
        let loop_count = (cores / 2).clamp(1, 4);
        let apply_count = (cores / 2).clamp(1, 4);
        let queue_bytes = parts.limits.request_queue as usize / loop_count;
        let loops: Vec<_> = (0..loop_count).map(|_| Arc::new(Inbox::new(queue_bytes))).collect();
        let progress = Arc::<LogProgress>::default();
        let syncs = parts.log.database().syncs().clone();
        let engine = Arc::new(Engine {
            node: parts.node,
            seed: parts.seed,
            raft: parts.raft.clone(),
            clock: Clock,
            last_iterations: loops.iter().map(|_| Arc::default()).collect(),
            loops,
            log: Arc::new(Inbox::new(usize::MAX)),
            progress,
            fatal: parts.fatal,
            apply: Arc::new(ApplyPool::new(apply_count)),
            checkpoints: Arc::default(),
            shards: Arc::default(),
            staged: Arc::default(),
            threads: Mutex::default(),
            watchdog: Watchdog::start(syncs, parts.barrier_max, parts.fatal)?,
        });
        engine.start_threads(parts)?;
        Ok(engine)
    }

    fn start_threads(&self, parts: Parts) -> io::Result<()> {
        let fatal = parts.fatal;
        let mut threads = self.threads.lock();
        let sled = parts.log.database().clone();
        for (number, inbox) in self.loops.iter().enumerate() {
            let engine_loop = EventLoop {
                node: self.node,
                inbox: inbox.clone(),
                clock: self.clock,
                log: self.log.clone(),
                log_max: parts.limits.log_group,
                outbox: parts.outbox.clone(),
                out: Outputs::new(
                    number,
                    self.apply.clone(),
                    parts.snapshots.clone(),
                    parts.metrics.clone(),
                ),
                last_iteration: self.last_iterations[number].clone(),
                state: State::default(),
            };
            threads.loops.push(spawn(&format!("engine-{number}"), move || engine_loop.run())?);
        }
        for (number, inbox) in self.apply.inboxes().enumerate() {
            let thread = ApplyThread {
                inbox: inbox.clone(),
                budget: parts.budget.clone(),
                map: parts.map.clone(),
                staged: self.staged.clone(),
                metrics: parts.metrics.clone(),
                fatal: parts.fatal,
                appliers: BTreeMap::new(),
            };
            threads.apply.push(spawn(&format!("apply-{number}"), move || thread.run())?);
        }
        // The log that a start has opened is durable.
        self.progress.set_durable(parts.log.last_sequence());
        let writer = LogWriter {
            log: parts.log,
            inbox: self.log.clone(),
            loops: self.loops.clone(),
            outbox: parts.outbox,
            progress: self.progress.clone(),
            syncs: sled.syncs().clone(),
            metrics: parts.metrics.clone(),
        };
        threads.log = Some(spawn("log-writer", move || {
            if let Err(error) = writer.run() {
                fatal.end(&error);
            }
        })?);
        let checkpointer = Checkpointer {
            control: self.checkpoints.clone(),
            shards: self.shards.clone(),
            budget: parts.budget,
            limits: parts.limits,
            fatal: parts.fatal,
            apply: self.apply.clone(),
            loops: self.loops.clone(),
            metrics: parts.metrics,
            progress: self.progress.clone(),
            disk: sled.disk().clone(),
            engine: sled,
        };
        threads.checkpointer = Some(spawn("checkpointer", move || checkpointer.run())?);
        Ok(())
    }

    /// Adds a replica, given its state and its recovered part of the log. With `scrub` it votes and
    /// appends, but applies and serves only after [`Engine::finish_scrub`].
    ///
    /// # Errors
    /// Log and state do not fit together, or do not decode.
    pub fn add(
        &self,
        store: ShardStore,
        recovered: Option<RecoveredGroup>,
        scrub: bool,
    ) -> Result<Arc<Shard>, OpenReplicaError> {
        let machine = load_machine(&store)?;
        let header = store.header();
        let group = header.group;
        let replica = Replica { id: header.replica, node: self.node };
        let restored = restore(header, recovered)?;
        // Entries covered by the checkpoint or superseded by an install are dead. Purge them before
        // the first append, which may start after a gap.
        let through = restored.base.index;
        self.log.complete(LogInput::Purge { group, replica: replica.id, through });
        let now = self.clock.now();
        // Groups of one node must not all draw the same timeouts.
        let seed = self.seed ^ group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let raft = Raft::new(self.raft.clone(), group, replica, seed, restored, now)?;
        let (range, epoch) = (header.range, header.shard_epoch);
        let shard = Arc::new(Shard::new(group, replica, range, epoch, store.reader()));
        let engine_loop = self.engine_loop(group).clone();
        let applier = Applier {
            shard: shard.clone(),
            store,
            machine,
            engine_loop: engine_loop.clone(),
            fatal: self.fatal,
            stopped: false,
            held: scrub.then(Vec::new),
        };
        shard.set_scrubbing(scrub);
        self.apply.push(group, ApplyInput::Add(Box::new(applier)));
        engine_loop.complete(Input::Add(Box::new(Group::new(raft, shard.clone()))));
        // Here and not in the loop: the next caller must find the replica, or it would create it
        // again. Requests made from now on reach the loop after the replica itself.
        self.shards.insert(&shard);
        info!(shard = group.0, replica = replica.id.0, "replica: opened");
        Ok(shard)
    }

    fn engine_loop(&self, group: GroupId) -> &Arc<Inbox<Input>> {
        &self.loops[group.0 as usize % self.loops.len()]
    }

    /// Proposes a command.
    ///
    /// # Errors
    /// The proposal, not queued because the loop's queue is full or closed.
    pub fn propose(&self, proposal: Proposal) -> Result<(), Box<Proposal>> {
        let inbox = self.engine_loop(proposal.group);
        inbox.offer(Input::Propose(proposal)).map_err(|refused| match refused {
            Refused::Full(Input::Propose(proposal)) | Refused::Closed(Input::Propose(proposal)) => {
                Box::new(proposal)
            }
            _ => unreachable!("a refused input comes back as it was offered"),
        })
    }

    /// Begins a linearizable read; false when the loop's queue is full or closed.
    #[must_use]
    pub fn read(&self, read: ReadRequest) -> bool {
        self.engine_loop(read.group).offer(Input::Read(read)).is_ok()
    }

    /// Delivers messages of a peer. Messages that find the queue full are dropped, as on a network;
    /// a caller that can wait awaits [`Engine::room`] first.
    pub fn deliver(&self, envelopes: Vec<Envelope>) {
        if self.loops.len() == 1 {
            let _ = self.loops[0].offer_urgent(Input::Messages(envelopes));
            return;
        }
        let mut by_loop: Vec<Vec<Envelope>> = vec![Vec::new(); self.loops.len()];
        for envelope in envelopes {
            by_loop[envelope.group.0 as usize % self.loops.len()].push(envelope);
        }
        for (inbox, envelopes) in self.loops.iter().zip(by_loop) {
            if !envelopes.is_empty() {
                let _ = inbox.offer_urgent(Input::Messages(envelopes));
            }
        }
    }

    /// A future that resolves once no loop's queue is full; `None` if none is full now.
    #[must_use]
    pub fn room(&self) -> Option<BoxFuture<'static, ()>> {
        let full: Vec<_> = self.loops.iter().filter(|inbox| !inbox.has_room()).cloned().collect();
        if full.is_empty() {
            return None;
        }
        Some(Box::pin(async move {
            for inbox in full {
                inbox.room().await;
            }
        }))
    }

    /// Reports that a bulk message was dropped before it was sent: the core probes again.
    pub fn bulk_dropped(&self, group: GroupId, to: ReplicaId) {
        self.engine_loop(group).complete(Input::BulkDropped { group, to });
    }

    /// Reports that the process of a peer has ended: groups that it led elect immediately.
    pub fn peer_refused(&self, node: NodeId) {
        for inbox in &self.loops {
            inbox.complete(Input::PeerRefused(node));
        }
    }

    /// Reports that a snapshot that ends at `last` is about to be sent: the log after it is kept
    /// for its receiver. Returns whether that still needs it; if not, it is not sent.
    pub async fn snapshot_begins(
        &self,
        group: GroupId,
        to: ReplicaId,
        session: ReplicationSession,
        last: Index,
    ) -> bool {
        let (needed, is_needed) = oneshot::channel();
        let input = Input::SnapshotBegins { group, to, session, last, needed };
        self.engine_loop(group).complete(input);
        // Without an answer the loop has ended, and the node with it.
        is_needed.await.unwrap_or(false)
    }

    /// Reports the end of a snapshot's transfer.
    pub fn snapshot_sent(
        &self,
        group: GroupId,
        to: ReplicaId,
        session: ReplicationSession,
        ok: bool,
    ) {
        self.engine_loop(group).complete(Input::SnapshotSent { group, to, session, ok });
    }

    /// Reports that a snapshot was received in full: it waits in `staged` while the core decides.
    pub fn snapshot_received(&self, envelope: Envelope) {
        debug_assert!(matches!(envelope.message, Message::InstallSnapshot { .. }));
        self.engine_loop(envelope.group).complete(Input::Messages(vec![envelope]));
    }

    /// Ends the scrub for which a replica waited: if it is sound, it applies and serves from now
    /// on.
    pub fn finish_scrub(&self, group: GroupId, outcome: Result<(), ScrubError>) {
        self.apply.push(group, ApplyInput::Scrubbed { group, outcome });
    }

    /// Begins to receive a snapshot of a group. The sender of the result is dropped when the engine
    /// has stopped.
    pub fn begin_install(
        &self,
        group: GroupId,
        meta: SnapshotMeta,
    ) -> oneshot::Receiver<Result<Installer, InstallError>> {
        let (reply, installer) = oneshot::channel();
        self.apply.push(group, ApplyInput::BeginInstall { group, meta, reply });
        installer
    }

    /// The received snapshots that wait for the core's decision.
    #[must_use]
    pub fn staged(&self) -> &Arc<Staged> {
        &self.staged
    }

    /// Makes a replica start an election now. Safe at any time: votes decide.
    pub fn campaign(&self, group: GroupId) {
        self.engine_loop(group).complete(Input::Campaign(group));
    }

    /// Starts a leadership transfer; the answer says whether it was started.
    pub fn transfer(
        &self,
        group: GroupId,
        to: ReplicaId,
    ) -> oneshot::Receiver<Result<(), TransferError>> {
        let (done, started) = oneshot::channel();
        self.engine_loop(group).complete(Input::Transfer { group, to, done });
        started
    }

    /// The status of every group, in the order of groups.
    pub async fn status(&self) -> Vec<(GroupId, Status)> {
        let mut all = Vec::new();
        for inbox in &self.loops {
            let (reply, status) = oneshot::channel();
            inbox.complete(Input::Status(reply));
            all.extend(status.await.unwrap_or_default());
        }
        all.sort_by_key(|(group, _)| *group);
        all
    }

    /// Pins the last checkpoint of a shard, to be sent.
    ///
    /// # Errors
    /// Too many pins, or the storage failed; [`StorageError::Invalid`] if the replica is not here.
    pub async fn pin_snapshot(&self, group: GroupId) -> Result<SnapshotSource, StorageError> {
        let (reply, source) = oneshot::channel();
        self.apply.push(group, ApplyInput::Pin { group, reply });
        source.await.unwrap_or_else(|_| {
            Err(StorageError::Invalid { what: format!("this node holds no replica of {group}") })
        })
    }

    /// Ends the process for a fatal storage error that a caller got.
    pub fn fail(&self, error: &StorageError) -> ! {
        self.fatal.end(error)
    }

    /// The replicas of this node.
    #[must_use]
    pub fn shards(&self) -> &Arc<Shards> {
        &self.shards
    }

    /// The progress of the log writer.
    #[must_use]
    pub fn log_progress(&self) -> &LogProgress {
        &self.progress
    }

    /// How long the write or sync of the data directory that takes longest has been under way, as
    /// the watchdog counts it; 0 if none takes a quarter of a second.
    #[must_use]
    pub fn disk_busy_for(&self) -> Duration {
        self.watchdog.disk_busy_for()
    }

    /// The longest time since the last iteration of any loop.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        let now = self.clock.now().0;
        let behind = self.last_iterations.iter().map(|last| match last.load(Ordering::Relaxed) {
            // No iteration yet: the loop is being started.
            0 => 0,
            last => now.saturating_sub(last),
        });
        Duration::from_millis(10 * behind.max().unwrap_or(0))
    }

    /// Bytes queued for the loops.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.loops.iter().map(|inbox| inbox.bytes() as u64).sum()
    }

    /// Stops in order: checkpoints all shards, closes the log, ends all threads. Blocks until done.
    pub fn stop(&self) {
        let mut threads = self.threads.lock();
        // The checkpointer needs the apply threads and the loops, so it ends first.
        self.checkpoints.stop();
        join(threads.checkpointer.take());
        for inbox in &self.loops {
            inbox.complete(Input::Stop);
        }
        join(threads.loops.drain(..));
        self.apply.stop();
        join(threads.apply.drain(..));
        self.log.complete(LogInput::Close);
        join(threads.log.take());
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start {name}: {error}")))
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        // A panic in a thread has ended the process already.
        let _ = thread.join();
    }
}
