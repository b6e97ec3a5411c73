//! A hostile client: it does what no library would, by hand (`hostile/attack.py`), while honest
//! clients go on.

use std::process::Command;

use quorate_tests::binaries::{self, repository};
use quorate_tests::needs::{Need, met};
use quorate_tests::{Cluster, ClusterOptions};

/// What a node is given.
const MEMORY: &str = "128MiB";

/// What a node of three that is given [`MEMORY`] may take, in MiB, as `kvnode config show` says it:
/// 244. Measured were 48 with half-sent requests and unread answers, and 135 with unread scans.
fn may_take() -> u64 {
    let shown = Command::new(binaries::path("kvnode"))
        .args(["config", "show", "--data-dir=d", "--node-id=1", "--memory", MEMORY])
        .arg("--initial-cluster=1=a:7501,2=b:7501,3=c:7501")
        .output()
        .expect("kvnode starts");
    let shown = String::from_utf8_lossy(&shown.stdout);
    let beside = shown.lines().find_map(|line| line.strip_prefix("beside these"));
    let beside = beside.and_then(|rest| rest.split_whitespace().next());
    let mib = |size: &str| size.strip_suffix("MiB").and_then(|mib| mib.parse::<u64>().ok());
    let sum = beside.and_then(mib).zip(mib(MEMORY));
    sum.map(|(beside, given)| beside + given).unwrap_or_else(|| panic!("no such row:\n{shown}"))
}

/// Attacks a cluster of three nodes; the attack itself judges what its clients see.
async fn attack(case: &str) {
    let arguments = ["--memory", MEMORY].map(str::to_owned).to_vec();
    let options = ClusterOptions { shards: 4, arguments, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await;
    let before = cluster.leaders().await;
    let pids: Vec<String> = cluster.ids().iter().map(|id| cluster.pid(*id).to_string()).collect();
    let attack = Command::new("python3")
        .arg(repository().join("tests/hostile/attack.py"))
        .arg(case)
        .arg("--proto")
        .arg(repository().join("proto"))
        .args(["--endpoints", &cluster.endpoints(), "--pids", &pids.join(",")])
        .args(["--memory", &may_take().to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 starts");
    let said = String::from_utf8_lossy(&attack.stdout);
    let errors = String::from_utf8_lossy(&attack.stderr);
    println!("{said}");
    for id in cluster.ids() {
        assert!(!cluster.has_ended(id), "node {id} has ended\n{}", cluster.log(id));
        let log = cluster.log(id);
        assert!(!log.contains("panic"), "node {id}\n{log}");
    }
    assert_eq!(attack.status.code(), Some(0), "{said}{errors}");
    if case == "reuse" {
        assert_eq!(cluster.leaders().await, before, "leaders stay");
    }
    cluster.client().put("after", "all").await.expect("the cluster serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_sequence_is_refused_and_ends_no_leader() {
    if met("a_reused_sequence_is_refused_and_ends_no_leader", Need::PythonH2) {
        attack("reuse").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_given_up_together_cost_no_connection() {
    if met("calls_given_up_together_cost_no_connection", Need::PythonH2) {
        attack("cancel").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_and_unread_answers_take_no_memory() {
    if met("half_sent_requests_and_unread_answers_take_no_memory", Need::PythonH2) {
        attack("memory").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_not_read_refuses_no_writer() {
    if met("a_scan_that_is_not_read_refuses_no_writer", Need::PythonH2) {
        attack("unread-scan").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_fill_the_sessions_of_others() {
    if met("one_client_does_not_fill_the_sessions_of_others", Need::PythonH2) {
        attack("sessions").await;
    }
}
