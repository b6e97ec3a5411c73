//! Inputs of the core: the calls by which a driver reports to a replica what happened.

use bytes::Bytes;

use crate::error::{ProposeError, ReadError, TransferError};
use crate::log::Log;
use crate::members::Members;
use crate::message::{Envelope, Message, SnapshotMeta, SnapshotResult};
use crate::output::{Event, Install, PersistToken, ReadId};
use crate::raft::{Applying, Raft};
use crate::reads::Reader;
use crate::role::Role;
use crate::types::{Entry, Index, LogId, ReplicaId, ReplicationSession, Term, Ticks};

impl Raft {
    /// Handles a message of another replica. No content makes it panic; a message that makes no
    /// sense is ignored.
    pub fn step(&mut self, now: Ticks, envelope: Envelope) {
        self.observe(now);
        // A term that leaves no room for later terms can only be damage.
        if envelope.group != self.group
            || envelope.from.id == self.me.id
            || envelope.term > Term::LAST
        {
            return;
        }
        if envelope.to.id != self.me.id {
            self.refuse_as_gone(&envelope);
        } else if envelope.message == Message::ReplicaGone {
            self.on_replica_gone(envelope.from.id);
        } else if self.fault.is_some() {
            self.learn_leader(&envelope);
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
            _ if self.fault.is_some() => {}
            Role::Leader(leader) => {
                if self.now >= leader.next_heartbeat {
                    self.heartbeat();
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

    /// The earliest time at which [`Raft::advance`] has something to do.
    pub fn next_deadline(&self) -> Ticks {
        match &self.role {
            _ if self.fault.is_some() => Ticks(u64::MAX),
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

    /// Behaves as if the election timeout had just passed, because the driver has another reason to
    /// believe that the leader is gone. At a leader it does nothing.
    pub fn election_timeout(&mut self, now: Ticks) {
        self.observe(now);
        self.start_election();
        self.check();
    }

    /// Appends a command. `stamp` is raised to one above the stamp before it, if it is lower. The
    /// entry is sent and written with the next output. The proposal is decided when
    /// [`crate::Output::committed`] holds the entry at its index.
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

    /// Asks for an index at which a read is linearizable (Raft thesis §6.4). The answer is in
    /// [`crate::Output::reads`], once a quorum round which began after this call is confirmed; a
    /// follower asks its leader.
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
            Role::Follower(follower) if follower.leader.is_some() && self.fault.is_none() => {
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
    /// until the target has taken over or the shortest election timeout has passed. Asking again
    /// for the same target changes nothing; another target replaces the first.
    ///
    /// # Errors
    /// This is not the leader, or the target cannot become the leader.
    pub fn transfer_leader(&mut self, now: Ticks, to: ReplicaId) -> Result<(), TransferError> {
        self.observe(now);
        let result = self.start_transfer(to);
        self.check();
        result
    }

    /// Reports that a write is durable. Completions may be reported in any order; an unknown one is
    /// ignored.
    pub fn on_persisted(&mut self, now: Ticks, token: PersistToken) {
        self.observe(now);
        if self.persistence.complete(token) {
            self.count_own_vote();
            self.count_commit();
        }
        self.check();
    }

    /// Reports that the state machine has applied everything through `index`.
    ///
    /// # Panics
    /// When `index` was never handed out: the driver and its state machine do not belong together.
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

    /// Reports that a bulk message to this peer was dropped. Streaming to the peer stops until it
    /// answers again.
    pub fn unreachable(&mut self, now: Ticks, peer: ReplicaId) {
        self.observe(now);
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&peer)
        {
            progress.pause();
        }
        self.check();
    }

    /// Reports that a snapshot which ends at `last` is about to be sent, as [`crate::SnapshotSend`]
    /// asked: from now on the log after it is kept for its receiver, within a margin of its own.
    /// Without this call only the margin of an ordinary follower applies.
    ///
    /// Returns whether it is still needed. While the order waited for its turn, late answers may
    /// have shown that the follower holds what it lacked, or leadership or session ended: then
    /// nothing is sent, and [`Raft::snapshot_sent`] reports that it was not.
    #[must_use]
    pub fn snapshot_begins(
        &mut self,
        now: Ticks,
        to: ReplicaId,
        session: ReplicationSession,
        last: Index,
    ) -> bool {
        self.observe(now);
        let needed = self.keep_for_receiver(to, session, last);
        self.check();
        needed
    }

    /// The bytes of log that are kept in memory only for receivers of snapshots, beyond the margin
    /// of ordinary followers, given a checkpoint that holds the entries through `through`. Another
    /// checkpoint does not free them.
    #[must_use]
    pub fn kept_for_receivers(&self, through: Index) -> u64 {
        let Role::Leader(leader) = &self.role else { return 0 };
        if !leader.progress.values().any(|progress| progress.snapshot_receiver) {
            return 0;
        }
        let first = self.log.base().index.next();
        let bytes: u64 = self.log.range(first, through).map(Entry::bytes).sum();
        bytes.saturating_sub(self.config.retain_bytes)
    }

    /// Reports the end of a snapshot transfer: all bytes were delivered, or it failed. Each
    /// [`crate::SnapshotSend`] is answered by one call.
    pub fn snapshot_sent(
        &mut self,
        now: Ticks,
        to: ReplicaId,
        session: ReplicationSession,
        ok: bool,
    ) {
        self.observe(now);
        if ok {
            self.snapshot_delivered(to, session);
        } else {
            self.restart_snapshot(to, session, true);
        }
        self.check();
    }

    /// Reports that the snapshot of [`crate::Output::install`] is durably installed: it is now the
    /// state machine's state. Ignored if no such installation is in progress.
    pub fn on_installed(&mut self, now: Ticks, meta: SnapshotMeta) {
        self.observe(now);
        let Some(install) = self.installing.take_if(|install| install.meta == meta) else { return };
        let SnapshotMeta { last, stamp, membership } = meta;
        // No election is held and no append accepted while installing, so the log cannot have
        // reached this entry.
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

    /// Reports that the snapshot of [`crate::Output::install`] could not be installed; state and
    /// log are as before.
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
    /// base, through which the log may be purged from disk. Entries not yet applied are never
    /// dropped. A leader keeps what its active followers still need, within the configured margin.
    pub fn compact(&mut self, through: Index) -> LogId {
        let through = self.purgeable(through.min(self.applying.applied));
        self.log.compact(through);
        self.check();
        self.log.base()
    }

    /// Sets the wall clock that appends, heartbeats and their replies report; opaque here, 0 =
    /// unknown.
    pub fn set_clock(&mut self, clock: u64) {
        self.clock = clock;
    }

    /// Records the time before anything else: here a leader whose process was stopped notices that
    /// it no longer leads.
    fn observe(&mut self, now: Ticks) {
        self.now = self.now.max(now);
        if let Role::Leader(_) = self.role {
            self.check_quorum();
            self.check_transfer();
        }
    }
}
