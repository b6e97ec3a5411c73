//! Flow control towards one node: no more calls are under way at it than it takes, and the others
//! wait here, where that costs nothing and they are certainly not applied.
//!
//! The window follows refusals for overload as that of TCP follows losses: it shrinks by a part
//! with a refusal and grows by a little with each full window of answers.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The greatest window: what a node takes on one connection by default. Beyond that the library
/// would hold calls back, and whether they were sent could not be seen.
const WINDOW_MAX: f64 = 256.0;
/// The first window. A client that begins with more calls than that asks step by step for more.
const WINDOW_FIRST: f64 = 64.0;
/// The least window: some calls ask the node how it is.
const WINDOW_MIN: f64 = 4.0;
/// What is left of the window after a refusal.
const SHRINK: f64 = 0.7;
/// By how much it grows with a full window of answers.
const GROW: f64 = 4.0;
/// Refusals within this time are of one queue, and shrink the window once.
const ONE_QUEUE: Duration = Duration::from_millis(100);

/// The calls under way at one node.
#[derive(Debug)]
pub(crate) struct Flow {
    state: Mutex<State>,
    /// Notified when there may be room for a call that waits.
    room: Notify,
}

#[derive(Debug)]
struct State {
    /// How many calls may be under way.
    window: f64,
    under_way: u32,
    /// When the window shrank last.
    shrank: Option<Instant>,
}

/// The place of one call under way.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Flow);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.under_way -= 1;
        self.0.wake(&state);
    }
}

impl Default for Flow {
    fn default() -> Self {
        let state = State { window: WINDOW_FIRST, under_way: 0, shrank: None };
        Flow { state: Mutex::new(state), room: Notify::new() }
    }
}

impl State {
    fn has_room(&self) -> bool {
        f64::from(self.under_way) < self.window
    }
}

impl Flow {
    /// Waits for a place, at most this long; none if it did not become free.
    pub async fn enter(&self, at_most: Duration) -> Option<Place<'_>> {
        if let Some(place) = self.try_enter() {
            return Some(place);
        }
        let waits = async {
            loop {
                let room = self.room.notified();
                tokio::pin!(room);
                // Registered before the check, so that no notification in between is missed.
                room.as_mut().enable();
                if let Some(place) = self.try_enter() {
                    self.wake(&self.state.lock());
                    return place;
                }
                room.await;
            }
        };
        tokio::time::timeout(at_most, waits).await.ok()
    }

    /// Whether a place is free now.
    pub fn has_room(&self) -> bool {
        self.state.lock().has_room()
    }

    /// A place, if one is free now.
    pub fn try_enter(&self) -> Option<Place<'_>> {
        let mut state = self.state.lock();
        let free = state.has_room();
        if free {
            state.under_way += 1;
        }
        free.then(|| Place(self))
    }

    /// Notes that the node answered a call other than with a refusal.
    pub fn answered(&self) {
        let mut state = self.state.lock();
        // A window that is not used up says nothing of what the node would take.
        if f64::from(state.under_way) + GROW >= state.window {
            state.window = (state.window + GROW / state.window).min(WINDOW_MAX);
        }
    }

    /// Notes that the node refused a call as overloaded.
    pub fn refused(&self) {
        self.refused_at(Instant::now());
    }

    fn refused_at(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.shrank.is_some_and(|at| now.saturating_duration_since(at) < ONE_QUEUE) {
            return;
        }
        let window = f64::from(state.under_way).min(state.window) * SHRINK;
        state.window = window.max(WINDOW_MIN);
        state.shrank = Some(now);
    }

    fn wake(&self, state: &State) {
        if state.has_room() {
            self.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_shrinks_the_window_and_answers_open_it_again() {
        let flow = Flow::default();
        let mut places = Vec::new();
        for _ in 0..50 {
            places.push(flow.enter(AT_ONCE).await.expect("the window is large"));
        }
        let begun = Instant::now();
        flow.refused_at(begun);
        flow.refused_at(begun + ONE_QUEUE / 2);
        assert_eq!(flow.state.lock().window, 35.0, "two refusals of one queue");
        places.truncate(35);
        assert!(flow.enter(Duration::from_secs(1)).await.is_none(), "the window is full");
        places.truncate(34);
        places.push(flow.enter(AT_ONCE).await.expect("one has left"));
        for _ in 0..35 {
            flow.answered();
        }
        assert!(flow.state.lock().window > 38.0, "{flow:?}");
        for n in 1..20 {
            flow.refused_at(begun + ONE_QUEUE * n);
        }
        assert_eq!(flow.state.lock().window, WINDOW_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_enter_one_after_the_other() {
        let flow = Flow::default();
        let mut places = Vec::new();
        for _ in 0..6 {
            places.push(flow.enter(AT_ONCE).await.expect("the window is large"));
        }
        flow.refused();
        let waits = || async { flow.enter(Duration::from_secs(1)).await.is_some() };
        let leave = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            places.clear();
        };
        // Each leaves as soon as it has entered.
        let all: Vec<_> = (0..50).map(|_| waits()).collect();
        let (entered, ()) = futures::join!(futures::future::join_all(all), leave);
        assert!(entered.into_iter().all(|entered| entered));
        assert_eq!(flow.state.lock().under_way, 0);
    }
}
