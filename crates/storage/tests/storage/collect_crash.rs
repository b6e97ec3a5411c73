//! Kills the process while the database is made to collect its pages, at every move and at every
//! write and barrier between them, and opens what is left: every row is there as it was last
//! acknowledged, or as it was being written, and the collecting continues.
//!
//! The test starts itself once for each crash point, on a copy of one prepared directory. Half of
//! each of its segments is a tree that the child drops, so that there is something to move.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use crate::support::{at_each_point, copy_dir};
use quorate_storage::{Database, DatabaseOptions, Tree, crash};

/// The tree that is dropped.
const DROPPED: &[u8] = b"dropped";
/// Says to a child in which directory it works, and at which point it dies.
const CHILD: &str = "QUORATE_COLLECT_CRASH_CHILD";
const ROWS: u64 = 4_000;
const VALUE_BYTES: usize = 600;
/// As many rows as a page of the database holds.
const PAGE_ROWS: u64 = 16;
const ROUNDS: u64 = 2;
/// Rows that one round of the workload writes, and pages that it has moved.
const WRITTEN: u64 = 2;
const MOVED: u64 = 6;
/// Whole runs of which one must move rows that it did not write. Four in five do.
const RUNS: u64 = 12;

fn open(dir: &Path) -> (Database, Tree) {
    let database = Database::open(dir, DatabaseOptions::default()).unwrap();
    let tree = database.tree(b"rows").unwrap();
    (database, tree)
}

fn value(row: u64, version: u64) -> Vec<u8> {
    let head = format!("row {row} version {version} ");
    head.bytes().cycle().take(VALUE_BYTES).collect()
}

/// The version of a row that was found, which must be whole.
fn version(row: u64, found: &[u8]) -> u64 {
    let text = std::str::from_utf8(found).unwrap();
    let version = text.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(found, value(row, version), "row {row} is torn");
    version
}

/// A few rows that are written before the crash points begin.
fn touched() -> impl Iterator<Item = u64> {
    (0..ROWS).step_by(8 * PAGE_ROWS as usize)
}

/// Rows in an order in which neighbours are far from each other.
fn scattered(number: u64) -> u64 {
    number * 7_919 % ROWS
}

/// Writes the rows between those of the tree that is dropped later. Version 1 of each is durable.
fn prepare(dir: &Path) {
    let (database, tree) = open(dir);
    let dropped = database.tree(DROPPED).unwrap();
    for row in 0..ROWS {
        tree.insert(&row.to_be_bytes(), &value(row, 1)).unwrap();
        dropped.insert(&row.to_be_bytes(), &[row as u8; VALUE_BYTES]).unwrap();
    }
    database.barrier().unwrap();
}

/// The rows that a round writes, all with the version 10 + round.
fn written_in(round: u64) -> impl Iterator<Item = u64> {
    (0..WRITTEN).map(move |number| scattered(round * WRITTEN / 2 + number))
}

/// Runs in the child; `note` is called with each round that is durable.
fn run(database: &Database, tree: &Tree, note: impl Fn(u64)) {
    for round in 0..ROUNDS {
        for row in written_in(round) {
            tree.insert(&row.to_be_bytes(), &value(row, 10 + round)).unwrap();
        }
        assert_eq!(database.collect(MOVED / 2).unwrap(), MOVED / 2);
        database.barrier().unwrap();
        note(round);
        // What was moved is behind no barrier, or behind the next one.
        assert_eq!(database.collect(MOVED / 2).unwrap(), MOVED / 2);
    }
}

fn child(dir: &Path, fatal: u64) {
    let (database, tree) = open(&dir.join("sled"));
    for row in touched() {
        tree.insert(&row.to_be_bytes(), &value(row, 2)).unwrap();
    }
    // A barrier follows of itself.
    assert!(database.drop_tree(DROPPED).is_ok());
    let notes = File::create(dir.join("notes")).unwrap();
    crash::arm(fatal);
    run(&database, &tree, |round| writeln!(&notes, "{round}").unwrap());
    let passed = crash::passed();
    crash::arm(0);
    fs::write(dir.join("passed"), passed.to_string()).unwrap();
}

/// Starts this test again as a child on a copy of `prepared`; true if it was killed at its crash
/// point.
fn start(prepared: &Path, dir: &Path, fatal: u64) -> bool {
    copy_dir(prepared, &dir.join("sled"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "collect_crash::a_kill_while_pages_are_moved_loses_nothing",
            "--nocapture",
        ])
        .env(CHILD, format!("{fatal}:{}", dir.display()))
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    killed
}

/// The rows that the file names at a place where it held something else before: their pages were
/// written again.
fn rows_at_new_places(before: &Path, after: &Path) -> BTreeSet<u64> {
    let (before, after) =
        (fs::read(before.join("db")).unwrap(), fs::read(after.join("db")).unwrap());
    let mut rows = BTreeSet::new();
    for (at, _) in after.windows(4).enumerate().filter(|(_, four)| four == b"row ") {
        let place = at..after.len().min(at + 20);
        if before.get(place.clone()) == Some(&after[place.clone()]) {
            continue;
        }
        let row = after[place].split(|byte| *byte == b' ').nth(1).unwrap();
        rows.extend(std::str::from_utf8(row).ok().and_then(|row| row.parse::<u64>().ok()));
    }
    rows
}

/// The versions of all rows.
fn versions(tree: &Tree) -> BTreeMap<u64, u64> {
    let rows = tree.range::<&[u8]>(..).map(|entry| {
        let (key, found) = entry.unwrap();
        let row = u64::from_be_bytes(key[..].try_into().unwrap());
        (row, version(row, &found))
    });
    rows.collect()
}

/// Opens what a child has left, and compares it with what was acknowledged to the child as durable.
fn inspect(dir: &Path) {
    let notes = fs::read_to_string(dir.join("notes")).unwrap();
    let durable = notes.lines().last().map(|line| line.parse::<u64>().unwrap());
    let in_flight = durable.map_or(0, |round| round + 1);
    let (database, tree) = open(&dir.join("sled"));
    let found = versions(&tree);
    assert_eq!(found.len() as u64, ROWS, "rows are lost or came back");
    let mut least: BTreeMap<u64, u64> = BTreeMap::new();
    least.extend(touched().map(|row| (row, 2)));
    for round in 0..in_flight {
        least.extend(written_in(round).map(|row| (row, 10 + round)));
    }
    for (row, version) in &found {
        let least = least.get(row).copied().unwrap_or(1);
        let newer = *version == 10 + in_flight && written_in(in_flight).any(|other| other == *row);
        assert!(*version == least || newer, "row {row} is {version}, and {least} was durable");
    }
    // The work continues: what was left half moved is moved, and nothing changes by it.
    for number in 0..MOVED {
        let row = scattered(number);
        tree.insert(&row.to_be_bytes(), &value(row, 99)).unwrap();
    }
    assert_eq!(database.collect(MOVED).unwrap(), MOVED);
    database.barrier().unwrap();
    let after = versions(&tree);
    drop((database, tree));
    let (database, tree) = open(&dir.join("sled"));
    assert_eq!(versions(&tree), after);
    let changed = after.iter().filter(|(row, version)| found[row] != **version);
    assert!(changed.into_iter().all(|(_, version)| *version == 99));
    database.check_blobs().unwrap();
}

#[test]
fn a_kill_while_pages_are_moved_loses_nothing() {
    if let Ok(child_of) = std::env::var(CHILD) {
        let (fatal, dir) = child_of.split_once(':').unwrap();
        return child(Path::new(dir), fatal.parse().unwrap());
    }
    let prepared = tempfile::tempdir().unwrap();
    prepare(prepared.path());
    // The rows of pages that were written are not counted.
    let written = || touched().chain((0..ROUNDS).flat_map(written_in));
    let near = |row: u64| written().any(|written| row.abs_diff(written) < PAGE_ROWS);
    // The database chooses by itself what it moves: in some runs only pages that were written.
    let whole_run = || {
        let whole = tempfile::tempdir().unwrap();
        assert!(!start(prepared.path(), whole.path(), 0));
        let moved = rows_at_new_places(prepared.path(), &whole.path().join("sled"));
        (moved.into_iter().filter(|row| !near(*row)).count() as u64, whole)
    };
    let whole = (0..RUNS).map(|_| whole_run()).find(|(moved, _)| *moved >= PAGE_ROWS);
    let (_, whole) = whole.expect("rows are moved that were not written");
    inspect(whole.path());
    let passed = fs::read_to_string(whole.path().join("passed")).unwrap();
    let points: u64 = passed.parse().unwrap();
    assert!(points >= ROUNDS * (2 * MOVED + WRITTEN), "{points} points: moves are among them");
    at_each_point(points, 4, |point| {
        let dir = tempfile::tempdir().unwrap();
        assert!(start(prepared.path(), dir.path(), point), "passed point {point} of {points}");
        inspect(dir.path());
    });
}
