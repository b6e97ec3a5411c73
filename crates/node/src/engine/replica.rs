//! Opening a replica: what the log and the checkpoint hold together becomes a Raft core.

use quorate_raft::{Entry, Index, LogId, RestoreError, Restored};
use quorate_storage::{RecoveredGroup, ShardHeader};

use crate::apply::ApplyError;

/// Why a replica cannot be opened. It costs that replica, not the node.
#[derive(Debug, thiserror::Error)]
pub enum OpenReplicaError {
    /// The log and the checkpoint do not fit together.
    #[error("the log does not fit the checkpoint: {0}")]
    Mismatch(String),
    /// The core refuses what was restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The rows of the state do not decode.
    #[error(transparent)]
    State(#[from] ApplyError),
}

/// What the core starts from, given the shard's header and what the log held of the replica.
///
/// The checkpoint is the truth about the state. Entries that it covers are kept where the log still
/// has them, because followers may need them. After an install the log may hold entries of before:
/// nothing is appended between the flip of the header and the log's RESET, so without a RESET the
/// header's position is the snapshot's. Where the log has another entry there, all of it belongs to
/// another history (Log Matching, Raft paper §5.3) and is dropped.
///
/// # Errors
///
/// A gap between checkpoint and log, or an entry at the checkpoint's index with another term.
pub fn restore(
    header: &ShardHeader,
    recovered: Option<RecoveredGroup>,
) -> Result<Restored, OpenReplicaError> {
    let applied = header.applied();
    let RecoveredGroup { hard_state, reset: _, mut entries } = recovered.unwrap_or_default();
    let position = |entry: &Entry| LogId { term: entry.term, index: entry.index };
    let after_applied = Index(applied.index.0 + 1);
    let base = match entries.first().map(position) {
        None => applied,
        Some(first) if first.index > after_applied => {
            return Err(OpenReplicaError::Mismatch(format!(
                "the state has applied {applied}, but the log begins with {first}"
            )));
        }
        Some(first) if first.index == after_applied => applied,
        Some(first) => {
            let offset = (applied.index.0 - first.index.0) as usize;
            match entries.get(offset).map(position) {
                // The first entry becomes the base: its term is what the check of the next needs.
                Some(at) if at == applied => {
                    entries.remove(0);
                    first
                }
                Some(at) if header.log_valid_from != after_applied => {
                    return Err(OpenReplicaError::Mismatch(format!(
                        "the state has applied {applied}, but the log holds {at} there"
                    )));
                }
                // The log is of before an install, or all that is left of it lies before the
                // checkpoint.
                Some(_) | None => {
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
    use quorate_raft::{EntryKind, GroupId, HardState, Membership, ReplicaId, Term};
    use quorate_storage::{Frontier, HashRange};

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

    fn log(first: u64, terms: &[u64]) -> Option<RecoveredGroup> {
        let entries = terms.iter().zip(first..).map(|(&term, index)| Entry {
            term: Term(term),
            index: Index(index),
            kind: EntryKind::Noop,
            stamp: 0,
            payload: Bytes::new(),
        });
        Some(RecoveredGroup {
            hard_state: HardState { term: Term(9), vote: None, commit: Index(0) },
            reset: None,
            entries: entries.collect(),
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
    fn a_log_of_before_an_install_is_kept_only_if_it_agrees_with_the_snapshot() {
        let at = |header, log| indexes(&restore(&header, log).expect("they fit"));
        let agrees = log(7, &[3, 4, 4, 4, 4]);
        assert_eq!(at(header(9, 4, 10), agrees), (7, vec![8, 9, 10, 11]));
        let other_history = log(7, &[3, 3, 3, 4, 4]);
        assert_eq!(at(header(9, 4, 10), other_history), (9, vec![]));
        assert_eq!(at(header(9, 4, 10), log(3, &[1, 1])), (9, vec![]), "it ends before");
    }

    #[test]
    fn a_gap_or_another_term_at_the_checkpoint_is_refused() {
        let gap = restore(&header(5, 2, 0), log(7, &[2])).expect_err("6 is missing");
        assert!(gap.to_string().contains("begins with"), "{gap}");
        let other = restore(&header(5, 2, 0), log(4, &[1, 1, 2])).expect_err("5 is of term 1");
        assert!(other.to_string().contains("holds"), "{other}");
    }
}
