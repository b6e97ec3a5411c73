//! Error types of apply: failures that stop a replica.

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
    /// `what` names the stored item, `detail` says what is wrong with it.
    #[must_use]
    pub fn new(what: &'static str, detail: impl Into<String>) -> Damaged {
        Damaged { what, detail: detail.into() }
    }
}

/// Why a replica cannot apply an entry. It stops there: it must not skip the entry, and no effect
/// of the entry may be committed.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The entry was written by a newer version. The data is intact: a newer program applies it.
    #[error(
        "this version cannot apply the entry at index {index}: {detail}; a newer version is needed"
    )]
    UnknownFeature {
        /// The entry's index.
        index: u64,
        /// The unknown feature.
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
    /// Damage that the storage found in this replica's own records stops only the replica, so it is
    /// distinguished here from a failure of the storage.
    fn from(error: StorageError) -> ApplyError {
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
