//! A simulated disk: its durable content, and the writes in flight to it.

use std::collections::VecDeque;

use quorate_raft::{
    Entry, HardState, Index, LogId, Membership, Persist, Restored, SnapshotMeta, Term,
};

/// The durable state of one replica. Writes take effect as a whole and in the order of issue; a
/// crash loses the pending ones.
pub struct Disk {
    pub hard_state: HardState,
    pub base: LogId,
    pub entries: Vec<Entry>,
    /// The durable state machine: its position, stamp and membership.
    pub checkpoint: SnapshotMeta,
    /// Writes issued and not yet durable.
    pub writes: VecDeque<Write>,
}

pub struct Write {
    pub persist: Persist,
    /// Whether a snapshot was installed since: then the entries of this write are void.
    pub void: bool,
}

impl Disk {
    pub fn new(membership: Membership) -> Self {
        Self {
            hard_state: HardState::default(),
            base: LogId::ZERO,
            entries: Vec::new(),
            checkpoint: SnapshotMeta { last: LogId::ZERO, stamp: 0, membership },
            writes: VecDeque::new(),
        }
    }

    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, Entry::id)
    }

    pub fn id_at(&self, index: Index) -> Option<LogId> {
        if index == self.base.index {
            return Some(self.base);
        }
        let position = index.0.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(position as usize).map(Entry::id)
    }

    /// Whether this entry would survive a crash, in the log or in the state machine.
    pub fn holds(&self, id: LogId) -> bool {
        id.index <= self.base.index || self.id_at(id.index) == Some(id)
    }

    /// Makes the oldest issued write durable.
    pub fn complete_one(&mut self) -> Option<Persist> {
        let Write { persist, void } = self.writes.pop_front()?;
        if let Some(hard_state) = persist.hard_state {
            assert!(hard_state.term >= self.hard_state.term, "the durable term goes back");
            self.hard_state = hard_state;
        }
        if let Some(reset) = persist.reset
            && !void
        {
            self.entries.clear();
            self.base = reset;
        }
        if let Some(first) = persist.entries.first()
            && !void
        {
            assert!(
                first.index > self.base.index && first.index <= self.last().index.next(),
                "a write at {} leaves a gap after {}",
                first.index,
                self.last()
            );
            self.entries.truncate((first.index.0 - self.base.index.0 - 1) as usize);
            self.entries.extend(persist.entries.iter().cloned());
        }
        Some(persist)
    }

    /// Installs a snapshot, which replaces state and log in one step.
    pub fn install(&mut self, meta: &SnapshotMeta) {
        self.base = meta.last;
        self.entries.clear();
        self.checkpoint = meta.clone();
        for write in &mut self.writes {
            write.void = true;
        }
    }

    pub fn purge(&mut self, through: LogId) {
        while self.entries.first().is_some_and(|entry| entry.index <= through.index) {
            self.base = self.entries.remove(0).id();
        }
    }

    pub fn crash(&mut self) {
        self.writes.clear();
    }

    pub fn restore(&self) -> Restored {
        Restored {
            hard_state: self.hard_state,
            base: self.base,
            applied: self.checkpoint.last,
            stamp: self.checkpoint.stamp,
            membership: self.checkpoint.membership.clone(),
            entries: self.entries.clone(),
        }
    }

    pub fn term(&self) -> Term {
        self.hard_state.term
    }
}
