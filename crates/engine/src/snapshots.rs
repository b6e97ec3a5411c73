//! Snapshots in transfer: orders of leaders here to send one, and received snapshots that wait for
//! the core's decision.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_machine::ApplyError;
use quorate_raft::{GroupId, Replica, ReplicationSession, SnapshotSend};
use quorate_storage::{Installer, StorageError};

/// Why a snapshot of another node is not installed. The replica keeps its state, except after
/// [`InstallError::State`], which stops it.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// This node holds no replica of the group.
    #[error("this node holds no replica of {0}")]
    NoReplica(GroupId),
    /// The core decided to install a snapshot that a newer one has replaced.
    #[error("a newer snapshot has replaced it")]
    Superseded,
    /// The storage rejected the snapshot.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The installed rows do not decode.
    #[error(transparent)]
    State(ApplyError),
}

/// An order of a core to send a snapshot.
#[derive(Debug)]
pub struct SnapshotOrder {
    /// The group.
    pub group: GroupId,
    /// This node's replica, which leads.
    pub from: Replica,
    /// The receiver, with term and session.
    pub order: SnapshotSend,
}

/// Snapshots received in full that wait to be installed: at most one per group, the newest.
#[derive(Default)]
pub struct Staged {
    by_group: Mutex<BTreeMap<GroupId, (ReplicationSession, Installer)>>,
}

impl Staged {
    /// Stores a received snapshot. It replaces one that waits for the same group.
    pub fn put(&self, group: GroupId, session: ReplicationSession, installer: Installer) {
        self.by_group.lock().insert(group, (session, installer));
    }

    /// Takes the snapshot of this session; one of another session stays.
    pub(super) fn take(&self, group: GroupId, session: ReplicationSession) -> Option<Installer> {
        let mut by_group = self.by_group.lock();
        let (waiting, _) = by_group.get(&group)?;
        if *waiting != session {
            return None;
        }
        by_group.remove(&group).map(|(_, installer)| installer)
    }
}
