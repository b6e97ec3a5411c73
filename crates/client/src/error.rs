//! What a call can fail with, told apart by what is known of its effect.

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::limits::SESSION_ID_BYTES;
use quorate_proto::v1::{Failure, Outcome, Reason};
use tonic::{Code, Status};

/// Why a call gave no answer. An absent key and a false condition are answers, not errors.
#[derive(Clone, Debug)]
pub enum Error {
    /// It could not be done now, and certainly was not: no leader, no node reached, overload, or a read
    /// that ran out of time. Trying again later is safe. Never said of a write that an earlier call has
    /// sent with the same [`WriteId`]: that one stays unknown.
    NotApplied(Box<Detail>),
    /// A write may have been applied, or may still be. Ask again with [`WriteId`], which is safe at any
    /// time within the session's life, or settle it with [`Client::cancel`](crate::Client::cancel).
    Unknown {
        /// What was last heard.
        detail: Box<Detail>,
        /// The write's identity; none for a write that was sent without a session.
        write: Option<WriteId>,
    },
    /// The cluster does not do this as things stand: a precondition, a feature that is not offered, a
    /// damaged replica. Nothing was changed.
    Refused(Box<Detail>),
    /// The request is wrong in itself; sent again it fails again. It changed nothing; of an earlier call
    /// with the same [`WriteId`] this says nothing.
    Invalid(Box<Detail>),
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The identity of a write: sent again with the same one, it is applied once all the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WriteId {
    /// The session's id.
    pub session: Bytes,
    /// The write's number in the session, from 1 on.
    pub sequence: u64,
}

/// Where a write under way leaves its identity; empty until it may be out: until it is about to be sent,
/// unless an earlier call has sent it.
#[derive(Clone, Debug, Default)]
pub struct IdentitySlot(Arc<Mutex<Option<WriteId>>>);

impl IdentitySlot {
    /// The identity that the write was last sent with, or was given; none while it is certainly not out.
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

impl StdError for InvalidWriteId {}

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

/// What is known of a failure.
#[derive(Clone, Debug)]
pub struct Detail {
    /// The gRPC code's name, such as `UNAVAILABLE`.
    pub code: &'static str,
    /// The node's reason; none where no node answered.
    pub reason: Option<Reason>,
    /// A sentence for people.
    pub message: String,
    /// What is known of the effect of a write: not applied, unknown, or, where the request was invalid and
    /// an earlier call may have sent the same [`WriteId`], this attempt not applied. Of reads what the
    /// answer said, which means nothing.
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
    /// The reason's name as in the error table, such as `NO_LEADER`; the code's name where no node gave
    /// a reason.
    #[must_use]
    pub fn reason_name(&self) -> &'static str {
        self.reason.map_or(self.code, Reason::name)
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
        Error::Invalid(Box::new(AttemptError::local(reason, message).detail("")))
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

/// An attempt that brought no answer, read from a status or made here.
#[derive(Clone, Debug)]
pub(crate) struct AttemptError {
    pub code: Code,
    /// What the node said; none where the status is the library's, a proxy's, or ours.
    pub failure: Option<Failure>,
    pub message: String,
    pub request_id: String,
    pub effect: Effect,
    /// The connection itself failed; nothing else will come over it.
    pub broken: bool,
}

/// What an attempt may have done, as far as it alone can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing, now and later.
    None,
    /// Perhaps what was asked, perhaps later.
    Maybe,
    /// Nothing, and no other attempt of the same write ever will either.
    Final,
}

impl AttemptError {
    /// Reads a status.
    pub fn of_status(status: &Status) -> AttemptError {
        if let Some((failure, request_id)) = Failure::from_details(status.details()) {
            let message = match failure.message.as_str() {
                "" => status.message().to_owned(),
                message => message.to_owned(),
            };
            return AttemptError {
                code: status.code(),
                effect: effect_of(&failure),
                message,
                request_id,
                failure: Some(failure),
                broken: false,
            };
        }
        // The library's own timer for the header we sent: the node was silent, the connection is well.
        if has_source::<tonic::TimeoutExpired>(status) {
            return AttemptError {
                code: Code::DeadlineExceeded,
                message: "the node took the request and did not answer in time".into(),
                ..AttemptError::plain(status, Effect::Maybe, false)
            };
        }
        let broken = StdError::source(status).is_some();
        let effect = match status.code() {
            _ if has_source::<tonic::ConnectError>(status) || was_never_sent(status) => {
                Effect::None
            }
            // The library refuses these before a handler sees the request.
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated
            | Code::PermissionDenied
                if !broken =>
            {
                Effect::None
            }
            _ => Effect::Maybe,
        };
        AttemptError::plain(status, effect, broken)
    }

    fn plain(status: &Status, effect: Effect, broken: bool) -> AttemptError {
        AttemptError {
            code: status.code(),
            failure: None,
            message: sentence(status),
            request_id: String::new(),
            effect,
            broken,
        }
    }

    /// A failure found on this side, before anything was sent.
    pub fn local(reason: Reason, message: impl Into<String>) -> AttemptError {
        let failure = Failure::of(reason, message);
        AttemptError {
            code: reason.code(),
            message: failure.message.clone(),
            failure: Some(failure),
            request_id: String::new(),
            effect: Effect::None,
            broken: false,
        }
    }

    /// No connection could be had.
    pub fn unreachable(message: String) -> AttemptError {
        AttemptError {
            code: Code::Unavailable,
            failure: None,
            message,
            request_id: String::new(),
            effect: Effect::None,
            broken: true,
        }
    }

    /// A node took the request and was silent for too long.
    pub fn silent(address: &str, waited: Duration) -> AttemptError {
        AttemptError {
            code: Code::DeadlineExceeded,
            failure: None,
            message: format!("{address} did not answer within {waited:.1?}"),
            request_id: String::new(),
            effect: Effect::Maybe,
            broken: false,
        }
    }

    /// Nobody answered in time, as far as a timer of the library or of this crate can tell.
    pub fn silence(&self) -> bool {
        matches!(self.code, Code::DeadlineExceeded | Code::Cancelled)
            && self.failure.is_none()
            && !self.broken
    }

    /// The cause is the node that answered, and another one may do the same.
    pub fn is_of_node(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.only_this_node)
    }

    /// The request is wrong in itself, as [`Error::Invalid`] says.
    pub fn is_invalid(&self) -> bool {
        matches!(self.code, Code::InvalidArgument | Code::OutOfRange)
    }

    pub fn reason(&self) -> Option<Reason> {
        let reason = self.failure.as_ref()?.reason();
        (reason != Reason::Unspecified).then_some(reason)
    }

    /// How long the node asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let delay = self.failure.as_ref()?.retry_after?;
        Duration::try_from(delay).ok()
    }

    pub fn detail(self, request_id: &str) -> Detail {
        let retry_after = self.retry_after();
        let reason = self.reason();
        let failure = self.failure.unwrap_or_default();
        Detail {
            code: code_name(self.code),
            reason,
            message: self.message,
            outcome: failure.outcome(),
            shard: failure.shard,
            leader_node_id: failure.leader_node_id,
            retry_after,
            request_id: match self.request_id.as_str() {
                "" => request_id.to_owned(),
                _ => self.request_id,
            },
            field: failure.field,
            limit: failure.limit,
            config_key: failure.config_key,
            log_time: failure.log_time,
        }
    }

    /// The error of a call whose attempts changed nothing, or of a read.
    pub fn into_error(self, request_id: &str) -> Error {
        let (code, is_invalid) = (self.code, self.is_invalid());
        let detail = Box::new(self.detail(request_id));
        match code {
            _ if is_invalid => Error::Invalid(detail),
            Code::FailedPrecondition
            | Code::Unimplemented
            | Code::DataLoss
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::AlreadyExists => Error::Refused(detail),
            _ => Error::NotApplied(detail),
        }
    }
}

/// What a failure that a node described says of this attempt.
fn effect_of(failure: &Failure) -> Effect {
    if failure.is_remembered() {
        return Effect::Final;
    }
    match failure.outcome() {
        Outcome::NotApplied | Outcome::AttemptNotApplied => Effect::None,
        Outcome::Unknown => Effect::Maybe,
        // Reads say nothing of an effect, and a newer node may use a number that is unknown here.
        Outcome::Unspecified => match failure.outcome {
            0 if failure.reason().row().is_some_and(is_of_reads) => Effect::None,
            _ => Effect::Maybe,
        },
    }
}

fn is_of_reads(row: &quorate_proto::reason::ReasonRow) -> bool {
    row.outcome == Outcome::Unspecified
}

/// Whether an error of this type is among the causes of a status.
fn has_source<E: StdError + 'static>(status: &Status) -> bool {
    source_of::<E>(status).is_some()
}

/// The request was still queued when its connection ended, as when a node goes down in order.
fn was_never_sent(status: &Status) -> bool {
    source_of::<hyper::Error>(status).is_some_and(hyper::Error::is_canceled)
}

fn source_of<E: StdError + 'static>(status: &Status) -> Option<&E> {
    let mut source = StdError::source(status);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// How the library begins its message on an answer that is no gRPC.
const NOT_GRPC: &str = "grpc-status header missing";

/// The status's message and the last of its causes, which is the one that says something.
fn sentence(status: &Status) -> String {
    if status.message().starts_with(NOT_GRPC) {
        let http = status.message().rsplit(' ').next().unwrap_or_default();
        return format!(
            "the answer is not gRPC (HTTP status {http}): this is not the port that Quorate's clients \
             connect to"
        );
    }
    let mut last = None;
    let mut source = StdError::source(status);
    while let Some(error) = source {
        last = Some(error);
        source = error.source();
    }
    match last {
        // Some statuses have their cause's own words for a message.
        Some(cause) if !cause.to_string().ends_with(status.message()) => {
            format!("{}: {cause}", status.message())
        }
        Some(cause) => cause.to_string(),
        None => status.message().to_owned(),
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(failure: &Failure) -> AttemptError {
        let details = failure.to_details("r-1");
        AttemptError::of_status(&Status::with_details(Code::from(failure.code), "", details))
    }

    #[test]
    fn a_described_failure_is_taken_at_its_word() {
        for row in &quorate_proto::reason::REASONS {
            let lost = of(&Failure::of(row.reason, "why"));
            let expected = match row.outcome {
                Outcome::Unknown => Effect::Maybe,
                _ if row.reason == Reason::NotANumber => Effect::Final,
                _ => Effect::None,
            };
            assert_eq!(lost.effect, expected, "{:?}", row.reason);
            assert_eq!(lost.reason(), Some(row.reason));
            assert!(!lost.broken);
            let detail = lost.detail("own");
            assert_eq!((detail.message.as_str(), detail.request_id.as_str()), ("why", "r-1"));
            assert_eq!(detail.reason_name(), row.reason.name());
        }
    }

    #[test]
    fn what_a_session_remembers_as_refused_is_final() {
        let barred = Failure {
            outcome: Outcome::NotApplied as i32,
            ..Failure::of(Reason::SequencePast, "barred")
        };
        assert_eq!(of(&barred).effect, Effect::Final);
        assert_eq!(of(&Failure::of(Reason::SequencePast, "past")).effect, Effect::None);
        let refused = Failure {
            outcome: Outcome::NotApplied as i32,
            ..Failure::of(Reason::NotANumber, "no number")
        };
        assert_eq!(of(&refused).effect, Effect::Final);
    }

    #[test]
    fn numbers_of_a_newer_node_are_unknown_unless_it_says_otherwise() {
        let newer = Failure {
            code: Code::Unavailable as i32,
            reason: 9_999,
            outcome: Outcome::NotApplied as i32,
            ..Failure::default()
        };
        assert_eq!(of(&newer).effect, Effect::None);
        assert_eq!(of(&newer).reason(), None);
        let outcome = Failure { outcome: 9_999, ..newer };
        assert_eq!(of(&outcome).effect, Effect::Maybe);
    }

    #[test]
    fn only_a_connection_that_was_not_made_proves_that_nothing_was_sent() {
        let refused = tonic::ConnectError("connection refused".into());
        let lost = AttemptError::of_status(&Status::from_error(Box::new(refused)));
        assert_eq!((lost.effect, lost.broken), (Effect::None, true));
        assert!(lost.message.contains("connection refused"), "{}", lost.message);
        let expired = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        let lost = AttemptError::of_status(&expired);
        assert_eq!((lost.effect, lost.broken), (Effect::Maybe, false));
        assert_eq!(lost.code, Code::DeadlineExceeded);
        assert_eq!(lost.message, "the node took the request and did not answer in time");
        let other =
            Status::unimplemented("grpc-status header missing, mapped from HTTP status code 404");
        let message = AttemptError::of_status(&other).message;
        assert!(message.starts_with("the answer is not gRPC (HTTP status 404): "), "{message}");
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let lost = AttemptError::of_status(&Status::from_error(Box::new(reset)));
        assert_eq!((lost.effect, lost.broken), (Effect::Maybe, true));
        assert_eq!(lost.message, "connection reset", "the cause is named once");
    }

    #[test]
    fn errors_say_what_is_known_in_one_line() {
        let error = of(&Failure::of(Reason::NoLeader, "shard 3 has no leader")).into_error("");
        assert_eq!(error.to_string(), "not done: shard 3 has no leader (NO_LEADER)");
        let error = AttemptError::unreachable("a:1 cannot be reached".into()).into_error("");
        assert_eq!(error.to_string(), "not done: a:1 cannot be reached (UNAVAILABLE)");
    }
}
