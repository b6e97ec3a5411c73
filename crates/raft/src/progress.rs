//! A leader's bookkeeping about one other member: what it has, and what is on its way.

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
        /// An append is out, or was lost; a heartbeat reply allows another, once per interval.
        paused: bool,
    },
    /// Streaming appends before earlier ones are answered.
    Replicate(Inflight),
    /// The entries it needs are purged.
    Snapshot {
        /// The position before the leader's first entry when the snapshot was asked for; then that
        /// of the snapshot on its way.
        at_least: Index,
        /// When the bytes were delivered, or when it last said that it is installing them.
        delivered: Option<Ticks>,
    },
}

/// Appends on their way, in order.
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

    /// Everything through `index` has arrived.
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

/// A reading of a member's clock. It means something only to the process that took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Reading {
    /// What its clock showed; 0 = not yet heard.
    pub(crate) at: Ticks,
    /// The start of its process.
    pub(crate) boot: u64,
}

/// One member's progress. `matched < next` always holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// Who it is, and where.
    pub(crate) peer: Replica,
    /// Replies of another session are not about this bookkeeping.
    pub(crate) session: ReplicationSession,
    pub(crate) stage: ProgressState,
    /// A snapshot is on its way to it, or brought it within reach of the log, and it has not caught
    /// up since: more of the log is kept for it than for others.
    pub(crate) receives: bool,
    /// The last index known to be equal and durable there.
    pub(crate) matched: Index,
    /// When that became known.
    pub(crate) matched_at: Ticks,
    /// The next index to send.
    pub(crate) next: Index,
    /// The highest commit index told in an append.
    pub(crate) told_commit: Index,
    /// An append is due even if it is empty: the last ones may be lost.
    pub(crate) ping: bool,
    /// The answer to a heartbeat may make an append due. Once per interval: rounds of reads bring as
    /// many heartbeats as there are reads.
    pub(crate) nudge: bool,
    /// When the newest of our messages that it has answered was sent. Sending, not receiving, is
    /// what proves that it still followed then.
    pub(crate) acked: Ticks,
    /// The newest quorum round it has answered.
    pub(crate) round: u64,
    /// Its clock's reading in the answer to the newest of our messages that it has answered.
    pub(crate) reading: Reading,
    /// `reading` as it was when the age round now running began.
    pub(crate) reading_in_round: Reading,
    /// What to tell it about ages: (its own reading, commit index), confirmed by a quorum.
    pub(crate) echo: (Reading, Index),
    /// Its wall clock, as last reported; 0 = not yet.
    pub(crate) clock: u64,
    /// When that report came.
    pub(crate) clock_at: Ticks,
    /// Its node says that it is not there.
    pub(crate) gone: bool,
}

impl Progress {
    pub(crate) fn new(peer: Replica, session: ReplicationSession, next: Index, now: Ticks) -> Self {
        Self {
            peer,
            session,
            stage: ProgressState::Probe { paused: false },
            receives: false,
            matched: Index(0),
            matched_at: now,
            next,
            told_commit: Index(0),
            ping: false,
            nudge: false,
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

    /// Notes what every reply tells. A reading in our future can only be damage and counts as now.
    pub(crate) fn heard(&mut self, timing: &Timing, begun_round: u64, now: Ticks) {
        let sent = timing.echo_time.min(now);
        // Answers overtake each other, and one that waited for a disk tells what the clocks showed
        // before the wait. The newest reading is not the largest: where its machine started again,
        // its clock began anew.
        if sent >= self.acked {
            self.reading = Reading { at: timing.probe_time, boot: timing.boot };
            self.clock = timing.clock;
            self.clock_at = now;
        }
        self.acked = self.acked.max(sent);
        self.round = self.round.max(timing.round.min(begun_round));
        self.gone = false;
    }

    /// What rides on a message to it.
    pub(crate) fn timing(&self, now: Ticks, round: u64, clock: u64) -> Timing {
        let (Reading { at: echo_time, boot }, echo_commit) = self.echo;
        Timing { probe_time: now, echo_time, echo_commit, boot, round, clock }
    }

    /// Whether it answered something that was sent within `span`.
    pub(crate) fn is_active(&self, now: Ticks, span: Ticks) -> bool {
        !self.gone && now.since(self.acked) < span
    }

    /// The logs are equal through `last`, which is durable there. `base` is the position before the
    /// leader's first entry.
    pub(crate) fn accept(&mut self, last: Index, base: Index) -> bool {
        let advanced = last > self.matched;
        self.matched = self.matched.max(last);
        self.next = self.next.max(self.matched.next());
        let found = match &mut self.stage {
            ProgressState::Probe { .. } => last == self.matched,
            // It got what it needed some other way: log and snapshot raced, and the log won.
            ProgressState::Snapshot { .. } => self.matched >= base,
            ProgressState::Replicate(inflight) => {
                inflight.free_through(last);
                false
            }
        };
        if found {
            self.next = self.matched.next();
            self.stage = ProgressState::Replicate(Inflight::default());
        }
        advanced
    }

    /// It answered a heartbeat. `last` is the leader's last index, `patience` the longest silence
    /// about a delivered snapshot. Returns whether something is due for sending.
    pub(crate) fn on_beat(
        &mut self,
        installing: bool,
        last: Index,
        now: Ticks,
        patience: Ticks,
    ) -> bool {
        match &mut self.stage {
            // A snapshot of an earlier leader, or of an earlier attempt: until it is done, the
            // follower drops every append.
            ProgressState::Probe { .. } | ProgressState::Replicate(_) if installing => false,
            ProgressState::Probe { paused } => {
                let due = std::mem::take(&mut self.nudge);
                *paused &= !due;
                due
            }
            // Whatever is missing may be lost: an append, even an empty one, will show it.
            ProgressState::Replicate(_) => {
                let due = self.matched < last && std::mem::take(&mut self.nudge);
                self.ping |= due;
                due
            }
            ProgressState::Snapshot { delivered: Some(delivered), .. } if installing => {
                *delivered = now;
                false
            }
            ProgressState::Snapshot { delivered: Some(delivered), .. } => {
                let overdue = now.since(*delivered) >= patience;
                if overdue {
                    self.restart(false);
                }
                overdue
            }
            ProgressState::Snapshot { delivered: None, .. } => false,
        }
    }

    /// Whether it must have lost the entry at `prev` when it answers a message sent at `sent` that
    /// it has none: its acknowledgement was here before that message left. An answer that was only
    /// overtaken is older.
    pub(crate) fn contradicts(&self, prev: Index, sent: Ticks) -> bool {
        prev <= self.matched && sent > self.matched_at
    }

    /// What it holds is as unknown as at an election, and late answers about it mean nothing.
    pub(crate) fn begin_anew(&mut self, session: ReplicationSession, next: Index, now: Ticks) {
        let acked = self.acked;
        *self = Progress { acked, ..Progress::new(self.peer, session, next, now) };
    }

    /// It has no entry at `prev`; the logs agree at most through `agreement`. Returns whether the
    /// answer was about an append that still matters.
    pub(crate) fn reject(&mut self, prev: Index, agreement: Index) -> bool {
        match &mut self.stage {
            // What is known to match cannot be missing: the answer is an old one.
            ProgressState::Replicate(_) if prev > self.matched => {
                self.next = self.matched.next();
                self.stage = ProgressState::Probe { paused: false };
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

    /// The last index that need not be kept for it.
    pub(crate) fn done_with(&self) -> Index {
        match self.stage {
            ProgressState::Snapshot { at_least, .. } => at_least,
            ProgressState::Probe { .. } if self.matched == Index(0) => self.next.prev(),
            ProgressState::Probe { .. } | ProgressState::Replicate(_) => self.matched,
        }
    }

    /// Stops streaming: something was lost. A heartbeat reply starts it again.
    pub(crate) fn pause(&mut self) {
        if !matches!(self.stage, ProgressState::Snapshot { .. }) {
            self.restart(true);
        }
    }

    /// Back to probing.
    pub(crate) fn restart(&mut self, paused: bool) {
        match self.stage {
            // Where it stands is as unknown as before: a lost probe is no reason to look further back.
            ProgressState::Probe { .. } => {}
            ProgressState::Replicate(_) => self.next = self.matched.next(),
            // It may be there although nobody said so, or be past it and have refused what it does
            // not need. If it is not, its answer asks for another one.
            ProgressState::Snapshot { at_least, .. } => {
                self.next = self.matched.max(at_least).next();
            }
        }
        self.stage = ProgressState::Probe { paused };
    }

    pub(crate) fn status(&self, active: bool) -> ProgressStatus {
        let (state, inflight) = match &self.stage {
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
        assert!(matches!(probe.stage, ProgressState::Replicate(_)));
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
        assert_eq!(streaming.stage, ProgressState::Probe { paused: false });
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
        streaming.begin_anew(session, Index(3), Ticks(80));
        assert_eq!((streaming.matched, streaming.next), (Index(0), Index(3)));
        assert_eq!((streaming.session, streaming.acked), (session, Ticks(0)));
    }

    #[test]
    fn a_lost_probe_is_repeated_where_it_was() {
        let mut probe = progress(10);
        probe.stage = ProgressState::Probe { paused: true };
        probe.pause();
        assert_eq!((probe.matched, probe.next), (Index(0), Index(10)));
        assert_eq!(probe.stage, ProgressState::Probe { paused: true });
    }

    #[test]
    fn after_a_refused_snapshot_the_log_is_tried_from_its_beginning() {
        let mut refused = progress(3);
        refused.stage = ProgressState::Snapshot { at_least: Index(7), delivered: None };
        refused.restart(true);
        assert_eq!(refused.next, Index(8), "it may be past the snapshot");
        assert!(refused.reject(Index(7), Index(2)));
        assert_eq!(refused.next, Index(3), "it is not, and needs another one");
    }

    proptest! {
        /// The window against a twin that keeps every message and counts anew each time.
        #[test]
        fn the_window_counts_what_is_out(
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
