//! The checkpointer: a thread that writes checkpoints, one shard at a time, before memory or log
//! run full.

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

/// How often the thread checks whether a checkpoint is due.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Pages that the storage engine is made to move in one step.
const COLLECTED_PAGES: u64 = 512;
/// While the disk's reserve is in use, deleted rows are removed this often.
const MAKE_ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// The file is shrunk again once this many bytes less are live.
const SHRUNK_BYTES: u64 = 8 << 20;
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

/// Whether the log is long enough for a checkpoint to be due. The sizes, in bytes, are those of the
/// longest group's log, of all groups' logs, and of the records on disk. The records are up to
/// twice as large as the logs, and dead ones count until they are removed. No checkpoint shortens
/// the part that groups keep for slow followers, a quarter of the share.
fn log_is_over(limits: &Limits, longest: u64, all: u64, stored: u64) -> bool {
    longest > limits.log_group / 2
        || all > limits.log_node / 2
        || (stored > limits.log_node && all > limits.log_node / 4)
}

impl Checkpointer {
    /// Checkpoints the shards that are due until it is stopped, then all shards once more.
    pub(super) fn run(self) {
        let mut last_all = Instant::now();
        let mut last_room = None::<Instant>;
        // The live bytes at the last attempt to shrink the file: with as many the next is in vain.
        let mut shrunk_at = u64::MAX;
        // Shards whose last checkpoint was refused: the others go first.
        let mut refused = BTreeSet::new();
        while !self.control.stopped() {
            match self.most_urgent(&refused) {
                Some(group) if self.checkpoint(group) => {}
                Some(group) => {
                    refused.insert(group);
                }
                None => {
                    refused.clear();
                    // After the last write of a load nothing else does.
                    self.engine.give_back();
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
                let live = self.live_bytes();
                self.disk.set_live(live);
                let live = live.unwrap_or(u64::MAX);
                if live < shrunk_at.saturating_sub(SHRUNK_BYTES) && self.shrink() {
                    shrunk_at = live;
                }
            } else if self.disk.level() == DiskLevel::Ok {
                shrunk_at = u64::MAX;
            }
            if last_all.elapsed() >= CHECKPOINT_AGE_MAX {
                self.checkpoint_all();
                last_all = Instant::now();
            }
        }
        self.checkpoint_all();
    }

    /// Live bytes in the storage engine, from which the free room in its file follows; `None` while
    /// those of some shard are not known.
    fn live_bytes(&self) -> Option<u64> {
        let mut live = self.progress.engine_bytes();
        for shard in self.shards.all().values() {
            // Nothing is removed from a shard that does not serve.
            let idle = || (!shard.serves()).then(|| shard.reader.header().frontier.counts.bytes);
            live += shard.reader.occupied().or_else(idle)?;
        }
        Some(live)
    }

    /// Has the storage engine collect one step, so that the checkpoints of shards do not wait long.
    fn collect(&self) -> u64 {
        self.engine.collect(COLLECTED_PAGES).unwrap_or_else(|error| self.fatal.end(&error))
    }

    /// Removes deleted rows: a checkpoint shortens the log and supersedes the rows, and a cleaning
    /// removes them from the tree.
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
        // Collect the pages that they occupied, so that these can be written again.
        while self.collect() == COLLECTED_PAGES && !self.control.stopped() {}
    }

    /// Has the storage engine return the free part of its file, while that makes it shorter;
    /// `false` if there was nothing to try.
    fn shrink(&self) -> bool {
        let mut length = u64::MAX;
        while self.disk.level() > DiskLevel::Ok && self.disk.may_shrink() && !self.control.stopped()
        {
            let now = self.engine.shrink().unwrap_or_else(|error| self.fatal.end(&error));
            if now >= length {
                return true;
            }
            length = now;
        }
        length < u64::MAX
    }

    /// Whether the disk has space for a checkpoint of the shard. Above the last quarter of the
    /// reserve it always has: the deltas' share of the memory bounds every checkpoint.
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

    /// The shard whose checkpoint would free the most of the scarcest resource (delta memory, then
    /// log), skipping `refused`; `None` if nothing is scarce.
    fn most_urgent(&self, refused: &BTreeSet<GroupId>) -> Option<GroupId> {
        let all = self.shards.all();
        let shards = || all.values().filter(|shard| !refused.contains(&shard.group));
        let delta = |shard: &Arc<Shard>| shard.stats.delta_bytes.load(Ordering::Relaxed);
        // Half of the budget: the other half is what arrives while the checkpoint is written.
        let (used, limit) = (self.budget.used(), self.budget.limit());
        if used > limit / 2 {
            // Earlier layers that readers still hold count as used, so a checkpoint of a nearly
            // empty delta would not help.
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

    /// Writes a checkpoint of a shard; false if there was nothing to write, or it failed.
    fn checkpoint(&self, group: GroupId) -> bool {
        let started = Instant::now();
        let (reply, frozen) = oneshot::channel();
        self.apply.push(group, ApplyInput::Freeze { group, reply });
        let Ok(Some(job)) = frozen.blocking_recv() else { return false };
        debug!(shard = group.0, "checkpoint: started");
        let finished = match guarded(|| job.run()) {
            Ok(Ok(finished)) => finished,
            Ok(Err(error)) if error.is_fatal() => self.fatal.end(&error),
            // Its tree cannot be read. Only this replica stops; the others continue.
            Ok(Err(error)) => return self.give_up(group, error.to_string()),
            Err(panicked) => return self.give_up(group, panicked.to_string()),
        };
        let (reply, through) = oneshot::channel();
        self.apply.push(group, ApplyInput::Finish { group, finished, reply });
        let Ok(through) = through.blocking_recv() else { return false };
        let number = group.0 as usize % self.loops.len();
        self.loops[number].complete(Input::Compact(group, through.index));
        let took = started.elapsed();
        self.metrics.checkpoint_seconds.observe_duration(took);
        debug!(shard = group.0, index = through.index.0, ?took, "checkpoint: written");
        true
    }

    /// Stops a replica whose checkpoint found damage. Its frozen layer stays in memory, because its
    /// last readers may still use it; the replica freezes no further layer.
    fn give_up(&self, group: GroupId, why: String) -> bool {
        self.apply.push(group, ApplyInput::Damaged { group, why });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_over_by_group_by_node_and_by_the_records_on_disk() {
        let (group, node) = (64 << 20, 512 << 20);
        let limits = Limits { log_group: group, log_node: node, request_queue: 0 };
        assert!(!log_is_over(&limits, group / 2, node / 2, node));
        assert!(log_is_over(&limits, group / 2 + 1, group, group));
        assert!(log_is_over(&limits, group / 2, node / 2 + 1, node));
        assert!(log_is_over(&limits, group / 4, node / 4 + 1, node + 1));
        // The part kept for slow followers stays, however large the records on disk are.
        assert!(!log_is_over(&limits, group / 4, node / 4, 9 * node));
    }
}
