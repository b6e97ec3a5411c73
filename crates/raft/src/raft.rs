//! The replica: one struct, and the calls that a driver makes.

use bytes::Bytes;

use crate::config::Config;
use crate::error::{ProposeError, ReadError, RestoreError, TransferError};
use crate::membership::Membership;
use crate::message::{Envelope, SnapshotMeta};
use crate::output::{Output, PersistToken, ReadId};
use crate::status::Status;
use crate::types::{
    Entry, GroupId, HardState, Index, LogId, Replica, ReplicaId, SessionId, Term, Ticks,
};

/// What a replica starts from: the durable log, and the state machine's position in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Restored {
    /// The newest durable hard state; the default for a new replica.
    pub hard_state: HardState,
    /// The position before the first of `entries`.
    pub base: LogId,
    /// The last entry in the durable state machine; at or after `base`.
    pub applied: LogId,
    /// The stamp of `applied` (the state machine's log time); 0 where nothing is applied.
    pub stamp: u64,
    /// The membership as of `applied`.
    pub membership: Membership,
    /// The durable entries after `base`, without gaps.
    pub entries: Vec<Entry>,
}

/// One replica of one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Raft {
    group: GroupId,
    me: Replica,
}

#[allow(unused_variables, missing_docs, clippy::needless_pass_by_value)]
impl Raft {
    pub fn new(
        config: Config,
        group: GroupId,
        me: Replica,
        seed: u64,
        restored: Restored,
        now: Ticks,
    ) -> Result<Raft, RestoreError> {
        unimplemented!()
    }
    pub fn step(&mut self, now: Ticks, envelope: Envelope) {
        unimplemented!()
    }
    pub fn advance(&mut self, now: Ticks) {
        unimplemented!()
    }
    pub fn next_deadline(&self) -> Ticks {
        unimplemented!()
    }
    pub fn election_timeout(&mut self, now: Ticks) {
        unimplemented!()
    }
    pub fn propose(
        &mut self,
        now: Ticks,
        payload: Bytes,
        stamp: u64,
    ) -> Result<LogId, ProposeError> {
        unimplemented!()
    }
    pub fn read_index(&mut self, now: Ticks, id: ReadId) -> Result<(), ReadError> {
        unimplemented!()
    }
    pub fn transfer_leader(&mut self, now: Ticks, to: ReplicaId) -> Result<(), TransferError> {
        unimplemented!()
    }
    pub fn on_persisted(&mut self, now: Ticks, token: PersistToken) {
        unimplemented!()
    }
    pub fn on_applied(&mut self, now: Ticks, index: Index) {
        unimplemented!()
    }
    pub fn unreachable(&mut self, now: Ticks, peer: ReplicaId) {
        unimplemented!()
    }
    pub fn snapshot_sent(&mut self, now: Ticks, to: ReplicaId, session: SessionId, ok: bool) {
        unimplemented!()
    }
    pub fn on_installed(&mut self, now: Ticks, meta: SnapshotMeta) {
        unimplemented!()
    }
    pub fn on_install_failed(&mut self, now: Ticks) {
        unimplemented!()
    }
    pub fn compact(&mut self, through: Index) -> LogId {
        unimplemented!()
    }
    /// Sets the wall clock that replies report to the leader; opaque here.
    pub fn set_clock(&mut self, clock: u64) {
        unimplemented!()
    }
    /// At the leader: the last reported clock of each voter, its own included; 0 = not yet known.
    pub fn clocks(&self) -> Vec<(ReplicaId, u64)> {
        unimplemented!()
    }
    /// The newest (own earlier clock reading, index) such that a state which has applied the index
    /// is no older than the reading.
    pub fn freshness(&self) -> Option<(Ticks, Index)> {
        unimplemented!()
    }
    pub fn has_output(&self) -> bool {
        unimplemented!()
    }
    pub fn take_output(&mut self) -> Output {
        unimplemented!()
    }
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    pub fn group(&self) -> GroupId {
        self.group
    }
    pub fn me(&self) -> Replica {
        self.me
    }
    pub fn leader(&self) -> Option<Replica> {
        unimplemented!()
    }
    pub fn is_leader(&self) -> bool {
        unimplemented!()
    }
    pub fn term(&self) -> Term {
        unimplemented!()
    }
    pub fn commit(&self) -> Index {
        unimplemented!()
    }
    pub fn applied(&self) -> Index {
        unimplemented!()
    }
    pub fn last_index(&self) -> Index {
        unimplemented!()
    }
    pub fn last_stamp(&self) -> u64 {
        unimplemented!()
    }
    pub fn log_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn membership(&self) -> &Membership {
        unimplemented!()
    }
}
