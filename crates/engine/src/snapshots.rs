//! Snapshots in transfer: orders of leaders here to send one, and received snapshots that wait for
//! the core's decision.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_raft::{GroupId, Replica, ReplicationSession, SnapshotSend};
use quorate_storage::Installer;

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
