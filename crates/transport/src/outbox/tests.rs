use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_raft::{
    Entry, EntryKind, Index, LogId, Message, NodeId, Replica, ReplicationSession, Term, Timing,
};

use super::*;

const FRAME_BYTES: usize = 10_000;
const QUEUE_BYTES: usize = 50_000;

fn envelope(group: u64, to: u64, message: Message) -> Envelope {
    Envelope {
        group: GroupId(group),
        from: Replica::new(ReplicaId(1), NodeId(1)),
        to: Replica::new(ReplicaId(to), NodeId(2)),
        term: Term(1),
        message,
    }
}

fn heartbeat(group: u64, round: u64) -> Envelope {
    let timing = Timing { round, ..Timing::default() };
    envelope(
        group,
        2,
        Message::Heartbeat { session: ReplicationSession::default(), commit: Index(0), timing },
    )
}

fn append(group: u64, index: u64, payload_bytes: usize) -> Envelope {
    let entry = Entry {
        term: Term(1),
        index: Index(index),
        kind: EntryKind::Command,
        stamp: index,
        payload: Bytes::from(vec![1; payload_bytes]),
    };
    let message = Message::Append {
        session: ReplicationSession::default(),
        prev: LogId::ZERO,
        commit: Index(0),
        entries: vec![entry],
        timing: Timing::default(),
    };
    envelope(group, 2, message)
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn open<Q: Queue>() -> (Outbox<Q>, u64) {
    let outbox = Outbox::new(QUEUE_BYTES, FRAME_BYTES);
    let generation = outbox.begin();
    outbox.open();
    (outbox, generation)
}

fn poll<Q: Queue>(outbox: &Outbox<Q>, generation: u64) -> Poll<Option<(u64, Vec<Envelope>)>> {
    let frame = outbox.poll_frame(generation, &Context::from_waker(Waker::noop()));
    frame.map(|frame| frame.map(|frame| (frame.number, frame.messages)))
}

fn frame<Q: Queue>(outbox: &Outbox<Q>, generation: u64) -> Vec<Envelope> {
    match poll(outbox, generation) {
        Poll::Ready(Some((_, messages))) => messages,
        other => panic!("no frame: {other:?}"),
    }
}

#[test]
fn of_each_kind_between_the_same_replicas_the_latest_wins() {
    let (outbox, generation) = open::<LatestQueue>();
    for round in 1..=3 {
        for group in [7, 8] {
            assert!(outbox.put(heartbeat(group, round)));
        }
    }
    let vote = envelope(7, 2, Message::VoteReply { asked: Term(1), granted: true });
    let other_replica = envelope(7, 5, Message::VoteReply { asked: Term(1), granted: false });
    assert!(outbox.put(vote.clone()));
    assert!(outbox.put(other_replica.clone()));
    let merged = frame(&outbox, generation);
    assert_eq!(merged, [vote, other_replica, heartbeat(7, 3), heartbeat(8, 3)]);
    assert!(poll(&outbox, generation).is_pending());
}

#[test]
fn a_frame_is_bounded_and_a_larger_message_goes_alone() {
    let (outbox, generation) = open::<FifoQueue>();
    for (index, bytes) in [(1, 4_000), (2, 4_000), (3, 4_000), (4, 30_000), (5, 10)] {
        assert!(outbox.put(append(1, index, bytes)));
    }
    let sizes: Vec<usize> = (0..4).map(|_| frame(&outbox, generation).len()).collect();
    assert_eq!(sizes, [2, 1, 1, 1]);
    assert!(poll(&outbox, generation).is_pending());
    assert_eq!(outbox.bytes(), 0);
}

#[test]
fn large_messages_leave_room_in_the_bulk_queue_for_small_ones() {
    let large = 100_000;
    let outbox = Outbox::<FifoQueue>::new(10 * large, FRAME_BYTES);
    outbox.begin();
    outbox.open();
    let taken = (1..=100).take_while(|index| outbox.put(append(1, *index, large))).count();
    assert_eq!(taken, 7, "of 10 that would fit");
    let small = (1..=100).take_while(|index| outbox.put(append(2, *index, 10))).count();
    assert_eq!(small, 100, "another group's entries");
}

/// With more slots than a frame holds, and the low ones filled again and again, every slot gets
/// out.
#[test]
fn no_slot_waits_behind_busier_ones() {
    let (outbox, generation) = open::<LatestQueue>();
    let groups = 100;
    let mut seen = BTreeSet::new();
    for round in 0..20 {
        (1..=groups).for_each(|group| assert!(outbox.put(heartbeat(group, round))));
        let taken = frame(&outbox, generation);
        assert!(taken.iter().map(convert::size_bound).sum::<usize>() <= FRAME_BYTES);
        seen.extend(taken.iter().map(|envelope| envelope.group.0));
        if seen.len() as u64 == groups {
            return;
        }
    }
    panic!("only {seen:?} got out");
}

#[test]
fn a_full_bulk_queue_drops_the_new_message_and_keeps_the_order() {
    let (outbox, generation) = open::<FifoQueue>();
    let taken = (1..=100).take_while(|index| outbox.put(append(1, *index, 5_000))).count();
    assert!((8..=10).contains(&taken), "{taken} messages of 5,000 bytes in 50,000");
    assert!(outbox.bytes() <= QUEUE_BYTES);
    assert_eq!(outbox.counts().dropped, 1);
    let first = frame(&outbox, generation);
    assert_eq!(first, [append(1, 1, 5_000)]);
    assert!(outbox.put(append(1, 200, 4_000)), "there is room again");
}

#[test]
fn a_message_above_the_queue_bound_passes_an_empty_queue() {
    let (outbox, generation) = open::<FifoQueue>();
    assert!(outbox.put(append(1, 1, QUEUE_BYTES * 2)));
    assert!(!outbox.put(append(1, 2, 1)));
    assert_eq!(frame(&outbox, generation).len(), 1);
    assert!(outbox.put(append(1, 2, 1)));
}

#[test]
fn without_a_connection_bulk_is_dropped_and_control_waits() {
    let bulk = Outbox::<FifoQueue>::new(QUEUE_BYTES, FRAME_BYTES);
    assert!(!bulk.put(append(1, 1, 1)));
    let control = Outbox::<LatestQueue>::new(QUEUE_BYTES, FRAME_BYTES);
    assert!(control.put(heartbeat(1, 1)));
    let generation = control.begin();
    assert!(poll(&control, generation).is_pending(), "nothing before the Hello is accepted");
    control.open();
    assert_eq!(frame(&control, generation), [heartbeat(1, 1)]);
}

#[test]
fn a_cut_names_each_replica_whose_messages_may_be_lost_once() {
    let (outbox, generation) = open::<FifoQueue>();
    assert!(outbox.put(append(1, 1, 1)));
    let _read_by_the_peer = frame(&outbox, generation);
    assert!(outbox.put(append(2, 1, 1)));
    let _under_way = frame(&outbox, generation);
    for index in 2..5 {
        assert!(outbox.put(append(2, index, 1)));
        assert!(outbox.put(append(3, index, 1)));
    }
    outbox.acknowledge(1).unwrap();
    assert_eq!(outbox.cut(), [(GroupId(2), ReplicaId(2)), (GroupId(3), ReplicaId(2))]);
    assert_eq!(outbox.bytes(), 0);
    assert!(matches!(poll(&outbox, generation), Poll::Ready(None)), "the old stream ends");
    assert!(outbox.cut().is_empty());
}

#[test]
fn what_was_never_sent_cannot_be_acknowledged() {
    let (outbox, generation) = open::<LatestQueue>();
    assert!(outbox.put(heartbeat(1, 1)));
    frame(&outbox, generation);
    assert_eq!(outbox.acknowledge(2), Err("it acknowledges frame 2 of 1".into()));
    assert!(outbox.silent_for().is_some());
    outbox.acknowledge(1).unwrap();
    assert_eq!(outbox.silent_for(), None);
}

#[test]
fn many_messages_wake_a_waiting_connection_once() {
    let (outbox, generation) = open::<LatestQueue>();
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    assert_eq!(frame(&outbox, generation), [], "each connection begins with the reports");
    assert!(outbox.poll_frame(generation, &Context::from_waker(&waker)).is_pending());
    for group in 0..50 {
        outbox.put(heartbeat(group, 1));
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    outbox.wake();
    outbox.wake();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
}

proptest! {
    /// The bulk lane against a plain list: what is taken is what was accepted, in order, and queue
    /// and frames keep their bounds.
    #[test]
    fn bulk_is_a_bounded_queue(
            steps in proptest::collection::vec((any::<bool>(), 0..20_000_usize), 1..80),
        ) {
        let (outbox, generation) = open::<FifoQueue>();
        let (mut accepted, mut taken) = (Vec::new(), Vec::new());
        for (index, (put, bytes)) in steps.into_iter().enumerate() {
            if put {
                let message = append(1, index as u64, bytes);
                if outbox.put(message.clone()) {
                    accepted.push(message);
                }
            } else if let Poll::Ready(Some((_, frame))) = poll(&outbox, generation) {
                let bytes: usize = frame.iter().map(convert::size_bound).sum();
                prop_assert!(bytes <= FRAME_BYTES || frame.len() == 1);
                taken.extend(frame);
            }
            prop_assert!(outbox.bytes() <= QUEUE_BYTES);
        }
        while let Poll::Ready(Some((_, frame))) = poll(&outbox, generation) {
            taken.extend(frame);
        }
        prop_assert_eq!(taken, accepted);
    }
}
