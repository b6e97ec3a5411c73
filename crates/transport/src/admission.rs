//! Admission of a peer's process: it waits for the one before it, is looked for in its place, or is
//! refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::ids::Incarnation;
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tokio::time::timeout_at;
use tracing::warn;

use super::hello::PeerHello;
use super::memory::{Memory, Remembered, StartId};
use super::peer::Peer;
use super::presence::{Presence, Refused, SILENCE, Verdict};
use super::reports::{Process, Report, Since};

/// How long a new process waits for the connections of the one before it to end: a killed process's
/// do at once, but a busy machine may notice the new one first.
const GIVE_WAY: Duration = Duration::from_secs(1);

/// One connection of the process that is accepted as the peer. While there is one, no other process
/// is.
pub(super) struct Connection {
    peer: Arc<Peer>,
    memory: Arc<Memory>,
    incarnation: Incarnation,
    start: StartId,
}

impl Connection {
    /// The process has reported, on this connection, how far its log is durable.
    pub fn told(&self, log_sequence: u64) {
        self.memory.told(self.incarnation, self.start, log_sequence);
    }

    /// Why the process is not accepted any more; `None` while it is.
    pub fn dropped(&self) -> Option<Refused> {
        let presence = self.peer.presence.borrow();
        let report = presence.dropped(self.start)?;
        Some(elsewhere_refusal(self.peer.node, self.start, &report.process, report.by))
    }

    /// Waits until the process is not accepted any more; why.
    pub async fn until_dropped(&self) -> Refused {
        let mut changes = self.peer.presence.subscribe();
        loop {
            if let Some(refused) = self.dropped() {
                return refused;
            }
            // The sender is in the peer, which this connection holds.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut last = false;
        self.peer.presence.send_modify(|presence| last = presence.ended());
        if last {
            self.peer.announce.notify_one();
            // Whatever happens to its directory now, what it has reported is held against it.
            self.memory.save_soon();
        }
    }
}

impl Peer {
    /// Takes a process for this peer, as far as it may be. `in_place`: this node has found it where
    /// the peer should be. What has to be remembered of it is durable when this returns.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn take(
        self: &Arc<Self>,
        hello: &PeerHello,
        in_place: bool,
        memory: &Arc<Memory>,
    ) -> Result<Connection, Refused> {
        let patience = tokio::time::Instant::now() + GIVE_WAY;
        // It keeps running while it waits here.
        let running = Since::of(hello.uptime, Instant::now());
        let mut changes = self.presence.subscribe();
        loop {
            changes.mark_unchanged();
            let (mut verdict, mut first) = (Verdict::Accepted, false);
            self.presence.send_if_modified(|presence| {
                let now = Instant::now();
                verdict = presence.offer(hello, in_place, memory, running.age(now), now);
                first = presence.connections == 1;
                matches!(verdict, Verdict::Accepted)
            });
            match verdict {
                Verdict::Accepted => {
                    if first {
                        self.announce.notify_one();
                    }
                    break;
                }
                Verdict::WentBack(remembered) => {
                    // The refusal must hold after a restart of this node too.
                    memory.all_saved().await;
                    return Err(went_back_refusal(hello, &remembered));
                }
                Verdict::Undecided(other) => {
                    self.look.notify_one();
                    return Err(undecided_refusal(hello, &other));
                }
                Verdict::Another(other) => {
                    if !self.answers() {
                        self.end_incoming();
                    }
                    let Ok(Ok(())) = timeout_at(patience, changes.changed()).await else {
                        return Err(another_refusal(hello, &other));
                    };
                }
                Verdict::Elsewhere(first, by) => {
                    // The process may have ended just now, and its peer be about to say so.
                    let Ok(Ok(())) = timeout_at(patience, changes.changed()).await else {
                        return Err(elsewhere_refusal(hello.node, hello.start, &first, by));
                    };
                }
            }
        }
        let connection = Connection {
            peer: Arc::clone(self),
            memory: Arc::clone(memory),
            incarnation: hello.incarnation,
            start: hello.start,
        };
        if memory.processes_saved().await {
            Ok(connection)
        } else {
            Err(Refused::from("this node stops".to_owned()))
        }
    }

    /// This node looked for the peer's process where it should be, and did not reach it. `ended`:
    /// its host says that there is none; else it is gone when it has been silent for long enough.
    pub fn not_found(&self, ended: bool) {
        if ended || self.silent_for() >= SILENCE {
            self.presence.send_if_modified(Presence::not_found);
        }
    }

    /// A process with this start id answers where the peer should be, though it takes no
    /// connection.
    pub fn answered(&self, start: StartId) {
        let mut same = false;
        self.presence.send_if_modified(|presence| {
            let Some(last) = &presence.last else { return false };
            same = last.start == start;
            start.0 != 0 && !same && presence.not_found()
        });
        if same {
            self.heard();
        }
    }
}

impl Peer {
    /// Stores what node `by` reports about this peer, and ends the connections of a process that
    /// was accepted later than the reported one.
    pub fn reported(&self, by: NodeId, report: Option<Report>) {
        let (mut is_news, mut ended) = (false, None);
        self.presence.send_if_modified(|presence| {
            let start = presence.connected().map(|process| process.start);
            is_news = presence.reported(by, report, Instant::now());
            ended = start.and_then(|start| Some((start, presence.dropped(start)?.process.clone())));
            is_news
        });
        if let Some((start, first)) = ended {
            let sentence = elsewhere_refusal(self.node, start, &first, by).sentence;
            warn!(peer = self.node.0, why = sentence, "peer: dropped, another process was first");
            self.update_address(&first.address);
            self.end_incoming();
        }
        if is_news && !self.state.lock().connected {
            // A process that was refused because of a report may be accepted now.
            self.look.notify_one();
        }
    }
}

fn elsewhere_refusal(node: NodeId, start: StartId, first: &Process, by: NodeId) -> Refused {
    let node = node.0;
    Refused {
        reason: wire::RefusalReason::AnotherProcess,
        sentence: format!(
            "node {node} runs already: node {} reports that another process with its data \
             directory (start {}, at {}) is connected to it and answers. The one with start \
             {start} may run on a copy; stop it, for a data directory is for one process. If \
             node {node} has moved, end the other one",
            by.0, first.start, first.address
        ),
    }
}

fn another_refusal(hello: &PeerHello, other: &Process) -> Refused {
    let node = hello.node.0;
    Refused {
        reason: wire::RefusalReason::AnotherProcess,
        sentence: format!(
            "node {node} runs already: another process with its data directory (start {}, at {}) \
             is connected and answers. The one with start {}, at {}, may run on a copy; stop it, \
             for a data directory is for one process. If node {node} has moved, end the other \
             one",
            other.start, other.address, hello.start, hello.peer_address
        ),
    }
}

fn undecided_refusal(hello: &PeerHello, other: &Process) -> Refused {
    Refused {
        reason: wire::RefusalReason::Undecided,
        sentence: format!(
            "node {} was another process (start {}, at {}) when it was last connected; whether \
             that one still runs is being looked at",
            hello.node.0, other.start, other.address
        ),
    }
}

fn went_back_refusal(hello: &PeerHello, remembered: &Remembered) -> Refused {
    let node = hello.node.0;
    Refused {
        reason: wire::RefusalReason::WentBack,
        sentence: format!(
            "the disk of node {node} went back in time: it has said boot number {} and log \
             sequence {} before (start {}), and now says {} and {} (start {}, at {}). Its data \
             directory is an older copy, or a copy of it has run elsewhere since; votes and \
             acknowledgements that it gave may be missing, so it takes no part. Stop it. If its \
             newest directory still exists, put that in place and start it; otherwise leave it \
             stopped: the other nodes have its data and serve its shards. Replacing a node is \
             not offered yet",
            remembered.boot_counter,
            remembered.log_sequence,
            remembered.start,
            hello.boot_counter,
            hello.log_sequence,
            hello.start,
            hello.peer_address
        ),
    }
}
