//! Page tokens: where the next page of a scan begins. Opaque to clients, checked on return.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_proto::limits::KEY_BYTES_MAX;
use quorate_proto::v1::ScanRequest;
use xxhash_rust::xxh3::xxh3_64;

/// The first byte of a token.
const FORMAT: u8 = 1;
/// Format, map epoch, level, rows left, fingerprint; then the key, then the checksum.
const FIXED_BYTES: usize = 1 + 8 + 4 + 8 + 8;
const CHECKSUM_BYTES: usize = 8;

/// The state of a scan between two calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// The epoch of the map that the page was read by.
    pub map_epoch: u64,
    /// The read level; a scan does not change it on its way.
    pub level: i32,
    /// How many rows may still come, over all pages; `u64::MAX` = no limit.
    pub rows_left: u64,
    /// Fingerprint of the scan that the token belongs to.
    fingerprint: u64,
    /// The last key that was sent or counted.
    pub last_key: Bytes,
}

impl PageToken {
    /// The token of a scan that begins with this request.
    #[must_use]
    pub fn first(request: &ScanRequest) -> Self {
        let mut of = BytesMut::new();
        for part in [&request.prefix, &request.start, &request.end] {
            of.put_u64(part.len() as u64);
            of.put_slice(part);
        }
        of.put_u8(u8::from(request.reverse));
        of.put_u8(u8::from(request.count_only));
        of.put_slice(request.keyspace.as_bytes());
        Self {
            map_epoch: 0,
            level: request.read.as_ref().map_or(0, |read| read.level),
            rows_left: if request.limit == 0 { u64::MAX } else { request.limit },
            fingerprint: xxh3_64(&of),
            last_key: Bytes::new(),
        }
    }

    /// The token that came back with a request whose first token is `self`.
    ///
    /// # Errors
    /// A sentence when the bytes are not a token, or the token of another scan.
    pub fn resume(&self, bytes: &Bytes) -> Result<Self, &'static str> {
        let token = Self::decode(bytes).ok_or("the page token is not one that a scan returned")?;
        if token.fingerprint != self.fingerprint || token.level != self.level {
            return Err("the page token is of another scan: range, direction and level must stay");
        }
        Ok(token)
    }

    /// The token as it travels.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FIXED_BYTES + self.last_key.len() + CHECKSUM_BYTES);
        out.put_u8(FORMAT);
        out.put_u64(self.map_epoch);
        out.put_i32(self.level);
        out.put_u64(self.rows_left);
        out.put_u64(self.fingerprint);
        out.put_slice(&self.last_key);
        let checksum = xxh3_64(&out);
        out.put_u64(checksum);
        out.freeze()
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        let key_bytes = bytes.len().checked_sub(FIXED_BYTES + CHECKSUM_BYTES)?;
        if key_bytes > KEY_BYTES_MAX {
            return None;
        }
        let (content, mut checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        if checksum.get_u64() != xxh3_64(content) {
            return None;
        }
        let mut rest = bytes.slice(..content.len());
        if rest.get_u8() != FORMAT {
            return None;
        }
        let (map_epoch, level) = (rest.get_u64(), rest.get_i32());
        let (rows_left, fingerprint) = (rest.get_u64(), rest.get_u64());
        Some(Self { map_epoch, level, rows_left, fingerprint, last_key: rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ScanRequest {
        ScanRequest { prefix: Bytes::from_static(b"p"), limit: 10, ..ScanRequest::default() }
    }

    fn token() -> PageToken {
        PageToken {
            map_epoch: 4,
            rows_left: 7,
            last_key: Bytes::from_static(b"pq"),
            ..PageToken::first(&request())
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was() {
        assert_eq!(PageToken::first(&request()).resume(&token().encode()), Ok(token()));
    }

    /// A client may keep a token while the nodes are replaced: a change is a new format.
    #[test]
    fn the_bytes_are_fixed() {
        let token = PageToken { level: 2, fingerprint: 0x0102_0304_0506_0708, ..token() };
        // Format, map epoch, level, rows left, fingerprint, last key, checksum.
        let expected = "01 0000000000000004 00000002 0000000000000007 0102030405060708 7071";
        let bytes = token.encode();
        let content = hex::decode(expected.replace(' ', "")).unwrap();
        assert_eq!(hex::encode(&bytes[..content.len()]), hex::encode(&content));
        assert_eq!(bytes[content.len()..], xxh3_64(&content).to_be_bytes());
        assert_eq!(PageToken::decode(&bytes), Some(token));
        let fingerprint = PageToken::first(&request()).fingerprint;
        assert_eq!(fingerprint, 0x15d4_bb52_4051_8ae3, "{fingerprint:#018x}");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let good = token().encode();
        let mut newer = good[..good.len() - CHECKSUM_BYTES].to_vec();
        newer[0] = FORMAT + 1;
        newer.extend(xxh3_64(&newer).to_be_bytes());
        let error = PageToken::first(&request()).resume(&newer.into()).unwrap_err();
        assert_eq!(error, "the page token is not one that a scan returned");
    }

    #[test]
    fn any_changed_byte_and_any_other_scan_are_refused() {
        let first = PageToken::first(&request());
        let good = token().encode();
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(first.resume(&bad.into()).is_err(), "byte {at}");
        }
        assert!(first.resume(&good.slice(..good.len() - 1)).is_err());
        assert!(first.resume(&Bytes::new()).is_err());
        let other = ScanRequest { reverse: true, ..request() };
        assert!(PageToken::first(&other).resume(&good).is_err());
    }
}
