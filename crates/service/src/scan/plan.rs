//! The plan of a scan: a checked request, and how far the scan has come.

use bytes::Bytes;
use quorate_proto::limits::SCAN_ROWS_MAX;
use quorate_proto::v1::{Failure, Reason, ScanRequest};
use quorate_storage::{RowKind, ScanRange};

use super::page_token::{Origin, PageToken};
use crate::draft::{Invalid, keyspace_id};

use crate::shared::Shared;

/// A checked request, and how far the scan has come.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) range: ScanRange,
    pub(crate) reverse: bool,
    pub(crate) keys_only: bool,
    pub(crate) count_only: bool,
    /// How many rows may still come; `u64::MAX` = no limit.
    pub(crate) rows_left: u64,
    /// The most rows of this call; `u64::MAX` = no limit but that of its time.
    pub(crate) page_rows: u64,
    pub(crate) token: PageToken,
}

impl Plan {
    pub(crate) fn of(shared: &Shared, request: &ScanRequest) -> Result<Self, Failure> {
        let invalid = |invalid: Invalid| invalid.failure();
        let keyspace = keyspace_id(&request.keyspace).map_err(invalid)?;
        let bad = |message: &str| Err(Failure::of(Reason::BadRequest, message));
        let bounded = !request.start.is_empty() || !request.end.is_empty();
        if !request.prefix.is_empty() && bounded {
            return bad("a scan takes a prefix, or start and end, not both");
        }
        let mut range = ScanRange {
            kind: RowKind::User,
            keyspace,
            start: request.start.clone(),
            end: (!request.end.is_empty()).then(|| request.end.clone()),
        };
        if !request.prefix.is_empty() {
            range.start = request.prefix.clone();
            range.end = after_prefix(&request.prefix);
        }
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return bad(
                "the scan's end is not after its start; start is the lesser also in reverse",
            );
        }
        let mut token = PageToken::first(origin(shared), request);
        let mut rows_left = if request.limit == 0 { u64::MAX } else { request.limit };
        if !request.page_token.is_empty() {
            let bad = |message: String| Failure {
                field: "page_token".to_owned(),
                ..Failure::of(Reason::BadPageToken, message)
            };
            token = token.resume(&request.page_token).map_err(bad)?;
            rows_left = token.rows_left;
            if request.reverse {
                range.end = Some(token.last_key.clone());
            } else {
                range.start = after_key(&token.last_key);
            }
        }
        token.map_epoch = shared.map.epoch();
        Ok(Plan {
            range,
            reverse: request.reverse,
            keys_only: request.keys_only || request.count_only,
            count_only: request.count_only,
            rows_left,
            page_rows: match request.page_size {
                // Counting sends nothing, so only time bounds it by itself.
                0 if request.count_only => u64::MAX,
                0 => SCAN_ROWS_MAX,
                rows => rows.min(SCAN_ROWS_MAX),
            },
            token,
        })
    }
}

/// The cluster and history of this node. Their ids are checked to be of 16 bytes where they come
/// into being.
fn origin(shared: &Shared) -> Origin {
    let history = shared.map.get().map(|map| map.proto().history.clone());
    let id = |bytes: &[u8]| bytes.try_into().unwrap_or_default();
    Origin { cluster_id: id(&shared.cluster_id), history: id(&history.unwrap_or_default()) }
}

/// The first key behind all keys with this prefix; none for a prefix of 0xff bytes alone.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// The first key after this one.
fn after_key(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after_prefix(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(after_prefix(b"\xff\xff"), None);
    }
}
