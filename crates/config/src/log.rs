//! The settings of the log: its format, and the check of its filter.

use std::fmt;
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

/// A filter of log lines that was checked: a level or a list such as `info,quorate_raft=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter that takes lines of this level and the more severe ones.
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

/// The levels, from silence on.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a filter: a level or a list such as `info,quorate_raft=debug`.
///
/// # Errors
/// The filter cannot be read, or a word in it stands for no level. The library would take such a word
/// for the name of a module, and a misspelt level would silence everything.
fn check_filter(filter: &str) -> Result<(), String> {
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
