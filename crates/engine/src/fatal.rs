//! Fatal storage failures: the hook that ends the process.

use std::fmt;

use quorate_storage::StorageError;

/// The hook that ends the process after a failure of the storage: the state of what was written is
/// unknown, so no thread continues. The node decides the exit code.
#[derive(Clone, Copy)]
pub struct FatalHook(pub fn(&StorageError) -> !);

impl FatalHook {
    /// Ends the process.
    pub fn end(self, error: &StorageError) -> ! {
        (self.0)(error)
    }
}

impl fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FatalHook")
    }
}
