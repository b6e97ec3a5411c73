//! What a call can fail with, told apart by what is known of its effect.

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
    /// It could not be done now, and certainly was not: no leader, no node reached, overload, or a
    /// read that ran out of time. Trying again later is safe. Never said of a write that an earlier
    /// call has sent with the same [`WriteId`]: that one stays unknown.
    NotApplied(Box<Detail>),
    /// A write may have been applied, or may still be. Ask again with [`WriteId`], which is safe at
    /// any time within the session's life, or settle it with
    /// [`Client::cancel`](crate::Client::cancel).
    Unknown {
        /// What was last heard.
        detail: Box<Detail>,
        /// The write's identity; none for a write that was sent without a session.
        write: Option<WriteId>,
    },
    /// The cluster does not do this as things stand: a precondition, a feature that is not offered,
    /// a damaged replica. Nothing was changed.
    Refused(Box<Detail>),
    /// The request is wrong in itself; sent again it fails again. It changed nothing; of an earlier
    /// call with the same [`WriteId`] this says nothing.
    Invalid(Box<Detail>),
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is known of a failure.
#[derive(Clone, Debug)]
pub struct Detail {
    /// The gRPC code of the status, or the one that fits where there was none.
    pub code: Code,
    /// The node's reason; none where no node answered.
    pub reason: Option<Reason>,
    /// A sentence for people.
    pub message: String,
    /// What is known of the effect of a write: not applied, unknown, or, where the request was
    /// invalid and an earlier call may have sent the same [`WriteId`], this attempt not applied. Of
    /// reads what the answer said, which means nothing.
    pub outcome: Outcome,
    /// The shard concerned; 0 = none or unknown.
    pub shard: u64,
    /// The node that leads the shard as far as the answering node knew; 0 = unknown.
    pub leader_node_id: u64,
    /// Try again not before this has passed.
    pub retry_after: Option<Duration>,
    /// The call's id in the logs of the nodes.
    pub request_id: String,
    /// The field that is wrong; empty = none in particular.
    pub field: String,
    /// The limit that was exceeded, in the unit of the field; 0 = none was.
    pub limit: u64,
    /// The configuration key that moves the limit; empty = it is fixed.
    pub config_key: String,
    /// With SESSION_EXPIRED the shard's log time; otherwise 0.
    pub log_time: u64,
}

impl Detail {
    /// What a failure says; `Failure::default()` where no node described one.
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

    /// The reason's name as in the error table, such as `NO_LEADER`; the code's name where no node
    /// gave a reason.
    #[must_use]
    pub fn reason_name(&self) -> &'static str {
        self.reason.map_or(code_name(self.code), Reason::name)
    }
}

impl Error {
    /// What is known of it.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Error::NotApplied(detail) | Error::Refused(detail) | Error::Invalid(detail) => detail,
            Error::Unknown { detail, .. } => detail,
        }
    }

    /// The node's reason; none where no node gave one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.detail().reason
    }

    /// Whether the outcome of a write is unknown.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Unknown { .. })
    }

    /// The same with what is known of the effect as a whole.
    pub(crate) fn with_outcome(mut self, outcome: Outcome) -> Error {
        match &mut self {
            Error::NotApplied(detail)
            | Error::Refused(detail)
            | Error::Invalid(detail)
            | Error::Unknown { detail, .. } => detail.outcome = outcome,
        }
        self
    }

    /// The request is wrong, found before anything was sent.
    pub(crate) fn invalid(reason: Reason, message: impl Into<String>) -> Error {
        let failure = Failure::of(reason, message);
        let message = failure.message.clone();
        Error::Invalid(Box::new(Detail::new(reason.code(), failure, message, String::new())))
    }

    /// The error of a call whose attempts changed nothing, or of a read.
    pub(crate) fn of_unchanged(detail: Detail) -> Error {
        let detail = Box::new(detail);
        match detail.code {
            // OUT_OF_RANGE is a message that the other side would not decode.
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
            // Of a status that brought no answer, this is a defect of whoever made it.
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
