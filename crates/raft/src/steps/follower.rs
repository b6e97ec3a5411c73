//! The follower: accepts the leader's log (Raft paper §5.3) and snapshots (§7), and forwards reads.

use crate::fault::Fault;
use crate::membership::Membership;
use crate::message::{AppendResult, Message, ReadRequest, SnapshotMeta, SnapshotResult, Timing};
use crate::output::{Event, Install, ReadOutcome};
use crate::raft::Raft;
use crate::role::Role;
use crate::types::{Entry, EntryKind, Index, LogId, Replica, ReplicationSession, Term, Ticks};

/// The content of a received append.
pub(crate) struct Append {
    pub(crate) session: ReplicationSession,
    pub(crate) prev: LogId,
    pub(crate) commit: Index,
    pub(crate) entries: Vec<Entry>,
    pub(crate) timing: Timing,
}

impl Raft {
    /// Follows the sender of a leader's message in our term. Returns whether it can be the leader.
    pub(crate) fn follow(&mut self, leader: Replica) -> bool {
        match &self.role {
            Role::Follower(follower) => match follower.leader {
                Some(known) if known.id != leader.id => return false,
                Some(_) => {}
                None => self.become_follower(self.term, Some(leader)),
            },
            Role::PreCandidate(_) | Role::Candidate(_) => {
                self.become_follower(self.term, Some(leader));
            }
            // Two leaders in one term cannot be: ignore the message.
            Role::Leader(_) => return false,
        }
        let deadline = self.draw_deadline();
        let now = self.now;
        if let Role::Follower(follower) = &mut self.role {
            follower.heard = now;
            follower.deadline = deadline;
        }
        true
    }

    /// AppendEntries at the receiver (Raft paper figure 2).
    pub(crate) fn on_append(&mut self, from: Replica, append: Append) {
        // While a snapshot is being installed the log is about to be replaced; the leader repeats
        // its append afterwards.
        if !self.follow(from) || self.installing.is_some() {
            return;
        }
        let Append { session, mut prev, commit, mut entries, timing } = append;
        if let Some((before, found)) = first_malformed(prev, &entries, self.term) {
            return self.report_malformed(from, before, found);
        }
        let positions = std::iter::once(prev).chain(entries.iter().map(Entry::id));
        if let Some(fork) = positions.filter_map(|id| self.fork(from, id)).next() {
            return self.stop(fork);
        }
        self.record_echo(&timing);
        let last = Index(prev.index.0.saturating_add(entries.len() as u64));
        if prev.index < self.commit {
            // Through our commit index the logs are equal (Leader Completeness, §5.4), and part of
            // that may be purged here.
            let known = (self.commit.0 - prev.index.0).min(entries.len() as u64) as usize;
            entries.drain(..known);
            prev = self.commit_id();
        }
        let timing = self.reply_timing(&timing);
        if !self.log.matches(prev) {
            let hint = later(self.log.agreement(prev.index, prev.term), self.commit_id());
            let result = AppendResult::Rejected { prev: prev.index, hint };
            self.send_when_durable(
                from,
                Index(0),
                Message::AppendReply { session, result, timing },
            );
            return;
        }
        if let Err(fault) = self.append_missing(entries) {
            return self.stop(fault);
        }
        let last = last.max(prev.index);
        self.advance_commit(commit.min(last));
        let result = AppendResult::Accepted { last };
        self.send_when_durable(from, last, Message::AppendReply { session, result, timing });
    }

    /// Appends the entries that the log does not have yet. Only a conflict truncates: an append
    /// that was overtaken by a longer one must not shorten the log (Raft paper §5.3).
    fn append_missing(&mut self, mut entries: Vec<Entry>) -> Result<(), Fault> {
        let known = entries.iter().take_while(|entry| self.log.matches(entry.id())).count();
        entries.drain(..known);
        let Some(first) = entries.first().map(|entry| entry.index) else { return Ok(()) };
        let memberships = memberships(&entries)?;
        if first <= self.log.last().index {
            self.truncate_from(first);
        }
        for entry in entries {
            self.log.push(entry);
        }
        for (index, membership) in memberships {
            self.members.push(index, membership);
            self.out.events.push(Event::Membership { index });
        }
        Ok(())
    }

    /// The fault if the leader's entry differs from the one committed here at the same index.
    /// Purged entries cannot be compared.
    fn fork(&self, leader: Replica, theirs: LogId) -> Option<Fault> {
        let ours = self.log.id_at(theirs.index).filter(|_| theirs.index <= self.commit)?;
        let fork = Fault::Fork { leader: leader.id, term: self.term, ours, theirs };
        (ours != theirs).then_some(fork)
    }

    /// Reports malformed entries once per leadership: the leader repeats its append until it is
    /// answered.
    fn report_malformed(&mut self, leader: Replica, before: LogId, found: LogId) {
        if let Role::Follower(follower) = &mut self.role
            && !std::mem::replace(&mut follower.malformed, true)
        {
            self.out.events.push(Event::Malformed { leader: leader.id, before, found });
        }
    }

    fn truncate_from(&mut self, from: Index) {
        assert!(from > self.commit, "{from} is committed ({}) and would be truncated", self.commit);
        self.log.truncate_from(from);
        self.persistence.truncate_from(from);
        if let Some(index) = self.members.truncate_from(from) {
            self.out.events.push(Event::Membership { index });
        }
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        from: Replica,
        session: ReplicationSession,
        commit: Index,
        timing: &Timing,
    ) {
        if !self.follow(from) {
            return;
        }
        self.record_echo(timing);
        // An entry of this term came from this leader, so the logs are equal through the last one.
        // Without one, the leader knows only what we acknowledged earlier: not enough where a disk
        // went back to an older state and now holds another history.
        if self.installing.is_none() && self.log.last().term == self.term {
            self.advance_commit(commit.min(self.log.last().index));
        }
        let installing = self.installing.is_some();
        let timing = self.reply_timing(timing);
        let last = Some(self.log.last());
        let reply = Message::HeartbeatReply { session, installing, last, timing };
        self.send_when_durable(from, Index(0), reply);
    }

    /// InstallSnapshot at the receiver (Raft paper figure 13), with all bytes at hand.
    pub(crate) fn on_install_snapshot(
        &mut self,
        from: Replica,
        session: ReplicationSession,
        meta: SnapshotMeta,
    ) {
        // A position that leaves no room for entries after it can only be damage.
        let sound = meta.last.term <= self.term && meta.last.index.0 <= u64::MAX / 2;
        if !sound || !self.follow(from) || self.installing.is_some() {
            return;
        }
        if let Some(fork) = self.fork(from, meta.last) {
            return self.stop(fork);
        }
        if meta.last.index <= self.commit || self.log.matches(meta.last) {
            // The snapshot holds nothing new, but it proves that everything through its end is
            // committed.
            self.advance_commit(meta.last.index);
            let last = self.commit;
            let result = SnapshotResult::Installed { last };
            self.send_when_durable(from, last, Message::SnapshotReply { session, result });
            return;
        }
        let install = Install { meta, from, session };
        self.installing = Some(install.clone());
        self.out.install = Some(install);
    }

    /// Records an age confirmed by the leader; the echo is a reading of our own clock.
    fn record_echo(&mut self, timing: &Timing) {
        let (boot, started, now) = (self.entropy.boot(), self.started, self.now);
        if let Role::Follower(follower) = &mut self.role
            // A reading of another start, from before this one, or from the future, is not ours.
            && timing.boot == boot
            && timing.echo_time >= started.max(Ticks(1))
            && timing.echo_time <= now
        {
            let newer = Some((timing.echo_time, timing.echo_commit));
            follower.freshness = follower.freshness.max(newer);
        }
    }

    pub(crate) fn reply_timing(&self, request: &Timing) -> Timing {
        Timing {
            probe_time: self.now,
            echo_time: request.probe_time,
            echo_commit: Index(0),
            boot: self.entropy.boot(),
            round: request.round,
            clock: self.clock,
        }
    }

    /// Sends a request for the waiting reads, and repeats one whose answer is overdue.
    pub(crate) fn forward_reads(&mut self) {
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(leader) = follower.leader else { return };
        let overdue = follower.reads.retry_at().is_some_and(|at| at <= self.now);
        if overdue || follower.reads.is_due() {
            self.requests += 1;
            let retry_at = self.now.after(Ticks(self.config.heartbeat.0 * 2));
            follower.reads.ask(self.requests, retry_at);
            let request = ReadRequest { boot: self.entropy.boot(), counter: self.requests };
            self.send(leader, Message::ReadIndex { request });
        }
    }

    pub(crate) fn on_read_index_reply(
        &mut self,
        from: Replica,
        request: ReadRequest,
        index: Option<Index>,
    ) {
        if request.boot != self.entropy.boot() {
            return;
        }
        if let Role::Follower(follower) = &mut self.role
            && follower.leader.is_some_and(|leader| leader.id == from.id)
        {
            let outcome = index.map_or(ReadOutcome::Dropped, ReadOutcome::Ready);
            let readers = follower.reads.answered(request.counter);
            self.out.reads.extend(readers.into_iter().map(|reader| (reader, outcome)));
        }
    }

    /// Starts an election at the leader's request (Raft thesis §3.10). A replica without the
    /// leader's whole log on its disk could not win, and ignores the request.
    pub(crate) fn on_timeout_now(&mut self, from: Replica, last: LogId) {
        let follows = self.leader().is_some_and(|leader| leader.id == from.id);
        let complete = self.log.matches(last) && self.persistence.durable() >= last.index;
        let promotable = self.members.current().is_voter(self.me.id)
            && self.installing.is_none()
            && self.term < Term::LAST;
        if !self.is_leader() && follows && complete && promotable {
            self.become_candidate(true);
        }
    }
}

/// The later of two positions in the log.
fn later(a: LogId, b: LogId) -> LogId {
    if b.index > a.index { b } else { a }
}

/// The first entry that no sound leader of this term sends, preceded by the entry before it.
fn first_malformed(prev: LogId, entries: &[Entry], term: Term) -> Option<(LogId, LogId)> {
    let mut before = prev;
    for found in entries.iter().map(Entry::id) {
        if found.index != before.index.next() || found.term < before.term || found.term > term {
            return Some((before, found));
        }
        before = found;
    }
    (prev.term > term).then_some((LogId::ZERO, prev))
}

/// The memberships among the entries to be appended.
fn memberships(entries: &[Entry]) -> Result<Vec<(Index, Membership)>, Fault> {
    let memberships = entries.iter().filter(|entry| entry.kind == EntryKind::Membership);
    let decoded = memberships.map(|entry| {
        let index = entry.index;
        let membership = Membership::decode(&entry.payload);
        membership.map(|it| (index, it)).map_err(|source| Fault::Membership { index, source })
    });
    decoded.collect()
}
