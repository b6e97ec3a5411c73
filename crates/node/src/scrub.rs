//! Comparing what the trees hold with what their headers promise.
//!
//! After a stop that may have lost what the kernel held (not clean, and the machine was started
//! anew since) a replica is scrubbed before it applies, serves reads or sends snapshots; it votes and
//! appends meanwhile. After a mere kill, and from time to time, the same runs in the background,
//! paced. A mismatch costs that replica: it serves nothing more, and the others go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_storage::{NodeRecords, StorageError};
use tracing::{info, warn};

use crate::boottime::boot_id;
use crate::engine::{Engine, Shard, fatal_of};

/// The node record that says in which boot of the machine the node last ran, and how it ended.
const RECORD: &str = "last-run";
/// A background scrub reads at most so much per second.
const PACE_BYTES_PER_SECOND: u64 = 16 << 20;
/// The time between two background scrubs of everything.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// How the node's last run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRun {
    /// There was none, or it ended in order.
    Clean,
    /// The process was killed; the kernel went on and lost nothing.
    Killed,
    /// The machine may have gone down with it.
    MayHaveLost,
}

/// Reads how the last run ended, and notes that this one is under way.
///
/// # Errors
///
/// A failed read or write of the record.
pub fn begin_run(records: &NodeRecords) -> Result<LastRun, StorageError> {
    let this_boot = boot_id();
    let before = records.get(RECORD)?;
    let last = judge(before.as_deref(), this_boot.as_deref());
    records.put(RECORD, format!("running {}", this_boot.unwrap_or_default()).as_bytes())?;
    Ok(last)
}

/// Notes that this run ended in order. Nothing is written to the storage after this.
///
/// # Errors
///
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

/// Scrubs replicas that wait for it, one after the other, as fast as the disk reads.
pub fn scrub_before_service(engine: &Engine, shards: &[Arc<Shard>]) {
    for shard in shards {
        let started = Instant::now();
        let outcome = scrub(shard, |_| {});
        info!(shard = shard.group.0, took = ?started.elapsed(), sound = outcome.is_ok(), "scrub: done");
        engine.scrubbed(shard.group, outcome);
    }
}

fn scrub(shard: &Shard, pace: impl FnMut(u64)) -> Result<(), String> {
    shard.reader.scrub(pace).map_err(|error| {
        if error.is_fatal() {
            fatal_of(&error).end_process();
        }
        error.to_string()
    })
}

/// Scrubs all shards in the background: soon after a kill, and then from time to time.
pub async fn keep(engine: Arc<Engine>, last: LastRun) {
    if last == LastRun::Clean {
        tokio::time::sleep(EVERY).await;
    }
    loop {
        let shards = engine.shards().all();
        let scrubbed = tokio::task::spawn_blocking(move || {
            for shard in shards.values().filter(|shard| shard.serves()) {
                if let Err(why) = scrub(shard, sleep_for) {
                    warn!(
                        shard = shard.group.0,
                        why, "scrub: the tree is not what its header says"
                    );
                    shard.set_damaged(&why);
                }
            }
        });
        if scrubbed.await.is_err() {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Paces a scrub: it is no hurry, and others read from the same disk.
fn sleep_for(bytes: u64) {
    std::thread::sleep(Duration::from_micros(bytes * 1_000_000 / PACE_BYTES_PER_SECOND));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_record_says_of_the_last_run() {
        assert_eq!(judge(None, Some("a")), LastRun::Clean, "the first start");
        assert_eq!(judge(Some(b"clean"), Some("a")), LastRun::Clean);
        assert_eq!(judge(Some(b"running a"), Some("a")), LastRun::Killed);
        assert_eq!(judge(Some(b"running a"), Some("b")), LastRun::MayHaveLost);
        assert_eq!(
            judge(Some(b"running a"), None),
            LastRun::MayHaveLost,
            "the system says nothing"
        );
        assert_eq!(judge(Some(b"running "), None), LastRun::MayHaveLost);
    }
}
