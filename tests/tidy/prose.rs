//! The prose of comments and texts: words that mislead, the width of lines, the shape of log lines.

use std::fs;

use quorate_tests::binaries::repository;

use super::sources::{Source, assert_none, contains_word, sources, walk};

/// Words that stop an English reader, and what to write.
const WORDS: [(&str, &str); 12] = [
    ("told", "reported, notified, known"),
    ("tells", "reports, shows, says"),
    ("for ever", "forever"),
    ("is no", "is not a"),
    ("at most so", "name the limit"),
    ("so many", "name the number"),
    ("so long", "name the time"),
    ("lest", "so that … not"),
    ("whoever", "name the actor"),
    ("nobody", "no client, no replica, no caller"),
    ("goes on", "continues"),
    ("chance", "randomness"),
];

/// Phrases with one of the words that are plain English.
const PLAIN: [&str; 6] =
    ["is no longer", "is no older", "there is no", "so long as", "is no more", "the answer is no"];

/// A piece of text inside a source file, with the number of its line.
type Text = (usize, String);

/// What people read in Rust code: its comments, and its string literals without what is put into
/// them.
fn texts(code: &str) -> Vec<Text> {
    let mut texts = Vec::new();
    let mut rest = code;
    let line_of = |rest: &str| code[..code.len() - rest.len()].matches('\n').count() + 1;
    while let Some(at) = rest.find(['/', '"', '\'']) {
        rest = &rest[at..];
        let number = line_of(rest);
        let hashes =
            code[..code.len() - rest.len()].bytes().rev().take_while(|b| *b == b'#').count();
        let is_raw = code[..code.len() - rest.len() - hashes].ends_with('r');
        if rest.starts_with("//") {
            let (comment, after) = rest.split_once('\n').unwrap_or((rest, ""));
            texts.push((number, comment.trim_start_matches('/').to_owned()));
            rest = after;
        } else if rest.starts_with('"') && is_raw {
            let end = format!("\"{}", "#".repeat(hashes));
            let (text, after) = rest[1..].split_once(&end).unwrap_or((&rest[1..], ""));
            texts.push((number, text.to_owned()));
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = inside.find(|c| {
                let is_end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                is_end
            });
            let end = end.unwrap_or(inside.len());
            texts.push((number, without_arguments(&inside[..end])));
            rest = inside.get(end + 1..).unwrap_or_default();
        } else if rest.starts_with("'\"'") || rest.starts_with("'/'") {
            rest = &rest[3..];
        } else if rest.starts_with("'\\") {
            rest = rest.get(3..).unwrap_or_default();
        } else {
            rest = &rest[1..];
        }
    }
    texts
}

/// A format string without `{name}`, in which a variable's name may be any word.
fn without_arguments(text: &str) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// The words of [`WORDS`] in a text, each with what to write instead.
fn misleading(text: &str) -> Vec<&'static (&'static str, &'static str)> {
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    for phrase in PLAIN {
        text = text.replace(phrase, "");
    }
    WORDS.iter().filter(|(word, _)| contains_word(&text, word)).collect()
}

fn all() -> Vec<Source> {
    ["crates", "tests"].into_iter().flat_map(sources).collect()
}

/// Files that are not Rust and that people read.
fn others() -> Vec<Source> {
    let mut paths = vec![repository().join("README.md"), repository().join("docker-compose.yml")];
    for under in ["crates", "tests", "deploy", "proto", ".ci"] {
        walk(&repository().join(under), &mut paths);
    }
    let kinds = ["md", "proto", "yml", "toml"];
    paths.retain(|path| path.extension().is_some_and(|ext| kinds.iter().any(|kind| ext == *kind)));
    let read = paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("text");
        let from_top = path.strip_prefix(repository()).expect("it lies in the repository");
        Source { path: from_top.display().to_string(), text }
    });
    read.collect()
}

#[test]
fn texts_are_plain_english() {
    let mut found = Vec::new();
    let mut see = |path: &str, number: usize, text: &str| {
        for (word, instead) in misleading(text) {
            found.push(format!("{path}:{number}: “{word}”: write {instead}"));
        }
    };
    for source in all().iter().filter(|source| source.path != "tests/tidy/prose.rs") {
        for (number, text) in texts(&source.text) {
            see(&source.path, number, &text);
        }
    }
    for source in others() {
        for (line, number) in source.text.lines().zip(1..) {
            see(&source.path, number, line);
        }
    }
    assert_none("texts use words that a newcomer knows and can search for", &found);
}

#[test]
fn lines_fit_on_a_screen() {
    let mut long = Vec::new();
    let protos = others().into_iter().filter(|source| source.path.ends_with(".proto"));
    for source in all().into_iter().chain(protos) {
        for (line, number) in source.text.lines().zip(1..) {
            let width = line.chars().count();
            if width > 100 {
                long.push(format!("{}:{number}: {width} columns", source.path));
            }
        }
    }
    assert_none("no line is wider than 100 columns", &long);
}

#[test]
fn errors_sections_are_spelled_one_way() {
    let mut found = Vec::new();
    for source in all() {
        let mut lines = source.text.lines().zip(1..).peekable();
        while let Some((line, number)) = lines.next() {
            let next = lines.peek().map_or("", |(next, _)| next.trim());
            if line.trim() == "/// # Errors" && next == "///" {
                found.push(format!("{}:{number}", source.path));
            }
        }
    }
    assert_none("the text follows `# Errors` on the next line", &found);
}

/// The literals of log lines: the first string of each `info!`, `warn!` and `error!`.
fn log_lines(source: &Source) -> Vec<Text> {
    let code: String = source.code().flat_map(|(_, line)| [line, "\n"]).collect();
    let mut found = Vec::new();
    for level in ["debug!(", "info!(", "warn!(", "error!("] {
        for (at, call) in code.match_indices(level) {
            let rest = &code[at + call.len()..];
            let end = rest.find(");").unwrap_or(rest.len());
            if let Some((number, text)) = texts(&rest[..end]).into_iter().next() {
                found.push((code[..at].matches('\n').count() + number, text));
            }
        }
    }
    found
}

#[test]
fn log_lines_have_one_grammar() {
    let mut found = Vec::new();
    for source in all().iter().filter(|source| !source.is_test()) {
        for (_, text) in log_lines(source) {
            let begins_large = text.starts_with(|c: char| c.is_uppercase());
            if begins_large || text.ends_with(['.', '!']) {
                found.push(format!("{}: “{text}”", source.path));
            }
        }
    }
    assert_none("a log line begins with a small letter and has no full stop at its end", &found);
}

#[test]
fn the_search_of_texts_finds_them() {
    let code = concat!(
        "let a = 'b'; // one\n",
        "f(\"two {told} \\\" x\", r#\"three \"q\"\"#, '\"', \"four\");\n",
        "/// five\n",
    );
    let found: Vec<String> =
        texts(code).into_iter().map(|(number, text)| format!("{number}:{}", text.trim())).collect();
    assert_eq!(found, ["1:one", "2:two  \\\" x", "2:three \"q\"", "2:four", "3:five"]);
    let words = |text: &str| misleading(text).iter().map(|(word, _)| *word).collect::<Vec<_>>();
    assert_eq!(words("It is no leader, and Nobody is told"), ["told", "is no", "nobody"]);
    assert!(words("it is no longer one, so long as it untolds").is_empty());
    let source = Source {
        path: String::new(),
        text: "warn!(\n    id = 1,\n    \"Broken.\"\n);\ninfo!(\"fine\");\n".into(),
    };
    let lines: Vec<String> = log_lines(&source).into_iter().map(|(_, text)| text).collect();
    assert_eq!(lines, ["fine", "Broken."]);
}
