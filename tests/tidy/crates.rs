//! The crates: their lints, what each may use, and the packages of the design.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use quorate_tests::binaries::repository;
use toml::Table;

use super::sources::{hits, sources};

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
        ("crates/pipeline", &["quorate-proto"]),
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
                "quorate-pipeline",
            ],
        ),
        ("crates/testkit", &["quorate-proto"]),
        ("crates/client", &["quorate-proto", "quorate-pipeline"]),
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

/// `cargo test` reads the whole of a crate again to look for examples, so crates without any are
/// left out; one that gets an example is put back.
#[test]
fn no_example_is_left_out_of_the_tests() {
    for member in members(&manifest("Cargo.toml")) {
        let manifest = manifest(&format!("{member}/Cargo.toml"));
        let library = manifest.get("lib").and_then(|lib| lib.as_table());
        let tested = library.and_then(|lib| lib.get("doctest")).and_then(|value| value.as_bool());
        if tested.unwrap_or(true) {
            continue;
        }
        let folder = if member == "tests" { "tests/support" } else { &format!("{member}/src") };
        for source in sources(folder) {
            let mut fence = false;
            for (line, number) in source.text.lines().zip(1..) {
                let doc = line.trim_start();
                let doc = doc.strip_prefix("///").or_else(|| doc.strip_prefix("//!"));
                let Some(language) = doc.and_then(|doc| doc.trim_start().strip_prefix("```"))
                else {
                    continue;
                };
                fence = !fence;
                let text = ["text", "sh", "json", "toml"].contains(&language);
                assert!(!fence || text, "{}:{number}: an example that no test runs", source.path);
            }
        }
    }
}

pub fn manifest(path: &str) -> Table {
    let text = fs::read_to_string(repository().join(path)).expect("a manifest");
    text.parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn members(workspace: &Table) -> Vec<String> {
    let members = workspace["workspace"]["members"].as_array().expect("members are a list");
    members.iter().map(|member| member.as_str().expect("a path").to_owned()).collect()
}

/// The dependencies of a crate's own code, tests and build scripts left out.
fn dependencies(member: &str) -> BTreeSet<String> {
    let manifest = manifest(&format!("{member}/Cargo.toml"));
    let names = manifest.get("dependencies").and_then(|value| value.as_table());
    names.map(|names| names.keys().cloned().collect()).unwrap_or_default()
}
