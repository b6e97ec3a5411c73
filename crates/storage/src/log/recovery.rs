//! Recovery of the log: decides which of the records found are the log, and replays them.

use std::collections::BTreeMap;

use quorate_raft::{Entry, HardState, LogId};

use super::book::Book;
use super::record::{self, Change, DecodedSection, Header};
use super::store::LogStore;
use super::{RecoveredGroup, ReplicaKey};
use crate::codec;
use crate::error::{Result, StorageError};

/// A log after recovery.
pub(super) struct Recovered {
    pub book: Book,
    pub groups: BTreeMap<ReplicaKey, RecoveredGroup>,
    /// Checksum of the last record; 0 if there is none.
    pub last_crc: u32,
    /// True if there was any record, whole or not.
    pub found: bool,
}

/// One record of a scan, in brief.
enum Seen {
    Whole { header: Header, crc: u32 },
    Broken(&'static str),
}

/// The records that are the log: `head..=last`, each found whole. Everything above is removed.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    head: u64,
    last: u64,
    has_tail: bool,
}

/// Recovers the log in `store`. `marked` is the last sequence that `MARK` knows to be durable.
pub(super) fn recover(store: &mut dyn LogStore, marked: u64) -> Result<Recovered> {
    let seen = survey(store)?;
    let verdict = judge(&seen, marked)?;
    if verdict.has_tail {
        tracing::info!(from = verdict.last + 1, "log: removing the unfinished tail");
        store.remove_from(verdict.last + 1)?;
    }
    store.settle()?;

    let mut book = Book::new(verdict.head);
    let mut replay = Replay::default();
    let mut last_crc = 0;
    for sequence in verdict.head..=verdict.last {
        let bytes = store.read(sequence)?;
        let frame = codec::open_frame(&bytes).map_err(|error| {
            StorageError::damaged(format!("record {sequence} of the log {}", error.as_str()))
        })?;
        last_crc = frame.crc;
        book.add_record(bytes.len() as u64);
        for section in record::decode_sections(frame, sequence)? {
            book.note(section.key(), &section.change(), section.bytes);
            replay.apply(&section);
        }
    }
    let groups = replay.finish(&mut book);
    Ok(Recovered { book, groups, last_crc, found: !seen.is_empty() })
}

fn survey(store: &mut dyn LogStore) -> Result<Vec<(u64, Seen)>> {
    let mut seen = Vec::new();
    store.scan(&mut |sequence, found| {
        let item = match found.and_then(|bytes| codec::open_frame(bytes).map_err(|e| e.as_str())) {
            Err(why) => Seen::Broken(why),
            Ok(frame) => {
                let header = record::decode_header(frame, sequence)?;
                if header.sequence == sequence {
                    Seen::Whole { header, crc: frame.crc }
                } else {
                    Seen::Broken("carries the number of another record")
                }
            }
        };
        seen.push((sequence, item));
        Ok(())
    })?;
    Ok(seen)
}

/// Decides which records are the log, or that it is damaged.
fn judge(seen: &[(u64, Seen)], marked: u64) -> Result<Verdict> {
    let headers = || {
        seen.iter().filter_map(|(_, item)| match item {
            Seen::Whole { header, .. } => Some(header),
            Seen::Broken(_) => None,
        })
    };
    // The highest head of any record: the replacements of the records below it are durable.
    let head = headers().map(|header| header.head).max().unwrap_or(1);
    let durable = headers().map(|header| header.durable_upto).max().unwrap_or(0).max(marked);

    let mut next = head;
    let mut previous = None;
    let mut problem = None;
    for (sequence, item) in seen.iter().filter(|(sequence, _)| *sequence >= head) {
        let why = match item {
            _ if *sequence != next => Some("is missing"),
            Seen::Broken(why) => Some(*why),
            Seen::Whole { header, .. } if previous.is_some_and(|crc| crc != header.previous) => {
                Some("does not follow the record before it")
            }
            Seen::Whole { crc, .. } => {
                previous = Some(*crc);
                next += 1;
                None
            }
        };
        if why.is_some() {
            problem = why;
            break;
        }
    }
    if durable >= next {
        let why = problem.unwrap_or("is missing");
        return Err(StorageError::damaged(format!(
            "record {next} of the log {why}, though records up to {durable} had been made durable"
        )));
    }
    Ok(Verdict { head, last: next - 1, has_tail: problem.is_some() })
}

/// Builds the groups from sections in the order of their records.
#[derive(Default)]
struct Replay {
    groups: BTreeMap<ReplicaKey, Group>,
}

#[derive(Default)]
struct Group {
    hard_state: HardState,
    reset: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl Replay {
    fn apply(&mut self, section: &DecodedSection) {
        let group = self.groups.entry(section.key()).or_default();
        match section.change() {
            Change::HardState(state) => group.hard_state = state,
            Change::Reset { moved, to } => {
                group.reset = Some(to);
                let above = group.entries.split_off(&to.index.next().0);
                group.entries = if moved { above } else { BTreeMap::new() };
            }
            Change::Entries { moved, entries } => {
                if let (false, Some(first)) = (moved, entries.first()) {
                    group.entries.split_off(&first.index.0);
                }
                group.entries.extend(entries.iter().map(|entry| (entry.index.0, entry.clone())));
            }
        }
    }

    /// The live part of each group. Drops the dead entries from the book.
    fn finish(self, book: &mut Book) -> BTreeMap<ReplicaKey, RecoveredGroup> {
        let recovered = self.groups.into_iter().map(|(key, mut group)| {
            // The live entries are one run of indexes. A gap is left by purged entries, so
            // everything below it is dead as well.
            let mut first = group.entries.last_key_value().map_or(0, |(last, _)| *last);
            while first > 0 && group.entries.contains_key(&(first - 1)) {
                first -= 1;
            }
            let live = group.entries.split_off(&first);
            if !live.is_empty() {
                book.drop_below(key, quorate_raft::Index(first));
            }
            let entries = live.into_values().collect();
            (key, RecoveredGroup { hard_state: group.hard_state, reset: group.reset, entries })
        });
        recovered.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(sequence: u64, durable_upto: u64, head: u64) -> (u64, Seen) {
        let header = Header { sequence, previous: (sequence - 1) as u32, durable_upto, head };
        (sequence, Seen::Whole { header, crc: sequence as u32 })
    }

    fn broken(sequence: u64) -> (u64, Seen) {
        (sequence, Seen::Broken("fails its checksum"))
    }

    fn log(head: u64, last: u64) -> Vec<(u64, Seen)> {
        (head..=last).map(|sequence| whole(sequence, sequence - 1, head)).collect()
    }

    fn ok(head: u64, last: u64, has_tail: bool) -> Verdict {
        Verdict { head, last, has_tail }
    }

    #[test]
    fn a_whole_log_is_accepted_whole() {
        assert_eq!(judge(&[], 0).unwrap(), ok(1, 0, false));
        assert_eq!(judge(&log(1, 9), 9).unwrap(), ok(1, 9, false));
        assert_eq!(judge(&log(5, 9), 0).unwrap(), ok(5, 9, false));
    }

    #[test]
    fn a_broken_last_record_is_the_tail() {
        let mut seen = log(1, 9);
        seen.push(broken(10));
        assert_eq!(judge(&seen, 9).unwrap(), ok(1, 9, true));
        let error = judge(&seen, 10).unwrap_err().to_string();
        assert!(error.contains("record 10 of the log fails its checksum"), "{error}");
    }

    #[test]
    fn a_log_that_ends_below_the_mark_is_damaged() {
        for (seen, marked) in [(log(1, 9), 10), (Vec::new(), 1), (vec![broken(1)], 1)] {
            let error = judge(&seen, marked).unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("record"), "{error}");
        }
        assert_eq!(judge(&[broken(1)], 0).unwrap(), ok(1, 0, true));
    }

    #[test]
    fn a_record_that_a_later_one_knows_durable_must_be_there() {
        for lost in 1..=8 {
            let mut seen = log(1, 9);
            seen[lost as usize - 1] = broken(lost);
            assert!(judge(&seen, 0).unwrap_err().to_string().contains(&format!("record {lost} ")));
            seen.remove(lost as usize - 1);
            assert!(judge(&seen, 0).unwrap_err().to_string().contains("is missing"));
        }
    }

    #[test]
    fn records_that_no_survivor_knows_durable_are_the_tail() {
        // Record 9 was written without knowing that 8 is durable: both may be unfinished.
        let mut seen = log(1, 7);
        seen.extend([broken(8), whole(9, 7, 1)]);
        assert_eq!(judge(&seen, 7).unwrap(), ok(1, 7, true));
        let mut seen = log(1, 7);
        seen.extend([whole(9, 7, 1)]);
        assert_eq!(judge(&seen, 7).unwrap(), ok(1, 7, true));
    }

    #[test]
    fn below_the_head_anything_may_be_missing() {
        let mut seen = vec![whole(1, 0, 1), broken(3)];
        seen.extend(log(5, 9));
        assert_eq!(judge(&seen, 9).unwrap(), ok(5, 9, false));
    }

    #[test]
    fn a_broken_chain_is_detected() {
        let mut seen = log(1, 9);
        if let Seen::Whole { header, .. } = &mut seen[4].1 {
            header.previous = 77;
        }
        let error = judge(&seen, 0).unwrap_err().to_string();
        assert!(error.contains("record 5 of the log does not follow"), "{error}");
    }
}
