//! What a run measured.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::latency::Latencies;

/// The figures of one kind of operation.
#[derive(Clone, Debug, Default)]
pub struct OperationReport {
    /// Latencies of the operations that succeeded within the measured time.
    pub latencies: Latencies,
    /// Operations that failed, by reason; writes of unknown outcome are among them.
    pub failures: BTreeMap<&'static str, u64>,
    /// What the first failure of each reason said.
    pub sentences: BTreeMap<&'static str, String>,
    /// Of the failures, writes whose outcome is unknown.
    pub unknown: u64,
    /// Operations that succeeded after the measured time.
    pub late: u64,
}

impl OperationReport {
    /// Operations that succeeded within the measured time.
    pub fn succeeded(&self) -> u64 {
        self.latencies.count()
    }

    /// Operations that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    pub(crate) fn merge(&mut self, other: &OperationReport) {
        self.latencies.merge(&other.latencies);
        self.unknown += other.unknown;
        self.late += other.late;
        for (reason, count) in &other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        for (reason, sentence) in &other.sentences {
            self.sentences.entry(reason).or_insert_with(|| sentence.clone());
        }
    }
}

/// The figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How long was measured.
    pub elapsed: Duration,
    /// Writes.
    pub put: OperationReport,
    /// Reads.
    pub get: OperationReport,
    /// Operations of an open loop that were due and did not begin, because the most that may be
    /// under way were.
    pub skipped: u64,
    /// The run was asked to end before its time.
    pub ended_early: bool,
}

impl Report {
    /// The operations that there were, by name.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, &OperationReport)> {
        let all = [("put", &self.put), ("get", &self.get)];
        all.into_iter().filter(|(_, report)| report.succeeded() + report.failed() > 0)
    }

    /// Operations of one kind per second.
    pub fn rate(&self, report: &OperationReport) -> f64 {
        report.succeeded() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn merge(&mut self, other: &Report) {
        self.put.merge(&other.put);
        self.get.merge(&other.get);
        self.skipped += other.skipped;
    }
}
