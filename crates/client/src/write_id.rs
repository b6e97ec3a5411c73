//! The identity of a write, with which it can be asked for again.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::limits::SESSION_ID_BYTES;

/// The identity of a write: sent again with the same one, it is applied once all the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WriteId {
    /// The session's id.
    pub session: Bytes,
    /// The write's number in the session, from 1 on.
    pub sequence: u64,
}

/// Where a write under way leaves its identity; empty until it may be out: until it is about to be
/// sent, unless an earlier call has sent it.
#[derive(Clone, Debug, Default)]
pub struct WriteIdSlot(Arc<Mutex<Option<WriteId>>>);

impl WriteIdSlot {
    /// The identity that the write was last sent with, or was given; none while it is certainly not
    /// out.
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
        let digits = 2 * SESSION_ID_BYTES;
        write!(
            f,
            "expected the session in {digits} hexadecimal digits, a slash and the sequence (from 1)"
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
        if session.len() != SESSION_ID_BYTES || sequence == 0 {
            return Err(InvalidWriteId);
        }
        Ok(WriteId { session: session.into(), sequence })
    }
}
