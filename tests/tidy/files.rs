//! The shape of files and of the top level.

use std::fs;

use quorate_tests::binaries::repository;

use super::sources::{Source, assert_none, hits, sources};

#[test]
fn files_stay_readable() {
    /// Lines of a file without its unit tests.
    const CAP: usize = 700;
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    let long: Vec<String> = all
        .iter()
        .filter_map(|source| {
            let lines = source.product().len();
            (lines > CAP).then(|| format!("{}: {lines} lines", source.path))
        })
        .collect();
    assert_none("no file is longer than 700 lines", &long);
}

#[test]
fn nothing_is_ignored_or_left_to_do() {
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    let others = all.iter().filter(|source| !source.path.starts_with("tests/tidy"));
    let found = hits(others, &["#[ignore", "todo!", "unimplemented!", "dbg!"]);
    assert_none("no test is ignored, nothing is left undone in silence", &found);
}

#[test]
fn the_top_level_is_what_the_design_says() {
    let expected = [
        "Cargo.toml",
        "Cargo.lock",
        "proto",
        "crates",
        "deploy",
        "docker-compose.yml",
        "tests",
        "README.md",
        "LICENSE",
    ];
    let mut beyond = Vec::new();
    for entry in fs::read_dir(repository()).expect("the repository") {
        let name = entry.expect("its entry").file_name().to_string_lossy().into_owned();
        // The target directory is cargo's, dot-files are allowed.
        if !expected.contains(&name.as_str()) && !name.starts_with('.') && name != "target" {
            beyond.push(name);
        }
    }
    assert_none("nothing else lies at the top", &beyond);
}
