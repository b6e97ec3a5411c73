//! Requests by method, code and level.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use quorate_metrics::Histogram;
use quorate_proto::code::{CODES, code_name};
use quorate_proto::level::LEVELS;
use quorate_proto::v1::ReadLevel;
use tonic::Code;

/// The methods of the client API: one row for each.
macro_rules! methods {
    ($($method:ident,)+) => {
        /// A method of the client API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is the method of its name")]
        pub enum Method { $($method,)+ }

        impl Method {
            /// Every method, in the order of its number.
            pub const ALL: &[Self] = &[$(Self::$method,)+];

            /// The method of this name.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|method| method.name() == name)
            }

            /// The name of the method in the API.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$method => stringify!($method),)+ }
            }
        }
    };
}

methods! {
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

/// The label of a level: its place and its name; what reads nothing has the first.
fn level_label(level: Option<ReadLevel>) -> (usize, &'static str) {
    match level {
        None => (0, "none"),
        Some(level) => {
            let row = level.row();
            (row.level as usize, row.name)
        }
    }
}

/// The levels, and one label for none.
const LEVEL_LABELS: usize = LEVELS.len() + 1;

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

/// Requests of clients, by method, code and level. A series appears with its first request; from
/// then on counting is one atomic addition, found by position.
pub struct Requests {
    family: Family<RequestLabels, Counter>,
    counters: Box<[OnceLock<Counter>]>,
    seconds: Box<[Histogram]>,
}

impl Requests {
    pub(crate) fn register(registry: &mut Registry) -> Self {
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
        let series = Method::ALL.len() * CODES * LEVEL_LABELS;
        Self {
            family,
            counters: (0..series).map(|_| OnceLock::new()).collect(),
            seconds: Method::ALL
                .iter()
                .map(|method| seconds.get_or_create_owned(&MethodLabel { method: method.name() }))
                .collect(),
        }
    }

    /// Counts a finished request of a method that this version does not know.
    pub fn observe_unknown(&self, code: i32) {
        let code = code_name(Code::from(code));
        let labels = RequestLabels { method: "unknown", code, level: level_label(None).1 };
        self.family.get_or_create_owned(&labels).inc();
    }

    /// Counts a finished request. `code` is the number of its gRPC code; one that gRPC does not
    /// have counts as UNKNOWN.
    pub fn observe(&self, method: Method, code: i32, level: Option<ReadLevel>, elapsed: Duration) {
        let code = Code::from(code);
        let (level, name) = level_label(level);
        let place = (method as usize * CODES + code as usize) * LEVEL_LABELS + level;
        let counter = self.counters[place].get_or_init(|| {
            self.family.get_or_create_owned(&RequestLabels {
                method: method.name(),
                code: code_name(code),
                level: name,
            })
        });
        counter.inc();
        self.seconds[method as usize].observe_duration(elapsed);
    }

    /// Finished requests of a method that reads nothing, with this code.
    #[cfg(test)]
    pub(crate) fn count(&self, method: Method, code: Code) -> u64 {
        let place = (method as usize * CODES + code as usize) * LEVEL_LABELS;
        self.counters[place].get().map_or(0, |counter| counter.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_follow_the_declared_order() {
        for (place, method) in Method::ALL.iter().enumerate() {
            assert_eq!(*method as usize, place, "{method:?}");
        }
        let levels = LEVELS.iter().map(|row| level_label(Some(row.level)).0);
        let mut places: Vec<usize> = levels.chain([level_label(None).0]).collect();
        places.sort_unstable();
        assert_eq!(places, (0..LEVEL_LABELS).collect::<Vec<_>>());
    }
}
