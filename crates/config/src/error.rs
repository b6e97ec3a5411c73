//! What is wrong with a configuration, as a sentence.

use super::Key;
use super::source::Source;

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// One value cannot be read or is outside its limits.
    #[error("{key} = {value:?} ({origin}): {reason}")]
    Value {
        /// The setting.
        key: Key,
        /// Its value as it was given.
        value: String,
        /// Where it was given.
        origin: Source,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// One value cannot be read and is not repeated, as it may hold a password.
    #[error("{key} ({origin}): {reason}")]
    Hidden {
        /// The setting.
        key: Key,
        /// Where it was given.
        origin: Source,
        /// What is wrong, and what would be right; without any of the value.
        reason: String,
    },
    /// A limit or a combination of settings is refused.
    #[error("{0}")]
    Refused(String),
    /// The configuration file cannot be read or understood.
    #[error("{0}")]
    File(String),
}
