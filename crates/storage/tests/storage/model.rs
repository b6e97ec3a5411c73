//! An obviously correct twin of a shard's state: every state it ever had, as an ordered map.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_raft::{GroupId, Index, LogId, Membership, NodeId, Replica, ReplicaId, Term};
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, HashRange, RowKey, RowKind, ScanPin, ScanRange,
    ShardInit, ShardStore, StorageError,
};
use xxhash_rust::xxh3::xxh3_128;

pub const GROUP: GroupId = GroupId(7);

/// One state: rows by their key.
pub type State = BTreeMap<RowKey, Bytes>;

/// The effect of an entry on one row.
#[derive(Clone, Debug)]
pub enum Write {
    Put(RowKey, Bytes),
    Delete(RowKey),
    /// Puts the second record if the row's record is the first.
    CompareAndSet(RowKey, Option<Bytes>, Bytes),
}

impl Write {
    fn key(&self) -> &RowKey {
        match self {
            Write::Put(key, _) | Write::Delete(key) | Write::CompareAndSet(key, ..) => key,
        }
    }
}

/// All states of a shard, by applied index, and the entries that led from one to the next.
#[derive(Clone, Debug)]
pub struct Model {
    pub states: Vec<State>,
    pub entries: Vec<Vec<Write>>,
}

impl Default for Model {
    fn default() -> Model {
        Model { states: vec![State::new()], entries: Vec::new() }
    }
}

impl Model {
    pub fn applied(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn at(&self, index: u64) -> &State {
        &self.states[index as usize]
    }

    pub fn newest(&self) -> &State {
        self.at(self.applied())
    }

    /// Applies an entry; returns for each write whether it took effect.
    pub fn apply(&mut self, writes: Vec<Write>) -> Vec<bool> {
        let mut state = self.newest().clone();
        let outcomes = writes.iter().map(|write| apply_to_map(&mut state, write)).collect();
        self.states.push(state);
        self.entries.push(writes);
        outcomes
    }
}

fn apply_to_map(state: &mut State, write: &Write) -> bool {
    match write {
        Write::Put(key, record) => {
            state.insert(key.clone(), record.clone());
            true
        }
        Write::Delete(key) => state.remove(key).is_some(),
        Write::CompareAndSet(key, expected, record) => {
            let holds = state.get(key) == expected.as_ref();
            if holds {
                state.insert(key.clone(), record.clone());
            }
            holds
        }
    }
}

/// Applies an entry to the store; returns for each write whether it took effect. A row that does
/// not exist yet is inserted with `insert_new`.
pub fn apply_to_store(store: &mut ShardStore, index: u64, writes: &[Write]) -> Vec<bool> {
    let reader = store.reader();
    let is_new = |at: usize, key: &RowKey| {
        writes[..at].iter().all(|write| write.key() != key) && reader.get(key).unwrap().is_none()
    };
    let mut transaction = store.begin(log_id(index), stamp(index));
    let mut outcomes = Vec::new();
    for (at, write) in writes.iter().enumerate() {
        let took_effect = match write {
            Write::Put(key, record) if is_new(at, key) => {
                transaction.insert_new(key, record).unwrap();
                true
            }
            Write::Put(key, record) => {
                transaction.put(key, record).unwrap();
                true
            }
            Write::Delete(key) => {
                let there = transaction.get(key).unwrap().is_some();
                transaction.delete(key).unwrap();
                there
            }
            Write::CompareAndSet(key, expected, record) => {
                let holds = transaction.get(key).unwrap() == *expected;
                if holds {
                    transaction.put(key, record).unwrap();
                }
                holds
            }
        };
        outcomes.push(took_effect);
    }
    transaction.commit();
    outcomes
}

/// Applies the model's entries that the store has not applied, and compares their outcomes.
pub fn replay(store: &mut ShardStore, model: &Model, through: u64) {
    let mut twin = Model::default();
    for (at, writes) in model.entries[..through as usize].iter().enumerate() {
        let index = at as u64 + 1;
        let expected = twin.apply(writes.clone());
        if index > store.applied().index.0 {
            let outcomes = apply_to_store(store, index, writes);
            assert_eq!(outcomes, expected, "outcomes of entry {index}");
        }
    }
}

pub fn log_id(index: u64) -> LogId {
    LogId::new(Term(1 + index / 10), Index(index))
}

pub fn stamp(index: u64) -> u64 {
    if index == 0 { 0 } else { index * 1000 + 7 }
}

/// The documented digest, implemented independently.
pub fn digest(state: &State) -> u128 {
    state.iter().fold(0u128, |sum, (key, record)| {
        let mut framed = (key.as_bytes().len() as u32).to_le_bytes().to_vec();
        framed.extend_from_slice(key.as_bytes());
        framed.extend_from_slice(record);
        sum.wrapping_add(xxh3_128(&framed))
    })
}

pub fn user(key: impl AsRef<[u8]>) -> RowKey {
    RowKey::new(RowKind::User, 0, key.as_ref())
}

/// Opens a database. A database that this process has just dropped may hold the directory's lock
/// until its last thread has ended, so this waits for it.
pub fn open_database(dir: &Path) -> Database {
    let options = DatabaseOptions { cache_bytes: 8 << 20, ..DatabaseOptions::default() };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Database::open(dir, options.clone()) {
            Err(StorageError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.unwrap(),
        }
    }
}

pub fn membership() -> Membership {
    Membership::of_voters((1..=3).map(|n| Replica::new(ReplicaId(n), NodeId(n))))
}

pub fn create(database: &Database, replica: u64, budget: &Arc<DeltaBudget>) -> ShardStore {
    let init = ShardInit {
        group: GROUP,
        replica: ReplicaId(replica),
        membership: membership(),
        range: HashRange { first: 16, last: 255 },
        shard_epoch: 3,
    };
    ShardStore::create(database, init, Arc::clone(budget)).unwrap()
}

/// Opens the only shard.
pub fn open(database: &Database, budget: &Arc<DeltaBudget>) -> ShardStore {
    let mut shards = ShardStore::open_all(database, budget).unwrap();
    assert_eq!(shards.keys().collect::<Vec<_>>(), [&GROUP]);
    shards.remove(&GROUP).unwrap().unwrap()
}

pub fn checkpoint(store: &mut ShardStore) -> Option<LogId> {
    let finished = store.freeze()?.run().unwrap();
    Some(store.finish(finished))
}

/// All rows of every kind and keyspace used here, read through a pin.
pub fn rows_of(pin: &ScanPin, reverse: bool) -> Vec<(RowKey, Bytes)> {
    let mut rows = Vec::new();
    for kind in [RowKind::User, RowKind::Session, RowKind::Meta] {
        for keyspace in [0, 1, u32::MAX] {
            let range = ScanRange { kind, keyspace, start: Bytes::new(), end: None };
            let scan = pin.scan(&range, reverse);
            let mut found: Vec<_> = scan.map(|row| row.unwrap()).collect();
            if reverse {
                found.reverse();
            }
            rows.extend(found);
        }
    }
    rows
}

/// Compares everything readable in a store with a state of the model.
pub fn assert_state(store: &ShardStore, index: u64, state: &State) {
    assert_eq!(store.applied().index.0, index);
    assert_eq!((store.applied(), store.log_time()), (applied_id(index), stamp(index)));
    assert_eq!(store.digest(), digest(state), "digest at {index}");
    let counts = store.frontier().counts;
    assert_eq!(counts.rows, state.len() as u64);
    let users = state.iter().filter(|(key, _)| key.kind() == RowKind::User);
    assert_eq!(counts.keys, users.clone().count() as u64);
    let bytes: usize = users.map(|(key, record)| key.key().len() + record.len()).sum();
    assert_eq!(counts.bytes, bytes as u64);
    let pin = store.reader().pin().unwrap();
    assert_eq!(pin.index().0, index);
    let expected: Vec<_> = state.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(rows_of(&pin, false), expected);
    assert_eq!(rows_of(&pin, true), expected);
}

/// Index 0 is the state before any entry, in no term.
pub fn applied_id(index: u64) -> LogId {
    if index == 0 { LogId::ZERO } else { log_id(index) }
}

/// Every version in a shard's tree: its row and its checkpoint number.
pub fn versions_in(database: &Database, generation: u64) -> Vec<(RowKey, u64)> {
    let tree = database.tree(format!("s{}/{generation}", GROUP.0).as_bytes()).unwrap();
    let mut versions = Vec::new();
    for entry in tree.range::<&[u8]>(..) {
        let (key, _) = entry.unwrap();
        let key = quorate_storage::keys::VersionKey::decode(&key).unwrap();
        if key.piece == 0 {
            versions.push((key.row, key.number));
        }
    }
    versions
}
