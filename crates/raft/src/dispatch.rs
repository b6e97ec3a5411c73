//! Message dispatch: the rules about terms, then the handler of each kind.

use crate::message::{Envelope, Message, SnapshotResult};
use crate::raft::Raft;
use crate::steps::Append;
use crate::types::{Index, Replica, Term};

impl Raft {
    /// The rules about terms (Raft paper §5.1). Returns whether the message is to be handled.
    pub(crate) fn admit(&mut self, envelope: &Envelope) -> bool {
        let Envelope { from, term, message, .. } = envelope;
        if *term > self.term {
            match message {
                // A pre-vote asks about a term, and changes none.
                Message::PreVote { .. } => return true,
                // A replica that hears from a leader ignores the candidate and its term (thesis
                // §4.2.3).
                Message::Vote { transfer: false, .. } if self.hears_leader() => return false,
                _ => self.become_follower(*term, None),
            }
            return true;
        }
        if *term == self.term {
            return true;
        }
        match message {
            // A voter in a lower term answers with its own; the term that was asked for is in the
            // message.
            Message::PreVoteReply { .. } => return true,
            Message::PreVote { last } => self.on_pre_vote(*from, *term, *last),
            Message::Vote { .. } => {
                let refused = Message::VoteReply { asked: *term, granted: false };
                self.send_when_durable(*from, Index(0), refused);
            }
            // A leader of an older term must learn of the newer one, also when it cannot be voted
            // out because others still hear from it.
            Message::Append { session, timing, .. }
            | Message::Heartbeat { session, timing, .. } => {
                let (session, timing) = (*session, self.reply_timing(timing));
                let reply =
                    Message::HeartbeatReply { session, installing: false, last: None, timing };
                self.send_when_durable(*from, Index(0), reply);
            }
            Message::InstallSnapshot { session, .. } => {
                let (session, result) = (*session, SnapshotResult::Failed);
                let reply = Message::SnapshotReply { session, result };
                self.send_when_durable(*from, Index(0), reply);
            }
            Message::ReadIndex { request } => {
                self.send(*from, Message::ReadIndexReply { request: *request, index: None });
            }
            _ => {}
        }
        false
    }

    pub(crate) fn dispatch(&mut self, envelope: Envelope) {
        let Envelope { from, term, message, .. } = envelope;
        match message {
            Message::PreVote { last } => self.on_pre_vote(from, term, last),
            Message::PreVoteReply { proposed, granted } => {
                self.on_pre_vote_reply(from, proposed, granted);
            }
            Message::Vote { last, .. } => self.on_vote(from, last),
            Message::VoteReply { asked, granted } => self.on_vote_reply(from, asked, granted),
            Message::Append { session, prev, commit, entries, timing } => {
                self.on_append(from, Append { session, prev, commit, entries, timing });
            }
            Message::AppendReply { session, result, timing } => {
                self.on_append_reply(from.id, session, result, &timing);
            }
            Message::Heartbeat { session, commit, timing } => {
                self.on_heartbeat(from, session, commit, &timing);
            }
            Message::HeartbeatReply { session, installing, last, timing } => {
                self.on_heartbeat_reply(from.id, session, installing, last, &timing);
            }
            Message::InstallSnapshot { session, meta } => {
                self.on_install_snapshot(from, session, meta);
            }
            Message::SnapshotReply { session, result } => {
                self.on_snapshot_reply(from.id, session, result);
            }
            Message::ReadIndex { request } => self.on_read_index(from, request),
            Message::ReadIndexReply { request, index } => {
                self.on_read_index_reply(from, request, index);
            }
            Message::TimeoutNow { last } => self.on_timeout_now(from, last),
            Message::ReplicaGone => {}
        }
    }

    /// Answers a message for a replica that is no longer here. Answers are not answered.
    pub(crate) fn refuse_as_gone(&mut self, envelope: &Envelope) {
        if envelope.message.wants_answer() {
            self.out.send.push(Envelope {
                group: self.group,
                from: Replica { id: envelope.to.id, node: self.me.node },
                to: envelope.from,
                term: Term(0),
                message: Message::ReplicaGone,
            });
        }
    }
}
