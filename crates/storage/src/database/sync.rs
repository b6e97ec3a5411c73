//! Syncs: every `fsync` and `fdatasync` of a data directory passes here, so that one that hangs is
//! seen. A failed one is an error to its caller; one that never returns has no caller to say so.
//!
//! How long one has taken is counted in readings of a watchdog, not on a clock: while the whole
//! process stands still (SIGSTOP, a suspended machine) time passes that the disk did not take.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::crash;
use crate::error::{Result, StorageError};

/// Called with the path before each sync of a file or directory, on the thread that waits for it.
/// By default it does nothing; in tests it is a disk that fails (its error is the sync's) or
/// hangs.
pub type SyncHook = Arc<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// The syncs of one data directory that are under way, and the writes around them.
pub struct Syncs {
    before: SyncHook,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    begun: u64,
    /// By number, so the first is the oldest.
    by_number: BTreeMap<u64, Begun>,
}

struct Begun {
    stage: &'static str,
    path: PathBuf,
    at: Instant,
    /// How often a watchdog has found it under way.
    readings: u32,
}

/// Forgets a sync when it returns, or when it panics.
struct Forget<'a> {
    syncs: &'a Syncs,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.syncs.running.lock().by_number.remove(&self.number);
    }
}

impl Default for Syncs {
    fn default() -> Self {
        Self::new(Arc::new(|_| Ok(())))
    }
}

impl fmt::Debug for Syncs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Syncs").field("running", &self.running.lock().by_number.len()).finish()
    }
}

impl Syncs {
    pub(super) fn new(before: SyncHook) -> Self {
        Self { before, running: Mutex::default() }
    }

    /// Counts one reading for each step that is under way; returns the most that any of them has.
    #[must_use]
    pub fn count_reading(&self) -> u32 {
        let mut running = self.running.lock();
        running.by_number.values_mut().for_each(|begun| begun.readings += 1);
        running.by_number.values().map(|begun| begun.readings).max().unwrap_or(0)
    }

    /// The failure of a step with more than `max` readings; `None` when there is none. Of several
    /// it is the last to begin, because a write contains its syncs.
    #[must_use]
    pub fn hanging(&self, max: u32) -> Option<StorageError> {
        let running = self.running.lock();
        let hanging = running.by_number.values().rfind(|begun| begun.readings > max)?;
        Some(StorageError::Barrier {
            stage: hanging.stage,
            path: hanging.path.clone(),
            message: format!("it has not returned for {} s", hanging.at.elapsed().as_secs()),
        })
    }

    /// Syncs the data of a file, and of its metadata what reading it back needs.
    ///
    /// # Errors
    /// What the system answered.
    pub(crate) fn data(&self, path: &Path, file: &File) -> io::Result<()> {
        self.watched("fdatasync", path, || (self.before)(path).and_then(|()| file.sync_data()))
    }

    /// Syncs a file with all its metadata.
    ///
    /// # Errors
    /// What the system answered.
    pub(crate) fn all(&self, path: &Path, file: &File) -> io::Result<()> {
        self.watched("fsync", path, || (self.before)(path).and_then(|()| file.sync_all()))
    }

    /// Opens and syncs a file or a directory.
    ///
    /// # Errors
    /// A failure of the system.
    pub(crate) fn path(&self, path: &Path) -> Result<()> {
        crash::point("path.sync");
        File::open(path)
            .and_then(|file| self.all(path, &file))
            .map_err(|error| StorageError::io("sync", path, error))
    }

    /// Runs a step that may wait for the disk, which [`Syncs::hanging`] sees until it returns.
    pub fn watched<T>(&self, stage: &'static str, path: &Path, step: impl FnOnce() -> T) -> T {
        let number = {
            let mut running = self.running.lock();
            running.begun += 1;
            let number = running.begun;
            let begun = Begun { stage, path: path.to_owned(), at: Instant::now(), readings: 0 };
            running.by_number.insert(number, begun);
            number
        };
        let _forget = Forget { syncs: self, number };
        step()
    }
}
