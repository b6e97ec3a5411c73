//! Barriers: they make inserts and removes durable, and bound the bytes written between two of
//! them.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::Database;
use crate::crash;
use crate::error::{Result, StorageError};

/// The most bytes of keys and values that the whole process inserts between two barriers: 512 KiB.
/// Removes count as well.
pub const BARRIER_BYTES: u64 = 512 << 10;

/// The barriers of one database, and the bytes that they are counted by.
#[derive(Default)]
pub(super) struct Barriers {
    /// Bytes that writers have announced, ever. `inserted <= reserved`.
    reserved: AtomicU64,
    /// Bytes whose insert has returned, ever. `durable <= inserted`.
    pub(super) inserted: AtomicU64,
    /// Value of `inserted` when the last completed barrier began.
    pub(super) durable: AtomicU64,
    state: Mutex<State>,
    done: Condvar,
}

/// Barriers are numbered from 1 and run one at a time.
#[derive(Default)]
struct State {
    begun: u64,
    completed: u64,
    is_running: bool,
}

#[cfg(test)]
impl Barriers {
    /// The number of completed barriers.
    pub(super) fn completed(&self) -> u64 {
        self.state.lock().completed
    }
}

impl Database {
    /// Makes every insert and remove durable that returned before this call. Concurrent callers
    /// share one flush: a caller begins one if none is running, and callers that arrive while one
    /// is running wait for the next.
    ///
    /// # Errors
    /// [`StorageError::Barrier`] to the caller that ran it, [`StorageError::Poisoned`] to the
    /// others. The database is closed then; nothing is retried.
    pub fn barrier(&self) -> Result<()> {
        let result = self.run_or_await_barrier();
        self.give_back();
        result
    }

    fn run_or_await_barrier(&self) -> Result<()> {
        let barriers = &self.0.barriers;
        let mut state = barriers.state.lock();
        // A running barrier may have missed this caller's writes: the next one counts.
        let mine = state.begun + 1;
        loop {
            self.check_poisoned()?;
            if state.completed >= mine {
                return Ok(());
            }
            if state.is_running {
                barriers.done.wait(&mut state);
                continue;
            }
            state.begun += 1;
            state.is_running = true;
            drop(state);
            let result = self.flush_and_sync();
            state = barriers.state.lock();
            state.is_running = false;
            if result.is_ok() {
                state.completed = state.begun;
            }
            barriers.done.notify_all();
            result?;
        }
    }

    fn flush_and_sync(&self) -> Result<()> {
        let inner = &*self.0;
        let inserted = inner.barriers.inserted.load(Ordering::SeqCst);
        crash::point("barrier.flush");
        let flush = || inner.db.flush();
        inner.syncs.watched("flush", &inner.file_path, flush).map_err(|error| {
            self.fail(StorageError::Barrier {
                stage: "flush",
                path: inner.file_path.clone(),
                message: error.to_string(),
            })
        })?;
        crash::point("barrier.sync");
        inner.syncs.data(&inner.file_path, &inner.file).map_err(|error| {
            self.fail(StorageError::Barrier {
                stage: "fdatasync",
                path: inner.file_path.clone(),
                message: error.to_string(),
            })
        })?;
        crash::point("barrier.done");
        inner.barriers.durable.fetch_max(inserted, Ordering::SeqCst);
        self.see_space();
        Ok(())
    }

    /// Announces an insert of `bytes`; runs or awaits barriers while they exceed [`BARRIER_BYTES`].
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        debug_assert!(bytes <= BARRIER_BYTES);
        self.check_poisoned()?;
        let barriers = &self.0.barriers;
        loop {
            let reserved = barriers.reserved.fetch_add(bytes, Ordering::SeqCst) + bytes;
            let open = reserved.saturating_sub(barriers.durable.load(Ordering::SeqCst));
            if open <= BARRIER_BYTES {
                return Ok(());
            }
            barriers.reserved.fetch_sub(bytes, Ordering::SeqCst);
            self.barrier()?;
        }
    }

    /// Counts an insert or a remove that has returned.
    pub(super) fn written(&self, bytes: u64) {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        self.0.barriers.inserted.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Frees memory of pages and buffers that were replaced and that no reader can see any more.
    ///
    /// The database leaves that to the thread that has replaced them, at its 64th replacement and
    /// its 128th operation, and so to no thread at the end of a load; but what waits may be buffers
    /// of whole segments, 8 MiB each. Here a thread hands over what it has replaced; it is freed at
    /// the second or third call of any thread. A call costs about a microsecond.
    pub fn give_back(&self) {
        sled::pin().flush();
    }
}
