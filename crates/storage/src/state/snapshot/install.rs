//! Installation of a snapshot: a new tree beside the one in use, and one insert that makes it the
//! state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use quorate_raft::{Index, LogId, Membership, SnapshotMeta, Term};

use super::{CHUNK_BYTES, FORMAT, Head, PART_BYTES, Part, Tail, bad, take_row};
use crate::codec;
use crate::error::{Result, StorageError};
use crate::keys::RowKey;
use crate::state::digest::Digest;
use crate::state::generation::Generation;
use crate::state::intent::header_key;
use crate::state::versions;
use crate::state::view::Shared;
use crate::state::{Counts, Frontier, ShardHeader};

/// The checkpoint number that the rows of a snapshot get in their new tree.
const NUMBER: u64 = 1;

/// An install in progress: writes the chunks of a snapshot, on any thread, while the shard keeps
/// its state. Dropping it before it has finished leaves nothing.
pub struct Installer {
    shared: Arc<Shared>,
    meta: SnapshotMeta,
    generation: Arc<Generation>,
    stage: Stage,
    /// The sequence of the next chunk.
    sequence: u32,
    /// The received bytes of an incomplete row.
    stream: BytesMut,
    last_key: Option<RowKey>,
    counts: Counts,
    digest: Digest,
}

enum Stage {
    Head,
    Rows(Box<ShardHeader>),
    Ended(Box<ShardHeader>),
    /// An error has occurred: the installer rejects further chunks.
    Failed,
    /// The header references the new tree.
    Flipped,
}

/// A finished install: durable, and waiting to be
/// [adopted](crate::state::ShardStore::adopt).
#[derive(Debug)]
#[must_use = "readers see the old state until the store adopts the new one"]
pub struct Installed {
    pub(crate) generation: Arc<Generation>,
    pub(crate) header: Arc<ShardHeader>,
}

impl Installed {
    /// The header of the installed state.
    #[must_use]
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }
}

impl fmt::Debug for Installer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Installer")
            .field("group", &self.shared.group)
            .field("last", &self.meta.last)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Installer {
    pub(crate) fn new(shared: Arc<Shared>, meta: SnapshotMeta) -> Result<Installer> {
        reject_older(&shared, &meta)?;
        let mut generations = shared.generations.lock();
        if generations.installing {
            return Err(StorageError::Invalid {
                what: format!("{}: another snapshot is being installed", shared.group),
            });
        }
        let number = generations.next;
        let tree = shared.database.tree(&Generation::tree_name(shared.group, number))?;
        generations.next += 1;
        generations.installing = true;
        drop(generations);
        let cache_id = shared.budget.cache().new_id();
        Ok(Installer {
            generation: Arc::new(Generation { number, tree, cache_id }),
            shared,
            meta,
            stage: Stage::Head,
            sequence: 0,
            stream: BytesMut::new(),
            last_key: None,
            counts: Counts::default(),
            digest: Digest::default(),
        })
    }

    /// The metadata of the snapshot.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Writes the next chunk to the disk, and waits for barriers as the database demands.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`] for a chunk that is incomplete or out of order, or for another
    /// snapshot than the one announced; or a failed write. After any of them the installer cannot
    /// be used.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let stage = std::mem::replace(&mut self.stage, Stage::Failed);
        self.stage = self.next(stage, chunk)?;
        self.sequence += 1;
        Ok(())
    }

    fn next(&mut self, stage: Stage, chunk: &[u8]) -> Result<Stage> {
        if chunk.len() > CHUNK_BYTES {
            return Err(bad(format!("has a chunk of {} bytes", chunk.len())));
        }
        let frame = codec::open_frame(chunk)
            .map_err(|error| bad(format!("has a chunk that {}", error.as_str())))?;
        if frame.format != FORMAT {
            return Err(bad(format!("has format {}, which is not known here", frame.format)));
        }
        let (part, payload) =
            frame.body.split_at_checked(PART_BYTES).ok_or_else(|| bad("has an empty chunk"))?;
        let sequence = u32::from_le_bytes([part[1], part[2], part[3], part[4]]);
        if sequence != self.sequence {
            return Err(bad(format!("has chunk {sequence}, expected {}", self.sequence)));
        }
        match (stage, Part::from_u8(part[0])) {
            (Stage::Head, Some(Part::Head)) => Ok(Stage::Rows(Box::new(self.head(payload)?))),
            (Stage::Rows(header), Some(Part::Rows)) => {
                self.rows(payload)?;
                Ok(Stage::Rows(header))
            }
            (Stage::Rows(header), Some(Part::Tail)) => {
                self.tail(&header, payload)?;
                // The header may only reference durable rows. Here, because this thread may wait
                // for all of them, and the one that finishes may not.
                self.shared.database.barrier()?;
                Ok(Stage::Ended(header))
            }
            (_, part) => Err(bad(format!("has part {part:?} out of place in chunk {sequence}"))),
        }
    }

    /// Checks that the snapshot is the announced one, and builds its header on this replica.
    fn head(&self, payload: &[u8]) -> Result<ShardHeader> {
        let head: Head = codec::decode_body(payload, "the head of a snapshot")
            .map_err(|error| bad(format!("has a head that cannot be read: {error}")))?;
        let applied = LogId { term: Term(head.applied_term), index: Index(head.applied_index) };
        let membership = Membership::decode(&head.membership)
            .map_err(|error| bad(format!("has a membership that cannot be read: {error}")))?;
        let SnapshotMeta { last, stamp, membership: announced } = &self.meta;
        let theirs = (head.group, applied, head.log_time, &membership);
        if theirs != (self.shared.group.0, *last, *stamp, announced) {
            return Err(bad(format!(
                "is of shard {} at {applied}, expected the announced one: \
                 {} at {last}, with its log time and membership",
                head.group, self.shared.group
            )));
        }
        Ok(ShardHeader {
            group: self.shared.group,
            replica: self.shared.view.load().header.replica,
            generation: self.generation.number,
            number: NUMBER,
            frontier: Frontier {
                applied,
                log_time: head.log_time,
                counts: head.counts,
                digest: head.digest,
            },
            membership,
            range: head.range,
            shard_epoch: head.shard_epoch,
            log_valid_from: applied.index.next(),
        })
    }

    fn rows(&mut self, payload: &[u8]) -> Result<()> {
        self.stream.extend_from_slice(payload);
        while let Some((key, record)) = take_row(&mut self.stream)? {
            if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                return Err(bad("has rows out of order"));
            }
            versions::write(&self.generation.tree, &key, NUMBER, Some(&record))?;
            self.counts.add(&key, &record);
            self.digest.add(&key, &record);
            self.last_key = Some(key);
        }
        Ok(())
    }

    fn tail(&self, header: &ShardHeader, payload: &[u8]) -> Result<()> {
        let tail: Tail = codec::decode_body(payload, "the tail of a snapshot")
            .map_err(|error| bad(format!("has a tail that cannot be read: {error}")))?;
        if !self.stream.is_empty() {
            return Err(bad("ends within a row"));
        }
        let here = Tail { rows: self.counts.rows, digest: self.digest.sum() };
        let frontier = &header.frontier;
        if tail != here || frontier.counts != self.counts || frontier.digest != here.digest {
            return Err(bad(format!(
                "has {} rows with digest {:032x}, expected {} with {:032x}",
                here.rows, here.digest, frontier.counts.rows, frontier.digest
            )));
        }
        Ok(())
    }

    /// Makes the snapshot the state on the disk, in one insert. Readers see the old state until
    /// the store adopts the new one. The rows are durable since the last chunk, so that this waits
    /// for the disk with that insert alone: the thread that applies calls it.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`] if the last chunk has not been written,
    /// [`StorageError::Invalid`] if the state has passed the snapshot meanwhile, or a failed write.
    pub fn finish(mut self) -> Result<Installed> {
        let Stage::Ended(header) = std::mem::replace(&mut self.stage, Stage::Failed) else {
            return Err(bad("ended before its last chunk"));
        };
        let header = Arc::new(*header);
        let mut generations = self.shared.generations.lock();
        reject_older(&self.shared, &self.meta)?;
        let key = header_key(self.shared.group);
        self.shared.headers.insert(&key, &header.encode()?)?;
        // From the insert on, the tree must not be dropped, even after a failure.
        self.stage = Stage::Flipped;
        self.shared.database.barrier()?;
        generations.durable = header.generation;
        drop(generations);
        Ok(Installed { generation: Arc::clone(&self.generation), header })
    }
}

/// Rejects a snapshot behind the applied state: it would undo acknowledged entries.
fn reject_older(shared: &Shared, meta: &SnapshotMeta) -> Result<()> {
    let applied = shared.applied.load(Ordering::Acquire);
    if meta.last.index.0 < applied {
        return Err(StorageError::Invalid {
            what: format!(
                "{}: a snapshot at {} is behind the state at {applied}",
                shared.group, meta.last
            ),
        });
    }
    Ok(())
}

impl Drop for Installer {
    fn drop(&mut self) {
        self.shared.generations.lock().installing = false;
        if !matches!(self.stage, Stage::Flipped) {
            let name = Generation::tree_name(self.shared.group, self.generation.number);
            // A failure closes the database by itself, and the next open removes the tree.
            if let Err(error) = self.shared.database.drop_tree(&name) {
                let shard = self.shared.group.0;
                tracing::warn!(shard, %error, "snapshot: the unfinished install was not removed");
            }
        }
    }
}
