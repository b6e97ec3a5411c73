//! The rules of exactly-once sessions, one test each.

use super::build::*;
use crate::{Done, LogTime, Refusal, WriteAnswer, sessions::SessionLimits};

const LIMITS: SessionLimits = SessionLimits::LEVEL_1;
const TTL_MS: u64 = LIMITS.ttl_ms;

fn refusal(answer: WriteAnswer) -> Refusal {
    match answer {
        WriteAnswer::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn done(answer: WriteAnswer) -> Done {
    match answer {
        WriteAnswer::Done(done) => done,
        other => panic!("not decided: {other:?}"),
    }
}

fn number(answer: WriteAnswer) -> i64 {
    done(answer).results[0].number.unwrap()
}

fn add_in(sequence: u64, answered_below: u64) -> quorate_proto::raft::v1::Command {
    within(write(vec![add("n", 1)]), session(0), sequence, answered_below)
}

fn sessions(shard: &Shard) -> usize {
    shard.machine.sessions().unwrap().len()
}

#[test]
fn a_retried_write_is_answered_and_not_applied_again() {
    let mut shard = Shard::new(LIMITS);
    let command = add_in(1, 0);
    let first = done(shard.apply(&command));
    let rows = shard.rows.clone();
    for _ in 0..3 {
        assert_eq!(done(shard.apply(&command)), Done { replayed: true, ..first.clone() });
    }
    assert_eq!(shard.rows, rows);
    assert_eq!(number(shard.apply(&add_in(2, 0))), 2);
}

#[test]
fn a_false_condition_is_remembered_although_it_would_be_true_now() {
    let mut shard = Shard::new(LIMITS);
    shard.apply(&write(vec![put("k", "there")]));
    let command =
        and_previous(when(put("k", "v"), quorate_proto::v1::condition::Expect::Absent(true)));
    let command = within(write(vec![command]), session(0), 1, 0);
    assert!(!done(shard.apply(&command)).applied);
    shard.apply(&write(vec![delete("k")]));
    let again = done(shard.apply(&command));
    assert!(again.replayed && !again.applied);
    assert_eq!(again.results[0].previous.as_ref().unwrap().value.as_ref().unwrap(), "there");
    assert_eq!(again.results[0].revision, 1);
}

#[test]
fn previous_values_are_remembered_up_to_1_kib() {
    for (len, remembered) in [(1_024, true), (1_025, false)] {
        let mut shard = Shard::new(LIMITS);
        shard.apply(&write(vec![put("k", vec![b'x'; len])]));
        let command = within(write(vec![and_previous(delete("k"))]), session(0), 1, 0);
        let previous = |answer| done(answer).results.remove(0).previous.unwrap();
        let first = previous(shard.apply(&command));
        assert_eq!(first.value.as_ref().unwrap().len(), len);
        let again = previous(shard.apply(&command));
        assert_eq!(again.value.is_some(), remembered);
        assert_eq!(
            (again.revision, again.create_revision),
            (first.revision, first.create_revision)
        );
    }
}

#[test]
fn other_operations_under_a_used_sequence_are_rejected() {
    let mut shard = Shard::new(LIMITS);
    shard.apply(&add_in(1, 0));
    let other = within(write(vec![add("n", 2)]), session(0), 1, 0);
    assert_eq!(refusal(shard.apply(&other)), Refusal::SequenceReused { sequence: 1 });
    assert!(done(shard.apply(&add_in(1, 0))).replayed, "the answer is still there");
}

#[test]
fn answered_sequences_are_forgotten_and_past() {
    let mut shard = Shard::new(LIMITS);
    for sequence in 1..=3 {
        shard.apply(&add_in(sequence, 0));
    }
    shard.apply(&add_in(4, 3));
    for sequence in [1, 2] {
        let past = Refusal::SequencePast { sequence, answered_below: 3 };
        assert_eq!(refusal(shard.apply(&add_in(sequence, 0))), past);
    }
    assert!(done(shard.apply(&add_in(3, 0))).replayed);
    assert_eq!(number(shard.apply(&add_in(5, 0))), 5);
    let zero = refusal(shard.apply(&add_in(0, 0)));
    assert_eq!(zero, Refusal::SequencePast { sequence: 0, answered_below: 1 });
}

#[test]
fn a_replay_removes_answered_sequences_and_the_rows_record_it() {
    let mut shard = Shard::new(LIMITS);
    for sequence in 1..=3 {
        shard.apply(&add_in(sequence, 0));
    }
    assert!(done(shard.apply(&add_in(3, 3))).replayed);
    assert!(matches!(refusal(shard.apply(&add_in(2, 0))), Refusal::SequencePast { .. }));
    // Also after a restart, which `apply` has compared.
    shard.machine = shard.reloaded();
    assert!(matches!(refusal(shard.apply(&add_in(2, 0))), Refusal::SequencePast { .. }));
}

#[test]
fn a_session_lives_exactly_for_its_time_to_live_remembered_or_not() {
    let mut shard = Shard::new(LIMITS);
    shard.apply(&add_in(1, 0));
    shard.now_ms = START_MS + TTL_MS - 1;
    assert!(done(shard.apply(&add_in(1, 0))).replayed);
    assert_eq!(number(shard.apply(&add_in(2, 0))), 2, "a new sequence in its last millisecond");
    shard.now_ms += 1;
    let log_time = LogTime::from_millis(shard.now_ms);
    let unknown = within(write(vec![add("n", 1)]), session(0), 9, 0);
    for command in [add_in(1, 0), add_in(2, 0), unknown] {
        assert_eq!(refusal(shard.apply(&command)), Refusal::SessionExpired { log_time });
    }
    let young = within(write(vec![add("n", 1)]), session(1), 1, 0);
    assert_eq!(number(shard.apply(&young)), 3);
}

#[test]
fn a_birth_more_than_a_second_ahead_is_rejected() {
    let mut shard = Shard::new(LIMITS);
    let born_in = |ms| within(write(vec![add("n", 1)]), session(ms), 1, 0);
    let log_time = LogTime::from_millis(START_MS);
    assert_eq!(refusal(shard.apply(&born_in(1_001))), Refusal::SessionFromFuture { log_time });
    assert_eq!(number(shard.apply(&born_in(1_000))), 1);
    shard.now_ms += 1;
    assert_eq!(number(shard.apply(&born_in(1_001))), 2);
}

#[test]
fn expired_sessions_leave_with_later_entries_a_few_at_a_time() {
    let limits = SessionLimits { expired_rows_per_entry: 2, ..LIMITS };
    let mut shard = Shard::new(limits);
    for born in 0..10 {
        shard.apply(&within(write(vec![add("n", 1)]), session(born), 1, 0));
    }
    assert_eq!(sessions(&shard), 10);
    shard.now_ms += TTL_MS + 4;
    for left in [8, 6, 5, 5] {
        shard.apply(&write(vec![get("n")]));
        assert_eq!(sessions(&shard), left, "five are past their time");
    }
    shard.now_ms += TTL_MS;
    for _ in 0..3 {
        shard.apply(&write(vec![get("n")]));
    }
    assert_eq!(shard.machine.sessions().unwrap().bytes(), 0);
    assert_eq!(shard.rows.of_kind(quorate_storage::RowKind::Session).count(), 0);
}

#[test]
fn a_session_holds_1024_unanswered_sequences() {
    let mut shard = Shard::new(LIMITS);
    // Without the comparison after each command, for speed.
    for sequence in 1..=1_024 {
        shard.index += 1;
        let entry = entry(shard.index, START_MS, &add_in(sequence, 0));
        shard.machine.apply_entry(&entry, &mut shard.rows).unwrap();
    }
    let rows = shard.rows.clone();
    let full = Refusal::SessionsFull { session: true };
    assert_eq!(refusal(shard.apply(&add_in(1_025, 0))), full);
    assert_eq!(refusal(shard.apply(&add_in(1_025, 1))), full, "nothing below 1 was remembered");
    assert_eq!(shard.rows, rows);
    assert!(done(shard.apply(&add_in(1, 0))).replayed, "no live row was evicted");
    assert_eq!(number(shard.apply(&add_in(1_025, 2))), 1_025);
}

#[test]
fn a_full_table_rejects_new_sequences_and_evicts_nothing() {
    let mut shard = Shard::new(SessionLimits { bytes_max: 1_000, ..LIMITS });
    let in_session =
        |born, sequence, below| within(write(vec![add("n", 1)]), session(born), sequence, below);
    let mut taken = 0;
    while let WriteAnswer::Done(_) = shard.apply(&in_session(taken, 1, 0)) {
        taken += 1;
    }
    assert!((5..12).contains(&taken), "{taken} rows fill 1,000 bytes");
    let full = Refusal::SessionsFull { session: false };
    assert_eq!(refusal(shard.apply(&in_session(taken, 1, 0))), full);
    assert_eq!(refusal(shard.apply(&in_session(0, 2, 0))), full);
    for born in 0..taken {
        assert!(done(shard.apply(&in_session(born, 1, 0))).replayed);
    }
    done(shard.apply(&write(vec![add("n", 1)])));
    // A session that reports its answered sequences frees its own room, and time frees room for
    // all.
    done(shard.apply(&in_session(0, 2, 2)));
    shard.now_ms += TTL_MS + 2;
    done(shard.apply(&in_session(TTL_MS, 1, 0)));
}

#[test]
fn the_last_write_leaves_a_tombstone_with_its_answer() {
    let mut shard = Shard::new(LIMITS);
    for sequence in [1, 2, 4] {
        shard.apply(&add_in(sequence, 0));
    }
    let last_one = last(add_in(3, 0));
    assert_eq!(number(shard.apply(&last_one)), 4);
    assert_eq!(shard.rows.of_kind(quorate_storage::RowKind::Session).count(), 1);
    assert_eq!(number(shard.apply(&last_one)), 4, "asked again it answers");
    for sequence in [1, 2, 4, 5] {
        let ended = Refusal::SessionEnded { sequence };
        assert_eq!(refusal(shard.apply(&add_in(sequence, 0))), ended);
    }
}

#[test]
fn cancel_gives_the_answer_or_bars_the_sequence() {
    let mut shard = Shard::new(LIMITS);
    let first = done(shard.apply(&add_in(1, 0)));
    let cancel_of = |sequence| within(cancel(), session(0), sequence, 0);
    let answered = done(shard.apply(&cancel_of(1)));
    assert_eq!(answered, Done { replayed: true, ..first });

    assert_eq!(shard.apply(&cancel_of(2)), WriteAnswer::Barred);
    assert_eq!(shard.apply(&cancel_of(2)), WriteAnswer::Barred, "asked again");
    assert_eq!(refusal(shard.apply(&add_in(2, 0))), Refusal::SequenceBarred { sequence: 2 });
    assert_eq!(number(shard.apply(&add_in(3, 3))), 2);
    assert!(matches!(refusal(shard.apply(&cancel_of(2))), Refusal::SequencePast { .. }));
    shard.now_ms += TTL_MS;
    assert!(matches!(refusal(shard.apply(&cancel_of(3))), Refusal::SessionExpired { .. }));
}

#[test]
fn a_rejected_increment_stays_rejected() {
    let mut shard = Shard::new(LIMITS);
    shard.apply(&write(vec![put("n", "text")]));
    let refused = shard.apply(&add_in(1, 0));
    assert!(matches!(refusal(refused.clone()), Refusal::NotANumber(_)));
    // The answer was "not applied": a late attempt finds a number and must not contradict it.
    shard.apply(&write(vec![put("n", "1")]));
    assert_eq!(shard.apply(&add_in(1, 0)), refused);
    assert_eq!(shard.apply(&within(cancel(), session(0), 1, 0)), refused);
    assert_eq!(number(shard.apply(&add_in(2, 1))), 2);
}

#[test]
fn a_decided_write_is_answered_also_under_an_old_epoch() {
    let mut shard = Shard::new(LIMITS);
    let command = add_in(1, 0);
    done(shard.apply(&command));
    let old = |command| quorate_proto::raft::v1::Command { shard_epoch: 1, ..command };
    assert!(done(shard.apply(&old(command))).replayed);
    assert!(matches!(refusal(shard.apply(&old(add_in(2, 0)))), Refusal::WrongShard { .. }));
    let bar = within(cancel(), session(0), 3, 0);
    assert!(matches!(refusal(shard.apply(&old(bar))), Refusal::WrongShard { .. }));
}

#[test]
fn a_write_costs_one_session_row_more_and_one_less() {
    let mut shard = Shard::new(LIMITS);
    for sequence in 1..50 {
        shard.apply(&add_in(sequence, sequence));
        assert_eq!(shard.rows.of_kind(quorate_storage::RowKind::Session).count(), 1);
    }
}
