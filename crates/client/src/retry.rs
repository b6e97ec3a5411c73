//! Retry policy: what follows a failed attempt. Pure, so that one test checks the whole table.

use std::time::Duration;

use quorate_proto::v1::Reason;
use rand::Rng;
use tonic::Code;

use crate::attempt::{AttemptError, Effect};

/// First wait between two attempts; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How long the first attempt is waited for before it may be given up; it doubles with each. A
/// paused node delays a call once by this time.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

/// Classes of calls by whether an attempt may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryClass {
    /// A read: may always be retried.
    Read,
    /// A write in a session: may always be retried, with the same sequence.
    Sessioned,
    /// A write without a session: may be retried only if it was certainly not applied.
    Bare,
}

/// The next step after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Return the error.
    GiveUp,
    /// Try another node immediately: this one cannot be reached, is shutting down, or cannot serve
    /// the call.
    Elsewhere,
    /// Retry after a wait.
    Wait,
    /// Fetch the map, then retry.
    RefreshMap,
    /// Retry in a new session, which is safe only while no earlier attempt may have been applied.
    NewSession,
}

/// The next step after a failed attempt of a call of this class.
pub(crate) fn next(class: RetryClass, error: &AttemptError) -> Next {
    if error.effect == Effect::Final || (error.effect == Effect::Maybe && class == RetryClass::Bare)
    {
        return Next::GiveUp;
    }
    let Some(reason) = error.reason() else {
        return next_without_reason(error);
    };
    if error.is_of_node() {
        return Next::Elsewhere;
    }
    match reason {
        Reason::Starting | Reason::Draining | Reason::StorageFailed | Reason::ReplicaDamaged => {
            Next::Elsewhere
        }
        Reason::NoLeader
        | Reason::NoQuorum
        | Reason::ReadTimeout
        | Reason::OutcomeUnknown
        | Reason::Overloaded
        | Reason::SessionsFull => Next::Wait,
        // These persist until an operator acts or the leader changes; the node says if a retry may
        // help.
        Reason::Quota | Reason::DiskFull => match error.retry_after() {
            Some(_) => Next::Wait,
            None => Next::GiveUp,
        },
        Reason::WrongShard => Next::RefreshMap,
        Reason::SessionExpired | Reason::SequencePast | Reason::SessionFromFuture
            if class == RetryClass::Sessioned =>
        {
            Next::NewSession
        }
        // Without another session, only waiting helps.
        Reason::SessionFromFuture => Next::Wait,
        Reason::SessionExpired
        | Reason::SequencePast
        | Reason::TooStale
        | Reason::TokenAhead
        | Reason::TokenForeign
        | Reason::SequenceReused
        | Reason::NotANumber
        | Reason::BadKey
        | Reason::BadValue
        | Reason::TooLarge
        | Reason::BadCondition
        | Reason::BadKeyspace
        | Reason::CrossShard
        | Reason::BadToken
        | Reason::BadPageToken
        | Reason::BadLevel
        | Reason::BadRequest
        | Reason::NotOffered
        | Reason::NotTransferred
        | Reason::Internal => Next::GiveUp,
        Reason::Unspecified => next_without_reason(error),
    }
}

/// The next step after a status that is not from a node: from the library, a proxy, or none at all.
fn next_without_reason(error: &AttemptError) -> Next {
    match error.code {
        _ if error.broken => Next::Elsewhere,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Next::Elsewhere,
        Code::Unknown | Code::Internal | Code::Aborted | Code::ResourceExhausted => Next::Wait,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => Next::GiveUp,
    }
}

/// Whether a retry after this failure is paid from the retry budget: those that load a node which
/// has too much to do, or may still be doing what was asked before. Not those that follow the
/// leader, or leave a node that cannot be reached.
pub(crate) fn costs(error: &AttemptError) -> bool {
    // The retry after silence was paid for, or was free, when the attempt was given up.
    if error.broken || error.is_silence() || error.is_of_node() {
        return false;
    }
    match error.reason() {
        Some(Reason::OutcomeUnknown) => error.code == Code::DeadlineExceeded,
        Some(reason) => {
            matches!(reason, Reason::Overloaded | Reason::SessionsFull | Reason::ReadTimeout)
        }
        None => true,
    }
}

/// Waits and patience of one call.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    waits: u32,
    attempts: u32,
}

impl Backoff {
    /// The next wait: doubled each time, drawn at random from its upper half, at least what the
    /// node asked for.
    pub fn wait(&mut self, asked: Option<Duration>) -> Duration {
        let ceiling = BACKOFF_MIN.saturating_mul(1 << self.waits.min(10)).min(BACKOFF_MAX);
        self.waits += 1;
        let drawn = ceiling.mul_f64(rand::rng().random_range(0.5..=1.0));
        drawn.max(asked.unwrap_or_default())
    }

    /// How long the next attempt is waited for before it may be given up.
    pub fn patience(&mut self) -> Duration {
        let timeout = ATTEMPT_MIN.saturating_mul(1 << self.attempts.min(10));
        self.attempts += 1;
        timeout
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::reason::REASONS;
    use quorate_proto::v1::Failure;
    use tonic::Status;

    use super::*;

    fn of_reason(reason: Reason) -> AttemptError {
        let failure = Failure::of(reason, "");
        let details = failure.to_details("");
        AttemptError::of_status(&Status::with_details(reason.code(), "", details))
    }

    #[test]
    fn every_reason_has_its_next_step_for_each_class() {
        for row in &REASONS {
            let (read, sessioned, bare) = match row.reason {
                Reason::Starting
                | Reason::Draining
                | Reason::StorageFailed
                | Reason::ReplicaDamaged => (Next::Elsewhere, Next::Elsewhere, Next::Elsewhere),
                Reason::NoLeader
                | Reason::NoQuorum
                | Reason::ReadTimeout
                | Reason::Overloaded
                | Reason::SessionsFull => (Next::Wait, Next::Wait, Next::Wait),
                Reason::SessionFromFuture => (Next::Wait, Next::NewSession, Next::Wait),
                Reason::OutcomeUnknown => (Next::Wait, Next::Wait, Next::GiveUp),
                Reason::WrongShard => (Next::RefreshMap, Next::RefreshMap, Next::RefreshMap),
                Reason::SessionExpired | Reason::SequencePast => {
                    (Next::GiveUp, Next::NewSession, Next::GiveUp)
                }
                _ => (Next::GiveUp, Next::GiveUp, Next::GiveUp),
            };
            let error = of_reason(row.reason);
            let all = [RetryClass::Read, RetryClass::Sessioned, RetryClass::Bare]
                .map(|class| next(class, &error));
            assert_eq!(all, [read, sessioned, bare], "{:?}", row.reason);
        }
    }

    #[test]
    fn a_failure_of_one_node_only_is_retried_at_another() {
        let failure = Failure { only_this_node: true, ..Failure::of(Reason::Overloaded, "") };
        let status = Status::with_details(Reason::Overloaded.code(), "", failure.to_details(""));
        let error = AttemptError::of_status(&status);
        for class in [RetryClass::Read, RetryClass::Sessioned, RetryClass::Bare] {
            assert_eq!(next(class, &error), Next::Elsewhere);
        }
    }

    #[test]
    fn a_full_disk_is_retried_only_after_the_delay_that_the_node_gives() {
        for reason in [Reason::Quota, Reason::DiskFull] {
            let failure = Failure {
                retry_after: Some(Duration::from_secs(1).try_into().unwrap()),
                ..Failure::of(reason, "")
            };
            let status = Status::with_details(reason.code(), "", failure.to_details(""));
            assert_eq!(next(RetryClass::Bare, &AttemptError::of_status(&status)), Next::Wait);
            assert_eq!(next(RetryClass::Bare, &of_reason(reason)), Next::GiveUp);
        }
    }

    #[test]
    fn a_write_that_may_have_been_applied_is_retried_only_in_a_session() {
        let silent = AttemptError::silent("a:1", Duration::from_secs(1));
        assert_eq!(next(RetryClass::Sessioned, &silent), Next::Elsewhere);
        assert_eq!(next(RetryClass::Read, &silent), Next::Elsewhere);
        assert_eq!(next(RetryClass::Bare, &silent), Next::GiveUp);
        let unreachable = AttemptError::unreachable(String::new());
        assert_eq!(next(RetryClass::Bare, &unreachable), Next::Elsewhere);
    }

    #[test]
    fn the_budget_pays_for_retries_that_add_to_an_overload() {
        let paid = [Reason::Overloaded, Reason::SessionsFull, Reason::ReadTimeout];
        for row in &REASONS {
            // A leader that stepped down leaves outcomes unknown without any overload.
            assert_eq!(costs(&of_reason(row.reason)), paid.contains(&row.reason), "{row:?}");
        }
        let late = Failure::of(Reason::OutcomeUnknown, "").to_details("");
        let late = Status::with_details(Code::DeadlineExceeded, "", late);
        assert!(costs(&AttemptError::of_status(&late)));
        assert!(costs(&AttemptError::of_status(&Status::resource_exhausted("of a proxy"))));
        assert!(!costs(&AttemptError::unreachable(String::new())));
        assert!(!costs(&AttemptError::silent("a:1", Duration::from_secs(1))));
    }

    #[test]
    fn waits_double_up_to_a_bound_and_are_at_least_what_the_node_asks() {
        let mut backoff = Backoff::default();
        let mut ceiling = BACKOFF_MIN;
        for _ in 0..20 {
            let wait = backoff.wait(None);
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} of {ceiling:?}");
            ceiling = (ceiling * 2).min(BACKOFF_MAX);
        }
        let asked = Duration::from_secs(3);
        assert_eq!(backoff.wait(Some(asked)), asked);
        assert_eq!(backoff.patience(), ATTEMPT_MIN);
        assert_eq!(backoff.patience(), ATTEMPT_MIN * 2);
    }
}
