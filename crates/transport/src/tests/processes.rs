//! Which process is accepted for a peer, where more than one say that they are it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use quorate_proto::raft::v1 as wire;
use quorate_raft::{Message, NodeId, Term};
use wire::RefusalReason;
use wire::link_request::Content;

use super::caller::*;
use super::support::*;
use crate::*;

#[test]
fn a_copy_of_a_running_node_is_refused_on_both_sides() {
    let (ground, mut nodes) = cluster(2);
    let before = ground.remembered(0, 1);
    assert_eq!(before.map(|known| known.boot_counter), Some(1));
    let listener = listener();
    let targets = ground.targets(&[nodes[0].address, listener.local_addr().unwrap()]);
    let copy = ground.start_on(ground.copy(1), 0, listener, &targets, &|_| {});
    let view = copy.wait_view(1, "a refusal", |view| view.detail.starts_with("refused: "));
    let from = nodes[1].address.to_string();
    for part in ["node 2 runs already", "another process", &from, &copy.address.to_string()] {
        assert!(view.detail.contains(part), "{part}: {view:?}");
    }
    assert!(!view.connected && copy.recorder.all().is_empty());
    // It has changed nothing for the original.
    assert_eq!(ground.remembered(0, 1), before, "the number of the copy counts for nothing");
    assert_eq!(nodes[0].view(2).address, from);
    wait_bulk(&nodes[0], &nodes[1]);
    wait_bulk(&nodes[1], &nodes[0]);
    // Once the original has ended it is a node that moved.
    nodes[1].kill();
    copy.recorder.wait_connected(NodeId(1));
    wait_bulk(&nodes[0], &copy);
    assert_eq!(nodes[0].view(2).address, copy.address.to_string());
}

#[test]
fn the_original_is_taken_after_a_restart_though_its_copy_knocks_too() {
    let (ground, mut nodes) = cluster(2);
    let listener = listener();
    let addresses = [nodes[0].address, listener.local_addr().unwrap()];
    let copy =
        ground.start_on(ground.copy(1), 0, listener, &ground.targets(&addresses), &|config| {
            // It knocks as often as it can.
            config.backoff = (Duration::from_millis(5), Duration::from_millis(10));
            config.refused_pause = Duration::from_millis(5);
        });
    copy.wait_view(1, "a refusal", |view| view.detail.contains("another process"));
    for _ in 0..5 {
        let address = nodes[0].address;
        nodes[1].recorder.clear();
        nodes[0].kill();
        nodes[1].recorder.wait_disconnected(NodeId(1));
        let targets = ground.targets(&[address, nodes[1].address]);
        nodes[0] = ground.start(0, listen_again(address), &targets, &|_| {});
        nodes[0].recorder.wait_connected(NodeId(2));
        nodes[1].recorder.wait_connected(NodeId(1));
        wait_bulk(&nodes[0], &nodes[1]);
        assert_eq!(copy.recorder.all(), [], "the copy was accepted");
    }
    copy.wait_view(1, "a refusal", |view| view.detail.contains("another process"));
}

/// Both nodes remember the other's last process, and neither is in doubt for long.
#[test]
fn nodes_that_start_together_find_each_other_at_once() {
    let (ground, mut nodes) = cluster(2);
    let addresses = [nodes[0].address, nodes[1].address];
    nodes.iter_mut().for_each(Node::kill);
    let listeners = addresses.map(listen_again);
    let began = Instant::now();
    let targets = ground.targets(&addresses);
    let again: Vec<Node> = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| ground.start(index, listener, &targets, &|_| {}))
        .collect();
    again[0].recorder.wait_connected(NodeId(2));
    again[1].recorder.wait_connected(NodeId(1));
    let took = began.elapsed();
    assert!(took < presence::SILENCE, "{took:?}");
}

/// The Hello of node 2, as a process with these numbers.
fn process(ground: &Ground, boot: u64, start: u64, log_sequence: u64) -> wire::LinkRequest {
    let hello = hello(ground, wire::Lane::Control);
    let hello = wire::Hello { boot_counter: boot, start_id: start, log_sequence, ..hello };
    request(Content::Hello(hello))
}

/// What node 1 answers to this Hello, on a link that then ends unless its sender is kept.
fn answer(
    caller: &Caller,
    hello: wire::LinkRequest,
) -> (wire::link_response::Content, tokio::sync::mpsc::Sender<wire::LinkRequest>, Answers) {
    let (sender, mut answers) = caller.link(vec![hello]).unwrap();
    (caller.next(&mut answers).unwrap().unwrap().content.unwrap(), sender, answers)
}

/// Says this Hello until it is answered by a Hello, which keeps the link open.
fn until_accepted(
    caller: &Caller,
    hello: &wire::LinkRequest,
    meanwhile: &[RefusalReason],
) -> (tokio::sync::mpsc::Sender<wire::LinkRequest>, Answers) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match answer(caller, hello.clone()) {
            (wire::link_response::Content::Hello(_), sender, answers) => return (sender, answers),
            (wire::link_response::Content::Refusal(refusal), ..) => {
                assert!(meanwhile.contains(&refusal.reason()), "{}", refusal.sentence);
                assert_ne!(refusal.start_id, 0);
            }
            (other, ..) => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "it is never accepted");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_half_open_connection_gives_way_to_a_node_that_moved() {
    let ground = Ground::new(2).form("test");
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let began = Instant::now();
    // It is kept open, and nothing comes on it any more.
    let (_sender, mut older) =
        until_accepted(&caller, &process(&ground, 1, 7, 5), &[RefusalReason::Undecided]);
    let moved = process(&ground, 2, 8, 5);
    let (first, ..) = answer(&caller, moved.clone());
    assert!(matches!(first, wire::link_response::Content::Refusal(_)), "{first:?}");
    // When the older one has given way, its place is looked at before another one is accepted.
    let meanwhile = [RefusalReason::AnotherProcess, RefusalReason::Undecided];
    let (_other, _newer) = until_accepted(&caller, &moved, &meanwhile);
    assert!(began.elapsed() >= presence::SILENCE, "{:?}", began.elapsed());
    assert!(caller.next(&mut older).unwrap().is_none(), "the older one has ended");
    assert_eq!(ground.remembered(0, 1).unwrap().boot_counter, 2);
}

#[test]
fn a_process_that_says_less_than_was_said_before_is_refused_and_told_so() {
    let ground = Ground::new(2).form("test");
    let mut node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    let (sender, answers) =
        until_accepted(&caller, &process(&ground, 5, 1, 100), &[RefusalReason::Undecided]);
    let told = wire::Frame { number: 1, log_sequence: 150, ..wire::Frame::default() };
    sender.blocking_send(request(Content::Frame(told))).unwrap();
    ground.wait_remembered(0, 1, 150);
    // Another connection of the same process may have been on its way for long.
    let (_late, _answers) =
        until_accepted(&caller, &process(&ground, 5, 1, 90), &[RefusalReason::Undecided]);
    drop((sender, answers));
    let refused = |caller: &Caller| {
        for (boot, start, log_sequence) in [(6, 2, 149), (5, 3, 150), (4, 4, 200), (4, 5, 1)] {
            let hello = process(&ground, boot, start, log_sequence);
            let (answer, ..) = answer(caller, hello);
            let wire::link_response::Content::Refusal(refusal) = answer else {
                panic!("boot {boot}, sequence {log_sequence}: {answer:?}");
            };
            assert_eq!(refusal.reason(), RefusalReason::WentBack, "{}", refusal.sentence);
            let said = format!("now says {boot} and {log_sequence}");
            for part in ["the disk of node 2 went back in time", "5 and log sequence 150", &said] {
                assert!(refusal.sentence.contains(part), "{part}: {}", refusal.sentence);
            }
        }
    };
    refused(&caller);
    // The end of who remembers changes nothing.
    node.kill();
    drop((node, caller));
    let node = lone_node(&ground, "127.0.0.1:1");
    let caller = Caller::new(&node);
    refused(&caller);
    until_accepted(&caller, &process(&ground, 6, 6, 150), &[RefusalReason::Undecided]);
    assert_eq!(ground.remembered(0, 1).map(|known| known.boot_counter), Some(6));
}

#[test]
fn a_node_whose_disk_went_back_takes_no_part() {
    let (ground, mut nodes) = cluster(2);
    nodes[1].recorder.sequence.store(10, Ordering::SeqCst);
    // It is heard of although there is no message.
    ground.wait_remembered(0, 1, 10);
    nodes[1].kill();
    nodes[0].recorder.wait_disconnected(NodeId(2));
    let targets = ground.targets(&[nodes[0].address, nodes[1].address]);
    let listener = listen_again(nodes[1].address);
    let older = ground.start_on(ground.copy(1), 9, listener, &targets, &|_| {});
    let why = older.recorder.wait("the news", |heard| {
        heard.iter().find_map(|heard| match heard {
            Heard::WentBack(why) => Some(why.clone()),
            _ => None,
        })
    });
    assert!(why.contains("the disk of node 2 went back in time"), "{why}");
    older.wait_view(1, "the reason", |view| !view.connected && view.detail.contains(&why));
    // A node that calls it receives the reason too.
    nodes[0].wait_view(2, "the reason", |view| view.detail.contains("node 2 takes no part"));
    let vote = Message::VoteReply { asked: Term(1), granted: true };
    older.transport.send(NodeId(1), envelope(1, NodeId(2), NodeId(1), vote.clone()));
    // The newest directory is accepted; what the older one wanted to say never came.
    drop(older);
    let listener = listen_again(nodes[1].address);
    let newest = ground.start_on(ground.copy(1), 10, listener, &targets, &|_| {});
    newest.recorder.wait_connected(NodeId(1));
    wait_bulk(&newest, &nodes[0]);
    let came = |heard: &Heard| matches!(heard, Heard::Delivered(_, _, e) if e.message == vote);
    assert!(!nodes[0].recorder.all().iter().any(came), "it has voted");
}

/// Neither a message nor the interval reports it: the log grows, and the node stops immediately.
#[test]
fn the_last_end_of_a_log_is_told_at_a_clean_stop() {
    let (ground, nodes) = cluster(3);
    for sequence in [10, 20, 30] {
        nodes[2].recorder.sequence.store(sequence, Ordering::SeqCst);
    }
    // From here on it takes no connection, so that no Hello reports the end either.
    nodes[2].transport.close_memory();
    nodes[2].runtime().block_on(nodes[2].transport.finish());
    for peer in [0, 1] {
        ground.wait_remembered(peer, 2, 30);
    }
}

/// What each remembers went back with the rest of its directory.
#[test]
fn nodes_that_were_all_put_back_to_one_moment_take_each_other() {
    let (ground, mut nodes) = cluster(2);
    let at = |nodes: &[Node], sequence| {
        for node in nodes {
            node.recorder.sequence.store(sequence, Ordering::SeqCst);
        }
        ground.wait_remembered(0, 1, sequence);
        ground.wait_remembered(1, 0, sequence);
    };
    at(&nodes, 50);
    let backup: Vec<Memories> = ground.notebooks.iter().map(|book| book.0.lock().clone()).collect();
    let copies: Vec<Place> = (0..2).map(|index| ground.copy(index)).collect();
    at(&nodes, 80);
    nodes.iter_mut().for_each(Node::kill);
    let addresses = [nodes[0].address, nodes[1].address];
    for (book, backup) in ground.notebooks.iter().zip(backup) {
        *book.0.lock() = backup;
    }
    let targets = ground.targets(&addresses);
    let listeners = addresses.map(listen_again);
    let back: Vec<Node> = copies
        .into_iter()
        .zip(listeners)
        .map(|(copy, listener)| ground.start_on(copy, 50, listener, &targets, &|_| {}))
        .collect();
    back[0].recorder.wait_connected(NodeId(2));
    back[1].recorder.wait_connected(NodeId(1));
}
