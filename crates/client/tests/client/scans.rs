//! Scans: pages, limits, and resumption after a broken stream.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use quorate_client::api::Reason;

use quorate_testkit::{FakeCluster, Row, Step, failure};

use crate::client;

async fn with_rows(n: usize) -> (FakeCluster, Vec<Bytes>) {
    let fake = FakeCluster::start(3);
    let rows: Vec<Bytes> = (0..n).map(|i| format!("row-{i:03}").into()).collect();
    {
        let mut state = fake.state();
        (state.message_rows, state.page_rows) = (2, 4);
        for (revision, key) in (1..).zip(&rows) {
            let row = Row { value: "v".into(), revision, create_revision: revision };
            state.store.rows.insert(key.clone(), row);
        }
    }
    (fake, rows)
}

#[tokio::test]
async fn a_scan_returns_the_rows_of_all_pages() {
    let (fake, rows) = with_rows(11).await;
    let client = client(&fake).await;
    let mut scan = client.scan().prefix("row-").rows();
    let mut got = Vec::new();
    while let Some(row) = scan.next().await.unwrap() {
        got.push(row.key);
    }
    assert_eq!(got, rows);
    assert_eq!(scan.receipts().len(), 3, "a page holds four rows");
    assert!(scan.next().await.unwrap().is_none(), "the end stays the end");
    let streamed: Vec<_> =
        client.scan().rows().into_stream().map(|r| r.unwrap().key).collect().await;
    assert_eq!(streamed, rows);
}

#[tokio::test]
async fn a_limit_holds_over_pages() {
    let (fake, rows) = with_rows(11).await;
    let client = client(&fake).await;
    for limit in [1, 4, 5, 8, 11, 20] {
        let got = client.scan().limit(limit).collect().await.unwrap();
        let keys: Vec<_> = got.into_iter().map(|r| r.key).collect();
        assert_eq!(keys, rows[..rows.len().min(limit as usize)], "limit {limit}");
    }
}

#[tokio::test]
async fn a_page_has_at_most_the_rows_asked_for() {
    let (fake, rows) = with_rows(11).await;
    let client = client(&fake).await;
    for (size, pages) in [(3, 4), (4, 3), (100, 3)] {
        let mut scan = client.scan().page_size(size).rows();
        let mut got = Vec::new();
        while let Some(row) = scan.next().await.unwrap() {
            got.push(row.key);
        }
        assert_eq!(got, rows, "pages of {size}");
        assert_eq!(scan.receipts().len(), pages, "pages of {size}");
        assert_eq!(client.scan().page_size(size).count().await.unwrap(), 11);
    }
}

#[tokio::test]
async fn counting_adds_pages_up() {
    let (fake, _) = with_rows(11).await;
    let client = client(&fake).await;
    assert_eq!(client.scan().count().await.unwrap(), 11);
    assert_eq!(client.scan().limit(6).count().await.unwrap(), 6);
    assert_eq!(client.scan().prefix("none").count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_broken_stream_is_resumed_after_its_last_row() {
    for breaks_after in 0..=3 {
        let (fake, rows) = with_rows(11).await;
        fake.state().scan_breaks_after = Some(breaks_after);
        let client = client(&fake).await;
        let got = client.scan().prefix("row-").collect().await.unwrap();
        let keys: Vec<_> = got.into_iter().map(|r| r.key).collect();
        assert_eq!(keys, rows, "broken after message {breaks_after}");
    }
}

#[tokio::test]
async fn a_scan_that_gets_nowhere_ends_with_its_timeout() {
    let (fake, _) = with_rows(3).await;
    fake.state().scan_breaks_after = Some(0);
    fake.state().every_scan_breaks = true;
    let client = client(&fake).await;
    let timeout = Duration::from_secs(2);
    let scan = client.scan().timeout(timeout).collect();
    let ended = tokio::time::timeout(timeout * 3, scan).await.expect("it ends");
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("the stream broke"), "{error}");
}

/// The attempt that runs out of time knows less than the one before it.
#[tokio::test]
async fn a_scan_that_runs_out_of_time_reports_how_its_stream_broke() {
    let (fake, _) = with_rows(3).await;
    fake.state().scan_breaks_after = Some(0);
    fake.state().every_scan_breaks = true;
    for node in 1..=3 {
        fake.script(node, [Step::Answer]);
        fake.always(node, Step::Hang);
    }
    let client = client(&fake).await;
    let error = client.scan().timeout(Duration::from_secs(2)).collect().await.unwrap_err();
    assert!(error.to_string().contains("the stream broke"), "{error}");
}

#[tokio::test]
async fn a_rejected_scan_ends_with_the_error() {
    let (fake, _) = with_rows(3).await;
    let client = client(&fake).await;
    for node in 1..=3 {
        fake.always(node, Step::Fail(failure(Reason::BadPageToken)));
    }
    let error = client.scan().collect().await.unwrap_err();
    assert!(matches!(error, quorate_client::Error::Invalid(_)), "{error}");
    assert_eq!(error.reason(), Some(Reason::BadPageToken));
}
