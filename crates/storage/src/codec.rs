//! Record encoding: the only one that storage uses on disk.
//!
//! A record is a *frame* around a *body*:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format version of the body |
//! | 4 | CRC32C over format, length and body, little endian |
//! | 4 | length of the body in bytes, little endian |
//! | … | body: bincode 2 in the configuration [`CONFIG`] |
//!
//! The frame is checked before its body is used. Decoding never allocates more than
//! [`DECODE_LIMIT`] and never panics on foreign bytes.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use bincode::{BorrowDecode, Encode};

use crate::error::{Result, StorageError};

/// Bytes in front of each body: format, CRC32C, length.
pub const FRAME_BYTES: usize = 9;

/// No body is longer than this, and no decoder claims more memory: 64 MiB.
pub const DECODE_LIMIT: usize = 64 << 20;

/// The type of [`CONFIG`].
pub type CodecConfig = Configuration<LittleEndian, Varint, Limit<DECODE_LIMIT>>;

/// The configuration of every bincode body on disk. It can never change: a different configuration
/// would be another format version.
pub const CONFIG: CodecConfig = bincode::config::standard().with_limit::<DECODE_LIMIT>();

/// A frame whose checksum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Format version of the body.
    pub format: u8,
    /// Its checksum, by which a following record can name this one.
    pub crc: u32,
    /// The body.
    pub body: &'a [u8],
}

/// Why bytes are not a whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// There are fewer bytes than the frame's length says.
    Short,
    /// There are bytes after its end.
    Trailing,
    /// The length is over the limit, so storage did not write it.
    Length,
    /// The checksum does not match.
    Checksum,
}

impl FrameError {
    /// The end of a sentence that begins with the name of the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "is cut short",
            Self::Trailing => "has bytes after its end",
            Self::Length => "has an impossible length",
            Self::Checksum => "fails its checksum",
        }
    }
}

struct VecWriter<'a>(&'a mut Vec<u8>);

impl Writer for VecWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn checksum(format: u8, body: &[u8]) -> u32 {
    let mut head = [format; 5];
    head[1..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

/// Appends the bincode body of `value` to `out`, without a frame.
///
/// # Errors
/// [`StorageError::Invalid`] if the value cannot be encoded, which no type of this crate causes.
pub fn encode_body<T: Encode>(out: &mut Vec<u8>, value: &T) -> Result<()> {
    bincode::encode_into_writer(value, VecWriter(out), CONFIG)
        .map_err(|error| StorageError::Invalid { what: format!("cannot encode a record: {error}") })
}

/// Starts a frame in `out`: room for the head, which [`finish_frame`] fills in. The body follows.
pub fn begin_frame(out: &mut Vec<u8>) {
    out.clear();
    out.resize(FRAME_BYTES, 0);
}

/// Completes the frame that fills `out` and returns its checksum.
///
/// # Errors
/// [`StorageError::TooLarge`] if the body is over [`DECODE_LIMIT`].
pub fn finish_frame(out: &mut [u8], format: u8) -> Result<u32> {
    let body = &out[FRAME_BYTES..];
    let len = body.len();
    if len > DECODE_LIMIT {
        return Err(StorageError::TooLarge { what: "a record", len, limit: DECODE_LIMIT });
    }
    let crc = checksum(format, body);
    out[0] = format;
    out[1..5].copy_from_slice(&crc.to_le_bytes());
    out[5..9].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(crc)
}

/// A whole record: frame and body.
///
/// # Errors
/// [`StorageError::TooLarge`] if the body is over 64 MiB, or [`StorageError::Invalid`].
pub fn encode<T: Encode>(format: u8, value: &T) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(128);
    begin_frame(&mut out);
    encode_body(&mut out, value)?;
    finish_frame(&mut out, format)?;
    Ok(out)
}

/// The length in bytes, frame included, of the record at the beginning of `bytes`; `None` if the
/// head of the frame is incomplete or its length impossible.
#[must_use]
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(bytes.get(5..FRAME_BYTES)?.try_into().ok()?) as usize;
    (len <= DECODE_LIMIT).then_some(FRAME_BYTES + len)
}

/// Checks that `bytes` are exactly one frame.
///
/// # Errors
/// The first reason why they are not a frame.
pub fn open_frame(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let Some(head) = bytes.get(..FRAME_BYTES) else { return Err(FrameError::Short) };
    let total = frame_len(head).ok_or(FrameError::Length)?;
    let body = bytes.get(FRAME_BYTES..total).ok_or(FrameError::Short)?;
    if bytes.len() > total {
        return Err(FrameError::Trailing);
    }
    let format = head[0];
    let crc = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if checksum(format, body) != crc {
        return Err(FrameError::Checksum);
    }
    Ok(Frame { format, crc, body })
}

/// Decodes a body that [`open_frame`] has checked. `what` names the record in the error.
///
/// # Errors
/// [`StorageError::Damaged`] if the body does not decode or has bytes left over.
pub fn decode_body<'a, T: BorrowDecode<'a, ()>>(body: &'a [u8], what: &str) -> Result<T> {
    match bincode::borrow_decode_from_slice(body, CONFIG) {
        Ok((value, used)) if used == body.len() => Ok(value),
        Ok(_) => Err(StorageError::damaged(format!("{what} has bytes left over"))),
        Err(error) => Err(StorageError::damaged(format!("{what} does not decode: {error}"))),
    }
}

/// Opens a whole record of one known format. `what` names the record in errors.
///
/// # Errors
/// [`StorageError::Damaged`] for a broken frame or body, [`StorageError::NewerFormat`] for a
/// format above `format`.
pub fn decode<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8], format: u8, what: &str) -> Result<T> {
    let frame = open_frame(bytes)
        .map_err(|error| StorageError::damaged(format!("{what} {}", error.as_str())))?;
    if frame.format > format {
        return Err(StorageError::NewerFormat {
            what: what.to_owned(),
            found: frame.format,
            known: format,
        });
    }
    if frame.format != format {
        return Err(StorageError::damaged(format!(
            "{what} has the unknown format {}",
            frame.format
        )));
    }
    decode_body(frame.body, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, BorrowDecode)]
    struct Sample<'a> {
        number: u64,
        bytes: &'a [u8],
    }

    /// The exact bytes are on disks: a change here is a new format version.
    #[test]
    fn golden_bytes() {
        let record = encode(1, &Sample { number: 300, bytes: b"ab" }).unwrap();
        let expected = [1, 0x69, 0x0a, 0xa0, 0x31, 6, 0, 0, 0, 251, 44, 1, 2, b'a', b'b'];
        assert_eq!(record, expected, "{record:02x?}");
    }

    #[test]
    fn round_trip_and_every_bit_flip_is_noticed() {
        let sample = Sample { number: u64::MAX, bytes: b"some bytes" };
        let record = encode(1, &sample).unwrap();
        assert_eq!(decode::<Sample<'_>>(&record, 1, "sample").unwrap(), sample);
        for bit in 0..record.len() * 8 {
            let mut broken = record.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            decode::<Sample<'_>>(&broken, 1, "sample").unwrap_err();
        }
        for len in 0..record.len() {
            assert!(open_frame(&record[..len]).is_err(), "cut at {len}");
        }
        let mut longer = record.clone();
        longer.push(0);
        assert_eq!(open_frame(&longer), Err(FrameError::Trailing));
    }

    #[test]
    fn a_newer_format_is_reported_as_newer() {
        let record = encode(9, &1u64).unwrap();
        let error = decode::<u64>(&record, 1, "the header").unwrap_err();
        assert!(matches!(error, StorageError::NewerFormat { found: 9, known: 1, .. }), "{error}");
    }

    /// A length inside a body that promises more than there is must not be allocated.
    #[test]
    fn a_huge_inner_length_is_an_error() {
        let mut record = Vec::new();
        begin_frame(&mut record);
        record.extend_from_slice(&[253, 255, 255, 255, 255, 255, 255, 255, 127]);
        finish_frame(&mut record, 1).unwrap();
        assert!(decode::<Vec<u8>>(&record, 1, "sample").unwrap_err().is_damage());
    }
}
