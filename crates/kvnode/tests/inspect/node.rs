//! A real node, writes of each kind, and the program under test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quorate_proto::v1::batch_operation::Action;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::condition::Expect;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    BatchOperation, BatchRequest, CancelRequest, Condition, DeleteRequest, GetStatusRequest,
    GetStatusResponse, IncrementRequest, OpenSessionRequest, PutAction, PutRequest, WriteSession,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Both back ends of the log.
pub const STORES: [&str; 2] = ["sled", "file"];
/// The shard that the keys of these tests are in.
pub const SHARD: u64 = 1;
/// A value that is found in the files.
pub const VALUE: &str = "lasting-value";

const PATIENCE: Duration = Duration::from_secs(30);

/// Killed when it is dropped.
pub struct Node {
    process: Child,
    channel: Channel,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory for `data` and for the copies.
pub fn home() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("copies")).unwrap();
    home
}

impl Node {
    /// Starts a node of two shards, and waits until it serves.
    pub async fn start(home: &Path, store: &str) -> Node {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kvnode"))
            .args(["start", "--shards=2", "--cluster-name=of-the-test", "--log-store", store])
            .arg(format!("--listen={address}"))
            .arg(format!("--data-dir={}", home.join("data").display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut node = Node { process, channel: endpoint.connect_lazy() };
        let deadline = Instant::now() + PATIENCE;
        while !node.serves().await {
            assert!(node.process.try_wait().unwrap().is_none(), "the node has ended");
            assert!(Instant::now() < deadline, "the node never served");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node
    }

    async fn serves(&self) -> bool {
        let mut cluster = ClusterClient::new(self.channel.clone());
        let Ok(status) = cluster.get_status(GetStatusRequest::default()).await else {
            return false;
        };
        let status = status.into_inner();
        let leads = status.replicas.iter().filter(|replica| replica.leader_node_id == 1).count();
        status.ready && leads == 3
    }

    /// Its status once all that is committed is applied.
    pub async fn status(&self) -> GetStatusResponse {
        let mut cluster = ClusterClient::new(self.channel.clone());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = cluster.get_status(GetStatusRequest::default()).await.unwrap();
            let status = status.into_inner();
            if status.replicas.iter().all(|replica| replica.applied == replica.last) {
                return status;
            }
            assert!(Instant::now() < deadline, "not applied: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// Ends it in order.
    pub fn terminate(mut self) {
        let pid = rustix::process::Pid::from_raw(self.process.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

/// A write as it was acknowledged, and what `--entries` has to say of it.
pub struct Written {
    pub index: u64,
    pub operation: &'static str,
    pub keys: Vec<String>,
    pub conditional: bool,
    pub session: Option<String>,
    pub sequence: Option<u64>,
    pub outcome: Option<&'static str>,
}

/// Every kind of write, with and without a session, all of one shard.
pub async fn write_everything(node: &Node) -> Vec<Written> {
    let mut kv = node.kv();
    let opened = kv.open_session(OpenSessionRequest::default()).await.unwrap().into_inner();
    let id: Bytes = opened.session_id;
    let session =
        |sequence: u64| Some(WriteSession { id: id.clone(), sequence, ..WriteSession::default() });
    let (visits, word) = (of_the_shard("visits"), of_the_shard("word"));
    let absent = || Some(Condition { expect: Some(Expect::Absent(true)) });
    let mut written = Vec::new();
    // The form that shards store is the first 24 bytes of what clients hold.
    let stored: String = id[..24].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut note = |index: Option<u64>, operation, key: &str, sequence: Option<u64>, outcome| {
        let last = written.last().map_or(1, |write: &Written| write.index);
        written.push(Written {
            // A refused write has no receipt; it is the only one that is under way.
            index: index.unwrap_or(last + 1),
            operation,
            keys: if key.is_empty() { Vec::new() } else { vec![key.to_owned()] },
            conditional: false,
            session: sequence.map(|_| stored.clone()),
            sequence,
            outcome,
        });
    };
    let put = PutRequest { key: word.clone().into(), value: VALUE.into(), ..Default::default() };
    let done = kv.put(put.clone()).await.unwrap().into_inner();
    note(done.receipt.map(|at| at.index), "put", &word, None, None);

    let increment = IncrementRequest { key: visits.clone().into(), delta: 3, ..Default::default() };
    let done = kv.increment(increment.clone()).await.unwrap().into_inner();
    note(done.receipt.map(|at| at.index), "increment", &visits, None, None);
    let done = kv.increment(IncrementRequest { session: session(1), ..increment.clone() });
    let done = done.await.unwrap().into_inner();
    note(done.receipt.map(|at| at.index), "increment", &visits, Some(1), Some("applied"));
    let of_word = IncrementRequest { key: word.clone().into(), session: session(2), ..increment };
    kv.increment(of_word).await.unwrap_err();
    note(None, "increment", &word, Some(2), Some("refused"));

    let done = kv.put(PutRequest { session: session(3), condition: absent(), ..put.clone() });
    let done = done.await.unwrap().into_inner();
    assert!(!done.applied);
    note(done.receipt.map(|at| at.index), "put", &word, Some(3), Some("condition_false"));
    let done = kv.put(PutRequest { session: session(4), ..put }).await.unwrap().into_inner();
    note(done.receipt.map(|at| at.index), "put", &word, Some(4), Some("applied"));

    let cancel = CancelRequest {
        key: word.clone().into(),
        session_id: id.clone(),
        sequence: 5,
        ..Default::default()
    };
    kv.cancel(cancel).await.unwrap();
    note(None, "cancel", "", Some(5), Some("barred"));

    let keys = [format!("{{{visits}}}:a"), format!("{{{visits}}}:b")];
    let operations = keys.iter().map(|key| BatchOperation {
        key: key.clone().into(),
        action: Some(Action::Put(PutAction { value: "1".into() })),
        ..Default::default()
    });
    let batch = BatchRequest {
        operations: operations.collect(),
        session: session(6),
        ..Default::default()
    };
    let done = kv.batch(batch).await.unwrap().into_inner();
    note(done.receipt.map(|at| at.index), "batch", "", Some(6), Some("applied"));
    let delete =
        DeleteRequest { key: visits.clone().into(), session: session(7), ..Default::default() };
    let done = kv.delete(delete).await.unwrap().into_inner();
    note(done.receipt.map(|at| at.index), "delete", &visits, Some(7), Some("applied"));

    for write in &mut written {
        write.conditional = write.outcome == Some("condition_false");
        if write.operation == "batch" {
            write.keys = keys.to_vec();
        }
    }
    written
}

/// A key of this name, followed by a number, in the first of two shards.
fn of_the_shard(name: &str) -> String {
    let mut candidates = (0..).map(|number: u32| format!("{name}{number}"));
    let lower = |key: &String| quorate_proto::hash::key_hash(key.as_bytes()) < 1 << 63;
    candidates.find(lower).unwrap()
}

/// Runs `kvnode inspect` on `home/data` with its copies in `home/copies`; gives exit code, stdout,
/// stderr.
pub fn inspect(home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kvnode"))
        .arg("inspect")
        .arg(format!("--data-dir={}", home.join("data").display()))
        .args(arguments)
        .env("TMPDIR", home.join("copies"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A file or folder: when it was last changed, and the bytes of a file.
type Seen = (SystemTime, Option<Vec<u8>>);

/// Everything at and below a directory.
pub fn snapshot(at: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut rest = vec![at.to_owned()];
    while let Some(path) = rest.pop() {
        let Ok(stat) = fs::metadata(&path) else { continue };
        let bytes = stat.is_file().then(|| fs::read(&path).unwrap());
        if stat.is_dir() {
            rest.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        // Copies come and go where they lie.
        if !path.ends_with("copies") {
            seen.insert(path, (stat.modified().unwrap(), bytes));
        }
    }
    seen
}
