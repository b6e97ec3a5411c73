//! `kvbench` as a whole: tiny plans over the release `kvnode`, and over etcd where it is installed.
//! What the figures are is not the question here, but that all are there and none is absurd, and
//! that nothing is left behind.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use quorate_tests::needs::{self, Need};
use quorate_tests::{binaries, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The least plan that has every slice, without how long these are.
const TINY: [&str; 8] = [
    "--rounds=1",
    "--clients=1,4",
    "--keys=300",
    "--warm-up=100ms",
    "--shards=2",
    "--value-size=100",
    "--connections=1",
    "--output=json",
];

/// Slices that are soon over.
const SHORT: &str = "--duration=700ms";

/// How long the end of a process may take to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

fn kvbench(directory: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvbench"));
    command
        .arg("--kvnode")
        .arg(binaries::path("kvnode"))
        .arg("--dir")
        .arg(directory)
        .args(TINY)
        .args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("quorate-test-").tempdir().expect("a directory")
}

/// The processes that have this directory in their command line, but for `kvbench` itself: its
/// servers.
fn servers(directory: &Path) -> Vec<i32> {
    let place = format!("{}/kvbench-", directory.display());
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let of_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&place)
    };
    pids.filter(of_ours).collect()
}

fn assert_nothing_is_left(directory: &Path) {
    assert_eq!(servers(directory), [0; 0], "servers still run");
    let left: Vec<_> = fs::read_dir(directory).expect("the directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn list<'v>(of: &'v Value, name: &str) -> &'v Vec<Value> {
    of[name].as_array().unwrap_or_else(|| panic!("{name} is a list: {of}"))
}

/// Checks every figure of every slice, and that there are those of each contender.
fn assert_plausible(report: &Value, contenders: &[&str]) {
    let samples = list(report, "samples");
    // One load, and writes and reads by each number of clients.
    assert_eq!(samples.len(), contenders.len() * 5);
    for sample in samples {
        let name = sample["contender"].as_str().expect("a name");
        assert!(contenders.contains(&name), "{name}");
        let figure = |name: &str| {
            sample[name].as_f64().unwrap_or_else(|| panic!("{name} is a number: {sample}"))
        };
        let within = |name: &str, least: f64, most: f64| {
            let value = figure(name);
            assert!((least..=most).contains(&value), "{name} is {value}: {sample}");
        };
        let operation = sample["operation"].as_str().expect("a name");
        match operation {
            "load" => within("operations", 300.0, 300.0),
            _ => {
                within("operations", 10.0, 1e6);
                within("seconds", 0.7, 20.0);
            }
        }
        within("failed", 0.0, 0.0);
        let rate = figure("operations") / figure("seconds");
        assert!((figure("per_second") / rate - 1.0).abs() < 1e-6, "{sample}");
        within("p50_us", 20.0, 1e6);
        within("p99_us", figure("p50_us"), 1e7);
        // A load is over within a few ticks of the clock that counts processor time.
        let least = if operation == "load" { 0.0 } else { 1.0 };
        within("server_cpu_us", least, 1e5);
        within("client_cpu_us", least, 1e5);
        within("memory_bytes", 3e6, 1e10);
        within("disk_bytes", 3e4, 1e10);
        if operation == "get" {
            assert!(sample["syncs_per_write"].is_null(), "{sample}");
        } else {
            // One client's write waits for a majority, and the third node syncs it too, soon. Of
            // many writes one sync is shared.
            let least = if sample["clients"] == 1 { 1.5 } else { 0.02 };
            within("syncs_per_write", least, 4.0);
        }
    }
    let medians = list(report, "medians");
    assert_eq!(medians.len(), samples.len(), "of one round each is its own median");
    for (median, sample) in medians.iter().zip(samples) {
        for (name, value) in median.as_object().expect("an object") {
            let expected = &sample[name];
            assert!(
                value == expected || value.as_f64() == expected.as_f64(),
                "{name}: {value} is not {expected}"
            );
        }
    }
}

#[test]
fn ours_alone_is_measured_and_nothing_is_left() {
    let directory = directory();
    let output = kvbench(directory.path(), &["--without-etcd", "--log-store=file", SHORT])
        .output()
        .expect("kvbench runs");
    let report = json(&output);
    assert_plausible(&report, &["quorate_bare", "quorate_native"]);
    assert!(list(&report, "ratios").is_empty());
    assert_eq!(report["machine"]["etcd"], Value::Null);
    assert_eq!(report["machine"]["log_store"], "file");
    assert_eq!(report["plan"]["duration"], 0.7);
    assert_nothing_is_left(directory.path());
}

#[test]
fn etcd_is_measured_beside_ours() {
    if !needs::met("kvbench::etcd_is_measured_beside_ours", Need::Etcd) {
        return;
    }
    let directory = directory();
    let output = kvbench(directory.path(), &[SHORT]).output().expect("kvbench runs");
    let report = json(&output);
    assert_plausible(&report, &["quorate_bare", "quorate_native", "etcd"]);
    let version = report["machine"]["etcd"].as_str().expect("a version");
    assert!(version.starts_with("etcd Version: 3."), "{version}");
    let ratios = list(&report, "ratios");
    assert_eq!(ratios.len(), 2 * 5);
    let medians = list(&report, "medians");
    for ratio in ratios {
        let rate = |contender: &Value| {
            let same = |row: &&Value| {
                row["contender"] == *contender
                    && row["operation"] == ratio["operation"]
                    && row["clients"] == ratio["clients"]
            };
            let row = medians.iter().find(same).expect("its medians");
            row["per_second"].as_f64().expect("a number")
        };
        let expected = rate(&ratio["contender"]) / rate(&ratio["to"]);
        let median = ratio["per_second"]["median"].as_f64().expect("a number");
        assert!((median / expected - 1.0).abs() < 1e-6, "{ratio} is not {expected}");
    }
    assert_nothing_is_left(directory.path());
}

/// Starts a run that takes long, and waits until it measures.
fn started(directory: &Path) -> Child {
    let mut child =
        kvbench(directory, &["--without-etcd", "--duration=300s"]).spawn().expect("kvbench runs");
    let mut lines = BufReader::new(child.stderr.take().expect("it is a pipe"));
    let mut seen = String::new();
    while !seen.contains("load") {
        let length = lines.read_line(&mut seen).expect("lines");
        assert!(length > 0, "it ended: {seen}");
    }
    child.stderr = Some(lines.into_inner());
    assert_eq!(servers(directory).len(), 3, "the servers run");
    child
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id() as i32).expect("a process id is not 0");
    kill_process(pid, signal).expect("the process is this test's own");
}

#[test]
fn signals_end_the_servers_and_remove_their_data() {
    for sent in [Signal::INT, Signal::TERM] {
        let directory = directory();
        let mut child = started(directory.path());
        signal(&child, sent);
        let status = child.wait().expect("it is this test's child");
        assert_eq!(status.code(), Some(130), "{sent:?}");
        let mut error = String::new();
        let mut stderr = child.stderr.take().expect("it is a pipe");
        stderr.read_to_string(&mut error).expect("text");
        assert!(error.contains("kvbench: interrupted"), "{error}");
        assert_nothing_is_left(directory.path());
    }
}

#[test]
fn a_kill_of_kvbench_ends_our_servers() {
    let directory = directory();
    let mut child = started(directory.path());
    signal(&child, Signal::KILL);
    child.wait().expect("it is this test's child");
    until("the servers have ended", PATIENCE, || {
        servers(directory.path()).is_empty().then_some(())
    });
}

#[test]
fn what_cannot_be_is_a_sentence_and_a_code() {
    for (arguments, sentence) in [
        (&["--clients=0"][..], "'0' for '--clients"),
        (&["--clients=1,300"], "give --connections 2 or more"),
        (&["--value-size=8"], "8 is not in 16..=1048576"),
        (&["--duration=4"], "expected a duration from 1ms to 1h"),
        (&["--etcd=/none/etcd"], "there is no etcd at /none/etcd (--etcd)"),
        (&["--etcd=/none/etcd", "--without-etcd"], "cannot be used with"),
    ] {
        let directory = directory();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvbench"));
        let command = command.arg("--dir").arg(directory.path()).arg("--kvnode=/proc/self/exe");
        let output = command.args(arguments).output().expect("kvbench runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(sentence), "{arguments:?}: {error}");
    }
    // What only the node can refuse, it does in its own words.
    let directory = directory();
    let more = ["--without-etcd", "--log-store=rocks", SHORT];
    let output = kvbench(directory.path(), &more).output().expect("kvbench runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("of quorate ended by itself (exit status: 2)"), "{error}");
    assert!(error.contains("expected sled or file"), "{error}");
    assert_nothing_is_left(directory.path());
}
