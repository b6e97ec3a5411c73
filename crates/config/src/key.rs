//! The names of the settings.

use std::fmt;

/// One setting. The order is the one of `--help` and `config show`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// See [`Config::node_id`](super::Config::node_id).
    NodeId,
    /// See [`Config::data_dir`](super::Config::data_dir).
    DataDir,
    /// See [`Config::listen`](super::Config::listen).
    Listen,
    /// See [`Config::peer_listen`](super::Config::peer_listen).
    PeerListen,
    /// See [`Config::metrics_listen`](super::Config::metrics_listen).
    MetricsListen,
    /// See [`Config::advertise`](super::Config::advertise).
    Advertise,
    /// See [`Config::advertise_client`](super::Config::advertise_client).
    AdvertiseClient,
    /// See [`Config::cluster_name`](super::Config::cluster_name).
    ClusterName,
    /// See [`Config::initial_cluster`](super::Config::initial_cluster).
    InitialCluster,
    /// See [`Config::shards`](super::Config::shards).
    Shards,
    /// See [`Config::replicas`](super::Config::replicas).
    Replicas,
    /// See [`Config::log_store`](super::Config::log_store).
    LogStore,
    /// See [`Config::locality`](super::Config::locality).
    Locality,
    /// See [`Config::memory`](super::Config::memory).
    Memory,
    /// See [`Config::max_value_bytes`](super::Config::max_value_bytes).
    MaxValueSize,
    /// See [`Config::max_connections`](super::Config::max_connections).
    MaxConnections,
    /// See [`Config::max_calls_per_connection`](super::Config::max_calls_per_connection).
    MaxCallsPerConnection,
    /// See [`Config::max_connection_idle`](super::Config::max_connection_idle).
    MaxConnectionIdle,
    /// See [`Config::max_connection_age`](super::Config::max_connection_age).
    MaxConnectionAge,
    /// See [`Config::heartbeat`](super::Config::heartbeat).
    Heartbeat,
    /// See [`Config::election_min`](super::Config::election_min).
    ElectionMin,
    /// See [`Config::election_max`](super::Config::election_max).
    ElectionMax,
    /// See [`Config::insecure`](super::Config::insecure).
    Insecure,
    /// The least severe log line that is written, or a filter such as `info,quorate_raft=debug`.
    LogLevel,
    /// How log lines are written.
    LogFormat,
}

impl Key {
    /// Every setting, in order.
    pub const ALL: [Self; 25] = [
        Self::NodeId,
        Self::DataDir,
        Self::Listen,
        Self::PeerListen,
        Self::MetricsListen,
        Self::Advertise,
        Self::AdvertiseClient,
        Self::ClusterName,
        Self::InitialCluster,
        Self::Shards,
        Self::Replicas,
        Self::LogStore,
        Self::Locality,
        Self::Memory,
        Self::MaxValueSize,
        Self::MaxConnections,
        Self::MaxCallsPerConnection,
        Self::MaxConnectionIdle,
        Self::MaxConnectionAge,
        Self::Heartbeat,
        Self::ElectionMin,
        Self::ElectionMax,
        Self::Insecure,
        Self::LogLevel,
        Self::LogFormat,
    ];

    /// The name in the file, and behind `--` on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodeId => "node-id",
            Self::DataDir => "data-dir",
            Self::Listen => "listen",
            Self::PeerListen => "peer-listen",
            Self::MetricsListen => "metrics-listen",
            Self::Advertise => "advertise",
            Self::AdvertiseClient => "advertise-client",
            Self::ClusterName => "cluster-name",
            Self::InitialCluster => "initial-cluster",
            Self::Shards => "shards",
            Self::Replicas => "replicas",
            Self::LogStore => "log-store",
            Self::Locality => "locality",
            Self::Memory => "memory",
            Self::MaxValueSize => "max-value-size",
            Self::MaxConnections => "max-connections",
            Self::MaxCallsPerConnection => "max-calls-per-connection",
            Self::MaxConnectionIdle => "max-connection-idle",
            Self::MaxConnectionAge => "max-connection-age",
            Self::Heartbeat => "heartbeat",
            Self::ElectionMin => "election-min",
            Self::ElectionMax => "election-max",
            Self::Insecure => "insecure",
            Self::LogLevel => "log-level",
            Self::LogFormat => "log-format",
        }
    }

    /// The name in the environment. The log filter has the short name that its users know from other
    /// programs; every other name follows from the key.
    #[must_use]
    pub fn env(self) -> String {
        match self {
            Self::LogLevel => "QUORATE_LOG".to_owned(),
            key => format!("QUORATE_{}", key.name().replace('-', "_").to_uppercase()),
        }
    }

    /// The setting of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
