//! Page tokens: where the next page of a scan begins. Opaque to clients, checked on return.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_proto::limits::{ID_BYTES, KEY_BYTES_MAX};
use quorate_proto::v1::ScanRequest;
use xxhash_rust::xxh3::xxh3_64;

/// The first byte of a token.
const FORMAT: u8 = 2;
/// Format, cluster id, history, map epoch, level, rows left, fingerprint; then the key, then the
/// checksum.
const FIXED_BYTES: usize = 1 + 2 * ID_BYTES + 8 + 4 + 8 + 8;
const CHECKSUM_BYTES: usize = 8;

/// The cluster and the history whose rows a token continues in: in another one, what follows its
/// key is not what followed when it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The id of the cluster.
    pub cluster_id: [u8; ID_BYTES],
    /// The id of its history.
    pub history: [u8; ID_BYTES],
}

/// The state of a scan between two calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// Where the rows are.
    pub origin: Origin,
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
    /// The token of a scan of `origin` that begins with this request.
    #[must_use]
    pub fn first(origin: Origin, request: &ScanRequest) -> Self {
        let mut of = BytesMut::new();
        for part in [&request.prefix, &request.start, &request.end] {
            of.put_u64(part.len() as u64);
            of.put_slice(part);
        }
        of.put_u8(u8::from(request.reverse));
        of.put_u8(u8::from(request.count_only));
        of.put_slice(request.keyspace.as_bytes());
        Self {
            origin,
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
    /// A sentence when the bytes are not a token, or the token of another format, cluster, history
    /// or scan.
    pub fn resume(&self, bytes: &Bytes) -> Result<Self, String> {
        let token = Self::decode(bytes)?;
        if token.origin.cluster_id != self.origin.cluster_id {
            return Err(format!(
                "the page token is of cluster {}, this is cluster {}",
                hex::encode(token.origin.cluster_id),
                hex::encode(self.origin.cluster_id)
            ));
        }
        if token.origin.history != self.origin.history {
            return Err("the page token is of another history of this cluster, whose rows were \
                        others; begin the scan again"
                .to_owned());
        }
        if token.fingerprint != self.fingerprint || token.level != self.level {
            return Err("the page token is of another scan: range, direction and level must stay"
                .to_owned());
        }
        Ok(token)
    }

    /// The token as it travels.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FIXED_BYTES + self.last_key.len() + CHECKSUM_BYTES);
        out.put_u8(FORMAT);
        out.put_slice(&self.origin.cluster_id);
        out.put_slice(&self.origin.history);
        out.put_u64(self.map_epoch);
        out.put_i32(self.level);
        out.put_u64(self.rows_left);
        out.put_u64(self.fingerprint);
        out.put_slice(&self.last_key);
        let checksum = xxh3_64(&out);
        out.put_u64(checksum);
        out.freeze()
    }

    fn decode(bytes: &Bytes) -> Result<Self, String> {
        let damaged = || "the page token is not one that a scan returned".to_owned();
        let content_bytes = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or_else(damaged)?;
        let (content, mut checksum) = bytes.split_at(content_bytes);
        if checksum.get_u64() != xxh3_64(content) {
            return Err(damaged());
        }
        // Of a token of any format the first byte is the format, and the last ones are the
        // checksum.
        match content.first() {
            Some(&FORMAT) => {}
            Some(format) => {
                return Err(format!(
                    "the page token is of format {format}, and this node reads format {FORMAT} \
                     alone; begin the scan again"
                ));
            }
            None => return Err(damaged()),
        }
        if !(FIXED_BYTES..=FIXED_BYTES + KEY_BYTES_MAX).contains(&content_bytes) {
            return Err(damaged());
        }
        let mut rest = bytes.slice(1..content_bytes);
        let mut origin = Origin::default();
        rest.copy_to_slice(&mut origin.cluster_id);
        rest.copy_to_slice(&mut origin.history);
        let (map_epoch, level) = (rest.get_u64(), rest.get_i32());
        let (rows_left, fingerprint) = (rest.get_u64(), rest.get_u64());
        Ok(Self { origin, map_epoch, level, rows_left, fingerprint, last_key: rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ScanRequest {
        ScanRequest { prefix: Bytes::from_static(b"p"), limit: 10, ..ScanRequest::default() }
    }

    const ORIGIN: Origin = Origin { cluster_id: [0xc1; ID_BYTES], history: [0x41; ID_BYTES] };

    fn first() -> PageToken {
        PageToken::first(ORIGIN, &request())
    }

    fn token() -> PageToken {
        PageToken { map_epoch: 4, rows_left: 7, last_key: Bytes::from_static(b"pq"), ..first() }
    }

    /// These bytes with a checksum that fits.
    fn sealed(mut content: Vec<u8>) -> Bytes {
        content.extend(xxh3_64(&content).to_be_bytes());
        content.into()
    }

    #[test]
    fn a_token_comes_back_as_it_was() {
        assert_eq!(first().resume(&token().encode()), Ok(token()));
    }

    /// A client may keep a token while the nodes are replaced: a change is a new format.
    #[test]
    fn the_bytes_are_fixed() {
        let token = PageToken { level: 2, fingerprint: 0x0102_0304_0506_0708, ..token() };
        // Format, cluster id, history, map epoch, level, rows left, fingerprint, last key.
        let expected = "02 c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1 41414141414141414141414141414141 \
                        0000000000000004 00000002 0000000000000007 0102030405060708 7071";
        let bytes = token.encode();
        let content = hex::decode(expected.replace(' ', "")).unwrap();
        assert_eq!(hex::encode(&bytes), hex::encode(sealed(content)));
        assert_eq!(PageToken::decode(&bytes), Ok(token));
        let fingerprint = first().fingerprint;
        assert_eq!(fingerprint, 0x15d4_bb52_4051_8ae3, "{fingerprint:#018x}");
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        // What format 1 was: without cluster and history.
        let first_format = "01 0000000000000004 00000002 0000000000000007 0102030405060708 7071";
        let content = hex::decode(first_format.replace(' ', "")).unwrap();
        let good = token().encode();
        let mut newer = good[..good.len() - CHECKSUM_BYTES].to_vec();
        newer[0] = FORMAT + 1;
        for (content, format) in [(content, 1), (newer, 3)] {
            let error = first().resume(&sealed(content)).unwrap_err();
            let sentence = format!(
                "the page token is of format {format}, and this node reads format 2 alone; begin \
                 the scan again"
            );
            assert_eq!(error, sentence);
        }
    }

    #[test]
    fn another_cluster_and_another_history_are_refused() {
        let of = |origin| PageToken { origin, ..token() }.encode();
        let elsewhere = first().resume(&of(Origin { cluster_id: [1; ID_BYTES], ..ORIGIN }));
        let elsewhere = elsewhere.unwrap_err();
        assert!(elsewhere.starts_with("the page token is of cluster 0101"), "{elsewhere}");
        let before = first().resume(&of(Origin { history: [1; ID_BYTES], ..ORIGIN })).unwrap_err();
        assert!(before.starts_with("the page token is of another history"), "{before}");
    }

    #[test]
    fn any_changed_byte_and_any_other_scan_are_refused() {
        let first = first();
        let good = token().encode();
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(first.resume(&bad.into()).is_err(), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(first.resume(&good.slice(..length)).is_err(), "{length} bytes");
            let short = sealed(good[..length.min(FIXED_BYTES - 1)].to_vec());
            assert!(first.resume(&short).is_err(), "{length} bytes with a checksum");
        }
        let long = PageToken { last_key: vec![1; KEY_BYTES_MAX + 1].into(), ..token() };
        assert!(first.resume(&long.encode()).is_err());
        let other = ScanRequest { reverse: true, ..request() };
        assert!(PageToken::first(ORIGIN, &other).resume(&good).is_err());
        // The size of a page is not of the scan.
        let smaller = ScanRequest { page_size: 3, ..request() };
        assert_eq!(PageToken::first(ORIGIN, &smaller).resume(&good), Ok(token()));
    }
}
