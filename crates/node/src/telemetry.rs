//! The log: text on a terminal, one JSON object per line otherwise, always on stderr.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text if stderr is a terminal, else JSON.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected auto, text or json"),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Whether text written to this stream may have colours.
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The levels, from silence on.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a filter: a level or a list such as `info,quorate_raft=debug`.
///
/// # Errors
/// The filter cannot be read, or a word in it stands for no level. The library would take such a word
/// for the name of a module, and a misspelt level would silence everything.
pub fn check_filter(filter: &str) -> Result<(), String> {
    let expected = format!(
        "expected one of {}, or a filter such as info,quorate_raft=debug",
        LEVELS.join(", ")
    );
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    // Within brackets a comma separates nothing; there the library alone judges.
    if !filter.contains('[')
        && filter.split(',').map(str::trim).any(|word| !word.contains('=') && !is_level(word))
    {
        return Err(expected);
    }
    EnvFilter::try_new(filter).map(drop).map_err(|error| format!("{expected} ({error})"))
}

/// Starts the log. `filter` is a level or a list such as `info,quorate_raft=debug`.
///
/// # Errors
/// The filter cannot be read, or a log was already started.
pub fn init(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("log-level is {filter:?}, but {error} (--log-level or QUORATE_LOG)")
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
