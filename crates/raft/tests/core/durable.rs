//! Crash recovery: the disk after a power cut. Writes become durable one after the other; a replica
//! must start from any prefix of them, and the prefix must hold what was acknowledged.

use crate::disk::{Disk, Write};
use crate::support::{GROUP, entry, log_id, replica};
use bytes::Bytes;
use quorate_raft::{
    AppendResult, Config, Entry, EntryKind, Envelope, HardState, Index, LogId, Membership, Message,
    Raft, ReplicationSession, RestoreError, SnapshotMeta, Term, Ticks, Timing,
};

/// Starts replica 2 on this disk.
fn start(disk: &Disk) -> Result<Raft, RestoreError> {
    Raft::new(Config::default(), GROUP, replica(2), 7, disk.restore(), Ticks(1_000))
}

/// An empty disk with a hard state in this term.
fn disk_in_term(term: u64) -> Disk {
    let mut disk = Disk::new(Membership::of_voters((1..=3).map(replica)));
    disk.hard_state = HardState { term: Term(term), ..HardState::default() };
    disk
}

fn session(term: u64) -> ReplicationSession {
    ReplicationSession { term: Term(term), counter: 1 }
}

/// Delivers a message of the leader of this term.
fn deliver(raft: &mut Raft, from: u64, term: u64, message: Message) {
    let (from, to, term) = (replica(from), replica(2), Term(term));
    raft.step(Ticks(1_001), Envelope { group: GROUP, from, to, term, message });
}

fn append(term: u64, prev: LogId, commit: u64, entries: Vec<Entry>) -> Message {
    let (session, commit, timing) = (session(term), Index(commit), Timing::default());
    Message::Append { session, prev, commit, entries, timing }
}

/// An entry that fills an append by itself.
fn large(index: u64, term: u64) -> Entry {
    let payload = Bytes::from(vec![0; (1 << 20) - Entry::OVERHEAD_BYTES as usize]);
    Entry { payload, kind: EntryKind::Command, ..entry(index, term) }
}

/// Issues all writes of the replica; returns how many.
fn issue(raft: &mut Raft, disk: &mut Disk) -> usize {
    let before = disk.writes.len();
    while raft.has_output() {
        let persist = raft.take_output().persist;
        disk.writes.extend(persist.map(|persist| Write { persist, void: false }));
    }
    disk.writes.len() - before
}

/// A stopped follower finds in its inbox a full window of a leader's appends, all committed by the
/// others, and a heartbeat of the next leader: more than one write, and a hard state with the first
/// of them.
#[test]
fn each_write_of_a_backlog_leaves_a_disk_that_starts() {
    let mut disk = disk_in_term(1);
    let mut raft = start(&disk).unwrap();
    for index in 1..=6 {
        let prev = if index == 1 { LogId::ZERO } else { log_id(index - 1, 1) };
        deliver(&mut raft, 1, 1, append(1, prev, 6, vec![large(index, 1)]));
    }
    let (session, commit, timing) = (session(2), Index(6), Timing::default());
    deliver(&mut raft, 3, 2, Message::Heartbeat { session, commit, timing });
    assert!(issue(&mut raft, &mut disk) >= 2, "the backlog does not fit into one write");
    while disk.complete_one().is_some() {
        let again = start(&disk).unwrap_or_else(|error| panic!("after {}: {error}", disk.last()));
        assert_eq!((again.term(), again.status().last.index), (Term(2), disk.last().index));
    }
    assert_eq!(disk.last(), log_id(6, 1));
}

/// A snapshot that is installed while the write with its leader's term is in flight.
fn snapshot(last: LogId) -> SnapshotMeta {
    let membership = Membership::of_voters((1..=3).map(replica));
    SnapshotMeta { last, stamp: last.index.0, membership }
}

/// When the power fails, the snapshot is durable but the term in which it arrived is not. Entries
/// acknowledged in that term afterwards must survive the next power failure, and so must the term.
#[test]
fn a_term_known_only_from_a_snapshot_is_written_before_anything_is_acknowledged_in_it() {
    let mut disk = disk_in_term(3);
    let mut raft = start(&disk).unwrap();
    let meta = snapshot(log_id(100, 5));
    deliver(&mut raft, 1, 5, Message::InstallSnapshot { session: session(5), meta: meta.clone() });
    issue(&mut raft, &mut disk);
    disk.install(&meta);
    disk.crash();
    assert_eq!(disk.term(), Term(3), "the write with term 5 is lost");

    let mut raft = start(&disk).unwrap();
    assert_eq!(raft.term(), Term(5));
    deliver(&mut raft, 1, 5, append(5, log_id(100, 5), 100, vec![entry(101, 5)]));
    let output = raft.take_output();
    assert_eq!(output.send, [], "nothing is promised before it is durable");
    let persist = output.persist.expect("an entry is to be written");
    assert_eq!(persist.hard_state.map(|state| state.term), Some(Term(5)));
    disk.writes.push_back(Write { persist, void: false });
    let acknowledged = disk.complete_one().expect("it was issued").send_after;
    let accepted = AppendResult::Accepted { last: Index(101) };
    assert!(
        acknowledged.iter().any(|sent| matches!(&sent.message,
            Message::AppendReply { result, .. } if *result == accepted)),
        "{acknowledged:?}"
    );
    disk.crash();
    let again = start(&disk).unwrap();
    assert_eq!((again.term(), again.status().last.index), (Term(5), Index(101)));
}

/// A write that was in flight when a snapshot replaced the log does not count for the new log,
/// though that has entries at the same indexes.
#[test]
fn a_write_from_before_an_install_does_not_count_for_the_log_after_it() {
    let mut disk = disk_in_term(6);
    let mut raft = start(&disk).unwrap();
    let entries = |indexes: std::ops::RangeInclusive<u64>, term| {
        indexes.map(|index| entry(index, term)).collect::<Vec<_>>()
    };
    deliver(&mut raft, 1, 6, append(6, LogId::ZERO, 0, entries(1..=20, 5)));
    let before = raft.take_output().persist.expect("entries are to be written").token;
    let meta = snapshot(log_id(10, 7));
    deliver(&mut raft, 3, 7, Message::InstallSnapshot { session: session(7), meta: meta.clone() });
    issue(&mut raft, &mut disk);
    raft.on_installed(Ticks(1_001), meta);
    deliver(&mut raft, 3, 7, append(7, log_id(10, 7), 10, entries(11..=30, 7)));
    issue(&mut raft, &mut disk);
    raft.on_persisted(Ticks(1_001), before);
    assert_eq!(raft.status().persisted, Index(10), "the entries of term 7 are not written yet");
}
