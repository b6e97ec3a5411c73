//! The watchdog of barriers: a disk that hangs ends the process, and the other nodes continue without it.

use std::time::Duration;

use crate::Engine;

/// A barrier that takes longer than this hangs.
pub const BARRIER_MAX: Duration = Duration::from_secs(30);

impl Engine {
    /// How long the barrier under way has taken, if that is too long for a disk that works.
    #[must_use]
    pub fn barrier_hangs(&self) -> Option<Duration> {
        self.log_busy_for().filter(|busy| *busy > BARRIER_MAX)
    }
}
