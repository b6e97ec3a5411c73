//! The Raft core of Quorate: a pure state machine without I/O, clock, threads or randomness of its
//! own. It implements the [paper], with extensions of the [thesis]; both are at the [Raft site].
//!
//! [`Raft`] is one replica of one group. Its inputs are what happened (a message arrived, time
//! passed, a write is durable, entries are applied); its [`Output`] is what to do about it. Two
//! runs with the same inputs and seeds are equal to the last bit.
//!
//! [paper]: https://raft.github.io/raft.pdf
//! [thesis]: https://github.com/ongardie/dissertation
//! [Raft site]: https://raft.github.io
//!
//! # Driving it
//!
//! One thread owns a `Raft`. A turn of its loop:
//!
//! 1. Give it every input that has arrived: [`Raft::step`], [`Raft::propose`],
//!    [`Raft::read_index`], [`Raft::on_persisted`], [`Raft::on_applied`] and so on. Each carries
//!    `now`, a reading of a clock that runs through suspend, taken *after* the input was taken from
//!    its queue: so a loop that was stopped for five seconds knows it, and a leader whose quorum is
//!    out of date steps down before it answers anything.
//! 2. When [`Raft::next_deadline`] has come, call [`Raft::advance`], after the messages: a
//!    heartbeat in the inbox counts before an election begins without it.
//! 3. While [`Raft::has_output`], call [`Raft::take_output`] and carry it out. Proposals of one
//!    turn share an append, reads of one turn share a quorum round, and everything to be written is
//!    one write.
//!
//! # What must be durable before what
//!
//! Each field of [`Output`] has its own condition:
//!
//! - [`Output::send`]: immediately; nothing in it depends on a write that is not durable.
//! - [`Output::persist`]: immediately, but writes take effect in the order of their tokens. Several
//!   may be in flight, and [`Raft::on_persisted`] may report them in any order.
//! - [`Persist::send_after`]: when that write and all before it are durable, and not before: votes
//!   given and asked for, acknowledgements, answers to heartbeats.
//! - [`Output::committed`]: immediately, in order; these entries are committed *and* durable here.
//! - [`Output::reads`]: a read is served once the state machine has applied its index.
//! - [`Output::snapshots`]: immediately; each is answered by [`Raft::snapshot_begins`] once it is
//!   known where the snapshot ends, and by [`Raft::snapshot_sent`].
//! - [`Output::install`]: after everything in `committed` so far is applied; answered by
//!   [`Raft::on_installed`] when durable, or [`Raft::on_install_failed`].
//! - [`Output::events`] are notifications, and ask for nothing.
//!
//! A [`PersistToken`] covers only entries that were not replaced since: an entry that was replaced
//! while it was being written, even if it was put back later, becomes durable only with its last
//! write. At all times `base ≤ applied ≤ min(commit, durable)`, and the log may be purged on disk
//! only through what [`Raft::compact`] returns.
//!
//! # The protocol as implemented
//!
//! *Roles.* Follower → pre-candidate → candidate → leader ([`RoleKind`]). A role holds its own
//! data, so a leader's bookkeeping cannot survive its term. A [`Term`] is adopted from every
//! message except a pre-vote, and except a vote request received while this replica hears from a
//! leader.
//!
//! *Elections.* A pre-candidate asks whether it could win ([`Message::PreVote`]) before it raises
//! the term (thesis §9.6). A candidate's requests ([`Message::Vote`]) leave when its own term and
//! vote are durable; its own vote counts from then. Vote and log follow the paper's §5.2 and
//! §5.4.1: [`quorum::tally`] counts the votes, and the order of [`LogId`] compares the logs. An
//! answer names the term it answers, and counts in no other. A replica that heard from a leader
//! within the shortest election timeout refuses both kinds of request; a leader that got no answer
//! from a quorum to anything it sent within the longest one steps down ([`Config::check_quorum`]).
//! Learners vote when asked, since the asker may know a newer membership, but hold no elections.
//!
//! *Replication.* Per follower a leader probes (one append at a time), streams (bounded by messages
//! and by bytes), or waits for a snapshot ([`ProgressKind`]). A refusal
//! ([`AppendResult::Rejected`]) carries the last entry at or before the probe whose term is not
//! higher; the leader does the same with its own log, so a term is skipped with every answer. Lost
//! appends are found by the next one's consistency check, or after a heartbeat: per interval, the
//! answers make one append due, and none while a snapshot is being installed. A follower that lacks
//! what it had acknowledged before an append or a heartbeat left has lost it: that is an
//! [`Event::Regress`], and the leader sends the entries again. Only a conflict truncates. The
//! leader sends before its own disk write is done and counts itself only afterwards
//! ([`quorum::reached`]); entries of earlier terms are committed only by one of its own (§5.4.2),
//! the empty entry with which each term begins ([`EntryKind::Noop`]).
//!
//! *Reads.* A linearizable read ([`Raft::read_index`]) is an index confirmed by a quorum round
//! which began after the read arrived (thesis §6.4); `count_rounds` in `steps/leader.rs` confirms
//! it. One round runs at a time, and all waiting reads share the next; rounds travel in heartbeats.
//! Followers forward, one request at a time, under numbers never used again ([`ReadRequest`]). A
//! leader answers only in a term of which an entry is committed, and answers nothing from the start
//! of a transfer.
//!
//! *Ages.* Replies carry the follower's own clock reading and the number of its start ([`Timing`]);
//! the leader returns the newest with its commit index once a round that began later is confirmed
//! ([`Raft::freshness`]). No two clocks are compared, and no reading outlives the start that took
//! it.
//!
//! *Snapshots* pass by reference: the core says which follower needs one ([`SnapshotSend`]) and
//! resets the log when it is installed ([`Install`]). While a replica installs one, it accepts and
//! applies no entries, and does not stand for election.
//!
//! *Identities.* [`ReplicaId`]s vote and acknowledge, and are never used again: a node that lost
//! its disk comes back as another replica. A message for another replica is answered
//! [`Message::ReplicaGone`]. Everything that moves a leader's bookkeeping also carries a
//! [`ReplicationSession`].
//!
//! *Stopping.* A replica that meets another history at or below its commit index, or a membership
//! that it cannot read, stops by itself and says why ([`Fault`]): it cannot know which of two
//! histories is the group's, and it must not vote under members that it does not know.
//!
//! *Memberships* ([`Membership`]) are in force as soon as they are in the log, and revert when they
//! are truncated. Two sets of voters (joint consensus) and learners are counted everywhere; a
//! leader does not offer to change them yet.
//!
//! # Where it differs from the paper
//!
//! - Time is a reading ([`Ticks`]), not a countdown; heartbeats fall on multiples of their
//!   interval, so that all groups of a node send theirs in the same turn.
//! - Pre-vote, check-quorum and leadership transfer are the thesis' extensions, not the paper's.
//! - A heartbeat's commit index counts only where the last entry is of the leader's term: such an
//!   entry proves the logs equal, and entries acknowledged earlier may have been lost.
//! - Answers to heartbeats wait until the term is durable: they confirm reads, and a replica that
//!   forgot the term could confirm those of an older leader.
//! - A candidate's requests wait for its own disk, which the paper asks only of answers.
//! - Committed entries are applied only when they are durable at the same replica too.
//! - A leader may commit what a majority without it holds durably, before its own write is done; it
//!   applies it afterwards.
//! - Followers refuse with a hint, and snapshots come as one message after their bytes.
//! - A running election timer is not restarted by a higher term, only by a message from the leader,
//!   or by granting a vote.

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
mod room;
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
pub use room::{SMALL_BYTES, Taken, room_for};
pub use status::{ProgressKind, ProgressStatus, Status};
pub use types::{
    Entry, EntryKind, GroupId, HardState, Index, LogId, NodeId, Replica, ReplicaId,
    ReplicationSession, Term, Ticks,
};
