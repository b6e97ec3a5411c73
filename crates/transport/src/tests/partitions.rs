//! A copy of a directory and a partition together: node 3 is cut off from node 1, and its copy is
//! not.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::time::Instant;

use quorate_proto::raft::v1 as wire;
use wire::link_request::Content;

use super::caller::{Caller, request};
use super::support::*;
use crate::*;

/// Where nothing listens.
const NOWHERE: &str = "127.0.0.1:1";

/// Three nodes, and a place for a copy of node 3.
struct Scene {
    ground: Ground,
    /// All know each other here.
    targets: PeerTargets,
    listeners: Vec<Option<TcpListener>>,
    addresses: Vec<SocketAddr>,
}

impl Scene {
    fn new() -> Self {
        let ground = Ground::new(3).form("test");
        let listeners: Vec<_> = (0..4).map(|_| listener()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let targets = ground.targets(&addresses[..3]);
        let listeners = listeners.into_iter().map(Some).collect();
        Self { ground, targets, listeners, addresses }
    }

    /// The targets of a node that does not reach these.
    fn without(&self, cut: &[u64]) -> PeerTargets {
        let mut targets = self.targets.clone();
        for node in cut {
            NOWHERE.clone_into(&mut targets.get_mut(&NodeId(*node)).unwrap().address);
        }
        targets
    }

    /// Starts node `node` where it does not reach `cut`.
    fn start(&mut self, node: usize, cut: &[u64]) -> Node {
        let listener = self.listeners[node - 1].take().unwrap();
        self.ground.start(node - 1, listener, &self.without(cut), &|_| {})
    }

    /// Starts a copy of node 3 that reaches node 1 only, and tries often.
    fn start_copy(&mut self) -> Node {
        let listener = self.listeners[3].take().unwrap();
        let targets = self.without(&[2]);
        let copy = self.ground.copy(2);
        self.ground.start_on(copy, 0, listener, &targets, &|config| {
            config.backoff = (Duration::from_millis(5), Duration::from_millis(10));
        })
    }

    /// Takes the copy at node 1, which is cut off from both others, while the original is connected
    /// to node 2.
    fn copy_is_accepted(&mut self) -> [Node; 4] {
        let two = self.start(2, &[1]);
        let original = self.start(3, &[1]);
        two.recorder.wait_connected(NodeId(3));
        original.recorder.wait_connected(NodeId(2));
        // It has run for much longer than a message takes: what it wrote is remembered.
        original.recorder.sequence.store(1, Ordering::SeqCst);
        self.ground.wait_remembered(1, 2, 1);
        let one = self.start(1, &[2, 3]);
        let copy = self.start_copy();
        copy.recorder.wait_connected(NodeId(1));
        one.recorder.wait_connected(NodeId(3));
        wait_bulk(&copy, &one);
        [one, two, original, copy]
    }
}

/// Waits until what a node says on the control lane arrives: its first frame did so too.
fn wait_control(from: &Node, to: &Node) {
    let probe = heartbeat(u64::MAX, from, to, 0);
    let wanted = Heard::Delivered(from.id(), Lane::Control, probe.clone());
    let deadline = Instant::now() + TIMEOUT;
    while !to.recorder.all().contains(&wanted) {
        assert!(Instant::now() < deadline, "the control lane does not open");
        from.transport.send(to.id(), probe.clone());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets the original reach node 1, and waits until that has accepted it for node 3.
fn comes_back(scene: &Scene, original: &Node, one: &Node) {
    original.transport.set_peers(&scene.targets);
    original.recorder.wait_connected(NodeId(1));
    let address = scene.addresses[2].to_string();
    let there = |view: &PeerView| view.connected && view.address == address;
    one.wait_view(3, "the original", there);
    wait_bulk(original, one);
    wait_bulk(one, original);
    assert!(!was_fenced(original), "the original takes no part");
}

fn was_fenced(node: &Node) -> bool {
    node.recorder.all().iter().any(|heard| matches!(heard, Heard::WentBack(_)))
}

fn was_connected(node: &Node) -> bool {
    node.recorder.all().iter().any(|heard| matches!(heard, Heard::Connected(..)))
}

#[test]
fn a_copy_is_refused_while_another_peer_reports_that_the_original_is_alive() {
    let mut scene = Scene::new();
    let two = scene.start(2, &[]);
    let mut original = scene.start(3, &[1]);
    two.recorder.wait_connected(NodeId(3));
    let one = scene.start(1, &[3]);
    wait_control(&two, &one);
    let copy = scene.start_copy();
    let view = copy.wait_view(1, "a refusal", |view| view.detail.starts_with("refused: "));
    for part in ["node 3 runs already", "node 2 reports", &scene.addresses[2].to_string()] {
        assert!(view.detail.contains(part), "{part}: {view:?}");
    }
    assert_eq!(scene.ground.remembered(0, 2), None, "it counts for nothing");
    comes_back(&scene, &original, &one);
    assert!(!was_connected(&copy), "the copy takes part");
    // When the original has ended, its copy is a node that moved.
    original.kill();
    copy.recorder.wait_connected(NodeId(1));
}

#[test]
fn a_copy_that_was_taken_is_dropped_when_another_peer_reports_the_original() {
    let mut scene = Scene::new();
    let [one, two, original, copy] = scene.copy_is_accepted();
    one.transport.set_peers(&scene.targets);
    two.transport.set_peers(&scene.targets);
    let why = copy.recorder.wait_disconnected(NodeId(1));
    for part in ["node 3 runs already", "node 2 reports", &scene.addresses[2].to_string()] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let why = one.recorder.wait_disconnected(NodeId(3));
    assert!(why.contains("node 2 reports"), "{why}");
    comes_back(&scene, &original, &one);
    let kept = scene.ground.remembered(0, 2).unwrap();
    assert_eq!(kept.boot_counter, 1, "the number of the copy counts for nothing: {kept:?}");
}

/// It is not mistaken for an older copy, though its boot number is below that of its own copy.
#[test]
fn an_original_that_returns_before_anybody_reports_it_waits() {
    let mut scene = Scene::new();
    let [one, two, original, _copy] = scene.copy_is_accepted();
    original.transport.set_peers(&scene.targets);
    original.wait_view(1, "a refusal", |view| view.detail.starts_with("refused: "));
    assert!(!was_fenced(&original), "the original takes no part");
    one.transport.set_peers(&scene.targets);
    two.transport.set_peers(&scene.targets);
    comes_back(&scene, &original, &one);
}

/// Node 2 has not noticed yet that the first process of node 3 has ended.
#[test]
fn a_node_that_restarts_is_accepted_soon_after_a_late_report_is_taken_back() {
    let mut scene = Scene::new();
    let addresses: Vec<SocketAddr> = scene.addresses[..3].to_vec();
    let start = |scene: &Scene, node: usize, listener, targets: &PeerTargets| {
        scene.ground.start(node - 1, listener, targets, &|config| {
            config.refused_pause = 10 * TIMEOUT;
        })
    };
    let listener = scene.listeners[0].take().unwrap();
    let one = start(&scene, 1, listener, &scene.without(&[2]));
    let listener = scene.listeners[2].take().unwrap();
    let mut first = start(&scene, 3, listener, &scene.without(&[2]));
    one.recorder.wait_connected(NodeId(3));
    first.recorder.wait_connected(NodeId(1));
    let remembered = scene.ground.remembered(0, 2).unwrap();

    let caller = Caller::new(&one);
    let hello = hello(&scene.ground, wire::Lane::Control);
    let (sender, mut answers) = caller.link(vec![request(Content::Hello(hello))]).unwrap();
    caller.next(&mut answers).unwrap().unwrap();
    let list = |number, processes| {
        let live = Some(wire::LiveProcesses { processes });
        let frame = wire::Frame { number, live, ..wire::Frame::default() };
        sender.blocking_send(request(Content::Frame(frame))).unwrap();
    };
    let process = wire::LiveProcess {
        node_id: 3,
        incarnation: scene.ground.identities[2].incarnation().to_bytes().to_vec().into(),
        start_id: remembered.start.0,
        boot_counter: remembered.boot_counter,
        log_sequence: remembered.log_sequence,
        taken_ms: 60_000,
        peer_address: addresses[2].to_string(),
    };
    list(1, vec![process.clone()]);
    first.kill();
    one.recorder.wait_disconnected(NodeId(3));
    one.recorder.clear();
    let next = start(&scene, 3, listen_again(addresses[2]), &scene.without(&[2]));
    let mut number = 1;
    let deadline = Instant::now() + TIMEOUT;
    while !next.view(1).detail.contains("node 2 reports") {
        assert!(Instant::now() < deadline, "{:?}", next.view(1));
        number += 1;
        list(number, vec![process.clone()]);
        std::thread::sleep(Duration::from_millis(100));
    }
    list(number + 1, Vec::new());
    next.recorder.wait_connected(NodeId(1));
    one.recorder.wait_connected(NodeId(3));
    assert!(!was_fenced(&next));
}
