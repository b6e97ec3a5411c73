//! A peer that says what the test wants.

use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wire::link_request::Content;
use wire::peer_client::PeerClient;

use super::support::*;
use crate::dial;

pub fn request(content: Content) -> wire::LinkRequest {
    wire::LinkRequest { content: Some(content) }
}

pub type Answers = Streaming<wire::LinkResponse>;

/// A caller that says what the test wants.
pub struct Caller {
    pub runtime: tokio::runtime::Runtime,
    address: String,
}

impl Caller {
    pub fn new(node: &Node) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self { runtime, address: node.address.to_string() }
    }

    /// Opens a link with these first requests; the sender keeps it open.
    pub fn link(
        &self,
        requests: Vec<wire::LinkRequest>,
    ) -> Result<(tokio::sync::mpsc::Sender<wire::LinkRequest>, Answers), Status> {
        self.runtime.block_on(async {
            let channel = dial::connect(&self.address).await.unwrap();
            let (sender, stream) = tokio::sync::mpsc::channel(16);
            for request in requests {
                sender.send(request).await.unwrap();
            }
            let mut client = PeerClient::new(channel);
            let answers = client.link(ReceiverStream::new(stream)).await?.into_inner();
            Ok((sender, answers))
        })
    }

    pub fn next(&self, answers: &mut Answers) -> Result<Option<wire::LinkResponse>, Status> {
        let next = async { tokio::time::timeout(TIMEOUT, answers.message()).await };
        self.runtime.block_on(next).expect("an answer in time")
    }
}

pub fn lone_node(ground: &Ground, peer_address: &str) -> Node {
    let listener = listener();
    let mut targets = ground.targets(&[listener.local_addr().unwrap(); 2]);
    targets.get_mut(&NodeId(2)).unwrap().address = peer_address.to_owned();
    ground.start(0, listener, &targets, &|_| {})
}

pub fn frame(number: u64, messages: Vec<wire::Envelope>) -> wire::LinkRequest {
    request(Content::Frame(wire::Frame { number, messages, ..wire::Frame::default() }))
}
