//! The retry budget of a client: retries that load a node which is merely slow are a fraction of
//! its calls, so that they cannot multiply an overload.

use std::time::Instant;

use parking_lot::Mutex;

/// What each call adds: one retry for ten calls.
const PER_CALL: f64 = 0.1;
/// What each second adds, so that a client with few calls can retry them.
const PER_SECOND: f64 = 10.0;
/// The greatest budget: it must not grow for an hour and be spent in the first second of an
/// overload.
const RETRIES_MAX: f64 = 100.0;
/// The budget of a new client.
const RETRIES_FIRST: f64 = 10.0;

/// Retries that the calls of a client may make.
#[derive(Debug)]
pub(crate) struct RetryBudget(Mutex<State>);

#[derive(Debug)]
struct State {
    retries: f64,
    at: Instant,
}

impl RetryBudget {
    pub fn new() -> Self {
        RetryBudget(Mutex::new(State { retries: RETRIES_FIRST, at: Instant::now() }))
    }

    /// Notes a call, which has one attempt for free.
    pub fn called(&self) {
        let mut state = self.0.lock();
        state.retries = (state.retries + PER_CALL).min(RETRIES_MAX);
    }

    /// Takes one retry out of the budget, if there is one.
    #[must_use]
    pub fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.at = now;
        state.retries = (state.retries + passed * PER_SECOND).min(RETRIES_MAX);
        let enough = state.retries >= 1.0;
        if enough {
            state.retries -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many retries can be taken at this time.
    fn left(budget: &RetryBudget, at: Instant) -> usize {
        std::iter::repeat_with(|| budget.take_at(at)).take_while(|taken| *taken).count()
    }

    #[test]
    fn one_retry_for_ten_calls_and_a_few_for_the_time() {
        let budget = RetryBudget::new();
        let begun = budget.0.lock().at;
        assert_eq!(left(&budget, begun), 10, "single calls retry at once");
        (0..105).for_each(|_| budget.called());
        assert_eq!(left(&budget, begun), 10);
        assert_eq!(left(&budget, begun + Duration::from_millis(1_060)), 11);
        (0..100_000).for_each(|_| budget.called());
        let later = begun + Duration::from_secs(3_600);
        assert_eq!(left(&budget, later), 100, "nothing is saved up for an overload");
    }
}
