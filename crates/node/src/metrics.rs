//! Metrics of the node, in one registry with those of the engine and the services.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use quorate_engine::EngineMetrics;
use quorate_metrics::{metrics, process, registered};
use quorate_proto::version::VERSION;
use quorate_service::metrics::ServiceMetrics;

use crate::log;

/// A gauge of a real number.
pub type RealGauge = Gauge<f64, AtomicU64>;

metrics! {
    /// Metrics that the node itself sets.
    pub struct NodeMetrics {
        /// 1 if the node takes requests, otherwise 0, as `/readyz` says.
        ready: gauge,
        /// 1 if the engine's loops and the disk move, otherwise 0, as `/livez` says.
        live: gauge,
        /// Groups led by this node.
        leaders: gauge,
        /// Groups with a replica on this node.
        groups: gauge,
        /// Groups of this node that know no leader.
        groups_without_leader: gauge,
        /// Replicas of this node that are damaged and serve nothing.
        replicas_damaged: gauge,
        /// Largest apply lag on this node, in entries.
        apply_lag_entries: gauge,
        /// Largest number of entries that a follower of a group led here has not acknowledged.
        replication_lag_entries: gauge,
        /// Sessions stored by the replicas of this node.
        sessions: gauge,
        /// Snapshots sent whole to a follower.
        snapshots_sent: counter,
        /// Open connections of clients.
        connections: gauge,
        /// Requests rejected at the limit of connections, and connections closed without a request.
        connections_refused: counter,
        /// Streams and calls on the peer listener whose caller did not prove the cluster's secret.
        peer_calls_unproven: counter,
        /// Requests and answers refused because the bytes of all bodies had no room for them.
        bodies_refused: counter,
        /// Requests refused because they were not complete in time.
        requests_overdue: counter,
        /// Answers reset because their readers took nothing of them.
        answers_unread: counter,
        /// Bytes used by the data directory.
        disk_used_bytes: gauge,
        /// Bytes free on the file system of the data directory.
        disk_free_bytes: gauge,
        /// What the disk still takes: 0 all writes, 1 deletes only, 2 nothing.
        disk_level: gauge,
        /// Bytes of the log's records on disk, the dead ones not yet removed included.
        log_bytes: gauge,
        /// Bytes of applied state that is not yet checkpointed.
        delta_bytes: gauge,
    }
}

/// All metrics of a node.
pub struct Metrics {
    registry: Registry,
    /// Metrics of the engine.
    pub engine: Arc<EngineMetrics>,
    /// Metrics of the services.
    pub service: Arc<ServiceMetrics>,
    /// Metrics that the node itself sets.
    pub node: NodeMetrics,
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
    /// The bytes that wait in it.
    pub bytes: Gauge,
}

/// Handles of one other node.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    /// 1 while the control connection to it is up, otherwise 0.
    pub connected: Gauge,
    /// Messages handed to its connections.
    pub sent: Counter,
    /// Messages dropped because its queue was full or it was not connected.
    pub dropped: Counter,
}

struct QueueFamilies {
    bytes: Family<QueueLabel, Gauge>,
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
        r.register("build", "The version of the running program", build);
        let closed =
            "Connections of clients asked to close: idle, aged, or yielded to another client";
        let dropped = "Lines of the log that did not reach standard error: repeated, or unread";
        registered(r, "log_lines_dropped", dropped, log::dropped());
        Self {
            engine: Arc::new(EngineMetrics::register(r)),
            service: Arc::new(ServiceMetrics::register(r)),
            node: NodeMetrics::register(r),
            connections_closed: registered(r, "connections_closed", closed, Family::default()),
            queues: QueueFamilies::register(r),
            peers: PeerFamilies::register(r),
            registry: root,
        }
    }

    /// The counter of connections that were asked to close for this reason. Keep the handle.
    #[must_use]
    pub fn connections_closed(&self, reason: &'static str) -> Counter {
        self.connections_closed.get_or_create_owned(&ReasonLabel { reason })
    }

    /// The handles of a queue, by the name it has in the table of queues; keep them.
    #[must_use]
    pub fn queue(&self, queue: &'static str) -> QueueMetrics {
        let label = QueueLabel { queue };
        QueueMetrics { bytes: self.queues.bytes.get_or_create_owned(&label) }
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

    /// Sets the difference of the wall clock of another node to ours, in seconds. `None` = not
    /// known: the series is then removed, so that it does not keep an old value.
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

impl QueueFamilies {
    fn register(r: &mut Registry) -> Self {
        Self {
            bytes: registered(r, "queue_bytes", "Bytes that wait in a queue", Family::default()),
        }
    }
}

impl PeerFamilies {
    fn register(r: &mut Registry) -> Self {
        let connected = "1 if the control connection to a peer is up";
        let dropped = "Messages to a peer that were dropped";
        let offset = "Seconds by which the wall clock of a peer is ahead of ours, as it reports \
                      in heartbeats and answers; too low by their latency; absent after 10 s \
                      without any";
        Self {
            connected: registered(r, "peer_connected", connected, Family::default()),
            sent: registered(r, "peer_messages_sent", "Messages sent to a peer", Family::default()),
            dropped: registered(r, "peer_messages_dropped", dropped, Family::default()),
            clock_offset: registered(r, "clock_offset_seconds", offset, Family::default()),
        }
    }
}
