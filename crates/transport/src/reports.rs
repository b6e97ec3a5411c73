//! Reports of live processes: what the other peers say about which process of a peer they are connected to.
//!
//! A node that is cut off from a peer may be connected to others, and then a copy of its directory that
//! reaches that peer is refused there for their word: the process that was taken first, anywhere, stays.
//! Each node tells all its peers which processes are alive at it, once a second and when that changes
//! (`Frame.live`); each list replaces the one before it. A report holds for [`REPORT_LIFETIME`], and only a
//! process that was heard of within that time is reported, so that a node that really moved is kept out for
//! no more than twice as long.
//!
//! **Which one was first.** Each node counts how long it has taken a process, over all its connections.
//! Where a node takes a copy because it hears of nobody, and later of a process that was taken earlier
//! than the copy, it ends the copy's connections and forgets what the copy has told: its numbers would be
//! held against the original. A restart of a node does not know how long it has taken a process that it
//! remembers; it counts as taken for as long as that says it has run.
//!
//! **What is not covered.** An original that nobody is connected to: its copy is a node that moved. Two
//! halves of which each has one of the two, until they meet: both may have counted the node's votes. A
//! node that took the copy, was started again, and hears of the original before it meets the copy anew:
//! it takes the original for an older copy. Two that were taken within the delay of a message, at two
//! nodes: each may stay where it is. A report that was under way when its process ended may end the
//! connections of the next one, for the second until the next list.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_proto::ids::Incarnation;
use quorate_raft::NodeId;

use super::memory::{Remembered, StartId};

/// How long a report holds, and how lately its process was heard of.
pub(super) const REPORT_LIFETIME: Duration = Duration::from_secs(3);

/// A process of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub incarnation: Incarnation,
    pub start: StartId,
    /// Where it says it is.
    pub address: String,
    /// Since when it is taken for the peer, here or where it is reported; `None` = not known.
    pub taken: Option<Since>,
}

/// When a process was taken or began: a time in the past, which may lie before the start of this machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since {
    at: Instant,
    before: Duration,
}

impl Since {
    /// That long before `now`.
    pub fn of(age: Duration, now: Instant) -> Self {
        Self { at: now, before: age }
    }

    /// How long ago it was.
    pub fn age(self, now: Instant) -> Duration {
        self.before.saturating_add(now.saturating_duration_since(self.at))
    }
}

impl Process {
    /// How long it has been taken; `None` = not known.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.taken.map(|taken| taken.age(now))
    }
}

/// That a process is alive at another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Who says so.
    pub by: NodeId,
    /// When it came.
    pub came: Instant,
    pub process: Process,
    /// What the reporter has heard of its disk.
    pub said: Remembered,
}

/// The newest report of each other node about one peer. As many as there are nodes.
#[derive(Debug, Default)]
pub(super) struct Reports(BTreeMap<NodeId, Report>);

impl Reports {
    /// What `by` reports now, in place of what it reported before. Returns whether it is about another
    /// process than before.
    pub fn set(&mut self, by: NodeId, report: Option<Report>, now: Instant) -> bool {
        let before = self.0.get(&by).map(|report| report.process.start);
        let after = report.as_ref().map(|report| report.process.start);
        self.0.retain(|_, report| is_fresh(report, now));
        match report {
            Some(report) => self.0.insert(by, report),
            None => self.0.remove(&by),
        };
        before != after
    }

    /// A report against a process that was accepted `age` ago: another process, which was accepted
    /// earlier, is alive. `counts`: whether to use this report.
    pub fn against(
        &self,
        incarnation: Incarnation,
        start: StartId,
        age: Duration,
        now: Instant,
        counts: impl Fn(&Report) -> bool,
    ) -> Option<&Report> {
        self.0.values().find(|report| {
            let process = &report.process;
            is_fresh(report, now)
                && process.incarnation == incarnation
                && process.start != start
                && process.age(now).is_some_and(|other| other > age)
                && counts(report)
        })
    }
}

fn is_fresh(report: &Report, now: Instant) -> bool {
    now.saturating_duration_since(report.came) < REPORT_LIFETIME
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Incarnation = Incarnation(7);

    fn report(by: u64, start: u64, age_s: u64, came: Instant) -> Option<Report> {
        let (start, age) = (StartId(start), Duration::from_secs(age_s));
        let (address, taken) = (String::new(), Some(Since::of(age, came)));
        let process = Process { incarnation: NODE, start, address, taken };
        let said = Remembered { boot_counter: 1, start, log_sequence: 1 };
        Some(Report { by: NodeId(by), came, process, said })
    }

    /// Who speaks against process 9, which has been taken for so many seconds.
    fn against(reports: &Reports, age_s: u64, now: Instant) -> Option<NodeId> {
        let age = Duration::from_secs(age_s);
        reports.against(NODE, StartId(9), age, now, |_| true).map(|report| report.by)
    }

    #[test]
    fn a_report_holds_for_its_life_and_against_later_processes_only() {
        let began = Instant::now();
        let mut reports = Reports::default();
        assert!(reports.set(NodeId(2), report(2, 1, 60, began), began));
        assert_eq!(against(&reports, 0, began), Some(NodeId(2)));
        assert_eq!(against(&reports, 59, began), Some(NodeId(2)));
        assert_eq!(against(&reports, 61, began), None, "it was taken earlier");
        let last = began + REPORT_LIFETIME - Duration::from_millis(1);
        assert_eq!(against(&reports, 61, last), Some(NodeId(2)), "it grows older");
        assert_eq!(against(&reports, 0, began + REPORT_LIFETIME), None, "nobody says so any more");
        let other = reports.against(Incarnation(8), StartId(9), Duration::ZERO, began, |_| true);
        assert_eq!(other, None);
        let refused = reports.against(NODE, StartId(9), Duration::ZERO, began, |_| false);
        assert_eq!(refused, None, "that has gone back itself");
    }

    #[test]
    fn a_list_replaces_the_one_before_it_and_none_outlives_its_reporter() {
        let began = Instant::now();
        let mut reports = Reports::default();
        assert!(reports.set(NodeId(2), report(2, 1, 60, began), began));
        assert!(!reports.set(NodeId(2), report(2, 1, 61, began), began), "no news");
        assert!(reports.set(NodeId(2), report(2, 9, 61, began), began));
        assert_eq!(against(&reports, 0, began), None, "it is reported itself");
        assert!(reports.set(NodeId(3), report(3, 1, 60, began), began));
        assert!(reports.set(NodeId(3), None, began));
        assert_eq!(against(&reports, 0, began), None);
        // What is left of a node that says nothing goes with the next list of another one.
        reports.set(NodeId(3), report(3, 1, 60, began), began + REPORT_LIFETIME);
        assert_eq!(reports.0.len(), 1);
    }
}
