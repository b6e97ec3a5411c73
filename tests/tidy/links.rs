//! Links of the documents: they lead to files, headings and items that exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quorate_tests::binaries::repository;

use super::sources::{Source, assert_none, contains_word, sources, walk};

/// A link of a document, and the line that it begins on.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    text: String,
    target: String,
}

/// All documents of the repository.
fn documents() -> Vec<Source> {
    let mut paths = vec![repository().join("README.md")];
    for under in ["crates", "tests", "deploy", "proto", ".ci"] {
        walk(&repository().join(under), &mut paths);
    }
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "md"));
    paths.sort();
    let read = paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).expect("a document is text");
        let from_top = path.strip_prefix(repository()).expect("it lies in the repository");
        Source { path: from_top.display().to_string(), text }
    });
    read.collect()
}

/// The text without the lines of its code blocks, which stay as empty lines.
fn without_blocks(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        if !inside && !fence {
            out.push_str(line);
        }
        out.push('\n');
        inside ^= fence;
    }
    out
}

/// Where each piece of code in backticks begins and ends in the text, backticks not counted.
fn code_spans(text: &str) -> Vec<(usize, usize)> {
    let ticks: Vec<usize> = text.match_indices('`').map(|(at, _)| at).collect();
    ticks.chunks_exact(2).map(|pair| (pair[0] + 1, pair[1])).collect()
}

fn line_at(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The links `[text](target)` outside of code.
fn links(document: &str) -> Vec<Link> {
    let text = without_blocks(document);
    let spans = code_spans(&text);
    let in_code = |at: usize| spans.iter().any(|(begin, end)| (*begin..*end).contains(&at));
    let mut found = Vec::new();
    for (middle, _) in text.match_indices("](").filter(|(at, _)| !in_code(*at)) {
        let begin = text[..middle].char_indices().rev().find(|(at, c)| *c == '[' && !in_code(*at));
        let Some((begin, _)) = begin else { continue };
        let Some(length) = text[middle..].find(')') else { continue };
        let words: Vec<&str> = text[begin + 1..middle].split_whitespace().collect();
        found.push(Link {
            line: line_at(&text, begin),
            text: words.join(" "),
            target: text[middle + 2..middle + length].to_owned(),
        });
    }
    found
}

/// The anchors of a document's headings: small letters, digits and hyphens, repeated ones numbered.
fn anchors(document: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let text = without_blocks(document);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let before = seen.entry(anchor.clone()).or_default();
            *before += 1;
            if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
        })
        .collect()
}

/// The item that a link's text names, when the text is code and the target a file of code: the last
/// segment of its path.
fn item_of(link: &Link) -> Option<&str> {
    let code = link.text.strip_prefix('`')?.strip_suffix('`')?;
    let is_code_file = link.target.ends_with(".rs") || link.target.ends_with(".proto");
    let is_path = code.contains('/') || code.contains('.') || code.contains('`');
    let name = code.rsplit("::").next()?.trim_end_matches("()").trim_end_matches('!');
    (is_code_file && !is_path).then_some(name)
}

/// Whether the text of a file declares an item of this name.
fn declares(text: &str, name: &str) -> bool {
    const KINDS: [&str; 14] = [
        "fn",
        "struct",
        "enum",
        "trait",
        "const",
        "static",
        "type",
        "mod",
        "macro_rules!",
        "union",
        "message",
        "service",
        "rpc",
        "macro",
    ];
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| KINDS.iter().any(|kind| contains_word(line, &format!("{kind} {name}"))))
}

/// What is wrong with a link of the document at `from`; nothing for one to the outside.
fn broken(from: &Path, document: &str, link: &Link) -> Option<String> {
    if link.target.contains("://") || link.target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
    let file = from.parent().unwrap_or(from).join(path);
    if !path.is_empty() && !file.exists() {
        return Some(format!("no file {path}"));
    }
    if let Some(code) = link.text.strip_prefix('`').and_then(|text| text.strip_suffix('`'))
        && code.contains('.')
        && !code.contains(' ')
        && !path.ends_with(code.trim_start_matches("../"))
    {
        return Some(format!("{path} is not {code}"));
    }
    let text = || fs::read_to_string(&file).unwrap_or_default();
    if let Some(name) = item_of(link) {
        return (!declares(&text(), name)).then(|| format!("{path} declares no {name}"));
    }
    if anchor.is_empty() {
        return None;
    }
    let headings = if path.is_empty() { anchors(document) } else { anchors(&text()) };
    (!headings.iter().any(|known| known == anchor)).then(|| format!("no heading #{anchor}"))
}

/// The paths of files in backticks, outside of links: `crate/src/file.rs`, `tests/file.rs`.
fn paths_in_code(document: &str) -> Vec<(usize, String)> {
    const KINDS: [&str; 5] = [".rs", ".proto", ".md", ".toml", ".txt"];
    let text = without_blocks(document);
    let spans = code_spans(&text).into_iter().map(|(begin, end)| (begin, &text[begin..end]));
    let plain = |code: &str| code.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c));
    spans
        .filter(|(_, code)| code.contains('/') && !code.starts_with('/') && plain(code))
        .filter(|(_, code)| KINDS.iter().any(|kind| code.ends_with(kind)))
        .map(|(at, code)| (line_at(&text, at), code.to_owned()))
        .collect()
}

/// Where a path in a document may begin: beside the document, at the top, at the crates.
fn exists_somewhere(from: &Path, path: &str) -> bool {
    let beside = from.parent().map(Path::to_path_buf).unwrap_or_default();
    let roots = [beside, repository().to_path_buf(), repository().join("crates")];
    roots.iter().any(|root| root.join(path).exists())
}

#[test]
fn links_lead_to_what_exists() {
    let mut found = Vec::new();
    let mut count = 0;
    for document in documents() {
        let from = repository().join(&document.path);
        for link in links(&document.text) {
            count += 1;
            if let Some(why) = broken(&from, &document.text, &link) {
                found.push(format!("{}:{}: [{}]: {why}", document.path, link.line, link.text));
            }
        }
    }
    assert!(count > 50, "the documents have links: {count}");
    assert_none("a link of a document leads to a file, a heading, an item", &found);
}

#[test]
fn paths_in_documents_exist() {
    let mut found = Vec::new();
    for document in documents() {
        let from = repository().join(&document.path);
        for (line, path) in paths_in_code(&document.text) {
            if !exists_somewhere(&from, &path) {
                found.push(format!("{}:{line}: {path}", document.path));
            }
        }
    }
    assert_none("a path in a document is the path of a file", &found);
}

/// Code that declares a format number is on the page of formats.
#[test]
fn every_format_has_its_row() {
    const NAMES: [&str; 3] = ["const FORMAT", "const MAGIC", "const COMMAND_VERSION"];
    let page = repository().join("crates/FORMATS.md");
    let text = fs::read_to_string(&page).expect("the page of formats");
    let targets: Vec<PathBuf> =
        links(&text).iter().map(|link| Path::new("crates").join(&link.target)).collect();
    let declares_one = |source: &Source| {
        source.code().any(|(_, line)| NAMES.iter().any(|name| contains_word(line, name)))
    };
    let formats: Vec<String> = sources("crates")
        .into_iter()
        .filter(|source| !source.is_test() && declares_one(source))
        .map(|source| source.path)
        .collect();
    assert!(formats.len() > 10, "formats are found: {formats:?}");
    let missing: Vec<String> = formats
        .into_iter()
        .filter(|path| !targets.iter().any(|target| target == Path::new(path)))
        .collect();
    assert_none("crates/FORMATS.md links every file that declares a format", &missing);
}

#[test]
fn the_search_of_links_finds_them() {
    let text = "# One, two\n[a\nb](x.md#c) and `[no](y.rs)`\n```\n[no](z.rs)\n```\n\
                [`A::b()`](c.rs), [`d/e.rs`](../d/e.rs)\n## `Two` – 2\n\
                ## One, two\n`f/g.rs` `h.rs` `/i/j.rs`\n";
    let link = |line, text: &str, target: &str| Link {
        line,
        text: text.to_owned(),
        target: target.to_owned(),
    };
    let (heading, item, path) =
        (link(2, "a b", "x.md#c"), link(7, "`A::b()`", "c.rs"), link(7, "`d/e.rs`", "../d/e.rs"));
    assert_eq!(links(text), [heading, item, path]);
    assert_eq!(anchors(text), ["one-two", "two--2", "one-two-1"]);
    let paths = paths_in_code(text).into_iter().map(|(line, path)| format!("{line}:{path}"));
    assert_eq!(paths.collect::<Vec<_>>(), ["7:d/e.rs", "10:f/g.rs"]);

    let code =
        "pub(crate) fn old() {}\n    const fn renamed() {}\n// fn gone() {}\nmessage Wire {\n";
    assert!(["old", "renamed", "Wire"].iter().all(|name| declares(code, name)));
    assert!(["ol", "gone", "olds"].iter().all(|name| !declares(code, name)));

    let page = repository().join("tests/README.md");
    let why = |text: &str, target: &str| {
        let document = format!("# A heading\n[{text}]({target})\n");
        broken(&page, &document, &links(&document)[0]).unwrap_or_default()
    };
    for (text, target) in [
        ("a file", "../README.md"),
        ("a folder", "tidy"),
        ("elsewhere", "https://example.org/none"),
        ("a heading", "#a-heading"),
        ("`broken`", "tidy/links.rs"),
        ("`links::Link`", "tidy/links.rs"),
        ("`tidy/links.rs`", "tidy/links.rs"),
        ("`Command`", "../proto/quorate/raft/v1/command.proto"),
    ] {
        assert_eq!(why(text, target), "", "[{text}]({target})");
    }
    for (text, target, expected) in [
        ("a file", "../NOT.md", "no file ../NOT.md"),
        ("a heading", "#another", "no heading #another"),
        ("a heading", "../README.md#not-there", "no heading #not-there"),
        ("`links::absent`", "tidy/links.rs", "tidy/links.rs declares no absent"),
        ("`tidy/files.rs`", "tidy/links.rs", "tidy/links.rs is not tidy/files.rs"),
    ] {
        assert_eq!(why(text, target), expected, "[{text}]({target})");
    }
}
