//! What stops a replica while it applies.

use quorate_storage::StorageError;
use thiserror::Error;

/// Stored bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what} is damaged: {detail}")]
pub struct Damaged {
    what: &'static str,
    detail: String,
}

impl Damaged {
    /// `what` names the thing, `detail` says what is wrong with it.
    pub fn new(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, detail: detail.into() }
    }
}

/// Why a replica cannot apply an entry. It stops there: it must not skip the entry, and nothing
/// that the entry did may be committed.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The entry was written by a version that knows more than this one. Nothing is wrong with the
    /// data: a newer program applies it.
    #[error(
        "this version cannot apply the entry at index {index}: {detail}; a newer version is needed"
    )]
    UnknownFeature {
        /// The entry's index.
        index: u64,
        /// What is not known.
        detail: String,
    },
    /// The entry or a row that it needs does not decode.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The storage failed, which concerns the whole node.
    #[error(transparent)]
    Storage(StorageError),
}

impl From<StorageError> for ApplyError {
    /// Damage that the storage found in this replica's own records costs the replica alone, and is
    /// told apart here from a storage that failed.
    fn from(error: StorageError) -> Self {
        if error.is_damage() && !error.is_fatal() {
            Damaged::new("the state of the replica", error.to_string()).into()
        } else {
            Self::Storage(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_found_by_the_storage_is_damage_of_the_replica() {
        let damage = ApplyError::from(StorageError::damaged("row 7"));
        assert!(matches!(damage, ApplyError::Damaged(_)), "{damage:?}");
        let failed = StorageError::Database { action: "read", message: "gone".to_owned() };
        assert!(matches!(ApplyError::from(failed), ApplyError::Storage(_)));
    }
}
