//! Messages between honest nodes, and what happens when one of them dies or does not read.

use std::time::{Duration, Instant};

use quorate_proto::raft::v1 as wire;
use quorate_raft::{GroupId, Message, NodeId, ReplicaId, Term};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::support::*;
use crate::*;

#[test]
fn nodes_find_each_other_and_say_who_they_are() {
    let (_ground, nodes) = cluster(3);
    let hello = nodes[0].recorder.wait_connected(NodeId(2));
    assert_eq!(hello.node, NodeId(2));
    assert_eq!(hello.incarnation, nodes[1].identity.incarnation());
    assert_eq!(hello.peer_address, nodes[1].address.to_string());
    assert_eq!(hello.client_address, "client:1");
    assert_eq!((hello.boot_counter, hello.wire_versions), (1, (2, 2)));
    let view = nodes[0].view(2);
    assert!(view.connected && view.detail.is_empty() && view.silent_for.is_some(), "{view:?}");
    assert_eq!(nodes[0].transport.peers().len(), 2, "a node is not its own peer");
}

#[test]
fn epochs_travel_in_the_hello_of_later_connections() {
    let (ground, mut nodes) = cluster(2);
    nodes[0].transport.set_map_epoch(5);
    nodes[1].kill();
    nodes[0].recorder.wait_disconnected(NodeId(2));
    let targets = ground.targets(&[nodes[0].address, nodes[1].address]);
    let address = nodes[1].address;
    let again = ground.start(1, listen_again(address), &targets, &|_| {});
    let hello = again.recorder.wait_connected(NodeId(1));
    assert_eq!(hello.map_epoch, 5);
}

#[test]
fn bulk_arrives_whole_and_in_order_while_connected() {
    let (_ground, nodes) = cluster(2);
    let (from, to) = (&nodes[0], &nodes[1]);
    let last = 5_000;
    for turn in 0..last / 50 {
        let batch = (turn * 50 + 1..=turn * 50 + 50)
            .map(|index| (to.id(), append(1 + index % 7, from, to, index, 300)));
        from.transport.send_all(batch);
        if turn % 20 == 19 {
            // Far below the bound of the queue at any time.
            let wanted = append(1 + (turn * 50 + 50) % 7, from, to, turn * 50 + 50, 300);
            to.recorder.wait_for(&Heard::Delivered(from.id(), Lane::Bulk, wanted));
        }
    }
    let got: Vec<u64> = to
        .recorder
        .all()
        .into_iter()
        .filter_map(|heard| match heard {
            Heard::Delivered(_, Lane::Bulk, envelope) if envelope.group != GroupId(u64::MAX) => {
                match envelope.message {
                    Message::Append { entries, .. } => Some(entries[0].index.0),
                    other => panic!("{other}"),
                }
            }
            _ => None,
        })
        .collect();
    assert_eq!(got, (1..=last).collect::<Vec<_>>());
    // The probes of the bulk lane before it was open are the only drops.
    let dropped =
        |heard: &&Heard| matches!(heard, Heard::Dropped(group, _) if *group != GroupId(u64::MAX));
    assert_eq!(from.recorder.all().iter().filter(dropped).count(), 0);
}

#[test]
fn a_node_without_room_reads_no_bulk_and_everything_else() {
    let (_ground, nodes) = cluster(2);
    let (from, to) = (&nodes[0], &nodes[1]);
    let append = |index| append(1, from, to, index, 10);
    let has = |index| Heard::Delivered(from.id(), Lane::Bulk, append(index));
    to.recorder.full.send_replace(true);
    // The reader asked for room before there was none, so one frame may still be read.
    from.transport.send(to.id(), append(1));
    to.recorder.wait_for(&has(1));
    for round in 1..=50 {
        from.transport.send(to.id(), append(1 + round));
        from.transport.send(to.id(), heartbeat(2, from, to, round));
        let wanted = heartbeat(2, from, to, round);
        to.recorder.wait_for(&Heard::Delivered(from.id(), Lane::Control, wanted));
    }
    assert!(!to.recorder.all().contains(&has(2)), "read although there was no room");
    to.recorder.full.send_replace(false);
    to.recorder.wait_for(&has(51));
    assert!(to.recorder.all().contains(&has(2)));
}

#[test]
fn the_latest_heartbeat_of_every_group_arrives() {
    let (_ground, nodes) = cluster(2);
    let (from, to) = (&nodes[0], &nodes[1]);
    let (groups, rounds) = (64, 200);
    for round in 1..=rounds {
        let batch = (1..=groups).map(|group| (to.id(), heartbeat(group, from, to, round)));
        from.transport.send_all(batch);
    }
    for group in 1..=groups {
        let wanted = heartbeat(group, from, to, rounds);
        to.recorder.wait_for(&Heard::Delivered(from.id(), Lane::Control, wanted));
    }
    let view = from.view(2);
    assert!(view.frames_sent <= view.messages_sent, "{view:?}");
    // The heartbeats of one turn go out together: far fewer frames than messages.
    assert!(view.frames_sent * 8 <= view.messages_sent.max(8), "{view:?}");
}

#[test]
fn an_append_to_whom_nobody_is_connected_is_reported() {
    let ground = Ground::new(2).form("test");
    let listener = listener();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let targets = ground.targets(&[listener.local_addr().unwrap(), nobody]);
    let node = ground.start(0, listener, &targets, &|_| {});
    let message = append_between(4, NodeId(1), NodeId(2), 1, 10);
    node.transport.send_all([(NodeId(2), message.clone()), (NodeId(2), message.clone())]);
    node.transport.send(NodeId(77), message);
    let dropped = Heard::Dropped(GroupId(4), ReplicaId(20));
    // Once for the turn, not for each message; and once for a node that is not a peer.
    assert_eq!(node.recorder.all(), [dropped.clone(), dropped]);
    let view = node.wait_view(2, "the reason", |view| view.detail.contains("cannot reach"));
    assert!(view.detail.contains("refused"), "{view:?}");
    assert!(!view.connected && view.silent_for.is_none(), "{view:?}");
}

#[test]
fn a_killed_peer_is_noticed_as_refused_and_found_again_on_its_port() {
    let (ground, mut nodes) = cluster(2);
    let address = nodes[1].address;
    std::thread::sleep(Duration::from_millis(1_100));
    nodes[1].kill();
    nodes[0].recorder.wait_disconnected(NodeId(2));
    nodes[0].recorder.wait_for(&Heard::Refused(NodeId(2)));
    nodes[0].wait_view(2, "the reason", |view| !view.connected && !view.detail.is_empty());

    let before = nodes[0].recorder.all();
    let refusals = before.iter().filter(|heard| matches!(heard, Heard::Refused(_))).count();
    assert_eq!(refusals, 1, "one death is reported once");
    nodes[0].recorder.clear();
    let targets = ground.targets(&[nodes[0].address, address]);
    let again = ground.start(1, listen_again(address), &targets, &|_| {});
    nodes[0].recorder.wait_connected(NodeId(2));
    again.recorder.wait_connected(NodeId(1));
    wait_bulk(&nodes[0], &again);
    wait_bulk(&again, &nodes[0]);
}

/// Node 2 ends, and comes back at another address; node 1 hears of that by `tell`, and finds it
/// there.
fn move_a_peer(tell: impl FnOnce(&Transport, &PeerTargets)) {
    let (ground, mut nodes) = cluster(2);
    nodes[1].kill();
    nodes[0].recorder.wait_disconnected(NodeId(2));
    nodes[0].recorder.clear();
    let listener = listener();
    let targets = ground.targets(&[nodes[0].address, listener.local_addr().unwrap()]);
    tell(&nodes[0].transport, &targets);
    let moved = ground.start(1, listener, &targets, &|_| {});
    nodes[0].recorder.wait_connected(NodeId(2));
    wait_bulk(&nodes[0], &moved);
}

#[test]
fn a_peer_with_a_new_address_is_found_there() {
    move_a_peer(|transport, targets| transport.set_peers(targets));
}

#[test]
fn a_peer_that_moved_is_found_where_it_says_it_is() {
    move_a_peer(|_, _| {});
}

#[test]
fn a_removed_peer_is_let_go() {
    let (ground, nodes) = cluster(3);
    let all = ground.targets(&[nodes[0].address, nodes[1].address, nodes[2].address]);
    let without: PeerTargets = all.into_iter().filter(|(node, _)| *node != NodeId(2)).collect();
    nodes[0].recorder.clear();
    nodes[0].transport.set_peers(&without);
    assert_eq!(nodes[0].transport.peers().len(), 1);
    // It is refused when it comes again, and the other one is not disturbed.
    let view = nodes[1].wait_view(1, "a refusal", |view| view.detail.contains("refused"));
    assert!(view.detail.contains("node 2 is not a member that node 1 knows"), "{view:?}");
    wait_bulk(&nodes[0], &nodes[2]);
    assert!(nodes[0].view(3).connected);
}

/// Answers every Hello as it should and then reads nothing.
struct Deaf {
    hello: wire::Hello,
    held: parking_lot::Mutex<Vec<Streaming<wire::LinkRequest>>>,
}

#[tonic::async_trait]
impl wire::peer_server::Peer for Deaf {
    type AskStream = ReceiverStream<Result<wire::AskResponse, Status>>;
    type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;
    type SnapshotStream = ReceiverStream<Result<wire::SnapshotResponse, Status>>;

    async fn ask(
        &self,
        _: Request<Streaming<wire::AskRequest>>,
    ) -> Result<Response<Self::AskStream>, Status> {
        Err(Status::unimplemented("deaf"))
    }

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut incoming = request.into_inner();
        let (answers, stream) = tokio::sync::mpsc::channel(2);
        answers.send(Ok(challenge(&mut incoming).await)).await.unwrap();
        self.held.lock().push(incoming);
        let content = Some(wire::link_response::Content::Hello(self.hello.clone()));
        answers.send(Ok(wire::LinkResponse { content })).await.unwrap();
        tokio::spawn(async move { answers.closed().await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<wire::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("deaf"))
    }
}

/// A peer that takes the connection and does not read costs its outbox and what HTTP/2 lets out,
/// and is cut off in the end.
#[test]
fn a_peer_that_does_not_read_is_bounded_and_cut_off() {
    let ground = Ground::new(2).form("test");
    let (mine, theirs) = (listener(), listener());
    let addresses = [mine.local_addr().unwrap(), theirs.local_addr().unwrap()];
    let targets = ground.targets(&addresses);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let deaf = Deaf { hello: hello(&ground, wire::Lane::Bulk), held: Default::default() };
    runtime.spawn(async move {
        theirs.set_nonblocking(true).unwrap();
        let theirs = tokio::net::TcpListener::from_std(theirs).unwrap();
        let server = wire::peer_server::PeerServer::new(deaf);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(theirs);
        dial::peer_server().add_service(server).serve_with_incoming(incoming).await.unwrap();
    });
    let queue_bytes = 2 * 1024 * 1024;
    let node = ground.start(0, mine, &targets, &|config| {
        config.bulk_queue_bytes = queue_bytes;
        config.silence_max = Duration::from_millis(1_500);
    });
    node.recorder.wait_connected(NodeId(2));
    // Small ones may fill the whole queue.
    let chunk = 32 * 1024;
    let message = append_between(4, NodeId(1), NodeId(2), 1, chunk);
    // Offer far more than fits, until nothing moves any more: the window is used up and the queue
    // full.
    let mut moved = (Instant::now(), 0);
    let stuck = node.wait_view(2, "a queue that stands still", |view| {
        assert!(view.bulk_queue_bytes <= queue_bytes, "{view:?}");
        (0..50).for_each(|_| node.transport.send(NodeId(2), message.clone()));
        if view.messages_sent != moved.1 {
            moved = (Instant::now(), view.messages_sent);
        }
        view.messages_sent > 0 && moved.0.elapsed() > Duration::from_millis(300)
    });
    assert!(stuck.bulk_queue_bytes > queue_bytes - 2 * chunk, "{stuck:?}");
    assert!(stuck.bulk_dropped > 0, "{stuck:?}");
    // What left the queue is bounded: the peer's window, one frame, one message.
    assert!(stuck.messages_sent * chunk as u64 <= 4 * 1024 * 1024, "{stuck:?}");
    node.recorder.clear();

    // The bulk link is cut for its silence, which empties the queue and is reported.
    node.wait_view(2, "an empty queue", |view| view.bulk_queue_bytes == 0);
    node.recorder.wait_for(&Heard::Dropped(GroupId(4), ReplicaId(20)));
    // And the control link, when it carried something.
    let vote = Message::VoteReply { asked: Term(1), granted: true };
    node.transport.send(NodeId(2), envelope(4, NodeId(1), NodeId(2), vote));
    let why = node.recorder.wait_disconnected(NodeId(2));
    assert_eq!(why, "it has read nothing for 1.5s");
}
