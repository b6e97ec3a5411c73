//! The keys of a shard's rows, in memory and in its tree.
//!
//! A row is named by a [`RowKey`]: `kind u8 ‖ keyspace u32 big-endian ‖ user key`, compared as
//! plain bytes. In the tree each row has one or more *versions*, and a version one or more
//! *pieces*, so the row key is followed by two numbers there:
//!
//! ```text
//! escape(row key) ‖ complement of the checkpoint number, u64 big-endian ‖ piece, u16 big-endian
//! ```
//!
//! Escaping makes the row keys prefix-free, so that no version of one row can sort between the
//! versions of another: the bytes are split into groups of eight, a short last group is filled with
//! zeros, and each group is followed by a marker byte, the number of its bytes that count: 1 to 8
//! in the last group, 9 ("eight, and more follow") in the others. The empty row key is never
//! written.
//!
//! ```text
//! "abc"        61 62 63 00 00 00 00 00 03
//! "abcdefgh"   61 62 63 64 65 66 67 68 08
//! "abcdefghi"  61 62 63 64 65 66 67 68 09  69 00 00 00 00 00 00 00 01
//! ```
//!
//! The complement makes the newest version of a row come first.

use std::fmt;

use bytes::Bytes;

/// The longest user key, in bytes.
pub const ROW_KEY_BYTES_MAX: usize = 4096;

/// The bytes before the user key in a [`RowKey`]: kind and keyspace.
pub const ROW_PREFIX_BYTES: usize = 5;

/// The bytes of a group, without its marker.
const GROUP: usize = 8;
/// The marker of a group that is not the last one.
const MORE: u8 = 9;
/// The bytes after the escaped row key: complement of the checkpoint number, and piece.
const SUFFIX: usize = 8 + 2;

/// The kind of a row. The numbers are on disk and never change; those from 4 to 9 are kept for
/// later ones, by the table in `crates/FORMATS.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RowKind {
    /// A key and value of a client.
    User = 1,
    /// A row of the session table, which makes writes take effect exactly once.
    Session = 2,
    /// A row of the cluster map, in group 0.
    Meta = 3,
}

impl RowKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<RowKind> {
        match number {
            1 => Some(RowKind::User),
            2 => Some(RowKind::Session),
            3 => Some(RowKind::Meta),
            _ => None,
        }
    }
}

/// The name of a row: kind, keyspace and user key in one buffer, ordered as these three are.
///
/// It owns its bytes: making one copies the user key, so that a key never holds the buffer it was
/// received in. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    bytes: Bytes,
}

impl RowKey {
    /// The row of this kind, keyspace and user key.
    #[must_use]
    pub fn new(kind: RowKind, keyspace: u32, key: &[u8]) -> RowKey {
        let mut bytes = Vec::with_capacity(ROW_PREFIX_BYTES + key.len());
        bytes.push(kind as u8);
        bytes.extend_from_slice(&keyspace.to_be_bytes());
        bytes.extend_from_slice(key);
        RowKey { bytes: bytes.into() }
    }

    /// The row key with these bytes, or `None` if they are not `kind ‖ keyspace ‖ user key`.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Option<RowKey> {
        let kind = *bytes.first()?;
        RowKind::from_u8(kind)?;
        (bytes.len() >= ROW_PREFIX_BYTES).then_some(RowKey { bytes })
    }

    /// A bound after all rows of a keyspace. It is not the key of a row itself.
    pub(crate) fn after_keyspace(kind: RowKind, keyspace: u32) -> RowKey {
        match keyspace.checked_add(1) {
            Some(next) => RowKey::new(kind, next, b""),
            None => RowKey::after_kind(kind),
        }
    }

    /// A bound after all rows of a kind. It is not the key of a row itself.
    pub(crate) fn after_kind(kind: RowKind) -> RowKey {
        RowKey { bytes: vec![kind as u8 + 1].into() }
    }

    /// The kind of the row.
    #[must_use]
    pub fn kind(&self) -> RowKind {
        match RowKind::from_u8(self.bytes[0]) {
            Some(kind) => kind,
            None => {
                unreachable!("a row key always has a known kind, not {}", self.bytes[0])
            }
        }
    }

    /// The number of the keyspace; 0 is the default one.
    #[must_use]
    pub fn keyspace(&self) -> u32 {
        u32::from_be_bytes([self.bytes[1], self.bytes[2], self.bytes[3], self.bytes[4]])
    }

    /// The user key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.bytes[ROW_PREFIX_BYTES..]
    }

    /// The user key, sharing the buffer of this row key.
    #[must_use]
    pub fn key_bytes(&self) -> Bytes {
        self.bytes.slice(ROW_PREFIX_BYTES..)
    }

    /// `kind ‖ keyspace ‖ user key`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}/{}", self.kind(), self.keyspace(), self.key().escape_ascii())
    }
}

/// Appends the escaped form of `bytes` to `out`. Order is kept: `a < b` exactly when
/// `escape(a) < escape(b)`, and no escaped form is a prefix of another.
pub fn escape_into(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(!bytes.is_empty(), "the empty key has no escaped form");
    out.reserve(bytes.len().div_ceil(GROUP) * (GROUP + 1));
    let mut groups = bytes.chunks(GROUP).peekable();
    while let Some(group) = groups.next() {
        out.extend_from_slice(group);
        out.extend_from_slice(&[0; GROUP][group.len()..]);
        out.push(if groups.peek().is_some() { MORE } else { group.len() as u8 });
    }
}

/// Decodes the escaped form at the beginning of `bytes`: the plain bytes, and the length of the
/// escaped form. `None` if [`escape_into`] does not write this form.
#[must_use]
pub fn unescape(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut plain = Vec::with_capacity(bytes.len());
    for (at, group) in bytes.chunks_exact(GROUP + 1).enumerate() {
        let (data, marker) = (&group[..GROUP], group[GROUP]);
        if marker == MORE {
            plain.extend_from_slice(data);
            continue;
        }
        let count = usize::from(marker);
        if count == 0 || count > GROUP || data[count..].iter().any(|byte| *byte != 0) {
            return None;
        }
        plain.extend_from_slice(&data[..count]);
        return Some((plain, (at + 1) * (GROUP + 1)));
    }
    None
}

/// The tree key of one piece of one version of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionKey {
    /// The row.
    pub row: RowKey,
    /// The checkpoint that wrote this version.
    pub number: u64,
    /// The number of the piece in the record, from 0.
    pub piece: u16,
}

impl VersionKey {
    /// Reads a key of a shard's tree; `None` if it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<VersionKey> {
        let (row, length) = unescape(bytes)?;
        let row = RowKey::from_bytes(row.into())?;
        let (number, piece) = split_suffix(bytes.get(length..)?)?;
        Some(VersionKey { row, number, piece })
    }
}

/// The escaped row key: the prefix of the tree keys of all its versions, and of no others.
#[must_use]
pub fn row_prefix(row: &RowKey) -> Vec<u8> {
    let plain = row.as_bytes();
    let mut out = Vec::with_capacity(plain.len().div_ceil(GROUP) * (GROUP + 1) + SUFFIX);
    escape_into(plain, &mut out);
    out
}

/// The tree key of a piece of a version, from the row's prefix.
#[must_use]
pub fn piece_key(prefix: &[u8], number: u64, piece: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len() + SUFFIX);
    out.extend_from_slice(prefix);
    out.extend_from_slice(&(!number).to_be_bytes());
    out.extend_from_slice(&piece.to_be_bytes());
    out
}

/// The number and the piece of a tree key that begins with `prefix`; `None` if it is another
/// row's key.
#[must_use]
pub fn version_of(prefix: &[u8], key: &[u8]) -> Option<(u64, u16)> {
    split_suffix(key.strip_prefix(prefix)?)
}

/// The part of a tree key that names the row; `None` if the key is too short to be one.
#[must_use]
pub fn prefix_of(key: &[u8]) -> Option<&[u8]> {
    key.len().checked_sub(SUFFIX).map(|length| &key[..length])
}

/// The first key after all versions of the row with this prefix.
#[must_use]
pub fn after_row(prefix: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len() + SUFFIX + 1);
    out.extend_from_slice(prefix);
    out.extend_from_slice(&[0xff; SUFFIX + 1]);
    out
}

fn split_suffix(suffix: &[u8]) -> Option<(u64, u16)> {
    let suffix: &[u8; SUFFIX] = suffix.try_into().ok()?;
    let (number, piece) = suffix.split_at(8);
    let number = u64::from_be_bytes(number.try_into().ok()?);
    let piece = u16::from_be_bytes(piece.try_into().ok()?);
    Some((!number, piece))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::golden::assert_golden;

    fn escaped(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        escape_into(bytes, &mut out);
        out
    }

    #[test]
    fn the_escaped_form_is_the_documented_one() {
        assert_eq!(escaped(b"abc"), b"abc\0\0\0\0\0\x03");
        assert_eq!(escaped(b"abcdefgh"), b"abcdefgh\x08");
        assert_eq!(escaped(b"abcdefghi"), b"abcdefgh\x09i\0\0\0\0\0\0\0\x01");
    }

    /// The exact bytes are on disks: a change here would hide every row.
    #[test]
    fn golden_bytes() {
        // Kind, keyspace, user key; the same in groups of eight, complement of 3, piece.
        let rows = [
            (RowKind::User, "01 01020304 6b6579", "0101020304 6b6579 08"),
            (RowKind::Session, "02 01020304 6b6579", "0201020304 6b6579 08"),
            (RowKind::Meta, "03 01020304 6b6579", "0301020304 6b6579 08"),
        ];
        for (kind, row_key, prefix) in rows {
            let row = RowKey::new(kind, 0x0102_0304, b"key");
            assert_golden(row.as_bytes(), row_key);
            let key = piece_key(&row_prefix(&row), 3, 0x0506);
            assert_golden(&key, &format!("{prefix} fffffffffffffffc 0506"));
            assert_eq!(
                VersionKey::decode(&key),
                Some(VersionKey { row, number: 3, piece: 0x0506 })
            );
        }
    }

    /// Lease, lock, intent, transaction record, expiry index, grant.
    #[test]
    fn the_numbers_that_are_kept_are_of_no_kind() {
        for number in 4..=9 {
            assert_eq!(RowKind::from_u8(number), None, "{number}");
            let key = [&[number], &b"\0\0\0\0key"[..]].concat();
            assert_eq!(RowKey::from_bytes(key.into()), None, "{number}");
        }
    }

    #[test]
    fn the_longest_tree_key_fits_the_database() {
        let row = RowKey::new(RowKind::User, u32::MAX, &[0xff; ROW_KEY_BYTES_MAX]);
        let key = piece_key(&row_prefix(&row), u64::MAX, u16::MAX);
        assert_eq!(key.len(), 4_627);
        assert!(key.len() <= 4_700);
    }

    #[test]
    fn newer_versions_and_earlier_pieces_come_first() {
        let prefix = row_prefix(&RowKey::new(RowKind::User, 0, b"k"));
        assert!(piece_key(&prefix, 8, 0) < piece_key(&prefix, 7, 0));
        assert!(piece_key(&prefix, 8, 0) < piece_key(&prefix, 8, 1));
        assert!(piece_key(&prefix, 0, u16::MAX) < after_row(&prefix));
    }

    #[test]
    fn damaged_tree_keys_are_rejected() {
        let row = RowKey::new(RowKind::Session, 7, b"session");
        let good = piece_key(&row_prefix(&row), 3, 0);
        assert!(VersionKey::decode(&good).is_some());
        for length in 0..good.len() {
            assert_eq!(VersionKey::decode(&good[..length]), None, "cut to {length}");
        }
        let mut unknown_kind = good.clone();
        unknown_kind[0] = 9;
        assert_eq!(VersionKey::decode(&unknown_kind), None);
        let mut filled = good;
        filled[17 - 1] = 1; // a byte after the counted ones of the last group
        assert_eq!(VersionKey::decode(&filled), None);
    }

    /// Bytes that often share prefixes and often hold the special ones.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(9), Just(8), Just(0xff), any::<u8>()];
        proptest::collection::vec(byte, 1..28)
    }

    fn row() -> impl Strategy<Value = RowKey> {
        (1u8..=3, prop_oneof![Just(0u32), Just(255), any::<u32>()], bytes()).prop_map(
            |(kind, keyspace, key)| RowKey::new(RowKind::from_u8(kind).unwrap(), keyspace, &key),
        )
    }

    proptest! {
        #[test]
        fn escaping_keeps_order(a in bytes(), b in bytes()) {
            prop_assert_eq!(a.cmp(&b), escaped(&a).cmp(&escaped(&b)));
        }

        #[test]
        fn escaped_keys_are_prefix_free(a in bytes(), b in bytes()) {
            prop_assume!(a != b);
            prop_assert!(!escaped(&a).starts_with(&escaped(&b)));
        }

        #[test]
        fn rows_order_as_kind_keyspace_key(a in row(), b in row()) {
            let parts = |row: &RowKey| (row.kind(), row.keyspace(), row.key().to_vec());
            prop_assert_eq!(a.cmp(&b), parts(&a).cmp(&parts(&b)));
        }

        #[test]
        fn all_versions_of_a_row_are_adjacent(
            a in row(), b in row(), x in any::<(u64, u16)>(), y in any::<(u64, u16)>(),
        ) {
            let key = |row: &RowKey, (number, piece)| piece_key(&row_prefix(row), number, piece);
            let expected = (&a, !x.0, x.1).cmp(&(&b, !y.0, y.1));
            prop_assert_eq!(key(&a, x).cmp(&key(&b, y)), expected);
            let read = VersionKey::decode(&key(&a, x));
            prop_assert_eq!(read, Some(VersionKey { row: a.clone(), number: x.0, piece: x.1 }));
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(read) = VersionKey::decode(&bytes) {
                prop_assert_eq!(piece_key(&row_prefix(&read.row), read.number, read.piece), bytes);
            }
        }
    }
}
