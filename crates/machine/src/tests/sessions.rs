//! The rules of exactly-once sessions, one test each.

use super::build::*;
use crate::{Done, Full, LogTime, Refusal, WriteAnswer, sessions::SessionLimits};

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

/// Two values with one xxh3_64 of the whole write, for a key of 44 bytes: the form has 20 bytes and
/// the key before the value, so the value begins at a stripe. Where the low half of a lane is that
/// of the hash's own secret, its product is nothing, and only the sum of such lanes of two stripes
/// counts: their high halves may be swapped.
fn colliding(first: u32, second: u32) -> Vec<u8> {
    let mut value = vec![0; 256];
    for (at, low, high) in [(0, 0x2c81_017c_u32, first), (64, 0xe96d_d4de, second)] {
        value[at..at + 4].copy_from_slice(&low.to_le_bytes());
        value[at + 4..at + 8].copy_from_slice(&high.to_le_bytes());
    }
    value
}

#[test]
fn a_chosen_collision_of_the_old_hash_is_another_write() {
    use std::slice;

    use quorate_proto::{content::content_hash, raft::v1::Command};

    let key = "k".repeat(44);
    let [one, other] = [colliding(1, 2), colliding(2, 1)].map(|value| put(&key, value));
    assert_eq!(
        content_hash(slice::from_ref(&one)),
        content_hash(slice::from_ref(&other)),
        "they collide"
    );
    let proposed = |operation| {
        let session = within(cancel(), session(0), 1, 0).session;
        let command = crate::command::write(vec![operation], session);
        let Command { shard, shard_epoch, .. } = cancel();
        Command { shard, shard_epoch, ..command }
    };
    let mut shard = Shard::new(LIMITS);
    done(shard.apply(&proposed(one.clone())));
    let reused = Refusal::SequenceReused { sequence: 1 };
    assert_eq!(refusal(shard.apply(&proposed(other))), reused);
    assert!(done(shard.apply(&proposed(one))).replayed);
}

/// A log that was begun by an older version continues with this one.
#[test]
fn a_retry_of_another_level_is_compared_with_the_hash_of_the_row() {
    let of_level = |level, command| if level == 1 { at_level_1(command) } else { command };
    for (first, again) in [(1, 2), (2, 1)] {
        let mut shard = Shard::new(LIMITS);
        let other = within(write(vec![add("n", 2)]), session(0), 1, 0);
        shard.apply(&of_level(first, add_in(1, 0)));
        assert!(done(shard.apply(&of_level(again, add_in(1, 0)))).replayed);
        let reused = Refusal::SequenceReused { sequence: 1 };
        assert_eq!(refusal(shard.apply(&of_level(again, other))), reused);
        // The row keeps its format, also where the retry writes it anew.
        let third = of_level(first, add_in(3, 0));
        done(shard.apply(&third));
        assert!(done(shard.apply(&of_level(again, add_in(3, 3)))).replayed);
        let rows = shard.rows.of_kind(quorate_storage::RowKind::Session).map(Result::unwrap);
        assert_eq!(rows.map(|(_, row)| row[0]).collect::<Vec<_>>(), [first]);
    }
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
    let full = Refusal::SessionsFull(Full::Session { sequences: 1_024 });
    assert_eq!(refusal(shard.apply(&add_in(1_025, 0))), full);
    assert_eq!(refusal(shard.apply(&add_in(1_025, 1))), full, "nothing below 1 was remembered");
    assert_eq!(shard.rows, rows);
    assert!(done(shard.apply(&add_in(1, 0))).replayed, "no live row was evicted");
    assert_eq!(number(shard.apply(&add_in(1_025, 2))), 1_025);
}

#[test]
fn a_full_table_rejects_new_sequences_and_evicts_nothing() {
    let mut shard = Shard::new(SessionLimits { bytes_max: 1_000, ..LIMITS });
    // Each of its own client, or of level 1, which knows none.
    let in_session = |born: u64, sequence, below| {
        let command = within(write(vec![add("n", 1)]), session(born), sequence, below);
        if born.is_multiple_of(2) { at_level_1(command) } else { by(born as u8, command) }
    };
    let mut taken = 0;
    while let WriteAnswer::Done(_) = shard.apply(&in_session(taken, 1, 0)) {
        taken += 1;
    }
    assert!((5..12).contains(&taken), "{taken} rows fill 1,000 bytes");
    let full = Refusal::SessionsFull(Full::Table { bytes: 1_000 });
    assert_eq!(refusal(shard.apply(&in_session(taken, 1, 0))), full);
    assert_eq!(refusal(shard.apply(&in_session(0, 2, 0))), full);
    assert_eq!(refusal(shard.apply(&in_session(1, 2, 0))), full);
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

/// The bytes of the table, and of a client.
fn bytes(shard: &Shard, number: u8) -> (u64, u64) {
    let sessions = shard.machine.sessions().unwrap();
    (sessions.bytes(), sessions.of_client(&client(number)))
}

#[test]
fn clients_that_take_all_they_can_leave_room_for_others() {
    let max = 40_000;
    let mut shard = Shard::new(SessionLimits { bytes_max: max, ..LIMITS });
    let long = |number, born, sequence| {
        let put = and_previous(put("k", vec![b'x'; 1_000]));
        by(number, within(write(vec![put]), session(born), sequence, 0))
    };
    done(shard.apply(&long(1, 0, 1)));
    // Many sequences of few sessions, and many sessions: all count.
    let mut refused = 0;
    for born in 0..20 {
        for sequence in 1..=5 {
            if let WriteAnswer::Refused(refusal) = shard.apply(&long(1, born, sequence)) {
                let (taken, own) = bytes(&shard, 1);
                let full = Full::Share { own, free: max - taken };
                assert_eq!(refusal, Refusal::SessionsFull(full));
                refused += 1;
            }
        }
    }
    let (_, own) = bytes(&shard, 1);
    assert!(refused > 0 && (max / 2..max / 2 + 1_500).contains(&own), "{own} of {max} bytes");
    for number in 2..6 {
        let (taken, _) = bytes(&shard, number);
        let mut born = 20 * u64::from(number);
        while let WriteAnswer::Done(_) = shard.apply(&long(number, born, 1)) {
            born += 1;
        }
        let (all, own) = bytes(&shard, number);
        let expected = (max - taken) / 2;
        assert!((expected..expected + 1_500).contains(&own), "{own} of {taken} free");
        assert!(all < max, "something is left");
    }
    // Level 1 knows no clients, and every replica decides as it did.
    done(shard.apply(&at_level_1(long(1, 500, 1))));
    // All of it comes back with time.
    shard.now_ms += TTL_MS + 1_000;
    for _ in 0..20 {
        shard.apply(&write(vec![get("n")]));
    }
    assert_eq!(bytes(&shard, 1), (0, 0));
    done(shard.apply(&long(1, TTL_MS, 1)));
}

#[test]
fn a_session_continues_when_its_client_has_its_share() {
    let mut shard = Shard::new(SessionLimits { bytes_max: 4_000, ..LIMITS });
    let add_of = |number, born, sequence, below| {
        by(number, within(write(vec![add("n", 1)]), session(born), sequence, below))
    };
    let mut born = 0;
    while let WriteAnswer::Done(_) = shard.apply(&add_of(1, born, 1, 0)) {
        born += 1;
    }
    // Another one takes of what was free: the first has more than is left now.
    while let WriteAnswer::Done(_) = shard.apply(&add_of(2, born, 1, 0)) {
        born += 1;
    }
    let is_share = |answer| matches!(refusal(answer), Refusal::SessionsFull(Full::Share { .. }));
    assert!(is_share(shard.apply(&add_of(1, 0, 2, 0))), "one row more");
    let before = bytes(&shard, 1);
    for sequence in 2..20 {
        done(shard.apply(&add_of(1, 0, sequence, sequence)));
    }
    assert!(bytes(&shard, 1).1 < before.1 + 16, "it replaces its own row");
    let long = and_previous(put("n", "1"));
    let long = within(write(vec![long]), session(0), 20, 20);
    assert!(is_share(shard.apply(&long)), "a row that may be long replaces none");
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
