//! The replica: one struct, and the calls that a driver makes.

use bytes::Bytes;

use crate::config::Config;
use crate::entropy::Entropy;
use crate::error::{ProposeError, ReadError, RestoreError, TransferError};
use crate::log::Log;
use crate::members::Members;
use crate::membership::Membership;
use crate::message::{Envelope, Message, SnapshotMeta, SnapshotResult};
use crate::output::{Event, Install, Output, PersistToken, ReadId, ReadOutcome, TransferEnd};
use crate::persist::Persistence;
use crate::reads::Reader;
use crate::role::{Append, Follower, Role};
use crate::types::{
    Entry, EntryKind, GroupId, HardState, Index, LogId, Replica, ReplicaId, SessionId, Term, Ticks,
};

/// What a replica starts from: the durable log, and the state machine's position in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Restored {
    /// The newest durable hard state; the default for a new replica.
    pub hard_state: HardState,
    /// The position before the first of `entries`.
    pub base: LogId,
    /// The last entry in the durable state machine; at or after `base`.
    pub applied: LogId,
    /// The stamp of `applied` (the state machine's log time); 0 where nothing is applied.
    pub stamp: u64,
    /// The membership as of `applied`.
    pub membership: Membership,
    /// The durable entries after `base`, without gaps.
    pub entries: Vec<Entry>,
}

/// What was handed out to be applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Applying {
    /// Reported as applied through here.
    pub(crate) applied: Index,
    /// Handed out through here.
    pub(crate) handed: Index,
    /// The size of what is handed out and not reported.
    pub(crate) bytes: u64,
}

/// One replica of one group: a deterministic state machine. See the crate's page for how to drive
/// it.
///
/// Two replicas that compare as equal behave alike, except for the election timeouts they will
/// draw.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) group: GroupId,
    pub(crate) me: Replica,
    /// When this replica was created, and the newest reading given to it.
    pub(crate) started: Ticks,
    pub(crate) now: Ticks,
    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
    pub(crate) commit: Index,
    pub(crate) log: Log,
    pub(crate) persistence: Persistence,
    pub(crate) members: Members,
    pub(crate) applying: Applying,
    pub(crate) role: Role,
    /// The snapshot that the driver was asked to install.
    pub(crate) installing: Option<Install>,
    /// Counts the read requests sent to leaders.
    pub(crate) requests: u64,
    pub(crate) clock: u64,
    pub(crate) entropy: Entropy,
    /// What the next output will carry, but for writes and committed entries.
    pub(crate) out: Output,
}

impl Raft {
    /// Starts a replica as a follower. All of `restored` counts as durable.
    ///
    /// `seed` should differ between replicas and between starts, for instance a hash of the node's
    /// incarnation, the group and a boot counter: election timeouts and the identity of read
    /// requests come from it.
    ///
    /// # Errors
    /// A configuration that cannot work, or a log that does not fit together: damage, which is
    /// reported and never repaired by guessing.
    pub fn new(
        config: Config,
        group: GroupId,
        me: Replica,
        seed: u64,
        restored: Restored,
        now: Ticks,
    ) -> Result<Raft, RestoreError> {
        config.validate()?;
        let Restored { hard_state, base, applied, stamp, membership, entries } = restored;
        let stamp_at_base = if applied == base { stamp } else { 0 };
        let mut log = Log::new(base, stamp_at_base);
        let mut members = Members::new(applied.index, membership);
        for entry in entries {
            let last = log.last();
            if entry.index != last.index.next() {
                return Err(RestoreError::Gap { expected: last.index.next(), found: entry.id() });
            }
            if entry.term < last.term || entry.term > hard_state.term {
                let (found, before, current) = (entry.id(), last.term, hard_state.term);
                return Err(RestoreError::Term { found, before, current });
            }
            if entry.kind == EntryKind::Membership && entry.index > applied.index {
                let index = entry.index;
                let membership = Membership::decode(&entry.payload)
                    .map_err(|source| RestoreError::Membership { index, source })?;
                members.push(index, membership);
            }
            log.push(entry);
        }
        let last = log.last();
        if !log.matches(applied) {
            return Err(RestoreError::Applied { applied, base, last });
        }
        if hard_state.commit > last.index {
            return Err(RestoreError::Commit { commit: hard_state.commit, last });
        }
        let mut entropy = Entropy::new(seed);
        let deadline = now.after(entropy.between(config.election_min, config.election_max));
        Ok(Raft {
            config,
            group,
            me,
            started: now,
            now,
            // A log restored from a snapshot alone may be ahead of the hard state.
            term: hard_state.term.max(last.term),
            vote: hard_state.vote.filter(|_| hard_state.term >= last.term),
            commit: hard_state.commit.max(applied.index),
            persistence: Persistence::new(last.index),
            log,
            members,
            applying: Applying { applied: applied.index, handed: applied.index, bytes: 0 },
            role: Role::Follower(Follower::new(None, now, deadline)),
            installing: None,
            requests: 0,
            clock: 0,
            entropy,
            out: Output::default(),
        })
    }

    // --- Inputs ------------------------------------------------------------------------------

    /// Takes a message of another replica. Whatever is in it, this does not panic; what makes no
    /// sense is ignored.
    pub fn step(&mut self, now: Ticks, envelope: Envelope) {
        self.observe(now);
        // A term that leaves no room for later ones can only be damage.
        if envelope.group != self.group
            || envelope.from.id == self.me.id
            || envelope.term.0 > u64::MAX / 2
        {
            return;
        }
        if envelope.to.id != self.me.id {
            self.refuse_as_gone(&envelope);
        } else if envelope.message == Message::ReplicaGone {
            self.on_replica_gone(envelope.from.id);
        } else if self.admit(&envelope) {
            self.dispatch(envelope);
        }
        self.check();
    }

    /// Lets time pass: elections, heartbeats, deadlines. The driver calls it when
    /// [`Raft::next_deadline`] has come, after the messages that have arrived by then.
    pub fn advance(&mut self, now: Ticks) {
        self.observe(now);
        match &self.role {
            Role::Leader(leader) => {
                if self.now >= leader.next_heartbeat {
                    self.beat();
                }
            }
            role => {
                if role.election_deadline().is_some_and(|deadline| deadline <= self.now) {
                    self.start_election();
                }
            }
        }
        self.check();
    }

    /// When [`Raft::advance`] has something to do.
    pub fn next_deadline(&self) -> Ticks {
        match &self.role {
            Role::Leader(leader) => {
                let quorum = self.config.check_quorum.then_some(leader.quorum_deadline);
                let transfer = leader.transfer.as_ref().map(|transfer| transfer.deadline);
                [quorum, transfer].into_iter().flatten().fold(leader.next_heartbeat, Ticks::min)
            }
            Role::Follower(follower) => {
                follower.reads.retry_at().map_or(follower.deadline, |at| at.min(follower.deadline))
            }
            Role::PreCandidate(ballot) | Role::Candidate(ballot) => ballot.deadline,
        }
    }

    /// Behaves as if the election timeout had passed just now, because the driver has another
    /// reason to believe that the leader is gone. At a leader it does nothing.
    pub fn election_timeout(&mut self, now: Ticks) {
        self.observe(now);
        self.start_election();
        self.check();
    }

    /// Appends a command. `stamp` is raised to one above the stamp before it, if it is lower. The
    /// entry is sent and written with the next output; it is decided when an entry comes out as
    /// committed at its index.
    ///
    /// # Errors
    /// Nothing was appended: this is not the leader, it is handing over, or a limit is reached.
    pub fn propose(
        &mut self,
        now: Ticks,
        payload: Bytes,
        stamp: u64,
    ) -> Result<LogId, ProposeError> {
        self.observe(now);
        self.propose_command(payload, stamp)
    }

    /// Asks for an index at which a read is linearizable (Raft thesis §6.4). The answer comes in
    /// [`Output::reads`], once a quorum round which began after this call is confirmed; a follower
    /// asks its leader.
    ///
    /// # Errors
    /// No leader is known, leadership is being handed over, or too many reads wait.
    pub fn read_index(&mut self, now: Ticks, id: ReadId) -> Result<(), ReadError> {
        self.observe(now);
        let limit = self.config.max_pending_reads;
        match &mut self.role {
            Role::Leader(leader) => {
                if let Some(transfer) = &leader.transfer {
                    return Err(ReadError::Transferring { to: transfer.to });
                }
                if leader.reads.len() >= limit {
                    return Err(ReadError::Full { limit });
                }
                leader.reads.add(Reader::Local(id));
                leader.dirty = true;
                Ok(())
            }
            Role::Follower(follower) if follower.leader.is_some() => {
                if follower.reads.len() >= limit {
                    return Err(ReadError::Full { limit });
                }
                follower.reads.add(id);
                Ok(())
            }
            _ => Err(ReadError::NoLeader),
        }
    }

    /// Hands leadership to a voter (Raft thesis §3.10): no proposals and no reads from now on,
    /// until it has taken over or the shortest election timeout has passed. Asking again for the
    /// same target changes nothing; another target replaces the first.
    ///
    /// # Errors
    /// This is not the leader, or the target cannot become it.
    pub fn transfer_leader(&mut self, now: Ticks, to: ReplicaId) -> Result<(), TransferError> {
        self.observe(now);
        let result = self.start_transfer(to);
        self.check();
        result
    }

    /// A write is durable. Completions may come in any order; one that is unknown is ignored.
    pub fn on_persisted(&mut self, now: Ticks, token: PersistToken) {
        self.observe(now);
        if self.persistence.complete(token) {
            self.count_own_vote();
            self.count_commit();
        }
        self.check();
    }

    /// The state machine has applied everything through `index`.
    ///
    /// # Panics
    /// When that was never handed out: the driver and its state machine do not belong together.
    pub fn on_applied(&mut self, now: Ticks, index: Index) {
        self.observe(now);
        let Applying { applied, handed, .. } = self.applying;
        assert!(index <= handed, "{index} is reported as applied, handed out is {handed}");
        if index > applied {
            let bytes: u64 = self.log.range(applied.next(), index).map(Entry::bytes).sum();
            self.applying.bytes -= bytes;
            self.applying.applied = index;
            self.members.prune(index);
        }
        self.check();
    }

    /// A bulk message to this peer was dropped. Streaming to it stops until it is heard again.
    pub fn unreachable(&mut self, now: Ticks, peer: ReplicaId) {
        self.observe(now);
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&peer)
        {
            progress.pause();
        }
        self.check();
    }

    /// The transfer of a snapshot has ended: all bytes were delivered, or it failed. Each
    /// [`crate::SnapshotSend`] is answered by one call.
    pub fn snapshot_sent(&mut self, now: Ticks, to: ReplicaId, session: SessionId, ok: bool) {
        self.observe(now);
        if ok {
            self.snapshot_delivered(to, session);
        } else {
            self.restart_snapshot(to, session, true);
        }
        self.check();
    }

    /// The snapshot of [`Output::install`] is durably installed: it is the state machine now.
    /// Without such an installation under way it is ignored.
    pub fn on_installed(&mut self, now: Ticks, meta: SnapshotMeta) {
        self.observe(now);
        let Some(install) = self.installing.take_if(|install| install.meta == meta) else { return };
        let SnapshotMeta { last, stamp, membership } = meta;
        // No election is held while installing and no append taken, so the log cannot have got
        // there.
        assert!(!self.log.matches(last), "{last} was installed but is in the log already");
        self.log = Log::new(last, stamp);
        self.persistence.reset(last);
        self.members = Members::new(last.index, membership);
        self.applying = Applying { applied: last.index, handed: last.index, bytes: 0 };
        self.commit = self.commit.max(last.index);
        self.out.events.push(Event::Membership { index: last.index });
        let result = SnapshotResult::Installed { last: last.index };
        self.reply_snapshot(&install, result);
        self.check();
    }

    /// The snapshot of [`Output::install`] could not be installed; state and log are as before.
    pub fn on_install_failed(&mut self, now: Ticks) {
        self.observe(now);
        if let Some(install) = self.installing.take() {
            self.reply_snapshot(&install, SnapshotResult::Failed);
        }
        self.check();
    }

    fn reply_snapshot(&mut self, install: &Install, result: SnapshotResult) {
        let reply = Message::SnapshotReply { session: install.session, result };
        // Installing and resetting the log are two writes; the answer waits for both.
        if self.persistence.is_ready(&self.log) {
            self.persistence.send_after(self.envelope(install.from, reply));
        } else {
            self.send_when_durable(install.from, Index(0), reply);
        }
    }

    /// Drops the log through `through`, which a checkpoint holds, from memory; returns the new
    /// base, through which it may be purged from disk. Never beyond what is applied. A leader keeps
    /// what its living followers still need, within the margin of the configuration.
    pub fn compact(&mut self, through: Index) -> LogId {
        let through = self.purgeable(through.min(self.applying.applied));
        self.log.compact(through);
        self.check();
        self.log.base()
    }

    /// Sets the wall clock that replies report to the leader; opaque here, 0 = unknown.
    pub fn set_clock(&mut self, clock: u64) {
        self.clock = clock;
    }

    // --- Outputs -----------------------------------------------------------------------------

    /// Whether [`Raft::take_output`] is due.
    pub fn has_output(&self) -> bool {
        let due = match &self.role {
            Role::Leader(leader) => leader.dirty,
            Role::Follower(follower) => {
                let overdue = follower.reads.retry_at().is_some_and(|at| at <= self.now);
                follower.leader.is_some() && (overdue || follower.reads.is_due())
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        };
        due || self.persistence.is_ready(&self.log)
            || self.applicable().is_some()
            || !self.out.is_empty()
    }

    /// All work that has come up since the last call. One call per turn of the driver, after all
    /// inputs of that turn: that is what batches proposals, reads and writes.
    pub fn take_output(&mut self) -> Output {
        self.begin_reads();
        self.replicate();
        self.forward_reads();
        let hard_state = HardState { term: self.term, vote: self.vote, commit: self.commit };
        let persist = self.persistence.take(&self.log, hard_state);
        let committed = self.take_committed();
        self.check();
        Output { persist, committed, ..std::mem::take(&mut self.out) }
    }

    /// The last index that may be applied, if that is news: committed, and durable here. While a
    /// snapshot is being installed the state machine is not touched.
    fn applicable(&self) -> Option<Index> {
        let limit = self.commit.min(self.persistence.durable());
        let room = self.applying.bytes < self.config.max_committed_bytes;
        (self.installing.is_none() && room && limit > self.applying.handed).then_some(limit)
    }

    fn take_committed(&mut self) -> Vec<Entry> {
        let Some(limit) = self.applicable() else { return Vec::new() };
        let from = self.applying.handed.next();
        let mut bytes = self.applying.bytes;
        let room = |entry: &&Entry| {
            let fits = bytes < self.config.max_committed_bytes;
            bytes += entry.bytes();
            fits
        };
        let committed: Vec<_> = self.log.range(from, limit).take_while(room).cloned().collect();
        self.applying.bytes += committed.iter().map(Entry::bytes).sum::<u64>();
        self.applying.handed = Index(self.applying.handed.0 + committed.len() as u64);
        committed
    }

    // --- Shared by the roles -----------------------------------------------------------------

    /// Takes note of the time before anything else: a leader that was stopped finds out here that
    /// it no longer is one.
    fn observe(&mut self, now: Ticks) {
        self.now = self.now.max(now);
        if let Role::Leader(_) = self.role {
            self.check_quorum();
            self.check_transfer();
        }
    }

    /// The rules about terms (Raft paper §5.1). Returns whether the message is to be looked at.
    fn admit(&mut self, envelope: &Envelope) -> bool {
        let Envelope { from, term, message, .. } = envelope;
        if *term > self.term {
            match message {
                // Asks about a term, and changes none.
                Message::PreVote { .. } => return true,
                // Whoever hears a leader does not let itself be drawn away from it (thesis §4.2.3).
                Message::Vote { transfer: false, .. } if self.hears_leader() => return false,
                _ => self.become_follower(*term, None),
            }
            return true;
        }
        if *term == self.term {
            return true;
        }
        match message {
            // Its own term is what an answerer with a lower one has; the question is named inside.
            Message::PreVoteReply { .. } => return true,
            Message::PreVote { last } => self.on_pre_vote(*from, *term, *last),
            Message::Vote { .. } => {
                self.send_when_durable(*from, Index(0), Message::VoteReply { granted: false });
            }
            // A leader of an older term must learn that it is one, also when it cannot be voted out
            // because others still hear it.
            Message::Append { session, timing, .. }
            | Message::Heartbeat { session, timing, .. } => {
                let (session, timing) = (*session, *timing);
                let reply = Message::HeartbeatReply { session, installing: false, timing };
                self.send_when_durable(*from, Index(0), reply);
            }
            Message::InstallSnapshot { session, .. } => {
                let (session, result) = (*session, SnapshotResult::Failed);
                let reply = Message::SnapshotReply { session, result };
                self.send_when_durable(*from, Index(0), reply);
            }
            Message::ReadIndex { request } => {
                self.send(*from, Message::ReadIndexReply { request: *request, index: None });
            }
            _ => {}
        }
        false
    }

    fn dispatch(&mut self, envelope: Envelope) {
        let Envelope { from, term, message, .. } = envelope;
        match message {
            Message::PreVote { last } => self.on_pre_vote(from, term, last),
            Message::PreVoteReply { proposed, granted } => {
                self.on_pre_vote_reply(from, proposed, granted);
            }
            Message::Vote { last, .. } => self.on_vote(from, last),
            Message::VoteReply { granted } => self.on_vote_reply(from, granted),
            Message::Append { session, prev, commit, entries, timing } => {
                self.on_append(from, Append { session, prev, commit, entries, timing });
            }
            Message::AppendReply { session, result, timing } => {
                self.on_append_reply(from.id, session, result, &timing);
            }
            Message::Heartbeat { session, commit, timing } => {
                self.on_heartbeat(from, session, commit, &timing);
            }
            Message::HeartbeatReply { session, installing, timing } => {
                self.on_heartbeat_reply(from.id, session, installing, &timing);
            }
            Message::InstallSnapshot { session, meta } => {
                self.on_install_snapshot(from, session, meta);
            }
            Message::SnapshotReply { session, result } => {
                self.on_snapshot_reply(from.id, session, result);
            }
            Message::ReadIndex { request } => self.on_read_index(from, request),
            Message::ReadIndexReply { request, index } => {
                self.on_read_index_reply(from, request, index);
            }
            Message::TimeoutNow { last } => self.on_timeout_now(from, last),
            Message::ReplicaGone => {}
        }
    }

    /// A message for a replica that is not here any more. Answers are not answered.
    fn refuse_as_gone(&mut self, envelope: &Envelope) {
        let wants_answer = matches!(
            envelope.message,
            Message::PreVote { .. }
                | Message::Vote { .. }
                | Message::Append { .. }
                | Message::Heartbeat { .. }
                | Message::InstallSnapshot { .. }
                | Message::ReadIndex { .. }
                | Message::TimeoutNow { .. }
        );
        if wants_answer {
            self.out.send.push(Envelope {
                group: self.group,
                from: Replica { id: envelope.to.id, node: self.me.node },
                to: envelope.from,
                term: Term(0),
                message: Message::ReplicaGone,
            });
        }
    }

    /// An election is due. Learners and strangers hold none; nor does a replica whose log is about
    /// to be replaced.
    fn start_election(&mut self) {
        if self.is_leader() {
            return;
        }
        if !self.members.current().is_voter(self.me.id) || self.installing.is_some() {
            let later = self.draw_deadline();
            match &mut self.role {
                Role::Follower(follower) => follower.deadline = later,
                Role::PreCandidate(ballot) | Role::Candidate(ballot) => ballot.deadline = later,
                Role::Leader(_) => {}
            }
        } else if self.config.pre_vote {
            self.become_pre_candidate();
        } else {
            self.become_candidate(false);
        }
    }

    /// Follows in `term`. A timer that runs goes on: only a leader's words and a vote given restart
    /// it.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<Replica>) {
        assert!(term >= self.term, "the term cannot go from {} back to {term}", self.term);
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.persistence.touch_hard_state();
        }
        let deadline = match self.role.election_deadline() {
            Some(deadline) => deadline,
            None => self.draw_deadline(),
        };
        self.change_role(Role::Follower(Follower::new(leader, self.now, deadline)));
    }

    /// Ends a role and begins another. What waited for the old one is told.
    pub(crate) fn change_role(&mut self, role: Role) {
        let old = std::mem::replace(&mut self.role, role);
        match old {
            Role::Follower(mut follower) => {
                let reads = follower.reads.drop_all();
                self.out.reads.extend(reads.into_iter().map(|read| (read, ReadOutcome::Dropped)));
            }
            Role::Leader(mut leader) => {
                self.answer(leader.reads.drop_all(), None);
                if let Some(transfer) = leader.transfer {
                    let end = TransferEnd::SteppedDown;
                    self.out.events.push(Event::Transfer { to: transfer.to, end });
                }
            }
            Role::PreCandidate(_) | Role::Candidate(_) => {}
        }
        let (term, role, leader) = (self.term, self.role.kind(), self.leader());
        self.out.events.push(Event::Role { term, role, leader });
    }

    /// Whether votes are refused because a leader is heard (Raft thesis §6.2): a leader hears
    /// itself as long as it has a quorum.
    pub(crate) fn hears_leader(&self) -> bool {
        self.config.check_quorum
            && match &self.role {
                Role::Leader(_) => true,
                Role::Follower(follower) => {
                    follower.leader.is_some()
                        && self.now.since(follower.heard) < self.config.election_min
                }
                Role::PreCandidate(_) | Role::Candidate(_) => false,
            }
    }

    /// Raises the commit index; a lower one is old news.
    pub(crate) fn advance_commit(&mut self, to: Index) {
        let last = self.log.last().index;
        assert!(to <= last, "{to} cannot be committed, the log ends at {last}");
        if to <= self.commit {
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            let bytes: u64 = self.log.range(self.commit.next(), to).map(Entry::bytes).sum();
            leader.uncommitted_bytes -= bytes;
            leader.dirty = true;
        }
        self.commit = to;
    }

    /// The identity of the last committed entry.
    pub(crate) fn commit_id(&self) -> LogId {
        // base ≤ commit ≤ last holds always, see `check`.
        self.log.id_at(self.commit).unwrap_or_else(|| panic!("{} is not in the log", self.commit))
    }

    pub(crate) fn draw_deadline(&mut self) -> Ticks {
        let Config { election_min, election_max, .. } = self.config;
        self.now.after(self.entropy.between(election_min, election_max))
    }

    pub(crate) fn other_voters(&self) -> Vec<Replica> {
        self.members.current().voters().filter(|voter| voter.id != self.me.id).collect()
    }

    fn envelope(&self, to: Replica, message: Message) -> Envelope {
        Envelope { group: self.group, from: self.me, to, term: self.term, message }
    }

    /// Sends something that promises nothing.
    pub(crate) fn send(&mut self, to: Replica, message: Message) {
        let envelope = self.envelope(to, message);
        self.out.send.push(envelope);
    }

    /// Sends something that promises that our term and vote, and the log through `through`, will be
    /// there after a crash.
    pub(crate) fn send_when_durable(&mut self, to: Replica, through: Index, message: Message) {
        let envelope = self.envelope(to, message);
        if self.persistence.hard_state_durable() && self.persistence.durable() >= through {
            self.out.send.push(envelope);
        } else {
            self.persistence.send_after(envelope);
        }
    }
}
