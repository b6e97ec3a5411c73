//! The clocks of the process: a monotonic clock that runs through suspend, for the Raft core, and
//! the wall clock in Unix milliseconds, for stamps.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_raft::Ticks;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of one tick (10 ms).
const NANOS_PER_TICK: u64 = 10_000_000;
/// One tick of the core's clock.
pub(crate) const TICK: Duration = Duration::from_nanos(NANOS_PER_TICK);

/// The source of time. It is a value instead of free functions, so that code that reads time has to
/// take one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

/// A reading of both clocks at one point in time, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock, as [`Clock::unix_millis`].
    pub wall_ms: u64,
    /// The time since boot. It cannot be set, so it measures how long ago a clock was read.
    pub boot_ms: u64,
}

impl Clock {
    /// Both clocks now.
    #[must_use]
    pub fn moment(self) -> Moment {
        Moment { wall_ms: self.unix_millis(), boot_ms: self.boot_nanos() / 1_000_000 }
    }

    /// The time since boot, suspend included (CLOCK_BOOTTIME), in ticks of 10 ms. It never goes
    /// back while the machine runs; readings from before and after a reboot cannot be compared.
    #[must_use]
    pub fn now(self) -> Ticks {
        Ticks(self.boot_nanos() / NANOS_PER_TICK)
    }

    fn boot_nanos(self) -> u64 {
        let time = clock_gettime(ClockId::Boottime);
        // The kernel never reports a negative time since boot, so neither part is.
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec).unwrap_or(0)
    }

    /// The wall clock in Unix milliseconds; 0 for a clock that shows a time before 1970.
    #[must_use]
    pub fn unix_millis(self) -> u64 {
        let shown = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        shown.saturating_add_signed(WALL_CLOCK_IS_OFF_BY_MS.load(Ordering::Relaxed))
    }
}

/// The error added to the wall clock of this process, in milliseconds.
static WALL_CLOCK_IS_OFF_BY_MS: AtomicI64 = AtomicI64::new(0);

/// Makes the wall clock of this process wrong by `by_ms` milliseconds, for the whole-system tests:
/// they need nodes whose clocks differ, on one machine. The clock of the Raft core is unaffected.
pub fn make_wall_clock_wrong(by_ms: i64) {
    WALL_CLOCK_IS_OFF_BY_MS.store(by_ms, Ordering::Relaxed);
}

/// The file in which Linux identifies the current boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The identity of the machine's current boot; `None` where the system does not report one. Then
/// any stop may have lost what the kernel held.
pub(crate) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string(BOOT_ID).ok()?;
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_hundredths_of_the_uptime_of_the_machine() {
        // /proc/uptime is the kernel's own rendering of the same clock, in hundredths of a second.
        let uptime = || {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
            (seconds * 100.0).round() as u64
        };
        let (before, Ticks(now), after) = (uptime(), Clock.now(), uptime());
        assert!(before <= now && now <= after + 1, "{before} {now} {after}");
    }

    #[test]
    fn the_wall_clock_is_in_milliseconds() {
        // Between 2020 and 2100: a factor of a thousand either way is far outside.
        assert!((1_577_836_800_000..4_102_444_800_000).contains(&Clock.unix_millis()));
    }

    #[test]
    fn the_boot_id_does_not_change_while_the_machine_runs() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(boot_id(), Some(id));
    }
}
