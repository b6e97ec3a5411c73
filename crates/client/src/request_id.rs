//! Request ids, which identify a call in the logs of the nodes.

use bytes::Bytes;
use tonic::metadata::{Ascii, MetadataValue};

/// Generator of request ids: a random part per client and a count, so that ids are short and do not
/// collide.
#[derive(Debug)]
pub(crate) struct RequestIds {
    client: u64,
    count: std::sync::atomic::AtomicU64,
}

impl RequestIds {
    pub fn new() -> RequestIds {
        RequestIds { client: rand::random(), count: std::sync::atomic::AtomicU64::new(1) }
    }

    pub fn next(&self) -> (String, MetadataValue<Ascii>) {
        let n = self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = format!("{:012x}-{n}", self.client >> 16);
        let bytes = Bytes::copy_from_slice(id.as_bytes());
        // Hex digits, a dash and decimal digits are always a legal header.
        let header = MetadataValue::try_from(bytes)
            .unwrap_or_else(|_| MetadataValue::from_static("unknown"));
        (id, header)
    }
}
