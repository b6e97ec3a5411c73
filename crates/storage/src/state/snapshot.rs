//! Snapshots: a pinned checkpoint as a stream of chunks, and its installation into a new tree.
//!
//! Each chunk is a frame (see [`codec`]) of at most [`CHUNK_BYTES`], whose body is
//! `part u8 ‖ sequence u32 little-endian ‖ payload`:
//!
//! | part | payload |
//! |---|---|
//! | head (1), once, first | the checkpoint's header, without the fields of the replica |
//! | rows (2) | a slice of the stream of rows, cut anywhere |
//! | tail (3), once, last | the number of rows, and their digest |
//!
//! A row is `length of the row key u32 ‖ length of the record u32 ‖ row key ‖ record`, numbers
//! little-endian; rows are in strictly ascending order. The receiver checks the order of chunks
//! and rows, every checksum, the count and the digest, before its header references the new tree.

mod install;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bincode::{BorrowDecode, Encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_raft::SnapshotMeta;

use crate::codec;
use crate::error::{Result, StorageError};
use crate::keys::RowKey;
use crate::state::digest::Digest;
use crate::state::versions::{self, Span};
use crate::state::view::{PinGuard, View};
use crate::state::{Counts, HashRange, ShardHeader};

pub use install::{Installed, Installer};

/// The longest chunk, in bytes, frame included.
pub const CHUNK_BYTES: usize = 256 << 10;
/// The format of chunks.
const FORMAT: u8 = 1;
/// Part and sequence, before the payload.
const PART_BYTES: usize = 1 + 4;
/// The longest payload of a chunk.
const PAYLOAD_BYTES: usize = CHUNK_BYTES - codec::FRAME_BYTES - PART_BYTES;
/// The lengths before a row.
const ROW_HEAD_BYTES: usize = 4 + 4;

/// The part of a snapshot to which a chunk belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Part {
    Head = 1,
    Rows = 2,
    Tail = 3,
}

impl Part {
    fn from_u8(number: u8) -> Option<Part> {
        [Part::Head, Part::Rows, Part::Tail].into_iter().find(|part| *part as u8 == number)
    }
}

/// The state's header as it is sent; generation, number and replica are the receiver's own.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
struct Head {
    group: u64,
    applied_index: u64,
    applied_term: u64,
    log_time: u64,
    counts: Counts,
    digest: u128,
    membership: Vec<u8>,
    range: HashRange,
    shard_epoch: u64,
}

impl Head {
    fn of(header: &ShardHeader) -> Head {
        Head {
            group: header.group.0,
            applied_index: header.frontier.applied.index.0,
            applied_term: header.frontier.applied.term.0,
            log_time: header.frontier.log_time,
            counts: header.frontier.counts,
            digest: header.frontier.digest,
            membership: header.membership.encode().to_vec(),
            range: header.range,
            shard_epoch: header.shard_epoch,
        }
    }
}

/// The number and the digest of all rows sent, to check them against.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
struct Tail {
    rows: u64,
    digest: u128,
}

fn chunk(part: Part, sequence: u32, payload: &[u8]) -> Result<Bytes> {
    let mut out = Vec::with_capacity(codec::FRAME_BYTES + PART_BYTES + payload.len());
    codec::begin_frame(&mut out);
    out.push(part as u8);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(payload);
    codec::finish_frame(&mut out, FORMAT)?;
    Ok(out.into())
}

/// The source of a snapshot: a pinned checkpoint, read as chunks. Dropping it releases the pin.
pub struct SnapshotSource {
    view: Arc<View>,
    _guard: PinGuard,
    stage: Stage,
    sequence: u32,
    /// Rows that are encoded and not yet sent.
    stream: BytesMut,
    page: VecDeque<(RowKey, Option<Bytes>)>,
    rest: Option<Span>,
    rows: u64,
    digest: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Rows,
    Done,
}

impl fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSource")
            .field("group", &self.view.header.group)
            .field("applied", &self.view.header.applied())
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl SnapshotSource {
    pub(crate) fn new(view: Arc<View>, guard: PinGuard) -> SnapshotSource {
        SnapshotSource {
            view,
            _guard: guard,
            stage: Stage::Head,
            sequence: 0,
            stream: BytesMut::new(),
            page: VecDeque::new(),
            rest: Some(Span::everything()),
            rows: 0,
            digest: Digest::default(),
        }
    }

    /// The metadata of the snapshot for the receiver's core.
    #[must_use]
    pub fn meta(&self) -> SnapshotMeta {
        let header = &self.view.header;
        SnapshotMeta {
            last: header.applied(),
            stamp: header.frontier.log_time,
            membership: header.membership.clone(),
        }
    }

    /// The header of the pinned checkpoint.
    #[must_use]
    pub fn header(&self) -> &ShardHeader {
        &self.view.header
    }

    /// The next chunk, at most 256 KiB; `None` after the last one. It reads from the disk.
    ///
    /// # Errors
    /// A failed read, or [`StorageError::Damaged`] if the rows do not match the header: then the
    /// chunks that were sent cannot be used.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let (part, payload) = match self.stage {
            Stage::Done => return Ok(None),
            Stage::Head => {
                self.stage = Stage::Rows;
                let mut payload = Vec::new();
                codec::encode_body(&mut payload, &Head::of(&self.view.header))?;
                (Part::Head, Bytes::from(payload))
            }
            Stage::Rows => {
                self.fill()?;
                if self.stream.is_empty() {
                    self.stage = Stage::Done;
                    (Part::Tail, self.tail()?)
                } else {
                    let length = self.stream.len().min(PAYLOAD_BYTES);
                    (Part::Rows, self.stream.split_to(length).freeze())
                }
            }
        };
        let sequence = self.sequence;
        self.sequence += 1;
        chunk(part, sequence, &payload).map(Some)
    }

    /// Encodes rows until a chunk is full or there are no more.
    fn fill(&mut self) -> Result<()> {
        while self.stream.len() < PAYLOAD_BYTES {
            let Some((key, record)) = self.page.pop_front() else {
                let Some(span) = self.rest.take() else { return Ok(()) };
                let (tree, number) = (&self.view.generation.tree, self.view.header.number);
                let page = versions::page(tree, &span, number, false)?;
                self.page = page.rows.into();
                self.rest = page.rest;
                continue;
            };
            let Some(record) = record else { continue };
            self.rows += 1;
            self.digest.add(&key, &record);
            self.stream.put_u32_le(key.as_bytes().len() as u32);
            self.stream.put_u32_le(record.len() as u32);
            self.stream.put_slice(key.as_bytes());
            self.stream.put_slice(&record);
        }
        Ok(())
    }

    fn tail(&self) -> Result<Bytes> {
        let tail = Tail { rows: self.rows, digest: self.digest.sum() };
        let header = &self.view.header;
        let frontier = &header.frontier;
        if tail.rows != frontier.counts.rows || tail.digest != frontier.digest {
            return Err(StorageError::damaged(format!(
                "the state of {} at {} has {} rows with digest {:032x}, \
                 but its header says {} rows with digest {:032x}",
                header.group,
                frontier.applied,
                tail.rows,
                tail.digest,
                frontier.counts.rows,
                frontier.digest
            )));
        }
        let mut payload = Vec::new();
        codec::encode_body(&mut payload, &tail)?;
        Ok(payload.into())
    }
}

/// Removes one row from the front of the stream; `None` if it is not complete.
fn take_row(stream: &mut BytesMut) -> Result<Option<(RowKey, Bytes)>> {
    let Some((head, _)) = stream.split_first_chunk::<ROW_HEAD_BYTES>() else { return Ok(None) };
    let mut head = &head[..];
    let (key_len, record_len) = (head.get_u32_le() as usize, head.get_u32_le() as usize);
    let key_limit = crate::keys::ROW_KEY_BYTES_MAX + crate::keys::ROW_PREFIX_BYTES;
    if key_len > key_limit || record_len > crate::state::RECORD_BYTES_MAX {
        return Err(bad(format!("has a row of {key_len} and {record_len} bytes")));
    }
    let length = ROW_HEAD_BYTES + key_len + record_len;
    if stream.len() < length {
        return Ok(None);
    }
    let row = stream.split_to(length).freeze();
    let key = Bytes::copy_from_slice(&row[ROW_HEAD_BYTES..ROW_HEAD_BYTES + key_len]);
    let key = RowKey::from_bytes(key).ok_or_else(|| bad("has a row of an unknown kind"))?;
    Ok(Some((key, row.slice(ROW_HEAD_BYTES + key_len..))))
}

/// The error of a snapshot that cannot be used.
fn bad(what: impl Into<String>) -> StorageError {
    StorageError::BadSnapshot { what: what.into() }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{GroupId, Index, LogId, Membership, NodeId, Replica, ReplicaId, Term};
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::database::{Database, DatabaseOptions};
    use crate::golden::assert_golden;
    use crate::keys::RowKind;
    use crate::state::{DeltaBudget, ShardInit, ShardStore};

    fn shard(database: &Database) -> ShardStore {
        let replica = Replica { id: ReplicaId(4), node: NodeId(1) };
        let init = ShardInit {
            group: GroupId(7),
            replica: replica.id,
            membership: Membership::of_voters([replica]),
            range: HashRange { first: 11, last: u64::MAX },
            shard_epoch: 12,
        };
        ShardStore::create(database, init, Arc::new(DeltaBudget::new(1 << 20))).unwrap()
    }

    /// The snapshot of a shard with one row, as chunks.
    fn chunks(store: &mut ShardStore) -> (SnapshotMeta, Vec<Bytes>) {
        let mut entry = store.begin(LogId { term: Term(5), index: Index(1) }, 6);
        entry.put(&RowKey::new(RowKind::User, 0, b"key"), b"record").unwrap();
        entry.commit();
        let finished = store.freeze().unwrap().run().unwrap();
        store.finish(finished);
        let mut source = store.pin_snapshot().unwrap();
        let chunks = std::iter::from_fn(|| source.next_chunk().unwrap()).collect();
        (source.meta(), chunks)
    }

    /// Nodes of different versions send each other these bytes: a change is a new format version.
    #[test]
    fn golden_bytes() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [sender, receiver] =
            dirs.each_ref().map(|d| Database::open(d.path(), DatabaseOptions::default()).unwrap());
        let (meta, chunks) = chunks(&mut shard(&sender));
        let head = [
            "01 a86fb2bc 40000000 01 00000000", // format, CRC32C, length; head, sequence
            "07 01 05 06",                      // group, index and term, log time
            "01 01 09",                         // rows, keys, bytes
            "fe f96bba985e0b1c21 c8de7071381a7abb", // digest
            "17 0100 01000000 0400000000000000 0100000000000000 01", // membership
            "0b fdffffffffffffffff 0c",         // range, shard epoch
        ];
        let rows = [
            "01 f33efa5d 1b000000 02 01000000", // rows, sequence
            "08000000 06000000 0100000000 6b6579 7265636f7264", // lengths, row key, record
        ];
        let tail = [
            "01 7fccdf89 17000000 03 02000000",        // tail, sequence
            "01 fe f96bba985e0b1c21 c8de7071381a7abb", // rows, digest
        ];
        assert_eq!(chunks.len(), 3);
        assert_golden(&chunks[0], &head.concat());
        assert_golden(&chunks[1], &rows.concat());
        assert_golden(&chunks[2], &tail.concat());

        let mut store = shard(&receiver);
        let mut installer = store.begin_install(meta).unwrap();
        chunks.iter().for_each(|chunk| installer.write(chunk).unwrap());
        store.adopt(installer.finish().unwrap());
        let row = store.reader().get(&RowKey::new(RowKind::User, 0, b"key")).unwrap();
        assert_eq!(row.unwrap(), &b"record"[..]);
    }

    /// The thread that finishes an install applies the entries of other shards too.
    #[test]
    fn the_end_of_an_install_waits_for_one_barrier_and_the_last_chunk_for_that_of_the_rows() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let sender = Database::open(dirs[0].path(), DatabaseOptions::default()).unwrap();
        let (meta, chunks) = chunks(&mut shard(&sender));
        let syncs = Arc::new(AtomicUsize::new(0));
        let counter = syncs.clone();
        let before_sync = Arc::new(move |_: &Path| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let options = DatabaseOptions { before_sync, ..DatabaseOptions::default() };
        let receiver = Database::open(dirs[1].path(), options).unwrap();
        let store = shard(&receiver);
        let mut installer = store.begin_install(meta).unwrap();
        let (last, first) = chunks.split_last().unwrap();
        first.iter().for_each(|chunk| installer.write(chunk).unwrap());
        let before = syncs.load(Ordering::SeqCst);
        installer.write(last).unwrap();
        let between = syncs.load(Ordering::SeqCst);
        assert_eq!(between, before + 1, "the rows");
        let _installed = installer.finish().unwrap();
        assert_eq!(syncs.load(Ordering::SeqCst), between + 1, "the header");
    }

    #[test]
    fn a_newer_format_is_not_damage() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
        let mut store = shard(&database);
        let (meta, chunks) = chunks(&mut store);
        let mut newer = chunks[0].to_vec();
        codec::finish_frame(&mut newer, FORMAT + 1).unwrap();
        let error = store.begin_install(meta).unwrap().write(&newer).unwrap_err();
        assert!(matches!(error, StorageError::BadSnapshot { .. }), "{error}");
        assert!(error.to_string().contains("format 2, which is not known here"), "{error}");
    }
}
