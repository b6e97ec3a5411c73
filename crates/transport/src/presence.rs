//! Presence of a peer's process: which one is taken for the peer, and when another one may be.
//!
//! Two processes with copies of one data directory say the same of themselves but for the start id.
//! Only one of them may take part, or one replica votes twice. So while a connection of the process
//! that was taken answers, another is refused; a half-open one gives way. When none is left, another
//! one is taken only after this node has looked for the first where it was: after a mere break, or a
//! start of this node, both may be knocking, and the one that is in its place is the original. A node
//! that moved is not found at its old place, and is taken at its new one.
//!
//! What the other peers report counts too, for a node that is cut off from here: see `reports`.

use std::time::{Duration, Instant};

use quorate_proto::ids::Incarnation;
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tokio::sync::watch;

use super::hello::PeerHello;
use super::memory::{Memory, Remembered, StartId};
use super::reports::{Process, Report, Reports, Since};

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
    /// What the other peers say of it.
    reports: Reports,
    /// A process that was taken and is not any more, while its connections end.
    dropped: Option<(Process, NodeId)>,
}

/// What becomes of a process that knocks.
pub(super) enum Verdict {
    Taken,
    /// Another one answers.
    Another(Process),
    /// Another one answers at another peer.
    Elsewhere(Process, NodeId),
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
            taken: None,
        });
        let (gone, reports, dropped) = (false, Reports::default(), None);
        watch::Sender::new(Self { last, connections: 0, gone, reports, dropped })
    }

    /// Takes the process, or says why not. `in_place`: this node found it where the peer should be.
    /// `uptime`: how long it has run by now.
    pub(super) fn offer(
        &mut self,
        hello: &PeerHello,
        in_place: bool,
        memory: &Memory,
        uptime: Duration,
        now: Instant,
    ) -> Verdict {
        let said = Remembered {
            boot_counter: hello.boot_counter,
            start: hello.start,
            log_sequence: hello.log_sequence,
        };
        let other = self.last.as_ref().filter(|last| {
            // An incarnation that is not the peer's any more is refused by its Hello.
            last.incarnation == hello.incarnation && last.start != hello.start
        });
        let remembered = memory.of(hello.incarnation);
        if let Some(remembered) = remembered
            && went_back(&remembered, &said)
        {
            return match other {
                // It ran before that one was taken, so it is no later start of an older copy, and may
                // be the original. Whether it is, others report.
                Some(other)
                    if other.start == remembered.start
                        && other.age(now).is_some_and(|age| uptime > age) =>
                {
                    Verdict::Another(other.clone())
                }
                _ => Verdict::WentBack(remembered),
            };
        }
        let same = self.last.as_ref().filter(|_| other.is_none());
        let same = same.filter(|last| last.incarnation == hello.incarnation);
        // One that is remembered from before the start of this process was taken while it ran.
        let age = same.map_or(Duration::ZERO, |last| last.age(now).unwrap_or(uptime));
        // A report of what this node would refuse itself counts for nothing.
        let counts = |said: &Remembered| remembered.is_none_or(|known| !went_back(&known, said));
        let against = self.reports.against((hello.incarnation, hello.start), age, now, counts);
        if let Some(report) = against
            && (self.connections == 0 || same.is_some())
        {
            return Verdict::Elsewhere(report.process.clone(), report.by);
        }
        if let Some((dropped, _)) = &self.dropped {
            return Verdict::Another(dropped.clone());
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
        let (address, taken) = (hello.peer_address.clone(), Some(Since::of(age, now)));
        self.last = Some(Process { incarnation, start, address, taken });
        self.connections += 1;
        self.gone = false;
        memory.taken(incarnation, said);
        Verdict::Taken
    }

    /// What another peer reports now. Returns whether that changes who may be taken.
    pub(super) fn reported(
        &mut self,
        by: NodeId,
        report: Option<Report>,
        memory: &Memory,
        now: Instant,
    ) -> bool {
        let news = self.reports.set(by, report.clone(), now);
        let Some((report, last)) = report.zip(self.last.clone()) else { return news };
        let earlier = last.incarnation == report.process.incarnation
            && last.start != report.process.start
            && last.age(now).is_some_and(|age| report.process.age(now) > Some(age));
        if !earlier {
            return news;
        }
        memory.corrected(last.incarnation, report.said);
        if self.connections > 0 {
            self.dropped.get_or_insert((last, by));
        }
        // It is the one that was taken first, and waits for no look at another place.
        self.last = Some(report.process);
        self.gone = false;
        true
    }

    /// The process that is taken, while it is connected.
    pub(super) fn connected(&self) -> Option<&Process> {
        self.last.as_ref().filter(|_| self.connections > 0 && self.dropped.is_none())
    }

    /// Why the connections of this process end: another one was taken earlier, as a peer reports.
    pub(super) fn dropped(&self, start: StartId) -> Option<(&Process, NodeId)> {
        let (dropped, by) = self.dropped.as_ref()?;
        let first = self.last.as_ref()?;
        (dropped.start == start).then_some((first, *by))
    }

    /// A connection has ended. Returns whether it was the last one.
    pub(super) fn ended(&mut self) -> bool {
        self.connections -= 1;
        let last = self.connections == 0;
        if last {
            self.dropped = None;
        }
        last
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

#[cfg(test)]
mod tests;
