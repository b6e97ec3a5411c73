//! Opening a replica: its log and its checkpoint are checked against each other and become the
//! initial state of a Raft core.

use std::collections::BTreeMap;

use quorate_raft::{Entry, LogId, RestoreError, Restored};
use quorate_storage::{
    RecordLog, RecoveredGroup, ReplicaKey, Section, SectionKind, ShardHeader, StorageError,
};
use tracing::info;

use quorate_machine::ApplyError;

/// Why a replica cannot be opened. Only that replica is lost, not the node.
#[derive(Debug, thiserror::Error)]
pub enum OpenReplicaError {
    /// The log and the checkpoint do not fit together.
    #[error("the log does not fit the checkpoint: {0}")]
    Mismatch(String),
    /// The core rejects the restored state.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The rows of the state do not decode.
    #[error(transparent)]
    State(#[from] ApplyError),
}

/// Drops the log of a replica if it belongs to another history than its state, and returns the
/// reset that must then be durable before the next append.
///
/// An install can be interrupted between the replacement of the header and the log's RESET: the
/// header's position is then the snapshot's, and nothing was appended since. If the log has a
/// different entry at that position, all of it belongs to another history (Log Matching, Raft paper
/// §5.3). It must be dropped on disk as well: the next append follows it without a gap and would
/// look like its continuation.
fn drop_other_history(header: &ShardHeader, recovered: &mut RecoveredGroup) -> Option<LogId> {
    let applied = header.applied();
    if header.log_valid_from != applied.index.next() {
        return None;
    }
    let there = recovered.entries.iter().find(|entry| entry.index == applied.index)?;
    (there.id() != applied).then(|| {
        recovered.entries.clear();
        applied
    })
}

/// Makes the log of each replica fit its state, durably, before the first append: entries of
/// another history are dropped.
///
/// # Errors
/// A failed write.
pub fn settle_log<'a>(
    log: &mut RecordLog,
    headers: impl IntoIterator<Item = &'a ShardHeader>,
    recovered: &mut BTreeMap<ReplicaKey, RecoveredGroup>,
) -> Result<(), StorageError> {
    let resets = headers.into_iter().filter_map(|header| {
        let (group, replica) = (header.group, header.replica);
        let to = drop_other_history(header, recovered.get_mut(&(group, replica))?)?;
        info!(shard = group.0, %to, "replica: dropped its log, which predates the snapshot");
        Some(Section { group, replica, kind: SectionKind::Reset(to) })
    });
    let resets: Vec<_> = resets.collect();
    log.append(&resets)
}

/// The state from which the core of a replica would start. Entries of another history are dropped
/// from `recovered`, but not on disk.
///
/// # Errors
/// Log and checkpoint do not fit together.
pub fn restored(
    header: &ShardHeader,
    recovered: &mut RecoveredGroup,
) -> Result<Restored, OpenReplicaError> {
    drop_other_history(header, recovered);
    restore(header, Some(recovered.clone()))
}

/// The state from which the core starts, given the shard's header and the recovered log.
///
/// The checkpoint is authoritative for the state. Entries that it covers are kept if the log still
/// has them, because followers may need them.
///
/// # Errors
/// A gap between checkpoint and log, or an entry at the checkpoint's index with another term.
pub(crate) fn restore(
    header: &ShardHeader,
    recovered: Option<RecoveredGroup>,
) -> Result<Restored, OpenReplicaError> {
    let applied = header.applied();
    let RecoveredGroup { hard_state, reset: _, mut entries } = recovered.unwrap_or_default();
    let after_applied = applied.index.next();
    let base = match entries.first().map(Entry::id) {
        None => applied,
        Some(first) if first.index > after_applied => {
            return Err(OpenReplicaError::Mismatch(format!(
                "the state has applied {applied}, but the log begins with {first}"
            )));
        }
        Some(first) if first.index == after_applied => applied,
        Some(first) => {
            let offset = (applied.index.0 - first.index.0) as usize;
            match entries.get(offset).map(Entry::id) {
                // The first entry becomes the base: its term is needed to check the next entry.
                Some(at) if at == applied => {
                    entries.remove(0);
                    first
                }
                Some(at) => {
                    return Err(OpenReplicaError::Mismatch(format!(
                        "the state has applied {applied}, but the log holds {at} there"
                    )));
                }
                // The log ends before the checkpoint. The next append starts after a gap, and
                // entries before a gap are dead.
                None => {
                    entries.clear();
                    applied
                }
            }
        }
    };
    let (stamp, membership) = (header.frontier.log_time, header.membership.clone());
    Ok(Restored { hard_state, base, applied, stamp, membership, entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use quorate_raft::{EntryKind, GroupId, HardState, Index, Membership, ReplicaId, Term};
    use quorate_storage::{Database, DatabaseOptions, Frontier, HashRange, LogBackend};

    fn header(applied: u64, term: u64, valid_from: u64) -> ShardHeader {
        ShardHeader {
            group: GroupId(1),
            replica: ReplicaId(1),
            generation: 1,
            number: 1,
            frontier: Frontier {
                applied: LogId { term: Term(term), index: Index(applied) },
                ..Frontier::default()
            },
            membership: Membership::default(),
            range: HashRange::ALL,
            shard_epoch: 1,
            log_valid_from: Index(valid_from),
        }
    }

    fn entries(first: u64, terms: &[u64]) -> Vec<Entry> {
        let entries = terms.iter().zip(first..).map(|(&term, index)| Entry {
            term: Term(term),
            index: Index(index),
            kind: EntryKind::Noop,
            stamp: 0,
            payload: Bytes::new(),
        });
        entries.collect()
    }

    fn log(first: u64, terms: &[u64]) -> Option<RecoveredGroup> {
        Some(RecoveredGroup {
            hard_state: HardState { term: Term(9), vote: None, commit: Index(0) },
            reset: None,
            entries: entries(first, terms),
        })
    }

    fn indexes(restored: &Restored) -> (u64, Vec<u64>) {
        (restored.base.index.0, restored.entries.iter().map(|entry| entry.index.0).collect())
    }

    #[test]
    fn log_and_checkpoint_meet_in_every_legal_way() {
        let at = |header, log| indexes(&restore(&header, log).expect("they fit"));
        assert_eq!(at(header(0, 0, 0), None), (0, vec![]), "a new replica");
        assert_eq!(at(header(5, 2, 0), None), (5, vec![]), "checkpoint only");
        assert_eq!(at(header(0, 0, 0), log(1, &[1, 1, 2])), (0, vec![1, 2, 3]), "log only");
        assert_eq!(at(header(5, 2, 0), log(6, &[2, 3])), (5, vec![6, 7]), "log right after");
        assert_eq!(at(header(5, 2, 0), log(4, &[2, 2, 2])), (4, vec![5, 6]), "log around");
        assert_eq!(at(header(5, 2, 0), log(5, &[2])), (5, vec![]), "log ends at the checkpoint");
        assert_eq!(at(header(5, 2, 0), log(2, &[1, 1])), (5, vec![]), "log ends before it");
    }

    #[test]
    fn a_log_from_before_an_install_is_kept_only_if_it_agrees_with_the_snapshot() {
        let at = |header: ShardHeader, log: Option<RecoveredGroup>| {
            let mut log = log.expect("a log");
            let reset = drop_other_history(&header, &mut log);
            let restored = restore(&header, Some(log)).expect("they fit");
            (reset.is_some(), indexes(&restored))
        };
        let agrees = log(7, &[3, 4, 4, 4, 4]);
        assert_eq!(at(header(9, 4, 10), agrees), (false, (7, vec![8, 9, 10, 11])));
        let other_history = log(7, &[3, 3, 3, 4, 4]);
        assert_eq!(at(header(9, 4, 10), other_history), (true, (9, vec![])));
        assert_eq!(at(header(9, 4, 10), log(9, &[3])), (true, (9, vec![])));
        assert_eq!(at(header(9, 4, 10), log(3, &[1, 1])), (false, (9, vec![])), "it ends before");
    }

    /// Opens log and replica as a node does.
    fn reopen(dir: &std::path::Path, header: &ShardHeader) -> (RecordLog, Restored) {
        let database =
            Database::open(&dir.join("sled"), DatabaseOptions::default()).expect("it opens");
        let (mut log, mut groups) =
            RecordLog::open(LogBackend::Sled, &database, dir).expect("it opens");
        settle_log(&mut log, [header], &mut groups).expect("written");
        let recovered = groups.remove(&(header.group, header.replica));
        let restored = restore(header, recovered).expect("they fit");
        log.purge(header.group, header.replica, restored.base.index);
        (log, restored)
    }

    fn append(log: &mut RecordLog, header: &ShardHeader, entries: Vec<Entry>) {
        let (group, replica) = (header.group, header.replica);
        let kind = SectionKind::Append(entries);
        log.append(&[Section { group, replica, kind }]).expect("written");
    }

    #[test]
    fn entries_superseded_by_an_install_do_not_come_back_after_new_entries() {
        let dir = tempfile::tempdir().expect("a directory");
        // Entries of a deposed leader; then a snapshot at 9@4 was installed, and the process ended
        // before the log's reset was durable.
        let before = header(4, 1, 0);
        let (mut log, _) = reopen(dir.path(), &before);
        append(&mut log, &before, entries(5, &[3, 3, 3, 3, 3, 3, 3]));
        drop(log);
        let installed = header(9, 4, 10);
        let (mut log, restored) = reopen(dir.path(), &installed);
        assert_eq!(indexes(&restored), (9, vec![]));
        append(&mut log, &installed, entries(10, &[4, 4, 5]));
        drop(log);
        // Killed before and after the next checkpoint: only the acknowledged entries are there.
        let (log, restored) = reopen(dir.path(), &installed);
        assert_eq!(indexes(&restored), (9, vec![10, 11, 12]));
        drop(log);
        let (_, restored) = reopen(dir.path(), &header(11, 4, 10));
        let (base, kept) = indexes(&restored);
        assert!(base >= 9 && kept.ends_with(&[12]), "{base} {kept:?}");
    }

    #[test]
    fn a_gap_or_another_term_at_the_checkpoint_is_rejected() {
        let gap = restore(&header(5, 2, 0), log(7, &[2])).expect_err("6 is missing");
        assert!(gap.to_string().contains("begins with"), "{gap}");
        let other = restore(&header(5, 2, 0), log(4, &[1, 1, 2])).expect_err("5 is of term 1");
        assert!(other.to_string().contains("holds"), "{other}");
    }
}
