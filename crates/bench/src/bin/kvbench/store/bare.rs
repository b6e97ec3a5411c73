//! Our nodes over bare unary calls: generated code on a channel, no retries, no sessions, no map.

use bytes::Bytes;
use quorate_client::api::kv_client::KvClient;
use quorate_client::api::{GetRequest, PutRequest};
use tonic::transport::Channel;

use super::{Refusal, Rotation, Store, absent};

/// A bare client of ours.
#[derive(Clone, Debug)]
pub(crate) struct Bare(Rotation<KvClient<Channel>>);

impl Bare {
    /// Over these connections, at least one.
    pub(crate) fn new(channels: Vec<Channel>) -> Bare {
        Bare(Rotation::new(channels.into_iter().map(KvClient::new).collect()))
    }
}

impl Store for Bare {
    fn begin_at(&mut self, client: usize) {
        self.0.begin_at(client);
    }

    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Refusal> {
        let request = PutRequest { key, value, ..PutRequest::default() };
        let answer = self.0.next().put(request).await;
        answer.map(drop).map_err(|status| Refusal(status.to_string()))
    }

    async fn get(&mut self, key: Bytes) -> Result<Bytes, Refusal> {
        let request = GetRequest { key: key.clone(), ..GetRequest::default() };
        let answer = self.0.next().get(request).await;
        let answer = answer.map_err(|status| Refusal(status.to_string()))?.into_inner();
        if answer.found { Ok(answer.value) } else { Err(absent(&key)) }
    }
}
