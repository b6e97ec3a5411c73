//! Three servers of one store on this machine, started anew for each visit.
//!
//! Both stores run alike: three processes on 127.0.0.1, data directories beside each other, their
//! own defaults for durability, which is an fdatasync of the log on a majority before a write is
//! acknowledged.

mod etcd;
mod quorate;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::fatal::Fatal;
use super::page;
use super::process::Process;
use super::slice::Servers;
use super::usage::{self, Usage};

/// Nodes of a cluster, and replicas of everything in it.
pub(super) const NODES: usize = 3;

/// How long a cluster may take to become ready; a second or two is usual.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked whether it is.
const READY_PERIOD: Duration = Duration::from_millis(50);

/// Which store a cluster is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ours.
    Quorate,
    /// The other one.
    Etcd,
}

impl Kind {
    /// The name that people know.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Quorate => "quorate",
            Kind::Etcd => "etcd",
        }
    }

    /// The metric that counts the syncs of the log of one node.
    fn syncs(self) -> &'static str {
        match self {
            Kind::Quorate => "quorate_fsync_seconds_count",
            Kind::Etcd => "etcd_disk_wal_fsync_duration_seconds_count",
        }
    }
}

/// What clusters are made with.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// The server of ours.
    pub(super) kvnode: PathBuf,
    /// The server of etcd; `None` = ours alone is measured.
    pub(super) etcd: Option<PathBuf>,
    /// Shards of a cluster of ours.
    pub(super) shards: u32,
    /// What `kvnode --log-store` gets; `None` = its default.
    pub(super) log_store: Option<String>,
    /// Where the directories of clusters are made.
    pub(super) directory: PathBuf,
}

/// Where one node is reached, `host:port` each.
#[derive(Debug)]
struct Places {
    client: String,
    peer: String,
    /// Where its metrics are.
    pages: String,
}

#[derive(Debug)]
struct Node {
    process: Process,
    data: PathBuf,
    places: Places,
}

/// A running cluster. It ends, and its data is removed, with this value.
#[derive(Debug)]
pub(super) struct Cluster {
    kind: Kind,
    // The processes end before their directory is removed: fields are dropped in this order.
    nodes: Vec<Node>,
    _directory: TempDir,
}

impl Cluster {
    /// Starts a new, empty cluster and waits until it serves everything.
    ///
    /// # Errors
    /// A server cannot be started, ends, or is not ready within a minute; with the end of its log.
    pub(super) async fn start(kind: Kind, setup: &Setup) -> Result<Cluster, Fatal> {
        let directory = tempfile::Builder::new().prefix("kvbench-").tempdir_in(&setup.directory);
        let cannot = format!("cannot make a directory in {} (--dir)", setup.directory.display());
        let directory = directory.map_err(Fatal::machine(cannot))?;
        let places = lease().map_err(Fatal::machine("cannot find free ports"))?;
        let commands = match kind {
            Kind::Quorate => quorate::commands(setup, directory.path(), &places)?,
            Kind::Etcd => etcd::commands(setup, directory.path(), &places)?,
        };
        let mut cluster = Cluster { kind, nodes: Vec::new(), _directory: directory };
        for (id, (places, (program, arguments))) in (1..).zip(places.into_iter().zip(commands)) {
            let home = cluster._directory.path();
            let data = data(home, id);
            let log = home.join(format!("n{id}.log"));
            let cannot = format!("cannot start {}", program.display());
            let process = Process::start(&program, &arguments, log);
            let process = process.map_err(Fatal::machine(cannot))?;
            cluster.nodes.push(Node { process, data, places });
        }
        cluster.wait_ready(setup).await?;
        Ok(cluster)
    }

    async fn wait_ready(&mut self, setup: &Setup) -> Result<(), Fatal> {
        let begun = Instant::now();
        loop {
            self.check_alive()?;
            let places: Vec<&Places> = self.nodes.iter().map(|node| &node.places).collect();
            let lacking = match self.kind {
                Kind::Quorate => quorate::lacking(&places, setup.shards).await,
                Kind::Etcd => etcd::lacking(&places).await,
            };
            let Some((at, why)) = lacking else { return Ok(()) };
            if begun.elapsed() > READY_PATIENCE {
                return Err(Fatal::NotReady {
                    store: self.kind.name(),
                    node: at + 1,
                    why,
                    patience: READY_PATIENCE,
                    log: self.nodes[at].process.last_words(),
                });
            }
            tokio::time::sleep(READY_PERIOD).await;
        }
    }

    /// The addresses for clients, `host:port`.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.places.client.clone()).collect()
    }
}

impl Servers for Cluster {
    fn check_alive(&mut self) -> Result<(), Fatal> {
        for (node, number) in self.nodes.iter_mut().zip(1..) {
            if let Some(how) = node.process.end() {
                let (store, log) = (self.kind.name(), node.process.last_words());
                return Err(Fatal::Ended { store, node: number, how, log });
            }
        }
        Ok(())
    }

    fn usage(&self) -> Result<Usage, Fatal> {
        let mut sum = Usage::default();
        for (node, number) in self.nodes.iter().zip(1..) {
            let cannot = format!("cannot read what node {number} of {} takes", self.kind.name());
            let usage = node.process.usage().map_err(Fatal::machine(cannot))?;
            sum.cpu += usage.cpu;
            sum.resident += usage.resident;
        }
        Ok(sum)
    }

    async fn syncs(&self) -> Result<f64, Fatal> {
        let mut sum = 0.0;
        for (node, number) in self.nodes.iter().zip(1..) {
            let store = self.kind.name();
            let cannot = || format!("cannot read the metrics of node {number} of {store}");
            let page = page::get(&node.places.pages, "/metrics").await;
            let page = page.map_err(Fatal::machine(cannot()))?;
            let name = self.kind.syncs();
            let absent = || std::io::Error::other(format!("the page has no {name}"));
            let count = page::metric(&page, name).ok_or_else(absent);
            sum += count.map_err(Fatal::machine(cannot()))?;
        }
        Ok(sum)
    }

    fn disk(&self) -> Result<u64, Fatal> {
        let sizes = self.nodes.iter().map(|node| usage::of_directory(&node.data));
        let sum: std::io::Result<u64> = sizes.sum();
        sum.map_err(Fatal::machine(format!("cannot measure the data of {}", self.kind.name())))
    }
}

/// The data directory of a node.
fn data(home: &Path, id: usize) -> PathBuf {
    home.join(format!("n{id}"))
}

/// Free ports of 127.0.0.1, three for each node. All are bound at once, so that they differ, and
/// freed for the servers when this returns.
fn lease() -> std::io::Result<Vec<Places>> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let bound = (0..3 * NODES).map(bind).collect::<std::io::Result<Vec<TcpListener>>>()?;
    let addresses = bound.iter().map(|listener| Ok(listener.local_addr()?.to_string()));
    let addresses = addresses.collect::<std::io::Result<Vec<String>>>()?;
    let places = addresses.chunks_exact(3).map(|three| Places {
        client: three[0].clone(),
        peer: three[1].clone(),
        pages: three[2].clone(),
    });
    Ok(places.collect())
}

/// What a program prints about its version: the first line.
///
/// # Errors
/// It cannot be run, or refuses.
pub(super) fn version(program: &Path, argument: &str) -> Result<String, Fatal> {
    run(program, &[argument]).map(|output| output.lines().next().unwrap_or_default().to_owned())
}

/// Runs a program to its end and returns what it printed.
fn run(program: &Path, arguments: &[&str]) -> Result<String, Fatal> {
    let cannot = || format!("cannot run {} {}", program.display(), arguments.join(" "));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(Fatal::machine(cannot()))?;
    if !output.status.success() {
        let sentence = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let error = std::io::Error::other(format!("{}: {sentence}", output.status));
        return Err(Fatal::Machine { what: cannot(), error });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes the directory of a node.
fn make_data(home: &Path, id: usize) -> Result<String, Fatal> {
    let data = data(home, id);
    // As both stores want it: for the user alone.
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&data).map_err(Fatal::machine(format!("cannot make {}", data.display())))?;
    Ok(data.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_ports_of_a_cluster_are_free_and_differ() {
        let places = lease().unwrap();
        assert_eq!(places.len(), NODES);
        let all: BTreeSet<&str> =
            places.iter().flat_map(|p| [&*p.client, &*p.peer, &*p.pages]).collect();
        assert_eq!(all.len(), 3 * NODES);
        assert!(all.iter().all(|address| address.starts_with("127.0.0.1:")), "{all:?}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_come_up_is_a_sentence_with_the_end_of_its_log() {
        let home = tempfile::tempdir().unwrap();
        let etcd = home.path().join("etcd");
        fs::write(&etcd, "#!/bin/sh\necho no such flag: $1 >&2\nexit 4\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&etcd, mode).unwrap();
        let setup = Setup {
            kvnode: "kvnode".into(),
            etcd: Some(etcd),
            shards: 1,
            log_store: None,
            directory: home.path().to_owned(),
        };
        let sentence = Cluster::start(Kind::Etcd, &setup).await.unwrap_err().to_string();
        let expected = "of etcd ended by itself (exit status: 4); the end of its log:\n\
                        no such flag: --name";
        assert!(sentence.contains(expected), "{sentence}");
        let left: Vec<_> = fs::read_dir(home.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "the directory of the cluster is removed: {left:?}");
        let none = Setup { directory: home.path().join("none"), ..setup };
        let sentence = Cluster::start(Kind::Etcd, &none).await.unwrap_err().to_string();
        assert!(sentence.contains("(--dir)"), "{sentence}");
    }
}
