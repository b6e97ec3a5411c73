//! Outputs of the core: the work for its driver. They are the durability contract, one field per
//! condition.

use crate::fault::Fault;
use crate::message::{Envelope, SnapshotMeta};
use crate::types::{Entry, HardState, Index, LogId, Replica, ReplicaId, ReplicationSession, Term};

/// The identity of one [`Persist`]. The driver hands it back with [`crate::Raft::on_persisted`].
///
/// It holds (sequence, last entry). The sequence makes it unique: an entry that was written,
/// replaced and written again is acknowledged only by the last of the three writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistToken {
    pub(crate) sequence: u64,
    pub(crate) last: LogId,
}

impl PersistToken {
    /// The last entry of the log when the token was issued.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.last
    }

    /// Counts the tokens of one start of a replica: 1, 2, …
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// A write to the durable log.
///
/// Writes of one replica take effect in the order of their tokens, each as a whole: a prefix of
/// them survives a crash, and [`crate::Raft::new`] accepts any prefix. They may overlap, and their
/// completions may be reported in any order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Persist {
    /// To be handed to [`crate::Raft::on_persisted`] when this write is durable.
    pub token: PersistToken,
    /// The new hard state, present when the term or the vote changed.
    pub hard_state: Option<HardState>,
    /// The log restarts after this position: all entries written before are void. Takes effect
    /// before `entries`.
    pub reset: Option<LogId>,
    /// Consecutive entries. They replace all entries written earlier at or after the first of them.
    pub entries: Vec<Entry>,
    /// To be sent when this write **and all earlier ones** of this replica are durable, and not
    /// before: votes, acknowledgements, requests for votes.
    pub send_after: Vec<Envelope>,
}

impl Persist {
    /// Whether there is nothing to write: only `send_after` has to wait for earlier writes. The
    /// token is reported as persisted all the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none() && self.reset.is_none() && self.entries.is_empty()
    }
}

/// A snapshot to be delivered to a follower, because the entries it needs are purged.
///
/// The driver streams a snapshot whose last index is at least `at_least`; when all bytes have
/// arrived, [`crate::Message::InstallSnapshot`] with this session and term is stepped into the
/// follower. The end of the transfer is reported with [`crate::Raft::snapshot_sent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotSend {
    /// The receiver.
    pub to: Replica,
    /// The leader's term, for the envelope.
    pub term: Term,
    /// The session to put into the message and to report back.
    pub session: ReplicationSession,
    /// The position before the leader's first entry: an older snapshot would not help.
    pub at_least: Index,
}

/// A snapshot that has arrived and should replace state and log.
///
/// The driver applies the entries it got in `committed` earlier, installs durably, and reports
/// [`crate::Raft::on_installed`] or [`crate::Raft::on_install_failed`]. Meanwhile nothing is
/// committed here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Install {
    /// The description of the snapshot.
    pub meta: SnapshotMeta,
    /// The leader that sent it.
    pub from: Replica,
    /// The session of the transfer; it identifies the received bytes.
    pub session: ReplicationSession,
}

/// The identity of a read given to [`crate::Raft::read_index`]; chosen by the caller, opaque here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// The outcome of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadOutcome {
    /// Linearizable once the local state has applied this index.
    Ready(Index),
    /// No index is promised; ask again. The leader changed or is handing over.
    Dropped,
}

/// A role without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleKind {
    /// Accepts entries from a leader, or waits for one.
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads its term.
    Leader,
}

impl std::fmt::Display for RoleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RoleKind::Follower => "follower",
            RoleKind::PreCandidate => "pre-candidate",
            RoleKind::Candidate => "candidate",
            RoleKind::Leader => "leader",
        })
    }
}

/// How a leadership transfer ended at the leader that was asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransferEnd {
    /// This replica no longer leads. The new leader is usually, but not always, the target.
    SteppedDown,
    /// Given up after an election timeout; this replica continues to lead.
    TimedOut,
    /// Replaced by a transfer to another replica.
    Replaced,
}

/// A notification worth a log line or a metric, in the order of occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Term, role or known leader changed. Proposals made as leader of an earlier term have an
    /// unknown outcome from here on.
    Role {
        /// The term now.
        term: Term,
        /// The role now.
        role: RoleKind,
        /// The leader of the term, where known.
        leader: Option<Replica>,
    },
    /// No election is held, because there is no term after the present one ([`Term::LAST`]): this
    /// group has no leader again. Reported at each election timeout.
    NoTermLeft,
    /// A leader got no answer from a quorum for the longest election timeout and steps down.
    QuorumLost {
        /// The term it led.
        term: Term,
    },
    /// A transfer ended.
    Transfer {
        /// The replica that should have become the leader.
        to: ReplicaId,
        /// How it ended.
        end: TransferEnd,
    },
    /// A node answered that this member of the group is not there. Reported once per leadership.
    ReplicaGone {
        /// The replica.
        replica: ReplicaId,
    },
    /// A follower lost entries that it had acknowledged as durable: its disk drops writes, or was
    /// put back to an older state. The leader sends them again; votes may be lost too.
    Regress {
        /// The follower.
        replica: ReplicaId,
        /// The follower had acknowledged everything through this index.
        acknowledged: Index,
        /// The follower's log agrees with the leader's at most through this index.
        agreement: Index,
    },
    /// This replica has stopped by itself, see [`Fault`]. Reported once.
    Stopped {
        /// Why.
        fault: Fault,
    },
    /// The leader sent entries that no sound leader sends: they do not follow each other, or are of
    /// a later term than its own. They are dropped, and the leader repeats them. Reported once per
    /// leadership.
    Malformed {
        /// The leader.
        leader: ReplicaId,
        /// The entry before the offending one, according to the leader.
        before: LogId,
        /// The offending entry.
        found: LogId,
    },
    /// The log now holds, or after a truncation again holds, another membership in force.
    Membership {
        /// The entry that holds it; for an older one the position it is known from.
        index: Index,
    },
}

/// Work for the driver. The fields may be carried out concurrently; each documents what it waits
/// for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Output {
    /// Messages that may be sent immediately. None depends on a write that is not durable.
    pub send: Vec<Envelope>,
    /// The write to make durable, in order; see [`Persist`].
    pub persist: Option<Persist>,
    /// Entries to apply, in order. They are committed, and durable here.
    pub committed: Vec<Entry>,
    /// Reads that are decided.
    pub reads: Vec<(ReadId, ReadOutcome)>,
    /// Snapshots to deliver.
    pub snapshots: Vec<SnapshotSend>,
    /// A snapshot to install.
    pub install: Option<Install>,
    /// Notifications for logs and metrics.
    pub events: Vec<Event>,
}

impl Output {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Output::default()
    }
}
