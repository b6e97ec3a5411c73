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

/// Why a request is refused to protect the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// More calls are under way than the node takes.
    Calls,
    /// A write waited to be proposed until its time was up.
    Deadline,
    /// The delta is full: checkpoints are falling behind.
    Delta,
    /// The reserve of the disk is in use.
    Disk,
    /// The queue of what waits to be proposed is full.
    Proposals,
    /// The same queue, for a linearizable read.
    Reads,
    /// All pins of a shard are held by scans.
    ScanPins,
    /// All threads of scans are busy.
    ScanThreads,
    /// More scans over other nodes are under way than the node takes.
    ScansElsewhere,
    /// Too much is proposed to the group and not yet committed.
    Uncommitted,
}

impl Shed {
    /// All of them.
    const ALL: [Self; 10] = [
        Self::Calls,
        Self::Deadline,
        Self::Delta,
        Self::Disk,
        Self::Proposals,
        Self::Reads,
        Self::ScanPins,
        Self::ScanThreads,
        Self::ScansElsewhere,
        Self::Uncommitted,
    ];

    /// The value of the label `reason`.
    const fn label(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Deadline => "deadline",
            Self::Delta => "delta",
            Self::Disk => "disk",
            Self::Proposals => "proposals",
            Self::Reads => "reads",
            Self::ScanPins => "scan pins",
            Self::ScanThreads => "scan threads",
            Self::ScansElsewhere => "scans elsewhere",
            Self::Uncommitted => "uncommitted",
        }
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
        let help = "Requests refused to protect the node, by reason";
        let shed = registered(registry, "shed", help, Family::default());
        // A series that begins above zero has no rate at its first step, so an alert would miss it.
        for reason in Shed::ALL {
            let _ = of_reason(&shed, reason);
        }
        Self {
            requests: Requests::register(registry),
            calls: CallMetrics::register(registry),
            shed,
        }
    }

    /// Metrics that are not exported.
    #[cfg(test)]
    #[must_use]
    pub fn unregistered() -> Self {
        Self::register(&mut Registry::default())
    }

    /// The counter of requests refused for this reason.
    #[must_use]
    pub fn shed(&self, reason: Shed) -> Counter {
        of_reason(&self.shed, reason)
    }
}

fn of_reason(family: &Family<ReasonLabel, Counter>, reason: Shed) -> Counter {
    family.get_or_create_owned(&ReasonLabel { reason: reason.label() })
}

impl fmt::Debug for ServiceMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceMetrics")
    }
}
