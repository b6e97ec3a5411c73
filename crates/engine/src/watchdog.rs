//! The watchdog of barriers: a disk that hangs ends the process, and the other nodes continue
//! without it.

use std::time::Duration;

use crate::Engine;

/// A barrier that takes longer than this counts as hanging.
const BARRIER_MAX: Duration = Duration::from_secs(30);

impl Engine {
    /// How long the barrier in progress has taken, if that is longer than 30 s.
    #[must_use]
    pub fn barrier_hangs(&self) -> Option<Duration> {
        self.log_busy_for().filter(|busy| *busy > BARRIER_MAX)
    }
}
