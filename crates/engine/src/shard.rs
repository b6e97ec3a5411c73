//! Shard handles: the rest of the node's view of each replica, shared by all threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quorate_raft::{GroupId, NodeId, Replica, Term};
use quorate_storage::{HashRange, ShardReader};
use tokio::sync::watch;
use tracing::error;

use super::gate::Gate;

/// The leadership of a group, as this replica knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term of this replica.
    pub term: Term,
    /// The node of the leader of that term; `None` while this replica knows of none.
    pub leader: Option<NodeId>,
    /// True if this replica leads and accepts commands: from the commit of its term's first entry
    /// on, a round trip after its election.
    pub is_leader: bool,
}

/// Figures that the loops and apply threads publish. Each was exact at some recent time, not all at
/// the same time.
#[derive(Debug, Default)]
pub struct ShardStats {
    /// Bytes of the log in memory.
    pub log_bytes: AtomicU64,
    /// Bytes of the log that are kept only for receivers of snapshots, as of the last checkpoint.
    pub receiver_bytes: AtomicU64,
    /// Applied bytes that no finished or running checkpoint covers.
    pub delta_bytes: AtomicU64,
    /// Sessions in the shard's state.
    pub sessions: AtomicU64,
}

/// One replica on this node.
#[derive(Debug)]
pub struct Shard {
    /// The group; 0 is the meta group.
    pub group: GroupId,
    /// The replica, with this node.
    pub replica: Replica,
    /// The range that the shard owns, by its own state.
    pub range: HashRange,
    /// The epoch of that range.
    pub epoch: u64,
    /// Reads of applied state.
    pub reader: ShardReader,
    /// The gate at which readers wait for an index.
    pub gate: Gate,
    /// Figures for status, metrics and the checkpointer.
    pub stats: ShardStats,
    leadership: watch::Sender<Leadership>,
    /// The beginning of the leaderless time; `None` while a leader is known.
    leaderless_since: Mutex<Option<Instant>>,
    /// Why this replica cannot serve; set once.
    damaged: OnceLock<String>,
    /// The state is being compared with its header, and is not read until that is done.
    scrubbing: AtomicBool,
}

impl Shard {
    /// A handle of a replica that has just been opened.
    pub(super) fn new(
        group: GroupId,
        replica: Replica,
        range: HashRange,
        epoch: u64,
        reader: ShardReader,
    ) -> Self {
        let gate = Gate::new(reader.applied());
        let leadership = watch::Sender::new(Leadership::default());
        Self {
            group,
            replica,
            range,
            epoch,
            reader,
            gate,
            stats: ShardStats::default(),
            leadership,
            leaderless_since: Mutex::new(Some(Instant::now())),
            damaged: OnceLock::new(),
            scrubbing: AtomicBool::new(false),
        }
    }

    /// The leadership, as this replica knows it.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    /// A receiver that wakes with each change of leadership.
    #[must_use]
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub(super) fn set_leadership(&self, now: Leadership) {
        self.leadership.send_if_modified(|held| {
            let changed = *held != now;
            if changed {
                let since = now.leader.is_none().then(Instant::now);
                let mut leaderless = self.leaderless_since.lock();
                // A new term without a leader does not restart the timer.
                *leaderless = since.map(|since| leaderless.unwrap_or(since));
            }
            *held = now;
            changed
        });
    }

    /// How long this replica has known no leader; `None` while it knows one.
    #[must_use]
    pub fn leaderless_for(&self) -> Option<Duration> {
        self.leaderless_since.lock().map(|since| since.elapsed())
    }

    /// Marks this replica as damaged: it stops serving. The first reason is kept.
    pub fn set_damaged(&self, why: &str) {
        if self.damaged.set(why.to_owned()).is_ok() {
            error!(shard = self.group.0, why, "replica: damaged, stopped serving");
        }
    }

    /// Whether this replica is damaged and cannot serve.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged.get().is_some()
    }

    pub(super) fn set_scrubbing(&self, scrubbing: bool) {
        self.scrubbing.store(scrubbing, Ordering::Release);
    }

    /// Whether the state is being scrubbed before it may be read.
    #[must_use]
    pub fn is_scrubbing(&self) -> bool {
        self.scrubbing.load(Ordering::Acquire)
    }

    /// Whether reads may be answered from this replica's state.
    #[must_use]
    pub fn serves(&self) -> bool {
        !self.is_damaged() && !self.is_scrubbing()
    }

    /// The number of sessions in the shard's state.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.stats.sessions.load(Ordering::Relaxed)
    }

    /// Bytes of the log in memory, without those kept only for receivers of snapshots: the part
    /// that checkpoints keep short.
    #[must_use]
    pub fn own_log_bytes(&self) -> u64 {
        self.log_bytes().saturating_sub(self.stats.receiver_bytes.load(Ordering::Relaxed))
    }

    /// Bytes of the log in memory.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.stats.log_bytes.load(Ordering::Relaxed)
    }
}

/// All replicas of this node, by group. Lookups take no lock.
#[derive(Debug, Default)]
pub struct Shards {
    by_group: ArcSwap<BTreeMap<GroupId, Arc<Shard>>>,
}

impl Shards {
    /// The replica of a group on this node.
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<Arc<Shard>> {
        self.by_group.load().get(&group).cloned()
    }

    /// All replicas, in the order of their groups.
    #[must_use]
    pub fn all(&self) -> Arc<BTreeMap<GroupId, Arc<Shard>>> {
        self.by_group.load_full()
    }

    pub(super) fn insert(&self, shard: &Arc<Shard>) {
        self.by_group.rcu(|held| {
            let mut next = BTreeMap::clone(held);
            next.insert(shard.group, shard.clone());
            next
        });
    }
}
