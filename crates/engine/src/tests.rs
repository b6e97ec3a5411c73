//! Tests of the threads behind the loops: replicas that cannot apply, damage, and a full disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_machine::command::{self, CommandOperation, Kind};
use quorate_proto::raft::v1::DeleteKey;
use quorate_raft::{
    Entry, EntryKind, Envelope, GroupId, Index, LogId, Message, ReplicaId, ReplicationSession,
    Term, Timing,
};
use quorate_storage::{DatabaseOptions, DiskLevel, Space};
use tokio::sync::oneshot;

use super::testing::{GROUP, Node, SMALL, checkpoint, damage, put, replica, small, wait};
use super::*;

#[test]
fn the_applied_state_of_a_stopped_replica_does_not_stay_in_memory() {
    let node = small();
    let shard = node.lead(GROUP, 1);
    let (written, poison) = (200 << 10, Bytes::from_static(b"\xff"));
    let written = node.propose(GROUP, put(GROUP, "key", written));
    let stopped = node.propose(GROUP, poison);
    assert!(matches!(written.blocking_recv(), Ok(Answer::Applied { .. })));
    assert!(stopped.blocking_recv().is_err(), "its outcome is unknown");
    wait("it is damaged", || shard.is_damaged());
    wait("the budget is free again", || node.budget.used() < node.budget.limit() / 2);
    assert_eq!(shard.reader.header().applied().index, shard.reader.applied());
    node.engine.stop();
}

#[test]
fn a_stopped_engine_refuses_proposals_and_reads() {
    let node = Node::start();
    node.lead(GROUP, 1);
    node.engine.stop();
    let (answer, _) = oneshot::channel();
    let payload = put(GROUP, "key", 1);
    let refused = node.engine.propose(Proposal {
        group: GROUP,
        payload,
        write: None,
        answer,
        claim: Claim::default(),
    });
    assert!(refused.is_err(), "its answer would never come");
    let (grant, _) = oneshot::channel();
    assert!(!node.engine.read(ReadRequest { group: GROUP, grant }));
}

#[test]
fn a_shard_that_refuses_its_checkpoint_does_not_keep_the_others_from_theirs() {
    let node = small();
    // It waits for its scrub, and reports the largest delta the whole time.
    let (refuses, second) = (node.add(GROUP, 1, None, true), node.lead(GroupId(2), 1));
    let checkpointed = || {
        refuses.stats.delta_bytes.store(u64::MAX, Ordering::Relaxed);
        second.reader.header().applied().index > Index(1)
    };
    assert!(!checkpointed());
    drop(node.propose(GroupId(2), put(GroupId(2), "key", 200 << 10)));
    wait("the other one is checkpointed", checkpointed);
    node.engine.stop();
}

#[test]
fn a_checkpoint_that_finds_damage_stops_only_its_replica() {
    let node = small();
    let (damaged, sound) = (node.lead(GROUP, 1), node.lead(GroupId(2), 1));
    checkpoint(&node, &damaged);
    damage(&node, GROUP);
    // It still applies a write of another row, whose checkpoint cleans up after the last one.
    let written = node.propose(GROUP, put(GROUP, "other", 200 << 10));
    assert!(matches!(written.blocking_recv(), Ok(Answer::Applied { .. })));
    wait("it is damaged", || damaged.is_damaged());
    checkpoint(&node, &sound);
    assert!(sound.serves());
    node.engine.stop();
}

#[test]
fn the_log_of_a_replica_that_does_not_apply_is_bounded() {
    let node = small();
    let shard = node.add(GROUP, 3, None, true);
    let limit = 64 << 10;
    let term = Term(1);
    let deliver = |first: u64, stamp: u64| {
        let prev = Index(first - 1);
        let entry = Entry {
            term,
            index: Index(first),
            kind: EntryKind::Command,
            stamp,
            payload: put(GROUP, "key", 10 << 10),
        };
        let prev = LogId { term: if prev.0 == 0 { Term(0) } else { term }, index: prev };
        let (session, timing) = (ReplicationSession { term, counter: 1 }, Timing::default());
        let message =
            Message::Append { session, prev, commit: prev.index, entries: vec![entry], timing };
        let (from, to) = (replica(2), replica(1));
        node.engine.deliver(vec![Envelope { group: GROUP, from, to, term, message }]);
    };
    for index in 1..=20 {
        deliver(index, index);
    }
    wait("it is full", || shard.log_bytes() >= limit);
    deliver(1, 1);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(shard.log_bytes() < limit + (11 << 10), "{}", shard.log_bytes());

    node.engine.finish_scrub(GROUP, Ok(()));
    wait("the scrub is over", || shard.serves());
    for index in 1..=20 {
        deliver(index, index);
    }
    wait("it continues", || shard.reader.applied() >= Index(19));
    node.engine.stop();
}

/// A follower comes back with an older copy of its disk, and no client writes.
#[test]
fn a_follower_whose_disk_went_back_is_sent_what_it_lost_without_a_write() {
    let node = Node::start();
    node.lead(GROUP, 3);
    let written = node.propose(GROUP, put(GROUP, "key", 10));
    let Ok(Answer::Applied { .. }) = written.blocking_recv() else { panic!("it is applied") };
    let again = |envelope: &Envelope| match &envelope.message {
        Message::Append { session, prev, entries, .. } => {
            // Followers have the sessions 1 and 2, so this one began since.
            envelope.to == replica(3)
                && session.counter == 3
                && prev.index == Index(0)
                && entries.len() == 2
        }
        _ => false,
    };
    node.end_log_of(ReplicaId(3), LogId::ZERO);
    node.wait_sent(again);
    node.engine.stop();
}

/// Delivers an append of a leader to the node's replica of the group, one of three.
fn deliver(node: &Node, leader: u64, term: u64, commit: u64, entries: Vec<Entry>) {
    let (session, timing) =
        (ReplicationSession { term: Term(term), counter: 1 }, Timing::default());
    let (prev, commit) = (LogId::ZERO, Index(commit));
    let message = Message::Append { session, prev, commit, entries, timing };
    let (from, to) = (replica(leader), replica(1));
    node.engine.deliver(vec![Envelope { group: GROUP, from, to, term: Term(term), message }]);
}

fn noop(index: u64, term: u64) -> Entry {
    let (kind, payload) = (EntryKind::Noop, Bytes::new());
    Entry { term: Term(term), index: Index(index), kind, stamp: index, payload }
}

/// Checks that `poison` stops only that replica, and that its node still knows the leader.
fn stops_only_its_replica(node: &Node, shard: &Shard, poison: Vec<Entry>) {
    let other = node.lead(GroupId(2), 1);
    deliver(node, 3, 2, 2, poison);
    wait("it is damaged", || shard.is_damaged());
    wait("its leader is known", || shard.leadership().leader == Some(replica(3).node));
    let written = node.propose(GroupId(2), put(GroupId(2), "key", 1));
    assert!(matches!(written.blocking_recv(), Ok(Answer::Applied { .. })));
    assert!(other.serves() && !shard.serves());
    // The other two elect one of themselves without it.
    deliver(node, 2, 3, 0, Vec::new());
    wait("its new leader is known", || shard.leadership().leader == Some(replica(2).node));
    assert_eq!(shard.leadership().term, Term(2), "it takes part in no later term");
    node.engine.stop();
}

#[test]
fn another_history_below_the_commit_index_stops_the_replica() {
    let node = Node::start();
    let shard = node.add(GROUP, 3, None, false);
    deliver(&node, 2, 1, 2, vec![noop(1, 1), noop(2, 1)]);
    wait("both are applied", || shard.reader.applied() >= Index(2));
    stops_only_its_replica(&node, &shard, vec![noop(1, 1), noop(2, 2)]);
}

#[test]
fn a_membership_of_an_unknown_format_stops_the_replica() {
    let node = Node::start();
    let shard = node.add(GROUP, 3, None, false);
    let payload = Bytes::from_static(&[2, 0, 0, 0, 0, 0]);
    let unknown = Entry { kind: EntryKind::Membership, payload, ..noop(1, 2) };
    stops_only_its_replica(&node, &shard, vec![unknown]);
}

fn delete(group: GroupId, key: &str) -> Bytes {
    let operation = CommandOperation {
        key: key.to_owned().into(),
        kind: Some(Kind::Delete(DeleteKey {})),
        ..CommandOperation::default()
    };
    command::encode(&mut command::write(vec![operation], None), group.0, 1)
}

/// A disk of 1 GiB with only the database's file on it, which has `bytes` free above the reserve.
fn disk_with(bytes: u64) -> DatabaseOptions {
    let space = move |dir: &std::path::Path| {
        let file = std::fs::metadata(dir.join("db")).map_or(0, |metadata| metadata.len());
        Ok(Space { total: 1 << 30, free: ((256 << 20) + bytes).saturating_sub(file) })
    };
    DatabaseOptions { space: Arc::new(space), ..DatabaseOptions::default() }
}

#[test]
fn deleting_frees_a_full_disk() {
    let node = Node::with_options(SMALL, 256 << 10, disk_with(128 << 20));
    let shard = node.lead(GROUP, 1);
    let disk = node.sled.disk();
    let apply = |payload| {
        let answer = node.propose(GROUP, payload).blocking_recv();
        assert!(matches!(answer, Ok(Answer::Applied { .. })), "{answer:?}");
    };
    let mut keys = 0;
    while disk.level() == DiskLevel::Ok {
        apply(put(GROUP, &format!("key{keys}"), 200 << 10));
        keys += 1;
    }
    assert!((20..2_000).contains(&keys), "{keys} keys fit, {disk:?}");
    for key in 0..keys {
        apply(delete(GROUP, &format!("key{key}")));
    }
    assert_eq!(shard.reader.status().counts.keys, 0);
    wait("there is room", || disk.level() == DiskLevel::Ok);
    // Repeatedly: deletes make room for further writes, and the reserve is not used up.
    for round in 1..3 {
        for key in 0..keys / 3 {
            wait("there is room again", || disk.level() == DiskLevel::Ok);
            apply(put(GROUP, &format!("round{round}/key{key}"), 200 << 10));
        }
        for key in 0..keys / 3 {
            apply(delete(GROUP, &format!("round{round}/key{key}")));
        }
    }
    let free = disk.space().unwrap().free;
    assert!(free > 128 << 20, "{free} bytes are free");
    node.engine.stop();
}

#[test]
fn a_withdrawn_proposal_is_not_proposed() {
    let node = Node::start();
    let shard = node.lead(GROUP, 1);
    let propose = |claim: Claim| {
        let (answer, answered) = oneshot::channel();
        let payload = put(GROUP, "key", 1);
        node.engine
            .propose(Proposal { group: GROUP, payload, write: None, answer, claim })
            .unwrap();
        answered.blocking_recv()
    };
    let applied = || match propose(Claim::default()) {
        Ok(Answer::Applied { at, .. }) => at.index,
        other => panic!("not applied: {other:?}"),
    };
    let before = applied();
    let withdrawn = Claim::default();
    assert!(withdrawn.decides(), "it is withdrawn before it is proposed");
    assert!(propose(withdrawn).is_err(), "it has no answer");
    assert_eq!(applied(), Index(before.0 + 1), "it took no place in the log");
    assert!(shard.serves());
    let taken = Claim::default();
    assert!(matches!(propose(taken.clone()), Ok(Answer::Applied { .. })));
    assert!(!taken.decides(), "what was proposed cannot be withdrawn");
    node.engine.stop();
}
