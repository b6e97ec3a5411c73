//! The context of a call: its deadline, its request id, its hops, and its status at the end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::limits::{TIMEOUT_DEFAULT, TIMEOUT_MAX};
use quorate_proto::v1::{Failure, PipelineOperation, Reason};
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::in_stream::InStream;

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

/// The header with the id of a request: the caller's or ours; returned, logged and forwarded.
pub const REQUEST_ID: &str = "x-request-id";
/// W3C trace context, forwarded unchanged.
pub const TRACEPARENT: &str = "traceparent";
/// The number of nodes that have forwarded the call. Only nodes set it.
pub const HOPS: &str = "quorate-hops";
/// The greatest number of times that a call is forwarded.
pub const HOPS_MAX: u32 = 2;
/// The part of the client's time that is reserved for sending the answer back.
const MARGIN: Duration = Duration::from_millis(20);
/// The longest request id that is kept; a longer one is replaced.
const REQUEST_ID_MAX: usize = 128;

/// A call as its handlers see it.
#[derive(Clone, Debug)]
pub struct Context {
    /// The request's id.
    pub request_id: String,
    /// The caller's trace context.
    pub traceparent: Option<String>,
    /// When the call must have been answered.
    pub deadline: Instant,
    /// When it arrived.
    pub started: Instant,
    /// How often it was forwarded before it arrived here, at most [`HOPS_MAX`]. Clients can set it
    /// as well, to any number.
    pub hops: u32,
    /// What it has as an operation of a Pipeline; `None` = it is a call of its own.
    pub in_stream: Option<Arc<InStream>>,
}

impl Context {
    /// Reads the call's metadata. The deadline is the client's less a margin, capped at 30 s; 5 s
    /// where it gave none.
    #[must_use]
    pub fn of(metadata: &MetadataMap) -> Self {
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let timeout = time_for(text("grpc-timeout").and_then(parse_timeout));
        let request_id = text(REQUEST_ID)
            .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_MAX)
            .map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
        let started = Instant::now();
        Self {
            request_id,
            traceparent: text(TRACEPARENT).map(str::to_owned),
            deadline: started + timeout,
            started,
            hops: text(HOPS).and_then(|hops| hops.parse().ok()).unwrap_or(0).min(HOPS_MAX),
            in_stream: None,
        }
    }

    /// The context of an operation that came on the stream with this one, just now.
    #[must_use]
    pub fn of_operation(&self, operation: &PipelineOperation, in_stream: InStream) -> Self {
        let started = Instant::now();
        let given = operation.timeout.and_then(|timeout| Duration::try_from(timeout).ok());
        let request_id = match operation.request_id.as_str() {
            "" => format!("{}/{}", self.request_id, operation.id),
            id if id.len() > REQUEST_ID_MAX => format!("{}/{}", self.request_id, operation.id),
            id => id.to_owned(),
        };
        let traceparent = match operation.traceparent.as_str() {
            "" => self.traceparent.clone(),
            given => Some(given.to_owned()),
        };
        Self {
            request_id,
            traceparent,
            deadline: started + time_for(given.filter(|given| !given.is_zero())),
            started,
            hops: self.hops,
            in_stream: Some(Arc::new(in_stream)),
        }
    }

    /// Notes that a write was proposed or passed on: the next one of its stream may follow.
    pub fn handed_over(&self) {
        if let Some(stream) = &self.in_stream {
            stream.handed_over();
        }
    }

    /// The time that is left until the deadline.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Writes the metadata of the same call to another node. Every way to another node leads
    /// through here, so no call goes round in circles.
    ///
    /// # Errors
    /// NO_LEADER when the call was forwarded [`HOPS_MAX`] times before.
    pub fn forward_into(&self, metadata: &mut MetadataMap) -> Result<(), Failure> {
        if self.hops >= HOPS_MAX {
            let message =
                format!("the call was forwarded {HOPS_MAX} times without reaching a leader");
            return Err(Failure::of(Reason::NoLeader, message));
        }
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = MetadataValue::try_from(value) {
                metadata.insert(name, value);
            }
        };
        set(REQUEST_ID, &self.request_id);
        set(HOPS, &(self.hops + 1).to_string());
        if let Some(traceparent) = &self.traceparent {
            set(TRACEPARENT, traceparent);
        }
        Ok(())
    }

    /// The status that carries a failure: standard details, and the failure itself beside them.
    #[must_use]
    pub fn status(&self, failure: &Failure) -> Status {
        let code = Code::from_i32(failure.code);
        let details = failure.to_details(&self.request_id);
        let mut status = Status::with_details(code, failure.message.clone(), details);
        self.sign(status.metadata_mut());
        status
    }

    /// Returns the request's id to the caller.
    pub fn sign(&self, metadata: &mut MetadataMap) {
        if let Ok(id) = MetadataValue::try_from(self.request_id.as_str()) {
            metadata.insert(REQUEST_ID, id);
        }
    }
}

/// The failure of a read that ran out of time; `waited_for` ends the sentence.
#[must_use]
pub fn read_timeout(waited_for: &str) -> Failure {
    Failure::of(
        Reason::ReadTimeout,
        format!("deadline exceeded while the read waited for {waited_for}"),
    )
}

/// The time of a call: what its caller gave less a margin, capped at 30 s; 5 s where it gave none.
fn time_for(given: Option<Duration>) -> Duration {
    given.map_or(TIMEOUT_DEFAULT, |given| {
        let given = given.min(TIMEOUT_MAX);
        given.saturating_sub(MARGIN.min(given / 10))
    })
}

/// The gRPC wire form of a timeout: at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1)?;
    let (digits, unit) = (text.get(..unit_at)?, text.get(unit_at..)?);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_in_their_wire_form() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        for bad in ["", "m", "5", "123456789m", "-1S", "5x", "5é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn deadlines_are_capped_and_leave_a_margin() {
        let deadline = |timeout: Option<&str>| {
            let mut metadata = MetadataMap::new();
            if let Some(timeout) = timeout {
                metadata.insert("grpc-timeout", timeout.parse().expect("ascii"));
            }
            let context = Context::of(&metadata);
            context.deadline - context.started
        };
        assert_eq!(deadline(None), Duration::from_secs(5));
        assert_eq!(deadline(Some("1S")), Duration::from_millis(980));
        assert_eq!(deadline(Some("50m")), Duration::from_millis(45));
        assert_eq!(deadline(Some("1H")), Duration::from_millis(29_980));
    }

    #[tokio::test]
    async fn a_call_is_passed_on_twice_whatever_its_caller_says() {
        let context = |hops: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(HOPS, hops.parse().expect("ascii"));
            Context::of(&metadata)
        };
        for (came_with, leaves_with) in [("0", "1"), ("1", "2"), ("-1", "1"), ("x", "1")] {
            let mut metadata = MetadataMap::new();
            context(came_with).forward_into(&mut metadata).expect("it may go on");
            assert_eq!(metadata.get(HOPS).expect("it is set"), leaves_with, "{came_with}");
        }
        for too_often in ["2", "3", "4294967295"] {
            let refused = context(too_often).forward_into(&mut MetadataMap::new());
            let refused = refused.expect_err("it was passed on often enough");
            assert_eq!(refused.reason(), Reason::NoLeader, "{too_often}");
        }
    }

    #[test]
    fn the_callers_request_id_is_kept_within_reason() {
        let mut metadata = MetadataMap::new();
        metadata.insert(REQUEST_ID, "mine".parse().expect("ascii"));
        assert_eq!(Context::of(&metadata).request_id, "mine");
        metadata.insert(REQUEST_ID, "x".repeat(129).parse().expect("ascii"));
        assert_eq!(Context::of(&metadata).request_id.len(), 16);
    }
}
