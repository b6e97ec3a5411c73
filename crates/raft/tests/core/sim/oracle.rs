//! Safety checks of the simulation, which hold whatever the network, the disks and the clocks do.
//! Each check names its property (Raft paper figure 3, and the promises of the core itself).

use std::collections::BTreeMap;

use quorate_raft::invariants::{check_delta, check_state};
use quorate_raft::{
    AppendResult, Entry, Envelope, Index, LogId, Membership, Message, Raft, ReplicaId,
    SnapshotResult, Term,
};

use crate::disk::Disk;

/// The history of the cluster, against which each step is checked.
#[derive(Default)]
pub struct Oracle {
    leaders: BTreeMap<Term, ReplicaId>,
    votes: BTreeMap<(ReplicaId, Term), ReplicaId>,
    /// Each entry that was ever in a log: its predecessor and its content.
    entries: BTreeMap<LogId, (LogId, Entry)>,
    /// The committed entries by index, with the term in which each was committed.
    committed: BTreeMap<Index, (Term, Entry)>,
    pub highest_commit: Index,
    /// For each tick in which the highest commit index grew: the tick, and that index at its end.
    commits: Vec<(u64, Index)>,
    pub elections: u64,
}

impl Oracle {
    /// Checks each state by itself and against the one before; called after each input.
    pub fn after_step(&mut self, before: &Raft, after: &Raft, disks: &[&Disk]) {
        check_state(after);
        check_delta(before, after);
        if after.is_leader() && !(before.is_leader() && before.term() == after.term()) {
            self.elected(after);
        }
        if after.commit() > before.commit() {
            self.committed_through(after, before.commit().next(), disks);
            // A leader counts only entries of its own term (§5.4.2); entries already committed at
            // its election were committed while it was a follower.
            if before.is_leader() && after.is_leader() {
                let term = after.entry_id(after.commit()).map(|id| id.term);
                assert_eq!(
                    term,
                    Some(after.term()),
                    "the leader counted an entry of an earlier term"
                );
            }
        }
    }

    /// Election Safety (§5.2) and Leader Completeness (§5.4).
    fn elected(&mut self, leader: &Raft) {
        self.elections += 1;
        let (term, id) = (leader.term(), leader.me().id);
        let known = *self.leaders.entry(term).or_insert(id);
        assert_eq!(known, id, "two leaders in term {term}");
        // The winner of an old election may learn of it late, when later terms have committed more.
        for (&index, (_, entry)) in self.committed.iter().filter(|(_, known)| known.0 < term) {
            match leader.entry_id(index) {
                Some(found) => {
                    assert_eq!(found, entry.id(), "the leader of term {term} has another entry");
                }
                None => {
                    let base = leader.status().base.index;
                    assert!(index < base, "the leader of term {term} has no {}", entry.id());
                }
            }
        }
    }

    /// State Machine Safety (§5.4.3), and durability on a quorum of disks.
    fn committed_through(&mut self, raft: &Raft, from: Index, disks: &[&Disk]) {
        for index in (from.0..=raft.commit().0).map(Index) {
            let Some(id) = raft.entry_id(index) else { continue };
            let Some((_, entry)) = self.entries.get(&id) else {
                // The entry is known only from a snapshot: then it was committed elsewhere before.
                assert!(
                    self.committed.contains_key(&index),
                    "{id} is committed, but no replica wrote it"
                );
                continue;
            };
            if let Some(known) = self.committed.get(&index) {
                assert_eq!(&known.1, entry, "two entries are committed at {index}");
                continue;
            }
            let holds = |replica: ReplicaId| disks[replica.0 as usize - 1].holds(id);
            assert!(
                quorum(raft.membership(), holds),
                "{id} is committed by {}, but not on the disks of a quorum",
                raft.me()
            );
            if let Some((_, (_, before))) = self.committed.last_key_value() {
                assert!(entry.stamp > before.stamp, "the stamp of {id} does not grow");
            }
            self.committed.insert(index, (raft.term(), entry.clone()));
        }
        self.highest_commit = self.highest_commit.max(raft.commit());
    }

    /// Log Matching (§5.3): by induction, when each entry has one content and one predecessor.
    pub fn written(&mut self, raft: &Raft, entries: &[Entry]) {
        for entry in entries {
            let before = raft.entry_id(entry.index.prev()).expect("the predecessor is in the log");
            let known = self.entries.entry(entry.id()).or_insert_with(|| (before, entry.clone()));
            assert_eq!((known.0, &known.1), (before, entry), "{} exists twice", entry.id());
        }
    }

    /// Persist before send: the promises of a message are on the disk of its sender.
    pub fn sent(&mut self, disk: &Disk, envelope: &Envelope) {
        let Envelope { from, to, term, message, .. } = envelope;
        let durable = disk.term() >= *term;
        match message {
            Message::VoteReply { granted: true, .. } => {
                let voted = disk.term() > *term || disk.hard_state.vote == Some(to.id);
                assert!(durable && voted, "{envelope}: the vote is not durable");
                let known = *self.votes.entry((from.id, *term)).or_insert(to.id);
                assert_eq!(known, to.id, "{from} voted twice in term {term}");
            }
            Message::Vote { .. } => {
                let voted = disk.term() > *term || disk.hard_state.vote == Some(from.id);
                assert!(durable && voted, "{envelope}: its own vote is not durable");
                let known = *self.votes.entry((from.id, *term)).or_insert(from.id);
                assert_eq!(known, from.id, "{from} voted twice in term {term}");
            }
            Message::AppendReply { result: AppendResult::Accepted { last }, .. }
            | Message::SnapshotReply { result: SnapshotResult::Installed { last }, .. } => {
                assert!(durable, "{envelope}: the term is not durable");
                assert!(disk.last().index >= *last, "{envelope}: durable is {}", disk.last());
            }
            Message::AppendReply { .. } | Message::HeartbeatReply { .. } => {
                assert!(durable, "{envelope}: the term is not durable");
            }
            _ => {}
        }
    }

    /// Only committed entries that are durable here are applied, in order, and the same at every
    /// replica.
    pub fn applied(&self, disk: &Disk, entry: &Entry, after: Index) {
        assert_eq!(entry.index, after.next(), "applied out of order");
        let known = self.committed.get(&entry.index).map(|known| &known.1);
        assert_eq!(known, Some(entry), "applied but not committed");
        assert!(disk.holds(entry.id()), "{} is applied but not durable here", entry.id());
    }

    /// A read sees all entries that were committed anywhere before it began.
    pub fn read(&self, index: Index, floor: Index) {
        assert!(index >= floor, "a read at {index} misses the entry committed at {floor}");
    }

    pub fn end_of_tick(&mut self, now: u64) {
        if self.commits.last().is_none_or(|last| last.1 < self.highest_commit) {
            self.commits.push((now, self.highest_commit));
        }
    }

    /// A state that has applied `index` counts as no older than `time`: it must contain all entries
    /// committed before.
    pub fn age(&self, raft: &Raft, time: u64, index: Index) {
        let earlier = self.commits.partition_point(|commit| commit.0 < time);
        let committed = earlier.checked_sub(1).map_or(Index(0), |last| self.commits[last].1);
        assert!(
            index >= committed,
            "{}: its state at {index} counts as that of {time}, but {committed} was committed then",
            raft.me()
        );
    }

    /// The stamp of a committed entry; 0 before the first.
    pub fn stamp_of(&self, index: Index) -> u64 {
        self.committed.get(&index).map_or(0, |known| known.1.stamp)
    }
}

/// Whether a quorum says yes, by counting.
fn quorum(membership: &Membership, yes: impl Fn(ReplicaId) -> bool) -> bool {
    [membership.incoming(), membership.outgoing()]
        .iter()
        .filter(|voters| !voters.is_empty())
        .all(|voters| voters.iter().filter(|&&voter| yes(voter)).count() * 2 > voters.len())
}
