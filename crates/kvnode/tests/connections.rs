//! The limit on client connections, on a real node: more sockets than it accepts keep no client
//! out.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorate_proto::raft::v1::peer_client::PeerClient;
use quorate_proto::raft::v1::{AskRequest, AskResponse, Proof};
use quorate_proto::secret::{self, ClusterSecret, PEER_LABEL};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{GetInfoRequest, PutRequest};
use tonic::transport::{Channel, Endpoint};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Killed when the test ends, however it ends.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn channel(address: &str) -> Option<Channel> {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.ok()
}

/// A connection to a node that has just been started.
async fn listening(address: &str) -> Channel {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(channel) = channel(address).await {
            return channel;
        }
        assert!(Instant::now() < deadline, "the node never listened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn question() -> AskRequest {
    AskRequest { nonce: vec![1; 32].into(), ..AskRequest::default() }
}

/// Asks as a node that knows the secret does, by the form that `raft.proto` gives to a proof.
async fn ask_with_proof(channel: &Channel, secret: &ClusterSecret) -> AskResponse {
    let question = question();
    let (questions, receiver) = tokio::sync::mpsc::channel(2);
    questions.send(question.clone()).await.unwrap();
    let mut peer = PeerClient::new(channel.clone());
    let answers = peer.ask(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    let mut answers = answers.unwrap().into_inner();
    let challenge = answers.message().await.unwrap().unwrap().challenge.unwrap();
    let mut parts = b"caller\0".to_vec();
    parts.extend_from_slice(&question.nonce);
    parts.extend_from_slice(&challenge.nonce);
    parts.extend_from_slice(b"ask\0");
    // Its five fields are 0 or empty: three numbers of 8 bytes, and two of no length.
    for length in [8_u64, 0, 8, 0, 8] {
        parts.extend_from_slice(&length.to_be_bytes());
        parts.resize(parts.len() + usize::try_from(length).unwrap(), 0);
    }
    let proof = secret::mac(&secret.derive(PEER_LABEL), &[&parts]).to_vec().into();
    let proof = Some(Proof { proof });
    questions.send(AskRequest { proof, ..AskRequest::default() }).await.unwrap();
    answers.message().await.expect("the proof is right").unwrap()
}

/// The limit of open files that a node of these arguments asks for, from the sentence with which it
/// refuses less.
fn files_needed(arguments: &[String]) -> u64 {
    let kvnode = env!("CARGO_BIN_EXE_kvnode");
    let refused = Command::new("sh")
        .args(["-c", "ulimit -n 100; exec \"$@\"", "sh", kvnode])
        .args(arguments)
        .output()
        .unwrap();
    let sentence = String::from_utf8(refused.stderr).unwrap();
    let (_, rest) = sentence.split_once(" needs ").unwrap_or_else(|| panic!("{sentence}"));
    rest.split_once(';').unwrap().0.parse().unwrap()
}

#[tokio::test]
async fn every_place_may_be_taken_within_the_limit_of_files() {
    let home = tempfile::tempdir().unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let [address, nodes, metrics] = [free(), free(), free()].map(|free| free.to_string());
    let arguments = [
        "start".to_owned(),
        "--max-connections=5".to_owned(),
        "--shards=1".to_owned(),
        format!("--listen={address}"),
        format!("--peer-listen={nodes}"),
        format!("--metrics-listen={metrics}"),
        format!("--data-dir={}", home.path().join("data").display()),
    ];
    let limit = format!("ulimit -n {}; exec \"$@\"", files_needed(&arguments));
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let node = Command::new("sh")
        .args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_kvnode")])
        .args(&arguments)
        .stderr(log)
        .spawn()
        .unwrap();
    let _node = Node(node);
    let mut kv = KvClient::new(listening(&address).await);
    // Too large for a page of the tree: each is a file of its own.
    let put = |number: u32| PutRequest {
        key: format!("k{number}").into(),
        value: vec![7; 600_000].into(),
        ..PutRequest::default()
    };
    let deadline = Instant::now() + START_TIMEOUT;
    while kv.put(put(0)).await.is_err() {
        assert!(Instant::now() < deadline, "the node never served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(tokio::net::TcpStream::connect(&metrics).await.unwrap());
    }
    let secret = std::fs::read_to_string(home.path().join("data").join("secret")).unwrap();
    let secret = ClusterSecret::parse(&secret).unwrap();
    let mut peers = Vec::new();
    for _ in 0..192 {
        let peer = channel(&nodes).await.unwrap();
        let answer = ask_with_proof(&peer, &secret).await;
        assert_eq!(answer.node_id, 1, "{answer:?}");
        peers.push(peer);
    }
    for listener in [&address, &nodes] {
        for _ in 0..256 {
            sockets.push(tokio::net::TcpStream::connect(listener).await.unwrap());
        }
    }
    for number in 1..20 {
        kv.put(put(number)).await.unwrap();
    }
    let said = std::fs::read_to_string(home.path().join("log")).unwrap();
    assert!(!said.contains("Too many open files"), "{said}");
}

#[tokio::test]
async fn more_connections_than_the_limit_keep_neither_clients_nor_peers_out() {
    let home = tempfile::tempdir().unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, other) = (free(), free());
    let [address, peers] = [&one, &other].map(|held| held.local_addr().unwrap().to_string());
    drop((one, other));
    let node = Command::new(env!("CARGO_BIN_EXE_kvnode"))
        .args(["start", "--max-connections=5", "--shards=1", "--listen", &address])
        .args(["--peer-listen", &peers])
        .arg(format!("--data-dir={}", home.path().join("data").display()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _node = Node(node);
    listening(&address).await;

    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    // Each asks once and stays: those that were idle for longest yield to the others.
    let mut clients = Vec::new();
    for _ in 0..20 {
        let channel = channel(&address).await.unwrap();
        let mut client = ClusterClient::new(channel);
        client.get_info(GetInfoRequest::default()).await.unwrap();
        clients.push(client);
    }
    for client in &mut clients {
        client.get_info(GetInfoRequest::default()).await.expect("it connects anew");
    }
    // A client of the listener for clients finds no node there.
    let mut wrong = PeerClient::new(channel(&address).await.unwrap());
    let refused = wrong.ask(tokio_stream::once(question())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented, "{refused:?}");
    // The one for nodes is not filled by the other, and challenges who asks.
    for _ in 0..300 {
        idle.push(tokio::net::TcpStream::connect(&peers).await.unwrap());
    }
    let mut peer = PeerClient::new(channel(&peers).await.expect("a peer can connect"));
    let mut answers = peer.ask(tokio_stream::once(question())).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert!(first.challenge.is_some() && first.node_id == 0, "{first:?}");
}
