//! Ctrl-C and SIGTERM, which end a command in the same orderly way, and the writes that are in
//! flight.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_client::{WriteId, WriteIdSlot};
use tokio::sync::watch;

use crate::exit::Exit;

/// Listens for Ctrl-C and tracks the writes in flight. Clones share one state.
#[derive(Clone)]
pub struct Interrupt {
    seen: watch::Receiver<u32>,
    /// Number of the Ctrl-C that ends the process: the second if the command handles the first
    /// itself.
    ends_at: Arc<AtomicU32>,
    in_flight: Arc<InFlight>,
}

#[derive(Default)]
struct InFlight {
    writes: AtomicUsize,
    /// The slot with the id of the only write of this command, for a retry.
    single: Mutex<Option<WriteIdSlot>>,
}

impl Interrupt {
    /// Starts to listen; must be called within the runtime.
    pub fn listen() -> Interrupt {
        use tokio::signal::unix::{SignalKind, signal};
        let (sender, seen) = watch::channel(0);
        // Registered here and not in the task, so that no signal is missed once the command runs.
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        tokio::spawn(async move {
            if let (Ok(mut interrupts), Ok(mut ends)) = signals {
                loop {
                    tokio::select! {
                        _ = interrupts.recv() => {}
                        _ = ends.recv() => {}
                    }
                    sender.send_modify(|count| *count += 1);
                }
            }
            // Without a handler Ctrl-C ends the process by itself; there is nothing to report.
            std::future::pending::<()>().await;
        });
        Interrupt { seen, ends_at: Arc::new(AtomicU32::new(1)), in_flight: Arc::default() }
    }

    /// Lets the command handle the first Ctrl-C itself; only the second one ends the process.
    pub fn take_first(&self) {
        self.ends_at.store(2, Ordering::Relaxed);
    }

    /// Waits for the first Ctrl-C.
    pub async fn first(&self) {
        self.after(|| 1).await;
    }

    /// Waits for the Ctrl-C that ends the process.
    pub async fn last(&self) {
        self.after(|| self.ends_at.load(Ordering::Relaxed)).await;
    }

    async fn after(&self, count: impl Fn() -> u32) {
        let mut seen = self.seen.clone();
        if seen.wait_for(|seen| *seen >= count()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Counts one of several writes as in flight until the guard is dropped.
    pub fn write_in_flight(&self) -> WriteInFlight {
        self.in_flight.writes.fetch_add(1, Ordering::Relaxed);
        WriteInFlight(Arc::clone(&self.in_flight))
    }

    /// Counts the only write of the command as in flight from when its id is in `slot` until the
    /// guard is dropped. A retried write has been in flight since an earlier command.
    pub fn single_write_in_flight(&self, slot: &WriteIdSlot) -> WriteInFlight {
        *self.single() = Some(slot.clone());
        self.write_in_flight()
    }

    /// The exit code of a command that is interrupted now, and the id of the write in flight if it
    /// is the only one.
    pub fn exit(&self) -> (Exit, Option<WriteId>) {
        if self.in_flight.writes.load(Ordering::Relaxed) == 0 {
            return (Exit::Interrupted, None);
        }
        match &*self.single() {
            None => (Exit::Unknown, None),
            Some(slot) => match slot.get() {
                None => (Exit::Interrupted, None),
                sent => (Exit::Unknown, sent),
            },
        }
    }

    fn single(&self) -> MutexGuard<'_, Option<WriteIdSlot>> {
        self.in_flight.single.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of a write that was sent and is not yet answered.
#[must_use = "the write counts as in flight until the guard is dropped"]
pub struct WriteInFlight(Arc<InFlight>);

impl Drop for WriteInFlight {
    fn drop(&mut self) {
        self.0.writes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interrupted_write_in_flight_has_an_unknown_outcome() {
        let interrupt = Interrupt::listen();
        assert_eq!(interrupt.exit(), (Exit::Interrupted, None));
        let in_flight = interrupt.write_in_flight();
        assert_eq!(interrupt.exit(), (Exit::Unknown, None));
        drop(in_flight);
        assert_eq!(interrupt.exit().0, Exit::Interrupted);
        // A single write is not in flight before it has an id.
        let _in_flight = interrupt.single_write_in_flight(&WriteIdSlot::default());
        assert_eq!(interrupt.exit(), (Exit::Interrupted, None));
    }
}
