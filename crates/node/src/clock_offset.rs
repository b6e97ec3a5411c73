//! How far the wall clocks of the other nodes stand from ours: noted as heartbeats and their answers
//! arrive, published once a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_raft::{Envelope, Message, NodeId};

/// A node that has reported nothing for so long has no offset any more.
const RECENT: Duration = Duration::from_secs(10);

/// The wall clocks of the other nodes less ours, in seconds.
///
/// A report is what the sender's clock showed when it made the message, and it is compared with ours
/// as the message arrives: the difference is too small by the time between, and never too large. So
/// the largest difference of a second counts, that of the message which was under way for the
/// shortest time.
#[derive(Debug, Default)]
pub struct ClockOffsets {
    nodes: Mutex<BTreeMap<NodeId, Noted>>,
}

#[derive(Debug)]
struct Noted {
    seconds: f64,
    at: Instant,
    /// `seconds` was published, so the next report begins anew.
    published: bool,
}

/// The newest clock, in Unix milliseconds, that these messages of one node report.
///
/// Heartbeats and their answers alone are asked: they leave at once, while the answer to an append
/// waits for the disk. Where a node leads a group here or follows one, some come several times a
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
    /// Notes that a message of `node` reported the clock `theirs` and arrived when ours showed `ours`,
    /// both in Unix milliseconds.
    pub fn note(&self, node: NodeId, theirs: u64, ours: u64, now: Instant) {
        let seconds = (theirs as f64 - ours as f64) / 1000.0;
        let mut nodes = self.nodes.lock();
        let noted = nodes.entry(node).or_insert(Noted { seconds, at: now, published: false });
        let largest = if noted.published { seconds } else { noted.seconds.max(seconds) };
        *noted = Noted { seconds: largest, at: now, published: false };
    }

    /// What to publish now: the offset of each node that reported within the last 10 s, and `None`,
    /// once, for each that no longer does.
    pub fn publish(&self, now: Instant) -> Vec<(NodeId, Option<f64>)> {
        let mut all = Vec::new();
        self.nodes.lock().retain(|node, noted| {
            let recent = now.saturating_duration_since(noted.at) < RECENT;
            noted.published = true;
            all.push((*node, recent.then_some(noted.seconds)));
            recent
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{GroupId, Index, Replica, SessionId, Term, Timing};

    use super::*;

    const PEER: NodeId = NodeId(2);

    fn envelope(message: Message) -> Envelope {
        let (from, to) = (Replica::default(), Replica::default());
        Envelope { group: GroupId(1), from, to, term: Term(1), message }
    }

    #[test]
    fn of_the_messages_of_a_frame_the_newest_clock_counts() {
        let (session, commit) = (SessionId::default(), Index(0));
        let timing = |clock| Timing { clock, ..Timing::default() };
        let beat = |clock| envelope(Message::Heartbeat { session, commit, timing: timing(clock) });
        let answer = |clock| {
            let timing = timing(clock);
            envelope(Message::HeartbeatReply { session, installing: false, timing })
        };
        let vote = envelope(Message::VoteReply { granted: true });
        assert_eq!(reported(&[beat(5), answer(7), vote.clone(), beat(6)]), Some(7));
        assert_eq!(reported(&[vote, beat(0)]), None, "0 = unknown");
        assert_eq!(reported(&[]), None);
    }

    #[test]
    fn the_report_that_was_under_way_for_the_shortest_time_counts() {
        let offsets = ClockOffsets::default();
        let now = Instant::now();
        // Their clock is 40 s ahead; the messages took 900, 1 and 300 ms.
        offsets.note(PEER, 140_000, 100_900, now);
        offsets.note(PEER, 141_000, 101_001, now);
        offsets.note(PEER, 142_000, 102_300, now);
        assert_eq!(offsets.publish(now), [(PEER, Some(39.999))]);
        // Set right since, and now 2 s behind: what was published before does not hold it up.
        offsets.note(PEER, 98_000, 100_000, now);
        assert_eq!(offsets.publish(now), [(PEER, Some(-2.0))]);
    }

    #[test]
    fn a_node_that_fell_silent_has_no_offset() {
        let offsets = ClockOffsets::default();
        let start = Instant::now();
        offsets.note(PEER, 2_000, 1_000, start);
        assert_eq!(offsets.publish(start + RECENT / 2), [(PEER, Some(1.0))]);
        assert_eq!(offsets.publish(start + RECENT), [(PEER, None)]);
        assert_eq!(offsets.publish(start + RECENT), []);
    }
}
