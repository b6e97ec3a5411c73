//! Requests by method, code and level.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;

/// A method of the client API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Method {
    Get,
    MultiGet,
    Put,
    Delete,
    CompareAndSet,
    Increment,
    Batch,
    Scan,
    Pipeline,
    OpenSession,
    Cancel,
    GetInfo,
    GetMap,
    GetStatus,
    TransferLeader,
}

impl Method {
    /// Every method, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::Get,
        Self::MultiGet,
        Self::Put,
        Self::Delete,
        Self::CompareAndSet,
        Self::Increment,
        Self::Batch,
        Self::Scan,
        Self::Pipeline,
        Self::OpenSession,
        Self::Cancel,
        Self::GetInfo,
        Self::GetMap,
        Self::GetStatus,
        Self::TransferLeader,
    ];

    /// The name of the method in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::MultiGet => "MultiGet",
            Self::Put => "Put",
            Self::Delete => "Delete",
            Self::CompareAndSet => "CompareAndSet",
            Self::Increment => "Increment",
            Self::Batch => "Batch",
            Self::Scan => "Scan",
            Self::Pipeline => "Pipeline",
            Self::OpenSession => "OpenSession",
            Self::Cancel => "Cancel",
            Self::GetInfo => "GetInfo",
            Self::GetMap => "GetMap",
            Self::GetStatus => "GetStatus",
            Self::TransferLeader => "TransferLeader",
        }
    }
}

/// The read level of a request, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LevelLabel {
    /// The request reads nothing.
    None,
    /// Linearizable.
    Linearizable,
    /// Leader lease.
    Lease,
    /// Session token.
    Session,
    /// Bounded staleness.
    Bounded,
    /// Stale.
    Stale,
}

impl LevelLabel {
    const ALL: [Self; 6] =
        [Self::None, Self::Linearizable, Self::Lease, Self::Session, Self::Bounded, Self::Stale];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Session => "session",
            Self::Bounded => "bounded",
            Self::Stale => "stale",
        }
    }
}

/// The gRPC codes by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: &'static str,
    level: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

/// Requests of clients, by method, code and level. A series appears with its first request; from then
/// on counting is one atomic addition, found by position.
pub struct Requests {
    family: Family<RequestLabels, Counter>,
    counters: Box<[OnceLock<Counter>]>,
    seconds: Box<[Histogram]>,
}

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let family = Family::<RequestLabels, Counter>::default();
        registry.register(
            "requests",
            "Requests of clients, by method, code and read level",
            family.clone(),
        );
        let seconds = Family::<MethodLabel, Histogram, fn() -> Histogram>::new_with_constructor(
            Histogram::latency,
        );
        registry.register(
            "request_seconds",
            "Time from the arrival of a request to its last answer, by method",
            seconds.clone(),
        );
        let series = Method::ALL.len() * CODES.len() * LevelLabel::ALL.len();
        Self {
            family,
            counters: (0..series).map(|_| OnceLock::new()).collect(),
            seconds: Method::ALL
                .iter()
                .map(|method| seconds.get_or_create_owned(&MethodLabel { method: method.name() }))
                .collect(),
        }
    }

    /// Counts a finished request. `code` is the number of its gRPC code; one that gRPC does not have
    /// counts as UNKNOWN.
    pub fn observe(&self, method: Method, code: i32, level: LevelLabel, elapsed: Duration) {
        let code = usize::try_from(code).ok().filter(|code| *code < CODES.len()).unwrap_or(2);
        let place = (method as usize * CODES.len() + code) * LevelLabel::ALL.len() + level as usize;
        let counter = self.counters[place].get_or_init(|| {
            self.family.get_or_create_owned(&RequestLabels {
                method: method.name(),
                code: CODES[code],
                level: level.name(),
            })
        });
        counter.inc();
        self.seconds[method as usize].observe_duration(elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_follow_the_declared_order() {
        for (place, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, place, "{method:?}");
        }
        for (place, level) in LevelLabel::ALL.into_iter().enumerate() {
            assert_eq!(level as usize, place, "{level:?}");
        }
    }
}
