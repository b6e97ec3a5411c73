//! Versions of rows in a shard's tree, by checkpoint number, split into pieces.
//!
//! A version is one frame (see [`codec`]) whose body is `tag u8 ‖ CRC32C of the version's tree key
//! without the piece, u32 little-endian ‖ record`. The tag distinguishes a record from a tombstone;
//! the checksum of the key detects a version that is stored in place of another one.

use std::ops::Bound;

use bytes::Bytes;

use super::tail;
use crate::codec;
use crate::database::{Tree, Value};
use crate::error::{Result, StorageError};
use crate::keys::{self, RowKey};
use crate::pieces::{self, Joiner};

/// The longest record, in bytes: a value of the largest size, with room for its metadata.
pub const RECORD_BYTES_MAX: usize = 4 << 20;

/// The format of a version's frame.
pub(crate) const FORMAT: u8 = 1;
const TOMBSTONE: u8 = 0;
const RECORD: u8 = 1;
/// The bytes before the record: frame, tag and key checksum.
const HEAD: usize = codec::FRAME_BYTES + 1 + 4;

/// The most rows in one page of a scan.
pub(crate) const PAGE_ROWS: usize = 64;
/// The most bytes in one page of a scan before its last row.
pub(crate) const PAGE_BYTES: usize = 128 << 10;
/// The most tree entries that one page visits, including pieces and versions that it skips.
const PAGE_ENTRIES: usize = 1024;

/// Writes a version: the record, or a tombstone. Waits for barriers as the database demands; the
/// version is durable after the next one.
pub(crate) fn write(tree: &Tree, key: &RowKey, number: u64, record: Option<&[u8]>) -> Result<()> {
    let prefix = keys::row_prefix(key);
    let mut frame = Vec::with_capacity(HEAD + record.map_or(0, <[u8]>::len));
    codec::begin_frame(&mut frame);
    frame.push(if record.is_some() { RECORD } else { TOMBSTONE });
    frame.extend_from_slice(&key_checksum(&prefix, number).to_le_bytes());
    frame.extend_from_slice(record.unwrap_or_default());
    codec::finish_frame(&mut frame, FORMAT)?;
    for (piece, bytes) in pieces::split(&frame) {
        tree.insert(&keys::piece_key(&prefix, number, piece), bytes)?;
    }
    Ok(())
}

/// The newest version of a row at or below a checkpoint: `None` if there is none, `Some(None)` if
/// it is a tombstone.
pub(crate) fn read(tree: &Tree, key: &RowKey, number: u64) -> Result<Option<Option<Bytes>>> {
    read_prefix(tree, &keys::row_prefix(key), number)
}

fn read_prefix(tree: &Tree, prefix: &[u8], number: u64) -> Result<Option<Option<Bytes>>> {
    let from = keys::piece_key(prefix, number, 0);
    let mut entries = tree.range(from..keys::after_row(prefix));
    let Some(first) = entries.next().transpose()? else { return Ok(None) };
    let mut version = Assembly::begin(prefix, &first)?;
    while version.is_short() {
        let Some(entry) = entries.next().transpose()? else { break };
        if !version.push(prefix, &entry)? {
            break;
        }
    }
    version.finish(prefix).map(Some)
}

/// Whether the tree has any version of a row.
pub(crate) fn exists(tree: &Tree, key: &RowKey) -> Result<bool> {
    let prefix = keys::row_prefix(key);
    let after = keys::after_row(&prefix);
    Ok(tree.range(prefix..after).next().transpose()?.is_some())
}

fn key_checksum(prefix: &[u8], number: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(prefix), &(!number).to_be_bytes())
}

/// The error of a damaged row. It does not name the row, because keys are user data.
fn damaged(what: &str) -> StorageError {
    StorageError::damaged(format!("a row of the state {what}"))
}

/// A version that is being read, piece by piece in order.
#[derive(Debug)]
struct Assembly {
    number: u64,
    joiner: Joiner,
    /// Bytes read, and the length according to the frame.
    have: usize,
    total: usize,
}

impl Assembly {
    fn begin(prefix: &[u8], (key, value): &(Value, Value)) -> Result<Assembly> {
        let (number, piece) =
            keys::version_of(prefix, key).ok_or_else(|| damaged("has an unrecognised key"))?;
        let total = codec::frame_len(value).ok_or_else(|| damaged("has no whole frame"))?;
        let mut joiner = Joiner::default();
        joiner.push(piece, value);
        Ok(Assembly { number, joiner, have: value.len(), total })
    }

    fn is_short(&self) -> bool {
        self.have < self.total
    }

    /// Adds an entry; false if it does not belong to this version.
    fn push(&mut self, prefix: &[u8], (key, value): &(Value, Value)) -> Result<bool> {
        let (number, piece) =
            keys::version_of(prefix, key).ok_or_else(|| damaged("has an unrecognised key"))?;
        if number != self.number {
            return Ok(false);
        }
        self.joiner.push(piece, value);
        self.have += value.len();
        Ok(true)
    }

    fn finish(self, prefix: &[u8]) -> Result<Option<Bytes>> {
        let number = self.number;
        let frame = self.joiner.finish().ok_or_else(|| damaged("lacks a piece"))?;
        let body = match codec::open_frame(&frame) {
            Ok(codec::Frame { format: FORMAT, body, .. }) => body,
            Ok(codec::Frame { format, .. }) => {
                return Err(StorageError::NewerFormat {
                    what: "a row of the state".to_owned(),
                    found: format,
                    known: FORMAT,
                });
            }
            Err(error) => return Err(damaged(error.as_str())),
        };
        let (tag, rest) = body.split_first().ok_or_else(|| damaged("is empty"))?;
        let (checksum, record) = rest.split_first_chunk().ok_or_else(|| damaged("is too short"))?;
        if u32::from_le_bytes(*checksum) != key_checksum(prefix, number) {
            return Err(damaged("is stored in place of another one"));
        }
        match *tag {
            TOMBSTONE => Ok(None),
            RECORD => {
                let start = frame.len() - record.len();
                Ok(Some(Bytes::from(frame).slice(start..)))
            }
            other => Err(damaged(&format!("has the unknown tag {other}"))),
        }
    }
}

/// A page of a scan: rows, and the range of the next page.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Rows in scan order; `None` is a row that is deleted here.
    pub(crate) rows: Vec<(RowKey, Option<Bytes>)>,
    /// The rest of the range, if any.
    pub(crate) rest: Option<Span>,
}

/// A range of row keys.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) low: Bound<RowKey>,
    /// The first row after the range; `None` = unbounded.
    pub(crate) high: Option<RowKey>,
}

impl Span {
    /// The rows from `low` on that are below `high`.
    pub(crate) fn new(low: RowKey, high: Option<RowKey>) -> Span {
        Span { low: Bound::Included(low), high }
    }

    /// All rows.
    pub(crate) fn everything() -> Span {
        Span { low: Bound::Unbounded, high: None }
    }

    /// Whether no key can be in it.
    pub(crate) fn is_empty(&self) -> bool {
        match (&self.low, &self.high) {
            (Bound::Included(low) | Bound::Excluded(low), Some(high)) => low >= high,
            _ => false,
        }
    }

    /// The rest of the range after a row, in scan order.
    pub(crate) fn after(&self, last: RowKey, reverse: bool) -> Option<Span> {
        let rest = if reverse {
            Span { low: self.low.clone(), high: Some(last) }
        } else {
            Span { low: Bound::Excluded(last), high: self.high.clone() }
        };
        (!rest.is_empty()).then_some(rest)
    }
}

/// The next rows of `span` in the tree at a checkpoint.
pub(crate) fn page(tree: &Tree, span: &Span, number: u64, reverse: bool) -> Result<Page> {
    if span.is_empty() {
        return Ok(Page::default());
    }
    let low = match &span.low {
        Bound::Included(key) => keys::row_prefix(key),
        Bound::Excluded(key) => keys::after_row(&keys::row_prefix(key)),
        Bound::Unbounded => Vec::new(),
    };
    let high = span.high.as_ref().map(keys::row_prefix);
    let raw = if reverse {
        // No kind of row has this number.
        let high = high.unwrap_or_else(|| vec![u8::MAX]);
        raw_page_reverse(tree, &low, &high, number)?
    } else {
        raw_page(tree, low, high, number)?
    };
    let mut rows = Vec::with_capacity(raw.rows.len());
    for (prefix, record) in raw.rows {
        rows.push((row_of(&prefix)?, record));
    }
    let rest = match raw.last {
        Some(prefix) => span.after(row_of(&prefix)?, reverse),
        None => None,
    };
    Ok(Page { rows, rest })
}

fn row_of(prefix: &[u8]) -> Result<RowKey> {
    keys::unescape(prefix)
        .filter(|(_, length)| *length == prefix.len())
        .and_then(|(plain, _)| RowKey::from_bytes(plain.into()))
        .ok_or_else(|| damaged("has an unrecognised key"))
}

/// Rows by their escaped keys. `last` is the last row visited, if the page ended before its range.
struct RawPage {
    rows: Vec<(Vec<u8>, Option<Bytes>)>,
    last: Option<Vec<u8>>,
}

fn raw_page(tree: &Tree, low: Vec<u8>, high: Option<Vec<u8>>, number: u64) -> Result<RawPage> {
    let high = high.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rows: Vec<(Vec<u8>, Option<Bytes>)> = Vec::new();
    let (mut bytes, mut visited) = (0, 0);
    // The row being visited, and its version while pieces of it are missing.
    let mut prefix: Vec<u8> = Vec::new();
    let mut found = false;
    let mut open: Option<Assembly> = None;
    for entry in tree.range((Bound::Included(low), high)) {
        let entry = entry?;
        let this = keys::prefix_of(&entry.0).ok_or_else(|| damaged("has a key too short"))?;
        if this != prefix {
            if let Some(version) = open.take() {
                push_row(&mut rows, &mut bytes, &prefix, version)?;
            }
            if rows.len() >= PAGE_ROWS || bytes >= PAGE_BYTES || visited >= PAGE_ENTRIES {
                return Ok(RawPage { rows, last: Some(prefix) });
            }
            prefix = this.to_vec();
            found = false;
        }
        visited += 1;
        if let Some(version) = &mut open {
            if version.push(&prefix, &entry)? {
                continue;
            }
            let version = open.take().unwrap_or_else(|| unreachable!("it was matched above"));
            push_row(&mut rows, &mut bytes, &prefix, version)?;
        }
        let (at, _) = keys::version_of(&prefix, &entry.0)
            .ok_or_else(|| damaged("has an unrecognised key"))?;
        if !found && at <= number {
            found = true;
            open = Some(Assembly::begin(&prefix, &entry)?);
        }
    }
    if let Some(version) = open.take() {
        push_row(&mut rows, &mut bytes, &prefix, version)?;
    }
    Ok(RawPage { rows, last: None })
}

fn push_row(
    rows: &mut Vec<(Vec<u8>, Option<Bytes>)>,
    bytes: &mut usize,
    prefix: &[u8],
    version: Assembly,
) -> Result<()> {
    let record = version.finish(prefix)?;
    *bytes += prefix.len() + record.as_ref().map_or(0, Bytes::len);
    rows.push((prefix.to_vec(), record));
    Ok(())
}

/// Reads from the end of a range. The last entries before its end show which rows there are; each
/// row is then read by itself, because its oldest version is the first from the end.
fn raw_page_reverse(tree: &Tree, low: &[u8], high: &[u8], number: u64) -> Result<RawPage> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    let tail = tail::read(tree, low, high)?;
    let mut prefixes = Vec::with_capacity(tail.keys.len());
    for key in &tail.keys {
        prefixes.push(keys::prefix_of(key).ok_or_else(|| damaged("has a key too short"))?);
    }
    prefixes.dedup();
    let mut last = None;
    for prefix in prefixes.into_iter().rev() {
        if let Some(record) = read_prefix(tree, prefix, number)? {
            bytes += prefix.len() + record.as_ref().map_or(0, Bytes::len);
            rows.push((prefix.to_vec(), record));
        }
        last = Some(prefix);
        if rows.len() >= PAGE_ROWS || bytes >= PAGE_BYTES {
            return Ok(RawPage { rows, last: last.map(<[u8]>::to_vec) });
        }
    }
    let last = if tail.whole { None } else { last.map(<[u8]>::to_vec) };
    Ok(RawPage { rows, last })
}

/// One piece of a version in the tree.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) key: Vec<u8>,
    pub(crate) number: u64,
    pub(crate) tombstone: bool,
}

/// All pieces of all versions of a row, newest version first.
pub(crate) fn row_pieces(tree: &Tree, prefix: &[u8]) -> Result<Vec<Piece>> {
    tree.range(prefix.to_vec()..keys::after_row(prefix))
        .map(|entry| {
            let (key, value) = entry?;
            let (number, piece) =
                keys::version_of(prefix, &key).ok_or_else(|| damaged("has an unrecognised key"))?;
            let tombstone = piece == 0 && value.get(codec::FRAME_BYTES) == Some(&TOMBSTONE);
            Ok(Piece { key: key.to_vec(), number, tombstone })
        })
        .collect()
}

/// Some keys of a tree, and the start of the next page.
pub(crate) type KeyPage = (Vec<Vec<u8>>, Option<Vec<u8>>);

/// The next keys of the tree, from `from` on.
pub(crate) fn key_page(tree: &Tree, from: &[u8]) -> Result<KeyPage> {
    let range = tree.range(from.to_vec()..).take(PAGE_ENTRIES);
    let keys: Vec<Vec<u8>> = range.map(|entry| Ok(entry?.0.to_vec())).collect::<Result<_>>()?;
    let next = (keys.len() == PAGE_ENTRIES).then(|| {
        let mut next = keys[PAGE_ENTRIES - 1].clone();
        next.push(0);
        next
    });
    Ok((keys, next))
}

/// Removes all versions above a checkpoint: those of a checkpoint that ended before its header.
pub(crate) fn remove_above(tree: &Tree, number: u64) -> Result<u64> {
    let mut removed = 0;
    let mut from = Some(Vec::new());
    while let Some(at) = from {
        let (page, next) = key_page(tree, &at)?;
        for key in page {
            let prefix = keys::prefix_of(&key).ok_or_else(|| damaged("has a key too short"))?;
            let (this, _) =
                keys::version_of(prefix, &key).ok_or_else(|| damaged("has an unrecognised key"))?;
            if this > number {
                tree.remove(&key)?;
                removed += 1;
            }
        }
        from = next;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, DatabaseOptions};
    use crate::golden::assert_golden;
    use crate::keys::RowKind;

    fn with_tree(test: impl FnOnce(&Tree, &RowKey)) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
        test(&database.tree(b"s7/1").unwrap(), &RowKey::new(RowKind::User, 0, b"key"));
    }

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        with_tree(|tree, key| {
            write(tree, key, 3, Some(b"record")).unwrap();
            write(tree, key, 4, None).unwrap();
            let expected = [
                // Format, CRC32C, length; tag, checksum of the key, record.
                ("fffffffffffffffb 0000", "01 99ae8445 05000000 00 748dfb9f"),
                ("fffffffffffffffc 0000", "01 40bc4fc4 0b000000 01 9fe9314b 7265636f7264"),
            ];
            assert_eq!(tree.range::<&[u8]>(..).count(), expected.len());
            for (row, (number, value)) in tree.range::<&[u8]>(..).zip(expected) {
                let row = row.unwrap();
                assert_golden(&row.0, &format!("0100000000 6b6579 08 {number}"));
                assert_golden(&row.1, value);
            }
            assert_eq!(read(tree, key, 3).unwrap().unwrap().unwrap(), &b"record"[..]);
            assert_eq!(read(tree, key, 4).unwrap(), Some(None));
        });
    }

    #[test]
    fn a_newer_format_is_called_newer() {
        with_tree(|tree, key| {
            let newer = codec::encode(FORMAT + 1, &b"a row").unwrap();
            tree.insert(&keys::piece_key(&keys::row_prefix(key), 1, 0), &newer).unwrap();
            let error = read(tree, key, 1).unwrap_err();
            let expected = matches!(error, StorageError::NewerFormat { found: 2, known: 1, .. });
            assert!(expected, "{error}");
        });
    }
}
