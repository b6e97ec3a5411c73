//! Transfers of leaderships: what one node says by itself. Those that succeed between nodes are in
//! the suite `transfer` of the whole system.

use quorate_proto::v1::cluster_server::Cluster;
use quorate_proto::v1::{TransferLeaderRequest, TransferLeaderResponse};
use quorate_raft::Term;
use tonic::{Code, Response, Status};

use super::*;
use crate::cluster::ClusterService;
use crate::health::Health;

/// Asks the service of a node as a client does.
async fn ask(
    node: &Node,
    (shard, to_node_id): (u64, u64),
    hops: u32,
) -> Result<TransferLeaderResponse, Status> {
    let mut cell = SharedCell::default();
    cell.life = node.shared.life.clone();
    cell.set(node.shared.clone());
    let calls = Calls::new(cell.clone(), node.shared.metrics.clone());
    let config = Arc::new(node.shared.config.clone());
    let service = ClusterService::new(calls, config, Health::new(cell));
    let message = TransferLeaderRequest { shard, to_node_id, ..TransferLeaderRequest::default() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", "500m".parse().expect("ascii"));
    request.metadata_mut().insert(super::super::context::HOPS, hops.into());
    service.transfer_leader(request).await.map(Response::into_inner)
}

fn failure(status: &Status) -> Failure {
    Failure::from_details(status.details()).expect("a failure is attached").0
}

#[test]
fn the_leader_itself_answers_at_once_and_keeps_what_was_asked_for() {
    run(|node| async {
        node.put("key", vec![1]).await;
        let term = node.shared.engine.shards().get(GroupId(1)).expect("it is here").leadership();
        let term = term.term;
        assert!(!node.shared.transfers.keeps(GroupId(1), term));
        for to in [1, 0] {
            let answer = ask(&node, (1, to), HOPS_MAX).await.expect("it leads");
            assert_eq!((answer.leader_node_id, answer.term), (1, term.0));
        }
        assert!(node.shared.transfers.keeps(GroupId(1), term));
        assert!(!node.shared.transfers.keeps(GroupId(1), Term(term.0 + 1)));
        node.stop();
    });
}

#[test]
fn a_transfer_that_cannot_be_is_refused_with_its_reason() {
    run(|node| async {
        for (asked, field, part) in [
            ((9, 1), "shard", "there is no shard 9: the shards are 1 to 1"),
            ((1, 2), "to_node_id", "node 2 holds no replica of shard 1 that votes; nodes 1 do"),
            ((0, 7), "to_node_id", "node 7 holds no replica of shard 0"),
        ] {
            let status = ask(&node, asked, 0).await.expect_err("it is refused");
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            let failure = failure(&status);
            assert_eq!((failure.reason(), &*failure.field), (Reason::BadRequest, field));
            assert!(failure.message.contains(part), "{failure:?}");
        }
        node.shared.life.enter(NodePhase::Starting, "it opens its storage");
        let status = ask(&node, (1, 1), 0).await.expect_err("it starts");
        assert_eq!(failure(&status).reason(), Reason::Starting);
        node.stop();
    });
    block_on(async {
        // Two of three voters are never there.
        let holders = (1..=3).map(|id| MapNode { id, ..MapNode::default() }).collect();
        let lonely = Node::with(1, holders, |_| {});
        let status = ask(&lonely, (1, 2), 0).await.expect_err("none of them leads");
        let said = failure(&status);
        assert_eq!((status.code(), said.reason()), (Code::Unavailable, Reason::NoLeader));
        lonely.stop();
        // The one replica is on a node that nothing reaches, or that may not be asked any more.
        let far = Node::start(2, "127.0.0.1:1");
        for hops in [0, HOPS_MAX] {
            let status = ask(&far, (1, 1), hops).await.expect_err("out of reach");
            assert_eq!(failure(&status).reason(), Reason::NoLeader, "{status:?}");
        }
        far.stop();
    });
}
