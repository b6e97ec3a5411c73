//! Log retention for a follower that receives a snapshot slowly while its leader accepts writes:
//! the log that it needs after the snapshot must still exist when the snapshot has arrived.

use std::collections::VecDeque;

use crate::support::{Bench, plain, replica};
use bytes::Bytes;
use quorate_raft::{
    AppendResult, Config, Envelope, Index, LogId, Message, SnapshotMeta, SnapshotSend, Ticks,
    Timing,
};

/// The payload of the entry written in each tick.
const ENTRY_BYTES: usize = 1 << 10;
/// The log that is kept for an ordinary follower: that of sixteen ticks.
const RETAIN_BYTES: u64 = 16 << 10;
/// Ticks between two checkpoints.
const CHECKPOINT_INTERVAL: u64 = 4;
/// The number of messages that reach the slow follower per tick.
const WIRE: usize = 3;

/// A leader, a follower that answers immediately, and one on a slow link.
struct Trio {
    leader: Bench,
    quick: Bench,
    slow: Bench,
    /// The messages in flight to the slow follower; `None` while it is cut off.
    wire: Option<VecDeque<Envelope>>,
    ticks: u64,
    /// The index of the last checkpoint.
    checkpoint: u64,
    /// The snapshot in transfer, and the tick of its arrival.
    transfer: Option<(SnapshotSend, SnapshotMeta, u64)>,
    transfers: usize,
}

impl Trio {
    fn new(config: &Config) -> Self {
        let bench = |id| Bench::with(config.clone(), id, 3, 1, &[]);
        let mut trio = Self {
            leader: bench(1),
            quick: bench(2),
            slow: bench(3),
            wire: None,
            ticks: 0,
            checkpoint: 0,
            transfer: None,
            transfers: 0,
        };
        let sent = trio.leader.elect();
        trio.carry(sent);
        trio
    }

    /// Delivers messages and their answers until only the slow link holds any.
    fn carry(&mut self, sent: Vec<Envelope>) {
        let mut sent = VecDeque::from(sent);
        while let Some(Envelope { from, to, term, message, .. }) = sent.pop_front() {
            let (from, term) = (from.id.0, term.0);
            match to.id.0 {
                1 => sent.extend(self.leader.step(from, term, message)),
                2 => sent.extend(self.quick.step(from, term, message)),
                _ => {
                    let to = replica(3);
                    let from = replica(from);
                    let (group, term) = (crate::support::GROUP, quorate_raft::Term(term));
                    let envelope = Envelope { group, from, to, term, message };
                    self.wire.iter_mut().for_each(|wire| wire.push_back(envelope.clone()));
                }
            }
        }
    }

    /// One tick: a write, a few messages over the slow link, perhaps a checkpoint, and progress of
    /// the snapshot transfer.
    fn tick(&mut self, transfer_takes: u64) {
        self.ticks += 1;
        let mut sent = self.leader.tick(1);
        let now = Ticks(self.leader.now);
        let payload = Bytes::from(vec![7; ENTRY_BYTES]);
        self.leader.raft.propose(now, payload, 0).expect("the leader accepts it");
        sent.extend(self.leader.drain());
        self.carry(sent);
        for _ in 0..WIRE {
            let next = self.wire.as_mut().and_then(VecDeque::pop_front);
            let Some(Envelope { from, term, message, .. }) = next else { break };
            let answers = self.slow.step(from.id.0, term.0, message);
            self.carry(answers);
        }
        if self.ticks.is_multiple_of(CHECKPOINT_INTERVAL) {
            self.checkpoint = self.leader.applied.last().map_or(0, |last| last.index.0);
            self.leader.raft.compact(Index(self.checkpoint));
        }
        if let Some(order) = self.leader.snapshots.pop() {
            assert!(self.checkpoint >= order.at_least.0);
            let meta = SnapshotMeta {
                last: self.leader.applied[self.checkpoint as usize - 1],
                stamp: 0,
                membership: self.leader.raft.membership().clone(),
            };
            let (now, to) = (Ticks(self.leader.now), order.to.id);
            let last = meta.last.index;
            assert!(self.leader.raft.snapshot_begins(now, to, order.session, last));
            self.transfers += 1;
            self.transfer = Some((order, meta, self.ticks + transfer_takes));
        }
        if self.transfer.as_ref().is_some_and(|(_, _, arrives)| *arrives <= self.ticks) {
            self.arrive();
        }
    }

    /// Delivers the snapshot and installs it.
    fn arrive(&mut self) {
        let Some((order, meta, _)) = self.transfer.take() else { return };
        let now = Ticks(self.leader.now);
        self.leader.raft.snapshot_sent(now, order.to.id, order.session, true);
        let mut answers = self.leader.drain();
        let message = Message::InstallSnapshot { session: order.session, meta };
        answers.extend(self.slow.step(1, order.term.0, message));
        answers.extend(self.slow.end_install(true));
        self.carry(answers);
    }

    /// Runs for up to `within` ticks; returns whether the slow follower came within four entries of
    /// the leader.
    fn catches_up(&mut self, within: u64, transfer_takes: u64) -> bool {
        (0..within).any(|_| {
            self.tick(transfer_takes);
            let last = |bench: &Bench| bench.raft.status().last.index.0;
            last(&self.slow) + 4 >= last(&self.leader)
        })
    }
}

#[test]
fn a_slow_receiver_catches_up_under_steady_writes_after_one_snapshot() {
    let config = Config { retain_bytes: RETAIN_BYTES, ..plain() };
    let mut trio = Trio::new(&config);
    // The follower is cut off for longer than the log is kept for it.
    (0..200).for_each(|_| trio.tick(0));
    trio.wire = Some(VecDeque::new());
    // Forty entries are written during a snapshot transfer: more than is kept for an ordinary
    // follower.
    assert!(trio.catches_up(400, 40), "{} snapshots were not enough", trio.transfers);
    assert_eq!(trio.transfers, 1);
    // The log kept for it is dropped once it has caught up.
    trio.tick(0);
    (0..CHECKPOINT_INTERVAL).for_each(|_| trio.tick(0));
    assert!(trio.leader.raft.log_bytes() <= RETAIN_BYTES, "{}", trio.leader.raft.log_bytes());
    assert_eq!(trio.leader.raft.kept_for_receivers(Index(trio.checkpoint)), 0);
}

#[test]
fn the_log_kept_for_a_receiver_is_bounded() {
    let config =
        Config { retain_bytes: RETAIN_BYTES, receiver_retain_bytes: 2 * RETAIN_BYTES, ..plain() };
    let mut trio = Trio::new(&config);
    (0..200).for_each(|_| trio.tick(0));
    trio.wire = Some(VecDeque::new());
    // The transfer never ends.
    let never = 1_000;
    let most = (0..200).map(|_| {
        trio.tick(never);
        trio.leader.raft.log_bytes()
    });
    let most = most.max().unwrap_or(0);
    let since_the_checkpoint = CHECKPOINT_INTERVAL * 2 * ENTRY_BYTES as u64;
    assert_eq!(trio.transfers, 1);
    let kept = trio.leader.raft.kept_for_receivers(Index(trio.checkpoint));
    assert!(kept <= RETAIN_BYTES, "{kept}");
    assert!(most > RETAIN_BYTES + since_the_checkpoint, "{most}");
    assert!(most <= 2 * RETAIN_BYTES + since_the_checkpoint, "{most}");
}

/// The follower had received entries whose acknowledgements arrive while the order for its snapshot
/// waits for a turn.
#[test]
fn a_snapshot_that_ends_before_what_the_follower_holds_is_not_begun() {
    let config = Config { retain_entries: 1, receiver_retain_entries: 1, ..plain() };
    let mut leader = Bench::with(config, 1, 3, 1, &[]);
    leader.elect();
    for _ in 0..40 {
        leader.propose("x");
    }
    leader.acknowledge(2, 41);
    leader.acknowledge(3, 1);
    leader.raft.compact(Index(41));
    let session = leader.session(3);
    let result = AppendResult::Rejected { prev: Index(41), hint: LogId::ZERO };
    let missing = Message::AppendReply { session, result, timing: Timing::default() };
    let term = leader.raft.term().0;
    leader.step(3, term, missing);
    let order = leader.snapshots.pop().expect("what it needs is purged");
    let begins = |leader: &mut Bench| {
        let now = Ticks(leader.now);
        leader.raft.snapshot_begins(now, order.to.id, session, Index(41))
    };
    assert!(begins(&mut leader), "it lacks everything");
    leader.acknowledge(3, 41);
    assert!(!begins(&mut leader), "it has all of it by now");
}
