//! The log in memory: all entries after the base, durable or not.

use std::collections::VecDeque;

use crate::types::{Entry, Index, LogId, Term};

/// The kept part of the log.
///
/// Invariants: entries are consecutive from `base.index + 1`; terms never decrease; `runs` has one
/// element per run of equal terms, the first of them that of the base itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    base: LogId,
    /// The stamp of the entry at the base.
    base_stamp: u64,
    entries: VecDeque<Entry>,
    /// (first index of the run, term). It lets the search for a conflict skip whole terms.
    runs: VecDeque<(Index, Term)>,
    bytes: u64,
}

impl Log {
    /// An empty log that starts after `base`.
    pub(crate) fn new(base: LogId, base_stamp: u64) -> Self {
        Self {
            base,
            base_stamp,
            entries: VecDeque::new(),
            runs: VecDeque::from([(base.index, base.term)]),
            bytes: 0,
        }
    }

    pub(crate) fn base(&self) -> LogId {
        self.base
    }

    pub(crate) fn last(&self) -> LogId {
        self.entries.back().map_or(self.base, Entry::id)
    }

    pub(crate) fn last_stamp(&self) -> u64 {
        self.entries.back().map_or(self.base_stamp, |entry| entry.stamp)
    }

    /// The size of all kept entries.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn position(&self, index: Index) -> Option<usize> {
        let offset = index.0.checked_sub(self.base.index.0 + 1)?;
        usize::try_from(offset).ok().filter(|&position| position < self.entries.len())
    }

    /// The entry at an index, if it is kept.
    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        self.position(index).map(|position| &self.entries[position])
    }

    /// The identity of the entry at an index; known for the base too.
    pub(crate) fn id_at(&self, index: Index) -> Option<LogId> {
        if index == self.base.index { Some(self.base) } else { self.get(index).map(Entry::id) }
    }

    /// Whether this very entry is in the log (or is its base).
    pub(crate) fn matches(&self, id: LogId) -> bool {
        self.id_at(id.index) == Some(id)
    }

    /// The kept entries from `from` through `to`.
    pub(crate) fn range(&self, from: Index, to: Index) -> impl Iterator<Item = &Entry> {
        let first = self.base.index.0 + 1;
        let end = to.next().0.clamp(first, self.last().index.0 + 1) - first;
        let start = from.0.clamp(first, first + end) - first;
        self.entries.range(start as usize..end as usize)
    }

    /// Clones of the entries from `from` on, as many as fit into `max_bytes` but at least one if
    /// there is one; with their size.
    pub(crate) fn batch(&self, from: Index, max_bytes: u64) -> (Vec<Entry>, u64) {
        let mut total = 0;
        let mut count = 0;
        for entry in self.range(from, self.last().index) {
            if count > 0 && total + entry.bytes() > max_bytes {
                break;
            }
            total += entry.bytes();
            count += 1;
        }
        let to = Index(from.0 + count as u64).prev();
        (self.range(from, to).cloned().collect(), total)
    }

    /// Appends the entry that follows the last one.
    pub(crate) fn push(&mut self, entry: Entry) {
        let last = self.last();
        assert!(
            entry.index == last.index.next() && entry.term >= last.term,
            "entry {} cannot follow {last}",
            entry.id()
        );
        if entry.term > last.term {
            self.runs.push_back((entry.index, entry.term));
        }
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    /// Drops all entries at or after `from`.
    pub(crate) fn truncate_from(&mut self, from: Index) {
        assert!(from > self.base.index, "cannot truncate at {from}, the base is {}", self.base);
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.index >= from) {
            self.bytes -= entry.bytes();
        }
        while self.runs.len() > 1 && self.runs.back().is_some_and(|run| run.0 >= from) {
            self.runs.pop_back();
        }
    }

    /// The last position at or before `index` whose term is not above `term`; skips whole runs.
    pub(crate) fn agreement(&self, index: Index, term: Term) -> LogId {
        let mut index = index.min(self.last().index);
        for &(first, run_term) in self.runs.iter().rev() {
            if first > index {
                continue;
            }
            if run_term <= term {
                return LogId::new(run_term, index);
            }
            index = first.prev();
        }
        self.base
    }

    /// Drops all entries through `through`, which becomes the base.
    pub(crate) fn compact(&mut self, through: Index) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.index <= through) {
            self.bytes -= entry.bytes();
            self.base = entry.id();
            self.base_stamp = entry.stamp;
        }
        while self.runs.get(1).is_some_and(|run| run.0 <= self.base.index) {
            self.runs.pop_front();
        }
        self.runs[0] = (self.base.index, self.base.term);
    }

    /// Asserts the invariants of the type; walks the whole log.
    pub(crate) fn check(&self) {
        let mut before = self.base;
        let mut bytes = 0;
        let mut runs = VecDeque::from([(self.base.index, self.base.term)]);
        for entry in &self.entries {
            assert_eq!(entry.index, before.index.next(), "gap in the log after {before}");
            assert!(
                entry.term >= before.term,
                "the term decreases from {before} to {}",
                entry.id()
            );
            if entry.term > before.term {
                runs.push_back((entry.index, entry.term));
            }
            bytes += entry.bytes();
            before = entry.id();
        }
        assert_eq!(self.bytes, bytes, "the log's bytes are miscounted");
        assert_eq!(self.runs, runs, "the log's runs are wrong");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::EntryKind;

    fn log(base: (u64, u64), terms: &[u64]) -> Log {
        let mut log = Log::new(LogId::new(Term(base.1), Index(base.0)), 7);
        for &term in terms {
            let index = log.last().index.next();
            log.push(Entry {
                term: Term(term),
                index,
                kind: EntryKind::Command,
                stamp: index.0 * 10,
                payload: Bytes::from(vec![0; 10]),
            });
        }
        log.check();
        log
    }

    fn id(index: u64, term: u64) -> LogId {
        LogId::new(Term(term), Index(index))
    }

    #[test]
    fn an_empty_log_ends_at_its_base() {
        let log = log((5, 2), &[]);
        assert_eq!((log.last(), log.last_stamp(), log.bytes()), (id(5, 2), 7, 0));
        assert!(log.matches(id(5, 2)));
        assert_eq!(log.id_at(Index(4)), None);
        assert_eq!(log.range(Index(0), Index(99)).count(), 0);
    }

    #[test]
    fn agreement_jumps_over_whole_terms() {
        let log = log((2, 1), &[1, 1, 4, 4, 6, 6]);
        assert_eq!(log.agreement(Index(8), Term(6)), id(8, 6));
        assert_eq!(log.agreement(Index(99), Term(5)), id(6, 4));
        assert_eq!(log.agreement(Index(5), Term(5)), id(5, 4));
        assert_eq!(log.agreement(Index(8), Term(3)), id(4, 1));
        assert_eq!(log.agreement(Index(8), Term(0)), id(2, 1), "never before the base");
    }

    #[test]
    fn truncation_and_compaction_keep_the_runs() {
        let mut log = log((0, 0), &[1, 1, 2, 3, 3]);
        log.truncate_from(Index(4));
        log.check();
        assert_eq!(log.last(), id(3, 2));
        log.compact(Index(2));
        log.check();
        assert_eq!((log.base(), log.last()), (id(2, 1), id(3, 2)));
        log.compact(Index(99));
        log.check();
        assert_eq!((log.base(), log.last(), log.last_stamp()), (id(3, 2), id(3, 2), 30));
        assert_eq!(log.bytes(), 0);
    }

    #[test]
    fn a_batch_has_at_least_one_entry() {
        let log = log((0, 0), &[1, 1, 1]);
        let size = 10 + Entry::OVERHEAD_BYTES;
        assert_eq!(
            log.batch(Index(1), 1),
            (log.range(Index(1), Index(1)).cloned().collect(), size)
        );
        assert_eq!(log.batch(Index(2), 2 * size).0.len(), 2);
        assert_eq!(log.batch(Index(1), 3 * size - 1).0.len(), 2);
        assert_eq!(log.batch(Index(4), size), (vec![], 0));
    }
}
