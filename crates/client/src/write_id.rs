//! Write ids, with which a write can be retried or cancelled.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::limits::{SESSION_ID_BYTES, SESSION_WIRE_BYTES_MAX};

/// The id of a write. However often a write is sent with the same id, it is applied once.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WriteId {
    /// The session's id, as OpenSession gave it: 24 to 64 bytes, opaque.
    pub session: Bytes,
    /// The sequence number of the write in the session, from 1.
    pub sequence: u64,
}

/// Slot that receives the id of a write. It is empty until the write is about to be sent, unless an
/// earlier call has sent it.
#[derive(Clone, Debug, Default)]
pub struct WriteIdSlot(Arc<Mutex<Option<WriteId>>>);

impl WriteIdSlot {
    /// The id that the write was given or last sent with; none while the write was certainly not
    /// sent.
    #[must_use]
    pub fn get(&self) -> Option<WriteId> {
        self.0.lock().clone()
    }

    pub(crate) fn set(&self, write: WriteId) {
        *self.0.lock() = Some(write);
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The session in hex, a slash, the sequence.
impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", hex::encode(&self.session), self.sequence)
    }
}

/// A text that is not a [`WriteId`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidWriteId;

impl Error for InvalidWriteId {}

impl fmt::Display for InvalidWriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = (2 * SESSION_ID_BYTES, 2 * SESSION_WIRE_BYTES_MAX);
        write!(
            f,
            "expected the session in {least} to {most} hexadecimal digits, a slash and the \
             sequence (from 1)"
        )
    }
}

/// Reads what [`Display`](fmt::Display) writes.
impl FromStr for WriteId {
    type Err = InvalidWriteId;

    fn from_str(text: &str) -> Result<WriteId, InvalidWriteId> {
        let (session, sequence) = text.split_once('/').ok_or(InvalidWriteId)?;
        let session = hex::decode(session).map_err(|_| InvalidWriteId)?;
        let sequence = sequence.parse().map_err(|_| InvalidWriteId)?;
        // Nodes of other versions may give ids of another length.
        let is_id = (SESSION_ID_BYTES..=SESSION_WIRE_BYTES_MAX).contains(&session.len());
        if !is_id || sequence == 0 {
            return Err(InvalidWriteId);
        }
        Ok(WriteId { session: session.into(), sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_24_to_64_bytes_are_read_back() {
        for length in [24, 56, 64] {
            let id = WriteId { session: vec![0xab; length].into(), sequence: 7 };
            assert_eq!(id.to_string().parse(), Ok(id), "{length} bytes");
        }
        for length in [0, 23, 65] {
            let text = format!("{}/7", "ab".repeat(length));
            assert_eq!(text.parse::<WriteId>(), Err(InvalidWriteId), "{length} bytes");
        }
        let id = "ab".repeat(56);
        for text in [id.clone(), format!("{id}/"), format!("{id}/0"), format!("{id}b/1")] {
            assert_eq!(text.parse::<WriteId>(), Err(InvalidWriteId), "{text}");
        }
    }
}
