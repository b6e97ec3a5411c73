//! etcd over the same bare unary calls.

use bytes::Bytes;
use tonic::transport::Channel;

use super::{Refusal, Rotation, Store, absent};

/// The part of etcd's API that is called.
#[allow(missing_docs, clippy::all)]
mod api {
    tonic::include_proto!("etcdserverpb");
}

use api::kv_client::KvClient;
use api::{PutRequest, RangeRequest};

/// A bare client of etcd.
#[derive(Clone, Debug)]
pub(crate) struct Etcd(Rotation<KvClient<Channel>>);

impl Etcd {
    /// Over these connections, at least one.
    pub(crate) fn new(channels: Vec<Channel>) -> Etcd {
        Etcd(Rotation::new(channels.into_iter().map(KvClient::new).collect()))
    }
}

impl Store for Etcd {
    fn begin_at(&mut self, client: usize) {
        self.0.begin_at(client);
    }

    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Refusal> {
        let answer = self.0.next().put(PutRequest { key, value }).await;
        answer.map(drop).map_err(|status| Refusal(status.to_string()))
    }

    async fn get(&mut self, key: Bytes) -> Result<Bytes, Refusal> {
        let request = RangeRequest { key: key.clone(), serializable: false };
        let answer = self.0.next().range(request).await;
        let answer = answer.map_err(|status| Refusal(status.to_string()))?.into_inner();
        answer.kvs.into_iter().next().map(|kv| kv.value).ok_or_else(|| absent(&key))
    }
}
