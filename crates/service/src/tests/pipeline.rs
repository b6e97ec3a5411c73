//! Streams of operations, over a connection to a node that is the leader, or passes them on.

use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::pipeline_answer::Result as Answer;
use quorate_proto::v1::pipeline_operation::Operation;
use quorate_proto::v1::{
    DeleteRequest, IncrementRequest, Outcome, PipelineAnswer, PipelineCredit, PipelineOperation,
    PipelineRequest, PipelineResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use std::collections::VecDeque;

use prost::Message;

use super::refusals::changed;
use super::*;
use crate::metrics::Method;

const CREDIT: PipelineCredit = PipelineCredit { operations: 256, bytes: 4 << 20 };

/// A node with its server, which answers from the node itself.
struct Served {
    node: Node,
    address: std::net::SocketAddr,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Served {
    async fn of(node: Node) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let service = KvServer::new(node.kv.clone());
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        let server = tokio::spawn(server);
        Self { node, address, server }
    }

    /// A stream on a connection of its own: what is not read of one fills its connection's window.
    async fn stream(&self) -> Stream {
        let (frames, receiver) = mpsc::channel(4_096);
        let client = KvClient::connect(format!("http://{}", self.address)).await;
        let mut client = client.expect("it connects");
        let answers = client.pipeline(ReceiverStream::new(receiver)).await;
        let mut answers = answers.expect("a stream").into_inner();
        let first = answers.message().await.expect("a frame").expect("the first frame");
        assert!(first.answers.is_empty(), "{first:?}");
        let credit = first.credit.expect("the first frame has the initial credit");
        Stream { frames: Some(frames), answers, credit }
    }

    fn stop(self) {
        self.server.abort();
        self.node.stop();
    }
}

/// A client's side of a stream.
struct Stream {
    frames: Option<mpsc::Sender<PipelineRequest>>,
    answers: Streaming<PipelineResponse>,
    credit: PipelineCredit,
}

impl Stream {
    async fn send(&mut self, operations: Vec<PipelineOperation>) {
        let frame = PipelineRequest { operations, ..PipelineRequest::default() };
        self.frame(frame).await;
    }

    async fn frame(&mut self, frame: PipelineRequest) {
        for operation in &frame.operations {
            if self.covers(operation) {
                self.credit.operations -= 1;
                self.credit.bytes -= operation.encoded_len() as u64;
            }
        }
        let frames = self.frames.as_ref().expect("this side is open");
        frames.send(frame).await.expect("the stream takes it");
    }

    fn covers(&self, operation: &PipelineOperation) -> bool {
        self.credit.operations > 0 && self.credit.bytes >= operation.encoded_len() as u64
    }

    /// Sends operations in frames of a few, as far as the credit goes, and takes their answers.
    async fn carry_out(&mut self, operations: Vec<PipelineOperation>) -> BTreeMap<u64, Answer> {
        let count = operations.len();
        let (mut waiting, mut answers) = (VecDeque::from(operations), BTreeMap::new());
        while answers.len() < count {
            // Small ones, so that the number of operations is what bounds them.
            let fitting = self.credit.operations.min(7).min(waiting.len() as u64) as usize;
            match fitting {
                0 => answers.extend(self.some_answers().await),
                fitting => self.send(waiting.drain(..fitting).collect()).await,
            }
        }
        answers
    }

    /// Ends this side.
    fn end(&mut self) {
        self.frames = None;
    }

    async fn message(&mut self) -> Result<Option<PipelineResponse>, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.answers.message());
        let message = message.await.expect("a frame in time")?;
        if let Some(more) = message.as_ref().and_then(|frame| frame.credit) {
            self.credit.operations += more.operations;
            self.credit.bytes += more.bytes;
        }
        Ok(message)
    }

    /// The answers of the next frame, by their numbers.
    async fn some_answers(&mut self) -> Vec<(u64, Answer)> {
        let frame = self.message().await.expect("a frame").expect("the stream lasts");
        let answers = frame.answers.into_iter();
        answers.map(|PipelineAnswer { id, result }| (id, result.expect("a result"))).collect()
    }

    /// The next answers, `count` of them, by their numbers.
    async fn answers(&mut self, count: usize) -> BTreeMap<u64, Answer> {
        let mut all = BTreeMap::new();
        while all.len() < count {
            for (id, answer) in self.some_answers().await {
                assert!(all.insert(id, answer).is_none(), "operation {id} is answered twice");
            }
        }
        assert_eq!(all.len(), count, "more answers than operations");
        all
    }

    async fn failures(&mut self, count: usize) -> BTreeMap<u64, Failure> {
        let answers = self.answers(count).await.into_iter();
        answers
            .map(|(id, answer)| match answer {
                Answer::Failure(failure) => (id, failure),
                other => panic!("operation {id} did not fail: {other:?}"),
            })
            .collect()
    }
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !reached() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn operation(id: u64, operation: Operation) -> PipelineOperation {
    PipelineOperation { id, operation: Some(operation), ..PipelineOperation::default() }
}

fn put(id: u64, key: &str, value: Vec<u8>) -> PipelineOperation {
    let put = PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
    operation(id, Operation::Put(put))
}

fn get(id: u64, key: &str) -> PipelineOperation {
    let get = GetRequest { key: key.to_owned().into(), ..GetRequest::default() };
    operation(id, Operation::Get(get))
}

fn add(id: u64, key: &str) -> PipelineOperation {
    let key = key.to_owned().into();
    let add = IncrementRequest { key, delta: 1, ..IncrementRequest::default() };
    operation(id, Operation::Increment(add))
}

/// Increments of one key, whose sums show the order in which they were proposed.
async fn in_order(served: &Served) {
    let mut stream = served.stream().await;
    for (id, answer) in stream.carry_out((1..=600).map(|id| add(id, "counter")).collect()).await {
        let Answer::Increment(answer) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.number, id as i64, "operation {id} was not proposed in its turn");
        assert_eq!(answer.receipt.expect("a receipt").node_id, 1);
    }
    stream.end();
    assert!(stream.message().await.expect("a clean end").is_none());
    assert_eq!(stream.credit, CREDIT, "all of it is back");
}

#[test]
fn writes_on_one_shard_are_proposed_in_the_order_in_which_they_were_sent() {
    run(|node| async {
        let served = Served::of(node).await;
        in_order(&served).await;
        served.stop();
    });
}

#[test]
fn writes_that_are_passed_on_keep_their_order() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        let asked = Served::of(asked).await;
        in_order(&asked).await;
        // A read goes the same way.
        let mut stream = asked.stream().await;
        stream.send(vec![get(1, "counter"), get(2, "none")]).await;
        let answers = stream.answers(2).await;
        let Answer::Get(found) = &answers[&1] else { panic!("{answers:?}") };
        assert_eq!(&found.value[..], b"600");
        assert_eq!(found.receipt.as_ref().expect("a receipt").node_id, 1);
        asked.stop();
        server.abort();
        holder.stop();
    });
}

#[test]
fn each_operation_is_answered_by_its_kind_and_refused_by_itself() {
    run(|node| async {
        let served = Served::of(node).await;
        let mut stream = served.stream().await;
        let lacks = PutRequest {
            key: Bytes::from_static(b"k"),
            required_features: vec![4_000_000_000],
            ..PutRequest::default()
        };
        let delete = DeleteRequest { key: Bytes::from_static(b"k"), ..DeleteRequest::default() };
        let nothing = PipelineOperation { id: 6, ..PipelineOperation::default() };
        let frame = vec![
            put(1, "k", vec![1]),
            put(2, "", vec![1]),
            put(3, "k", vec![0; (1 << 20) + 1]),
            operation(4, Operation::Put(lacks)),
            operation(5, Operation::Delete(delete)),
            nothing,
        ];
        stream.send(frame).await;
        let answers = stream.answers(6).await;
        assert!(matches!(&answers[&1], Answer::Put(put) if put.applied), "{answers:?}");
        assert!(matches!(&answers[&5], Answer::Delete(delete) if delete.found), "{answers:?}");
        let failure = |id: u64| match &answers[&id] {
            Answer::Failure(failure) => failure.clone(),
            other => panic!("{other:?}"),
        };
        for (id, reason, field) in [
            (2, Reason::BadKey, "key"),
            (3, Reason::BadValue, "value"),
            (4, Reason::NotOffered, "required_features"),
            (6, Reason::BadRequest, "operations.operation"),
        ] {
            let failure = failure(id);
            assert_eq!((failure.reason(), failure.field.as_str()), (reason, field));
            assert_eq!(failure.outcome(), Outcome::NotApplied, "{failure:?}");
            assert_eq!(failure.code, reason.code() as i32);
        }
        assert_eq!(failure(2).node_id, 1, "the failure is complete");

        // A frame may require features of all its operations.
        let operations = vec![put(7, "other", vec![1])];
        stream.frame(PipelineRequest { operations, required_features: vec![1] }).await;
        let refused = stream.failures(1).await;
        assert_eq!(refused[&7].reason(), Reason::NotOffered);
        stream.send(vec![get(8, "other")]).await;
        let answers = stream.answers(1).await;
        assert!(matches!(&answers[&8], Answer::Get(get) if !get.found), "{answers:?}");

        // As calls of their own are counted, so are operations.
        let requests = &served.node.shared.metrics.requests;
        assert_eq!(requests.count(Method::Put, Code::Ok), 1);
        assert_eq!(requests.count(Method::Put, Code::InvalidArgument), 2);
        assert_eq!(requests.count(Method::Put, Code::Unimplemented), 2);
        served.stop();
    });
}

#[test]
fn a_frame_that_is_too_large_and_what_is_beyond_the_credit_is_refused() {
    run(|node| async {
        let served = Served::of(node).await;
        let mut stream = served.stream().await;
        let large = |id| put(id, "large", vec![7; 900 << 10]);
        stream.send((1..=3).map(large).collect()).await;
        for (id, failure) in stream.failures(3).await {
            assert_eq!(failure.reason(), Reason::TooLarge, "operation {id}");
            assert_eq!((failure.field.as_str(), failure.limit), ("operations", 2 << 20));
        }
        // The stream is one frame at the node: what it sends before it reads is beyond the credit.
        let sent: u64 = 400;
        let frame = (1..=sent).map(|id| put(id, "k", vec![1])).collect();
        stream.send(frame).await;
        let answers = stream.answers(sent as usize).await;
        let refused = answers.values().filter(|answer| match answer {
            Answer::Failure(failure) => failure.reason() == Reason::Overloaded,
            _ => false,
        });
        assert_eq!(refused.count() as u64, sent - CREDIT.operations);
        let Answer::Failure(last) = &answers[&sent] else { panic!("{:?}", answers[&sent]) };
        assert!(last.message.contains("beyond the credit"), "{last:?}");
        assert!(last.retry_after.is_some());
        assert_eq!(stream.credit, CREDIT, "what was beyond it gives none back");
        served.stop();
    });
}

#[test]
fn a_number_that_is_sent_twice_ends_the_stream() {
    run(|node| async {
        let served = Served::of(node).await;
        let mut stream = served.stream().await;
        stream.send(vec![get(1, "k"), get(1, "k")]).await;
        let ended = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => break status,
            }
        };
        let (failure, _) = Failure::from_details(ended.details()).expect("a failure");
        assert_eq!(failure.reason(), Reason::BadRequest);
        assert_eq!(failure.field, "operations.id");
        served.stop();
    });
}

#[test]
fn each_operation_has_its_own_time() {
    run(|node| async {
        let served = Served::of(node).await;
        let mut stream = served.stream().await;
        // The replica is asked for a leader that it does not have.
        let shard = served.node.shared.engine.shards().get(GroupId(1)).expect("its shard");
        shard.set_damaged("for this test");
        let hurried = PipelineOperation {
            timeout: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
            ..put(1, "k", vec![1])
        };
        let begun = std::time::Instant::now();
        stream.send(vec![hurried, put(2, "k", vec![1])]).await;
        let first = stream.failures(1).await;
        assert!(first.contains_key(&1), "{first:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        let second = stream.failures(1).await;
        assert!(second.contains_key(&2), "{second:?}");
        assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
        served.stop();
    });
}

/// The reader of a stream stands still while large values are read on it.
#[test]
fn a_reader_that_stands_still_stalls_its_own_stream_only() {
    run(|node| async {
        for key in ["a", "b", "c", "d"] {
            node.put(key, vec![7; 1 << 20]).await;
        }
        let served = Served::of(node).await;
        let keys = ["a", "b", "c", "d"];
        let mut slow = Vec::new();
        // Nothing of them is read, and they hold none of the places of the node, which are fewer
        // than all their reads.
        for _ in 0..3 {
            let mut stream = served.stream().await;
            let patient = |id: u64| PipelineOperation {
                timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
                ..get(id, keys[id as usize % 4])
            };
            stream.send((1..=200).map(patient).collect()).await;
            let life = &served.node.shared.life;
            let reads = &served.node.shared.admission.reads;
            let calls = 190 * (slow.len() + 1);
            until("its reads wait", || life.calls() >= calls && reads.under_way() == 0).await;
            slow.push(stream);
        }
        let mut other = served.stream().await;
        let begun = std::time::Instant::now();
        for round in 0..50 {
            let ids = (round * 20 + 1)..=(round * 20 + 20);
            other.send(ids.clone().map(|id| get(id, "none")).collect()).await;
            for (id, answer) in other.answers(20).await {
                assert!(matches!(&answer, Answer::Get(get) if !get.found), "{id}: {answer:?}");
            }
            served.node.put("another", vec![1]).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        // Then one reads on, and has lost nothing.
        for (id, answer) in slow[0].answers(200).await {
            let Answer::Get(get) = answer else { panic!("{answer:?}") };
            assert_eq!(get.value.len(), 1 << 20, "operation {id}");
        }
        served.stop();
    });
}

/// The budget of unread answers, which all streams and calls share.
#[test]
fn answers_beyond_the_nodes_budget_lose_their_values() {
    run(|node| async {
        node.put("large", vec![7; 100_000]).await;
        let answers = Arc::new(Answers::default());
        answers.limit.store(50_000, Ordering::SeqCst);
        let kv = changed(&node, |shared| shared.answers = answers.clone());
        let served = Served::of(Node { kv, ..node }).await;
        let mut stream = served.stream().await;
        let replace = PutRequest {
            key: Bytes::from_static(b"large"),
            value: Bytes::from_static(b"small"),
            return_previous: true,
            ..PutRequest::default()
        };
        stream.send(vec![get(1, "large")]).await;
        let refused = stream.failures(1).await;
        assert_eq!(refused[&1].reason(), Reason::Overloaded);
        assert_eq!(refused[&1].outcome(), Outcome::Unspecified, "it was a read");
        stream.send(vec![operation(2, Operation::Put(replace))]).await;
        let answer = stream.answers(1).await;
        let Answer::Put(replaced) = &answer[&2] else { panic!("{answer:?}") };
        let previous = replaced.previous.as_ref().expect("there was one");
        assert!(replaced.applied && previous.value_omitted && previous.value.is_empty());
        // What fits is whole, and what was sent is given back.
        answers.limit.store(150_000, Ordering::SeqCst);
        served.node.put("large", vec![7; 100_000]).await;
        for id in 3..10 {
            stream.send(vec![get(id, "large")]).await;
            let answer = stream.answers(1).await;
            let Answer::Get(found) = &answer[&id] else { panic!("{answer:?}") };
            assert_eq!(found.value.len(), 100_000);
        }
        until("given back", || answers.used.load(Ordering::SeqCst) == 0).await;
        served.stop();
    });
}

#[test]
fn a_node_that_goes_down_asks_for_the_end_of_streams_and_answers_what_came() {
    run(|node| async {
        let served = Served::of(node).await;
        let mut stream = served.stream().await;
        stream.send(vec![put(1, "k", vec![1])]).await;
        stream.answers(1).await;
        let life = &served.node.shared.life;
        assert_eq!(life.calls(), 0, "a drain waits for operations, not for streams");
        life.enter(NodePhase::Draining, "");
        life.refuse();
        let frame = stream.message().await.expect("a frame").expect("the stream lasts");
        assert!(frame.ending, "{frame:?}");
        // What was on its way then is refused, so that it can be done elsewhere.
        stream.send(vec![put(2, "k", vec![1])]).await;
        let refused = stream.failures(1).await;
        assert_eq!(refused[&2].reason(), Reason::Draining);
        assert_eq!(refused[&2].outcome(), Outcome::NotApplied);
        stream.end();
        assert!(stream.message().await.expect("a clean end").is_none());
        served.stop();
    });
}

#[test]
fn what_a_client_that_left_had_asked_for_is_dropped() {
    run(|node| async {
        let served = Served::of(node).await;
        let mut stream = served.stream().await;
        let shard = served.node.shared.engine.shards().get(GroupId(1)).expect("its shard");
        shard.set_damaged("for this test");
        stream.send((1..=10).map(|id| put(id, "k", vec![1])).collect()).await;
        let life = served.node.shared.life.clone();
        until("they are under way", || life.calls() >= 1).await;
        drop(stream);
        until("they are dropped", || life.calls() == 0).await;
        served.stop();
    });
}
