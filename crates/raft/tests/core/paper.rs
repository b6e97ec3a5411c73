//! The rules of "In Search of an Understandable Consensus Algorithm" (extended version), section 5,
//! one test each.

use std::collections::BTreeSet;

use crate::support::{Bench, entry, log_id, plain};
use quorate_raft::{
    AppendResult, Config, Envelope, Index, Message, ProposeError, ReadRequest, ReplicaId,
    ReplicationSession, RoleKind, SnapshotResult, Term, Ticks, Timing,
};

/// One of each kind of message.
fn every_message() -> Vec<Message> {
    let (session, timing) = (ReplicationSession::default(), Timing::default());
    let (request, last) = (ReadRequest::default(), log_id(9, 1));
    vec![
        Message::Vote { last, transfer: false },
        Message::VoteReply { asked: Term(8), granted: false },
        Message::Append { session, prev: last, commit: Index(0), entries: vec![], timing },
        Message::AppendReply { session, result: AppendResult::Accepted { last: Index(1) }, timing },
        Message::Heartbeat { session, commit: Index(0), timing },
        Message::HeartbeatReply { session, installing: false, last: None, timing },
        Message::SnapshotReply { session, result: SnapshotResult::Failed },
        Message::ReadIndex { request },
        Message::ReadIndexReply { request, index: None },
        Message::TimeoutNow { last },
    ]
}

/// A replica of three, in term 3, in each of the roles.
fn in_role(role: RoleKind) -> Bench {
    let config = Config { pre_vote: role == RoleKind::PreCandidate, ..plain() };
    let mut bench = Bench::with(config, 1, 3, if role == RoleKind::Follower { 3 } else { 2 }, &[1]);
    match role {
        RoleKind::Follower => {}
        RoleKind::PreCandidate => {
            bench.step(2, 3, Message::VoteReply { asked: Term(3), granted: false });
            bench.timeout();
        }
        RoleKind::Candidate => {
            bench.timeout();
        }
        RoleKind::Leader => {
            bench.elect();
        }
    }
    assert_eq!((bench.raft.role(), bench.raft.term()), (role, Term(3)));
    bench
}

const ROLES: [RoleKind; 4] =
    [RoleKind::Follower, RoleKind::PreCandidate, RoleKind::Candidate, RoleKind::Leader];

/// §5.1: "If one server's current term is smaller than the other's, then it updates its current
/// term to the larger value. If a candidate or leader discovers that its term is out of date, it
/// immediately reverts to follower state."
#[test]
fn s5_1_a_larger_term_is_adopted_from_any_message_in_any_role() {
    for role in ROLES {
        for message in every_message() {
            let mut bench = in_role(role);
            bench.step(2, 8, message.clone());
            assert_eq!(bench.raft.term(), Term(8), "{role} {message}");
            assert_eq!(bench.raft.role(), RoleKind::Follower, "{role} {message}");
            assert_eq!(bench.durable.term, Term(8), "{role} {message}");
        }
    }
}

/// §5.1: "If a server receives a request with a stale term number, it rejects the request."
#[test]
fn s5_1_a_stale_term_changes_nothing_in_any_role() {
    for role in ROLES {
        for message in every_message() {
            let mut bench = in_role(role);
            let before = bench.raft.clone();
            bench.step(2, 1, message.clone());
            assert_eq!(bench.raft, before, "{role} {message}");
        }
    }
}

/// §5.1 again: the rejection carries the rejecter's readings, not those of the request.
#[test]
fn s5_1_the_rejection_of_a_stale_heartbeat_carries_own_readings() {
    let mut bench = Bench::new(1, 3, 3, &[1]);
    bench.raft.set_clock(77);
    let timing = Timing { probe_time: Ticks(5), round: 9, clock: 4, ..Timing::default() };
    let session = ReplicationSession::default();
    let sent = bench.step(2, 1, Message::Heartbeat { session, commit: Index(0), timing });
    let Message::HeartbeatReply { timing: Timing { boot, .. }, .. } = sent[0].message else {
        panic!("{}", sent[0])
    };
    assert_ne!(boot, 0, "each start has a number");
    let own = Timing {
        probe_time: Ticks(bench.now),
        echo_time: Ticks(5),
        echo_commit: Index(0),
        boot,
        round: 9,
        clock: 77,
    };
    let answers: Vec<_> = sent.into_iter().map(|answer| answer.message).collect();
    assert_eq!(
        answers,
        [Message::HeartbeatReply { session, installing: false, last: None, timing: own }]
    );
}

/// §5.2: "When servers start up, they begin as followers."
#[test]
fn s5_2_servers_start_as_followers() {
    let bench = Bench::new(1, 3, 4, &[1, 4]);
    assert_eq!((bench.raft.role(), bench.raft.leader()), (RoleKind::Follower, None));
}

/// §5.2: "Leaders send periodic heartbeats … to all followers in order to maintain their
/// authority."
#[test]
fn s5_2_leaders_send_heartbeats_at_every_interval() {
    let mut bench = Bench::new(1, 3, 0, &[]);
    bench.elect();
    let interval = Config::default().heartbeat.0;
    for _ in 0..5 {
        assert_eq!(bench.tick(interval - 1), vec![], "too early");
        let sent = bench.tick(1);
        let to: Vec<_> = sent.iter().map(|beat| beat.to.id.0).collect();
        assert_eq!(to, [2, 3]);
        assert!(sent.iter().all(|beat| matches!(beat.message, Message::Heartbeat { .. })));
    }
}

/// §5.2: "If a follower receives no communication over a period of time called the election
/// timeout, then it … begins an election. … a follower increments its current term and transitions
/// to candidate state. It then votes for itself and issues RequestVote RPCs in parallel to each of
/// the other servers."
#[test]
fn s5_2_a_follower_without_a_leader_begins_an_election() {
    let mut bench = Bench::new(1, 3, 1, &[]);
    let sent = bench.tick(Config::default().election_max.0);
    assert_eq!((bench.raft.role(), bench.raft.term()), (RoleKind::Candidate, Term(2)));
    assert_eq!(bench.raft.vote(), Some(ReplicaId(1)));
    let asked: Vec<_> = sent.iter().map(|vote| vote.to.id.0).collect();
    assert_eq!(asked, [2, 3]);
    assert!(sent.iter().all(|vote| vote.term == Term(2)));
    assert!(sent.iter().all(|vote| matches!(vote.message, Message::Vote { .. })));
}

/// §5.2: a follower that hears from its leader stays a follower.
#[test]
fn s5_2_a_follower_that_hears_from_the_leader_stays_a_follower() {
    let mut bench = Bench::new(1, 3, 1, &[]);
    for _ in 0..50 {
        bench.append(2, 1, log_id(0, 0), 0, vec![]);
        bench.tick(Config::default().election_min.0 - 1);
        assert_eq!(bench.raft.role(), RoleKind::Follower);
    }
}

/// §5.2: "each candidate will time out and start a new election by incrementing its term".
#[test]
fn s5_2_a_candidate_tries_again_in_a_new_term() {
    let mut bench = Bench::new(1, 3, 0, &[]);
    for term in 1..5 {
        bench.tick(Config::default().election_max.0);
        assert_eq!((bench.raft.role(), bench.raft.term()), (RoleKind::Candidate, Term(term)));
    }
}

/// §5.2, in the last of all terms: "each server will vote for at most one candidate in a given
/// term". There is no next term to stand in, so no replica stands.
#[test]
fn s5_2_no_replica_stands_for_election_in_the_last_term_again() {
    for pre_vote in [false, true] {
        let config = Config { pre_vote, ..plain() };
        // Its vote of this term belongs to another.
        let mut bench = Bench::with(config, 1, 3, 1, &[1]);
        bench.step(2, Term::LAST.0, Message::Vote { last: log_id(9, 9), transfer: false });
        assert_eq!((bench.raft.term(), bench.raft.vote()), (Term::LAST, Some(ReplicaId(2))));
        for _ in 0..5 {
            let sent = bench.tick(Config::default().election_max.0);
            assert_eq!(sent, [], "it asks for votes");
            assert_eq!(bench.raft.role(), RoleKind::Follower);
            assert_eq!(bench.raft.vote(), Some(ReplicaId(2)), "it votes again");
        }
        // Nor at a leader's request.
        let last = log_id(2, Term::LAST.0);
        let entries = vec![entry(2, Term::LAST.0)];
        bench.append(3, Term::LAST.0, log_id(1, 1), 2, entries);
        let sent = bench.step(3, Term::LAST.0, Message::TimeoutNow { last });
        assert_eq!((bench.raft.role(), sent.len()), (RoleKind::Follower, 0));
    }
    // The last election is in the last term, and a leader of it serves.
    let mut bench = Bench::with(plain(), 1, 3, Term::LAST.0 - 1, &[1]);
    bench.elect();
    assert_eq!((bench.raft.role(), bench.raft.term()), (RoleKind::Leader, Term::LAST));
}

/// §5.2: "A candidate wins an election if it receives votes from a majority of the servers in the
/// full cluster for the same term." One to seven voters, every number of votes for and against.
#[test]
fn s5_2_a_majority_of_votes_wins() {
    for size in 1..=7_u64 {
        for granted in 0..size {
            for refused in 0..size - granted {
                let mut bench = Bench::new(1, size, 0, &[]);
                bench.timeout();
                for voter in 2..2 + granted + refused {
                    let granted = voter < 2 + granted;
                    bench.step(voter, 1, Message::VoteReply { asked: Term(1), granted });
                }
                let majority = size / 2 + 1;
                let role = if granted + 1 >= majority {
                    RoleKind::Leader
                } else if size - refused < majority {
                    RoleKind::Follower
                } else {
                    RoleKind::Candidate
                };
                assert_eq!(
                    bench.raft.role(),
                    role,
                    "{size} voters, {granted} for, {refused} against"
                );
            }
        }
    }
}

/// §5.2: "A candidate wins an election if it receives votes from a majority of the servers in the
/// full cluster for the same term." The refusal of a request of an earlier term, which the newer
/// one had overtaken, is not an answer to the newer one.
#[test]
fn s5_2_the_refusal_of_an_earlier_request_does_not_count_in_a_later_term() {
    let (mut candidate, mut voter) = (Bench::new(1, 3, 4, &[]), Bench::new(2, 3, 4, &[]));
    let [earlier, later] = [candidate.timeout(), candidate.timeout()];
    let mut answer = |requests: &[Envelope]| {
        let request = requests.iter().find(|request| request.to.id == ReplicaId(2));
        let request = request.expect("every voter is asked").clone();
        voter.step(1, request.term.0, request.message)
    };
    let (granted, refused) = (answer(&later), answer(&earlier));
    for reply in refused.into_iter().chain(granted) {
        candidate.step(2, reply.term.0, reply.message);
    }
    assert!(candidate.raft.is_leader(), "{:?}", candidate.raft.status());
}

/// §5.2: "Each server will vote for at most one candidate in a given term, on a
/// first-come-first-served basis."
#[test]
fn s5_2_one_vote_per_term_first_come_first_served() {
    let granted = |bench: &mut Bench, from, term| {
        let sent = bench.step(from, term, Message::Vote { last: log_id(0, 0), transfer: false });
        assert_eq!(sent.len(), 1);
        matches!(sent[0].message, Message::VoteReply { granted: true, .. })
    };
    let mut bench = Bench::new(1, 3, 0, &[]);
    assert!(granted(&mut bench, 2, 1));
    assert!(!granted(&mut bench, 3, 1));
    assert!(granted(&mut bench, 2, 1), "the same question, the same answer");
    assert_eq!(bench.durable.vote, Some(ReplicaId(2)));
    assert!(granted(&mut bench, 3, 2), "a new term, a new vote");
}

/// §5.2: "If the leader's term (included in its RPC) is at least as large as the candidate's
/// current term, then the candidate recognizes the leader as legitimate and returns to follower
/// state."
#[test]
fn s5_2_a_candidate_recognizes_the_leader_of_its_term() {
    for term in [1, 2] {
        let mut bench = Bench::new(1, 3, 0, &[]);
        bench.timeout();
        bench.append(2, term, log_id(0, 0), 0, vec![]);
        assert_eq!(bench.raft.role(), RoleKind::Follower);
        assert_eq!(bench.raft.leader().map(|leader| leader.id), Some(ReplicaId(2)));
        let vote = if term == 1 { Some(ReplicaId(1)) } else { None };
        assert_eq!(bench.raft.vote(), vote, "in its own term the vote stays cast");
    }
}

/// §5.2: "Raft uses randomized election timeouts to ensure that split votes are rare."
#[test]
fn s5_2_timeouts_are_random_over_the_whole_range() {
    let config = Config::default();
    let mut bench = Bench::new(1, 3, 0, &[]);
    let mut drawn = BTreeSet::new();
    for _ in 0..1_500 {
        bench.append(2, 1, log_id(0, 0), 0, vec![]);
        drawn.insert(bench.raft.next_deadline().0 - bench.now);
        bench.now += 1;
    }
    assert_eq!(drawn, (config.election_min.0..config.election_max.0).collect());
}

/// §5.2: of three replicas whose timers start together, the first two draw the same tick in few
/// elections.
#[test]
fn s5_2_timeouts_of_several_servers_rarely_coincide() {
    let mut conflicts = 0;
    let rounds = 1_000;
    let mut benches: Vec<_> = (1..=3).map(|id| Bench::new(id, 4, 0, &[])).collect();
    for _ in 0..rounds {
        let mut deadlines: Vec<_> = benches
            .iter_mut()
            .map(|bench| {
                bench.append(4, 1, log_id(0, 0), 0, vec![]);
                bench.raft.next_deadline()
            })
            .collect();
        deadlines.sort_unstable();
        conflicts += u64::from(deadlines[0] == deadlines[1]);
    }
    assert!(conflicts * 100 < rounds * 10, "{conflicts} of {rounds} elections are contested");
}

/// §5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries RPCs
/// in parallel to each of the other servers to replicate the entry."
#[test]
fn s5_3_a_command_is_appended_and_sent_to_all() {
    let mut bench = Bench::new(1, 3, 0, &[]);
    bench.elect();
    bench.acknowledge(2, 1);
    bench.acknowledge(3, 1);
    let sent = bench.propose("x");
    assert_eq!(bench.terms(), [1, 1]);
    assert_eq!(sent.iter().map(|append| append.to.id.0).collect::<Vec<_>>(), [2, 3]);
    for append in sent {
        let Message::Append { prev, entries, .. } = append.message else { panic!("an append") };
        assert_eq!((prev, entries.len()), (log_id(1, 1), 1));
        assert_eq!((entries[0].id(), &entries[0].payload[..]), (log_id(2, 1), &b"x"[..]));
    }
}

/// §5.1/§8: followers reject commands and name the leader.
#[test]
fn s5_1_followers_refer_to_the_leader() {
    let mut bench = Bench::new(1, 3, 0, &[]);
    bench.append(2, 1, log_id(0, 0), 0, vec![]);
    let refused = bench.raft.propose(Ticks(bench.now), "x".into(), 0).unwrap_err();
    assert_eq!(refused, ProposeError::NotLeader { hint: Some(crate::support::replica(2)) });
}

/// §5.3: "A log entry is committed once the leader that created the entry has replicated it on a
/// majority of the servers." One to seven voters, every number of acknowledgements.
#[test]
fn s5_3_an_entry_on_a_majority_is_committed() {
    for size in 1..=7_u64 {
        for acknowledged in 0..size {
            let mut bench = Bench::new(1, size, 0, &[]);
            bench.elect();
            bench.propose("x");
            for follower in 2..2 + acknowledged {
                bench.acknowledge(follower, 2);
            }
            let committed = acknowledged + 1 > size / 2;
            let commit = if committed { 2 } else { 0 };
            assert_eq!(bench.raft.commit(), Index(commit), "{acknowledged} of {size} acknowledge");
        }
    }
}

/// §5.3: "This also commits all preceding entries in the leader's log, including entries created by
/// previous leaders."
#[test]
fn s5_3_a_commit_covers_all_preceding_entries() {
    for log in [vec![], vec![2], vec![1, 2], vec![1]] {
        let mut bench = Bench::new(1, 3, 2, &log);
        bench.elect();
        bench.propose("x");
        let last = log.len() as u64 + 2;
        bench.acknowledge(2, last);
        let expected: Vec<_> =
            log.iter().copied().chain([3, 3]).zip(1..).map(|(term, at)| log_id(at, term)).collect();
        assert_eq!(bench.applied, expected);
    }
}

/// §5.3: "Once a follower learns that a log entry is committed, it applies the entry to its local
/// state machine (in log order)."
#[test]
fn s5_3_a_follower_applies_what_is_committed_in_order() {
    for commit in 0..=3 {
        let mut bench = Bench::new(1, 3, 0, &[]);
        let entries = (1..=3).map(|index| entry(index, 1)).collect();
        bench.append(2, 1, log_id(0, 0), commit, entries);
        let expected: Vec<_> = (1..=commit).map(|index| log_id(index, 1)).collect();
        assert_eq!(bench.applied, expected);
    }
}

/// §5.3: "The leader keeps track of the highest index it knows to be committed, and it includes
/// that index in future AppendEntries RPCs (including heartbeats)."
#[test]
fn s5_3_the_commit_index_travels_with_every_append() {
    let mut bench = Bench::new(1, 3, 0, &[]);
    bench.elect();
    bench.acknowledge(3, 1);
    let updates = bench.acknowledge(2, 1);
    let mut commits = updates
        .iter()
        .chain(&bench.propose("x"))
        .map(|sent| match &sent.message {
            Message::Append { commit, .. } => *commit,
            other => panic!("{other}"),
        })
        .collect::<Vec<_>>();
    commits.dedup();
    assert_eq!(commits, [Index(1)]);
}

/// §5.3: "If the follower does not find an entry in its log with the same index and term, then it
/// refuses the new entries."
#[test]
fn s5_3_an_append_without_its_preceding_entry_is_rejected() {
    // The log is 1@1 2@2; (prev, accepted).
    for (prev, accepted) in [
        (log_id(0, 0), true),
        (log_id(1, 1), true),
        (log_id(2, 2), true),
        (log_id(1, 2), false),
        (log_id(2, 1), false),
        (log_id(3, 3), false),
    ] {
        let mut bench = Bench::new(1, 3, 3, &[1, 2]);
        let sent = bench.append(2, 3, prev, 0, vec![]);
        let Message::AppendReply { result, .. } = &sent[0].message else { panic!("{}", sent[0]) };
        match result {
            AppendResult::Accepted { last } => assert!(accepted && *last == prev.index, "{prev}"),
            AppendResult::Rejected { prev: at, hint } => {
                assert!(!accepted && *at == prev.index, "{prev}");
                assert!(hint.index <= prev.index && bench.raft.entry_id(hint.index) == Some(*hint));
            }
        }
        assert_eq!(bench.terms(), [1, 2], "the check itself changes nothing");
    }
}

/// §5.3: "conflicting entries in follower logs will be overwritten with entries from the leader's
/// log", and figure 2: "If an existing entry conflicts with a new one (same index but different
/// terms), delete the existing entry and all that follow it. Append any new entries not already in
/// the log."
#[test]
fn s5_3_only_a_conflict_truncates() {
    // (prev, terms of the new entries, terms of the log afterwards); the log is 1@1 2@2 3@2.
    for (prev, new, after) in [
        (log_id(3, 2), vec![3], vec![1, 2, 2, 3]),
        (log_id(1, 1), vec![3, 4], vec![1, 3, 4]),
        (log_id(0, 0), vec![1], vec![1, 2, 2]),
        (log_id(0, 0), vec![3], vec![3]),
        (log_id(1, 1), vec![2], vec![1, 2, 2]),
        (log_id(1, 1), vec![2, 2, 4], vec![1, 2, 2, 4]),
        (log_id(2, 2), vec![4], vec![1, 2, 4]),
        (log_id(1, 1), vec![], vec![1, 2, 2]),
    ] {
        let mut bench = Bench::new(1, 3, 4, &[1, 2, 2]);
        let first = prev.index.0 + 1;
        let entries = new.iter().zip(first..).map(|(&term, index)| entry(index, term)).collect();
        bench.append(2, 4, prev, 0, entries);
        assert_eq!(bench.terms(), after, "{prev} {new:?}");
    }
}

/// Delivers messages between a leader and one follower until neither sends any; returns how many
/// appends it took.
fn pump(leader: &mut Bench, follower: &mut Bench, mut queue: Vec<quorate_raft::Envelope>) -> usize {
    let mut appends = 0;
    let to = follower.raft.me();
    while let Some(envelope) = queue.pop() {
        if envelope.to == to {
            appends += usize::from(matches!(envelope.message, Message::Append { .. }));
            queue.extend(follower.step(envelope.from.id.0, envelope.term.0, envelope.message));
        } else if envelope.to == leader.raft.me() {
            queue.extend(leader.step(envelope.from.id.0, envelope.term.0, envelope.message));
        }
    }
    appends
}

/// §5.3, figure 7: "a leader brings its followers' logs into consistency", each of the six shapes.
#[test]
fn s5_3_figure_7_every_follower_is_repaired() {
    let leader_log = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    for log in [
        vec![1, 1, 1, 4, 4, 5, 5, 6, 6],
        vec![1, 1, 1, 4],
        vec![1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        vec![1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        vec![1, 1, 1, 4, 4, 4, 4],
        vec![1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ] {
        let mut leader = Bench::new(1, 3, 7, &leader_log);
        let mut follower = Bench::new(2, 3, 7, &log);
        leader.timeout();
        let first = leader.step(3, 8, Message::VoteReply { asked: Term(8), granted: true });
        pump(&mut leader, &mut follower, first);
        assert_eq!(follower.terms(), leader.terms(), "{log:?}");
        assert_eq!(follower.applied, leader.applied);
    }
}

/// §5.3: "with this approach, one AppendEntries RPC will be required for each term with conflicting
/// entries, rather than one RPC per entry."
#[test]
fn s5_3_one_append_for_each_conflicting_term() {
    // Ten entries in each of the terms, odd ones at one side and even ones at the other.
    let log = |first: u64| -> Vec<u64> {
        let terms = std::iter::once(1).chain((first..20).step_by(2));
        terms.flat_map(|term| std::iter::repeat_n(term, 10)).collect()
    };
    let mut leader = Bench::new(1, 3, 20, &log(3));
    let mut follower = Bench::new(2, 3, 20, &log(2));
    leader.timeout();
    let first = leader.step(3, 21, Message::VoteReply { asked: Term(21), granted: true });
    let appends = pump(&mut leader, &mut follower, first);
    assert_eq!(follower.terms(), leader.terms());
    assert!(appends <= 12, "{appends} appends for 9 conflicting terms");
}

/// §5.3: "A leader never overwrites or deletes entries in its own log" (Leader Append-Only).
#[test]
fn s5_3_a_leader_never_shortens_its_own_log() {
    let mut bench = Bench::new(1, 3, 2, &[1, 2]);
    bench.elect();
    bench.propose("x");
    let before = bench.terms();
    bench.append(2, 3, log_id(0, 0), 0, vec![entry(1, 3)]);
    assert_eq!(bench.terms(), before);
    assert!(bench.raft.is_leader());
}

/// §5.4.1: "the RPC includes information about the candidate's log, and the voter denies its vote
/// if its own log is more up-to-date": the later last term, or the longer log of equal last terms.
#[test]
fn s5_4_1_a_vote_is_denied_to_a_candidate_with_an_older_log() {
    for (mine, last, granted) in [
        (vec![1], log_id(1, 1), true),
        (vec![1], log_id(2, 1), true),
        (vec![1, 1], log_id(1, 1), false),
        (vec![1], log_id(1, 2), true),
        (vec![1, 1], log_id(1, 2), true),
        (vec![1, 1, 1], log_id(1, 2), true),
        (vec![2], log_id(1, 1), false),
        (vec![2], log_id(9, 1), false),
        (vec![1, 2], log_id(1, 1), false),
    ] {
        let mut bench = Bench::new(1, 3, 2, &mine);
        let sent = bench.step(2, 3, Message::Vote { last, transfer: false });
        let reply = Message::VoteReply { asked: Term(3), granted };
        assert_eq!(sent[0].message, reply, "voter's log {mine:?}, candidate's last {last}");
    }
}

/// §5.4.1: the request carries the candidate's last entry.
#[test]
fn s5_4_1_the_request_carries_the_last_entry() {
    for log in [vec![], vec![1], vec![1, 2, 2]] {
        let mut bench = Bench::new(1, 3, 2, &log);
        let last = log.last().map_or(log_id(0, 0), |&term| log_id(log.len() as u64, term));
        let sent = bench.timeout();
        assert_eq!(sent.len(), 2);
        for vote in sent {
            assert_eq!(vote.message, Message::Vote { last, transfer: false });
        }
    }
}

/// §5.4.2, figure 8: "Raft never commits log entries from previous terms by counting replicas. Only
/// log entries from the leader's current term are committed by counting replicas."
#[test]
fn s5_4_2_entries_of_earlier_terms_are_not_counted() {
    for (acknowledged, commit) in [(1, 0), (2, 0), (3, 3)] {
        let mut bench = Bench::new(1, 5, 2, &[1, 2]);
        bench.elect();
        for follower in 2..=4 {
            bench.acknowledge(follower, acknowledged);
        }
        assert_eq!(bench.raft.commit(), Index(commit), "acknowledged through {acknowledged}");
    }
}

/// §5.4.3: a leader that a majority could elect holds every committed entry, because one of the
/// majority refuses all others.
#[test]
fn s5_4_3_a_candidate_that_lacks_a_committed_entry_finds_no_majority() {
    // 2@1 is committed: on replicas 1 and 2 of three.
    let mut candidate = Bench::new(3, 3, 1, &[1]);
    let request = candidate.timeout();
    assert_eq!(request.len(), 2);
    for id in [1, 2] {
        let mut voter = Bench::new(id, 3, 1, &[1, 1]);
        let sent = voter.step(3, 2, request[0].message.clone());
        assert_eq!(sent[0].message, Message::VoteReply { asked: Term(2), granted: false });
        candidate.step(id, 2, sent[0].message.clone());
    }
    assert_eq!(candidate.raft.role(), RoleKind::Follower);
}

/// §5.5: "Raft RPCs are idempotent, so this causes no harm": every message of a conversation twice.
#[test]
fn s5_5_repeated_messages_cause_no_harm() {
    let mut leader = Bench::new(1, 3, 1, &[1, 1]);
    let mut follower = Bench::new(2, 3, 1, &[1]);
    leader.timeout();
    let mut queue = leader.step(3, 2, Message::VoteReply { asked: Term(2), granted: true });
    queue.extend(leader.propose("x"));
    let doubled = queue.iter().chain(&queue).cloned().collect();
    pump(&mut leader, &mut follower, doubled);
    assert_eq!(follower.terms(), [1, 1, 2, 2]);
    assert_eq!(
        leader.applied,
        (1..=4).map(|at| log_id(at, [1, 1, 2, 2][at as usize - 1])).collect::<Vec<_>>()
    );
    assert_eq!(follower.applied, leader.applied, "no entry is applied twice");
}

/// §5.5: "the leader retries": a follower that was down gets what it missed.
#[test]
fn s5_5_a_follower_that_was_down_catches_up() {
    let mut leader = Bench::new(1, 3, 0, &[]);
    leader.elect();
    for _ in 0..20 {
        leader.propose("x");
    }
    leader.acknowledge(3, 21);
    let mut follower = Bench::new(2, 3, 0, &[]);
    let heartbeats = leader.tick(Config::default().heartbeat.0);
    pump(&mut leader, &mut follower, heartbeats);
    assert_eq!(follower.terms(), leader.terms());
}

/// Figure 2, "persistent state … updated on stable storage before responding to RPCs": no message
/// that makes a promise is sent before the write is done.
#[test]
fn figure_2_answers_wait_for_stable_storage() {
    let requests = [
        Message::Vote { last: log_id(9, 9), transfer: false },
        Message::Append {
            session: ReplicationSession::default(),
            prev: log_id(0, 0),
            commit: Index(0),
            entries: vec![entry(1, 1)],
            timing: Timing::default(),
        },
        Message::Heartbeat {
            session: ReplicationSession::default(),
            commit: Index(0),
            timing: Timing::default(),
        },
    ];
    for message in requests {
        let mut bench = Bench::new(1, 3, 0, &[]);
        let (from, to, now) = (crate::support::replica(2), bench.raft.me(), Ticks(bench.now));
        let envelope = quorate_raft::Envelope {
            group: crate::support::GROUP,
            from,
            to,
            term: Term(1),
            message: message.clone(),
        };
        bench.raft.step(now, envelope);
        let output = bench.raft.take_output();
        assert_eq!(output.send, vec![], "{message}");
        let persist = output.persist.expect("term 1 must be written");
        assert_eq!(persist.hard_state.map(|state| state.term), Some(Term(1)));
        assert_eq!(persist.send_after.len(), 1, "{message}");
    }
}
