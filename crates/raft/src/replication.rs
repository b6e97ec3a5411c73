//! Log replication at the leader: appends to followers, their answers, snapshots.

use crate::config::Config;
use crate::log::Log;
use crate::message::{AppendResult, Envelope, Message, SnapshotResult, Timing};
use crate::output::{Event, Output, SnapshotSend};
use crate::progress::{Progress, ProgressState};
use crate::raft::Raft;
use crate::role::Role;
use crate::types::{GroupId, Index, LogId, Replica, ReplicaId, ReplicationSession, Term, Ticks};

/// The leader's state that is the same for all followers while appends are sent.
struct AppendSender<'a> {
    log: &'a Log,
    config: &'a Config,
    group: GroupId,
    me: Replica,
    term: Term,
    commit: Index,
    now: Ticks,
    clock: u64,
    round: u64,
    out: &'a mut Output,
}

impl AppendSender<'_> {
    /// Sends everything that is due to one follower.
    fn send_due(&mut self, progress: &mut Progress) {
        if progress.gone
            || matches!(
                progress.state,
                ProgressState::Snapshot { .. } | ProgressState::Probe { paused: true }
            )
        {
            return;
        }
        if progress.next.prev() < self.log.base().index {
            self.ask_for_snapshot(progress);
            return;
        }
        if let ProgressState::Probe { paused } = &mut progress.state {
            *paused = true;
            self.append(progress, self.config.max_append_bytes);
            return;
        }
        let last = self.log.last().index;
        let mut sent = false;
        while progress.next <= last && progress.state.has_window(self.config) {
            let (through, bytes) = self.append(progress, self.config.max_append_bytes);
            progress.next = through.next();
            if let ProgressState::Replicate(window) = &mut progress.state {
                window.add(through, bytes);
            }
            sent = true;
        }
        // The whole log was sent to it: from here on it is an ordinary follower.
        progress.snapshot_receiver &= progress.next <= last;
        let commit_unsent = progress.sent_commit < self.commit.min(progress.next.prev());
        if !sent && (progress.ping || commit_unsent) {
            self.append(progress, 0);
        }
        progress.ping = false;
    }

    /// Sends one append from `next` on, without entries if `max_bytes` is 0. Returns its last index
    /// and its size.
    fn append(&mut self, progress: &mut Progress, max_bytes: u64) -> (Index, u64) {
        let at = progress.next.prev();
        // `send_due` asked for a snapshot where the position before the next entry is purged.
        let prev = self.log.id_at(at).unwrap_or_else(|| panic!("{at} is not in the log"));
        let (entries, bytes) = match max_bytes {
            0 => (Vec::new(), 0),
            _ => self.log.batch(progress.next, max_bytes),
        };
        let through = entries.last().map_or(at, |entry| entry.index);
        progress.sent_commit = progress.sent_commit.max(self.commit.min(through));
        let timing = progress.timing(self.now, self.round, self.clock);
        self.out.send.push(Envelope {
            group: self.group,
            from: self.me,
            to: progress.peer,
            term: self.term,
            message: Message::Append {
                session: progress.session,
                prev,
                commit: self.commit,
                entries,
                timing,
            },
        });
        (through, bytes)
    }

    /// Asks for a snapshot, because the entries that the follower needs are purged. A follower that
    /// does not answer gets none until it does.
    fn ask_for_snapshot(&mut self, progress: &mut Progress) {
        if !progress.is_active(self.now, self.config.election_max) {
            return;
        }
        let at_least = self.log.base().index;
        progress.state = ProgressState::Snapshot { at_least, delivered: None };
        self.out.snapshots.push(SnapshotSend {
            to: progress.peer,
            term: self.term,
            session: progress.session,
            at_least,
        });
    }
}

impl Raft {
    /// Sends everything that is due to all followers. Called once per output, so that proposals
    /// share appends.
    pub(crate) fn replicate(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        if !std::mem::take(&mut leader.dirty) {
            return;
        }
        let mut sender = AppendSender {
            log: &self.log,
            config: &self.config,
            group: self.group,
            me: self.me,
            term: self.term,
            commit: self.commit,
            now: self.now,
            clock: self.clock,
            round: leader.round,
            out: &mut self.out,
        };
        for progress in leader.progress.values_mut() {
            sender.send_due(progress);
        }
    }

    pub(crate) fn on_append_reply(
        &mut self,
        from: ReplicaId,
        session: ReplicationSession,
        result: AppendResult,
        timing: &Timing,
    ) {
        if !self.record_reply(from, session, timing) {
            return;
        }
        match result {
            AppendResult::Accepted { last } => self.accepted(from, last),
            AppendResult::Rejected { prev, hint } => {
                let agreement = self.agreement(hint);
                if self.check_regress(from, prev, agreement, timing.echo_time) {
                    return;
                }
                let Role::Leader(leader) = &mut self.role else { return };
                if let Some(progress) = leader.progress.get_mut(&from)
                    && progress.reject(prev, agreement)
                {
                    leader.dirty = true;
                }
            }
        }
    }

    /// Detects from the last entry of a follower's log, as it was when a heartbeat sent at `sent`
    /// arrived there, that the follower lacks entries which it had acknowledged. Without this, a
    /// follower whose disk went back would stay behind until the next write.
    pub(crate) fn check_short_log(&mut self, from: ReplicaId, last: LogId, sent: Ticks) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let Some(matched) = leader.progress.get(&from).map(|progress| progress.matched) else {
            return false;
        };
        // A log that holds our entry at `matched` ends there or later, and not in an earlier term.
        let missing = if last.index < matched {
            last.index.next()
        } else if self.log.id_at(matched).is_some_and(|known| last.term < known.term) {
            matched
        } else {
            return false;
        };
        self.check_regress(from, missing, self.agreement(last), sent)
    }

    /// The last index through which a log that ends in `last` can agree with ours: we search our
    /// own log for the hint as a follower does, and a log that ends in our purged part agrees at
    /// most through its end.
    fn agreement(&self, last: LogId) -> Index {
        self.log.agreement(last.index, last.term).index.min(last.index)
    }

    /// Detects a follower that lacks entries it has acknowledged: its disk went back to an older
    /// state. It gets them again, in a new session. Its votes may be lost with them, which no
    /// replica can detect; so this is reported as well as repaired.
    fn check_regress(
        &mut self,
        from: ReplicaId,
        prev: Index,
        agreement: Index,
        sent: Ticks,
    ) -> bool {
        let (term, now) = (self.term, self.now);
        let Role::Leader(leader) = &mut self.role else { return false };
        let last = leader.progress.values().map(|progress| progress.session.counter).max();
        let session = ReplicationSession { term, counter: last.unwrap_or(0) + 1 };
        let Some(progress) =
            leader.progress.get_mut(&from).filter(|progress| progress.contradicts(prev, sent))
        else {
            return false;
        };
        let acknowledged = progress.matched;
        progress.reset(session, prev.min(agreement.next()).max(Index(1)), now);
        leader.dirty = true;
        self.out.events.push(Event::Regress { replica: from, acknowledged, agreement });
        true
    }

    /// Records that a follower holds our log through `last` durably.
    fn accepted(&mut self, from: ReplicaId, last: Index) {
        if last > self.log.last().index {
            return;
        }
        let base = self.log.base().index;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        let advanced = progress.accept(last, base);
        leader.dirty = true;
        if !advanced {
            return;
        }
        progress.matched_at = self.now;
        let transferring = leader.transfer.as_ref().is_some_and(|transfer| transfer.to == from);
        self.count_commit();
        if transferring {
            self.send_timeout_now();
        }
    }

    pub(crate) fn on_snapshot_reply(
        &mut self,
        from: ReplicaId,
        session: ReplicationSession,
        result: SnapshotResult,
    ) {
        match result {
            SnapshotResult::Installed { last } => {
                let known = matches!(&self.role, Role::Leader(leader)
                    if leader.progress.get(&from).is_some_and(|p| p.session == session));
                if known {
                    self.accepted(from, last);
                    self.restart_snapshot(from, session, false);
                }
            }
            SnapshotResult::Failed => self.restart_snapshot(from, session, true),
        }
    }

    /// Returns to probing after a snapshot transfer, to find the follower's position.
    pub(crate) fn restart_snapshot(
        &mut self,
        to: ReplicaId,
        session: ReplicationSession,
        paused: bool,
    ) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.progress.get_mut(&to)
            && progress.session == session
            && matches!(progress.state, ProgressState::Snapshot { .. })
        {
            progress.restart(paused);
            leader.dirty = true;
        }
    }

    /// Keeps the log after `last` for the receiver of a snapshot that ends there. Returns whether
    /// that still waits for it, and does not hold it all already.
    pub(crate) fn keep_for_receiver(
        &mut self,
        to: ReplicaId,
        session: ReplicationSession,
        last: Index,
    ) -> bool {
        let applied = self.applying.applied;
        let Role::Leader(leader) = &mut self.role else { return false };
        if let Some(progress) = leader.progress.get_mut(&to)
            && progress.session == session
            && progress.matched < last
            && let ProgressState::Snapshot { at_least, .. } = &mut progress.state
        {
            *at_least = last.min(applied).max(*at_least);
            progress.snapshot_receiver = true;
            return true;
        }
        false
    }

    /// Records that the bytes of a snapshot have arrived; the follower's answer is outstanding.
    pub(crate) fn snapshot_delivered(&mut self, to: ReplicaId, session: ReplicationSession) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.progress.get_mut(&to)
            && progress.session == session
            && let ProgressState::Snapshot { delivered, .. } = &mut progress.state
        {
            *delivered = Some(now);
        }
    }

    /// The last index that may be purged: at most `through`, and less where an active follower
    /// still needs the entries and keeping them stays within the margin, which is wider for one
    /// that receives a snapshot. A follower that lags further behind gets a snapshot.
    pub(crate) fn purgeable(&self, through: Index) -> Index {
        let Role::Leader(leader) = &self.role else { return through };
        let active = |progress: &&Progress| progress.is_active(self.now, self.config.election_max);
        let needed = leader.progress.values().filter(active);
        let needed: Vec<_> = needed
            .map(|progress| (progress.purgeable_through().min(through), progress.snapshot_receiver))
            .collect();
        let Some(lowest) = needed.iter().map(|(index, _)| *index).min() else { return through };
        let Config { retain_bytes, retain_entries, .. } = self.config;
        let wide_bytes = self.config.receiver_retain_bytes.max(retain_bytes);
        let wide_entries = self.config.receiver_retain_entries.max(retain_entries);
        // The lowest positions within the margin, and within the wider one.
        let (mut floor, mut wide_floor) = (through, through);
        let (mut entries, mut bytes) = (0, 0);
        while wide_floor > lowest
            && let Some(entry) = self.log.get(wide_floor)
        {
            entries += 1;
            bytes += entry.bytes();
            if entries > wide_entries || bytes > wide_bytes {
                break;
            }
            wide_floor = wide_floor.prev();
            if entries <= retain_entries && bytes <= retain_bytes {
                floor = wide_floor;
            }
        }
        let kept = needed
            .into_iter()
            .filter(|&(index, receives)| index >= if receives { wide_floor } else { floor });
        kept.map(|(index, _)| index).min().unwrap_or(through)
    }
}
