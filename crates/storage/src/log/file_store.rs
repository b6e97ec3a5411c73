//! File back end of the log: records in append-only files, `log/<first sequence>.log`, each made
//! durable by `fdatasync`.
//!
//! A file begins with a header of 32 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `QRTELOG` and the format version of the file |
//! | 8 | first sequence, little endian |
//! | 8 | salt: random, so that no user data can look like a record (see below) |
//! | 4 | CRC32C of the above |
//! | 4 | zero |
//!
//! and holds records one after another, each after an envelope of 16 bytes: length (4), sequence
//! (8), CRC32C over salt, length and sequence (4). The header is durable before the first record
//! is written, so a broken header in a file with content is damage.
//!
//! When an envelope is broken, the next one is searched for byte by byte: a record that survives
//! after it distinguishes damage from an unfinished tail. The salt prevents a value that a user
//! stored from looking like such a record.
//!
//! After the last record the file holds zeros, written ahead of the records: a write that does not
//! extend the file changes no metadata of the file system, which makes its `fdatasync` several
//! times cheaper. Zeros up to the end of a file are the end of its records.
//!
//! Space is freed by removing whole files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use super::store::{Found, LogStore};
use crate::codec;
use crate::crash;
use crate::database::Database;
use crate::error::{Result, StorageError};

const MAGIC: [u8; 7] = *b"QRTELOG";
pub(super) const FORMAT: u8 = 1;
const FILE_HEADER_BYTES: usize = 32;
const ENVELOPE_BYTES: usize = 16;

/// The most zeros written ahead of the records.
const AHEAD_BYTES: u64 = 1 << 20;

/// One file of the log.
struct Segment {
    path: PathBuf,
    file: File,
    salt: u64,
    /// The offset of the next record.
    end: u64,
    /// Length of the file; zeros from `end` on.
    len: u64,
}

/// The place of a record: file (by its first sequence), offset of its envelope, length of the
/// record.
#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    offset: u64,
    len: usize,
}

pub(super) struct FileStore {
    /// A failure here closes it too: one data directory fails as a whole.
    database: Database,
    dir: PathBuf,
    /// By first sequence. Records are written to the last.
    segments: BTreeMap<u64, Segment>,
    places: BTreeMap<u64, Place>,
    buffer: Vec<u8>,
    /// The size at which a file is followed by a new one.
    file_bytes: u64,
}

impl FileStore {
    pub fn open(database: &Database, data_dir: &Path, file_bytes: u64) -> Result<Self> {
        Self::open_with(database, data_dir, file_bytes, &mut Err)
    }

    /// Opens the files that can be read; `broken` is called with what is wrong with each other one,
    /// and decides whether that ends the opening.
    pub fn open_with(
        database: &Database,
        data_dir: &Path,
        file_bytes: u64,
        broken: &mut dyn FnMut(StorageError) -> Result<()>,
    ) -> Result<Self> {
        let dir = data_dir.join("log");
        if !dir.exists() {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).create(&dir).map_err(|e| StorageError::io("create", &dir, e))?;
            database.syncs().path(data_dir)?;
        }
        let mut store = Self {
            database: database.clone(),
            dir,
            segments: BTreeMap::new(),
            places: BTreeMap::new(),
            buffer: Vec::new(),
            file_bytes,
        };
        store.open_segments(broken)?;
        Ok(store)
    }

    fn open_segments(&mut self, broken: &mut dyn FnMut(StorageError) -> Result<()>) -> Result<()> {
        let mut names = BTreeMap::new();
        let entries =
            fs::read_dir(&self.dir).map_err(|e| StorageError::io("list", &self.dir, e))?;
        for entry in entries {
            let path = entry.map_err(|e| StorageError::io("list", &self.dir, e))?.path();
            let first = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".log")?.parse::<u64>().ok());
            let Some(first) = first else {
                let what = format!("{} is not a file of the log", path.display());
                broken(StorageError::damaged(what))?;
                continue;
            };
            names.insert(first, path);
        }
        let last = names.last_key_value().map(|(first, _)| *first);
        for (first, path) in names {
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|e| StorageError::io("open", &path, e))?;
            let len = file.metadata().map_err(|e| StorageError::io("inspect", &path, e))?.len();
            match read_file_header(&file, first, &path) {
                Err(error) => broken(error)?,
                Ok(Some(salt)) => {
                    let end = FILE_HEADER_BYTES as u64;
                    self.segments.insert(first, Segment { path, file, salt, end, len });
                }
                // The process died while it created the file; the file was still empty.
                Ok(None) if Some(first) == last && len <= FILE_HEADER_BYTES as u64 => {
                    fs::remove_file(&path).map_err(|e| StorageError::io("remove", &path, e))?;
                    self.database.syncs().path(&self.dir)?;
                }
                Ok(None) => {
                    let what = format!("the header of {} is broken", path.display());
                    broken(StorageError::damaged(what))?;
                }
            }
        }
        Ok(())
    }

    fn create_segment(&mut self, first: u64) -> Result<()> {
        let path = self.dir.join(format!("{first:020}.log"));
        let salt = RandomState::new().build_hasher().finish();
        let mut header = [0; FILE_HEADER_BYTES];
        header[..7].copy_from_slice(&MAGIC);
        header[7] = FORMAT;
        header[8..16].copy_from_slice(&first.to_le_bytes());
        header[16..24].copy_from_slice(&salt.to_le_bytes());
        let crc = crc32c::crc32c(&header[..24]);
        header[24..28].copy_from_slice(&crc.to_le_bytes());
        crash::point("file.create");
        let create = || -> std::io::Result<File> {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            crash::point("file.header");
            write_at(&file, &header, 0)?;
            self.database.syncs().all(&path, &file)?;
            Ok(file)
        };
        let file = create().map_err(|e| self.failed("create", &path, e))?;
        self.database.syncs().path(&self.dir).map_err(|error| self.database.fail(error))?;
        let end = FILE_HEADER_BYTES as u64;
        self.segments.insert(first, Segment { path, file, salt, end, len: end });
        Ok(())
    }

    fn failed(&self, action: &'static str, path: &Path, error: std::io::Error) -> StorageError {
        self.database.fail(StorageError::io(action, path, error))
    }

    fn barrier_failed(&self, path: &Path, error: &std::io::Error) -> StorageError {
        self.database.fail(StorageError::Barrier {
            stage: "fdatasync",
            path: path.to_owned(),
            message: error.to_string(),
        })
    }
}

/// Writes in two halves, with a crash point between them: a real write can be torn anywhere.
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    if cfg!(feature = "testing") {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        crash::point("file.write");
        file.write_all_at(head, offset)?;
        crash::point("file.half");
        file.write_all_at(tail, offset + head.len() as u64)?;
        crash::point("file.written");
        return Ok(());
    }
    file.write_all_at(bytes, offset)
}

/// The salt in a file's header; `None` if the header is broken.
fn read_file_header(file: &File, first: u64, path: &Path) -> Result<Option<u64>> {
    let mut header = [0; FILE_HEADER_BYTES];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Ok(None);
    }
    let crc = crc32c::crc32c(&header[..24]).to_le_bytes();
    if header[24..28] != crc || header[28..] != [0; 4] || header[..7] != MAGIC {
        return Ok(None);
    }
    if header[7] > FORMAT {
        let what = path.display().to_string();
        return Err(StorageError::NewerFormat { what, found: header[7], known: FORMAT });
    }
    let whole = header[7] == FORMAT && header[8..16] == first.to_le_bytes();
    Ok(whole.then(|| u64::from_le_bytes(std::array::from_fn(|i| header[16 + i]))))
}

fn envelope(salt: u64, len: usize, sequence: u64) -> [u8; ENVELOPE_BYTES] {
    let mut bytes = [0; ENVELOPE_BYTES];
    bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[4..12].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Sequence and length from the envelope at the beginning of `bytes`; `None` if it is not one.
fn open_envelope(bytes: &[u8], salt: u64) -> Option<(u64, usize)> {
    let head = bytes.first_chunk::<ENVELOPE_BYTES>()?;
    let len = u32::from_le_bytes(std::array::from_fn(|i| head[i])) as usize;
    let sequence = u64::from_le_bytes(std::array::from_fn(|i| head[4 + i]));
    (envelope(salt, len, sequence) == *head).then_some((sequence, len))
}

/// Finds the records of one file: `visit(offset, sequence, found)`. A place without a valid
/// envelope counts as a broken record with the sequence after the last one found.
fn scan_file(
    bytes: &[u8],
    salt: u64,
    first: u64,
    visit: &mut dyn FnMut(u64, u64, Found<'_>) -> Result<()>,
) -> Result<()> {
    let mut offset = FILE_HEADER_BYTES;
    let mut expected = first;
    while bytes.get(offset..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
        let Some((sequence, len)) = open_envelope(&bytes[offset..], salt) else {
            visit(offset as u64, expected, Err("has a broken envelope"))?;
            let next =
                (offset + 1..bytes.len()).find(|at| open_envelope(&bytes[*at..], salt).is_some());
            match next {
                Some(next) => offset = next,
                None => return Ok(()),
            }
            continue;
        };
        let start = offset + ENVELOPE_BYTES;
        let found = match bytes.get(start..start + len) {
            None => Err("is cut short"),
            Some(record) => codec::open_frame(record).map(|_| record).map_err(|e| e.as_str()),
        };
        visit(offset as u64, sequence, found)?;
        expected = sequence + 1;
        offset = start + len;
    }
    Ok(())
}

impl LogStore for FileStore {
    fn scan(&mut self, visit: &mut dyn FnMut(u64, Found<'_>) -> Result<()>) -> Result<()> {
        for (first, segment) in &mut self.segments {
            let bytes =
                fs::read(&segment.path).map_err(|e| StorageError::io("read", &segment.path, e))?;
            let places = &mut self.places;
            let end = &mut segment.end;
            scan_file(&bytes, segment.salt, *first, &mut |offset, sequence, found| {
                if let Ok(record) = found {
                    let len = record.len();
                    *end = offset + (ENVELOPE_BYTES + len) as u64;
                    places.insert(sequence, Place { segment: *first, offset, len });
                }
                visit(sequence, found)
            })?;
        }
        Ok(())
    }

    fn read(&mut self, sequence: u64) -> Result<Vec<u8>> {
        let missing = || StorageError::damaged(format!("record {sequence} of the log is missing"));
        let place = self.places.get(&sequence).ok_or_else(missing)?;
        let segment = self.segments.get(&place.segment).ok_or_else(missing)?;
        let mut record = vec![0; place.len];
        segment
            .file
            .read_exact_at(&mut record, place.offset + ENVELOPE_BYTES as u64)
            .map_err(|e| StorageError::io("read", &segment.path, e))?;
        Ok(record)
    }

    fn remove_from(&mut self, sequence: u64) -> Result<()> {
        self.places.split_off(&sequence);
        let end = match self.places.last_key_value() {
            Some((_, place)) => place.offset + (ENVELOPE_BYTES + place.len) as u64,
            None => FILE_HEADER_BYTES as u64,
        };
        let keep = self.places.last_key_value().map(|(_, place)| place.segment);
        let keep = keep.or_else(|| self.segments.first_key_value().map(|(first, _)| *first));
        let Some(keep) = keep else { return Ok(()) };
        for segment in self.segments.split_off(&(keep + 1)).into_values().rev() {
            crash::point("file.remove_tail");
            fs::remove_file(&segment.path).map_err(|e| self.failed("remove", &segment.path, e))?;
        }
        self.database.syncs().path(&self.dir).map_err(|error| self.database.fail(error))?;
        let Some(segment) = self.segments.get_mut(&keep) else { return Ok(()) };
        (segment.end, segment.len) = (end, end);
        crash::point("file.truncate");
        let sync = |()| self.database.syncs().all(&segment.path, &segment.file);
        let cut = segment.file.set_len(end).and_then(sync);
        let path = segment.path.clone();
        cut.map_err(|e| self.failed("cut the tail of", &path, e))
    }

    fn settle(&mut self) -> Result<()> {
        for segment in self.segments.values() {
            crash::point("file.sync");
            self.database
                .syncs()
                .all(&segment.path, &segment.file)
                .map_err(|e| self.barrier_failed(&segment.path, &e))?;
        }
        self.database.syncs().path(&self.dir).map_err(|error| self.database.fail(error))
    }

    fn write(&mut self, sequence: u64, record: &[u8]) -> Result<()> {
        self.database.check_poisoned()?;
        if self.segments.last_key_value().is_none_or(|(_, last)| last.end >= self.file_bytes) {
            self.create_segment(sequence)?;
        }
        let Some((first, segment)) = self.segments.last_key_value() else {
            return Err(StorageError::Invalid { what: "the log has no file".to_owned() });
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(&envelope(segment.salt, record.len(), sequence));
        self.buffer.extend_from_slice(record);
        let place = Place { segment: *first, offset: segment.end, len: record.len() };
        let end = segment.end + self.buffer.len() as u64;
        let mut len = segment.len;
        if end > len {
            len = end.max(self.file_bytes.min(end + AHEAD_BYTES));
            self.buffer.resize((len - segment.end) as usize, 0);
        }
        write_at(&segment.file, &self.buffer, segment.end)
            .map_err(|e| self.failed("write to", &segment.path, e))?;
        let synced = self.database.syncs().data(&segment.path, &segment.file);
        synced.map_err(|e| self.barrier_failed(&segment.path, &e))?;
        crash::point("file.synced");
        self.database.see_space();
        self.places.insert(sequence, place);
        if let Some(mut last) = self.segments.last_entry() {
            let segment = last.get_mut();
            (segment.end, segment.len) = (end, len);
        }
        Ok(())
    }

    fn remove_below(&mut self, sequence: u64) -> Result<bool> {
        while self.places.first_key_value().is_some_and(|(first, _)| *first < sequence) {
            self.places.pop_first();
        }
        // A file can be removed if the next one begins at or below the first record to keep.
        while let Some(second) = self.segments.keys().nth(1)
            && *second <= sequence
            && let Some((_, segment)) = self.segments.pop_first()
        {
            crash::point("file.remove");
            fs::remove_file(&segment.path).map_err(|e| self.failed("remove", &segment.path, e))?;
        }
        Ok(true)
    }

    fn file_of(&self, sequence: u64) -> Option<&Path> {
        let (_, segment) = self.segments.range(..=sequence).next_back()?;
        Some(&segment.path)
    }

    fn stored_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::DatabaseOptions;
    use crate::golden::{assert_golden, bytes};

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        // Magic and format, first sequence, salt, CRC32C, zeros; an envelope: length, sequence,
        // CRC32C.
        let header = bytes("515254454c4f47 01 2c01000000000000 0807060504030201 8b017c33 00000000");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden.log");
        fs::write(&path, &header).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(read_file_header(&file, 300, &path).unwrap(), Some(0x0102_0304_0506_0708));
        let enveloped = envelope(0x0102_0304_0506_0708, 5, 300);
        assert_golden(&enveloped, "05000000 2c01000000000000 be459720");
        assert_eq!(open_envelope(&enveloped, 0x0102_0304_0506_0708), Some((300, 5)));
        assert_eq!(open_envelope(&enveloped, 0x0102_0304_0506_0709), None);

        // What is written: the salt is random, so the reader vouches for it and for the checksum.
        let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
        let mut store = FileStore::open(&database, dir.path(), 1 << 20).unwrap();
        store.write(300, b"bytes").unwrap();
        let path = dir.path().join("log/00000000000000000300.log");
        let written = fs::read(&path).unwrap();
        assert_eq!(written[..16], header[..16]);
        let file = File::open(&path).unwrap();
        let salt = read_file_header(&file, 300, &path).unwrap().unwrap();
        assert_eq!(written[FILE_HEADER_BYTES..][..ENVELOPE_BYTES], envelope(salt, 5, 300));
        assert_eq!(&written[FILE_HEADER_BYTES + ENVELOPE_BYTES..][..5], b"bytes");
    }
}
