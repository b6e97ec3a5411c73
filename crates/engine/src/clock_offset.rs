//! The wall clocks of the other nodes: recorded as heartbeats and their replies arrive, published
//! once a second, and, with this node's own, the median that dates new sessions.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_machine::median;
use quorate_raft::{Envelope, Message, NodeId};

use crate::clock::Moment;

/// A node has an offset until it has reported nothing for this long.
const RECENT_MS: u64 = 10_000;

/// The last report of a node counts in the median for this long: after an hour a clock is still
/// known to a fraction of a second, and the median of few clocks is better with it.
const KNOWN_MS: u64 = 3_600_000;

/// The wall clocks of the other nodes.
///
/// A report is the sender's clock at the time it made the message, and is recorded as its clock at
/// the time of arrival: too low by the transit time, and never too high. So the largest reading of
/// a second counts, that of the message with the shortest transit time. It is kept as an offset
/// from the time since boot: so the other clock advances until the next report, and a change of
/// this node's own wall clock does not move it.
#[derive(Debug, Default)]
pub struct ClockOffsets {
    nodes: Mutex<BTreeMap<NodeId, Noted>>,
}

#[derive(Debug)]
struct Noted {
    /// Their wall clock less our time since boot, in milliseconds.
    from_boot_ms: i64,
    /// When they last reported, in milliseconds since boot.
    at_ms: u64,
    /// `from_boot_ms` was published, so the next report replaces it.
    published: bool,
}

impl Noted {
    /// Their wall clock now, in Unix milliseconds.
    fn wall_ms(&self, now: Moment) -> u64 {
        now.boot_ms.saturating_add_signed(self.from_boot_ms)
    }

    /// Their wall clock less ours, in milliseconds.
    fn ahead_ms(&self, now: Moment) -> i64 {
        difference(self.wall_ms(now), now.wall_ms)
    }

    fn is_recent(&self, now: Moment) -> bool {
        now.boot_ms.saturating_sub(self.at_ms) < RECENT_MS
    }
}

/// `a - b`, saturating.
fn difference(a: u64, b: u64) -> i64 {
    a.checked_signed_diff(b).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
}

/// The newest clock, in Unix milliseconds, that these messages of one node report.
///
/// Only heartbeats and their replies count: they leave immediately, while the reply to an append
/// waits for the disk. Between nodes that share a group with its leader they arrive several times a
/// second.
#[must_use]
pub fn reported(messages: &[Envelope]) -> Option<u64> {
    let clocks = messages.iter().map(|envelope| match &envelope.message {
        Message::Heartbeat { timing, .. } | Message::HeartbeatReply { timing, .. } => timing.clock,
        _ => 0,
    });
    // 0 = unknown.
    clocks.max().filter(|clock| *clock != 0)
}

impl ClockOffsets {
    /// Records that a message of `node` reported the clock `theirs_ms`, in Unix milliseconds, and
    /// arrived now.
    pub fn note(&self, node: NodeId, theirs_ms: u64, now: Moment) {
        let from_boot_ms = difference(theirs_ms, now.boot_ms);
        let mut nodes = self.nodes.lock();
        let noted = nodes.entry(node).or_insert(Noted {
            from_boot_ms,
            at_ms: now.boot_ms,
            published: false,
        });
        let largest =
            if noted.published { from_boot_ms } else { noted.from_boot_ms.max(from_boot_ms) };
        *noted = Noted { from_boot_ms: largest, at_ms: now.boot_ms, published: false };
    }

    /// The median of the wall clocks that this node knows, including its own, in Unix milliseconds:
    /// the smaller of two, and its own if it knows no other. The leaders of shards bound the log
    /// time by the same rule, so they accept a session dated by this median whatever any single
    /// clock shows.
    pub fn median_ms(&self, now: Moment) -> u64 {
        let nodes = self.nodes.lock();
        let known = nodes.values().filter(|n| now.boot_ms.saturating_sub(n.at_ms) < KNOWN_MS);
        let mut clocks: Vec<u64> = known.map(|noted| noted.wall_ms(now)).collect();
        clocks.push(now.wall_ms);
        median(&mut clocks).unwrap_or(now.wall_ms)
    }

    /// The wall clock less ours, in milliseconds, of each node that reported within the last 10 s.
    pub fn recent_ms(&self, now: Moment) -> BTreeMap<NodeId, i64> {
        let nodes = self.nodes.lock();
        let recent = nodes.iter().filter(|(_, noted)| noted.is_recent(now));
        recent.map(|(node, noted)| (*node, noted.ahead_ms(now))).collect()
    }

    /// The offsets to publish now, in seconds: one for each node that reported within the last 10
    /// s, and `None` for each that no longer does.
    pub fn publish(&self, now: Moment) -> Vec<(NodeId, Option<f64>)> {
        let mut all = Vec::new();
        self.nodes.lock().retain(|node, noted| {
            let seconds = noted.ahead_ms(now) as f64 / 1000.0;
            noted.published = true;
            all.push((*node, noted.is_recent(now).then_some(seconds)));
            now.boot_ms.saturating_sub(noted.at_ms) < KNOWN_MS
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{GroupId, Index, Replica, ReplicationSession, Term, Timing};

    use super::*;

    const PEER: NodeId = NodeId(2);

    fn envelope(message: Message) -> Envelope {
        let (from, to) = (Replica::default(), Replica::default());
        Envelope { group: GroupId(1), from, to, term: Term(1), message }
    }

    fn at(wall_ms: u64, boot_ms: u64) -> Moment {
        Moment { wall_ms, boot_ms }
    }

    #[test]
    fn of_the_messages_of_a_frame_the_newest_clock_counts() {
        let (session, commit) = (ReplicationSession::default(), Index(0));
        let timing = |clock| Timing { clock, ..Timing::default() };
        let heartbeat =
            |clock| envelope(Message::Heartbeat { session, commit, timing: timing(clock) });
        let answer = |clock| {
            let timing = timing(clock);
            envelope(Message::HeartbeatReply { session, installing: false, last: None, timing })
        };
        let vote = envelope(Message::VoteReply { asked: Term(1), granted: true });
        assert_eq!(reported(&[heartbeat(5), answer(7), vote.clone(), heartbeat(6)]), Some(7));
        assert_eq!(reported(&[vote, heartbeat(0)]), None, "0 = unknown");
        assert_eq!(reported(&[]), None);
    }

    #[test]
    fn the_report_with_the_shortest_transit_time_counts() {
        let offsets = ClockOffsets::default();
        // Their clock is 40 s ahead; the messages took 900, 1 and 300 ms.
        offsets.note(PEER, 140_000, at(100_900, 900));
        offsets.note(PEER, 141_000, at(101_001, 1_001));
        offsets.note(PEER, 142_000, at(102_300, 2_300));
        assert_eq!(offsets.publish(at(102_400, 2_400)), [(PEER, Some(39.999))]);
        // Their clock was corrected since and is now 2 s behind: the published offset is replaced.
        offsets.note(PEER, 101_000, at(103_000, 3_000));
        assert_eq!(offsets.publish(at(103_400, 3_400)), [(PEER, Some(-2.0))]);
    }

    #[test]
    fn a_node_that_stopped_reporting_has_no_offset_and_counts_in_the_median_for_an_hour() {
        let offsets = ClockOffsets::default();
        offsets.note(PEER, 2_000, at(5_000, 1_000));
        assert_eq!(offsets.publish(at(10_000, 6_000)), [(PEER, Some(-3.0))]);
        assert_eq!(offsets.publish(at(15_000, 11_000)), [(PEER, None)]);
        assert!(offsets.recent_ms(at(15_000, 11_000)).is_empty());
        assert_eq!(offsets.median_ms(at(15_000, 11_000)), 12_000, "it has advanced");
        let later = at(3_605_000, 3_601_000);
        assert_eq!(offsets.median_ms(later), later.wall_ms);
        assert_eq!(offsets.publish(later), [(PEER, None)]);
        assert_eq!(offsets.publish(later), []);
    }

    #[test]
    fn a_change_of_the_own_clock_is_seen_immediately() {
        let offsets = ClockOffsets::default();
        for node in [2, 3] {
            offsets.note(NodeId(node), 1_000_000, at(1_000_000, 500));
        }
        // The own clock was set an hour ahead since, and a second has passed.
        let now = at(4_601_000, 1_500);
        assert_eq!(offsets.median_ms(now), 1_001_000);
        assert_eq!(offsets.recent_ms(now), [(PEER, -3_600_000), (NodeId(3), -3_600_000)].into());
    }

    #[test]
    fn no_single_wrong_clock_moves_the_median() {
        const YEAR_MS: u64 = 365 * 24 * 3_600_000;
        const NOW_MS: u64 = 1_700_000_000_000;
        let median = |own: u64, others: &[u64]| {
            let offsets = ClockOffsets::default();
            let now = at(own, 77);
            for (node, clock) in (2..).zip(others) {
                offsets.note(NodeId(node), *clock, now);
            }
            offsets.median_ms(now)
        };
        for wrong in [NOW_MS - 3_000, NOW_MS + 3_000, NOW_MS - YEAR_MS, NOW_MS + YEAR_MS, 0] {
            assert_eq!(median(wrong, &[NOW_MS, NOW_MS]), NOW_MS, "the own clock is off");
            assert_eq!(median(NOW_MS, &[wrong, NOW_MS]), NOW_MS, "another one is");
            assert_eq!(median(NOW_MS, &[wrong]), NOW_MS.min(wrong), "of two the smaller");
            assert_eq!(median(wrong, &[NOW_MS]), NOW_MS.min(wrong), "on both of them");
            assert_eq!(median(wrong, &[]), wrong, "a single node, or no report yet");
        }
    }
}
