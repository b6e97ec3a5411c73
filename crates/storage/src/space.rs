//! Free space and the reserve that keeps the engine from ever meeting a full disk.
//!
//! After one "no space left" every further write of the engine fails until the process is
//! restarted, so the disk must never become full. Below the reserve a node takes no more user data
//! but goes on with everything that keeps the cluster moving or frees space; below a quarter of it
//! appends stop too.

use std::path::Path;

use crate::error::{Result, StorageError};

const RESERVE_MIN: u64 = 256 << 20;
const RESERVE_MAX: u64 = 4 << 30;

/// Size and free bytes of a file system, as an unprivileged process sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system in bytes.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
}

/// What may still be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskLevel {
    /// Everything.
    Ok,
    /// Less than the reserve is free: no user data; deletes, appends, votes, checkpoints go on.
    Low,
    /// Less than a quarter of the reserve is free: appends stop as well.
    Critical,
}

impl Space {
    /// Asks the file system that holds `path`.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn of(path: &Path) -> Result<Self> {
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| StorageError::io("read the free space of", path, error))?;
        Ok(Self {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes kept free: 5 % of the file system, but at least 256 MiB, and at most 4 GiB, since
    /// what one node can write between two looks at the disk does not grow with the disk.
    #[must_use]
    pub fn reserve(self) -> u64 {
        (self.total / 20).clamp(RESERVE_MIN, RESERVE_MAX)
    }

    /// What may still be written.
    #[must_use]
    pub fn level(self) -> DiskLevel {
        let reserve = self.reserve();
        if self.free < reserve / 4 {
            DiskLevel::Critical
        } else if self.free < reserve {
            DiskLevel::Low
        } else {
            DiskLevel::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn levels_by_free_bytes() {
        let of = |total, free| Space { total, free }.level();
        // A small disk: the reserve is 256 MiB.
        assert_eq!(of(1024 * MIB, 256 * MIB), DiskLevel::Ok);
        assert_eq!(of(1024 * MIB, 256 * MIB - 1), DiskLevel::Low);
        assert_eq!(of(1024 * MIB, 64 * MIB), DiskLevel::Low);
        assert_eq!(of(1024 * MIB, 64 * MIB - 1), DiskLevel::Critical);
        // 20 GiB: 5 %, which is 1 GiB.
        assert_eq!(of(20 * 1024 * MIB, 1024 * MIB), DiskLevel::Ok);
        assert_eq!(of(20 * 1024 * MIB, 1024 * MIB - 1), DiskLevel::Low);
        // 1 TiB: 4 GiB, not 51.
        assert_eq!(of(1 << 40, 4096 * MIB), DiskLevel::Ok);
        assert_eq!(of(1 << 40, 4096 * MIB - 1), DiskLevel::Low);
        assert_eq!(of(0, 0), DiskLevel::Critical);
    }

    #[test]
    fn a_real_file_system_has_some() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::of(dir.path()).unwrap();
        assert!(space.total > 0 && space.free <= space.total, "{space:?}");
        assert!(Space::of(Path::new("/does/not/exist")).is_err());
    }
}
