//! Settings of a node: every one with its name, its default and where its value came from, checked.
//!
//! A setting has one name everywhere: `--peer-listen` on the command line, `QUORATE_PEER_LISTEN` in
//! the environment, `peer-listen` in the TOML file of `--config`. The first of these that is present
//! wins; otherwise the default holds. Every layer is text until [`resolve`] parses it, so that a value
//! is refused with the same sentence wherever it stood.
//!
//! **Boundary.** This crate reads flags, the environment and one file, and opens nothing else: what a value
//! means to the node is decided where it is used.

mod args;
mod check;
mod error;
mod key;
mod layers;
mod log;
mod memory;
mod resolve;
mod show;
mod source;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_raft::NodeId;

pub use args::ConfigArgs;
pub use error::ConfigError;
pub use key::Key;
pub use layers::{CONFIG_VARIABLE, Environment, Layers, utf8_text};
pub use log::LogFormat;
pub use memory::{MEMORY_MIN, MemoryPlan, default_memory};
pub use resolve::{DEFAULT_PORT, Effective, Resolved, resolve};
pub use show::table;
pub use source::Source;
pub use value::{HostPort, LogStore, parse_duration};

/// Everything a node needs to know to start: all defaults filled in, all addresses parsed, checked by
/// [`Config::validate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's id, 1 to 4,294,967,295; never used for another node of the same cluster.
    pub node_id: NodeId,
    /// The directory that holds everything this node must not forget.
    pub data_dir: PathBuf,
    /// The name all nodes of a cluster share, so that two clusters never mix by a wrong address.
    pub cluster_name: String,
    /// The peer address of every node of the first start; afterwards only seeds to ask.
    pub initial_cluster: BTreeMap<NodeId, HostPort>,
    /// Where clients are served. The same address as `peer_listen` means one listener for both.
    pub listen: SocketAddr,
    /// Where other nodes are served.
    pub peer_listen: SocketAddr,
    /// Where `/metrics`, `/livez` and `/readyz` are served over HTTP; `None` serves them nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// The address that other nodes use to reach this one. Names are resolved at each connection.
    pub advertise: HostPort,
    /// The address that clients are told to use to reach this node.
    pub advertise_client: HostPort,
    /// How many shards a new cluster gets, 1 to 4,096. Only read at its formation.
    pub shards: u32,
    /// How many replicas a shard gets in a new cluster, odd, at most 7. Only read at its formation.
    pub replicas: u32,
    /// Whether `shards` was given and is not the default.
    pub shards_given: bool,
    /// Whether `replicas` was given and is not the default.
    pub replicas_given: bool,
    /// What holds the Raft log.
    pub log_store: LogStore,
    /// Labels of the place this node stands in (`zone=a`): replicas of one shard are spread over them.
    pub locality: BTreeMap<String, String>,
    /// How the memory is divided.
    pub memory: MemoryPlan,
    /// The largest value taken, in bytes.
    pub max_value_bytes: usize,
    /// How many client connections one listener takes.
    pub max_connections: usize,
    /// How many calls one client connection may have in flight.
    pub max_calls_per_connection: u32,
    /// How long a client connection may have no call in flight before it is closed; each draws its own
    /// time from 10 % below to 10 % above.
    pub max_connection_idle: Duration,
    /// How old a client connection may become before it is closed, once its calls have ended; each draws
    /// its own age as well.
    pub max_connection_age: Duration,
    /// How often a leader makes itself heard.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower asks for an election.
    pub election_min: Duration,
    /// The longest silence after which a follower asks for an election.
    pub election_max: Duration,
    /// Whether it is allowed to listen beyond loopback without TLS.
    pub insecure: bool,
}

impl Config {
    /// Checks what no single value shows: limits, and settings that do not go together.
    ///
    /// # Errors
    /// Every setting that is refused, each with its limit and the knob to turn.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check::validate(self, check::DataDir::Needed)
    }

    /// [`Config::validate`] of settings that are only looked at: a node's directory may be missing.
    ///
    /// # Errors
    /// As for [`Config::validate`].
    pub fn validate_shown(&self) -> Result<(), ConfigError> {
        check::validate(self, check::DataDir::MayMiss)
    }
}
