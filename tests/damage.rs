//! Damage of a stopped node's files: said when the node starts again, never silent, never a panic,
//! and the others go on.

use std::fs;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use quorate_client::Client;
use quorate_proto::v1::{GetRequest, GetResponse, NodePhase, ReadLevel, Reason, ReplicaHealth};
use quorate_storage::keys::{after_row, row_prefix};
use quorate_storage::{
    Database, DatabaseOptions, LogBackend, NodeRecords, RecordLog, RecoveredGroup, RowKey, RowKind,
    Section, SectionKind,
};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::files::copy;
use quorate_tests::named::{check, fill};
use quorate_tests::raw::{CALL, at, failure, key_in, within};
use quorate_tests::{Cluster, ClusterOptions, Exit, until, until_async};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Code;

/// A stopped node's file, with some bits of it flipped.
fn flip(path: &Path, random: &mut StdRng, flips: usize) {
    let mut bytes = fs::read(path).expect("the file is there");
    // The file of the database is a few mebibytes, most of them zeros that were never written.
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    assert!(written > 0, "{} is empty", path.display());
    for _ in 0..flips {
        let at = random.random_range(0..written);
        bytes[at] ^= 1 << random.random_range(0..8);
    }
    fs::write(path, bytes).expect("the file is written");
}

const KEPT: u32 = 60;

fn kept(number: u32) -> (String, String) {
    (format!("kept-{number}"), format!("{number}:{}", "k".repeat(number as usize * 97 % 3_000)))
}

/// What became of a node whose files were damaged.
#[derive(Debug, PartialEq, Eq)]
enum Became {
    /// It ended with this code.
    Ended(i32),
    /// It stays up, live and not ready, and says why.
    Failed,
    /// It serves, and has everything.
    Whole,
    /// It serves, and knows that some of its replicas are damaged.
    PartlyDamaged,
}

/// Starts node 3 on what is left of its directory, and sees that no lie comes of it.
async fn outcome(cluster: &mut Cluster, what: &str) -> Became {
    cluster.start_node(3);
    let status = until_async(&format!("node 3 says how it stands ({what})"), TIMEOUT, || async {
        if cluster.has_ended(3) {
            return Some(None);
        }
        let status = cluster.status(3).await?;
        let settled = matches!(status.phase(), NodePhase::Ready | NodePhase::StorageFailed);
        settled.then_some(Some(status))
    })
    .await;
    let became = match status {
        None => match cluster.wait_end(3) {
            Exit::Code(code) => Became::Ended(code),
            Exit::Signal(signal) => panic!("{what}: node 3 died of signal {signal}"),
        },
        Some(status) if status.phase() == NodePhase::StorageFailed => {
            assert!(status.live && !status.ready, "{what}: {status:?}");
            assert!(status.detail.len() > 20, "{what}: {}", status.detail);
            println!("{what}: {}", status.detail);
            refuses(cluster, what).await;
            Became::Failed
        }
        Some(_) => no_silent_loss(cluster, what).await,
    };
    if let Became::Ended(code) = became {
        assert!([10, 12, 20, 21].contains(&code), "{what}: exit code {code}");
        let log = cluster.log(3);
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("exit_code") && last.len() > 100, "{what}: {last}");
    }
    became
}

/// A node whose storage did not open says so to a client that asks it for data, which then asks
/// another one.
async fn refuses(cluster: &Cluster, what: &str) {
    let request = GetRequest { key: kept(0).0.into(), ..GetRequest::default() };
    let status = cluster.kv(3).get(within(CALL, request)).await.expect_err("it has no storage");
    let reason = failure(&status).reason();
    assert_eq!((status.code(), reason), (Code::Unavailable, Reason::StorageFailed), "{what}");
}

/// Waits until each key is answered by node 3 as it was written, or its replica there says that it
/// is damaged.
async fn no_silent_loss(cluster: &Cluster, what: &str) -> Became {
    let waited = format!("node 3 has all keys or knows its damage ({what})");
    until_async(&waited, TIMEOUT, || async {
        let mut kv = cluster.kv(3);
        for number in 0..KEPT {
            let (key, value) = kept(number);
            let request =
                GetRequest { key: key.into(), read: at(ReadLevel::Stale), ..GetRequest::default() };
            match kv.get(within(CALL, request)).await.map(tonic::Response::into_inner) {
                Ok(GetResponse { found: true, value: got, .. }) if got == value => {}
                // Not a wrong value, ever; an absent key only until the loss is found out.
                Ok(GetResponse { found: false, .. }) => return None,
                Ok(other) => panic!("{what}: key {number} is {other:?}"),
                Err(status) => assert_eq!(
                    (status.code(), failure(&status).reason()),
                    (Code::DataLoss, Reason::ReplicaDamaged),
                    "{what}: {status:?}"
                ),
            }
        }
        let status = cluster.status(3).await?;
        let whole = status.replicas.len() == 3
            && status.replicas.iter().all(|replica| replica.health() == ReplicaHealth::Ok);
        Some(if whole { Became::Whole } else { Became::PartlyDamaged })
    })
    .await
}

/// A way to damage the files of a node.
type Damage = (&'static str, fn(&Path, &mut StdRng));

async fn damage_is_never_silent(store: &str, damages: &[Damage]) {
    let mut cluster = Cluster::start(ClusterOptions {
        shards: 2,
        arguments: vec!["--log-store".to_owned(), store.to_owned()],
        ..ClusterOptions::default()
    })
    .await;
    let client: Client = cluster.client();
    for number in 0..KEPT {
        let (key, value) = kept(number);
        client.put(key, value).await.expect("a put");
    }
    cluster.wait_equal().await;
    assert_eq!(cluster.stop(3), Exit::Code(0));
    let (data, pristine) = (cluster.node(3).data.clone(), cluster.directory().join("pristine"));
    copy(&data, &pristine);

    let mut told = 0;
    for (round, (what, damage)) in damages.iter().enumerate() {
        cluster.wipe(3);
        copy(&pristine, &data);
        damage(&data, &mut StdRng::seed_from_u64(round as u64));
        let before = cluster.log(3).len();
        let became = outcome(&mut cluster, what).await;
        println!("{store}: {what}: {became:?}");
        told += usize::from(became != Became::Whole);
        let log = cluster.log(3);
        let panicked = log[before..].lines().find(|line| {
            line.contains("panicked")
                && !line.contains("guarded section")
                && !line.contains("not opened")
        });
        assert!(panicked.is_none(), "{what}: {panicked:?}");
        let put = client.put("goes-on", round.to_string()).await;
        put.unwrap_or_else(|error| panic!("{what}: the others go on: {error}"));
        match became {
            // It has promised to remember more than the copy holds: the copy is out of date.
            Became::Whole => {
                cluster.wait_equal().await;
                assert_eq!(cluster.stop(3), Exit::Code(0));
                fs::remove_dir_all(&pristine).expect("removed");
                copy(&data, &pristine);
            }
            Became::PartlyDamaged => {
                cluster.kill(3);
                check_kept(&client).await;
                return;
            }
            Became::Failed => assert_eq!(cluster.stop(3), Exit::Code(0), "{what}"),
            // Others have heard of it since: the copy is out of date, and there is no newer one.
            Became::Ended(_) if log[before..].contains("\"peer: connected\"") => {
                check_kept(&client).await;
                return;
            }
            Became::Ended(_) => {}
        }
    }
    assert!(told > 0, "no damage was ever met");
    cluster.wipe(3);
    copy(&pristine, &data);
    cluster.start_node(3);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    check_kept(&client).await;
}

async fn check_kept(client: &Client) {
    for number in 0..KEPT {
        let (key, value) = kept(number);
        assert_eq!(client.get(key).await.expect("a read").value, value);
    }
}

fn flip_engine(data: &Path, random: &mut StdRng) {
    flip(&data.join("sled/db"), random, 1);
}

fn flip_engine_much(data: &Path, random: &mut StdRng) {
    flip(&data.join("sled/db"), random, 200);
}

fn flip_engine_config(data: &Path, random: &mut StdRng) {
    flip(&data.join("sled/conf"), random, 1);
}

fn flip_mark(data: &Path, random: &mut StdRng) {
    flip(&data.join("MARK"), random, 1);
}

fn break_mark(data: &Path, _: &mut StdRng) {
    let path = data.join("MARK");
    let length = fs::metadata(&path).expect("MARK is there").len() as usize;
    fs::write(path, vec![0x55; length]).expect("written");
}

fn remove_mark(data: &Path, _: &mut StdRng) {
    fs::remove_file(data.join("MARK")).expect("removed");
}

/// The files of the log, oldest first.
fn log_files(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("log")).expect("the log is there").flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "the log has files");
    files
}

fn flip_log(data: &Path, random: &mut StdRng) {
    flip(log_files(data).last().expect("checked"), random, 1);
}

fn flip_log_much(data: &Path, random: &mut StdRng) {
    flip(log_files(data).last().expect("checked"), random, 100);
}

fn cut_log(data: &Path, _: &mut StdRng) {
    let newest = log_files(data).pop().expect("checked");
    let bytes = fs::read(&newest).expect("read");
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    fs::write(&newest, &bytes[..written / 2]).expect("written");
}

fn remove_log(data: &Path, _: &mut StdRng) {
    for file in log_files(data) {
        fs::remove_file(file).expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_the_engines_files_is_never_silent_and_never_a_panic() {
    let mut damages: Vec<Damage> = vec![("one bit of sled/db", flip_engine); 8];
    damages.extend([
        ("many bits of sled/db", flip_engine_much as fn(&Path, &mut StdRng)),
        ("one bit of sled/conf", flip_engine_config),
        ("one bit of MARK", flip_mark),
        ("all of MARK", break_mark),
        ("MARK removed", remove_mark),
    ]);
    damage_is_never_silent("sled", &damages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_the_log_file_is_never_silent_and_never_a_panic() {
    let mut damages: Vec<Damage> = vec![("one bit of the log", flip_log); 3];
    damages.extend([
        ("many bits of the log", flip_log_much as fn(&Path, &mut StdRng)),
        ("half of the log", cut_log),
        ("the log removed", remove_log),
        // Without the log in it, the database holds the state and little else.
        ("one bit of the state", flip_engine),
        ("one bit of the state", flip_engine),
        ("one bit of the state", flip_engine),
        ("many bits of the state", flip_engine_much),
        ("one bit of MARK", flip_mark),
        ("MARK removed", remove_mark),
    ]);
    damage_is_never_silent("file", &damages).await;
}

/// Takes one row out of the state of a stopped node, so that only a comparison of the whole tree
/// with its header finds it, and makes its last run one that the machine's end cut off.
fn lose_in_power_cut(data: &Path, lost: &str) {
    let database =
        Database::open(&data.join("sled"), DatabaseOptions::default()).expect("it opens");
    let lost = RowKey::new(RowKind::User, 0, lost.as_bytes());
    let mut removed = 0;
    for name in database.tree_names().into_iter().filter(|name| name.starts_with(b"s")) {
        let tree = database.tree(&name).expect("a tree");
        let row = row_prefix(&lost)..after_row(&row_prefix(&lost));
        let keys: Vec<_> = tree.range(row).map(|entry| entry.expect("an entry").0).collect();
        for key in keys {
            tree.remove(&key).expect("removed");
            removed += 1;
        }
    }
    assert_eq!(removed, 1, "the row was in one tree, in one version, in one piece");
    let records = NodeRecords::open(&database).expect("the records");
    records.put("last-run", b"running another-boot").expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_took_is_found_before_it_is_served() {
    let mut cluster =
        Cluster::start(ClusterOptions { shards: 2, ..ClusterOptions::default() }).await;
    let client = cluster.client();
    let lost = "lost";
    client.put(lost, "one").await.expect("a put");
    // Of the same hash tag, so that the scrub of that shard takes its time.
    let others = (0..5_000).map(|number| {
        let put = client.put(format!("{{{lost}}}{number}"), vec![number as u8; 2_000]);
        async move { put.await.expect("a put") }
    });
    futures::stream::iter(others).buffer_unordered(64).collect::<Vec<_>>().await;
    cluster.wait_equal().await;
    assert_eq!(cluster.stop(3), Exit::Code(0));
    lose_in_power_cut(&cluster.node(3).data, lost);

    cluster.start_node(3);
    let healths = until_async("node 3 has compared all its replicas", TIMEOUT, || async {
        let key = lost.into();
        let read = GetRequest { key, read: at(ReadLevel::Stale), ..GetRequest::default() };
        // Another replica may answer for this one, but this one not before it is compared.
        if let Ok(answer) = cluster.kv(3).get(within(CALL, read)).await {
            let GetResponse { found, receipt, .. } = answer.into_inner();
            assert!(found, "an acknowledged write was denied");
            assert_ne!(receipt.expect("a receipt").node_id, 3, "it has lost the row");
        }
        let replicas = cluster.status(3).await?.replicas;
        let healths: Vec<_> = replicas.iter().map(|replica| replica.health()).collect();
        (healths.len() == 3 && !healths.contains(&ReplicaHealth::Scrubbing)).then_some(healths)
    })
    .await;
    let damaged = healths.iter().filter(|health| **health == ReplicaHealth::Damaged).count();
    assert_eq!(damaged, 1, "{healths:?}");
    until("node 3 shows its damaged replica as a metric", TIMEOUT, || {
        (cluster.metric(3, "quorate_replicas_damaged") == 1.0).then_some(())
    });
    assert_eq!(client.get(lost).await.expect("a read").value, "one", "the others serve it");
}

/// Changes what a killed node's record log holds of one shard: `change` says what is appended to
/// it. The log only grows by that, so the node's Hello reports no less than before, and no peer
/// refuses it.
fn append_to_log(
    data: &Path,
    shard: u64,
    change: impl FnOnce(&RecoveredGroup) -> Vec<SectionKind>,
) {
    let database =
        Database::open(&data.join("sled"), DatabaseOptions::default()).expect("it opens");
    let (mut log, groups) =
        RecordLog::open(LogBackend::Sled, &database, data).expect("the log opens");
    let of_shard = groups.iter().find(|((group, _), _)| group.0 == shard);
    let (&(group, replica), held) = of_shard.expect("the log holds the shard");
    let sections: Vec<Section> =
        change(held).into_iter().map(|kind| Section { group, replica, kind }).collect();
    log.append(&sections).expect("appended");
    log.close().expect("closed");
}

/// A shard that node 3 only follows.
async fn followed_by_3(cluster: &Cluster, shards: u32) -> u64 {
    until_async("node 3 follows a shard", TIMEOUT, || async {
        let leaders = cluster.leaders().await;
        (1..=u64::from(shards)).find(|shard| leaders.get(shard).is_some_and(|node| *node != 3))
    })
    .await
}

/// Entries that a replica forgets.
const FORGOTTEN: usize = 5;

/// A directory put back from an older copy is refused at its Hello, since its record log ends
/// before what it has reported (`copies.rs`). What a Hello cannot show is a disk that lost some of
/// what it was given and took what came later: the log is as long as it was, and one shard's
/// entries are not in it. Its leader knows them to be acknowledged and has nothing to send, so
/// while the shard takes no write only the follower's heartbeat answers show it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_what_it_acknowledged_is_found_out_while_nothing_is_written() {
    let shards = 2;
    let mut cluster = Cluster::start(ClusterOptions { shards, ..ClusterOptions::default() }).await;
    let shard = followed_by_3(&cluster, shards).await;
    let keys: Vec<String> =
        (0..10).map(|number| key_in(shard, shards, &format!("k{number}"))).collect();
    let client = cluster.client();
    for key in &keys {
        client.put(key.clone(), format!("value of {key}")).await.expect("a put");
    }
    cluster.wait_equal().await;
    assert_eq!(cluster.kill(3), Exit::Signal(9));
    append_to_log(&cluster.node(3).data, shard, |held| {
        assert!(held.entries.len() > FORGOTTEN + 1, "{} entries", held.entries.len());
        // An append drops what the log held behind it.
        let last = held.entries[held.entries.len() - 1 - FORGOTTEN].clone();
        let mut hard_state = held.hard_state;
        hard_state.commit = hard_state.commit.min(last.index);
        vec![SectionKind::HardState(hard_state), SectionKind::Append(vec![last])]
    });

    let leader = cluster.leader(shard).await;
    let before = cluster.log(leader).len();
    cluster.start_node(3);
    until_async("the leader says what node 3 lost", TIMEOUT, || async {
        let log = cluster.log(leader);
        let said =
            log[before..].lines().find(|line| line.contains("entries that it had acknow"))?;
        assert!(
            said.contains("\"node\":3") && said.contains(&format!("\"shard\":{shard},")),
            "{said}"
        );
        Some(())
    })
    .await;
    for key in &keys {
        until_async("node 3 answers a linearizable read of its own", TIMEOUT, || async {
            let read = at(ReadLevel::Linearizable);
            let request = GetRequest { key: key.clone().into(), read, ..GetRequest::default() };
            let got = cluster.kv(3).get(within(CALL, request)).await.ok()?.into_inner();
            assert_eq!(got.value, format!("value of {key}"));
            (got.receipt.expect("a receipt").node_id == 3).then_some(())
        })
        .await;
    }
    cluster.wait_ready().await;
    cluster.wait_equal().await;
}

/// What `kvctl status` says, and how `kvctl health` ends, which is the verdict.
fn verdict(cluster: &Cluster) -> (Option<i32>, String) {
    let (health, status) = (cluster.kvctl(&["health"]), cluster.kvctl(&["status"]));
    (health.status.code(), String::from_utf8_lossy(&status.stdout).into_owned())
}

/// One entry of a killed node's log is another one of the same length, as a replica would have it
/// that applied something else: its log is whole, and so are its rows and their digest.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_named_and_none_else() {
    let shards = 2;
    let mut cluster = Cluster::start(ClusterOptions { shards, ..ClusterOptions::default() }).await;
    let client = cluster.client();
    let shard = followed_by_3(&cluster, shards).await;
    let key = key_in(shard, shards, "differs");
    client.put(key.clone(), "what all have").await.expect("a put");
    // No alarm while entries are applied, and none when a node starts again.
    let load = tokio::spawn({
        let client = client.clone();
        async move { fill(&client, "load", 1_500).await }
    });
    let mut looks = 0;
    while !load.is_finished() || looks < 3 {
        let (code, text) = verdict(&cluster);
        assert!(code == Some(0) && !text.contains("DIVERGED"), "{code:?}: {text}");
        looks += 1;
    }
    load.await.expect("the load was written");
    cluster.kill(3);
    cluster.start_node(3);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    let (code, text) = verdict(&cluster);
    assert!(code == Some(0) && !text.contains("DIVERGED"), "{code:?}: {text}");

    assert_eq!(cluster.kill(3), Exit::Signal(9));
    let mut changed = 0;
    append_to_log(&cluster.node(3).data, shard, |held| {
        let (wanted, other) = (&b"what all have"[..], &b"what one has!"[..]);
        let mut from = held.entries.iter().cloned().skip_while(|entry| {
            !entry.payload.windows(wanted.len()).any(|window| window == wanted)
        });
        let mut first = from.next().expect("the log holds the entry");
        let mut payload = first.payload.to_vec();
        let place = payload.windows(wanted.len()).position(|window| window == wanted);
        let place = place.expect("found above");
        payload[place..place + wanted.len()].copy_from_slice(other);
        first.payload = payload.into();
        changed += 1;
        vec![SectionKind::Append(std::iter::once(first).chain(from).collect())]
    });
    assert_eq!(changed, 1);
    cluster.start_node(3);
    cluster.wait_ready().await;
    let (code, text) = until_async("the replicas are compared", TIMEOUT, || async {
        let (code, text) = verdict(&cluster);
        text.contains("DIVERGED").then_some((code, text))
    })
    .await;
    assert_eq!(code, Some(1), "{text}");
    let alarms: Vec<&str> = text.lines().filter(|line| line.contains("DIVERGED")).collect();
    let named = format!("DIVERGED: the replicas of shard {shard} differ at index ");
    for alarm in alarms {
        assert!(alarm.contains(&named) && alarm.contains("(n1 n2 | n3)"), "{text}");
        assert_eq!(alarm.matches("DIVERGED").count(), 1, "the other shards are equal: {text}");
    }
    check(&client, "load", 20).await;
}
