//! The outgoing side: for each peer and lane one task that dials, says Hello, and watches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::raft::v1 as wire;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use wire::link_response::Content;

use super::admission::Connection;
use super::hello::HELLO_DEADLINE;
use super::memory::StartId;
use super::outbox::{FrameStream, Outbox, Queue};
use super::peer::{Peer, State};
use super::presence::Refused;
use super::proof::{Claim, STRANGE_WORDS_MAX};
use super::{Lane, PeerHello, PeerTarget, Shared, dial, hello};

/// The largest answer on a link: a Hello.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What opens a link: the Hello and the proof.
const OPENING_MESSAGES: usize = 2;
/// Warn of an unreachable peer only after this long: it may still be starting.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was up for at least this long is dialled again without a pause when it breaks.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// A refused reconnect within this time of a break means that the process has ended.
const REFUSED_AFTER_BREAK: Duration = Duration::from_secs(1);

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
    Refused(Refused),
    /// It stood since then, and broke.
    Broke(Instant, String),
}

fn unreachable(sentence: String) -> End {
    End::Unreachable(dial::DialError { sentence, refused: false })
}

#[expect(clippy::needless_pass_by_value, reason = "it is the function of map_err")]
fn lost(status: tonic::Status) -> End {
    unreachable(dial::status_sentence(&status))
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
                    if since.elapsed() >= STABLE_AFTER {
                        continue;
                    }
                }
                End::Unreachable(error) => {
                    if self.is_control() {
                        self.peer.not_found(error.refused);
                    }
                    let told = broke_at.is_some_and(|at| at.elapsed() <= REFUSED_AFTER_BREAK);
                    if error.refused && broke_at.take().is_some() && told && self.is_control() {
                        info!(peer = self.peer.node.0, "peer: ended; its host refuses to connect");
                        self.shared.inbound.peer_refused(self.peer.node);
                    }
                    let sentence = format!("cannot reach {}: {}", self.address(), error.sentence);
                    // Nodes that start together do not find each other at once.
                    self.say(&sentence, self.peer.born.elapsed() >= START_TIMEOUT);
                }
                End::Refused(Refused { reason, sentence }) => {
                    broke_at = None;
                    self.say(&format!("refused: {sentence}"), true);
                    let refused_pause = self.shared.config.refused_pause;
                    self.pause(match reason {
                        // That process may have ended already: a node that restarts is not to wait.
                        wire::RefusalReason::AnotherProcess => refused_pause.min(pause_max),
                        _ => refused_pause,
                    })
                    .await;
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
        let claim = Claim::of_hello(&mine);
        let (says, opening) = mpsc::channel(OPENING_MESSAGES);
        // The channel has room for all that opens the link.
        let _ = says.try_send(wire::link_request::Content::Hello(mine));
        let outbox = Arc::clone(&self.outbox);
        let frames = FrameStream::new(outbox, generation, opening, Arc::clone(&self.shared));
        let mut client =
            wire::peer_client::PeerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let opening = async {
            let mut answers = client.link(frames).await.map_err(lost)?.into_inner();
            let challenge = match answers.message().await.map_err(lost)?.and_then(|r| r.content) {
                Some(Content::Challenge(challenge)) => challenge,
                first => return Err(self.unproven(first)),
            };
            let proof = claim
                .answer(&self.shared.local.key, &challenge)
                .map_err(|why| End::Refused(format!("{}: {why}", target.address).into()))?;
            let _ = says.try_send(wire::link_request::Content::Proof(proof));
            // Frames follow.
            drop(says);
            let first = answers.message().await.map_err(lost)?;
            Ok((answers, first))
        };
        let (answers, first) = match tokio::time::timeout(HELLO_DEADLINE, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => return unreachable(format!("no Hello within {HELLO_DEADLINE:?}")),
        };
        let greeted = match first.and_then(|response| response.content) {
            Some(Content::Hello(theirs)) => self.check(&theirs, &target),
            Some(Content::Refusal(refusal)) => return self.refused(refusal),
            Some(Content::Ack(_) | Content::Challenge(_)) | None => {
                return unreachable("it did not answer the Hello".into());
            }
        };
        let hello = match greeted {
            Ok(hello) => hello,
            Err(sentence) => return End::Refused(sentence.into()),
        };
        let connection = match self.peer.take(&hello, true, &self.shared.memory).await {
            Ok(connection) => connection,
            Err(refused) => return End::Refused(refused),
        };
        self.connected(hello);
        let since = Instant::now();
        self.outbox.open();
        End::Broke(since, self.watch(answers, connection).await)
    }

    /// The called node has answered with something other than a challenge. Whatever it says is
    /// only shown: it may be anyone.
    fn unproven(&self, first: Option<Content>) -> End {
        let sentence = match first {
            Some(Content::Refusal(refusal)) => {
                refusal.sentence.chars().take(STRANGE_WORDS_MAX).collect()
            }
            Some(Content::Hello(theirs)) => match self.shared.check_versions(&theirs) {
                Err(sentence) => sentence,
                Ok(()) => format!("{} answers without a proof of the secret", self.address()),
            },
            Some(Content::Ack(_) | Content::Challenge(_)) | None => {
                return unreachable("it did not answer the Hello".into());
            }
        };
        End::Refused(sentence.into())
    }

    /// The peer refuses this node.
    fn refused(&self, refusal: wire::Refusal) -> End {
        if refusal.from_node == self.peer.node.0 {
            self.peer.answered(StartId(refusal.start_id));
        }
        let reason = refusal.reason();
        match reason {
            wire::RefusalReason::Undecided => return unreachable(refusal.sentence),
            wire::RefusalReason::WentBack => self.shared.fence(&refusal.sentence),
            wire::RefusalReason::AnotherProcess | wire::RefusalReason::Unspecified => {}
        }
        End::Refused(Refused { reason, sentence: refusal.sentence })
    }

    fn check(&self, theirs: &wire::Hello, target: &PeerTarget) -> Result<PeerHello, String> {
        if theirs.from_node != self.peer.node.0 {
            return Err(format!(
                "{} is node {}, not node {}",
                target.address, theirs.from_node, self.peer.node.0
            ));
        }
        self.shared.check_versions(theirs)?;
        self.shared.check_hello(theirs, Some(target))
    }

    /// Takes acknowledgements until the connection breaks or the peer is silent; returns why.
    async fn watch(
        &self,
        mut answers: tonic::Streaming<wire::LinkResponse>,
        connection: Connection,
    ) -> String {
        let silence_max = self.shared.config.silence_max;
        let mut check = tokio::time::interval(silence_max / 4);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                refused = connection.until_dropped() => return refused.sentence,
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
                    Ok(Some(_)) => return "it sent something other than an acknowledgement".into(),
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
            "peer: connected"
        );
        self.shared.inbound.peer_connected(self.peer.node, hello);
    }

    fn disconnected(&self, sentence: &str) {
        if !self.is_control() {
            debug!(peer = self.peer.node.0, lane = ?self.lane, sentence, "peer: lane disconnected");
            return;
        }
        self.peer.state.lock().connected = false;
        self.peer.note(sentence);
        self.shared.inbound.peer_disconnected(self.peer.node, sentence);
    }

    /// Drops what waits and reports what is lost. A control message that waited while the peer
    /// could not be reached goes too: it was meant for a moment that has passed.
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
            warn!(peer = self.peer.node.0, sentence, "peer: not connected");
        } else if news {
            info!(peer = self.peer.node.0, sentence, "peer: not connected");
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
