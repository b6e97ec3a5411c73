//! Fuzzing with messages that no sound peer would send, at a replica in any role: they may be
//! answered or ignored, but never make it panic.

use crate::support::{Bench, replica};
use bytes::Bytes;
use proptest::prelude::*;
use quorate_raft::{
    AppendResult, Config, Entry, EntryKind, Index, LogId, Membership, Message, ReadId, ReadRequest,
    ReplicationSession, SnapshotMeta, SnapshotResult, Term, Ticks, Timing,
};

/// Small numbers, which match existing ones, and numbers at the end of the range.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..8, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => any::<u64>()]
}

fn position() -> impl Strategy<Value = LogId> {
    (number(), number()).prop_map(|(term, index)| LogId::new(Term(term), Index(index)))
}

fn session() -> impl Strategy<Value = ReplicationSession> {
    (number(), number())
        .prop_map(|(term, counter)| ReplicationSession { term: Term(term), counter })
}

fn timing() -> impl Strategy<Value = Timing> {
    (number(), number(), number(), number()).prop_map(|(probe, echo, commit, round)| Timing {
        probe_time: Ticks(probe),
        echo_time: Ticks(echo),
        echo_commit: Index(commit),
        boot: round,
        round,
        clock: round,
    })
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (position(), 0_u8..3, number()).prop_map(|(id, kind, stamp)| {
        let (kind, payload) = match kind {
            0 => (EntryKind::Command, Bytes::from_static(b"x")),
            1 => (EntryKind::Membership, Bytes::from_static(b"not one")),
            _ => {
                let voters = Membership::of_voters([replica(1), replica(2)]);
                (EntryKind::Membership, voters.encode())
            }
        };
        Entry { term: id.term, index: id.index, kind, stamp, payload }
    });
    prop::collection::vec(entry, 0..4)
}

/// Consecutive entries after a position, which pass the first check.
fn run() -> impl Strategy<Value = (LogId, Vec<Entry>)> {
    (position(), prop::collection::vec(0_u64..3, 0..4)).prop_map(|(prev, steps)| {
        let mut before = prev;
        let entries = steps.into_iter().map(|step| {
            let term = Term(before.term.0.saturating_add(step));
            before = LogId::new(term, before.index.next());
            let (kind, payload) = (EntryKind::Command, Bytes::from_static(b"x"));
            Entry { term, index: before.index, kind, stamp: before.index.0, payload }
        });
        (prev, entries.collect())
    })
}

fn message() -> impl Strategy<Value = Message> {
    let request = || (number(), number()).prop_map(|(boot, counter)| ReadRequest { boot, counter });
    let replies = prop_oneof![
        (number(), any::<bool>()).prop_map(|(proposed, granted)| Message::PreVoteReply {
            proposed: Term(proposed),
            granted
        }),
        (number(), any::<bool>())
            .prop_map(|(asked, granted)| Message::VoteReply { asked: Term(asked), granted }),
        (session(), number(), timing()).prop_map(|(session, last, timing)| Message::AppendReply {
            session,
            result: AppendResult::Accepted { last: Index(last) },
            timing
        }),
        (session(), number(), position(), timing()).prop_map(|(session, prev, hint, timing)| {
            let result = AppendResult::Rejected { prev: Index(prev), hint };
            Message::AppendReply { session, result, timing }
        }),
        (session(), any::<bool>(), prop::option::of(position()), timing()).prop_map(
            |(session, installing, last, timing)| Message::HeartbeatReply {
                session,
                installing,
                last,
                timing
            }
        ),
        (session(), number()).prop_map(|(session, last)| Message::SnapshotReply {
            session,
            result: SnapshotResult::Installed { last: Index(last) }
        }),
        session()
            .prop_map(|session| Message::SnapshotReply { session, result: SnapshotResult::Failed }),
        (request(), prop::option::of(number())).prop_map(|(request, index)| {
            Message::ReadIndexReply { request, index: index.map(Index) }
        }),
        Just(Message::ReplicaGone),
    ];
    let requests = prop_oneof![
        position().prop_map(|last| Message::PreVote { last }),
        (position(), any::<bool>()).prop_map(|(last, transfer)| Message::Vote { last, transfer }),
        (session(), position(), number(), entries(), timing()).prop_map(
            |(session, prev, commit, entries, timing)| Message::Append {
                session,
                prev,
                commit: Index(commit),
                entries,
                timing
            }
        ),
        (session(), run(), number(), timing()).prop_map(
            |(session, (prev, entries), commit, timing)| Message::Append {
                session,
                prev,
                commit: Index(commit),
                entries,
                timing
            }
        ),
        (session(), number(), timing()).prop_map(|(session, commit, timing)| {
            Message::Heartbeat { session, commit: Index(commit), timing }
        }),
        (session(), position(), number()).prop_map(|(session, last, stamp)| {
            let membership = Membership::of_voters([replica(1), replica(2), replica(3)]);
            Message::InstallSnapshot { session, meta: SnapshotMeta { last, stamp, membership } }
        }),
        request().prop_map(|request| Message::ReadIndex { request }),
        position().prop_map(|last| Message::TimeoutNow { last }),
    ];
    prop_oneof![replies, requests]
}

/// One step of a run: a message or another input.
#[derive(Clone, Debug)]
enum Step {
    /// With `current`, its term and session are the current ones, so that it passes the first
    /// checks.
    Message {
        from: u64,
        term: u64,
        current: bool,
        message: Message,
    },
    Timeout,
    Elect,
    Propose,
    Read,
    Tick(u64),
    Transfer(u64),
    Installed(bool),
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    let message = (2_u64..5, number(), any::<bool>(), message());
    prop_oneof![
        12 => message.prop_map(|(from, term, current, message)| {
            Step::Message { from, term, current, message }
        }),
        1 => Just(Step::Timeout),
        2 => Just(Step::Elect),
        1 => Just(Step::Propose),
        1 => Just(Step::Read),
        1 => (0_u64..200).prop_map(Step::Tick),
        1 => (1_u64..5).prop_map(Step::Transfer),
        1 => any::<bool>().prop_map(Step::Installed),
        1 => Just(Step::Compact),
    ]
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn no_message_breaks_a_replica(
        pre_vote in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let config = Config { pre_vote, check_quorum: pre_vote, ..Config::default() };
        let mut bench = Bench::with(config.clone(), 1, 3, 2, &[1, 2]);
        let mut stopped_for = 0;
        for step in steps {
            stopped_for += u32::from(bench.raft.fault().is_some());
            if stopped_for == 5 {
                // A fault stopped the replica. Start it again for the remaining steps.
                bench = Bench::with(config.clone(), 1, 3, 2, &[1, 2]);
                stopped_for = 0;
            }
            let now = Ticks(bench.now);
            match step {
                Step::Message { from, term, current: false, message } => {
                    bench.step(from, term, message);
                }
                Step::Message { from, current: true, mut message, .. } => {
                    if let Message::AppendReply { session, .. }
                    | Message::HeartbeatReply { session, .. }
                    | Message::SnapshotReply { session, .. } = &mut message
                    {
                        // The group has three replicas, so 4 stays a stranger.
                        *session = bench.session(from);
                    }
                    bench.step(from, bench.raft.term().0, message);
                }
                Step::Timeout => {
                    bench.timeout();
                }
                Step::Elect => {
                    bench.timeout();
                    let term = bench.raft.term();
                    let granted = Message::PreVoteReply { proposed: term.next(), granted: true };
                    bench.step(2, term.0, granted);
                    let term = bench.raft.term().0;
                    let asked = Term(term);
                    bench.step(2, term, Message::VoteReply { asked, granted: true });
                }
                Step::Propose => {
                    let _ = bench.raft.propose(now, Bytes::from_static(b"x"), 0);
                    bench.drain();
                }
                Step::Read => {
                    let _ = bench.raft.read_index(now, ReadId(1));
                    bench.drain();
                }
                Step::Tick(ticks) => {
                    bench.tick(ticks);
                }
                Step::Transfer(to) => {
                    let _ = bench.raft.transfer_leader(now, replica(to).id);
                    bench.drain();
                }
                Step::Installed(ok) => {
                    bench.end_install(ok);
                }
                Step::Compact => {
                    let applied = bench.raft.applied();
                    bench.raft.compact(applied);
                }
            }
        }
    }
}
