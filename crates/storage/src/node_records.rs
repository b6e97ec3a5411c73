//! Node records: named records of the node itself, such as the newest cluster map that it knows.
//!
//! A record is stored in pieces under a *generation*. A new generation is written beside the old
//! one and made durable; then one insert of the pointer row makes it the current one:
//!
//! | key | value |
//! |---|---|
//! | `p` ‖ name | pointer: the generation, as a record of [`crate::codec`] |
//! | `d` ‖ name ‖ 0 ‖ generation (8, big endian) ‖ piece (2) | a piece |

use bincode::{BorrowDecode, Encode};
use parking_lot::Mutex;

use crate::database::{Database, Tree};
use crate::error::{Result, StorageError};
use crate::{codec, pieces};

const TREE: &[u8] = b"node";
pub(crate) const FORMAT: u8 = 1;
const NAME_BYTES_MAX: usize = 255;

#[derive(Debug, Clone, Copy, Encode, BorrowDecode)]
struct Pointer {
    generation: u64,
}

/// A few named blobs, each replaced atomically: after a crash either the old or the new one is
/// there.
#[derive(Debug)]
pub struct NodeRecords {
    database: Database,
    tree: Tree,
    /// Two writers of one name would share a generation.
    writing: Mutex<()>,
}

impl NodeRecords {
    /// Opens the records in `database` and removes the rows of an unfinished [`NodeRecords::put`].
    ///
    /// # Errors
    /// A failure of the database, or [`StorageError::Damaged`].
    pub fn open(database: &Database) -> Result<Self> {
        let tree = database.tree(TREE)?;
        let records = Self { database: database.clone(), tree, writing: Mutex::new(()) };
        let mut pointers = Vec::new();
        for item in records.tree.range(b"p".as_slice()..b"q".as_slice()) {
            let key = item?.0;
            let name = String::from_utf8(key[1..].to_vec())
                .map_err(|_| StorageError::damaged("a node record has a name that is not text"))?;
            let pointer = records.pointer(&name)?;
            pointers.push((name, pointer.map(|pointer| pointer.generation)));
        }
        for item in records.tree.range(b"d".as_slice()..b"e".as_slice()) {
            let key = item?.0;
            let current = pointers.iter().any(|(name, generation)| {
                generation.is_some_and(|g| key.starts_with(&generation_key(name, g)))
            });
            if !current {
                records.tree.remove(&key)?;
            }
        }
        Ok(records)
    }

    /// Replaces the record `name`; the new one is durable when this returns.
    ///
    /// # Errors
    /// A failure of the database, or [`StorageError::TooLarge`], after which nothing has changed.
    pub fn put(&self, name: &str, record: &[u8]) -> Result<()> {
        check_len("the name of a node record", name.len(), NAME_BYTES_MAX)?;
        check_len("a node record", record.len(), codec::DECODE_LIMIT - 16)?;
        if name.is_empty() || name.contains('\0') {
            let what = format!("{name:?} is not a valid name of a node record");
            return Err(StorageError::Invalid { what });
        }
        let _writing = self.writing.lock();
        let old = self.pointer(name)?.map(|pointer| pointer.generation);
        let generation = old.map_or(1, |old| old + 1);
        let stem = generation_key(name, generation);
        for (number, piece) in pieces::split(&codec::encode(FORMAT, &record)?) {
            self.tree.insert(&piece_key(&stem, number), piece)?;
        }
        self.database.barrier()?;
        self.tree.insert(&pointer_key(name), &codec::encode(FORMAT, &Pointer { generation })?)?;
        self.database.barrier()?;
        if let Some(old) = old {
            let stem = generation_key(name, old);
            for item in self.tree.range(piece_key(&stem, 0)..=piece_key(&stem, u16::MAX)) {
                self.tree.remove(&item?.0)?;
            }
        }
        Ok(())
    }

    /// The record `name`, if it was ever put.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if it differs from what was written.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        // A concurrent put would remove the generation that the pointer named when it was read.
        let _writing = self.writing.lock();
        let Some(pointer) = self.pointer(name)? else { return Ok(None) };
        let stem = generation_key(name, pointer.generation);
        let mut joiner = pieces::Joiner::default();
        for item in self.tree.range(piece_key(&stem, 0)..=piece_key(&stem, u16::MAX)) {
            let (key, piece) = item?;
            let (_, number) = pieces::split_key(&key).ok_or_else(|| {
                StorageError::damaged(format!("node record {name} has a bad key"))
            })?;
            joiner.push(number, &piece);
        }
        let bytes = joiner
            .finish()
            .ok_or_else(|| StorageError::damaged(format!("node record {name} lacks a piece")))?;
        let record: &[u8] = codec::decode(&bytes, FORMAT, &format!("node record {name}"))?;
        Ok(Some(record.to_vec()))
    }

    fn pointer(&self, name: &str) -> Result<Option<Pointer>> {
        let Some(bytes) = self.tree.get(&pointer_key(name))? else { return Ok(None) };
        codec::decode(&bytes, FORMAT, &format!("the pointer to node record {name}")).map(Some)
    }
}

fn check_len(what: &'static str, len: usize, limit: usize) -> Result<()> {
    if len > limit { Err(StorageError::TooLarge { what, len, limit }) } else { Ok(()) }
}

fn pointer_key(name: &str) -> Vec<u8> {
    [b"p", name.as_bytes()].concat()
}

/// The common prefix of the keys of all pieces of one generation.
fn generation_key(name: &str, generation: u64) -> Vec<u8> {
    [b"d", name.as_bytes(), b"\0", &generation.to_be_bytes()].concat()
}

fn piece_key(stem: &[u8], piece: u16) -> Vec<u8> {
    [stem, &piece.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::database::DatabaseOptions;
    use crate::golden::assert_golden;

    fn open(dir: &Path) -> NodeRecords {
        NodeRecords::open(&Database::open(dir, DatabaseOptions::default()).unwrap()).unwrap()
    }

    fn rows(records: &NodeRecords) -> usize {
        records.tree.range::<&[u8]>(..).count()
    }

    #[test]
    fn get_returns_the_last_put() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        assert_eq!(records.get("map").unwrap(), None);
        let long: Vec<u8> = (0..50_000u32).map(|i| (i / 7) as u8).collect();
        for record in [&b"first"[..], &long, b"", b"last"] {
            records.put("map", record).unwrap();
            records.put("map2", b"another").unwrap();
            assert_eq!(records.get("map").unwrap().unwrap(), record);
        }
        drop(records);
        let records = open(dir.path());
        assert_eq!(records.get("map").unwrap().unwrap(), b"last");
        assert_eq!(records.get("map2").unwrap().unwrap(), b"another");
        assert_eq!(rows(&records), 4, "two pointers, two pieces");
    }

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        records.put("map", b"old").unwrap();
        records.put("map", b"rec").unwrap();
        let expected = [
            // d, name, 0, generation, piece: format, CRC32C, length; length, bytes.
            ("64 6d6170 00 0000000000000002 0000", "01 ce5d2aba 04000000 03 726563"),
            // p, name: format, CRC32C, length; generation.
            ("70 6d6170", "01 c8083061 01000000 02"),
        ];
        assert_eq!(rows(&records), expected.len());
        for (row, (key, value)) in records.tree.range::<&[u8]>(..).zip(expected) {
            let row = row.unwrap();
            assert_golden(&row.0, key);
            assert_golden(&row.1, value);
        }
        assert_eq!(records.get("map").unwrap().unwrap(), b"rec");
    }

    #[test]
    fn a_newer_format_is_called_newer() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        records.put("map", b"record").unwrap();
        for (key, newer) in [
            (piece_key(&generation_key("map", 1), 0), codec::encode(2, &b"a record").unwrap()),
            (pointer_key("map"), codec::encode(2, &(1u64, 7u8)).unwrap()),
        ] {
            records.tree.insert(&key, &newer).unwrap();
            let error = records.get("map").unwrap_err();
            let expected = matches!(error, StorageError::NewerFormat { found: 2, known: 1, .. });
            assert!(expected, "{error}");
        }
    }

    #[test]
    fn an_unfinished_put_leaves_the_old_record_and_no_rows() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        records.put("map", b"old").unwrap();
        let stem = generation_key("map", 2);
        records.tree.insert(&piece_key(&stem, 0), b"half").unwrap();
        drop(records);
        let records = open(dir.path());
        assert_eq!(records.get("map").unwrap().unwrap(), b"old");
        assert_eq!(rows(&records), 2);
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        records.put("map", &[7; 20_000]).unwrap();
        let stem = generation_key("map", 1);
        records.tree.insert(&piece_key(&stem, 1), &[8; pieces::PIECE_BYTES]).unwrap();
        assert!(records.get("map").unwrap_err().to_string().contains("node record map"));
        records.tree.remove(&piece_key(&stem, 1)).unwrap();
        assert!(records.get("map").unwrap_err().is_damage());
        records.put("map", b"new").unwrap();
        assert_eq!(records.get("map").unwrap().unwrap(), b"new");
    }

    #[test]
    fn bad_names_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        for name in ["", "a\0b", &"x".repeat(256)] {
            assert!(!records.put(name, b"").unwrap_err().is_fatal());
        }
    }
}
