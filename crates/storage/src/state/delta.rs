//! Delta layers: the writes to a shard since a checkpoint, in memory.
//!
//! A layer is *active* while entries are applied to it, then *frozen* while a checkpoint writes it
//! to the tree. A frozen layer never changes; readers that still need it hold it by its `Arc`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use quorate_raft::SMALL_BYTES;

use super::budget::{DeltaBudget, Grown};
use super::header::Frontier;
use super::versions::{PAGE_BYTES, PAGE_ROWS, Page, Span};
use crate::keys::RowKey;

/// The overhead in bytes of the first version of a row: its slot in the map (at a usual fill), the
/// chain, and the headers of two buffers.
const ROW_OVERHEAD: u64 = 240;
/// The overhead in bytes of each further version of a row.
const VERSION_OVERHEAD: u64 = 112;

/// The most rows that one page visits while it holds the layer's lock.
const VISITED_MAX: usize = 512;

/// A row's record as an entry left it; `None` is a deletion.
#[derive(Clone, Debug)]
struct Version {
    index: u64,
    record: Option<Bytes>,
}

impl Version {
    fn bytes(&self) -> u64 {
        self.record.as_ref().map_or(0, Bytes::len) as u64
    }

    /// Its bytes, if they are many.
    fn large(&self) -> u64 {
        Some(self.bytes()).filter(|bytes| *bytes > SMALL_BYTES).unwrap_or(0)
    }
}

/// The versions of one row in one layer.
#[derive(Debug)]
struct Chain {
    newest: Version,
    /// Versions that a pinned reader still needs, oldest first. Empty unless there are pins.
    older: Vec<Version>,
}

impl Chain {
    /// The newest version that an entry at or before `index` wrote.
    fn at(&self, index: u64) -> Option<&Version> {
        if self.newest.index <= index {
            return Some(&self.newest);
        }
        self.older.iter().rev().find(|version| version.index <= index)
    }

    /// Adds a version and drops those that no pin needs. A pin needs the newest version at or
    /// before its index. Returns the growth of the chain.
    fn push(&mut self, next: Version, pins: &[u64]) -> Grown {
        let before = (self.bytes(), self.large());
        let top = next.index;
        assert!(top > self.newest.index, "version {top} written on top of {}", self.newest.index);
        if pins.is_empty() {
            *self = Chain { newest: next, older: Vec::new() };
            return self.grown(before);
        }
        self.older.push(std::mem::replace(&mut self.newest, next));
        let mut until = top;
        for at in (0..self.older.len()).rev() {
            let from = self.older[at].index;
            if pins.iter().any(|pin| (from..until).contains(pin)) {
                until = from;
            } else {
                // There is no pin between the dropped version and `until`, so `until` bounds the
                // version below it as well.
                self.older.remove(at);
            }
        }
        if self.older.is_empty() {
            self.older = Vec::new();
        }
        self.grown(before)
    }

    /// Its growth, given its bytes before and how many of them were large.
    fn grown(&self, (bytes, large): (u64, u64)) -> Grown {
        let all = self.bytes() as i64 - bytes as i64;
        Grown { all, large: self.large() as i64 - large as i64 }
    }

    fn bytes(&self) -> u64 {
        let older: u64 = self.older.iter().map(|old| old.bytes() + VERSION_OVERHEAD).sum();
        self.newest.bytes() + older
    }

    fn large(&self) -> u64 {
        self.older.iter().map(Version::large).sum::<u64>() + self.newest.large()
    }
}

/// The rows of a layer, and the frontier of the shard's state with them.
#[derive(Debug)]
pub(crate) struct Rows {
    map: BTreeMap<RowKey, Chain>,
    /// The frontier after the last entry applied to this layer or, before the first one, the
    /// frontier at which the layer began.
    frontier: Frontier,
    bytes: u64,
    /// How many of them are large records.
    large: u64,
}

impl Rows {
    pub(crate) fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// The newest record of a row: `None` if the row is not in this layer, `Some(None)` if it was
    /// deleted here.
    pub(crate) fn newest(&self, key: &RowKey) -> Option<&Option<Bytes>> {
        self.map.get(key).map(|chain| &chain.newest.record)
    }

    /// The record of a row as of `index`.
    pub(crate) fn at(&self, key: &RowKey, index: u64) -> Option<&Option<Bytes>> {
        self.map.get(key)?.at(index).map(|version| &version.record)
    }

    /// The next rows of `span` as of `index`.
    pub(crate) fn page(&self, span: &Span, index: u64, reverse: bool) -> Page {
        let mut page = Page::default();
        if span.is_empty() {
            return page;
        }
        let high = span.high.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.map.range::<RowKey, _>((span.low.as_ref(), high));
        let mut bytes = 0;
        for visited in 1.. {
            let next = if reverse { range.next_back() } else { range.next() };
            let Some((key, chain)) = next else { break };
            if let Some(version) = chain.at(index) {
                bytes += key.as_bytes().len() + version.bytes() as usize;
                page.rows.push((key.clone(), version.record.clone()));
            }
            if page.rows.len() >= PAGE_ROWS || bytes >= PAGE_BYTES || visited >= VISITED_MAX {
                page.rest = span.after(key.clone(), reverse);
                break;
            }
        }
        page
    }

    /// All rows with their newest record, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&RowKey, Option<&Bytes>)> {
        self.map.iter().map(|(key, chain)| (key, chain.newest.record.as_ref()))
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn contains(&self, key: &RowKey) -> bool {
        self.map.contains_key(key)
    }

    /// Applies the writes of one entry. `pins` are the indexes that readers have pinned; no reader
    /// can pin this layer while its lock is held for writing.
    fn apply(
        &mut self,
        writes: impl Iterator<Item = (RowKey, Option<Bytes>)>,
        frontier: Frontier,
        pins: &[u64],
    ) -> Grown {
        let index = frontier.applied.index.0;
        let mut grown = Grown::default();
        for (key, record) in writes {
            let version = Version { index, record };
            match self.map.entry(key) {
                Entry::Occupied(mut chain) => {
                    let by = chain.get_mut().push(version, pins);
                    grown.all += by.all;
                    grown.large += by.large;
                }
                Entry::Vacant(row) => {
                    let bytes = row.key().as_bytes().len() as u64 + version.bytes();
                    grown.all += (bytes + ROW_OVERHEAD) as i64;
                    grown.large += version.large() as i64;
                    row.insert(Chain { newest: version, older: Vec::new() });
                }
            }
        }
        self.frontier = frontier;
        for (count, by) in [(&mut self.bytes, grown.all), (&mut self.large, grown.large)] {
            *count = count
                .checked_add_signed(by)
                .unwrap_or_else(|| unreachable!("a layer of {count} bytes grew by {by}"));
        }
        grown
    }
}

/// A layer that counts its bytes against the node's budget until its last holder drops it.
#[derive(Debug)]
pub(crate) struct Layer {
    rows: RwLock<Rows>,
    budget: Arc<DeltaBudget>,
}

impl Layer {
    /// An empty layer on top of the state at `frontier`.
    pub(crate) fn new(frontier: Frontier, budget: Arc<DeltaBudget>) -> Layer {
        let rows = Rows { map: BTreeMap::new(), frontier, bytes: 0, large: 0 };
        Layer { rows: RwLock::new(rows), budget }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read()
    }

    /// The bytes that this layer counts against the budget.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows.read().bytes
    }

    /// Applies the writes of one entry, which become visible atomically. `pins` is called for the
    /// pinned indexes while no reader can pin this layer.
    pub(crate) fn apply(
        &self,
        writes: impl Iterator<Item = (RowKey, Option<Bytes>)>,
        frontier: Frontier,
        pins: impl FnOnce() -> Vec<u64>,
    ) {
        let mut rows = self.rows.write();
        let pins = pins();
        let grown = rows.apply(writes, frontier, &pins);
        drop(rows);
        self.budget.grow(grown);
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let Rows { bytes, large, .. } = *self.rows.get_mut();
        self.budget.grow(Grown { all: -(bytes as i64), large: -(large as i64) });
    }
}
