//! Determinism: the same log gives the same rows and answers, however it is batched and wherever
//! the replica restarts.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_storage::{RowKey, RowKind, StorageError};

use super::build::{OWNERSHIP, SMALL, START_MS, Step, log};
use crate::{Applied, MemoryRows, RowTransaction, StateMachine, WriteAnswer};

/// Rows whose changes reach the base only when a batch of entries is done.
struct Batched {
    base: MemoryRows,
    pending: BTreeMap<RowKey, Option<Bytes>>,
}

impl Batched {
    fn commit(&mut self) {
        for (key, row) in std::mem::take(&mut self.pending) {
            match row {
                Some(row) => self.base.put(&key, &row).unwrap(),
                None => self.base.delete(&key).unwrap(),
            }
        }
    }
}

impl RowTransaction for Batched {
    fn get(&mut self, key: &RowKey) -> Result<Option<Bytes>, StorageError> {
        match self.pending.get(key) {
            Some(row) => Ok(row.clone()),
            None => self.base.get(key),
        }
    }

    fn put(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError> {
        self.pending.insert(key.clone(), Some(Bytes::copy_from_slice(row)));
        Ok(())
    }

    fn insert_new(&mut self, key: &RowKey, row: &[u8]) -> Result<(), StorageError> {
        assert_eq!(self.get(key)?, None, "{key:?} exists already");
        self.put(key, row)
    }

    fn delete(&mut self, key: &RowKey) -> Result<(), StorageError> {
        self.pending.insert(key.clone(), None);
        Ok(())
    }
}

fn load(rows: &MemoryRows) -> StateMachine {
    StateMachine::load_shard(OWNERSHIP, SMALL, rows.of_kind(RowKind::Session)).unwrap()
}

/// Applies the log in batches of these lengths, cyclically; after a batch with `true` the replica
/// restarts from its rows.
fn replay(steps: &[Step], batches: &[(usize, bool)]) -> (MemoryRows, Vec<Option<WriteAnswer>>) {
    let mut rows = Batched { base: MemoryRows::default(), pending: BTreeMap::new() };
    let mut machine = load(&rows.base);
    let mut answers = Vec::new();
    let mut now_ms = START_MS;
    let mut batches = batches.iter().cycle();
    let (mut left, mut restart) = *batches.next().unwrap();
    for (at, step) in steps.iter().enumerate() {
        now_ms += step.after_ms;
        let entry = step.entry(at as u64 + 1, now_ms);
        answers.push(match machine.apply_entry(&entry, &mut rows).unwrap() {
            Applied::Command(answer) => Some(answer),
            Applied::Noop | Applied::Membership(_) => None,
        });
        left -= 1;
        if left == 0 {
            rows.commit();
            if restart {
                machine = load(&rows.base);
            }
            (left, restart) = *batches.next().unwrap();
        }
    }
    rows.commit();
    (rows.base, answers)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn batches_and_restarts_change_nothing(
        steps in log(150),
        batches in prop::collection::vec((1..20usize, any::<bool>()), 1..8),
    ) {
        let (rows, answers) = replay(&steps, &[(1, false)]);
        let (other_rows, other_answers) = replay(&steps, &batches);
        prop_assert_eq!(answers, other_answers);
        prop_assert_eq!(rows, other_rows);
    }
}
