//! Write sessions and session tokens.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::WriteId;
use quorate_client::api::{Failure, ReadLevel, Reason, SessionToken};
use quorate_testkit::{CLUSTER, FakeCluster, HISTORY, SeenWrite, Step, failure};

use crate::client;

fn ids(writes: &[SeenWrite]) -> Vec<(Bytes, u64)> {
    let id = |w: &SeenWrite| {
        let session = w.session.as_ref().unwrap();
        (session.id.clone(), session.sequence)
    };
    writes.iter().map(id).collect()
}

#[tokio::test]
async fn a_session_is_opened_at_the_first_write_and_kept() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    client.get("k").await.unwrap();
    assert!(fake.state().opened.is_empty(), "reads need none");
    for _ in 0..3 {
        client.put("k", "v").await.unwrap();
    }
    assert_eq!(fake.state().opened.len(), 1);
    for (i, seen) in (1..).zip(fake.writes()) {
        let session = seen.session.unwrap();
        assert_eq!((session.sequence, session.answered_below), (i, i));
        assert!(!session.last);
    }
}

#[tokio::test]
async fn each_shard_has_a_session_of_its_own() {
    let fake = FakeCluster::start(3);
    fake.state().map = Some(fake.map_of(1, 4));
    let client = client(&fake).await;
    let map = client.known_map().unwrap();
    let mut of_shard: HashMap<u64, HashSet<Bytes>> = HashMap::new();
    for i in 0..40 {
        let key = format!("key-{i}");
        client.put(key.clone(), "v").await.unwrap();
        let session = fake.writes().last().unwrap().session.clone().unwrap();
        let shard = map.shard_of(key.as_bytes()).unwrap().id;
        of_shard.entry(shard).or_default().insert(session.id);
    }
    assert_eq!(of_shard.len(), 4);
    assert!(of_shard.values().all(|ids| ids.len() == 1));
    assert_eq!(fake.state().opened.len(), 4);
}

#[tokio::test]
async fn a_session_past_half_its_life_is_replaced() {
    let fake = FakeCluster::start(3);
    fake.state().session_ttl = Duration::from_millis(400);
    let client = client(&fake).await;
    client.put("k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_millis(220)).await;
    client.put("k", "v").await.unwrap();
    let ids = ids(&fake.writes());
    assert_ne!(ids[0].0, ids[1].0);
    assert_eq!(ids[1].1, 1);
}

#[tokio::test]
async fn one_shot_uses_a_session_of_its_own_and_marks_it_as_last() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    client.put("k", "v").await.unwrap();
    client.put("k", "v").one_shot().await.unwrap();
    client.put("k", "v").await.unwrap();
    let writes = fake.writes();
    let last: Vec<bool> = writes.iter().map(|w| w.session.as_ref().unwrap().last).collect();
    assert_eq!(last, [false, true, false]);
    let ids = ids(&writes);
    assert_eq!(ids[0].0, ids[2].0);
    assert_ne!(ids[0].0, ids[1].0);
    assert_eq!((ids[1].1, ids[2].1), (1, 2));
}

#[tokio::test]
async fn an_expired_session_is_replaced_by_one_created_later() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let expired = Failure { log_time: 77 << 16, ..failure(Reason::SessionExpired) };
    fake.script(1, [Step::Fail(expired)]);
    assert!(client.put("k", "v").await.unwrap().applied);
    let ids = ids(&fake.writes());
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0].0, ids[1].0);
    let state = fake.state();
    assert_eq!(state.opened[1].1.not_before, 77 << 16);
    assert_eq!(state.store.index, 1);
}

#[tokio::test]
async fn a_rejected_session_is_replaced_by_one_of_another_node_at_the_time_of_the_shard() {
    for reason in [Reason::SessionFromFuture, Reason::SessionExpired] {
        let fake = FakeCluster::start(3);
        let client = client(&fake).await;
        let refused = Failure { log_time: 77 << 16, ..failure(reason) };
        fake.script(1, [Step::Fail(refused.clone()), Step::Fail(refused)]);
        assert!(client.put("k", "v").await.unwrap().applied);
        let ids = ids(&fake.writes());
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 3, "{ids:?}");
        let state = fake.state();
        assert_eq!(state.store.index, 1);
        for (before, after) in state.opened.iter().zip(&state.opened[1..]) {
            assert_ne!(before.0, after.0, "{reason:?}");
        }
        let (first, again) = (&state.opened[0].1, &state.opened[1].1);
        assert_eq!((first.shard, first.not_before, first.not_after), (1, 0, 0));
        let time = match reason {
            Reason::SessionFromFuture => again.not_after,
            _ => again.not_before,
        };
        assert_eq!((again.shard, time), (1, 77 << 16));
        assert_eq!(again.not_before.min(again.not_after), 0, "one of the two");
    }
}

#[tokio::test]
async fn repeatedly_rejected_sessions_end_the_call() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    for reason in [Reason::SessionFromFuture, Reason::SessionExpired] {
        for node in 1..=3 {
            fake.always(node, Step::Fail(failure(reason)));
        }
        for put in [client.put("k", "v"), client.put("k", "v").one_shot()] {
            fake.state().opened.clear();
            let error = put.timeout(Duration::from_secs(60)).await.unwrap_err();
            assert!(matches!(error, quorate_client::Error::Refused(_)), "{error}");
            assert_eq!(error.reason(), Some(reason));
            let opened = fake.state().opened.len();
            assert!((3..=10).contains(&opened), "{opened} sessions were opened");
        }
    }
    assert!(fake.state().store.index == 0);
}

#[tokio::test]
async fn a_write_that_may_have_been_applied_keeps_its_session_even_if_that_is_from_the_future() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let future = failure(Reason::SessionFromFuture);
    fake.script(1, [Step::Break]);
    for node in 2..=3 {
        fake.always(node, Step::Fail(future.clone()));
    }
    fake.always(1, Step::Fail(future.clone()));
    let error = client.put("k", "v").timeout(Duration::from_millis(400)).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    let seen = ids(&fake.writes());
    assert!(seen.len() > 2 && seen.iter().all(|id| *id == seen[0]), "{seen:?}");

    // A retry waits until the shard's time reaches the session.
    fake.state().always.clear();
    fake.script(1, [Step::Fail(future)]);
    let id = WriteId { session: seen[0].0.clone(), sequence: seen[0].1 };
    assert!(client.put("k", "v").write_id(id).await.unwrap().applied);
    assert_eq!(fake.state().opened.len(), 1);
}

#[tokio::test]
async fn a_given_write_id_is_sent_unchanged() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let id = WriteId { session: Bytes::from_static(b"a-session-from-elsewhere"), sequence: 5_000 };
    client.put("k", "v").write_id(id.clone()).await.unwrap();
    assert_eq!(ids(&fake.writes()), [(id.session.clone(), 5_000)]);
    let sent = fake.writes()[0].session.clone().unwrap();
    assert_eq!(sent.answered_below, 3_977, "what a full window allows");
    assert!(fake.state().opened.is_empty());
    // Such a session is not replaced: the write may have been applied before the session expired,
    // and that can no longer be found out.
    fake.script(1, [Step::Fail(failure(Reason::SessionExpired))]);
    let error = client.put("k", "v").write_id(id).await.unwrap_err();
    assert!(matches!(error, quorate_client::Error::Unknown { .. }), "{error}");
    assert!(fake.state().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_a_session() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let tasks: Vec<_> = (0..256)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..8 {
                    client.increment("counter", 1).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    {
        let state = fake.state();
        assert_eq!(state.opened.len(), 1, "the tasks wait for one");
        assert_eq!(state.store.index, 2_048);
        let sequences: HashSet<u64> =
            state.writes.iter().map(|w| w.session.as_ref().unwrap().sequence).collect();
        assert_eq!(sequences.len(), 2_048, "no number is given twice");
        for seen in &state.writes {
            let session = seen.session.as_ref().unwrap();
            assert!(session.answered_below <= session.sequence);
            assert!(session.sequence - session.answered_below < 1_024);
        }
    }
    client.put("counter", "0").await.unwrap();
    let last = fake.writes().pop().unwrap().session.unwrap();
    assert_eq!((last.sequence, last.answered_below), (2_049, 2_049), "all were answered");
}

#[tokio::test]
async fn session_reads_carry_what_was_seen_and_no_more() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let written = client.put("k", "v").await.unwrap();
    client.get("k").level(ReadLevel::Session).await.unwrap();
    let read = fake.state().reads[0].1.clone();
    let token = read.token.unwrap();
    assert_eq!(token.index_of(1), written.revision);
    assert_eq!((token.cluster_id, token.history), (CLUSTER, HISTORY));

    // A token is merged: the greater index of each shard is kept.
    let mut kept = client.token();
    kept.parts[0].index = 100;
    client.absorb_token(&kept);
    assert_eq!(client.token().index_of(1), 100);
    client.get("k").level(ReadLevel::Session).await.unwrap();
    let read = fake.state().reads[1].1.clone();
    assert_eq!(read.token.unwrap().index_of(1), 100);

    // A token of another history changes nothing; a reset drops the own one.
    let foreign = SessionToken { history: Bytes::from_static(b"another-history!"), ..kept };
    client.absorb_token(&foreign);
    assert_eq!(client.token().history, HISTORY);
    client.reset_token();
    assert!(client.token().parts.is_empty());
}
