//! The log of a real node, whose reader stands still or is slow, and which strangers try to fill.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use quorate_proto::v1::PutRequest;
use quorate_proto::v1::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// More than a pipe holds, whatever its size.
const FULL: usize = 1 << 20;
/// A test that waits for longer than this fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Killed when the test ends, however it ends.
struct Node {
    process: Child,
    /// Read by the test alone.
    stderr: Option<ChildStderr>,
    address: String,
    metrics: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address that is free now.
fn free() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Node {
    fn start(data: &Path, more: &[&str]) -> Self {
        let (address, metrics) = (free(), free());
        let mut process = Command::new(env!("CARGO_BIN_EXE_kvnode"))
            .args(["start", "--shards=1", "--listen", &address, "--metrics-listen", &metrics])
            .arg(format!("--data-dir={}", data.display()))
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = process.stderr.take();
        Self { process, stderr, address, metrics }
    }

    async fn kv(&self) -> KvClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let connected = endpoint.connect().await;
            if let Ok(channel) = connected {
                return KvClient::new(channel);
            }
            assert!(Instant::now() < deadline, "the node never listened");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A page of the metrics' listener, with its head.
    async fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.metrics).await.unwrap();
        let host = &self.metrics;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer));
        read.await.expect("the page ends").unwrap();
        answer
    }

    async fn dropped(&self, reason: &str) -> u64 {
        let page = self.page("/metrics").await;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        let series = format!("quorate_log_lines_dropped_total{{reason=\"{reason}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&series));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Lets it log until lines are lost.
    async fn fill(&self, kv: &mut KvClient<Channel>) {
        let deadline = Instant::now() + PATIENCE;
        while self.dropped("unread").await == 0 {
            put(kv).await;
            assert!(Instant::now() < deadline, "nothing was lost: is the pipe read?");
        }
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.process.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    async fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the node never ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn put(kv: &mut KvClient<Channel>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let mut request = tonic::Request::new(put);
        request.set_timeout(PATIENCE);
        // A node that stands still does not answer at all.
        match tokio::time::timeout(PATIENCE, kv.put(request)).await.expect("an answer") {
            Ok(_) => return,
            Err(status) => assert!(Instant::now() < deadline, "no put succeeded: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_reader_that_stands_still_stops_neither_the_node_nor_its_end() {
    let home = tempfile::tempdir().unwrap();
    // Each frame of HTTP/2 is a line.
    let mut node = Node::start(&home.path().join("data"), &["--log-level=trace"]);
    let mut kv = node.kv().await;
    node.fill(&mut kv).await;
    // Nothing of this finds room in the log.
    for _ in 0..50 {
        put(&mut kv).await;
    }
    assert!(node.page("/livez").await.starts_with("HTTP/1.1 200"), "the node is not live");
    node.terminate();
    assert_eq!(node.ended().await, Some(0));
    let mut log = Vec::new();
    node.stderr.take().unwrap().read_to_end(&mut log).unwrap();
    assert!(log.len() < FULL, "the pipe was read");
}

#[tokio::test]
async fn a_reader_that_reads_again_sees_what_it_missed_and_the_end() {
    let home = tempfile::tempdir().unwrap();
    let mut node = Node::start(&home.path().join("data"), &["--log-level=trace"]);
    let mut kv = node.kv().await;
    node.fill(&mut kv).await;
    let stderr = node.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stderr).lines().map(Result::unwrap);
        let kept: Vec<String> =
            lines.filter(|line| line.contains("log: ") || line.contains("node: stopped")).collect();
        kept
    });
    let deadline = Instant::now() + PATIENCE;
    let mut lost = 0;
    loop {
        let now = node.dropped("unread").await;
        if now == lost {
            break;
        }
        lost = now;
        assert!(Instant::now() < deadline, "lines are still lost");
    }
    put(&mut kv).await;
    node.terminate();
    assert_eq!(node.ended().await, Some(0));
    let lines = reader.join().unwrap();
    let missed = lines.iter().find(|line| line.contains("log: lines lost"));
    let missed = missed.unwrap_or_else(|| panic!("{lines:?}"));
    assert!(missed.contains("\"lines\":"), "a field says how many: {missed}");
    assert!(lines.last().is_some_and(|line| line.contains("node: stopped")), "{lines:?}");
}

#[tokio::test]
async fn strangers_do_not_fill_the_log() {
    let home = tempfile::tempdir().unwrap();
    let mut node = Node::start(&home.path().join("data"), &[]);
    node.kv().await;
    // 256 may be silent; each one more is a line.
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(&node.address).await.unwrap());
    }
    let deadline = Instant::now() + PATIENCE;
    while node.dropped("repeated").await < 200 {
        assert!(Instant::now() < deadline, "every line was logged");
    }
    node.terminate();
    assert_eq!(node.ended().await, Some(0));
    let mut log = String::new();
    node.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let logged = log.lines().filter(|line| line.contains("connection: rejected\"")).count();
    assert!((50..120).contains(&logged), "{logged} of 344\n{log}");
    let left_out = "\"like\":\"connection: rejected\"";
    let count: usize = log
        .lines()
        .filter(|line| line.contains(left_out))
        .map(|line| line.split("\"count\":").nth(1).unwrap())
        .map(|rest| rest.split([',', '}']).next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert!(count >= 200, "{count} left out by the log's own words\n{log}");
}
