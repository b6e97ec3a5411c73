//! A leader's bookkeeping about one other member: the entries that it holds, and those in flight.

use std::collections::VecDeque;

use crate::config::Config;
use crate::message::Timing;
use crate::status::{ProgressKind, ProgressStatus};
use crate::types::{Index, Replica, ReplicationSession, Ticks};

/// How entries travel to a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ProgressState {
    /// Looking for the point where the logs agree: one append, then wait for its answer.
    Probe {
        /// Whether an append is unanswered; a heartbeat reply allows another, once per interval.
        paused: bool,
    },
    /// Streaming appends before earlier ones are answered.
    Replicate(Inflight),
    /// The entries it needs are purged; it waits for a snapshot.
    Snapshot {
        /// The position before the leader's first entry when the snapshot was requested; later the
        /// end of the snapshot in transfer.
        at_least: Index,
        /// When the bytes were delivered, or when the member last reported that it is installing
        /// them.
        delivered: Option<Ticks>,
    },
}

impl ProgressState {
    /// Whether entries may be streamed: it replicates, and its inflight window is not full.
    pub(crate) fn has_window(&self, config: &Config) -> bool {
        matches!(self, ProgressState::Replicate(window) if !window.is_full(config))
    }
}

/// The inflight window: appends sent and not yet answered, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Inflight {
    /// (last index, bytes) of each.
    messages: VecDeque<(Index, u64)>,
    bytes: u64,
}

impl Inflight {
    pub(crate) fn add(&mut self, last: Index, bytes: u64) {
        self.messages.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Removes the appends through `index`, which have arrived.
    pub(crate) fn free_through(&mut self, index: Index) {
        while let Some((_, bytes)) = self.messages.pop_front_if(|message| message.0 <= index) {
            self.bytes -= bytes;
        }
    }

    pub(crate) fn is_full(&self, config: &Config) -> bool {
        self.messages.len() >= config.max_inflight_messages
            || self.bytes >= config.max_inflight_bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A reading of a member's clock. It has a meaning only for the process that took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Reading {
    /// The clock's reading; 0 = not yet reported.
    pub(crate) at: Ticks,
    /// The start of the member's process.
    pub(crate) boot: u64,
}

/// One member's progress. `matched < next` always holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// The member and its node.
    pub(crate) peer: Replica,
    /// The current session; replies of another one are ignored.
    pub(crate) session: ReplicationSession,
    pub(crate) state: ProgressState,
    /// Whether it receives a snapshot, or received one and has not caught up since: more of the log
    /// is kept for it than for others.
    pub(crate) snapshot_receiver: bool,
    /// The last index known to be equal and durable there.
    pub(crate) matched: Index,
    /// When that became known.
    pub(crate) matched_at: Ticks,
    /// The next index to send.
    pub(crate) next: Index,
    /// The highest commit index sent in an append.
    pub(crate) sent_commit: Index,
    /// Whether an append is due even if it is empty: the last ones may be lost.
    pub(crate) ping: bool,
    /// Whether the next answer to a heartbeat may make an append due. Once per interval: rounds of
    /// reads send as many heartbeats as there are reads.
    pub(crate) retry_allowed: bool,
    /// When the newest message that it has answered was sent. The time of sending, not of
    /// receiving, proves that it still followed then.
    pub(crate) acked: Ticks,
    /// The newest quorum round it has answered.
    pub(crate) round: u64,
    /// Its clock's reading in the answer to the newest message that it has answered.
    pub(crate) reading: Reading,
    /// `reading` at the start of the running age round.
    pub(crate) reading_in_round: Reading,
    /// The age to send to it: (its own reading, commit index), confirmed by a quorum.
    pub(crate) echo: (Reading, Index),
    /// Its wall clock, as last reported; 0 = not yet.
    pub(crate) clock: u64,
    /// When that report arrived.
    pub(crate) clock_at: Ticks,
    /// Whether its node reports that it is not there.
    pub(crate) gone: bool,
}

impl Progress {
    pub(crate) fn new(peer: Replica, session: ReplicationSession, next: Index, now: Ticks) -> Self {
        Self {
            peer,
            session,
            state: ProgressState::Probe { paused: false },
            snapshot_receiver: false,
            matched: Index(0),
            matched_at: now,
            next,
            sent_commit: Index(0),
            ping: false,
            retry_allowed: false,
            acked: now,
            round: 0,
            reading: Reading::default(),
            reading_in_round: Reading::default(),
            echo: (Reading::default(), Index(0)),
            clock: 0,
            clock_at: now,
            gone: false,
        }
    }

    /// Records the readings of a reply of any kind. A reading in our future can only be damage and
    /// counts as now.
    pub(crate) fn record_reply(&mut self, timing: &Timing, begun_round: u64, now: Ticks) {
        let sent = timing.echo_time.min(now);
        // Answers overtake each other, and one that waited for a disk carries readings from before
        // the wait. The newest reading is not always the largest: a machine that started again
        // restarted its clock.
        if sent >= self.acked {
            self.reading = Reading { at: timing.probe_time, boot: timing.boot };
            self.clock = timing.clock;
            self.clock_at = now;
        }
        self.acked = self.acked.max(sent);
        self.round = self.round.max(timing.round.min(begun_round));
        self.gone = false;
    }

    /// The readings to put into a message to it.
    pub(crate) fn timing(&self, now: Ticks, round: u64, clock: u64) -> Timing {
        let (Reading { at: echo_time, boot }, echo_commit) = self.echo;
        Timing { probe_time: now, echo_time, echo_commit, boot, round, clock }
    }

    /// Whether it answered a message that was sent within `span`.
    pub(crate) fn is_active(&self, now: Ticks, span: Ticks) -> bool {
        !self.gone && now.since(self.acked) < span
    }

    /// Records that the logs are equal through `last`, which is durable there. `base` is the
    /// position before the leader's first entry. Returns whether `matched` advanced.
    pub(crate) fn accept(&mut self, last: Index, base: Index) -> bool {
        let advanced = last > self.matched;
        self.matched = self.matched.max(last);
        self.next = self.next.max(self.matched.next());
        let found = match &mut self.state {
            ProgressState::Probe { .. } => last == self.matched,
            // The log caught it up before the snapshot did.
            ProgressState::Snapshot { .. } => self.matched >= base,
            ProgressState::Replicate(inflight) => {
                inflight.free_through(last);
                false
            }
        };
        if found {
            self.next = self.matched.next();
            self.state = ProgressState::Replicate(Inflight::default());
        }
        advanced
    }

    /// Handles an answer to a heartbeat. `last` is the leader's last index, `timeout` how long a
    /// delivered snapshot may stay unconfirmed. Returns whether something is due for sending.
    pub(crate) fn on_heartbeat_reply(
        &mut self,
        installing: bool,
        last: Index,
        now: Ticks,
        timeout: Ticks,
    ) -> bool {
        match &mut self.state {
            // A snapshot of an earlier leader, or of an earlier attempt: until it is done, the
            // follower drops every append.
            ProgressState::Probe { .. } | ProgressState::Replicate(_) if installing => false,
            ProgressState::Probe { paused } => {
                let due = std::mem::take(&mut self.retry_allowed);
                *paused &= !due;
                due
            }
            // Missing entries may be lost: an append, even an empty one, detects it.
            ProgressState::Replicate(_) => {
                let due = self.matched < last && std::mem::take(&mut self.retry_allowed);
                self.ping |= due;
                due
            }
            ProgressState::Snapshot { delivered: Some(delivered), .. } if installing => {
                *delivered = now;
                false
            }
            ProgressState::Snapshot { delivered: Some(delivered), .. } => {
                let overdue = now.since(*delivered) >= timeout;
                if overdue {
                    self.restart(false);
                }
                overdue
            }
            ProgressState::Snapshot { delivered: None, .. } => false,
        }
    }

    /// Whether an answer to a message sent at `sent`, saying that the entry at `prev` is missing,
    /// proves that the member lost it: the acknowledgement was here before that message left. An
    /// answer that was only overtaken is older.
    pub(crate) fn contradicts(&self, prev: Index, sent: Ticks) -> bool {
        prev <= self.matched && sent > self.matched_at
    }

    /// Forgets what the member holds, as at an election; late answers of the old session are
    /// ignored.
    pub(crate) fn reset(&mut self, session: ReplicationSession, next: Index, now: Ticks) {
        let acked = self.acked;
        *self = Progress { acked, ..Progress::new(self.peer, session, next, now) };
    }

    /// Handles a rejection: no entry at `prev`, and the logs agree at most through `agreement`.
    /// Returns whether it answers an append that still matters.
    pub(crate) fn reject(&mut self, prev: Index, agreement: Index) -> bool {
        match &mut self.state {
            // An entry known to match cannot be missing: the answer is an old one.
            ProgressState::Replicate(_) if prev > self.matched => {
                self.next = self.matched.next();
                self.state = ProgressState::Probe { paused: false };
                true
            }
            ProgressState::Probe { paused } if prev == self.next.prev() && prev > self.matched => {
                self.next = prev.min(agreement.next()).max(self.matched.next());
                *paused = false;
                true
            }
            _ => false,
        }
    }

    /// The last index that need not be kept for this member.
    pub(crate) fn purgeable_through(&self) -> Index {
        match self.state {
            ProgressState::Snapshot { at_least, .. } => at_least,
            ProgressState::Probe { .. } if self.matched == Index(0) => self.next.prev(),
            ProgressState::Probe { .. } | ProgressState::Replicate(_) => self.matched,
        }
    }

    /// Stops streaming because a message was lost. A heartbeat reply resumes it.
    pub(crate) fn pause(&mut self) {
        if !matches!(self.state, ProgressState::Snapshot { .. }) {
            self.restart(true);
        }
    }

    /// Returns to probing.
    pub(crate) fn restart(&mut self, paused: bool) {
        match self.state {
            // The point of agreement is as unknown as before: after a lost probe, do not look
            // further back.
            ProgressState::Probe { .. } => {}
            ProgressState::Replicate(_) => self.next = self.matched.next(),
            // The snapshot may be installed although that was not reported, or the member may be
            // past it. If neither, the answer to the probe leads to another snapshot.
            ProgressState::Snapshot { at_least, .. } => {
                self.next = self.matched.max(at_least).next();
            }
        }
        self.state = ProgressState::Probe { paused };
    }

    pub(crate) fn status(&self, active: bool) -> ProgressStatus {
        let (state, inflight) = match &self.state {
            ProgressState::Probe { .. } => (ProgressKind::Probe, 0),
            ProgressState::Replicate(inflight) => (ProgressKind::Replicate, inflight.len()),
            ProgressState::Snapshot { .. } => (ProgressKind::Snapshot, 0),
        };
        ProgressStatus {
            replica: self.peer.id,
            state,
            matched: self.matched,
            next: self.next,
            inflight,
            active,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn progress(next: u64) -> Progress {
        Progress::new(Replica::default(), ReplicationSession::default(), Index(next), Ticks(0))
    }

    #[test]
    fn old_answers_do_not_move_a_probe() {
        let mut probe = progress(10);
        assert!(!probe.reject(Index(7), Index(0)), "an answer to another append");
        assert!(probe.reject(Index(9), Index(4)));
        assert_eq!(probe.next, Index(5));
        assert!(probe.accept(Index(4), Index(0)));
        assert!(matches!(probe.state, ProgressState::Replicate(_)));
        assert!(!probe.reject(Index(4), Index(0)), "what matches cannot be missing");
        assert_eq!((probe.matched, probe.next), (Index(4), Index(5)));
    }

    #[test]
    fn a_gap_while_streaming_restarts_after_the_match() {
        let mut streaming = progress(5);
        streaming.accept(Index(4), Index(0));
        streaming.next = Index(20);
        assert!(streaming.reject(Index(11), Index(6)));
        assert_eq!(streaming.next, Index(5));
        assert_eq!(streaming.state, ProgressState::Probe { paused: false });
    }

    #[test]
    fn only_an_append_sent_after_the_acknowledgement_proves_a_loss() {
        let mut streaming = progress(5);
        streaming.accept(Index(4), Index(0));
        streaming.matched_at = Ticks(70);
        assert!(!streaming.contradicts(Index(4), Ticks(70)), "it may have left before");
        assert!(!streaming.contradicts(Index(5), Ticks(71)), "it never had that one");
        assert!(streaming.contradicts(Index(4), Ticks(71)));
        let session = ReplicationSession { counter: 2, ..ReplicationSession::default() };
        streaming.reset(session, Index(3), Ticks(80));
        assert_eq!((streaming.matched, streaming.next), (Index(0), Index(3)));
        assert_eq!((streaming.session, streaming.acked), (session, Ticks(0)));
    }

    #[test]
    fn a_lost_probe_is_repeated_where_it_was() {
        let mut probe = progress(10);
        probe.state = ProgressState::Probe { paused: true };
        probe.pause();
        assert_eq!((probe.matched, probe.next), (Index(0), Index(10)));
        assert_eq!(probe.state, ProgressState::Probe { paused: true });
    }

    #[test]
    fn after_a_refused_snapshot_the_log_is_tried_from_its_beginning() {
        let mut refused = progress(3);
        refused.state = ProgressState::Snapshot { at_least: Index(7), delivered: None };
        refused.restart(true);
        assert_eq!(refused.next, Index(8), "it may be past the snapshot");
        assert!(refused.reject(Index(7), Index(2)));
        assert_eq!(refused.next, Index(3), "it is not, and needs another one");
    }

    proptest! {
        /// The window against a model that keeps every message and recounts each time.
        #[test]
        fn the_window_counts_the_messages_in_flight(
            steps in prop::collection::vec((0u64..3, 1u64..40), 1..80),
        ) {
            let config = Config {
                max_inflight_messages: 5,
                max_inflight_bytes: 100,
                ..Config::default()
            };
            let mut inflight = Inflight::default();
            let mut twin: Vec<(u64, u64)> = Vec::new();
            let (mut sent, mut freed) = (0, 0);
            for (action, amount) in steps {
                if action == 0 {
                    freed = (freed + amount).min(sent);
                    inflight.free_through(Index(freed));
                    twin.retain(|message| message.0 > freed);
                } else if !inflight.is_full(&config) {
                    sent += action;
                    inflight.add(Index(sent), amount);
                    twin.push((sent, amount));
                }
                let bytes: u64 = twin.iter().map(|message| message.1).sum();
                prop_assert_eq!(inflight.len(), twin.len());
                prop_assert_eq!(inflight.bytes(), bytes);
                prop_assert_eq!(inflight.is_full(&config), twin.len() >= 5 || bytes >= 100);
            }
        }
    }
}
