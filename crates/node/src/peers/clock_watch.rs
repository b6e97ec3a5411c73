//! The clock watch: logs which wall clocks of the nodes are off.

use std::collections::BTreeMap;

use quorate_raft::NodeId;
use tracing::{info, warn};

use quorate_machine::{FROM_MEDIAN_MAX_MS, median};

/// Checks in a row, one per second, after which a clock counts as off: a delayed message briefly
/// makes any clock look slow.
const CHECKS: u32 = 3;

/// Checks after which a clock that is still off is logged again: every five minutes.
const CHECKS_AGAIN: u32 = 300;

/// Finding of a check that is logged.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// The clock of a node, the milliseconds that it is ahead of the median, and the number of
    /// clocks in that median.
    Off(NodeId, i64, usize),
    /// The clock of a node was off and is no longer.
    RightAgain(NodeId),
}

impl Finding {
    /// Writes the line.
    pub fn log(&self) {
        match self {
            // Of two clocks it is unknown which one is wrong.
            Finding::Off(node, ahead_ms, 2) => warn!(
                node = node.0,
                ahead_ms,
                "clock: ahead of the only other known one; one of the two is wrong, and log time \
                 follows the slower. Correct the wrong one"
            ),
            Finding::Off(node, ahead_ms, clocks) => warn!(
                node = node.0,
                ahead_ms,
                clocks,
                "clock: off from the median of the nodes' clocks; log time and sessions follow the \
                 median, so nothing stops, but a second wrong clock could move it. Correct it"
            ),
            Finding::RightAgain(node) => info!(node = node.0, "clock: correct again"),
        }
    }
}

/// The state between the checks, of which there is one per second.
#[derive(Debug, Default)]
pub struct ClockWatch {
    off: BTreeMap<NodeId, Off>,
}

/// A clock that is off.
#[derive(Debug, Default)]
struct Off {
    /// Milliseconds ahead of the median when `checks` began to count.
    ahead_ms: i64,
    /// Checks in a row that have found it near that.
    checks: u32,
    /// Whether it was logged.
    logged: bool,
}

impl Off {
    /// Whether the offset has changed: the clock was set, and is wrong again.
    fn has_moved(&self, ahead_ms: i64) -> bool {
        ahead_ms.abs_diff(self.ahead_ms) > self.ahead_ms.unsigned_abs() / 2
    }
}

impl ClockWatch {
    /// Checks the clocks. `ahead_ms`: for each other node that reported lately, the milliseconds
    /// that its clock is ahead of the clock of `me`.
    pub fn look(&mut self, me: NodeId, mut ahead_ms: BTreeMap<NodeId, i64>) -> Vec<Finding> {
        ahead_ms.insert(me, 0);
        let mut all: Vec<i64> = ahead_ms.values().copied().collect();
        let middle = median(&mut all).unwrap_or_default();
        self.off.retain(|node, _| ahead_ms.contains_key(node));
        let mut findings = Vec::new();
        for (node, ahead) in ahead_ms {
            let ahead = ahead.saturating_sub(middle);
            if ahead.unsigned_abs() <= FROM_MEDIAN_MAX_MS {
                if self.off.remove(&node).is_some_and(|off| off.logged) {
                    findings.push(Finding::RightAgain(node));
                }
                continue;
            }
            let off = self.off.entry(node).or_default();
            if off.has_moved(ahead) {
                (off.ahead_ms, off.checks) = (ahead, 0);
            }
            off.checks = off.checks.saturating_add(1);
            if off.checks.checked_sub(CHECKS).is_some_and(|since| since % CHECKS_AGAIN == 0) {
                off.logged = true;
                findings.push(Finding::Off(node, ahead, all.len()));
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);

    fn others(ahead_ms: &[(u64, i64)]) -> BTreeMap<NodeId, i64> {
        ahead_ms.iter().map(|(node, ahead)| (NodeId(*node), *ahead)).collect()
    }

    /// The findings of `times` checks of the same clocks.
    fn look(watch: &mut ClockWatch, times: u32, ahead_ms: &[(u64, i64)]) -> Vec<Finding> {
        (0..times).flat_map(|_| watch.look(ME, others(ahead_ms))).collect()
    }

    #[test]
    fn a_clock_that_is_off_is_logged_once_and_again_after_five_minutes() {
        let mut watch = ClockWatch::default();
        let off = [(2, 3_000), (3, 40)];
        assert_eq!(look(&mut watch, 2, &off), []);
        assert_eq!(look(&mut watch, 1, &off), [Finding::Off(NodeId(2), 2_960, 3)]);
        assert_eq!(look(&mut watch, 299, &off), []);
        assert_eq!(look(&mut watch, 1, &off), [Finding::Off(NodeId(2), 2_960, 3)]);
        let right = [(2, 30), (3, 40)];
        assert_eq!(look(&mut watch, 5, &right), [Finding::RightAgain(NodeId(2))]);
    }

    #[test]
    fn a_clock_that_is_set_and_wrong_again_is_logged_again() {
        let mut watch = ClockWatch::default();
        assert_eq!(look(&mut watch, 9, &[(2, -3_000), (3, 0)]).len(), 1);
        assert_eq!(
            look(&mut watch, 9, &[(2, -3_900), (3, 0)]),
            [],
            "near the offset that was logged"
        );
        let set = look(&mut watch, 9, &[(2, 3_000), (3, 0)]);
        assert_eq!(set, [Finding::Off(NodeId(2), 3_000, 3)]);
        assert_eq!(look(&mut watch, 9, &[(2, 90_000), (3, 0)]).len(), 1);
        assert_eq!(look(&mut watch, 1, &[(2, 0), (3, 0)]), [Finding::RightAgain(NodeId(2))]);
    }

    #[test]
    fn the_own_clock_is_logged_like_any_other() {
        let mut watch = ClockWatch::default();
        let found = look(&mut watch, 3, &[(2, -3_600_000), (3, -3_600_020)]);
        assert_eq!(found, [Finding::Off(ME, 3_600_000, 3)]);
    }

    #[test]
    fn a_small_or_short_offset_is_not_logged() {
        let mut watch = ClockWatch::default();
        assert_eq!(look(&mut watch, 400, &[(2, 500), (3, 0)]), []);
        for _ in 0..10 {
            assert_eq!(look(&mut watch, 2, &[(2, -9_000), (3, 0)]), []);
            assert_eq!(look(&mut watch, 1, &[(2, 0), (3, 0)]), []);
        }
        // A node that does not report has no clock, and its count restarts.
        assert_eq!(look(&mut watch, 2, &[(2, 9_000), (3, 0)]), []);
        assert_eq!(look(&mut watch, 1, &[(3, 0)]), []);
        assert_eq!(look(&mut watch, 2, &[(2, 9_000), (3, 0)]), []);
    }

    #[test]
    fn of_two_clocks_the_faster_is_logged_and_a_single_one_is_right() {
        let mut watch = ClockWatch::default();
        let found = look(&mut watch, 3, &[(2, -600_000)]);
        assert_eq!(found, [Finding::Off(ME, 600_000, 2)]);
        assert_eq!(look(&mut ClockWatch::default(), 10, &[]), []);
    }
}
