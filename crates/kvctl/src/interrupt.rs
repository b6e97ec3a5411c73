//! Ctrl-C, and what may be under way when it comes.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::again::WriteId;
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
    /// The identity of the only write of this command, so that it can be asked again.
    single: Mutex<Option<WriteId>>,
}

impl Interrupt {
    /// Begins to listen; must be called within the runtime.
    pub fn listen() -> Interrupt {
        let (sender, seen) = watch::channel(0);
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                sender.send_modify(|count| *count += 1);
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

    /// A write is out until the guard is dropped.
    pub fn write_out(&self, id: Option<WriteId>) -> WriteOut {
        self.out.writes.fetch_add(1, Ordering::Relaxed);
        *self.out.single.lock().unwrap_or_else(PoisonError::into_inner) = id;
        WriteOut(Arc::clone(&self.out))
    }

    /// How a command that is interrupted now ends, and the write that is out if it is the only one.
    pub fn exit(&self) -> (Exit, Option<WriteId>) {
        if self.out.writes.load(Ordering::Relaxed) == 0 {
            return (Exit::Interrupted, None);
        }
        (Exit::Unknown, self.out.single.lock().unwrap_or_else(PoisonError::into_inner).clone())
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
        let id = WriteId { session: vec![1; 24].into(), sequence: 1 };
        let out = interrupt.write_out(Some(id.clone()));
        assert_eq!(interrupt.exit(), (Exit::Unknown, Some(id)));
        drop(out);
        assert_eq!(interrupt.exit().0, Exit::Interrupted);
    }
}
