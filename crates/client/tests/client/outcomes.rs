//! Outcomes of failed calls.

use std::time::Duration;

use bytes::Bytes;
use quorate_client::api::{CancelResult, Failure, Outcome, Reason};
use quorate_client::{Client, ClientConfig, Error, WriteId};
use quorate_testkit::{FakeCluster, Step, failure};
use tonic::Code;

use crate::{client, config};

const SHORT: Duration = Duration::from_millis(400);

fn everywhere(fake: &FakeCluster, step: &Step) {
    for node in 1..=3 {
        fake.always(node, step.clone());
    }
}

async fn put(client: &Client, session: bool) -> Result<(), Error> {
    let put = client.put("k", "v").timeout(SHORT);
    let put = if session { put } else { put.without_session() };
    put.await.map(drop)
}

#[derive(Debug, PartialEq)]
enum Class {
    NotApplied,
    Unknown,
    Refused,
    Invalid,
}

fn class(error: &Error) -> Class {
    match error {
        Error::NotApplied(_) => Class::NotApplied,
        Error::Unknown { .. } => Class::Unknown,
        Error::Refused(_) => Class::Refused,
        Error::Invalid(_) => Class::Invalid,
    }
}

/// The error of the call for each reason, permanently from every node, with and without a session.
#[tokio::test]
async fn every_reason_is_classified() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    use Class::*;
    for (reason, expected) in [
        (Reason::NoLeader, NotApplied),
        (Reason::NoQuorum, NotApplied),
        (Reason::Starting, NotApplied),
        (Reason::Draining, NotApplied),
        (Reason::OutcomeUnknown, Unknown),
        (Reason::Overloaded, NotApplied),
        (Reason::Quota, NotApplied),
        (Reason::DiskFull, NotApplied),
        (Reason::SessionsFull, NotApplied),
        (Reason::WrongShard, Refused),
        (Reason::TokenForeign, Refused),
        (Reason::SequenceReused, Invalid),
        (Reason::NotANumber, Refused),
        (Reason::BadKey, Invalid),
        (Reason::BadValue, Invalid),
        (Reason::TooLarge, Invalid),
        (Reason::BadCondition, Invalid),
        (Reason::BadKeyspace, Invalid),
        (Reason::CrossShard, Invalid),
        (Reason::BadToken, Invalid),
        (Reason::NotOffered, Refused),
        (Reason::Internal, NotApplied),
    ] {
        everywhere(&fake, &Step::Fail(failure(reason)));
        for session in [true, false] {
            let error = put(&client, session).await.unwrap_err();
            assert_eq!(class(&error), expected, "{reason:?}, session {session}: {error}");
            assert_eq!(error.reason(), Some(reason));
            let named = matches!(error, Error::Unknown { write: Some(_), .. });
            assert_eq!(named, session && expected == Unknown, "{reason:?}");
        }
    }
}

/// Statuses that are not from a node, of calls: of a stream they say nothing of its operations.
#[tokio::test]
async fn a_status_that_is_not_from_a_node_is_unknown_unless_no_handler_saw_the_request() {
    let fake = FakeCluster::start(3);
    let client = Client::connect(config(&fake).unary()).await.unwrap();
    use Class::*;
    for (code, expected) in [
        (Code::OutOfRange, Invalid),
        (Code::InvalidArgument, Invalid),
        (Code::Unimplemented, Refused),
        (Code::PermissionDenied, Refused),
        (Code::Unavailable, Unknown),
        (Code::Internal, Unknown),
        (Code::Unknown, Unknown),
        (Code::Cancelled, Unknown),
        (Code::DeadlineExceeded, Unknown),
    ] {
        everywhere(&fake, &Step::Foreign(code));
        for session in [true, false] {
            let error = put(&client, session).await.unwrap_err();
            assert_eq!(class(&error), expected, "{code:?}, session {session}: {error}");
            let reason = (expected == Unknown).then_some(Reason::OutcomeUnknown);
            assert_eq!(error.reason(), reason);
        }
    }
}

#[tokio::test]
async fn a_write_on_a_lost_connection_is_retried_with_the_same_sequence() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    client.put("k", "v").await.unwrap();
    fake.script(1, [Step::Break]);
    let answer = client.put("k", "w").await.unwrap();
    assert!(answer.replayed, "the second attempt finds the first");
    let state = fake.state();
    assert_eq!(state.store.index, 2, "each write once");
    let sequences: Vec<u64> =
        state.writes.iter().map(|w| w.session.as_ref().unwrap().sequence).collect();
    assert_eq!(sequences, [1, 2, 2]);
}

#[tokio::test]
async fn a_write_without_a_session_on_a_lost_connection_is_unknown_immediately() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    fake.script(1, [Step::Break]);
    let error = put(&client, false).await.unwrap_err();
    assert!(matches!(error, Error::Unknown { write: None, .. }), "{error}");
    assert_eq!(fake.writes().len(), 1, "sent once");
    assert!(put(&client, false).await.is_ok(), "the next call connects anew");
}

#[tokio::test]
async fn a_request_that_never_reached_a_node_is_not_applied() {
    let config = quorate_client::ClientConfig::new(["127.0.0.1:1"]).unwrap();
    let client = Client::new(config);
    for session in [true, false] {
        let error = put(&client, session).await.unwrap_err();
        assert!(matches!(error, Error::NotApplied(_)), "{error}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
}

#[tokio::test]
async fn an_unknown_attempt_stays_unknown_whatever_later_attempts_return() {
    for later in [Reason::NoLeader, Reason::BadValue, Reason::SessionExpired, Reason::SequencePast]
    {
        let fake = FakeCluster::start(3);
        let client = client(&fake).await;
        fake.script(1, [Step::Foreign(Code::Unknown)]);
        everywhere(&fake, &Step::Fail(failure(later)));
        let error = put(&client, true).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { write: Some(_), .. }), "{later:?}: {error}");
        assert_eq!(error.detail().outcome, Outcome::Unknown);
        assert_eq!(error.reason(), Some(Reason::OutcomeUnknown));
        assert!(fake.writes().len() >= 2);
        assert_eq!(fake.state().opened.len(), 1, "{later:?}: no other session was tried");
    }
}

#[tokio::test]
async fn an_answer_settles_an_unknown_attempt() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    fake.script(1, [Step::Foreign(Code::Unknown), Step::Answer]);
    assert!(client.put("k", "v").await.unwrap().applied);
    // Barred by Cancel: the first attempt was not applied and never will be.
    fake.script(1, [Step::Foreign(Code::Unknown)]);
    let barred = quorate_client::api::Failure {
        outcome: Outcome::NotApplied as i32,
        ..failure(Reason::SequencePast)
    };
    everywhere(&fake, &Step::Fail(barred));
    let error = put(&client, true).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(fake.writes().len(), 4, "and it is not tried with another sequence");
    assert_eq!(error.detail().outcome, Outcome::NotApplied);
}

/// A failure as a node returns it for a write with a session.
fn of_attempt(reason: Reason) -> Failure {
    Failure { outcome: Outcome::AttemptNotApplied as i32, ..failure(reason) }
}

/// A write that an earlier call has sent.
fn sent_before() -> WriteId {
    WriteId { session: Bytes::from_static(b"a-session-from-elsewhere"), sequence: 3 }
}

#[tokio::test]
async fn a_rejected_first_attempt_means_that_the_write_is_not_applied() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    for reason in [Reason::NoLeader, Reason::Overloaded, Reason::DiskFull, Reason::WrongShard] {
        everywhere(&fake, &Step::Fail(of_attempt(reason)));
        for put in [
            client.put("k", "v"),
            client.put("k", "v").one_shot(),
            client.put("k", "v").without_session(),
        ] {
            let error = put.timeout(SHORT).await.unwrap_err();
            assert!(!error.is_unknown(), "{reason:?}: {error}");
            assert_eq!(error.detail().outcome, Outcome::NotApplied, "{reason:?}");
        }
    }
}

#[tokio::test]
async fn a_rejected_attempt_of_a_write_that_was_sent_before_leaves_it_unknown() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let again = || client.put("k", "v").write_id(sent_before()).timeout(SHORT);
    for reason in [
        Reason::NoLeader,
        Reason::NoQuorum,
        Reason::Starting,
        Reason::Draining,
        Reason::Overloaded,
        Reason::Quota,
        Reason::DiskFull,
        Reason::SessionsFull,
        Reason::WrongShard,
        Reason::TokenForeign,
        Reason::SessionExpired,
        Reason::SequencePast,
        Reason::SessionFromFuture,
        Reason::NotOffered,
        Reason::Internal,
    ] {
        // Also the failure of a node that does not look at the session.
        for said in [of_attempt(reason), failure(reason)] {
            everywhere(&fake, &Step::Fail(said.clone()));
            let error = again().await.unwrap_err();
            let Error::Unknown { write, detail } = error else { panic!("{said:?}: {error}") };
            assert_eq!(write, Some(sent_before()), "{said:?}");
            assert_eq!(detail.outcome, Outcome::Unknown);
            assert!(!detail.message.contains("an earlier attempt"), "this call made only one");
        }
    }
    // The request is invalid, which says nothing about the earlier one.
    for reason in [Reason::BadKey, Reason::SequenceReused, Reason::TooLarge] {
        everywhere(&fake, &Step::Fail(failure(reason)));
        let error = again().await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{reason:?}: {error}");
        assert_eq!(error.detail().outcome, Outcome::AttemptNotApplied, "{reason:?}");
    }
    // A result that the session stored holds for every attempt.
    for reason in [Reason::SequencePast, Reason::NotANumber] {
        let remembered = Failure { outcome: Outcome::NotApplied as i32, ..failure(reason) };
        everywhere(&fake, &Step::Fail(remembered));
        let error = again().await.unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{reason:?}: {error}");
        assert_eq!(error.detail().outcome, Outcome::NotApplied);
    }
    fake.state().always.clear();
    assert!(again().await.unwrap().applied);
}

#[tokio::test]
async fn a_write_that_was_sent_before_is_unknown_while_no_node_can_be_reached() {
    let client = Client::new(ClientConfig::new(["127.0.0.1:1"]).unwrap());
    let again = client.put("k", "v").write_id(sent_before()).timeout(SHORT);
    let error = again.await.unwrap_err();
    assert!(matches!(error, Error::Unknown { write: Some(_), .. }), "{error}");
    let error = client.put("k", "v").write_id(sent_before()).timeout(Duration::ZERO).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Unknown { write: Some(_), .. }), "{error}");
    // Not sent at all: the request is too long.
    let error = client.put("k", vec![0; 5 << 20]).write_id(sent_before()).await.unwrap_err();
    assert_eq!(error.detail().outcome, Outcome::AttemptNotApplied, "{error}");
}

#[tokio::test]
async fn a_cancel_that_fails_leaves_the_write_as_unknown_as_before() {
    let fake = FakeCluster::start(3);
    let config = config(&fake).timeout(SHORT);
    let client = Client::connect(config).await.unwrap();
    for step in [
        Step::Fail(of_attempt(Reason::NoLeader)),
        Step::Fail(of_attempt(Reason::DiskFull)),
        Step::Fail(of_attempt(Reason::SessionExpired)),
        Step::Fail(failure(Reason::OutcomeUnknown)),
        Step::Foreign(Code::Unavailable),
        Step::Hang,
    ] {
        everywhere(&fake, &step);
        let error = client.cancel("k", &sent_before()).await.unwrap_err();
        let Error::Unknown { write, detail } = error else { panic!("{step:?}: {error}") };
        assert_eq!(write, Some(sent_before()), "{step:?}");
        assert_eq!(detail.outcome, Outcome::Unknown, "{step:?}");
    }
    fake.state().always.clear();
    let settled = client.cancel("k", &sent_before()).await.unwrap();
    assert_eq!(settled.result(), CancelResult::Barred);
}

#[tokio::test]
async fn an_unknown_outcome_can_be_settled_and_retried() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    everywhere(&fake, &Step::Hang);
    let error = put(&client, true).await.unwrap_err();
    let Error::Unknown { write: Some(id), detail } = error else {
        panic!("{error}");
    };
    assert!(!detail.request_id.is_empty());
    assert_eq!(id.to_string(), format!("{}/1", hex(&id.session)));

    fake.state().always.clear();
    let settled = client.cancel("k", &id).await.unwrap();
    assert_eq!(settled.result(), CancelResult::Answered);
    let again = client.put("k", "v").write_id(id.clone()).await.unwrap();
    assert!(again.replayed);
    // The number stays open for a retry; new writes use another session.
    client.put("k", "w").await.unwrap();
    let last = fake.writes().pop().unwrap().session.unwrap();
    assert_ne!(last.id, id.session);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test]
async fn a_read_that_times_out_is_not_applied() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    everywhere(&fake, &Step::Hang);
    let error = client.get("k").timeout(SHORT).await.unwrap_err();
    assert!(matches!(error, Error::NotApplied(_)), "{error}");
    assert_eq!(error.reason(), Some(Reason::ReadTimeout));
}

#[tokio::test]
async fn a_retry_waits_for_the_delay_that_the_node_gives() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let full = quorate_client::api::Failure {
        retry_after: Some(Duration::from_millis(150).try_into().unwrap()),
        ..failure(Reason::Overloaded)
    };
    fake.script(1, [Step::Fail(full.clone())]);
    let begun = std::time::Instant::now();
    client.put("k", "v").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(150));
    everywhere(&fake, &Step::Fail(full));
    let error = put(&client, true).await.unwrap_err();
    assert_eq!(error.detail().retry_after, Some(Duration::from_millis(150)));
}

#[tokio::test]
async fn a_request_that_no_node_would_decode_is_rejected_by_the_client() {
    let fake = FakeCluster::start(3);
    let client = client(&fake).await;
    let error = client.put("k", vec![0; 5 << 20]).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(error.reason(), Some(Reason::TooLarge));
    assert!(fake.writes().is_empty());
    // Above the limit of requests, but small enough to be decoded: the node decides.
    client.put("k", vec![0; 3 << 20]).await.unwrap();
}
