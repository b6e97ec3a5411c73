//! Messages between nodes: three connections to each peer, opened by the sender.
//!
//! | lane | carries | full or cut off |
//! |---|---|---|
//! | control | heartbeats, votes, reads, all answers | latest wins, per group, replicas and kind |
//! | bulk | appends, in order | bounded in bytes; a dropped one is reported, and the core probes |
//! | snapshot | one transfer at a time | paced by the receiver; cut, it is nothing, at both ends |
//!
//! **Sending costs no task and no wait.** [`Transport::send_all`] puts messages into the peer's
//! outbox and wakes its connection once. The connection *pulls*: when HTTP/2 has room it takes
//! everything that is ready as one frame, encoded once. A peer that does not read is therefore not
//! pulled for, and costs no more than its outbox and one frame.
//!
//! **Handshake.** Each stream opens with a Hello, checked on both sides: cluster, node id,
//! incarnation, wire versions. Before the Hello counts, both sides prove that they know the secret
//! of the cluster: see `proof`, and for calls that one node passes on to another `passed`. A
//! refusal is a sentence, on both sides; the peer is then tried again slowly, and the sentence is
//! logged when it changes.
//!
//! One process at a time is accepted as a peer, and none that has said more of its disk before than
//! it says now: see `presence` and `memory`. Each node reports to its peers which processes it is
//! connected to, so that a copy is not accepted during a partition: see `reports`.
//!
//! **Boundary.** Who this node is, what it answers to those that ask, what it remembers of its
//! peers and what becomes of a message is handed in; nothing here reads a file or knows the cluster
//! map.
//!
//! **Silence.** Receivers acknowledge frames a few times a second. A peer that takes frames and
//! acknowledges none for five seconds is cut off and dialled anew; HTTP/2 pings find the dead ones
//! sooner. What a cut may have lost of the bulk lane is reported with [`Inbound::bulk_dropped`].

mod admission;
mod announce;
mod ask;
mod convert;
pub mod dial;
mod gate;
mod hello;
mod link;
mod memory;
mod outbox;
mod passed;
mod peer;
mod presence;
mod proof;
mod reports;
mod service;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use quorate_raft::{Envelope, GroupId, NodeId, ReplicaId};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tracing::error;

use quorate_proto::ids::{ClusterId, Incarnation};

pub use ask::ask;
pub use gate::Entrance;
pub use hello::{PeerHello, WIRE_VERSION_MAX, WIRE_VERSION_MIN};
pub use memory::{Memories, MemoryStore, Recollection, Remembered, SAVE_INTERVAL, StartId};
pub use passed::CALL_PROOF;
pub use proof::ProofKey;
pub use service::PeerService;
pub use snapshot::{
    CHUNK_BYTES_MAX, SnapshotError, SnapshotHeader, SnapshotSink, SnapshotSource, SnapshotTurn,
};

use memory::Memory;
use peer::Peer;

/// The largest message that is decoded, in bytes; also the bound of one entry with its frame.
pub const PEER_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long the peers may take, at a clean stop, to read the last end of the log.
const FAREWELL: Duration = Duration::from_secs(1);

/// Which connection a message came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small messages, in no order.
    Control,
    /// Appends and announcements of snapshots, in the order sent.
    Bulk,
}

/// Notifications from the transport to the node. No method may block: they are called on the
/// runtime's threads, and [`Inbound::bulk_dropped`] also on the thread that calls
/// [`Transport::send`]. The transport holds no lock during a call.
pub trait Inbound: Send + Sync + 'static {
    /// The last record of this node's log that is behind a completed barrier; 0 = none. Reported to
    /// the peers, which hold it against the next process of this node.
    fn log_sequence(&self) -> u64;

    /// A peer remembers more of this node than its disk holds: votes and acknowledgements are
    /// forgotten. The transport has ended, and takes nothing any more; called once.
    fn went_back(&self, why: &str);

    /// The messages of one frame, from a peer whose Hello was accepted.
    fn deliver(&self, from: NodeId, lane: Lane, messages: Vec<Envelope>);

    /// Awaited before the next bulk frame is read, where it is `Some`: a node whose inbox is full
    /// thereby slows its peers down to its own pace; frames are acknowledged meanwhile. Never asked
    /// for the control lane.
    fn bulk_room(&self) -> Option<BoxFuture<'static, ()>>;

    /// Messages of the bulk lane to this replica were dropped or may be lost. Called once for each
    /// cause, not for each message.
    fn bulk_dropped(&self, group: GroupId, to: ReplicaId);

    /// The control connection to `node` stands.
    fn peer_connected(&self, node: NodeId, hello: PeerHello);

    /// The control connection to `node` stood and broke; `why` is for people.
    fn peer_disconnected(&self, _node: NodeId, _why: &str) {}

    /// The control connection to `node` broke, and connecting again is refused by its host: the
    /// process has ended. Called once for each time the connection stood.
    fn peer_refused(&self, node: NodeId);

    /// A snapshot begins. `Ok` takes it; a sentence refuses it.
    ///
    /// # Errors
    /// Why not, in a sentence; the sender receives it.
    fn begin_snapshot(
        &self,
        from: NodeId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotSink>, String>;
}

/// What can be set. The defaults are meant for every cluster.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Where this node wants peers to reach it, `host:port`; sent in each Hello.
    pub peer_address: String,
    /// Where this node wants clients to reach it, `host:port`; sent in each Hello.
    pub client_address: String,
    /// The labels of the place where this node stands; sent in each Hello.
    pub labels: BTreeMap<String, String>,
    /// The bound of the bulk outbox of each peer, in bytes. Default 8 MiB: eight full appends.
    pub bulk_queue_bytes: usize,
    /// The bound of one frame, in bytes; one message may be larger. Default 1 MiB.
    pub frame_bytes_max: usize,
    /// Disconnect a peer that reads frames but acknowledges none for this long. Default 5 s.
    pub silence_max: Duration,
    /// How long a snapshot transfer may stand still. Default 15 s.
    pub snapshot_stall_max: Duration,
    /// The pause before a peer is tried again that refused the Hello. Default 5 s.
    pub refused_pause: Duration,
    /// The reconnect pause doubles from the first to the second, with jitter. Default 50 ms to 1 s.
    pub backoff: (Duration, Duration),
}

impl TransportConfig {
    /// The defaults, for a node with these advertised addresses.
    pub fn new(peer_address: impl Into<String>, client_address: impl Into<String>) -> Self {
        Self {
            peer_address: peer_address.into(),
            client_address: client_address.into(),
            labels: BTreeMap::new(),
            bulk_queue_bytes: 8 * 1024 * 1024,
            frame_bytes_max: 1024 * 1024,
            silence_max: Duration::from_secs(5),
            snapshot_stall_max: Duration::from_secs(15),
            refused_pause: Duration::from_secs(5),
            backoff: (Duration::from_millis(50), Duration::from_secs(1)),
        }
    }
}

/// Where a peer is and which directory it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTarget {
    /// `host:port`; the name is resolved at each connect.
    pub address: String,
    /// The incarnation of its data directory.
    pub incarnation: Incarnation,
}

/// The peers of a node; itself may be among them and is skipped.
pub type PeerTargets = BTreeMap<NodeId, PeerTarget>;

/// How a peer stands, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// The peer.
    pub node: NodeId,
    /// Whether the control connection to it stands.
    pub connected: bool,
    /// Where it was reached or tried.
    pub address: String,
    /// Why it is not connected, in words; empty while it is.
    pub detail: String,
    /// Since anything was heard from it; `None` = never.
    pub silent_for: Option<Duration>,
    /// Bytes in its bulk outbox.
    pub bulk_queue_bytes: usize,
    /// Messages handed to its connections since the start.
    pub messages_sent: u64,
    /// Frames handed to its connections since the start.
    pub frames_sent: u64,
    /// Bulk messages dropped since the start, because the outbox was full or the peer was not
    /// connected.
    pub bulk_dropped: u64,
}

/// Who this node is to its peers.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Its number.
    pub node: NodeId,
    /// The incarnation of its data directory.
    pub incarnation: Incarnation,
    /// Starts of a process on that directory, this one included.
    pub boot_counter: u64,
    /// The cluster that it is a member of.
    pub cluster_id: ClusterId,
    /// That cluster's name, for people.
    pub cluster_name: String,
    /// How it proves to its peers that it knows the cluster's secret.
    pub key: ProofKey,
}

/// What a node answers to those that ask who it is, before and after it has formed.
pub trait Greeter: Send + Sync + 'static {
    /// The node that answers.
    fn node(&self) -> NodeId;

    /// The answer as things stand now.
    fn answer(&self) -> quorate_proto::raft::v1::AskResponse;
}

/// What all connections of a node share.
struct Shared {
    config: TransportConfig,
    local: LocalNode,
    /// This process, among all that ever run on the directory.
    start: StartId,
    /// When it began.
    born: Instant,
    inbound: Arc<dyn Inbound>,
    peers: ArcSwap<BTreeMap<NodeId, Arc<Peer>>>,
    /// Serialises [`Transport::set_peers`].
    changing: Mutex<()>,
    map_epoch: AtomicU64,
    memory: Arc<Memory>,
    /// Lets this node report to its peers immediately.
    announce: Arc<Notify>,
    /// Why this node takes no part any more.
    fenced: OnceLock<String>,
    stop: CancellationToken,
    runtime: Handle,
}

impl Shared {
    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.load().get(&node).cloned()
    }

    /// Ends everything: a peer has shown that this node has forgotten what it promised.
    fn fence(&self, why: &str) {
        if self.fenced.set(why.to_owned()).is_ok() {
            error!(why, "transport: ended");
            self.stop.cancel();
            self.inbound.went_back(why);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.memory.end();
    }
}

/// The connections of one node. Cheap to clone; [`Transport::stop`] ends them all.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("local", &self.shared.local).finish_non_exhaustive()
    }
}

impl Transport {
    /// Starts dialling `peers`, on the current tokio runtime. Incoming streams are served once the
    /// transport is passed to [`PeerService::attach`].
    ///
    /// # Errors
    /// A sentence when the system refuses a thread.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        config: TransportConfig,
        local: LocalNode,
        peers: &PeerTargets,
        recollection: Recollection,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            config,
            local,
            start: StartId::draw(),
            born: Instant::now(),
            inbound,
            peers: ArcSwap::default(),
            changing: Mutex::new(()),
            map_epoch: AtomicU64::new(0),
            memory: Memory::start(recollection)?,
            announce: Arc::default(),
            fenced: OnceLock::new(),
            stop: CancellationToken::new(),
            runtime: Handle::current(),
        });
        let (stop, telling) = (shared.stop.clone(), Arc::clone(&shared));
        shared.runtime.spawn(async move {
            stop.run_until_cancelled(telling.announce_to_peers()).await;
        });
        let transport = Self { shared };
        transport.set_peers(peers);
        Ok(transport)
    }

    /// Replaces the set of peers: new ones are dialled, missing ones dropped, and a peer with a new
    /// address or incarnation is dialled there when its connections end or fail.
    pub fn set_peers(&self, targets: &PeerTargets) {
        let shared = &self.shared;
        let _changing = shared.changing.lock();
        let mut peers = BTreeMap::clone(&shared.peers.load());
        peers.retain(|node, peer| {
            let stays = targets.contains_key(node);
            if !stays {
                peer.stop();
            }
            stays
        });
        let mut new = Vec::new();
        for (&node, target) in targets.iter().filter(|(node, _)| **node != shared.local.node) {
            match peers.get(&node) {
                Some(peer) => peer.set_target(target),
                None => {
                    let peer = Arc::new(Peer::new(node, target.clone(), shared));
                    peers.insert(node, Arc::clone(&peer));
                    new.push(peer);
                }
            }
        }
        shared.peers.store(Arc::new(peers));
        for peer in new {
            link::spawn(shared, &peer);
        }
    }

    /// Sets the epoch of the cluster map that the Hello of every later stream reports.
    pub fn set_map_epoch(&self, map_epoch: u64) {
        self.shared.map_epoch.store(map_epoch, Ordering::Relaxed);
    }

    /// Sends one message to a node. Never blocks; a message to an unknown node is dropped (and
    /// reported, when it is a bulk one).
    pub fn send(&self, to: NodeId, envelope: Envelope) {
        self.send_all([(to, envelope)]);
    }

    /// Sends the messages of one turn, waking each peer's connections once.
    pub fn send_all(&self, messages: impl IntoIterator<Item = (NodeId, Envelope)>) {
        let peers = self.shared.peers.load();
        let mut dropped: Vec<(GroupId, ReplicaId)> = Vec::new();
        for (node, envelope) in messages {
            let to = (envelope.group, envelope.to.id);
            let bulk = envelope.message.is_bulk();
            let taken = match peers.get(&node) {
                Some(peer) => peer.put(envelope),
                None => false,
            };
            if bulk && !taken {
                dropped.push(to);
            }
        }
        for peer in peers.values() {
            peer.wake();
        }
        dropped.sort_unstable();
        dropped.dedup();
        for (group, to) in dropped {
            self.shared.inbound.bulk_dropped(group, to);
        }
    }

    /// Waits for the turn to send a snapshot to a peer: one transfer at a time for each. The
    /// caller pins state for a transfer after this.
    ///
    /// # Errors
    /// [`SnapshotError`] when the node is not a peer.
    pub async fn snapshot_turn(&self, to: NodeId) -> Result<SnapshotTurn, SnapshotError> {
        snapshot::turn(&self.shared, to).await
    }

    /// Puts into the metadata of a call to `node` the proof that a node of the cluster passes it
    /// on. `false` = there is none: this node has never been connected to `node`, and its listener
    /// would refuse the call.
    pub fn prove_call(&self, node: NodeId, metadata: &mut MetadataMap) -> bool {
        let shared = &self.shared;
        let proof = shared.peer(node).and_then(|peer| peer.call_proof(&shared.local));
        proof.is_some_and(|proof| {
            metadata.insert(CALL_PROOF, proof);
            true
        })
    }

    /// How each peer stands.
    pub fn peers(&self) -> Vec<PeerView> {
        self.shared.peers.load().values().map(|peer| peer.view()).collect()
    }

    /// Makes durable what is remembered of the peers, and writes nothing any more. From now on no
    /// connection is accepted. Waits for the disk.
    pub fn close_memory(&self) {
        self.shared.memory.close();
    }

    /// Reports to each connected peer how far the log is durable, which no longer grows, and ends
    /// all connections when the peers have read it, a second later at the latest.
    pub async fn finish(&self) {
        let peers = self.shared.peers.load_full();
        peers.values().for_each(|peer| peer.nudge());
        let read = futures::future::join_all(peers.values().map(|peer| peer.control.read()));
        // A peer that does not read it is like one that was not connected.
        let _ = tokio::time::timeout(FAREWELL, read).await;
        self.stop();
    }

    /// Ends all connections. Messages not yet sent are gone.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }
}
