//! The replica: its data, and how it starts. Its inputs are in `input`, its outputs in `output` and
//! `drive`, its behaviour in each role in `steps`.

use crate::config::Config;
use crate::entropy::Entropy;
use crate::error::RestoreError;
use crate::fault::Fault;
use crate::log::Log;
use crate::members::Members;
use crate::membership::Membership;
use crate::output::{Install, Output};
use crate::persist::Persistence;
use crate::role::{Follower, Role};
use crate::types::{
    Entry, EntryKind, GroupId, HardState, Index, LogId, Replica, ReplicaId, Term, Ticks,
};

/// The durable state that a replica starts from: the log, and the state machine's position in it.
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

/// Progress of applying committed entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Applying {
    /// The last index reported as applied.
    pub(crate) applied: Index,
    /// The last index handed out to be applied.
    pub(crate) handed: Index,
    /// The size of the entries handed out and not yet reported.
    pub(crate) bytes: u64,
}

/// One replica of one group: a deterministic state machine. See the crate's page for how to drive
/// it.
///
/// Two replicas that compare as equal behave alike, except for the election timeouts that they
/// draw.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) group: GroupId,
    pub(crate) me: Replica,
    /// When this replica was created, and the newest reading given to it.
    pub(crate) started: Ticks,
    pub(crate) now: Ticks,
    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
    pub(crate) commit: Index,
    pub(crate) log: Log,
    pub(crate) persistence: Persistence,
    pub(crate) members: Members,
    pub(crate) applying: Applying,
    pub(crate) role: Role,
    /// The snapshot that the driver was asked to install.
    pub(crate) installing: Option<Install>,
    /// Why the replica has stopped by itself.
    pub(crate) fault: Option<Fault>,
    /// Counts the read requests sent to leaders.
    pub(crate) requests: u64,
    pub(crate) clock: u64,
    pub(crate) entropy: Entropy,
    /// The next output, except for its writes and committed entries.
    pub(crate) out: Output,
}

impl Raft {
    /// Starts a replica as a follower. All of `restored` counts as durable. A term known only from
    /// a snapshot is written with the first output.
    ///
    /// `seed` should differ between replicas and between starts, for instance a hash of the node's
    /// incarnation, the group and a boot counter: election timeouts and the identity of read
    /// requests come from it.
    ///
    /// # Errors
    /// A configuration that cannot work, or a log that does not fit together: damage, which is
    /// reported and never repaired by guessing.
    pub fn new(
        config: Config,
        group: GroupId,
        me: Replica,
        seed: u64,
        restored: Restored,
        now: Ticks,
    ) -> Result<Self, RestoreError> {
        config.validate()?;
        let Restored { hard_state, base, applied, stamp, membership, entries } = restored;
        let stamp_at_base = if applied == base { stamp } else { 0 };
        let mut log = Log::new(base, stamp_at_base);
        let mut members = Members::new(applied.index, membership);
        for entry in entries {
            let last = log.last();
            if entry.index != last.index.next() {
                return Err(RestoreError::Gap { expected: last.index.next(), found: entry.id() });
            }
            if entry.term < last.term || entry.term > hard_state.term {
                let (found, before, current) = (entry.id(), last.term, hard_state.term);
                return Err(RestoreError::Term { found, before, current });
            }
            if entry.kind == EntryKind::Membership && entry.index > applied.index {
                let index = entry.index;
                let membership = Membership::decode(&entry.payload)
                    .map_err(|source| RestoreError::Membership { index, source })?;
                members.push(index, membership);
            }
            log.push(entry);
        }
        let last = log.last();
        if !log.matches(applied) {
            return Err(RestoreError::Applied { applied, base, last });
        }
        if hard_state.commit > last.index {
            return Err(RestoreError::Commit { commit: hard_state.commit, last });
        }
        // A snapshot may be durable before the write with the term in which it came. That term has
        // to be written again before anything is promised in it; otherwise the next start would
        // find entries of a term that the replica never had.
        let term = hard_state.term.max(last.term);
        let vote = hard_state.vote.filter(|_| hard_state.term == term);
        let mut persistence = Persistence::new(last.index);
        if term > hard_state.term {
            persistence.touch_hard_state();
        }
        let mut entropy = Entropy::new(seed);
        let deadline = now.after(entropy.between(config.election_min, config.election_max));
        Ok(Self {
            config,
            group,
            me,
            started: now,
            now,
            term,
            vote,
            commit: hard_state.commit.max(applied.index),
            persistence,
            log,
            members,
            applying: Applying { applied: applied.index, handed: applied.index, bytes: 0 },
            role: Role::Follower(Follower::new(None, now, deadline)),
            installing: None,
            fault: None,
            requests: 0,
            clock: 0,
            entropy,
            out: Output::default(),
        })
    }

    /// Raises the commit index; a lower one is ignored.
    pub(crate) fn advance_commit(&mut self, to: Index) {
        let last = self.log.last().index;
        assert!(to <= last, "{to} cannot be committed, the log ends at {last}");
        if to <= self.commit {
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            let bytes: u64 = self.log.range(self.commit.next(), to).map(Entry::bytes).sum();
            leader.uncommitted_bytes -= bytes;
            leader.dirty = true;
        }
        self.commit = to;
    }

    /// The identity of the last committed entry.
    pub(crate) fn commit_id(&self) -> LogId {
        // base ≤ commit ≤ last always holds, see `check`.
        self.log.id_at(self.commit).unwrap_or_else(|| panic!("{} is not in the log", self.commit))
    }
}
