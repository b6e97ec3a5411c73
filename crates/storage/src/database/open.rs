//! Opening: the directory is made ready, waited for and checked.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::call::caught;
use crate::error::{Result, StorageError};

/// Size of a segment of the database's file; fixed when the directory is created.
pub const SEGMENT_BYTES: usize = 8 << 20;

/// Creates `dir` (0700) if needed and removes the leftovers of a crash inside the database; true if
/// it was created.
pub(super) fn prepare_dir(dir: &Path) -> Result<bool> {
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

/// Fails if there is a blob file.
pub(super) fn find_blob(dir: &Path) -> Result<()> {
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

/// How long an open waits for the lock on the directory.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Opens the database, and waits briefly for its lock: threads of the database keep its file open
/// for a short time after the last handle was dropped, so a database that this process has just
/// closed looks as if another process had it open.
pub(super) fn open_waiting(dir: &Path, cache_bytes: u64) -> Result<sled::Db> {
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
