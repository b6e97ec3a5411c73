//! Calls of sled: a panic becomes an error, and an error becomes what it means here.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Result, StorageError};

thread_local! {
    /// The number of calls of the database that this thread is in, whose panics become errors.
    static CAUGHT: Cell<usize> = const { Cell::new(0) };
}

/// True while this thread is in a call of the database, whose panic is caught and becomes an error.
/// A panic hook that ends the process must ignore such a panic.
#[must_use]
pub fn panic_is_caught() -> bool {
    CAUGHT.get() > 0
}

/// Runs a call of the database; a panic in it is returned as its message. The caller must not rely
/// on anything that the call could have left half changed.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    CAUGHT.set(CAUGHT.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(f));
    CAUGHT.set(CAUGHT.get() - 1);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
    })
}

/// Runs a read, which changes nothing in the database even if it panics.
pub(super) fn read<T>(
    action: &'static str,
    tree: &[u8],
    f: impl FnOnce() -> sled::Result<T>,
) -> Result<T> {
    match caught(f) {
        Ok(result) => result.map_err(|error| failure(action, tree, error)),
        Err(message) => Err(damaged(action, tree, &format!("it panicked: {message}"))),
    }
}

/// Classifies a failure of the database, before anything is closed because of it.
pub(super) fn failure(action: &'static str, tree: &[u8], error: sled::Error) -> StorageError {
    match error {
        sled::Error::CollectionNotFound(_) => {
            StorageError::Invalid { what: format!("cannot {action} a tree that was dropped") }
        }
        error @ sled::Error::Corruption { .. } => damaged(action, tree, &error.to_string()),
        // The file ends before a page that was in it.
        sled::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            damaged(action, tree, &error.to_string())
        }
        error => StorageError::Database { action, message: error.to_string() },
    }
}

fn damaged(action: &'static str, tree: &[u8], message: &str) -> StorageError {
    let tree = tree.escape_ascii();
    StorageError::damaged(format!("the storage database cannot {action} tree {tree}: {message}"))
}
