//! A Raft group as its loop drives it: the core, and the handlers that wait for proposals and
//! reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use quorate_machine::WriteKey;
use quorate_machine::{LogTime, next_stamp};
use quorate_raft::{
    Entry, Envelope, Event, Index, LogId, ProposeError, Raft, ReadId, ReadOutcome,
    ReplicationSession, RoleKind, Term, Ticks,
};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

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
    /// The identity of the write, and its command.
    write: Option<(WriteKey, Bytes)>,
}

/// A group and its waiters.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) raft: Raft,
    pub(super) shard: Arc<Shard>,
    /// When the loop has to call `advance`, as entered in its index of deadlines.
    pub(super) deadline: Ticks,
    /// True while the group is in the loop's list of groups to collect output from.
    pub(super) touched: bool,
    /// Handlers whose proposals are in the log, by the position of the entry. If another entry
    /// replaces it, the position stays here until some entry commits at its index: only that
    /// decides whether the proposal is lost.
    waiting: BTreeMap<(Index, Term), Waiting>,
    /// The positions at which the writes of sessions wait.
    writes: BTreeMap<WriteKey, (Index, Term)>,
    /// Reads that arrived in this iteration; they share one round.
    new_reads: Vec<oneshot::Sender<ReadGrant>>,
    reads: BTreeMap<ReadId, Vec<oneshot::Sender<ReadGrant>>>,
    next_read: u64,
    /// A received snapshot that was announced to the core in this iteration.
    pub(super) announced: Option<ReplicationSession>,
    /// The log says once that the term has jumped, and once that none is left.
    said_jump: bool,
    said_last: bool,
}

/// A step of the term that elections do not explain: they would need a century. A peer that knows
/// the cluster's secret was wrong, or has forged it.
const TERM_JUMP: u64 = 1 << 32;

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
            said_jump: false,
            said_last: false,
        };
        group.publish();
        group
    }

    /// Handles a message of a peer. Returns whether the term jumped by it, see [`TERM_JUMP`].
    pub(super) fn step(&mut self, now: Ticks, envelope: Envelope) -> bool {
        let (before, peer) = (self.raft.term(), envelope.from.node);
        self.raft.step(now, envelope);
        let term = self.raft.term();
        // A group without a past joins one that may have any.
        if before.0 == 0 || term.0 - before.0 <= TERM_JUMP {
            return false;
        }
        if !std::mem::replace(&mut self.said_jump, true) {
            warn!(
                shard = self.shard.group.0,
                peer = peer.0,
                before = before.0,
                term = term.0,
                "term: jumped further than elections do; a peer is wrong, or someone who has the \
                 secret has forged it. deploy/README.md says what to do"
            );
        }
        true
    }

    /// Proposes, or answers why not. `clock` is this node's own, in Unix milliseconds.
    pub(super) fn propose(&mut self, now: Ticks, clock: u64, proposal: Proposal) {
        if !proposal.claim.decides() {
            // Its caller has left or run out of time while it was queued.
            return;
        }
        // If this replica cannot apply, the entry would commit and its proposer get no answer.
        if self.raft.is_leader() && !(self.takes_commands() && self.shard.serves()) {
            // The handler may have given up; ignore it.
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
                // The handler may have given up; ignore it.
                let _ = proposal.answer.send(Answer::Refused(refused));
            }
        }
    }

    /// Lets a proposal wait for the same write if that is in flight; otherwise returns it.
    fn join(&mut self, proposal: Proposal) -> Option<Proposal> {
        let position = proposal.write.and_then(|key| self.writes.get(&key));
        let waiting = position.and_then(|position| self.waiting.get_mut(position));
        let same = |waiting: &&mut Waiting| {
            waiting.write.as_ref().is_some_and(|(_, payload)| *payload == proposal.payload)
        };
        match waiting.filter(same) {
            // An entry of an older term may be lost, and this proposal would be lost with it.
            Some(waiting) if position.is_some_and(|(_, term)| *term == self.raft.term()) => {
                waiting.answers.push(proposal.answer);
                None
            }
            _ => Some(proposal),
        }
    }

    /// Removes the lowest position up to `through`, with the handlers that wait there.
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

    /// Whether this replica leads and the empty entry that begins its term is committed. A majority
    /// has then answered in this term and reported its clocks. Before that the median of
    /// [`next_stamp`] would be this node's own clock, and a clock that is a year ahead would
    /// permanently date the group's entries a year ahead.
    fn takes_commands(&self) -> bool {
        let committed = self.raft.entry_id(self.raft.commit());
        self.raft.is_leader() && committed.is_some_and(|id| id.term == self.raft.term())
    }

    /// Whether the log has reached `log_max` bytes and must not grow. Checkpoints keep the log of a
    /// replica that applies far below that. A replica that is damaged or being scrubbed accepts
    /// entries and votes like any other, because that helps the group, but no checkpoint covers
    /// entries that it cannot apply, so memory and disk would run full. When full it is a slow
    /// follower: it catches up after the scrub, or never.
    pub(super) fn is_full(&self, log_max: u64) -> bool {
        !self.shard.serves() && self.raft.log_bytes() >= log_max
    }

    /// The current clocks of the voters, including this node's own. A reported clock is advanced by
    /// the time since its report, so neither the time between two reports nor a voter that is down
    /// makes a clock slow.
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

    /// Passes the iteration's reads to the core as one.
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

    /// Pairs committed entries with the handlers that wait for them, and answers [`Answer::Lost`]
    /// to those whose proposal was replaced by another entry.
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

    /// Answers [`Answer::Unknown`] to the waiters up to `last`: a snapshot replaced that part of
    /// the log, so this replica never sees those entries.
    pub(super) fn forget_waiters(&mut self, last: Index) {
        while let Some((_, waiting)) = self.next_waiting(last) {
            answer_all(waiting.answers, Answer::Unknown);
        }
    }

    /// Logs and counts the events of an iteration, and publishes the leadership for other threads.
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

    fn report(&mut self, event: &Event, metrics: &EngineMetrics) {
        let shard = self.shard.group.0;
        match event {
            Event::Role { term, role, leader } => {
                if *role == RoleKind::Candidate {
                    metrics.elections.inc();
                }
                let leader = leader.map_or(0, |leader| leader.node.0);
                info!(shard, term = term.0, %role, leader, "role: changed");
            }
            Event::NoTermLeft if self.said_last => {}
            Event::NoTermLeft => {
                self.said_last = true;
                error!(
                    shard,
                    "term: the last one is reached, so this shard elects no leader again; stale \
                     reads still answer. deploy/README.md says how to move its data elsewhere"
                );
            }
            Event::QuorumLost { term } => {
                info!(shard, term = term.0, "leader: stepping down, lost contact with a quorum");
            }
            Event::Transfer { to, end } => info!(shard, to = to.0, ?end, "transfer: ended"),
            Event::ReplicaGone { replica } => {
                info!(shard, replica = replica.0, "replica: reported as removed by its node");
            }
            Event::Regress { replica, acknowledged, agreement } => {
                let node = self.raft.membership().node_of(*replica).map_or(0, |node| node.0);
                warn!(
                    shard,
                    node,
                    replica = replica.0,
                    acknowledged = acknowledged.0,
                    has = agreement.0,
                    "replica: lost entries that it had acknowledged; they are sent again. Its \
                     node's disk drops writes, or its data directory was restored from a copy; \
                     stop that node until you know which: it may have lost votes too"
                );
            }
            Event::Stopped { fault } => {
                self.shard.set_damaged(&format!("the Raft core stopped: {fault}"));
            }
            Event::Malformed { leader, before, found } => {
                warn!(
                    shard,
                    leader = leader.0,
                    entry = %found,
                    %before,
                    "append: the leader's entries are not consecutive; they are dropped, and this \
                     replica falls behind until the leader changes"
                );
            }
            Event::Membership { index } => info!(shard, index = index.0, "membership: changed"),
        }
    }

    /// Publishes that this leader accepts commands from now on, because the commit that permits it
    /// is not an event. Called at the end of an iteration.
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
        // The reader may have given up; ignore it.
        let _ = waiter.send(grant);
    }
}

#[cfg(test)]
mod tests;
