//! The log: text on a terminal, one JSON object per line otherwise, always on stderr.

use std::io::IsTerminal;

use quorate_config::{Key, LogFilter, LogFormat};
use tracing_subscriber::EnvFilter;

/// Whether text written to this stream may have colours.
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts the log.
///
/// # Errors
/// The filter cannot be read, or a log was already started.
pub fn init(filter: &LogFilter, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter.as_str()).map_err(|error| {
        let key = Key::LogLevel;
        format!("{key} is {:?}, but {error} (--{key} or {})", filter.as_str(), key.env())
    })?;
    let stderr = std::io::stderr();
    let text = match format {
        LogFormat::Auto => stderr.is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if text {
        builder.with_ansi(has_colour(&stderr)).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}
