//! Free space, and the reserve that keeps the disk from ever becoming full.
//!
//! After one "no space left" every further write of the database fails until the process is
//! restarted, so the disk must never become full. Below the reserve a node rejects user data but
//! continues everything that keeps the cluster running or frees space; below a quarter of the
//! reserve it stops appends too.
//!
//! The database reuses its own space and hardly ever returns any to the file system. So reusable
//! space counts as room: [`Disk`] knows how many live bytes its file has held, and how many it
//! holds now. The guarantee that the disk never becomes full does not rest on this estimate,
//! because the quarter is measured by the bytes that are really free.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::error::{Result, StorageError};

/// Reads the size and the free bytes of the file system that holds a path.
pub type SpaceProbe = Arc<dyn Fn(&Path) -> Result<Space> + Send + Sync>;

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

/// The writes that the free space still permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskLevel {
    /// All writes.
    Ok,
    /// Less than the reserve is free: user data is rejected; deletes, appends, votes and
    /// checkpoints continue.
    Low,
    /// Less than a quarter of the reserve is free: appends stop as well.
    Critical,
}

impl Space {
    /// Reads the space of the file system that holds `path`.
    ///
    /// # Errors
    /// The system call failed.
    pub fn of(path: &Path) -> Result<Self> {
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| StorageError::io("read the free space of", path, error))?;
        Ok(Self {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes kept free: 5 % of the file system, but at least 256 MiB, and at most 4 GiB, because a
    /// larger disk does not increase what a node can write between two checks of its free space.
    #[must_use]
    pub fn reserve(self) -> u64 {
        (self.total / 20).clamp(RESERVE_MIN, RESERVE_MAX)
    }

    /// The level when `room` bytes can be written without growing the files. A level worse than
    /// [`DiskLevel::Ok`] (`before`) returns to it only with an eighth of the reserve to spare, so
    /// that it does not change with each write.
    #[must_use]
    pub fn level(self, room: u64, before: DiskLevel) -> DiskLevel {
        let reserve = self.reserve();
        let wanted = if before > DiskLevel::Ok { reserve + reserve / 8 } else { reserve };
        if self.free < reserve / 4 {
            DiskLevel::Critical
        } else if self.free.saturating_add(room) < wanted {
            DiskLevel::Low
        } else {
            DiskLevel::Ok
        }
    }
}

/// The state of the disk's reserve. It is checked with every barrier, so at most one record of the
/// log or half a mebibyte of the state is written between two checks.
#[derive(Default)]
pub struct Disk {
    level: AtomicU8,
    seen: Mutex<Seen>,
}

/// The figures of the last check.
#[derive(Debug, Default)]
struct Seen {
    space: Option<Space>,
    /// Length of the database's file in bytes.
    file: u64,
    /// Live bytes in the database, if known.
    live: Option<u64>,
    /// Live bytes that the file has held, and so can hold again without growing.
    held: u64,
}

/// The database's file has held at least this part of its length in live bytes: a segment is reused
/// once half of it is dead, and segments that wait for that or are being written are as much again.
const HELD_PART: u64 = 4;

/// Live bytes that even an empty file counts as holding, when deciding whether it is sparse.
const SPARSE_FROM: u64 = 16 << 20;

/// Shrinking writes a few segments of the file before it frees more.
const SHRINK_FREE: u64 = 32 << 20;

/// When the file grows by this part of the reserve at once, nothing in it counts as room any more.
const GROWTH_PART: u64 = 8;

/// `part / whole` of the bytes, at most all.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part.min(whole)) / u128::from(whole.max(1));
    share as u64
}

impl Seen {
    fn room(&self) -> u64 {
        self.live.map_or(0, |live| self.held.saturating_sub(live))
    }

    fn look(&mut self, space: Space, file: u64) {
        self.space = Some(space);
        if self.file == 0 {
            self.held = file / HELD_PART;
        } else if file < self.file {
            // What is left of the file holds live bytes as densely as the whole did.
            self.held = share(self.held, file, self.file);
        } else if file > self.file {
            // It grew although there seemed to be room: count less of that from now on, and none
            // once the growth has taken its part of the reserve.
            let grown = (file - self.file).saturating_mul(GROWTH_PART);
            self.held -= share(self.room(), grown, space.reserve());
        }
        self.file = file;
    }
}

impl Disk {
    /// The current level.
    #[must_use]
    pub fn level(&self) -> DiskLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => DiskLevel::Ok,
            1 => DiskLevel::Low,
            _ => DiskLevel::Critical,
        }
    }

    /// Updates the level from the file system's space and the length of the database's file.
    pub fn look(&self, space: Space, file: u64) -> DiskLevel {
        let mut seen = self.seen.lock();
        seen.look(space, file);
        self.judge(&seen)
    }

    /// Updates the level from the live bytes in the database; `None` if they are not known, and
    /// then nothing in its file counts as room.
    pub fn set_live(&self, live: Option<u64>) -> DiskLevel {
        let mut seen = self.seen.lock();
        seen.live = live;
        seen.held = seen.held.max(live.unwrap_or(0));
        self.judge(&seen)
    }

    /// Bytes that can be written without growing the database's file, as an estimate.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.seen.lock().room()
    }

    /// Whether so little of the database's file is live that it should be collected: less, by some
    /// segments, than the file is certain to hold.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        let seen = self.seen.lock();
        seen.live.is_some_and(|live| seen.file / HELD_PART > live + SPARSE_FROM)
    }

    /// Whether the disk has the space that shrinking the file may take before it returns more.
    #[must_use]
    pub fn may_shrink(&self) -> bool {
        self.space().is_some_and(|space| space.free > SHRINK_FREE)
    }

    /// The file system's space as of the last check.
    #[must_use]
    pub fn space(&self) -> Option<Space> {
        self.seen.lock().space
    }

    fn judge(&self, seen: &Seen) -> DiskLevel {
        let Some(space) = seen.space else { return DiskLevel::Ok };
        let level = space.level(seen.room(), self.level());
        self.level.store(level as u8, Ordering::Relaxed);
        level
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("level", &self.level())
            .field("seen", &*self.seen.lock())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn levels_by_free_bytes() {
        let of = |total, free| Space { total, free }.level(0, DiskLevel::Ok);
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

    fn look(disk: &Disk, free: u64, file: u64) -> DiskLevel {
        disk.look(Space { total: 1024 * MIB, free: free * MIB }, file * MIB)
    }

    #[test]
    fn removed_bytes_count_as_room() {
        let disk = Disk::default();
        look(&disk, 900, 8);
        disk.set_live(Some(300 * MIB));
        look(&disk, 250, 700);
        assert_eq!((disk.level(), disk.room()), (DiskLevel::Low, 0));
        // The reserve and an eighth of it must be free before user data is accepted again.
        assert_eq!(disk.set_live(Some(263 * MIB)), DiskLevel::Low);
        assert_eq!(disk.set_live(Some(262 * MIB)), DiskLevel::Ok);
        assert_eq!(disk.set_live(Some(290 * MIB)), DiskLevel::Ok);
        assert_eq!(disk.set_live(Some(300 * MIB)), DiskLevel::Low);
        assert_eq!(disk.set_live(None), DiskLevel::Low);
    }

    #[test]
    fn a_file_that_grows_has_less_room_than_it_seemed() {
        let disk = Disk::default();
        look(&disk, 250, 700);
        disk.set_live(Some(300 * MIB));
        disk.set_live(Some(100 * MIB));
        assert_eq!((disk.level(), disk.room()), (DiskLevel::Ok, 200 * MIB));
        look(&disk, 242, 708);
        assert_eq!((disk.level(), disk.room()), (DiskLevel::Ok, 150 * MIB));
        // An eighth of the reserve at once.
        assert_eq!(look(&disk, 210, 740), DiskLevel::Low);
        assert_eq!(disk.room(), 0);
        assert_eq!(disk.set_live(Some(50 * MIB)), DiskLevel::Low);
        assert_eq!(disk.room(), 50 * MIB);
        // Whatever room there seems to be, the last quarter is measured.
        disk.set_live(Some(0));
        assert_eq!(look(&disk, 63, 740), DiskLevel::Critical);
    }

    #[test]
    fn a_file_that_shrinks_keeps_its_part_of_the_room() {
        let disk = Disk::default();
        look(&disk, 250, 800);
        disk.set_live(Some(400 * MIB));
        disk.set_live(Some(10 * MIB));
        assert_eq!(disk.room(), 390 * MIB);
        // Space returned to the file system is free and no longer in the file.
        look(&disk, 650, 400);
        assert_eq!(disk.room(), 190 * MIB);
        look(&disk, 1040, 10);
        assert_eq!(disk.room(), 0);
    }

    #[test]
    fn a_file_with_few_live_bytes_has_room() {
        let disk = Disk::default();
        look(&disk, 250, 700);
        assert_eq!((disk.level(), disk.room()), (DiskLevel::Low, 0));
        assert_eq!(disk.set_live(Some(20 * MIB)), DiskLevel::Ok);
        assert_eq!(disk.room(), 155 * MIB);
    }
}
