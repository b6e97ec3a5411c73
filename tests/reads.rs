//! What reads promise, kept under partition and pause: every level, from every node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::v1::{
    ClusterMap, GetMapRequest, GetRequest, GetResponse, MultiGetRequest, MultiGetResponse,
    MultiGetResult, PutRequest, PutResponse, ReadLevel, ReadOptions, Reason, Receipt, ScanRequest,
    ScanResponse, ScanRow, SessionToken, cluster_client::ClusterClient,
};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::raw::{CALL, at, failure, key_in, seen, within};
use quorate_tests::{Cluster, ClusterOptions, until, until_async};
use tonic::{Code, Status};

async fn get(
    cluster: &Cluster,
    id: u64,
    key: &str,
    read: Option<ReadOptions>,
    timeout: Duration,
) -> Result<GetResponse, Status> {
    let request = GetRequest { key: key.to_owned().into(), read, ..GetRequest::default() };
    cluster.kv(id).get(within(timeout, request)).await.map(|answer| answer.into_inner())
}

async fn put(cluster: &Cluster, id: u64, key: &str, value: &str) -> PutResponse {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    let answer = cluster.kv(id).put(within(CALL, request)).await;
    answer.unwrap_or_else(|status| panic!("node {id} takes a put: {status}")).into_inner()
}

fn receipt(answer: &GetResponse) -> &Receipt {
    answer.receipt.as_ref().expect("every answer has a receipt")
}

/// The index that a node's replica of a shard has applied.
async fn applied(cluster: &Cluster, id: u64, shard: u64) -> u64 {
    let status = cluster.status(id).await.expect("the node answers");
    let replica = status.replicas.iter().find(|replica| replica.shard == shard);
    replica.expect("the node holds a replica").applied
}

async fn map(cluster: &Cluster, id: u64) -> ClusterMap {
    let mut client = ClusterClient::new(cluster.channel(id));
    let answer = client.get_map(GetMapRequest::default()).await.expect("the node has a map");
    answer.into_inner().map.expect("it was asked for")
}

/// Some node that does not lead the shard.
async fn follower(cluster: &Cluster, shard: u64) -> u64 {
    let leader = cluster.leader(shard).await;
    cluster.ids().into_iter().find(|id| *id != leader).expect("there are others")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_cut_off_answers_stale_truthfully_and_refuses_linearizable() {
    let options = ClusterOptions { shards: 2, with_links: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await;
    let key = key_in(1, 2, "cut");
    put(&cluster, 1, &key, "old").await;
    cluster.wait_equal().await;
    let lonely = follower(&cluster, 1).await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != lonely).collect();
    cluster.cut_off(lonely);

    // At first it still believes in its leader, and cannot have it confirmed.
    let limit = Duration::from_secs(4);
    let asked = Instant::now();
    let early = get(&cluster, lonely, &key, None, limit).await.expect_err("no quorum confirms it");
    assert!(asked.elapsed() < limit + Duration::from_secs(1), "after {:?}", asked.elapsed());
    let early = failure(&early);
    assert!(matches!(early.reason(), Reason::NoLeader | Reason::ReadTimeout), "{early:?}");

    // The others go on without it.
    let newer = cluster.client_of(&others).put(key.clone(), "new").await.expect("a quorum is left");
    assert!(newer.applied);

    until_async("the lonely node knows that it hears no leader", TIMEOUT, || async {
        let status = cluster.status(lonely).await?;
        let replica = status.replicas.iter().find(|replica| replica.shard == 1)?;
        (replica.leader_node_id == 0).then_some(())
    })
    .await;
    for _ in 0..3 {
        let stale = get(&cluster, lonely, &key, at(ReadLevel::Stale), limit).await;
        let stale = stale.expect("a stale read always answers");
        assert_eq!(stale.value, "old");
        let receipt = receipt(&stale);
        assert_eq!((receipt.level(), receipt.node_id), (ReadLevel::Stale, lonely));
        assert_eq!((receipt.shard, receipt.age_bound), (1, None), "the age is not known");
        let holds = applied(&cluster, lonely, 1).await;
        assert!(receipt.index <= holds, "index {} of {holds} applied", receipt.index);
        assert!(receipt.index >= stale.revision && receipt.index < newer.revision, "{receipt:?}");

        let asked = Instant::now();
        let refused = get(&cluster, lonely, &key, None, limit).await.expect_err("linearizable");
        assert!(asked.elapsed() < limit, "refused after {:?}", asked.elapsed());
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let refused = failure(&refused);
        assert_eq!((refused.reason(), refused.shard), (Reason::NoLeader, 1), "{refused:?}");
        assert!(refused.message.contains("shard 1"), "{}", refused.message);
    }
    // A session read of what was seen here is served here; one of more cannot be, and says so.
    let own = get(&cluster, lonely, &key, at(ReadLevel::Stale), limit).await.expect("stale");
    let own = get(&cluster, lonely, &key, seen(own.token), limit).await.expect("what it holds");
    assert_eq!((&own.value[..], receipt(&own).node_id), (&b"old"[..], lonely));
    let ahead = get(&cluster, lonely, &key, seen(newer.token.clone()), limit).await;
    let ahead = failure(&ahead.expect_err("it never saw the newer write"));
    assert!(matches!(ahead.reason(), Reason::NoLeader | Reason::ReadTimeout), "{ahead:?}");

    cluster.reconnect(lonely);
    cluster.wait_ready().await;
    let again = get(&cluster, lonely, &key, None, CALL).await.expect("it hears the others again");
    assert_eq!((&again.value[..], receipt(&again).node_id), (&b"new"[..], lonely));
    let own = get(&cluster, lonely, &key, seen(newer.token), CALL).await.expect("it has caught up");
    assert_eq!((&own.value[..], receipt(&own).node_id), (&b"new"[..], lonely));
}

/// The bytes that wait unread in the sockets of a listening port, by the kernel's table.
fn unread(port: u16) -> u64 {
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table of sockets");
    let local = format!(":{port:04X}");
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == "01"
    };
    let waiting = table.lines().skip(1).filter(established).filter_map(|line| {
        let queues = line.split_whitespace().nth(4)?;
        u64::from_str_radix(queues.split_once(':')?.1, 16).ok()
    });
    waiting.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_never_answers_what_was_overwritten_meanwhile() {
    const ROUNDS: u32 = 6;
    let cluster = Cluster::start(ClusterOptions { shards: 1, ..ClusterOptions::default() }).await;
    let key = key_in(1, 1, "pause");
    put(&cluster, 1, &key, "0").await;
    let mut answered = 0;
    for round in 1..=ROUNDS {
        let leader = cluster.leader(1).await;
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let port: u16 = cluster.endpoint(leader).rsplit(':').next().unwrap().parse().unwrap();
        // The connection stands before the pause: a paused process completes no handshake of
        // HTTP/2.
        let mut paused = cluster.kv(leader);
        let ask = |level| GetRequest {
            key: key.clone().into(),
            read: at(level),
            ..GetRequest::default()
        };
        paused.get(ask(ReadLevel::Linearizable)).await.expect("the leader answers");

        cluster.pause(leader);
        let before = unread(port);
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let mut paused = paused.clone();
                let request = within(Duration::from_secs(25), ask(ReadLevel::Linearizable));
                tokio::spawn(async move { paused.get(request).await })
            })
            .collect();
        until("the reads lie in the socket of the paused leader", TIMEOUT, || {
            (unread(port) > before + 40).then_some(())
        });
        let value = round.to_string();
        let client = cluster.client_of(&others);
        let written = client.put(key.clone(), value.clone());
        let written = written.timeout(Duration::from_secs(20)).await.expect("the others go on");
        assert!(written.applied);
        assert!(waiting.iter().all(|read| !read.is_finished()), "a paused node answers nothing");
        cluster.resume(leader);
        for read in waiting {
            match read.await.expect("the read does not panic") {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    assert_eq!(answer.value, value, "round {round}: {:?}", answer.receipt);
                    assert!(receipt(&answer).index >= written.revision, "{:?}", answer.receipt);
                    answered += 1;
                }
                Err(status) => {
                    let failure = failure(&status);
                    let fair = matches!(failure.reason(), Reason::NoLeader | Reason::ReadTimeout);
                    assert!(fair, "round {round}: {failure:?}");
                }
            }
        }
        cluster.wait_ready().await;
    }
    assert!(answered > 0, "no round ended with an answer, so none could have been wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sees_its_own_write_at_a_follower_that_is_held_back() {
    let options = ClusterOptions { shards: 2, with_links: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await;
    let key = key_in(2, 2, "held");
    put(&cluster, 1, &key, "old").await;
    cluster.wait_equal().await;
    let behind = follower(&cluster, 2).await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != behind).collect();
    cluster.hold_back(behind);
    let written = cluster.client_of(&others).put(key.clone(), "new").await.expect("acknowledged");
    for _ in 0..3 {
        let asked = Instant::now();
        let limit = Duration::from_secs(3);
        let own = get(&cluster, behind, &key, seen(written.token.clone()), limit).await;
        let own = own.expect("a session sees its own write, from any node");
        assert!(asked.elapsed() < limit);
        assert_eq!((&own.value[..], own.revision), (&b"new"[..], written.revision));
        let from = receipt(&own);
        assert_eq!(from.level(), ReadLevel::Session);
        assert!(others.contains(&from.node_id), "the replica here cannot have it: {from:?}");
        assert!(from.index >= written.revision, "{from:?}");
        let stale = get(&cluster, behind, &key, at(ReadLevel::Stale), limit).await;
        let stale = stale.expect("a stale read always answers");
        assert_eq!((&stale.value[..], receipt(&stale).node_id), (&b"old"[..], behind));
        assert!(receipt(&stale).index < written.revision);
    }
    cluster.reconnect(behind);
    until_async("the replica itself serves the session", TIMEOUT, || async {
        let own = get(&cluster, behind, &key, seen(written.token.clone()), CALL).await.ok()?;
        assert_eq!(own.value, "new", "whichever node serves it");
        (receipt(&own).node_id == behind).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_serves_every_level_of_every_shard_and_refuses_what_is_not_offered() {
    let cluster = Cluster::start(ClusterOptions { shards: 4, ..ClusterOptions::default() }).await;
    let history = map(&cluster, 1).await.history;
    let mut written = BTreeMap::new();
    for shard in 1..=4 {
        let key = key_in(shard, 4, "level");
        let answer = put(&cluster, 1 + shard % 3, &key, &format!("in {shard}")).await;
        written.insert(key, (shard, answer));
    }
    cluster.wait_equal().await;
    for id in cluster.ids() {
        for (key, (shard, put)) in &written {
            let levels =
                [None, seen(put.token.clone()), at(ReadLevel::Stale), at(ReadLevel::Session)];
            for read in levels {
                let wanted = read.as_ref().map_or(ReadLevel::Linearizable, ReadOptions::level);
                let got = get(&cluster, id, key, read, CALL).await.expect("every node answers");
                assert!(got.found, "{key} at node {id}, {wanted:?}");
                assert_eq!(got.value, format!("in {shard}"));
                assert_eq!((got.revision, got.log_time), (put.revision, put.log_time));
                let receipt = receipt(&got);
                assert_eq!((receipt.level(), receipt.shard), (wanted, *shard));
                assert_eq!(receipt.node_id, id, "it holds a replica that can serve");
                assert!(receipt.index >= put.revision && receipt.term > 0, "{receipt:?}");
                assert!(receipt.map_epoch > 0 && receipt.history == history, "{receipt:?}");
                assert_eq!(receipt.age_bound, None, "ages are not known yet");
                let token = got.token.as_ref().expect("what was seen");
                assert_eq!((token.parts.len(), token.index_of(*shard)), (1, receipt.index));
            }
            let absent = get(&cluster, id, &format!("{{{key}}}none"), None, CALL).await;
            let absent = absent.expect("an absent key is an answer");
            assert!(!absent.found && absent.receipt.is_some() && absent.token.is_some());
        }
    }
    refusals(&cluster, &written).await;
}

/// What is refused of reads, and why, at the leader and at a follower.
async fn refusals(cluster: &Cluster, written: &BTreeMap<String, (u64, PutResponse)>) {
    let (key, (shard, put)) = written.first_key_value().expect("keys were written");
    let token = put.token.clone().expect("a token");
    let leader = cluster.leader(*shard).await;
    for id in [leader, cluster.ids().into_iter().find(|id| *id != leader).expect("others")] {
        let foreign = [
            SessionToken { cluster_id: vec![7; 16].into(), ..token.clone() },
            SessionToken { history: vec![7; 16].into(), ..token.clone() },
        ];
        for token in foreign {
            let refused =
                get(cluster, id, key, seen(Some(token)), CALL).await.expect_err("foreign");
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert_eq!(failure(&refused).reason(), Reason::TokenForeign);
        }
        let mut ahead = token.clone();
        ahead.parts[0].index += 1_000_000;
        let limit = Duration::from_secs(3);
        let asked = Instant::now();
        let refused = get(cluster, id, key, seen(Some(ahead)), limit).await.expect_err("ahead");
        assert_eq!(refused.code(), Code::FailedPrecondition, "node {id}: {refused:?}");
        assert_eq!(failure(&refused).reason(), Reason::TokenAhead);
        assert!(asked.elapsed() < limit, "after {:?}", asked.elapsed());
        // An older map epoch in a token, and one that this node has not heard of, are no reason.
        for map_epoch in [0, 1_000_000] {
            let token = SessionToken { map_epoch, ..token.clone() };
            let got = get(cluster, id, key, seen(Some(token)), CALL).await.expect("it may be read");
            assert_eq!(got.revision, put.revision);
        }
        for level in [ReadLevel::Lease, ReadLevel::Bounded] {
            let refused = get(cluster, id, key, at(level), CALL).await.expect_err("no ages yet");
            assert_eq!(refused.code(), Code::Unimplemented);
            assert_eq!(failure(&refused).reason(), Reason::NotOffered, "{level:?}");
        }
        let unknown = ReadOptions { level: 99, ..ReadOptions::default() };
        let refused = get(cluster, id, key, Some(unknown), CALL).await.expect_err("no such level");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let refused = failure(&refused);
        assert_eq!((refused.reason(), &refused.field[..]), (Reason::BadLevel, "read.level"));
    }
}

/// One call of MultiGet, whole: its results and its last message.
async fn multi_get(
    cluster: &Cluster,
    id: u64,
    keys: &[String],
    read: Option<ReadOptions>,
) -> Result<(Vec<MultiGetResult>, MultiGetResponse), Status> {
    let keys = keys.iter().map(|key| key.clone().into()).collect();
    let request = MultiGetRequest { keys, read, ..MultiGetRequest::default() };
    let mut stream = cluster.kv(id).multi_get(within(CALL, request)).await?.into_inner();
    let mut results = Vec::new();
    let mut last = None;
    while let Some(mut message) = stream.message().await? {
        assert!(last.is_none(), "nothing follows the message with the token");
        results.append(&mut message.results);
        last = message.token.is_some().then_some(message);
    }
    Ok((results, last.expect("the last message carries the token")))
}

/// With one replica a shard, half of the keys are on the other node, whichever is asked.
#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_read_in_their_order_from_every_node_at_every_level() {
    const SHARDS: u64 = 8;
    for replicas in [1, 3] {
        let options = ClusterOptions {
            nodes: 3,
            shards: SHARDS as u32,
            arguments: vec!["--replicas".to_owned(), replicas.to_string()],
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::start(options).await;
        let client = cluster.client();
        let value = |number: u64| format!("{number}").repeat(40_000);
        for number in 0..60 {
            client.put(format!("many-{number}"), value(number)).await.expect("a put");
        }
        if replicas > 1 {
            cluster.wait_equal().await;
        }
        // Backwards, each fifth one twice, with absent ones between.
        let mut keys = Vec::new();
        for number in (0..60).rev() {
            keys.push(format!("many-{number}"));
            match number % 5 {
                0 => keys.push(format!("many-{number}")),
                1 => keys.push(format!("absent-{number}")),
                _ => {}
            }
        }
        for id in cluster.ids() {
            for read in [None, seen(Some(client.token())), at(ReadLevel::Stale)] {
                let wanted = read.as_ref().map_or(ReadLevel::Linearizable, ReadOptions::level);
                let (results, last) =
                    multi_get(&cluster, id, &keys, read).await.expect("every node answers");
                assert_eq!(results.len(), keys.len());
                for (key, result) in keys.iter().zip(&results) {
                    assert_eq!(result.failure, None, "{key} at node {id}, {wanted:?}");
                    let number = key.strip_prefix("many-").map(|n| n.parse().expect("a number"));
                    let expected = number.map_or_else(String::new, value);
                    assert!(result.value == expected, "{key} at node {id}, {wanted:?}");
                    assert_eq!(
                        (result.found, result.revision > 0),
                        (number.is_some(), result.found)
                    );
                }
                let shards: Vec<u64> = last.receipts.iter().map(|receipt| receipt.shard).collect();
                assert_eq!(shards, (1..=SHARDS).collect::<Vec<_>>(), "one receipt for each");
                assert!(last.receipts.iter().all(|receipt| receipt.level() == wanted));
                let served: BTreeSet<u64> = last.receipts.iter().map(|r| r.node_id).collect();
                assert_eq!(served.len() > 1, replicas == 1, "node {id}: {served:?}");
                let token = last.token.expect("what was seen");
                for receipt in &last.receipts {
                    assert!(token.index_of(receipt.shard) >= receipt.index, "{receipt:?}");
                }
            }
        }
        let got = client.multi_get(keys.clone()).await;
        assert!(got.iter().all(Result::is_ok) && got.len() == keys.len());
        if replicas > 1 {
            continue;
        }
        // The keys of a node that is gone fail by themselves, and the others are answered.
        cluster.kill(3);
        let map = map(&cluster, 1).await;
        let gone =
            |key: &String| map.shard_of(key.as_bytes()).expect("it").replicas[0].node_id == 3;
        let (results, _) = multi_get(&cluster, 1, &keys, None).await.expect("it is answered");
        for (key, result) in keys.iter().zip(&results) {
            match &result.failure {
                None => assert!(!gone(key) && result.found == key.starts_with("many-"), "{key}"),
                Some(failure) => {
                    assert!(gone(key), "{key}: {failure:?}");
                    let fair = matches!(failure.reason(), Reason::NoLeader | Reason::ReadTimeout);
                    assert!(fair, "{key}: {failure:?}");
                }
            }
        }
        assert!(keys.iter().any(gone), "node 3 has keys");
    }
}

/// One call of a scan, whole: its rows and its last message.
async fn scan(
    cluster: &Cluster,
    id: u64,
    request: ScanRequest,
    timeout: Duration,
) -> Result<(Vec<ScanRow>, ScanResponse), Status> {
    let mut stream = cluster.kv(id).scan(within(timeout, request)).await?.into_inner();
    let mut rows = Vec::new();
    let mut last = None;
    while let Some(mut message) = stream.message().await? {
        assert!(last.is_none(), "nothing follows the message with the receipts");
        rows.append(&mut message.rows);
        if !message.receipts.is_empty() {
            last = Some(message);
        }
    }
    Ok((rows, last.expect("the last message carries the receipts")))
}

type Row = (Bytes, Bytes);

fn pairs(rows: &[ScanRow]) -> Vec<Row> {
    rows.iter().map(|row| (row.key.clone(), row.value.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_gives_what_was_put_in_every_shape_from_every_node() {
    const SHARDS: u32 = 4;
    let options = ClusterOptions { shards: SHARDS, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await;
    let client = cluster.client();
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    for number in 0..60u32 {
        let key = match number % 3 {
            0 => format!("a/{number:03}").into(),
            1 => format!("b/{number:03}").into(),
            // Bytes that are no text, and the greatest ones.
            _ => Bytes::from(vec![0xff, number as u8, 0]),
        };
        let value = Bytes::from(format!("value {number}"));
        client.put(key.clone(), value.clone()).await.expect("put");
        model.insert(key, value);
    }
    for gone in ["a/000", "b/001"] {
        client.delete(gone).await.expect("delete");
        model.remove(gone.as_bytes());
    }
    cluster.wait_equal().await;
    let all: Vec<Row> = model.into_iter().collect();
    for id in cluster.ids() {
        for level in [ReadLevel::Linearizable, ReadLevel::Session, ReadLevel::Stale] {
            let base = ScanRequest { read: at(level), ..ScanRequest::default() };
            shapes(&cluster, id, base, &all, SHARDS).await;
        }
    }
    pages(&cluster, &all).await;
}

async fn shapes(cluster: &Cluster, id: u64, base: ScanRequest, all: &[Row], shards: u32) {
    let level = base.read.as_ref().map(ReadOptions::level);
    let run = |request| async move { scan(cluster, id, request, CALL).await.expect("a scan") };
    let (rows, last) = run(base.clone()).await;
    assert_eq!(pairs(&rows), all, "node {id}, {level:?}");
    assert_eq!((last.count, last.next_page_token.len()), (all.len() as u64, 0));
    let touched: BTreeSet<u64> = last.receipts.iter().map(|receipt| receipt.shard).collect();
    assert_eq!(touched, (1..=u64::from(shards)).collect(), "every shard");
    assert_eq!(last.receipts.len(), touched.len(), "and each has one receipt");
    let token = last.token.as_ref().expect("what was seen");
    for receipt in &last.receipts {
        assert_eq!(Some(receipt.level()), level);
        assert_eq!(token.index_of(receipt.shard), receipt.index);
        assert!(receipt.index > 0 && receipt.term > 0 && receipt.map_epoch > 0, "{receipt:?}");
    }

    let mut reversed = all.to_vec();
    reversed.reverse();
    let (rows, _) = run(ScanRequest { reverse: true, ..base.clone() }).await;
    assert_eq!(pairs(&rows), reversed);

    let with_b: Vec<Row> = all.iter().filter(|(key, _)| key.starts_with(b"b/")).cloned().collect();
    let (rows, _) = run(ScanRequest { prefix: "b/".into(), ..base.clone() }).await;
    assert_eq!(pairs(&rows), with_b);
    // A prefix of the greatest byte has no key behind it.
    let (rows, _) = run(ScanRequest { prefix: vec![0xff].into(), ..base.clone() }).await;
    assert!(rows.len() == 20 && rows.iter().all(|row| row.key[0] == 0xff));

    let range = ScanRequest { start: "a/010".into(), end: "b/020".into(), ..base.clone() };
    let within: Vec<Row> = all
        .iter()
        .filter(|(key, _)| key[..] >= b"a/010"[..] && key[..] < b"b/020"[..])
        .cloned()
        .collect();
    let (rows, _) = run(range.clone()).await;
    assert_eq!(pairs(&rows), within);
    let (rows, last) = run(ScanRequest { reverse: true, limit: 5, ..range.clone() }).await;
    let downwards: Vec<Row> = within.iter().rev().take(5).cloned().collect();
    assert_eq!(pairs(&rows), downwards);
    assert!(last.next_page_token.is_empty(), "the limit is the end, not a page");

    let (rows, last) = run(ScanRequest { count_only: true, ..range.clone() }).await;
    assert_eq!((rows.len(), last.count), (0, within.len() as u64));
    let (rows, _) = run(ScanRequest { keys_only: true, ..range }).await;
    assert!(rows.iter().all(|row| row.value.is_empty() && row.revision > 0));
    let keys: Vec<_> = rows.into_iter().map(|row| row.key).collect();
    assert_eq!(keys, within.into_iter().map(|(key, _)| key).collect::<Vec<_>>());
}

/// A call with little time ends early with a page token, as one with a size of its page does; the
/// next one may go to another node.
async fn pages(cluster: &Cluster, all: &[Row]) {
    let mut request =
        ScanRequest { page_size: 7, limit: 33, read: at(ReadLevel::Stale), ..Default::default() };
    let (mut rows, mut sizes) = (Vec::new(), Vec::new());
    for id in cluster.ids().into_iter().cycle() {
        let page = scan(cluster, id, request.clone(), CALL).await;
        let (mut more, last) = page.expect("a page");
        sizes.push(more.len());
        rows.append(&mut more);
        if last.next_page_token.is_empty() {
            break;
        }
        request.page_token = last.next_page_token;
    }
    assert_eq!(sizes, [7, 7, 7, 7, 5]);
    assert_eq!(pairs(&rows), all[..33]);
    for (reverse, limit) in [(false, 0), (true, 0), (false, 12)] {
        let mut request =
            ScanRequest { reverse, limit, read: at(ReadLevel::Stale), ..ScanRequest::default() };
        let mut rows = Vec::new();
        let (mut calls, started) = (0, Instant::now());
        for id in cluster.ids().into_iter().cycle() {
            assert!(started.elapsed() < TIMEOUT, "{} rows in {calls} pages", rows.len());
            // On a machine that is busy elsewhere so short a call may not even begin.
            let page = scan(cluster, id, request.clone(), Duration::from_millis(45)).await;
            let Ok((mut more, last)) = page else { continue };
            calls += 1;
            rows.append(&mut more);
            if last.next_page_token.is_empty() {
                break;
            }
            request.page_token = last.next_page_token;
        }
        let mut expected = all.to_vec();
        if reverse {
            expected.reverse();
        }
        if limit != 0 {
            expected.truncate(limit as usize);
        }
        assert_eq!(pairs(&rows), expected, "reverse {reverse}, limit {limit}");
        assert!(calls > 1, "the scan came in one page");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_while_writing_never_tears_a_batch() {
    const KEYS: usize = 6;
    let cluster = Cluster::start(ClusterOptions { shards: 2, ..ClusterOptions::default() }).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (client, stop) = (cluster.client(), stop.clone());
        tokio::spawn(async move {
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let mut batch = client.batch();
                for key in 0..KEYS {
                    // Of different length each time, so that rows move in what holds them.
                    let value = format!("{number}:{}", "x".repeat(number as usize * 37 % 900));
                    batch = batch.put(format!("{{torn}}{key}"), value);
                }
                batch.await.expect("the batch is acknowledged");
            }
            number
        })
    };
    until_async("the first batch", TIMEOUT, || async {
        get(&cluster, 1, "{torn}0", None, CALL).await.ok().filter(|got| got.found)
    })
    .await;
    let mut seen_values = BTreeSet::new();
    let started = Instant::now();
    while seen_values.len() < 40 || started.elapsed() < Duration::from_secs(3) {
        assert!(started.elapsed() < TIMEOUT, "only {} batches were seen", seen_values.len());
        for (id, level) in cluster.ids().into_iter().flat_map(|id| {
            [ReadLevel::Linearizable, ReadLevel::Stale].map(move |level| (id, level))
        }) {
            let reverse = seen_values.len() % 2 == 1;
            let prefix = Bytes::from_static(b"{torn}");
            let request =
                ScanRequest { prefix, reverse, read: at(level), ..ScanRequest::default() };
            let (rows, last) = scan(&cluster, id, request, CALL).await.expect("a scan");
            if rows.is_empty() && level == ReadLevel::Stale {
                continue;
            }
            assert_eq!(rows.len(), KEYS, "all of a batch or nothing");
            let whole = rows
                .iter()
                .all(|row| row.revision == rows[0].revision && row.value == rows[0].value);
            assert!(whole, "node {id}, {level:?}: a batch is torn: {rows:?}");
            let at = last.receipts.iter().map(|receipt| receipt.index).max();
            assert!(at >= Some(rows[0].revision), "the receipt is older than what it is for");
            seen_values.insert(rows[0].revision);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.expect("no batch failed");
    assert!(written >= 40, "{written} batches");
}

/// With 32 shards on the other node and rows of more than the window of a connection, one stream
/// that waits must not hold up the others, nor the writes beside them.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_over_many_shards_of_another_node_ends_and_holds_up_no_write() {
    const ROWS: usize = 160;
    let options = ClusterOptions {
        nodes: 2,
        shards: 64,
        arguments: vec!["--replicas".to_owned(), "1".to_owned()],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await;
    let client = cluster.client();
    let puts = (0..ROWS).map(|row| {
        let put = client.put(format!("row-{row}"), vec![7; 256 << 10]).timeout(TIMEOUT);
        async move { put.await.map(drop) }
    });
    futures::future::try_join_all(puts).await.expect("the rows are written");
    assert_eq!(client.scan().prefix("row-").collect().await.expect("it is whole").len(), ROWS);
    let writing = Arc::new(AtomicBool::new(true));
    let writes = tokio::spawn({
        let (client, writing) = (cluster.client(), Arc::clone(&writing));
        async move {
            let mut written = 0;
            while writing.load(Ordering::Relaxed) {
                let put = client.put(format!("beside-{}", written % 64), "x").timeout(TIMEOUT);
                put.await.expect("writes go on beside scans");
                written += 1;
            }
            written
        }
    });
    for id in cluster.ids() {
        let request = ScanRequest { prefix: "row-".into(), ..ScanRequest::default() };
        // A page holds less than all rows; with the fault none came at all.
        let scans = (0..3).map(|_| scan(&cluster, id, request.clone(), CALL));
        for page in futures::future::join_all(scans).await {
            let (rows, _) = page.expect("the scan ends");
            assert!(!rows.is_empty(), "node {id}");
        }
        let count = ScanRequest { count_only: true, ..request };
        let (_, last) = scan(&cluster, id, count, CALL).await.expect("the scan ends");
        assert!(last.count > 0);
    }
    writing.store(false, Ordering::Relaxed);
    assert!(writes.await.expect("the writer ends") > 0);
}
