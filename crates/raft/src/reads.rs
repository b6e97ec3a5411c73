//! Linearizable reads without a log write (ReadIndex, Raft thesis §6.4): batched rounds at the
//! leader, forwarded requests at followers.

use crate::message::ReadRequest;
use crate::output::ReadId;
use crate::types::{Index, Replica, Ticks};

/// A reader that waits for a read index at the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reader {
    /// A local caller.
    Local(ReadId),
    /// A follower that forwards the reads of its callers.
    Remote(Replica, ReadRequest),
}

/// The round that is being confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Running {
    round: u64,
    /// The commit index when the round began: at least that of every write acknowledged before its
    /// readers arrived.
    index: Index,
    readers: Vec<Reader>,
}

/// The leader's reads. At most one round is being confirmed; a reader that arrives meanwhile waits
/// for the next one, because acknowledgements already in flight may be older than the reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ReadRounds {
    waiting: Vec<Reader>,
    running: Option<Running>,
}

impl ReadRounds {
    /// The number of readers, in the running round and waiting for the next.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.running.as_ref().map_or(0, |running| running.readers.len())
    }

    /// Adds a reader. A follower has one request in flight at a time, so of one start the newest
    /// request replaces an older one, whichever arrived first. Which of two starts is newer is not
    /// known, so the requests of the last two are kept: remote readers take memory bounded by the
    /// number of members.
    pub(crate) fn add(&mut self, reader: Reader) {
        if let Reader::Remote(replica, request) = reader {
            let of_replica = |waiting: &Reader| match waiting {
                Reader::Remote(from, known) if *from == replica => Some(*known),
                _ => None,
            };
            let same_start =
                |waiting: &Reader| of_replica(waiting).filter(|known| known.boot == request.boot);
            if self.waiting.iter().filter_map(same_start).any(|known| known > request) {
                return;
            }
            self.waiting.retain(|waiting| same_start(waiting).is_none());
            if self.waiting.iter().filter_map(of_replica).count() >= 2 {
                let oldest = self.waiting.iter().position(|waiting| of_replica(waiting).is_some());
                oldest.map(|oldest| self.waiting.remove(oldest));
            }
        }
        self.waiting.push(reader);
    }

    /// Whether a new round should begin.
    pub(crate) fn is_due(&self) -> bool {
        self.running.is_none() && !self.waiting.is_empty()
    }

    /// Begins a round for all waiting readers.
    pub(crate) fn begin(&mut self, round: u64, index: Index) {
        assert!(
            self.is_due(),
            "round {round} begins while another is running, or without a reader"
        );
        self.running = Some(Running { round, index, readers: std::mem::take(&mut self.waiting) });
    }

    /// The round that is being confirmed.
    pub(crate) fn running(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.round)
    }

    /// Ends the running round as confirmed; returns its index and its readers.
    pub(crate) fn confirm(&mut self) -> Option<(Index, Vec<Reader>)> {
        self.running.take().map(|running| (running.index, running.readers))
    }

    /// Removes and returns all readers: no index will be promised to them.
    pub(crate) fn drop_all(&mut self) -> Vec<Reader> {
        let mut readers = self.running.take().map_or_else(Vec::new, |running| running.readers);
        readers.append(&mut self.waiting);
        readers
    }
}

/// The request in flight, with the range of counters it was sent under. Its readers arrived before
/// the first of these, so an answer to any of them serves all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    first: u64,
    last: u64,
    retry_at: Ticks,
    readers: Vec<ReadId>,
}

/// A follower's reads: one request to the leader at a time; later reads wait for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ForwardedReads {
    waiting: Vec<ReadId>,
    asked: Option<Asked>,
}

impl ForwardedReads {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.asked.as_ref().map_or(0, |asked| asked.readers.len())
    }

    pub(crate) fn add(&mut self, reader: ReadId) {
        self.waiting.push(reader);
    }

    /// Whether a new request should be sent for the waiting reads.
    pub(crate) fn is_due(&self) -> bool {
        self.asked.is_none() && !self.waiting.is_empty()
    }

    /// When the request in flight is sent again.
    pub(crate) fn retry_at(&self) -> Option<Ticks> {
        self.asked.as_ref().map(|asked| asked.retry_at)
    }

    /// Records a request sent with this never-used counter: the one in flight again, or a new one.
    pub(crate) fn ask(&mut self, counter: u64, retry_at: Ticks) {
        match &mut self.asked {
            Some(asked) => {
                asked.last = counter;
                asked.retry_at = retry_at;
            }
            None => {
                let readers = std::mem::take(&mut self.waiting);
                self.asked = Some(Asked { first: counter, last: counter, retry_at, readers });
            }
        }
    }

    /// Takes the leader's answer. Returns the readers that waited for it; none, if it does not
    /// belong to the request in flight.
    pub(crate) fn answered(&mut self, counter: u64) -> Vec<ReadId> {
        let asked = self.asked.take_if(|asked| (asked.first..=asked.last).contains(&counter));
        asked.map_or_else(Vec::new, |asked| asked.readers)
    }

    /// Removes and returns all readers: no index will be promised to them.
    pub(crate) fn drop_all(&mut self) -> Vec<ReadId> {
        let mut readers = self.asked.take().map_or_else(Vec::new, |asked| asked.readers);
        readers.append(&mut self.waiting);
        readers
    }
}
