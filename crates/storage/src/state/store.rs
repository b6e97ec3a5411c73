//! The shard store: the state of one replica, with a single writer, and handles for its readers and
//! jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_raft::{GroupId, Index, LogId, Membership, ReplicaId, SnapshotMeta};

use super::budget::DeltaBudget;
use super::checkpoint::{CheckpointJob, Finished};
use super::clean::CleanJob;
use super::delta::Layer;
use super::digest::{Digest, Marks};
use super::garbage::Garbage;
use super::generation::Generation;
use super::header::{Frontier, HashRange, ShardHeader};
use super::intent::{CheckpointIntent, header_key, intent_key};
use super::pins::{PinKind, Pins};
use super::reader::ShardReader;
use super::scan::Scan;
use super::scan_pin::ScanPin;
use super::snapshot::{Installed, Installer, SnapshotSource};
use super::versions;
use super::view::{Generations, Occupied, Shared, View};
use crate::database::{Database, Tree};
use crate::error::{Result, StorageError};
use crate::keys::{RowKey, RowKind};

/// The tree of all shard headers of a node. Its name cannot be that of a shard's tree.
const HEADERS: &[u8] = b"shards";

/// The initial state of a shard: without rows, at index 0.
#[derive(Clone, Debug)]
pub struct ShardInit {
    /// The shard, which is also the group that replicates it.
    pub group: GroupId,
    /// The replica on this node.
    pub replica: ReplicaId,
    /// The first membership.
    pub membership: Membership,
    /// The hashes of the keys that the shard owns.
    pub range: HashRange,
    /// The epoch of that ownership.
    pub shard_epoch: u64,
}

/// The applied state of one replica: its tree at a checkpoint, and the delta since.
///
/// One thread applies entries to it; [`reader`](ShardStore::reader) gives handles to other threads.
/// Nothing is written to the disk per entry: entries after the last checkpoint are applied again
/// from the log when the shard is opened.
#[derive(Debug)]
pub struct ShardStore {
    shared: Arc<Shared>,
    /// The published view; only this store replaces it.
    view: Arc<View>,
    pub(super) frontier: Frontier,
    /// The running digest of `frontier`; it keeps its buffer from entry to entry.
    digest: Digest,
    membership: Membership,
}

impl ShardStore {
    /// Creates a shard; its header is durable when this returns.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] if the shard exists already, or a failed write.
    pub fn create(
        database: &Database,
        init: ShardInit,
        budget: Arc<DeltaBudget>,
    ) -> Result<ShardStore> {
        let headers = database.tree(HEADERS)?;
        let key = header_key(init.group);
        if headers.get(&key)?.is_some() {
            return Err(StorageError::Invalid {
                what: format!("shard {} exists already", init.group),
            });
        }
        // A tree without a header is left over from a crash; it is never reused.
        let names = database.tree_names();
        let used = names.iter().filter_map(|name| Generation::parse_name(name));
        let last = used.filter(|(group, _)| *group == init.group).map(|(_, number)| number).max();
        let header = ShardHeader {
            group: init.group,
            replica: init.replica,
            generation: last.map_or(1, |last| last + 1),
            number: 0,
            frontier: Frontier::default(),
            membership: init.membership,
            range: init.range,
            shard_epoch: init.shard_epoch,
            log_valid_from: Index(1),
        };
        let tree = database.tree(&Generation::tree_name(header.group, header.generation))?;
        database.barrier()?;
        headers.insert(&key, &header.encode()?)?;
        database.barrier()?;
        let intent = CheckpointIntent::none(&header);
        Ok(ShardStore::assemble(database, headers, tree, header, intent, budget))
    }

    /// Opens every shard that has a header, and removes the remains of unfinished checkpoints,
    /// installs and creations. A damaged shard is an error in the result, and nothing of it is
    /// removed.
    ///
    /// # Errors
    /// A failure of the database, which concerns all shards.
    pub fn open_all(
        database: &Database,
        budget: &Arc<DeltaBudget>,
    ) -> Result<BTreeMap<GroupId, Result<ShardStore>>> {
        let headers = database.tree(HEADERS)?;
        let mut found: BTreeMap<GroupId, Result<ShardHeader>> = BTreeMap::new();
        for entry in headers.range::<&[u8]>(..) {
            let (key, value) = entry?;
            if let Ok(key) = <[u8; 8]>::try_from(&key[..]) {
                let group = GroupId(u64::from_be_bytes(key));
                found.insert(group, ShardHeader::decode(group, &value));
            }
        }
        for name in database.tree_names() {
            let Some((group, number)) = Generation::parse_name(&name) else { continue };
            let leftover = match found.get(&group) {
                None => true,
                Some(Ok(header)) => header.generation != number,
                Some(Err(_)) => false,
            };
            if leftover {
                tracing::info!(
                    shard = group.0,
                    generation = number,
                    "tree: removing an unused one"
                );
                database.drop_tree(&name)?;
            }
        }
        let mut shards = BTreeMap::new();
        for (group, header) in found {
            let open = |header| ShardStore::open(database, &headers, header, Arc::clone(budget));
            match header.and_then(open) {
                Err(error) if error.is_fatal() => return Err(error),
                shard => shards.insert(group, shard),
            };
        }
        Ok(shards)
    }

    fn open(
        database: &Database,
        headers: &Tree,
        header: ShardHeader,
        budget: Arc<DeltaBudget>,
    ) -> Result<ShardStore> {
        let tree = database.tree(&Generation::tree_name(header.group, header.generation))?;
        let intent = headers.get(&intent_key(header.group))?;
        let intent = intent.map(|bytes| CheckpointIntent::decode(&bytes)).transpose()?;
        let intent = intent.filter(|intent| intent.generation == header.generation);
        let intent = intent.unwrap_or_else(|| CheckpointIntent::none(&header));
        if intent.begun > header.number {
            let removed = versions::remove_above(&tree, header.number)?;
            database.barrier()?;
            let shard = header.group.0;
            tracing::info!(shard, removed, "checkpoint: removed the versions of an unfinished one");
        }
        Ok(ShardStore::assemble(database, headers.clone(), tree, header, intent, budget))
    }

    fn assemble(
        database: &Database,
        headers: Tree,
        tree: Tree,
        header: ShardHeader,
        intent: CheckpointIntent,
        budget: Arc<DeltaBudget>,
    ) -> ShardStore {
        let mut garbage = Garbage::default();
        if intent.cleaned != header.number {
            garbage.sweep_all();
        }
        let (frontier, membership) = (header.frontier, header.membership.clone());
        let occupied = Occupied::new(garbage.is_empty().then_some(frontier.counts.bytes));
        let number = header.generation;
        let view = Arc::new(View {
            generation: Arc::new(Generation { number, tree, cache_id: budget.cache().new_id() }),
            header: Arc::new(header),
            frozen: None,
            active: Arc::new(Layer::new(frontier, Arc::clone(&budget))),
        });
        let shared = Arc::new(Shared {
            group: view.header.group,
            database: database.clone(),
            headers,
            budget,
            view: ArcSwap::new(Arc::clone(&view)),
            applied: AtomicU64::new(frontier.applied.index.0),
            marks: Mutex::default(),
            pins: Mutex::new(Pins::default()),
            garbage: Mutex::new(garbage),
            intent: Mutex::new(intent),
            generations: Mutex::new(Generations {
                durable: number,
                next: number + 1,
                installing: false,
            }),
            occupied,
        });
        let digest = Digest::from_sum(frontier.digest);
        ShardStore { shared, view, frontier, digest, membership }
    }

    /// The header of the last finished checkpoint.
    #[must_use]
    pub fn header(&self) -> &ShardHeader {
        &self.view.header
    }

    /// The last entry applied.
    #[must_use]
    pub fn applied(&self) -> LogId {
        self.frontier.applied
    }

    /// The log time of the last entry applied.
    #[must_use]
    pub fn log_time(&self) -> u64 {
        self.frontier.log_time
    }

    /// The digest of all live rows.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.frontier.digest
    }

    /// The frontier of the state.
    #[must_use]
    pub fn frontier(&self) -> Frontier {
        self.frontier
    }

    /// The membership as of the last entry applied.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Bytes of the delta that no running checkpoint is writing.
    #[must_use]
    pub fn active_bytes(&self) -> u64 {
        self.view.active.bytes()
    }

    /// Whether a frozen layer waits for its checkpoint to be finished.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.view.frozen.is_some()
    }

    /// A handle for readers on other threads.
    #[must_use]
    pub fn reader(&self) -> ShardReader {
        ShardReader::new(Arc::clone(&self.shared))
    }

    /// All rows of a kind, of all keyspaces, in order, for loading them into memory. The scan holds
    /// a pin.
    ///
    /// # Errors
    /// [`StorageError::TooManyPins`].
    pub fn rows(&self, kind: RowKind) -> Result<Scan> {
        let pin: ScanPin = self.reader().pin()?;
        Ok(Scan::of_kind(pin, kind))
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn get(&self, key: &RowKey) -> Result<Option<Bytes>> {
        self.shared.get(key)
    }

    /// The running digest, to be updated to the next frontier.
    pub(super) fn digest_mut(&mut self) -> &mut Digest {
        &mut self.digest
    }

    pub(super) fn apply(
        &mut self,
        writes: impl Iterator<Item = (RowKey, Option<Bytes>)>,
        frontier: Frontier,
        membership: Option<Membership>,
    ) {
        self.view.active.apply(writes, frontier, || self.shared.pins.lock().indexes());
        self.frontier = frontier;
        if Marks::is_due(frontier.applied.index) {
            self.shared.marks.lock().note(frontier.applied.index, frontier.digest);
        }
        if let Some(membership) = membership {
            self.membership = membership;
        }
        // Last, so that a reader that sees the index sees all writes up to it.
        self.shared.applied.store(frontier.applied.index.0, Ordering::Release);
    }

    /// Freezes the delta so that a checkpoint of it can be written; further entries are applied to
    /// a new one. `None` if nothing was applied since the last checkpoint, or if the last one is
    /// not finished.
    pub fn freeze(&mut self) -> Option<CheckpointJob> {
        if self.is_frozen() || self.frontier.applied == self.header().applied() {
            return None;
        }
        let layer = Arc::clone(&self.view.active);
        let header = ShardHeader {
            number: self.header().number + 1,
            frontier: self.frontier,
            membership: self.membership.clone(),
            ..self.header().clone()
        };
        let active = Arc::new(Layer::new(self.frontier, Arc::clone(&self.shared.budget)));
        let frozen = Some(Arc::clone(&layer));
        self.replace(View { frozen, active, ..(*self.view).clone() });
        let generation = Arc::clone(&self.view.generation);
        Some(CheckpointJob { shared: Arc::clone(&self.shared), generation, layer, header })
    }

    /// Drops the frozen layer, whose checkpoint is durable. Returns the last entry in the last
    /// checkpoint: the log may be purged through it.
    pub fn finish(&mut self, finished: Finished) -> LogId {
        let Finished { header, garbage } = finished;
        // An install may have been adopted since the job ran.
        if let Some(header) = header.filter(|h| h.generation == self.header().generation) {
            assert!(
                header.number == self.header().number + 1 && self.is_frozen(),
                "{}: checkpoint {} finished after {}",
                header.group,
                header.number,
                self.header().number
            );
            let header = Arc::new(header);
            self.replace(View { header, frozen: None, ..(*self.view).clone() });
            self.shared.garbage.lock().merge(garbage);
        }
        self.header().applied()
    }

    /// A job that removes superseded versions and replaced trees, if there may be any. Each
    /// checkpoint begins with the same, so it is only needed if no checkpoint follows soon.
    #[must_use]
    pub fn clean(&self) -> Option<CleanJob> {
        let nothing = self.shared.garbage.lock().is_empty();
        (!nothing).then(|| CleanJob { shared: Arc::clone(&self.shared) })
    }

    /// Pins the last checkpoint to send it as a snapshot; at most two at the same time. Dropping
    /// the source releases the pin.
    ///
    /// # Errors
    /// [`StorageError::TooManyPins`].
    pub fn pin_snapshot(&self) -> Result<SnapshotSource> {
        let (view, guard) = self.shared.pin_checkpoint(PinKind::Snapshot)?;
        Ok(SnapshotSource::new(view, guard))
    }

    /// Begins to install a snapshot into a new tree. The shard keeps its state until the result of
    /// [`Installer::finish`] is [adopted](ShardStore::adopt).
    ///
    /// # Errors
    /// [`StorageError::Invalid`] while another install is in progress, or for a snapshot that is
    /// behind the state; or a failed write.
    pub fn begin_install(&self, meta: SnapshotMeta) -> Result<Installer> {
        Installer::new(Arc::clone(&self.shared), meta)
    }

    /// Makes a finished install the state; readers see it from now on. No entry may be applied
    /// between [`Installer::finish`] and this.
    ///
    /// # Panics
    /// If entries after the snapshot were applied meanwhile.
    pub fn adopt(&mut self, installed: Installed) {
        let Installed { generation, header } = installed;
        let frontier = header.frontier;
        assert!(
            frontier.applied.index >= self.frontier.applied.index
                && header.generation > self.header().generation,
            "{}: a snapshot at {} adopted over {}",
            header.group,
            frontier.applied,
            self.frontier.applied
        );
        let replaced = Arc::clone(&self.view.generation);
        let active = Arc::new(Layer::new(frontier, Arc::clone(&self.shared.budget)));
        self.membership = header.membership.clone();
        self.frontier = frontier;
        self.digest = Digest::from_sum(frontier.digest);
        self.shared.marks.lock().clear();
        self.replace(View { generation, header, frozen: None, active });
        self.shared.applied.store(frontier.applied.index.0, Ordering::Release);
        self.shared.occupied.add(frontier.counts.bytes);
        let mut garbage = self.shared.garbage.lock();
        garbage.forget_rows();
        garbage.retire(replaced);
    }

    fn replace(&mut self, view: View) {
        self.view = Arc::new(view);
        self.shared.publish(Arc::clone(&self.view));
    }
}
