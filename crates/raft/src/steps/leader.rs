//! The leader: accepts proposals, commits (Raft paper §5.3, §5.4.2), sends heartbeats, confirms
//! reads.

use bytes::Bytes;

use crate::error::ProposeError;
use crate::message::{Message, ReadRequest, Timing};
use crate::output::{Event, ReadOutcome};
use crate::progress::Progress;
use crate::quorum;
use crate::raft::Raft;
use crate::reads::{ReadRounds, Reader};
use crate::role::{Leader, Role};
use crate::room::room_for;
use crate::types::{Entry, EntryKind, Index, LogId, Replica, ReplicaId, ReplicationSession, Ticks};

impl Raft {
    pub(crate) fn become_leader(&mut self) {
        // Term and vote are durable, even if that was not reported yet: the vote requests were sent
        // after that.
        let last = self.log.last().index;
        let others: Vec<_> =
            self.members.current().replicas().filter(|replica| replica.id != self.me.id).collect();
        let progress = others.into_iter().zip(1..).map(|(peer, counter)| {
            let session = ReplicationSession { term: self.term, counter };
            (peer.id, Progress::new(peer, session, last.next(), self.now))
        });
        let leader = Leader {
            term_start: last.next(),
            progress: progress.collect(),
            next_heartbeat: self.next_heartbeat_time(),
            quorum_deadline: self.now.after(self.config.election_max),
            uncommitted_bytes: self.log.range(self.commit.next(), last).map(Entry::bytes).sum(),
            dirty: true,
            round: 0,
            reads: ReadRounds::default(),
            age: None,
            transfer: None,
        };
        self.change_role(Role::Leader(Box::new(leader)));
        self.append_own(EntryKind::Noop, Bytes::new(), 0);
    }

    /// When the next heartbeat is due: heartbeats fall on multiples of the interval.
    fn next_heartbeat_time(&self) -> Ticks {
        let interval = self.config.heartbeat.0;
        Ticks((self.now.0 / interval + 1).saturating_mul(interval))
    }

    /// Appends a proposal; see [`Raft::propose`].
    pub(crate) fn propose_command(
        &mut self,
        payload: Bytes,
        stamp: u64,
    ) -> Result<LogId, ProposeError> {
        let Role::Leader(leader) = &self.role else {
            return Err(ProposeError::NotLeader { hint: self.leader() });
        };
        if let Some(transfer) = &leader.transfer {
            return Err(ProposeError::Transferring { to: transfer.to });
        }
        let bytes = payload.len() as u64 + Entry::OVERHEAD_BYTES;
        if bytes > self.config.max_entry_bytes {
            return Err(ProposeError::TooLarge { bytes, limit: self.config.max_entry_bytes });
        }
        let (uncommitted, limit) = (leader.uncommitted_bytes, self.config.max_uncommitted_bytes);
        if uncommitted > 0 && uncommitted + bytes > room_for(bytes, limit) {
            return Err(ProposeError::Full { uncommitted, limit });
        }
        Ok(self.append_own(EntryKind::Command, payload, stamp))
    }

    fn append_own(&mut self, kind: EntryKind, payload: Bytes, stamp: u64) -> LogId {
        let stamp = self.log.last_stamp().saturating_add(1).max(stamp);
        let index = self.log.last().index.next();
        let entry = Entry { term: self.term, index, kind, stamp, payload };
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted_bytes += entry.bytes();
            leader.dirty = true;
        }
        let id = entry.id();
        self.log.push(entry);
        id
    }

    /// Commits the entries that a quorum holds durably; we count ourselves only with what is
    /// durable here. Entries of earlier terms are committed only by one of our own after them (Raft
    /// paper §5.4.2, figure 8).
    pub(crate) fn count_commit(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let durable = self.persistence.durable();
        let index = Index(quorum::reached(self.members.current(), |voter| {
            if voter == self.me.id {
                durable.0
            } else {
                leader.progress.get(&voter).map_or(0, |progress| progress.matched.0)
            }
        }));
        if index > self.commit && self.log.id_at(index).map(|id| id.term) == Some(self.term) {
            self.advance_commit(index);
        }
    }

    /// Sends heartbeats to all members, and begins a new quorum round for the ages.
    pub(crate) fn heartbeat(&mut self) {
        let next_heartbeat = self.next_heartbeat_time();
        let commit = self.commit;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.next_heartbeat = next_heartbeat;
        if leader.age.is_none() && commit >= leader.term_start {
            leader.round += 1;
            leader.age = Some((leader.round, commit));
            for progress in leader.progress.values_mut() {
                progress.reading_in_round = progress.reading;
            }
        }
        for progress in leader.progress.values_mut() {
            progress.retry_allowed = true;
        }
        self.send_heartbeats(|_| true);
        self.send_timeout_now();
    }

    fn send_heartbeats(&mut self, wanted: impl Fn(ReplicaId) -> bool) {
        let Role::Leader(leader) = &self.role else { return };
        let heartbeats: Vec<_> = leader
            .progress
            .values()
            .filter(|progress| wanted(progress.peer.id))
            .map(|progress| {
                let timing = progress.timing(self.now, leader.round, self.clock);
                let commit = self.commit.min(progress.matched);
                (progress.peer, Message::Heartbeat { session: progress.session, commit, timing })
            })
            .collect();
        for (peer, heartbeat) in heartbeats {
            self.send(peer, heartbeat);
        }
    }

    /// Records the timing of any reply that belongs to the current replication session; returns
    /// whether it does.
    pub(crate) fn record_reply(
        &mut self,
        from: ReplicaId,
        session: ReplicationSession,
        timing: &Timing,
    ) -> bool {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return false };
        let Some(progress) = leader.progress.get_mut(&from).filter(|p| p.session == session) else {
            return false;
        };
        progress.record_reply(timing, leader.round, now);
        self.count_rounds();
        true
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        from: ReplicaId,
        session: ReplicationSession,
        installing: bool,
        last: Option<LogId>,
        timing: &Timing,
    ) {
        if !self.record_reply(from, session, timing) {
            return;
        }
        if let Some(last) = last
            && self.check_short_log(from, last, timing.echo_time)
        {
            return;
        }
        let (now, timeout) = (self.now, self.config.election_max);
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        let due = progress.on_heartbeat_reply(installing, last, now, timeout);
        leader.dirty |= due;
    }

    /// Marks a member as gone, because a node reports that it does not host it.
    pub(crate) fn on_replica_gone(&mut self, replica: ReplicaId) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.progress.get_mut(&replica)
            && !progress.gone
        {
            progress.gone = true;
            progress.restart(true);
            self.out.events.push(Event::ReplicaGone { replica });
        }
    }

    // --- Quorum rounds -----------------------------------------------------------------------

    /// Queues or refuses a follower's request for a read index.
    pub(crate) fn on_read_index(&mut self, from: Replica, request: ReadRequest) {
        let member = self.members.current().contains(from.id);
        match &mut self.role {
            Role::Leader(leader) if member && leader.transfer.is_none() => {
                leader.reads.add(Reader::Remote(from, request));
                leader.dirty = true;
            }
            _ => self.send(from, Message::ReadIndexReply { request, index: None }),
        }
    }

    /// Begins a round for the reads that arrived since the last one, unless it is still running.
    /// Until an entry of our term is committed, our commit index may be behind that of our
    /// predecessor.
    pub(crate) fn begin_reads(&mut self) {
        let commit = self.commit;
        let Role::Leader(leader) = &mut self.role else { return };
        if !leader.reads.is_due() || commit < leader.term_start || leader.transfer.is_some() {
            return;
        }
        leader.round += 1;
        leader.reads.begin(leader.round, commit);
        self.count_rounds();
        let Role::Leader(leader) = &self.role else { return };
        if leader.reads.running().is_some() {
            let voters: Vec<_> = self.other_voters().iter().map(|voter| voter.id).collect();
            self.send_heartbeats(|peer| voters.contains(&peer));
        }
    }

    /// Confirms the rounds that a quorum has answered: no other replica led when it did. This
    /// confirms linearizable reads.
    fn count_rounds(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(awaited) = leader.reads.running().into_iter().chain(leader.age.map(|a| a.0)).min()
        else {
            return;
        };
        let confirmed = quorum::reached(self.members.current(), |voter| {
            if voter == self.me.id {
                leader.round
            } else {
                leader.progress.get(&voter).map_or(0, |progress| progress.round)
            }
        });
        if confirmed < awaited {
            return;
        }
        if let Some((_, commit)) = leader.age.take_if(|age| age.0 <= confirmed) {
            for progress in leader.progress.values_mut() {
                if progress.reading_in_round.at > Ticks(0) {
                    progress.echo = (progress.reading_in_round, commit);
                }
            }
        }
        if leader.reads.running().is_some_and(|round| round <= confirmed)
            && let Some((index, readers)) = leader.reads.confirm()
        {
            leader.dirty = true;
            self.answer(readers, Some(index));
        }
    }

    /// Answers readers with an index, or with `None`: no index is promised.
    pub(crate) fn answer(&mut self, readers: Vec<Reader>, index: Option<Index>) {
        let outcome = index.map_or(ReadOutcome::Dropped, ReadOutcome::Ready);
        for reader in readers {
            match reader {
                Reader::Local(read) => self.out.reads.push((read, outcome)),
                Reader::Remote(from, request) => {
                    self.send(from, Message::ReadIndexReply { request, index });
                }
            }
        }
    }

    /// Steps down if no quorum has answered anything sent within the longest election timeout.
    /// Called before every input is handled: a leader whose process was stopped must not act on
    /// outdated state.
    pub(crate) fn check_quorum(&mut self) {
        let (now, span) = (self.now, self.config.election_max);
        let Role::Leader(leader) = &mut self.role else { return };
        if !self.config.check_quorum || now < leader.quorum_deadline {
            return;
        }
        let heard = quorum::reached(self.members.current(), |voter| {
            if voter == self.me.id {
                now.0
            } else {
                leader.progress.get(&voter).map_or(0, |progress| progress.acked.0)
            }
        });
        leader.quorum_deadline = Ticks(heard).after(span);
        if now >= leader.quorum_deadline {
            self.out.events.push(Event::QuorumLost { term: self.term });
            self.become_follower(self.term, None);
        }
    }
}
