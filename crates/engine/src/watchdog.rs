//! The watchdog of barriers: a disk that hangs ends the process, and the other nodes continue
//! without it.
//!
//! It sees every sync of the data directory: those of the log (in the database or in files), of
//! checkpoints, snapshot installs, node records and `MARK`. In addition it sees the log writer as a
//! whole, which may also hang in a plain write. It has a thread of its own, which touches no disk
//! and takes no lock that is held across a sync. It watches until the engine is dropped, because
//! the clean end has barriers too.
//!
//! It counts its own readings, so a pause of the whole process is not held against the disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_storage::Syncs;

use crate::fatal::FatalHook;

/// A barrier that takes longer than this hangs.
pub const BARRIER_MAX: Duration = Duration::from_secs(30);
/// The time between two readings.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The thread that looks. It ends when this is dropped.
pub(super) struct Watchdog {
    end: Arc<End>,
    /// How long the step that takes longest has been under way, in milliseconds.
    busy_ms: Arc<AtomicU64>,
}

#[derive(Default)]
struct End {
    is_due: Mutex<bool>,
    changed: Condvar,
}

/// The time that this number of readings has seen, at least.
fn seen(readings: u32) -> Duration {
    WATCH_INTERVAL * readings.saturating_sub(1)
}

impl Watchdog {
    /// Starts to look for steps that take longer than `barrier_max`. `fatal` is called on the
    /// watchdog's thread.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(super) fn start(
        syncs: Arc<Syncs>,
        barrier_max: Duration,
        fatal: FatalHook,
    ) -> io::Result<Self> {
        let watchdog = Self { end: Arc::default(), busy_ms: Arc::default() };
        let (end, busy_ms) = (watchdog.end.clone(), watchdog.busy_ms.clone());
        let readings_max = barrier_max.div_duration_f64(WATCH_INTERVAL).ceil() as u32;
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut is_due = end.is_due.lock();
            while !*is_due {
                let readings = syncs.count_reading();
                busy_ms.store(seen(readings).as_millis() as u64, Ordering::Relaxed);
                if let Some(error) = syncs.hanging(readings_max) {
                    fatal.end(&error);
                }
                end.changed.wait_for(&mut is_due, WATCH_INTERVAL);
            }
        })?;
        Ok(watchdog)
    }

    /// How long the write or sync that takes longest has been under way, in steps of
    /// [`WATCH_INTERVAL`]; 0 if none takes that long.
    pub(super) fn disk_busy_for(&self) -> Duration {
        Duration::from_millis(self.busy_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.end.is_due.lock() = true;
        self.end.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
