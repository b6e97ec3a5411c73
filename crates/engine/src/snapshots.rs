//! Snapshots on their way: those that a leader here owes to followers, and those received here
//! that wait for the core's decision.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_raft::{GroupId, Replica, ReplicationSession, SnapshotSend};
use quorate_storage::Installer;

/// A snapshot that a core wants delivered.
#[derive(Debug)]
pub struct SnapshotOrder {
    /// The group.
    pub group: GroupId,
    /// This node's replica, which leads.
    pub from: Replica,
    /// To whom, in which term and session.
    pub order: SnapshotSend,
}

/// Snapshots that have arrived whole and wait to be installed: at most one per group, the newest.
#[derive(Default)]
pub struct Staged {
    by_group: Mutex<BTreeMap<GroupId, (ReplicationSession, Installer)>>,
}

impl Staged {
    /// Keeps a received snapshot. One that waited for the same group is given up.
    pub fn put(&self, group: GroupId, session: ReplicationSession, installer: Installer) {
        self.by_group.lock().insert(group, (session, installer));
    }

    /// Takes the snapshot of this session; one of another session stays.
    pub fn take(&self, group: GroupId, session: ReplicationSession) -> Option<Installer> {
        let mut by_group = self.by_group.lock();
        let (waiting, _) = by_group.get(&group)?;
        if *waiting != session {
            return None;
        }
        by_group.remove(&group).map(|(_, installer)| installer)
    }
}
