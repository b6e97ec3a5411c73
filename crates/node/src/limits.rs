//! Limits of the operating system, checked before the node starts.

use quorate_config::{Config, Key};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::exit::Fatal;

/// Open files other than the connections of clients: storage, logs, peers, snapshots, connections
/// without a request so far (256), and connections that have yielded their places and are not
/// closed yet (64).
const OWN_FILES: u64 = 576;

/// Raises the limit of open files to the number that the configured connections need.
///
/// # Errors
/// The system does not allow as many: otherwise accepting connections would fail later, under load.
pub fn raise_open_files(config: &Config) -> Result<(), Fatal> {
    let needed = OWN_FILES + config.max_connections as u64;
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
