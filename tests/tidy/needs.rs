//! Tests that need more than a plain user has: the list in `tests/README.md`, and the lines at the
//! end of a run.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use quorate_tests::binaries::repository;
use quorate_tests::needs::Need;

use super::sources::{Source, sources};

/// The tests that may end early for want of something, with what they need: as the code says.
fn tests_with_a_need() -> BTreeSet<(String, String)> {
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    let mut found = BTreeSet::new();
    for source in all.iter().filter(|source| !source.path.starts_with("tests/support/")) {
        for (at, call) in source.text.match_indices("met(\"") {
            let rest = &source.text[at + call.len()..];
            let Some((_, need)) = rest.split_once("Need::") else { continue };
            let need = need.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            let test = source.text[..at].rsplit("fn ").next().unwrap_or_default();
            let test = test.split('(').next().unwrap_or_default();
            let file = source.path.trim_start_matches("tests/").trim_end_matches(".rs");
            found.insert((format!("{file}::{test}"), need.to_owned()));
        }
    }
    found
}

#[test]
fn what_may_be_skipped_is_written_down() {
    let text = fs::read_to_string(repository().join("tests/README.md")).expect("the tests' README");
    let (_, list) = text.split_once("## What may be skipped").expect("it has the list");
    let rows = list.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let written: BTreeSet<(String, String)> = rows
        .map(|row| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.nth(1).expect("a test"), cells.next().expect("its need"))
        })
        .collect();
    assert_eq!(written, tests_with_a_need(), "tests/README.md lists what the code says");
}

/// The suite is the last of a run, so what was skipped stands at its end. The line goes past the
/// capture of a test's output, which is shown for failures alone.
#[test]
fn what_is_absent_here_is_told_at_the_end_of_the_run() {
    let tests = tests_with_a_need();
    let used: BTreeSet<&str> = tests.iter().map(|(_, need)| need.as_str()).collect();
    let known: BTreeSet<String> = Need::ALL.iter().map(|need| format!("{need:?}")).collect();
    assert_eq!(used, known.iter().map(String::as_str).collect(), "every need has a test");
    for need in Need::ALL.into_iter().filter(|need| !need.is_met()) {
        let name = format!("{need:?}");
        let of_need = tests.iter().filter(|(_, other)| *other == name);
        let skipped: Vec<&str> = of_need.map(|(test, _)| test.as_str()).collect();
        let line = format!("skipped, for want of {need}: {}\n", skipped.join(", "));
        std::io::stderr().write_all(line.as_bytes()).expect("standard error");
    }
}
