//! Ctrl-C or SIGTERM, which ends a command in the same order, and what may be under way when it comes.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_client::{WriteId, WriteIdSlot};
use tokio::sync::watch;

use crate::exit::Exit;

/// Listens for Ctrl-C and knows which writes are out. Clones share one state.
#[derive(Clone)]
pub struct Interrupt {
    seen: watch::Receiver<u32>,
    /// Which Ctrl-C ends the process: the first, or the second where the command has use for the first.
    ends_at: Arc<AtomicU32>,
    out: Arc<Out>,
}

#[derive(Default)]
struct Out {
    writes: AtomicUsize,
    /// Where the only write of this command leaves its identity, so that it can be asked again.
    single: Mutex<Option<WriteIdSlot>>,
}

impl Interrupt {
    /// Begins to listen; must be called within the runtime.
    pub fn listen() -> Interrupt {
        use tokio::signal::unix::{SignalKind, signal};
        let (sender, seen) = watch::channel(0);
        // Here and not in the task, so that none is missed once the command has begun.
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
            // Without a handler Ctrl-C still ends the process; nobody is to be told.
            std::future::pending::<()>().await;
        });
        Interrupt { seen, ends_at: Arc::new(AtomicU32::new(1)), out: Arc::default() }
    }

    /// The command itself acts on the first Ctrl-C; only the second one ends it.
    pub fn take_first(&self) {
        self.ends_at.store(2, Ordering::Relaxed);
    }

    /// The first Ctrl-C.
    pub async fn first(&self) {
        self.after(|| 1).await;
    }

    /// The Ctrl-C that ends the process.
    pub async fn last(&self) {
        self.after(|| self.ends_at.load(Ordering::Relaxed)).await;
    }

    async fn after(&self, count: impl Fn() -> u32) {
        let mut seen = self.seen.clone();
        if seen.wait_for(|seen| *seen >= count()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A write of many is out until the guard is dropped.
    pub fn write_out(&self) -> WriteOut {
        self.out.writes.fetch_add(1, Ordering::Relaxed);
        WriteOut(Arc::clone(&self.out))
    }

    /// The only write of the command is out from when its identity is in `slot` until the guard is
    /// dropped; one that is asked again has been out since an earlier command.
    pub fn single_write_out(&self, slot: &WriteIdSlot) -> WriteOut {
        *self.single() = Some(slot.clone());
        self.write_out()
    }

    /// How a command that is interrupted now ends, and the write that is out if it is the only one.
    pub fn exit(&self) -> (Exit, Option<WriteId>) {
        if self.out.writes.load(Ordering::Relaxed) == 0 {
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
        self.out.single.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write that was sent and not answered.
pub struct WriteOut(Arc<Out>);

impl Drop for WriteOut {
    fn drop(&mut self) {
        self.0.writes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_that_is_out_is_an_unknown_outcome() {
        let interrupt = Interrupt::listen();
        assert_eq!(interrupt.exit(), (Exit::Interrupted, None));
        let out = interrupt.write_out();
        assert_eq!(interrupt.exit(), (Exit::Unknown, None));
        drop(out);
        assert_eq!(interrupt.exit().0, Exit::Interrupted);
        // A single write is not out before it has an identity.
        let _out = interrupt.single_write_out(&WriteIdSlot::default());
        assert_eq!(interrupt.exit(), (Exit::Interrupted, None));
    }
}
