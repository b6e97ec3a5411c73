//! From layers of text to a [`Config`].

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use quorate_raft::NodeId;

use super::layers::Layers;
use super::memory::MemoryPlan;
use super::source::Source;
use super::value::{self, HostPort, LogStore};
use crate::log::{self, LogFormat};

use super::{Config, ConfigError, Key};

/// The effective value of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting.
    pub key: Key,
    /// Its value, as it would be written on the command line; empty where there is none.
    pub value: String,
    /// Where the value came from.
    pub source: Source,
}

/// A configuration whose values could all be read. It is not yet checked: see [`Config::validate`].
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings of the node. The data directory is empty where none was given.
    pub config: Config,
    /// The filter of the log.
    pub log_filter: String,
    /// How the log is written.
    pub log_format: LogFormat,
    /// Every setting with its source, in the order of [`Key::ALL`].
    pub settings: Vec<Effective>,
}

/// The port that a node listens on when it is not told.
pub const DEFAULT_PORT: u16 = 7401;

/// Reads every setting from its layer, or computes its default. `default_memory` is what
/// [`default_memory`](super::default_memory) says of this machine.
///
/// # Errors
/// The first value that cannot be read.
pub fn resolve(layers: &Layers, default_memory: u64) -> Result<Resolved, ConfigError> {
    let mut reader = Reader { layers, settings: Vec::new() };
    let node_id = reader.read(Key::NodeId, value::parse_node_id, || (NodeId(1), ""))?;
    let data_dir = reader.text(Key::DataDir, "not set")?;
    let listen = reader.read(Key::Listen, value::parse_listen, || {
        (SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), "")
    })?;
    let peer_listen =
        reader.read(Key::PeerListen, value::parse_listen, || (listen, "as listen"))?;
    let metrics_listen = reader.optional(Key::MetricsListen, value::parse_listen)?;
    let seeds = reader.optional_silent(Key::InitialCluster, value::parse_initial_cluster)?;
    let advertise = reader.read(Key::Advertise, HostPort::from_str, || {
        match seeds.as_ref().and_then(|nodes| nodes.get(&node_id)) {
            Some(address) => (address.clone(), "the entry in initial-cluster"),
            None => (HostPort::from(peer_listen), "as peer-listen"),
        }
    })?;
    let advertise_client = reader.read(Key::AdvertiseClient, HostPort::from_str, || {
        if listen == peer_listen {
            (advertise.clone(), "as advertise")
        } else {
            (HostPort::from(listen), "as listen")
        }
    })?;
    let cluster_name = reader.read(Key::ClusterName, parse, || ("quorate".to_owned(), ""))?;
    let initial_cluster = reader.read(Key::InitialCluster, value::parse_initial_cluster, || {
        (BTreeMap::from([(node_id, advertise.clone())]), "this node alone")
    })?;
    let shards = reader.read(Key::Shards, number, || (64, ""))?;
    let replicas = reader.read(Key::Replicas, number, || (3, ""))?;
    let log_store = reader.read(Key::LogStore, LogStore::from_str, || (LogStore::Sled, ""))?;
    let locality = reader.read(Key::Locality, value::parse_locality, || (BTreeMap::new(), ""))?;
    let memory = reader.read(Key::Memory, value::parse_bytes, || {
        (default_memory, "a quarter of the memory, at most 2GiB")
    })?;
    let max_value = reader.read(Key::MaxValueSize, value::parse_bytes, || (1 << 20, ""))?;
    let config = Config {
        node_id,
        data_dir: PathBuf::from(data_dir),
        cluster_name,
        initial_cluster,
        listen,
        peer_listen,
        metrics_listen,
        advertise,
        advertise_client,
        shards,
        replicas,
        shards_given: layers.get(Key::Shards).is_some(),
        replicas_given: layers.get(Key::Replicas).is_some(),
        log_store,
        locality,
        memory: MemoryPlan::new(memory),
        max_value_bytes: usize::try_from(max_value).unwrap_or(usize::MAX),
        max_connections: reader.read(Key::MaxConnections, number, || (1024, ""))?,
        max_calls_per_connection: reader.read(Key::MaxCallsPerConnection, number, || (256, ""))?,
        max_connection_idle: reader.duration(Key::MaxConnectionIdle, 300_000)?,
        max_connection_age: reader.duration(Key::MaxConnectionAge, 3_600_000)?,
        heartbeat: reader.duration(Key::Heartbeat, 100)?,
        election_min: reader.duration(Key::ElectionMin, 600)?,
        election_max: reader.duration(Key::ElectionMax, 1200)?,
        insecure: reader.read(Key::Insecure, parse_bool, || (false, ""))?,
    };
    let log_filter = reader.read(Key::LogLevel, log_filter, || ("info".to_owned(), ""))?;
    let log_format = reader.read(Key::LogFormat, LogFormat::from_str, || (LogFormat::Auto, ""))?;
    reader.settings.sort_by_key(|setting| setting.key);
    Ok(Resolved { config, log_filter, log_format, settings: reader.settings })
}

/// A value that is written the way it is read.
trait Written {
    fn written(&self) -> String;
}

macro_rules! written_by_display {
    ($($type:ty),*) => {
        $(impl Written for $type { fn written(&self) -> String { self.to_string() } })*
    };
}
written_by_display!(String, SocketAddr, HostPort, LogStore, LogFormat, u32, usize, bool);

impl Written for NodeId {
    fn written(&self) -> String {
        value::plain(*self).to_string()
    }
}

impl Written for u64 {
    fn written(&self) -> String {
        value::format_bytes(*self)
    }
}

impl Written for Duration {
    fn written(&self) -> String {
        value::format_duration(*self)
    }
}

impl Written for BTreeMap<NodeId, HostPort> {
    fn written(&self) -> String {
        value::format_initial_cluster(self)
    }
}

impl Written for BTreeMap<String, String> {
    fn written(&self) -> String {
        value::format_locality(self)
    }
}

struct Reader<'a> {
    layers: &'a Layers,
    settings: Vec<Effective>,
}

impl Reader<'_> {
    /// The value of a setting from its layer, else the default and what it was computed from.
    fn read<T: Written, E: Display>(
        &mut self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, E>,
        default: impl FnOnce() -> (T, &'static str),
    ) -> Result<T, ConfigError> {
        let (value, source) = match self.parsed(key, parse)? {
            Some(given) => given,
            None => {
                let (value, why) = default();
                (value, Source::Default(why))
            }
        };
        self.settings.push(Effective { key, value: value.written(), source });
        Ok(value)
    }

    /// The value of a setting whose default is to have none.
    fn optional<T: Written, E: Display>(
        &mut self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let given = self.parsed(key, parse)?;
        let (value, source) = match &given {
            Some((value, source)) => (value.written(), source.clone()),
            None => (String::new(), Source::Default("none")),
        };
        self.settings.push(Effective { key, value, source });
        Ok(given.map(|(value, _)| value))
    }

    /// The value of a setting that is read again later, when its default is known.
    fn optional_silent<T, E: Display>(
        &self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        Ok(self.parsed(key, parse)?.map(|(value, _)| value))
    }

    fn text(&mut self, key: Key, without: &'static str) -> Result<String, ConfigError> {
        self.read(key, parse, || (String::new(), without))
    }

    fn duration(&mut self, key: Key, default_millis: u64) -> Result<Duration, ConfigError> {
        self.read(key, value::parse_duration, || (Duration::from_millis(default_millis), ""))
    }

    fn parsed<T, E: Display>(
        &self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<(T, Source)>, ConfigError> {
        let Some((text, source)) = self.layers.get(key) else { return Ok(None) };
        let origin = source.clone();
        match parse(text) {
            Ok(value) => Ok(Some((value, origin))),
            Err(reason) if value::has_user_information(text) => {
                Err(ConfigError::Hidden { key, origin, reason: reason.to_string() })
            }
            Err(reason) => {
                let (value, reason) = (text.clone(), reason.to_string());
                Err(ConfigError::Value { key, value, origin, reason })
            }
        }
    }
}

fn parse(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn log_filter(text: &str) -> Result<String, String> {
    log::check_filter(text).map(|()| text.to_owned())
}

fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected a whole number")
}

fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("expected true or false"),
    }
}
