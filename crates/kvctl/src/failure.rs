//! Failures of commands, and how they are printed.

use std::fmt;
use std::io;
use std::time::Duration;

use quorate_client::{Code, Error, WriteId};
use serde_json::Value;

use crate::exit::Exit;
use crate::output::json::Object;
use crate::wire::Outcome;

/// Why a command, or one item of it, did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code of the command.
    pub exit: Exit,
    /// A sentence for people.
    pub message: String,
    /// The cluster's description of the failure; absent if the cluster was not asked.
    pub answer: Option<Box<AnswerOfCluster>>,
    /// The reader of standard output has closed it: nothing is reported.
    pub reader_gone: bool,
}

/// The part of a failure that comes from the cluster, or from the client on its behalf.
#[derive(Clone, Debug, Default)]
pub struct AnswerOfCluster {
    /// The reason as in the error table, or the name of the gRPC code if no node gave a reason.
    pub reason: &'static str,
    /// What is known about the effect.
    pub outcome: Outcome,
    /// Minimum time before a retry.
    pub retry_after: Option<Duration>,
    /// The id of the request in the logs of the nodes; empty if unknown.
    pub request_id: String,
    /// The id of the write, if a retry with it is safe.
    pub write: Option<WriteId>,
}

/// The result of a command or of a part of it.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Invalid usage: the command line or its input is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::of(Exit::Usage, message)
    }

    /// A failure with this exit code.
    pub fn of(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), answer: None, reader_gone: false }
    }

    /// An unknown outcome: a write was sent, and this process no longer waits for its answer.
    pub fn unknown(message: impl Into<String>, write: Option<WriteId>) -> Failure {
        let answer = AnswerOfCluster {
            reason: "OUTCOME_UNKNOWN",
            outcome: Outcome::Unknown,
            write,
            ..AnswerOfCluster::default()
        };
        Failure { answer: Some(Box::new(answer)), ..Failure::of(Exit::Unknown, message) }
    }

    /// The failure to report if writes were applied before it. If the answer could not be printed
    /// or kept, the caller does not know the outcome, but can retry.
    #[must_use]
    pub fn though_applied(self, write: Option<WriteId>) -> Failure {
        if self.exit != Exit::Usage || self.answer.is_some() || self.reader_gone {
            return self;
        }
        let answer = AnswerOfCluster { reason: "ANSWER_LOST", write, ..AnswerOfCluster::default() };
        let message = format!("applied, but the answer could not be printed: {}", self.message);
        Failure { answer: Some(Box::new(answer)), ..Failure::of(Exit::Unknown, message) }
    }

    /// A failure to read or write a file.
    pub fn file(path: &std::path::Path, error: &io::Error) -> Failure {
        Failure::usage(format!("{}: {}", path.display(), plain(error)))
    }

    /// The failure as one JSON object, for `-o json`.
    pub fn json(&self, again: Option<&str>) -> Value {
        self.json_of(Object::new(), again)
    }

    /// The id of the write to retry, if its outcome is unknown and a retry is safe.
    pub fn write(&self) -> Option<&WriteId> {
        self.answer.as_ref().and_then(|answer| answer.write.as_ref())
    }

    /// As [`Failure::json`], after the fields that identify the item it belongs to.
    pub fn json_of(&self, item: Object, again: Option<&str>) -> Value {
        self.object(item).with_some("ask_again", again).into()
    }

    fn object(&self, item: Object) -> Object {
        let answer = self.answer.clone().unwrap_or_default();
        let reason = match (&self.answer, self.exit) {
            (Some(answer), _) => answer.reason,
            (_, Exit::Usage) => "USAGE",
            (_, Exit::Interrupted) => "INTERRUPTED",
            _ => "UNSPECIFIED",
        };
        item.with("reason", reason)
            .with("outcome", outcome(answer.outcome))
            .with("message", self.message.as_str())
            .with_some("retry_after_ms", answer.retry_after.map(millis))
            .with_some(
                "request_id",
                Some(answer.request_id).filter(|request_id| !request_id.is_empty()),
            )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let Some(answer) = &self.answer else { return Ok(()) };
        if let Some(after) = answer.retry_after.filter(|after| !after.is_zero()) {
            write!(f, "; retry after {}", crate::duration::show_rough(after))?;
        }
        if !answer.request_id.is_empty() {
            write!(f, " (request {})", answer.request_id)?;
        }
        Ok(())
    }
}

/// Output that cannot be written ends the command; a closed pipe is not an error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let reader_gone = error.kind() == io::ErrorKind::BrokenPipe;
        let exit = if reader_gone { Exit::Done } else { Exit::Usage };
        Failure { reader_gone, ..Failure::of(exit, format!("standard output: {}", plain(&error))) }
    }
}

/// An error of the system without its number, which means nothing to most users.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The name of an outcome in JSON; null if there is no outcome.
fn outcome(outcome: Outcome) -> Value {
    match outcome {
        Outcome::Unspecified => Value::Null,
        Outcome::NotApplied => "not_applied".into(),
        Outcome::Unknown => "unknown".into(),
        Outcome::AttemptNotApplied => "attempt_not_applied".into(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let write = match &error {
            Error::Unknown { write, .. } => write.clone(),
            _ => None,
        };
        let unknown = error.is_unknown();
        let detail = error.detail();
        Failure {
            exit: if unknown { Exit::Unknown } else { exit_of(detail.code) },
            message: match unknown {
                true => format!("the outcome is unknown: {}", detail.message),
                false => detail.message.clone(),
            },
            answer: Some(Box::new(AnswerOfCluster {
                reason: detail.reason_name(),
                outcome: if unknown { Outcome::Unknown } else { detail.outcome },
                retry_after: detail.retry_after,
                request_id: detail.request_id.clone(),
                write,
            })),
            reader_gone: false,
        }
    }
}

/// The exit code of a request that was certainly not applied, or was a read, by its gRPC code.
fn exit_of(code: Code) -> Exit {
    match code {
        // OUT_OF_RANGE means a message too large for the other side to decode.
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Cancelled
        | Code::Aborted => Exit::Unavailable,
        Code::FailedPrecondition
        | Code::Unimplemented
        | Code::DataLoss
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::AlreadyExists => Exit::Refused,
        // A failure is never OK; the other two mean an internal error.
        Code::Ok | Code::Unknown | Code::Internal => Exit::Bug,
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::Detail;

    use super::*;
    use crate::wire::Reason;

    fn detail(code: Code, reason: Reason) -> Box<Detail> {
        Box::new(Detail {
            code,
            reason: Some(reason),
            message: "no".into(),
            outcome: reason.outcome(),
            shard: 0,
            leader_node_id: 0,
            retry_after: None,
            request_id: String::new(),
            field: String::new(),
            limit: 0,
            config_key: String::new(),
            log_time: 0,
        })
    }

    /// Every reason of the error table, with the exit code that the interface promises for it.
    #[test]
    fn every_reason_has_its_exit_code() {
        use Reason::*;
        let refused = [
            TooStale,
            TokenAhead,
            WrongShard,
            TokenForeign,
            SessionExpired,
            SequencePast,
            SessionFromFuture,
            NotANumber,
            NotOffered,
            ReplicaDamaged,
        ];
        let usage = [
            SequenceReused,
            BadKey,
            BadValue,
            TooLarge,
            BadCondition,
            BadKeyspace,
            CrossShard,
            BadToken,
            BadPageToken,
            BadLevel,
            BadRequest,
        ];
        let unavailable = [
            NoLeader,
            NoQuorum,
            Starting,
            Draining,
            StorageFailed,
            NotTransferred,
            ReadTimeout,
            Overloaded,
            Quota,
            DiskFull,
            SessionsFull,
        ];
        let expected = [
            (Exit::Refused, &refused[..]),
            (Exit::Usage, &usage),
            (Exit::Unavailable, &unavailable),
            (Exit::Bug, &[Internal]),
        ];
        let mut seen = vec![OutcomeUnknown];
        for (exit, reasons) in expected {
            for &reason in reasons {
                let error = Error::NotApplied(detail(reason.code(), reason));
                assert_eq!(Failure::from(error).exit, exit, "{reason:?}");
                seen.push(reason);
            }
        }
        let known = (1..).map_while(|number| Reason::try_from(number).ok()).count();
        assert_eq!(seen.len(), known, "a reason is missing here");
    }

    #[test]
    fn an_unknown_outcome_outweighs_every_code() {
        let write = Some(WriteId { session: vec![1; 24].into(), sequence: 1 });
        for code in [Code::Unavailable, Code::InvalidArgument, Code::Internal, Code::Unknown] {
            let detail = detail(code, Reason::OutcomeUnknown);
            let failure = Failure::from(Error::Unknown { detail, write: write.clone() });
            assert_eq!(failure.exit, Exit::Unknown);
            assert_eq!(failure.json(None)["outcome"], "unknown");
            assert_eq!(failure.answer.unwrap().write, write);
        }
    }

    #[test]
    fn a_failure_is_one_json_object() {
        let mut failure = Failure::of(Exit::Unavailable, "shard 3 has no leader");
        failure.answer = Some(Box::new(AnswerOfCluster {
            reason: "NO_LEADER",
            outcome: Outcome::NotApplied,
            retry_after: Some(Duration::from_millis(250)),
            request_id: "r-1".into(),
            write: None,
        }));
        assert_eq!(
            failure.json(None).to_string(),
            concat!(
                r#"{"reason":"NO_LEADER","outcome":"not_applied","#,
                r#""message":"shard 3 has no leader","retry_after_ms":250,"request_id":"r-1"}"#
            )
        );
        assert_eq!(failure.to_string(), "shard 3 has no leader; retry after 250 ms (request r-1)");
        assert_eq!(
            Failure::usage("no").json(Some("kvctl put")).to_string(),
            r#"{"reason":"USAGE","outcome":null,"message":"no","ask_again":"kvctl put"}"#
        );
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(gone.reader_gone && gone.exit == Exit::Done);
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!full.reader_gone && full.exit == Exit::Usage);
    }
}
