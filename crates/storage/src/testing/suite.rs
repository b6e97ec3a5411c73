//! The contract of a log, one rule per function. Each gets an empty [`Home`] and panics if the rule
//! is broken.

#![allow(clippy::unwrap_used, reason = "a broken rule ends the test")]

use quorate_raft::{Index, LogId, Term};

use super::{Groups, Home, Log, Twin, append, entries, entry, hard_state, key, reset};
use crate::RecoveredGroup;
use crate::codec::DECODE_LIMIT;
use crate::log::Section;

/// A rule of the contract.
pub type Rule = fn(&mut dyn Home);

/// All rules by name.
pub const RULES: &[(&str, Rule)] = &[
    ("an_empty_log_holds_nothing", an_empty_log_holds_nothing),
    ("appended_sections_are_recovered", appended_sections_are_recovered),
    ("the_newest_hard_state_counts", the_newest_hard_state_counts),
    ("an_append_drops_entries_at_or_above_it", an_append_drops_entries_at_or_above_it),
    ("a_reset_drops_everything", a_reset_drops_everything),
    ("sections_of_one_record_apply_in_order", sections_of_one_record_apply_in_order),
    ("replicas_do_not_touch_each_other", replicas_do_not_touch_each_other),
    ("records_over_the_barrier_limit_are_whole", records_over_the_barrier_limit_are_whole),
    ("a_bad_request_changes_nothing", a_bad_request_changes_nothing),
    ("an_empty_append_writes_nothing", an_empty_append_writes_nothing),
    ("purged_entries_make_room", purged_entries_make_room),
    ("an_idle_group_outlives_the_head", an_idle_group_outlives_the_head),
    ("a_slow_group_outlives_the_head", a_slow_group_outlives_the_head),
    ("a_reset_outlives_the_head", a_reset_outlives_the_head),
    ("dropped_entries_never_come_back", dropped_entries_never_come_back),
    ("a_forgotten_replica_makes_room", a_forgotten_replica_makes_room),
    ("opening_again_changes_nothing", opening_again_changes_nothing),
];

fn reopen(home: &mut dyn Home, log: Box<dyn Log>) -> (Box<dyn Log>, Groups) {
    drop(log);
    home.open().unwrap()
}

/// Closes the log in order, opens it again and compares it with `twin`.
fn check(home: &mut dyn Home, log: Box<dyn Log>, twin: &Twin) -> Box<dyn Log> {
    log.close().unwrap();
    let (mut log, groups) = home.open().unwrap();
    twin.compare(&groups).unwrap();
    twin.repeat_purges(&mut *log);
    if let Some(real) = log.real() {
        twin.compare_live(real).unwrap();
    }
    log
}

fn write(log: &mut dyn Log, twin: &mut Twin, sections: &[Section]) {
    log.append(sections).unwrap();
    twin.append(sections).unwrap();
}

fn an_empty_log_holds_nothing(home: &mut dyn Home) {
    let (log, groups) = home.open().unwrap();
    assert!(groups.is_empty());
    let (log, groups) = reopen(home, log);
    assert!(groups.is_empty());
    log.close().unwrap();
    assert!(home.open().unwrap().1.is_empty());
}

fn appended_sections_are_recovered(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    log.append(&[append(1, entries(1, 1, 3))]).unwrap();
    log.append(&[append(1, entries(1, 4, 5))]).unwrap();
    let (mut log, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, entries(1, 1, 5));
    log.append(&[append(1, entries(2, 6, 6))]).unwrap();
    let (_, groups) = reopen(home, log);
    let expected = [entries(1, 1, 5), entries(2, 6, 6)].concat();
    assert_eq!(groups[&key(1)], RecoveredGroup { entries: expected, ..Default::default() });
}

fn the_newest_hard_state_counts(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    for term in 1..5 {
        log.append(&[hard_state(1, term, term)]).unwrap();
    }
    log.append(&[hard_state(2, 9, 0)]).unwrap();
    let (_, groups) = reopen(home, log);
    let state = groups[&key(1)].hard_state;
    assert_eq!((state.term, state.commit, state.vote.unwrap().0), (Term(4), Index(4), 1));
    assert_eq!(groups[&key(2)].hard_state.term, Term(9));
    assert!(groups[&key(1)].entries.is_empty());
}

fn an_append_drops_entries_at_or_above_it(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    log.append(&[append(1, entries(1, 1, 9))]).unwrap();
    log.append(&[append(1, entries(2, 5, 6))]).unwrap();
    let (mut log, groups) = reopen(home, log);
    let expected = [entries(1, 1, 4), entries(2, 5, 6)].concat();
    assert_eq!(groups[&key(1)].entries, expected);
    log.append(&[append(1, entries(3, 1, 1))]).unwrap();
    let (_, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, entries(3, 1, 1));
}

fn a_reset_drops_everything(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    log.append(&[hard_state(1, 2, 2), append(1, entries(1, 1, 200))]).unwrap();
    log.append(&[reset(1, 3, 100)]).unwrap();
    let (mut log, groups) = reopen(home, log);
    let group = &groups[&key(1)];
    assert_eq!(group.reset, Some(LogId::new(Term(3), Index(100))));
    assert!(group.entries.is_empty());
    assert_eq!(group.hard_state.term, Term(2));
    log.append(&[append(1, entries(3, 101, 102))]).unwrap();
    let (_, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, entries(3, 101, 102));
}

fn sections_of_one_record_apply_in_order(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    log.append(&[
        append(1, entries(1, 1, 9)),
        append(1, entries(2, 5, 7)),
        hard_state(1, 2, 1),
        hard_state(1, 3, 2),
        append(2, entries(1, 1, 2)),
        reset(2, 4, 50),
        append(2, entries(5, 51, 52)),
    ])
    .unwrap();
    let (_, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, [entries(1, 1, 4), entries(2, 5, 7)].concat());
    assert_eq!(groups[&key(1)].hard_state.term, Term(3));
    assert_eq!(groups[&key(2)].entries, entries(5, 51, 52));
    assert_eq!(groups[&key(2)].reset, Some(LogId::new(Term(4), Index(50))));
}

fn replicas_do_not_touch_each_other(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut other = append(1, entries(7, 1, 4));
    other.replica.0 += 1;
    let other_key = (other.group, other.replica);
    log.append(&[append(1, entries(1, 1, 9)), other, append(2, entries(2, 1, 3))]).unwrap();
    log.append(&[append(1, entries(3, 2, 2)), reset(2, 3, 8)]).unwrap();
    let (_, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, [entries(1, 1, 1), entries(3, 2, 2)].concat());
    assert_eq!(groups[&other_key].entries, entries(7, 1, 4));
    assert!(groups[&key(2)].entries.is_empty());
}

fn records_over_the_barrier_limit_are_whole(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let large: Vec<_> = (1..=3).map(|index| entry(1, index, 1 << 20)).collect();
    log.append(&[append(1, large.clone()), hard_state(2, 1, 1)]).unwrap();
    log.append(&[append(1, entries(1, 4, 4))]).unwrap();
    let (_, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, [large, entries(1, 4, 4)].concat());
}

fn a_bad_request_changes_nothing(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    log.append(&[append(1, entries(1, 1, 3))]).unwrap();
    let mut jump = entries(1, 4, 6);
    jump[1].index = Index(9);
    let gap = append(1, entries(1, 5, 6));
    for bad in [&[append(1, jump)][..], &[hard_state(1, 5, 5), gap]] {
        let error = log.append(bad).unwrap_err();
        assert!(!error.is_fatal() && error.to_string().contains("invalid"), "{error}");
    }
    if log.real().is_some() {
        let error = log.append(&[append(1, vec![entry(1, 4, DECODE_LIMIT)])]).unwrap_err();
        assert!(!error.is_fatal() && error.to_string().contains("limit"), "{error}");
    }
    log.append(&[append(1, entries(1, 4, 4))]).unwrap();
    let (_, groups) = reopen(home, log);
    let expected = RecoveredGroup { entries: entries(1, 1, 4), ..Default::default() };
    assert_eq!(groups[&key(1)], expected);
}

fn an_empty_append_writes_nothing(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    log.append(&[append(1, entries(1, 1, 3))]).unwrap();
    let last = log.real().map(|log| log.last_sequence());
    log.append(&[]).unwrap();
    log.append(&[append(1, Vec::new())]).unwrap();
    assert_eq!(log.real().map(|log| log.last_sequence()), last);
    let (_, groups) = reopen(home, log);
    assert_eq!(groups[&key(1)].entries, entries(1, 1, 3));
}

/// Appends `count` records of 64 KiB to group 1, purging all but the last few meanwhile.
fn churn(log: &mut dyn Log, twin: &mut Twin, first: u64, count: u64) {
    for index in first..first + count {
        write(log, twin, &[append(1, vec![entry(1, index, 64 << 10)])]);
        let through = Index(index.saturating_sub(3));
        log.purge(key(1), through);
        twin.purge(key(1), through);
        log.maintain().unwrap();
    }
}

fn purged_entries_make_room(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    churn(&mut *log, &mut twin, 1, 200);
    if let Some(real) = log.real() {
        assert!(real.bytes() < 5 << 20, "{} bytes of 13 MB are left", real.bytes());
        assert!(real.group_bytes(key(1).0, key(1).1) < 4 * (65 << 10));
        assert!(real.head() > 100);
    }
    let mut log = check(home, log, &twin);
    churn(&mut *log, &mut twin, 201, 100);
    check(home, log, &twin);
}

fn an_idle_group_outlives_the_head(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    for group in 2..20 {
        write(&mut *log, &mut twin, &[hard_state(group, group, 0)]);
    }
    let written = log.real().map(|log| log.last_sequence());
    for round in 0..3 {
        churn(&mut *log, &mut twin, 1 + round * 100, 100);
        log = check(home, log, &twin);
    }
    assert!(log.real().map(|log| log.head()) >= written);
}

fn a_slow_group_outlives_the_head(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    write(&mut *log, &mut twin, &[append(2, entries(1, 1, 50)), append(3, entries(1, 1, 9))]);
    write(&mut *log, &mut twin, &[append(2, entries(1, 51, 60)), append(3, entries(2, 5, 8))]);
    churn(&mut *log, &mut twin, 1, 100);
    write(&mut *log, &mut twin, &[append(2, entries(2, 40, 70))]);
    log.purge(key(2), Index(20));
    twin.purge(key(2), Index(20));
    for round in 1..4 {
        churn(&mut *log, &mut twin, 1 + round * 100, 100);
        log = check(home, log, &twin);
    }
    write(&mut *log, &mut twin, &[append(2, entries(4, 30, 31)), append(3, entries(3, 9, 9))]);
    churn(&mut *log, &mut twin, 401, 100);
    check(home, log, &twin);
}

fn a_reset_outlives_the_head(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    write(&mut *log, &mut twin, &[append(2, entries(1, 1, 50))]);
    write(&mut *log, &mut twin, &[reset(2, 7, 30), append(2, entries(8, 31, 33))]);
    write(&mut *log, &mut twin, &[append(2, entries(8, 34, 35))]);
    write(&mut *log, &mut twin, &[reset(3, 7, 30)]);
    for round in 0..3 {
        churn(&mut *log, &mut twin, 1 + round * 100, 100);
        log = check(home, log, &twin);
    }
    write(&mut *log, &mut twin, &[append(3, entries(8, 31, 33))]);
    log.purge(key(2), Index(30));
    twin.purge(key(2), Index(30));
    churn(&mut *log, &mut twin, 301, 100);
    check(home, log, &twin);
}

/// Entries are dropped by an append in one record, then the head passes both the record that held
/// them and the one that dropped them.
fn dropped_entries_never_come_back(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    write(&mut *log, &mut twin, &[append(2, entries(1, 1, 9))]);
    churn(&mut *log, &mut twin, 1, 40);
    write(&mut *log, &mut twin, &[append(2, entries(2, 4, 5))]);
    for round in 0..4 {
        churn(&mut *log, &mut twin, 41 + round * 40, 40);
        let groups = twin.groups();
        assert_eq!(groups[&key(2)].entries.len(), 5);
        log = check(home, log, &twin);
    }
}

fn a_forgotten_replica_makes_room(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    for index in 1..100 {
        write(&mut *log, &mut twin, &[append(2, vec![entry(1, index, 64 << 10)])]);
    }
    write(&mut *log, &mut twin, &[append(3, entries(1, 1, 2))]);
    log.forget(key(2));
    twin.forget(key(2));
    for _ in 0..10 {
        log.maintain().unwrap();
    }
    if let Some(real) = log.real() {
        assert_eq!(real.group_bytes(key(2).0, key(2).1), 0);
        assert!(real.bytes() < 1 << 20, "{} bytes are left", real.bytes());
    }
    let mut log = check(home, log, &twin);
    write(&mut *log, &mut twin, &[append(3, entries(1, 3, 4))]);
    check(home, log, &twin);
}

fn opening_again_changes_nothing(home: &mut dyn Home) {
    let (mut log, _) = home.open().unwrap();
    let mut twin = Twin::default();
    write(&mut *log, &mut twin, &[append(1, entries(1, 1, 9)), hard_state(1, 1, 4)]);
    for _ in 0..3 {
        let (again, groups) = reopen(home, log);
        twin.compare(&groups).unwrap();
        assert_eq!(groups, twin.groups());
        log = check(home, again, &twin);
    }
}
