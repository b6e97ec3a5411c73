//! Reports of live processes: which process of a peer the other peers are connected to.
//!
//! A node that is cut off from a peer may be connected to others. A copy of the peer's directory
//! that reaches the cut-off node is refused because of their reports: the process that was accepted
//! first, at any node, stays. Each node reports to all its peers which processes are alive at it,
//! once a second and after each change (`Frame.live`); each list replaces the one before it. A
//! report holds for [`REPORT_LIFETIME`], and only a process that was heard within that time is
//! reported. So a node that really moved, or restarted while another peer has not noticed the end
//! of its last process, is refused for at most twice that time.
//!
//! **Which one was first.** Each node measures how long it has accepted a process, over all its
//! connections. It may accept a copy because it has no report, and later receive a report of a
//! process that was accepted earlier. If the copy was accepted at least [`REPORT_LIFETIME`] before,
//! so that the report cannot be about a process which ended before that, its connections end. A
//! node that was restarted does not know how long it has accepted a process that it remembers; it
//! uses the time for which the process says it has run.
//!
//! **What a report cannot do.** It ends and refuses connections, but never changes what is
//! remembered. The numbers of a copy are replaced by those of the original only when the original
//! answers at the address that this node dials, is reported by another peer, and is not behind what
//! was remembered before the copy. A report of a process that is behind that is ignored.
//!
//! **What is not covered.**
//! - An original that no node is connected to: its copy counts as a node that moved.
//! - Two halves of a cluster, each with one of the two, until they meet: both may have counted the
//!   node's votes. What the copy promised to the node that accepted it is forgotten afterwards.
//! - A node that accepted the copy and was restarted: it does not know what it remembered before,
//!   ignores reports of the original, and refuses the original as an older copy, for good if the
//!   original connects before the copy does.
//! - A copy that was restarted, and accepted again, at the node that accepted it: reports of the
//!   original are ignored there, and the original is refused, but may continue at other nodes.
//! - An original that the node cannot dial, only the other way round: it is refused there.
//! - Two processes that were accepted at two nodes within the delay of a message: each may stay.
//! - A report that waited for longer than [`REPORT_LIFETIME`] on its way, as in the buffers of a
//!   paused node: it may end the connections of the next process until the next list.

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
    /// Since when it is accepted as the peer, here or where it is reported; `None` = not known.
    pub accepted: Option<Since>,
}

/// When a process was accepted or began: a time in the past, which may lie before the start of this
/// machine's clock.
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
    /// How long it has been accepted; `None` = not known.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.accepted.map(|accepted| accepted.age(now))
    }
}

/// That a process is alive at another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// The reporting node.
    pub by: NodeId,
    /// When it arrived.
    pub came: Instant,
    pub process: Process,
    /// What the reporter has heard of its disk.
    pub said: Remembered,
}

/// The newest report of each other node about one peer. As many as there are nodes.
#[derive(Debug, Default)]
pub(super) struct Reports(BTreeMap<NodeId, Report>);

impl Reports {
    /// What `by` reports now, in place of what it reported before. Returns whether it is about
    /// another process than before.
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
        let (address, accepted) = (String::new(), Some(Since::of(age, came)));
        let process = Process { incarnation: NODE, start, address, accepted };
        let said = Remembered { boot_counter: 1, start, log_sequence: 1 };
        Some(Report { by: NodeId(by), came, process, said })
    }

    /// The reporter against process 9, which was accepted `age_s` seconds ago.
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
        assert_eq!(against(&reports, 61, began), None, "it was accepted earlier");
        let last = began + REPORT_LIFETIME - Duration::from_millis(1);
        assert_eq!(against(&reports, 61, last), Some(NodeId(2)), "it grows older");
        assert_eq!(against(&reports, 0, began + REPORT_LIFETIME), None, "it has expired");
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
