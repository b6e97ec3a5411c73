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
