//! Error types: each error of a configuration is a sentence.

use super::Key;
use super::source::Source;

/// An error of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value cannot be parsed or is outside its limits.
    #[error("{key} = {value:?} ({origin}): {reason}")]
    Value {
        /// The setting.
        key: Key,
        /// Its value as it was given.
        value: String,
        /// Where it was given.
        origin: Source,
        /// What is wrong, and what is expected.
        reason: String,
    },
    /// A value cannot be parsed and is not repeated, because it may contain a password.
    #[error("{key} ({origin}): {reason}")]
    Hidden {
        /// The setting.
        key: Key,
        /// Where it was given.
        origin: Source,
        /// What is wrong, and what is expected, without any part of the value.
        reason: String,
    },
    /// A value outside its limits, or a combination of settings, is rejected.
    #[error("{0}")]
    Refused(String),
    /// The configuration file cannot be read or parsed.
    #[error("{0}")]
    File(String),
}
