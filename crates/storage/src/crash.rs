//! Points at which a test may end the process, to see what the disk then holds.
//!
//! A *crash point* stands before and after each write that storage makes. Without the feature
//! `testing` it is nothing at all; with it, the process kills itself with SIGKILL at the point
//! whose number `arm` was given, as an operator's `kill -9` would, at exactly that instruction.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering};

/// Points passed since the process started or [`arm`] was called.
#[cfg(feature = "testing")]
static PASSED: AtomicU64 = AtomicU64::new(0);

/// The point at which to die; 0 for never.
#[cfg(feature = "testing")]
static FATAL: AtomicU64 = AtomicU64::new(0);

/// Counts from zero again and dies at the `fatal`-th point from here (0: never).
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

/// A crash point. The name is for the reader of the code and of a debugger.
#[cfg(feature = "testing")]
pub(crate) fn point(_name: &'static str) {
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if number == FATAL.load(Ordering::SeqCst) {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).ok();
        // The signal is on its way; nothing more may be written.
        loop {
            std::thread::park();
        }
    }
}

/// A crash point: nothing in a build that is not a test.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}
