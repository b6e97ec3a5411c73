//! What clients saw of many registers, and whether one order of all operations explains it.
//!
//! A revision is the place of a write in the order of its key, so the order need not be searched
//! for, as it must be where registers show nothing but values: each operation that saw the key
//! names its place, and what is left to check is that values fit their places, and that the order
//! of places agrees with the order in which operations followed each other in time. That is
//! linearizability of a register, exactly: sorted by (place, write before reads, time), all
//! operations make sense one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What was asked. Every value of a history is written by one operation only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a value.
    Put {
        /// The value.
        value: u64,
    },
    /// Write a value if the key is at this revision; 0 = absent.
    Swap {
        /// The revision.
        expected: u64,
        /// The value.
        value: u64,
    },
    /// Read.
    Get,
}

impl Action {
    pub(crate) fn value(self) -> Option<u64> {
        match self {
            Self::Put { value } | Self::Swap { value, .. } => Some(value),
            Self::Get => None,
        }
    }
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was written, at this revision.
    Written {
        /// The revision.
        revision: u64,
    },
    /// This was there: the answer to a read, and to a write whose condition did not hold.
    Seen {
        /// The revision; 0 = absent.
        revision: u64,
        /// The value.
        value: Option<u64>,
    },
    /// It certainly was not applied.
    NotApplied,
    /// The outcome is unknown.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The key.
    pub key: String,
    /// When it was sent, at the earliest.
    pub begun: Instant,
    /// When it was answered, at the latest.
    pub ended: Instant,
    /// What was asked.
    pub action: Action,
    /// What was answered.
    pub outcome: Outcome,
}

impl Operation {
    /// The place it saw or took in the order of its key.
    fn revision(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Written { revision } | Outcome::Seen { revision, .. } => Some(revision),
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }
}

/// Everything that all clients did.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operations, in no particular order.
    pub operations: Vec<Operation>,
}

impl History {
    /// How many operations ended so.
    #[must_use]
    pub fn count(&self, ended: impl Fn(Outcome) -> bool) -> usize {
        self.operations.iter().filter(|operation| ended(operation.outcome)).count()
    }

    /// Every contradiction, as a sentence. None means that the history is linearizable.
    #[must_use]
    pub fn contradictions(&self) -> Vec<String> {
        let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            by_key.entry(&operation.key).or_default().push(operation);
        }
        by_key
            .into_iter()
            .flat_map(|(key, operations)| Register::new(key, operations).check())
            .collect()
    }
}

/// The operations of one key.
struct Register<'a> {
    key: &'a str,
    operations: Vec<&'a Operation>,
    /// Revision → value: of acknowledged writes, and of others that were seen.
    versions: BTreeMap<u64, u64>,
    found: Vec<String>,
}

impl<'a> Register<'a> {
    fn new(key: &'a str, operations: Vec<&'a Operation>) -> Self {
        Self { key, operations, versions: BTreeMap::new(), found: Vec::new() }
    }

    fn check(mut self) -> Vec<String> {
        self.place_writes();
        self.place_what_was_seen();
        self.check_conditions();
        self.check_time();
        self.found
    }

    fn wrong(&mut self, what: &str, operation: &Operation) {
        self.found.push(format!("{}: {what}: {operation:?}", self.key));
    }

    fn place_writes(&mut self) {
        for operation in self.operations.clone() {
            let Outcome::Written { revision } = operation.outcome else { continue };
            match operation.action.value() {
                None => self.wrong("a read is said to have written", operation),
                Some(_) if revision == 0 => self.wrong("written at revision 0", operation),
                Some(value) => {
                    if self.versions.insert(revision, value).is_some() {
                        self.wrong("two writes were acknowledged at one revision", operation);
                    }
                }
            }
        }
    }

    /// What was seen at a revision is what was written there. Values whose writes were not
    /// acknowledged get the place at which they are seen, one place each.
    fn place_what_was_seen(&mut self) {
        let unknown = self.values_of(Outcome::Unknown);
        let refused = self.values_of(Outcome::NotApplied);
        for operation in self.operations.clone() {
            let Outcome::Seen { revision, value } = operation.outcome else { continue };
            let known = self.versions.get(&revision).copied();
            match value {
                None if revision == 0 => {}
                None => self.wrong("a revision without a value", operation),
                Some(_) if revision == 0 => self.wrong("a value without a revision", operation),
                Some(value) if known == Some(value) => {}
                Some(_) if known.is_some() => {
                    self.wrong("not the value that was written at this revision", operation);
                }
                Some(value) if self.versions.values().any(|known| *known == value) => {
                    self.wrong("a value is seen at two revisions: applied twice", operation);
                }
                Some(value) if unknown.contains(&value) => {
                    self.versions.insert(revision, value);
                }
                Some(value) if refused.contains(&value) => {
                    self.wrong("a write that was said not to be applied is seen", operation);
                }
                Some(_) => self.wrong("a value that was never written is seen", operation),
            }
        }
    }

    /// The values of the writes that ended so.
    fn values_of(&self, outcome: Outcome) -> BTreeSet<u64> {
        let ended = self.operations.iter().filter(|operation| operation.outcome == outcome);
        ended.filter_map(|operation| operation.action.value()).collect()
    }

    /// Between the revision that a swap expected and its own there is no other.
    fn check_conditions(&mut self) {
        for operation in self.operations.clone() {
            let Action::Swap { expected, value } = operation.action else { continue };
            if operation.revision() == Some(expected)
                && matches!(operation.outcome, Outcome::Seen { .. })
            {
                self.wrong("the condition held, and the swap was refused", operation);
            }
            let placed = self.versions.iter().find(|(_, known)| **known == value);
            let Some((&revision, _)) = placed else { continue };
            if expected >= revision {
                self.wrong("a swap went back", operation);
            } else if self.versions.range(expected + 1..revision).next().is_some() {
                self.wrong("a swap was applied over another write", operation);
            }
        }
    }

    /// Who begins after another has ended sees at least what that one saw; who writes takes a later
    /// place. What was not acknowledged may take its place at any time after its beginning.
    fn check_time(&mut self) {
        let mut ended: Vec<(Instant, u64)> = self
            .operations
            .iter()
            .filter_map(|operation| Some((operation.ended, operation.revision()?)))
            .collect();
        ended.sort_unstable();
        // The highest revision seen by any operation that ended up to each of these moments.
        let mut highest = 0;
        for (_, revision) in &mut ended {
            highest = highest.max(*revision);
            *revision = highest;
        }
        let floor_at = |begun: Instant| {
            let before = ended.partition_point(|(at, _)| *at < begun);
            before.checked_sub(1).map_or(0, |last| ended[last].1)
        };
        for operation in self.operations.clone() {
            let floor = floor_at(operation.begun);
            match operation.outcome {
                Outcome::Written { revision } if revision <= floor => {
                    self.wrong(&format!("a write went before revision {floor}"), operation);
                }
                Outcome::Seen { revision, .. } if revision < floor => {
                    let what = format!("revision {floor} was seen before this began");
                    self.wrong(&what, operation);
                }
                Outcome::Unknown => {
                    let value = operation.action.value();
                    let placed = self.versions.iter().find(|(_, known)| Some(**known) == value);
                    if placed.is_some_and(|(revision, _)| *revision <= floor) {
                        let what = format!("a write without an answer went before {floor}");
                        self.wrong(&what, operation);
                    }
                }
                Outcome::Written { .. } | Outcome::Seen { .. } | Outcome::NotApplied => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Operations on one key: begun, ended, what, outcome.
    fn check(operations: &[(u64, u64, Action, Outcome)]) -> Vec<String> {
        let zero = Instant::now();
        let at = |time: u64| zero + Duration::from_millis(time);
        let operation = |(begun, ended, action, outcome): &(u64, u64, Action, Outcome)| Operation {
            key: "k".into(),
            begun: at(*begun),
            ended: at(*ended),
            action: *action,
            outcome: *outcome,
        };
        History { operations: operations.iter().map(operation).collect() }.contradictions()
    }

    const GET: Action = Action::Get;

    fn put(value: u64) -> Action {
        Action::Put { value }
    }

    fn swap(expected: u64, value: u64) -> Action {
        Action::Swap { expected, value }
    }

    fn written(revision: u64) -> Outcome {
        Outcome::Written { revision }
    }

    fn seen(revision: u64, value: u64) -> Outcome {
        Outcome::Seen { revision, value: Some(value) }
    }

    const ABSENT: Outcome = Outcome::Seen { revision: 0, value: None };

    fn found(operations: &[(u64, u64, Action, Outcome)], part: &str) {
        let found = check(operations);
        assert!(found.iter().any(|sentence| sentence.contains(part)), "{part}: {found:?}");
    }

    #[test]
    fn what_one_order_explains_is_right() {
        let history = [
            (0, 1, GET, ABSENT),
            (0, 9, put(1), written(5)),
            (3, 4, GET, seen(5, 1)),
            (3, 8, GET, ABSENT),
            (10, 30, put(2), Outcome::Unknown),
            (12, 13, GET, seen(5, 1)),
            (14, 15, GET, seen(7, 2)),
            (16, 17, swap(7, 3), written(9)),
            (16, 18, swap(7, 4), seen(9, 3)),
            (20, 21, put(6), Outcome::NotApplied),
            (22, 23, GET, seen(9, 3)),
            (24, 25, put(7), Outcome::Unknown),
            (40, 41, GET, seen(9, 3)),
        ];
        // The absent key read from 3 to 8 comes before the write that another read saw until 4.
        let expected: [String; 0] = [];
        assert_eq!(check(&history), expected);
    }

    #[test]
    fn a_lost_write_is_found() {
        found(&[(0, 1, put(1), written(5)), (2, 3, GET, ABSENT)], "was seen before");
        let over =
            [(0, 1, put(1), written(5)), (0, 1, put(2), written(6)), (2, 3, GET, seen(5, 1))];
        found(&over, "revision 6 was seen before");
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = [
            (0, 1, put(1), written(5)),
            (2, 20, put(2), Outcome::Unknown),
            (4, 5, GET, seen(6, 2)),
            (6, 7, GET, seen(5, 1)),
        ];
        found(&history, "revision 6 was seen before");
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let history = [(0, 1, put(1), written(5)), (2, 3, GET, seen(8, 1))];
        found(&history, "applied twice");
        let unknown =
            [(0, 1, put(1), Outcome::Unknown), (2, 3, GET, seen(5, 1)), (4, 5, GET, seen(8, 1))];
        found(&unknown, "applied twice");
    }

    #[test]
    fn values_from_nowhere_are_found() {
        found(&[(2, 3, GET, seen(8, 1))], "never written");
        let other = [(0, 1, put(1), written(5)), (2, 3, GET, seen(5, 9))];
        found(&other, "not the value");
        let early =
            [(0, 1, put(1), written(5)), (2, 3, GET, seen(4, 2)), (6, 7, put(2), Outcome::Unknown)];
        found(&early, "a write without an answer went before 5");
    }

    #[test]
    fn a_write_that_was_said_not_to_be_applied_and_is_seen_is_found() {
        // By a read before or after it was said, by a swap, and where it was a swap itself.
        for history in [
            [(0, 9, put(1), Outcome::NotApplied), (10, 11, GET, seen(8, 1))],
            [(0, 9, put(1), Outcome::NotApplied), (2, 3, GET, seen(8, 1))],
            [(0, 9, put(1), Outcome::NotApplied), (10, 11, swap(7, 2), seen(8, 1))],
            [(0, 9, swap(0, 1), Outcome::NotApplied), (10, 11, GET, seen(8, 1))],
        ] {
            found(&history, "said not to be applied is seen");
        }
    }

    #[test]
    fn revisions_that_go_back_are_found() {
        found(&[(0, 1, put(1), written(5)), (2, 3, put(2), written(4))], "went before revision 5");
        found(&[(0, 1, put(1), written(5)), (0, 3, put(2), written(5))], "at one revision");
    }

    #[test]
    fn swaps_that_do_not_keep_their_condition_are_found() {
        let over = [
            (0, 1, put(1), written(5)),
            (0, 9, put(2), written(6)),
            (2, 9, swap(5, 3), written(7)),
        ];
        found(&over, "over another write");
        let refused = [(0, 1, put(1), written(5)), (2, 3, swap(5, 2), seen(5, 1))];
        found(&refused, "the condition held");
    }
}
