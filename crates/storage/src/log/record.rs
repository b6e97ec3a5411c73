//! Encoding of the log's records, shared by all back ends.
//!
//! A record is a frame of [`crate::codec`] whose body is [`Header`], the number of sections, and
//! each section: group, replica, kind, and the fields of that kind. Only the first entry of a
//! section carries its index: the others are consecutive.

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use quorate_raft::{Entry, EntryKind, GroupId, HardState, Index, LogId, ReplicaId, Term};

use super::{ReplicaKey, Section, SectionKind};
use crate::codec::{self, Frame};
use crate::error::{Result, StorageError};

/// The format version of records.
pub(super) const FORMAT: u8 = 1;

// Kinds on disk. Their meaning never changes.
const HARD_STATE: u8 = 1;
const APPEND: u8 = 2;
const RESET: u8 = 3;
const APPEND_MOVED: u8 = 4;
const RESET_MOVED: u8 = 5;

/// The header of a record: its place in the log, and the state of the log when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct Header {
    /// The number of the record; the first record of a log is 1.
    pub sequence: u64,
    /// The checksum of the record before it (0 for the first).
    pub previous: u32,
    /// Every record up to this sequence was durable when this record was written.
    pub durable_upto: u64,
    /// The first sequence that was still needed when this record was written.
    pub head: u64,
}

#[derive(Encode, BorrowDecode)]
struct SectionHead {
    group: u64,
    replica: u64,
    kind: u8,
}

#[derive(Encode, BorrowDecode)]
struct HardStateBody {
    term: u64,
    vote: Option<u64>,
    commit: u64,
}

#[derive(Encode, BorrowDecode)]
struct EntriesHead {
    first: u64,
    count: u64,
}

#[derive(Encode, BorrowDecode)]
struct EntryBody<'a> {
    term: u64,
    kind: u8,
    stamp: u64,
    payload: &'a [u8],
}

#[derive(Encode, BorrowDecode)]
struct ResetBody {
    index: u64,
    term: u64,
}

/// The change that a section of a record makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change<'a> {
    HardState(HardState),
    /// `moved`: written again from an older record; drops no other entries.
    Entries {
        moved: bool,
        entries: &'a [Entry],
    },
    /// `moved`: written again from an older record; drops no entries above it.
    Reset {
        moved: bool,
        to: LogId,
    },
}

impl Change<'_> {
    pub fn of(kind: &SectionKind) -> Change<'_> {
        match kind {
            SectionKind::HardState(state) => Change::HardState(*state),
            SectionKind::Append(entries) => Change::Entries { moved: false, entries },
            SectionKind::Reset(to) => Change::Reset { moved: false, to: *to },
        }
    }

    /// The same, written again from an older record.
    pub fn moved(self) -> Self {
        match self {
            Change::HardState(state) => Change::HardState(state),
            Change::Entries { entries, .. } => Change::Entries { moved: true, entries },
            Change::Reset { to, .. } => Change::Reset { moved: true, to },
        }
    }

    /// True if it changes nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Change::Entries { entries: [], .. })
    }

    fn number(&self) -> u8 {
        match self {
            Change::HardState(_) => HARD_STATE,
            Change::Entries { moved: false, .. } => APPEND,
            Change::Entries { moved: true, .. } => APPEND_MOVED,
            Change::Reset { moved: false, .. } => RESET,
            Change::Reset { moved: true, .. } => RESET_MOVED,
        }
    }
}

/// A section read from a record, and its length there in bytes.
#[derive(Debug)]
pub(super) struct DecodedSection {
    pub section: Section,
    pub moved: bool,
    pub bytes: u64,
}

impl DecodedSection {
    pub fn key(&self) -> ReplicaKey {
        (self.section.group, self.section.replica)
    }

    pub fn change(&self) -> Change<'_> {
        match &self.section.kind {
            SectionKind::HardState(state) => Change::HardState(*state),
            SectionKind::Append(entries) => Change::Entries { moved: self.moved, entries },
            SectionKind::Reset(to) => Change::Reset { moved: self.moved, to: *to },
        }
    }
}

/// The most bytes of a buffer that are kept for the next record.
const KEPT_BYTES: usize = 1 << 20;

/// Builds records, one after another, in one buffer.
#[derive(Debug, Default)]
pub(super) struct RecordBuilder {
    body: Vec<u8>,
    /// Replica and length of each section.
    sections: Vec<(ReplicaKey, u64)>,
    record: Vec<u8>,
}

impl RecordBuilder {
    pub fn clear(&mut self) {
        self.body.clear();
        self.sections.clear();
    }

    /// Frees what a large record has left in the buffers. The lengths of its sections stay.
    pub fn give_back(&mut self) {
        for buffer in [&mut self.body, &mut self.record] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    /// The lengths of the sections, in order.
    pub fn sections(&self) -> &[(ReplicaKey, u64)] {
        &self.sections
    }

    /// Length of all sections so far.
    pub fn body_bytes(&self) -> u64 {
        self.body.len() as u64
    }

    pub fn push(&mut self, key: ReplicaKey, change: &Change<'_>) -> Result<()> {
        let before = self.body.len();
        let out = &mut self.body;
        let head = SectionHead { group: key.0.0, replica: key.1.0, kind: change.number() };
        codec::encode_body(out, &head)?;
        match change {
            Change::HardState(state) => {
                let vote = state.vote.map(|replica| replica.0);
                let body = HardStateBody { term: state.term.0, vote, commit: state.commit.0 };
                codec::encode_body(out, &body)?;
            }
            Change::Entries { entries, .. } => encode_entries(out, entries)?,
            Change::Reset { to, .. } => {
                codec::encode_body(out, &ResetBody { index: to.index.0, term: to.term.0 })?;
            }
        }
        self.sections.push((key, (out.len() - before) as u64));
        Ok(())
    }

    /// The whole record and its checksum.
    pub fn finish(&mut self, header: Header) -> Result<(&[u8], u32)> {
        codec::begin_frame(&mut self.record);
        codec::encode_body(&mut self.record, &header)?;
        codec::encode_body(&mut self.record, &(self.sections.len() as u64))?;
        self.record.extend_from_slice(&self.body);
        let crc = codec::finish_frame(&mut self.record, FORMAT)?;
        Ok((&self.record, crc))
    }
}

fn encode_entries(out: &mut Vec<u8>, entries: &[Entry]) -> Result<()> {
    let first = entries.first().map_or(0, |entry| entry.index.0);
    codec::encode_body(out, &EntriesHead { first, count: entries.len() as u64 })?;
    for entry in entries {
        let body = EntryBody {
            term: entry.term.0,
            kind: entry.kind as u8,
            stamp: entry.stamp,
            payload: &entry.payload,
        };
        codec::encode_body(out, &body)?;
    }
    Ok(())
}

/// Reads the values of a body in order.
struct Cursor<'a> {
    rest: &'a [u8],
    sequence: u64,
}

impl<'a> Cursor<'a> {
    fn take<T: BorrowDecode<'a, ()>>(&mut self) -> Result<T> {
        match bincode::borrow_decode_from_slice(self.rest, codec::CONFIG) {
            Ok((value, used)) => {
                self.rest = &self.rest[used..];
                Ok(value)
            }
            Err(error) => Err(self.damaged(&format!("does not decode: {error}"))),
        }
    }

    fn damaged(&self, why: &str) -> StorageError {
        StorageError::damaged(format!("record {} of the log {why}", self.sequence))
    }

    fn section(&mut self) -> Result<DecodedSection> {
        let before = self.rest.len();
        let head: SectionHead = self.take()?;
        let kind = match head.kind {
            HARD_STATE => {
                let body: HardStateBody = self.take()?;
                SectionKind::HardState(HardState {
                    term: Term(body.term),
                    vote: body.vote.map(ReplicaId),
                    commit: Index(body.commit),
                })
            }
            APPEND | APPEND_MOVED => SectionKind::Append(self.entries()?),
            RESET | RESET_MOVED => {
                let body: ResetBody = self.take()?;
                SectionKind::Reset(LogId::new(Term(body.term), Index(body.index)))
            }
            kind => return Err(self.damaged(&format!("has a section of the unknown kind {kind}"))),
        };
        Ok(DecodedSection {
            section: Section { group: GroupId(head.group), replica: ReplicaId(head.replica), kind },
            moved: matches!(head.kind, APPEND_MOVED | RESET_MOVED),
            bytes: (before - self.rest.len()) as u64,
        })
    }

    fn entries(&mut self) -> Result<Vec<Entry>> {
        let head: EntriesHead = self.take()?;
        if head.count == 0 || head.first.checked_add(head.count).is_none() {
            return Err(self.damaged("has a section with impossible indexes"));
        }
        // Reserve nothing: the count is not verified by bytes yet.
        let mut entries = Vec::new();
        for index in head.first..head.first + head.count {
            let body: EntryBody<'_> = self.take()?;
            let kind = EntryKind::from_u8(body.kind).ok_or_else(|| {
                self.damaged(&format!("has an entry of the unknown kind {}", body.kind))
            })?;
            entries.push(Entry {
                term: Term(body.term),
                index: Index(index),
                kind,
                stamp: body.stamp,
                // A copy: a slice would keep the record in memory as long as any of its entries.
                payload: Bytes::copy_from_slice(body.payload),
            });
        }
        Ok(entries)
    }
}

fn check_format(frame: Frame<'_>, sequence: u64) -> Result<()> {
    if frame.format > FORMAT {
        return Err(StorageError::NewerFormat {
            what: format!("record {sequence} of the log"),
            found: frame.format,
            known: FORMAT,
        });
    }
    Ok(())
}

/// Reads the header of a frame with a valid checksum. `sequence` is where it was found.
pub(super) fn decode_header(frame: Frame<'_>, sequence: u64) -> Result<Header> {
    check_format(frame, sequence)?;
    Cursor { rest: frame.body, sequence }.take()
}

/// Reads all sections of a frame with a valid checksum.
pub(super) fn decode_sections(frame: Frame<'_>, sequence: u64) -> Result<Vec<DecodedSection>> {
    check_format(frame, sequence)?;
    let mut cursor = Cursor { rest: frame.body, sequence };
    let _: Header = cursor.take()?;
    let count: u64 = cursor.take()?;
    let mut sections = Vec::new();
    for _ in 0..count {
        sections.push(cursor.section()?);
    }
    if !cursor.rest.is_empty() {
        return Err(cursor.damaged("has bytes left over"));
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, payload: &'static [u8]) -> Entry {
        let payload = Bytes::from_static(payload);
        Entry { term: Term(3), index: Index(index), kind: EntryKind::Command, stamp: 1000, payload }
    }

    fn sample() -> Vec<(ReplicaKey, SectionKind, bool)> {
        let key = |group, replica| (GroupId(group), ReplicaId(replica));
        let hard = HardState { term: Term(3), vote: Some(ReplicaId(2)), commit: Index(6) };
        vec![
            (key(1, 2), SectionKind::HardState(hard), false),
            (key(1, 2), SectionKind::Append(vec![entry(7, b"ab"), entry(8, b"")]), false),
            (key(2, 5), SectionKind::Reset(LogId::new(Term(2), Index(300))), false),
            (key(2, 5), SectionKind::Append(vec![entry(301, b"c")]), true),
            (key(2, 5), SectionKind::Reset(LogId::new(Term(2), Index(300))), true),
        ]
    }

    const HEADER: Header = Header { sequence: 9, previous: 0xdead_beef, durable_upto: 8, head: 4 };

    fn build() -> Vec<u8> {
        let mut builder = RecordBuilder::default();
        for (key, kind, is_moved) in sample() {
            let change = Change::of(&kind);
            let change = if is_moved { change.moved() } else { change };
            builder.push(key, &change).unwrap();
        }
        builder.finish(HEADER).unwrap().0.to_vec()
    }

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        let expected = [
            "01 6dbfc5f3 3f000000",   // format, CRC32C, length
            "09 fcefbeadde 08 04 05", // sequence, previous, durable_upto, head; 5 sections
            "01 02 01 03 0102 06",    // g1 r2 HARD_STATE: term, vote, commit
            "01 02 02 07 02",         // g1 r2 APPEND: first index, count
            "03 02 fbe803 02 6162",   // term, kind, stamp, payload
            "03 02 fbe803 00",
            "02 05 03 fb2c01 02", // g2 r5 RESET: index, term
            "02 05 04 fb2d01 01", // g2 r5 APPEND_MOVED
            "03 02 fbe803 01 63",
            "02 05 05 fb2c01 02", // g2 r5 RESET_MOVED
        ];
        let expected = expected.concat().replace(' ', "");
        let record = build();
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn round_trip() {
        let record = build();
        let frame = codec::open_frame(&record).unwrap();
        assert_eq!(decode_header(frame, 9).unwrap(), HEADER);
        let sections = decode_sections(frame, 9).unwrap();
        let decoded: Vec<_> =
            sections.iter().map(|s| (s.key(), s.section.kind.clone(), s.moved)).collect();
        assert_eq!(decoded, sample());
    }

    /// Kind 4, as a newer version may write it into an older format.
    #[test]
    fn a_kept_kind_of_entry_is_an_error() {
        let record = build();
        let mut found = 0;
        for at in codec::FRAME_BYTES..record.len() {
            let mut broken = record.clone();
            broken[at] = 4;
            codec::finish_frame(&mut broken, FORMAT).unwrap();
            let Err(error) = decode_sections(codec::open_frame(&broken).unwrap(), 9) else {
                continue;
            };
            found += usize::from(error.to_string().contains("an entry of the unknown kind 4"));
        }
        assert!(found > 0, "no byte of the record is the kind of an entry");
    }

    /// Content that storage did not write, with a valid checksum, is an error and never a panic.
    #[test]
    fn resealed_garbage_is_an_error() {
        let record = build();
        for at in codec::FRAME_BYTES..record.len() {
            for value in [0, 1, 7, 250, 251, 253, 255] {
                let mut broken = record.clone();
                broken[at] = value;
                codec::finish_frame(&mut broken, FORMAT).unwrap();
                let frame = codec::open_frame(&broken).unwrap();
                if let Err(error) = decode_sections(frame, 9) {
                    assert!(error.is_damage() && error.to_string().contains("record 9"), "{error}");
                }
            }
        }
    }
}
