//! Calls in flight: each call of a connection is counted until the last byte of its answer is sent.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use quorate_service::call::{Arrival, CallerAddress, CallerConnection, Connection};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::service::Routes;

use super::bodies::{Budget, Call, Received, Sent};
use super::places::{InFlight, Place};

/// The path of streams of operations.
const PIPELINE: &str = "/quorate.v1.Kv/Pipeline";

/// The connection as the services see it.
struct Placed(Arc<Place>);

impl Connection for Placed {
    fn begin(&self) -> Box<dyn Send> {
        Box::new(self.0.begin())
    }

    fn is_of_node(&self) -> bool {
        self.0.is_peer()
    }

    fn leaving(&self) -> &CancellationToken {
        self.0.leaving()
    }
}

/// The service of one connection: the routes, and its place for counting.
#[derive(Clone)]
pub(super) struct Calls {
    routes: Routes,
    place: Arc<Place>,
    caller: CallerAddress,
    connection: CallerConnection,
    bodies: Arc<Budget>,
}

impl Calls {
    /// The routes, for the connection of this place, from this address.
    pub(super) fn new(
        routes: Routes,
        place: Arc<Place>,
        caller: IpAddr,
        bodies: Arc<Budget>,
    ) -> Self {
        let connection = CallerConnection(Arc::new(Placed(place.clone())));
        Self { routes, place, caller: CallerAddress(caller), connection, bodies }
    }
}

impl Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        // A stream of operations counts its operations itself.
        let call = (request.uri().path() != PIPELINE).then(|| self.place.begin());
        // Where the interceptor of each service finds it.
        request.extensions_mut().insert(self.place.clone());
        request.extensions_mut().insert(self.caller);
        request.extensions_mut().insert(self.connection.clone());
        let arrival = Arrival::of(request.uri().path(), self.place.metrics());
        if let Some(arrival) = &arrival {
            request.extensions_mut().insert(arrival.clone());
        }
        let bodies = self.bodies.clone();
        let limited = Call::of(&request);
        let request = request.map(|body| match &limited {
            Some(call) => Body::new(Received::new(body, call.clone(), bodies.clone())),
            None => Body::new(body),
        });
        let answer = self.routes.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(arrival) = &arrival {
                arrival.answered(status(answer.headers()));
            }
            let answer = answer.map(|body| match limited {
                Some(call) => Body::new(Sent::new(body, call, bodies)),
                None => body,
            });
            Ok(answer.map(|body| Body::new(Counted { body, _call: call, _arrival: arrival })))
        })
    }
}

/// The status of an answer without a message; UNKNOWN if there is none.
fn status(headers: &HeaderMap) -> i32 {
    let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
    status.and_then(|status| status.parse().ok()).unwrap_or(Code::Unknown as i32)
}

/// The body of an answer. It is dropped after it was sent whole, or when the call is cancelled.
struct Counted {
    body: Body,
    _call: Option<InFlight>,
    /// With what a drain waits for.
    _arrival: Option<Arc<Arrival>>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
