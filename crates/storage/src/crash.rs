//! Crash points, at which a test may end the process and then check what is on the disk.
//!
//! A *crash point* is before and after each write of storage. Without the feature `testing` it
//! compiles to nothing; with it, the process kills itself with SIGKILL at the point whose number
//! was passed to `arm`, like an operator's `kill -9` at exactly that instruction.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering};

/// Points passed since the process started or [`arm`] was called.
#[cfg(feature = "testing")]
static PASSED: AtomicU64 = AtomicU64::new(0);

/// The number of the point at which the process dies; 0 = never.
#[cfg(feature = "testing")]
static FATAL: AtomicU64 = AtomicU64::new(0);

/// Restarts the count, and kills the process at the `fatal`-th point from here (0 = never).
#[cfg(feature = "testing")]
pub fn arm(fatal: u64) {
    PASSED.store(0, Ordering::SeqCst);
    FATAL.store(fatal, Ordering::SeqCst);
}

/// Points passed since [`arm`].
#[cfg(feature = "testing")]
pub fn passed() -> u64 {
    PASSED.load(Ordering::SeqCst)
}

/// A crash point. The name is only for readers of the code and for a debugger.
#[cfg(feature = "testing")]
pub(crate) fn point(_name: &'static str) {
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if number == FATAL.load(Ordering::SeqCst) {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).ok();
        // Until the signal arrives, nothing more may be written.
        loop {
            std::thread::park();
        }
    }
}

/// A crash point; it does nothing without the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}
