//! Strangers on the listener of the peers: without the secret of the cluster they learn nothing and
//! change nothing, and a node that lacks it does not take part.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use futures::StreamExt;
use quorate_proto::raft::v1::peer_client::PeerClient;
use quorate_proto::raft::v1::{
    Append, AskRequest, AskResponse, Envelope, Frame, Hello, Lane, LinkRequest, Proof, Replica,
    SnapshotRequest, SnapshotStart, Vote, envelope, link_request, link_response, snapshot_request,
};
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{GetMapRequest, GetRequest, PutRequest, cluster_client::ClusterClient};
use quorate_tests::cluster::{TIMEOUT, make_secret};
use quorate_tests::{Cluster, ClusterOptions, Exit, binaries, until};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const SHARDS: u32 = 2;

fn options() -> ClusterOptions {
    ClusterOptions { shards: SHARDS, ..ClusterOptions::default() }
}

async fn peer(cluster: &Cluster, id: u64) -> PeerClient<Channel> {
    let place = format!("http://{}", cluster.peer_address(id));
    PeerClient::connect(place).await.expect("the listener of the peers takes connections")
}

/// The highest term of each shard.
async fn terms(cluster: &Cluster) -> BTreeMap<u64, u64> {
    let statuses = cluster.statuses().await;
    let mut terms = BTreeMap::new();
    for replica in statuses.values().flat_map(|status| &status.replicas) {
        let newest: &mut u64 = terms.entry(replica.shard).or_default();
        *newest = replica.term.max(*newest);
    }
    terms
}

fn link(content: link_request::Content) -> LinkRequest {
    LinkRequest { content: Some(content) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_every_number_of_a_node_changes_nothing() {
    let mut cluster = Cluster::start(options()).await;
    let client = cluster.client();
    client.put("kept", "value").await.expect("a put");
    cluster.wait_equal().await;
    // Everything that a client may learn: the cluster, and the nodes with their incarnations.
    let mut status = ClusterClient::new(cluster.channel(1));
    let map = status.get_map(GetMapRequest::default()).await.expect("the map").into_inner();
    let map = map.map.expect("the map is there");
    let cluster_id = cluster.status(1).await.expect("it answers").cluster_id;
    let incarnation = |id: u64| {
        map.nodes.iter().find(|node| node.id == id).expect("a node of the map").incarnation.clone()
    };
    let hello = |lane: Lane| Hello {
        cluster_id: cluster_id.clone(),
        from_node: 2,
        from_incarnation: incarnation(2),
        to_node: 1,
        to_incarnation: incarnation(1),
        wire_version_min: 2,
        wire_version_max: 2,
        feature_version: 1,
        lane: lane.into(),
        peer_address: "127.0.0.1:9".to_owned(),
        client_address: "127.0.0.1:9".to_owned(),
        boot_counter: 1 << 40,
        start_id: 77,
        log_sequence: 1 << 40,
        nonce: vec![1; 32].into(),
        ..Hello::default()
    };
    let before = terms(&cluster).await;
    let counted = cluster.metric(1, "quorate_peer_calls_unproven_total");

    // A question, as the first version asked it, and with a proof that is none.
    let ask = |proof: bool| {
        let first = AskRequest { from_node: 2, to_node: 1, ..AskRequest::default() };
        let nonce = if proof { vec![1; 32].into() } else { first.nonce.clone() };
        let first = AskRequest { nonce, ..first };
        let second = Proof { proof: vec![2; 32].into() };
        let second = AskRequest { proof: Some(second), ..AskRequest::default() };
        futures::stream::iter([first].into_iter().chain(proof.then_some(second)))
    };
    let mut stranger = peer(&cluster, 1).await;
    for (question, code) in
        [(ask(false), Code::FailedPrecondition), (ask(true), Code::Unauthenticated)]
    {
        let mut answers = stranger.ask(question).await.expect("a stream").into_inner();
        let refused = loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    let known =
                        AskResponse { challenge: answer.challenge.clone(), ..Default::default() };
                    assert_eq!(answer, known, "a stranger learns something");
                }
                Ok(None) => panic!("it ended without a word"),
                Err(status) => break status,
            }
        };
        assert_eq!(refused.code(), code, "{refused:?}");
    }

    // Forged votes and appends in a term near the last one, on both lanes, with every number right.
    let forged = |message: envelope::Message| {
        let replicas = map.shards.iter().find(|shard| shard.id == 1).map(|shard| &shard.replicas);
        let replicas = replicas.expect("shard 1 is in the map");
        let replica = |node: u64| {
            let found = replicas.iter().find(|replica| replica.node_id == node);
            Some(Replica { id: found.map_or(node, |replica| replica.replica_id), node })
        };
        let (from, to) = (replica(2), replica(1));
        let message = Some(message);
        Envelope { group: 1, from, to, term: i64::MAX as u64, message }
    };
    let vote = envelope::Message::Vote(Vote { transfer: true, ..Vote::default() });
    let append = envelope::Message::Append(Append::default());
    for lane in [Lane::Control, Lane::Bulk] {
        for proof in [None, Some(Proof { proof: vec![2; 32].into() }), Some(Proof::default())] {
            let messages = vec![forged(vote.clone()), forged(append.clone())];
            let frame = Frame { number: 1, messages, ..Frame::default() };
            let proof = proof.map(|proof| link(link_request::Content::Proof(proof)));
            let all = [link(link_request::Content::Hello(hello(lane)))]
                .into_iter()
                .chain(proof)
                .chain([link(link_request::Content::Frame(frame))]);
            let sent = futures::stream::iter(all.collect::<Vec<_>>());
            let mut answers = stranger.link(sent).await.expect("a stream").into_inner();
            let mut all = Vec::new();
            while let Ok(Some(answer)) = answers.message().await {
                all.extend(answer.content);
            }
            let [link_response::Content::Challenge(_), link_response::Content::Refusal(refusal)] =
                &all[..]
            else {
                panic!("{all:?}");
            };
            assert!(refusal.sentence.contains("has not proved"), "{}", refusal.sentence);
        }
    }
    let start =
        SnapshotStart { hello: Some(hello(Lane::Snapshot)), group: 1, ..Default::default() };
    let start = SnapshotRequest { content: Some(snapshot_request::Content::Start(start)) };
    let sent = futures::stream::iter([start]);
    let mut answers = stranger.snapshot(sent).await.expect("a stream").into_inner();
    let mut last = String::new();
    while let Ok(Some(answer)) = answers.message().await {
        last = answer.refusal;
    }
    assert!(last.contains("has not proved"), "{last}");

    // Leaders, terms and values stay, and the true node 2 is connected as before.
    assert_eq!(terms(&cluster).await, before);
    assert_eq!(client.get("kept").await.expect("a read").value, "value");
    let status = cluster.status(1).await.expect("it answers");
    let known = status.peers.iter().find(|peer| peer.node_id == 2).expect("a peer");
    assert!(known.connected && known.address == cluster.peer_address(2), "{known:?}");
    assert!(!cluster.log(1).contains("peer: dropped"), "a link of a true node was cut");
    until("each is counted", TIMEOUT, || {
        (cluster.metric(1, "quorate_peer_calls_unproven_total") >= counted + 9.0).then_some(())
    });
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id), Exit::Code(0));
    }
}

/// The calls of clients where nodes pass them on: a caller without a proof is not served there.
#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_proof_are_refused_where_nodes_pass_calls_on() {
    let cluster = Cluster::start(options()).await;
    cluster.client().put("kept", "value").await.expect("a put");
    let counted = cluster.metric(1, "quorate_peer_calls_unproven_total");
    let place = Endpoint::from_shared(format!("http://{}", cluster.peer_address(1)));
    let channel = place.expect("an address is an endpoint").connect().await.expect("it listens");
    let (mut kv, mut status) = (KvClient::new(channel.clone()), ClusterClient::new(channel));
    let proofs = [None, Some(""), Some("2 0000000000000007 00"), Some("2")];
    let forged = format!("2 {:016x} {}", 7, "0".repeat(64));
    for proof in proofs.into_iter().chain([Some(forged.as_str())]) {
        for hops in [None, Some("1")] {
            fn call<T>(message: T, headers: [(&'static str, Option<&str>); 2]) -> Request<T> {
                let mut call = Request::new(message);
                for (name, value) in headers {
                    let value = value.map(|value| value.parse().expect("it is ASCII"));
                    value.and_then(|value| call.metadata_mut().insert(name, value));
                }
                call
            }
            let headers = [("quorate-peer-proof", proof), ("quorate-hops", hops)];
            let get = GetRequest { key: "kept".into(), ..GetRequest::default() };
            let put = PutRequest { key: "kept".into(), ..PutRequest::default() };
            let refused = [
                kv.get(call(get, headers)).await.map(drop),
                kv.put(call(put, headers)).await.map(drop),
                status.get_map(call(GetMapRequest::default(), headers)).await.map(drop),
            ];
            for refused in refused {
                let refused = refused.expect_err("a stranger was heard");
                assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
                let sentence = refused.message();
                assert!(sentence.contains("secret") || sentence.contains("ended"), "{sentence}");
            }
        }
    }
    until("each is counted", TIMEOUT, || {
        (cluster.metric(1, "quorate_peer_calls_unproven_total") >= counted + 30.0).then_some(())
    });
    // The calls of nodes are taken: each node answers for every shard.
    for id in cluster.ids() {
        let mut kv = KvClient::new(cluster.channel(id));
        let get = GetRequest { key: "kept".into(), ..GetRequest::default() };
        let got = kv.get(get).await.expect("it is passed on, or read here").into_inner();
        assert_eq!(&got.value[..], b"value");
        let put = PutRequest { key: "kept".into(), value: "value".into(), ..PutRequest::default() };
        kv.put(put).await.expect("it is passed on to the leader");
    }
    let passed_on = |id| cluster.metric(id, "quorate_forwarded_total");
    let passed_on: f64 = cluster.ids().into_iter().map(passed_on).sum();
    assert!(passed_on >= 2.0, "two of three nodes do not lead the shard");
}

/// More connections than there are places for those of nodes, which is 192.
const CROWD: usize = 200;

/// A crowd that connects, begins a question and never proves anything.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_take_no_places_of_nodes() {
    let mut cluster = Cluster::start(options()).await;
    cluster.kill(3);
    let mut crowd = Vec::new();
    for id in [1, 2] {
        for _ in 0..CROWD {
            let mut stranger = peer(&cluster, id).await;
            let question = AskRequest { nonce: vec![1; 32].into(), ..AskRequest::default() };
            let question = futures::stream::iter([question]).chain(futures::stream::pending());
            let mut answers = stranger.ask(question).await.expect("a stream").into_inner();
            let challenge = answers.message().await.expect("an answer").expect("a challenge");
            assert!(challenge.challenge.is_some(), "{challenge:?}");
            crowd.push((stranger, answers));
        }
    }
    cluster.start_node(3);
    cluster.wait_ready().await;
    for id in [1, 2] {
        let status = cluster.status(id).await.expect("it answers");
        assert!(status.peers.iter().all(|peer| peer.connected), "{:?}", status.peers);
    }
    drop(crowd);
}

/// What the listener for clients has of the contract between nodes: nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_not_served_where_clients_are() {
    let cluster = Cluster::start(options()).await;
    let mut wrong = PeerClient::new(cluster.channel(1));
    let refused = wrong.ask(futures::stream::iter([AskRequest::default()])).await;
    assert_eq!(refused.expect_err("no service of peers").code(), Code::Unimplemented);
    let refused = wrong.link(futures::stream::iter([LinkRequest::default()])).await;
    assert_eq!(refused.expect_err("no service of peers").code(), Code::Unimplemented);
    // The calls of clients are served there.
    let mut kv = KvClient::new(cluster.channel(1));
    kv.get(GetRequest { key: "k".into(), ..GetRequest::default() }).await.expect("a read");
}

fn kvnode(arguments: &[&str]) -> Output {
    Command::new(binaries::path("kvnode")).args(arguments).output().expect("kvnode starts")
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_secret_does_not_take_part_and_both_sides_say_so() {
    let mut cluster = Cluster::prepare(options());
    let other = cluster.directory().join("other-secret");
    make_secret(&other);
    let other = other.to_str().expect("a path in UTF-8");
    // It cannot help to form the cluster.
    cluster.start_node(1);
    cluster.start_node(2);
    cluster.start_node_with(3, &["--secret-file", other]);
    for id in [1, 3] {
        until("it says for whom it waits, and why", TIMEOUT, || {
            let log = cluster.log(id);
            (log.contains("waiting to form") && log.contains("does not know the secret"))
                .then_some(())
        });
    }
    for id in [1, 3] {
        until("it says who has not proved the secret", TIMEOUT, || {
            cluster.log(id).contains("has not proved that it knows the secret").then_some(())
        });
        assert!(!cluster.log(id).contains("cluster: member"), "node {id} has formed");
    }
    // With the right one it does.
    cluster.kill(3);
    cluster.start_node(3);
    cluster.wait_ready().await;
    // A formed one neither: its directory remembers nothing of the secret.
    assert_eq!(cluster.stop(3), Exit::Code(0));
    let before = cluster.log(1).len();
    cluster.start_node_with(3, &["--secret-file", other]);
    until("node 1 says why node 3 is not connected", TIMEOUT, || {
        cluster.log(1)[before..].contains("does not know the secret").then_some(())
    });
    let status = cluster.status(1).await.expect("it answers");
    let known = status.peers.iter().find(|peer| peer.node_id == 3).expect("a peer");
    assert!(!known.connected, "{known:?}");
    cluster.client_of(&[1, 2]).put("without", "it").await.expect("two of three serve");
}

#[test]
fn each_missing_or_bad_secret_is_a_sentence() {
    let home = tempfile::tempdir().expect("a directory");
    let at = |name: &str| home.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    let (data, file) = (at("d1"), at("quorate.secret"));
    let start = |more: &[&str]| {
        let base = ["start", "--data-dir", &data, "--listen", "127.0.0.1:1"];
        let nodes = ["--initial-cluster", "1=127.0.0.1:2,2=127.0.0.1:3"];
        refused(&kvnode(&[&base[..], &nodes, more].concat()))
    };
    let said = start(&[]);
    for command in ["`kvnode secret --out quorate.secret`", "`--secret-file quorate.secret`"] {
        assert!(said.contains(command), "{said}");
    }
    let said = start(&["--secret-file", &file]);
    assert!(said.contains(&file) && said.contains("does not exist"), "{said}");

    let made = kvnode(&["secret", "--out", &file]);
    assert!(made.status.success() && made.stdout.is_empty(), "{made:?}");
    let text = std::fs::read_to_string(&file).expect("it is there");
    assert!(refused(&kvnode(&["secret", "--out", &file])).contains("never overwritten"));
    assert!(kvnode(&["secret", "--out", &file, "--if-absent"]).status.success());
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), text);
    let printed = kvnode(&["secret"]);
    let printed = String::from_utf8(printed.stdout).expect("text");
    assert!(printed.starts_with("quorate-secret-1 ") && printed != text, "{printed}");

    let chmod = |mode: &str| {
        let done = Command::new("chmod").args([mode, &file]).status();
        assert!(done.expect("chmod starts").success());
    };
    chmod("644");
    let said = start(&["--secret-file", &file]);
    assert!(said.contains("(mode 644)") && said.contains("chmod 600"), "{said}");
    chmod("600");
    std::fs::write(&file, "hunter2\n").expect("it can be written");
    let said = start(&["--secret-file", &file]);
    assert!(said.contains("holds no secret") && !said.contains("hunter2"), "{said}");
    // One listener for both is refused, with the port to change.
    let both = ["--secret-file", &file, "--peer-listen", "127.0.0.1:1"];
    assert!(
        start(&both).contains("peer-listen is 127.0.0.1:1, but that is the address of --listen")
    );
    let formed = Path::new(&data).join("IDENTITY");
    let formed = std::fs::read_to_string(formed).is_ok_and(|text| text.contains("formed=true"));
    assert!(!formed, "nothing was founded by a mistake");
}
