//! Quarantine: the guarded sections in which a panic does not end the process.
//!
//! Some places handle bytes that may be damaged and can be given up as a whole: opening the storage, from
//! the engine to the last replica, and the apply, the checkpoint and the scrub of one shard; each call of
//! the storage engine turns a panic into an error itself. A panic inside [`guarded`] is an error of that section; the node's panic hook asks
//! [`is_guarded`] and ends the process for every other one.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A panic that happened inside [`guarded`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// What the panic said.
    pub message: String,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl std::error::Error for Panicked {}

thread_local! {
    /// How many guarded sections this thread is in.
    static GUARDED: Cell<usize> = const { Cell::new(0) };
}

/// How many [`guarded_open`] sections run in the process.
static OPENING: AtomicUsize = AtomicUsize::new(0);

/// Threads of the storage engine: while it is being opened their panics are its failure to open.
const ENGINE_THREADS: &str = "sled";

/// Runs `f`; a panic in it (on this thread) is returned instead of ending the process.
///
/// The caller must throw away everything that `f` could have left half changed: that is what makes
/// asserting unwind safety right here.
pub fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, Panicked> {
    GUARDED.set(GUARDED.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(GUARDED.get() - 1);
    result.map_err(|payload| Panicked { message: payload_text(payload.as_ref()).to_owned() })
}

/// [`guarded`] for the opening of the storage: a panic of one of the engine's own threads, which it
/// starts while it opens, does not end the process either.
pub fn guarded_open<T>(f: impl FnOnce() -> T) -> Result<T, Panicked> {
    OPENING.fetch_add(1, Ordering::SeqCst);
    let result = guarded(f);
    OPENING.fetch_sub(1, Ordering::SeqCst);
    result
}

/// Whether a panic of the current thread belongs to a guarded section.
#[must_use]
pub fn is_guarded() -> bool {
    if GUARDED.get() > 0 || quorate_storage::panic_is_caught() {
        return true;
    }
    let thread = std::thread::current();
    OPENING.load(Ordering::SeqCst) > 0
        && thread.name().is_some_and(|name| name.starts_with(ENGINE_THREADS))
}

/// What a panic said.
pub fn payload_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(a panic without a text)"
    }
}
