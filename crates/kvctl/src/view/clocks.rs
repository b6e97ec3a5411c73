//! Clock offsets: the wall clocks of the nodes compared with each other, from the offsets that
//! nodes measure to their peers.

use std::collections::{BTreeMap, VecDeque};

use super::{Answer, View, node_names};
use crate::duration;

/// Maximum offset of a correct clock from the median of all, in milliseconds. Nodes keep the log
/// time as close to the wall clock.
const OFF_MS: u64 = 500;

/// Offset of each node's clock from the median of all known clocks, in milliseconds, positive if
/// ahead. The median of an even number is the smaller of the middle two. Nodes with a clock that is
/// compared with no other are left out.
pub(super) fn ahead_of_median(answers: &[Answer]) -> BTreeMap<u64, i64> {
    let mut edges: BTreeMap<u64, Vec<(u64, i64)>> = BTreeMap::new();
    for status in answers.iter().filter_map(|answer| answer.status.as_ref().ok()) {
        for peer in &status.peers {
            let Some(offset) = peer.clock_offset_ms else { continue };
            edges.entry(status.node_id).or_default().push((peer.node_id, offset));
            edges.entry(peer.node_id).or_default().push((status.node_id, offset.saturating_neg()));
        }
    }
    // Not every pair of nodes is connected: offsets are summed along shortest paths from one node.
    let mut ahead = BTreeMap::new();
    let mut reached: VecDeque<(u64, i64)> = edges.keys().take(1).map(|node| (*node, 0)).collect();
    while let Some((node, clock)) = reached.pop_front() {
        if ahead.contains_key(&node) {
            continue;
        }
        ahead.insert(node, clock);
        let others = edges.get(&node).into_iter().flatten();
        reached.extend(others.map(|(other, offset)| (*other, clock.saturating_add(*offset))));
    }
    let mut clocks: Vec<i64> = ahead.values().copied().collect();
    clocks.sort_unstable();
    let median = clocks.len().checked_sub(1).map_or(0, |last| clocks[last / 2]);
    ahead.into_iter().map(|(node, clock)| (node, clock.saturating_sub(median))).collect()
}

/// Whether a clock with this offset, in milliseconds, is wrong.
pub(super) fn is_off(ahead_ms: i64) -> bool {
    ahead_ms.unsigned_abs() > OFF_MS
}

impl View {
    /// A sentence for each wrong clock; of two clocks it is not known which one is wrong.
    pub(super) fn clock_problems(&self) -> Vec<String> {
        let known = self.nodes.iter().filter_map(|node| Some((node.id?, node.clock_ahead_ms?)));
        let known: BTreeMap<u64, i64> = known.collect();
        let off = known.iter().filter(|(_, ahead)| is_off(**ahead));
        let sentence = |(node, ahead): (&u64, &i64)| {
            let by = duration::show_rough(std::time::Duration::from_millis(ahead.unsigned_abs()));
            if known.len() == 2 {
                let both: Vec<u64> = known.keys().copied().collect();
                return format!("the clocks of {} are {by} apart", node_names(&both));
            }
            let side = if *ahead > 0 { "ahead of" } else { "behind" };
            format!("the clock of n{node} is {by} {side} the median of {} nodes", known.len())
        };
        off.map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{healthy_three, map};
    use super::*;
    use crate::wire::PeerStatus;

    /// Three nodes. Each row has the reporting node, the other node, and how far the other's clock
    /// is ahead.
    fn view(said: &[(u64, u64, i64)]) -> View {
        let mut answers = healthy_three();
        for (by, of, offset) in said {
            let Ok(status) = &mut answers[*by as usize - 1].status else { unreachable!() };
            let clock_offset_ms = Some(*offset);
            status.peers.push(PeerStatus { node_id: *of, clock_offset_ms, ..Default::default() });
        }
        View::of(answers, Some(map(2)))
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let said = [(1, 2, 3_590_000), (1, 3, 5), (2, 1, -3_590_020), (3, 2, 3_589_990)];
        let view = view(&said);
        assert!(view.healthy());
        assert_eq!(
            view.problems(),
            ["the clock of n2 is 59 min 49 s ahead of the median of 3 nodes"]
        );
        assert_eq!(view.nodes[0].id, Some(2), "it is listed first");
        let ahead: Vec<_> = view.nodes.iter().map(|node| node.clock_ahead_ms).collect();
        assert_eq!(ahead, [Some(3_589_995), Some(-5), Some(0)]);
    }

    #[test]
    fn nodes_that_do_not_hear_each_other_are_compared_through_one_that_hears_both() {
        let view = view(&[(1, 2, 3_000), (1, 3, 3_010)]);
        assert_eq!(view.problems(), ["the clock of n1 is 3 s behind the median of 3 nodes"]);
    }

    #[test]
    fn of_two_clocks_none_is_blamed() {
        let view = view(&[(2, 3, -600_000)]);
        assert_eq!(view.problems(), ["the clocks of n2 n3 are 10 min 0 s apart"]);
    }

    #[test]
    fn half_a_second_is_not_a_problem() {
        assert_eq!(view(&[(1, 2, 500), (1, 3, -500)]).problems(), [""; 0]);
        assert_eq!(view(&[]).problems(), [""; 0]);
    }
}
