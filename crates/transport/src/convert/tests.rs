use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn log_ids() -> impl Strategy<Value = LogId> {
    any::<(u64, u64)>().prop_map(|(term, index)| LogId::new(Term(term), Index(index)))
}

fn replicas() -> impl Strategy<Value = Replica> {
    any::<(u64, u64)>().prop_map(|(id, node)| Replica::new(ReplicaId(id), NodeId(node)))
}

fn sessions() -> impl Strategy<Value = ReplicationSession> {
    any::<(u64, u64)>().prop_map(|(term, counter)| ReplicationSession { term: Term(term), counter })
}

fn timings() -> impl Strategy<Value = Timing> {
    any::<(u64, u64, u64, u64, u64, u64)>().prop_map(|(probe, echo, commit, boot, round, clock)| {
        Timing {
            probe_time: Ticks(probe),
            echo_time: Ticks(echo),
            echo_commit: Index(commit),
            boot,
            round,
            clock,
        }
    })
}

fn entries() -> impl Strategy<Value = Entry> {
    let kinds =
        prop_oneof![Just(EntryKind::Noop), Just(EntryKind::Command), Just(EntryKind::Membership)];
    let payloads = proptest::collection::vec(any::<u8>(), 0..300);
    (log_ids(), kinds, any::<u64>(), payloads).prop_map(|(id, kind, stamp, payload)| Entry {
        term: id.term,
        index: id.index,
        kind,
        stamp,
        payload: Bytes::from(payload),
    })
}

fn metas() -> impl Strategy<Value = SnapshotMeta> {
    let members = proptest::collection::btree_map(1..u64::MAX, any::<u64>(), 1..6);
    (log_ids(), any::<u64>(), members).prop_map(|(last, stamp, members)| {
        let voters =
            members.into_iter().map(|(id, node)| Replica::new(ReplicaId(id), NodeId(node)));
        SnapshotMeta { last, stamp, membership: Membership::of_voters(voters) }
    })
}

fn append_results() -> impl Strategy<Value = AppendResult> {
    prop_oneof![
        any::<u64>().prop_map(|last| AppendResult::Accepted { last: Index(last) }),
        (any::<u64>(), log_ids())
            .prop_map(|(prev, hint)| AppendResult::Rejected { prev: Index(prev), hint }),
    ]
}

fn requests() -> impl Strategy<Value = ReadRequest> {
    any::<(u64, u64)>().prop_map(|(boot, counter)| ReadRequest { boot, counter })
}

fn messages() -> impl Strategy<Value = Message> {
    let entries = proptest::collection::vec(entries(), 0..4);
    let append = (sessions(), log_ids(), any::<u64>(), entries, timings());
    prop_oneof![
        log_ids().prop_map(|last| Message::PreVote { last }),
        any::<(u64, bool)>().prop_map(|(proposed, granted)| {
            Message::PreVoteReply { proposed: Term(proposed), granted }
        }),
        (log_ids(), any::<bool>()).prop_map(|(last, transfer)| Message::Vote { last, transfer }),
        any::<(u64, bool)>()
            .prop_map(|(asked, granted)| { Message::VoteReply { asked: Term(asked), granted } }),
        append.prop_map(|(session, prev, commit, entries, timing)| {
            Message::Append { session, prev, commit: Index(commit), entries, timing }
        }),
        (sessions(), append_results(), timings())
            .prop_map(|(session, result, timing)| Message::AppendReply { session, result, timing }),
        (sessions(), any::<u64>(), timings()).prop_map(|(session, commit, timing)| {
            Message::Heartbeat { session, commit: Index(commit), timing }
        }),
        (sessions(), any::<bool>(), proptest::option::of(log_ids()), timings()).prop_map(
            |(session, installing, last, timing)| Message::HeartbeatReply {
                session,
                installing,
                last,
                timing
            }
        ),
        (sessions(), metas())
            .prop_map(|(session, meta)| Message::InstallSnapshot { session, meta }),
        (sessions(), any::<Option<u64>>()).prop_map(|(session, last)| Message::SnapshotReply {
            session,
            result: last.map_or(SnapshotResult::Failed, |last| SnapshotResult::Installed {
                last: Index(last)
            }),
        }),
        requests().prop_map(|request| Message::ReadIndex { request }),
        (requests(), any::<Option<u64>>()).prop_map(|(request, index)| {
            Message::ReadIndexReply { request, index: index.map(Index) }
        }),
        log_ids().prop_map(|last| Message::TimeoutNow { last }),
        Just(Message::ReplicaGone),
    ]
}

fn envelopes() -> impl Strategy<Value = Envelope> {
    (any::<u64>(), replicas(), replicas(), any::<u64>(), messages()).prop_map(
        |(group, from, to, term, message)| Envelope {
            group: GroupId(group),
            from,
            to,
            term: Term(term),
            message,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_message_survives_the_wire(envelope in envelopes()) {
        let bytes = Bytes::from(to_wire(envelope.clone()).encode_to_vec());
        let decoded = wire::Envelope::decode(bytes).unwrap();
        prop_assert_eq!(from_wire(decoded), Ok(envelope));
    }

    #[test]
    fn the_size_bound_is_a_bound(envelope in envelopes()) {
        let frame = wire::Frame {
            number: u64::MAX,
            messages: vec![to_wire(envelope.clone())],
            log_sequence: u64::MAX,
            live: None,
        };
        prop_assert!(frame.encoded_len() <= size_bound(&envelope));
    }

    #[test]
    fn garbage_is_an_error_or_a_message_but_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok(decoded) = wire::Envelope::decode(&bytes[..]) {
            let _ = from_wire(decoded);
        }
    }
}

/// A payload must not be copied between the receive buffer and the log.
#[test]
fn a_decoded_payload_is_a_slice_of_the_frame() {
    let payload = Bytes::from(vec![7; 10_000]);
    let entry = Entry {
        term: Term(1),
        index: Index(1),
        kind: EntryKind::Command,
        stamp: 1,
        payload: payload.clone(),
    };
    let wired = entry_to_wire(entry);
    assert_eq!(wired.payload.as_ptr(), payload.as_ptr());
    let frame = Bytes::from(wired.encode_to_vec());
    let decoded = read_entry(wire::Entry::decode(frame.clone()).unwrap()).unwrap();
    assert!(frame.as_ptr_range().contains(&decoded.payload.as_ptr()));
}

#[test]
fn each_missing_part_is_named() {
    let whole = to_wire(Envelope {
        group: GroupId(1),
        from: Replica::new(ReplicaId(1), NodeId(1)),
        to: Replica::new(ReplicaId(2), NodeId(2)),
        term: Term(1),
        message: Message::Append {
            session: ReplicationSession::default(),
            prev: LogId::ZERO,
            commit: Index(0),
            entries: vec![Entry {
                term: Term(1),
                index: Index(1),
                kind: EntryKind::Noop,
                stamp: 1,
                payload: Bytes::new(),
            }],
            timing: Timing::default(),
        },
    });
    let broken = |breaking: fn(&mut wire::Envelope)| {
        let mut envelope = whole.clone();
        breaking(&mut envelope);
        from_wire(envelope).unwrap_err().0
    };
    fn append(envelope: &mut wire::Envelope) -> &mut wire::Append {
        match envelope.message.as_mut() {
            Some(Content::Append(append)) => append,
            other => panic!("not an append: {other:?}"),
        }
    }
    assert_eq!(broken(|e| e.from = None), "an envelope has no sender");
    assert_eq!(broken(|e| e.to = None), "an envelope has no receiver");
    assert_eq!(broken(|e| e.message = None), "an envelope has no message of a kind known here");
    assert_eq!(broken(|e| append(e).session = None), "Append has no session");
    assert_eq!(broken(|e| append(e).prev = None), "Append has no prev");
    assert_eq!(broken(|e| append(e).timing = None), "Append has no timing");
    assert_eq!(broken(|e| append(e).entries[0].kind = 0), "an entry has the unknown kind 0");
    assert_eq!(broken(|e| append(e).entries[0].kind = 4), "an entry has the unknown kind 4");
    assert_eq!(broken(|e| append(e).entries[0].kind = 257), "an entry has the unknown kind 257");
    let reply = |result| {
        from_wire(wire::Envelope {
            message: Some(Content::AppendReply(wire::AppendReply {
                session: session_to_wire(ReplicationSession::default()),
                timing: timing_to_wire(Timing::default()),
                result,
            })),
            ..whole.clone()
        })
        .unwrap_err()
        .0
    };
    assert_eq!(reply(None), "AppendReply has no result");
    let rejected = wire::AppendRejected { prev: 1, hint: None };
    let rejected = Some(wire::append_reply::Result::Rejected(rejected));
    assert_eq!(reply(rejected), "AppendReply has no hint");
}

/// Nodes of neighbouring versions talk to each other: what stands here never changes.
#[test]
fn the_wire_form_is_fixed() {
    let last = LogId::new(Term(1), Index(2));
    let session = ReplicationSession { term: Term(3), counter: 4 };
    let timing = Timing {
        probe_time: Ticks(5),
        echo_time: Ticks(6),
        echo_commit: Index(7),
        boot: 0,
        round: 8,
        clock: 9,
    };
    let entry = |kind| Entry {
        term: Term(1),
        index: Index(3),
        kind,
        stamp: 10,
        payload: Bytes::from_static(b"p"),
    };
    let entries =
        vec![entry(EntryKind::Noop), entry(EntryKind::Command), entry(EntryKind::Membership)];
    let membership = Membership::of_voters([Replica::new(ReplicaId(1), NodeId(2))]);
    let meta = SnapshotMeta { last, stamp: 11, membership };
    let request = ReadRequest { boot: 12, counter: 13 };
    let rejected = AppendResult::Rejected { prev: Index(15), hint: last };
    let installed = SnapshotResult::Installed { last: Index(16) };
    let messages = [
        Message::PreVote { last },
        Message::PreVoteReply { proposed: Term(14), granted: true },
        Message::Vote { last, transfer: true },
        Message::VoteReply { asked: Term(0), granted: true },
        Message::Append { session, prev: last, commit: Index(15), entries, timing },
        Message::AppendReply {
            session,
            result: AppendResult::Accepted { last: Index(15) },
            timing,
        },
        Message::AppendReply { session, result: rejected, timing },
        Message::Heartbeat { session, commit: Index(15), timing },
        Message::HeartbeatReply { session, installing: true, last: None, timing },
        Message::InstallSnapshot { session, meta },
        Message::SnapshotReply { session, result: installed },
        Message::SnapshotReply { session, result: SnapshotResult::Failed },
        Message::ReadIndex { request },
        Message::ReadIndexReply { request, index: Some(Index(17)) },
        Message::TimeoutNow { last },
        Message::ReplicaGone,
        Message::Heartbeat { session, commit: Index(15), timing: Timing { boot: 18, ..timing } },
        Message::HeartbeatReply { session, installing: false, last: Some(last), timing },
        Message::VoteReply { asked: Term(14), granted: true },
    ];
    let got: Vec<String> = messages
        .into_iter()
        .map(|message| {
            let name = message.name();
            let envelope = Envelope {
                group: GroupId(1),
                from: Replica::new(ReplicaId(2), NodeId(3)),
                to: Replica::new(ReplicaId(4), NodeId(5)),
                term: Term(6),
                message,
            };
            format!("{name} {}", hex::encode(to_wire(envelope).encode_to_vec()))
        })
        .collect();
    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(got, golden, "\n{}", got.join("\n"));
}
