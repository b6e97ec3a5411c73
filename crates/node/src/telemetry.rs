//! The log: text on a terminal, one JSON object per line otherwise, always on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// Starts the log. `filter` is a level or a list such as `info,quorate_raft=debug`.
///
/// # Errors
/// The filter cannot be read, or a log was already started.
pub fn init(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("log-level = {filter:?}: {error} (--log-level or QUORATE_LOG)"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime);
    let terminal = std::io::stderr().is_terminal();
    let started = if terminal {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        builder.with_ansi(colour).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}
