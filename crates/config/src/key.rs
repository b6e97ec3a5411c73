//! Names of the settings.

use std::fmt;

use super::Key;

impl Key {
    /// The environment variable. That of the log filter is short, as in other programs; every other
    /// name follows from the key.
    #[must_use]
    pub fn env(self) -> String {
        match self {
            Self::LogLevel => "QUORATE_LOG".to_owned(),
            key => format!("QUORATE_{}", key.name().replace('-', "_").to_uppercase()),
        }
    }

    /// The setting of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
