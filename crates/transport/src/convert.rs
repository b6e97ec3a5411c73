//! Between the core's messages and their wire form.
//!
//! Every field of every message is mapped, in both directions, without loss. Payloads are shared,
//! not copied: an entry's `Bytes` goes into the frame as it is, and on the other side it is a slice
//! of the frame that was received. A message that lacks something is an error in words; the
//! connection it came on is dropped, because a peer that sends it does not speak this protocol.

#[cfg(test)]
mod tests;

use std::fmt;

use quorate_proto::raft::v1 as wire;
use quorate_proto::raft::v1::envelope::Message as Content;
use quorate_raft::{
    AppendResult, Entry, EntryKind, Envelope, GroupId, Index, LogId, Membership, Message, NodeId,
    ReadRequest, Replica, ReplicaId, ReplicationSession, SnapshotMeta, SnapshotResult, Term, Ticks,
    Timing,
};

/// What is wrong with a message of a peer: a part of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub(super) String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

type Result<T> = std::result::Result<T, Malformed>;

fn need<T>(value: Option<T>, kind: &str, field: &str) -> Result<T> {
    value.ok_or_else(|| Malformed(format!("{kind} has no {field}")))
}

/// The wire form.
pub fn to_wire(envelope: Envelope) -> wire::Envelope {
    let Envelope { group, from, to, term, message } = envelope;
    wire::Envelope {
        group: group.0,
        from: Some(replica_to_wire(from)),
        to: Some(replica_to_wire(to)),
        term: term.0,
        message: Some(message_to_wire(message)),
    }
}

/// The core's form.
///
/// # Errors
/// [`Malformed`] says what is missing or out of range.
pub fn from_wire(envelope: wire::Envelope) -> Result<Envelope> {
    Ok(Envelope {
        group: GroupId(envelope.group),
        from: replica_from_wire(need(envelope.from, "an envelope", "sender")?),
        to: replica_from_wire(need(envelope.to, "an envelope", "receiver")?),
        term: Term(envelope.term),
        message: message_from_wire(need(
            envelope.message,
            "an envelope",
            "message of a kind known here",
        )?)?,
    })
}

/// A bound of the encoded size of an envelope, cheap to compute: frames and queues are counted with
/// it.
pub fn size_bound(envelope: &Envelope) -> usize {
    /// Everything but entries and memberships, with every number at its longest.
    const FIXED: usize = 320;
    /// Tags, lengths and numbers of an entry, with every number at its longest.
    const PER_ENTRY: usize = 56;
    /// A replica in an encoded membership.
    const PER_REPLICA: usize = 64;
    match &envelope.message {
        Message::Append { entries, .. } => {
            let payloads: usize = entries.iter().map(|entry| entry.payload.len() + PER_ENTRY).sum();
            FIXED + payloads
        }
        Message::InstallSnapshot { meta, .. } => {
            FIXED + PER_REPLICA * meta.membership.replicas().count()
        }
        _ => FIXED,
    }
}

fn message_to_wire(message: Message) -> Content {
    match message {
        Message::PreVote { last } => Content::PreVote(wire::PreVote { last: log_id(last) }),
        Message::PreVoteReply { proposed, granted } => {
            Content::PreVoteReply(wire::PreVoteReply { proposed: proposed.0, granted })
        }
        Message::Vote { last, transfer } => {
            Content::Vote(wire::Vote { last: log_id(last), transfer })
        }
        Message::VoteReply { asked, granted } => {
            Content::VoteReply(wire::VoteReply { granted, asked: asked.0 })
        }
        Message::Append { session, prev, commit, entries, timing } => {
            Content::Append(wire::Append {
                session: session_to_wire(session),
                prev: log_id(prev),
                commit: commit.0,
                entries: entries.into_iter().map(entry_to_wire).collect(),
                timing: timing_to_wire(timing),
            })
        }
        Message::AppendReply { session, result, timing } => {
            Content::AppendReply(wire::AppendReply {
                session: session_to_wire(session),
                timing: timing_to_wire(timing),
                result: Some(append_result_to_wire(result)),
            })
        }
        Message::Heartbeat { session, commit, timing } => Content::Heartbeat(wire::Heartbeat {
            session: session_to_wire(session),
            commit: commit.0,
            timing: timing_to_wire(timing),
        }),
        Message::HeartbeatReply { session, installing, last, timing } => {
            Content::HeartbeatReply(wire::HeartbeatReply {
                session: session_to_wire(session),
                installing,
                timing: timing_to_wire(timing),
                last: last.and_then(log_id),
            })
        }
        Message::InstallSnapshot { session, meta } => {
            Content::InstallSnapshot(wire::InstallSnapshot {
                session: session_to_wire(session),
                meta: Some(meta_to_wire(&meta)),
            })
        }
        Message::SnapshotReply { session, result } => Content::SnapshotReply(wire::SnapshotReply {
            session: session_to_wire(session),
            result: Some(match result {
                SnapshotResult::Installed { last } => {
                    wire::snapshot_reply::Result::Installed(last.0)
                }
                SnapshotResult::Failed => wire::snapshot_reply::Result::Failed(true),
            }),
        }),
        Message::ReadIndex { request } => {
            Content::ReadIndex(wire::ReadIndex { request: request_to_wire(request) })
        }
        Message::ReadIndexReply { request, index } => {
            Content::ReadIndexReply(wire::ReadIndexReply {
                request: request_to_wire(request),
                index: index.map(|index| index.0),
            })
        }
        Message::TimeoutNow { last } => {
            Content::TimeoutNow(wire::TimeoutNow { last: log_id(last) })
        }
        Message::ReplicaGone => Content::ReplicaGone(wire::ReplicaGone {}),
    }
}

fn message_from_wire(content: Content) -> Result<Message> {
    Ok(match content {
        Content::PreVote(m) => Message::PreVote { last: read_log_id(m.last, "PreVote", "last")? },
        Content::PreVoteReply(m) => {
            Message::PreVoteReply { proposed: Term(m.proposed), granted: m.granted }
        }
        Content::Vote(m) => {
            Message::Vote { last: read_log_id(m.last, "Vote", "last")?, transfer: m.transfer }
        }
        Content::VoteReply(m) => Message::VoteReply { asked: Term(m.asked), granted: m.granted },
        Content::Append(m) => Message::Append {
            session: read_session(m.session, "Append")?,
            prev: read_log_id(m.prev, "Append", "prev")?,
            commit: Index(m.commit),
            entries: m.entries.into_iter().map(read_entry).collect::<Result<_>>()?,
            timing: read_timing(m.timing, "Append")?,
        },
        Content::AppendReply(m) => Message::AppendReply {
            session: read_session(m.session, "AppendReply")?,
            result: read_append_result(need(m.result, "AppendReply", "result")?)?,
            timing: read_timing(m.timing, "AppendReply")?,
        },
        Content::Heartbeat(m) => Message::Heartbeat {
            session: read_session(m.session, "Heartbeat")?,
            commit: Index(m.commit),
            timing: read_timing(m.timing, "Heartbeat")?,
        },
        Content::HeartbeatReply(m) => Message::HeartbeatReply {
            session: read_session(m.session, "HeartbeatReply")?,
            installing: m.installing,
            last: m.last.map(|id| LogId { term: Term(id.term), index: Index(id.index) }),
            timing: read_timing(m.timing, "HeartbeatReply")?,
        },
        Content::InstallSnapshot(m) => Message::InstallSnapshot {
            session: read_session(m.session, "InstallSnapshot")?,
            meta: meta_from_wire(&need(m.meta, "InstallSnapshot", "meta")?)?,
        },
        Content::SnapshotReply(m) => Message::SnapshotReply {
            session: read_session(m.session, "SnapshotReply")?,
            result: match need(m.result, "SnapshotReply", "result")? {
                wire::snapshot_reply::Result::Installed(last) => {
                    SnapshotResult::Installed { last: Index(last) }
                }
                wire::snapshot_reply::Result::Failed(_) => SnapshotResult::Failed,
            },
        },
        Content::ReadIndex(m) => {
            Message::ReadIndex { request: read_request(m.request, "ReadIndex")? }
        }
        Content::ReadIndexReply(m) => Message::ReadIndexReply {
            request: read_request(m.request, "ReadIndexReply")?,
            index: m.index.map(Index),
        },
        Content::TimeoutNow(m) => {
            Message::TimeoutNow { last: read_log_id(m.last, "TimeoutNow", "last")? }
        }
        Content::ReplicaGone(_) => Message::ReplicaGone,
    })
}

fn append_result_to_wire(result: AppendResult) -> wire::append_reply::Result {
    match result {
        AppendResult::Accepted { last } => wire::append_reply::Result::Accepted(last.0),
        AppendResult::Rejected { prev, hint } => {
            wire::append_reply::Result::Rejected(wire::AppendRejected {
                prev: prev.0,
                hint: log_id(hint),
            })
        }
    }
}

fn read_append_result(result: wire::append_reply::Result) -> Result<AppendResult> {
    Ok(match result {
        wire::append_reply::Result::Accepted(last) => AppendResult::Accepted { last: Index(last) },
        wire::append_reply::Result::Rejected(rejected) => AppendResult::Rejected {
            prev: Index(rejected.prev),
            hint: read_log_id(rejected.hint, "AppendReply", "hint")?,
        },
    })
}

pub(super) fn replica_to_wire(replica: Replica) -> wire::Replica {
    wire::Replica { id: replica.id.0, node: replica.node.0 }
}

pub(super) fn replica_from_wire(replica: wire::Replica) -> Replica {
    Replica { id: ReplicaId(replica.id), node: NodeId(replica.node) }
}

fn log_id(id: LogId) -> Option<wire::LogId> {
    Some(wire::LogId { term: id.term.0, index: id.index.0 })
}

fn read_log_id(id: Option<wire::LogId>, kind: &str, field: &str) -> Result<LogId> {
    let id = need(id, kind, field)?;
    Ok(LogId { term: Term(id.term), index: Index(id.index) })
}

pub(super) fn session_to_wire(session: ReplicationSession) -> Option<wire::Session> {
    Some(wire::Session { term: session.term.0, counter: session.counter })
}

pub(super) fn read_session(
    session: Option<wire::Session>,
    kind: &str,
) -> Result<ReplicationSession> {
    let session = need(session, kind, "session")?;
    Ok(ReplicationSession { term: Term(session.term), counter: session.counter })
}

fn timing_to_wire(timing: Timing) -> Option<wire::Timing> {
    Some(wire::Timing {
        probe_time: timing.probe_time.0,
        echo_time: timing.echo_time.0,
        echo_commit: timing.echo_commit.0,
        round: timing.round,
        clock: timing.clock,
        boot: timing.boot,
    })
}

fn read_timing(timing: Option<wire::Timing>, kind: &str) -> Result<Timing> {
    let timing = need(timing, kind, "timing")?;
    Ok(Timing {
        probe_time: Ticks(timing.probe_time),
        echo_time: Ticks(timing.echo_time),
        echo_commit: Index(timing.echo_commit),
        boot: timing.boot,
        round: timing.round,
        clock: timing.clock,
    })
}

fn request_to_wire(request: ReadRequest) -> Option<wire::ReadRequest> {
    Some(wire::ReadRequest { boot: request.boot, counter: request.counter })
}

fn read_request(request: Option<wire::ReadRequest>, kind: &str) -> Result<ReadRequest> {
    let request = need(request, kind, "request")?;
    Ok(ReadRequest { boot: request.boot, counter: request.counter })
}

pub(super) fn meta_to_wire(meta: &SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        last: log_id(meta.last),
        stamp: meta.stamp,
        membership: meta.membership.encode(),
    }
}

pub(super) fn meta_from_wire(meta: &wire::SnapshotMeta) -> Result<SnapshotMeta> {
    let membership = Membership::decode(&meta.membership)
        .map_err(|error| Malformed(format!("a snapshot's membership is malformed: {error}")))?;
    let last = read_log_id(meta.last, "SnapshotMeta", "last")?;
    Ok(SnapshotMeta { last, stamp: meta.stamp, membership })
}

fn entry_to_wire(entry: Entry) -> wire::Entry {
    let kind = match entry.kind {
        EntryKind::Noop => wire::EntryKind::Noop,
        EntryKind::Command => wire::EntryKind::Command,
        EntryKind::Membership => wire::EntryKind::Membership,
    };
    wire::Entry {
        term: entry.term.0,
        index: entry.index.0,
        kind: kind.into(),
        stamp: entry.stamp,
        payload: entry.payload,
    }
}

fn read_entry(entry: wire::Entry) -> Result<Entry> {
    let kind = u8::try_from(entry.kind)
        .ok()
        .and_then(EntryKind::from_u8)
        .ok_or_else(|| Malformed(format!("an entry has the unknown kind {}", entry.kind)))?;
    Ok(Entry {
        term: Term(entry.term),
        index: Index(entry.index),
        kind,
        stamp: entry.stamp,
        payload: entry.payload,
    })
}
