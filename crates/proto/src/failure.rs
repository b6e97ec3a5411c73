//! Failures in a gRPC status: the standard details under the domain `quorate`, followed by the
//! [`Failure`] itself.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use tonic_types::pb;

use crate::limits::FAILURE_MESSAGE_BYTES_MAX;
use crate::v1::{Failure, Outcome, Reason};

/// `ErrorInfo.domain` of every failure.
pub const DOMAIN: &str = "quorate";

const TYPE_PREFIX: &str = "type.googleapis.com/";
const FAILURE: &str = "quorate.v1.Failure";
const ERROR_INFO: &str = "google.rpc.ErrorInfo";
const RETRY_INFO: &str = "google.rpc.RetryInfo";
const REQUEST_INFO: &str = "google.rpc.RequestInfo";

impl Failure {
    /// A failure with the code and outcome that the error table gives its reason. The message is a
    /// sentence for people, cut to 1 KiB.
    #[must_use]
    pub fn of(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        truncate(&mut message);
        Self {
            code: reason.code() as i32,
            reason: reason as i32,
            outcome: reason.outcome() as i32,
            message,
            ..Self::default()
        }
    }

    /// Whether this is the answer that a session remembers for a write: the sequence was barred by
    /// Cancel, or its increment found a value that is not a number. It then holds for all attempts,
    /// earlier and later ones. Any other refusal does not cover an attempt that was sent before.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        matches!(self.reason(), Reason::SequencePast | Reason::NotANumber)
            && self.outcome() == Outcome::NotApplied
    }

    /// The value for the status's `grpc-status-details-bin`: an encoded `google.rpc.Status` with
    /// ErrorInfo, RetryInfo if there is a time to wait, RequestInfo if there is an id, and the
    /// failure itself.
    #[must_use]
    pub fn to_details(&self, request_id: &str) -> Bytes {
        let mut details = vec![any(ERROR_INFO, &self.error_info())];
        if let Some(delay) = self.retry_after {
            let retry_delay = Some(delay);
            details.push(any(RETRY_INFO, &pb::RetryInfo { retry_delay }));
        }
        if !request_id.is_empty() {
            let info =
                pb::RequestInfo { request_id: request_id.to_owned(), serving_data: String::new() };
            details.push(any(REQUEST_INFO, &info));
        }
        details.push(any(FAILURE, self));
        let status = pb::Status { code: self.code, message: self.message.clone(), details };
        status.encode_to_vec().into()
    }

    /// Reads the output of [`Failure::to_details`]: the failure, and the request id or an empty
    /// string. `None` when the bytes hold no Quorate failure, as with a status made by a proxy or
    /// the gRPC library.
    #[must_use]
    pub fn from_details(details: &[u8]) -> Option<(Failure, String)> {
        let status = pb::Status::decode(details).ok()?;
        let find = |name: &str| {
            let of_type = |a: &&Any| a.type_url.rsplit('/').next() == Some(name);
            status.details.iter().find(of_type)
        };
        let failure = Failure::decode(find(FAILURE)?.value.as_slice()).ok()?;
        let request = find(REQUEST_INFO)
            .and_then(|a| pb::RequestInfo::decode(a.value.as_slice()).ok())
            .map_or_else(String::new, |info| info.request_id);
        Some((failure, request))
    }

    fn error_info(&self) -> pb::ErrorInfo {
        let mut metadata = HashMap::new();
        let mut add = |key: &str, value: u64| {
            if value != 0 {
                metadata.insert(key.to_owned(), value.to_string());
            }
        };
        add("shard", self.shard);
        add("shard_epoch", self.shard_epoch);
        add("leader", self.leader_node_id);
        add("epoch", self.map_epoch);
        add("node", self.node_id);
        add("limit", self.limit);
        if self.outcome() != Outcome::Unspecified {
            metadata.insert("outcome".into(), self.outcome().name().into());
        }
        if self.only_this_node {
            metadata.insert("only_this_node".into(), "true".into());
        }
        if !self.field.is_empty() {
            metadata.insert("field".into(), self.field.clone());
        }
        if !self.config_key.is_empty() {
            metadata.insert("config_key".into(), self.config_key.clone());
        }
        pb::ErrorInfo { reason: self.reason().name().into(), domain: DOMAIN.into(), metadata }
    }
}

/// Cuts a message to the limit, between two characters.
fn truncate(message: &mut String) {
    if message.len() > FAILURE_MESSAGE_BYTES_MAX {
        let end = message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX - '…'.len_utf8());
        message.truncate(end);
        message.push('…');
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("{TYPE_PREFIX}{name}"), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use prost_types::Duration;
    use tonic_types::StatusExt;

    use super::*;

    fn sample() -> Failure {
        Failure {
            shard: 7,
            leader_node_id: 2,
            map_epoch: 4,
            retry_after: Some(Duration { seconds: 1, nanos: 0 }),
            ..Failure::of(Reason::NoLeader, "shard 7 has no leader")
        }
    }

    #[test]
    fn a_failure_survives_its_encoding_in_a_status() {
        let (failure, request) = Failure::from_details(&sample().to_details("r-1")).unwrap();
        assert_eq!(failure, sample());
        assert_eq!(request, "r-1");
        assert_eq!(failure.code, tonic::Code::Unavailable as i32);
        assert_eq!(failure.outcome(), Outcome::NotApplied);
    }

    #[test]
    fn standard_details_are_readable_without_our_types() {
        let details = sample().to_details("r-1");
        let status = tonic::Status::with_details(tonic::Code::Unavailable, "m", details);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "NO_LEADER");
        assert_eq!(info.domain, "quorate");
        assert_eq!(info.metadata["outcome"], "NOT_APPLIED");
        assert_eq!(info.metadata["leader"], "2");
        assert_eq!(info.metadata["shard"], "7");
        let retry = status.get_details_retry_info().unwrap();
        assert_eq!(retry.retry_delay, Some(std::time::Duration::from_secs(1)));
        assert_eq!(status.get_details_request_info().unwrap().request_id, "r-1");
    }

    #[test]
    fn foreign_details_are_not_a_failure() {
        assert!(Failure::from_details(b"").is_none());
        assert!(Failure::from_details(b"\xff\xff").is_none());
        let empty = pb::Status::default().encode_to_vec();
        assert!(Failure::from_details(&empty).is_none());
    }

    #[test]
    fn long_sentences_are_cut_between_characters() {
        let failure = Failure::of(Reason::BadKey, "é".repeat(4_000));
        assert!(failure.message.len() <= FAILURE_MESSAGE_BYTES_MAX);
        assert!(failure.message.ends_with("é…"));
        assert_eq!(Failure::of(Reason::BadKey, "short").message, "short");
    }
}
