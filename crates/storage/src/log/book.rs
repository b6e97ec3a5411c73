//! The book: which bytes of which record are live.
//!
//! The book is kept in memory and rebuilt from the records at each open. For every record it knows
//! the bytes that are *live*: the newest hard state of a replica, its newest reset while it is not
//! purged, and the entries that no later append, reset or purge has dropped. A record at the head
//! can be removed once it has no live bytes, or once these were written again.

use std::collections::{BTreeMap, VecDeque};

use quorate_raft::{Entry, Index};

use super::ReplicaKey;
use super::record::Change;

/// Bytes of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    bytes: u64,
    live: u64,
    sections: u32,
}

/// The identity of a section: the record's sequence, and the section's number in it, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SectionId {
    pub sequence: u64,
    pub number: u32,
}

/// The section that holds the live copy of something, and its length there in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    section: SectionId,
    bytes: u64,
}

/// Live entries `first..=last`, all in one section of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u64,
    last: u64,
    place: Place,
}

/// One replica's live sections.
#[derive(Debug, Default)]
struct Replica {
    hard_state: Option<Place>,
    /// The index of the newest reset, and its place.
    reset: Option<(u64, Place)>,
    /// Entries at or below this index are dead.
    purged: u64,
    /// By index, without overlaps.
    spans: VecDeque<Span>,
    bytes: u64,
}

/// The bookkeeping of a whole log.
#[derive(Debug)]
pub(super) struct Book {
    /// Sequence of the first record in `records`.
    head: u64,
    records: VecDeque<Record>,
    replicas: BTreeMap<ReplicaKey, Replica>,
    bytes: u64,
    live: u64,
}

/// Live bytes that became dead: the record that holds them, and their number.
type Freed = Place;

impl Replica {
    /// Drops the entries `first..=last` and returns the position in `spans` for a new span of them.
    fn drop_entries(&mut self, first: u64, last: u64, freed: &mut Vec<Freed>) -> usize {
        let start = self.spans.partition_point(|span| span.last < first);
        let end = self.spans.partition_point(|span| span.first <= last);
        if start >= end {
            return start;
        }
        let dropped: Vec<Span> = self.spans.drain(start..end).collect();
        let mut at = start;
        for span in dropped {
            let mut dead = span.place.bytes;
            if span.first < first {
                let below = span.part(span.first, first - 1);
                dead -= below.place.bytes;
                self.spans.insert(at, below);
                at += 1;
            }
            if span.last > last {
                let above = span.part(last + 1, span.last);
                dead -= above.place.bytes;
                self.spans.insert(at, above);
            }
            freed.push(Place { bytes: dead, ..span.place });
        }
        at
    }
}

impl Span {
    /// A part of the span. Entries of one section count as equally long, which is exact enough for
    /// deciding when to move the head. Sizes are rounded up, so that no live part ever counts as
    /// empty; an entry has at least four bytes, so parts never exceed the whole.
    fn part(&self, first: u64, last: u64) -> Span {
        let count = u128::from(self.last - self.first + 1);
        let bytes = u128::from(self.place.bytes) * u128::from(last - first + 1);
        let bytes = bytes.div_ceil(count) as u64;
        Span { first, last, place: Place { bytes, ..self.place } }
    }
}

impl Book {
    /// The book of a log whose first record will be `head`.
    pub fn new(head: u64) -> Self {
        Self { head, records: VecDeque::new(), replicas: BTreeMap::new(), bytes: 0, live: 0 }
    }

    /// The first sequence that may hold live bytes.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The sequence of the next record.
    pub fn next(&self) -> u64 {
        self.head + self.records.len() as u64
    }

    /// Bytes of all records from the head on.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of all live sections.
    pub fn live_bytes(&self) -> u64 {
        self.live
    }

    /// Bytes of one replica's live sections.
    #[cfg(feature = "testing")]
    pub fn replica_bytes(&self, key: ReplicaKey) -> u64 {
        self.replicas.get(&key).map_or(0, |replica| replica.bytes)
    }

    /// Bytes of all live sections in one record.
    pub fn live_in(&self, sequence: u64) -> u64 {
        let at = sequence.checked_sub(self.head).map(|at| self.records.get(at as usize));
        at.flatten().map_or(0, |record| record.live)
    }

    /// Enters the next record; its sections follow by [`Book::note`].
    pub fn add_record(&mut self, bytes: u64) -> u64 {
        let sequence = self.next();
        self.records.push_back(Record { bytes, live: 0, sections: 0 });
        self.bytes += bytes;
        sequence
    }

    /// Enters the next section, `bytes` long, of the newest record.
    pub fn note(&mut self, key: ReplicaKey, change: &Change<'_>, bytes: u64) {
        let sequence = self.next() - 1;
        let Some(record) = self.records.back_mut() else { return };
        let place = Place { section: SectionId { sequence, number: record.sections }, bytes };
        record.sections += 1;
        record.live += bytes;
        let replica = self.replicas.entry(key).or_default();
        let mut freed = Vec::new();
        match change {
            Change::HardState(_) => freed.extend(replica.hard_state.replace(place)),
            Change::Reset { moved, to } => {
                let through = if *moved { to.index.0 } else { u64::MAX };
                replica.drop_entries(0, through, &mut freed);
                freed.extend(replica.reset.replace((to.index.0, place)).map(|(_, place)| place));
                if !moved {
                    replica.purged = 0;
                }
            }
            Change::Entries { moved, entries } => {
                let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
                let span = Span { first: first.index.0, last: last.index.0, place };
                let through = if *moved { span.last } else { u64::MAX };
                // A gap below an append is kept: while a log is read back, the missing entries may
                // follow in a record that moved them.
                let at = replica.drop_entries(span.first, through, &mut freed);
                replica.spans.insert(at, span);
            }
        }
        replica.bytes += bytes;
        self.live += bytes;
        self.free(key, &freed);
    }

    /// Marks everything at or below `through` as dead.
    pub fn purge(&mut self, key: ReplicaKey, through: Index) {
        let Some(replica) = self.replicas.get_mut(&key) else { return };
        let mut freed = Vec::new();
        replica.purged = replica.purged.max(through.0);
        replica.drop_entries(0, through.0, &mut freed);
        if let Some((index, place)) = replica.reset
            && index <= through.0
        {
            freed.push(place);
            replica.reset = None;
        }
        self.free(key, &freed);
    }

    /// Drops the entries below `first`, which recovery found to be dead.
    pub fn drop_below(&mut self, key: ReplicaKey, first: Index) {
        let Some(replica) = self.replicas.get_mut(&key) else { return };
        let mut freed = Vec::new();
        replica.drop_entries(0, first.prev().0, &mut freed);
        self.free(key, &freed);
    }

    /// Marks everything of this replica as dead.
    pub fn forget(&mut self, key: ReplicaKey) {
        let Some(replica) = self.replicas.get_mut(&key) else { return };
        let mut freed: Vec<Freed> = replica.spans.drain(..).map(|span| span.place).collect();
        freed.extend(replica.hard_state.take());
        freed.extend(replica.reset.take().map(|(_, place)| place));
        self.free(key, &freed);
        self.replicas.remove(&key);
    }

    /// The index that the next appended entry should have, if any index is expected.
    pub fn next_index(&self, key: ReplicaKey) -> Option<Index> {
        let replica = self.replicas.get(&key)?;
        let last = replica.spans.back().map(|span| span.last);
        let reset = replica.reset.map(|(index, _)| index);
        let purged = (replica.purged > 0).then_some(replica.purged);
        last.max(reset).max(purged).map(|index| Index(index + 1))
    }

    /// The entries of a section that are live there, as consecutive runs.
    pub fn live_entries(
        &self,
        key: ReplicaKey,
        section: SectionId,
        entries: &[Entry],
    ) -> Vec<Vec<Entry>> {
        let (Some(replica), Some(first)) = (self.replicas.get(&key), entries.first()) else {
            return Vec::new();
        };
        let first = first.index.0;
        let start = replica.spans.partition_point(|span| span.last < first);
        let spans = replica.spans.range(start..);
        let spans = spans.take_while(|span| span.first < first + entries.len() as u64);
        spans
            .filter(|span| span.place.section == section)
            .map(|span| {
                let from = span.first.saturating_sub(first) as usize;
                let upto = ((span.last - first + 1) as usize).min(entries.len());
                entries[from..upto].to_vec()
            })
            .collect()
    }

    /// The live entries of a replica, as runs of indexes.
    #[cfg(feature = "testing")]
    pub fn live_runs(&self, key: ReplicaKey) -> Vec<(Index, Index)> {
        let mut runs: Vec<(Index, Index)> = Vec::new();
        for span in self.replicas.get(&key).into_iter().flat_map(|replica| &replica.spans) {
            match runs.last_mut() {
                Some((_, last)) if last.next().0 == span.first => *last = Index(span.last),
                _ => runs.push((Index(span.first), Index(span.last))),
            }
        }
        runs
    }

    /// True if the section is the replica's newest hard state.
    pub fn is_hard_state(&self, key: ReplicaKey, section: SectionId) -> bool {
        let replica = self.replicas.get(&key);
        replica.and_then(|r| r.hard_state).is_some_and(|place| place.section == section)
    }

    /// True if the section is the replica's newest reset and not purged.
    pub fn is_reset(&self, key: ReplicaKey, section: SectionId) -> bool {
        let replica = self.replicas.get(&key);
        replica.and_then(|r| r.reset).is_some_and(|(_, place)| place.section == section)
    }

    /// Moves the head over records without live bytes.
    pub fn advance_head(&mut self) {
        while let Some(record) = self.records.front()
            && record.live == 0
        {
            self.bytes -= record.bytes;
            self.head += 1;
            self.records.pop_front();
        }
    }

    fn free(&mut self, key: ReplicaKey, freed: &[Freed]) {
        let mut sum = 0;
        for place in freed {
            // Records below the head have no live bytes, so this record is not below it.
            let at = place
                .section
                .sequence
                .checked_sub(self.head)
                .map(|at| self.records.get_mut(at as usize));
            let Some(Some(record)) = at else {
                assert!(
                    place.bytes == 0,
                    "live bytes in record {} below the head",
                    place.section.sequence
                );
                continue;
            };
            assert!(record.live >= place.bytes, "record {} freed twice", place.section.sequence);
            record.live -= place.bytes;
            sum += place.bytes;
        }
        self.live -= sum;
        if let Some(replica) = self.replicas.get_mut(&key) {
            replica.bytes -= sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::{GroupId, ReplicaId};

    use super::*;
    use crate::testing::entries;

    const KEY: ReplicaKey = (GroupId(1), ReplicaId(1));

    fn note(book: &mut Book, moved: bool, first: u64, last: u64) {
        book.add_record(600);
        let entries = entries(1, first, last);
        let change = Change::Entries { moved, entries: &entries };
        book.note(KEY, &change, 5 * (last - first + 1));
    }

    fn runs(book: &Book) -> Vec<(u64, u64)> {
        book.live_runs(KEY).iter().map(|(first, last)| (first.0, last.0)).collect()
    }

    /// Entries read back from a head above their first copies arrive in any order.
    #[test]
    fn a_gap_below_an_append_may_be_filled_by_moved_entries() {
        let mut book = Book::new(15);
        note(&mut book, true, 6, 15);
        note(&mut book, false, 18, 18);
        assert_eq!(runs(&book), [(6, 15), (18, 18)]);
        note(&mut book, true, 16, 17);
        assert_eq!(runs(&book), [(6, 18)]);
        note(&mut book, true, 7, 9);
        note(&mut book, false, 12, 12);
        assert_eq!(runs(&book), [(6, 12)]);
        book.purge(KEY, Index(8));
        assert_eq!(runs(&book), [(9, 12)]);
        assert_eq!(book.live_bytes(), book.replica_bytes(KEY));
    }

    /// However often a section is cut, the rest of it keeps its record at the head.
    #[test]
    fn a_live_entry_always_counts() {
        let mut book = Book::new(1);
        note(&mut book, false, 1, 500);
        for through in 1..500 {
            book.purge(KEY, Index(through));
            book.advance_head();
            assert_eq!((book.head(), book.live_in(1) >= 500 - through), (1, true), "{through}");
        }
        book.purge(KEY, Index(500));
        assert_eq!((book.live_bytes(), book.live_in(1)), (0, 0));
        book.advance_head();
        assert_eq!((book.head(), book.bytes()), (2, 0));
    }
}
