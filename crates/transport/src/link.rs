//! The outgoing side: for each peer and lane one task that dials, says Hello, and watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_raft::{Envelope, NodeId};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wire::link_response::Content;

use super::memory::StartId;
use super::outbox::{FrameStream, InOrder, Latest, Outbox, Queue};
use super::presence::{Connection, Presence, SILENCE};
use super::{Lane, PeerHello, PeerTarget, PeerView, Shared, dial, hello};

/// How long the called node may take to answer the Hello.
pub(super) const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// The largest answer on a link: a Hello.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// A peer that cannot be reached is something to warn of when it has had so long to start.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// A connection that stood for so long is dialled again without a pause when it breaks.
const STOOD: Duration = Duration::from_secs(1);
/// A refusal so long after the break still tells of the break.
const REFUSED_AFTER_BREAK: Duration = Duration::from_secs(1);

/// Another node.
pub(super) struct Peer {
    pub node: NodeId,
    target: Mutex<PeerTarget>,
    control: Arc<Outbox<Latest>>,
    bulk: Arc<Outbox<InOrder>>,
    state: Mutex<State>,
    born: Instant,
    /// Milliseconds from `born` to the last sign of life, plus one; 0 = none yet.
    heard: AtomicU64,
    /// One outgoing snapshot at a time.
    pub snapshot_out: Arc<Semaphore>,
    /// One incoming snapshot at a time.
    pub snapshot_in: Arc<Semaphore>,
    /// The incoming stream of each lane; a newer one ends the older.
    incoming: Mutex<[Option<CancellationToken>; 3]>,
    /// Which process is taken for the peer.
    pub(super) presence: watch::Sender<Presence>,
    /// Lets the control link dial at once: whether the peer is in its place is waited for.
    pub(super) look: Notify,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    connected: bool,
    /// Why not connected.
    detail: String,
    /// That was told as something that passes, and not yet as a warning.
    told_quietly: bool,
}

impl Peer {
    pub fn new(node: NodeId, target: PeerTarget, shared: &Shared) -> Self {
        let config = &shared.config;
        let presence = Presence::new(target.incarnation, &target.address, &shared.memory);
        Self {
            node,
            presence,
            look: Notify::new(),
            target: Mutex::new(target),
            control: Arc::new(Outbox::new(usize::MAX, config.frame_bytes_max)),
            bulk: Arc::new(Outbox::new(config.bulk_queue_bytes, config.frame_bytes_max)),
            state: Mutex::new(State { detail: "not yet dialled".into(), ..State::default() }),
            born: Instant::now(),
            heard: AtomicU64::new(0),
            snapshot_out: Arc::new(Semaphore::new(1)),
            snapshot_in: Arc::new(Semaphore::new(1)),
            incoming: Mutex::default(),
            stop: shared.stop.child_token(),
        }
    }

    pub fn target(&self) -> PeerTarget {
        self.target.lock().clone()
    }

    pub fn set_target(&self, target: &PeerTarget) {
        self.target.lock().clone_from(target);
    }

    /// The peer says where it is: it is dialled there from now on, when its connections end or fail.
    /// Else a node that moved would be looked for at its old address for ever.
    pub fn told_address(&self, address: &str) {
        let mut target = self.target.lock();
        if !address.is_empty() && target.address != address {
            info!(
                peer = self.node.0,
                known = target.address,
                address,
                "peer tells another address"
            );
            address.clone_into(&mut target.address);
        }
    }

    /// Ends everything that concerns this peer.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Takes a message for the right lane; `false`: dropped.
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

    /// Tells the peer what each frame tells, though there may be no message for it.
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

    /// Whether the process that is taken for it shows that it is there.
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
    fn note(&self, sentence: &str) -> bool {
        let mut state = self.state.lock();
        if state.detail == sentence {
            return false;
        }
        sentence.clone_into(&mut state.detail);
        true
    }
}

/// Starts the two links to a new peer.
pub(super) fn spawn(shared: &Arc<Shared>, peer: &Arc<Peer>) {
    let control = Link::new(shared, peer, Lane::Control, &peer.control);
    let bulk = Link::new(shared, peer, Lane::Bulk, &peer.bulk);
    shared.runtime.spawn(control.run());
    shared.runtime.spawn(bulk.run());
}

/// How an attempt to have a connection ended.
enum End {
    /// It could not be made.
    Unreachable(dial::DialError),
    /// One side refused the other's Hello.
    Refused(String),
    /// It stood since then, and broke.
    Broke(Instant, String),
}

fn unreachable(sentence: String) -> End {
    End::Unreachable(dial::DialError { sentence, refused: false })
}

struct Link<Q> {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    lane: Lane,
    outbox: Arc<Outbox<Q>>,
}

impl<Q: Queue> Link<Q> {
    fn new(shared: &Arc<Shared>, peer: &Arc<Peer>, lane: Lane, outbox: &Arc<Outbox<Q>>) -> Self {
        let (shared, peer, outbox) = (Arc::clone(shared), Arc::clone(peer), Arc::clone(outbox));
        Self { shared, peer, lane, outbox }
    }

    /// Dials until the peer is dropped or the transport stops.
    async fn run(self) {
        let stop = self.peer.stop.clone();
        stop.run_until_cancelled(self.keep_connected()).await;
        self.cut();
        if let Some(sentence) = self.shared.fenced.get() {
            self.peer.state.lock().connected = false;
            self.peer.note(&format!("refused: {sentence}"));
        }
    }

    async fn keep_connected(&self) {
        let (pause_min, pause_max) = self.shared.config.backoff;
        let mut pause = pause_min;
        let mut broke_at: Option<Instant> = None;
        loop {
            let end = self.connection().await;
            self.cut();
            match end {
                End::Broke(since, sentence) => {
                    self.disconnected(&sentence);
                    broke_at = Some(Instant::now());
                    pause = pause_min;
                    if since.elapsed() >= STOOD {
                        continue;
                    }
                }
                End::Unreachable(error) => {
                    if self.is_control() {
                        self.peer.not_found(error.refused);
                    }
                    let told = broke_at.is_some_and(|at| at.elapsed() <= REFUSED_AFTER_BREAK);
                    if error.refused && broke_at.take().is_some() && told && self.is_control() {
                        info!(
                            peer = self.peer.node.0,
                            "peer has ended: its host refuses to connect"
                        );
                        self.shared.inbound.peer_refused(self.peer.node);
                    }
                    let sentence = format!("cannot reach {}: {}", self.address(), error.sentence);
                    // Nodes that start together do not find each other at once.
                    self.say(&sentence, self.peer.born.elapsed() >= START_PATIENCE);
                }
                End::Refused(sentence) => {
                    broke_at = None;
                    self.say(&format!("refused: {sentence}"), true);
                    self.pause(self.shared.config.refused_pause).await;
                    continue;
                }
            }
            self.pause(pause).await;
            pause = (pause * 2).min(pause_max);
        }
    }

    /// Waits before the next attempt, unless somebody waits for what comes of it.
    async fn pause(&self, pause: Duration) {
        let pause = tokio::time::sleep(jittered(pause));
        if self.is_control() {
            tokio::select! {
                () = pause => {}
                () = self.peer.look.notified() => {}
            }
        } else {
            pause.await;
        }
    }

    /// One connection, from dialling to its end.
    async fn connection(&self) -> End {
        let target = self.peer.target();
        let channel = match dial::connect(&target.address).await {
            Ok(channel) => channel,
            Err(error) => return End::Unreachable(error),
        };
        let generation = self.outbox.begin();
        let lane = hello::lane_to_wire(self.lane);
        let mine = self.shared.hello(self.peer.node, target.incarnation, lane);
        let frames = FrameStream::new(
            Arc::clone(&self.outbox),
            generation,
            mine,
            Arc::clone(&self.shared.inbound),
        );
        let mut client =
            wire::peer_client::PeerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let opening = async {
            let mut answers = client.link(frames).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, tonic::Status>((answers, first))
        };
        let (answers, first) = match tokio::time::timeout(HELLO_DEADLINE, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return unreachable(dial::status_sentence(&status)),
            Err(_) => return unreachable(format!("no Hello within {HELLO_DEADLINE:?}")),
        };
        let greeted = match first.and_then(|response| response.content) {
            Some(Content::Hello(theirs)) => self.check(&theirs, &target),
            Some(Content::Refusal(refusal)) => return self.refused(refusal),
            Some(Content::Ack(_)) | None => {
                return unreachable("it did not answer the Hello".into());
            }
        };
        let hello = match greeted {
            Ok(hello) => hello,
            Err(sentence) => return End::Refused(sentence),
        };
        let connection = match self.peer.take(&hello, true, &self.shared.memory).await {
            Ok(connection) => connection,
            Err(refused) => return End::Refused(refused.sentence),
        };
        self.connected(hello);
        let since = Instant::now();
        self.outbox.open();
        End::Broke(since, self.watch(answers, connection).await)
    }

    /// The peer refuses this node.
    fn refused(&self, refusal: wire::Refusal) -> End {
        if refusal.from_node == self.peer.node.0 {
            self.peer.answered(StartId(refusal.start_id));
        }
        match refusal.reason() {
            wire::RefusalReason::Undecided => unreachable(refusal.sentence),
            wire::RefusalReason::WentBack => {
                self.shared.fence(&refusal.sentence);
                End::Refused(refusal.sentence)
            }
            wire::RefusalReason::AnotherProcess | wire::RefusalReason::Unspecified => {
                End::Refused(refusal.sentence)
            }
        }
    }

    fn check(&self, theirs: &wire::Hello, target: &PeerTarget) -> Result<PeerHello, String> {
        if theirs.from_node != self.peer.node.0 {
            return Err(format!(
                "{} is node {}, not node {}",
                target.address, theirs.from_node, self.peer.node.0
            ));
        }
        self.shared.check_hello(theirs, Some(target))
    }

    /// Takes acknowledgements until the connection breaks or the peer is silent; returns why.
    async fn watch(
        &self,
        mut answers: tonic::Streaming<wire::LinkResponse>,
        _connection: Connection,
    ) -> String {
        let silence_max = self.shared.config.silence_max;
        let mut check = tokio::time::interval(silence_max / 4);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(wire::LinkResponse { content: Some(Content::Ack(ack)) })) => {
                        self.peer.heard();
                        if let Err(why) = self.outbox.acknowledge(ack.number) {
                            return why;
                        }
                    }
                    Ok(Some(wire::LinkResponse { content: Some(Content::Refusal(refusal)) })) => {
                        return refusal.sentence;
                    }
                    Ok(Some(_)) => return "it sent what is no acknowledgement".into(),
                    Ok(None) => return "it ended the connection".into(),
                    Err(status) => return dial::status_sentence(&status),
                },
                _ = check.tick() => if let Some(silent) = self.outbox.silent_for()
                    && silent >= silence_max
                {
                    return format!("it has read nothing for {silence_max:?}");
                },
            }
        }
    }

    fn connected(&self, hello: PeerHello) {
        self.peer.heard();
        if !self.is_control() {
            return;
        }
        {
            let mut state = self.peer.state.lock();
            *state = State { connected: true, ..State::default() };
        }
        debug!(
            peer = self.peer.node.0,
            address = self.address(),
            build = hello.build,
            "peer connected"
        );
        self.shared.inbound.peer_connected(self.peer.node, hello);
    }

    fn disconnected(&self, sentence: &str) {
        if !self.is_control() {
            debug!(peer = self.peer.node.0, lane = ?self.lane, sentence, "peer lane broke");
            return;
        }
        self.peer.state.lock().connected = false;
        self.peer.note(sentence);
        self.shared.inbound.peer_disconnected(self.peer.node, sentence);
    }

    /// Drops what waits and reports what is lost. A control message that waited while the peer could
    /// not be reached goes too: it was meant for a moment that has passed.
    fn cut(&self) {
        for (group, replica) in self.outbox.cut() {
            self.shared.inbound.bulk_dropped(group, replica);
        }
    }

    /// Says the sentence when it is news, and again as a warning when it has become one. Both lanes
    /// share it, so that it is said once.
    fn say(&self, sentence: &str, warning: bool) {
        let news = self.peer.note(sentence);
        let quietly = {
            let mut state = self.peer.state.lock();
            let quietly = state.told_quietly;
            state.told_quietly = !warning && (news || quietly);
            quietly
        };
        if warning && (news || quietly) {
            warn!(peer = self.peer.node.0, sentence, "peer not connected");
        } else if news {
            info!(peer = self.peer.node.0, sentence, "peer not connected");
        }
    }

    fn address(&self) -> String {
        self.peer.target.lock().address.clone()
    }

    fn is_control(&self) -> bool {
        self.lane == Lane::Control
    }
}

/// Half to one and a half times the pause, so that nodes which lost each other together do not come
/// back in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>())
}
