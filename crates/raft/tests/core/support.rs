//! Test bench: one replica, its inputs, and the messages it sends.
use bytes::Bytes;
use quorate_raft::invariants::check_state;
use quorate_raft::{
    AppendResult, Config, Entry, EntryKind, Envelope, GroupId, HardState, Index, Install, LogId,
    Membership, Message, NodeId, Raft, Replica, ReplicaId, ReplicationSession, Restored,
    SnapshotSend, Term, Ticks, Timing,
};

pub const GROUP: GroupId = GroupId(1);

pub fn replica(id: u64) -> Replica {
    Replica::new(ReplicaId(id), NodeId(id))
}

pub fn log_id(index: u64, term: u64) -> LogId {
    LogId::new(Term(term), Index(index))
}

pub fn entry(index: u64, term: u64) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        kind: EntryKind::Command,
        stamp: index,
        payload: Bytes::from(format!("{index}@{term}")),
    }
}

/// The paper's algorithm only: no pre-vote, no check-quorum.
pub fn plain() -> Config {
    Config { pre_vote: false, check_quorum: false, ..Config::default() }
}

/// A replica whose writes complete immediately.
pub struct Bench {
    pub raft: Raft,
    pub now: u64,
    /// All entries that it applied.
    pub applied: Vec<LogId>,
    /// The hard state on its disk.
    pub durable: HardState,
    /// A snapshot that arrived.
    pub install: Option<Install>,
    /// Snapshots that it asks the driver to send.
    pub snapshots: Vec<SnapshotSend>,
}

impl Bench {
    /// A voter of a group of `size`, with a log of these terms.
    pub fn new(id: u64, size: u64, term: u64, log: &[u64]) -> Self {
        Self::with(plain(), id, size, term, log)
    }

    pub fn with(config: Config, id: u64, size: u64, term: u64, log: &[u64]) -> Self {
        let restored = Restored {
            hard_state: HardState { term: Term(term), ..HardState::default() },
            base: LogId::ZERO,
            applied: LogId::ZERO,
            stamp: 0,
            membership: Membership::of_voters((1..=size).map(replica)),
            entries: log.iter().zip(1..).map(|(&term, index)| entry(index, term)).collect(),
        };
        let durable = restored.hard_state;
        let raft = Raft::new(config, GROUP, replica(id), id, restored, Ticks(1_000));
        let raft = raft.expect("the log fits together");
        let (applied, snapshots) = (Vec::new(), Vec::new());
        Self { raft, now: 1_000, applied, durable, install: None, snapshots }
    }

    /// Carries out all outputs; returns the messages sent.
    pub fn drain(&mut self) -> Vec<Envelope> {
        let mut sent = Vec::new();
        while self.raft.has_output() {
            let output = self.raft.take_output();
            check_state(&self.raft);
            sent.extend(output.send);
            self.snapshots.extend(output.snapshots);
            self.install = output.install.or(self.install.take());
            if let Some(persist) = output.persist {
                self.durable = persist.hard_state.unwrap_or(self.durable);
                sent.extend(persist.send_after);
                self.raft.on_persisted(Ticks(self.now), persist.token);
            }
            if let Some(last) = output.committed.last() {
                self.applied.extend(output.committed.iter().map(Entry::id));
                self.raft.on_applied(Ticks(self.now), last.index);
            }
        }
        sent
    }

    /// Delivers a message from another replica; returns the messages sent because of it.
    pub fn step(&mut self, from: u64, term: u64, message: Message) -> Vec<Envelope> {
        let (from, to, term) = (replica(from), self.raft.me(), Term(term));
        let envelope = Envelope { group: GROUP, from, to, term, message };
        self.raft.step(Ticks(self.now), envelope);
        self.drain()
    }

    /// Ends the running installation, if there is one.
    pub fn end_install(&mut self, ok: bool) -> Vec<Envelope> {
        if let Some(install) = self.install.take() {
            match ok {
                true => self.raft.on_installed(Ticks(self.now), install.meta),
                false => self.raft.on_install_failed(Ticks(self.now)),
            }
        }
        self.drain()
    }

    pub fn tick(&mut self, ticks: u64) -> Vec<Envelope> {
        self.now += ticks;
        self.raft.advance(Ticks(self.now));
        self.drain()
    }

    pub fn timeout(&mut self) -> Vec<Envelope> {
        self.raft.election_timeout(Ticks(self.now));
        self.drain()
    }

    /// Makes it the leader of the next term, by the votes of all others; returns its first appends.
    pub fn elect(&mut self) -> Vec<Envelope> {
        let mut sent = self.timeout();
        let voters: Vec<_> = self.raft.membership().voters().collect();
        for voter in voters {
            if voter != self.raft.me() && !self.raft.is_leader() {
                let asked = self.raft.term();
                let vote = Message::VoteReply { asked, granted: true };
                sent = self.step(voter.id.0, asked.0, vote);
            }
        }
        assert!(self.raft.is_leader());
        sent
    }

    pub fn propose(&mut self, payload: &'static str) -> Vec<Envelope> {
        self.raft.propose(Ticks(self.now), Bytes::from(payload), 0).expect("the leader accepts it");
        self.drain()
    }

    /// Delivers an acknowledgement through `last` of the follower with this id.
    pub fn acknowledge(&mut self, from: u64, last: u64) -> Vec<Envelope> {
        let result = AppendResult::Accepted { last: Index(last) };
        let term = self.raft.term();
        let session = self.session(from);
        self.step(from, term.0, Message::AppendReply { session, result, timing: Timing::default() })
    }

    /// The session of this leadership for a follower: sessions are numbered in the order of ids.
    pub fn session(&self, follower: u64) -> ReplicationSession {
        let me = self.raft.me().id.0;
        let counter = if follower < me { follower } else { follower - 1 };
        ReplicationSession { term: self.raft.term(), counter }
    }

    pub fn append(
        &mut self,
        from: u64,
        term: u64,
        prev: LogId,
        commit: u64,
        entries: Vec<Entry>,
    ) -> Vec<Envelope> {
        let session = ReplicationSession { term: Term(term), counter: 1 };
        let message = Message::Append {
            session,
            prev,
            commit: Index(commit),
            entries,
            timing: Timing::default(),
        };
        self.step(from, term, message)
    }

    /// The terms of the log, by index from 1.
    pub fn terms(&self) -> Vec<u64> {
        let last = self.raft.status().last.index.0;
        (1..=last).map(|index| self.term_at(index)).collect()
    }

    fn term_at(&self, index: u64) -> u64 {
        self.raft.entry_id(Index(index)).expect("nothing is compacted here").term.0
    }
}
