//! Shard readers: reading a shard from any thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_raft::{GroupId, Index, LogId, ReplicaId};

use super::clean::CleanJob;
use super::digest::Digest;
use super::header::{Counts, Frontier, ShardHeader};
use super::pins::PinKind;
use super::scan_pin::ScanPin;
use super::versions::{self, Span};
use super::view::{Lookup, Shared};
use crate::error::{Result, StorageError};
use crate::keys::RowKey;

/// A handle to read a shard; cheap to clone and to send to other threads. It never waits for apply
/// or for a checkpoint longer than the writes of one entry take.
#[derive(Clone, Debug)]
pub struct ShardReader {
    shared: Arc<Shared>,
}

/// The status of a shard's state at one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The last entry applied.
    pub applied: LogId,
    /// Its log time.
    pub log_time: u64,
    /// The last entry in the checkpoint.
    pub checkpoint: LogId,
    /// The size of the state.
    pub counts: Counts,
    /// The digest of all live rows.
    pub digest: u128,
    /// Bytes in the delta.
    pub delta_bytes: u64,
}

impl ShardReader {
    pub(super) fn new(shared: Arc<Shared>) -> ShardReader {
        ShardReader { shared }
    }

    /// The shard.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.shared.group
    }

    /// The replica whose state this is.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.shared.view.load().header.replica
    }

    /// Bytes that the shard takes in the database: its live rows, and those that a cleaning would
    /// remove. `None` until the first cleaning, while there may be uncounted versions.
    #[must_use]
    pub fn occupied(&self) -> Option<u64> {
        self.shared.occupied.get()
    }

    /// A job that removes superseded versions and replaced trees, if there may be any. Each
    /// checkpoint begins with the same, so it is only needed if no checkpoint follows soon.
    #[must_use]
    pub fn clean(&self) -> Option<CleanJob> {
        let nothing = self.shared.garbage.lock().is_empty();
        (!nothing).then(|| CleanJob { shared: Arc::clone(&self.shared) })
    }

    /// The last applied entry: a read that begins now sees all effects up to it.
    #[must_use]
    pub fn applied(&self) -> Index {
        Index(self.shared.applied.load(Ordering::Acquire))
    }

    /// Looks a row up in memory. Never waits for the disk.
    #[must_use]
    pub fn try_get(&self, key: &RowKey) -> Lookup {
        self.shared.lookup(&self.shared.view.load(), key)
    }

    /// Reads a row, from the tree if need be: for threads that may wait for the disk.
    ///
    /// # Errors
    /// A failed read, or [`StorageError::Damaged`].
    pub fn get(&self, key: &RowKey) -> Result<Option<Bytes>> {
        self.shared.get(key)
    }

    /// Pins the state at the last applied index, until the pin and the scans made from it are
    /// dropped.
    ///
    /// # Errors
    /// [`StorageError::TooManyPins`] while [`SCAN_PINS_MAX`](super::SCAN_PINS_MAX) are held.
    pub fn pin(&self) -> Result<ScanPin> {
        let (view, index, guard) = self.shared.pin_index()?;
        Ok(ScanPin::new(view, index, guard))
    }

    /// The status of the state, all figures at one index.
    #[must_use]
    pub fn status(&self) -> ShardStatus {
        let view = self.shared.view.load();
        let Frontier { applied, log_time, counts, digest } = *view.active.read().frontier();
        let frozen = view.frozen.as_ref().map_or(0, |layer| layer.bytes());
        ShardStatus {
            applied,
            log_time,
            checkpoint: view.header.applied(),
            counts,
            digest,
            delta_bytes: view.active.bytes() + frozen,
        }
    }

    /// The digests at the last indexes that are a multiple of 1,024, oldest first, at most 16, of
    /// those passed since the shard was opened or a snapshot installed.
    #[must_use]
    pub fn marks(&self) -> Vec<(Index, u128)> {
        self.shared.marks.lock().all()
    }

    /// The header of the published checkpoint.
    #[must_use]
    pub fn header(&self) -> Arc<ShardHeader> {
        Arc::clone(&self.shared.view.load().header)
    }

    /// Reads the whole checkpoint from the tree and compares it with the counts and the digest in
    /// its header. `pace` is called with the bytes of each page read, and may sleep. One scrub of a
    /// shard runs at a time.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if the state differs from what was written.
    pub fn scrub(&self, pace: impl FnMut(u64)) -> Result<()> {
        let (header, counts, digest) = self.recount(pace)?;
        let Frontier { counts: expected, digest: sum, .. } = header.frontier;
        if counts != expected || digest != sum {
            return Err(StorageError::damaged(format!(
                "the state of {} at {} has {} rows with digest {digest:032x}, \
                 but its header says {} rows with digest {sum:032x}",
                header.group,
                header.applied(),
                counts.rows,
                expected.rows
            )));
        }
        Ok(())
    }

    /// Reads the whole checkpoint from the tree: its header, and the counts and the digest of the
    /// rows that are there. `pace` is as in [`ShardReader::scrub`].
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for a row that cannot be read.
    pub fn recount(&self, mut pace: impl FnMut(u64)) -> Result<(Arc<ShardHeader>, Counts, u128)> {
        let (view, guard) = self.shared.pin_checkpoint(PinKind::Scrub)?;
        let header = Arc::clone(&view.header);
        let mut digest = Digest::default();
        let mut counts = Counts::default();
        let mut rest = Some(Span::everything());
        while let Some(span) = rest {
            let page = versions::page(&view.generation.tree, &span, header.number, false)?;
            let mut bytes = 0;
            for (key, record) in &page.rows {
                let Some(record) = record else { continue };
                digest.add(key, record);
                counts.add(key, record);
                bytes += (key.as_bytes().len() + record.len()) as u64;
            }
            pace(bytes);
            rest = page.rest;
        }
        drop(guard);
        Ok((header, counts, digest.sum()))
    }
}
