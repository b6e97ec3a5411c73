//! Errors of single attempts: what a failed attempt may have done, and the error of its call.

use std::error::Error as StdError;
use std::time::Duration;

use quorate_proto::sent::never_left;
use quorate_proto::v1::{Failure, Outcome, Reason};
use tonic::{Code, Status};

use crate::error::{Detail, Error};

/// The error of one attempt, read from a gRPC status or found by this client.
#[derive(Clone, Debug)]
pub(crate) struct AttemptError {
    pub code: Code,
    /// The failure that the node described; none if the status is from the library, a proxy, or
    /// this client.
    pub failure: Option<Failure>,
    pub message: String,
    pub request_id: String,
    pub effect: Effect,
    /// The connection itself failed and cannot be used again.
    pub broken: bool,
}

/// The effect of one attempt, without regard to other attempts of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Not applied, and it never will be.
    None,
    /// Possibly applied, now or later.
    Maybe,
    /// Not applied, and no other attempt of the same write ever will be.
    Final,
}

impl AttemptError {
    /// Reads a gRPC status.
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
        // The library's own timer for the timeout header: the node did not answer, but the
        // connection is intact.
        if has_source::<tonic::TimeoutExpired>(status) {
            return AttemptError {
                code: Code::DeadlineExceeded,
                message: "the node accepted the request and did not answer in time".into(),
                ..AttemptError::plain(status, Effect::Maybe, false)
            };
        }
        let broken = StdError::source(status).is_some();
        let effect = match never_left(status) || (!broken && is_before_any_handler(status.code())) {
            true => Effect::None,
            false => Effect::Maybe,
        };
        AttemptError::plain(status, effect, broken)
    }

    /// Reads the failure of an operation in a stream.
    pub fn of_failure(failure: Failure, request_id: &str) -> AttemptError {
        AttemptError {
            code: Code::from(failure.code),
            effect: effect_of(&failure),
            message: failure.message.clone(),
            request_id: request_id.to_owned(),
            failure: Some(failure),
            broken: false,
        }
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

    /// A failure found by this client, before anything was sent.
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

    /// The error of a connection that could not be made.
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

    /// The error of a node that accepted the request and did not answer in time.
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

    /// Whether a timer of the library or of this crate expired without an answer.
    pub fn is_silence(&self) -> bool {
        matches!(self.code, Code::DeadlineExceeded | Code::Cancelled)
            && self.failure.is_none()
            && !self.broken
    }

    /// Whether the cause is specific to the node that answered, so that another node may succeed.
    pub fn is_of_node(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.only_this_node)
    }

    /// Whether the request itself is invalid, see [`Error::Invalid`].
    pub fn is_invalid(&self) -> bool {
        matches!(self.code, Code::InvalidArgument | Code::OutOfRange)
    }

    pub fn reason(&self) -> Option<Reason> {
        let reason = self.failure.as_ref()?.reason();
        (reason != Reason::Unspecified).then_some(reason)
    }

    /// The delay that the node asks for before a retry.
    pub fn retry_after(&self) -> Option<Duration> {
        let delay = self.failure.as_ref()?.retry_after?;
        Duration::try_from(delay).ok()
    }

    /// The detail of the failure. `request_id` is the call's, for an error without one from the
    /// node.
    pub fn detail(self, request_id: &str) -> Detail {
        let request_id = match self.request_id.as_str() {
            "" => request_id.to_owned(),
            _ => self.request_id,
        };
        Detail::new(self.code, self.failure.unwrap_or_default(), self.message, request_id)
    }

    /// The error of a call whose attempts changed nothing, or of a read.
    pub fn into_error(self, request_id: &str) -> Error {
        Error::of_unchanged(self.detail(request_id))
    }
}

/// Whether a status with this code that is not from a node means that no handler saw the request.
fn is_before_any_handler(code: Code) -> bool {
    match code {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated
        | Code::PermissionDenied => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => false,
    }
}

/// The effect of an attempt with a failure that a node described.
fn effect_of(failure: &Failure) -> Effect {
    if failure.is_remembered() {
        return Effect::Final;
    }
    match failure.outcome() {
        Outcome::NotApplied | Outcome::AttemptNotApplied => Effect::None,
        Outcome::Unknown => Effect::Maybe,
        // Reads have no effect; a newer node may use a number that is unknown here.
        Outcome::Unspecified => match failure.outcome {
            0 if failure.reason().row().is_some_and(is_of_reads) => Effect::None,
            _ => Effect::Maybe,
        },
    }
}

fn is_of_reads(row: &quorate_proto::reason::ReasonRow) -> bool {
    row.outcome == Outcome::Unspecified
}

/// Whether a status has a cause of this type.
fn has_source<E: StdError + 'static>(status: &Status) -> bool {
    let mut source = StdError::source(status);
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Beginning of the library's message about an answer that is not gRPC.
const NOT_GRPC: &str = "grpc-status header missing";

/// The message of a status with its root cause, which is the most specific one.
fn sentence(status: &Status) -> String {
    if status.message().starts_with(NOT_GRPC) {
        let http = status.message().rsplit(' ').next().unwrap_or_default();
        return format!(
            "the answer is not gRPC (HTTP status {http}): this is not the port for clients of \
             Quorate"
        );
    }
    let mut last = None;
    let mut source = StdError::source(status);
    while let Some(error) = source {
        last = Some(error);
        source = error.source();
    }
    match last {
        // The message of some statuses is that of their cause.
        Some(cause) if !cause.to_string().ends_with(status.message()) => {
            format!("{}: {cause}", status.message())
        }
        Some(cause) => cause.to_string(),
        None => status.message().to_owned(),
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
    fn the_effect_of_a_described_failure_follows_from_its_outcome() {
        for row in &quorate_proto::reason::REASONS {
            let error = of(&Failure::of(row.reason, "why"));
            let expected = match row.outcome {
                Outcome::Unknown => Effect::Maybe,
                _ if row.reason == Reason::NotANumber => Effect::Final,
                _ => Effect::None,
            };
            assert_eq!(error.effect, expected, "{:?}", row.reason);
            assert_eq!(error.reason(), Some(row.reason));
            assert!(!error.broken);
            let detail = error.detail("own");
            assert_eq!((detail.message.as_str(), detail.request_id.as_str()), ("why", "r-1"));
            assert_eq!(detail.reason_name(), row.reason.name());
        }
    }

    #[test]
    fn a_rejection_that_the_session_stored_is_final() {
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
    fn an_unknown_reason_keeps_its_outcome_and_an_unknown_outcome_may_be_applied() {
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
        let error = AttemptError::of_status(&Status::from_error(Box::new(refused)));
        assert_eq!((error.effect, error.broken), (Effect::None, true));
        assert!(error.message.contains("connection refused"), "{}", error.message);
        let expired = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        let error = AttemptError::of_status(&expired);
        assert_eq!((error.effect, error.broken), (Effect::Maybe, false));
        assert_eq!(error.code, Code::DeadlineExceeded);
        assert_eq!(error.message, "the node accepted the request and did not answer in time");
        let other =
            Status::unimplemented("grpc-status header missing, mapped from HTTP status code 404");
        let message = AttemptError::of_status(&other).message;
        assert!(message.starts_with("the answer is not gRPC (HTTP status 404): "), "{message}");
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = AttemptError::of_status(&Status::from_error(Box::new(reset)));
        assert_eq!((error.effect, error.broken), (Effect::Maybe, true));
        assert_eq!(error.message, "connection reset", "the cause is named once");
    }

    #[test]
    fn an_error_is_one_line_with_its_reason() {
        let error = of(&Failure::of(Reason::NoLeader, "shard 3 has no leader")).into_error("");
        assert_eq!(error.to_string(), "not done: shard 3 has no leader (NO_LEADER)");
        let error = AttemptError::unreachable("a:1 cannot be reached".into()).into_error("");
        assert_eq!(error.to_string(), "not done: a:1 cannot be reached (UNAVAILABLE)");
    }
}
