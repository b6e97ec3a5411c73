//! Each check of a request, and what a good one becomes.

use proptest::prelude::*;
use quorate_machine::{LogTime, MemoryRows, SessionLimits, StateMachine, WriteAnswer};
use quorate_proto::{
    content::content_hash,
    hash::even_range,
    limits::VALUE_BYTES_MAX,
    v1::{
        CheckAction, DeleteAction, GetAction, IncrementAction, Outcome, PutAction,
        batch_operation::Action as Asked, condition::Expect,
    },
};

use super::*;

const SESSION_KEY: SessionKey = SessionKey::from_bytes([7; 32]);
const RULES: RequestRules = RequestRules { value_bytes_max: 100, session_key: SESSION_KEY };

fn put() -> PutRequest {
    PutRequest {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        ..PutRequest::default()
    }
}

fn session_id() -> Bytes {
    let id = SessionId::from_slice(&[1; 24]).unwrap();
    Bytes::copy_from_slice(&SESSION_KEY.seal(&id, &SESSION_KEY.client(None)))
}

fn session(sequence: u64, answered_below: u64) -> WriteSession {
    WriteSession { id: session_id(), sequence, answered_below, last: true }
}

fn step(key: &'static str, action: Asked) -> BatchOperation {
    let key = Bytes::from_static(key.as_bytes());
    BatchOperation { key, action: Some(action), ..BatchOperation::default() }
}

fn step_put(key: &'static str) -> BatchOperation {
    step(key, Asked::Put(PutAction { value: Bytes::from_static(b"v") }))
}

fn batch_of(operations: Vec<BatchOperation>) -> BatchRequest {
    BatchRequest { operations, ..BatchRequest::default() }
}

fn on(expect: Option<Expect>) -> Option<Condition> {
    Some(Condition { expect })
}

/// Reason, field, limit, knob and sentence of a refused request.
#[track_caller]
fn refused(
    draft: Result<CommandDraft, Invalid>,
    reason: Reason,
    field: &str,
    (limit, config_key): (u64, &str),
    sentence: &str,
) {
    let invalid = draft.unwrap_err();
    assert_eq!((invalid.reason, invalid.field.as_str()), (reason, field), "{invalid}");
    assert_eq!((invalid.limit, invalid.config_key), (limit, config_key), "{invalid}");
    assert_eq!(invalid.to_string(), sentence);
}

const NONE: (u64, &str) = (0, "");

#[test]
fn keys_values_and_keyspaces_are_checked() {
    let empty = PutRequest { key: Bytes::new(), ..put() };
    let sentence = "key is empty; a key has at least one byte";
    refused(CommandDraft::put(&empty, &RULES), Reason::BadKey, "key", NONE, sentence);

    let longest = PutRequest { key: vec![b'k'; 4_096].into(), ..put() };
    assert!(CommandDraft::put(&longest, &RULES).is_ok());
    let long = PutRequest { key: vec![b'k'; 4_097].into(), ..put() };
    let sentence = "key is 4097 bytes long; the limit is 4096 bytes";
    refused(CommandDraft::put(&long, &RULES), Reason::BadKey, "key", (4_096, ""), sentence);

    assert!(CommandDraft::put(&PutRequest { value: vec![0; 100].into(), ..put() }, &RULES).is_ok());
    let large = PutRequest { value: vec![0; 101].into(), ..put() };
    let sentence = "value is 101 bytes long; the limit is 100 bytes, set by max-value-size";
    let limit = (100, "max-value-size");
    refused(CommandDraft::put(&large, &RULES), Reason::BadValue, "value", limit, sentence);

    let elsewhere = PutRequest { keyspace: "t\n1".to_owned(), ..put() };
    let sentence =
        r#"the keyspace "t\n1" does not exist; this version has the default one alone, named """#;
    refused(CommandDraft::put(&elsewhere, &RULES), Reason::BadKeyspace, "keyspace", NONE, sentence);
}

#[test]
fn conditions_are_checked() {
    let with = |expect| CommandDraft::put(&PutRequest { condition: on(expect), ..put() }, &RULES);
    for good in [Expect::Absent(true), Expect::Revision(0), Expect::Value(Bytes::new())] {
        assert!(with(Some(good)).is_ok());
    }
    let sentence = "condition says neither absent, revision nor value";
    refused(with(None), Reason::BadCondition, "condition", NONE, sentence);
    let sentence = "condition.absent is false; \"present with any value\" is not a condition";
    refused(with(Some(Expect::Absent(false))), Reason::BadCondition, "condition", NONE, sentence);
    let sentence =
        "condition.value is 101 bytes long; the limit is 100 bytes, set by max-value-size";
    let large = with(Some(Expect::Value(vec![0; 101].into())));
    refused(large, Reason::BadCondition, "condition.value", (100, "max-value-size"), sentence);

    let cas =
        CompareAndSetRequest { key: Bytes::from_static(b"k"), ..CompareAndSetRequest::default() };
    let sentence = "CompareAndSet needs what is expected; Put writes without a condition";
    refused(
        CommandDraft::compare_and_set(&cas, &RULES),
        Reason::BadCondition,
        "expect",
        NONE,
        sentence,
    );
    let cas = CompareAndSetRequest { expect: on(None), ..cas };
    let sentence = "expect says neither absent, revision nor value";
    refused(
        CommandDraft::compare_and_set(&cas, &RULES),
        Reason::BadCondition,
        "expect",
        NONE,
        sentence,
    );
}

#[test]
fn sessions_are_checked() {
    let with = |session| CommandDraft::put(&PutRequest { session: Some(session), ..put() }, &RULES);
    for (sequence, answered_below) in
        [(1, 0), (1, 1), (5, 5), (1_024, 0), (1_024, 1), (5_000, 3_977)]
    {
        assert!(with(session(sequence, answered_below)).is_ok(), "{sequence} {answered_below}");
    }
    let field = "session.answered_below";
    let sentence =
        "session.answered_below is 6, above the sequence 5 itself, which is not answered yet";
    refused(with(session(5, 6)), Reason::BadToken, field, NONE, sentence);
    let sentence = "with sequence 5000 more than 1024 writes of the session would be unanswered, \
                    the limit: session.answered_below is 3976";
    refused(with(session(5_000, 3_976)), Reason::SessionsFull, field, (1_024, ""), sentence);
    for answered_below in [0, 1] {
        let full = with(session(1_025, answered_below)).unwrap_err();
        assert_eq!(full.reason, Reason::SessionsFull, "{full}");
    }
    let sentence = "session.sequence is 0; sequences begin with 1";
    refused(with(session(0, 0)), Reason::BadToken, "session.sequence", NONE, sentence);
    let short = WriteSession { id: Bytes::from_static(b"short"), ..session(1, 0) };
    let sentence = "session.id is 5 bytes long; a session id has 56, as OpenSession gives it";
    refused(with(short), Reason::BadToken, "session.id", NONE, sentence);
    let forged = WriteSession { id: Bytes::from_static(&[1; 56]), ..session(1, 0) };
    let sentence = "session.id is not one that OpenSession of this cluster has given";
    refused(with(forged), Reason::BadToken, "session.id", NONE, sentence);
}

#[test]
fn batches_are_checked() {
    let draft = |operations| CommandDraft::batch(&batch_of(operations), &RULES);
    let sentence = "a Batch needs at least one operation";
    refused(draft(vec![]), Reason::BadRequest, "operations", NONE, sentence);
    let many = (0..4_097).map(|_| step_put("k")).collect();
    let sentence = "the Batch has 4097 operations; the limit is 4096";
    refused(draft(many), Reason::TooLarge, "operations", (4_096, ""), sentence);
    let no_action = BatchOperation { action: None, ..step_put("k") };
    let sentence = "operations[1] says neither put, delete, increment, check nor get";
    let refusal = draft(vec![step_put("j"), no_action]);
    refused(refusal, Reason::BadRequest, "operations[1].action", NONE, sentence);
    let sentence = "a check without a condition checks nothing";
    let refusal = draft(vec![step("k", Asked::Check(CheckAction {}))]);
    refused(refusal, Reason::BadCondition, "operations[0].condition", NONE, sentence);
    let twice =
        draft(vec![step_put("a"), step_put("k\0"), step("k\0", Asked::Delete(DeleteAction {}))]);
    let sentence =
        r#"operations[1] and operations[2] both name the key "k\x00"; a Batch names each key once"#;
    refused(twice, Reason::BadKey, "operations[2].key", NONE, sentence);
    let large = BatchOperation {
        action: Some(Asked::Put(PutAction { value: vec![0; 101].into() })),
        ..step_put("b")
    };
    let sentence =
        "operations[1].put.value is 101 bytes long; the limit is 100 bytes, set by max-value-size";
    let refusal = draft(vec![step_put("a"), large]);
    refused(
        refusal,
        Reason::BadValue,
        "operations[1].put.value",
        (100, "max-value-size"),
        sentence,
    );
    let sentence = "operations[0].key is empty; a key has at least one byte";
    refused(draft(vec![step_put("")]), Reason::BadKey, "operations[0].key", NONE, sentence);
}

#[test]
fn a_batch_over_2_mib_is_too_large() {
    let keys: Vec<String> = (0..3).map(|i| format!("{{t}}{i}")).collect();
    let operations = keys.iter().map(|key| BatchOperation {
        key: Bytes::copy_from_slice(key.as_bytes()),
        action: Some(Asked::Put(PutAction { value: vec![0; 700 << 10].into() })),
        ..BatchOperation::default()
    });
    let invalid = CommandDraft::batch(
        &batch_of(operations.collect()),
        &RequestRules { value_bytes_max: VALUE_BYTES_MAX, ..RULES },
    )
    .unwrap_err();
    assert_eq!((invalid.reason, invalid.limit), (Reason::TooLarge, 2 << 20), "{invalid}");
}

#[test]
fn a_cancel_is_checked() {
    let good = CancelRequest {
        key: Bytes::from_static(b"k"),
        session_id: session_id(),
        sequence: 3,
        ..CancelRequest::default()
    };
    let draft = CommandDraft::cancel(&good, &RULES).unwrap();
    assert_eq!(draft.key_hash(), key_hash(b"k"));
    assert!(draft.has_session() && draft.operations().is_empty());
    for (bad, field) in [
        (CancelRequest { key: Bytes::new(), ..good.clone() }, "key"),
        (CancelRequest { session_id: Bytes::new(), ..good.clone() }, "session_id"),
        (CancelRequest { sequence: 0, ..good.clone() }, "sequence"),
        (CancelRequest { keyspace: "x".to_owned(), ..good.clone() }, "keyspace"),
    ] {
        assert_eq!(CommandDraft::cancel(&bad, &RULES).unwrap_err().field, field);
    }
}

fn shards(count: u64) -> Vec<MapShard> {
    let shard = |i| {
        let (first, last) = even_range(i, count);
        MapShard { id: i + 1, first, last, epoch: 1, ..MapShard::default() }
    };
    (0..count).map(shard).collect()
}

#[test]
fn a_batch_over_two_shards_names_keys_shards_and_the_remedy() {
    let shards = shards(64);
    let draft = |keys: [&'static str; 2]| {
        CommandDraft::batch(&batch_of(keys.map(step_put).to_vec()), &RULES).unwrap()
    };
    let together = draft(["{t}a", "{t}b"]);
    assert_eq!(
        together.shard_in(&shards).unwrap().unwrap().id,
        owner(&shards, key_hash(b"t")).unwrap() as u64 + 1
    );

    let id = |key: &[u8]| owner(&shards, key_hash(key)).unwrap() + 1;
    let (a, b) = (id(b"a\xff"), id(b"b"));
    assert_ne!(a, b, "the test needs keys of two shards");
    let operations =
        vec![BatchOperation { key: Bytes::from_static(b"a\xff"), ..step_put("") }, step_put("b")];
    let invalid =
        CommandDraft::batch(&batch_of(operations), &RULES).unwrap().shard_in(&shards).unwrap_err();
    assert_eq!((invalid.reason, invalid.field.as_str()), (Reason::CrossShard, "operations[1].key"));
    let sentence = invalid.to_string();
    for part in [
        format!(r#"the key "a\xff" is in shard {a} and the key "b" in shard {b}"#),
        r#""{user1}:name" and "{user1}:mail""#.to_owned(),
    ] {
        assert!(sentence.contains(&part), "{sentence}");
    }
    assert!(draft(["a", "b"]).shard_in(&[]).unwrap().is_none(), "no map, no shard");
}

#[test]
fn long_keys_are_cut_in_sentences() {
    let key = vec![b'k'; 4_096];
    let shown = ShownKey(&key).to_string();
    assert_eq!(shown, format!("\"{}…\"", "k".repeat(48)));
    let operations: Vec<_> =
        (0..2).map(|_| BatchOperation { key: key.clone().into(), ..step_put("") }).collect();
    assert!(CommandDraft::batch(&batch_of(operations), &RULES).unwrap_err().message.len() < 200);
}

#[test]
fn an_invalid_request_is_a_failure_that_was_not_applied() {
    let long = PutRequest { value: vec![0; 101].into(), ..put() };
    let failure = CommandDraft::put(&long, &RULES).unwrap_err().failure();
    assert_eq!(failure.reason, Reason::BadValue as i32);
    assert_eq!(failure.outcome, Outcome::NotApplied as i32);
    assert_eq!(
        (failure.field.as_str(), failure.limit, failure.config_key.as_str()),
        ("value", 100, "max-value-size")
    );
}

#[test]
fn a_get_has_one_canonical_form() {
    let hash = |return_previous| {
        let get = BatchOperation { return_previous, ..step("k", Asked::Get(GetAction {})) };
        let draft = CommandDraft::batch(&batch_of(vec![get]), &RULES).unwrap();
        content_hash(draft.operations())
    };
    assert_eq!(hash(true), hash(false));
}

#[test]
fn an_encoded_draft_is_what_apply_takes() {
    use quorate_raft::{Entry, EntryKind, Index, Term};

    let ownership =
        quorate_machine::Ownership { shard: 3, shard_epoch: 4, first: 0, last: u64::MAX };
    let mut machine = StateMachine::load_shard(ownership, SessionLimits::LEVEL_1, []).unwrap();
    let mut rows = MemoryRows::default();
    let session = WriteSession { last: false, ..session(1, 0) };
    let request = PutRequest { session: Some(session), return_previous: true, ..put() };
    let increment = step("n", Asked::Increment(IncrementAction { delta: -4 }));
    let batch = batch_of(vec![step_put("k"), increment]);
    let mut drafts = [
        CommandDraft::put(&request, &RULES).unwrap(),
        CommandDraft::batch(&batch, &RULES).unwrap(),
    ];
    for (draft, index) in drafts.iter_mut().zip(1..) {
        let payload = draft.encode(3, 4);
        // All ones as the id: its birth is the log time of the test.
        let stamp = LogTime(u64::from_be_bytes([1; 8])).0;
        let entry =
            Entry { term: Term(1), index: Index(index), kind: EntryKind::Command, stamp, payload };
        match machine.apply_entry(&entry, &mut rows).unwrap() {
            quorate_machine::Applied::Command(WriteAnswer::Done(done)) => assert!(done.applied),
            other => panic!("{other:?}"),
        }
    }
    assert!(drafts[0].has_session() && !drafts[1].has_session());
    let levels = drafts.each_ref().map(|draft| draft.command.feature_level);
    assert_eq!(levels, [2, 1], "a version that knows no more applies a write without a session");
    let session = drafts[0].command.session.as_ref().unwrap();
    assert_eq!(session.client, &SESSION_KEY.client(None).as_bytes()[..]);
}

proptest! {
    /// Whatever the checks let through, apply does not call malformed.
    #[test]
    fn what_is_accepted_is_never_malformed(
        keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3), 0..4),
        action in 0..6u8,
        condition in prop::option::of(prop::option::of(0..3u64)),
    ) {
        let operation = |key: &Vec<u8>| BatchOperation {
            key: Bytes::copy_from_slice(key),
            condition: condition.map(|expect| Condition { expect: expect.map(Expect::Revision) }),
            return_previous: true,
            action: match action {
                0 => None,
                1 => Some(Asked::Put(PutAction::default())),
                2 => Some(Asked::Delete(DeleteAction {})),
                3 => Some(Asked::Increment(IncrementAction { delta: 1 })),
                4 => Some(Asked::Check(CheckAction {})),
                _ => Some(Asked::Get(GetAction {})),
            },
        };
        let request = batch_of(keys.iter().map(operation).collect());
        if let Ok(draft) = CommandDraft::batch(&request, &RULES) {
            let Some(Action::Write(write)) = &draft.command.action else { panic!("not a write") };
            prop_assert_eq!(quorate_machine::check_write(write, 1).unwrap(), Ok(()));
        }
    }
}
