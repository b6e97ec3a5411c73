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
    pub fn new(what: &'static str, detail: impl Into<String>) -> Damaged {
        Damaged { what, detail: detail.into() }
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
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
