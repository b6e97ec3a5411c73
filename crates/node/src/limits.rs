//! Limits of the operating system, checked before the node starts.

use quorate_config::{Config, Key};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::exit::Fatal;

/// Files that are open besides the connections of clients: storage, logs, peers, snapshots,
/// connections that have not asked anything yet (256) and those that have yielded their places and are
/// not closed yet (64).
const OWN_FILES: u64 = 576;

/// Raises the limit of open files to what the configured connections need.
///
/// # Errors
/// The system does not allow as many: accepting would fail under load, which is the worst moment to
/// learn of it.
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
