//! The state of a shard against a model that keeps every state it ever had.

use std::ops::Range;
use std::sync::Arc;

use crate::model::*;
use bytes::Bytes;
use proptest::prelude::*;
use quorate_storage::{
    CheckpointJob, Database, DeltaBudget, Finished, Lookup, RowKey, RowKind, ScanPin, ScanRange,
    ShardStore,
};
use tempfile::TempDir;

/// A step of a random run.
#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Write>),
    /// Writes in a transaction that is dropped.
    Abandon(Vec<Write>),
    Freeze,
    Run,
    Finish,
    Clean,
    Get(RowKey),
    Pin,
    Unpin(usize),
    CheckPin(usize, Box<ScanRange>, bool),
    Reopen,
    /// Sends the last checkpoint to the other replica, while this one continues.
    Snapshot,
    /// Applies the missing entries to the other replica and compares.
    CatchUp,
    Scrub,
}

fn kind() -> impl Strategy<Value = RowKind> {
    prop_oneof![4 => Just(RowKind::User), 1 => Just(RowKind::Session), 1 => Just(RowKind::Meta)]
}

fn keyspace() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0u32), 1 => Just(1), 1 => Just(u32::MAX)]
}

/// Few keys, so that rows are written repeatedly; some are prefixes of others.
fn user_key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(0xff)];
    prop_oneof![
        4 => proptest::collection::vec(byte, 1..3),
        1 => Just(b"12345678".to_vec()),
        1 => Just(b"123456789".to_vec()),
        1 => Just(vec![0xff; 4096]),
    ]
}

fn row() -> impl Strategy<Value = RowKey> {
    (kind(), keyspace(), user_key()).prop_map(|(k, s, key)| RowKey::new(k, s, &key))
}

fn record() -> impl Strategy<Value = Bytes> {
    let of = |length: Range<usize>| {
        (length, any::<u8>()).prop_map(|(length, byte)| Bytes::from(vec![byte; length]))
    };
    prop_oneof![12 => of(0..40), 2 => of(5_900..6_100), 1 => of(11_900..40_000)]
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        5 => (row(), record()).prop_map(|(key, record)| Write::Put(key, record)),
        3 => row().prop_map(Write::Delete),
        1 => (row(), record()).prop_map(|(k, v)| Write::CompareAndSet(k, None, v)),
    ]
}

fn range() -> impl Strategy<Value = ScanRange> {
    let end = proptest::option::of(user_key());
    (kind(), keyspace(), proptest::option::of(user_key()), end).prop_map(
        |(kind, keyspace, start, end)| ScanRange {
            kind,
            keyspace,
            start: start.unwrap_or_default().into(),
            end: end.map(Bytes::from),
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => proptest::collection::vec(write(), 0..5).prop_map(Step::Apply),
        1 => proptest::collection::vec(write(), 1..3).prop_map(Step::Abandon),
        4 => Just(Step::Freeze),
        4 => Just(Step::Run),
        4 => Just(Step::Finish),
        1 => Just(Step::Clean),
        8 => row().prop_map(Step::Get),
        4 => Just(Step::Pin),
        2 => (0..8usize).prop_map(Step::Unpin),
        6 => (0..8usize, range(), any::<bool>())
            .prop_map(|(at, range, reverse)| Step::CheckPin(at, Box::new(range), reverse)),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
        1 => Just(Step::CatchUp),
        1 => Just(Step::Scrub),
    ]
}

/// The rows of a range in a state, in scan order.
fn expected(state: &State, range: &ScanRange, reverse: bool) -> Vec<(RowKey, Bytes)> {
    let mut rows: Vec<_> = state
        .iter()
        .filter(|(key, _)| {
            (key.kind(), key.keyspace()) == (range.kind, range.keyspace)
                && key.key() >= &range.start[..]
                && range.end.as_ref().is_none_or(|end| key.key() < &end[..])
        })
        .map(|(key, record)| (key.clone(), record.clone()))
        .collect();
    if reverse {
        rows.reverse();
    }
    rows
}

/// One replica with its files.
struct Node {
    dir: TempDir,
    database: Database,
    budget: Arc<DeltaBudget>,
    store: ShardStore,
}

impl Node {
    fn new(replica: u64) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let database = open_database(dir.path());
        // A small cache, so that rows are also read from the tree.
        let budget = Arc::new(DeltaBudget::with_cache(1 << 20, 64 << 10));
        let store = create(&database, replica, &budget);
        Node { dir, database, budget, store }
    }

    fn reopen(self) -> Node {
        let Node { dir, database, budget, store } = self;
        drop(store);
        drop(database);
        assert_eq!(budget.used(), 0, "the bytes of the deltas are returned");
        let database = open_database(dir.path());
        let store = open(&database, &budget);
        Node { dir, database, budget, store }
    }
}

/// A run of the system beside its model.
struct Run {
    model: Model,
    node: Node,
    other: Node,
    job: Option<CheckpointJob>,
    finished: Option<Finished>,
    pins: Vec<ScanPin>,
}

impl Run {
    fn new() -> Run {
        Run {
            model: Model::default(),
            node: Node::new(1),
            other: Node::new(2),
            job: None,
            finished: None,
            pins: Vec::new(),
        }
    }

    fn step(mut self, step: Step) -> Run {
        match step {
            Step::Apply(writes) => {
                let outcomes = self.model.apply(writes.clone());
                let index = self.model.applied();
                assert_eq!(apply_to_store(&mut self.node.store, index, &writes), outcomes);
                assert_eq!(self.node.store.digest(), digest(self.model.newest()));
                assert_eq!(self.node.store.reader().applied().0, index);
            }
            Step::Abandon(writes) => self.abandon(&writes),
            Step::Freeze => {
                let due = self.node.store.header().applied() != self.node.store.applied();
                let busy = self.node.store.is_frozen();
                let job = self.node.store.freeze();
                assert_eq!(job.is_some(), due && !busy);
                self.job = job.or(self.job);
            }
            Step::Run => {
                if let Some(job) = self.job.take() {
                    self.finished = Some(job.run().unwrap());
                }
            }
            Step::Finish => {
                if let Some(finished) = self.finished.take() {
                    self.node.store.finish(finished);
                }
            }
            Step::Clean => {
                if let Some(job) = self.node.store.clean() {
                    job.run().unwrap();
                }
            }
            Step::Get(key) => self.get(&key),
            Step::Pin => {
                let pin = self.node.store.reader().pin().unwrap();
                assert_eq!(pin.index().0, self.model.applied());
                self.pins.push(pin);
            }
            Step::Unpin(at) if at < self.pins.len() => drop(self.pins.remove(at)),
            Step::CheckPin(at, range, reverse) if at < self.pins.len() => {
                let pin = &self.pins[at];
                let state = self.model.at(pin.index().0);
                let rows: Vec<_> = pin.scan(&range, reverse).map(|row| row.unwrap()).collect();
                assert_eq!(rows, expected(state, &range, reverse));
                for key in self.model.newest().keys() {
                    assert_eq!(pin.get(key).unwrap().as_ref(), state.get(key));
                }
            }
            Step::Unpin(_) | Step::CheckPin(..) => {}
            Step::Reopen => self = self.reopen(),
            Step::Snapshot => self.snapshot(),
            Step::CatchUp => self.catch_up(),
            Step::Scrub => self.node.store.reader().scrub(|_| {}).unwrap(),
        }
        self
    }

    fn abandon(&mut self, writes: &[Write]) {
        let before = self.node.store.frontier();
        let index = self.model.applied() + 1;
        let mut transaction = self.node.store.begin(log_id(index), stamp(index));
        for write in writes {
            if let Write::Put(key, record) = write {
                transaction.put(key, record).unwrap();
                assert_eq!(transaction.get(key).unwrap().as_ref(), Some(record));
            }
        }
        drop(transaction);
        assert_eq!(self.node.store.frontier(), before);
    }

    fn get(&self, key: &RowKey) {
        let reader = self.node.store.reader();
        let expected = self.model.newest().get(key);
        match reader.try_get(key) {
            Lookup::Found(record) => assert_eq!(Some(&record), expected),
            Lookup::Absent => assert_eq!(None, expected),
            Lookup::Tree => {}
        }
        assert_eq!(reader.get(key).unwrap().as_ref(), expected);
    }

    fn reopen(mut self) -> Run {
        self.pins.clear();
        self.job = None;
        // A finished job's checkpoint is durable although it was never finished here.
        let durable = self.finished.take().is_some();
        let last = self.node.store.header().applied();
        self.node = self.node.reopen();
        let applied = self.node.store.applied();
        assert!(applied >= last && (durable || applied == last), "{applied} after {last}");
        assert_eq!(self.node.store.header().applied(), applied);
        assert_state(&self.node.store, applied.index.0, self.model.at(applied.index.0));
        replay(&mut self.node.store, &self.model, self.model.applied());
        assert_state(&self.node.store, self.model.applied(), self.model.newest());
        self
    }

    fn snapshot(&mut self) {
        let mut source = self.node.store.pin_snapshot().unwrap();
        let last = source.meta().last;
        if last < self.other.store.applied() {
            self.other.store.begin_install(source.meta()).unwrap_err();
            return;
        }
        let mut installer = self.other.store.begin_install(source.meta()).unwrap();
        while let Some(chunk) = source.next_chunk().unwrap() {
            installer.write(&chunk).unwrap();
            // The old state stays usable.
            let reader = self.other.store.reader();
            let old = self.model.at(reader.applied().0);
            if let Some((key, record)) = old.first_key_value() {
                assert_eq!(reader.get(key).unwrap().as_ref(), Some(record));
            }
        }
        let installed = installer.finish().unwrap();
        self.other.store.adopt(installed);
        let header = self.other.store.header();
        assert_eq!(header.replica.0, 2, "a replica keeps its own id");
        assert_eq!(header.log_valid_from, last.index.next());
        assert_eq!(header.range, self.node.store.header().range);
        assert_state(&self.other.store, last.index.0, self.model.at(last.index.0));
    }

    fn catch_up(&mut self) {
        replay(&mut self.other.store, &self.model, self.model.applied());
        assert_eq!(self.other.store.digest(), self.node.store.digest());
        checkpoint(&mut self.other.store);
        self.other.store.reader().scrub(|_| {}).unwrap();
    }

    /// At the end nothing is left in the tree but the live rows, once each.
    fn end(mut self) {
        self = self.step(Step::Run).step(Step::Finish);
        self.pins.clear();
        checkpoint(&mut self.node.store);
        if let Some(job) = self.node.store.clean() {
            job.run().unwrap();
        }
        assert!(self.node.store.clean().is_none(), "one cleaning is enough without pins");
        let generation = self.node.store.header().generation;
        let versions = versions_in(&self.node.database, generation);
        let rows: Vec<_> = versions.into_iter().map(|(row, _)| row).collect();
        let live: Vec<_> = self.model.newest().keys().cloned().collect();
        assert_eq!(rows, live);
        self.node.database.check_blobs().unwrap();
        self.catch_up();
        self.node = self.node.reopen();
        assert_state(&self.node.store, self.model.applied(), self.model.newest());
        let used: u64 = self.node.budget.used();
        assert_eq!(used, 0, "everything is in the tree");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        // A case opens databases; unbounded shrinking would look like a test that hangs.
        max_shrink_iters: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_shard_does_what_its_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for step in steps {
            run = run.step(step);
        }
        run.end();
    }
}

/// Two replicas can be compared although they are asked at different times.
#[test]
fn replicas_remember_their_digests_at_the_same_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let (database, other) =
        (open_database(&dir.path().join("a")), open_database(&dir.path().join("b")));
    let budget = Arc::new(DeltaBudget::new(64 << 20));
    let (mut here, mut there) = (create(&database, 1, &budget), create(&other, 2, &budget));
    let apply = |store: &mut ShardStore, through: u64, odd: Option<u64>| {
        for index in store.applied().index.0 + 1..=through {
            let value = if odd == Some(index) { b"odd" } else { b"row" };
            apply_to_store(
                store,
                index,
                &[Write::Put(user(index.to_be_bytes()), value[..].into())],
            );
        }
    };
    apply(&mut here, 3_000, None);
    apply(&mut there, 2_100, None);
    let marks = here.reader().marks();
    assert_eq!(marks.iter().map(|(index, _)| index.0).collect::<Vec<_>>(), [1_024, 2_048]);
    assert_eq!(marks, there.reader().marks());
    assert_ne!(here.digest(), there.digest());
    apply(&mut there, 3_100, Some(2_500));
    apply(&mut here, 3_100, None);
    let (here, there) = (here.reader().marks(), there.reader().marks());
    assert_eq!(here[..2], there[..2]);
    assert_eq!(here[2].0, there[2].0);
    assert_ne!(here[2].1, there[2].1);
}
