//! A peer that says what the test wants.

use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wire::link_request::Content;
use wire::link_response;
use wire::peer_client::PeerClient;

use super::support::*;
use crate::dial;
use crate::proof::Claim;

pub fn request(content: Content) -> wire::LinkRequest {
    wire::LinkRequest { content: Some(content) }
}

/// What the called node answers, from what follows the challenge on.
pub struct Answers {
    first: Option<wire::LinkResponse>,
    stream: Streaming<wire::LinkResponse>,
}

impl Answers {
    pub async fn message(&mut self) -> Result<Option<wire::LinkResponse>, Status> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.stream.message().await,
        }
    }
}

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

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Opens a link with these first requests, and proves the secret when the first one, a Hello,
    /// is challenged; the sender keeps it open.
    pub fn link(
        &self,
        requests: Vec<wire::LinkRequest>,
    ) -> Result<(mpsc::Sender<wire::LinkRequest>, Answers), Status> {
        let mut requests = requests.into_iter();
        let first = requests.next();
        let (sender, mut answers) = self.link_unproven(first.iter().cloned().collect())?;
        let Some(Content::Hello(hello)) = first.and_then(|first| first.content) else {
            return Ok((sender, answers));
        };
        let Ok(Some(wire::LinkResponse { content })) = self.next(&mut answers) else {
            panic!("the Hello is not answered");
        };
        match content {
            Some(link_response::Content::Challenge(challenge)) => {
                let proof = Claim::of_hello(&hello).answer(&key(), &challenge).unwrap();
                let rest = [request(Content::Proof(proof))].into_iter().chain(requests);
                rest.for_each(|request| sender.try_send(request).unwrap());
            }
            refusal => answers.first = Some(wire::LinkResponse { content: refusal }),
        }
        Ok((sender, answers))
    }

    /// Opens a link with these first requests, and proves nothing.
    pub fn link_unproven(
        &self,
        requests: Vec<wire::LinkRequest>,
    ) -> Result<(mpsc::Sender<wire::LinkRequest>, Answers), Status> {
        self.runtime.block_on(async {
            let channel = dial::connect(&self.address).await.unwrap();
            let (sender, stream) = mpsc::channel(16);
            for request in requests {
                sender.send(request).await.unwrap();
            }
            let mut client = PeerClient::new(channel);
            let stream = client.link(ReceiverStream::new(stream)).await?.into_inner();
            Ok((sender, Answers { first: None, stream }))
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
