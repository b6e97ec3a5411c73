//! One node looked at without the client's routing and retries: raw calls, failures as they travel,
//! metrics and health over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use quorate_client::{Client, ClientConfig, hash};
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{Failure, ReadLevel, ReadOptions, SessionToken};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::Cluster;

/// No raw call waits longer than this without having said so.
pub const CALL: Duration = Duration::from_secs(10);

impl Cluster {
    /// Raw calls to one node.
    #[must_use]
    pub fn kv(&self, id: u64) -> KvClient<Channel> {
        KvClient::new(self.channel(id))
    }

    /// A client that knows only these nodes.
    #[must_use]
    pub fn client_of(&self, ids: &[u64]) -> Client {
        let endpoints = ids.iter().map(|id| self.endpoint(*id));
        Client::new(ClientConfig::new(endpoints).expect("addresses are endpoints"))
    }

    /// The status code and body of a page of a node's metrics listener.
    #[must_use]
    pub fn page(&self, id: u64, path: &str) -> (u16, String) {
        let address: SocketAddr = self.metrics_address(id).parse().expect("an address");
        let mut stream = TcpStream::connect(address).expect("the metrics listener is there");
        stream.set_read_timeout(Some(CALL)).expect("a time limit can be set");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the listener takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the listener answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.expect("a status code"), body.to_owned())
    }

    /// The value of a metric without labels.
    #[must_use]
    pub fn metric(&self, id: u64, name: &str) -> f64 {
        let (code, text) = self.page(id, "/metrics");
        assert_eq!(code, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("node {id} has no metric {name}"))
    }
}

/// The failure that a refused call carries.
///
/// # Panics
/// If it carries none: then it was the library that refused, not a node.
#[must_use]
pub fn failure(status: &Status) -> Failure {
    let found = Failure::from_details(status.details());
    found.unwrap_or_else(|| panic!("no failure is attached to {status:?}")).0
}

/// A request with a time limit.
pub fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// The options of a read at a level.
#[must_use]
pub fn at(level: ReadLevel) -> Option<ReadOptions> {
    Some(ReadOptions { level: level as i32, ..ReadOptions::default() })
}

/// The options of a session read.
#[must_use]
pub fn seen(token: Option<SessionToken>) -> Option<ReadOptions> {
    Some(ReadOptions { level: ReadLevel::Session as i32, token, max_staleness: None })
}

/// A key that begins with `name` and lies in this shard, of this number of equal ones.
#[must_use]
pub fn key_in(shard: u64, shards: u32, name: &str) -> String {
    let (first, last) = hash::even_range(shard - 1, u64::from(shards));
    (0u64..)
        .map(|number| format!("{name}-{number}"))
        .find(|key| (first..=last).contains(&hash::key_hash(key.as_bytes())))
        .expect("some key lies in every range")
}
