//! Answers of single writes and batches.

use bytes::Bytes;
use prost::Message;
use quorate_proto::{
    raft::v1::{ChangeMap, Command, Write, command::Action},
    v1::{Condition, condition::Expect},
};
use quorate_raft::{Entry, EntryKind, Index, Membership, NodeId, Replica, ReplicaId, Term};

use super::build::*;
use crate::{
    Applied, ApplyError, Done, NotANumber, OperationResult, Ownership, ReadValue, Refusal,
    StateMachine, WriteAnswer, sessions::SessionLimits,
};

fn shard() -> Shard {
    Shard::new(SessionLimits::LEVEL_1)
}

fn done(answer: WriteAnswer) -> Done {
    match answer {
        WriteAnswer::Done(done) => done,
        other => panic!("not decided: {other:?}"),
    }
}

fn one(answer: WriteAnswer) -> (bool, OperationResult) {
    let mut done = done(answer);
    assert_eq!(done.results.len(), 1);
    (done.applied, done.results.remove(0))
}

fn refusal(answer: WriteAnswer) -> Refusal {
    match answer {
        WriteAnswer::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn read(shard: &mut Shard, key: &str) -> Option<Bytes> {
    match one(shard.apply(&write(vec![get(key)]))).1.read {
        ReadValue::Value(value) => Some(value),
        ReadValue::None => None,
        ReadValue::Omitted => panic!("omitted"),
    }
}

#[test]
fn a_key_keeps_its_create_revision_until_it_is_deleted() {
    let mut shard = shard();
    let (_, first) = one(shard.apply(&write(vec![put("k", "a")])));
    assert_eq!((first.found, first.revision, first.create_revision), (false, 1, 1));
    let (_, second) = one(shard.apply(&write(vec![put("k", "b")])));
    assert_eq!((second.found, second.revision, second.create_revision), (true, 2, 1));
    let (_, gone) = one(shard.apply(&write(vec![delete("k")])));
    assert_eq!((gone.found, gone.revision, gone.create_revision), (true, 3, 0));
    let (_, again) = one(shard.apply(&write(vec![put("k", "c")])));
    assert_eq!((again.found, again.revision, again.create_revision), (false, 4, 4));
}

#[test]
fn a_delete_of_an_absent_key_is_applied_at_no_revision() {
    let (applied, result) = one(shard().apply(&write(vec![and_previous(delete("k"))])));
    assert!(applied);
    assert_eq!(result, OperationResult { condition_held: true, ..OperationResult::default() });
}

#[test]
fn an_empty_value_is_not_absence() {
    let mut shard = shard();
    assert_eq!(read(&mut shard, "k"), None);
    shard.apply(&write(vec![put("k", "")]));
    assert_eq!(read(&mut shard, "k"), Some(Bytes::new()));
    let (applied, _) = one(shard.apply(&write(vec![when(put("k", "x"), Expect::Absent(true))])));
    assert!(!applied);
    let (applied, _) = one(shard.apply(&write(vec![when(put("k", "x"), value(""))])));
    assert!(applied);
}

#[test]
fn a_false_condition_returns_the_value_and_changes_nothing() {
    let mut shard = shard();
    shard.apply(&write(vec![put("k", "old")]));
    let before = shard.rows.clone();
    for expect in [Expect::Absent(true), Expect::Revision(0), Expect::Revision(9), value("other")] {
        let command = write(vec![and_previous(when(put("k", "new"), expect))]);
        let (applied, result) = one(shard.apply(&command));
        assert!(!applied && !result.condition_held && result.found);
        assert_eq!((result.revision, result.create_revision), (1, 1));
        assert_eq!(result.previous.unwrap().value.unwrap(), "old");
    }
    assert_eq!(shard.rows, before);
    for expect in [Expect::Revision(1), value("old")] {
        let (applied, _) = one(shard.apply(&write(vec![when(get("k"), expect)])));
        assert!(applied);
    }
}

#[test]
fn revision_0_is_absence() {
    let mut shard = shard();
    let command = write(vec![when(put("k", "v"), Expect::Revision(0))]);
    assert!(one(shard.apply(&command)).0);
    assert!(!one(shard.apply(&command)).0);
}

#[test]
fn a_batch_is_all_or_nothing_and_judges_the_state_before_it() {
    let mut shard = shard();
    shard.apply(&write(vec![put("a", "1"), put("b", "2")]));
    let before = shard.rows.clone();
    let operations = vec![put("x", "9"), when(delete("b"), value("3")), add("c", 1), get("a")];
    let failed = done(shard.apply(&write(operations)));
    assert!(!failed.applied);
    assert_eq!(failed.results.iter().position(|result| !result.condition_held), Some(1));
    assert_eq!(
        failed.results[3].read,
        ReadValue::Omitted,
        "a get that was not carried out has no value"
    );
    assert_eq!(shard.rows, before);

    let operations = vec![
        put("a", "9"),
        when(delete("b"), value("2")),
        add("c", 5),
        check("d", Expect::Absent(true)),
        get("e"),
    ];
    let batch = done(shard.apply(&write(operations)));
    assert!(batch.applied);
    assert_eq!(batch.index, 3);
    let revisions: Vec<_> = batch.results.iter().map(|result| result.revision).collect();
    assert_eq!(revisions, [3, 3, 3, 0, 0]);
    assert_eq!(batch.results[2].number, Some(5));
    assert_eq!(read(&mut shard, "a").unwrap(), "9");
    assert_eq!(read(&mut shard, "b"), None);
}

#[test]
fn an_increment_reads_and_writes_decimal_text() {
    let mut shard = shard();
    assert_eq!(one(shard.apply(&write(vec![add("n", -3)]))).1.number, Some(-3));
    assert_eq!(read(&mut shard, "n").unwrap(), "-3");
    shard.apply(&write(vec![put("n", "41")]));
    assert_eq!(one(shard.apply(&write(vec![add("n", 1)]))).1.number, Some(42));
    assert_eq!(read(&mut shard, "n").unwrap(), "42");
    assert_eq!(one(shard.apply(&write(vec![add("n", 0)]))).1.revision, 6);
}

#[test]
fn an_increment_that_cannot_be_changes_nothing_of_its_batch() {
    let mut shard = shard();
    shard.apply(&write(vec![put("text", "ten"), put("big", i64::MAX.to_string())]));
    let before = shard.rows.clone();
    let not_a_number = shard.apply(&write(vec![put("a", "1"), add("text", 1)]));
    assert_eq!(
        refusal(not_a_number),
        Refusal::NotANumber(NotANumber { operation: 1, overflow: false })
    );
    let overflow = shard.apply(&write(vec![add("big", 1), put("a", "1")]));
    assert_eq!(refusal(overflow), Refusal::NotANumber(NotANumber { operation: 0, overflow: true }));
    assert_eq!(shard.rows, before);
    // A false condition decides before the numbers are read.
    let command = write(vec![add("text", 1), check("a", value("1"))]);
    assert!(!done(shard.apply(&command)).applied);
}

#[test]
fn values_beyond_3_mib_are_omitted_from_the_answer() {
    let mut shard = shard();
    let keys = ["a", "b", "c", "d"];
    for key in keys {
        shard.apply(&write(vec![put(key, vec![b'x'; 1 << 20])]));
    }
    shard.apply(&write(vec![put("small", "")]));
    let mut operations: Vec<_> = keys.iter().map(|key| get(key)).collect();
    operations.push(get("small"));
    let batch = done(shard.apply(&write(operations)));
    let omitted: Vec<_> =
        batch.results.iter().map(|result| result.read == ReadValue::Omitted).collect();
    assert_eq!(omitted, [false, false, false, true, false]);
    assert_eq!(batch.results[3].revision, 4, "the revision is there");

    // Previous values share the room.
    let operations = keys.iter().map(|key| and_previous(delete(key))).collect();
    let batch = done(shard.apply(&write(operations)));
    let kept: Vec<_> = batch
        .results
        .iter()
        .map(|result| result.previous.as_ref().unwrap().value.is_some())
        .collect();
    assert_eq!(kept, [true, true, true, false]);
}

#[test]
fn another_shard_epoch_or_range_is_rejected_at_apply() {
    let mut shard = shard();
    let put_k = || write(vec![put("k", "v")]);
    for wrong in [Command { shard: 6, ..put_k() }, Command { shard_epoch: 3, ..put_k() }] {
        assert!(matches!(refusal(shard.apply(&wrong)), Refusal::WrongShard { .. }));
    }
    let hash = quorate_proto::hash::key_hash(b"k");
    let ownership = Ownership { first: 0, last: hash - 1, ..OWNERSHIP };
    shard.machine = StateMachine::load_shard(ownership, SessionLimits::LEVEL_1, []).unwrap();
    assert!(matches!(refusal(shard.apply(&put_k())), Refusal::WrongShard { .. }));
    let ownership = Ownership { first: hash, last: hash, ..OWNERSHIP };
    shard.machine = StateMachine::load_shard(ownership, SessionLimits::LEVEL_1, []).unwrap();
    assert!(one(shard.apply(&put_k())).0, "both ends of the range are inclusive");
    let other_key = write(vec![put("k", "v"), put("l", "v")]);
    assert!(matches!(refusal(shard.apply(&other_key)), Refusal::WrongShard { .. }));
    let map = command(Action::ChangeMap(ChangeMap::default()));
    assert!(matches!(refusal(shard.apply(&map)), Refusal::WrongShard { .. }));
}

#[test]
fn a_feature_of_a_newer_version_stops_the_replica() {
    let mut unknown_kind = put("k", "v");
    unknown_kind.kind = None;
    let mut unknown_condition = put("k", "v");
    unknown_condition.condition = Some(Condition { expect: None });
    let plain = write(vec![put("k", "v")]);
    for command in [
        Command { version: 2, ..plain.clone() },
        Command { version: 0, ..plain.clone() },
        Command { feature_level: 3, ..plain.clone() },
        Command { feature_level: 0, ..plain.clone() },
        Command { action: None, ..plain.clone() },
        // At level 3, so that no replica carries it out as if there were no principal.
        Command { feature_level: 3, principal: Bytes::from_static(&[1; 16]), ..plain.clone() },
        write(vec![unknown_kind]),
        write(vec![unknown_condition]),
    ] {
        let mut shard = shard();
        let error = shard.try_apply(&command).unwrap_err();
        assert!(matches!(error, ApplyError::UnknownFeature { index: 1, .. }), "{error}");
        assert_eq!(shard.rows, Default::default());
    }
}

#[test]
fn a_malformed_command_is_rejected_and_a_broken_payload_stops_the_replica() {
    let mut bad_session = within(write(vec![put("k", "v")]), session(0), 1, 0);
    bad_session.session.as_mut().unwrap().id = Bytes::from_static(b"short");
    let mut without_client = within(write(vec![put("k", "v")]), session(0), 1, 0);
    without_client.session.as_mut().unwrap().client = Bytes::new();
    let mut cancel_without_client = within(cancel(), session(0), 1, 0);
    cancel_without_client.session.as_mut().unwrap().client = Bytes::from_static(b"short");
    let with_principal =
        |command: Command| Command { principal: Bytes::from_static(&[1; 16]), ..command };
    let write_of = |operations, content_digest| {
        let write = Write { operations, content_digest, ..Write::default() };
        within(command(Action::Write(write)), session(0), 1, 0)
    };
    for command in [
        write(vec![]),
        write(vec![put("", "v")]),
        write(vec![put(&"k".repeat(4_097), "v")]),
        write(vec![put("k", "v"), delete("k")]),
        bad_session,
        without_client,
        cancel_without_client,
        write_of(vec![put("k", "v")], Bytes::new()),
        write_of(vec![put("k", "v")], Bytes::from_static(&[1; 17])),
        cancel(),
        with_principal(write(vec![put("k", "v")])),
        with_principal(within(write(vec![put("k", "v")]), session(0), 1, 0)),
        with_principal(within(cancel(), session(0), 1, 0)),
    ] {
        let mut shard = shard();
        assert!(matches!(refusal(shard.apply(&command)), Refusal::Malformed { .. }), "{command:?}");
        assert_eq!(shard.rows, Default::default());
    }
    let mut shard = shard();
    let broken =
        Entry { payload: Bytes::from_static(b"\xff\xff"), ..entry(1, START_MS, &cancel()) };
    let error = shard.machine.apply_entry(&broken, &mut shard.rows).unwrap_err();
    assert!(matches!(error, ApplyError::Damaged(_)), "{error}");
}

#[test]
fn a_damaged_row_stops_the_replica() {
    use quorate_storage::{RowKey, RowKind};

    use crate::RowTransaction;

    let mut shard = shard();
    shard.rows.put(&RowKey::new(RowKind::User, 0, b"k"), b"\x07").unwrap();
    let error = shard.try_apply(&write(vec![put("k", "v")])).unwrap_err();
    assert!(matches!(error, ApplyError::Damaged(_)), "{error}");
}

#[test]
fn membership_and_empty_entries_are_returned_to_the_caller() {
    let mut shard = shard();
    let membership = Membership::of_voters([Replica { id: ReplicaId(4), node: NodeId(1) }]);
    let mut entry = Entry {
        term: Term(1),
        index: Index(1),
        kind: EntryKind::Membership,
        stamp: 0,
        payload: membership.encode(),
    };
    let applied = shard.machine.apply_entry(&entry, &mut shard.rows).unwrap();
    assert!(matches!(applied, Applied::Membership(found) if found == membership));
    entry.payload = Bytes::from_static(b"?");
    assert!(shard.machine.apply_entry(&entry, &mut shard.rows).is_err());
    entry.kind = EntryKind::Noop;
    assert!(matches!(shard.machine.apply_entry(&entry, &mut shard.rows), Ok(Applied::Noop)));
}

#[test]
fn a_value_does_not_pin_the_entry_it_came_in() {
    let command = write(vec![put("k", vec![7; 100])]);
    let payload = Bytes::from(command.encode_to_vec());
    let mut shard = shard();
    let place = Entry { payload: payload.clone(), ..entry(1, START_MS, &command) };
    shard.machine.apply_entry(&place, &mut shard.rows).unwrap();
    drop(place);
    assert!(payload.is_unique(), "the rows hold a copy");
}
