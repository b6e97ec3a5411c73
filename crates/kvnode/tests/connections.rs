//! The limit on client connections, on a real node: more sockets than it accepts keep no client
//! out.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorate_proto::raft::v1::AskRequest;
use quorate_proto::raft::v1::peer_client::PeerClient;
use quorate_proto::v1::GetInfoRequest;
use quorate_proto::v1::cluster_client::ClusterClient;
use tonic::transport::{Channel, Endpoint};

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

#[tokio::test]
async fn more_connections_than_the_limit_keep_neither_clients_nor_peers_out() {
    let home = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let node = Command::new(env!("CARGO_BIN_EXE_kvnode"))
        .args(["start", "--max-connections=5", "--shards=1", "--listen", &address])
        .arg(format!("--data-dir={}", home.path().join("data").display()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _node = Node(node);
    let deadline = Instant::now() + Duration::from_secs(30);
    while channel(&address).await.is_none() {
        assert!(Instant::now() < deadline, "the node never listened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

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
    let peer = channel(&address).await.expect("a peer can connect");
    PeerClient::new(peer).ask(AskRequest::default()).await.unwrap();
}
