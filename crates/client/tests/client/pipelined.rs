//! Operations on streams, and as calls of their own where that is asked for or needed.

use futures::future::join_all;
use quorate_client::api::Reason;
use quorate_client::{Client, Error};
use quorate_testkit::{FakeCluster, Step};
use tonic::Code;

use crate::{client, config};

#[tokio::test]
async fn operations_to_one_node_share_a_stream_and_keep_their_order() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let keys: Vec<String> = (0..100).map(|number| format!("k{number}")).collect();
    let puts = keys.iter().map(|key| IntoFuture::into_future(client.put(key.clone(), "v")));
    for put in join_all(puts).await {
        assert!(put.unwrap().applied);
    }
    assert_eq!(client.get("k7").await.unwrap().value, "v");
    assert!(client.delete("k7").await.unwrap().found);
    assert_eq!(client.increment("n", 2).await.unwrap().number, 2);
    let state = fake.state();
    assert_eq!(state.streams, [1], "one stream for all of them");
    let mut sequences: Vec<u64> =
        state.writes.iter().map(|write| write.session.as_ref().unwrap().sequence).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=102).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_client_that_asks_for_calls_opens_no_stream() {
    let fake = FakeCluster::start(3);
    let client = Client::connect(config(&fake).unary()).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().value, "v");
    assert!(fake.state().streams.is_empty());
    assert_eq!(fake.writes().len(), 1);
}

#[tokio::test]
async fn a_node_that_serves_no_streams_gets_calls() {
    let fake = FakeCluster::start(3);
    fake.state().serves_no_streams = true;
    let client = client(&fake).await;
    for round in 0..3 {
        client.put("k", format!("v{round}")).await.unwrap();
    }
    assert_eq!(client.get("k").await.unwrap().value, "v2");
    assert_eq!(fake.writes().len(), 3, "each was sent once");
}

/// Of what was sent on it nothing is known; with a session that is asked again.
#[tokio::test]
async fn a_stream_that_ends_leaves_what_was_sent_on_it_unknown() {
    for code in [Code::Unavailable, Code::InvalidArgument, Code::PermissionDenied] {
        let fake = FakeCluster::start(3);
        let client = client(&fake).await;
        client.put("k", "v").await.unwrap();
        fake.script(1, [Step::Foreign(code)]);
        let error = client.put("k", "w").without_session().await.unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{code:?}: {error}");
        assert_eq!(error.reason(), Some(Reason::OutcomeUnknown));
        fake.script(1, [Step::Foreign(code)]);
        client.put("k", "x").await.unwrap();
        let streams = fake.state().streams.clone();
        assert!(streams.len() >= 3, "a new stream after each: {streams:?}");
    }
}
