//! Cleaning: removes the rows of a shard that no reader can see any more: superseded versions,
//! tombstones that hide nothing, and trees that an install has replaced.

use std::mem;
use std::sync::Arc;

use super::garbage::Garbage;
use super::generation::Generation;
use super::versions::{self, Piece};
use super::view::{Shared, View};
use crate::error::{Result, StorageError};
use crate::keys::{self, RowKey};

/// A job that cleans one shard, on any thread, concurrently with apply, readers and checkpoints.
#[derive(Debug)]
#[must_use = "a job does nothing until it is run"]
pub struct CleanJob {
    pub(crate) shared: Arc<Shared>,
}

impl CleanJob {
    /// Removes everything that can be removed now; the rest waits for the next cleaning. Each
    /// checkpoint begins with one.
    ///
    /// # Errors
    /// A failed write, after which the process ends; or damage.
    pub fn run(self) -> Result<()> {
        clean(&self.shared)
    }
}

/// See [`CleanJob::run`].
pub(crate) fn clean(shared: &Arc<Shared>) -> Result<()> {
    // Load the view after taking the garbage: a row is noted once its version is published.
    let mut garbage = mem::take(&mut *shared.garbage.lock());
    let mut left = Garbage::default();
    for generation in mem::take(&mut garbage.retired) {
        // Apart from this list only views hold it, and no new view of a replaced tree can be made.
        if Arc::strong_count(&generation) == 1 {
            let name = Generation::tree_name(shared.group, generation.number);
            shared.database.drop_tree(&name)?;
        } else {
            left.retired.push(generation);
        }
    }
    let view = shared.view.load_full();
    let mut cleaning = Cleaning::new(shared, &view);
    if garbage.sweep {
        cleaning.sweep(&mut left)?;
    }
    for row in garbage.rows {
        cleaning.row(&keys::row_prefix(&row), &mut left)?;
    }
    cleaning.tombstones()?;
    let done = left.is_empty();
    shared.garbage.lock().merge(left);
    if done {
        shared.occupied.set(view.header.frontier.counts.bytes);
        shared.write_cleaned(&view.header)?;
    }
    Ok(())
}

/// One pass over some rows.
struct Cleaning<'a> {
    shared: &'a Shared,
    view: &'a View,
    /// The checkpoints that must stay readable, in addition to the published one.
    pinned: Vec<u64>,
    /// Keys of tombstones that hide nothing after this pass.
    bare: Vec<Vec<u8>>,
}

impl<'a> Cleaning<'a> {
    fn new(shared: &'a Shared, view: &'a View) -> Cleaning<'a> {
        // A reader that pins from now on pins this checkpoint or a later one.
        let pinned = shared.pins.lock().numbers(view.header.generation);
        Cleaning { shared, view, pinned, bare: Vec::new() }
    }

    fn row(&mut self, prefix: &[u8], left: &mut Garbage) -> Result<()> {
        let tree = &self.view.generation.tree;
        let published = self.view.header.number;
        let mut pieces = versions::row_pieces(tree, prefix)?;
        // A checkpoint may be in progress; its versions are not published yet.
        pieces.retain(|piece| piece.number <= published);
        let Some(newest) = pieces.first() else { return Ok(()) };
        let (newest, bare) = (newest.number, newest.tombstone.then(|| newest.key.clone()));
        let kept = self.kept(&pieces);
        // Oldest first, so that at any time the remaining versions include the newest.
        for piece in pieces.iter().rev().filter(|piece| !kept.contains(&piece.number)) {
            tree.remove(&piece.key)?;
        }
        if kept.iter().any(|number| *number != newest) {
            let (plain, _) = keys::unescape(prefix).ok_or_else(|| {
                StorageError::damaged("a row of the state has an unrecognised key")
            })?;
            left.rows.extend(RowKey::from_bytes(plain.into()));
        } else {
            self.bare.extend(bare);
        }
        Ok(())
    }

    /// The versions to keep: for the published checkpoint and each pinned one the newest at or
    /// below it.
    fn kept(&self, pieces: &[Piece]) -> Vec<u64> {
        let newest_at = |at: u64| pieces.iter().map(|piece| piece.number).find(|n| *n <= at);
        let wanted = self.pinned.iter().copied().chain([self.view.header.number]);
        wanted.filter_map(newest_at).collect()
    }

    /// Removes the tombstones that hide nothing any more: the rows that they hid are durably
    /// removed.
    fn tombstones(self) -> Result<()> {
        if !self.bare.is_empty() {
            self.shared.database.barrier()?;
        }
        for key in self.bare {
            self.view.generation.tree.remove(&key)?;
        }
        Ok(())
    }

    fn sweep(&mut self, left: &mut Garbage) -> Result<()> {
        let mut from = Some(Vec::new());
        while let Some(at) = from {
            let (page, next) = versions::key_page(&self.view.generation.tree, &at)?;
            let mut prefixes: Vec<&[u8]> = page.iter().filter_map(|k| keys::prefix_of(k)).collect();
            prefixes.dedup();
            for prefix in prefixes {
                self.row(prefix, left)?;
            }
            from = next;
        }
        Ok(())
    }
}
