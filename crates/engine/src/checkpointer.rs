//! The thread that writes checkpoints, one shard at a time, before memory or log run full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fatal::FatalHook;
use crate::limits::Limits;
use parking_lot::{Condvar, Mutex};
use quorate_raft::GroupId;
use quorate_storage::{Database, DeltaBudget, Disk, DiskLevel};
use tokio::sync::oneshot;
use tracing::debug;

use super::apply_pool::{ApplyInput, ApplyPool};
use super::inbox::Inbox;
use super::input::Input;
use super::log_writer::LogProgress;
use super::shard::{Shard, Shards};
use crate::metrics::EngineMetrics;
use crate::quarantine::guarded;

/// How often the thread looks whether a checkpoint is due.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Pages that the storage engine is made to move at a time.
const COLLECTED_PAGES: u64 = 512;
/// While the disk's reserve is being used, what was deleted is removed this often.
const MAKE_ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// A shard with changes is checkpointed at least this often, so that a restart replays little.
const CHECKPOINT_AGE_MAX: Duration = Duration::from_secs(300);

/// Wakes and ends the checkpointer.
#[derive(Debug, Default)]
pub(super) struct CheckpointControl {
    stop: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl CheckpointControl {
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn pause(&self) {
        let mut guard = self.sleep.lock();
        if !self.stopped() {
            self.wake.wait_for(&mut guard, POLL_INTERVAL);
        }
    }
}

pub(super) struct Checkpointer {
    pub(super) control: Arc<CheckpointControl>,
    pub(super) shards: Arc<Shards>,
    pub(super) budget: Arc<DeltaBudget>,
    pub(super) limits: Limits,
    pub(super) fatal: FatalHook,
    pub(super) apply: Arc<ApplyPool>,
    pub(super) loops: Vec<Arc<Inbox<Input>>>,
    pub(super) metrics: Arc<EngineMetrics>,
    pub(super) progress: Arc<LogProgress>,
    pub(super) disk: Arc<Disk>,
    pub(super) engine: Database,
}

/// Whether the log is so long that a checkpoint is due, all in bytes: of the longest group's log,
/// of all groups' logs, and of the records on disk. These last are up to twice as many, and dead
/// ones count until they are removed; what the groups keep for slow followers, a quarter of the
/// share, no checkpoint makes shorter.
fn log_is_over(limits: &Limits, longest: u64, all: u64, stored: u64) -> bool {
    longest > limits.log_group / 2
        || all > limits.log_node / 2
        || (stored > limits.log_node && all > limits.log_node / 4)
}

impl Checkpointer {
    /// Checkpoints what is due until it is stopped, then everything once more.
    pub(super) fn run(self) {
        let mut last_all = Instant::now();
        let mut last_room = None::<Instant>;
        // Shards that could not be checkpointed just now: the others go first.
        let mut refused = BTreeSet::new();
        while !self.control.stopped() {
            match self.most_urgent(&refused) {
                Some(group) if self.checkpoint(group) => {}
                Some(group) => {
                    refused.insert(group);
                }
                None => {
                    refused.clear();
                    self.control.pause();
                }
            }
            self.disk.set_live(self.live_bytes());
            if self.disk.is_sparse() {
                self.collect();
            }
            if self.disk.level() > DiskLevel::Ok
                && last_room.is_none_or(|last| last.elapsed() >= MAKE_ROOM_INTERVAL)
            {
                self.make_room();
                last_room = Some(Instant::now());
            }
            if last_all.elapsed() >= CHECKPOINT_AGE_MAX {
                self.checkpoint_all();
                last_all = Instant::now();
            }
        }
        self.checkpoint_all();
    }

    /// Bytes that are alive in the storage engine, by which it is known what its file has room for;
    /// `None` while that of some shard is not known.
    fn live_bytes(&self) -> Option<u64> {
        let mut live = self.progress.engine_bytes();
        for shard in self.shards.all().values() {
            // Nothing is removed from a shard that serves nothing.
            let idle = || (!shard.serves()).then(|| shard.reader.header().frontier.counts.bytes);
            live += shard.reader.occupied().or_else(idle)?;
        }
        Some(live)
    }

    /// Has the engine collect a little, so that the shards' checkpoints do not wait for long.
    fn collect(&self) -> u64 {
        self.engine.collect(COLLECTED_PAGES).unwrap_or_else(|error| self.fatal.end(&error))
    }

    /// Removes what deletes have left: a checkpoint makes the log shorter and the rows superseded,
    /// a cleaning takes them out of the tree.
    fn make_room(&self) {
        for (group, shard) in self.shards.all().iter() {
            if shard.stats.delta_bytes.load(Ordering::Relaxed) > 0 && self.has_space_for(shard) {
                self.checkpoint(*group);
            }
            let Some(job) = shard.serves().then(|| shard.reader.clean()).flatten() else {
                continue;
            };
            match guarded(|| job.run()) {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.is_fatal() => self.fatal.end(&error),
                Ok(Err(error)) => {
                    self.give_up(*group, error.to_string());
                }
                Err(panicked) => {
                    self.give_up(*group, panicked.to_string());
                }
            }
        }
        // What they took can then be written again.
        while self.collect() == COLLECTED_PAGES && !self.control.stopped() {}
        self.disk.set_live(self.live_bytes());
    }

    /// Whether a checkpoint of the shard cannot fill the disk. Far above the last quarter of the
    /// reserve that is so for any: they are bounded by the deltas' share of the memory.
    fn has_space_for(&self, shard: &Shard) -> bool {
        let delta = shard.stats.delta_bytes.load(Ordering::Relaxed);
        let free = self.disk.space().map_or(u64::MAX, |space| space.free);
        self.disk.level() < DiskLevel::Critical || delta.saturating_mul(4) < free
    }

    fn checkpoint_all(&self) {
        for group in self.shards.all().keys() {
            self.checkpoint(*group);
        }
    }

    /// The shard whose checkpoint frees most of what is running short, but for those that refused;
    /// `None` while nothing is.
    fn most_urgent(&self, refused: &BTreeSet<GroupId>) -> Option<GroupId> {
        let all = self.shards.all();
        let shards = || all.values().filter(|shard| !refused.contains(&shard.group));
        let delta = |shard: &Arc<Shard>| shard.stats.delta_bytes.load(Ordering::Relaxed);
        // Half of the budget: the other half is what arrives while the checkpoint is written.
        let (used, limit) = (self.budget.used(), self.budget.limit());
        if used > limit / 2 {
            // What readers still hold of earlier layers counts as used as well: a checkpoint of
            // next to nothing would not help.
            let least = if used >= limit { 1 } else { limit / 256 };
            let worth = shards().filter(|shard| delta(shard) >= least);
            let fullest = worth.max_by_key(|shard| delta(shard));
            if let Some(shard) = fullest {
                return Some(shard.group);
            }
        }
        let log: u64 = all.values().map(|shard| shard.own_log_bytes()).sum();
        // A checkpoint shortens the log only by what was applied since the last one.
        let longest = shards().filter(|s| delta(s) > 0).max_by_key(|s| s.own_log_bytes())?;
        let stored = self.progress.stored_bytes();
        log_is_over(&self.limits, longest.own_log_bytes(), log, stored).then_some(longest.group)
    }

    /// Whether there was something to write.
    fn checkpoint(&self, group: GroupId) -> bool {
        let started = Instant::now();
        let (reply, frozen) = oneshot::channel();
        self.apply.push(group, ApplyInput::Freeze { group, reply });
        let Ok(Some(job)) = frozen.blocking_recv() else { return false };
        debug!(shard = group.0, "checkpoint: begun");
        let finished = match guarded(|| job.run()) {
            Ok(Ok(finished)) => finished,
            Ok(Err(error)) if error.is_fatal() => self.fatal.end(&error),
            // Its tree cannot be read. That costs this replica, and the others go on.
            Ok(Err(error)) => return self.give_up(group, error.to_string()),
            Err(panicked) => return self.give_up(group, panicked.to_string()),
        };
        let (reply, through) = oneshot::channel();
        self.apply.push(group, ApplyInput::Finish { group, finished, reply });
        let Ok(through) = through.blocking_recv() else { return false };
        let number = group.0 as usize % self.loops.len();
        self.loops[number].complete(Input::Compact(group, through.index));
        self.metrics.checkpoint_seconds.observe_duration(started.elapsed());
        debug!(shard = group.0, index = through.index.0, took = ?started.elapsed(), "checkpoint: done");
        true
    }

    /// A replica whose checkpoint meets damage stops. Its frozen layer stays in memory, which its
    /// last readers may still look at; it freezes no other one.
    fn give_up(&self, group: GroupId, why: String) -> bool {
        self.apply.push(group, ApplyInput::Damaged { group, why });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_over_by_group_by_node_and_by_what_is_on_disk() {
        let (group, node) = (64 << 20, 512 << 20);
        let limits = Limits { log_group: group, log_node: node, request_queue: 0 };
        assert!(!log_is_over(&limits, group / 2, node / 2, node));
        assert!(log_is_over(&limits, group / 2 + 1, group, group));
        assert!(log_is_over(&limits, group / 2, node / 2 + 1, node));
        assert!(log_is_over(&limits, group / 4, node / 4 + 1, node + 1));
        // What is kept for slow followers stays, whatever is on disk.
        assert!(!log_is_over(&limits, group / 4, node / 4, 9 * node));
    }
}
