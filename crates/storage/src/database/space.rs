//! Space: how large the database is, how much of the disk is left, and making the file smaller.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::open::SEGMENT_BYTES;
use super::{Database, SLED_VALUE_BYTES_MAX};
use crate::crash;
use crate::error::{Result, StorageError};
use crate::space::{Disk, Space};

/// The tree whose only value [`Database::collect`] replaces.
const COLLECT_TREE: &[u8] = b"collect";
/// The number of writes to a page after which the database rewrites it, and then moves one other
/// page out of a mostly dead segment.
const WRITES_PER_PAGE: u64 = 10;
/// Bytes of such a move that count towards [`BARRIER_BYTES`].
const MOVED_PAGE_BYTES: u64 = 8 << 10;

impl Database {
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
            crash::point("database.collect");
            let written = (0..WRITES_PER_PAGE).try_for_each(|write| {
                let value = (number * WRITES_PER_PAGE + write).to_be_bytes();
                let insert = || tree.insert_raw(&value);
                self.write("insert a value into", COLLECT_TREE, insert).map(drop)
            });
            written?;
            crash::point("database.collected");
            self.0.barriers.inserted.fetch_add(MOVED_PAGE_BYTES, Ordering::SeqCst);
            self.0.collected.fetch_add(1, Ordering::Relaxed);
        }
        Ok(pages)
    }

    /// Moves pages as [`Database::collect`] does, and writes as much as a segment of the file
    /// holds: when a segment ends while most of the file is free, the database empties the last
    /// segment in use, and cuts off the free ones behind it. So repeated calls make a mostly free
    /// file short.
    /// Returns the length of the file in bytes.
    ///
    /// # Errors
    /// A failure of the database, which closes it.
    pub fn shrink(&self) -> Result<u64> {
        let tree = self.tree(COLLECT_TREE)?;
        let mut value = [0; SLED_VALUE_BYTES_MAX];
        for write in 0..(SEGMENT_BYTES / SLED_VALUE_BYTES_MAX) as u64 {
            // The database skips a write of the value that is there.
            value[..8].copy_from_slice(&write.to_be_bytes());
            let bytes = value.len() as u64 + MOVED_PAGE_BYTES;
            self.reserve(bytes)?;
            self.write("insert a value into", COLLECT_TREE, || tree.insert_raw(&value))?;
            self.0.barriers.inserted.fetch_add(bytes, Ordering::SeqCst);
        }
        self.barrier()?;
        let file = self.0.file.metadata();
        let file = file.map_err(|error| StorageError::io("inspect", &self.0.file_path, error))?;
        Ok(file.len())
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
}
