//! When a session is born, and what a node takes of it.

use quorate_machine::LogTime;
use quorate_proto::v1::{OpenSessionRequest, Outcome};
use tonic::Code;

use super::*;
use crate::call::CallerAddress;

const HOUR_MS: u64 = 3_600_000;

async fn born(node: &Node, request: OpenSessionRequest) -> LogTime {
    let opened = node.kv.open_session(Request::new(request)).await;
    LogTime(opened.expect("a session").into_inner().born)
}

fn for_shard(shard: u64) -> OpenSessionRequest {
    OpenSessionRequest { shard, ..OpenSessionRequest::default() }
}

/// Two others report clocks that differ from ours by this.
fn others_differ(node: &Node, by_ms: i64) {
    let now = Clock.moment();
    for other in [2, 3] {
        node.shared.clocks.note(NodeId(other), now.wall_ms.saturating_add_signed(by_ms), now);
    }
}

#[test]
fn a_session_is_born_at_the_median_of_the_clocks_that_the_node_knows() {
    run(|node| async move {
        let begun = Clock.unix_millis();
        let alone = born(&node, OpenSessionRequest::default()).await.millis();
        assert!((begun..=Clock.unix_millis()).contains(&alone), "a node alone has its own clock");

        for by_ms in [-3_000, 3_000, -(HOUR_MS as i64), HOUR_MS as i64] {
            let begun = Clock.unix_millis();
            // What was published before does not count any more.
            node.shared.clocks.publish(Clock.moment());
            others_differ(&node, by_ms);
            let born = born(&node, OpenSessionRequest::default()).await.millis();
            let median = born.saturating_add_signed(-by_ms);
            let now = begun - 1..=Clock.unix_millis() + 1;
            assert!(now.contains(&median), "{by_ms} ms: born at {born}, asked within {now:?}");
        }
        node.stop();
    });
}

#[test]
fn a_session_for_a_shard_whose_log_is_ahead_is_born_at_its_log_time() {
    run(|node| async move {
        node.put("k", Vec::new()).await;
        let shard = node.shared.engine.shards().get(GroupId(1)).expect("it is here");
        let ahead = LogTime(shard.reader.status().log_time);
        others_differ(&node, -(HOUR_MS as i64));
        assert_eq!(born(&node, for_shard(1)).await, ahead);
        let elsewhere = [OpenSessionRequest::default(), for_shard(2)];
        for request in elsewhere {
            let born = born(&node, request.clone()).await;
            assert!(born.millis() < ahead.millis() - HOUR_MS / 2, "{request:?}: {born}");
        }
        others_differ(&node, HOUR_MS as i64);
        let not_after = OpenSessionRequest { not_after: ahead.0, ..OpenSessionRequest::default() };
        assert_eq!(born(&node, not_after.clone()).await, ahead);
        let not_before = LogTime::from_millis(Clock.unix_millis() + 2 * HOUR_MS).0;
        let not_before = OpenSessionRequest { not_before, ..not_after };
        assert_eq!(born(&node, not_before.clone()).await.0, not_before.not_before);
        node.stop();
    });
}

async fn opened(node: &Node) -> Bytes {
    let opened = node.kv.open_session(Request::new(OpenSessionRequest::default())).await;
    opened.expect("a session").into_inner().session_id
}

/// The failure of a Put in this session; `None` if it was applied.
async fn put_in(node: &Node, id: &Bytes, sequence: u64, answered_below: u64) -> Option<Failure> {
    let session = Some(WriteSession { id: id.clone(), sequence, answered_below, last: false });
    let key = Bytes::from_static(b"k");
    let put = PutRequest { key, session, ..PutRequest::default() };
    let status = node.kv.put(Request::new(put)).await.err()?;
    let (failure, _) = Failure::from_details(status.details()).expect("a failure of ours");
    assert_eq!(status.code() as i32, failure.code);
    Some(failure)
}

#[test]
fn a_session_has_1024_unanswered_sequences_and_then_is_full() {
    run(|node| async move {
        let id = opened(&node).await;
        assert_eq!(put_in(&node, &id, 1_024, 1).await, None);
        let full = put_in(&node, &id, 1_025, 1).await.expect("one too many");
        assert_eq!(full.reason(), Reason::SessionsFull, "{full:?}");
        assert_eq!(full.code, Code::ResourceExhausted as i32);
        assert_eq!(full.outcome(), Outcome::AttemptNotApplied);
        assert!(full.retry_after.is_some(), "answers make room");
        assert_eq!(put_in(&node, &id, 1_025, 2).await, None);
        node.stop();
    });
}

#[test]
fn an_id_that_no_node_gave_is_refused() {
    run(|node| async move {
        let id = opened(&node).await;
        for at in [0, 20, id.len() - 1] {
            let mut forged = id.to_vec();
            forged[at] ^= 1;
            let refused = put_in(&node, &forged.into(), 1, 1).await.expect("it is forged");
            assert_eq!(refused.reason(), Reason::BadToken, "byte {at}: {refused:?}");
            assert_eq!(
                (refused.code, refused.field),
                (Code::InvalidArgument as i32, "session.id".to_owned())
            );
        }
        let cut = id.slice(..24);
        let refused = put_in(&node, &cut, 1, 1).await.expect("it is cut");
        assert_eq!(refused.reason(), Reason::BadToken, "{refused:?}");
        let longer = Bytes::from([&id[..], &[0; 8]].concat());
        let refused = put_in(&node, &longer, 1, 1).await.expect("it is longer");
        assert_eq!(refused.reason(), Reason::BadToken, "{refused:?}");
        assert_eq!(put_in(&node, &id, 1, 1).await, None);
        node.stop();
    });
}

#[test]
fn an_id_names_the_client_that_it_was_opened_for() {
    run(|node| async move {
        let tag = |address: Option<&'static str>| {
            let mut request = Request::new(OpenSessionRequest::default());
            let address = address.map(|address| address.parse().expect("an address"));
            if let Some(address) = address {
                request.extensions_mut().insert(CallerAddress(address));
            }
            let kv = node.kv.clone();
            async move {
                let id = kv.open_session(request).await.expect("a session").into_inner().session_id;
                let (_, client) = SESSION_KEY.open(&id).expect("the node has given it");
                assert_eq!(client, SESSION_KEY.client(address));
                client
            }
        };
        let clients = [tag(None).await, tag(Some("10.0.0.1")).await, tag(Some("10.0.0.2")).await];
        assert_eq!(tag(Some("10.0.0.1")).await, clients[1]);
        assert!(clients[0] != clients[1] && clients[1] != clients[2]);
        node.stop();
    });
}
