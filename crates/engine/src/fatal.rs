//! Failures of the storage that nothing here can outlive.

use std::fmt;

use quorate_storage::StorageError;

/// How the process ends after a failure of the storage: what was written is in an unknown state, so no
/// thread continues. The node decides the exit code.
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
