//! A cluster of real processes: started, stopped, killed, paused, cut off and looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::{Client, ClientConfig};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{GetStatusRequest, GetStatusResponse, ReplicaRole, ReplicaStatus};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::binaries;
use crate::logs::LogWatch;
use crate::ports::{Port, lease};
use crate::proxy::{self, Guard, Links};
use crate::wait::{until, until_async};

/// How long a cluster may take to do what it should within a second or two: these machines are
/// noisy, and tests run side by side.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many nodes.
    pub nodes: u64,
    /// How many shards.
    pub shards: u32,
    /// Whether the peers reach each other through proxies, so that links can be cut.
    pub with_links: bool,
    /// Further arguments of `kvnode start`, for all nodes.
    pub arguments: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { nodes: 3, shards: 8, with_links: false, arguments: Vec::new() }
    }
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// One node: its place, its ports, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// The node id.
    pub id: u64,
    /// Its data directory.
    pub data: PathBuf,
    log: PathBuf,
    client: Port,
    peer: Port,
    /// Where peers reach it: its peer port, or its proxy's.
    advertised: Port,
    metrics: Port,
    process: Option<Child>,
    _proxy: Option<Guard>,
}

/// A cluster of processes, which end with it.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    nodes: Vec<Node>,
    links: Arc<Links>,
    directory: TempDir,
}

impl Cluster {
    /// Starts all nodes, and waits until every shard is served everywhere.
    pub async fn start(options: ClusterOptions) -> Cluster {
        let mut cluster = Cluster::prepare(options);
        for id in cluster.ids() {
            cluster.start_node(id);
        }
        cluster.wait_ready().await;
        cluster
    }

    /// Leases the ports and makes the directories; no process runs yet.
    #[must_use]
    pub fn prepare(options: ClusterOptions) -> Cluster {
        let directory = tempfile::Builder::new().prefix("quorate-test-").tempdir();
        let directory = directory.expect("a directory for the cluster");
        let links = Arc::new(Links::default());
        let nodes =
            (1..=options.nodes).map(|id| node(id, directory.path(), &options, &links)).collect();
        let cluster = Cluster { options, nodes, links, directory };
        make_secret(&cluster.secret_file());
        cluster
    }

    /// The ids of all nodes.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: u64) -> &Node {
        self.nodes.iter().find(|node| node.id == id).expect("the node is one of this cluster")
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).expect("the node is one of this cluster")
    }

    /// Puts the data directory of a node that was never started somewhere else.
    pub fn place(&mut self, id: u64, data: PathBuf) {
        let node = self.node_mut(id);
        assert!(!node.log.exists(), "node {id} was started already");
        node.data = data;
    }

    /// A directory of this cluster's own, for what a test leaves behind.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file with the secret that the nodes prove to each other.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.directory.path().join("secret")
    }

    /// Where other nodes reach a node, without its proxy.
    #[must_use]
    pub fn peer_address(&self, id: u64) -> String {
        self.node(id).peer.address()
    }

    /// The arguments with which a node is started.
    #[must_use]
    pub fn arguments(&self, id: u64) -> Vec<String> {
        let node = self.node(id);
        let initial: Vec<String> =
            self.nodes.iter().map(|n| format!("{}={}", n.id, n.advertised.address())).collect();
        let mut arguments: Vec<String> = [
            ("--node-id", id.to_string()),
            ("--data-dir", node.data.display().to_string()),
            ("--listen", node.client.address()),
            ("--peer-listen", node.peer.address()),
            ("--advertise", node.advertised.address()),
            ("--metrics-listen", node.metrics.address()),
            ("--initial-cluster", initial.join(",")),
            ("--secret-file", self.secret_file().display().to_string()),
            ("--shards", self.options.shards.to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }

    /// Starts a node that does not run, with these flags (each with its value) over the usual ones.
    pub fn start_node_with(&mut self, id: u64, more: &[&str]) {
        let mut arguments = self.arguments(id);
        for flag in more.iter().step_by(2) {
            if let Some(at) = arguments.iter().position(|usual| usual == flag) {
                arguments.drain(at..at + 2);
            }
        }
        let node = self.node_mut(id);
        assert!(node.process.is_none(), "node {id} runs already");
        let log = File::options().create(true).append(true).open(&node.log).expect("a log file");
        let process = Command::new(binaries::path("kvnode"))
            .arg("start")
            .args(arguments)
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file is open"))
            .stderr(log)
            .spawn()
            .expect("kvnode starts");
        let pid = process.id();
        node.process = Some(process);
        self.links.set_process(id, pid);
    }

    /// Starts a node that does not run.
    pub fn start_node(&mut self, id: u64) {
        self.start_node_with(id, &[]);
    }

    /// The process id of a running node.
    #[must_use]
    pub fn pid(&self, id: u64) -> u32 {
        self.node(id).process.as_ref().expect("the node runs").id()
    }

    /// Whether the node's process was started and not seen to end.
    #[must_use]
    pub fn runs(&self, id: u64) -> bool {
        self.node(id).process.is_some()
    }

    /// Whether the node's process has ended by itself; [`Cluster::wait_end`] then says how.
    #[must_use]
    pub fn has_ended(&self, id: u64) -> bool {
        // A process that ended and was not waited for is a zombie, state Z behind its name.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid(id))).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    fn signal(&self, id: u64, signal: Signal) {
        let pid = Pid::from_raw(self.pid(id) as i32).expect("a process id is not 0");
        kill_process(pid, signal).expect("the process is this test's own");
    }

    /// Kills a node as a power button would its process: SIGKILL.
    pub fn kill(&mut self, id: u64) -> Exit {
        self.signal(id, Signal::KILL);
        self.wait_end(id)
    }

    /// Kills all running nodes at the same moment, as a power cut would their processes.
    pub fn kill_all(&mut self) {
        let running: Vec<u64> = self.ids().into_iter().filter(|id| self.runs(*id)).collect();
        for id in &running {
            self.signal(*id, Signal::KILL);
        }
        for id in running {
            assert_eq!(self.wait_end(id), Exit::Signal(9), "node {id} was killed");
        }
    }

    /// Starts all nodes that do not run, and waits until every shard is served everywhere.
    pub async fn start_all(&mut self) {
        for id in self.ids() {
            if !self.runs(id) {
                self.start_node(id);
            }
        }
        self.wait_ready().await;
    }

    /// Asks a node to end (SIGTERM) and waits for it.
    pub fn stop(&mut self, id: u64) -> Exit {
        self.signal(id, Signal::TERM);
        self.wait_end(id)
    }

    /// Asks a node to end and does not wait.
    pub fn ask_to_stop(&self, id: u64) {
        self.signal(id, Signal::TERM);
    }

    /// Waits for a node to end.
    pub fn wait_end(&mut self, id: u64) -> Exit {
        let node = self.node_mut(id);
        let mut process = node.process.take().expect("the node runs");
        let status = process.wait().expect("the process is this test's child");
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => unreachable!("a process ends with a code or by a signal"),
        }
    }

    /// Waits for a node to end by itself.
    ///
    /// # Panics
    /// If it does not within `patience`.
    pub fn wait_end_within(&mut self, id: u64, patience: Duration) -> Exit {
        let process = self.node_mut(id).process.as_mut().expect("the node runs");
        until(&format!("node {id} ends"), patience, || {
            process.try_wait().expect("the process is this test's child").map(|_| ())
        });
        self.wait_end(id)
    }

    /// Stops a node in its tracks (SIGSTOP).
    pub fn pause(&self, id: u64) {
        self.signal(id, Signal::STOP);
    }

    /// Lets a stopped node go on (SIGCONT).
    pub fn resume(&self, id: u64) {
        self.signal(id, Signal::CONT);
    }

    /// Cuts a node off from all others, in both directions. Clients still reach it.
    pub fn cut_off(&self, id: u64) {
        assert!(self.options.with_links, "the cluster was made without links");
        for other in self.ids().into_iter().filter(|other| *other != id) {
            self.links.cut(id, other);
            self.links.cut(other, id);
        }
    }

    /// Nothing from the other nodes arrives at this one any more; what it sends does.
    pub fn hold_back(&self, id: u64) {
        assert!(self.options.with_links, "the cluster was made without links");
        for other in self.ids().into_iter().filter(|other| *other != id) {
            self.links.cut(other, id);
        }
    }

    /// Restores all links of a node.
    pub fn reconnect(&self, id: u64) {
        for other in self.ids().into_iter().filter(|other| *other != id) {
            self.links.heal(id, other);
            self.links.heal(other, id);
        }
    }

    /// Removes the data directory of a node that does not run.
    pub fn wipe(&self, id: u64) {
        assert!(!self.runs(id), "node {id} runs");
        fs::remove_dir_all(&self.node(id).data).expect("the directory can be removed");
    }

    /// What a node has logged, over all its starts.
    #[must_use]
    pub fn log(&self, id: u64) -> String {
        fs::read_to_string(&self.node(id).log).unwrap_or_default()
    }

    /// Follows what a node logs from now on.
    #[must_use]
    pub fn watch_log(&self, id: u64) -> LogWatch {
        LogWatch::from_now(&self.node(id).log)
    }

    /// The client addresses of all nodes, separated by commas.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|n| n.client.address()).collect();
        addresses.join(",")
    }

    /// The client address of one node.
    #[must_use]
    pub fn endpoint(&self, id: u64) -> String {
        self.node(id).client.address()
    }

    /// The address of a node's metrics listener.
    #[must_use]
    pub fn metrics_address(&self, id: u64) -> String {
        self.node(id).metrics.address()
    }

    /// A client that knows all nodes.
    #[must_use]
    pub fn client(&self) -> Client {
        let endpoints = self.nodes.iter().map(|node| node.client.address());
        Client::new(ClientConfig::new(endpoints).expect("addresses are endpoints"))
    }

    /// A raw channel to one node, without routing or retries.
    #[must_use]
    pub fn channel(&self, id: u64) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.endpoint(id)))
            .expect("an address is an endpoint")
            .connect_timeout(Duration::from_secs(2))
            .connect_lazy()
    }

    /// Runs kvctl against all nodes.
    #[must_use]
    pub fn kvctl(&self, arguments: &[&str]) -> Output {
        self.kvctl_with_input(arguments, b"")
    }

    /// Runs kvctl against all nodes, with this standard input.
    #[must_use]
    pub fn kvctl_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut process = Command::new(binaries::path("kvctl"))
            .args(["--endpoints", &self.endpoints()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kvctl starts");
        let mut stdin = process.stdin.take().expect("its input is a pipe");
        // A command that does not read its input closes it.
        let _ = stdin.write_all(input);
        drop(stdin);
        process.wait_with_output().expect("kvctl ends")
    }

    /// How a node stands, if it answers within two seconds.
    pub async fn status(&self, id: u64) -> Option<GetStatusResponse> {
        let mut client = ClusterClient::new(self.channel(id));
        let ask = client.get_status(GetStatusRequest::default());
        let answer = tokio::time::timeout(Duration::from_secs(2), ask).await.ok()?.ok()?;
        Some(answer.into_inner())
    }

    /// How the running nodes stand, as far as they answer.
    pub async fn statuses(&self) -> BTreeMap<u64, GetStatusResponse> {
        let mut all = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            if let Some(status) = self.status(node.id).await {
                all.insert(node.id, status);
            }
        }
        all
    }

    /// Waits until every running node is ready and every shard has a leader that is one of them.
    pub async fn wait_ready(&self) {
        let running = self.nodes.iter().filter(|node| node.process.is_some()).count();
        until_async("every shard has a leader, every node is ready", TIMEOUT, || async {
            let statuses = self.statuses().await;
            let ready = statuses.values().filter(|status| status.ready).count();
            let led = leaders(&statuses).len();
            (ready == running && led == self.options.shards as usize + 1).then_some(())
        })
        .await;
    }

    /// The leader of each shard, as the leaders themselves say.
    pub async fn leaders(&self) -> BTreeMap<u64, u64> {
        leaders(&self.statuses().await)
    }

    /// The leader of one shard; waits until there is one.
    pub async fn leader(&self, shard: u64) -> u64 {
        until_async("the shard has a leader", TIMEOUT, || async {
            self.leaders().await.get(&shard).copied()
        })
        .await
    }

    /// Waits until all replicas of all shards on the running nodes have applied the same, and
    /// checks that they hold the same: equal digests at equal indexes.
    pub async fn wait_equal(&self) {
        until_async("all replicas have applied the same", TIMEOUT, || async {
            let statuses = self.statuses().await;
            let mut by_shard: BTreeMap<u64, Vec<&ReplicaStatus>> = BTreeMap::new();
            for replica in statuses.values().flat_map(|status| &status.replicas) {
                by_shard.entry(replica.shard).or_default().push(replica);
            }
            let first = |replicas: &Vec<&ReplicaStatus>| replicas.first().map(|r| r.digest_applied);
            let settled = by_shard.len() == self.options.shards as usize + 1
                && by_shard.values().all(|replicas| {
                    replicas.len() == statuses.len()
                        && replicas.iter().all(|r| Some(r.digest_applied) == first(replicas))
                });
            if !settled {
                return None;
            }
            for (shard, replicas) in by_shard {
                let digests: Vec<_> = replicas.iter().map(|replica| &replica.digest).collect();
                let equal = digests.windows(2).all(|pair| pair[0] == pair[1]);
                assert!(equal, "shard {shard}: replicas differ at one index: {replicas:?}");
            }
            Some(())
        })
        .await;
    }
}

/// Makes a secret for nodes, as a user would.
///
/// # Panics
/// If that fails.
pub fn make_secret(file: &Path) {
    let made = Command::new(binaries::path("kvnode")).args(["secret", "--out"]).arg(file).output();
    let made = made.expect("kvnode starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn leaders(statuses: &BTreeMap<u64, GetStatusResponse>) -> BTreeMap<u64, u64> {
    let mut leaders: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (node, status) in statuses {
        for replica in &status.replicas {
            if replica.role() == ReplicaRole::Leader {
                let newest = leaders.entry(replica.shard).or_default();
                *newest = (*newest).max((replica.term, *node));
            }
        }
    }
    leaders.into_iter().map(|(shard, (_, node))| (shard, node)).collect()
}

fn node(id: u64, directory: &Path, options: &ClusterOptions, links: &Arc<Links>) -> Node {
    let mut ports = lease(if options.with_links { 4 } else { 3 });
    let metrics = ports.pop().expect("leased");
    let client = ports.pop().expect("leased");
    let peer = ports.pop().expect("leased");
    let (advertised, proxy) = match ports.pop() {
        Some(port) => {
            let listen: SocketAddr = port.address().parse().expect("an address");
            let target: SocketAddr = peer.address().parse().expect("an address");
            (port, Some(proxy::spawn(listen, id, target, links.clone())))
        }
        None => (peer.clone(), None),
    };
    Node {
        id,
        data: directory.join(format!("n{id}")),
        log: directory.join(format!("n{id}.log")),
        client,
        peer,
        advertised,
        metrics,
        process: None,
        _proxy: proxy,
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                // It may have ended by itself.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                eprintln!("--- the end of node {}'s log\n{}", node.id, tail.join("\n"));
            }
        }
    }
}
