//! Whom nodes do not talk to, and what they do not take, on both sides.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::raft::v1 as wire;
use quorate_raft::{Message, NodeId, Term};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use wire::link_request::Content;

use super::caller::*;
use super::support::*;
use crate::*;

/// What can be wrong with a Hello of node 2 to node 1, and a part of the sentence about it.
fn wrong_hellos(ground: &Ground, lane: wire::Lane) -> Vec<(wire::Hello, &'static str)> {
    let changed = |change: fn(&mut wire::Hello)| {
        let mut hello = hello(ground, lane);
        change(&mut hello);
        hello
    };
    vec![
        (changed(|h| h.cluster_id = Bytes::from(vec![1; 16])), "node 2 belongs to cluster 0101"),
        (changed(|h| h.cluster_id = Bytes::new()), "node 2 names no cluster"),
        (changed(|h| h.to_node = 3), "node 2 looks for node 3, and this is node 1"),
        (
            changed(|h| h.to_incarnation = Bytes::from(vec![1; 16])),
            "node 2 expects another data directory at node 1",
        ),
        (
            changed(|h| h.from_incarnation = Bytes::from(vec![1; 16])),
            "node 2 has the data directory of incarnation 0101",
        ),
        (changed(|h| h.from_incarnation = Bytes::new()), "node 2 names no incarnation"),
        (changed(|h| h.start_id = 0), "node 2 names no start of its process"),
        (
            changed(|h| (h.wire_version_min, h.wire_version_max) = (3, 4)),
            "node 2 speaks wire versions 3 to 4, node 1 speaks 2 to 2",
        ),
        (
            changed(|h| (h.wire_version_min, h.wire_version_max) = (1, 1)),
            "node 2 speaks wire versions 1 to 1, node 1 speaks 2 to 2",
        ),
    ]
}

#[test]
fn a_wrong_hello_is_refused_by_the_called_node() {
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    for lane in [wire::Lane::Control, wire::Lane::Bulk] {
        for (hello, part) in wrong_hellos(&ground, lane) {
            let (_sender, mut answers) = caller.link(vec![request(Content::Hello(hello))]).unwrap();
            match caller.next(&mut answers).unwrap().unwrap().content {
                Some(wire::link_response::Content::Refusal(refusal)) => {
                    assert!(refusal.sentence.contains(part), "{part}: {}", refusal.sentence);
                    assert_eq!(refusal.from_node, 1);
                }
                other => panic!("{part}: {other:?}"),
            }
            assert!(caller.next(&mut answers).unwrap().is_none(), "{part}: the link continues");
        }
        // The right one is taken.
        let (_sender, mut answers) =
            caller.link(vec![request(Content::Hello(hello(&ground, lane)))]).unwrap();
        match caller.next(&mut answers).unwrap().unwrap().content {
            Some(wire::link_response::Content::Hello(answer)) => {
                assert_eq!((answer.from_node, answer.to_node, answer.lane()), (1, 2, lane));
            }
            other => panic!("{other:?}"),
        }
    }
    // A node that is not recorded.
    let stranger = wire::Hello { from_node: 9, ..hello(&ground, wire::Lane::Control) };
    let (_sender, mut answers) = caller.link(vec![request(Content::Hello(stranger))]).unwrap();
    match caller.next(&mut answers).unwrap().unwrap().content {
        Some(wire::link_response::Content::Refusal(refusal)) => {
            assert_eq!(refusal.sentence, "node 9 is not a member that node 1 knows");
        }
        other => panic!("{other:?}"),
    }
}

/// Answers each Hello with one that the test chose.
struct Impostor(parking_lot::Mutex<wire::Hello>);

#[tonic::async_trait]
impl wire::peer_server::Peer for Impostor {
    type AskStream = ReceiverStream<Result<wire::AskResponse, Status>>;
    type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;
    type SnapshotStream = ReceiverStream<Result<wire::SnapshotResponse, Status>>;

    async fn ask(
        &self,
        _: Request<Streaming<wire::AskRequest>>,
    ) -> Result<Response<Self::AskStream>, Status> {
        Err(Status::unimplemented("an impostor"))
    }

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut incoming = request.into_inner();
        let (answers, stream) = tokio::sync::mpsc::channel(2);
        answers.send(Ok(challenge(&mut incoming).await)).await.unwrap();
        let content = Some(wire::link_response::Content::Hello(self.0.lock().clone()));
        answers.send(Ok(wire::LinkResponse { content })).await.unwrap();
        tokio::spawn(async move {
            while let Ok(Some(_)) = incoming.message().await {}
            drop(answers);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<wire::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("an impostor"))
    }
}

#[test]
fn a_wrong_hello_is_refused_by_the_calling_node() {
    let ground = Ground::new(2).form("test");
    let mut wrong = wrong_hellos(&ground, wire::Lane::Control);
    let third = wire::Hello { from_node: 3, ..hello(&ground, wire::Lane::Control) };
    wrong.push((third, "is node 3, not node 2"));
    for (hello, part) in wrong {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let theirs = listener();
        let address = theirs.local_addr().unwrap();
        runtime.spawn(async move {
            theirs.set_nonblocking(true).unwrap();
            let theirs = tokio::net::TcpListener::from_std(theirs).unwrap();
            let server = wire::peer_server::PeerServer::new(Impostor(hello.into()));
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(theirs);
            dial::peer_server().add_service(server).serve_with_incoming(incoming).await.unwrap();
        });
        let node = lone_node(&ground, &address.to_string());
        let view = node.wait_view(2, part, |view| view.detail.starts_with("refused: "));
        assert!(view.detail.contains(part), "{part}: {view:?}");
        assert!(!view.connected);
        assert_eq!(node.recorder.all(), [], "{part}");
    }
}

/// Two clusters that were pointed at each other: each side says the same thing about the other.
#[test]
fn nodes_of_two_clusters_refuse_each_other_on_both_sides() {
    let (one, other) = (Ground::new(2).form("one"), Ground::new(2).form("other"));
    let (first, second) = (listener(), listener());
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let first = one.start(0, first, &one.targets(&addresses), &|_| {});
    let second = other.start(1, second, &other.targets(&addresses), &|_| {});
    for (node, peer) in [(&first, 2), (&second, 1)] {
        let view = node.wait_view(peer, "a refusal", |view| view.detail.starts_with("refused: "));
        assert!(view.detail.contains("belongs to cluster"), "{view:?}");
        assert_eq!(node.recorder.all(), []);
    }
    assert!(first.view(2).detail.contains(&one.identities[0].cluster_id().unwrap().to_string()));
    assert!(first.view(2).detail.contains("(other)"), "the sentence is the called node's");
}

#[test]
fn a_node_that_is_not_ready_is_tried_again_soon() {
    let ground = Ground::new(2).form("test");
    let (mine, theirs) = (listener(), listener());
    let targets = ground.targets(&[mine.local_addr().unwrap(), theirs.local_addr().unwrap()]);
    let node = ground.start(0, mine, &targets, &|_| {});
    // Node 2 answers questions only: it has not formed yet.
    let address = theirs.local_addr().unwrap();
    let identity = std::sync::Arc::clone(&ground.identities[1]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    serve(&runtime, PeerService::new(identity, key()), theirs);
    node.wait_view(2, "the reason", |view| view.detail.contains("node 2 is not ready for peers"));
    runtime.shutdown_background();
    let _ready = ground.start(1, listen_again(address), &targets, &|_| {});
    node.recorder.wait_connected(NodeId(2));
}

#[test]
fn a_peer_that_breaks_the_rules_is_dropped_with_a_sentence() {
    let ground = Ground::new(3).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let honest = |from: u64, to: u64| {
        let message = Message::VoteReply { asked: Term(1), granted: true };
        convert::to_wire(envelope(1, NodeId(from), NodeId(to), message))
    };
    let mut empty = honest(2, 1);
    empty.message = None;
    let hello = || request(Content::Hello(hello(&ground, wire::Lane::Control)));
    let cases = [
        (vec![frame(1, vec![])], "a link opens with a Hello"),
        (vec![hello(), frame(2, vec![])], "frame 2 came after frame 0"),
        (vec![hello(), frame(1, vec![]), frame(1, vec![])], "frame 1 came after frame 1"),
        (vec![hello(), hello()], "a link carries frames after its Hello"),
        (vec![hello(), wire::LinkRequest { content: None }], "a link carries frames after its"),
        (vec![hello(), frame(1, vec![empty])], "no message of a kind known here"),
        (
            vec![hello(), frame(1, vec![honest(3, 1)])],
            "a message from node 3 to node 1 came on a link from node 2 to node 1",
        ),
        (vec![hello(), frame(1, vec![honest(2, 3)])], "a message from node 2 to node 3 came on"),
    ];
    for (requests, part) in cases {
        let ended = match caller.link(requests) {
            Ok((_sender, mut answers)) => loop {
                match caller.next(&mut answers) {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{part}: ended without a word"),
                    Err(status) => break status,
                }
            },
            Err(status) => status,
        };
        assert_eq!(ended.code(), Code::InvalidArgument, "{part}: {ended:?}");
        assert!(ended.message().contains(part), "{part}: {ended:?}");
    }
    assert_eq!(node.recorder.all(), [], "nothing of it was delivered");

    // A message above the decode limit ends the link too, and the node continues.
    let large =
        convert::to_wire(append_between(1, NodeId(2), NodeId(1), 1, PEER_MESSAGE_BYTES_MAX));
    let (_sender, mut answers) = caller.link(vec![hello(), frame(1, vec![large])]).unwrap();
    while let Ok(Some(_)) = caller.next(&mut answers) {}
    let (_sender, mut answers) = caller.link(vec![hello(), frame(1, vec![honest(2, 1)])]).unwrap();
    caller.next(&mut answers).unwrap().unwrap();
    node.recorder.wait("the honest message", |heard| (heard.len() == 1).then_some(()));
}

#[test]
fn a_link_without_a_hello_is_not_kept() {
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let status = caller.link(vec![]).map(|_| ()).unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "no Hello came"));
}

#[test]
fn frames_are_acknowledged_and_a_newer_link_ends_the_older() {
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let hello = || request(Content::Hello(hello(&ground, wire::Lane::Control)));
    let (_sender, mut older) = caller.link(vec![hello(), frame(1, vec![])]).unwrap();
    let next = |answers: &mut Answers| caller.next(answers).unwrap().and_then(|a| a.content);
    assert!(matches!(next(&mut older), Some(wire::link_response::Content::Hello(_))));
    let ack = Some(wire::link_response::Content::Ack(wire::Ack { number: 1 }));
    assert_eq!(next(&mut older), ack);
    let (_other, mut newer) = caller.link(vec![hello()]).unwrap();
    assert!(matches!(next(&mut newer), Some(wire::link_response::Content::Hello(_))));
    assert_eq!(next(&mut older), None);
    // Another lane is another link.
    let bulk = request(Content::Hello(super::support::hello(&ground, wire::Lane::Bulk)));
    let (_bulk, mut answers) = caller.link(vec![bulk]).unwrap();
    next(&mut answers);
    let still = async { tokio::time::timeout(Duration::from_millis(100), newer.message()).await };
    assert!(caller.runtime.block_on(still).is_err(), "the control link is not disturbed");
}
