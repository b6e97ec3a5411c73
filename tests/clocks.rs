//! One clock that is wrong stops no session write: every node mints sessions that every shard
//! accepts, whichever node leads it.

use std::process::Command;
use std::time::{Duration, Instant};

use quorate_client::Client;
use quorate_proto::v1::{OpenSessionRequest, PutRequest, Reason, WriteSession};
use quorate_tests::binaries;
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::raw::{CALL, failure, key_in, within};
use quorate_tests::{Cluster, ClusterOptions, until_async};

/// The node whose clock is wrong.
const OFF: u64 = 1;

/// By how much, in milliseconds: seconds, an hour, a year.
const OFFSETS_MS: [i64; 5] = [-3_000, 3_000, -3_600_000, 3_600_000, 365 * 24 * 3_600_000];

/// Writes of one run, half of them in sessions of their own.
const WRITES: u32 = 300;

/// Tasks that write at the same time.
const TASKS: u32 = 8;

/// A cluster for each offset, all at the same time: most of it is waiting for leaderships to come
/// back to the node that was started again. A worker for each, since some waits block.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn session_writes_continue_at_full_rate_through_every_node_whatever_one_clock_shows() {
    let runs = OFFSETS_MS.map(|offset| tokio::spawn(session_writes_continue(offset)));
    for run in runs {
        run.await.expect("it ends as it should");
    }
}

async fn session_writes_continue(offset: i64) {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    all_lead(&cluster).await;
    every_shard_takes_the_sessions_of_every_node(&cluster, 0).await;
    let sound = write_through_every_node(&cluster, 0).await;
    cluster.stop(OFF);
    cluster.start_node_with(OFF, &["--clock-offset-ms", &offset.to_string()]);
    cluster.wait_ready().await;
    all_lead(&cluster).await;
    every_shard_takes_the_sessions_of_every_node(&cluster, offset).await;
    the_clock_is_named(&cluster, offset).await;
    each_kvctl_writes_through_the_wrong_node(&cluster, offset);
    let took = write_through_every_node(&cluster, offset).await;
    eprintln!("{offset} ms off: {took:?}; no clock off: {sound:?}");
    assert!(took < sound * 10, "{offset} ms off: {took:?}, and with no clock off {sound:?}");
    cluster.wait_equal().await;
}

/// Waits until each node leads a shard, the one whose clock is off among them.
async fn all_lead(cluster: &Cluster) {
    until_async("every node leads a shard", TIMEOUT, || async {
        let leaders = cluster.leaders().await;
        let leads = |id: &u64| leaders.iter().any(|(shard, leader)| *shard != 0 && leader == id);
        cluster.ids().iter().all(leads).then_some(())
    })
    .await;
}

/// Without the client's retries: the first attempt in a new session is applied. A leader that was
/// just elected may have heard of one other clock only, and goes by the smaller of two; so this
/// holds once each leader has heard of all.
async fn every_shard_takes_the_sessions_of_every_node(cluster: &Cluster, offset: i64) {
    until_async("every shard takes the sessions of every node", TIMEOUT, || async {
        let refused = refused_first_attempts(cluster, offset).await;
        if !refused.is_empty() {
            eprintln!("{offset} ms off, (minted by, led by, reason): {refused:?}");
        }
        refused.is_empty().then_some(())
    })
    .await;
}

/// Of a session of each node at each shard those that are refused: (minted by, led by, reason).
async fn refused_first_attempts(cluster: &Cluster, offset: i64) -> Vec<(u64, u64, &'static str)> {
    let shards = ClusterOptions::default().shards;
    let leaders = cluster.leaders().await;
    let mut refused = Vec::new();
    for minter in cluster.ids() {
        let open = within(CALL, OpenSessionRequest::default());
        let session = cluster.kv(minter).open_session(open).await.expect("a session").into_inner();
        for shard in 1..=u64::from(shards) {
            let put = PutRequest {
                key: key_in(shard, shards, "raw").into(),
                value: offset.to_string().into(),
                session: Some(WriteSession {
                    id: session.session_id.clone(),
                    sequence: shard,
                    answered_below: 1,
                    last: false,
                }),
                ..PutRequest::default()
            };
            let answer = cluster.kv(leaders[&shard]).put(within(CALL, put)).await;
            if let Err(status) = answer {
                let reason = failure(&status).reason();
                assert_eq!(reason, Reason::SessionFromFuture, "{offset} ms off: {status}");
                refused.push((minter, leaders[&shard], reason.as_str_name()));
            }
        }
    }
    refused
}

/// By `kvctl status`, and in the log of every node.
async fn the_clock_is_named(cluster: &Cluster, offset: i64) {
    let side = if offset < 0 { "behind" } else { "ahead of" };
    until_async("status names the clock", TIMEOUT, || async {
        let status = cluster.kvctl(&["status"]);
        let text = String::from_utf8_lossy(&status.stdout);
        let named = text.lines().find(|line| line.contains("the clock of n"))?;
        let right = named.contains("the clock of n1 is") && named.contains(side);
        assert!(right, "{offset} ms off: {text}");
        Some(())
    })
    .await;
    until_async("every node warns", TIMEOUT, || async {
        let warned = |id: &u64| {
            let log = cluster.log(*id);
            log.lines().any(|line| line.contains("clock: off") && ahead_in(line, offset))
        };
        cluster.ids().iter().all(warned).then_some(())
    })
    .await;
}

/// Whether a line of a log says that the first node's clock is ahead by so much, more or less.
fn ahead_in(line: &str, offset: i64) -> bool {
    let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
    let ahead = line["ahead_ms"].as_i64().expect("a number");
    line["node"] == OFF && (ahead - offset).abs() < 1_000
}

/// Each call opens a session of its own, at the node whose clock is wrong.
fn each_kvctl_writes_through_the_wrong_node(cluster: &Cluster, offset: i64) {
    for number in 0..24 {
        let put = Command::new(binaries::path("kvctl"))
            .args(["--endpoints", &cluster.endpoint(OFF), "put", &format!("kvctl-{number}"), "v"])
            .output()
            .expect("kvctl starts");
        let said = String::from_utf8_lossy(&put.stderr);
        assert_eq!(put.status.code(), Some(0), "{offset} ms off, put {number}: {said}");
    }
}

/// How long it takes to write through clients that are given one node each.
async fn write_through_every_node(cluster: &Cluster, offset: i64) -> Duration {
    let begun = Instant::now();
    for id in cluster.ids() {
        let client = cluster.client_of(&[id]);
        let tasks: Vec<_> =
            (0..TASKS).map(|task| tokio::spawn(write(client.clone(), id, offset, task))).collect();
        for task in tasks {
            task.await.expect("every write is answered");
        }
    }
    begun.elapsed()
}

async fn write(client: Client, id: u64, offset: i64, task: u32) {
    for number in (task..WRITES / 3).step_by(TASKS as usize) {
        let put = client.put(format!("through-{id}-{number}"), offset.to_string());
        let put = if number % 2 == 0 { put } else { put.one_shot() };
        let answer = put.timeout(TIMEOUT).await;
        let answer = answer.unwrap_or_else(|error| panic!("{offset} ms off, n{id}: {error}"));
        assert!(answer.applied);
    }
}
