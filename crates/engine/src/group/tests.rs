//! Tests of a group in virtual time: what it proposes, and what it publishes.

use bytes::Bytes;
use quorate_raft::{Config, Message, Output};
use quorate_storage::DeltaBudget;

use super::*;
use crate::Claim;
use crate::replica::restore;
use crate::testing::{GROUP, agree, replica, sled, store};

const NOW_MS: u64 = 1_700_000_000_000;
const YEAR_MS: u64 = 365 * 24 * 3_600_000;

/// A group of three voters, of which this node has the first.
fn group(dir: &std::path::Path) -> Group {
    let store = store(&sled(dir), &Arc::new(DeltaBudget::new(1 << 20)), GROUP, 3);
    let header = store.header();
    let restored = restore(header, None).unwrap();
    let raft = Raft::new(Config::default(), GROUP, replica(1), 1, restored, Ticks(1)).unwrap();
    let (range, epoch) = (header.range, header.shard_epoch);
    Group::new(raft, Arc::new(Shard::new(GROUP, replica(1), range, epoch, store.reader())))
}

/// Ends an iteration as the loop does; every write is durable immediately.
fn end_iteration(group: &mut Group, now: Ticks) -> Vec<Envelope> {
    let metrics = EngineMetrics::unregistered();
    let mut sent = Vec::new();
    while group.raft.has_output() {
        let Output { send, persist, committed, events, .. } = group.raft.take_output();
        sent.extend(send);
        drop(group.match_waiters(committed, &metrics));
        if let Some(persist) = persist {
            sent.extend(persist.send_after);
            group.raft.on_persisted(now, persist.token);
        }
        group.note_events(&events, &metrics);
    }
    group.note_commit();
    sent
}

/// The second voter's answers to what was sent to it.
fn answer(group: &mut Group, now: Ticks, sent: Vec<Envelope>, clock: u64) -> Vec<Envelope> {
    for envelope in sent.into_iter().filter(|envelope| envelope.to == replica(2)) {
        if let Some(reply) = agree(envelope, clock) {
            group.raft.step(now, reply);
        }
    }
    end_iteration(group, now)
}

fn propose(group: &mut Group, now: Ticks, clock: u64) -> oneshot::Receiver<Answer> {
    propose_write(group, now, clock, b"x", None)
}

fn propose_write(
    group: &mut Group,
    now: Ticks,
    clock: u64,
    payload: &'static [u8],
    write: Option<WriteKey>,
) -> oneshot::Receiver<Answer> {
    let (answer, answered) = oneshot::channel();
    let payload = Bytes::from_static(payload);
    group.propose(
        now,
        clock,
        Proposal { group: GROUP, payload, write, answer, claim: Claim::default() },
    );
    answered
}

/// Makes the group's replica the leader, with a committed entry of its term.
fn lead(group: &mut Group, now: Ticks) {
    group.raft.election_timeout(now);
    let mut sent = end_iteration(group, now);
    while !group.takes_commands() {
        sent = answer(group, now, sent, NOW_MS);
    }
}

#[test]
fn a_write_that_is_tried_again_waits_for_the_one_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(dir.path());
    let now = Ticks(100);
    lead(&mut group, now);
    let last = group.raft.status().last.index;
    let entries = |group: &Group| group.raft.status().last.index.0 - last.0;
    let (one, other) = (Some([1; 32]), Some([2; 32]));

    let first = propose_write(&mut group, now, NOW_MS, b"x", one);
    let again = propose_write(&mut group, now, NOW_MS, b"x", one);
    assert_eq!(entries(&group), 1);
    propose_write(&mut group, now, NOW_MS, b"x", other);
    propose_write(&mut group, now, NOW_MS, b"y", one);
    propose_write(&mut group, now, NOW_MS, b"x", None);
    propose_write(&mut group, now, NOW_MS, b"x", None);
    assert_eq!(entries(&group), 5, "another write, other content, and writes without a session");

    let sent = end_iteration(&mut group, now);
    for envelope in sent.into_iter().filter_map(|envelope| agree(envelope, NOW_MS)) {
        group.raft.step(now, envelope);
    }
    let committed = group.raft.take_output().committed;
    let committed = group.match_waiters(committed, &EngineMetrics::unregistered());
    let waiters: Vec<_> = committed.iter().map(|entry| entry.answers.len()).collect();
    assert_eq!(waiters, [2, 1, 1, 1, 1]);
    assert!(group.writes.is_empty());
    drop((first, again));
    propose_write(&mut group, now, NOW_MS, b"x", one);
    assert_eq!(entries(&group), 6, "it is no longer in flight; its session row answers a retry");
}

#[test]
fn a_new_leader_takes_commands_once_a_majority_has_reported_its_clock() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(dir.path());
    let (now, ahead) = (Ticks(100), NOW_MS + YEAR_MS);
    group.raft.election_timeout(now);
    let pre_votes = end_iteration(&mut group, now);
    let votes = answer(&mut group, now, pre_votes, NOW_MS);
    let appends = answer(&mut group, now, votes, NOW_MS);
    assert!(group.raft.is_leader());

    let leadership = group.shard.leadership();
    assert_eq!(leadership.leader, Some(replica(1).node), "it is known to all");
    assert!(!leadership.is_leader, "it takes no commands while it knows only its own clock");
    let refused = propose(&mut group, now, ahead).try_recv();
    assert!(matches!(refused, Ok(Answer::Refused(RefusedProposal::LocalNotReady))), "{refused:?}");

    answer(&mut group, now, appends, NOW_MS);
    assert!(group.shard.leadership().is_leader);
    let mut proposed = propose(&mut group, now, ahead);
    assert!(proposed.try_recv().is_err(), "it waits for its commit");
    let stamped = LogTime(group.raft.last_stamp()).millis();
    assert_eq!(stamped, NOW_MS + 500);
}

#[test]
fn a_leader_whose_clock_is_slow_stamps_near_the_clocks_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(dir.path());
    lead(&mut group, Ticks(100));
    let (now, heartbeats) = next_heartbeats(&mut group);
    answer_of_both(&mut group, now, heartbeats, NOW_MS);
    drop(propose(&mut group, now, NOW_MS - 3_000));
    assert_eq!(stamped_ms(&group), NOW_MS - 500);
}

#[test]
fn a_voters_clock_runs_on_after_its_last_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(dir.path());
    lead(&mut group, Ticks(100));
    let (now, heartbeats) = next_heartbeats(&mut group);
    answer_of_both(&mut group, now, heartbeats, NOW_MS);
    // The other two have sent nothing for 400 ms since, and the leader's clock was set 3 s back.
    drop(propose(&mut group, now.after(Ticks(40)), NOW_MS + 400 - 3_000));
    assert_eq!(stamped_ms(&group), NOW_MS + 400 - 500);
}

#[test]
fn a_delayed_answer_changes_no_clock() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(dir.path());
    lead(&mut group, Ticks(100));
    let (_, delayed) = next_heartbeats(&mut group);
    let (now, heartbeats) = next_heartbeats(&mut group);
    answer_of_both(&mut group, now, heartbeats, NOW_MS);
    let arrival = now.after(Ticks(90));
    answer_of_both(&mut group, arrival, delayed, NOW_MS - 100);
    drop(propose(&mut group, arrival, NOW_MS + 900 - 3_000));
    assert_eq!(stamped_ms(&group), NOW_MS + 900 - 500);
}

#[test]
fn a_term_that_jumps_further_than_elections_do_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(dir.path());
    let vote = |term| {
        let message = Message::Vote { last: LogId::default(), transfer: true };
        Envelope { group: GROUP, from: replica(2), to: replica(1), term: Term(term), message }
    };
    let step = |group: &mut Group, term| {
        let jumped = group.step(Ticks(9), vote(term));
        end_iteration(group, Ticks(9));
        jumped
    };
    // A group without a past may find any term.
    assert!(!step(&mut group, 5));
    assert!(!step(&mut group, 5 + TERM_JUMP));
    assert!(step(&mut group, 6 + 2 * TERM_JUMP));
    assert_eq!((group.raft.term(), group.said_jump), (Term(6 + 2 * TERM_JUMP), true));
    assert!(step(&mut group, Term::LAST.0), "each is counted");
    // No election is held from here on, and that is said once.
    for _ in 0..3 {
        let now = group.raft.next_deadline();
        group.raft.advance(now);
        let sent = end_iteration(&mut group, now);
        assert!(sent.is_empty() && group.said_last, "{sent:?}");
    }
}

/// The next heartbeats, and when they are due.
fn next_heartbeats(group: &mut Group) -> (Ticks, Vec<Envelope>) {
    loop {
        let now = group.raft.next_deadline();
        group.raft.advance(now);
        let mut sent = end_iteration(group, now);
        sent.retain(|envelope| matches!(envelope.message, Message::Heartbeat { .. }));
        if !sent.is_empty() {
            return (now, sent);
        }
    }
}

/// The answers of both other voters, whose clocks show the same.
fn answer_of_both(group: &mut Group, now: Ticks, sent: Vec<Envelope>, clock: u64) {
    for reply in sent.into_iter().filter_map(|envelope| agree(envelope, clock)) {
        group.raft.step(now, reply);
    }
    end_iteration(group, now);
}

/// The newest stamp, in milliseconds.
fn stamped_ms(group: &Group) -> u64 {
    LogTime(group.raft.last_stamp()).millis()
}
