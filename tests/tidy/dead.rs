//! Public functions without a caller. `pub` hides them from the compiler's own search.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{Source, assert_none, sources};

/// Public functions that only tests, benchmarks or users call, and why they are in the product.
const KEPT: [(&str, &str); 5] = [
    ("crates/client/src/config.rs: without_sessions", "users of the client library call it"),
    ("crates/raft/src/invariants.rs: check_delta", "the simulator checks each step with it"),
    ("crates/raft/src/invariants.rs: check_state", "the simulator checks each step with it"),
    ("crates/storage/src/golden.rs: assert_golden", "the module is compiled only for tests"),
    ("crates/storage/src/state/budget.rs: cache_used", "the benchmark of the states prints it"),
];

/// The name of the function that a line declares as public.
fn declared(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub ")?;
    let rest = ["const ", "async "].iter().fold(rest, |rest, word| rest.trim_start_matches(word));
    let name = rest.strip_prefix("fn ")?;
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// Whether the attribute leaves what follows out of the product.
fn is_for_tests(line: &str) -> bool {
    let attribute = line.trim_start().strip_prefix("#[cfg(");
    attribute.is_some_and(|rest| !rest.contains("not(") && rest.contains("test"))
}

/// The names that occur on a line, but for the one that it declares.
fn used(line: &str) -> impl Iterator<Item = &str> {
    let own = line.find("fn ").map(|at| at + 3);
    let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(move |word| own != Some(word.as_ptr() as usize - line.as_ptr() as usize))
}

/// The public functions of `declaring` that no line of `calling` names.
fn without_caller<'s>(
    declaring: impl IntoIterator<Item = &'s Source>,
    calling: impl IntoIterator<Item = &'s Source>,
) -> Vec<String> {
    let mut functions: BTreeMap<&str, String> = BTreeMap::new();
    for source in declaring {
        let mut only_in_tests = false;
        for (_, line) in source.code() {
            only_in_tests |= is_for_tests(line);
            let Some(name) = declared(line).filter(|_| !only_in_tests) else {
                only_in_tests &= line.trim_start().starts_with("#[");
                continue;
            };
            functions.insert(name, format!("{}: {name}", source.path));
        }
    }
    let mut names = BTreeSet::new();
    for source in calling {
        names.extend(source.code().flat_map(|(_, line)| used(line)));
    }
    functions.retain(|name, _| !names.contains(name));
    functions.into_values().collect()
}

#[test]
fn every_public_function_has_a_caller() {
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    // The client is a library: its callers are users, of whom the tests and examples are some.
    let is_client = |source: &&Source| source.path.starts_with("crates/client/");
    let ours = all.iter().filter(|source| !source.is_test() && !is_client(source));
    let product = all.iter().filter(|source| !source.is_test());
    let mut dead = without_caller(ours, product);
    let client = all.iter().filter(|source| !source.is_test()).filter(is_client);
    // This file names functions in `KEPT`, which is not a call.
    let callers = all.iter().filter(|source| source.path != "tests/tidy/dead.rs");
    dead.extend(without_caller(client, callers));
    let kept: Vec<String> = KEPT.iter().map(|(function, _)| (*function).to_owned()).collect();
    let stale: Vec<_> = kept.iter().filter(|kept| !dead.contains(kept)).cloned().collect();
    assert_none("a function with a caller needs no reason in KEPT", &stale);
    dead.retain(|function| !kept.contains(function));
    assert_none("no public function is called by tests only, or not at all", &dead);
}

#[test]
fn the_search_for_callers_sees_them() {
    let source = |text: &str| Source { path: "a.rs".into(), text: text.into() };
    let declaring =
        source("pub fn a() {}\n    pub const fn b(c: u8) {}\npub async fn c() { a() }\n");
    let found = |calling: &str| without_caller([&declaring], [&declaring, &source(calling)]);
    assert_eq!(found(""), ["a.rs: b"], "an argument has the name of another function");
    assert_eq!(
        found("// b()\nfn b() {}"),
        ["a.rs: b"],
        "neither a comment nor a namesake calls it"
    );
    assert!(found("x.b(1)").is_empty());
    let gated = "#[cfg(feature = \"testing\")]\n#[must_use]\npub fn d() {}\npub fn e() {}\n";
    assert_eq!(without_caller([&source(gated)], []), ["a.rs: e"], "test support needs no caller");
}
