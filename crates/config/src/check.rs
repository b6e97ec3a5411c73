//! Checks of single values, which their rows name, and of combinations of settings.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::kinds::Value;
use super::memory::{MEMORY_MIN, MemoryPlan};
use super::value::{self, HostPort, Size};
use quorate_proto::limits::{REPLICAS_MAX, VALUE_BYTES_CEILING};

use super::{Config, ConfigError, Key};

/// Limits of the idle time and the age of a connection: long enough to be useful, and short enough
/// not to overflow a clock.
pub(super) const LIFETIME: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);

/// The check that a value is in a range.
pub(super) fn within<T: Value + PartialOrd>(
    range: RangeInclusive<T>,
) -> impl Fn(Key, &T) -> Result<(), ConfigError> {
    move |key, value| {
        if range.contains(value) {
            return Ok(());
        }
        let [given, least, most] = [value, range.start(), range.end()].map(Value::written);
        reject(key, given, &format!("must be from {least} to {most}"))
    }
}

pub(super) fn replica_count(key: Key, replicas: &u32) -> Result<(), ConfigError> {
    if replicas.is_multiple_of(2) || *replicas > REPLICAS_MAX {
        return reject(
            key,
            replicas,
            "must be 1, 3, 5 or 7: an even number adds a replica but no fault tolerance",
        );
    }
    Ok(())
}

pub(super) fn enough_memory(key: Key, plan: &MemoryPlan) -> Result<(), ConfigError> {
    if plan.total < MEMORY_MIN {
        let least = value::format_bytes(MEMORY_MIN);
        return reject(key, plan.written(), &format!("must be at least {least}"));
    }
    Ok(())
}

/// Checks `max-value-size` in bytes, because the error of a value that is too large has its length
/// in bytes.
pub(super) fn value_size(key: Key, size: &Size) -> Result<(), ConfigError> {
    within(1..=VALUE_BYTES_CEILING)(key, &size.0)
}

/// Whether a missing data directory is an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DataDir {
    Needed,
    MayMiss,
}

/// See [`Config::validate`].
pub(super) fn validate(config: &Config, data_dir: DataDir) -> Result<(), ConfigError> {
    let first = [
        if data_dir == DataDir::Needed { check_data_dir(config) } else { Ok(()) },
        check_names(config),
    ];
    let then = [check_timing(config), check_addresses(config), check_secret(config)];
    let mut errors: Vec<_> = first.into_iter().filter_map(Result::err).collect();
    errors.extend(config.errors());
    errors.extend(then.into_iter().filter_map(Result::err));
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        count => {
            let sentences: Vec<_> = errors.iter().map(ToString::to_string).collect();
            let sentences = sentences.join("\n  ");
            Err(ConfigError::Refused(format!("{count} settings are rejected:\n  {sentences}")))
        }
    }
}

/// Checks the addresses. By default each follows from the one before, so only the first error is
/// reported.
fn check_addresses(config: &Config) -> Result<(), ConfigError> {
    check_listeners(config)?;
    check_advertised(Key::Advertise, &config.advertise)?;
    check_advertised(Key::AdvertiseClient, &config.advertise_client)
}

fn reject<T>(key: Key, value: impl Display, reason: &str) -> Result<T, ConfigError> {
    let variable = key.env();
    Err(ConfigError::Refused(format!("{key} is {value}, but {reason} (--{key} or {variable})")))
}

fn check_data_dir(config: &Config) -> Result<(), ConfigError> {
    if config.data_dir.as_os_str().is_empty() {
        let variable = Key::DataDir.env();
        return Err(ConfigError::Refused(format!(
            "data-dir is not set; a node needs a directory of its own (--data-dir or {variable})"
        )));
    }
    Ok(())
}

fn check_names(config: &Config) -> Result<(), ConfigError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = &config.cluster_name;
    if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
        return reject(
            Key::ClusterName,
            format!("{name:?}"),
            "must be 1 to 64 of a-z A-Z 0-9 - _ .",
        );
    }
    if value::plain(config.node_id) == 0 || value::plain(config.node_id) > u64::from(u32::MAX) {
        return reject(
            Key::NodeId,
            value::plain(config.node_id),
            &format!("must be from 1 to {}", u32::MAX),
        );
    }
    if !config.initial_cluster.contains_key(&config.node_id) {
        let listed: Vec<_> =
            config.initial_cluster.keys().map(|id| value::plain(*id).to_string()).collect();
        return reject(
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

/// One tick of the Raft core, whose times are whole ticks.
const TICK: Duration = Duration::from_millis(10);
/// Maximum election timeout; a longer one is probably a mistake in the unit.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(60);

fn check_timing(config: &Config) -> Result<(), ConfigError> {
    let times = [
        (Key::Heartbeat, config.heartbeat),
        (Key::ElectionMin, config.election_min),
        (Key::ElectionMax, config.election_max),
    ];
    for (key, time) in times {
        if time < TICK
            || !time.as_millis().is_multiple_of(TICK.as_millis())
            || time > ELECTION_TIMEOUT_MAX
        {
            return reject(
                key,
                value::format_duration(time),
                "must be a multiple of 10ms, from 10ms to 60s",
            );
        }
    }
    if config.election_min < 3 * config.heartbeat {
        return reject(
            Key::ElectionMin,
            value::format_duration(config.election_min),
            &format!(
                "must be at least three times heartbeat ({}), or one lost message starts an \
                 election",
                value::format_duration(config.heartbeat)
            ),
        );
    }
    if config.election_max < config.election_min + config.heartbeat {
        return reject(
            Key::ElectionMax,
            value::format_duration(config.election_max),
            &format!(
                "must exceed election-min ({}) by at least one heartbeat ({}), or candidates keep \
                 splitting the vote",
                value::format_duration(config.election_min),
                value::format_duration(config.heartbeat)
            ),
        );
    }
    Ok(())
}

/// Nodes that serve others must know the secret that the others prove.
fn check_secret(config: &Config) -> Result<(), ConfigError> {
    if config.initial_cluster.len() < 2 || config.secret_file.is_some() {
        return Ok(());
    }
    let variable = Key::SecretFile.env();
    Err(ConfigError::Refused(format!(
        "secret-file is not set, but initial-cluster has {} nodes, which prove to each other that \
         they know one secret; make it once with `kvnode secret --out quorate.secret`, copy that \
         file to each node, and start each with `--secret-file quorate.secret` (--secret-file or \
         {variable})",
        config.initial_cluster.len()
    )))
}

fn check_listeners(config: &Config) -> Result<(), ConfigError> {
    let listeners = [
        (Key::Listen, Some(config.listen)),
        (Key::PeerListen, config.peer_listen),
        (Key::MetricsListen, config.metrics_listen),
    ];
    for (key, address) in listeners {
        let Some(address) = address else { continue };
        if !address.ip().is_loopback() && !config.insecure {
            return reject(
                key,
                address,
                "there is no TLS yet, so anyone who reaches it can read and change everything; \
                 listen on loopback, or allow it with --insecure",
            );
        }
    }
    if let Some(peers) = config.peer_listen
        && peers.port() != 0
        && peers == config.listen
    {
        return reject(
            Key::PeerListen,
            peers,
            "that is the address of --listen, and clients and other nodes have listeners of their \
             own; give the nodes another port, here and in initial-cluster, as in \
             1=127.0.0.1:7501",
        );
    }
    if let Some(metrics) = config.metrics_listen
        && metrics.port() != 0
        && (metrics == config.listen || Some(metrics) == config.peer_listen)
    {
        return reject(Key::MetricsListen, metrics, "that address already serves clients or nodes");
    }
    Ok(())
}

fn check_advertised(key: Key, address: &HostPort) -> Result<(), ConfigError> {
    if address.is_unspecified() {
        return reject(
            key,
            address,
            "other machines cannot connect to that address, which means every address of this \
             machine; give a name or an address that they can connect to",
        );
    }
    if address.port == 0 {
        return reject(key, address, "nothing can connect to port 0; give the real port");
    }
    Ok(())
}
