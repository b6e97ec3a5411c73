//! MultiGet: one call for many keys, and what is asked again of it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use quorate_client::api::{ReadLevel, Reason, SessionToken};
use quorate_testkit::{Calls, FakeCluster, Row, Step, failure};

use crate::client;

/// A cluster with the values `v0` to `v9` at `k0` to `k9`, in messages of three results.
fn with_rows() -> FakeCluster {
    let fake = FakeCluster::start(3);
    {
        let mut state = fake.state();
        state.message_rows = 3;
        state.store.index = 10;
        for n in 0..10u64 {
            let row = Row { value: format!("v{n}").into(), revision: n + 1, create_revision: 1 };
            state.store.rows.insert(format!("k{n}").into(), row);
        }
    }
    fake
}

/// The values at keys, `-` for an absent one and the reason of what failed.
async fn read(client: &quorate_client::Client, keys: &[&'static str]) -> Vec<String> {
    let results = client.multi_get(keys.iter().copied()).timeout(Duration::from_secs(3)).await;
    let shown = results.into_iter().map(|result| match result {
        Ok(got) if got.found => String::from_utf8(got.value.to_vec()).unwrap(),
        Ok(_) => "-".to_owned(),
        Err(error) => error.detail().reason_name().to_owned(),
    });
    shown.collect()
}

#[tokio::test]
async fn many_keys_are_one_call_and_come_with_their_receipts() {
    let fake = with_rows();
    let client = client(&fake).await;
    let keys = ["k3", "none", "k3", "k0", "k9"];
    let results = client.multi_get(keys).await;
    assert_eq!(results.len(), keys.len());
    for (key, result) in keys.iter().zip(results) {
        let got = result.unwrap();
        assert_eq!(got.found, *key != "none");
        assert_eq!(got.value, if got.found { key.replace('k', "v") } else { String::new() });
        let receipt = got.receipt.unwrap();
        assert_eq!((receipt.shard, receipt.index), (1, 10));
        assert_eq!(got.token.unwrap().index_of(1), 10);
    }
    assert_eq!(client.token().index_of(1), 10, "it was seen");
    assert_eq!(client.multi_get(Vec::<Bytes>::new()).await.len(), 0);
    let _ = client.multi_get(["k1"]).level(ReadLevel::Stale).await;
    let _ = client.multi_get(["k1", "k2"]).token(SessionToken::default()).await;
    let state = fake.state();
    let sizes: Vec<usize> = state.multi_gets.iter().map(|(_, keys)| *keys).collect();
    assert_eq!(sizes, [5, 1, 2], "no keys are no call");
    let levels: Vec<ReadLevel> = state.reads.iter().map(|(_, read)| read.level()).collect();
    let expected = [ReadLevel::Unspecified, ReadLevel::Stale, ReadLevel::Session];
    assert_eq!(levels, expected);
}

#[tokio::test]
async fn a_key_that_failed_for_the_moment_is_asked_for_again_alone() {
    let fake = with_rows();
    let client = client(&fake).await;
    {
        let mut state = fake.state();
        let moment = || failure(Reason::NoLeader);
        state.key_failures.insert("k1".into(), VecDeque::from([moment(), moment()]));
        state.key_failures.insert("k2".into(), VecDeque::from([failure(Reason::TokenAhead)]));
        state.key_failures.insert("k3".into(), VecDeque::from([moment()]));
    }
    let values = read(&client, &["k0", "k1", "k2", "k3", "k4"]).await;
    assert_eq!(values, ["v0", "v1", "TOKEN_AHEAD", "v3", "v4"]);
    let sizes: Vec<usize> = fake.state().multi_gets.iter().map(|(_, keys)| *keys).collect();
    assert_eq!(sizes, [5, 2, 1]);
    // One that fails until the end reports why.
    let forever = std::iter::repeat_with(|| failure(Reason::NoLeader)).take(10_000).collect();
    fake.state().key_failures.insert("k1".into(), forever);
    let results = client.multi_get(["k0", "k1"]).timeout(Duration::from_millis(500)).await;
    assert!(results[0].is_ok());
    assert_eq!(results[1].as_ref().unwrap_err().reason(), Some(Reason::NoLeader));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again() {
    let fake = with_rows();
    let client = client(&fake).await;
    let keys = ["k0", "k1", "k2", "k3", "k4", "k5", "k6"];
    for after in 0..=3 {
        fake.state().multi_gets.clear();
        fake.state().multi_get_breaks_after = Some(after);
        let values = read(&client, &keys).await;
        assert_eq!(values, ["v0", "v1", "v2", "v3", "v4", "v5", "v6"], "after {after} messages");
        let state = fake.state();
        let sizes: Vec<usize> = state.multi_gets.iter().map(|(_, keys)| *keys).collect();
        assert_eq!(sizes, [7, 7], "without its receipts an answer guarantees nothing");
    }
}

#[tokio::test]
async fn single_reads_serve_an_old_node_and_name_the_key_that_is_wrong() {
    let fake = with_rows();
    let client = client(&fake).await;
    fake.state().serves_no_multi_get = true;
    assert_eq!(read(&client, &["k5", "none", "k6"]).await, ["v5", "-", "v6"]);
    assert_eq!(fake.state().reads.len(), 3, "one for each key");
    {
        let mut state = fake.state();
        state.serves_no_multi_get = false;
        state.reads.clear();
    }
    // The nodes of these tests answer a single read of an empty key.
    assert_eq!(read(&client, &["k5", "", "k6"]).await, ["v5", "-", "v6"]);
    let state = fake.state();
    assert_eq!((state.multi_gets.len(), state.reads.len()), (1, 3));
}

#[tokio::test]
async fn what_the_whole_call_is_refused_for_is_the_error_of_each_key() {
    let fake = with_rows();
    let client = client(&fake).await;
    for node in 1..=3 {
        let foreign = Step::Fail(failure(Reason::TokenForeign));
        fake.state().always.insert((node, Calls::Reads), foreign);
    }
    assert_eq!(read(&client, &["k0", "k1"]).await, ["TOKEN_FOREIGN", "TOKEN_FOREIGN"]);
}
