//! One group of a data directory: its part of the log and its state, read as far as they can be.

use quorate_engine::quarantine::guarded;
use quorate_engine::{load_machine, restored};
use quorate_machine::LogTime;
use quorate_raft::{Entry, EntryKind, GroupId, Index, LogId, ReplicaId};
use quorate_storage::{RecoveredGroup, ShardHeader, ShardReader, ShardStore, StorageError};

use super::report::{Checkpoint, Group, GroupLog, Health, Problem, ProblemKind, Voter};

/// A group that was read.
pub(super) struct GroupParts {
    pub(super) group: Group,
    /// Its entries that are known to be committed, by what is durable.
    pub(super) committed: Vec<Entry>,
    pub(super) state: Option<ShardReader>,
    pub(super) problems: Vec<Problem>,
    /// The epoch of the map in the state of group 0.
    pub(super) map_epoch: Option<u64>,
}

/// The parts of a group, as they were found.
pub(super) struct Found {
    pub(super) id: GroupId,
    /// Its state, or why it cannot be opened; `None` if there is none.
    pub(super) store: Option<Result<ShardStore, StorageError>>,
    /// Its part of the log.
    pub(super) recovered: Option<(ReplicaId, RecoveredGroup)>,
    /// Whether the log of the node was read whole.
    pub(super) log_is_whole: bool,
}

impl Found {
    /// Reads all of it.
    pub(super) fn read(self) -> GroupParts {
        let Found { id, store, recovered, log_is_whole } = self;
        let mut parts = GroupParts {
            group: empty(id),
            committed: Vec::new(),
            state: None,
            problems: Vec::new(),
            map_epoch: None,
        };
        let store = match store {
            Some(Ok(store)) => Some(store),
            Some(Err(error)) => {
                parts.note("shards", &error, (&error).into());
                None
            }
            None => {
                if log_is_whole {
                    let what = "the log has entries of this shard, but there is no state of it";
                    parts.note("shards", &what, ProblemKind::Damaged);
                }
                None
            }
        };
        let header = store.as_ref().map(|store| store.header().clone());
        if let Some(header) = &header {
            parts.take_header(header);
        }
        if let Some(store) = &store {
            parts.read_state(store);
        }
        parts.take_log(header.as_ref(), recovered, log_is_whole);
        parts.group.health = match (parts.problems.is_empty(), log_is_whole) {
            (false, _) => Health::Damaged,
            (true, false) => Health::LogIncomplete,
            (true, true) => Health::Ok,
        };
        parts
    }
}

fn empty(id: GroupId) -> Group {
    Group {
        shard: id.0,
        replica_id: None,
        term: None,
        vote: None,
        commit: None,
        log: GroupLog { first: None, last: None, bytes: 0 },
        checkpoint: None,
        voters: None,
        rows: None,
        keys: None,
        bytes: None,
        sessions: None,
        digest: None,
        digest_computed: None,
        health: Health::Ok,
    }
}

impl GroupParts {
    fn note(&mut self, tree: &str, what: &dyn std::fmt::Display, kind: ProblemKind) {
        self.problems.push(Problem {
            kind,
            file: Some("sled".to_owned()),
            tree: Some(tree.to_owned()),
            record: None,
            shard: Some(self.group.shard),
            what: what.to_string(),
        });
    }

    fn take_header(&mut self, header: &ShardHeader) {
        let frontier = &header.frontier;
        let log_time = LogTime(frontier.log_time);
        let group = &mut self.group;
        group.replica_id = Some(header.replica.0);
        group.checkpoint = Some(Checkpoint {
            number: header.number,
            index: frontier.applied.index.0,
            term: frontier.applied.term.0,
            log_time_ms: log_time.millis(),
            log_time_logical: log_time.logical(),
        });
        let voters = header.membership.voters();
        let voters = voters.map(|one| Voter { replica_id: one.id.0, node_id: one.node.0 });
        group.voters = Some(voters.collect());
        group.rows = Some(frontier.counts.rows);
        group.keys = Some(frontier.counts.keys);
        group.bytes = Some(frontier.counts.bytes);
        group.digest = Some(format!("{:032x}", frontier.digest));
    }

    /// Reads every row: their digest, and the sessions or the map among them.
    fn read_state(&mut self, store: &ShardStore) {
        let tree = store.header().tree_name();
        let reader = store.reader();
        match guarded(|| reader.recount(|_| {})) {
            Ok(Ok((header, counts, digest))) => {
                self.group.digest_computed = Some(format!("{digest:032x}"));
                if counts != header.frontier.counts || digest != header.frontier.digest {
                    let what = format!(
                        "the tree holds {} rows with digest {digest:032x}, but the header of the \
                         shard says {} rows with digest {:032x}",
                        counts.rows, header.frontier.counts.rows, header.frontier.digest
                    );
                    self.note(&tree, &what, ProblemKind::Damaged);
                }
            }
            Ok(Err(error)) => self.note(&tree, &error, (&error).into()),
            Err(panicked) => self.note(&tree, &panicked, ProblemKind::Damaged),
        }
        // What a recount has found is not said a second time.
        let is_known = !self.problems.is_empty();
        match guarded(|| load_machine(store)) {
            Ok(Ok(machine)) => {
                self.group.sessions = Some(machine.sessions().map_or(0, |all| all.len() as u64));
                self.map_epoch = machine.map().map(|map| map.epoch);
            }
            _ if is_known => {}
            Ok(Err(error)) => self.note(&tree, &error, (&error).into()),
            Err(panicked) => self.note(&tree, &panicked, ProblemKind::Damaged),
        }
        self.state = Some(reader);
    }

    fn take_log(
        &mut self,
        header: Option<&ShardHeader>,
        recovered: Option<(ReplicaId, RecoveredGroup)>,
        log_is_whole: bool,
    ) {
        let found = recovered.is_some();
        let (replica, mut recovered) = match recovered {
            Some((replica, recovered)) => (Some(replica), recovered),
            None => (None, RecoveredGroup::default()),
        };
        // Entries of another history are dropped even where the rest is not whole.
        if let Some(header) = header
            && let Err(error) = restored(header, &mut recovered)
            && log_is_whole
        {
            self.note(&header.tree_name(), &error, (&error).into());
        }
        let group = &mut self.group;
        group.replica_id = group.replica_id.or(replica.map(|replica| replica.0));
        let applied = header.map_or_else(LogId::default, ShardHeader::applied);
        if found {
            group.term = Some(recovered.hard_state.term.0);
            group.vote = recovered.hard_state.vote.map(|replica| replica.0);
        }
        let entries = recovered.entries;
        let alone = header.is_some_and(|header| is_alone(header, &entries));
        let through = committed_through(recovered.hard_state.commit, applied, alone, &entries);
        // What a checkpoint has applied was committed, whether or not the log says so already.
        let commit = through.max(applied.index);
        group.commit = (found || header.is_some()).then_some(commit.0);
        group.log = GroupLog {
            first: entries.first().map(|entry| entry.index.0),
            last: entries.last().map(|entry| entry.index.0),
            bytes: entries.iter().map(Entry::bytes).sum(),
        };
        self.committed = entries.into_iter().filter(|entry| entry.index <= through).collect();
    }
}

/// The index up to which these entries, which may be what damage has left, are certainly the
/// committed ones: as far as the log says; up to the last applied entry, if that is among them (Log
/// Matching, Raft paper §5.3); and all entries of a group's only voter, which is its majority.
fn committed_through(commit: Index, applied: LogId, alone: bool, entries: &[Entry]) -> Index {
    let last = entries.last().map_or(Index(0), |entry| entry.index);
    if alone {
        return commit.max(last);
    }
    let is_there = entries.iter().any(|entry| entry.id() == applied);
    if is_there { commit.max(applied.index) } else { commit }
}

/// Whether the replica is the only voter of its group, also by what its log holds beyond the state.
fn is_alone(header: &ShardHeader, entries: &[Entry]) -> bool {
    let changes =
        |entry: &Entry| entry.kind == EntryKind::Membership && entry.index > header.applied().index;
    header.membership.voters().all(|voter| voter.id == header.replica)
        && header.membership.is_voter(header.replica)
        && !entries.iter().any(changes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_raft::Term;

    use super::*;

    #[test]
    fn only_what_is_certainly_committed_counts() {
        let entries: Vec<Entry> = (1..=9)
            .map(|index| Entry {
                index: Index(index),
                term: Term(1),
                kind: EntryKind::Noop,
                stamp: 0,
                payload: Bytes::new(),
            })
            .collect();
        let through = |commit, term, index, alone| {
            let applied = LogId::new(Term(term), Index(index));
            committed_through(Index(commit), applied, alone, &entries).0
        };
        assert_eq!(through(3, 0, 0, false), 3, "as far as the log says");
        assert_eq!(through(3, 1, 7, false), 7, "the state has applied this very entry");
        assert_eq!(through(3, 2, 7, false), 3, "another one was applied there");
        assert_eq!(through(3, 2, 20, false), 3, "and here the log ends before that");
        assert_eq!(through(3, 2, 20, true), 9, "no other replica has replaced any");
    }
}
