//! Limits of the operating system, checked before the node starts.

use quorate_config::{Config, Key, LogStore};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::exit::Fatal;
use crate::net::{http, places};

/// Connections to each other node: three lanes, forwarded calls, forwarded operations, and one
/// while it is asked for something or an old one ends.
const FILES_PER_PEER: u64 = 6;
/// Files of the storage: sled's, with a value too large for a page in a file of its own while it is
/// read or written, and snapshots.
const STORAGE_FILES: u64 = 96;
/// Bytes of the log for one file of it: half a segment, because segments also hold what is dead.
const BYTES_PER_LOG_FILE: u64 = 8 << 20;
/// What each process has open: standard streams, listeners, timers, the lock.
const PROCESS_FILES: u64 = 32;

/// The number of files that a node may have open at the same time.
fn needed(config: &Config) -> u64 {
    let peers = config.peer_listen.map_or(0, |_| places::NEW_MAX + places::PEERS_MAX);
    let metrics = config.metrics_listen.map_or(0, |_| http::CONNECTIONS);
    let inbound = config.max_connections + places::NEW_MAX + peers + metrics;
    let log = match config.log_store {
        LogStore::File => config.memory.log_node / BYTES_PER_LOG_FILE,
        LogStore::Sled => 0,
    };
    let others = config.initial_cluster.len().saturating_sub(1) as u64;
    let own = STORAGE_FILES + log + PROCESS_FILES;
    inbound as u64 + places::YIELDED_MAX + others * FILES_PER_PEER + own
}

/// Raises the limit of open files to the number that the configured connections need.
///
/// # Errors
/// The system does not allow as many: otherwise accepting connections would fail later, under load.
pub fn raise_open_files(config: &Config) -> Result<(), Fatal> {
    let needed = needed(config);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(most) = limit.maximum
        && most < needed
    {
        let key = Key::MaxConnections;
        return Err(Fatal::Usage(format!(
            "this process may open {most} files, but {key} = {} needs {needed}; raise the limit \
             (ulimit -n) or lower --{key}",
            config.max_connections
        )));
    }
    limit.current = Some(needed);
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| Fatal::Usage(format!("cannot raise the limit of open files: {error}")))
}
