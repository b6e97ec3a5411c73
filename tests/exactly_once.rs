//! Each write happens once, however often it has to be sent; and what is unknown can be settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_client::api::{
    CancelResult, Failure, IncrementRequest, IncrementResponse, OpenSessionRequest, Outcome,
    Reason, WriteSession,
};
use quorate_client::{Client, ClientConfig, Error, WriteId};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::raw::{CALL, within};
use quorate_tests::{Cluster, ClusterOptions, until_async};
use tokio::sync::Semaphore;

/// Increments in all.
const INCREMENTS: u64 = 10_000;

/// Counters that share them.
const COUNTERS: u64 = 8;

/// Tasks that increment at the same time; each client is shared by several.
const TASKS: u64 = 32;

/// Leaders killed meanwhile.
const KILLS: u64 = 6;

/// Increments that may be begun when a leader is killed, so that some are certainly under way.
const LEFT_AT_KILL: u64 = 600;

/// Long enough for an election on a machine that does much else besides.
const LONG: Duration = Duration::from_secs(30);

fn counter(number: u64) -> String {
    format!("counter-{}", number % COUNTERS)
}

fn patient(cluster: &Cluster) -> Client {
    let config =
        ClientConfig::new(cluster.endpoints().split(',')).expect("addresses are endpoints");
    Client::new(config.timeout(LONG))
}

/// Which shard a key belongs to, which node leads it.
async fn leader_of(cluster: &Cluster, client: &Client, key: &str) -> u64 {
    let location = client.locate(key.to_owned()).await.expect("the map is known");
    cluster.leader(location.shard).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_increments_through_killed_leaders_add_up() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let clients: Vec<Client> = (0..4).map(|_| patient(&cluster)).collect();
    let begun = Instant::now();
    // Increments are handed out in portions, one before each kill, so that no kill comes too late.
    let portion = INCREMENTS / (KILLS + 1);
    let allowed = Arc::new(Semaphore::new(portion as usize));
    let answered = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (allowed, answered) = (allowed.clone(), answered.clone());
            let client = clients[(task % 4) as usize].clone();
            tokio::spawn(async move {
                let mut sums = Vec::new();
                for number in (task..INCREMENTS).step_by(TASKS as usize) {
                    allowed.acquire().await.expect("it is never closed").forget();
                    let key = counter(number);
                    let added = client.increment(key.clone(), 1).await;
                    let added = added.unwrap_or_else(|error| panic!("{key}: {error}"));
                    assert!(added.applied);
                    sums.push((key, added.number));
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                sums
            })
        })
        .collect();

    for kill in 0..KILLS {
        let enough = (kill + 1) * portion - LEFT_AT_KILL;
        until_async("increments are answered", TIMEOUT, || async {
            (answered.load(Ordering::SeqCst) >= enough).then_some(())
        })
        .await;
        let victim = leader_of(&cluster, &clients[0], &counter(kill)).await;
        cluster.kill(victim);
        let before = answered.load(Ordering::SeqCst);
        assert!(before < (kill + 1) * portion, "kill {kill}: no increment was under way");
        cluster.start_node(victim);
        cluster.wait_ready().await;
        allowed.add_permits(portion as usize);
    }
    allowed.add_permits((INCREMENTS % (KILLS + 1)) as usize);

    let mut sums: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for task in tasks {
        for (key, sum) in task.await.expect("every increment is answered") {
            sums.entry(key).or_default().push(sum);
        }
    }
    eprintln!("{INCREMENTS} increments, {KILLS} killed leaders, {:?}", begun.elapsed());
    let mut total = 0;
    for (key, mut sums) in sums {
        let got = clients[0].get(key.clone()).await.expect("the cluster is whole");
        assert_eq!(got.value, sums.len().to_string(), "{key} was incremented so often");
        total += sums.len() as u64;
        // Each answer is a sum that no other increment was given: nothing happened twice or not.
        sums.sort_unstable();
        assert!(sums.iter().copied().eq(1..=sums.len() as i64), "{key}: {sums:?}");
    }
    assert_eq!(total, INCREMENTS);
    cluster.wait_equal().await;
}

/// A write that the leader takes and cannot answer.
async fn unknown_write(client: &Client, key: &str, value: &str) -> WriteId {
    // Shorter than it takes the others to elect another leader.
    let write = client.put(key.to_owned(), value.to_owned()).timeout(Duration::from_millis(300));
    match write.await {
        Err(Error::Unknown { write: Some(id), .. }) => id,
        other => panic!("{key}: the outcome should be unknown: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_settles_what_is_unknown() {
    let options = ClusterOptions { with_links: true, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await;
    let client = patient(&cluster);
    a_write_that_nobody_else_has_is_barred(&mut cluster, &client).await;
    a_write_that_the_others_have_is_answered(&cluster, &client).await;
    cluster.wait_ready().await;
    cluster.wait_equal().await;
}

async fn a_write_that_nobody_else_has_is_barred(cluster: &mut Cluster, client: &Client) {
    let key = "barred";
    let before = client.put(key, "before").await.expect("a put");
    let leader = leader_of(cluster, client, key).await;
    cluster.cut_off(leader);
    let id = unknown_write(client, key, "lost").await;
    cluster.kill(leader);
    cluster.reconnect(leader);

    let settled = client.cancel(key, &id).await.expect("two of three nodes settle it");
    assert_eq!(settled.result(), CancelResult::Barred, "{settled:?}");
    // The node that had taken it comes back and has to forget it.
    cluster.start_node(leader);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    let got = client.get(key).await.expect("a get");
    assert_eq!((&got.value[..], got.revision), (&b"before"[..], before.revision));
    // A client that sends it again learns that it was barred.
    match client.put(key, "lost").write_id(id.clone()).await {
        Err(Error::Refused(detail)) => {
            assert_eq!(detail.reason, Some(Reason::SequencePast), "{detail:?}");
        }
        other => panic!("a barred write was sent again: {other:?}"),
    }
    let again = client.cancel(key, &id).await.expect("asking twice does no harm");
    assert_eq!(again.result(), CancelResult::Barred);
    let got = client.get(key).await.expect("a get");
    assert_eq!((&got.value[..], got.revision), (&b"before"[..], before.revision));
}

async fn a_write_that_the_others_have_is_answered(cluster: &Cluster, client: &Client) {
    let key = "answered";
    let before = client.put(key, "before").await.expect("a put");
    let leader = leader_of(cluster, client, key).await;
    // What the leader sends arrives; that it arrived, the leader does not learn.
    cluster.hold_back(leader);
    let id = unknown_write(client, key, "kept").await;
    cluster.reconnect(leader);

    let settled = client.cancel(key, &id).await.expect("it can be settled");
    assert_eq!(settled.result(), CancelResult::Answered, "{settled:?}");
    assert!(settled.applied && settled.found && settled.revision > before.revision);
    let got = client.get(key).await.expect("a get");
    assert_eq!((&got.value[..], got.revision), (&b"kept"[..], settled.revision));
    // Sent again it is not applied again: the remembered answer comes back.
    let again = client.put(key, "kept").write_id(id.clone()).await.expect("a replay");
    assert!(again.applied && again.replayed, "{again:?}");
    assert_eq!(again.revision, settled.revision);
    let twice = client.cancel(key, &id).await.expect("asking twice does no harm");
    assert_eq!((twice.result(), twice.revision), (CancelResult::Answered, settled.revision));
}

/// The first write of a new session.
async fn new_session(cluster: &Cluster) -> WriteSession {
    let opened = cluster.kv(1).open_session(within(CALL, OpenSessionRequest::default())).await;
    let id = opened.expect("a session").into_inner().session_id;
    WriteSession { id, sequence: 1, answered_below: 1, last: false }
}

/// Adds 10 to a key under one number of one session, at one node.
async fn add_ten(
    cluster: &Cluster,
    node: u64,
    key: &str,
    session: &WriteSession,
    timeout: Duration,
) -> Result<IncrementResponse, Option<Failure>> {
    let increment = IncrementRequest {
        key: key.to_owned().into(),
        delta: 10,
        session: Some(session.clone()),
        ..IncrementRequest::default()
    };
    let answer = cluster.kv(node).increment(within(timeout, increment)).await;
    // A node that is silent says nothing of the outcome.
    let failure = |status: tonic::Status| Some(Failure::from_details(status.details())?.0);
    answer.map(tonic::Response::into_inner).map_err(failure)
}

/// Adds 100 with kvctl while the leader cannot commit; the command that asks again.
fn add_hundred_in_vain(cluster: &Cluster, key: &str, session: &WriteSession) -> Option<String> {
    let id: String = session.id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = format!("{id}/1");
    let words = ["--write-id", &id, "--timeout", "300ms", "incr", key, "100"];
    let output = cluster.kvctl(&words);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = told.lines().find(|line| line.contains("--write-id")).map(str::trim);
    (output.status.code() == Some(4)).then(|| line.expect(&told).to_owned())
}

/// The exit code of a command that was printed, and what it printed.
fn typed(command: &str) -> (Option<i32>, String) {
    let output = std::process::Command::new("sh").args(["-c", command]).output().expect("sh runs");
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&told).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_an_unknown_outcome_does_not_call_the_write_not_applied() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let client = patient(&cluster);
    let Alone { leader, others, key, session, command } = leader_alone(&cluster, &client).await;
    let key = key.as_str();
    // Once it knows that it has no followers it refuses: of the earlier attempt it knows nothing.
    let refused = until_async("the leader has stepped down", TIMEOUT, || async {
        let asked = add_ten(&cluster, leader, key, &session, Duration::from_secs(1)).await;
        let failure = asked.expect_err("no quorum");
        let outcome = failure.as_ref().map(Failure::outcome);
        assert_ne!(outcome, Some(Outcome::NotApplied), "{failure:?}");
        failure.filter(|failure| failure.reason() == Reason::NoLeader)
    })
    .await;
    assert_eq!(refused.outcome(), Outcome::AttemptNotApplied, "{refused:?}");
    let bare = IncrementRequest {
        key: key.to_owned().into(),
        delta: 1_000,
        ..IncrementRequest::default()
    };
    let status = cluster.kv(leader).increment(within(CALL, bare)).await.expect_err("no quorum");
    let (bare, _) = Failure::from_details(status.details()).expect("a node refused it");
    assert_eq!((bare.reason(), bare.outcome()), (Reason::NoLeader, Outcome::NotApplied));

    let write = WriteId { session: session.id.clone(), sequence: session.sequence };
    let again = client
        .increment(key.to_owned(), 10)
        .write_id(write.clone())
        .timeout(Duration::from_secs(1));
    let error = again.await.expect_err("no quorum");
    assert!(matches!(&error, Error::Unknown { write: Some(id), .. } if *id == write), "{error}");
    let (code, told) = typed(&command);
    assert_eq!(code, Some(4), "{told}");
    assert!(told.contains(&command), "it prints the same command again: {told}");

    for other in others {
        cluster.resume(other);
    }
    cluster.wait_ready().await;
    let sum = until_async("it is answered", TIMEOUT, || async {
        add_ten(&cluster, leader, key, &session, CALL).await.ok()
    })
    .await;
    assert!(sum.applied, "{sum:?}");
    let (code, told) = typed(&command.replace("--timeout 300ms", "--timeout 30s"));
    assert_eq!(code, Some(0), "{told}");
    let got = client.get(key.to_owned()).await.expect("a get");
    assert_eq!(got.value, "111", "each was applied once, the one that was refused not at all");
    cluster.wait_equal().await;
}

/// A leader whose followers are stopped, and which took two writes before it knew.
struct Alone {
    leader: u64,
    others: Vec<u64>,
    /// It was 1 before.
    key: String,
    /// What 10 was added with.
    session: WriteSession,
    /// Asks again whether 100 was added.
    command: String,
}

/// Stops the two followers of a shard, and lets the leader take an increment of 10, and one of 100
/// by kvctl, whose outcomes are then unknown.
async fn leader_alone(cluster: &Cluster, client: &Client) -> Alone {
    // On a machine that does much else the leader may have stepped down before kvctl had begun.
    for number in 0..5 {
        let key = format!("refused-again-{number}");
        client.increment(key.clone(), 1).await.expect("an increment");
        let (session, of_kvctl) = (new_session(cluster).await, new_session(cluster).await);
        let leader = leader_of(cluster, client, &key).await;
        let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        for other in &others {
            cluster.pause(*other);
        }
        let first = add_ten(cluster, leader, &key, &session, Duration::from_millis(300)).await;
        let first = first.expect_err("two of three are stopped");
        let unknown = first.is_none_or(|failure| failure.outcome() == Outcome::Unknown);
        let command = tokio::task::block_in_place(|| add_hundred_in_vain(cluster, &key, &of_kvctl));
        if let (Some(command), true) = (command, unknown) {
            return Alone { leader, others, key, session, command };
        }
        for other in others {
            cluster.resume(other);
        }
        cluster.wait_ready().await;
    }
    panic!("the leader always stepped down before it had taken both writes");
}
