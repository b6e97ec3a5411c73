//! Snapshots arrive whole or not at all, at both ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::snapshot_request::Content;

use super::support::*;
use crate::*;

/// Gives the chunks it was made with; `Err` fails there.
struct Chunks(VecDeque<Result<Bytes, String>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        self.0.pop_front().transpose()
    }
}

fn chunks(sizes: &[usize]) -> Chunks {
    let chunk = |(number, size): (usize, &usize)| Ok(Bytes::from(vec![number as u8; *size]));
    Chunks(sizes.iter().enumerate().map(chunk).collect())
}

fn bytes_of(chunks: &Chunks) -> Vec<u8> {
    chunks.0.iter().flat_map(|chunk| chunk.clone().unwrap()).collect()
}

/// Waits for the gate before each chunk after the first.
struct Gated(Chunks, Arc<Mutex<bool>>, bool);

impl SnapshotSource for Gated {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        while std::mem::replace(&mut self.2, true) && !*self.1.lock() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0.next_chunk()
    }
}

fn send(from: &Node, to: &Node, source: impl SnapshotSource) -> Result<u64, SnapshotError> {
    let header = header(5, from.id(), to.id());
    from.runtime().block_on(async {
        let turn = from.transport.snapshot_turn(to.id()).await?;
        tokio::time::timeout(TIMEOUT, turn.send(&header, source)).await.expect("an end in time")
    })
}

/// The next transfer succeeds, whatever happened before.
fn assert_next_succeeds(from: &Node, to: &Node) {
    let source = chunks(&[10, CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX + 1, 0, 7]);
    let whole = bytes_of(&source);
    assert_eq!(send(from, to, source), Ok(whole.len() as u64));
    to.recorder.wait_for(&Heard::SnapshotDone(whole));
}

#[test]
fn a_snapshot_arrives_whole_and_large_chunks_are_cut() {
    let (_ground, nodes) = cluster(2);
    assert_next_succeeds(&nodes[0], &nodes[1]);
    let begun = Heard::SnapshotBegun(header(5, NodeId(1), NodeId(2)));
    nodes[1].recorder.wait_for(&begun);
    // An empty one is one too.
    assert_eq!(send(&nodes[0], &nodes[1], chunks(&[])), Ok(0));
    nodes[1].recorder.wait_for(&Heard::SnapshotDone(Vec::new()));
    let nowhere = nodes[0].runtime().block_on(nodes[0].transport.snapshot_turn(NodeId(9)));
    assert_eq!(nowhere.unwrap_err(), SnapshotError::NotAPeer(NodeId(9)));
}

fn aborted(node: &Node, part: &str) {
    node.recorder.wait(&format!("an abort with {part:?}"), |heard| {
        heard.iter().find_map(|heard| match heard {
            Heard::SnapshotAborted(why) if why.contains(part) => Some(()),
            _ => None,
        })
    });
    let done = |heard: &Heard| matches!(heard, Heard::SnapshotDone(_));
    assert!(!node.recorder.all().iter().any(done), "nothing was finished");
}

#[test]
fn a_source_that_fails_in_the_middle_leaves_nothing() {
    let (_ground, nodes) = cluster(2);
    let mut source = chunks(&[1_000_000, 1_000_000]);
    source.0.push_back(Err("a record is damaged".into()));
    let ended = send(&nodes[0], &nodes[1], source);
    assert_eq!(ended, Err(SnapshotError::Source("a record is damaged".into())));
    aborted(&nodes[1], "cut before its end");
    assert_next_succeeds(&nodes[0], &nodes[1]);
}

#[test]
fn a_sender_that_dies_in_the_middle_leaves_nothing() {
    let (ground, mut nodes) = cluster(2);
    let gate = Arc::new(Mutex::new(false));
    let (first, rest) = nodes.split_at_mut(1);
    let (sender, receiver) = (&mut first[0], &rest[0]);
    let transport = sender.transport.clone();
    let source = Gated(chunks(&[1_000, 1_000]), Arc::clone(&gate), false);
    sender.runtime().spawn(async move {
        let turn = transport.snapshot_turn(NodeId(2)).await.unwrap();
        turn.send(&header(5, NodeId(1), NodeId(2)), source).await
    });
    receiver.recorder.wait("the begin", |heard| {
        heard.iter().any(|heard| matches!(heard, Heard::SnapshotBegun(_))).then_some(())
    });
    sender.kill();
    *gate.lock() = true;
    aborted(receiver, "cut");
    let targets = ground.targets(&[sender.address, receiver.address]);
    let again = ground.start(0, listen_again(sender.address), &targets, &|_| {});
    assert_next_succeeds(&again, receiver);
}

#[test]
fn a_receiver_that_dies_in_the_middle_fails_the_sender() {
    let (ground, mut nodes) = cluster(2);
    let gate = Arc::new(Mutex::new(false));
    let transport = nodes[0].transport.clone();
    let source = Gated(chunks(&[1_000, 1_000]), Arc::clone(&gate), false);
    let sending = nodes[0].runtime().spawn(async move {
        let turn = transport.snapshot_turn(NodeId(2)).await.unwrap();
        turn.send(&header(5, NodeId(1), NodeId(2)), source).await
    });
    nodes[1].recorder.wait("the begin", |heard| {
        heard.iter().any(|heard| matches!(heard, Heard::SnapshotBegun(_))).then_some(())
    });
    nodes[1].kill();
    *gate.lock() = true;
    let ended = nodes[0].runtime().block_on(sending).unwrap();
    assert!(matches!(ended, Err(SnapshotError::Broke(_))), "{ended:?}");
    let targets = ground.targets(&[nodes[0].address, nodes[1].address]);
    let again = ground.start(1, listen_again(nodes[1].address), &targets, &|_| {});
    assert_next_succeeds(&nodes[0], &again);
}

#[test]
fn a_receiver_that_cannot_take_it_says_why() {
    let (_ground, nodes) = cluster(2);
    for (mode, why, aborts) in [
        (SinkMode::RefuseBegin, "no room for a snapshot", false),
        (SinkMode::FailSecondWrite, "the disk is full", true),
        (SinkMode::FailFinish, "the header could not be written", false),
    ] {
        nodes[1].recorder.clear();
        *nodes[1].recorder.sink_mode.lock() = mode;
        let ended = send(&nodes[0], &nodes[1], chunks(&[300_000; 20]));
        assert_eq!(ended, Err(SnapshotError::Refused(why.into())), "{mode:?}");
        if aborts {
            aborted(&nodes[1], why);
        }
        *nodes[1].recorder.sink_mode.lock() = SinkMode::Take;
        assert_next_succeeds(&nodes[0], &nodes[1]);
    }
}

#[test]
fn a_transfer_that_stands_still_is_given_up_and_holds_no_more_than_its_windows() {
    let ground = Ground::new(2).form("test");
    let listeners = [listener(), listener()];
    let addresses = [0, 1].map(|index: usize| listeners[index].local_addr().unwrap());
    let targets = ground.targets(&addresses);
    let tune = |config: &mut TransportConfig| {
        config.snapshot_stall_max = Duration::from_millis(600);
    };
    let [first, second] = listeners;
    let sender = ground.start(0, first, &targets, &tune);
    let receiver = ground.start(1, second, &targets, &tune);
    *receiver.recorder.sink_mode.lock() = SinkMode::Hang;

    struct Endless(Arc<Mutex<u64>>);
    impl SnapshotSource for Endless {
        fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
            *self.0.lock() += CHUNK_BYTES_MAX as u64;
            Ok(Some(Bytes::from(vec![1; CHUNK_BYTES_MAX])))
        }
    }
    let read = Arc::new(Mutex::new(0));
    let ended = send(&sender, &receiver, Endless(Arc::clone(&read)));
    assert_eq!(ended, Err(SnapshotError::Stalled(Duration::from_millis(600))));
    let read = *read.lock();
    assert!(read < 16 * 1024 * 1024, "{read} bytes were read from a source without a receiver");
    *receiver.recorder.sink_mode.lock() = SinkMode::Take;
    aborted(&receiver, "");
    assert_next_succeeds(&sender, &receiver);
}

#[test]
fn transfers_to_one_peer_take_turns() {
    let (_ground, nodes) = cluster(3);
    let runtime = nodes[0].runtime();
    let short = Duration::from_millis(100);
    let first = runtime.block_on(nodes[0].transport.snapshot_turn(NodeId(2))).unwrap();
    let second =
        async { tokio::time::timeout(short, nodes[0].transport.snapshot_turn(NodeId(2))).await };
    assert!(runtime.block_on(second).is_err(), "the turn is taken");
    // Another peer is another turn.
    runtime.block_on(nodes[0].transport.snapshot_turn(NodeId(3))).unwrap();
    drop(first);
    runtime.block_on(nodes[0].transport.snapshot_turn(NodeId(2))).unwrap();
}

/// A sender that says what the test wants; returns the refusal.
fn send_raw(ground: &Ground, receiver: &Node, contents: Vec<Content>) -> String {
    let start = wire::SnapshotStart {
        hello: Some(hello(ground, wire::Lane::Snapshot)),
        group: 5,
        from: Some(convert::replica_to_wire(replica(NodeId(2)))),
        to: Some(convert::replica_to_wire(replica(NodeId(1)))),
        term: 3,
        session: convert::session_to_wire(Default::default()),
        meta: Some(convert::meta_to_wire(&header(5, NodeId(2), NodeId(1)).meta)),
    };
    send_raw_from(start, receiver, contents)
}

fn send_raw_from(start: wire::SnapshotStart, receiver: &Node, contents: Vec<Content>) -> String {
    receiver.runtime().block_on(async {
        let channel = dial::connect(&receiver.address.to_string()).await.unwrap();
        let (sender, stream) = mpsc::channel(16);
        let say = async |content| {
            sender.send(wire::SnapshotRequest { content: Some(content) }).await.unwrap();
        };
        let claim = proof::Claim::of_hello(start.hello.as_ref().unwrap());
        say(Content::Start(start)).await;
        let mut client = wire::peer_client::PeerClient::new(channel);
        let answers = client.snapshot(ReceiverStream::new(stream)).await;
        let mut answers = answers.unwrap().into_inner();
        let first = answers.message().await.unwrap().unwrap();
        let Some(challenge) = first.challenge else { return first.refusal };
        say(Content::Proof(claim.answer(&key(), &challenge).unwrap())).await;
        for content in contents {
            say(content).await;
        }
        drop(sender);
        answers.message().await.unwrap().unwrap().refusal
    })
}

fn chunk(number: u64, data: &'static [u8]) -> wire::SnapshotChunk {
    let crc32c = crc32c::crc32c(data);
    wire::SnapshotChunk { number, data: Bytes::from_static(data), crc32c }
}

fn end(chunks: u64, data: &[u8]) -> Content {
    let digest = xxhash_rust::xxh3::xxh3_128(data).to_be_bytes();
    let digest = Bytes::copy_from_slice(&digest);
    Content::End(wire::SnapshotEnd { chunks, bytes: data.len() as u64, digest })
}

#[test]
fn what_is_corrupted_or_incomplete_is_rejected() {
    let ground = Ground::new(2).form("test");
    let listener = listener();
    let targets = ground.targets(&[listener.local_addr().unwrap(); 2]);
    let receiver = ground.start(0, listener, &targets, &|_| {});
    static LARGE: [u8; CHUNK_BYTES_MAX + 1] = [0; CHUNK_BYTES_MAX + 1];
    let good = || Content::Chunk(chunk(1, b"one"));
    let flipped = wire::SnapshotChunk { data: Bytes::from_static(b"twp"), ..chunk(2, b"two") };
    let cases = [
        (vec![good(), Content::Chunk(flipped)], "chunk 2 is corrupted"),
        (vec![good(), Content::Chunk(chunk(3, b"two"))], "chunk 3 came where 2 was due"),
        (vec![Content::Chunk(chunk(1, &LARGE))], "chunk 1 has 262145 bytes"),
        (vec![good()], "cut before its end"),
        (vec![], "cut before its end"),
        (vec![good(), end(2, b"one")], "not what was sent"),
        (vec![good(), end(1, b"onetwo")], "not what was sent"),
        (vec![good(), end(1, b"ona")], "not what was sent"),
    ];
    for (contents, part) in cases {
        receiver.recorder.clear();
        let refusal = send_raw(&ground, &receiver, contents);
        assert!(refusal.contains(part), "{part}: {refusal}");
        aborted(&receiver, part);
    }
    let two = Content::Chunk(chunk(2, b"two"));
    assert_eq!(send_raw(&ground, &receiver, vec![good(), two, end(2, b"onetwo")]), "");
    receiver.recorder.wait_for(&Heard::SnapshotDone(b"onetwo".to_vec()));

    // Who is not welcome does not even begin.
    receiver.recorder.clear();
    let stranger = wire::SnapshotStart {
        hello: Some(wire::Hello { from_node: 9, ..hello(&ground, wire::Lane::Snapshot) }),
        ..wire::SnapshotStart::default()
    };
    let refusal = send_raw_from(stranger, &receiver, vec![]);
    assert_eq!(refusal, "node 9 is not a member that node 1 knows");
    let wrong_lane = wire::SnapshotStart {
        hello: Some(hello(&ground, wire::Lane::Bulk)),
        ..wire::SnapshotStart::default()
    };
    assert!(
        send_raw_from(wrong_lane, &receiver, vec![]).contains("no Hello for the snapshot lane")
    );
    let bare = wire::SnapshotStart {
        hello: Some(hello(&ground, wire::Lane::Snapshot)),
        ..wire::SnapshotStart::default()
    };
    assert!(send_raw_from(bare, &receiver, vec![]).contains("has no sender"));
    assert_eq!(receiver.recorder.all(), []);
}
