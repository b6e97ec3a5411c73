//! Who does not know the secret has no effect, and learns nothing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::raft::v1 as wire;
use quorate_proto::secret::ClusterSecret;
use quorate_raft::{LogId, Message, NodeId, Term};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use wire::link_request::Content;
use wire::link_response;
use wire::peer_client::PeerClient;

use super::caller::*;
use super::support::*;
use crate::proof::Claim;
use crate::*;

fn other_key() -> ProofKey {
    ProofKey::of(&ClusterSecret::from_bytes([8; 32]))
}

/// A vote for node 2 at a term near the end of all terms.
fn forged_vote() -> wire::Envelope {
    let message = Message::Vote { last: LogId::default(), transfer: true };
    let vote =
        Envelope { term: Term(i64::MAX as u64), ..envelope(1, NodeId(2), NodeId(1), message) };
    convert::to_wire(vote)
}

/// Says this Hello, answers the challenge with the given proof, and then sends a forged vote.
/// Returns what comes after the challenge.
fn attack(
    caller: &Caller,
    hello: wire::Hello,
    proof: impl FnOnce(&wire::Challenge) -> Option<wire::Proof>,
) -> wire::Refusal {
    let (sender, mut answers) = caller.link_unproven(vec![request(Content::Hello(hello))]).unwrap();
    let next = |answers: &mut Answers| caller.next(answers).unwrap().and_then(|a| a.content);
    let challenge = match next(&mut answers) {
        Some(link_response::Content::Challenge(challenge)) => challenge,
        Some(link_response::Content::Refusal(refusal)) => return refusal,
        other => panic!("{other:?}"),
    };
    if let Some(proof) = proof(&challenge) {
        sender.try_send(request(Content::Proof(proof))).unwrap();
    }
    let _ = sender.try_send(frame(1, vec![forged_vote()]));
    match next(&mut answers) {
        Some(link_response::Content::Refusal(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stranger_displaces_nothing_and_is_not_remembered() {
    let (ground, nodes) = cluster(2);
    let remembered = ground.remembered(0, 1);
    nodes.iter().for_each(|node| node.recorder.clear());
    let caller = Caller::new(&nodes[0]);
    let forged = |change: fn(&mut wire::Hello)| {
        let mut hello = hello(&ground, wire::Lane::Control);
        // Ahead of the true node 2 in everything, and somewhere else.
        (hello.boot_counter, hello.log_sequence) = (1_000, 1_000_000);
        hello.peer_address = "127.0.0.1:9".to_owned();
        change(&mut hello);
        hello
    };
    let lacking = "has not proved that it knows the secret";
    for _ in 0..20 {
        // No proof, an empty one, its own, and that of another secret.
        let silent = attack(&caller, forged(|_| {}), |_| None);
        let empty = attack(&caller, forged(|_| {}), |_| Some(wire::Proof::default()));
        let back =
            |challenge: &wire::Challenge| Some(wire::Proof { proof: challenge.proof.clone() });
        let reflected = attack(&caller, forged(|_| {}), back);
        let hello = forged(|_| {});
        let claim = Claim::of_hello(&hello);
        let guessed = attack(&caller, hello, |challenge| {
            let (fake, _) = Claim::of_hello(&forged(|_| {})).challenge(&other_key());
            assert!(claim.answer(&other_key(), challenge).is_err());
            Some(wire::Proof { proof: fake.proof })
        });
        for refusal in [silent, empty, reflected, guessed] {
            assert!(refusal.sentence.contains(lacking), "{}", refusal.sentence);
        }
    }
    // The first version of the handshake.
    let old = attack(
        &caller,
        forged(|h| (h.wire_version_min, h.wire_version_max, h.nonce) = (1, 1, Bytes::new())),
        |_| None,
    );
    assert!(old.sentence.contains("speaks wire versions 1 to 1"), "{}", old.sentence);
    let bare = attack(&caller, forged(|h| h.nonce = Bytes::from_static(b"short")), |_| None);
    assert!(bare.sentence.contains("has no nonce"), "{}", bare.sentence);

    // The links of the true node 2 stand, both lanes carry, and nothing else was delivered.
    wait_bulk(&nodes[1], &nodes[0]);
    let honest = heartbeat(1, &nodes[1], &nodes[0], 5);
    nodes[1].transport.send(NodeId(1), honest.clone());
    nodes[0].recorder.wait_for(&Heard::Delivered(NodeId(2), Lane::Control, honest));
    for heard in nodes[0].recorder.all() {
        match heard {
            Heard::Delivered(NodeId(2), _, envelope) => assert_eq!(envelope.term, Term(3)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(nodes[1].recorder.all().iter().find(|h| matches!(h, Heard::Disconnected(..))), None);
    assert_eq!(ground.remembered(0, 1), remembered);
    assert_eq!(nodes[0].view(2).address, nodes[1].address.to_string());
    assert_eq!(nodes[0].service.unproven(), 82);
}

/// All that the true node 2 has ever sent, sent again.
#[test]
fn a_recorded_stream_says_nothing_when_it_is_played_again() {
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let honest = hello(&ground, wire::Lane::Control);
    let deadline = Instant::now() + TIMEOUT;
    // The true one, whose proof is recorded.
    let (proof, _sender, mut answers) = loop {
        let hello = vec![request(Content::Hello(honest.clone()))];
        let (sender, mut answers) = caller.link_unproven(hello).unwrap();
        let first = caller.next(&mut answers).unwrap().and_then(|a| a.content);
        let Some(link_response::Content::Challenge(challenge)) = first else {
            panic!("{first:?}");
        };
        let proof = Claim::of_hello(&honest).answer(&key(), &challenge).unwrap();
        sender.try_send(request(Content::Proof(proof.clone()))).unwrap();
        match caller.next(&mut answers).unwrap().and_then(|a| a.content) {
            Some(link_response::Content::Hello(_)) => break (proof, sender, answers),
            // Whether its last process still runs is being looked at.
            Some(link_response::Content::Refusal(_)) => assert!(Instant::now() < deadline),
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    for _ in 0..5 {
        let refusal = attack(&caller, honest.clone(), |_| Some(proof.clone()));
        assert!(refusal.sentence.contains("has not proved"), "{}", refusal.sentence);
    }
    assert_eq!(node.recorder.all(), [], "nothing of it was delivered");
    // The true link was not cut by any of them.
    let quiet = async { tokio::time::timeout(Duration::from_millis(200), answers.message()).await };
    assert!(caller.runtime.block_on(quiet).is_err(), "the link of the true node has ended");
}

/// What a stranger gets of a question, sentence and all.
fn ask_unproven(caller: &Caller, request: wire::AskRequest) -> (Vec<wire::AskResponse>, Status) {
    caller.runtime.block_on(async {
        let channel = dial::connect(caller.address()).await.unwrap();
        let (questions, stream) = mpsc::channel(2);
        questions.try_send(request).unwrap();
        let mut answers =
            PeerClient::new(channel).ask(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let mut all = Vec::new();
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    all.push(answer);
                    let proof = Some(wire::Proof { proof: Bytes::from_static(&[1; 32]) });
                    let second = wire::AskRequest { proof, ..Default::default() };
                    let _ = questions.try_send(second);
                }
                Ok(None) => panic!("ended without a word: {all:?}"),
                Err(status) => return (all, status),
            }
        }
    })
}

#[test]
fn a_question_is_answered_to_who_knows_the_secret_alone() {
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let question = || wire::AskRequest { from_node: 2, to_node: 1, ..Default::default() };
    let ask = |key: &ProofKey| caller.runtime.block_on(ask(caller.address(), question(), key));
    assert_eq!(ask(&key()).map(|answer| answer.node_id), Ok(1));
    let why = ask(&other_key()).unwrap_err();
    assert!(why.contains("does not know the secret"), "{why}");

    let (said, status) = ask_unproven(&caller, question());
    assert_eq!((said, status.code()), (vec![], Code::FailedPrecondition));
    assert!(status.message().contains("wire version 1"), "{status:?}");
    let with_nonce = wire::AskRequest { nonce: proof::nonce(), ..question() };
    let (said, status) = ask_unproven(&caller, with_nonce);
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let [first] = &said[..] else { panic!("{said:?}") };
    let bare = wire::AskResponse { challenge: first.challenge.clone(), ..Default::default() };
    assert_eq!(*first, bare, "the challenge says more than it must");
}

/// The metadata of a call from this node to that one.
fn passed_on(from: &Node, to: u64) -> Option<MetadataMap> {
    let mut metadata = MetadataMap::new();
    from.transport.prove_call(NodeId(to), &mut metadata).then_some(metadata)
}

/// The codes with which these nodes answer the call.
fn answers(call: &MetadataMap, nodes: &[Node]) -> Vec<Option<Code>> {
    let check = |node: &Node| node.service.check_call(call).err().map(|status| status.code());
    nodes.iter().map(check).collect()
}

#[test]
fn a_call_that_is_passed_on_is_taken_by_the_process_that_it_is_for() {
    let (ground, mut nodes) = cluster(3);
    let refused = Some(Code::Unauthenticated);
    let call = passed_on(&nodes[0], 2).unwrap();
    for _ in 0..2 {
        assert_eq!(answers(&call, &nodes), [refused, None, refused]);
        assert_eq!(answers(&MetadataMap::new(), &nodes), [refused; 3]);
    }
    assert!(nodes.iter().map(|node| node.service.unproven()).eq([4, 2, 4]));
    assert_eq!(passed_on(&nodes[0], 2).unwrap().get(CALL_PROOF), call.get(CALL_PROOF));
    // To the next process of node 2 it says nothing; the node that called learns of that one.
    let (own, address) = (passed_on(&nodes[1], 3).unwrap(), nodes[1].address);
    nodes[0].recorder.clear();
    nodes[1].kill();
    nodes[0].recorder.wait_disconnected(NodeId(2));
    let targets = ground.targets(&[nodes[0].address, address, nodes[2].address]);
    nodes[1] = ground.start(1, listen_again(address), &targets, &|_| {});
    nodes[0].recorder.wait_connected(NodeId(2));
    assert_eq!(answers(&call, &nodes), [refused; 3]);
    let call = passed_on(&nodes[0], 2).unwrap();
    assert_eq!(answers(&call, &nodes), [refused, None, refused]);
    assert_eq!(answers(&own, &nodes), [refused, refused, None]);
    // A node that was never connected has no proof, and one that starts takes no call.
    assert!(passed_on(&nodes[0], 9).is_none());
    let alone = Ground::new(2).form("test");
    let alone = lone_node(&alone, "127.0.0.1:1");
    assert!(passed_on(&alone, 2).is_none());
    let starting = PeerService::new(ground.identities[1].clone(), key());
    let status = starting.check_call(&call).unwrap_err();
    assert!(status.message().contains("node 2 is starting"), "{status:?}");
    assert_eq!((status.code(), starting.unproven()), (Code::Unauthenticated, 0));
}

/// Each says it of the other, and nothing is delivered in either direction.
#[test]
fn nodes_with_two_secrets_refuse_each_other_on_both_sides() {
    let ground = Ground::new(2).form("test");
    let (first, second) = (listener(), listener());
    let targets = ground.targets(&[first.local_addr().unwrap(), second.local_addr().unwrap()]);
    let first = ground.start(0, first, &targets, &|_| {});
    let place = ground.copy(1);
    let second = ground.start_with(&other_key(), place, 0, second, &targets, &|_| {});
    for (node, peer) in [(&first, 2), (&second, 1)] {
        let view = node.wait_view(peer, "a refusal", |view| view.detail.starts_with("refused: "));
        assert!(
            view.detail.contains("does not know the secret of this node's cluster"),
            "{view:?}"
        );
    }
    let deadline = Instant::now() + TIMEOUT;
    while first.service.unproven() == 0 || second.service.unproven() == 0 {
        assert!(Instant::now() < deadline, "the called node does not notice");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((first.recorder.all(), second.recorder.all()), (vec![], vec![]));
}

/// A stranger where a peer should be says that this node's disk went back, which ends a node that
/// believes it, or that a snapshot is durable.
#[test]
fn a_stranger_in_the_place_of_a_peer_is_not_believed() {
    struct Stranger;

    #[tonic::async_trait]
    impl wire::peer_server::Peer for Stranger {
        type AskStream = ReceiverStream<Result<wire::AskResponse, Status>>;
        type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;
        type SnapshotStream = ReceiverStream<Result<wire::SnapshotResponse, Status>>;

        async fn ask(
            &self,
            _: tonic::Request<tonic::Streaming<wire::AskRequest>>,
        ) -> Result<tonic::Response<Self::AskStream>, Status> {
            let (answers, stream) = mpsc::channel(1);
            answers.try_send(Ok(wire::AskResponse { node_id: 2, ..Default::default() })).unwrap();
            Ok(tonic::Response::new(ReceiverStream::new(stream)))
        }

        async fn link(
            &self,
            _: tonic::Request<tonic::Streaming<wire::LinkRequest>>,
        ) -> Result<tonic::Response<Self::LinkStream>, Status> {
            let (answers, stream) = mpsc::channel(1);
            let refusal = wire::Refusal {
                sentence: "the disk of node 1 went back in time".to_owned(),
                from_node: 2,
                reason: wire::RefusalReason::WentBack.into(),
                start_id: 5,
            };
            let content = Some(link_response::Content::Refusal(refusal));
            answers.try_send(Ok(wire::LinkResponse { content })).unwrap();
            Ok(tonic::Response::new(ReceiverStream::new(stream)))
        }

        async fn snapshot(
            &self,
            _: tonic::Request<tonic::Streaming<wire::SnapshotRequest>>,
        ) -> Result<tonic::Response<Self::SnapshotStream>, Status> {
            let (answers, stream) = mpsc::channel(1);
            answers.try_send(Ok(wire::SnapshotResponse::default())).unwrap();
            Ok(tonic::Response::new(ReceiverStream::new(stream)))
        }
    }

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let theirs = listener();
    let address = theirs.local_addr().unwrap().to_string();
    runtime.spawn(async move {
        theirs.set_nonblocking(true).unwrap();
        let theirs = tokio::net::TcpListener::from_std(theirs).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(theirs);
        let server = wire::peer_server::PeerServer::new(Stranger);
        dial::peer_server().add_service(server).serve_with_incoming(incoming).await.unwrap();
    });
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, &address);
    node.wait_view(2, "the words", |view| view.detail.contains("went back in time"));
    assert_eq!(node.recorder.all(), [], "the stranger was believed");
    let question = wire::AskRequest::default();
    let answer = runtime.block_on(ask(&address, question, &key()));
    assert_eq!(answer, Err("it did not answer the claim".to_owned()));

    struct Rows(bool);
    impl SnapshotSource for Rows {
        fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
            Ok((!std::mem::replace(&mut self.0, true)).then(|| Bytes::from_static(b"rows")))
        }
    }
    let sent = node.runtime().block_on(async {
        let turn = node.transport.snapshot_turn(NodeId(2)).await?;
        let header = header(5, NodeId(1), NodeId(2));
        tokio::time::timeout(TIMEOUT, turn.send(&header, Rows(false))).await.unwrap()
    });
    assert!(matches!(sent, Err(SnapshotError::Refused(_))), "{sent:?}");
}
