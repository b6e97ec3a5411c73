//! Settings of the log: its format and its filter.

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// Formats of log lines.
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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected auto, text or json".to_owned()),
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

/// A checked filter of log lines: a level or a list such as `info,quorate_raft=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter that accepts lines of this level and more severe ones.
    pub(super) fn of_level(level: &'static str) -> Self {
        Self(level.to_owned())
    }

    /// The filter as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check_filter(text).map(|()| Self(text.to_owned()))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The levels, from none to all lines.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a filter: a level or a list such as `info,quorate_raft=debug`.
///
/// # Errors
/// The filter cannot be parsed, or a word in it is not a level. The library would treat such a word
/// as the name of a module, so that a misspelt level would suppress all lines.
fn check_filter(filter: &str) -> Result<(), String> {
    let expected = format!(
        "expected one of {}, or a filter such as info,quorate_raft=debug",
        LEVELS.join(", ")
    );
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    // Within brackets a comma is not a separator; then only the library checks the filter.
    if !filter.contains('[')
        && filter.split(',').map(str::trim).any(|word| !word.contains('=') && !is_level(word))
    {
        return Err(expected);
    }
    EnvFilter::try_new(filter).map(drop).map_err(|error| format!("{expected} ({error})"))
}
