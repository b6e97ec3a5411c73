//! Settings of a node: their names, defaults, sources and checks.
//!
//! A setting has one name everywhere: `--peer-listen` on the command line, `QUORATE_PEER_LISTEN` in
//! the environment, `peer-listen` in the TOML file of `--config`. The first of these that is
//! present wins; otherwise the default holds. Every layer is text until [`resolve`] parses it, so
//! that the error of a value is the same in every layer.
//!
//! **Boundary.** This crate reads flags, the environment and one file, and opens nothing else. What
//! a value means for the node is decided where it is used.

mod args;
mod check;
mod error;
mod key;
mod kinds;
mod layers;
mod log;
mod memory;
mod resolve;
mod rows;
mod show;
mod source;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use quorate_proto::limits::SHARDS_MAX;
use quorate_raft::NodeId;

use check::{LIFETIME, enough_memory, replica_count, value_size, within};
use resolve::Reader;

pub use args::ConfigArgs;
pub use error::ConfigError;
pub use layers::{CONFIG_VARIABLE, Environment, Layers, utf8_text};
pub use log::{LogFilter, LogFormat};
pub use memory::{MEMORY_MIN, MemoryPlan, default_memory};
pub use resolve::{Effective, Resolved, resolve};
pub use show::table;
pub use source::Source;
pub use value::{FilePath, HostPort, LogStore, Size, parse_duration};

/// The default port of a node.
pub const DEFAULT_PORT: u16 = 7401;

rows::settings! {
    /// The configuration of a node: all defaults filled in, all addresses parsed, checked by
    /// [`Config::validate`].
    pub struct Config |reader| {
        /// Id of this node; must never be reused for another node of the cluster
        ///
        /// From 1 to 4,294,967,295.
        NodeId "node-id" node_id: NodeId = NodeId(1);

        /// Data directory
        DataDir "data-dir" data_dir: PathBuf => (PathBuf::new(), "not set");

        /// Address to serve clients on
        Listen "listen" listen: SocketAddr = (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into();

        /// Address to serve other nodes on, never that of --listen [default: its entry in
        /// --initial-cluster; nowhere for a node alone]
        ///
        /// An entry with a name is served at its port and the IP address of `listen`.
        PeerListen "peer-listen" peer_listen: Option<SocketAddr> =>
            match reader.initial_among_others(node_id) {
                Some(entry) => (Some(entry.listened(listen)), "the entry in initial-cluster"),
                None => (None, "none: a node alone"),
            };

        /// Address to serve /metrics, /livez and /readyz on [default: nowhere]
        MetricsListen "metrics-listen" metrics_listen: Option<SocketAddr> => (None, "none");

        /// Address at which other nodes reach this one [default: its entry in --initial-cluster,
        /// else --peer-listen or, for a node alone, --listen]
        ///
        /// Names are resolved at each connection.
        Advertise "advertise" advertise: HostPort =>
            match (reader.initial_address(node_id), peer_listen) {
                (Some(address), _) => (address, "the entry in initial-cluster"),
                (None, Some(address)) => (address.into(), "as peer-listen"),
                (None, None) => (listen.into(), "as listen"),
            };

        /// Address at which clients reach this node [default: --listen; --advertise for a node
        /// alone]
        AdvertiseClient "advertise-client" advertise_client: HostPort => match peer_listen {
            None => (advertise.clone(), "as advertise"),
            Some(_) => (listen.into(), "as listen"),
        };

        /// Name that all nodes of the cluster share
        /// It keeps two clusters apart if an address is wrong.
        ClusterName "cluster-name" cluster_name: String = "quorate".to_owned();

        /// Peer addresses of all nodes at the first start [default: only this node]
        /// Afterwards they are only seeds.
        InitialCluster "initial-cluster" initial_cluster: BTreeMap<NodeId, HostPort> =>
            (BTreeMap::from([(node_id, advertise.clone())]), "only this node");

        /// File with the secret that the nodes of a cluster prove to each other; `kvnode secret`
        /// makes one [default: a file that a node alone makes in its data directory]
        SecretFile "secret-file" secret_file: Option<FilePath> => (None, "none");

        /// Shards of a new cluster, 1 to 4096
        ///
        /// Only read at its formation.
        Shards "shards" shards: u32 = 64, check within(1..=SHARDS_MAX as u32);

        /// Replicas of each shard of a new cluster: 1, 3, 5 or 7
        ///
        /// Only read at its formation.
        Replicas "replicas" replicas: u32 = 3, check replica_count;

        /// Store of the Raft log: sled or file
        LogStore "log-store" log_store: LogStore = LogStore::Sled;

        /// Locality labels; the replicas of a shard are spread over localities [default: none]
        Locality "locality" locality: BTreeMap<String, String> => (BTreeMap::new(), "");

        /// Memory for caches, logs and queues, at least 128MiB [default: a quarter of the memory of
        /// the machine or control group, at most 2GiB]
        Memory "memory" memory: MemoryPlan =>
            (MemoryPlan::new(reader.default_memory), "a quarter of the memory, at most 2GiB"),
            check enough_memory;

        /// Largest value accepted
        MaxValueSize "max-value-size" max_value_size: Size = Size(1 << 20), check value_size;

        /// Maximum number of client connections of one listener
        MaxConnections "max-connections" max_connections: usize = 1024, check within(1..=1 << 16);

        /// Maximum number of calls in flight of one client connection
        MaxCallsPerConnection "max-calls-per-connection" max_calls_per_connection: u32 = 256,
            check within(1..=1 << 16);

        /// Time without a call in flight after which a client connection is closed; ±10 %
        ///
        /// Each connection draws its own time from this range.
        MaxConnectionIdle "max-connection-idle" max_connection_idle: Duration
            = Duration::from_secs(5 * 60), check within(LIFETIME);

        /// Age at which a client connection is closed, once its calls have ended; ±10 %
        ///
        /// Each connection draws its own age from this range.
        MaxConnectionAge "max-connection-age" max_connection_age: Duration
            = Duration::from_secs(60 * 60), check within(LIFETIME);

        /// Heartbeat interval of a leader
        Heartbeat "heartbeat" heartbeat: Duration = Duration::from_millis(100);

        /// Minimum election timeout
        ElectionMin "election-min" election_min: Duration = Duration::from_millis(600);

        /// Maximum election timeout
        ElectionMax "election-max" election_max: Duration = Duration::from_millis(1200);

        /// Allow listening on addresses other than loopback without encryption
        Insecure "insecure" insecure: bool = false;

        /// Least severe log line written, or a filter such as info,quorate_raft=debug
        /// [env: QUORATE_LOG]
        LogLevel "log-level" log_filter: LogFilter = LogFilter::of_level("info");

        /// Format of log lines: auto, text or json [default: auto = text on a terminal]
        LogFormat "log-format" log_format: LogFormat => (LogFormat::Auto, "");
    } with {
        /// Whether `shards` was given and is not the default.
        shards_given: bool = reader.is_given(Key::Shards);
        /// Whether `replicas` was given and is not the default.
        replicas_given: bool = reader.is_given(Key::Replicas);
    }
}

impl Config {
    /// Checks the limits of each value and the combination of settings.
    ///
    /// # Errors
    /// All rejected settings, each with its limit, flag and variable.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check::validate(self, check::DataDir::Needed)
    }

    /// As [`Config::validate`], for settings that are only shown: the data directory may be
    /// missing.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn validate_shown(&self) -> Result<(), ConfigError> {
        check::validate(self, check::DataDir::MayMiss)
    }
}
