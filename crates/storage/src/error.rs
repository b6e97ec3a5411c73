//! Error types of storage, sorted by the action that they ask of the caller.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of a storage operation.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// An error of the storage layer. Each says in a sentence what happened, and to which file or
/// record.
///
/// Cloning is cheap, so that every waiter can get the same failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// A call to the operating system failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action, as a verb: "create", "sync".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// The database rejected or failed an operation.
    #[error("the storage database failed to {action}: {message}")]
    Database {
        /// The operation, as a verb.
        action: &'static str,
        /// The message of the database.
        message: String,
    },
    /// A write could not be made durable, or has been under way for longer than a disk that works
    /// takes ([`crate::Syncs::hanging`]). It is never retried: after a failed fsync the kernel may
    /// hold pages as clean that never reached the disk.
    #[error("a write could not be made durable ({stage} of {}): {message}", path.display())]
    Barrier {
        /// Which step of the barrier failed: "flush", "fdatasync", "fsync" or "write".
        stage: &'static str,
        /// The file that was being synced.
        path: PathBuf,
        /// The message of the database or the system.
        message: String,
    },
    /// An earlier failure closed the database; nothing is written until the process is restarted.
    #[error("storage is closed after an earlier failure: {first}")]
    Poisoned {
        /// The sentence of the first failure.
        first: Arc<str>,
    },
    /// Another process has the directory open.
    #[error("the data directory {} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The database panicked while it opened the directory: its files are damaged.
    #[error("the storage database panicked while opening {}: {message}", path.display())]
    OpenPanicked {
        /// The directory.
        path: PathBuf,
        /// The message of the panic.
        message: String,
    },
    /// The database put a page into a separate file, which it never syncs. The sizes allowed here
    /// cannot cause that, so such a file means that the directory cannot be trusted.
    #[error("unexpected blob file {}: the database never syncs it", path.display())]
    BlobFile {
        /// The file.
        path: PathBuf,
    },
    /// A format version that this build does not know: it was written by a newer build.
    #[error("{what} has format {found}, but this build knows only formats up to {known}")]
    NewerFormat {
        /// The record that was read.
        what: String,
        /// The version it carries.
        found: u8,
        /// The newest version known here.
        known: u8,
    },
    /// A record is missing, broken or out of order where it must not be.
    #[error("damaged: {what}")]
    Damaged {
        /// What is wrong, naming the file or the sequence.
        what: String,
    },
    /// The log of this directory was written by the other back end.
    #[error(
        "the log of {} is kept in {recorded}, but it was opened as {asked}; \
         start with --log-store {recorded}", path.display()
    )]
    WrongBackend {
        /// The data directory.
        path: PathBuf,
        /// The back end the directory was created with.
        recorded: &'static str,
        /// The back end that was asked for.
        asked: &'static str,
    },
    /// Something is longer than its limit; nothing was written.
    #[error("{what} is {len} bytes long, more than the limit of {limit}")]
    TooLarge {
        /// The item that is too long.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The request is not valid; nothing was written.
    #[error("invalid storage request: {what}")]
    Invalid {
        /// What is wrong with the request.
        what: String,
    },
    /// The shard has reached its limit of pins; one of them has to be released first.
    #[error("more than {limit} {what} of one shard at a time")]
    TooManyPins {
        /// The kind of pins: "scans", "snapshots".
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A snapshot from another node cannot be used; the state is unchanged.
    #[error("the snapshot {what}")]
    BadSnapshot {
        /// What is wrong with it, as the end of a sentence.
        what: String,
    },
}

impl StorageError {
    /// An error of the operating system on `path`; `action` is a verb.
    pub fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source.into()) }
    }

    /// Damage, described by a sentence that names the record.
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    /// True if the database as a whole cannot be used any more by this process. The other errors
    /// concern one request (too large, invalid) or one record (damaged): the caller decides to
    /// which replica the damaged record belongs.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(
            self,
            Self::TooLarge { .. }
                | Self::Invalid { .. }
                | Self::TooManyPins { .. }
                | Self::BadSnapshot { .. }
                | Self::Damaged { .. }
                | Self::NewerFormat { .. }
        )
    }

    /// True if bytes on the disk differ from those that were written there.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::BlobFile { .. } | Self::OpenPanicked { .. })
    }

    /// True if this, or the failure that closed the database, is a write that could not be made
    /// durable. A node ends with an exit code of its own then.
    #[must_use]
    pub fn is_barrier_failure(&self) -> bool {
        matches!(self, Self::Barrier { .. })
    }
}
