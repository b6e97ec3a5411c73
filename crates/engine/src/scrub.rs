//! Scrubs: comparing the rows of each tree with its header.
//!
//! After a stop that may have lost what the kernel held (not clean, and the machine has rebooted
//! since) a replica is scrubbed before it applies, serves reads or sends snapshots; it votes and
//! appends meanwhile. After a mere kill, and once a day for each replica, the same scrub runs in
//! the background, paced. After a mismatch that replica stops serving, and the others continue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_raft::GroupId;
use quorate_storage::{NodeRecords, StorageError};
use tracing::{info, warn};

use crate::clock::boot_id;
use crate::error::ScrubError;
use crate::quarantine::guarded;
use crate::{Engine, Shard};

/// The node record of the last run: in which boot of the machine it was, and how it ended.
const RECORD: &str = "last-run";
/// The largest rate at which a background scrub reads.
const PACE_BYTES_PER_SECOND: u64 = 16 << 20;
/// The time between two background scrubs of one replica.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How often the task checks whether a scrub is due.
const POLL_INTERVAL: Duration = Duration::from_secs(30);

/// How the node's last run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRun {
    /// There was none, or it was stopped in order.
    Clean,
    /// The process was killed; the kernel kept running and lost nothing.
    Killed,
    /// The machine may have gone down too, and lost what the kernel held.
    MayHaveLost,
}

/// Reads how the last run ended, and records that this run has begun.
///
/// # Errors
/// A failed read or write of the record.
pub fn begin_run(records: &NodeRecords) -> Result<LastRun, StorageError> {
    let this_boot = boot_id();
    let before = records.get(RECORD)?;
    let last = judge(before.as_deref(), this_boot.as_deref());
    records.put(RECORD, format!("running {}", this_boot.unwrap_or_default()).as_bytes())?;
    Ok(last)
}

/// How the last run ended; `None` if there was none. Nothing is recorded.
///
/// # Errors
/// A failed read of the record.
pub fn last_run(records: &NodeRecords) -> Result<Option<LastRun>, StorageError> {
    let before = records.get(RECORD)?;
    Ok(before.map(|record| judge(Some(&record), boot_id().as_deref())))
}

/// Records that this run was stopped in order. Nothing is written to the storage after this.
///
/// # Errors
/// A failed write.
pub fn end_run(records: &NodeRecords) -> Result<(), StorageError> {
    records.put(RECORD, b"clean")
}

fn judge(before: Option<&[u8]>, this_boot: Option<&str>) -> LastRun {
    match (before, this_boot) {
        (None | Some(b"clean"), _) => LastRun::Clean,
        (Some(record), Some(boot)) if record == format!("running {boot}").as_bytes() => {
            LastRun::Killed
        }
        _ => LastRun::MayHaveLost,
    }
}

/// Scrubs replicas that wait for it, one after the other, at the speed of the disk.
pub fn scrub_before_service(engine: &Engine, shards: &[Arc<Shard>]) {
    for shard in shards {
        let started = Instant::now();
        let outcome = scrub(engine, shard, |_| {});
        let (took, sound) = (started.elapsed(), outcome.is_ok());
        info!(shard = shard.group.0, ?took, sound, "scrub: completed");
        engine.finish_scrub(shard.group, outcome);
    }
}

fn scrub(engine: &Engine, shard: &Shard, pace: impl FnMut(u64)) -> Result<(), ScrubError> {
    match guarded(|| shard.reader.scrub(pace))? {
        Err(error) if error.is_fatal() => engine.fail(&error),
        outcome => Ok(outcome?),
    }
}

/// The time of each replica's next scrub, since the start of the node.
///
/// The first times are spread over one period, from a phase that each start draws at random: a node
/// that is restarted more often than that still scrubs all of its replicas in time, and never all
/// at the same time.
struct Schedule {
    /// The position in its period at which this start begins, in `0.0..1.0`.
    phase: f64,
    due: BTreeMap<GroupId, Duration>,
}

impl Schedule {
    fn new(phase: f64) -> Schedule {
        Schedule { phase, due: BTreeMap::new() }
    }

    /// Schedules exactly `groups`; new ones are due within a period from `now`, or immediately if
    /// `soon`.
    fn follow(&mut self, groups: impl Iterator<Item = GroupId>, now: Duration, soon: bool) {
        let groups: BTreeSet<GroupId> = groups.collect();
        self.due.retain(|group, _| groups.contains(group));
        for group in groups {
            let first =
                if soon { Duration::ZERO } else { SCRUB_INTERVAL.mul_f64(self.place(group)) };
            self.due.entry(group).or_insert(now + first);
        }
    }

    /// The position of a group in the period. Multiples of the golden ratio are evenly distributed
    /// however many there are.
    fn place(&self, group: GroupId) -> f64 {
        (self.phase + group.0 as f64 * 0.618_033_988_749_895).fract()
    }

    /// The group that is due, the longest overdue first; it is due again at its position in the
    /// next period.
    fn take(&mut self, now: Duration) -> Option<GroupId> {
        let (group, due) = self.due.iter().min_by_key(|(_, due)| **due)?;
        let (group, due) = (*group, *due);
        if due > now {
            return None;
        }
        let place = SCRUB_INTERVAL.mul_f64(self.place(group));
        let mut next = place;
        while next <= now {
            next += SCRUB_INTERVAL;
        }
        self.due.insert(group, next);
        Some(group)
    }
}

/// Scrubs the shards in the background, one at a time: all immediately after a kill, then each at
/// its position in every period.
pub async fn keep(engine: Arc<Engine>, last: LastRun) {
    let started = Instant::now();
    let mut schedule = Schedule::new(rand::random());
    let mut soon = last != LastRun::Clean;
    loop {
        let shards = engine.shards().all();
        schedule.follow(shards.keys().copied(), started.elapsed(), soon);
        soon &= shards.is_empty();
        let due = schedule.take(started.elapsed()).and_then(|group| shards.get(&group).cloned());
        let Some(shard) = due else {
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        };
        if !shard.serves() {
            continue;
        }
        let engine = engine.clone();
        let scrubbed = tokio::task::spawn_blocking(move || {
            if let Err(error) = scrub(&engine, &shard, sleep_for) {
                warn!(shard = shard.group.0, %error, "scrub: the tree does not match its header");
                shard.set_damaged(&error.to_string());
            }
        });
        if scrubbed.await.is_err() {
            return;
        }
    }
}

/// Paces a scrub: it is not urgent, and other threads read from the same disk.
fn sleep_for(bytes: u64) {
    std::thread::sleep(Duration::from_micros(bytes * 1_000_000 / PACE_BYTES_PER_SECOND));
}

#[cfg(test)]
mod tests {
    use quorate_storage::{Database, DatabaseOptions};

    use super::*;

    #[test]
    fn the_record_says_how_the_last_run_ended() {
        assert_eq!(judge(None, Some("a")), LastRun::Clean, "the first start");
        assert_eq!(judge(Some(b"clean"), Some("a")), LastRun::Clean);
        assert_eq!(judge(Some(b"running a"), Some("a")), LastRun::Killed);
        assert_eq!(judge(Some(b"running a"), Some("b")), LastRun::MayHaveLost);
        assert_eq!(
            judge(Some(b"running a"), None),
            LastRun::MayHaveLost,
            "the system reports no boot"
        );
        assert_eq!(judge(Some(b"running "), None), LastRun::MayHaveLost);
    }

    /// The text of the record is forever: an older run has written it.
    #[test]
    fn the_record_of_the_last_run_is_fixed() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
        let records = NodeRecords::open(&database).unwrap();
        assert_eq!(begin_run(&records).unwrap(), LastRun::Clean);
        let running = format!("running {}", boot_id().unwrap_or_default());
        assert_eq!(records.get("last-run").unwrap().unwrap(), running.as_bytes());
        end_run(&records).unwrap();
        assert_eq!(records.get("last-run").unwrap().unwrap(), b"clean");
        assert_eq!(begin_run(&records).unwrap(), LastRun::Clean);
    }

    /// Hours at which each group is scrubbed, in a run of `run` hours.
    fn hours(phase: f64, groups: u64, run: u64) -> BTreeMap<GroupId, Vec<u64>> {
        let mut schedule = Schedule::new(phase);
        let mut scrubbed: BTreeMap<GroupId, Vec<u64>> = BTreeMap::new();
        for hour in 0..=run {
            let now = Duration::from_secs(hour * 3600);
            schedule.follow((0..groups).map(GroupId), now, false);
            while let Some(group) = schedule.take(now) {
                scrubbed.entry(group).or_default().push(hour);
            }
        }
        scrubbed
    }

    #[test]
    fn each_replica_has_its_own_time_in_the_period_from_the_start_on() {
        let scrubbed = hours(0.25, 8, 72);
        assert_eq!(scrubbed.len(), 8);
        for hours in scrubbed.values() {
            assert_eq!(hours.len(), 3, "{scrubbed:?}");
            assert!(hours.windows(2).all(|two| two[1] - two[0] == 24), "{scrubbed:?}");
        }
        for quarter in 0..4 {
            let in_quarter = |hours: &&Vec<u64>| hours[0].saturating_sub(1) / 6 == quarter;
            let due = scrubbed.values().filter(in_quarter).count();
            assert!((1..=3).contains(&due), "{due} in quarter {quarter}: {scrubbed:?}");
        }
    }

    #[test]
    fn a_node_that_is_restarted_every_hour_still_scrubs_all_of_its_replicas() {
        let starts = (0..48).flat_map(|start| hours(f64::from(start) / 48.0, 8, 1).into_keys());
        assert_eq!(starts.collect::<BTreeSet<_>>().len(), 8);
    }

    #[test]
    fn after_a_kill_all_are_due_immediately_and_then_each_at_its_time() {
        let mut schedule = Schedule::new(0.5);
        schedule.follow((0..8).map(GroupId), Duration::ZERO, true);
        let due_now = std::iter::from_fn(|| schedule.take(Duration::ZERO)).count();
        assert_eq!(due_now, 8);
        let later = schedule.due.values().collect::<BTreeSet<_>>();
        assert_eq!(later.len(), 8, "they are spread from then on");
        schedule.follow([GroupId(9)].into_iter(), Duration::ZERO, false);
        assert_eq!(schedule.due.len(), 1, "removed groups are dropped");
    }
}
