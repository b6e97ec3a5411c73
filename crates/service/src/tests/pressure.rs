//! Writes beside scans that are not read, and small ones beside large ones.

use super::*;

/// The bytes of a value, and the rows: more than what may wait unread, and less than half of the
/// delta.
const VALUE: usize = 64 << 10;
const ROWS: usize = 54;

fn key(row: usize) -> String {
    format!("key{row:03}")
}

#[test]
fn a_scan_that_is_not_read_yields_to_writes_and_continues_by_its_token() {
    run(|node| async {
        let limit = node.shared.budget.limit();
        for row in 0..ROWS {
            node.put(&key(row), vec![1; VALUE]).await;
        }
        assert!(node.shared.budget.used() < limit / 2, "the scan begins with room");
        // Each pin keeps a version of every row, together more than the limit of the delta.
        let mut scans = Vec::new();
        for round in 2..2 + limit as usize / (ROWS * VALUE) + 2 {
            scans.push(node.scan("30S", ScanRequest::default()).await);
            for row in 0..ROWS {
                let value = vec![round as u8; VALUE].into();
                let put = PutRequest { key: key(row).into(), value, ..PutRequest::default() };
                let refused = node.kv.put(Request::new(put)).await.err();
                assert!(refused.is_none(), "put {row} of round {round}: {refused:?}");
            }
        }
        let all: Vec<Bytes> = (0..ROWS).map(|row| key(row).into()).collect();
        let (mut keys, last) = page(scans.swap_remove(0)).await;
        assert!(!last.next_page_token.is_empty(), "its page ended early");
        let request = ScanRequest { page_token: last.next_page_token, ..ScanRequest::default() };
        drop(scans);
        keys.extend(page(node.scan("30S", request).await).await.0);
        assert_eq!(keys, all);
        node.stop();
    });
}

/// The answer to a write of a value of this size.
async fn answer(node: &Node, row: usize, bytes: usize) -> Result<(), tonic::Status> {
    let value = vec![1; bytes].into();
    let put = PutRequest { key: key(row).into(), value, ..PutRequest::default() };
    node.kv.put(Request::new(put)).await.map(|_| ())
}

#[test]
fn large_writes_fill_what_they_may_and_small_ones_are_still_taken() {
    run(|node| async move {
        // A pin keeps every version in the deltas, so that no checkpoint makes room.
        let pin = node.scan("30S", ScanRequest::default()).await;
        let limit = node.shared.budget.limit();
        let (mut filled, mut small) = (false, 0);
        for row in 0..200 {
            let large = answer(&node, row, 1 << 20).await;
            filled |= large.is_err();
            if filled {
                small += 1;
                let refused = answer(&node, 1_000 + row, 1).await.err();
                assert!(refused.is_none(), "small write {small}: {refused:?}");
            }
        }
        assert!(filled && node.shared.budget.used() <= limit + (1 << 20), "of {limit} bytes");
        drop(pin);
        node.stop();
    });
}

#[test]
fn a_flood_of_large_writes_refuses_no_small_one() {
    run(|node| async move {
        let node = Arc::new(node);
        let flood = (0..64).map(|at: usize| {
            let node = node.clone();
            tokio::spawn(async move {
                let (mut taken, mut refused) = (0, 0);
                for round in 0..8 {
                    match answer(&node, 64 * round + at, 1 << 20).await {
                        Ok(()) => taken += 1,
                        Err(status) => {
                            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                            refused += 1;
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                (taken, refused)
            })
        });
        let flood: Vec<_> = flood.collect();
        let mut row = 10_000;
        while flood.iter().any(|client| !client.is_finished()) {
            row += 1;
            let refused = answer(&node, row, 1).await.err();
            assert!(refused.is_none(), "small write {}: {refused:?}", row - 10_000);
        }
        let mut all = (0, 0);
        for client in flood {
            let (taken, refused) = client.await.expect("it ends");
            all = (all.0 + taken, all.1 + refused);
        }
        assert!(all.0 > 0 && all.1 > 0, "{all:?} large writes taken and refused");
        assert_eq!(node.shared.admission.writes.large_bytes(), 0, "all is given back");
        Arc::into_inner(node).expect("no client is left").stop();
    });
}
