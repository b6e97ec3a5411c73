//! Scans that are not read, beside writes.

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
