//! Recovery of the log: decides which of the records found are the log, and replays them.

use std::collections::BTreeMap;

use quorate_raft::{Entry, HardState, Index, LogId};

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
    let mut seen = Vec::new();
    survey(store, &mut seen)?;
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
        let frame = open_record(&bytes, sequence)?;
        last_crc = frame.crc;
        book.add_record(bytes.len() as u64);
        for section in record::decode_sections(frame, sequence)? {
            book.note(section.key(), &section.change(), section.bytes);
            replay.apply(&section);
        }
    }
    let groups = replay.finish(|key, first| book.drop_below(key, first));
    Ok(Recovered { book, groups, last_crc, found: !seen.is_empty() })
}

/// What can be read of a log that may be damaged.
pub(super) struct Readable {
    /// The records that were read: a run without a gap. Empty if the second is below the first.
    pub first: u64,
    pub last: u64,
    /// True if records that had never been durable follow: a crash has left them.
    pub has_tail: bool,
    pub groups: BTreeMap<ReplicaKey, RecoveredGroup>,
    /// What is wrong; with the first record concerned, if it is known.
    pub problems: Vec<(Option<u64>, StorageError)>,
}

/// Reads what can be read, and changes nothing. Records after damage are not replayed: a damaged
/// one may have replaced the entries of an earlier one, so they would show a history that never
/// was. Missing records at the beginning hide something, but falsify nothing.
///
/// `has_gaps`: the store lacks a part that is reported already, so a missing record is not.
pub(super) fn read(store: &mut dyn LogStore, marked: u64, has_gaps: bool) -> Readable {
    let mut seen = Vec::new();
    let mut problems = Vec::new();
    if let Err(error) = survey(store, &mut seen) {
        problems.push((seen.last().map(|(last, _)| last + 1), error));
    }
    let (head, durable) = head_and_durable(&seen, marked);
    // After a scan that was cut short nothing is known of the records behind the cut.
    let known =
        if problems.is_empty() { durable } else { seen.last().map_or(0, |(last, _)| *last) };
    let runs = broken_runs(&seen, head, durable.min(known));
    let runs = runs.into_iter().filter(|(_, _, why)| !has_gaps || *why != MISSING);
    problems.extend(runs.map(|run| sentence(run, durable)));
    let is_whole = |item: &&(u64, Seen)| item.0 >= head && matches!(item.1, Seen::Whole { .. });
    let first = seen.iter().find(is_whole).map_or(head, |(sequence, _)| *sequence);
    let chain = follow(&seen, first);
    let has_tail = chain.next > durable && chain.problem.is_some();
    let mut replay = Replay::default();
    let mut last = first.saturating_sub(1);
    for sequence in first..chain.next {
        let replayed = store
            .read(sequence)
            .and_then(|bytes| record::decode_sections(open_record(&bytes, sequence)?, sequence));
        match replayed {
            Ok(sections) => sections.iter().for_each(|section| replay.apply(section)),
            Err(error) => {
                problems.push((Some(sequence), error));
                break;
            }
        }
        last = sequence;
    }
    Readable { first, last, has_tail, groups: replay.finish(|_, _| {}), problems }
}

const MISSING: &str = "is missing";

/// A run of records with the same fault: the first, the last, and the fault.
type BrokenRun = (u64, u64, &'static str);

/// The records of `head..=durable` that are not whole.
fn broken_runs(seen: &[(u64, Seen)], head: u64, durable: u64) -> Vec<BrokenRun> {
    let mut runs: Vec<BrokenRun> = Vec::new();
    let mut add = |first: u64, last: u64, why: &'static str| match runs.last_mut() {
        Some(run) if run.1 + 1 == first && run.2 == why => run.1 = last,
        _ => runs.push((first, last, why)),
    };
    let mut next = head;
    let mut previous = None;
    for (sequence, item) in seen.iter().filter(|(sequence, _)| (head..=durable).contains(sequence))
    {
        if *sequence > next {
            add(next, sequence - 1, MISSING);
            previous = None;
        }
        previous = match item {
            Seen::Broken(why) => {
                add(*sequence, *sequence, why);
                None
            }
            Seen::Whole { header, crc } => {
                if previous.is_some_and(|crc| crc != header.previous) {
                    add(*sequence, *sequence, "does not follow the record before it");
                }
                Some(*crc)
            }
        };
        next = sequence + 1;
    }
    if next <= durable {
        add(next, durable, MISSING);
    }
    runs
}

fn sentence((first, last, why): BrokenRun, durable: u64) -> (Option<u64>, StorageError) {
    let range = if first == last { String::new() } else { format!(", and each up to {last},") };
    let what = format!(
        "record {first}{range} of the log {why}, though records up to {durable} had been made \
             durable"
    );
    (Some(first), StorageError::damaged(what))
}

fn open_record(bytes: &[u8], sequence: u64) -> Result<codec::Frame<'_>> {
    codec::open_frame(bytes).map_err(|error| {
        StorageError::damaged(format!("record {sequence} of the log {}", error.as_str()))
    })
}

/// Adds every record of the store to `seen`; after an error, those before it.
fn survey(store: &mut dyn LogStore, seen: &mut Vec<(u64, Seen)>) -> Result<()> {
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
    })
}

/// The first record that is needed, and the last that is known to have been durable.
fn head_and_durable(seen: &[(u64, Seen)], marked: u64) -> (u64, u64) {
    let headers = || {
        seen.iter().filter_map(|(_, item)| match item {
            Seen::Whole { header, .. } => Some(header),
            Seen::Broken(_) => None,
        })
    };
    // The highest head of any record: the replacements of the records below it are durable.
    let head = headers().map(|header| header.head).max().unwrap_or(1);
    let durable = headers().map(|header| header.durable_upto).max().unwrap_or(0).max(marked);
    (head, durable)
}

/// A run of whole records, each of which names the one before it.
struct Chain {
    /// The record after the last of them.
    next: u64,
    /// Why that is not one of them, if anything is there.
    problem: Option<&'static str>,
}

fn follow(seen: &[(u64, Seen)], head: u64) -> Chain {
    let mut next = head;
    let mut previous = None;
    let mut problem = None;
    for (sequence, item) in seen.iter().filter(|(sequence, _)| *sequence >= head) {
        let why = match item {
            _ if *sequence != next => Some(MISSING),
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
    Chain { next, problem }
}

/// Decides which records are the log, or that it is damaged.
fn judge(seen: &[(u64, Seen)], marked: u64) -> Result<Verdict> {
    let (head, durable) = head_and_durable(seen, marked);
    let Chain { next, problem } = follow(seen, head);
    if durable >= next {
        let why = problem.unwrap_or(MISSING);
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

    /// The live part of each group. `drop_below` is called where entries before it are dead.
    fn finish(
        self,
        mut drop_below: impl FnMut(ReplicaKey, Index),
    ) -> BTreeMap<ReplicaKey, RecoveredGroup> {
        let recovered = self.groups.into_iter().map(|(key, mut group)| {
            // The live entries are one run of indexes. A gap is left by purged entries, so
            // everything below it is dead as well.
            let mut first = group.entries.last_key_value().map_or(0, |(last, _)| *last);
            while first > 0 && group.entries.contains_key(&(first - 1)) {
                first -= 1;
            }
            let live = group.entries.split_off(&first);
            if !live.is_empty() {
                drop_below(key, Index(first));
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
