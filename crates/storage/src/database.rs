//! The only file that names sled: opening it safely, the barrier, and the limits under which its
//! writes are durable.
//!
//! sled 0.34.7 by itself does not survive a power cut: its `flush` ends in `sync_file_range`, pages
//! over a quarter of a segment go to blob files that are never synced, and segments are reused in
//! the belief that everything flushed is durable. So this file
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

use std::cell::Cell;
use std::fs::{DirBuilder, File, Permissions};
use std::ops::{Deref, RangeBounds};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

use parking_lot::{Condvar, Mutex};

use crate::crash;
use crate::error::{Result, StorageError};
use crate::space::{Disk, Space, SpaceProbe};

/// Size of a segment of the database's file; fixed when the directory is created.
pub const SEGMENT_BYTES: usize = 8 << 20;
/// The longest key that [`Tree::insert`] accepts.
pub const SLED_KEY_BYTES_MAX: usize = 4_700;
/// The longest value that [`Tree::insert`] accepts; longer records are split into pieces.
pub const SLED_VALUE_BYTES_MAX: usize = 6_000;
/// The most bytes of keys and values that the whole process inserts between two barriers: 512 KiB.
/// Removes count as well.
pub const BARRIER_BYTES: u64 = 512 << 10;

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
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, on_fatal: Arc::new(|_| {}), space: Arc::new(Space::of) }
    }
}

impl fmt::Debug for DatabaseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseOptions").field("cache_bytes", &self.cache_bytes).finish()
    }
}

/// Bytes of a remove, in addition to its key, that count towards [`BARRIER_BYTES`]: it writes its
/// leaf again as an insert does, whatever it removes. So there are at most 512 removes between two
/// barriers.
const REMOVE_BYTES: u64 = 1 << 10;

/// The tree whose only value [`Database::collect`] replaces.
const COLLECT_TREE: &[u8] = b"collect";
/// The number of writes to a page after which the database rewrites it, and then moves one other
/// page out of a mostly dead segment.
const WRITES_PER_PAGE: u64 = 10;
/// Bytes of such a move that count towards [`BARRIER_BYTES`].
const MOVED_PAGE_BYTES: u64 = 8 << 10;

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
    /// Bytes that writers have announced, ever. `inserted <= reserved`.
    reserved: AtomicU64,
    /// Bytes whose insert has returned, ever. `durable <= inserted`.
    inserted: AtomicU64,
    /// Value of `inserted` when the last completed barrier began.
    durable: AtomicU64,
    /// Writes, ever: each may leave one more fragment of a page in some segment.
    writes: AtomicU64,
    /// Pages that [`Database::collect`] has moved, ever.
    collected: AtomicU64,
    barriers: Mutex<Barriers>,
    barrier_done: Condvar,
}

/// Barriers are numbered from 1 and run one at a time.
#[derive(Default)]
struct Barriers {
    begun: u64,
    completed: u64,
    running: bool,
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
        sync_path(&dir.join("conf"))?;
        sync_path(dir)?;
        if created && let Some(parent) = dir.canonicalize().ok().as_deref().and_then(Path::parent) {
            sync_path(parent)?;
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
            reserved: AtomicU64::new(0),
            inserted: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            collected: AtomicU64::new(0),
            barriers: Mutex::default(),
            barrier_done: Condvar::new(),
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

    /// Opens the tree `name`, creating it if it does not exist. A new tree is durable after the
    /// next barrier.
    ///
    /// # Errors
    /// A failure of the database, which closes it.
    pub fn tree(&self, name: &[u8]) -> Result<Tree> {
        self.check_poisoned()?;
        crash::point("database.tree");
        let tree = self.write("open", name, || self.0.db.open_tree(name))?;
        Ok(Tree { database: self.clone(), tree })
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

    /// Makes every insert and remove durable that returned before this call. Concurrent callers
    /// share one flush: a caller begins one if none is running, and callers that arrive while one
    /// is running wait for the next.
    ///
    /// # Errors
    /// [`StorageError::Barrier`] to the caller that ran it, [`StorageError::Poisoned`] to the
    /// others. The database is closed then; nothing is retried.
    pub fn barrier(&self) -> Result<()> {
        let inner = &*self.0;
        let mut state = inner.barriers.lock();
        // A running barrier may have missed this caller's writes: the next one counts.
        let mine = state.begun + 1;
        loop {
            self.check_poisoned()?;
            if state.completed >= mine {
                return Ok(());
            }
            if state.running {
                inner.barrier_done.wait(&mut state);
                continue;
            }
            state.begun += 1;
            state.running = true;
            drop(state);
            let result = self.flush_and_sync();
            state = inner.barriers.lock();
            state.running = false;
            if result.is_ok() {
                state.completed = state.begun;
            }
            inner.barrier_done.notify_all();
            result?;
        }
    }

    /// Size of the database's files in bytes.
    ///
    /// # Errors
    /// The size cannot be read.
    pub fn disk_bytes(&self) -> Result<u64> {
        self.0.db.size_on_disk().map_err(|error| StorageError::Database {
            action: "report its size",
            message: error.to_string(),
        })
    }

    /// The state of the disk's reserve, as of the last barrier.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.0.disk
    }

    /// Makes the database move up to `pages` pages out of mostly dead segments, so that these can
    /// be reused. Returns the number of pages, which is smaller if there cannot be more to move.
    ///
    /// By itself the database moves one page for each page that it rewrites, but many small pages
    /// leave their fragments in far more segments than that empties: the file grows to ten times
    /// its live bytes. A thread of its own for this would write without limit between two barriers.
    ///
    /// # Errors
    /// A failure of the database, which closes it.
    pub fn collect(&self, pages: u64) -> Result<u64> {
        let tree = self.tree(COLLECT_TREE)?;
        for page in 0..pages {
            let number = self.0.collected.load(Ordering::Relaxed);
            // There are at most as many fragments as writes.
            if number >= self.0.writes.load(Ordering::Relaxed) {
                return Ok(page);
            }
            self.reserve(MOVED_PAGE_BYTES)?;
            let written = (0..WRITES_PER_PAGE).try_for_each(|write| {
                let value = (number * WRITES_PER_PAGE + write).to_be_bytes();
                let insert = || tree.tree.insert(b"", &value);
                self.write("insert a value into", COLLECT_TREE, insert).map(drop)
            });
            written?;
            self.0.inserted.fetch_add(MOVED_PAGE_BYTES, Ordering::SeqCst);
            self.0.collected.fetch_add(1, Ordering::Relaxed);
        }
        Ok(pages)
    }

    /// Reads the free space of the file system, as each barrier does, and updates
    /// [`Database::disk`].
    ///
    /// # Errors
    /// The system call failed.
    pub fn look_at_space(&self) -> Result<Space> {
        let inner = &*self.0;
        let space = (inner.space)(&inner.dir)?;
        let file = inner.file.metadata();
        let file = file.map_err(|error| StorageError::io("inspect", &inner.file_path, error))?;
        inner.disk.look(space, file.len());
        Ok(space)
    }

    /// [`Database::look_at_space`] after a successful write: the previous figures stay valid if the
    /// system call fails now.
    pub(crate) fn see_space(&self) {
        if let Err(error) = self.look_at_space() {
            tracing::warn!(%error, "disk: free space unknown");
        }
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

    fn flush_and_sync(&self) -> Result<()> {
        let inner = &*self.0;
        let inserted = inner.inserted.load(Ordering::SeqCst);
        crash::point("barrier.flush");
        inner.db.flush().map_err(|error| {
            self.fail(StorageError::Barrier {
                stage: "flush",
                path: inner.file_path.clone(),
                message: error.to_string(),
            })
        })?;
        crash::point("barrier.sync");
        inner.file.sync_data().map_err(|error| {
            self.fail(StorageError::Barrier {
                stage: "fdatasync",
                path: inner.file_path.clone(),
                message: error.to_string(),
            })
        })?;
        crash::point("barrier.done");
        inner.durable.fetch_max(inserted, Ordering::SeqCst);
        self.see_space();
        Ok(())
    }

    /// Announces an insert of `bytes`; runs or awaits barriers while they exceed [`BARRIER_BYTES`].
    fn reserve(&self, bytes: u64) -> Result<()> {
        debug_assert!(bytes <= BARRIER_BYTES);
        self.check_poisoned()?;
        let inner = &*self.0;
        loop {
            let reserved = inner.reserved.fetch_add(bytes, Ordering::SeqCst) + bytes;
            let open = reserved.saturating_sub(inner.durable.load(Ordering::SeqCst));
            if open <= BARRIER_BYTES {
                return Ok(());
            }
            inner.reserved.fetch_sub(bytes, Ordering::SeqCst);
            self.barrier()?;
        }
    }

    fn written(&self, bytes: u64) {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        self.0.inserted.fetch_add(bytes, Ordering::SeqCst);
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

/// Runs a read, which changes nothing in the database even if it panics.
fn read<T>(action: &'static str, tree: &[u8], f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    match caught(f) {
        Ok(result) => result.map_err(|error| failure(action, tree, error)),
        Err(message) => Err(damaged(action, tree, &format!("it panicked: {message}"))),
    }
}

/// Classifies a failure of the database, before anything is closed because of it.
fn failure(action: &'static str, tree: &[u8], error: sled::Error) -> StorageError {
    match error {
        sled::Error::CollectionNotFound(_) => {
            StorageError::Invalid { what: format!("cannot {action} a tree that was dropped") }
        }
        error @ sled::Error::Corruption { .. } => damaged(action, tree, &error.to_string()),
        // The file ends before a page that was in it.
        sled::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            damaged(action, tree, &error.to_string())
        }
        error => StorageError::Database { action, message: error.to_string() },
    }
}

fn damaged(action: &'static str, tree: &[u8], message: &str) -> StorageError {
    let tree = tree.escape_ascii();
    StorageError::damaged(format!("the storage database cannot {action} tree {tree}: {message}"))
}

/// A named, ordered set of keys and values inside a [`Database`]. Clones share it.
#[derive(Clone)]
pub struct Tree {
    database: Database,
    tree: sled::Tree,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tree").field(&String::from_utf8_lossy(&self.tree.name())).finish()
    }
}

impl Tree {
    /// The database this tree belongs to.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// A failed read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        let value = read("read a value of", &self.tree.name(), || self.tree.get(key))?;
        Ok(value.map(Value))
    }

    /// Inserts or replaces; durable after the next barrier. Waits for one if too much has been
    /// inserted since the last.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`] over the caps, otherwise a failure of the database, which closes
    /// it.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        check_len("a key", key.len(), SLED_KEY_BYTES_MAX)?;
        check_len("a value", value.len(), SLED_VALUE_BYTES_MAX)?;
        let bytes = (key.len() + value.len()) as u64;
        self.database.reserve(bytes)?;
        crash::point("database.insert");
        let name = self.tree.name();
        self.database.write("insert a value into", &name, || self.tree.insert(key, value))?;
        self.database.written(bytes);
        Ok(())
    }

    /// Removes; durable after the next barrier. The replacement of the value must be durable
    /// already.
    ///
    /// # Errors
    /// As [`Tree::insert`].
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        check_len("a key", key.len(), SLED_KEY_BYTES_MAX)?;
        let bytes = key.len() as u64 + REMOVE_BYTES;
        self.database.reserve(bytes)?;
        crash::point("database.remove");
        let name = self.tree.name();
        self.database.write("remove a value from", &name, || self.tree.remove(key))?;
        self.database.written(bytes);
        Ok(())
    }

    /// The keys in `range` in order. Not a snapshot: concurrent writes may or may not be seen. It
    /// does not iterate from the end, because the database's reverse iterator panics if a key is
    /// between a node and the key that it guesses to be just below that node.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> TreeRange {
        TreeRange { pairs: Some(self.tree.range(range)), tree: self.tree.clone() }
    }
}

fn check_len(what: &'static str, len: usize, limit: usize) -> Result<()> {
    if len > limit { Err(StorageError::TooLarge { what, len, limit }) } else { Ok(()) }
}

/// An iterator over keys and values of a tree, in key order. An error ends it.
pub struct TreeRange {
    /// `None` after an error: the position of the database's iterator is then unknown.
    pairs: Option<sled::Iter>,
    tree: sled::Tree,
}

impl Iterator for TreeRange {
    type Item = Result<(Value, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        let pairs = self.pairs.as_mut()?;
        let next = read("read a range of", &self.tree.name(), || pairs.next().transpose());
        if next.is_err() {
            self.pairs = None;
        }
        next.map(|pair| pair.map(|(key, value)| (Value(key), Value(value)))).transpose()
    }
}

/// Bytes read from a tree. Copy them to keep them: a value may keep its whole page in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(sled::IVec);

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

/// Creates `dir` (0700) if needed and removes the leftovers of a crash inside the database; true if
/// it was created.
fn prepare_dir(dir: &Path) -> Result<bool> {
    let created = !dir.exists();
    if created {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| StorageError::io("create", dir, error))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700))
        .map_err(|error| StorageError::io("set the mode of", dir, error))?;
    let entries = fs::read_dir(dir).map_err(|error| StorageError::io("list", dir, error))?;
    for entry in entries {
        let path = entry.map_err(|error| StorageError::io("list", dir, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A half-written snapshot of the database's page table; it would be read as a complete one.
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(path = %path.display(), "storage: removing an unfinished file");
            fs::remove_file(&path).map_err(|error| StorageError::io("remove", &path, error))?;
        }
    }
    Ok(created)
}

fn find_blob(dir: &Path) -> Result<()> {
    let blobs = dir.join("blobs");
    let mut entries = match fs::read_dir(&blobs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::io("list", &blobs, error)),
    };
    match entries.next() {
        None => Ok(()),
        Some(Ok(entry)) => Err(StorageError::BlobFile { path: entry.path() }),
        Some(Err(error)) => Err(StorageError::io("list", &blobs, error)),
    }
}

thread_local! {
    /// The number of calls of the database that this thread is in, whose panics become errors.
    static CAUGHT: Cell<usize> = const { Cell::new(0) };
}

/// True while this thread is in a call of the database, whose panic is caught and becomes an error.
/// A panic hook that ends the process must ignore such a panic.
#[must_use]
pub fn panic_is_caught() -> bool {
    CAUGHT.get() > 0
}

/// Runs a call of the database; a panic in it is returned as its message. The caller must not rely
/// on anything that the call could have left half changed.
fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    CAUGHT.set(CAUGHT.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(f));
    CAUGHT.set(CAUGHT.get() - 1);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
    })
}

/// How long an open waits for the lock on the directory.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Opens the database, and waits briefly for its lock: threads of the database keep its file open
/// for a short time after the last handle was dropped, so a database that this process has just
/// closed looks as if another process had it open.
fn open_waiting(dir: &Path, cache_bytes: u64) -> Result<sled::Db> {
    let since = Instant::now();
    loop {
        match open_guarded(dir, cache_bytes) {
            Err(StorageError::InUse { .. }) if since.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn open_guarded(dir: &Path, cache_bytes: u64) -> Result<sled::Db> {
    let config = sled::Config::new()
        .path(dir)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(cache_bytes)
        .flush_every_ms(None);
    // Nothing of a failed open is used afterwards, so broken invariants have no effect.
    match caught(|| config.open()) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) if error.to_string().contains("could not acquire lock") => {
            Err(StorageError::InUse { path: dir.to_owned() })
        }
        Ok(Err(error)) => {
            Err(StorageError::Database { action: "open the directory", message: error.to_string() })
        }
        Err(message) => Err(StorageError::OpenPanicked { path: dir.to_owned(), message }),
    }
}

/// Syncs a file or a directory.
pub(crate) fn sync_path(path: &Path) -> Result<()> {
    crash::point("path.sync");
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| StorageError::io("sync", path, error))
}

#[cfg(test)]
mod tests;
