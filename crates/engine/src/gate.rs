//! The applied-index gate, at which readers wait until their replica has applied far enough.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use quorate_raft::Index;
use tokio::sync::oneshot;

/// Wakes waiting readers when a replica has applied an index.
///
/// The apply thread calls [`Gate::open`] after each batch; with no reader waiting that costs one
/// store and one load. Waiters are bounded by the requests in flight: each request waits at most
/// once, and its waiter is removed when it ends. The index may never be applied.
#[derive(Debug, Default)]
pub struct Gate {
    applied: AtomicU64,
    /// The number of waiters; changes only under their lock.
    waiting: AtomicUsize,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    /// Ordered by index, then by arrival.
    by_index: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    next: u64,
}

/// A guard that removes a waiter from the gate when its request ends, however it ends.
struct Waiting<'a> {
    gate: &'a Gate,
    key: (u64, u64),
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // `open` has already removed it, unless the request gave up before.
        if self.gate.waiters.lock().by_index.remove(&self.key).is_some() {
            self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Gate {
    /// A gate of a replica that has applied up to `applied`.
    #[must_use]
    pub fn new(applied: Index) -> Self {
        Self { applied: AtomicU64::new(applied.0), ..Self::default() }
    }

    /// The index up to which the gate is open.
    #[must_use]
    pub fn applied(&self) -> Index {
        Index(self.applied.load(Ordering::Acquire))
    }

    /// Opens the gate up to `applied`. It never closes again: a lower index is ignored.
    pub fn open(&self, applied: Index) {
        // SeqCst on both sides of this store and of the pair in `wait`: either the waiter sees the
        // new index, or this thread sees the waiter.
        self.applied.fetch_max(applied.0, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut waiters = self.waiters.lock();
        let still_waiting = waiters.by_index.split_off(&(applied.0 + 1, 0));
        let ready = std::mem::replace(&mut waiters.by_index, still_waiting);
        self.waiting.fetch_sub(ready.len(), Ordering::SeqCst);
        drop(waiters);
        for waiter in ready.into_values() {
            // The receiver may be gone; ignore it.
            let _ = waiter.send(());
        }
    }

    /// Waits until `index` is applied. The caller bounds the wait with its deadline.
    pub async fn wait(&self, index: Index) {
        if self.applied() >= index {
            return;
        }
        let (sender, receiver) = oneshot::channel();
        let _waiting = {
            let mut waiters = self.waiters.lock();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            if self.applied.load(Ordering::SeqCst) >= index.0 {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            let key = (index.0, waiters.next);
            waiters.next += 1;
            waiters.by_index.insert(key, sender);
            Waiting { gate: self, key }
        };
        if receiver.await.is_err() {
            // The gate was dropped: the node is ending, and the deadline answers the reader.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_reader_passes_only_when_its_index_is_applied() {
        let gate = Arc::new(Gate::new(Index(5)));
        gate.wait(Index(5)).await;
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.wait(Index(7)).await }
        });
        while gate.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        gate.open(Index(6));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.open(Index(8));
        waiting.await.expect("the waiter ends");
        assert_eq!(gate.waiting.load(Ordering::SeqCst), 0);
        gate.open(Index(3));
        assert_eq!(gate.applied(), Index(8), "a gate never closes again");
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_leaves_nothing_behind() {
        let gate = Gate::new(Index(5));
        for index in [6, 6, 7, u64::MAX] {
            let wait = gate.wait(Index(index));
            let waited = tokio::time::timeout(std::time::Duration::from_millis(1), wait).await;
            assert!(waited.is_err(), "{index} is not applied");
        }
        assert_eq!(gate.waiting.load(Ordering::SeqCst), 0);
        assert!(gate.waiters.lock().by_index.is_empty());
    }
}
