//! The contract suite, run against the twin and both back ends, and random operations compared
//! with the twin.

use quorate_raft::Index;
use quorate_storage::testing::{
    DirHome, Home, Twin, TwinHome, append, entries, hard_state, key, reset, suite,
};
use quorate_storage::{LogBackend, LogTuning, Section};

fn run(name: &str, home: &mut dyn Home) {
    let rule = suite::RULES.iter().find(|(rule, _)| *rule == name);
    rule.unwrap_or_else(|| panic!("no rule is called {name}")).1(home);
}

fn run_in_dir(name: &str, backend: LogBackend) {
    let dir = tempfile::tempdir().unwrap();
    let tuning = LogTuning { file_bytes: 1 << 20, ..LogTuning::default() };
    let mut home = DirHome::new(dir.path(), backend, tuning);
    run(name, &mut home);
    home.database().unwrap().check_blobs().unwrap();
}

macro_rules! contract {
    ($($rule:ident),* $(,)?) => {
        mod twin {
            use super::{TwinHome, run};
            $(#[test] fn $rule() { run(stringify!($rule), &mut TwinHome::default()); })*
        }
        mod sled {
            use super::{LogBackend, run_in_dir};
            $(#[test] fn $rule() { run_in_dir(stringify!($rule), LogBackend::Sled); })*
        }
        mod file {
            use super::{LogBackend, run_in_dir};
            $(#[test] fn $rule() { run_in_dir(stringify!($rule), LogBackend::File); })*
        }

        #[test]
        fn every_rule_is_run() {
            let all: Vec<&str> = suite::RULES.iter().map(|(name, _)| *name).collect();
            assert_eq!(all, [$(stringify!($rule)),*]);
        }
    };
}

contract![
    an_empty_log_holds_nothing,
    appended_sections_are_recovered,
    the_newest_hard_state_counts,
    an_append_drops_entries_at_or_above_it,
    a_reset_drops_everything,
    sections_of_one_record_apply_in_order,
    replicas_do_not_touch_each_other,
    records_over_the_barrier_limit_are_whole,
    a_bad_request_changes_nothing,
    an_empty_append_writes_nothing,
    purged_entries_make_room,
    an_idle_group_outlives_the_head,
    a_slow_group_outlives_the_head,
    a_reset_outlives_the_head,
    dropped_entries_never_come_back,
    a_forgotten_replica_makes_room,
    opening_again_changes_nothing,
];

mod random {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        /// Appends to some groups in one record: (group, how far back, how many, hard state too).
        Append(Vec<(u64, u64, u64, bool)>),
        Reset(u64, u64),
        Purge(u64, u64),
        Maintain,
        Reopen {
            clean: bool,
        },
    }

    fn op() -> impl Strategy<Value = Op> {
        let part = (1..5u64, 0..4u64, 0..6u64, any::<bool>());
        prop_oneof![
            10 => prop::collection::vec(part, 1..4).prop_map(Op::Append),
            1 => (1..5u64, 0..5u64).prop_map(|(group, ahead)| Op::Reset(group, ahead)),
            4 => (1..5u64, 0..8u64).prop_map(|(group, keep)| Op::Purge(group, keep)),
            6 => Just(Op::Maintain),
            1 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
        ]
    }

    /// The state of a group's owner: its last index, the purged and the reset index, and the term.
    /// Committed entries are never appended again, so appends begin above `purged` and `reset`.
    #[derive(Debug, Clone, Copy, Default)]
    struct Owner {
        last: u64,
        purged: u64,
        reset: u64,
        term: u64,
    }

    fn sections(parts: &[(u64, u64, u64, bool)], owners: &mut [Owner; 5]) -> Vec<Section> {
        let mut sections = Vec::new();
        for (group, back, count, vote) in parts {
            let owner = &mut owners[*group as usize];
            owner.term += 1;
            if *vote {
                sections.push(hard_state(*group, owner.term, owner.purged));
            }
            let lowest = owner.purged.max(owner.reset) + 1;
            let first = (owner.last + 1).saturating_sub(*back).max(lowest);
            if *count > 0 {
                owner.last = first + count - 1;
                sections.push(append(*group, entries(owner.term, first, owner.last)));
            }
        }
        sections
    }

    fn run(backend: LogBackend, ops: Vec<Op>) -> Result<(), TestCaseError> {
        let dir = tempfile::tempdir().unwrap();
        let tuning = LogTuning { move_from_bytes: 2_000, move_bytes: 1_000, file_bytes: 3_000 };
        let mut home = DirHome::new(dir.path(), backend, tuning);
        let mut twin = Twin::default();
        let mut owners = [Owner::default(); 5];
        let (mut log, _) = home.open().unwrap();
        for op in ops.into_iter().chain([Op::Reopen { clean: true }]) {
            match op {
                Op::Append(parts) => {
                    let sections = sections(&parts, &mut owners);
                    log.append(&sections).unwrap();
                    twin.append(&sections).unwrap();
                }
                Op::Reset(group, ahead) => {
                    let owner = &mut owners[group as usize];
                    owner.term += 1;
                    owner.last = owner.purged + 1 + ahead;
                    (owner.reset, owner.purged) = (owner.last, 0);
                    let sections = [reset(group, owner.term, owner.last)];
                    log.append(&sections).unwrap();
                    twin.append(&sections).unwrap();
                }
                Op::Purge(group, keep) => {
                    let owner = &mut owners[group as usize];
                    owner.purged = owner.purged.max(owner.last.saturating_sub(keep));
                    log.purge(key(group), Index(owner.purged));
                    twin.purge(key(group), Index(owner.purged));
                }
                Op::Maintain => log.maintain().unwrap(),
                Op::Reopen { clean } => {
                    if clean {
                        log.close().unwrap();
                    } else {
                        drop(log);
                    }
                    let (again, groups) = home.open().unwrap();
                    twin.compare(&groups).map_err(TestCaseError::fail)?;
                    log = again;
                    twin.repeat_purges(&mut *log);
                }
            }
            twin.compare_live(log.real().unwrap()).map_err(TestCaseError::fail)?;
        }
        Ok(())
    }

    /// A failure prints its operations; no file of seeds is kept beside the test.
    fn config(cases: u32) -> ProptestConfig {
        ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(config(100))]

        #[test]
        fn files_agree_with_the_twin(ops in prop::collection::vec(op(), 1..80)) {
            run(LogBackend::File, ops)?;
        }
    }

    proptest! {
        #![proptest_config(config(25))]

        #[test]
        fn sled_agrees_with_the_twin(ops in prop::collection::vec(op(), 1..80)) {
            run(LogBackend::Sled, ops)?;
        }
    }
}
