//! Views: the state of a shard that its readers see, a tree at a checkpoint and the delta on top of
//! it.
//!
//! A [`View`] is immutable except for its active layer, to which entries are applied under that
//! layer's lock. Freezing, finishing a checkpoint and adopting an install replace the view. A row
//! is looked up in the active layer, the frozen one, the value cache and the tree.
//!
//! **The cache** holds, for a row that is in neither layer, the row of the tree at the view's
//! checkpoint. It is never stale, because
//! - a checkpoint puts every row of the frozen layer into the cache, after freezing and before the
//!   view without that layer; until then the layer itself answers for these rows;
//! - a reader caches a row that it read from the tree only if, under the row's cache lock, the view
//!   still has that checkpoint and its frozen layer does not have the row. (If the checkpoint had
//!   already put a newer record, the layer would be frozen, or the checkpoint would be another.)
//!
//! **Versions** in the tree are removed only when there is a newer version at or below the
//! published checkpoint and no pin needs them. An unpinned read may run while the checkpoint
//! changes: it checks the view again after reading, and starts over if it has changed.

use std::cmp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_raft::GroupId;

use super::budget::DeltaBudget;
use super::delta::Layer;
use super::digest::Marks;
use super::garbage::Garbage;
use super::generation::Generation;
use super::header::ShardHeader;
use super::intent::CheckpointIntent;
use super::pins::{PinKind, Pins};
use super::versions;
use crate::database::{Database, Tree};
use crate::error::Result;
use crate::keys::RowKey;

/// The result of looking up a row without touching the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The row's record.
    Found(Bytes),
    /// The row does not exist.
    Absent,
    /// The row has to be read from the tree, which may wait for the disk.
    Tree,
}

impl Lookup {
    fn known(record: Option<Bytes>) -> Lookup {
        record.map_or(Lookup::Absent, Lookup::Found)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) generation: Arc<Generation>,
    /// The checkpoint; a view with the same `Arc` has the same checkpoint.
    pub(crate) header: Arc<ShardHeader>,
    pub(crate) frozen: Option<Arc<Layer>>,
    pub(crate) active: Arc<Layer>,
}

impl View {
    pub(crate) fn same_checkpoint(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.header, &other.header)
    }
}

/// The state shared by the writer, the readers and the jobs of a shard.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) group: GroupId,
    pub(crate) database: Database,
    /// The tree of all shard headers of the node.
    pub(crate) headers: Tree,
    pub(crate) budget: Arc<DeltaBudget>,
    pub(crate) view: ArcSwap<View>,
    /// The index of the last entry applied and visible.
    pub(crate) applied: AtomicU64,
    /// The digests by which replicas that apply are compared.
    pub(crate) marks: Mutex<Marks>,
    pub(crate) pins: Mutex<Pins>,
    pub(crate) garbage: Mutex<Garbage>,
    /// The intent record as it was last written.
    pub(crate) intent: Mutex<CheckpointIntent>,
    /// The generation that the durable header names, and the next one to use. This lock is held
    /// while a header is inserted, so that a checkpoint of a replaced tree cannot undo an install.
    pub(crate) generations: Mutex<Generations>,
    /// The bytes in the shard's trees; see [`Occupied`].
    pub(crate) occupied: Occupied,
}

/// Bytes that a shard takes in the database: its live rows and, while there may be superseded
/// versions, also everything written since the last cleaning.
#[derive(Debug)]
pub(crate) struct Occupied(AtomicU64);

impl Occupied {
    const UNKNOWN: u64 = u64::MAX;

    /// `None` if there may be uncounted versions.
    pub(crate) fn new(bytes: Option<u64>) -> Occupied {
        Occupied(AtomicU64::new(bytes.unwrap_or(Self::UNKNOWN)))
    }

    pub(crate) fn get(&self) -> Option<u64> {
        let bytes = self.0.load(Ordering::Relaxed);
        (bytes != Self::UNKNOWN).then_some(bytes)
    }

    pub(crate) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        // Unknown stays unknown.
        self.0.fetch_max(self.0.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    }
}

/// See [`Shared::generations`].
#[derive(Debug)]
pub(crate) struct Generations {
    pub(crate) durable: u64,
    pub(crate) next: u64,
    /// Whether a snapshot is being installed.
    pub(crate) installing: bool,
}

/// A held pin; dropping it releases the pin.
#[derive(Debug)]
pub(crate) struct PinGuard {
    shared: Arc<Shared>,
    id: u64,
}

impl PinGuard {
    fn new(shared: Arc<Shared>, id: u64) -> PinGuard {
        PinGuard { shared, id }
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        self.shared.pins.lock().remove(self.id);
    }
}

impl Shared {
    /// Records that the versions of a checkpoint are about to be written; a barrier must follow
    /// before they are.
    pub(crate) fn write_intent(&self, header: &ShardHeader) -> Result<()> {
        let mut intent = self.intent.lock();
        if intent.generation != header.generation {
            *intent = CheckpointIntent { generation: header.generation, begun: 0, cleaned: 0 };
        }
        intent.begun = header.number;
        intent.write(&self.headers, self.group)
    }

    /// Records that nothing is left to clean up after a checkpoint.
    pub(crate) fn write_cleaned(&self, header: &ShardHeader) -> Result<()> {
        let mut intent = self.intent.lock();
        match intent.generation.cmp(&header.generation) {
            cmp::Ordering::Less => *intent = CheckpointIntent::none(header),
            cmp::Ordering::Equal => intent.cleaned = header.number,
            cmp::Ordering::Greater => return Ok(()),
        }
        intent.write(&self.headers, self.group)
    }

    /// Looks a row up without touching the tree.
    pub(crate) fn lookup(&self, view: &View, key: &RowKey) -> Lookup {
        if let Some(record) = view.active.read().newest(key) {
            return Lookup::known(record.clone());
        }
        if let Some(frozen) = &view.frozen
            && let Some(record) = frozen.read().newest(key)
        {
            return Lookup::known(record.clone());
        }
        let cached = self.budget.cache().get(view.generation.cache_id, key);
        cached.map_or(Lookup::Tree, Lookup::known)
    }

    /// Reads a row, from the tree if need be.
    pub(crate) fn get(&self, key: &RowKey) -> Result<Option<Bytes>> {
        loop {
            let view = self.view.load();
            match self.lookup(&view, key) {
                Lookup::Found(record) => return Ok(Some(record)),
                Lookup::Absent => return Ok(None),
                Lookup::Tree => {}
            }
            if let Some(record) = self.read_tree(&view, key)? {
                return Ok(record);
            }
        }
    }

    /// Reads a row that is in none of a view's layers from its tree, and caches it. `None` if the
    /// view's checkpoint is no longer the published one: the row may have been removed during the
    /// read.
    fn read_tree(&self, view: &View, key: &RowKey) -> Result<Option<Option<Bytes>>> {
        let read = versions::read(&view.generation.tree, key, view.header.number);
        if !view.same_checkpoint(&self.view.load()) {
            return Ok(None);
        }
        let record = read?.flatten();
        self.budget.cache().put(view.generation.cache_id, key, record.as_ref(), || {
            let now = self.view.load();
            view.same_checkpoint(&now)
                && !now.frozen.as_ref().is_some_and(|layer| layer.read().contains(key))
        });
        Ok(Some(record))
    }

    /// Pins the state at the last applied index.
    pub(crate) fn pin_index(self: &Arc<Self>) -> Result<(Arc<View>, u64, PinGuard)> {
        loop {
            let view = self.view.load_full();
            let rows = view.active.read();
            let index = rows.frontier().applied.index.0;
            let mut pins = self.pins.lock();
            // Views are replaced under the pins' lock: if this view is not current, it was not
            // pinned in time, and its versions may be being removed.
            if !Arc::ptr_eq(&view, &self.view.load()) {
                continue;
            }
            let header = &view.header;
            let id = pins.add(PinKind::Scan, header.generation, header.number, Some(index))?;
            drop(pins);
            drop(rows);
            return Ok((view, index, PinGuard::new(Arc::clone(self), id)));
        }
    }

    /// Pins the published checkpoint.
    pub(crate) fn pin_checkpoint(self: &Arc<Self>, kind: PinKind) -> Result<(Arc<View>, PinGuard)> {
        let mut pins = self.pins.lock();
        let view = self.view.load_full();
        let id = pins.add(kind, view.header.generation, view.header.number, None)?;
        drop(pins);
        Ok((view, PinGuard::new(Arc::clone(self), id)))
    }

    /// Replaces the view.
    pub(crate) fn publish(&self, view: Arc<View>) {
        let _pins = self.pins.lock();
        self.view.store(view);
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{Index, LogId, Membership, ReplicaId, Term};

    use super::*;
    use crate::database::DatabaseOptions;
    use crate::keys::RowKind;
    use crate::state::{HashRange, ShardInit, ShardStore};

    fn put(store: &mut ShardStore, key: &RowKey, record: &[u8]) {
        let index = Index(store.applied().index.0 + 1);
        let mut transaction = store.begin(LogId::new(Term(1), index), index.0);
        transaction.put(key, record).unwrap();
        transaction.commit();
    }

    /// A store whose tree has a row; its view; and the row's key.
    fn stored(dir: &std::path::Path) -> (ShardStore, Arc<View>, RowKey) {
        let database = Database::open(dir, DatabaseOptions::default()).unwrap();
        let init = ShardInit {
            group: GroupId(1),
            replica: ReplicaId(1),
            membership: Membership::default(),
            range: HashRange::ALL,
            shard_epoch: 1,
        };
        let mut store = ShardStore::create(&database, init, Arc::default()).unwrap();
        let key = RowKey::new(RowKind::User, 0, b"key");
        put(&mut store, &key, b"old");
        checkpoint(&mut store);
        let view = store.shared().view.load_full();
        (store, view, key)
    }

    fn checkpoint(store: &mut ShardStore) {
        let finished = store.freeze().unwrap().run().unwrap();
        store.finish(finished);
    }

    #[test]
    fn a_read_starts_over_when_its_checkpoint_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, view, key) = stored(dir.path());
        assert_eq!(store.shared().read_tree(&view, &key).unwrap(), Some(Some("old".into())));
        put(&mut store, &key, b"new");
        checkpoint(&mut store);
        store.clean().unwrap().run().unwrap();
        // The version that the old view names has been removed; it is not "absent".
        assert_eq!(store.shared().read_tree(&view, &key).unwrap(), None);
        assert_eq!(store.shared().get(&key).unwrap(), Some("new".into()));
    }

    #[test]
    fn a_late_read_does_not_cache_an_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, view, key) = stored(dir.path());
        put(&mut store, &key, b"new");
        let finished = store.freeze().unwrap().run().unwrap();
        // The checkpoint has put the new record into the cache and is not finished.
        let late = store.shared().read_tree(&view, &key).unwrap();
        assert_eq!(late, Some(Some("old".into())), "as of the view that it began with");
        store.finish(finished);
        assert_eq!(store.shared().get(&key).unwrap(), Some("new".into()));
    }

    #[test]
    fn tree_names_are_read_as_they_are_written() {
        let name = Generation::tree_name(GroupId(12), 34);
        assert_eq!(name, b"s12/34");
        assert_eq!(Generation::parse_name(&name), Some((GroupId(12), 34)));
        for other in ["shards", "s1", "s1/", "s/1", "s01/1", "s1/1/1", "x1/1", "s1/-1"] {
            assert_eq!(Generation::parse_name(other.as_bytes()), None, "{other}");
        }
    }
}
