//! Memory of other nodes, learned from what they answer: which led a shard, and which do not
//! answer.
//!
//! A node without a replica of a shard follows no leadership of it. Without a memory it would ask
//! the nodes in the order of the map, and a stopped one first with every call.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::{Failure, Receipt};
use quorate_raft::NodeId;
use tokio::time::Instant;

/// How long a node that did not answer is asked after all others.
const SILENCE: Duration = Duration::from_secs(5);
/// An attempt that had less time than this says nothing about the node that did not answer it.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is known of the other nodes. Bounded by the shards and nodes of the map.
#[derive(Debug, Default)]
pub struct KnownNodes {
    /// By shard.
    leaders: Mutex<BTreeMap<u64, NodeId>>,
    /// The nodes that did not answer, until when they are asked last.
    silent: Mutex<BTreeMap<NodeId, Instant>>,
}

impl KnownNodes {
    /// The node that led a shard when it was last heard of.
    #[must_use]
    pub fn leader(&self, shard: u64) -> Option<NodeId> {
        self.leaders.lock().get(&shard).copied()
    }

    /// Whether a node lately did not answer.
    #[must_use]
    pub fn is_silent(&self, node: NodeId) -> bool {
        self.silent.lock().get(&node).is_some_and(|until| Instant::now() < *until)
    }

    /// A node answered, and named the leader in its receipt.
    pub(crate) fn answered(&self, node: NodeId, receipt: Option<&Receipt>) {
        self.silent.lock().remove(&node);
        if let Some(receipt) = receipt {
            self.learn(receipt.shard, receipt.leader_node_id);
        }
    }

    /// A node answered with a failure, which may name the leader.
    pub(crate) fn failed(&self, node: NodeId, failure: &Failure) {
        self.silent.lock().remove(&node);
        self.learn(failure.shard, failure.leader_node_id);
    }

    /// A node could not be reached, or did not answer within this time.
    pub(crate) fn did_not_answer(&self, node: NodeId, waited: Option<Duration>) {
        if waited.is_none_or(|waited| waited >= PATIENCE) {
            self.silent.lock().insert(node, Instant::now() + SILENCE);
        }
    }

    fn learn(&self, shard: u64, leader: u64) {
        if shard != 0 && leader != 0 {
            self.leaders.lock().insert(shard, NodeId(leader));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_remembered_for_a_while_or_until_it_answers() {
        let known = KnownNodes::default();
        assert!(!known.is_silent(NODE));
        known.did_not_answer(NODE, Some(PATIENCE / 2));
        assert!(!known.is_silent(NODE), "it had too little time");
        for answers in [false, true] {
            known.did_not_answer(NODE, answers.then_some(PATIENCE));
            assert!(known.is_silent(NODE) && !known.is_silent(NodeId(4)));
            match answers {
                true => known.answered(NODE, None),
                false => tokio::time::advance(SILENCE).await,
            }
            assert!(!known.is_silent(NODE));
        }
    }

    #[test]
    fn the_leader_is_learned_from_receipts_and_failures() {
        let known = KnownNodes::default();
        let receipt = Receipt { shard: 2, leader_node_id: 4, ..Receipt::default() };
        known.answered(NODE, Some(&receipt));
        known.failed(NODE, &Failure { shard: 5, leader_node_id: 6, ..Failure::default() });
        known.failed(NODE, &Failure { shard: 2, ..Failure::default() });
        let leaders = [2, 5, 7].map(|shard| known.leader(shard));
        assert_eq!(leaders, [Some(NodeId(4)), Some(NodeId(6)), None]);
    }
}
