//! The file `MARK`: the sequence that the log is known to reach, kept outside of the log's store.
//!
//! A log that has lost its end looks like a shorter log. So the last durable sequence is written
//! here at a clean stop and about every second: a log that ends below it is damaged.
//!
//! Two slots, 4 KiB apart so that they share no sector, are written in turn; each is a record of
//! [`crate::codec`]. A write torn by a crash leaves the other slot, which is one write older.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bincode::{BorrowDecode, Encode};

use crate::database::Syncs;
use crate::error::{Result, StorageError};
use crate::{codec, crash};

pub(crate) const FORMAT: u8 = 1;
const SLOT_BYTES: usize = 4096;

/// The largest age of the mark while the log grows.
pub const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
struct Slot {
    /// Counts the writes; the higher one is newer.
    generation: u64,
    /// The last sequence known durable.
    sequence: u64,
    /// The back end of the log: 1 = the database, 2 = files.
    backend: u8,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    path: PathBuf,
    newest: Slot,
    written_at: Instant,
    syncs: Arc<Syncs>,
}

impl Mark {
    /// Opens the mark in the data directory `dir`; `None` if there is none.
    pub fn open(dir: &Path, syncs: Arc<Syncs>) -> Result<Option<Self>> {
        let path = dir.join("MARK");
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io("open", &path, error)),
        };
        let bytes = fs::read(&path).map_err(|e| StorageError::io("read", &path, e))?;
        let slots = [0, SLOT_BYTES].map(|at| read_slot(bytes.get(at..).unwrap_or_default()));
        let mut newest: Option<Slot> = None;
        for slot in slots {
            match slot {
                Ok(slot) if newest.is_none_or(|other| other.generation < slot.generation) => {
                    newest = Some(slot);
                }
                Err(error @ StorageError::NewerFormat { .. }) => return Err(error),
                _ => {}
            }
        }
        let newest = newest.ok_or_else(|| {
            StorageError::damaged(format!("both slots of {} are broken", path.display()))
        })?;
        Ok(Some(Self { file, path, newest, written_at: Instant::now(), syncs }))
    }

    /// Creates the mark of an empty log.
    pub fn create(dir: &Path, backend: u8, syncs: Arc<Syncs>) -> Result<Self> {
        let path = dir.join("MARK");
        let new = dir.join("MARK.new");
        let newest = Slot { generation: 1, sequence: 0, backend };
        crash::point("mark.create");
        let create = || -> std::io::Result<File> {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.set_len(2 * SLOT_BYTES as u64)?;
            Ok(file)
        };
        let file = create().map_err(|error| StorageError::io("create", &new, error))?;
        let mut mark = Self { file, path: new.clone(), newest, written_at: Instant::now(), syncs };
        mark.write(newest)?;
        mark.syncs.all(&new, &mark.file).map_err(|error| StorageError::io("sync", &new, error))?;
        crash::point("mark.rename");
        fs::rename(&new, &path).map_err(|error| StorageError::io("rename", &new, error))?;
        mark.syncs.path(dir)?;
        mark.path = path;
        Ok(mark)
    }

    /// The last sequence that is known to have been durable.
    pub fn sequence(&self) -> u64 {
        self.newest.sequence
    }

    /// The number of the log's back end.
    pub fn backend(&self) -> u8 {
        self.newest.backend
    }

    /// Writes `sequence` if it has changed; durable on return.
    pub fn set(&mut self, sequence: u64) -> Result<()> {
        if sequence == self.newest.sequence {
            return Ok(());
        }
        self.write(Slot { generation: self.newest.generation + 1, sequence, ..self.newest })
    }

    /// Writes `sequence` if the mark is older than [`MARK_INTERVAL`].
    pub fn refresh(&mut self, sequence: u64) -> Result<()> {
        if sequence == self.newest.sequence || self.written_at.elapsed() < MARK_INTERVAL {
            return Ok(());
        }
        self.set(sequence)
    }

    fn write(&mut self, slot: Slot) -> Result<()> {
        let record = codec::encode(FORMAT, &slot)?;
        let offset = (slot.generation % 2) * SLOT_BYTES as u64;
        crash::point("mark.write");
        let (head, tail) = record.split_at(record.len() / 2);
        self.file
            .write_all_at(head, offset)
            .and_then(|()| {
                crash::point("mark.half");
                self.file.write_all_at(tail, offset + head.len() as u64)
            })
            .map_err(|error| StorageError::io("write to", &self.path, error))?;
        crash::point("mark.sync");
        self.syncs.data(&self.path, &self.file).map_err(|error| StorageError::Barrier {
            stage: "fdatasync",
            path: self.path.clone(),
            message: error.to_string(),
        })?;
        self.newest = slot;
        self.written_at = Instant::now();
        Ok(())
    }
}

fn read_slot(bytes: &[u8]) -> Result<Slot> {
    let len = codec::frame_len(bytes).unwrap_or(usize::MAX).min(bytes.len());
    codec::decode(&bytes[..len], FORMAT, "a slot of MARK")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::assert_golden;

    fn open(dir: &Path) -> Result<Option<Mark>> {
        Mark::open(dir, Arc::default())
    }

    fn reopen(dir: &Path) -> Mark {
        open(dir).unwrap().unwrap()
    }

    #[test]
    fn the_newest_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path()).unwrap().is_none());
        let mut mark = Mark::create(dir.path(), 2, Arc::default()).unwrap();
        assert_eq!((reopen(dir.path()).sequence(), mark.backend()), (0, 2));
        for sequence in [3, 5, 900, 901] {
            mark.set(sequence).unwrap();
            assert_eq!((reopen(dir.path()).sequence(), mark.backend()), (sequence, 2));
        }
        let generation = mark.newest.generation;
        mark.set(901).unwrap();
        mark.refresh(902).unwrap();
        assert_eq!(mark.newest.generation, generation, "unchanged, and too early");
    }

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        // Format, CRC32C, length; generation, sequence, backend.
        let slots = [
            (0, "01 17102b94 05000000 02 fb2c01 02"),
            (SLOT_BYTES, "01 7c586b39 03000000 01 00 02"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::create(dir.path(), 2, Arc::default()).unwrap();
        mark.set(300).unwrap();
        let path = dir.path().join("MARK");
        let file = fs::read(&path).unwrap();
        assert_eq!(file.len(), 2 * SLOT_BYTES);
        for (at, slot) in slots {
            let len = codec::frame_len(&file[at..]).unwrap();
            assert_golden(&file[at..at + len], slot);
        }
        assert_eq!(reopen(dir.path()).newest, Slot { generation: 2, sequence: 300, backend: 2 });
    }

    #[test]
    fn a_newer_format_is_called_newer() {
        let dir = tempfile::tempdir().unwrap();
        Mark::create(dir.path(), 1, Arc::default()).unwrap();
        let path = dir.path().join("MARK");
        let mut file = fs::read(&path).unwrap();
        let newer = codec::encode(FORMAT + 1, &(2u64, 0u64, 1u8, 0u8)).unwrap();
        file[..newer.len()].copy_from_slice(&newer);
        fs::write(&path, &file).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, StorageError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::create(dir.path(), 1, Arc::default()).unwrap();
        mark.set(7).unwrap();
        mark.set(8).unwrap();
        let path = dir.path().join("MARK");
        let whole = fs::read(&path).unwrap();
        let newest_at = (mark.newest.generation as usize % 2) * SLOT_BYTES;
        for byte in 0..codec::frame_len(&whole[newest_at..]).unwrap() {
            let mut torn = whole.clone();
            torn[newest_at + byte] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            match open(dir.path()) {
                Ok(mark) => assert_eq!(mark.unwrap().sequence(), 7, "byte {byte}"),
                Err(error) => panic!("byte {byte}: {error}"),
            }
        }
        fs::write(&path, &whole[..100]).unwrap();
        assert!(open(dir.path()).is_ok());
        fs::write(&path, [0; 8192]).unwrap();
        assert!(open(dir.path()).unwrap_err().is_damage());
    }
}
