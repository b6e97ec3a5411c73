//! Quarantine: the guarded sections in which a panic does not end the process.
//!
//! Some sections handle bytes that may be damaged, and their work can be discarded as a whole:
//! opening the storage, from the database to the last replica, and the apply, the checkpoint and
//! the scrub of one shard. A panic inside [`guarded`] is an error of its section; the node's panic
//! hook asks [`is_guarded`] and ends the process for every other panic. Calls of the storage engine
//! turn their panics into errors themselves.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A panic that happened inside [`guarded`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// The message of the panic.
    pub message: String,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl std::error::Error for Panicked {}

thread_local! {
    /// The number of guarded sections that this thread is in.
    static GUARDED: Cell<usize> = const { Cell::new(0) };
}

/// The number of [`guarded_open`] sections in progress in the process.
static OPENING: AtomicUsize = AtomicUsize::new(0);

/// The name prefix of the storage engine's threads: while it is being opened, a panic of theirs is
/// a failure to open it.
const ENGINE_THREADS: &str = "sled";

/// Runs `f`; a panic in it, on this thread, is returned instead of ending the process.
///
/// The caller must discard everything that `f` could have left half changed: that makes the
/// assertion of unwind safety correct.
///
/// # Errors
/// The panic.
pub fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, Panicked> {
    GUARDED.set(GUARDED.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(GUARDED.get() - 1);
    result.map_err(|payload| Panicked { message: payload_text(payload.as_ref()).to_owned() })
}

/// [`guarded`] for the opening of the storage: a panic on a thread that the storage engine starts
/// meanwhile does not end the process either.
///
/// # Errors
/// A panic on this thread.
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

/// The message of a panic.
#[must_use]
pub fn payload_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(a panic without a message)"
    }
}
