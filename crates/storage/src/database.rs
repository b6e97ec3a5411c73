//! The only module that names sled: opening it safely, the barrier, and the limits under which its
//! writes are durable.
//!
//! sled 0.34.7 by itself does not survive a power cut: its `flush` ends in `sync_file_range`, pages
//! over a quarter of a segment go to blob files that are never synced, and segments are reused in
//! the belief that everything flushed is durable. So this module
//!
//! - fixes segments of 8 MiB and caps keys and values, so that no page can become a blob;
//! - defines a *barrier* as `flush` and then `fdatasync` on a handle of our own. Nothing counts as
//!   written before a barrier that began after it has completed;
//! - lets at most [`BARRIER_BYTES`] be inserted between two barriers, in the whole process;
//! - offers only plain reads, inserts and removes: batches and transactions take a process-wide
//!   lock forever after their first use;
//! - closes itself at the first error of a write (*poisoned*): the result of a failed write or
//!   fsync is unknown, so nothing is retried before the files are opened again;
//! - reports a page that fails its checksum, and a panic of the database during a read, as damage
//!   of the tree that was read: the caller decides the consequence, never the database.

mod barrier;
mod call;
mod open;
mod space;
mod sync;
mod tree;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use crate::crash;
use crate::error::{Result, StorageError};
use crate::space::{Disk, Space, SpaceProbe};

pub use self::barrier::BARRIER_BYTES;
pub use self::call::panic_is_caught;
pub use self::open::SEGMENT_BYTES;
pub use self::sync::{SyncHook, Syncs};
pub use self::tree::{SLED_KEY_BYTES_MAX, SLED_VALUE_BYTES_MAX, Tree, TreeRange, Value};

use self::barrier::Barriers;
use self::call::{caught, failure};
use self::open::{find_blob, open_waiting, prepare_dir};

/// Called once, with the failure that closed the database. A node ends its process here.
pub type FatalHook = Arc<dyn Fn(&StorageError) + Send + Sync>;

/// The options of opening a [`Database`].
#[derive(Clone)]
pub struct DatabaseOptions {
    /// Memory for the page cache, in bytes.
    pub cache_bytes: u64,
    /// Called at the first fatal failure, on the thread of the failed call. Does nothing by
    /// default: the failure is returned, and every later write returns [`StorageError::Poisoned`].
    pub on_fatal: FatalHook,
    /// Reads the free space of the file system; replaced in tests.
    pub space: SpaceProbe,
    /// Called before each sync of a file of the data directory: nothing, but in tests.
    pub before_sync: SyncHook,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            on_fatal: Arc::new(|_| {}),
            space: Arc::new(Space::of),
            before_sync: Arc::new(|_| Ok(())),
        }
    }
}

impl fmt::Debug for DatabaseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseOptions").field("cache_bytes", &self.cache_bytes).finish()
    }
}

/// One open directory of the database. Clones share it.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    db: sled::Db,
    dir: PathBuf,
    /// Our own handle of the database's file `db`, kept open because the kernel reports a writeback
    /// error once per handle: it must not be missed between two opens.
    file: File,
    file_path: PathBuf,
    on_fatal: FatalHook,
    space: SpaceProbe,
    disk: Arc<Disk>,
    poisoned: OnceLock<Arc<str>>,
    syncs: Arc<Syncs>,
    barriers: Barriers,
    /// Writes, ever: each may leave one more fragment of a page in some segment.
    writes: AtomicU64,
    /// Pages that [`Database::collect`] has moved, ever.
    collected: AtomicU64,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the directory `dir`, creating it (0700) if it does not exist. There is no time limit:
    /// a large file takes long to read. Its whole content is durable when this returns.
    ///
    /// # Errors
    /// Any [`StorageError`]; a panic inside the database becomes [`StorageError::OpenPanicked`].
    pub fn open(dir: &Path, options: DatabaseOptions) -> Result<Self> {
        let created = prepare_dir(dir)?;
        // Also before the database opens, because it removes a blob that no page references.
        find_blob(dir)?;
        let db = open_waiting(dir, options.cache_bytes)?;
        let file_path = dir.join("db");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&file_path)
            .map_err(|error| StorageError::io("open", &file_path, error))?;
        let syncs = Arc::new(Syncs::new(options.before_sync));
        syncs.path(&dir.join("conf"))?;
        syncs.path(dir)?;
        if created && let Some(parent) = dir.canonicalize().ok().as_deref().and_then(Path::parent) {
            syncs.path(parent)?;
        }
        let database = Self(Arc::new(Inner {
            db,
            dir: dir.to_owned(),
            file,
            file_path,
            on_fatal: options.on_fatal,
            space: options.space,
            disk: Arc::default(),
            poisoned: OnceLock::new(),
            syncs,
            barriers: Barriers::default(),
            writes: AtomicU64::new(0),
            collected: AtomicU64::new(0),
        }));
        database.check_blobs()?;
        // The bytes that the database has just read may be only in the page cache, left by a killed
        // process.
        database.barrier()?;
        Ok(database)
    }

    /// The directory that was opened.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The syncs of the data directory that are under way, this database's and those of the log's
    /// files and of `MARK`. A watchdog asks it whether one hangs.
    #[must_use]
    pub fn syncs(&self) -> &Arc<Syncs> {
        &self.0.syncs
    }

    /// Opens the tree `name`, creating it if it does not exist. A new tree is durable after the
    /// next barrier.
    ///
    /// # Errors
    /// A failure of the database, which closes it.
    pub fn tree(&self, name: &[u8]) -> Result<Tree> {
        self.check_poisoned()?;
        crash::point("database.tree");
        let tree = self.write("open", name, || self.0.db.open_tree(name))?;
        Ok(Tree::new(self.clone(), tree))
    }

    /// Removes the tree `name` with its content, if it exists. Its replacement must be durable
    /// already. A barrier follows immediately, because the pages of a large tree are many small
    /// writes that no limit counts.
    ///
    /// # Errors
    /// A failure of the database, which closes it.
    pub fn drop_tree(&self, name: &[u8]) -> Result<()> {
        self.check_poisoned()?;
        crash::point("database.drop_tree");
        if self.write("drop", name, || self.0.db.drop_tree(name))? {
            self.barrier()
        } else {
            Ok(())
        }
    }

    /// The names of all trees, in order.
    #[must_use]
    pub fn tree_names(&self) -> Vec<Vec<u8>> {
        let default = self.0.db.name();
        let mut names: Vec<Vec<u8>> = self.0.db.tree_names().iter().map(|n| n.to_vec()).collect();
        names.retain(|name| name[..] != default[..]);
        names.sort();
        names
    }

    /// Fails if the database has put a page into a blob file, which it never syncs. The caps on
    /// keys and values prevent that; tests call this after their barriers.
    ///
    /// # Errors
    /// [`StorageError::BlobFile`], which closes the database.
    pub fn check_blobs(&self) -> Result<()> {
        find_blob(&self.0.dir).map_err(|error| self.fail(error))
    }

    /// Fails if an earlier failure has closed the database.
    ///
    /// # Errors
    /// [`StorageError::Poisoned`].
    pub fn check_poisoned(&self) -> Result<()> {
        match self.0.poisoned.get() {
            None => Ok(()),
            Some(first) => Err(StorageError::Poisoned { first: Arc::clone(first) }),
        }
    }

    /// Closes the database because of `error`, and returns the error. The first caller's error is
    /// recorded and passed to the hook. The other files of a data directory (log, mark) report
    /// their failed writes here too: one directory fails as a whole.
    pub fn fail(&self, error: StorageError) -> StorageError {
        let mut first = false;
        self.0.poisoned.get_or_init(|| {
            first = true;
            error.to_string().into()
        });
        if first {
            tracing::error!(%error, dir = %self.0.dir.display(), "storage: closed");
            (self.0.on_fatal)(&error);
        }
        error
    }

    /// Runs a write. A failure closes the database, unless the tree was dropped meanwhile or a page
    /// of it cannot be read, because then nothing was changed. A panic closes it, because the state
    /// inside the database is then unknown.
    fn write<T>(
        &self,
        action: &'static str,
        tree: &[u8],
        f: impl FnOnce() -> sled::Result<T>,
    ) -> Result<T> {
        match caught(f) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => match failure(action, tree, error) {
                error @ StorageError::Database { .. } => Err(self.fail(error)),
                error => Err(error),
            },
            Err(message) => {
                let message = format!("it panicked: {message}");
                Err(self.fail(StorageError::Database { action, message }))
            }
        }
    }
}

#[cfg(test)]
mod tests;
