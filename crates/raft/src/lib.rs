//! The Raft core of Quorate: a pure state machine without I/O, clock, threads or randomness of its
//! own.
//!
//! [`Raft`] is one replica of one group. It is told what happened (a message arrived, time passed,
//! a write is durable, entries are applied) and says what to do about it ([`Output`]). Two runs
//! with the same inputs and seeds are equal to the last bit.
//!
//! # Driving it
//!
//! One thread owns a `Raft`. A turn of its loop:
//!
//! 1. Give it every input that has arrived: [`Raft::step`], [`Raft::propose`],
//!    [`Raft::read_index`], [`Raft::on_persisted`], [`Raft::on_applied`] and so on. Each carries
//!    `now`, a reading of a clock that runs through suspend, taken *after* the input was taken from
//!    its queue: a loop that was stopped for five seconds then knows it, and a leader whose quorum
//!    is out of date steps down before it answers anything.
//! 2. When [`Raft::next_deadline`] has come, call [`Raft::advance`], after the messages: a
//!    heartbeat in the inbox counts before an election begins without it.
//! 3. While [`Raft::has_output`], call [`Raft::take_output`] and carry it out. Proposals of one
//!    turn share an append, reads of one turn share a quorum round, everything to be written is one
//!    write.
//!
//! # What must be durable before what
//!
//! Each field of [`Output`] has its own condition:
//!
//! - [`Output::send`]: at once; nothing in it depends on a write that is not durable.
//! - [`Output::persist`]: at once, but writes take effect in the order of their tokens. Several may
//!   be under way, and [`Raft::on_persisted`] may report them in any order.
//! - [`Persist::send_after`]: when that write and all before it are durable, and not before: votes
//!   given and asked for, acknowledgements, answers to heartbeats.
//! - [`Output::committed`]: at once, in order; these entries are committed *and* durable here.
//! - [`Output::reads`]: a read is served once the state machine has applied its index.
//! - [`Output::snapshots`]: at once; each is answered by [`Raft::snapshot_begins`] once it
//!   is known where the snapshot ends, and by [`Raft::snapshot_sent`].
//! - [`Output::install`]: after everything in `committed` so far is applied; answered by
//!   [`Raft::on_installed`] when durable, or [`Raft::on_install_failed`].
//! - [`Output::events`] are news, and ask for nothing.
//!
//! A token acknowledges only what is still so: an entry that was replaced while it was being
//! written, even if it was put back later, becomes durable with its last write alone. At all times
//! `base ≤ applied ≤ min(commit, durable)`, and the log may be purged on disk only through what
//! [`Raft::compact`] returns.
//!
//! # The protocol as implemented
//!
//! *Roles.* Follower → pre-candidate → candidate → leader. What belongs to a role lives in it, so a
//! leader's bookkeeping cannot survive its term. A term is adopted from any message but a pre-vote,
//! and but a vote request that comes while a leader is heard.
//!
//! *Elections.* A pre-candidate asks whether it could win before it raises the term (thesis §9.6).
//! A candidate's requests leave when its own term and vote are durable; its own vote counts from
//! then. Vote and log follow the paper's §5.2 and §5.4.1. An answer names the term it answers, and
//! counts in no other. Whoever heard a leader within the
//! shortest election timeout refuses both kinds of request; a leader that got no answer from a
//! quorum to anything it sent within the longest one steps down (check-quorum). Learners vote when
//! asked, since the asker may know a newer membership, but hold no elections.
//!
//! *Replication.* Per follower a leader probes (one append at a time), streams (bounded by messages
//! and by bytes), or waits for a snapshot. A refusal carries the last entry at or before the probe
//! whose term is not higher; the leader does the same with its own log, so a term is skipped with
//! every answer. Lost appends are found by the next one's consistency check, or after a heartbeat:
//! per interval, the answers make one append due, and none while a snapshot is being installed.
//! A follower that lacks what it had acknowledged before an append or a heartbeat left has lost it:
//! that is an [`Event::Regress`], and it gets the entries again. Only a conflict truncates. The leader sends
//! before its own disk write is done and counts itself only afterwards; entries of earlier terms
//! are committed only by one of its own (§5.4.2), the empty entry with which each term begins.
//!
//! *Reads.* A linearizable read is an index confirmed by a quorum round which began after the read
//! arrived (thesis §6.4). One round runs at a time, and all that wait share the next; rounds travel
//! in heartbeats. Followers forward, one request at a time, under numbers never used again. A
//! leader answers only in a term of which an entry is committed, and nothing from the start of a
//! transfer.
//!
//! *Ages.* Replies carry the follower's own clock reading and the number of its start; the leader
//! returns the newest with its commit index once a round that began later is confirmed
//! ([`Raft::freshness`]). No two clocks are compared, and no reading outlives the start that took it.
//!
//! *Snapshots* pass by reference: the core says who needs one and resets the log when it is
//! installed. While one is being installed, no entries are taken, applied or voted for in an own
//! election.
//!
//! *Identities.* [`ReplicaId`]s vote and acknowledge, and are never used again: a node that lost
//! its disk comes back as somebody else. A message for another replica is answered
//! [`Message::ReplicaGone`]. Everything that moves a leader's bookkeeping carries a [`ReplicationSession`]
//! besides.
//!
//! *Stopping.* A replica that meets another history at or below its commit index, or a membership
//! that it cannot read, stops by itself and says why ([`Fault`]): which of two histories is the
//! group's it cannot know, and it must not vote under members that it does not know.
//!
//! *Memberships* are in force as soon as they are in the log, and revert when they are truncated.
//! Two sets of voters (joint consensus) and learners are counted everywhere; a leader does not
//! offer to change them yet.
//!
//! # Where it differs from the paper
//!
//! - Time is a reading, not a countdown; heartbeats fall on multiples of their interval, so that
//!   all groups of a node beat together.
//! - Pre-vote, check-quorum and leadership transfer are the thesis' extensions, not the paper's.
//! - A heartbeat's commit index counts only where the last entry is of the leader's term: that one
//!   proves the logs equal, and what was acknowledged once may be lost.
//! - Answers to heartbeats wait until the term is durable: they confirm reads, and a replica that
//!   forgot the term could confirm those of an older leader.
//! - A candidate's requests wait for its own disk, which the paper asks only of answers.
//! - Committed entries are applied only when they are durable at the same replica too.
//! - A leader may commit what a majority without it holds durably, before its own write is done; it
//!   applies it afterwards.
//! - Followers refuse with a hint, and snapshots come as one message after their bytes.
//! - A timer that runs is not restarted by a higher term alone, only by a leader's words and by a
//!   vote.

mod config;
mod dispatch;
mod drive;
mod entropy;
mod error;
mod fault;
mod input;
mod inspect;
pub mod invariants;
mod log;
mod members;
mod membership;
mod message;
mod output;
mod persist;
mod progress;
pub mod quorum;
mod raft;
mod reads;
mod replication;
mod role;
mod status;
mod steps;
mod stop;
mod types;

pub use config::{Config, ConfigError};
pub use error::{ProposeError, ReadError, RestoreError, TransferError};
pub use fault::Fault;
pub use membership::{Membership, MembershipError};
pub use message::{
    AppendResult, Envelope, Message, ReadRequest, SnapshotMeta, SnapshotResult, Timing,
};
pub use output::{
    Event, Install, Output, Persist, PersistToken, ReadId, ReadOutcome, RoleKind, SnapshotSend,
    TransferEnd,
};
pub use raft::{Raft, Restored};
pub use status::{ProgressKind, ProgressStatus, Status};
pub use types::{
    Entry, EntryKind, GroupId, HardState, Index, LogId, NodeId, Replica, ReplicaId,
    ReplicationSession, Term, Ticks,
};
