//! Source files as the rules read them, and the search for words in them.

use std::fs;
use std::path::{Path, PathBuf};

use quorate_tests::binaries::repository;

/// A source file: its path from the top, and its text.
pub struct Source {
    pub path: String,
    pub text: String,
}

impl Source {
    /// The lines, with their numbers, without the file's unit tests: a declaration `mod tests;` is
    /// left out, of a module written in place all lines.
    pub fn product(&self) -> Vec<(usize, &str)> {
        let mut product = Vec::new();
        let mut lines = self.text.lines().zip(1..).peekable();
        while let Some((line, number)) = lines.next() {
            let module = lines.peek().filter(|_| line == "#[cfg(test)]").map(|(next, _)| *next);
            match module.filter(|next| next.starts_with("mod ")) {
                Some(declared) if declared.ends_with(';') => drop(lines.next()),
                Some(_) => drop(lines.find(|(line, _)| *line == "}")),
                None => product.push((number, line)),
            }
        }
        product
    }

    /// The lines of `product` outside of comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.product().into_iter().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("/testing.rs")
            || self.path.contains("/testing/")
    }
}

pub fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the repository") {
        let path = entry.expect("its entry").path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

pub fn sources(under: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&repository().join(under), &mut paths);
    paths.sort();
    let rust = paths.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    let read = rust.map(|path| {
        let text = fs::read_to_string(&path).expect("a source file is text");
        let from_top = path.strip_prefix(repository()).expect("it lies in the repository");
        Source { path: from_top.display().to_string(), text }
    });
    read.collect()
}

/// The places where a line of code contains one of the words.
pub fn hits<'s>(sources: impl IntoIterator<Item = &'s Source>, words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for source in sources {
        for (number, line) in source.code() {
            for word in words.iter().filter(|word| contains_word(line, word)) {
                hits.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    hits
}

/// Whether the line has this word, not as a part of a longer name.
pub fn contains_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let begins = word.starts_with(is_name);
        let ends = word.ends_with(is_name);
        let inside =
            (begins && before.is_some_and(is_name)) || (ends && after.is_some_and(is_name));
        !inside
    })
}

pub fn assert_none(rule: &str, hits: &[String]) {
    assert!(hits.is_empty(), "{rule}:\n  {}", hits.join("\n  "));
}

#[test]
fn the_search_for_words_finds_words() {
    assert!(contains_word("use sled::Db;", "sled"));
    assert!(contains_word("thread::spawn(", "thread::spawn"));
    assert!(!contains_word("fn unsledded()", "sled"));
    assert!(!contains_word("let sled_dir = 1;", "sled"));
}

/// A word that is planted behind the last line of code of a file is found, wherever the file
/// declares its tests; so no rule below passes because it did not look.
#[test]
fn every_file_is_searched_to_its_end() {
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    let mut blind = Vec::new();
    for source in all.iter().filter(|source| !source.is_test()) {
        let lines: Vec<&str> = source.text.lines().collect();
        let inline = |at: &usize| lines[*at].starts_with("mod ") && lines[*at].ends_with('{');
        let tests = (1..lines.len()).filter(inline).find(|at| lines[at - 1] == "#[cfg(test)]");
        let end = tests.map_or(lines.len(), |at| at - 1);
        let mut planted = lines[..end].to_vec();
        planted.push("fn planted() { unbounded_channel() }");
        planted.extend(&lines[end..]);
        let planted = Source { path: source.path.clone(), text: planted.join("\n") };
        let at_the_end = format!("{}:{}: unbounded_channel", source.path, end + 1);
        if !hits([&planted], &["unbounded_channel"]).contains(&at_the_end) {
            blind.push(source.path.clone());
        }
    }
    assert_none("the rules see each file to its end", &blind);
}
