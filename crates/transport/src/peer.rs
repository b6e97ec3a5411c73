//! A peer: where it is, what waits to be sent to it, and which of its processes is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_raft::{Envelope, NodeId};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::memory::StartId;
use super::outbox::{FifoQueue, LatestQueue, Outbox};
use super::passed::{self, CallProof};
use super::presence::{Presence, SILENCE};
use super::{LocalNode, PeerTarget, PeerView, Shared};

/// Another node.
pub(super) struct Peer {
    pub node: NodeId,
    pub(super) target: Mutex<PeerTarget>,
    pub(super) control: Arc<Outbox<LatestQueue>>,
    pub(super) bulk: Arc<Outbox<FifoQueue>>,
    pub(super) state: Mutex<State>,
    pub(super) born: Instant,
    /// Milliseconds from `born` to the last sign of life, plus one; 0 = none yet.
    heard: AtomicU64,
    /// One outgoing snapshot at a time.
    pub snapshot_out: Arc<Semaphore>,
    /// One incoming snapshot at a time.
    pub snapshot_in: Arc<Semaphore>,
    /// The incoming stream of each lane; a newer one ends the older.
    incoming: Mutex<[Option<CancellationToken>; 3]>,
    /// Which process is accepted as the peer.
    pub(super) presence: watch::Sender<Presence>,
    /// Lets the control link dial immediately: a process waits for the result.
    pub(super) look: Notify,
    /// Lets this node report immediately that this peer was connected or disconnected.
    pub(super) announce: Arc<Notify>,
    /// The proof of calls to this process of it, as it was made last.
    call_proof: Mutex<Option<(StartId, CallProof)>>,
    pub(super) stop: CancellationToken,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) connected: bool,
    /// Why not connected.
    pub(super) detail: String,
    /// `detail` was logged at info level, not yet as a warning.
    pub(super) told_quietly: bool,
}

impl Peer {
    pub fn new(node: NodeId, target: PeerTarget, shared: &Shared) -> Self {
        let config = &shared.config;
        let presence = Presence::new(target.incarnation, &target.address, &shared.memory);
        Self {
            node,
            presence,
            look: Notify::new(),
            announce: Arc::clone(&shared.announce),
            target: Mutex::new(target),
            control: Arc::new(Outbox::new(usize::MAX, config.frame_bytes_max)),
            bulk: Arc::new(Outbox::new(config.bulk_queue_bytes, config.frame_bytes_max)),
            state: Mutex::new(State { detail: "not yet dialled".into(), ..State::default() }),
            born: Instant::now(),
            heard: AtomicU64::new(0),
            snapshot_out: Arc::new(Semaphore::new(1)),
            snapshot_in: Arc::new(Semaphore::new(1)),
            incoming: Mutex::default(),
            call_proof: Mutex::default(),
            stop: shared.stop.child_token(),
        }
    }

    pub fn target(&self) -> PeerTarget {
        self.target.lock().clone()
    }

    pub fn set_target(&self, target: &PeerTarget) {
        self.target.lock().clone_from(target);
    }

    /// The peer says where it is: it is dialled there from now on, when its connections end or
    /// fail. Else a node that moved would be dialled at its old address forever.
    pub fn update_address(&self, address: &str) {
        let mut target = self.target.lock();
        if !address.is_empty() && target.address != address {
            info!(
                peer = self.node.0,
                known = target.address,
                address,
                "peer: advertises a new address"
            );
            address.clone_into(&mut target.address);
        }
    }

    /// The proof of a call from this node to the process that was accepted last as the peer; `None`
    /// before there was one.
    pub fn call_proof(&self, local: &LocalNode) -> Option<CallProof> {
        let start = self.presence.borrow().last.as_ref()?.start;
        let mut known = self.call_proof.lock();
        if let Some((_, proof)) = known.as_ref().filter(|(of, _)| *of == start) {
            return Some(proof.clone());
        }
        let proof = passed::prove(&local.key, local.node, self.node, start)?;
        *known = Some((start, proof.clone()));
        Some(proof)
    }

    /// Ends everything that concerns this peer.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Queues a message on the right lane; `false`: dropped.
    pub fn put(&self, envelope: Envelope) -> bool {
        if envelope.message.is_bulk() {
            self.bulk.put(envelope)
        } else {
            self.control.put(envelope)
        }
    }

    pub fn wake(&self) {
        self.control.wake();
        self.bulk.wake();
    }

    /// Sends the peer a frame with the reports, though there may be no message for it.
    pub fn nudge(&self) {
        self.control.nudge();
    }

    /// Something came from it.
    pub fn heard(&self) {
        self.heard.store(self.born.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Since it was heard at last, or since this node knows of it.
    pub fn silent_for(&self) -> Duration {
        let heard = self.heard.load(Ordering::Relaxed).saturating_sub(1);
        self.born.elapsed().saturating_sub(Duration::from_millis(heard))
    }

    /// Whether the process that is accepted for it shows that it is there.
    pub fn answers(&self) -> bool {
        self.state.lock().connected || self.silent_for() < SILENCE
    }

    /// Ends all incoming streams.
    pub fn end_incoming(&self) {
        self.incoming.lock().iter().flatten().for_each(CancellationToken::cancel);
    }

    /// The token of a new incoming stream; the older stream of the lane ends.
    pub fn replace_incoming(&self, lane: wire::Lane) -> CancellationToken {
        let token = self.stop.child_token();
        let slot = match lane {
            wire::Lane::Control | wire::Lane::Unspecified => 0,
            wire::Lane::Bulk => 1,
            wire::Lane::Snapshot => 2,
        };
        if let Some(older) = self.incoming.lock()[slot].replace(token.clone()) {
            older.cancel();
        }
        token
    }

    pub fn view(&self) -> PeerView {
        let (control, bulk) = (self.control.counts(), self.bulk.counts());
        let state = self.state.lock();
        let heard = self.heard.load(Ordering::Relaxed);
        PeerView {
            node: self.node,
            connected: state.connected,
            address: self.target().address,
            detail: if state.connected { String::new() } else { state.detail.clone() },
            silent_for: (heard > 0).then(|| self.silent_for()),
            bulk_queue_bytes: self.bulk.bytes(),
            messages_sent: control.messages + bulk.messages,
            frames_sent: control.frames + bulk.frames,
            bulk_dropped: bulk.dropped,
        }
    }

    /// Notes why there is no connection, and says it when it is news. Returns whether it was.
    pub fn note(&self, sentence: &str) -> bool {
        let mut state = self.state.lock();
        if state.detail == sentence {
            return false;
        }
        sentence.clone_into(&mut state.detail);
        true
    }
}
