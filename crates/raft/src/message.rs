//! Messages between the replicas of one group.
//!
//! A message may be lost, repeated, delayed or overtaken by another; each variant says what
//! repairs its loss.

use std::fmt;

use crate::membership::Membership;
use crate::types::{Entry, GroupId, Index, LogId, Replica, ReplicationSession, Term, Ticks};

/// A message with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The group it belongs to. A message for another group is ignored.
    pub group: GroupId,
    /// The sender.
    pub from: Replica,
    /// The receiver. A replica that has another id answers [`Message::ReplicaGone`] for this one.
    pub to: Replica,
    /// The sender's current term, for every kind of message. A receiver with a lower term adopts it
    /// (Raft paper §5.1), except from [`Message::PreVote`], which never changes its receiver, and
    /// from a [`Message::Vote`] while the receiver still hears from a leader.
    pub term: Term,
    /// The content.
    pub message: Message,
}

/// Clock readings carried by appends, heartbeats and their replies. No two clocks are ever
/// compared: each reading is interpreted only by the replica that took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timing {
    /// The sender's own clock when it sent the message.
    pub probe_time: Ticks,
    /// In a reply: `probe_time` of the message it answers, from which the leader knows when that
    /// was sent. In a leader's message: the newest `probe_time` of this follower that lies before
    /// the start of a quorum round which has since been confirmed; 0 = none yet.
    pub echo_time: Ticks,
    /// In a leader's message: the leader's commit index when that round began. A follower that has
    /// applied it has a state no older than `echo_time`. 0 in replies.
    pub echo_commit: Index,
    /// In a reply: the start of the sender's process, whose clock `probe_time` was read from; a
    /// machine that starts again restarts its readings. In a leader's message: the start that
    /// `echo_time` belongs to. 0 = not reported.
    pub boot: u64,
    /// The last quorum round the leader had begun when it sent the message; replies return it.
    pub round: u64,
    /// The sender's wall clock as given to [`crate::Raft::set_clock`]; opaque here, 0 = unknown.
    pub clock: u64,
}

/// The answer to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendResult {
    /// The follower's log equals the leader's through `last`, durably.
    Accepted {
        /// The last index known to be equal.
        last: Index,
    },
    /// The follower has no entry with the append's `prev`.
    Rejected {
        /// The index of the append's `prev`: it identifies the append to the leader.
        prev: Index,
        /// The last entry of the follower, at or before `prev`, whose term is not above that of
        /// `prev`: everything after it conflicts. The leader skips a whole term with each answer.
        hint: LogId,
    },
}

/// The answer to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotResult {
    /// The follower's state and log are those of the leader through `last`, durably. It is the
    /// snapshot's last index, or a higher one where the follower did not need the snapshot.
    Installed {
        /// The last index known to be equal.
        last: Index,
    },
    /// The snapshot could not be installed; the leader tries again.
    Failed,
}

/// The description of a snapshot. Its bytes never pass through the core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotMeta {
    /// The last entry whose effects it contains.
    pub last: LogId,
    /// The stamp of that entry, so that later entries are stamped above it.
    pub stamp: u64,
    /// The membership as of that entry.
    pub membership: Membership,
}

/// The identity of a follower's request for a read index. It is never used twice: `boot` differs
/// from one start of the process to the next, so that an answer which outlived a restart cannot be
/// taken for the answer to a younger request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadRequest {
    /// Derived from the seed of this start.
    pub boot: u64,
    /// Counts the requests since the start.
    pub counter: u64,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// "Would you vote for me in the term after mine?" (Raft thesis §9.6). Sent by a pre-candidate
    /// to all voters; changes nothing at the receiver. Lost: asked again after an election timeout.
    PreVote {
        /// The asker's last entry.
        last: LogId,
    },
    /// Answers [`Message::PreVote`]. A refusal from a higher term makes the asker adopt that term.
    PreVoteReply {
        /// The term that was asked for: the asker's term + 1 when it asked.
        proposed: Term,
        /// Whether the vote would be given.
        granted: bool,
    },
    /// RequestVote (Raft paper §5.2). Sent by a candidate to all voters, once its own term and vote
    /// are durable. Lost: a new election after an election timeout.
    Vote {
        /// The candidate's last entry, for the election restriction (§5.4.1).
        last: LogId,
        /// The leader asked for this election, so a voter that hears from the leader does not
        /// refuse.
        transfer: bool,
    },
    /// Answers [`Message::Vote`], once the vote is durable.
    VoteReply {
        /// The term that was asked for. The voter may be in a later one, in which the asker may
        /// stand for election again: an answer counts only in the term that it answers.
        asked: Term,
        /// Whether the vote is given.
        granted: bool,
    },
    /// AppendEntries (Raft paper §5.3). Sent by the leader; may be empty, to probe or to announce
    /// the commit index. Lost: found by the next append's consistency check or after a heartbeat.
    Append {
        /// The leader's bookkeeping session for this follower.
        session: ReplicationSession,
        /// The entry before the first of `entries`.
        prev: LogId,
        /// The leader's commit index; the follower adopts no more of it than it has verified.
        commit: Index,
        /// Consecutive entries after `prev`.
        entries: Vec<Entry>,
        /// See [`Timing`].
        timing: Timing,
    },
    /// Answers [`Message::Append`], once everything it reports is durable.
    AppendReply {
        /// The session of the append.
        session: ReplicationSession,
        /// The outcome.
        result: AppendResult,
        /// See [`Timing`].
        timing: Timing,
    },
    /// Sent by the leader at every multiple of the heartbeat interval, and immediately when a
    /// quorum round begins. Lost: the next one takes its place.
    Heartbeat {
        /// The leader's bookkeeping session for this follower.
        session: ReplicationSession,
        /// The leader's commit index, but no more than this follower has acknowledged.
        commit: Index,
        /// See [`Timing`].
        timing: Timing,
    },
    /// Answers [`Message::Heartbeat`], once the follower's term is durable.
    HeartbeatReply {
        /// The session of the heartbeat.
        session: ReplicationSession,
        /// A snapshot is being installed; the leader keeps waiting for it.
        installing: bool,
        /// The last entry of the follower's log, durable or not: what the follower acknowledged is
        /// at or before it, or was lost. `None` = not reported, to a leader of an earlier term.
        last: Option<LogId>,
        /// See [`Timing`].
        timing: Timing,
    },
    /// InstallSnapshot (Raft paper §7), stepped into the follower when all its bytes have arrived.
    /// Lost: the leader is notified that the transfer failed, or notices after an election timeout,
    /// and sends again.
    InstallSnapshot {
        /// The session in which the leader asked for the transfer.
        session: ReplicationSession,
        /// The description of the snapshot.
        meta: SnapshotMeta,
    },
    /// Answers [`Message::InstallSnapshot`], once the snapshot is durable.
    SnapshotReply {
        /// The session of the snapshot.
        session: ReplicationSession,
        /// The outcome.
        result: SnapshotResult,
    },
    /// A follower asks for a read index (Raft thesis §6.4). Lost: asked again under a new id.
    ReadIndex {
        /// The request's identity.
        request: ReadRequest,
    },
    /// Answers [`Message::ReadIndex`] when a quorum round that began after its arrival is
    /// confirmed.
    ReadIndexReply {
        /// The identity of the request.
        request: ReadRequest,
        /// The read index; `None` = refused: no index is promised.
        index: Option<Index>,
    },
    /// The leader asks the receiver to start an election immediately (Raft thesis §3.10). Lost:
    /// sent again with the next heartbeat, until the transfer is given up.
    TimeoutNow {
        /// The leader's last entry. A receiver that has not persisted it does not start.
        last: LogId,
    },
    /// The addressed replica is not (or no longer) here. The `term` of this message is 0 and
    /// carries no meaning.
    ReplicaGone,
}

impl Message {
    /// Whether this message uses the bulk connection, where it may wait behind other large
    /// messages. All other kinds are small and use the control connection.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        matches!(self, Message::Append { .. } | Message::InstallSnapshot { .. })
    }

    /// Whether the sender waits for an answer; the other kinds are answers themselves.
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        match self {
            Message::PreVote { .. }
            | Message::Vote { .. }
            | Message::Append { .. }
            | Message::Heartbeat { .. }
            | Message::InstallSnapshot { .. }
            | Message::ReadIndex { .. }
            | Message::TimeoutNow { .. } => true,
            Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::AppendReply { .. }
            | Message::HeartbeatReply { .. }
            | Message::SnapshotReply { .. }
            | Message::ReadIndexReply { .. }
            | Message::ReplicaGone => false,
        }
    }

    /// A stable number for the kind. On the control connection a newer message of a kind may
    /// replace an older one of the same group, sender and receiver: the protocol tolerates it for
    /// each kind.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Message::PreVote { .. } => 1,
            Message::PreVoteReply { .. } => 2,
            Message::Vote { .. } => 3,
            Message::VoteReply { .. } => 4,
            Message::Append { .. } => 5,
            Message::AppendReply { .. } => 6,
            Message::Heartbeat { .. } => 7,
            Message::HeartbeatReply { .. } => 8,
            Message::InstallSnapshot { .. } => 9,
            Message::SnapshotReply { .. } => 10,
            Message::ReadIndex { .. } => 11,
            Message::ReadIndexReply { .. } => 12,
            Message::TimeoutNow { .. } => 13,
            Message::ReplicaGone => 14,
        }
    }

    /// The kind's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Message::PreVote { .. } => "PreVote",
            Message::PreVoteReply { .. } => "PreVoteReply",
            Message::Vote { .. } => "Vote",
            Message::VoteReply { .. } => "VoteReply",
            Message::Append { .. } => "Append",
            Message::AppendReply { .. } => "AppendReply",
            Message::Heartbeat { .. } => "Heartbeat",
            Message::HeartbeatReply { .. } => "HeartbeatReply",
            Message::InstallSnapshot { .. } => "InstallSnapshot",
            Message::SnapshotReply { .. } => "SnapshotReply",
            Message::ReadIndex { .. } => "ReadIndex",
            Message::ReadIndexReply { .. } => "ReadIndexReply",
            Message::TimeoutNow { .. } => "TimeoutNow",
            Message::ReplicaGone => "ReplicaGone",
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        match self {
            Message::PreVote { last } | Message::TimeoutNow { last } => write!(f, " last={last}"),
            Message::PreVoteReply { proposed, granted } => {
                write!(f, " for={proposed} {}", if *granted { "granted" } else { "refused" })
            }
            Message::Vote { last, transfer } => {
                write!(f, " last={last}{}", if *transfer { " transfer" } else { "" })
            }
            Message::VoteReply { asked, granted } => {
                write!(f, " for={asked} {}", if *granted { "granted" } else { "refused" })
            }
            Message::Append { prev, commit, entries, .. } => {
                write!(f, " prev={prev} commit={commit} [")?;
                for (position, entry) in entries.iter().enumerate() {
                    if position > 0 {
                        write!(f, " ")?;
                    }
                    write!(f, "{}", entry.id())?;
                }
                write!(f, "]")
            }
            Message::AppendReply { result: AppendResult::Accepted { last }, .. } => {
                write!(f, " accepted={last}")
            }
            Message::AppendReply { result: AppendResult::Rejected { prev, hint }, .. } => {
                write!(f, " rejected={prev} hint={hint}")
            }
            Message::Heartbeat { commit, timing, .. } => {
                write!(f, " commit={commit} round={}", timing.round)
            }
            Message::HeartbeatReply { installing, timing, .. } => {
                write!(f, " round={}{}", timing.round, if *installing { " installing" } else { "" })
            }
            Message::InstallSnapshot { meta, .. } => {
                write!(f, " last={} {}", meta.last, meta.membership)
            }
            Message::SnapshotReply { result: SnapshotResult::Installed { last }, .. } => {
                write!(f, " installed={last}")
            }
            Message::SnapshotReply { result: SnapshotResult::Failed, .. } => write!(f, " failed"),
            Message::ReadIndex { request } => write!(f, " #{}", request.counter),
            Message::ReadIndexReply { request, index: Some(index) } => {
                write!(f, " #{} index={index}", request.counter)
            }
            Message::ReadIndexReply { request, index: None } => {
                write!(f, " #{} refused", request.counter)
            }
            Message::ReplicaGone => Ok(()),
        }
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} -> {} {}", self.from, self.term, self.to, self.message)
    }
}
