//! The pages of scans: their size, and the tokens between them.

use quorate_proto::v1::{ReadLevel, ReadOptions, SessionTokenPart};

use super::*;

/// The pages of a whole scan: the keys of each and what it counted.
async fn pages(node: &Node, mut request: ScanRequest) -> Vec<(Vec<Bytes>, u64)> {
    let mut pages = Vec::new();
    loop {
        let (keys, last) = page(node.scan("5S", request.clone()).await).await;
        pages.push((keys, last.count));
        if last.next_page_token.is_empty() {
            return pages;
        }
        assert!(pages.len() < 100, "the scan has no end");
        request.page_token = last.next_page_token;
    }
}

#[test]
fn a_page_has_the_rows_that_were_asked_for_and_the_limit_is_of_all_pages() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        let keys: Vec<Bytes> = (0..10).map(|n| format!("key{n}").into()).collect();
        for n in 0..10 {
            holder.put(&format!("key{n}"), vec![1; 10]).await;
        }
        // The size of a page, the limit, and the sizes of the pages that follow from them.
        let rows: [(u64, u64, &[u64]); 8] = [
            (4, 0, &[4, 4, 2]),
            (5, 0, &[5, 5]),
            (10, 0, &[10]),
            (0, 7, &[7]),
            (4, 7, &[4, 3]),
            (4, 8, &[4, 4]),
            (1, 2, &[1, 1]),
            (u64::MAX, 0, &[10]),
        ];
        for node in [&holder, &asked] {
            for (page_size, limit, sizes) in rows {
                for (count_only, reverse) in [(false, false), (true, false), (false, true)] {
                    let request = ScanRequest {
                        page_size,
                        limit,
                        count_only,
                        reverse,
                        ..ScanRequest::default()
                    };
                    let whole = format!("node {}: {request:?}", node.shared.node);
                    let got = pages(node, request).await;
                    let counts: Vec<u64> = got.iter().map(|(_, count)| *count).collect();
                    assert_eq!(counts, sizes, "{whole}");
                    let mut expected = keys.clone();
                    if reverse {
                        expected.reverse();
                    }
                    expected.truncate(sizes.iter().sum::<u64>() as usize);
                    let found: Vec<Bytes> = got.into_iter().flat_map(|(keys, _)| keys).collect();
                    assert_eq!(found, if count_only { vec![] } else { expected }, "{whole}");
                }
            }
        }
        server.abort();
        asked.stop();
        holder.stop();
    });
}

#[test]
fn the_cap_of_the_node_holds_whatever_page_is_asked_for() {
    run(|node| async {
        let plan = |page_size, count_only| {
            let request = ScanRequest { page_size, count_only, ..ScanRequest::default() };
            Plan::of(&node.shared, &request).expect("a plan").page_rows
        };
        assert_eq!([plan(0, false), plan(7, false), plan(1 << 40, false)], [100_000, 7, 100_000]);
        assert_eq!([plan(0, true), plan(7, true), plan(1 << 40, true)], [u64::MAX, 7, 100_000]);
        node.stop();
    });
}

#[test]
fn a_token_of_another_history_is_refused_by_its_field() {
    run(|node| async {
        for n in 0..3 {
            node.put(&format!("key{n}"), vec![1]).await;
        }
        let first = ScanRequest { page_size: 2, ..ScanRequest::default() };
        let (_, last) = page(node.scan("5S", first).await).await;
        let next = |page_token| ScanRequest { page_token, ..ScanRequest::default() };
        assert_eq!(
            page(node.scan("5S", next(last.next_page_token.clone())).await).await.1.count,
            1
        );

        let mut other = node.shared.map().expect("a map").proto().clone();
        other.history = vec![9; 16].into();
        other.epoch += 1;
        let restored = MapCell::default();
        restored.offer(Map::new(other));
        let kv = refusals::changed(&node, |shared| shared.map = restored);
        let elsewhere = refusals::changed(&node, |shared| shared.cluster_id = vec![8; 16].into());
        let mut damaged = last.next_page_token.to_vec();
        damaged[20] ^= 1;
        let rows = [
            (&kv, last.next_page_token.clone(), "another history"),
            (&elsewhere, last.next_page_token, "of cluster 0707"),
            (&node.kv, damaged.into(), "not one that a scan returned"),
        ];
        for (kv, page_token, sentence) in rows {
            let refused = kv.scan(Request::new(next(page_token))).await.err().expect(sentence);
            let (failure, _) = Failure::from_details(refused.details()).expect("a failure of ours");
            assert_eq!(failure.reason(), Reason::BadPageToken, "{failure:?}");
            assert_eq!(failure.field, "page_token");
            assert!(failure.message.contains(sentence), "{}", failure.message);
        }
        node.stop();
    });
}

/// Options that no read takes, with the reason and the field that the refusal names.
pub(super) fn bad_options() -> Vec<(ReadOptions, Reason, &'static str)> {
    let session = |shards: &[u64]| ReadOptions {
        level: ReadLevel::Session as i32,
        token: Some(SessionToken {
            parts: shards
                .iter()
                .map(|shard| SessionTokenPart { shard: *shard, index: 1 })
                .collect(),
            ..SessionToken::default()
        }),
        ..ReadOptions::default()
    };
    let many: Vec<u64> = (1..=4_097).collect();
    vec![
        (ReadOptions { level: 42, ..ReadOptions::default() }, Reason::BadLevel, "read.level"),
        (session(&[1, 2, 0]), Reason::BadToken, "read.token.parts[2].shard"),
        (session(&[1, 2, 3, 2]), Reason::BadToken, "read.token.parts[3].shard"),
        (session(&many), Reason::BadToken, "read.token"),
    ]
}

#[test]
fn bad_options_of_a_read_are_refused_by_their_field() {
    run(|node| async {
        for (options, reason, field) in bad_options() {
            let read = Some(options);
            let key = Bytes::from_static(b"key");
            let get = GetRequest { key, read: read.clone(), ..GetRequest::default() };
            let scan = ScanRequest { read, ..ScanRequest::default() };
            for refused in [
                node.kv.get(Request::new(get)).await.err(),
                node.kv.scan(Request::new(scan)).await.err(),
            ] {
                let refused = refused.expect("it is refused");
                let (failure, _) = Failure::from_details(refused.details()).expect("of ours");
                assert_eq!((failure.reason(), &failure.field[..]), (reason, field), "{failure:?}");
            }
        }
        node.stop();
    });
}
