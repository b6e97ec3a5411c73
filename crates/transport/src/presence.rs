//! Presence of a peer's process: which one is accepted as the peer, and when another one may be.
//!
//! Two processes with copies of one data directory say the same of themselves but for the start id.
//! Only one of them may take part, or one replica votes twice. So while a connection of the process
//! that was accepted answers, another is refused; a half-open one gives way. When none is left,
//! another one is accepted only after this node has looked for the first where it was: after a mere
//! break, or a start of this node, both may be knocking, and the one that is in its place is the
//! original. A node that moved is not found at its old place, and is accepted at its new one.
//!
//! What the other peers report counts too, for a node that is cut off from here: see `reports`.

use std::time::{Duration, Instant};

use quorate_proto::ids::Incarnation;
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tokio::sync::watch;

use super::hello::PeerHello;
use super::memory::{Memory, Remembered, StartId};
use super::reports::{Process, REPORT_LIFETIME, Report, Reports, Since};

/// A process that was silent for this long does not answer any more: HTTP/2 pings take as long to
/// find a half-open connection. One whose host refuses to connect has ended.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// Refusal of a peer: the reason and a sentence.
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
    /// The process that was accepted last.
    pub(super) last: Option<Process>,
    /// Its connections, in both directions.
    pub(super) connections: usize,
    /// What was remembered of earlier processes when it was accepted.
    before: Option<Remembered>,
    /// This node looked for it, and it does not answer any more.
    gone: bool,
    /// What the other peers report about it.
    reports: Reports,
    /// The process whose connections end because of a report, and that report.
    dropped: Option<(Process, Report)>,
}

/// The decision about a process that connects.
pub(super) enum Verdict {
    /// It is accepted.
    Accepted,
    /// Another process answers.
    Another(Process),
    /// Another process answers at another peer.
    Elsewhere(Process, NodeId),
    /// Another process was accepted, and this node has to look for it first.
    Undecided(Process),
    /// An earlier process has promised more.
    WentBack(Remembered),
}

impl Presence {
    /// Before any process is heard of here, except for the one that is remembered.
    pub fn new(incarnation: Incarnation, address: &str, memory: &Memory) -> watch::Sender<Self> {
        let before = memory.of(incarnation);
        let last = before.map(|remembered| Process {
            incarnation,
            start: remembered.start,
            address: address.to_owned(),
            accepted: None,
        });
        let (gone, reports, dropped) = (false, Reports::default(), None);
        watch::Sender::new(Self { last, connections: 0, before, gone, reports, dropped })
    }

    /// Accepts the process, or says why not. `in_place`: this node dialled the peer's address and
    /// the process answered. `uptime`: how long it has run by now.
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
        // An incarnation that is not the peer's any more is refused by its Hello.
        let last = self.last.clone().filter(|last| last.incarnation == hello.incarnation);
        let (same, other) = match last {
            Some(last) if last.start == hello.start => (Some(last), None),
            other => (None, other),
        };
        let remembered = memory.of(hello.incarnation);
        if let Some(remembered) = remembered
            && went_back(&remembered, &said)
        {
            // A process that ran before `last` was accepted is not a later start of an older copy.
            let last = other.filter(|last| {
                last.start == remembered.start && last.age(now).is_some_and(|age| uptime > age)
            });
            return match last {
                Some(last) => self.offer_original(hello, said, last, in_place, memory, now),
                None => Verdict::WentBack(remembered),
            };
        }
        // A process that is remembered from before the start of this one was accepted while it ran.
        let age = same.as_ref().map_or(Duration::ZERO, |last| last.age(now).unwrap_or(uptime));
        // A report of a process that this node would refuse itself does not count.
        let known = if same.is_some() { self.before } else { remembered };
        let counts = |report: &Report| known.is_none_or(|known| !went_back(&known, &report.said));
        if self.connections == 0
            && let Some(report) =
                self.reports.against(hello.incarnation, hello.start, age, now, counts)
        {
            return Verdict::Elsewhere(report.process.clone(), report.by);
        }
        if let Some((dropped, _)) = &self.dropped {
            return Verdict::Another(dropped.clone());
        }
        if let Some(other) = other {
            if self.connections > 0 {
                return Verdict::Another(other);
            }
            if !in_place && !self.gone {
                return Verdict::Undecided(other);
            }
        }
        if same.is_none() {
            self.before = remembered;
        }
        memory.accepted(hello.incarnation, said);
        self.accept(hello, Since::of(age, now))
    }

    /// Offers a process that ran already when `last` was accepted, and which is behind what that
    /// has promised: one of the two runs on a copy. The process is accepted as the original only if
    /// another peer reports that it accepted it before this node accepted `last`, if it is not
    /// behind what was remembered before `last`, and if it answers where this node dials it. Only
    /// then are the numbers of `last` replaced, for neither a report nor a Hello that was delayed
    /// proves that a process is alive.
    fn offer_original(
        &mut self,
        hello: &PeerHello,
        said: Remembered,
        last: Process,
        in_place: bool,
        memory: &Memory,
        now: Instant,
    ) -> Verdict {
        let counts = |report: &Report| {
            report.process.start == hello.start && self.counts(&report.said) && self.counts(&said)
        };
        let age = last.age(now).unwrap_or_default();
        let report = self.reports.against(last.incarnation, last.start, age, now, counts);
        let Some(accepted) = report.and_then(|report| report.process.accepted) else {
            return Verdict::Another(last);
        };
        if self.connections > 0 {
            return Verdict::Another(last);
        }
        if !in_place {
            return Verdict::Undecided(last);
        }
        let before = self.before.unwrap_or_default();
        let original = Remembered {
            boot_counter: said.boot_counter.max(before.boot_counter),
            start: said.start,
            log_sequence: said.log_sequence.max(before.log_sequence),
        };
        memory.corrected(hello.incarnation, original);
        self.accept(hello, accepted)
    }

    fn accept(&mut self, hello: &PeerHello, accepted: Since) -> Verdict {
        self.last = Some(Process {
            incarnation: hello.incarnation,
            start: hello.start,
            address: hello.peer_address.clone(),
            accepted: Some(accepted),
        });
        self.connections += 1;
        self.gone = false;
        Verdict::Accepted
    }

    /// Whether a report of a process with these numbers may count against the last one: a process
    /// that is behind what was remembered before that is an older copy itself.
    fn counts(&self, said: &Remembered) -> bool {
        self.before.is_none_or(|before| !went_back(&before, said))
    }

    /// Stores the newest report of another peer. A report of a process that was accepted earlier
    /// than the connected one ends the connections of that one, but changes nothing that is
    /// remembered. Returns whether there is a change that connecting processes wait for.
    pub(super) fn reported(&mut self, by: NodeId, report: Option<Report>, now: Instant) -> bool {
        let is_news = self.reports.set(by, report.clone(), now);
        let Some((report, last)) = report.zip(self.connected().cloned()) else { return is_news };
        let process = &report.process;
        // Until then the report may be about the process before, which has ended.
        let is_late = |age: Duration| age < REPORT_LIFETIME;
        let is_earlier = last.incarnation == process.incarnation
            && last.start != process.start
            && last.age(now).is_some_and(|age| !is_late(age) && process.age(now) > Some(age))
            && self.counts(&report.said);
        if is_earlier {
            self.dropped = Some((last, report));
        }
        is_news || is_earlier
    }

    /// The process that is accepted, while it is connected.
    pub(super) fn connected(&self) -> Option<&Process> {
        self.last.as_ref().filter(|_| self.connections > 0 && self.dropped.is_none())
    }

    /// The report that ends the connections of this process.
    pub(super) fn dropped(&self, start: StartId) -> Option<&Report> {
        let (dropped, report) = self.dropped.as_ref()?;
        (dropped.start == start).then_some(report)
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

    /// This node dialled the peer's address, and another process or none answered. Returns whether
    /// that is a change.
    pub(super) fn not_found(&mut self) -> bool {
        let is_news = self.connections == 0 && !self.gone;
        self.gone |= is_news;
        is_news
    }
}

/// Whether a process says less than is remembered. A process is not held against itself: what it
/// says on one connection may be older than what it has said on another.
fn went_back(remembered: &Remembered, said: &Remembered) -> bool {
    remembered.start != said.start
        && (said.boot_counter <= remembered.boot_counter
            || said.log_sequence < remembered.log_sequence)
}

#[cfg(test)]
mod tests;
