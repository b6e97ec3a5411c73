//! What the node measures: every metric with its name, unit and help text in one place, and the HTTP
//! listener where they are read.
//!
//! Names are stable for ever. Counters end in `_total`, latencies are in seconds, sizes in bytes. No
//! label ever holds a key or anything else that a client chooses.

mod bounded;
mod histogram;
mod http;
mod process;
mod requests;

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::version::VERSION;

pub use histogram::Histogram;
pub use http::{HealthSource, bind, serve};
pub use process::resident_bytes;
pub use requests::{LevelLabel, Method, Requests};

/// A gauge of a real number.
pub type RealGauge = Gauge<f64, AtomicU64>;

/// All metrics of a node. The fields are handles: cheap to clone and to count on, without a look-up.
pub struct Metrics {
    registry: Registry,
    /// Requests of clients.
    pub requests: Requests,
    /// Time from proposing a write to its answer being ready.
    pub proposal_seconds: Histogram,
    /// Time from proposing an entry to its commit, at the leader.
    pub commit_seconds: Histogram,
    /// Time to apply one batch of committed entries of one shard.
    pub apply_seconds: Histogram,
    /// Time of one barrier of the log (what makes a record durable).
    pub fsync_seconds: Histogram,
    /// Time of one checkpoint of a shard.
    pub checkpoint_seconds: Histogram,
    /// Entries in one record of the log, over all groups.
    pub log_record_entries: Histogram,
    /// Bytes of one record of the log.
    pub log_record_bytes: Histogram,
    /// Entries applied in one batch.
    pub apply_batch_entries: Histogram,
    /// Elections this node began as a candidate (pre-votes that failed are not counted).
    pub elections: Counter,
    /// Times a group of this node learnt of another leader.
    pub leader_changes: Counter,
    /// Groups led by this node.
    pub leaders: Gauge,
    /// Groups with a replica on this node.
    pub groups: Gauge,
    /// Groups of this node that know no leader.
    pub groups_without_leader: Gauge,
    /// Largest number of committed entries that a replica of this node has yet to apply.
    pub apply_lag_entries: Gauge,
    /// Largest number of entries that a follower of a group led here has yet to acknowledge.
    pub replication_lag_entries: Gauge,
    /// Sessions remembered by the replicas of this node.
    pub sessions: Gauge,
    /// Requests passed on to another node.
    pub forwarded: Counter,
    /// Snapshots sent whole to a follower.
    pub snapshots_sent: Counter,
    /// Snapshots received whole and installed.
    pub snapshots_installed: Counter,
    /// Open connections of clients.
    pub connections: Gauge,
    /// Requests of connections beyond the limits, and connections closed because too many asked nothing.
    pub connections_refused: Counter,
    /// Bytes the data directory takes.
    pub disk_used_bytes: Gauge,
    /// Bytes free on the file system of the data directory.
    pub disk_free_bytes: Gauge,
    /// Bytes of the log, over all groups.
    pub log_bytes: Gauge,
    /// Bytes of applied state that is not yet checkpointed.
    pub delta_bytes: Gauge,
    shed: Family<ReasonLabel, Counter>,
    connections_closed: Family<ReasonLabel, Counter>,
    queues: QueueFamilies,
    peers: PeerFamilies,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: u64,
}

/// Handles of one bounded queue.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    /// What waits in it now.
    pub items: Gauge,
    /// The bytes that wait in it now.
    pub bytes: Gauge,
    /// How often it was full.
    pub full: Counter,
}

/// Handles of one other node.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    /// 1 while the control connection to it stands, else 0.
    pub connected: Gauge,
    /// Messages handed to its connections.
    pub sent: Counter,
    /// Messages dropped because its queue was full or it was not connected.
    pub dropped: Counter,
}

struct QueueFamilies {
    items: Family<QueueLabel, Gauge>,
    bytes: Family<QueueLabel, Gauge>,
    full: Family<QueueLabel, Counter>,
}

struct PeerFamilies {
    connected: Family<PeerLabel, Gauge>,
    sent: Family<PeerLabel, Counter>,
    dropped: Family<PeerLabel, Counter>,
    clock_offset: Family<PeerLabel, RealGauge>,
}

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut root = Registry::default();
        process::register(&mut root);
        let r = root.sub_registry_with_prefix("quorate");
        let build = Info::new([("version", VERSION)]);
        r.register("build", "The program that runs", build);
        Self {
            requests: Requests::register(r),
            proposal_seconds: latency(
                r,
                "proposal_seconds",
                "Time from proposing a write to its answer",
            ),
            commit_seconds: latency(
                r,
                "commit_seconds",
                "Time from proposing an entry to its commit, at the leader",
            ),
            apply_seconds: latency(
                r,
                "apply_seconds",
                "Time to apply one batch of committed entries",
            ),
            fsync_seconds: latency(r, "fsync_seconds", "Time of one barrier of the log"),
            checkpoint_seconds: latency(
                r,
                "checkpoint_seconds",
                "Time of one checkpoint of a shard",
            ),
            log_record_entries: added(
                r,
                "log_record_entries",
                "Entries in one record of the log",
                Histogram::count(),
            ),
            log_record_bytes: added(
                r,
                "log_record_bytes",
                "Bytes of one record of the log",
                Histogram::bytes(),
            ),
            apply_batch_entries: added(
                r,
                "apply_batch_entries",
                "Entries applied in one batch",
                Histogram::count(),
            ),
            elections: counter(r, "elections", "Elections begun by this node"),
            leader_changes: counter(
                r,
                "leader_changes",
                "Times a group of this node learnt of another leader",
            ),
            leaders: gauge(r, "leaders", "Groups led by this node"),
            groups: gauge(r, "groups", "Groups with a replica on this node"),
            groups_without_leader: gauge(
                r,
                "groups_without_leader",
                "Groups of this node that know no leader",
            ),
            apply_lag_entries: gauge(
                r,
                "apply_lag_entries",
                "Most committed entries that a replica here has yet to apply",
            ),
            replication_lag_entries: gauge(
                r,
                "replication_lag_entries",
                "Most entries that a follower of a group led here has yet to acknowledge",
            ),
            sessions: gauge(r, "sessions", "Sessions remembered by the replicas of this node"),
            forwarded: counter(r, "forwarded", "Requests passed on to another node"),
            snapshots_sent: counter(r, "snapshots_sent", "Snapshots sent whole to a follower"),
            snapshots_installed: counter(
                r,
                "snapshots_installed",
                "Snapshots received whole and installed",
            ),
            connections: gauge(r, "connections", "Open connections of clients"),
            connections_refused: counter(
                r,
                "connections_refused",
                "Requests refused at the limit of connections, and connections closed that asked nothing",
            ),
            disk_used_bytes: gauge(r, "disk_used_bytes", "Bytes the data directory takes"),
            disk_free_bytes: gauge(
                r,
                "disk_free_bytes",
                "Bytes free on the file system of the data directory",
            ),
            log_bytes: gauge(
                r,
                "log_bytes",
                "Bytes of the log's records on disk, the dead ones not yet removed included",
            ),
            delta_bytes: gauge(
                r,
                "delta_bytes",
                "Bytes of applied state that is not yet checkpointed",
            ),
            shed: added(
                r,
                "shed",
                "Requests refused to protect the node, by reason",
                Family::default(),
            ),
            connections_closed: added(
                r,
                "connections_closed",
                "Connections of clients asked to leave: idle, aged, or yielded to another client",
                Family::default(),
            ),
            queues: QueueFamilies {
                items: added(r, "queue_items", "What waits in a queue", Family::default()),
                bytes: added(r, "queue_bytes", "Bytes that wait in a queue", Family::default()),
                full: added(r, "queue_full", "Times a queue was full", Family::default()),
            },
            peers: PeerFamilies {
                connected: added(
                    r,
                    "peer_connected",
                    "1 while the control connection to a node stands",
                    Family::default(),
                ),
                sent: added(
                    r,
                    "peer_messages_sent",
                    "Messages handed to the connections of a node",
                    Family::default(),
                ),
                dropped: added(
                    r,
                    "peer_messages_dropped",
                    "Messages to a node that were dropped",
                    Family::default(),
                ),
                clock_offset: added(
                    r,
                    "clock_offset_seconds",
                    "How far the wall clock of another node is ahead of ours, as its heartbeats and \
                     answers to ours report; too low by their time under way; absent when none came \
                     for 10 s",
                    Family::default(),
                ),
            },
            registry: root,
        }
    }

    /// The counter of requests refused for `reason` (`overloaded`, `disk_full`, …); keep it, as this
    /// looks it up.
    #[must_use]
    pub fn shed(&self, reason: &'static str) -> Counter {
        self.shed.get_or_create_owned(&ReasonLabel { reason })
    }

    /// The counter of connections that were asked to leave for this reason. Keep the handle.
    #[must_use]
    pub fn connections_closed(&self, reason: &'static str) -> Counter {
        self.connections_closed.get_or_create_owned(&ReasonLabel { reason })
    }

    /// The handles of a queue, by the name it has in the table of queues; keep them.
    #[must_use]
    pub fn queue(&self, queue: &'static str) -> QueueMetrics {
        let label = QueueLabel { queue };
        QueueMetrics {
            items: self.queues.items.get_or_create_owned(&label),
            bytes: self.queues.bytes.get_or_create_owned(&label),
            full: self.queues.full.get_or_create_owned(&label),
        }
    }

    /// The handles of another node, by its id; keep them.
    #[must_use]
    pub fn peer(&self, peer: u64) -> PeerMetrics {
        let label = PeerLabel { peer };
        PeerMetrics {
            connected: self.peers.connected.get_or_create_owned(&label),
            sent: self.peers.sent.get_or_create_owned(&label),
            dropped: self.peers.dropped.get_or_create_owned(&label),
        }
    }

    /// Sets the wall clock of another node less ours, in seconds. `None` = not known: then there is
    /// no such series, rather than one that stands still.
    pub fn set_clock_offset(&self, peer: u64, seconds: Option<f64>) {
        let label = PeerLabel { peer };
        match seconds {
            Some(seconds) => {
                self.peers.clock_offset.get_or_create_owned(&label).set(seconds);
            }
            None => {
                self.peers.clock_offset.remove(&label);
            }
        }
    }

    /// All metrics in the Prometheus (OpenMetrics) text format.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

fn added<M: prometheus_client::registry::Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn latency(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    added(registry, name, help, Histogram::latency())
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    added(registry, name, help, Counter::default())
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    added(registry, name, help, Gauge::default())
}
