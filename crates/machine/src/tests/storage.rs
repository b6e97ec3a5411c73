//! The machine on the real storage: checkpoints, and restarts that lose the entries after the last
//! checkpoint and apply them again from the log.

use std::{path::Path, sync::Arc};

use proptest::prelude::*;
use quorate_raft::{Entry, GroupId, LogId, Membership, NodeId, Replica, ReplicaId};
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, HashRange, RowKind, ShardInit, ShardStore,
};

use super::build::{OWNERSHIP, SMALL, START_MS, Step, log};
use crate::{Applied, MemoryRows, StateMachine, WriteAnswer};

const GROUP: GroupId = GroupId(OWNERSHIP.shard);

struct Replicated {
    /// Declared before the database, so that it is dropped first.
    store: ShardStore,
    machine: StateMachine,
    database: Database,
}

fn budget() -> Arc<DeltaBudget> {
    Arc::new(DeltaBudget::new(64 << 20))
}

fn machine_of(store: &ShardStore) -> StateMachine {
    let header = store.header();
    let ownership = crate::Ownership {
        shard: header.group.0,
        shard_epoch: header.shard_epoch,
        first: header.range.first,
        last: header.range.last,
    };
    StateMachine::load_shard(ownership, SMALL, store.rows(RowKind::Session).unwrap()).unwrap()
}

impl Replicated {
    fn create(dir: &Path) -> Self {
        let database = Database::open(dir, DatabaseOptions::default()).unwrap();
        let init = ShardInit {
            group: GROUP,
            replica: ReplicaId(1),
            membership: Membership::of_voters([Replica { id: ReplicaId(1), node: NodeId(1) }]),
            range: HashRange { first: OWNERSHIP.first, last: OWNERSHIP.last },
            shard_epoch: OWNERSHIP.shard_epoch,
        };
        let store = ShardStore::create(&database, init, budget()).unwrap();
        Self { machine: machine_of(&store), store, database }
    }

    fn restart(self, dir: &Path) -> Self {
        let Self { store, database, .. } = self;
        drop(store);
        drop(database);
        let database = Database::open(dir, DatabaseOptions::default()).unwrap();
        let mut stores = ShardStore::open_all(&database, &budget()).unwrap();
        let store = stores.remove(&GROUP).unwrap().unwrap();
        Self { machine: machine_of(&store), store, database }
    }

    fn apply(&mut self, entry: &Entry) -> Option<WriteAnswer> {
        let at = LogId { term: entry.term, index: entry.index };
        let mut rows = self.store.begin(at, entry.stamp);
        let applied = self.machine.apply_entry(entry, &mut rows).unwrap();
        rows.commit();
        match applied {
            Applied::Command(answer) => Some(answer),
            Applied::Noop | Applied::Membership(_) => None,
        }
    }

    fn checkpoint(&mut self) {
        if let Some(job) = self.store.freeze() {
            let finished = job.run().unwrap();
            self.store.finish(finished);
        }
    }
}

fn in_memory(entries: &[Entry]) -> (MemoryRows, Vec<Option<WriteAnswer>>) {
    let mut rows = MemoryRows::default();
    let mut machine = StateMachine::load_shard(OWNERSHIP, SMALL, []).unwrap();
    let answers =
        entries.iter().map(|entry| match machine.apply_entry(entry, &mut rows).unwrap() {
            Applied::Command(answer) => Some(answer),
            Applied::Noop | Applied::Membership(_) => None,
        });
    let answers = answers.collect();
    (rows, answers)
}

fn entries_of(steps: &[Step]) -> Vec<Entry> {
    let mut now_ms = START_MS;
    let entries = steps.iter().zip(1..).map(|(step, index)| {
        now_ms += step.after_ms;
        step.entry(index, now_ms)
    });
    entries.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn checkpoints_and_restarts_on_disk_change_nothing(
        steps in log(120),
        events in prop::collection::vec((1..30usize, 0..3u8), 1..8),
    ) {
        let entries = entries_of(&steps);
        let (rows, answers) = in_memory(&entries);

        let dir = tempfile::tempdir().unwrap();
        let mut replica = Replicated::create(dir.path());
        let mut events = events.iter().cycle();
        let mut next = 0;
        let mut restarts_left = 4;
        while next < entries.len() {
            let (count, event) = *events.next().unwrap();
            for _ in 0..count.min(entries.len() - next) {
                prop_assert_eq!(&replica.apply(&entries[next]), &answers[next], "at {}", next + 1);
                next += 1;
            }
            match event {
                0 => replica.checkpoint(),
                1 if restarts_left > 0 => {
                    restarts_left -= 1;
                    replica = replica.restart(dir.path());
                    next = replica.store.applied().index.0 as usize;
                }
                _ => {}
            }
        }
        prop_assert_eq!(&replica.machine, &machine_of(&replica.store));
        for kind in [RowKind::User, RowKind::Session] {
            let stored: Vec<_> = replica.store.rows(kind).unwrap().map(Result::unwrap).collect();
            let expected: Vec<_> = rows.of_kind(kind).map(Result::unwrap).collect();
            prop_assert_eq!(stored, expected);
        }
    }
}
