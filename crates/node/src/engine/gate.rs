//! Where readers wait until their replica has applied far enough.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use quorate_raft::Index;
use tokio::sync::oneshot;

/// Tells waiting readers when a replica has applied an index.
///
/// The apply thread calls [`Gate::open`] after each batch; with no reader waiting that costs one
/// store and one load. Waiters are bounded by the requests in flight: each request waits at most
/// once, and a waiter whose request is gone is dropped at the next opening at or above its index.
#[derive(Debug, Default)]
pub struct Gate {
    applied: AtomicU64,
    waiting: AtomicUsize,
    waiters: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
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
        let still_waiting = waiters.split_off(&(applied.0 + 1));
        let ready = std::mem::replace(&mut *waiters, still_waiting);
        let count: usize = ready.values().map(Vec::len).sum();
        self.waiting.fetch_sub(count, Ordering::SeqCst);
        drop(waiters);
        for waiter in ready.into_values().flatten() {
            // A reader that gave up in the meantime is no loss.
            let _ = waiter.send(());
        }
    }

    /// Waits until `index` is applied. The caller bounds the wait with its deadline.
    pub async fn wait(&self, index: Index) {
        if self.applied() >= index {
            return;
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiters = self.waiters.lock();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            if self.applied.load(Ordering::SeqCst) >= index.0 {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            waiters.entry(index.0).or_default().push(sender);
        }
        if receiver.await.is_err() {
            // The gate itself is gone: the node is ending, and the deadline answers the reader.
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
}
