//! The identity of this node: the data directory, its lock, and the file `IDENTITY`.
//!
//! A node is (cluster id, node id, incarnation), never an address. The incarnation is 128 random
//! bits drawn once for each data directory, so a directory that was wiped is another incarnation,
//! and the members that remember the old one reject it. `IDENTITY` is text, outside the storage
//! engine, so that it survives the loss of `sled/`; it is replaced atomically, and is durable
//! before the node sends its first packet.

mod file;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use quorate_config::Config;
use quorate_proto::ids::{ClusterId, Incarnation};
use quorate_raft::NodeId;
use rustix::fs::{FlockOperation, flock};

use crate::exit::Fatal;

use file::{read_identity, replace, sync_dir};
pub use record::Record;

/// The name of the identity file in the data directory.
pub const IDENTITY_FILE: &str = "IDENTITY";
/// The name of the lock file in the data directory.
pub const LOCK_FILE: &str = "LOCK";
/// The newest format of the data directory that this version reads and writes.
pub const FORMAT: u32 = 1;

/// Names in the directory that only a node with an identity creates.
const DATA_NAMES: [&str; 5] = ["sled", "log", "MARK", "snapshots", "aside"];
const README_FILE: &str = "README";
const README_TEXT: &str = include_str!("identity/README.txt");

/// The agreement of the members when the cluster formed. It never changes afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formed {
    /// Computed from the cluster name and the members; see [`Formed::new`].
    pub cluster_id: ClusterId,
    /// The name given by `--cluster-name`.
    pub cluster_name: String,
    /// The first members, each with its incarnation.
    pub members: BTreeMap<NodeId, Incarnation>,
    /// Shards at formation, group 0 not counted.
    pub shards: u32,
    /// Wanted replicas of each shard.
    pub replicas: u32,
}

impl Formed {
    /// The agreement on these members; every node that agrees computes the same cluster id.
    pub fn new(
        cluster_name: &str,
        members: BTreeMap<NodeId, Incarnation>,
        shards: u32,
        replicas: u32,
    ) -> Self {
        let mut text = Vec::from(&b"quorate cluster id 1\0"[..]);
        text.extend_from_slice(&(cluster_name.len() as u64).to_be_bytes());
        text.extend_from_slice(cluster_name.as_bytes());
        for (node, incarnation) in &members {
            text.extend_from_slice(&node.0.to_be_bytes());
            text.extend_from_slice(&incarnation.to_bytes());
        }
        let cluster_id = ClusterId(xxhash_rust::xxh3::xxh3_128(&text));
        Self { cluster_id, cluster_name: cluster_name.to_owned(), members, shards, replicas }
    }
}

/// Why a data directory cannot be used. It becomes the [`Fatal`] with which the process ends.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process holds the lock.
    #[error("the data directory {0} is in use by another process")]
    InUse(PathBuf),
    /// A newer version of the program wrote it.
    #[error(
        "the data directory {dir} has format {found}, this version knows formats up to {FORMAT}; \
         start a newer version"
    )]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// The format that `IDENTITY` names.
        found: u64,
    },
    /// The directory belongs to another node, or its content contradicts the flags.
    #[error("{0}")]
    Mismatch(String),
    /// `IDENTITY` is damaged.
    #[error(
        "{path} is damaged: {why}; it was left as it is. Restore it from a copy; if there is none, \
         this directory cannot be used again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is data, but no `IDENTITY` that names its owner.
    #[error(
        "the data directory {0} holds data but no file IDENTITY; it was left as it is. Restore \
         IDENTITY from a copy, or give an empty directory"
    )]
    Missing(PathBuf),
    /// The operating system reported an error.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl From<IdentityError> for Fatal {
    fn from(error: IdentityError) -> Self {
        let sentence = error.to_string();
        match error {
            IdentityError::InUse(_) => Self::InUse(sentence),
            IdentityError::NewerFormat { .. } => Self::NewerFormat(sentence),
            IdentityError::Mismatch(_)
            | IdentityError::Damaged { .. }
            | IdentityError::Missing(_)
            | IdentityError::Io { .. } => Self::Identity(sentence),
        }
    }
}

impl IdentityError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Locks the data directory of a node that is stopped, if it has a lock, and reads its identity.
/// Nothing in it is created or changed. The lock is held until the file is closed.
///
/// # Errors
/// As [`Identity::of_config`]; [`IdentityError::Missing`] and [`Fatal::Identity`] without an
/// `IDENTITY`.
pub fn look(path: &Path) -> Result<(Record, Option<File>), Fatal> {
    let is_dir = |stat: fs::Metadata| match stat.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    };
    fs::metadata(path).and_then(is_dir).map_err(|error| {
        let path = path.display();
        Fatal::Usage(format!("cannot read the data directory {path}: {error} (--data-dir)"))
    })?;
    let lock_path = path.join(LOCK_FILE);
    let lock = match File::open(&lock_path) {
        Ok(lock) => {
            lock_now(&lock, path)?;
            Some(lock)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(IdentityError::io("open", &lock_path)(error).into()),
    };
    match read_identity(path)? {
        Some(record) => Ok((record, lock)),
        None if holds_data(path)? => Err(IdentityError::Missing(path.to_owned()).into()),
        None => Err(Fatal::Identity(format!(
            "{} is not the data directory of a node: it has no file IDENTITY and no data \
             (--data-dir)",
            path.display()
        ))),
    }
}

/// Locks the data directory `dir` by its lock file, without waiting.
fn lock_now(lock: &File, dir: &Path) -> Result<(), IdentityError> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::InUse(dir.to_owned())),
        Err(errno) => Err(IdentityError::io("lock", &dir.join(LOCK_FILE))(errno.into())),
    }
}

/// Whether the directory holds more than [`DataDir::open`] and an interrupted first start create.
fn holds_data(dir: &Path) -> Result<bool, IdentityError> {
    for entry in fs::read_dir(dir).map_err(IdentityError::io("read the directory", dir))? {
        let entry = entry.map_err(IdentityError::io("read the directory", dir))?;
        let name = entry.file_name();
        if DATA_NAMES.iter().any(|data| name == *data) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A data directory that only this process uses, from [`DataDir::open`] until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock; the kernel releases it when the process ends for any reason.
    _lock: File,
}

impl DataDir {
    /// Creates the directory (mode 0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// [`IdentityError::InUse`] when another process has locked it, [`IdentityError::Io`].
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        create_private(path)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(IdentityError::io("open", &lock_path))?;
        lock_now(&lock, path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the storage engine, which creates it.
    pub fn sled_dir(&self) -> PathBuf {
        self.path.join("sled")
    }
}

/// Creates `path` with mode 0700, or makes a directory private that is empty or already ours.
fn create_private(path: &Path) -> Result<(), IdentityError> {
    if !path.exists() {
        // Only the directory itself is private: its parents belong to others.
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(IdentityError::io("create the directory", parent))?;
        let create = IdentityError::io("create the data directory", path);
        DirBuilder::new().mode(0o700).create(path).map_err(create)?;
        // The new name must survive a power cut as surely as the files below it.
        return sync_dir(parent);
    }
    let stat = fs::metadata(path).map_err(IdentityError::io("read", path))?;
    if !stat.is_dir() {
        return Err(IdentityError::Io {
            action: "use as a data directory",
            path: path.to_owned(),
            source: io::ErrorKind::NotADirectory.into(),
        });
    }
    let ours = path.join(IDENTITY_FILE).exists()
        || fs::read_dir(path)
            .map_err(IdentityError::io("read the directory", path))?
            .next()
            .is_none();
    // A directory with other files in it, or a shared one like /tmp, keeps its mode.
    let shared = stat.mode() & 0o1000 != 0 || stat.uid() != rustix::process::geteuid().as_raw();
    if ours && !shared && stat.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(IdentityError::io("make private", path))?;
    }
    Ok(())
}

/// The identity of this node, as durable as the last call that changed it.
///
/// One process has one of them (it owns the [`DataDir`]); it is shared by reference.
#[derive(Debug)]
pub struct Identity {
    dir: DataDir,
    node_id: NodeId,
    incarnation: Incarnation,
    boot_counter: u64,
    /// The content of the file.
    record: RwLock<Record>,
    /// Serialises writers of the file.
    writing: Mutex<()>,
}

impl Identity {
    /// Locks the directory of the settings, and reads or draws the identity in it.
    ///
    /// # Errors
    /// The reason that the process ends with.
    pub fn of_config(config: &Config) -> Result<Arc<Self>, Fatal> {
        let dir = DataDir::open(&config.data_dir).map_err(|error| match error {
            // A path that cannot be such a directory; the identity itself is not in doubt.
            IdentityError::Io { .. } => {
                Fatal::Usage(format!("{error}; a node needs a directory of its own (--data-dir)"))
            }
            error => error.into(),
        })?;
        Ok(Arc::new(Self::open(dir, config.node_id)?))
    }

    /// Reads the identity of this directory, or draws a new one if it is empty, and counts the
    /// boot. The result is durable.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] when the directory belongs to another node id; the other
    /// variants as documented there. An `IDENTITY` that cannot be read is never overwritten.
    pub fn open(dir: DataDir, node_id: NodeId) -> Result<Self, IdentityError> {
        let record = match read_identity(dir.path())? {
            Some(mut record) => {
                if record.node_id != node_id {
                    return Err(IdentityError::Mismatch(format!(
                        "the data directory {} belongs to node {}, but this node was started with \
                         --node-id {}",
                        dir.path().display(),
                        record.node_id.0,
                        node_id.0
                    )));
                }
                record.boot_counter += 1;
                record
            }
            None if holds_data(dir.path())? => {
                return Err(IdentityError::Missing(dir.path().to_owned()));
            }
            None => Record {
                node_id,
                incarnation: Incarnation(rand::random()),
                boot_counter: 1,
                storage_created: false,
                formed: None,
            },
        };
        replace(dir.path(), README_FILE, README_TEXT.as_bytes())?;
        replace(dir.path(), IDENTITY_FILE, record.to_text().as_bytes())?;
        let Record { node_id, incarnation, boot_counter, .. } = record;
        let record = RwLock::new(record);
        Ok(Self { dir, node_id, incarnation, boot_counter, record, writing: Mutex::new(()) })
    }

    /// The data directory.
    pub fn dir(&self) -> &DataDir {
        &self.dir
    }

    /// The number given by `--node-id`.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The random number drawn when the directory was new.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Number of process starts on this directory, including this one; from 1.
    pub fn boot_counter(&self) -> u64 {
        self.boot_counter
    }

    /// The agreement of the cluster; `None` until this node has formed or joined.
    pub fn formed(&self) -> Option<Formed> {
        self.record.read().formed.clone()
    }

    /// Records the agreement. It is durable when this returns, and the node may vote.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; the node is then still unformed, in memory and (unless the rename had
    /// succeeded) on disk. In both cases it has not acted on the agreement.
    ///
    /// # Panics
    /// When the node has already formed with another agreement, or is not among the members: a
    /// node belongs to one cluster forever.
    pub fn set_formed(&self, agreed: Formed) -> Result<(), IdentityError> {
        let _writing = self.writing.lock();
        if let Some(before) = self.formed() {
            assert_eq!(before, agreed, "a node that has formed cannot form otherwise");
            return Ok(());
        }
        assert_eq!(
            agreed.members.get(&self.node_id),
            Some(&self.incarnation),
            "node {} forms only a cluster that knows it: {agreed:?}",
            self.node_id
        );
        let mut record = self.record.read().clone();
        record.formed = Some(agreed);
        self.write(record)
    }

    /// Whether the storage was created here. If it was and is missing now, its votes are lost, and
    /// a new storage under the same replica ids could vote twice.
    pub fn storage_created(&self) -> bool {
        self.record.read().storage_created
    }

    /// Records that the storage exists: after it is durable, and before the first replica is in it.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn set_storage_created(&self) -> Result<(), IdentityError> {
        let _writing = self.writing.lock();
        if self.storage_created() {
            return Ok(());
        }
        let mut record = self.record.read().clone();
        record.storage_created = true;
        self.write(record)
    }

    /// Replaces the file, then the copy in memory. The caller holds `writing`.
    fn write(&self, record: Record) -> Result<(), IdentityError> {
        replace(self.dir.path(), IDENTITY_FILE, record.to_text().as_bytes())?;
        *self.record.write() = record;
        Ok(())
    }
}
