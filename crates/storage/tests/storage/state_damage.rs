//! Damaged rows and headers, and snapshots changed in transit: an error for that shard, with a
//! sentence, and nothing else is lost.

use std::sync::Arc;

use crate::model::*;
use bytes::Bytes;
use quorate_raft::{GroupId, ReplicaId, SnapshotMeta};
use quorate_storage::{
    Database, DeltaBudget, HashRange, RowKind, ScanRange, ShardInit, ShardStore, StorageError, Tree,
};

/// Twenty rows, one of them in pieces, in a checkpoint.
fn written(model: &mut Model, store: &mut ShardStore) {
    for n in 0..20u8 {
        let length = if n == 5 { 20_000 } else { 50 };
        model.apply(vec![Write::Put(user([b'k', n]), Bytes::from(vec![n; length]))]);
    }
    replay(store, model, model.applied());
    checkpoint(store).unwrap();
}

struct Fixture {
    _dir: tempfile::TempDir,
    database: Database,
    budget: Arc<DeltaBudget>,
    model: Model,
}

/// A shard with a checkpoint, closed again.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path());
    // Without a cache every read goes to the tree.
    let budget = Arc::new(DeltaBudget::with_cache(1 << 20, 0));
    let mut model = Model::default();
    written(&mut model, &mut create(&database, 1, &budget));
    Fixture { _dir: dir, database, budget, model }
}

impl Fixture {
    fn tree(&self) -> Tree {
        self.database.tree(b"s7/1").unwrap()
    }

    /// The tree keys and values, in order.
    fn entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = self.tree().range::<&[u8]>(..).map(|entry| entry.unwrap());
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    fn open(&self) -> ShardStore {
        open(&self.database, &self.budget)
    }
}

fn is_damaged<T>(result: Result<T, StorageError>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) => {
            assert!(!error.is_fatal(), "{error} would end the process");
            matches!(error, StorageError::Damaged { .. } | StorageError::NewerFormat { .. })
        }
    }
}

/// Checks that every reader of the whole state detects the damage.
fn assert_detected_by_all(store: &ShardStore) {
    assert!(is_damaged(store.reader().scrub(|_| {})), "scrub");
    let mut source = store.pin_snapshot().unwrap();
    let mut sent = std::iter::from_fn(|| source.next_chunk().transpose());
    assert!(sent.any(is_damaged), "snapshot");
}

#[test]
fn a_flipped_bit_in_a_row_is_an_error_of_that_row() {
    let fixture = fixture();
    for (at, (key, value)) in fixture.entries().into_iter().enumerate() {
        let mut flipped = value.clone();
        let bit = (at * 37) % (value.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        fixture.tree().insert(&key, &flipped).unwrap();
        let store = fixture.open();
        let row = quorate_storage::keys::VersionKey::decode(&key).unwrap().row;
        let reader = store.reader();
        assert!(is_damaged(reader.get(&row)), "bit {bit} of {row:?}");
        for other in fixture.model.newest().keys().filter(|other| **other != row) {
            assert_eq!(reader.get(other).unwrap().as_ref(), fixture.model.newest().get(other));
        }
        for reverse in [false, true] {
            let range =
                ScanRange { kind: RowKind::User, keyspace: 0, start: Bytes::new(), end: None };
            let mut scan = reader.pin().unwrap().scan(&range, reverse);
            assert!(is_damaged(scan.find(Result::is_err).unwrap()), "scan over {row:?}");
            assert!(scan.next().is_none(), "a scan ends with its error");
        }
        assert_detected_by_all(&store);
        fixture.tree().insert(&key, &value).unwrap();
    }
    fixture.open().reader().scrub(|_| {}).unwrap();
}

/// As a newer version may have written it, with valid checksums: no reader of the whole state
/// passes over it.
#[test]
fn a_row_of_an_unknown_kind_is_detected() {
    let fixture = fixture();
    let (mut key, mut value) = fixture.entries().swap_remove(0);
    for kind in 4..=9 {
        key[0] = kind;
        // The version's checksum is of its key without the piece, the frame's of all but itself.
        let of_key = crc32c::crc32c(&key[..key.len() - 2]);
        value[10..14].copy_from_slice(&of_key.to_le_bytes());
        let of_frame = crc32c::crc32c_append(crc32c::crc32c(&value[..1]), &value[5..]);
        value[1..5].copy_from_slice(&of_frame.to_le_bytes());
        fixture.tree().insert(&key, &value).unwrap();
        let store = fixture.open();
        let scrubbed = store.reader().scrub(|_| {}).unwrap_err();
        let mut source = store.pin_snapshot().unwrap();
        let sent = std::iter::from_fn(|| source.next_chunk().transpose()).find_map(Result::err);
        for error in [scrubbed, sent.expect("a snapshot")] {
            assert!(error.to_string().contains("an unrecognised key"), "kind {kind}: {error}");
        }
        fixture.tree().remove(&key).unwrap();
    }
    fixture.open().reader().scrub(|_| {}).unwrap();
}

#[test]
fn a_lost_piece_or_row_is_detected() {
    let fixture = fixture();
    for (key, value) in fixture.entries() {
        fixture.tree().remove(&key).unwrap();
        assert_detected_by_all(&fixture.open());
        fixture.tree().insert(&key, &value).unwrap();
    }
}

#[test]
fn a_row_in_place_of_another_is_detected() {
    let fixture = fixture();
    let entries = fixture.entries();
    let (here, there) = (&entries[0], &entries[1]);
    fixture.tree().insert(&there.0, &here.1).unwrap();
    let store = fixture.open();
    assert!(is_damaged(store.reader().get(&user([b'k', 1]))));
    assert_detected_by_all(&store);
}

#[test]
fn a_damaged_header_affects_only_its_shard() {
    let fixture = fixture();
    let init = ShardInit {
        group: GroupId(8),
        replica: ReplicaId(1),
        membership: membership(),
        range: HashRange::ALL,
        shard_epoch: 1,
    };
    drop(ShardStore::create(&fixture.database, init, Arc::clone(&fixture.budget)).unwrap());
    let headers = fixture.database.tree(b"shards").unwrap();
    let key = GROUP.0.to_be_bytes();
    let header = headers.get(&key).unwrap().unwrap().to_vec();
    for bit in 0..header.len() * 8 {
        let mut flipped = header.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        headers.insert(&key, &flipped).unwrap();
        let mut shards = ShardStore::open_all(&fixture.database, &fixture.budget).unwrap();
        assert!(is_damaged(shards.remove(&GROUP).unwrap()), "bit {bit}");
        assert!(shards.remove(&GroupId(8)).unwrap().is_ok());
    }
    headers.insert(&key, &header[..header.len() - 1]).unwrap();
    let mut shards = ShardStore::open_all(&fixture.database, &fixture.budget).unwrap();
    let error = shards.remove(&GROUP).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "damaged: the header of g7 is cut short");
    // Nothing of a damaged shard was removed: with its header it is intact again.
    headers.insert(&key, &header).unwrap();
    let mut shards = ShardStore::open_all(&fixture.database, &fixture.budget).unwrap();
    let store = shards.remove(&GROUP).unwrap().unwrap();
    assert_state(&store, fixture.model.applied(), fixture.model.newest());
}

#[test]
fn a_shard_is_created_once_and_never_on_a_leftover_tree() {
    let fixture = fixture();
    let init = ShardInit {
        group: GROUP,
        replica: ReplicaId(9),
        membership: membership(),
        range: HashRange::ALL,
        shard_epoch: 1,
    };
    let again = ShardStore::create(&fixture.database, init.clone(), Arc::clone(&fixture.budget));
    let error = again.unwrap_err();
    assert_eq!(error.to_string(), "invalid storage request: shard g7 exists already");
    fixture.database.tree(b"shards").unwrap().remove(&GROUP.0.to_be_bytes()).unwrap();
    let store = ShardStore::create(&fixture.database, init, Arc::clone(&fixture.budget)).unwrap();
    assert_state(&store, 0, &State::new());
    drop(store);
    let store = fixture.open();
    assert_state(&store, 0, &State::new());
    assert_eq!(fixture.database.tree_names().len(), 2, "the tree without a header is removed");
}

/// A snapshot of three chunks of rows, and its receiving replica, which has rows of its own.
struct Transfer {
    from: Fixture,
    meta: SnapshotMeta,
    chunks: Vec<Bytes>,
    to: Fixture,
    store: ShardStore,
}

fn transfer() -> Transfer {
    let mut from = fixture();
    let mut store = from.open();
    for n in 0..6 {
        let write = Write::Put(user(format!("long {n}")), Bytes::from(vec![n; 100_000]));
        from.model.apply(vec![write]);
    }
    replay(&mut store, &from.model, from.model.applied());
    checkpoint(&mut store).unwrap();
    let mut source = store.pin_snapshot().unwrap();
    let chunks: Vec<_> = std::iter::from_fn(|| source.next_chunk().unwrap()).collect();
    assert!(chunks.len() >= 5, "head, at least three of rows, tail: {}", chunks.len());
    assert!(chunks.iter().all(|chunk| chunk.len() <= 256 << 10));
    let to = fixture();
    let mut there = to.open();
    replay(&mut there, &to.model, to.model.applied());
    Transfer { meta: source.meta(), from, chunks, to, store: there }
}

impl Transfer {
    fn install(&mut self, chunks: &[Bytes]) -> Result<(), StorageError> {
        let mut installer = self.store.begin_install(self.meta.clone())?;
        for chunk in chunks {
            installer.write(chunk)?;
        }
        let installed = installer.finish()?;
        self.store.adopt(installed);
        Ok(())
    }

    fn assert_rejected(&mut self, chunks: &[Bytes], what: &str) {
        let error = self.install(chunks).expect_err(what);
        assert!(matches!(error, StorageError::BadSnapshot { .. }), "{what}: {error}");
        assert_state(&self.store, self.to.model.applied(), self.to.model.newest());
        let names = self.to.database.tree_names();
        assert_eq!(names.len(), 2, "{what} has left {names:?}");
    }
}

#[test]
fn a_snapshot_changed_in_transit_is_rejected() {
    let mut transfer = transfer();
    let whole = transfer.chunks.clone();
    for at in 0..whole.len() {
        let mut lost = whole.clone();
        lost.remove(at);
        transfer.assert_rejected(&lost, &format!("chunk {at} lost"));
        let mut twice = whole.clone();
        twice.insert(at, whole[at].clone());
        transfer.assert_rejected(&twice, &format!("chunk {at} twice"));
        let mut swapped = whole.clone();
        swapped.swap(at, (at + 1) % whole.len());
        transfer.assert_rejected(&swapped, &format!("chunk {at} swapped"));
        let mut flipped = whole[at].to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 16;
        let mut chunks = whole.clone();
        chunks[at] = flipped.into();
        transfer.assert_rejected(&chunks, &format!("a bit of chunk {at} flipped"));
        let mut cut = whole.clone();
        cut[at] = cut[at].slice(..cut[at].len() - 1);
        transfer.assert_rejected(&cut, &format!("chunk {at} cut short"));
    }
    // Then the unchanged one.
    transfer.install(&whole).unwrap();
    let Transfer { from, to, store, .. } = transfer;
    assert_state(&store, from.model.applied(), from.model.newest());
    drop(store);
    let store = to.open();
    assert_state(&store, from.model.applied(), from.model.newest());
    store.reader().scrub(|_| {}).unwrap();
}

#[test]
fn a_snapshot_other_than_the_announced_one_is_rejected() {
    let mut transfer = transfer();
    let (meta, chunks) = (transfer.meta.clone(), transfer.chunks.clone());
    for (what, other) in [
        ("index", SnapshotMeta { last: log_id(transfer.meta.last.index.0 + 1), ..meta.clone() }),
        ("log time", SnapshotMeta { stamp: meta.stamp + 1, ..meta.clone() }),
        ("membership", SnapshotMeta { membership: Default::default(), ..meta.clone() }),
    ] {
        transfer.meta = other;
        transfer.assert_rejected(&chunks, what);
    }
    transfer.meta = meta.clone();
    // Behind the state: rejected before a byte is written.
    let past = SnapshotMeta { last: log_id(transfer.to.model.applied() - 1), ..meta.clone() };
    let error = transfer.store.begin_install(past).unwrap_err();
    assert!(matches!(error, StorageError::Invalid { .. }), "{error}");
    // One at a time.
    let first = transfer.store.begin_install(meta.clone()).unwrap();
    let error = transfer.store.begin_install(meta).unwrap_err();
    assert!(matches!(error, StorageError::Invalid { .. }), "{error}");
    drop(first);
    transfer.install(&chunks).unwrap();
}

#[test]
fn an_install_left_by_a_crash_is_removed() {
    let transfer = transfer();
    let mut installer = transfer.store.begin_install(transfer.meta.clone()).unwrap();
    transfer.chunks[..3].iter().for_each(|chunk| installer.write(chunk).unwrap());
    assert_eq!(transfer.to.database.tree_names().len(), 3);
    // As if the process had ended here: nothing is dropped.
    std::mem::forget(installer);
    let store = transfer.to.open();
    assert_eq!(transfer.to.database.tree_names().len(), 2);
    assert_state(&store, transfer.to.model.applied(), transfer.to.model.newest());
}

#[test]
fn a_checkpoint_that_ends_after_an_install_changes_nothing() {
    let mut transfer = transfer();
    let index = transfer.to.model.applied() + 1;
    transfer.to.model.apply(vec![Write::Delete(user([b'k', 0]))]);
    replay(&mut transfer.store, &transfer.to.model, index);
    let job = transfer.store.freeze().unwrap();
    let mut installer = transfer.store.begin_install(transfer.meta.clone()).unwrap();
    transfer.chunks.iter().for_each(|chunk| installer.write(chunk).unwrap());
    let installed = installer.finish().unwrap();
    let finished = job.run().unwrap();
    // The snapshot is the durable state, whether or not the process continues.
    let Transfer { from, to, mut store, .. } = transfer;
    let last = from.model.applied();
    store.adopt(installed);
    assert_eq!(store.finish(finished).index.0, last);
    assert_state(&store, last, from.model.newest());
    drop(store);
    assert_state(&to.open(), last, from.model.newest());
}
