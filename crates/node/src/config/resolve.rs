//! From layers of text to a [`Config`], and the checks on it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use quorate_raft::NodeId;

use super::layers::{Layers, Source};
use super::memory::{MIN_MEMORY, MemoryPlan};
use super::value::{self, HostPort, LogStore};
use crate::telemetry::{self, LogFormat};

use super::{Config, ConfigError, Key, MAX_REPLICAS, MAX_SHARDS, MAX_VALUE_BYTES};

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
        match parse(text) {
            Ok(value) => Ok(Some((value, source.clone()))),
            Err(reason) => Err(ConfigError::Value {
                key,
                value: text.clone(),
                origin: source.clone(),
                reason: reason.to_string(),
            }),
        }
    }
}

fn parse(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn log_filter(text: &str) -> Result<String, String> {
    telemetry::check_filter(text).map(|()| text.to_owned())
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

/// See [`Config::validate`].
pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    check_names(config)?;
    check_range(Key::Shards, u64::from(config.shards), 1, u64::from(MAX_SHARDS))?;
    if config.replicas.is_multiple_of(2) || config.replicas > MAX_REPLICAS {
        return refuse(
            Key::Replicas,
            config.replicas,
            "must be 1, 3, 5 or 7: an even number needs more of them for the same fault tolerance",
        );
    }
    if config.memory.total < MIN_MEMORY {
        let given = value::format_bytes(config.memory.total);
        let least = value::format_bytes(MIN_MEMORY);
        return refuse(Key::Memory, given, &format!("must be at least {least}"));
    }
    check_range(Key::MaxValueSize, config.max_value_bytes as u64, 1, MAX_VALUE_BYTES as u64)?;
    check_range(Key::MaxConnections, config.max_connections as u64, 1, 1 << 16)?;
    let calls = u64::from(config.max_calls_per_connection);
    check_range(Key::MaxCallsPerConnection, calls, 1, 1 << 16)?;
    check_timing(config)?;
    check_listeners(config)?;
    check_advertised(Key::Advertise, &config.advertise)?;
    check_advertised(Key::AdvertiseClient, &config.advertise_client)
}

fn refuse<T>(key: Key, value: impl Display, reason: &str) -> Result<T, ConfigError> {
    let variable = key.env();
    Err(ConfigError::Refused(format!("{key} is {value}, but {reason} (--{key} or {variable})")))
}

fn check_range(key: Key, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    refuse(key, value, &format!("must be from {least} to {most}"))
}

fn check_names(config: &Config) -> Result<(), ConfigError> {
    if config.data_dir.as_os_str().is_empty() {
        let variable = Key::DataDir.env();
        return Err(ConfigError::Refused(format!(
            "data-dir is not set; a node needs a directory of its own (--data-dir or {variable})"
        )));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = &config.cluster_name;
    if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
        return refuse(
            Key::ClusterName,
            format!("{name:?}"),
            "must be 1 to 64 of a-z A-Z 0-9 - _ .",
        );
    }
    if value::plain(config.node_id) == 0 || value::plain(config.node_id) > u64::from(u32::MAX) {
        return refuse(
            Key::NodeId,
            value::plain(config.node_id),
            &format!("must be from 1 to {}", u32::MAX),
        );
    }
    if !config.initial_cluster.contains_key(&config.node_id) {
        let listed: Vec<_> =
            config.initial_cluster.keys().map(|id| value::plain(*id).to_string()).collect();
        return refuse(
            Key::NodeId,
            value::plain(config.node_id),
            &format!(
                "initial-cluster lists only {}; it must list this node too",
                listed.join(", ")
            ),
        );
    }
    Ok(())
}

/// One tick of the Raft core; all its times are whole ticks.
const TICK: Duration = Duration::from_millis(10);
/// An election timeout beyond this is a mistake in the unit.
const LONGEST_ELECTION: Duration = Duration::from_secs(60);

fn check_timing(config: &Config) -> Result<(), ConfigError> {
    let times = [
        (Key::Heartbeat, config.heartbeat),
        (Key::ElectionMin, config.election_min),
        (Key::ElectionMax, config.election_max),
    ];
    for (key, time) in times {
        if time < TICK
            || !time.as_millis().is_multiple_of(TICK.as_millis())
            || time > LONGEST_ELECTION
        {
            return refuse(
                key,
                value::format_duration(time),
                "must be a multiple of 10ms, from 10ms to 60s",
            );
        }
    }
    if config.election_min < 3 * config.heartbeat {
        return refuse(
            Key::ElectionMin,
            value::format_duration(config.election_min),
            &format!(
                "must be at least three times heartbeat ({}), or one lost message starts an election",
                value::format_duration(config.heartbeat)
            ),
        );
    }
    if config.election_max < config.election_min + config.heartbeat {
        return refuse(
            Key::ElectionMax,
            value::format_duration(config.election_max),
            &format!(
                "must exceed election-min ({}) by at least one heartbeat ({}), or candidates keep splitting the vote",
                value::format_duration(config.election_min),
                value::format_duration(config.heartbeat)
            ),
        );
    }
    Ok(())
}

fn check_listeners(config: &Config) -> Result<(), ConfigError> {
    let listeners = [
        (Key::Listen, Some(config.listen)),
        (Key::PeerListen, Some(config.peer_listen)),
        (Key::MetricsListen, config.metrics_listen),
    ];
    for (key, address) in listeners {
        let Some(address) = address else { continue };
        if !address.ip().is_loopback() && !config.insecure {
            return refuse(
                key,
                address,
                "there is no TLS yet, so anyone who reaches it can read and change everything; \
                 listen on loopback, or allow it with --insecure",
            );
        }
    }
    if let Some(metrics) = config.metrics_listen
        && metrics.port() != 0
        && (metrics == config.listen || metrics == config.peer_listen)
    {
        return refuse(Key::MetricsListen, metrics, "that address already serves clients or nodes");
    }
    Ok(())
}

fn check_advertised(key: Key, address: &HostPort) -> Result<(), ConfigError> {
    if address.is_unspecified() {
        return refuse(
            key,
            address,
            "that means every address of this machine and cannot be connected to from another; \
             give a name or an address that can",
        );
    }
    if address.port == 0 {
        return refuse(key, address, "port 0 cannot be connected to; give the real port");
    }
    Ok(())
}
