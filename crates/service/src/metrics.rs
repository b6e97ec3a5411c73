//! Metrics of the services.

mod requests;

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use quorate_metrics::{metrics, registered};

pub use requests::{Method, Requests};

metrics! {
    /// Metrics of calls, whatever their method.
    pub struct CallMetrics {
        /// Time from proposing a write to its answer.
        proposal_seconds: latency,
        /// Requests passed on to another node.
        forwarded: counter,
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Metrics of the services.
pub struct ServiceMetrics {
    /// Requests of clients.
    pub requests: Requests,
    /// Calls, whatever their method.
    pub calls: CallMetrics,
    shed: Family<ReasonLabel, Counter>,
}

impl ServiceMetrics {
    /// All of them, at zero, in this registry.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let shed = "Requests refused to protect the node, by reason";
        Self {
            requests: Requests::register(registry),
            calls: CallMetrics::register(registry),
            shed: registered(registry, "shed", shed, Family::default()),
        }
    }

    /// Metrics that are not exported.
    #[cfg(test)]
    #[must_use]
    pub fn unregistered() -> Self {
        Self::register(&mut Registry::default())
    }

    /// The counter of requests refused for `reason` (`overloaded`, `disk_full`, …).
    #[must_use]
    pub fn shed(&self, reason: &'static str) -> Counter {
        self.shed.get_or_create_owned(&ReasonLabel { reason })
    }
}

impl fmt::Debug for ServiceMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceMetrics")
    }
}
