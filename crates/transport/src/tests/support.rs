//! Nodes, what they hear, and peers that break the rules.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use quorate_proto::ids::{ClusterId, Incarnation};
use quorate_proto::raft::v1 as wire;
use quorate_raft::{
    Entry, EntryKind, Envelope, GroupId, Index, LogId, Membership, Message, NodeId, Replica,
    ReplicaId, ReplicationSession, SnapshotMeta, Term, Timing,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::*;

/// Far above what any of these tests needs, on any machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Notifications of a node, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Delivered(NodeId, Lane, Envelope),
    Dropped(GroupId, ReplicaId),
    Connected(NodeId, PeerHello),
    Disconnected(NodeId, String),
    Refused(NodeId),
    SnapshotBegun(SnapshotHeader),
    SnapshotDone(Vec<u8>),
    SnapshotAborted(String),
    WentBack(String),
}

/// What a snapshot sink does besides recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkMode {
    Take,
    RefuseBegin,
    FailSecondWrite,
    FailFinish,
    /// Never returns from the first write until the recorder is released.
    Hang,
}

/// Records everything, and lets a test wait for it.
pub struct Recorder {
    heard: Mutex<Vec<Heard>>,
    changed: Condvar,
    pub sink_mode: Mutex<SinkMode>,
    /// While it is true there is no room for the bulk lane.
    pub full: watch::Sender<bool>,
    /// How far the log is durable.
    pub sequence: AtomicU64,
}

impl Recorder {
    fn new() -> Arc<Self> {
        let sink_mode = Mutex::new(SinkMode::Take);
        let full = watch::Sender::new(false);
        let (changed, sequence) = (Condvar::new(), AtomicU64::new(0));
        Arc::new(Self { heard: Mutex::default(), changed, sink_mode, full, sequence })
    }

    pub fn push(&self, heard: Heard) {
        self.heard.lock().push(heard);
        self.changed.notify_all();
    }

    /// Waits until `found` finds something in all that was heard.
    pub fn wait<T>(&self, what: &str, mut found: impl FnMut(&[Heard]) -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        let mut heard = self.heard.lock();
        loop {
            if let Some(found) = found(&heard) {
                return found;
            }
            if self.changed.wait_until(&mut heard, deadline).timed_out() {
                let tail = &heard[heard.len().saturating_sub(20)..];
                panic!("waited in vain for {what}; heard {} things, at last {tail:?}", heard.len());
            }
        }
    }

    pub fn wait_for(&self, wanted: &Heard) {
        self.wait(&format!("{wanted:?}"), |heard| heard.contains(wanted).then_some(()));
    }

    pub fn wait_connected(&self, node: NodeId) -> PeerHello {
        self.wait(&format!("a connection to {node}"), |heard| {
            heard.iter().rev().find_map(|heard| match heard {
                Heard::Connected(peer, hello) if *peer == node => Some(hello.clone()),
                _ => None,
            })
        })
    }

    /// Waits until the connection to a node broke; returns why.
    pub fn wait_disconnected(&self, node: NodeId) -> String {
        self.wait(&format!("the end of the connection to {node}"), |heard| {
            heard.iter().find_map(|heard| match heard {
                Heard::Disconnected(peer, why) if *peer == node => Some(why.clone()),
                _ => None,
            })
        })
    }

    pub fn all(&self) -> Vec<Heard> {
        self.heard.lock().clone()
    }

    pub fn clear(&self) {
        self.heard.lock().clear();
    }

    /// Waits until the sinks need not hang any more.
    fn hang(&self) {
        let mut heard = self.heard.lock();
        while *self.sink_mode.lock() == SinkMode::Hang {
            self.changed.wait_for(&mut heard, Duration::from_millis(20));
        }
    }
}

/// A recorder that can hand itself to its sinks.
struct Ears(Arc<Recorder>);

impl Inbound for Ears {
    fn log_sequence(&self) -> u64 {
        self.0.sequence.load(Ordering::SeqCst)
    }

    fn went_back(&self, why: &str) {
        self.0.push(Heard::WentBack(why.to_owned()));
    }

    fn deliver(&self, from: NodeId, lane: Lane, messages: Vec<Envelope>) {
        let mut heard = self.0.heard.lock();
        heard.extend(messages.into_iter().map(|message| Heard::Delivered(from, lane, message)));
        self.0.changed.notify_all();
    }

    fn bulk_room(&self) -> Option<BoxFuture<'static, ()>> {
        let mut full = self.0.full.subscribe();
        let now = *full.borrow();
        now.then(|| {
            Box::pin(async move { drop(full.wait_for(|full| !full).await) }) as BoxFuture<'_, ()>
        })
    }

    fn bulk_dropped(&self, group: GroupId, to: ReplicaId) {
        self.0.push(Heard::Dropped(group, to));
    }

    fn peer_connected(&self, node: NodeId, hello: PeerHello) {
        self.0.push(Heard::Connected(node, hello));
    }

    fn peer_disconnected(&self, node: NodeId, why: &str) {
        self.0.push(Heard::Disconnected(node, why.to_owned()));
    }

    fn peer_refused(&self, node: NodeId) {
        self.0.push(Heard::Refused(node));
    }

    fn begin_snapshot(
        &self,
        _from: NodeId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotSink>, String> {
        if *self.0.sink_mode.lock() == SinkMode::RefuseBegin {
            return Err("no room for a snapshot".into());
        }
        self.0.push(Heard::SnapshotBegun(header));
        Ok(Box::new(RecordingSink { recorder: Arc::clone(&self.0), bytes: Vec::new(), writes: 0 }))
    }
}

struct RecordingSink {
    recorder: Arc<Recorder>,
    bytes: Vec<u8>,
    writes: usize,
}

impl SnapshotSink for RecordingSink {
    fn write(&mut self, chunk: Bytes) -> Result<(), String> {
        self.writes += 1;
        let mode = *self.recorder.sink_mode.lock();
        if mode == SinkMode::FailSecondWrite && self.writes == 2 {
            return Err("the disk is full".into());
        }
        if mode == SinkMode::Hang {
            self.recorder.hang();
        }
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        if *self.recorder.sink_mode.lock() == SinkMode::FailFinish {
            return Err("the header could not be written".into());
        }
        self.recorder.push(Heard::SnapshotDone(self.bytes));
        Ok(())
    }

    fn abort(self: Box<Self>, why: &str) {
        self.recorder.push(Heard::SnapshotAborted(why.to_owned()));
    }
}

/// What the nodes of these tests prove to each other.
pub fn key() -> ProofKey {
    ProofKey::of(&quorate_proto::secret::ClusterSecret::from_bytes([7; 32]))
}

/// A node: its directory, its listener, its transport.
pub struct Node {
    pub identity: Arc<Identity>,
    pub recorder: Arc<Recorder>,
    pub address: SocketAddr,
    pub transport: Transport,
    pub service: PeerService,
    runtime: Option<Runtime>,
}

impl Node {
    pub fn id(&self) -> NodeId {
        self.identity.node_id()
    }

    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    pub fn view(&self, node: u64) -> PeerView {
        let views = self.transport.peers();
        views.into_iter().find(|view| view.node == NodeId(node)).unwrap()
    }

    /// Waits until the view of a peer is as wanted.
    pub fn wait_view(
        &self,
        node: u64,
        what: &str,
        mut wanted: impl FnMut(&PeerView) -> bool,
    ) -> PeerView {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let view = self.view(node);
            if wanted(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {view:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Like kill -9: every socket closes, nothing is said.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
            // A thread that a kill would end.
            self.transport.close_memory();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        *self.recorder.sink_mode.lock() = SinkMode::Take;
        self.kill();
    }
}

/// What a node remembers, in a place that outlives it.
#[derive(Default)]
pub struct Notebook(pub Mutex<Memories>);

impl MemoryStore for Notebook {
    fn keep(&self, memories: &Memories) {
        self.0.lock().clone_from(memories);
    }
}

/// Who a process is: its node, and which start on the node's directory.
#[derive(Clone, Debug)]
pub struct Identity {
    node: NodeId,
    incarnation: Incarnation,
    boot_counter: u64,
    cluster: Option<(ClusterId, String)>,
}

impl Identity {
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster.as_ref().map(|(id, _)| *id)
    }

    fn local(&self) -> LocalNode {
        let (cluster_id, cluster_name) = self.cluster.clone().expect("it has formed");
        let Self { node, incarnation, boot_counter, .. } = *self;
        LocalNode { node, incarnation, boot_counter, cluster_id, cluster_name, key: key() }
    }
}

impl Greeter for Identity {
    fn node(&self) -> NodeId {
        self.node
    }

    fn answer(&self) -> wire::AskResponse {
        wire::AskResponse { node_id: self.node.0, ..wire::AskResponse::default() }
    }
}

/// What a process on a directory is started with.
pub type Place = Arc<Identity>;

/// Directories and agreements, before anything runs.
pub struct Ground {
    pub identities: Vec<Arc<Identity>>,
    /// The newest start of each node, and whether a process has run with it.
    places: Mutex<Vec<(Place, bool)>>,
    pub notebooks: Vec<Arc<Notebook>>,
}

impl Ground {
    /// `count` directories, not formed.
    pub fn new(count: u64) -> Self {
        let identity = |node| Identity {
            node: NodeId(node),
            incarnation: Incarnation(rand::random()),
            boot_counter: 1,
            cluster: None,
        };
        let identities = (1..=count).map(|node| Arc::new(identity(node))).collect();
        Self::of(identities)
    }

    fn of(identities: Vec<Arc<Identity>>) -> Self {
        let places = identities.iter().map(|identity| (Arc::clone(identity), false)).collect();
        let notebooks = identities.iter().map(|_| Arc::default()).collect();
        Self { identities, places: Mutex::new(places), notebooks }
    }

    /// Opens a copy of the newest directory of a node, as a process would.
    pub fn copy(&self, index: usize) -> Place {
        let newest = Identity::clone(&self.places.lock()[index].0);
        Arc::new(Identity { boot_counter: newest.boot_counter + 1, ..newest })
    }

    /// The directory for the next process of a node: what the last one has left.
    fn next(&self, index: usize) -> Place {
        let (newest, started) = self.places.lock()[index].clone();
        let place = if started { self.copy(index) } else { newest };
        self.places.lock()[index] = (Arc::clone(&place), true);
        place
    }

    /// What node `index` durably remembers of node `of`.
    pub fn remembered(&self, index: usize, of: usize) -> Option<Remembered> {
        self.notebooks[index].0.lock().get(&self.identities[of].incarnation()).copied()
    }

    /// Waits until node `index` durably remembers a log of node `of` up to this.
    pub fn wait_remembered(&self, index: usize, of: usize, log_sequence: u64) {
        let deadline = Instant::now() + TIMEOUT;
        while self.remembered(index, of).is_none_or(|known| known.log_sequence != log_sequence) {
            assert!(Instant::now() < deadline, "{:?}", self.remembered(index, of));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// They agree on each other.
    pub fn form(self, name: &str) -> Self {
        let cluster = Some((ClusterId(rand::random()), name.to_owned()));
        let formed = |identity: &Arc<Identity>| {
            Arc::new(Identity { cluster: cluster.clone(), ..Identity::clone(identity) })
        };
        Self::of(self.identities.iter().map(formed).collect())
    }

    /// Where the nodes will listen, and whom they expect there.
    pub fn targets(&self, addresses: &[SocketAddr]) -> PeerTargets {
        self.identities
            .iter()
            .zip(addresses)
            .map(|(identity, address)| {
                let incarnation = identity.incarnation();
                (identity.node_id(), PeerTarget { address: address.to_string(), incarnation })
            })
            .collect()
    }

    /// Starts node `index` (from 0) on a listener.
    pub fn start(
        &self,
        index: usize,
        listener: std::net::TcpListener,
        targets: &PeerTargets,
        tune: &dyn Fn(&mut TransportConfig),
    ) -> Node {
        self.start_on(self.next(index), 0, listener, targets, tune)
    }

    /// Starts a process on this directory, with a log that is durable so far.
    pub fn start_on(
        &self,
        identity: Place,
        log_sequence: u64,
        listener: std::net::TcpListener,
        targets: &PeerTargets,
        tune: &dyn Fn(&mut TransportConfig),
    ) -> Node {
        self.start_with(&key(), identity, log_sequence, listener, targets, tune)
    }

    /// As [`Ground::start_on`], with another secret than the others have.
    pub fn start_with(
        &self,
        secret: &ProofKey,
        identity: Place,
        log_sequence: u64,
        listener: std::net::TcpListener,
        targets: &PeerTargets,
        tune: &dyn Fn(&mut TransportConfig),
    ) -> Node {
        let address = listener.local_addr().unwrap();
        let recorder = Recorder::new();
        recorder.sequence.store(log_sequence, Ordering::SeqCst);
        let notebook = Arc::clone(&self.notebooks[identity.node_id().0 as usize - 1]);
        let memories = notebook.0.lock().clone();
        let recollection = Recollection { memories, store: notebook };
        let mut config = TransportConfig::new(address.to_string(), "client:1");
        config.refused_pause = Duration::from_millis(50);
        tune(&mut config);
        let local = LocalNode { key: secret.clone(), ..identity.local() };
        let service = PeerService::new(identity.clone(), secret.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inbound = Arc::new(Ears(Arc::clone(&recorder)));
        let transport = {
            let _on = runtime.enter();
            let transport = Transport::start(config, local, targets, recollection, inbound);
            let transport = transport.unwrap();
            service.attach(&transport);
            serve(&runtime, service.clone(), listener);
            transport
        };
        Node { identity, recorder, address, transport, service, runtime: Some(runtime) }
    }
}

/// Serves peers on a listener, on this runtime.
pub fn serve(runtime: &Runtime, service: PeerService, listener: std::net::TcpListener) {
    runtime.spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        service.serve(listener, CancellationToken::new()).await.unwrap();
    });
}

pub fn listener() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Listens on an address again whose last owner was just killed.
pub fn listen_again(address: SocketAddr) -> std::net::TcpListener {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        // std sets SO_REUSEADDR, so connections in TIME_WAIT are no hindrance; a dying runtime is.
        match std::net::TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "cannot bind again: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `count` nodes of one cluster that have found each other.
pub fn cluster(count: u64) -> (Ground, Vec<Node>) {
    let ground = Ground::new(count).form("test");
    let listeners: Vec<_> = (0..count).map(|_| listener()).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let targets = ground.targets(&addresses);
    let nodes: Vec<Node> = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| ground.start(index, listener, &targets, &|_| {}))
        .collect();
    for node in &nodes {
        for peer in nodes.iter().filter(|peer| peer.id() != node.id()) {
            node.recorder.wait_connected(peer.id());
            wait_bulk(node, peer);
        }
    }
    (ground, nodes)
}

/// Waits until the bulk lane carries something: it opens a moment before or after the control lane.
pub fn wait_bulk(from: &Node, to: &Node) {
    let probe = append(u64::MAX, from, to, 0, 0);
    let wanted = Heard::Delivered(from.id(), Lane::Bulk, probe.clone());
    let deadline = Instant::now() + TIMEOUT;
    while !to.recorder.all().contains(&wanted) {
        assert!(Instant::now() < deadline, "the bulk lane does not open");
        from.transport.send(to.id(), probe.clone());
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn replica(node: NodeId) -> Replica {
    Replica::new(ReplicaId(node.0 * 10), node)
}

pub fn envelope(group: u64, from: NodeId, to: NodeId, message: Message) -> Envelope {
    let (group, from, to) = (GroupId(group), replica(from), replica(to));
    Envelope { group, from, to, term: Term(3), message }
}

pub fn heartbeat(group: u64, from: &Node, to: &Node, round: u64) -> Envelope {
    let timing = Timing { round, ..Timing::default() };
    let message =
        Message::Heartbeat { session: ReplicationSession::default(), commit: Index(1), timing };
    envelope(group, from.id(), to.id(), message)
}

pub fn append(group: u64, from: &Node, to: &Node, index: u64, payload_bytes: usize) -> Envelope {
    append_between(group, from.id(), to.id(), index, payload_bytes)
}

pub fn append_between(
    group: u64,
    from: NodeId,
    to: NodeId,
    index: u64,
    payload_bytes: usize,
) -> Envelope {
    let entry = Entry {
        term: Term(3),
        index: Index(index),
        kind: EntryKind::Command,
        stamp: index,
        payload: Bytes::from(vec![index as u8; payload_bytes]),
    };
    let message = Message::Append {
        session: ReplicationSession { term: Term(3), counter: 1 },
        prev: LogId::new(Term(3), Index(index.saturating_sub(1))),
        commit: Index(0),
        entries: vec![entry],
        timing: Timing::default(),
    };
    envelope(group, from, to, message)
}

pub fn header(group: u64, from: NodeId, to: NodeId) -> SnapshotHeader {
    SnapshotHeader {
        group: GroupId(group),
        from: replica(from),
        to: replica(to),
        term: Term(3),
        session: ReplicationSession { term: Term(3), counter: 2 },
        meta: SnapshotMeta {
            last: LogId::new(Term(2), Index(99)),
            stamp: 7,
            membership: Membership::of_voters([replica(from), replica(to)]),
        },
    }
}

/// The Hello that an honest node 2 of this ground would say to node 1.
pub fn hello(ground: &Ground, lane: wire::Lane) -> wire::Hello {
    let (to, from) = (&ground.identities[0], &ground.identities[1]);
    wire::Hello {
        cluster_id: from.cluster_id().unwrap().to_bytes().to_vec().into(),
        from_node: from.node_id().0,
        from_incarnation: from.incarnation().to_bytes().to_vec().into(),
        to_node: to.node_id().0,
        to_incarnation: to.incarnation().to_bytes().to_vec().into(),
        wire_version_min: WIRE_VERSION_MIN,
        wire_version_max: WIRE_VERSION_MAX,
        feature_version: 1,
        build: "test".into(),
        boot_counter: 1,
        start_id: 77,
        lane: lane.into(),
        nonce: proof::nonce(),
        ..wire::Hello::default()
    }
}

/// The challenge of a called node that knows the secret, to the Hello that comes here.
pub async fn challenge(incoming: &mut tonic::Streaming<wire::LinkRequest>) -> wire::LinkResponse {
    let first = incoming.message().await.unwrap().and_then(|first| first.content);
    let Some(wire::link_request::Content::Hello(hello)) = first else { panic!("{first:?}") };
    let (challenge, _) = proof::Claim::of_hello(&hello).challenge(&key());
    let content = Some(wire::link_response::Content::Challenge(challenge));
    wire::LinkResponse { content }
}
