//! The node record of the boot numbers and log positions that peers have reported
//! (`transport::Memories`).
//!
//! A byte for the format, then 40 bytes for each incarnation, all numbers big-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 16 | the incarnation |
//! | 8 | the boot number of the newest accepted process |
//! | 8 | the start id of that process |
//! | 8 | the highest sequence of its record log |

use std::sync::Arc;

use quorate_proto::ids::Incarnation;
use quorate_storage::{NodeRecords, StorageError};
use quorate_transport::{Memories, MemoryStore, Recollection, Remembered, StartId};

use crate::exit::end_for_storage;

const RECORD: &str = "peers";
const FORMAT: u8 = 1;
const ROW_BYTES: usize = 40;

/// Loads the memories of the last process. The inner error is a sentence: the record exists, and
/// this version cannot read it.
///
/// # Errors
/// A failed read.
pub fn load(records: &NodeRecords) -> Result<Result<Memories, String>, StorageError> {
    Ok(records.get(RECORD)?.map_or_else(|| Ok(Memories::default()), |bytes| decode(&bytes)))
}

/// The loaded memories, and the record to store them in.
pub fn recollection(memories: Memories, records: Arc<NodeRecords>) -> Recollection {
    Recollection { memories, store: Arc::new(Keeper(records)) }
}

struct Keeper(Arc<NodeRecords>);

impl MemoryStore for Keeper {
    fn keep(&self, memories: &Memories) {
        if let Err(error) = self.0.put(RECORD, &encode(memories)) {
            end_for_storage(&error);
        }
    }
}

fn encode(memories: &Memories) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    for (incarnation, remembered) in memories {
        bytes.extend(incarnation.to_bytes());
        bytes.extend(remembered.boot_counter.to_be_bytes());
        bytes.extend(remembered.start.0.to_be_bytes());
        bytes.extend(remembered.log_sequence.to_be_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Memories, String> {
    let Some((&FORMAT, rows)) = bytes.split_first() else {
        let format = bytes.first().copied().unwrap_or_default();
        return Err(format!(
            "the record of the other nodes has format {format}, this version reads {FORMAT}"
        ));
    };
    let whole = rows.chunks_exact(ROW_BYTES);
    if !whole.remainder().is_empty() {
        let bytes = rows.len();
        return Err(format!(
            "the record of the other nodes is damaged: expected rows of {ROW_BYTES} bytes, found \
             {bytes} bytes"
        ));
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let memories = whole.map(|row| {
        let high = u128::from(number(&row[..8])) << 64;
        let remembered = Remembered {
            boot_counter: number(&row[16..24]),
            start: StartId(number(&row[24..32])),
            log_sequence: number(&row[32..]),
        };
        (Incarnation(high | u128::from(number(&row[8..16]))), remembered)
    });
    Ok(memories.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_as_described() {
        let remembered =
            |n| Remembered { boot_counter: n, start: StartId(n + 1), log_sequence: n + 2 };
        let memories = Memories::from([
            (Incarnation(0x0102 << 112 | 0x0f), remembered(0x20)),
            (Incarnation(u128::MAX), remembered(u64::MAX - 2)),
        ]);
        let bytes = encode(&memories);
        assert_eq!((bytes.len(), bytes[0]), (81, 1));
        let first = concat!(
            "0102000000000000000000000000000f",
            "0000000000000020",
            "0000000000000021",
            "0000000000000022"
        );
        assert_eq!(hex::encode(&bytes[1..41]), first);
        assert_eq!(decode(&bytes), Ok(memories));
        assert_eq!(decode(&[FORMAT]), Ok(Memories::default()));
    }

    #[test]
    fn other_bytes_are_rejected_with_a_sentence() {
        assert!(decode(&[]).unwrap_err().contains("format 0"));
        assert!(decode(&[2; 41]).unwrap_err().contains("format 2, this version reads 1"));
        assert!(
            decode(&[1; 40]).unwrap_err().contains("expected rows of 40 bytes, found 39 bytes")
        );
    }
}
