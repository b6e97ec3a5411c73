//! Persistence: which part of the replica's state is durable, being written, or still to be handed
//! out.

use std::collections::VecDeque;

use crate::log::Log;
use crate::message::{AppendResult, Envelope, Message};
use crate::output::{Persist, PersistToken};
use crate::types::{Entry, HardState, Index, LogId};

/// Bookkeeping of asynchronous writes.
///
/// Invariants: `durable ≤ handed ≤` the log's last index; the sequences of `pending` are
/// consecutive and end at `sequence`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Persistence {
    /// The sequence of the last token issued.
    sequence: u64,
    pending: VecDeque<Pending>,
    /// The last index through which the log's entries are durable.
    durable: Index,
    /// The last index through which the log's entries are durable or in a pending write.
    handed: Index,
    /// Whether the hard state changed since it was last handed out.
    hard_state_dirty: bool,
    /// The number of pending writes that contain a hard state.
    hard_states_pending: usize,
    reset: Option<LogId>,
    send_after: Vec<Envelope>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    sequence: u64,
    /// The last index that will be durable with this write. Lowered when a later write replaces
    /// entries in it: the completion of this write no longer covers those.
    last: Index,
    hard_state: bool,
    done: bool,
}

impl Persistence {
    /// The state after a start: everything through `last` was read from disk.
    pub(crate) fn new(last: Index) -> Self {
        Self {
            sequence: 0,
            pending: VecDeque::new(),
            durable: last,
            handed: last,
            hard_state_dirty: false,
            hard_states_pending: 0,
            reset: None,
            send_after: Vec::new(),
        }
    }

    /// The last index that is durable here.
    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// Whether the current term and vote are durable.
    pub(crate) fn hard_state_durable(&self) -> bool {
        !self.hard_state_dirty && self.hard_states_pending == 0
    }

    /// Records that the term or the vote changed.
    pub(crate) fn touch_hard_state(&mut self) {
        self.hard_state_dirty = true;
    }

    /// Records that the log dropped its entries at or after `from`.
    pub(crate) fn truncate_from(&mut self, from: Index) {
        let keep = from.prev();
        self.durable = self.durable.min(keep);
        self.handed = self.handed.min(keep);
        for pending in &mut self.pending {
            pending.last = pending.last.min(keep);
        }
        // Entries about to be acknowledged will never be written.
        self.send_after.retain(|envelope| match &envelope.message {
            Message::AppendReply { result: AppendResult::Accepted { last }, .. } => *last < from,
            _ => true,
        });
    }

    /// Restarts the log after `base`, which the state machine holds durably.
    pub(crate) fn reset(&mut self, base: LogId) {
        self.reset = Some(base);
        self.durable = base.index;
        self.handed = base.index;
        for pending in &mut self.pending {
            pending.last = Index(0);
        }
    }

    /// Queues a message that must wait for all writes so far.
    pub(crate) fn send_after(&mut self, envelope: Envelope) {
        // An acknowledgement covers all earlier ones of its session, so only the last of them is
        // sent.
        if let (Some(previous), Message::AppendReply { session, result, .. }) =
            (self.send_after.last_mut(), &envelope.message)
            && let Message::AppendReply { session: earlier, result: before, .. } = &previous.message
            && let (AppendResult::Accepted { last: a }, AppendResult::Accepted { last: b }) =
                (before, result)
            && session == earlier
            && previous.to == envelope.to
            && a <= b
        {
            *previous = envelope;
            return;
        }
        self.send_after.push(envelope);
    }

    /// Whether there is something to hand out.
    pub(crate) fn is_ready(&self, log: &Log) -> bool {
        self.hard_state_dirty
            || self.reset.is_some()
            || !self.send_after.is_empty()
            || self.handed < log.last().index
    }

    /// Hands out the next write, with at most `max_bytes` of entries, or one entry. The rest
    /// follows with the next calls, and the messages that wait for all of it with the last one.
    /// Each write and those before it make a log that a replica can start from.
    pub(crate) fn take(
        &mut self,
        log: &Log,
        hard_state: HardState,
        max_bytes: u64,
    ) -> Option<Persist> {
        if !self.is_ready(log) {
            return None;
        }
        self.sequence += 1;
        let (entries, _) = log.batch(self.handed.next(), max_bytes);
        // Without entries to write, the log ends at the last index handed out.
        let last = entries.last().map_or(log.last(), Entry::id);
        let send_after =
            if last == log.last() { std::mem::take(&mut self.send_after) } else { Vec::new() };
        let dirty = std::mem::take(&mut self.hard_state_dirty);
        self.hard_states_pending += usize::from(dirty);
        self.handed = last.index;
        // This may be the last write that becomes durable: the entries that it calls committed must
        // be there.
        let hard_state = HardState { commit: hard_state.commit.min(last.index), ..hard_state };
        self.pending.push_back(Pending {
            sequence: self.sequence,
            last: last.index,
            hard_state: dirty,
            done: false,
        });
        Some(Persist {
            token: PersistToken { sequence: self.sequence, last },
            hard_state: dirty.then_some(hard_state),
            reset: self.reset.take(),
            entries,
            send_after,
        })
    }

    /// Records that a write is durable. Returns whether anything became durable by it.
    ///
    /// A write counts only when all earlier ones are done too: an entry after a hole is not
    /// durable.
    pub(crate) fn complete(&mut self, token: PersistToken) -> bool {
        let Some(front) = self.pending.front().map(|pending| pending.sequence) else {
            return false;
        };
        let position = token.sequence.checked_sub(front).and_then(|p| usize::try_from(p).ok());
        let Some(pending) = position.and_then(|position| self.pending.get_mut(position)) else {
            return false;
        };
        pending.done = true;
        let mut progress = false;
        while let Some(done) = self.pending.pop_front_if(|pending| pending.done) {
            self.durable = self.durable.max(done.last);
            self.hard_states_pending -= usize::from(done.hard_state);
            progress = true;
        }
        progress
    }

    /// Asserts the invariants of the type.
    pub(crate) fn check(&self, last: Index) {
        assert!(
            self.durable <= self.handed && self.handed <= last,
            "durable {} ≤ handed {} ≤ last {last} does not hold",
            self.durable,
            self.handed
        );
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Timing;
    use crate::types::{EntryKind, GroupId, Replica, ReplicationSession, Term};

    fn push(log: &mut Log, term: u64) {
        log.push(Entry {
            term: Term(term),
            index: log.last().index.next(),
            kind: EntryKind::Command,
            stamp: 0,
            payload: Bytes::new(),
        });
    }

    fn take(persistence: &mut Persistence, log: &Log) -> Persist {
        let persist = persistence.take(log, HardState::default(), u64::MAX).unwrap();
        persistence.check(log.last().index);
        persist
    }

    #[test]
    fn an_entry_written_again_counts_only_with_its_last_write() {
        let mut log = Log::new(LogId::ZERO, 0);
        let mut persistence = Persistence::new(Index(0));
        push(&mut log, 1);
        push(&mut log, 2);
        let first = take(&mut persistence, &log);
        // 2@2 is replaced by 2@3, and that by 2@2 again: the same identity, another write.
        let mut replace = |term| {
            log.truncate_from(Index(2));
            persistence.truncate_from(Index(2));
            push(&mut log, term);
            take(&mut persistence, &log)
        };
        let second = replace(3);
        let third = replace(4);
        assert_eq!(third.entries.len(), 1);
        assert!(persistence.complete(first.token));
        assert_eq!(persistence.durable(), Index(1));
        assert!(persistence.complete(second.token));
        assert_eq!(persistence.durable(), Index(1));
        assert!(persistence.complete(third.token));
        assert_eq!(persistence.durable(), Index(2));
    }

    #[test]
    fn an_acknowledgement_goes_with_its_entries() {
        let acknowledge = |last| Envelope {
            group: GroupId(1),
            from: Replica::default(),
            to: Replica::default(),
            term: Term(1),
            message: Message::AppendReply {
                session: ReplicationSession::default(),
                result: AppendResult::Accepted { last: Index(last) },
                timing: Timing::default(),
            },
        };
        let mut log = Log::new(LogId::ZERO, 0);
        let mut persistence = Persistence::new(Index(0));
        push(&mut log, 1);
        push(&mut log, 1);
        persistence.send_after(acknowledge(1));
        persistence.send_after(acknowledge(2));
        assert_eq!(
            take(&mut persistence, &log).send_after,
            [acknowledge(2)],
            "the last covers all"
        );
        push(&mut log, 1);
        persistence.send_after(acknowledge(3));
        log.truncate_from(Index(3));
        persistence.truncate_from(Index(3));
        push(&mut log, 2);
        assert_eq!(take(&mut persistence, &log).send_after, []);
    }

    #[test]
    fn entries_too_large_for_one_write_go_in_several_and_are_acknowledged_with_the_last() {
        let mut log = Log::new(LogId::ZERO, 0);
        let mut persistence = Persistence::new(Index(0));
        for _ in 0..5 {
            push(&mut log, 1);
        }
        persistence.touch_hard_state();
        let ready = Envelope {
            group: GroupId(1),
            from: Replica::default(),
            to: Replica::default(),
            term: Term(1),
            message: Message::VoteReply { asked: Term(1), granted: true },
        };
        persistence.send_after(ready.clone());
        let two = 2 * Entry::OVERHEAD_BYTES;
        let mut writes = Vec::new();
        let state = HardState { commit: Index(4), ..HardState::default() };
        while let Some(write) = persistence.take(&log, state, two) {
            persistence.check(log.last().index);
            writes.push(write);
        }
        let indexes = |write: &Persist| write.entries.iter().map(|e| e.index.0).collect::<Vec<_>>();
        assert_eq!(
            writes.iter().map(indexes).collect::<Vec<_>>(),
            [vec![1, 2], vec![3, 4], vec![5]]
        );
        let commits = writes.iter().map(|write| write.hard_state.map(|state| state.commit.0));
        assert_eq!(commits.collect::<Vec<_>>(), [Some(2), None, None]);
        assert_eq!(writes[2].send_after, [ready]);
        assert!(writes[..2].iter().all(|write| write.send_after.is_empty()));
        for (write, durable) in writes.iter().zip([2, 4, 5]) {
            assert!(persistence.complete(write.token));
            assert_eq!(persistence.durable(), Index(durable));
            assert_eq!(write.token.last().index, Index(durable));
        }
    }

    #[test]
    fn completions_out_of_order_leave_no_hole() {
        let mut log = Log::new(LogId::ZERO, 0);
        let mut persistence = Persistence::new(Index(0));
        let tokens: Vec<_> = (0..3)
            .map(|_| {
                push(&mut log, 1);
                take(&mut persistence, &log).token
            })
            .collect();
        assert!(!persistence.complete(tokens[2]));
        assert!(!persistence.complete(tokens[1]));
        assert_eq!(persistence.durable(), Index(0));
        assert!(persistence.complete(tokens[0]));
        assert_eq!(persistence.durable(), Index(3));
        assert!(!persistence.complete(tokens[0]), "a second report has no effect");
    }

    #[test]
    fn the_hard_state_is_durable_after_its_write_and_all_before() {
        let mut log = Log::new(LogId::ZERO, 0);
        let mut persistence = Persistence::new(Index(0));
        push(&mut log, 1);
        let entry = take(&mut persistence, &log);
        assert_eq!(entry.hard_state, None);
        persistence.touch_hard_state();
        assert!(!persistence.hard_state_durable());
        let state = take(&mut persistence, &log);
        assert_eq!(state.hard_state, Some(HardState::default()));
        assert!(!persistence.complete(state.token));
        assert!(!persistence.hard_state_durable());
        assert!(persistence.complete(entry.token));
        assert!(persistence.hard_state_durable());
    }
}
