//! MultiGet over the services of a node alone, and of one that passes it on.

use quorate_proto::hash::key_hash;
use quorate_proto::v1::{
    MultiGetRequest, MultiGetResponse, MultiGetResult, ReadLevel, ReadOptions, RouteHint,
};
use quorate_raft::Index;
use tonic::Status;

use super::*;
use crate::multi_get::multi_get;

fn keys<K: Into<Bytes>>(keys: impl IntoIterator<Item = K>) -> MultiGetRequest {
    let keys = keys.into_iter().map(Into::into).collect();
    MultiGetRequest { keys, ..MultiGetRequest::default() }
}

fn at(level: ReadLevel, token: Option<SessionToken>) -> Option<ReadOptions> {
    Some(ReadOptions { level: level as i32, token, ..ReadOptions::default() })
}

async fn begin(
    kv: &KvService,
    request: MultiGetRequest,
) -> Result<crate::context::Answers<MultiGetResponse>, Status> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(5));
    kv.multi_get(request).await.map(tonic::Response::into_inner)
}

/// Reads an answer whole: its results, how many each message has, and the last message.
async fn whole(
    mut answers: impl Stream<Item = Result<MultiGetResponse, impl std::fmt::Debug>> + Unpin,
) -> (Vec<MultiGetResult>, Vec<usize>, MultiGetResponse) {
    let (mut results, mut sizes, mut last) = (Vec::new(), Vec::new(), None);
    while let Some(message) = answers.next().await {
        let mut message = message.expect("a message");
        assert!(last.is_none(), "a message after the last one");
        let bytes = prost::Message::encoded_len(&message);
        assert!(bytes <= 1 << 20 || message.results.len() == 1, "{bytes} bytes");
        sizes.push(message.results.len());
        results.append(&mut message.results);
        if message.token.is_some() {
            last = Some(message);
        } else {
            assert!(message.receipts.is_empty());
        }
    }
    (results, sizes, last.expect("a last message"))
}

async fn read(kv: &KvService, request: MultiGetRequest) -> (Vec<MultiGetResult>, MultiGetResponse) {
    let (results, _, last) = whole(begin(kv, request).await.expect("it begins")).await;
    (results, last)
}

fn refusal(refused: Result<impl Sized, Status>) -> Failure {
    let status = refused.err().expect("it is refused");
    Failure::from_details(status.details()).expect("a failure of ours").0
}

#[test]
fn keys_are_answered_in_their_order_at_each_level_here_and_through_another_node() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        for n in 0..4 {
            holder.put(&format!("key{n}"), format!("value{n}").into()).await;
        }
        holder.put("empty", vec![]).await;
        let order = ["key3", "none", "key0", "key3", "empty", "key2", "never", "key1"];
        let values = ["value3", "-", "value0", "value3", "", "value2", "-", "value1"];
        let (_, seen) = read(&holder.kv, keys(["key0"])).await;
        let levels = [
            None,
            at(ReadLevel::Linearizable, None),
            at(ReadLevel::Session, seen.token),
            at(ReadLevel::Stale, None),
        ];
        for node in [&holder, &asked] {
            let forwarded = asked.shared.metrics.calls.forwarded.get();
            for level in &levels {
                let request = MultiGetRequest { read: level.clone(), ..keys(order) };
                let (results, last) = read(&node.kv, request).await;
                let found: Vec<_> = results
                    .iter()
                    .map(|result| match result.found {
                        true => std::str::from_utf8(&result.value).expect("text"),
                        false => "-",
                    })
                    .collect();
                assert_eq!(found, values, "{level:?}");
                for result in &results {
                    assert_eq!(result.failure, None);
                    let written = [result.revision, result.create_revision, result.log_time];
                    assert!(written.iter().all(|part| (*part > 0) == result.found), "{result:?}");
                }
                let [receipt] = &last.receipts[..] else { panic!("{:?}", last.receipts) };
                let wanted = level.as_ref().map_or(ReadLevel::Linearizable, ReadOptions::level);
                assert_eq!((receipt.level(), receipt.shard, receipt.node_id), (wanted, 1, 1));
                let token = last.token.expect("a token");
                assert_eq!(token.index_of(1), receipt.index);
                assert_eq!((token.parts.len(), &token.cluster_id[..]), (1, &CLUSTER[..]));
            }
            let passed_on = asked.shared.metrics.calls.forwarded.get() - forwarded;
            let expected = if node.shared.node == NodeId(2) { levels.len() as u64 } else { 0 };
            assert_eq!(passed_on, expected, "one call for each shard, not for each key");
        }
        let (results, last) = read(&asked.kv, MultiGetRequest::default()).await;
        assert_eq!((results.len(), last.receipts.len()), (0, 0), "no keys are no error");

        let too_far = Context { hops: HOPS_MAX, ..context("5S") };
        let far = multi_get(&asked.shared, &too_far, None, keys(["key0"]), None);
        let (results, _, last) = whole(Box::pin(far.expect("it begins"))).await;
        let failure = results[0].failure.as_ref().expect("it goes no further");
        assert_eq!((failure.reason(), failure.shard), (Reason::NoLeader, 1), "{failure:?}");
        assert!(last.receipts.is_empty(), "no shard was read");
        server.abort();
        asked.stop();
        holder.stop();
    });
}

#[test]
fn large_values_and_many_keys_come_in_messages_of_a_mebibyte() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        for n in 0..4 {
            holder.put(&format!("large{n}"), vec![n; 700_000]).await;
        }
        holder.put("small", vec![9; 100]).await;
        let order = ["large0", "small", "large1", "large1", "none", "large2", "large3"];
        let many: Vec<String> = (0..5_000).map(|n| format!("none{n}")).collect();
        for kv in [&holder.kv, &asked.kv] {
            let answers = begin(kv, keys(order)).await.expect("it begins");
            let (results, sizes, _) = whole(answers).await;
            assert_eq!(sizes, [2, 1, 2, 1, 1]);
            for (key, result) in order.iter().zip(&results) {
                let first = key.strip_prefix("large").map(|n| n.parse::<u8>().expect("a number"));
                let expected = if *key == "small" { Some(9) } else { first };
                assert_eq!(result.value.first().copied(), expected, "{key}");
            }
            let answers = begin(kv, keys(many.clone())).await.expect("it begins");
            let (results, sizes, _) = whole(answers).await;
            assert_eq!(results.len(), many.len());
            assert_eq!(sizes, [4_096, 904], "absent keys take memory too");
            assert!(results.iter().all(|result| !result.found && result.failure.is_none()));
        }
        server.abort();
        asked.stop();
        holder.stop();
    });
}

/// More calls than the node has places for reads, none of which is read.
#[test]
fn a_reader_that_stands_still_holds_no_place_and_no_thread() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        for n in 0..4 {
            holder.put(&format!("large{n}"), vec![n; 700_000]).await;
        }
        let order: Vec<String> = (0..4).map(|n| format!("large{n}")).collect();
        for node in [&holder, &asked] {
            let reads = &node.shared.admission.reads;
            let mut unread = Vec::new();
            for _ in 0..reads.limit() + 10 {
                unread.push(begin(&node.kv, keys(order.clone())).await.expect("there is a place"));
                // It has one until its first message is there.
                let begun = std::time::Instant::now();
                while reads.under_way() > 0 {
                    assert!(begun.elapsed() < Duration::from_secs(10), "its place is kept");
                    tokio::task::yield_now().await;
                }
            }
            let threads = node.shared.read_threads.available_permits();
            assert_eq!(threads, 16, "all threads are free");
            let get = GetRequest { key: "large1".into(), ..GetRequest::default() };
            assert!(node.kv.get(Request::new(get)).await.expect("an answer").get_ref().found);
            let (results, ..) = whole(unread.pop().expect("one of them")).await;
            assert_eq!(results.len(), order.len(), "it continues when it is read");
            drop(unread);
            assert_eq!(node.shared.life.calls(), 0);
        }
        server.abort();
        asked.stop();
        holder.stop();
    });
}

#[test]
fn what_is_wrong_with_a_request_is_named_by_its_field() {
    run(|node| async {
        let long = Bytes::from(vec![b'k'; 4_097]);
        let ok = || Bytes::from_static(b"k");
        let many = (0..600).map(|_| Bytes::from(vec![b'k'; 4_000]));
        let rows = [
            (keys([ok(), ok(), ok(), Bytes::new()]), Reason::BadKey, "keys[3]", 0),
            (keys([ok(), long]), Reason::BadKey, "keys[1]", 4_096),
            (keys(many), Reason::TooLarge, "keys", 2 << 20),
            (
                MultiGetRequest { keyspace: "other".to_owned(), ..keys([ok()]) },
                Reason::BadKeyspace,
                "keyspace",
                0,
            ),
            (
                MultiGetRequest { required_features: vec![4_000], ..keys([ok()]) },
                Reason::NotOffered,
                "required_features",
                0,
            ),
        ];
        let mut rows = rows.to_vec();
        for (options, reason, field) in pages::bad_options() {
            let limit = if field == "read.token" { 4_096 } else { 0 };
            let request = MultiGetRequest { read: Some(options), ..keys([ok()]) };
            rows.push((request, reason, field, limit));
        }
        for (request, reason, field, limit) in rows {
            let failure = refusal(begin(&node.kv, request).await);
            let named = (failure.reason(), &failure.field[..], failure.limit);
            assert_eq!(named, (reason, field, limit), "{failure:?}");
        }
        let lease = MultiGetRequest { read: at(ReadLevel::Lease, None), ..keys([ok()]) };
        assert_eq!(refusal(begin(&node.kv, lease).await).reason(), Reason::NotOffered);
        node.stop();
    });
}

/// A key of each of two shards.
fn one_of_each(shared: &Shared) -> [String; 2] {
    let map = shared.map().expect("a map");
    let shards: Vec<u64> = map.shards().iter().map(|shard| shard.id).collect();
    let key_of = |shard: u64| {
        let mut keys = (0..).map(|n| format!("key{n}"));
        keys.find(|key| map.shard_of(key_hash(key.as_bytes())).id == shard).expect("there is one")
    };
    [key_of(shards[0]), key_of(shards[1])]
}

#[test]
fn a_shard_that_cannot_be_read_fails_its_own_keys_alone() {
    block_on(async {
        let holder = MapNode { id: 1, ..MapNode::default() };
        let node = Node::of_shards(1, vec![holder], 2, |_| {});
        let [first, second] = one_of_each(&node.shared);
        for key in [&first, &second] {
            node.put(key, key.clone().into()).await;
        }
        let all = || keys([second.clone(), first.clone(), second.clone(), first.clone()]);
        let (results, last) = read(&node.kv, all()).await;
        assert!(results.iter().all(|result| result.found));
        let shards: Vec<u64> = last.receipts.iter().map(|receipt| receipt.shard).collect();
        assert_eq!(shards, [1, 2], "one receipt for each shard");

        let hint = |shard| Some(RouteHint { shard, ..RouteHint::default() });
        let in_one = MultiGetRequest { route: hint(2), ..keys([second.clone(), second.clone()]) };
        assert_eq!(read(&node.kv, in_one.clone()).await.0.len(), 2);
        for wrong in [
            MultiGetRequest { route: hint(1), ..in_one },
            MultiGetRequest { route: hint(2), ..all() },
        ] {
            let failure = refusal(begin(&node.kv, wrong).await);
            assert_eq!(failure.reason(), Reason::WrongShard, "{failure:?}");
        }

        let damaged = node.shared.engine.shards().get(GroupId(2)).expect("shard 2");
        damaged.set_damaged("for the test");
        let (results, last) = read(&node.kv, all()).await;
        let found: Vec<bool> = results.iter().map(|result| result.found).collect();
        assert_eq!(found, [false, true, false, true]);
        for result in [&results[0], &results[2]] {
            let failure = result.failure.as_ref().expect("it could not be read");
            assert_eq!((failure.reason(), failure.shard), (Reason::NoLeader, 2), "{failure:?}");
            assert_eq!((failure.node_id, failure.outcome), (1, 0));
        }
        assert_eq!((last.receipts.len(), last.receipts[0].shard), (1, 1));
        let token = last.token.expect("a token");
        assert!(Index(token.index_of(1)) > Index(0) && token.index_of(2) == 0, "{token:?}");
        node.stop();
    });
}
