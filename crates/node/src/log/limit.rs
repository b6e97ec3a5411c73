//! The limit of lines from one place of the code: a burst, and then one each second.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::Event;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};

/// Lines that a place may log at once.
const BURST: u32 = 50;
/// Time after which it may log one more.
const STEP: Duration = Duration::from_secs(1);
/// A longer message of a line that was left out is cut here, in characters.
const LIKE_CHARS: usize = 100;

/// The places that have logged. There are never more of them than the code has.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    /// When the place has no debt: each line adds one step to it.
    free_at: Instant,
    /// Lines left out since the last report, and the message of the first of them.
    left_out: u64,
    like: String,
}

impl Place {
    fn admits(&mut self, now: Instant) -> bool {
        let free_at = self.free_at.max(now) + STEP;
        let admitted = free_at <= now + STEP * BURST;
        if admitted {
            self.free_at = free_at;
        }
        admitted
    }
}

impl Limiter {
    /// Whether this event is logged.
    pub(super) fn admits(&self, event: &Event<'_>) -> bool {
        self.admits_at(event.metadata().callsite(), Instant::now(), || message(event))
    }

    fn admits_at(&self, place: Identifier, now: Instant, like: impl FnOnce() -> String) -> bool {
        let mut places = self.places.lock();
        let new = || Place { free_at: now, left_out: 0, like: String::new() };
        let place = places.entry(place).or_insert_with(new);
        let admitted = place.admits(now);
        if !admitted {
            if place.left_out == 0 {
                place.like = like();
            }
            place.left_out += 1;
        }
        admitted
    }

    /// Logs how many lines were left out since the last time.
    pub(super) fn report(&self) {
        for (count, like) in self.take() {
            tracing::warn!(count, like, "log: lines left out, they repeat");
        }
    }

    fn take(&self) -> Vec<(u64, String)> {
        // A panic inside the lock is reported too, by the thread that holds it.
        let Some(mut places) = self.places.try_lock() else { return Vec::new() };
        let left_out = places.values_mut().filter(|place| place.left_out > 0);
        left_out
            .map(|place| (std::mem::take(&mut place.left_out), std::mem::take(&mut place.like)))
            .collect()
    }
}

fn message(event: &Event<'_>) -> String {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}").chars().take(LIKE_CHARS).collect();
            }
        }
    }
    let mut message = Message(String::new());
    event.record(&mut message);
    message.0
}

#[cfg(test)]
mod tests {
    use tracing::callsite::Callsite;

    use super::*;

    fn place(number: usize) -> Identifier {
        // A call site each.
        let sites: [&dyn Callsite; 2] = [
            tracing::callsite!(name: "one", kind: tracing::metadata::Kind::EVENT, fields: message),
            tracing::callsite!(name: "two", kind: tracing::metadata::Kind::EVENT, fields: message),
        ];
        sites[number].metadata().callsite()
    }

    #[test]
    fn a_place_logs_a_burst_and_then_a_line_each_second_and_says_what_it_left_out() {
        let limiter = Limiter::default();
        let began = Instant::now();
        let lines = |place_number: usize, seconds: u64, lines: usize| {
            let now = began + Duration::from_secs(seconds);
            (0..lines)
                .filter(|number| {
                    limiter.admits_at(place(place_number), now, || format!("line {number}"))
                })
                .count()
        };
        assert_eq!(lines(0, 0, 100), 50);
        assert_eq!(lines(1, 0, 10), 10, "another place has a limit of its own");
        assert_eq!(limiter.take(), [(50, "line 50".to_owned())]);
        assert_eq!(limiter.take(), []);
        assert_eq!(lines(0, 3, 100), 3);
        assert_eq!(limiter.take(), [(97, "line 3".to_owned())]);
        assert_eq!(lines(0, 1_000, 51), 50, "a quiet place may log a burst again, and no more");
    }
}
