//! A watch over the wall clocks of the nodes: it names in the log those that are off.

use std::collections::BTreeMap;

use quorate_raft::NodeId;
use tracing::{info, warn};

use quorate_machine::{FROM_MEDIAN_MAX_MS, median};

/// A clock is called off after so many looks, one a second, in a row: for a moment, what was held up
/// makes any clock look slow.
const LOOKS: u32 = 3;

/// As long as it is off it is named again after so many looks: every five minutes.
const LOOKS_AGAIN: u32 = 300;

/// What a look found worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// The clock of this node is so many milliseconds ahead of the median of so many clocks.
    Off(NodeId, i64, usize),
    /// The clock of this node was off and is no longer.
    RightAgain(NodeId),
}

impl Finding {
    /// Writes the line.
    pub fn log(&self) {
        match self {
            // Of two clocks nobody can say which one is wrong.
            Finding::Off(node, ahead_ms, 2) => warn!(
                node = node.0,
                ahead_ms,
                "clock: ahead of the only other one that is known. One of the two is off, and log time \
                 follows the slower; set it right"
            ),
            Finding::Off(node, ahead_ms, clocks) => warn!(
                node = node.0,
                ahead_ms,
                clocks,
                "clock: off against the median of the nodes' clocks. Log time and sessions follow the \
                 median, so nothing stops; but a second one could carry it away. Set it right"
            ),
            Finding::RightAgain(node) => info!(node = node.0, "clock: right again"),
        }
    }
}

/// Looks once a second.
#[derive(Debug, Default)]
pub struct ClockWatch {
    off: BTreeMap<NodeId, Off>,
}

/// A clock that is off.
#[derive(Debug, Default)]
struct Off {
    /// How far ahead of the median it was when `looks` began to count.
    ahead_ms: i64,
    /// How many looks in a row have found it about there.
    looks: u32,
    /// It was named.
    named: bool,
}

impl Off {
    /// Whether it is somewhere else by now: it was set, and wrong again.
    fn has_moved(&self, ahead_ms: i64) -> bool {
        ahead_ms.abs_diff(self.ahead_ms) > self.ahead_ms.unsigned_abs() / 2
    }
}

impl ClockWatch {
    /// Looks at the clocks: `ahead_ms` holds by how many milliseconds the clock of each other node
    /// that reported lately is ahead of the clock of `me`.
    pub fn look(&mut self, me: NodeId, mut ahead_ms: BTreeMap<NodeId, i64>) -> Vec<Finding> {
        ahead_ms.insert(me, 0);
        let mut all: Vec<i64> = ahead_ms.values().copied().collect();
        let middle = median(&mut all).unwrap_or_default();
        self.off.retain(|node, _| ahead_ms.contains_key(node));
        let mut findings = Vec::new();
        for (node, ahead) in ahead_ms {
            let ahead = ahead.saturating_sub(middle);
            if ahead.unsigned_abs() <= FROM_MEDIAN_MAX_MS {
                if self.off.remove(&node).is_some_and(|off| off.named) {
                    findings.push(Finding::RightAgain(node));
                }
                continue;
            }
            let off = self.off.entry(node).or_default();
            if off.has_moved(ahead) {
                (off.ahead_ms, off.looks) = (ahead, 0);
            }
            off.looks = off.looks.saturating_add(1);
            if off.looks.checked_sub(LOOKS).is_some_and(|since| since % LOOKS_AGAIN == 0) {
                off.named = true;
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

    /// What so many looks at the same clocks find.
    fn look(watch: &mut ClockWatch, times: u32, ahead_ms: &[(u64, i64)]) -> Vec<Finding> {
        (0..times).flat_map(|_| watch.look(ME, others(ahead_ms))).collect()
    }

    #[test]
    fn a_clock_that_is_off_is_named_once_and_again_after_five_minutes() {
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
    fn a_clock_that_is_set_and_wrong_again_is_named_again() {
        let mut watch = ClockWatch::default();
        assert_eq!(look(&mut watch, 9, &[(2, -3_000), (3, 0)]).len(), 1);
        assert_eq!(look(&mut watch, 9, &[(2, -3_900), (3, 0)]), [], "about where it was");
        let set = look(&mut watch, 9, &[(2, 3_000), (3, 0)]);
        assert_eq!(set, [Finding::Off(NodeId(2), 3_000, 3)]);
        assert_eq!(look(&mut watch, 9, &[(2, 90_000), (3, 0)]).len(), 1);
        assert_eq!(look(&mut watch, 1, &[(2, 0), (3, 0)]), [Finding::RightAgain(NodeId(2))]);
    }

    #[test]
    fn the_own_clock_is_named_like_any_other() {
        let mut watch = ClockWatch::default();
        let found = look(&mut watch, 3, &[(2, -3_600_000), (3, -3_600_020)]);
        assert_eq!(found, [Finding::Off(ME, 3_600_000, 3)]);
    }

    #[test]
    fn half_a_second_or_a_moment_is_nothing() {
        let mut watch = ClockWatch::default();
        assert_eq!(look(&mut watch, 400, &[(2, 500), (3, 0)]), []);
        for _ in 0..10 {
            assert_eq!(look(&mut watch, 2, &[(2, -9_000), (3, 0)]), []);
            assert_eq!(look(&mut watch, 1, &[(2, 0), (3, 0)]), []);
        }
        // Who has fallen silent has no clock, and begins anew.
        assert_eq!(look(&mut watch, 2, &[(2, 9_000), (3, 0)]), []);
        assert_eq!(look(&mut watch, 1, &[(3, 0)]), []);
        assert_eq!(look(&mut watch, 2, &[(2, 9_000), (3, 0)]), []);
    }

    #[test]
    fn of_two_clocks_the_faster_is_named_and_one_alone_is_right() {
        let mut watch = ClockWatch::default();
        let found = look(&mut watch, 3, &[(2, -600_000)]);
        assert_eq!(found, [Finding::Off(ME, 600_000, 2)]);
        assert_eq!(look(&mut ClockWatch::default(), 10, &[]), []);
    }
}
