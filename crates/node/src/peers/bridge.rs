//! The bridge between transport and engine: received messages go to the event loops, sent ones to
//! the peers.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use quorate_engine::clock::Clock;
use quorate_engine::clock_offset::{self, ClockOffsets};
use quorate_engine::{Engine, InstallError, Outbox, Shard, SnapshotOrder};
use quorate_proto::v1::{NodePhase, PeerStatus};
use quorate_raft::{Envelope, GroupId, Message, NodeId, ReplicaId};
use quorate_service::health::PeerSource;
use quorate_service::shared::{Lifecycle, duration};
use quorate_storage::{Disk, DiskLevel, Installer, SnapshotSource as StoredSnapshot};
use quorate_transport::{
    Inbound, Lane, PeerHello, SnapshotHeader, SnapshotSink, SnapshotSource, Transport,
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::metrics::Metrics;

/// The outbox of the engine. The transport is started after the engine and attached then; messages
/// sent before that are lost, as on a network.
#[derive(Default)]
pub struct Outgoing {
    transport: OnceLock<Transport>,
}

impl Outgoing {
    /// Sends messages from now on.
    pub fn attach(&self, transport: Transport) {
        // Attached once, at the start of the node; a second call would pass the same transport.
        let _ = self.transport.set(transport);
    }
}

impl Outbox for Outgoing {
    fn send_all(&self, batch: &mut Vec<(NodeId, Envelope)>) {
        match self.transport.get() {
            Some(transport) if !batch.is_empty() => transport.send_all(batch.drain(..)),
            _ => batch.clear(),
        }
    }
}

/// The hellos of the connected peers.
#[derive(Debug)]
pub struct Peers {
    hellos: Mutex<BTreeMap<NodeId, (PeerHello, Instant)>>,
    changed: watch::Sender<u64>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { hellos: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Peers {
    /// The last hello of each connected peer, and the time since when it is connected.
    #[must_use]
    pub fn connected(&self) -> BTreeMap<NodeId, (PeerHello, Instant)> {
        self.hellos.lock().clone()
    }

    /// Wakes when a peer connects or disconnects.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn note(&self, change: impl FnOnce(&mut BTreeMap<NodeId, (PeerHello, Instant)>)) {
        change(&mut self.hellos.lock());
        self.changed.send_modify(|count| *count += 1);
    }
}

/// The connections to the other nodes, for status.
pub struct Connections(pub Transport);

impl PeerSource for Connections {
    fn peers(&self) -> Vec<PeerStatus> {
        let views = self.0.peers().into_iter();
        let status = views.map(|peer| PeerStatus {
            node_id: peer.node.0,
            connected: peer.connected,
            address: peer.address,
            detail: peer.detail,
            silent_for: peer.silent_for.map(duration),
            ..PeerStatus::default()
        });
        status.collect()
    }
}

/// The receiver of messages from the transport.
pub struct Incoming {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The connected peers.
    pub peers: Arc<Peers>,
    /// The level of the disk's reserve.
    pub disk: Arc<Disk>,
    /// The clock offsets of the peers.
    pub clocks: Arc<ClockOffsets>,
    /// The phase of this node.
    pub life: Arc<Lifecycle>,
}

impl Inbound for Incoming {
    fn log_sequence(&self) -> u64 {
        self.engine.log_progress().durable_sequence()
    }

    fn went_back(&self, why: &str) {
        error!(why, "storage: older than before; the node stays up without taking part");
        self.life.enter(NodePhase::StorageFailed, why);
    }

    fn deliver(&self, from: NodeId, _lane: Lane, mut messages: Vec<Envelope>) {
        // Here and not in an event loop, because a message ages while it waits for one.
        if let Some(clock) = clock_offset::reported(&messages) {
            self.clocks.note(from, clock, Clock.moment());
        }
        // Only the end of its transfer announces a snapshot: an announcement without the bytes has
        // nothing to install.
        messages.retain(|envelope| match &envelope.message {
            Message::InstallSnapshot { .. } => false,
            // Below a quarter of the reserve appends stop: the leader continues with the others.
            Message::Append { entries, .. } if !entries.is_empty() => {
                self.disk.level() < DiskLevel::Critical
            }
            _ => true,
        });
        self.engine.deliver(messages);
    }

    fn bulk_room(&self) -> Option<BoxFuture<'static, ()>> {
        self.engine.room()
    }

    fn bulk_dropped(&self, group: GroupId, to: ReplicaId) {
        self.engine.bulk_dropped(group, to);
    }

    fn peer_connected(&self, node: NodeId, hello: PeerHello) {
        info!(peer = node.0, build = hello.build, "peer: connected");
        self.peers.note(|hellos| {
            hellos.insert(node, (hello, Instant::now()));
        });
    }

    fn peer_disconnected(&self, node: NodeId, why: &str) {
        info!(peer = node.0, why, "peer: disconnected");
        self.peers.note(|hellos| {
            hellos.remove(&node);
        });
    }

    fn peer_refused(&self, node: NodeId) {
        self.engine.peer_refused(node);
    }

    fn begin_snapshot(
        &self,
        from: NodeId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotSink>, String> {
        let group = header.group;
        let shard = self.engine.shards().get(group);
        let shard = shard.ok_or_else(|| format!("this node holds no replica of {group}"))?;
        if shard.replica.id != header.to.id {
            return Err(format!("expected replica {}, found {}", header.to.id, shard.replica.id));
        }
        info!(shard = group.0, peer = from.0, last = %header.meta.last, "snapshot: receiving");
        let installer = self.engine.begin_install(group, header.meta.clone());
        let waiting = Some(installer);
        Ok(Box::new(Receiving { engine: self.engine.clone(), header, waiting, installer: None }))
    }
}

type WaitingInstaller = oneshot::Receiver<Result<Installer, InstallError>>;

/// A snapshot in transfer: its rows go into a new generation, which is invisible until the core
/// accepts it.
struct Receiving {
    engine: Arc<Engine>,
    header: SnapshotHeader,
    waiting: Option<WaitingInstaller>,
    installer: Option<Installer>,
}

impl Receiving {
    fn installer(&mut self) -> Result<&mut Installer, String> {
        if let Some(waiting) = self.waiting.take() {
            // This runs on a thread for blocking work. The apply thread answers soon, or has ended.
            let begun = waiting.blocking_recv().map_err(|_| "the node is stopping")?;
            self.installer = Some(begun.map_err(|error| error.to_string())?);
        }
        self.installer.as_mut().ok_or_else(|| "the install has already failed".to_owned())
    }
}

impl SnapshotSink for Receiving {
    fn write(&mut self, chunk: Bytes) -> Result<(), String> {
        let written = self.installer()?.write(&chunk);
        written.map_err(|error| {
            if error.is_fatal() {
                crate::exit::end_for_storage(&error);
            }
            self.installer = None;
            error.to_string()
        })
    }

    fn finish(mut self: Box<Self>) -> Result<(), String> {
        self.installer()?;
        let SnapshotHeader { group, from, to, term, session, meta } = self.header.clone();
        if let Some(installer) = self.installer.take() {
            self.engine.staged().put(group, session, installer);
        }
        let message = Message::InstallSnapshot { session, meta };
        self.engine.snapshot_received(Envelope { group, from, to, term, message });
        Ok(())
    }

    fn abort(mut self: Box<Self>, why: &str) {
        debug!(shard = self.header.group.0, why, "snapshot: aborted");
        self.installer = None;
    }
}

/// Sends the snapshots that the leaders of this node order, until the engine ends.
pub async fn send_snapshots(
    engine: Arc<Engine>,
    transport: Transport,
    metrics: Arc<Metrics>,
    mut orders: mpsc::Receiver<SnapshotOrder>,
) {
    while let Some(SnapshotOrder { group, from, order }) = orders.recv().await {
        let (engine, transport, metrics) = (engine.clone(), transport.clone(), metrics.clone());
        // One task per order, of which a core has at most one per follower; the turn of the peer
        // allows one transfer at a time.
        tokio::spawn(async move {
            let to = order.to;
            let sent = send_snapshot(&engine, &transport, group, from, &order).await;
            match &sent {
                Ok(bytes) => {
                    metrics.node.snapshots_sent.inc();
                    info!(shard = group.0, peer = to.node.0, bytes, "snapshot: sent");
                }
                Err(why) => warn!(shard = group.0, peer = to.node.0, why, "snapshot: not sent"),
            }
            engine.snapshot_sent(group, to.id, order.session, sent.is_ok());
        });
    }
}

async fn send_snapshot(
    engine: &Engine,
    transport: &Transport,
    group: GroupId,
    from: quorate_raft::Replica,
    order: &quorate_raft::SnapshotSend,
) -> Result<u64, String> {
    let turn = transport.snapshot_turn(order.to.node).await.map_err(|error| error.to_string())?;
    let source = engine.pin_snapshot(group).await.map_err(|error| error.to_string())?;
    let meta = source.meta();
    if meta.last.index < order.at_least {
        return Err(format!(
            "the checkpoint ends at {}, before the first entry the leader still has",
            meta.last
        ));
    }
    if !engine.snapshot_begins(group, order.to.id, order.session, meta.last.index).await {
        return Err(format!("its receiver needs no checkpoint that ends at {}", meta.last));
    }
    let header = SnapshotHeader {
        group,
        from,
        to: order.to,
        term: order.term,
        session: order.session,
        meta,
    };
    let shard = engine.shards().get(group);
    turn.send(&header, Chunks { source, shard }).await.map_err(|error| error.to_string())
}

/// The chunks of a checkpoint, read while they are sent.
struct Chunks {
    source: StoredSnapshot,
    /// The owner of the checkpoint: damage found in it is damage of that replica.
    shard: Option<Arc<Shard>>,
}

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        self.source.next_chunk().map_err(|error| {
            if error.is_fatal() {
                crate::exit::end_for_storage(&error);
            }
            if let Some(shard) = self.shard.as_ref().filter(|_| error.is_damage()) {
                shard.set_damaged(&error.to_string());
            }
            error.to_string()
        })
    }
}

#[cfg(test)]
mod tests {
    use quorate_engine::testing::{self, GROUP, Node, replica, wait};
    use quorate_raft::{
        HardState, Index, LogId, Replica, ReplicationSession, SnapshotMeta, Term, Timing,
    };
    use quorate_storage::RecoveredGroup;

    use super::*;
    use crate::background::gauges;

    fn incoming(node: &Node) -> Incoming {
        Incoming {
            engine: node.engine.clone(),
            peers: Arc::default(),
            disk: Arc::default(),
            clocks: Arc::default(),
            life: Arc::default(),
        }
    }

    #[test]
    fn a_snapshot_that_the_core_rejects_makes_room_for_the_next() {
        let node = Node::start();
        let hard_state = HardState { term: Term(5), ..HardState::default() };
        let recovered = RecoveredGroup { hard_state, ..RecoveredGroup::default() };
        let shard = node.add(GROUP, 3, Some(recovered), false);
        let incoming = incoming(&node);
        let membership = shard.reader.header().membership.clone();
        // A newer term has begun, so its leader does not lead any more.
        let term = Term(4);
        let header = |counter| SnapshotHeader {
            group: GROUP,
            from: replica(2),
            to: replica(1),
            term,
            session: ReplicationSession { term, counter },
            meta: SnapshotMeta {
                last: LogId { term, index: Index(9) },
                stamp: 1,
                membership: membership.clone(),
            },
        };
        let receive = |counter| incoming.begin_snapshot(NodeId(2), header(counter))?.finish();
        assert_eq!(receive(1), Ok(()));
        wait("the next one may come", || receive(2).is_ok());
        node.engine.stop();
    }

    #[test]
    fn damage_found_while_a_snapshot_is_sent_marks_its_replica_damaged() {
        let node = testing::small();
        let shard = node.lead(GROUP, 1);
        testing::checkpoint(&node, &shard);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let pinned = runtime.block_on(node.engine.pin_snapshot(GROUP));
        let mut chunks = Chunks { source: pinned.unwrap(), shard: Some(shard.clone()) };
        testing::damage(&node, GROUP);
        let mut ended = std::iter::from_fn(|| chunks.next_chunk().transpose());
        assert!(ended.any(|chunk| chunk.is_err()) && shard.is_damaged());
        node.engine.stop();
    }

    #[test]
    fn a_heartbeat_reports_the_clock_offset_of_its_sender() {
        let node = Node::start();
        let incoming = incoming(&node);
        let metrics = Metrics::new();
        let offset_of = |peer: u64| -> Option<f64> {
            gauges::clock_offsets(&metrics, &incoming.clocks);
            let name = format!("quorate_clock_offset_seconds{{peer=\"{peer}\"}} ");
            let text = metrics.encode().unwrap();
            text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
        };
        let deliver = |from: u64, clock: u64| {
            let replica = |node| Replica { id: ReplicaId(node), node: NodeId(node) };
            let timing = Timing { clock, ..Timing::default() };
            let (session, commit) = (ReplicationSession::default(), Index(0));
            let message = Message::Heartbeat { session, commit, timing };
            let (from, to, term) = (replica(from), replica(1), Term(1));
            let envelope = Envelope { group: GroupId(1), from, to, term, message };
            incoming.deliver(from.node, Lane::Control, vec![envelope]);
        };
        metrics.peer(2).connected.set(1);
        assert_eq!(offset_of(2), None, "a connection does not report the clock");
        deliver(2, Clock.unix_millis() + 3_600_000);
        deliver(3, Clock.unix_millis() - 60_000);
        let (ahead, behind) = (offset_of(2).unwrap(), offset_of(3).unwrap());
        // Too small by the latency, which here is at most the delay on a busy machine.
        assert!(3_590.0 < ahead && ahead <= 3_600.002, "{ahead}");
        assert!(-70.0 < behind && behind <= -59.998, "{behind}");
        assert_eq!(offset_of(1), None);
        incoming.engine.stop();
    }
}
