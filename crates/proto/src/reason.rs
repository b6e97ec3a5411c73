//! Error table: the code and outcome of each reason.

use tonic::Code;

use crate::v1::{Outcome, Reason};

/// One row of the error table.
#[derive(Clone, Copy, Debug)]
pub struct ReasonRow {
    /// The reason.
    pub reason: Reason,
    /// The gRPC code of the status. For OUTCOME_UNKNOWN it is DEADLINE_EXCEEDED instead when the
    /// deadline is past.
    pub code: Code,
    /// The known effect of a write without a session that fails for this reason; unspecified where
    /// only reads do. For a write with a session, "not applied" means this attempt, unless the
    /// session remembers the answer: [`Failure::is_remembered`](crate::v1::Failure::is_remembered).
    pub outcome: Outcome,
}

const fn row(reason: Reason, code: Code, outcome: Outcome) -> ReasonRow {
    ReasonRow { reason, code, outcome }
}

/// The error table, in the order of the reasons' numbers.
///
/// An unknown outcome is never UNAVAILABLE: clients and service meshes retry that by themselves.
pub const REASONS: [ReasonRow; 34] = [
    row(Reason::NoLeader, Code::Unavailable, Outcome::NotApplied),
    row(Reason::NoQuorum, Code::Unavailable, Outcome::NotApplied),
    row(Reason::Starting, Code::Unavailable, Outcome::NotApplied),
    row(Reason::Draining, Code::Unavailable, Outcome::NotApplied),
    row(Reason::ReadTimeout, Code::DeadlineExceeded, Outcome::Unspecified),
    row(Reason::OutcomeUnknown, Code::Unknown, Outcome::Unknown),
    row(Reason::Overloaded, Code::ResourceExhausted, Outcome::NotApplied),
    row(Reason::Quota, Code::ResourceExhausted, Outcome::NotApplied),
    row(Reason::DiskFull, Code::ResourceExhausted, Outcome::NotApplied),
    row(Reason::SessionsFull, Code::ResourceExhausted, Outcome::NotApplied),
    row(Reason::TooStale, Code::FailedPrecondition, Outcome::Unspecified),
    row(Reason::TokenAhead, Code::FailedPrecondition, Outcome::Unspecified),
    row(Reason::WrongShard, Code::FailedPrecondition, Outcome::NotApplied),
    row(Reason::TokenForeign, Code::FailedPrecondition, Outcome::NotApplied),
    row(Reason::SessionExpired, Code::FailedPrecondition, Outcome::AttemptNotApplied),
    row(Reason::SequencePast, Code::FailedPrecondition, Outcome::AttemptNotApplied),
    row(Reason::SessionFromFuture, Code::FailedPrecondition, Outcome::NotApplied),
    row(Reason::SequenceReused, Code::InvalidArgument, Outcome::AttemptNotApplied),
    row(Reason::NotANumber, Code::FailedPrecondition, Outcome::NotApplied),
    row(Reason::BadKey, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::BadValue, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::TooLarge, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::BadCondition, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::BadKeyspace, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::CrossShard, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::BadToken, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::BadPageToken, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::BadLevel, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::NotOffered, Code::Unimplemented, Outcome::NotApplied),
    row(Reason::ReplicaDamaged, Code::DataLoss, Outcome::Unspecified),
    row(Reason::BadRequest, Code::InvalidArgument, Outcome::NotApplied),
    row(Reason::Internal, Code::Internal, Outcome::NotApplied),
    row(Reason::StorageFailed, Code::Unavailable, Outcome::NotApplied),
    row(Reason::NotTransferred, Code::Unavailable, Outcome::NotApplied),
];

impl Reason {
    /// The name as in `ErrorInfo.reason` and in messages, such as `NO_LEADER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix("REASON_").unwrap_or(name)
    }

    /// The gRPC code of the status; UNKNOWN for a reason that is not in the table.
    #[must_use]
    pub fn code(self) -> Code {
        self.row().map_or(Code::Unknown, |r| r.code)
    }

    /// The known effect of a write without a session that fails for this reason; UNKNOWN for a
    /// reason that is not in the table.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        self.row().map_or(Outcome::Unknown, |r| r.outcome)
    }

    /// This reason's row; `None` for UNSPECIFIED.
    #[must_use]
    pub fn row(self) -> Option<&'static ReasonRow> {
        let i = (self as usize).checked_sub(1)?;
        REASONS.get(i)
    }
}

impl Outcome {
    /// The name without its prefix, such as `NOT_APPLIED`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix("OUTCOME_").unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_row_in_the_order_of_numbers() {
        for (i, row) in REASONS.iter().enumerate() {
            assert_eq!(row.reason as usize, i + 1);
            assert_eq!(format!("REASON_{}", row.reason.name()), row.reason.as_str_name());
            assert_eq!(row.reason.code(), row.code);
        }
        let beyond = i32::try_from(REASONS.len()).unwrap() + 1;
        assert!(Reason::try_from(beyond).is_err(), "a reason is missing in the table");
        assert_eq!(Reason::Unspecified.outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_code_that_meshes_retry_never_has_an_unknown_outcome() {
        for row in &REASONS {
            if row.code == Code::Unavailable || row.code == Code::ResourceExhausted {
                assert_eq!(row.outcome, Outcome::NotApplied, "{:?}", row.reason);
            }
        }
    }
}
