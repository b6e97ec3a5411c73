//! Sources of values.

use std::fmt;
use std::path::PathBuf;

/// The source of the effective value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// This variable of the environment.
    Environment(String),
    /// This line of the configuration file.
    File(PathBuf, usize),
    /// The default, with what it was computed from, or empty.
    Default(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Default("") => f.write_str("default"),
            Self::Default(why) => write!(f, "default: {why}"),
        }
    }
}
