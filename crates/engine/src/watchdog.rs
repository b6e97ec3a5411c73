//! The watchdog of barriers: a disk that hangs ends the process, and the other nodes continue
//! without it.
//!
//! It sees every sync of the data directory: those of the log (in the database or in files), of
//! checkpoints, snapshot installs, node records and `MARK`. In addition it sees the log writer as a
//! whole, which may also hang in a plain write. It has a thread of its own, which touches no disk
//! and takes no lock that is held across a sync. It watches until the engine is dropped, because
//! the clean end has barriers too.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use quorate_storage::{StorageError, Syncs};

use crate::fatal::FatalHook;
use crate::log_writer::LogProgress;

/// A barrier that takes longer than this hangs.
pub const BARRIER_MAX: Duration = Duration::from_secs(30);
/// The time between two checks; shorter where the limit is shorter than [`BARRIER_MAX`].
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What the watchdog looks at.
pub(super) struct Watched {
    pub(super) syncs: Arc<Syncs>,
    pub(super) progress: Arc<LogProgress>,
    /// When the times of `progress` begin.
    pub(super) epoch: Instant,
    /// A barrier that takes longer hangs.
    pub(super) barrier_max: Duration,
}

impl Watched {
    /// The failure of a barrier that hangs.
    fn look(&self) -> Option<StorageError> {
        self.syncs.hanging(self.barrier_max).or_else(|| {
            let busy = self.progress.busy_for(self.epoch)?;
            (busy > self.barrier_max).then(|| StorageError::Barrier {
                stage: "write",
                path: "the log".into(),
                message: format!("it has not returned for {} s", busy.as_secs()),
            })
        })
    }
}

/// The thread that looks. It ends when this is dropped.
pub(super) struct Watchdog(Arc<End>);

#[derive(Default)]
struct End {
    is_due: Mutex<bool>,
    changed: Condvar,
}

impl Watchdog {
    /// Starts to look. `fatal` is called on the thread of the watchdog.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(super) fn start(watched: Watched, fatal: FatalHook) -> io::Result<Self> {
        let end = Arc::<End>::default();
        let watchdog = Self(end.clone());
        let interval = WATCH_INTERVAL.min(watched.barrier_max / 4);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut is_due = end.is_due.lock();
            while !*is_due {
                if let Some(error) = watched.look() {
                    fatal.end(&error);
                }
                end.changed.wait_for(&mut is_due, interval);
            }
        })?;
        Ok(watchdog)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.0.is_due.lock() = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
