//! Presence of a peer's process: which one is taken for the peer, and when another one may be.
//!
//! Two processes with copies of one data directory say the same of themselves but for the start id.
//! Only one of them may take part, or one replica votes twice. So while a connection of the process
//! that was taken answers, another is refused; a half-open one gives way. When none is left, another
//! one is taken only after this node has looked for the first where it was: after a mere break, or a
//! start of this node, both may be knocking, and the one that is in its place is the original. A node
//! that moved is not found at its old place, and is taken at its new one.

use std::time::Duration;

use quorate_proto::ids::Incarnation;
use quorate_proto::raft::v1 as wire;
use tokio::sync::watch;

use super::hello::PeerHello;
use super::memory::{Memory, Remembered, StartId};

/// A process that was silent for so long does not answer any more: as long as HTTP/2 pings take to
/// find a half-open connection. One whose host refuses to connect has ended.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// Why a peer is not talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// What the refused node has to do.
    pub reason: wire::RefusalReason,
    /// For both logs.
    pub sentence: String,
}

impl From<String> for Refused {
    fn from(sentence: String) -> Self {
        Self { reason: wire::RefusalReason::Unspecified, sentence }
    }
}

/// What is known of the processes of one peer.
#[derive(Debug)]
pub(super) struct Presence {
    /// The one that was taken last.
    pub(super) last: Option<Process>,
    /// Its connections, in both directions.
    pub(super) connections: usize,
    /// It was looked for, and is not there any more.
    gone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) incarnation: Incarnation,
    pub(super) start: StartId,
    /// Where it says it is.
    pub(super) address: String,
}

/// What becomes of a process that knocks.
pub(super) enum Verdict {
    Taken,
    /// Another one answers.
    Another(Process),
    /// Another one was taken, and has to be looked for.
    Undecided(Process),
    /// It has told more before.
    WentBack(Remembered),
}

impl Presence {
    /// Before any process was heard of here, but for the one that is remembered.
    pub fn new(incarnation: Incarnation, address: &str, memory: &Memory) -> watch::Sender<Self> {
        let last = memory.of(incarnation).map(|remembered| Process {
            incarnation,
            start: remembered.start,
            address: address.to_owned(),
        });
        watch::Sender::new(Self { last, connections: 0, gone: false })
    }

    /// Takes the process, or says why not. `in_place`: this node found it where the peer should be.
    pub(super) fn offer(&mut self, hello: &PeerHello, in_place: bool, memory: &Memory) -> Verdict {
        let said = Remembered {
            boot_counter: hello.boot_counter,
            start: hello.start,
            log_sequence: hello.log_sequence,
        };
        let other = self.last.as_ref().filter(|last| {
            // An incarnation that is not the peer's any more is refused by its Hello.
            last.incarnation == hello.incarnation && last.start != hello.start
        });
        if let Some(remembered) = memory.of(hello.incarnation)
            && went_back(&remembered, &said)
        {
            return Verdict::WentBack(remembered);
        }
        if let Some(other) = other {
            if self.connections > 0 {
                return Verdict::Another(other.clone());
            }
            if !in_place && !self.gone {
                return Verdict::Undecided(other.clone());
            }
        }
        let (incarnation, start) = (hello.incarnation, hello.start);
        self.last = Some(Process { incarnation, start, address: hello.peer_address.clone() });
        self.connections += 1;
        self.gone = false;
        memory.taken(incarnation, said);
        Verdict::Taken
    }

    /// This node looked where the peer should be, and it is another process there, or none. Returns
    /// whether that is news.
    pub(super) fn not_found(&mut self) -> bool {
        let news = self.connections == 0 && !self.gone;
        self.gone |= news;
        news
    }
}

/// Whether a process says less than is remembered. A process is not held against itself: what it says
/// on one connection may be older than what it has said on another.
fn went_back(remembered: &Remembered, said: &Remembered) -> bool {
    remembered.start != said.start
        && (said.boot_counter <= remembered.boot_counter
            || said.log_sequence < remembered.log_sequence)
}
