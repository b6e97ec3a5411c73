//! Shared state of all services of a formed node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_config::Config;
use quorate_engine::MapCell;
use quorate_engine::clock::Clock;
use quorate_engine::clock_offset::ClockOffsets;
use quorate_engine::{Engine, Shard};
use quorate_machine::Map;
use quorate_machine::SessionMint;
use quorate_proto::v1::{Failure, NodePhase, ReadLevel, Reason, Receipt, SessionToken};
use quorate_raft::{GroupId, Index, NodeId, Term};
use quorate_storage::{DeltaBudget, Disk, DiskLevel};
use tokio::sync::{Notify, Semaphore};

use crate::admission::Admissions;
use crate::draft::RequestRules;
use crate::forward::Forwarder;
use crate::kept::Transfers;
use crate::metrics::{ServiceMetrics, Shed};

/// The node as its services see it.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// This node.
    pub node: NodeId,
    /// The cluster id, 16 bytes.
    pub cluster_id: Bytes,
    /// The engine.
    pub engine: Arc<Engine>,
    /// The newest cluster map.
    pub map: MapCell,
    /// Calls that go on to another node.
    pub forward: Forwarder,
    /// The threads that reads of single rows may wait for the disk with. A number of its own: what
    /// else needs a thread, above all the resolution of names, may hang as long as it likes.
    pub read_threads: Arc<Semaphore>,
    /// The threads that scans may read the disk with, all together.
    pub scan_threads: Arc<Semaphore>,
    /// Mints session ids.
    pub sessions: SessionMint,
    /// What the deltas take.
    pub budget: Arc<DeltaBudget>,
    /// What requests are checked against.
    pub rules: RequestRules,
    /// Metrics.
    pub metrics: Arc<ServiceMetrics>,
    /// Which calls are taken while there are more than the node can do.
    pub admission: Admissions,
    /// The room for answers that their readers have not taken.
    pub answers: Arc<dyn AnswerBudget>,
    /// The lifecycle of the node.
    pub life: Arc<Lifecycle>,
    /// Leaderships that clients have placed.
    pub transfers: Transfers,
    /// How much of the disk's reserve is left.
    pub disk: Arc<Disk>,
    /// Replicas whose state is there and did not open; they serve nothing.
    pub damaged: Mutex<BTreeSet<GroupId>>,
    /// This node's clocks.
    pub clock: Clock,
    /// What the wall clocks of the other nodes show.
    pub clocks: Arc<ClockOffsets>,
}

/// The room for answers that their readers have not taken, over all connections of a node.
pub trait AnswerBudget: Send + Sync {
    /// Takes the room of an answer; whether it fits.
    fn take(&self, bytes: u64) -> bool;

    /// Gives back what was taken.
    fn give_back(&self, bytes: u64);
}

/// An answer's part of the room, until it is dropped.
pub struct HeldAnswer {
    budget: Arc<dyn AnswerBudget>,
    bytes: u64,
}

impl HeldAnswer {
    /// Takes the room of an answer; `None` if it does not fit.
    #[must_use]
    pub fn take(budget: &Arc<dyn AnswerBudget>, bytes: u64) -> Option<Self> {
        budget.take(bytes).then(|| Self { budget: budget.clone(), bytes })
    }
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// The lifecycle of a node: its phase, and its calls in flight.
#[derive(Debug)]
pub struct Lifecycle {
    phase: AtomicU8,
    detail: Mutex<String>,
    /// Client calls being served.
    calls: AtomicUsize,
    /// Set when a draining node rejects new calls.
    refusing: AtomicBool,
    /// Notified when it is set.
    refuses: Notify,
    /// When the process began.
    pub started: Instant,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(NodePhase::Forming as u8),
            detail: Mutex::default(),
            calls: AtomicUsize::new(0),
            refusing: AtomicBool::new(false),
            refuses: Notify::new(),
            started: Instant::now(),
        }
    }
}

impl Lifecycle {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> NodePhase {
        NodePhase::try_from(i32::from(self.phase.load(Ordering::Acquire)))
            .unwrap_or(NodePhase::Unspecified)
    }

    /// Enters a phase; `detail` says what it waits for or failed at, in a sentence.
    pub fn enter(&self, phase: NodePhase, detail: impl Into<String>) {
        let mut now = self.detail.lock();
        *now = detail.into();
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Enters a phase if the node is in this one still; another thread may have ended it.
    pub fn advance(&self, from: NodePhase, to: NodePhase, detail: impl Into<String>) -> bool {
        let mut now = self.detail.lock();
        let (from, to) = (from as u8, to as u8);
        let phase = &self.phase;
        let advanced =
            phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if advanced {
            *now = detail.into();
        }
        advanced
    }

    /// Rejects new calls from now on. Until then a draining node keeps serving. A call that is
    /// counted before it looks is then either rejected or seen by [`Self::calls`]: hence one order
    /// of all.
    pub fn refuse(&self) {
        self.refusing.store(true, Ordering::SeqCst);
        self.refuses.notify_waiters();
    }

    /// Waits until new calls are rejected.
    pub async fn until_refusing(&self) {
        let refuses = self.refuses.notified();
        if !self.refuses() {
            refuses.await;
        }
    }

    /// Whether new calls are rejected.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.refusing.load(Ordering::SeqCst)
    }

    /// What the phase waits for or failed at.
    #[must_use]
    pub fn detail(&self) -> String {
        self.detail.lock().clone()
    }

    /// Holds up everyone who reads the detail, as a call does that is about to be rejected.
    #[cfg(test)]
    pub(crate) fn hold_detail(&self) -> parking_lot::MutexGuard<'_, String> {
        self.detail.lock()
    }

    /// Counts a client call for as long as the guard lives.
    #[must_use]
    pub fn call(self: &Arc<Self>) -> CallGuard {
        self.calls.fetch_add(1, Ordering::SeqCst);
        CallGuard(self.clone())
    }

    /// How many client calls are being served.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Counts one client call.
#[derive(Debug)]
pub struct CallGuard(Arc<Lifecycle>);

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// The cluster map.
    ///
    /// # Errors
    /// STARTING while there is no map.
    pub fn map(&self) -> Result<Arc<Map>, Failure> {
        self.map.get().ok_or_else(|| {
            self.failure(Reason::Starting, "the cluster has no map yet; it is being formed")
        })
    }

    /// A failure that names this node and its map.
    #[must_use]
    pub fn failure(&self, reason: Reason, message: impl Into<String>) -> Failure {
        self.complete(Failure::of(reason, message))
    }

    /// Fills in what this node knows.
    #[must_use]
    pub fn complete(&self, mut failure: Failure) -> Failure {
        failure.map_epoch = self.map.epoch();
        if failure.node_id == 0 {
            failure.node_id = self.node.0;
        }
        if failure.shard != 0 && failure.leader_node_id == 0 {
            let shard = self.engine.shards().get(GroupId(failure.shard));
            let leader = shard.and_then(|shard| shard.leadership().leader);
            failure.leader_node_id = leader.map_or(0, |leader| leader.0);
        }
        failure
    }

    /// Whether new requests are taken at all.
    ///
    /// # Errors
    /// STARTING or DRAINING.
    pub fn check_serving(&self) -> Result<(), Failure> {
        match self.life.phase() {
            NodePhase::Ready => Ok(()),
            NodePhase::Draining if !self.life.refuses() => Ok(()),
            NodePhase::Draining => {
                Err(self.failure(Reason::Draining, "the node is going down; ask another one"))
            }
            _ => {
                let detail = self.life.detail();
                let message = if detail.is_empty() {
                    "the node is starting".to_owned()
                } else {
                    format!("the node is starting: {detail}")
                };
                Err(self.failure(Reason::Starting, message))
            }
        }
    }

    /// Whether there is room for a write whose request, of `bytes`, is under way. A delete needs no
    /// more disk than it gives back, in time.
    ///
    /// # Errors
    /// DISK_FULL or OVERLOADED, with the time after which trying again may help.
    pub fn check_room(&self, is_delete: bool, bytes: u64) -> Result<(), Failure> {
        // Those ahead will be in the delta before this one.
        let ahead = self.admission.writes.large_bytes().saturating_sub(bytes);
        if !self.budget.has_room(bytes, ahead) {
            self.metrics.shed(Shed::Delta).inc();
            let message = "checkpoints are falling behind; retry later";
            return Err(retry_after(self.failure(Reason::Overloaded, message), 100));
        }
        let message = match self.disk.level() {
            DiskLevel::Ok => return Ok(()),
            DiskLevel::Low if is_delete => return Ok(()),
            DiskLevel::Low => "disk reserve in use: only deletes are accepted",
            DiskLevel::Critical => "disk reserve nearly exhausted: all writes are rejected",
        };
        self.metrics.shed(Shed::Disk).inc();
        Err(retry_after(self.failure(Reason::DiskFull, message), 1_000))
    }

    /// The receipt of an answer from a replica of this node.
    #[must_use]
    pub fn receipt(&self, shard: &Shard, level: ReadLevel, term: Term, index: Index) -> Receipt {
        let leader = shard.leadership().leader;
        let map = self.map.get();
        Receipt {
            level: level as i32,
            shard: shard.group.0,
            term: term.0,
            index: index.0,
            node_id: self.node.0,
            map_epoch: map.as_ref().map_or(0, |map| map.epoch()),
            history: map.map_or_else(Bytes::new, |map| map.proto().history.clone()),
            age_bound: None,
            leader_node_id: leader.map_or(0, |leader| leader.0),
        }
    }

    /// The session token of one receipt.
    #[must_use]
    pub fn token(&self, receipt: &Receipt) -> SessionToken {
        SessionToken::of_receipt(self.cluster_id.clone(), receipt)
    }
}

/// The failure with the time after which trying again may help.
#[must_use]
pub fn retry_after(mut failure: Failure, millis: u64) -> Failure {
    failure.retry_after = Some(duration(Duration::from_millis(millis)));
    failure
}

/// A duration as it travels.
#[must_use]
pub fn duration(of: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: of.as_secs() as i64, nanos: of.subsec_nanos() as i32 }
}

/// The services' state once the node has it: before that, listeners answer STARTING or
/// STORAGE_FAILED.
#[derive(Clone, Default)]
pub struct SharedCell {
    shared: Arc<ArcSwap<Option<Arc<Shared>>>>,
    /// The lifecycle of the node, from the start of the process on.
    pub life: Arc<Lifecycle>,
}

impl SharedCell {
    /// Makes the shared state available to all services.
    pub fn set(&self, shared: Arc<Shared>) {
        self.shared.store(Arc::new(Some(shared)));
    }

    /// The shared state, if the node has opened its storage.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Shared>> {
        self.shared.load().as_ref().clone()
    }

    /// The shared state, or the phase that the node is in instead.
    ///
    /// # Errors
    /// STARTING, DRAINING or STORAGE_FAILED.
    pub fn serving(&self) -> Result<Arc<Shared>, Failure> {
        if let Some(shared) = self.get() {
            shared.check_serving()?;
            return Ok(shared);
        }
        self.open()
    }

    /// The shared state as soon as the storage is open: enough for a stale read, which always
    /// answers.
    ///
    /// # Errors
    /// STARTING, or STORAGE_FAILED where it never will be.
    pub fn open(&self) -> Result<Arc<Shared>, Failure> {
        if let Some(shared) = self.get() {
            return Ok(shared);
        }
        let detail = self.life.detail();
        Err(match self.life.phase() {
            NodePhase::StorageFailed => Failure::of(
                Reason::StorageFailed,
                format!("the node could not open its storage; ask another one: {detail}"),
            ),
            _ => Failure::of(Reason::Starting, format!("the node is starting: {detail}")),
        })
    }
}
