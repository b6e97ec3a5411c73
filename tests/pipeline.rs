//! Streams of operations to a cluster: order, leaders that end, and a client of another language.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use quorate_proto::v1::pipeline_answer::Result as Answer;
use quorate_proto::v1::pipeline_operation::Operation;
use quorate_proto::v1::{
    IncrementRequest, Outcome, PipelineAnswer, PipelineOperation, PipelineRequest,
    PipelineResponse, Reason,
};
use quorate_tests::binaries::repository;
use quorate_tests::needs::{Need, met};
use quorate_tests::{Cluster, ClusterOptions};
use tonic::Streaming;

/// Operations under way on a stream.
const IN_FLIGHT: usize = 64;

/// Counters, spread over the shards.
const COUNTERS: u64 = 16;

/// A stream of increments, one after the other of each counter in turn.
struct Increments {
    frames: mpsc::UnboundedSender<PipelineRequest>,
    answers: Streaming<PipelineResponse>,
    next: u64,
    under_way: usize,
}

impl Increments {
    async fn open(cluster: &Cluster, node: u64) -> Self {
        let (frames, receiver) = mpsc::unbounded();
        let answers = cluster.kv(node).pipeline(receiver).await;
        let answers = answers.expect("a stream").into_inner();
        Self { frames, answers, next: 1, under_way: 0 }
    }

    /// Sends as many as may be under way. They stay within the first credit.
    fn fill(&mut self) {
        let mut operations = Vec::new();
        while self.under_way < IN_FLIGHT {
            let key = format!("counter{}", self.next % COUNTERS).into();
            let increment = IncrementRequest { key, delta: 1, ..IncrementRequest::default() };
            let operation = Some(Operation::Increment(increment));
            operations.push(PipelineOperation {
                id: self.next,
                operation,
                ..PipelineOperation::default()
            });
            self.next += 1;
            self.under_way += 1;
        }
        let frame = PipelineRequest { operations, ..PipelineRequest::default() };
        self.frames.unbounded_send(frame).expect("the stream is open");
    }

    async fn answers(&mut self) -> Vec<(u64, Answer)> {
        let frame = tokio::time::timeout(Duration::from_secs(30), self.answers.message());
        let frame = frame.await.expect("a frame in time").expect("no failure of the stream");
        let answers = frame.expect("the stream lasts").answers;
        self.under_way -= answers.len();
        let result = |PipelineAnswer { id, result }| (id, result.expect("a result"));
        answers.into_iter().map(result).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_keep_their_order_on_a_stream_to_any_node() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let mut sums: BTreeMap<u64, i64> = BTreeMap::new();
    for node in cluster.ids() {
        let mut stream = Increments::open(&cluster, node).await;
        let mut answered = BTreeMap::new();
        while answered.len() < 2_000 {
            stream.fill();
            for (id, answer) in stream.answers().await {
                let Answer::Increment(answer) = answer else { panic!("{id}: {answer:?}") };
                answered.insert(id, answer.number);
            }
        }
        // Those that are still under way count as well.
        while stream.under_way > 0 {
            for (id, answer) in stream.answers().await {
                let Answer::Increment(answer) = answer else { panic!("{id}: {answer:?}") };
                answered.insert(id, answer.number);
            }
        }
        for (id, number) in answered {
            let sum = sums.entry(id % COUNTERS).or_default();
            *sum += 1;
            assert_eq!(number, *sum, "node {node}, operation {id} is out of order");
        }
    }
}

/// The leader of some shards is killed and comes back, while a stream to another node lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leader_fails_single_operations_and_not_the_stream() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let killed = cluster.leader(2).await;
    let lasting = cluster.ids().into_iter().find(|id| *id != killed).expect("another node");
    let mut stream = Increments::open(&cluster, lasting).await;
    let (mut applied, mut unknown) = (0_i64, 0_i64);
    let mut failed: BTreeMap<String, u64> = BTreeMap::new();
    let mut stage = 0;
    let mut since = Instant::now();
    // Until all shards have served for a while after the node is back.
    while stage < 3 || since.elapsed() < Duration::from_secs(2) {
        match stage {
            0 if applied > 500 => {
                cluster.kill(killed);
                (stage, since) = (1, Instant::now());
            }
            1 if since.elapsed() > Duration::from_secs(2) => {
                cluster.start_node(killed);
                (stage, since) = (2, Instant::now());
            }
            2 if since.elapsed() > Duration::from_secs(2) => (stage, since) = (3, Instant::now()),
            _ => {}
        }
        stream.fill();
        for (id, answer) in stream.answers().await {
            match answer {
                Answer::Increment(answer) => applied += i64::from(answer.applied),
                Answer::Failure(failure) => {
                    assert!(
                        matches!(
                            failure.reason(),
                            Reason::NoLeader | Reason::OutcomeUnknown | Reason::Overloaded
                        ),
                        "{id}: {failure:?}"
                    );
                    match failure.outcome() {
                        Outcome::Unknown => unknown += 1,
                        Outcome::NotApplied => {}
                        other => panic!("{id}: {other:?}: {failure:?}"),
                    }
                    *failed.entry(failure.reason().name().to_owned()).or_default() += 1;
                }
                other => panic!("{id}: {other:?}"),
            }
        }
    }
    while stream.under_way > 0 {
        for (_, answer) in stream.answers().await {
            match answer {
                Answer::Increment(answer) => applied += i64::from(answer.applied),
                Answer::Failure(failure) => {
                    unknown += i64::from(failure.outcome() == Outcome::Unknown);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    println!("{applied} applied, {unknown} unknown, failed: {failed:?}");
    let client = cluster.client();
    let mut sum = 0;
    for counter in 0..COUNTERS {
        let row = client.get(format!("counter{counter}")).await.expect("a read");
        let number = std::str::from_utf8(&row.value).expect("a number");
        sum += number.parse::<i64>().expect("a number");
    }
    assert!((applied..=applied + unknown).contains(&sum), "{sum}: {applied} and {unknown}");
}

/// Through three killed leaders.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_applies_each_increment_once() {
    if !met("a_python_client_applies_each_increment_once", Need::PythonGrpc) {
        return;
    }
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let mut program = Command::new("python3")
        .arg(repository().join("tests/pipeline/increments.py"))
        .arg("--proto")
        .arg(repository().join("proto"))
        .args(["--endpoints", &cluster.endpoints(), "--count", "6000"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let lines = BufReader::new(program.stdout.take().expect("its output")).lines();
    let mut last = String::new();
    let mut down: Option<u64> = None;
    for line in lines {
        last = line.expect("text");
        match last.as_str() {
            "answered 500" | "answered 2000" | "answered 3500" => {
                let leader = cluster.leader(1).await;
                cluster.kill(leader);
                down = Some(leader);
            }
            "answered 1500" | "answered 3000" | "answered 4500" => {
                if let Some(node) = down.take() {
                    cluster.start_node(node);
                }
            }
            _ => {}
        }
    }
    assert!(program.wait().expect("it ends").success(), "{last}");
    println!("{last}");
    assert!(last.starts_with("6000 of 6000, on "), "{last}");
    assert!(!last.contains(", 0 sent again"), "the kills lost nothing: {last}");
}
