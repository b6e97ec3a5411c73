//! Requests that are sent in part and answers that are not read, with a plain HTTP/2 client.

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming};

use super::*;
use crate::net::bodies::Patience;

const PATIENCE: Patience = Patience { request: TIMEOUT, answer: TIMEOUT };
const BUDGET: u64 = 4 << 20;
const ANSWER_BYTES: usize = 1 << 20;

/// Answers with much at once.
#[derive(Clone)]
pub(super) struct Large;

impl NamedService for Large {
    const NAME: &'static str = "test.Large";
}

impl Service<Request<Body>> for Large {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        Box::pin(async {
            let answer = Sending { parts: vec![vec![0; ANSWER_BYTES]], ends: true };
            Ok(Response::new(Body::new(answer)))
        })
    }
}

/// A body of parts, which then ends or stands still.
struct Sending {
    parts: Vec<Vec<u8>>,
    ends: bool,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.parts.pop() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part.into())))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// A message of `length` bytes of which only `sent` are sent.
fn half(length: u32, sent: usize) -> Body {
    let mut part = vec![0];
    part.extend(length.to_be_bytes());
    part.resize(5 + sent, 0);
    Body::new(Sending { parts: vec![part], ends: false })
}

async fn post(sender: &Sender, path: &str, body: Body) -> Result<Response<Incoming>, hyper::Error> {
    let request = Request::post(format!("http://node/{path}"))
        .header("content-type", "application/grpc")
        .body(body);
    let answered = timeout(TIMEOUT * 20, sender.clone().send_request(request.unwrap())).await;
    answered.expect("the call ends by itself")
}

const CHECK: &str = "grpc.health.v1.Health/Check";

async fn limited(patience: Patience) -> (SocketAddr, Arc<Metrics>, Arc<Budget>) {
    let metrics = Arc::new(Metrics::new());
    let bodies = Arc::new(Budget::with(BUDGET, patience, &metrics));
    (serve_with(LIMITS, metrics.clone(), bodies.clone()).await, metrics, bodies)
}

#[tokio::test]
async fn a_request_that_is_not_completed_is_refused_in_time() {
    let (address, metrics, bodies) = limited(PATIENCE).await;
    let sender = plain_connection(address).await;
    let answer = post(&sender, CHECK, half(1_000, 10)).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "8");
    let sentence = answer.headers()["grpc-message"].to_str().unwrap().replace("%20", " ");
    assert_eq!(
        sentence,
        "the request was not complete 500ms after its beginning: 15 bytes of it had come"
    );
    assert!(answer.headers().contains_key("grpc-status-details-bin"));
    assert_eq!(metrics.node.requests_overdue.get(), 1);
    assert_eq!(bodies.used(), 0);
}

/// More calls than the budget has room for, each with most of a large message.
#[tokio::test]
async fn half_sent_requests_stay_within_the_budget_and_small_ones_get_through() {
    let (address, metrics, bodies) = limited(Patience { request: TIMEOUT * 120, ..PATIENCE }).await;
    let hoarder = plain_connection(address).await;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let hoarder = hoarder.clone();
            tokio::spawn(async move { post(&hoarder, CHECK, half(3 << 20, 1 << 20)).await })
        })
        .collect();
    until("refused", || metrics.node.bodies_refused.get() >= 10).await;
    assert_eq!(metrics.node.requests_overdue.get(), 0);
    assert!(bodies.used() <= BUDGET / 4 * 3);
    let honest = channel(address).await;
    timeout(TIMEOUT, as_peer(&honest)).await.expect("room for a small call").unwrap();
    calls.iter().for_each(|call| call.abort());
    until("given back", || bodies.used() == 0).await;
}

/// Beginnings of large messages, each of the size of a small request.
#[tokio::test]
async fn beginnings_of_large_requests_leave_small_ones_their_part() {
    const SENT: usize = 16 << 10;
    let (address, metrics, bodies) = limited(Patience { request: TIMEOUT * 120, ..PATIENCE }).await;
    let mut calls = Vec::new();
    for _ in 0..4 {
        let hoarder = plain_connection(address).await;
        calls.extend((0..64).map(|_| {
            let hoarder = hoarder.clone();
            tokio::spawn(async move { post(&hoarder, CHECK, half(3 << 20, SENT)).await })
        }));
    }
    let settled = || {
        let refused = usize::try_from(metrics.node.bodies_refused.get()).unwrap();
        let held = usize::try_from(bodies.used()).unwrap() / SENT;
        refused + held >= calls.len()
    };
    until("each is held or refused", settled).await;
    assert!(bodies.used() <= BUDGET / 4 * 3, "{} bytes are held", bodies.used());
    let honest = channel(address).await;
    timeout(TIMEOUT, as_peer(&honest)).await.expect("room for a small call").unwrap();
    calls.iter().for_each(|call| call.abort());
    until("given back", || bodies.used() == 0).await;
}

#[tokio::test]
async fn answers_that_are_not_read_stay_within_the_budget_and_are_reset_in_time() {
    let (address, metrics, bodies) = limited(PATIENCE).await;
    let sender = plain_connection_of_small_windows(address).await;
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(post(&sender, "test.Large/Call", Body::empty()).await.unwrap());
    }
    assert!(metrics.node.bodies_refused.get() > 0, "8 answers of 1 MiB have no room");
    assert!(bodies.used() > 0 && bodies.used() <= BUDGET / 4 * 3);
    until("reset", || bodies.used() == 0).await;
    assert!(metrics.node.answers_unread.get() > 0);
    // And the connection still serves.
    let answer = post(&sender, "test.Large/Call", Body::empty()).await.unwrap();
    assert_eq!(read_slowly(answer.into_body()).await, ANSWER_BYTES);
}

/// A reader that is slower than the limit as a whole, and never stands still for as long.
#[tokio::test]
async fn a_slow_reader_gets_its_answer() {
    let (address, metrics, _) = limited(PATIENCE).await;
    let sender = plain_connection_of_small_windows(address).await;
    let answer = post(&sender, "test.Large/Call", Body::empty()).await.unwrap();
    assert_eq!(read_slowly(answer.into_body()).await, ANSWER_BYTES);
    assert_eq!(metrics.node.answers_unread.get(), 0);
}

async fn read_slowly(mut body: Incoming) -> usize {
    let mut read = 0;
    let mut paused = tokio::time::Instant::now();
    while let Some(frame) =
        std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
    {
        read += frame.expect("it is not reset").data_ref().map_or(0, Bytes::len);
        // About eight pauses in all, a fifth of the limit each.
        if read % (128 << 10) < (16 << 10) && paused.elapsed() > TIMEOUT / 50 {
            tokio::time::sleep(TIMEOUT / 5).await;
            paused = tokio::time::Instant::now();
        }
    }
    read
}

async fn plain_connection_of_small_windows(address: SocketAddr) -> Sender {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(1 << 20)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}
