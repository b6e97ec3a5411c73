//! Common interface of the calls: all have a route, some a session; answers have receipts and a
//! token.

use std::future::Future;

use bytes::Bytes;
use quorate_pipeline::{Answer as StreamAnswer, Operation};
use quorate_proto::hash::key_hash;
use quorate_proto::limits::DECODE_BYTES_MAX;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    BatchRequest, BatchResponse, CancelRequest, CancelResponse, CompareAndSetRequest,
    CompareAndSetResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
    IncrementRequest, IncrementResponse, MultiGetRequest, MultiGetResponse, OpenSessionRequest,
    OpenSessionResponse, PutRequest, PutResponse, Receipt, RouteHint, ScanRequest, ScanResponse,
    SessionToken, WriteSession,
};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// A request of the `Kv` service that is retried until it is answered.
pub(crate) trait Rpc: prost::Message + Clone {
    type Answer: Answer;

    /// Whether it is work for the node, which takes no more of it than it can do.
    const IS_WORK: bool = true;

    fn send(
        client: KvClient<Channel>,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;

    /// The key that determines the shard; none if any node may serve the request.
    fn key(&self) -> Option<&Bytes>;

    fn set_route(&mut self, route: Option<RouteHint>);

    /// The request as an operation of a stream; none for what is always a call of its own.
    fn operation(&self) -> Option<Operation> {
        None
    }

    /// The answer in this answer of a stream, if it is of this kind.
    fn in_answer(_answer: StreamAnswer) -> Option<Self::Answer> {
        None
    }

    /// Sets the session of a write. A Cancel names its session itself.
    fn set_session(&mut self, _session: Option<WriteSession>) {}
}

/// Parts of an answer that the client itself uses.
pub(crate) trait Answer: Send {
    fn receipt(&self) -> Option<&Receipt> {
        None
    }

    fn token(&self) -> Option<&SessionToken> {
        None
    }
}

/// A `Kv` client of one connection with this crate's limits.
pub(crate) fn kv(channel: Channel) -> KvClient<Channel> {
    // The size of requests is checked before a call begins: if the library rejected one while
    // sending, the broken stream would look like a lost answer.
    KvClient::new(channel).max_decoding_message_size(DECODE_BYTES_MAX)
}

macro_rules! rpc {
    ($request:ty, $answer:ty, $method:ident $([$kind:ident])?, $key:expr $(, $session:ident)?) => {
        impl Rpc for $request {
            type Answer = $answer;

            async fn send(
                mut client: KvClient<Channel>,
                request: Request<Self>,
            ) -> Result<Response<$answer>, Status> {
                client.$method(request).await
            }

            fn key(&self) -> Option<&Bytes> {
                let key: fn(&$request) -> Option<&Bytes> = $key;
                key(self)
            }

            fn set_route(&mut self, route: Option<RouteHint>) {
                self.route = route;
            }

            $(fn operation(&self) -> Option<Operation> {
                Some(Operation::$kind(self.clone()))
            }

            fn in_answer(answer: StreamAnswer) -> Option<$answer> {
                match answer {
                    StreamAnswer::$kind(answer) => Some(answer),
                    _ => None,
                }
            })?

            $(fn set_session(&mut self, session: Option<WriteSession>) {
                self.$session = session;
            })?
        }

        impl Answer for $answer {
            fn receipt(&self) -> Option<&Receipt> {
                self.receipt.as_ref()
            }

            fn token(&self) -> Option<&SessionToken> {
                self.token.as_ref()
            }
        }
    };
}

rpc!(GetRequest, GetResponse, get[Get], |r| Some(&r.key));
rpc!(PutRequest, PutResponse, put[Put], |r| Some(&r.key), session);
rpc!(DeleteRequest, DeleteResponse, delete[Delete], |r| Some(&r.key), session);
rpc!(
    CompareAndSetRequest,
    CompareAndSetResponse,
    compare_and_set[CompareAndSet],
    |r| Some(&r.key),
    session
);
rpc!(IncrementRequest, IncrementResponse, increment[Increment], |r| Some(&r.key), session);
rpc!(BatchRequest, BatchResponse, batch[Batch], |r| r.operations.first().map(|o| &o.key), session);
rpc!(CancelRequest, CancelResponse, cancel, |r| Some(&r.key));

impl Rpc for OpenSessionRequest {
    type Answer = OpenSessionResponse;

    /// The node answers at once, and many writes wait for it.
    const IS_WORK: bool = false;

    async fn send(
        mut client: KvClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        client.open_session(request).await
    }

    fn key(&self) -> Option<&Bytes> {
        None
    }

    fn set_route(&mut self, _route: Option<RouteHint>) {}
}

impl Answer for OpenSessionResponse {}

impl Rpc for ScanRequest {
    type Answer = Streaming<ScanResponse>;

    /// Scans have bounds of their own.
    const IS_WORK: bool = false;

    async fn send(
        mut client: KvClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.scan(request).await
    }

    fn key(&self) -> Option<&Bytes> {
        None
    }

    fn set_route(&mut self, route: Option<RouteHint>) {
        self.route = route;
    }
}

impl Answer for Streaming<ScanResponse> {}

impl Rpc for MultiGetRequest {
    type Answer = Streaming<MultiGetResponse>;

    async fn send(
        mut client: KvClient<Channel>,
        request: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.multi_get(request).await
    }

    /// One of keys with the same hash: only these are in one shard in every map.
    fn key(&self) -> Option<&Bytes> {
        let first = self.keys.first()?;
        let hash = key_hash(first);
        self.keys.iter().all(|key| key_hash(key) == hash).then_some(first)
    }

    fn set_route(&mut self, route: Option<RouteHint>) {
        self.route = route;
    }
}

impl Answer for Streaming<MultiGetResponse> {}
