//! The flags of a node's settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Key;

/// The settings of a node on the command line. Each can also be given in the environment
/// (`--peer-listen` is `QUORATE_PEER_LISTEN`) and in the file of `--config` (`peer-listen`); a flag
/// wins over the environment, the environment over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigArgs {
    /// TOML file with settings, each named like its flag [env: QUORATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Id of this node, never used for another node of the cluster [default: 1]
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// Directory that holds everything this node must not forget
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address to serve clients on [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Address to serve other nodes on [default: as --listen]
    #[arg(long, value_name = "IP:PORT")]
    pub peer_listen: Option<String>,
    /// Address to serve /metrics, /livez and /readyz on [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<String>,
    /// Address at which other nodes reach this one [default: its entry in --initial-cluster, else
    /// --peer-listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Address at which clients reach this node [default: --advertise where one listener serves both,
    /// else --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,
    /// Name that all nodes of the cluster share [default: quorate]
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Peer addresses of all nodes of the first start [default: this node alone]
    #[arg(long, value_name = "1=HOST:PORT,…")]
    pub initial_cluster: Option<String>,
    /// Shards of a new cluster, 1 to 4096 [default: 64]
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// Replicas of each shard of a new cluster: 1, 3, 5 or 7 [default: 3]
    #[arg(long, value_name = "N")]
    pub replicas: Option<String>,
    /// What holds the Raft log: sled or file [default: sled]
    #[arg(long, value_name = "STORE")]
    pub log_store: Option<String>,
    /// Where this node stands; replicas of a shard are spread over places [default: none]
    #[arg(long, value_name = "LABEL=VALUE,…")]
    pub locality: Option<String>,
    /// Memory for caches, logs and queues, at least 128MiB [default: a quarter of the machine's or
    /// control group's, at most 2GiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Largest value taken [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    pub max_value_size: Option<String>,
    /// Client connections of one listener [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<String>,
    /// Calls in flight of one client connection [default: 256]
    #[arg(long, value_name = "N")]
    pub max_calls_per_connection: Option<String>,
    /// How long a client connection may have no call in flight before it is closed; ±10 % [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub max_connection_idle: Option<String>,
    /// How old a client connection may become before it is closed, once its calls have ended; ±10 %
    /// [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub max_connection_age: Option<String>,
    /// How often a leader makes itself heard [default: 100ms]
    #[arg(long, value_name = "DURATION")]
    pub heartbeat: Option<String>,
    /// Shortest silence that starts an election [default: 600ms]
    #[arg(long, value_name = "DURATION")]
    pub election_min: Option<String>,
    /// Longest silence that starts an election [default: 1200ms]
    #[arg(long, value_name = "DURATION")]
    pub election_max: Option<String>,
    /// Allow listening beyond loopback although nothing is encrypted [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub insecure: Option<String>,
    /// Least severe log line written, or a filter such as info,quorate_raft=debug [env: QUORATE_LOG]
    /// [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How log lines are written: auto, text or json [default: auto = text on a terminal]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ConfigArgs {
    /// The settings that were given.
    #[must_use]
    pub fn into_layer(self) -> BTreeMap<Key, String> {
        let given = [
            (Key::NodeId, self.node_id),
            (Key::DataDir, self.data_dir),
            (Key::Listen, self.listen),
            (Key::PeerListen, self.peer_listen),
            (Key::MetricsListen, self.metrics_listen),
            (Key::Advertise, self.advertise),
            (Key::AdvertiseClient, self.advertise_client),
            (Key::ClusterName, self.cluster_name),
            (Key::InitialCluster, self.initial_cluster),
            (Key::Shards, self.shards),
            (Key::Replicas, self.replicas),
            (Key::LogStore, self.log_store),
            (Key::Locality, self.locality),
            (Key::Memory, self.memory),
            (Key::MaxValueSize, self.max_value_size),
            (Key::MaxConnections, self.max_connections),
            (Key::MaxCallsPerConnection, self.max_calls_per_connection),
            (Key::MaxConnectionIdle, self.max_connection_idle),
            (Key::MaxConnectionAge, self.max_connection_age),
            (Key::Heartbeat, self.heartbeat),
            (Key::ElectionMin, self.election_min),
            (Key::ElectionMax, self.election_max),
            (Key::Insecure, self.insecure),
            (Key::LogLevel, self.log_level),
            (Key::LogFormat, self.log_format),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
