//! Invariants of one replica state, and of two successive ones. Tests check them after every step;
//! the cheap part is checked always, in release builds too.

use crate::output::RoleKind;
use crate::progress::ProgressState;
use crate::raft::Raft;
use crate::role::Role;

impl Raft {
    /// The relations between the positions in the log; they cost nothing to check.
    pub(crate) fn check(&self) {
        let (base, last) = (self.log.base().index, self.log.last().index);
        let (applied, handed) = (self.applying.applied, self.applying.handed);
        let durable = self.persistence.durable();
        assert!(
            base <= applied
                && applied <= handed
                && handed <= self.commit.min(durable)
                && self.commit <= last
                && durable <= last,
            "{}: base {base} ≤ applied {applied} ≤ handed {handed} ≤ min(commit {}, durable \
             {durable}) ≤ last {last} does not hold",
            self.me,
            self.commit
        );
    }
}

/// Asserts the invariants of one state. Walks the whole log: for tests.
///
/// # Panics
/// When an invariant does not hold.
pub fn check_state(raft: &Raft) {
    raft.check();
    raft.log.check();
    raft.persistence.check(raft.log.last().index);
    raft.members.check(raft.applying.applied);
    assert!(raft.log.last().term <= raft.term, "{}: the last entry is from a later term", raft.me);
    let unreported: u64 = raft
        .log
        .range(raft.applying.applied.next(), raft.applying.handed)
        .map(crate::types::Entry::bytes)
        .sum();
    assert_eq!(raft.applying.bytes, unreported, "{}: miscounted the bytes being applied", raft.me);
    match &raft.role {
        Role::Follower(_) | Role::PreCandidate(_) => {}
        Role::Candidate(_) => assert_eq!(raft.vote, Some(raft.me.id), "a candidate's own vote"),
        Role::Leader(leader) => {
            assert_eq!(raft.vote, Some(raft.me.id), "a leader voted for itself");
            assert!(raft.installing.is_none(), "a leader installs a snapshot");
            let last = raft.log.last().index;
            let uncommitted: u64 =
                raft.log.range(raft.commit.next(), last).map(crate::types::Entry::bytes).sum();
            assert_eq!(leader.uncommitted_bytes, uncommitted, "miscounted the uncommitted bytes");
            for progress in leader.progress.values() {
                let (matched, next) = (progress.matched, progress.next);
                assert!(
                    matched < next && matched <= last && next <= last.next(),
                    "{}: matched {matched} < next {next} ≤ {} does not hold for {}",
                    raft.me,
                    last.next(),
                    progress.peer
                );
                assert!(progress.round <= leader.round, "an answer to a round that has not begun");
                if let ProgressState::Replicate(window) = &progress.state {
                    assert!(
                        window.len() <= raft.config.max_inflight_messages,
                        "the inflight window is overrun"
                    );
                }
            }
        }
    }
}

/// Asserts the invariants of two successive states of one replica, without a restart between them.
/// Walks the log: for tests.
///
/// # Panics
/// When an invariant does not hold.
pub fn check_delta(before: &Raft, after: &Raft) {
    let me = after.me;
    assert!(after.term >= before.term, "{me}: the term went back");
    if after.term == before.term {
        let kept = before.vote.is_none() || after.vote == before.vote;
        assert!(kept, "{me}: voted twice in term {}", after.term);
        // A leader of a term stays the only one: it can leave the role, but not come back to it.
        let was = before.role.kind();
        let is = after.role.kind();
        let rises = was == RoleKind::Follower && is == RoleKind::Leader;
        assert!(!rises, "{me}: a follower became the leader of its own term");
    }
    assert!(after.commit >= before.commit, "{me}: the commit index went back");
    assert!(after.applying.applied >= before.applying.applied, "{me}: applied went back");
    assert!(after.log.base().index >= before.log.base().index, "{me}: the base went back");
    let kept = before.log.range(after.log.base().index.next(), before.commit);
    for entry in kept {
        assert_eq!(after.log.get(entry.index), Some(entry), "{me}: a committed entry changed");
    }
    if before.is_leader() && after.is_leader() && before.term == after.term {
        for entry in before.log.range(after.log.base().index.next(), before.log.last().index) {
            assert_eq!(after.log.get(entry.index), Some(entry), "{me}: a leader's log changed");
        }
    }
}
