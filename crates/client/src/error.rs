//! Error types of calls, distinguished by what is known about the effect.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use quorate_proto::code::code_name;
use quorate_proto::v1::{Failure, Outcome, Reason};
use tonic::Code;

use crate::write_id::WriteId;

/// Why a call gave no answer. An absent key and a false condition are answers, not errors.
#[derive(Clone, Debug)]
pub enum Error {
    /// The call was certainly not applied: no leader, no reachable node, overload, or a read whose
    /// timeout has passed. A later retry is safe. Never returned for a write that an earlier call
    /// has sent with the same [`WriteId`]: that write stays unknown.
    NotApplied(Box<Detail>),
    /// A write may have been applied, or may still be applied. Retry it with [`WriteId`], which is
    /// safe during the life of the session, or settle it with
    /// [`Client::cancel`](crate::Client::cancel).
    Unknown {
        /// The detail of the last attempt.
        detail: Box<Detail>,
        /// The id of the write; none for a write without a session.
        write: Option<WriteId>,
    },
    /// The cluster rejected the request in its current state: a failed precondition, a feature that
    /// is not offered, a damaged replica. Nothing was changed.
    Refused(Box<Detail>),
    /// The request itself is invalid; a retry fails again. It changed nothing; about an earlier
    /// call with the same [`WriteId`] this says nothing.
    Invalid(Box<Detail>),
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Detail of a failure.
#[derive(Clone, Debug)]
pub struct Detail {
    /// The gRPC code of the status, or the code that fits if there was no status.
    pub code: Code,
    /// The node's reason; none if no node answered.
    pub reason: Option<Reason>,
    /// A sentence for people.
    pub message: String,
    /// What is known about the effect of a write: not applied, unknown, or, if the request was
    /// invalid and an earlier call may have sent the same [`WriteId`], this attempt not applied.
    /// Meaningless for reads.
    pub outcome: Outcome,
    /// The shard concerned; 0 = none or unknown.
    pub shard: u64,
    /// The node of the shard's leader, as far as the answering node knows; 0 = unknown.
    pub leader_node_id: u64,
    /// Minimum time before a retry.
    pub retry_after: Option<Duration>,
    /// The call's id in the logs of the nodes.
    pub request_id: String,
    /// The invalid field of the request; empty = none in particular.
    pub field: String,
    /// The limit that was exceeded, in the unit of the field; 0 = none.
    pub limit: u64,
    /// The configuration key that sets the limit; empty = the limit is fixed.
    pub config_key: String,
    /// With SESSION_EXPIRED the shard's log time; otherwise 0.
    pub log_time: u64,
}

impl Detail {
    /// Makes the detail of a failure; `Failure::default()` if no node described one.
    pub(crate) fn new(code: Code, failure: Failure, message: String, request_id: String) -> Detail {
        Detail {
            code,
            reason: Some(failure.reason()).filter(|reason| *reason != Reason::Unspecified),
            message,
            outcome: failure.outcome(),
            shard: failure.shard,
            leader_node_id: failure.leader_node_id,
            retry_after: failure.retry_after.and_then(|delay| delay.try_into().ok()),
            request_id,
            field: failure.field,
            limit: failure.limit,
            config_key: failure.config_key,
            log_time: failure.log_time,
        }
    }

    /// The name of the reason as in the error table, such as `NO_LEADER`; the name of the code if
    /// no node gave a reason.
    #[must_use]
    pub fn reason_name(&self) -> &'static str {
        self.reason.map_or(code_name(self.code), Reason::name)
    }
}

impl Error {
    /// The detail of the failure.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Error::NotApplied(detail) | Error::Refused(detail) | Error::Invalid(detail) => detail,
            Error::Unknown { detail, .. } => detail,
        }
    }

    /// The node's reason; none if no node gave one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.detail().reason
    }

    /// Whether the outcome of a write is unknown.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Unknown { .. })
    }

    /// The same error with another outcome.
    pub(crate) fn with_outcome(mut self, outcome: Outcome) -> Error {
        match &mut self {
            Error::NotApplied(detail)
            | Error::Refused(detail)
            | Error::Invalid(detail)
            | Error::Unknown { detail, .. } => detail.outcome = outcome,
        }
        self
    }

    /// The error of a request that was found invalid before it was sent.
    pub(crate) fn invalid(reason: Reason, message: impl Into<String>) -> Error {
        let failure = Failure::of(reason, message);
        let message = failure.message.clone();
        Error::Invalid(Box::new(Detail::new(reason.code(), failure, message, String::new())))
    }

    /// The error of a call whose attempts changed nothing, or of a read.
    pub(crate) fn of_unchanged(detail: Detail) -> Error {
        let detail = Box::new(detail);
        match detail.code {
            // OUT_OF_RANGE means a message too large for the other side to decode.
            Code::InvalidArgument | Code::OutOfRange => Error::Invalid(detail),
            Code::FailedPrecondition
            | Code::Unimplemented
            | Code::DataLoss
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::AlreadyExists => Error::Refused(detail),
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Aborted
            | Code::Internal
            | Code::Unknown
            // A failure with this code is a bug of the sender of the status.
            | Code::Ok => Error::NotApplied(detail),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail();
        match self {
            Error::NotApplied(_) => write!(f, "not done: {}", detail.message)?,
            Error::Unknown { .. } => write!(f, "outcome unknown: {}", detail.message)?,
            Error::Refused(_) => write!(f, "refused: {}", detail.message)?,
            Error::Invalid(_) => write!(f, "invalid: {}", detail.message)?,
        }
        write!(f, " ({})", detail.reason_name())
    }
}

impl StdError for Error {}
