//! The outcome that a failed call reports to its caller. All failures of the services pass through
//! here, so that no place that refuses a write has to think of sessions.
//!
//! A write with a session may be sent again with the same sequence, and of an earlier attempt the
//! node that refuses this one knows nothing: it may be applied, or be on its way. So a refusal says
//! "not applied" of such a write only where the session itself remembers it; otherwise it speaks of
//! this attempt alone. A write without a session has one attempt, and what is true of that is true
//! of it.

use prost::Message;
use quorate_proto::v1::{
    BatchRequest, CancelRequest, CompareAndSetRequest, DeleteRequest, Failure, Feature,
    GetInfoRequest, GetMapRequest, GetRequest, GetStatusRequest, IncrementRequest, MultiGetRequest,
    OpenSessionRequest, Outcome, PipelineRequest, PutRequest, Reason, ScanRequest,
    TransferLeaderRequest, WriteSession,
};
use tonic::Streaming;

/// The subject of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Nothing: the call changes nothing.
    Read,
    /// A write that is sent once.
    Write,
    /// One attempt of a write that may be sent more than once, or a question about such a write.
    Attempt,
}

impl Subject {
    /// The failure as it is reported to the caller.
    #[must_use]
    pub fn report(self, failure: Failure) -> Failure {
        let outcome = match (self, failure.outcome()) {
            (Subject::Attempt, Outcome::NotApplied) if !failure.is_remembered() => {
                Outcome::AttemptNotApplied
            }
            (Subject::Write, Outcome::AttemptNotApplied) => Outcome::NotApplied,
            (Subject::Read, _) => Outcome::Unspecified,
            _ => return failure,
        };
        Failure { outcome: outcome as i32, ..failure }
    }
}

/// A request that knows the subject of its outcome.
pub trait HasOutcome {
    /// The subject of this call's outcome.
    fn subject(&self) -> Subject;

    /// The bytes that the node holds of the request until it is answered; those of calls that carry
    /// neither values nor many keys are not counted.
    fn bytes(&self) -> u64 {
        0
    }

    /// The features without which it must not be carried out.
    fn required_features(&self) -> &[u32];
}

/// Whether this node has all required features.
///
/// # Errors
/// NOT_OFFERED with the first one that it lacks.
pub fn check_features(required: &[u32]) -> Result<(), Failure> {
    let Some((number, feature)) = Feature::first_lacking(required) else { return Ok(()) };
    let name = feature.map_or_else(String::new, |feature| format!(" ({})", feature.name()));
    let message = format!("the request requires feature {number}{name}, which this node lacks");
    Err(Failure {
        field: "required_features".to_owned(),
        ..Failure::of(Reason::NotOffered, message)
    })
}

fn of_write(session: Option<&WriteSession>) -> Subject {
    if session.is_some() { Subject::Attempt } else { Subject::Write }
}

macro_rules! has_outcome {
    ($($request:ty => |$it:ident| $subject:expr $(, bytes $bytes:ident)?;)*) => {$(
        impl HasOutcome for $request {
            fn subject(&self) -> Subject {
                let $it = self;
                $subject
            }

            $(fn bytes(&self) -> u64 {
                self.$bytes() as u64
            })?

            fn required_features(&self) -> &[u32] {
                &self.required_features
            }
        }
    )*};
}

has_outcome! {
    GetRequest => |_read| Subject::Read;
    ScanRequest => |_read| Subject::Read;
    OpenSessionRequest => |_read| Subject::Read;
    MultiGetRequest => |_read| Subject::Read, bytes encoded_len;
    GetInfoRequest => |_read| Subject::Read;
    GetMapRequest => |_read| Subject::Read;
    GetStatusRequest => |_read| Subject::Read;
    TransferLeaderRequest => |_change| Subject::Read;
    PutRequest => |write| of_write(write.session.as_ref()), bytes encoded_len;
    DeleteRequest => |write| of_write(write.session.as_ref()), bytes encoded_len;
    CompareAndSetRequest => |write| of_write(write.session.as_ref()), bytes encoded_len;
    IncrementRequest => |write| of_write(write.session.as_ref()), bytes encoded_len;
    BatchRequest => |write| of_write(write.session.as_ref()), bytes encoded_len;
    // It asks about a write of a session, and its failure answers nothing.
    CancelRequest => |_question| Subject::Attempt;
}

/// Its operations come later, each with a subject and features of its own.
impl HasOutcome for Streaming<PipelineRequest> {
    fn subject(&self) -> Subject {
        Subject::Attempt
    }

    fn required_features(&self) -> &[u32] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::reason::REASONS;

    use super::*;

    /// Every reason of the error table: no write of a session is called "not applied" unless the
    /// session remembers it, and a write without one is never left half said.
    #[test]
    fn an_attempt_is_not_the_write() {
        let said = |subject: Subject, failure: &Failure| subject.report(failure.clone()).outcome();
        for row in &REASONS {
            let failure = Failure::of(row.reason, "why");
            let of_attempt = match row.outcome {
                Outcome::NotApplied if row.reason != Reason::NotANumber => {
                    Outcome::AttemptNotApplied
                }
                outcome => outcome,
            };
            let of_write = match row.outcome {
                Outcome::AttemptNotApplied => Outcome::NotApplied,
                outcome => outcome,
            };
            assert_eq!(said(Subject::Attempt, &failure), of_attempt, "{:?}", row.reason);
            assert_eq!(said(Subject::Write, &failure), of_write, "{:?}", row.reason);
            assert_eq!(said(Subject::Read, &failure), Outcome::Unspecified, "{:?}", row.reason);
        }
        let barred = Failure {
            outcome: Outcome::NotApplied as i32,
            ..Failure::of(Reason::SequencePast, "barred by Cancel")
        };
        assert_eq!(said(Subject::Attempt, &barred), Outcome::NotApplied);
    }
}
