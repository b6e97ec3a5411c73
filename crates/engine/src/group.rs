//! One Raft group as its loop drives it: the core, and who waits for what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use quorate_machine::WriteKey;
use quorate_machine::{LogTime, next_stamp};
use quorate_raft::{
    Entry, Event, Index, LogId, ProposeError, Raft, ReadId, ReadOutcome, ReplicationSession,
    RoleKind, Term, Ticks,
};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::request::{Answer, Proposal, ReadGrant, RefusedProposal, answer_all};
use super::shard::{Leadership, Shard};
use crate::clock::TICK;
use crate::metrics::EngineMetrics;

/// A committed entry with the handlers that wait for it; mostly one or none.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) entry: Entry,
    pub(super) answers: Vec<oneshot::Sender<Answer>>,
}

/// The handlers that wait for a proposal.
#[derive(Debug)]
struct Waiting {
    answers: Vec<oneshot::Sender<Answer>>,
    proposed: Instant,
    /// Which write it is, and its command.
    write: Option<(WriteKey, Bytes)>,
}

/// A group and its waiters.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) raft: Raft,
    pub(super) shard: Arc<Shard>,
    /// When the loop has to call `advance`, as filed in its index of deadlines.
    pub(super) deadline: Ticks,
    /// True while the group is in the loop's list of groups to collect output from.
    pub(super) touched: bool,
    /// Handlers whose proposals are in the log, by the position of the entry. A position that
    /// another entry takes stays here until some entry commits at its index: only that tells
    /// whether the proposal is lost.
    waiting: BTreeMap<(Index, Term), Waiting>,
    /// Where the writes of sessions wait.
    writes: BTreeMap<WriteKey, (Index, Term)>,
    /// Reads that arrived in this turn; they share one round.
    new_reads: Vec<oneshot::Sender<ReadGrant>>,
    reads: BTreeMap<ReadId, Vec<oneshot::Sender<ReadGrant>>>,
    next_read: u64,
    /// A received snapshot about which the core has been asked in this turn.
    pub(super) announced: Option<ReplicationSession>,
}

impl Group {
    pub(super) fn new(raft: Raft, shard: Arc<Shard>) -> Self {
        let deadline = raft.next_deadline();
        let group = Self {
            raft,
            shard,
            deadline,
            touched: false,
            waiting: BTreeMap::new(),
            writes: BTreeMap::new(),
            new_reads: Vec::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            announced: None,
        };
        group.publish();
        group
    }

    /// Proposes, or answers why not. `clock` is this node's own, in Unix milliseconds.
    pub(super) fn propose(&mut self, now: Ticks, clock: u64, proposal: Proposal) {
        // What a replica cannot apply would commit, and its proposer never hear of it.
        if self.raft.is_leader() && !(self.takes_commands() && self.shard.serves()) {
            // A handler that is gone does not need to know.
            let _ = proposal.answer.send(Answer::Refused(RefusedProposal::LocalNotReady));
            return;
        }
        let Some(proposal) = self.join(proposal) else { return };
        let last = LogTime(self.raft.last_stamp());
        let stamp = next_stamp(last, clock, &mut self.clocks(now, clock)).0;
        let write = proposal.write.map(|key| (key, proposal.payload.clone()));
        match self.raft.propose(now, proposal.payload, stamp) {
            Ok(LogId { term, index }) => {
                if let Some((key, _)) = &write {
                    self.writes.insert(*key, (index, term));
                }
                let answers = vec![proposal.answer];
                self.waiting
                    .insert((index, term), Waiting { answers, proposed: Instant::now(), write });
            }
            Err(error) => {
                let refused = match error {
                    ProposeError::NotLeader { hint } => {
                        RefusedProposal::NotLeader(hint.map(|leader| leader.node))
                    }
                    ProposeError::Transferring { .. } => RefusedProposal::Transferring,
                    ProposeError::Full { .. } => RefusedProposal::Full,
                    ProposeError::TooLarge { .. } => RefusedProposal::TooLarge,
                };
                // A handler that is gone does not need to know.
                let _ = proposal.answer.send(Answer::Refused(refused));
            }
        }
    }

    /// Lets a proposal wait for the same write, if that one is under way; gives it back otherwise.
    fn join(&mut self, proposal: Proposal) -> Option<Proposal> {
        let position = proposal.write.and_then(|key| self.writes.get(&key));
        let waiting = position.and_then(|position| self.waiting.get_mut(position));
        let same = |waiting: &&mut Waiting| {
            waiting.write.as_ref().is_some_and(|(_, payload)| *payload == proposal.payload)
        };
        match waiting.filter(same) {
            // Entries of an older term may be lost, and this one would be with them.
            Some(waiting) if position.is_some_and(|(_, term)| *term == self.raft.term()) => {
                waiting.answers.push(proposal.answer);
                None
            }
            _ => Some(proposal),
        }
    }

    /// The handlers that wait at the lowest position, and that position.
    fn next_waiting(&mut self, through: Index) -> Option<((Index, Term), Waiting)> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= through)?;
        let (position, waiting) = first.remove_entry();
        if let Some((key, _)) = &waiting.write
            && self.writes.get(key) == Some(&position)
        {
            self.writes.remove(key);
        }
        Some((position, waiting))
    }

    /// Whether this replica leads and an entry of its term is committed, the empty one with which
    /// the term begins. A majority has then answered in this leadership and told its clocks: until
    /// that the median of [`next_stamp`] would be this node's own clock, and one that is a year
    /// ahead would date the group's entries a year ahead for good.
    fn takes_commands(&self) -> bool {
        let committed = self.raft.entry_id(self.raft.commit());
        self.raft.is_leader() && committed.is_some_and(|id| id.term == self.raft.term())
    }

    /// Whether the log must not grow, at `log_max` bytes. Where the replica applies, checkpoints keep
    /// the log far below that. One that is damaged or being scrubbed takes entries and votes like
    /// any other, because they are of use to the group, but what it cannot apply no checkpoint
    /// covers, so that memory and disk would run full. Behind this it is a follower that is slow: it
    /// catches up after the scrub, or never.
    pub(super) fn is_full(&self, log_max: u64) -> bool {
        !self.shard.serves() && self.raft.log_bytes() >= log_max
    }

    /// What the clocks of the voters show now, this node's own among them: a reported one has run on
    /// since. So neither the time between two reports nor a voter that is down makes a clock slow.
    fn clocks(&self, now: Ticks, own: u64) -> Vec<u64> {
        let me = self.shard.replica.id;
        let others = self.raft.clocks().into_iter();
        let mut clocks: Vec<u64> = others
            .filter(|(replica, clock, _)| *replica != me && *clock != 0)
            .map(|(_, clock, at)| clock.saturating_add(now.since(at).0 * TICK.as_millis() as u64))
            .collect();
        clocks.push(own);
        clocks
    }

    pub(super) fn read(&mut self, grant: oneshot::Sender<ReadGrant>) {
        self.new_reads.push(grant);
    }

    /// Hands the turn's reads to the core as one.
    pub(super) fn begin_reads(&mut self, now: Ticks) {
        if self.new_reads.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.new_reads);
        let id = ReadId(self.next_read);
        self.next_read += 1;
        match self.raft.read_index(now, id) {
            Ok(()) => {
                self.reads.insert(id, waiters);
            }
            Err(error) => {
                debug!(shard = self.shard.group.0, %error, "read index: refused");
                grant_all(waiters, ReadGrant::Dropped);
            }
        }
    }

    pub(super) fn finish_read(&mut self, id: ReadId, outcome: ReadOutcome) {
        let grant = match outcome {
            ReadOutcome::Ready(index) => ReadGrant::Ready(index),
            ReadOutcome::Dropped => ReadGrant::Dropped,
        };
        grant_all(self.reads.remove(&id).unwrap_or_default(), grant);
    }

    /// Pairs committed entries with the handlers that wait for them, and tells those whose
    /// proposal has lost its place.
    pub(super) fn match_waiters(
        &mut self,
        committed: Vec<Entry>,
        metrics: &EngineMetrics,
    ) -> Vec<Committed> {
        let now = Instant::now();
        committed
            .into_iter()
            .map(|entry| {
                let mut answers = Vec::new();
                while let Some((position, waiting)) = self.next_waiting(entry.index) {
                    if position == (entry.index, entry.term) {
                        metrics.commit_seconds.observe_duration(now - waiting.proposed);
                        answers = waiting.answers;
                    } else {
                        answer_all(waiting.answers, Answer::Lost);
                    }
                }
                Committed { entry, answers }
            })
            .collect()
    }

    /// A snapshot took the place of the log up to `last`: nobody here will see those entries.
    pub(super) fn forget_waiters(&mut self, last: Index) {
        while let Some((_, waiting)) = self.next_waiting(last) {
            answer_all(waiting.answers, Answer::Unknown);
        }
    }

    /// Reports the events of a turn and publishes what others read.
    pub(super) fn note_events(&mut self, events: &[Event], metrics: &EngineMetrics) {
        self.shard.stats.log_bytes.store(self.raft.log_bytes(), Ordering::Relaxed);
        if events.is_empty() {
            return;
        }
        let before = self.shard.leadership().leader;
        for event in events {
            self.report(event, metrics);
        }
        self.publish();
        let now = self.shard.leadership().leader;
        if now.is_some() && now != before {
            metrics.leader_changes.inc();
        }
    }

    fn report(&self, event: &Event, metrics: &EngineMetrics) {
        let shard = self.shard.group.0;
        match event {
            Event::Role { term, role, leader } => {
                if *role == RoleKind::Candidate {
                    metrics.elections.inc();
                }
                let leader = leader.map_or(0, |leader| leader.node.0);
                info!(shard, term = term.0, %role, leader, "role: changed");
            }
            Event::QuorumLost { term } => {
                info!(shard, term = term.0, "leader: stepping down, no quorum answers");
            }
            Event::Transfer { to, end } => info!(shard, to = to.0, ?end, "transfer: ended"),
            Event::ReplicaGone { replica } => {
                info!(shard, replica = replica.0, "replica: its node says that it is gone");
            }
            Event::Regress { replica, acknowledged, agreement } => {
                let node = self.raft.membership().node_of(*replica).map_or(0, |node| node.0);
                warn!(
                    shard,
                    node,
                    replica = replica.0,
                    acknowledged = acknowledged.0,
                    has = agreement.0,
                    "replica: it lost entries that it had acknowledged, and gets them again. Its \
                     node's disk drops writes, or its data directory was put back from a copy; \
                     stop that node until you know which: it may have forgotten votes too"
                );
            }
            Event::Stopped { fault } => {
                self.shard.set_damaged(&format!("it stopped by itself: {fault}"));
            }
            Event::Malformed { leader, before, found } => {
                warn!(
                    shard,
                    leader = leader.0,
                    entry = %found,
                    %before,
                    "append: the leader's entries do not follow each other. They are dropped, and \
                     the replica stays behind until another one leads"
                );
            }
            Event::Membership { index } => info!(shard, index = index.0, "membership: changed"),
        }
    }

    /// Tells others that this leader takes commands from now on: the commit that lets it is no
    /// event. Called when a turn is over.
    pub(super) fn note_commit(&self) {
        if self.takes_commands() != self.shard.leadership().is_leader {
            self.publish();
        }
    }

    fn publish(&self) {
        self.shard.set_leadership(Leadership {
            term: self.raft.term(),
            leader: self.raft.leader().map(|leader| leader.node),
            is_leader: self.takes_commands(),
        });
    }
}

fn grant_all(waiters: Vec<oneshot::Sender<ReadGrant>>, grant: ReadGrant) {
    for waiter in waiters {
        // A reader that gave up is no loss.
        let _ = waiter.send(grant);
    }
}

#[cfg(test)]
mod tests;
