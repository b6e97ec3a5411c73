//! What a reviewer would have to repeat: the rules of absence of the architecture, caps, names, and
//! the shape of the wire contract. Everything here reads files, runs nothing.

#[path = "tidy/graph.rs"]
mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;
use quorate_tests::binaries::repository;
use quorate_tests::needs::Need;
use toml::Table;

/// A source file: its path from the top, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines, with their numbers, without the file's unit tests: a declaration `mod tests;` is left
    /// out, of a module written in place all lines.
    fn product(&self) -> Vec<(usize, &str)> {
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
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.product().into_iter().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("/testing.rs")
            || self.path.contains("/testing/")
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the repository") {
        let path = entry.expect("its entry").path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn sources(under: &str) -> Vec<Source> {
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
fn hits<'s>(sources: impl IntoIterator<Item = &'s Source>, words: &[&str]) -> Vec<String> {
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
fn contains_word(line: &str, word: &str) -> bool {
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

fn assert_none(rule: &str, hits: &[String]) {
    assert!(hits.is_empty(), "{rule}:\n  {}", hits.join("\n  "));
}

#[test]
fn the_search_for_words_finds_words() {
    assert!(contains_word("use sled::Db;", "sled"));
    assert!(contains_word("thread::spawn(", "thread::spawn"));
    assert!(!contains_word("fn unsledded()", "sled"));
    assert!(!contains_word("let sled_dir = 1;", "sled"));
}

/// A word that is planted behind the last line of code of a file is found, wherever the file declares
/// its tests; so no rule below passes because it did not look.
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

#[test]
fn the_raft_core_is_pure() {
    let banned = [
        "tokio",
        "tonic",
        "sled",
        "Instant",
        "SystemTime",
        "thread",
        "rand",
        "HashMap",
        "HashSet",
        "std::fs",
        "std::net",
        "std::env",
        "println!",
        "f32",
        "f64",
    ];
    let found = hits(&sources("crates/raft/src"), &banned);
    assert_none("crates/raft names no I/O, clock, thread, chance or unordered map", &found);
}

#[test]
fn apply_is_deterministic() {
    let banned =
        ["HashMap", "HashSet", "Instant", "SystemTime", "rand", "tokio", "thread", "f32", "f64"];
    let all = sources("crates/machine/src");
    let code = all.iter().filter(|source| !source.is_test());
    assert_none(
        "the state machine has no clock, chance, unordered map or float",
        &hits(code, &banned),
    );
}

#[test]
fn one_file_names_sled() {
    let all: Vec<Source> = ["crates", "tests"].into_iter().flat_map(sources).collect();
    let code = all.iter().filter(|source| {
        !source.is_test() && !source.path.starts_with("crates/storage/src/database")
    });
    let found = hits(code, &["sled::", "use sled"]);
    assert_none("only crates/storage/src/database.rs names sled", &found);
}

#[test]
fn sled_is_used_within_its_rules() {
    let banned = [
        ".apply_batch",
        ".transaction",
        ".checksum",
        ".compare_and_swap",
        ".fetch_and_update",
        ".update_and_fetch",
        ".clear_tree",
        "sled::Batch",
        ".flush_async",
        ".export(",
        ".import(",
    ];
    let found = hits(&sources("crates/storage/src"), &banned);
    assert_none("plain inserts and removes only: the rest takes a process-wide lock", &found);
}

#[test]
fn no_queue_is_unbounded() {
    let all = sources("crates");
    let code = all.iter().filter(|source| !source.is_test());
    let found =
        hits(code, &["unbounded_channel", "UnboundedSender", "unbounded", "mpsc::channel()"]);
    assert_none("every queue is bounded", &found);
}

#[test]
fn prost_types_are_derived_in_proto_alone() {
    let all = sources("crates");
    let code = all.iter().filter(|source| !source.path.starts_with("crates/proto/"));
    let found =
        hits(code, &["prost::Oneof", "prost::Enumeration", "derive(Message", "::prost::Message)"]);
    assert_none("nothing outside of crates/proto derives prost types", &found);
}

#[test]
fn statuses_stay_at_the_edge() {
    // The peer service and the listeners are gRPC as well; the probe is a client of the health
    // service; the proto crate owns the mapping of failures.
    let edge = [
        "crates/service/src",
        "crates/transport/src",
        "crates/node/src/listener.rs",
        "crates/kvnode/src/health_probe.rs",
        "crates/client/",
        "crates/proto/",
        "crates/node/src/bootstrap",
    ];
    let all = sources("crates");
    let code = all.iter().filter(|source| {
        !source.is_test() && !edge.iter().any(|edge| source.path.starts_with(edge))
    });
    let found =
        hits(code, &["tonic::Status", "tonic::Code", "Status::new", "Status::with_details"]);
    assert_none("a gRPC status is seen by services and clients alone", &found);
}

#[test]
fn our_crates_forbid_unsafe_and_panics_on_input() {
    let workspace = manifest("Cargo.toml");
    let lints = &workspace["workspace"]["lints"];
    assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("forbid"));
    // What warns is an error in CI.
    assert_eq!(lints["clippy"]["unwrap_used"].as_str(), Some("warn"));
    for member in members(&workspace) {
        let manifest = manifest(&format!("{member}/Cargo.toml"));
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{member}: lints");
    }
}

#[test]
fn crates_use_only_those_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("crates/raft", &[][..]),
        ("crates/proto", &[]),
        ("crates/metrics", &[]),
        ("crates/placement", &["quorate-proto"]),
        ("crates/storage", &["quorate-raft"]),
        ("crates/machine", &["quorate-raft", "quorate-storage", "quorate-proto"]),
        (
            "crates/engine",
            &["quorate-raft", "quorate-storage", "quorate-machine", "quorate-metrics"],
        ),
        ("crates/transport", &["quorate-raft", "quorate-proto"]),
        ("crates/config", &["quorate-raft", "quorate-proto"]),
        (
            "crates/service",
            &[
                "quorate-raft",
                "quorate-proto",
                "quorate-storage",
                "quorate-machine",
                "quorate-engine",
                "quorate-metrics",
                "quorate-config",
            ],
        ),
        ("crates/client", &["quorate-proto"]),
        (
            "crates/node",
            &[
                "quorate-raft",
                "quorate-storage",
                "quorate-proto",
                "quorate-placement",
                "quorate-machine",
                "quorate-engine",
                "quorate-metrics",
                "quorate-config",
                "quorate-service",
                "quorate-transport",
            ],
        ),
        ("crates/kvnode", &["quorate-node", "quorate-config", "quorate-proto"]),
        ("crates/bench", &["quorate-client"]),
        ("crates/kvctl", &["quorate-client", "quorate-bench"]),
        ("tests", &["quorate-client", "quorate-proto"]),
    ]);
    for member in members(&manifest("Cargo.toml")) {
        let uses = dependencies(&member);
        let ours: BTreeSet<&str> =
            uses.iter().map(String::as_str).filter(|name| name.starts_with("quorate-")).collect();
        let allowed = allowed.get(member.as_str());
        let allowed =
            allowed.unwrap_or_else(|| panic!("{member} is a new crate: say what it may use"));
        let beyond: Vec<_> = ours.iter().filter(|name| !allowed.contains(name)).collect();
        assert!(beyond.is_empty(), "{member} uses {beyond:?}");
    }
}

#[test]
fn the_packages_of_the_design_are_used_for_real() {
    // Package, the name in code, the crates that use it.
    let card = [
        ("tokio", "tokio", &["crates/engine", "crates/node", "crates/client"][..]),
        ("tonic", "tonic", &["crates/service", "crates/node", "crates/client"]),
        ("prost", "prost", &["crates/machine", "crates/service"]),
        ("sled", "sled", &["crates/storage"]),
        ("serde", "serde", &["crates/kvctl"]),
        ("bincode", "bincode", &["crates/storage"]),
        ("clap", "clap", &["crates/config", "crates/kvnode", "crates/kvctl"]),
        ("tracing", "tracing", &["crates/engine", "crates/node", "crates/storage"]),
        ("tracing-subscriber", "tracing_subscriber", &["crates/kvnode"]),
        ("hashring", "hashring", &["crates/placement"]),
    ];
    for (package, name, crates) in card {
        for member in crates {
            assert!(dependencies(member).contains(package), "{member} depends on {package}");
            let all = sources(&format!("{member}/src"));
            let code = all.iter().filter(|source| !source.is_test());
            assert!(!hits(code, &[name]).is_empty(), "{member} names {package} in its code");
        }
    }
}

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
    let others = all.iter().filter(|source| source.path != "tests/tidy.rs");
    let found = hits(others, &["#[ignore", "todo!", "unimplemented!", "dbg!"]);
    assert_none("no test is ignored, nothing is left undone in silence", &found);
}

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

/// The suite is the last of a run, so what was skipped stands at its end. The line goes past the capture
/// of a test's output, which is shown for failures alone.
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
        std::io::stderr().write_all(line.as_bytes()).expect("it is told");
    }
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

fn manifest(path: &str) -> Table {
    let text = fs::read_to_string(repository().join(path)).expect("a manifest");
    text.parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn members(workspace: &Table) -> Vec<String> {
    let members = workspace["workspace"]["members"].as_array().expect("members are a list");
    members.iter().map(|member| member.as_str().expect("a path").to_owned()).collect()
}

/// The dependencies of a crate's own code, tests and build scripts left out.
fn dependencies(member: &str) -> BTreeSet<String> {
    let manifest = manifest(&format!("{member}/Cargo.toml"));
    let names = manifest.get("dependencies").and_then(|value| value.as_table());
    names.map(|names| names.keys().cloned().collect()).unwrap_or_default()
}

mod contract {
    use super::*;
    use prost_types::{
        DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    };

    fn files() -> Vec<FileDescriptorProto> {
        let set = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET_ALL)
            .expect("the compiled descriptors decode");
        set.file.into_iter().filter(|file| file.package().starts_with("quorate.")).collect()
    }

    /// The paths of all elements that have a comment before or behind them.
    fn commented(file: &FileDescriptorProto) -> BTreeSet<Vec<i32>> {
        let info = file.source_code_info.as_ref().expect("descriptors with comments");
        let with_comment = info.location.iter().filter(|location| {
            !location.leading_comments().trim().is_empty()
                || !location.trailing_comments().trim().is_empty()
        });
        with_comment.map(|location| location.path.clone()).collect()
    }

    /// Calls `see` with the path and the full name of every message and enum.
    fn each(
        file: &FileDescriptorProto,
        message: &mut dyn FnMut(&[i32], &str, &DescriptorProto),
        enumeration: &mut dyn FnMut(&[i32], &str, &EnumDescriptorProto),
    ) {
        fn nested(
            path: &[i32],
            prefix: &str,
            of: &DescriptorProto,
            message: &mut dyn FnMut(&[i32], &str, &DescriptorProto),
            enumeration: &mut dyn FnMut(&[i32], &str, &EnumDescriptorProto),
        ) {
            if of.options.as_ref().is_some_and(|options| options.map_entry()) {
                return;
            }
            let name = format!("{prefix}.{}", of.name());
            message(path, &name, of);
            for (at, inner) in of.nested_type.iter().enumerate() {
                nested(&[path, &[3, at as i32]].concat(), &name, inner, message, enumeration);
            }
            for (at, inner) in of.enum_type.iter().enumerate() {
                let inner_name = format!("{name}.{}", inner.name());
                enumeration(&[path, &[4, at as i32]].concat(), &inner_name, inner);
            }
        }
        for (at, of) in file.message_type.iter().enumerate() {
            nested(&[4, at as i32], file.package(), of, message, enumeration);
        }
        for (at, of) in file.enum_type.iter().enumerate() {
            let name = format!("{}.{}", file.package(), of.name());
            enumeration(&[5, at as i32], &name, of);
        }
    }

    #[test]
    fn everything_has_a_comment() {
        let mut bare = Vec::new();
        for file in files() {
            let commented = commented(&file);
            let bare = std::cell::RefCell::new(&mut bare);
            let check = |path: Vec<i32>, name: String| {
                if !commented.contains(&path) {
                    bare.borrow_mut().push(name);
                }
            };
            each(
                &file,
                &mut |path, name, of| {
                    check(path.to_vec(), name.to_owned());
                    for (at, field) in of.field.iter().enumerate() {
                        check([path, &[2, at as i32]].concat(), format!("{name}.{}", field.name()));
                    }
                },
                &mut |path, name, of| {
                    check(path.to_vec(), name.to_owned());
                    for (at, value) in of.value.iter().enumerate() {
                        check([path, &[2, at as i32]].concat(), format!("{name}.{}", value.name()));
                    }
                },
            );
            for (at, service) in file.service.iter().enumerate() {
                check(vec![6, at as i32], service.name().to_owned());
                for (method_at, method) in service.method.iter().enumerate() {
                    let path = vec![6, at as i32, 2, method_at as i32];
                    check(path, format!("{}.{}", service.name(), method.name()));
                }
            }
        }
        assert_none("every part of the wire contract says what it means", &bare);
    }

    #[test]
    fn enums_begin_with_an_unspecified_value_and_carry_their_name() {
        let mut wrong = Vec::new();
        for file in files() {
            each(&file, &mut |_, _, _| {}, &mut |_, name, of| {
                let prefix = screaming(of.name());
                for value in &of.value {
                    let expected =
                        value.number() != 0 || value.name() == format!("{prefix}_UNSPECIFIED");
                    if !value.name().starts_with(&format!("{prefix}_")) || !expected {
                        wrong.push(format!("{name}: {}", value.name()));
                    }
                }
            });
        }
        assert_none("enum values are prefixed, and 0 is unspecified", &wrong);
    }

    fn screaming(name: &str) -> String {
        let mut out = String::new();
        for (at, c) in name.chars().enumerate() {
            if c.is_uppercase() && at > 0 {
                out.push('_');
            }
            out.extend(c.to_uppercase());
        }
        out
    }

    #[test]
    fn names_are_of_one_style() {
        let mut wrong = Vec::new();
        for file in files() {
            each(
                &file,
                &mut |_, name, of| {
                    for field in &of.field {
                        let snake = field
                            .name()
                            .chars()
                            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                        if !snake {
                            wrong.push(format!("{name}.{}", field.name()));
                        }
                    }
                },
                &mut |_, _, _| {},
            );
            for service in &file.service {
                for method in &service.method {
                    let input = method.input_type().rsplit('.').next().unwrap_or_default();
                    let output = method.output_type().rsplit('.').next().unwrap_or_default();
                    let named = input == format!("{}Request", method.name())
                        && output == format!("{}Response", method.name());
                    if !named {
                        wrong.push(format!("{}.{}", service.name(), method.name()));
                    }
                }
            }
        }
        assert_none("fields are snake_case, each method has its own request and response", &wrong);
    }

    #[test]
    fn the_node_protocol_is_not_reflected() {
        let set = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET)
            .expect("the compiled descriptors decode");
        let packages: BTreeSet<_> = set.file.iter().map(|file| file.package()).collect();
        assert!(packages.contains("quorate.v1"));
        assert!(!packages.contains("quorate.raft.v1"), "{packages:?}");
    }
}
