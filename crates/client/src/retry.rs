//! What follows an attempt without an answer. Pure, so that the whole table is tested as one.

use std::time::Duration;

use quorate_proto::v1::Reason;
use rand::Rng;
use tonic::Code;

use crate::attempt::{AttemptError, Effect};

/// The first wait between two attempts; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// The patience of the first attempt; it doubles with each. A node that is paused costs so much once.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

/// How an attempt may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryClass {
    /// Changes nothing: always.
    Read,
    /// A write in a session: always, with the same sequence.
    Sessioned,
    /// A write without: only what certainly was not applied.
    Bare,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is final.
    GiveUp,
    /// Try another node at once; this one cannot be reached, is leaving, or is not what was asked for.
    Elsewhere,
    /// Try again after a wait.
    Wait,
    /// Fetch the map again, then try again.
    RefreshMap,
    /// Take a new session, which is safe only while no earlier attempt may have been applied.
    NewSession,
}

/// What follows a lost attempt.
pub(crate) fn next(class: RetryClass, lost: &AttemptError) -> Next {
    if lost.effect == Effect::Final || (lost.effect == Effect::Maybe && class == RetryClass::Bare) {
        return Next::GiveUp;
    }
    let Some(reason) = lost.reason() else {
        return next_without_reason(lost);
    };
    if lost.is_of_node() {
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
        // They pass only when somebody acts, or when leadership moves; the node says when it is worth it.
        Reason::Quota | Reason::DiskFull => match lost.retry_after() {
            Some(_) => Next::Wait,
            None => Next::GiveUp,
        },
        Reason::WrongShard => Next::RefreshMap,
        Reason::SessionExpired | Reason::SequencePast | Reason::SessionFromFuture
            if class == RetryClass::Sessioned =>
        {
            Next::NewSession
        }
        // Without another session all that helps is time.
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
        | Reason::Internal => Next::GiveUp,
        Reason::Unspecified => next_without_reason(lost),
    }
}

/// A status that no node of ours made: the library's, a proxy's, or none at all.
fn next_without_reason(lost: &AttemptError) -> Next {
    match lost.code {
        _ if lost.broken => Next::Elsewhere,
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

/// The waits of one call.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    waits: u32,
    attempts: u32,
}

impl Backoff {
    /// The next wait: doubling, drawn from its upper half, at least what the node asked for.
    pub fn wait(&mut self, asked: Option<Duration>) -> Duration {
        let ceiling = BACKOFF_MIN.saturating_mul(1 << self.waits.min(10)).min(BACKOFF_MAX);
        self.waits += 1;
        let drawn = ceiling.mul_f64(rand::rng().random_range(0.5..=1.0));
        drawn.max(asked.unwrap_or_default())
    }

    /// How long the next attempt may be silent.
    pub fn patience(&mut self) -> Duration {
        let patience = ATTEMPT_MIN.saturating_mul(1 << self.attempts.min(10));
        self.attempts += 1;
        patience
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::reason::REASONS;
    use quorate_proto::v1::Failure;
    use tonic::Status;

    use super::*;

    fn lost(reason: Reason) -> AttemptError {
        let failure = Failure::of(reason, "");
        let details = failure.to_details("");
        AttemptError::of_status(&Status::with_details(reason.code(), "", details))
    }

    #[test]
    fn the_whole_table() {
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
            let lost = lost(row.reason);
            let all = [RetryClass::Read, RetryClass::Sessioned, RetryClass::Bare]
                .map(|class| next(class, &lost));
            assert_eq!(all, [read, sessioned, bare], "{:?}", row.reason);
        }
    }

    #[test]
    fn what_is_the_nodes_alone_is_asked_of_another_one() {
        let failure = Failure { only_this_node: true, ..Failure::of(Reason::Overloaded, "") };
        let status = Status::with_details(Reason::Overloaded.code(), "", failure.to_details(""));
        let lost = AttemptError::of_status(&status);
        for class in [RetryClass::Read, RetryClass::Sessioned, RetryClass::Bare] {
            assert_eq!(next(class, &lost), Next::Elsewhere);
        }
    }

    #[test]
    fn a_full_disk_is_waited_for_only_when_the_node_says_how_long() {
        for reason in [Reason::Quota, Reason::DiskFull] {
            let failure = Failure {
                retry_after: Some(Duration::from_secs(1).try_into().unwrap()),
                ..Failure::of(reason, "")
            };
            let status = Status::with_details(reason.code(), "", failure.to_details(""));
            assert_eq!(next(RetryClass::Bare, &AttemptError::of_status(&status)), Next::Wait);
            assert_eq!(next(RetryClass::Bare, &lost(reason)), Next::GiveUp);
        }
    }

    #[test]
    fn what_was_perhaps_applied_is_repeated_only_in_a_session() {
        let silent = AttemptError::silent("a:1", Duration::from_secs(1));
        assert_eq!(next(RetryClass::Sessioned, &silent), Next::Elsewhere);
        assert_eq!(next(RetryClass::Read, &silent), Next::Elsewhere);
        assert_eq!(next(RetryClass::Bare, &silent), Next::GiveUp);
        let unreachable = AttemptError::unreachable(String::new());
        assert_eq!(next(RetryClass::Bare, &unreachable), Next::Elsewhere);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_keep_what_was_asked() {
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
