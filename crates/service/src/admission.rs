//! Admission: calls beyond what a node does in time are refused before work is done for them.
//!
//! More calls under way than keep the node busy make nothing faster: each only waits longer, until
//! callers give up what was nearly done, and all work is for callers who have left. The number that
//! keeps it busy differs with the machine and the calls, so it is measured: when even the shortest
//! delay of a window is above `TARGET`, calls queue, and the limit goes down in proportion
//! (Little's law); while it is below and the limit was reached, the limit goes up. One slow call
//! among fast ones changes nothing, as in CoDel.
//!
//! Up to `FLOOR` calls are always taken: on a slow disk the delay is not of a queue, and calls
//! that share a barrier are what makes such a disk fast.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::{Failure, Reason};
use tokio::time::Instant;

use crate::context::Context;
use crate::metrics::Method;

/// The delay that a queue may add.
const TARGET: Duration = Duration::from_millis(50);
/// How long delays are measured before the limit follows them.
const WINDOW: Duration = Duration::from_millis(100);
/// The least limit, and the first: what one connection may have under way by default.
const FLOOR: usize = 256;
/// The greatest limit.
const CEILING: usize = 4_096;
/// What a refused caller is asked to wait.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The calls of one sort under way, and how many may be.
#[derive(Debug)]
pub struct Admission {
    /// The sort, for sentences.
    what: &'static str,
    under_way: AtomicUsize,
    limit: AtomicUsize,
    window: Mutex<Window>,
}

/// The delays of a window of time.
#[derive(Debug)]
struct Window {
    ends: Instant,
    /// The shortest delay that ended in it.
    shortest: Option<Duration>,
    /// The shortest one of the window before.
    shortest_before: Option<Duration>,
    /// The most calls that were under way, refused ones not counted.
    most: usize,
}

/// The admissions of a node's calls. Writes and reads wait for different things, and neither is
/// refused because of the other.
#[derive(Debug)]
pub struct Admissions {
    /// Of writes.
    pub writes: Arc<Admission>,
    /// Of reads of single keys. Scans have bounds of their own.
    pub reads: Arc<Admission>,
}

impl Default for Admissions {
    fn default() -> Self {
        Self { writes: Admission::of("writes"), reads: Admission::of("reads") }
    }
}

impl Admissions {
    /// The admission of a method; `None` for calls that are always taken: they cost little, have
    /// bounds of their own, or show how the node is.
    fn of(&self, method: Method) -> Option<&Arc<Admission>> {
        match method {
            Method::Put
            | Method::Delete
            | Method::CompareAndSet
            | Method::Increment
            | Method::Batch
            | Method::Cancel => Some(&self.writes),
            Method::Get => Some(&self.reads),
            Method::MultiGet
            | Method::Scan
            | Method::Pipeline
            | Method::OpenSession
            | Method::GetInfo
            | Method::GetMap
            | Method::GetStatus
            | Method::TransferLeader => None,
        }
    }

    /// A place for a call, which it holds until its end.
    ///
    /// # Errors
    /// OVERLOADED: the limit is reached, or the call's time is shorter than the shortest delay.
    pub fn admit(&self, method: Method, context: &Context) -> Result<Option<Admitted>, Failure> {
        self.of(method).map(|admission| admission.admit(context)).transpose()
    }
}

/// The place of one call under way.
#[derive(Debug)]
pub struct Admitted(Arc<Admission>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Admission {
    /// The admission of calls of a sort, named in the plural.
    #[must_use]
    pub fn of(what: &'static str) -> Arc<Self> {
        let window = Window {
            ends: Instant::now() + WINDOW,
            shortest: None,
            shortest_before: None,
            most: 0,
        };
        Arc::new(Self {
            what,
            under_way: AtomicUsize::new(0),
            limit: AtomicUsize::new(FLOOR),
            window: Mutex::new(window),
        })
    }

    /// A place for a call.
    ///
    /// # Errors
    /// OVERLOADED: the limit is reached, or the call's time is shorter than the shortest delay.
    pub fn admit(self: &Arc<Self>, context: &Context) -> Result<Admitted, Failure> {
        let under_way = self.under_way.fetch_add(1, Ordering::AcqRel) + 1;
        // From here on it is given back, whatever comes.
        let place = Admitted(self.clone());
        let limit = self.limit.load(Ordering::Acquire);
        let what = self.what;
        if under_way > limit {
            let message = format!(
                "this node has {limit} {what} under way and takes no more, because each waits \
                 longer than {TARGET:?}; try again later"
            );
            return Err(overloaded(message));
        }
        let now = Instant::now();
        let mut window = self.window.lock();
        self.turn(&mut window, now);
        window.most = window.most.max(under_way);
        let left = context.deadline.saturating_duration_since(now);
        match window.delay() {
            Some(delay) if delay > left => {
                let message = format!(
                    "the call has {left:.1?} left, and {what} now take {delay:.1?} at least; give \
                     it more time"
                );
                Err(overloaded(message))
            }
            _ => Ok(place),
        }
    }

    /// Notes how long a call waited for the engine: from its offer to its answer.
    pub fn observe(&self, delay: Duration) {
        let now = Instant::now();
        let mut window = self.window.lock();
        self.turn(&mut window, now);
        window.shortest = Some(window.shortest.map_or(delay, |shortest| shortest.min(delay)));
    }

    /// Ends the window if its time is over, and lets the limit follow its delays.
    fn turn(&self, window: &mut Window, now: Instant) {
        if now < window.ends {
            return;
        }
        let limit = self.limit.load(Ordering::Acquire);
        let next = match window.shortest {
            Some(shortest) if shortest > TARGET => {
                let fits = window.most as f64 * TARGET.as_secs_f64() / shortest.as_secs_f64();
                (fits as usize).clamp(FLOOR, limit)
            }
            // Not reached, the limit says nothing of what the node could do.
            Some(_) if window.most >= limit => limit + limit / 8,
            _ => limit,
        };
        self.limit.store(next.min(CEILING), Ordering::Release);
        // After a pause the delays before it say nothing any more.
        let recent = now < window.ends + WINDOW;
        *window = Window {
            ends: now + WINDOW,
            shortest: None,
            shortest_before: window.shortest.filter(|_| recent),
            most: self.under_way.load(Ordering::Acquire).min(limit),
        };
    }

    /// How many calls may be under way now.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }
}

impl Window {
    /// The shortest delay lately.
    fn delay(&self) -> Option<Duration> {
        match (self.shortest, self.shortest_before) {
            (Some(now), Some(before)) => Some(now.min(before)),
            (now, before) => now.or(before),
        }
    }
}

fn overloaded(message: String) -> Failure {
    let retry_after = RETRY_AFTER.try_into().ok();
    Failure { retry_after, ..Failure::of(Reason::Overloaded, message) }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tonic::metadata::MetadataMap;

    use super::*;

    fn context(timeout: &str) -> Context {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", timeout.parse().expect("ascii"));
        Context::of(&metadata)
    }

    /// A node that does `rate` calls per second, each of which takes at least `least`, and is
    /// offered others as often: what it took, what it refused, and the longest delay.
    #[derive(Debug, Default)]
    struct Load {
        done: usize,
        refused: usize,
        longest: Duration,
    }

    async fn offer(
        admission: &Arc<Admission>,
        (rate, least): (usize, Duration),
        offered: usize,
        seconds: usize,
    ) -> Load {
        const STEP: Duration = Duration::from_millis(10);
        let steps = 100;
        let (mut load, mut queue) = (Load::default(), VecDeque::<(Instant, Admitted)>::new());
        for _ in 0..seconds * steps {
            for _ in 0..offered / steps {
                match admission.admit(&context("5S")) {
                    Ok(place) => queue.push_back((Instant::now(), place)),
                    Err(failure) => {
                        assert_eq!(failure.reason(), Reason::Overloaded);
                        assert!(failure.retry_after.is_some());
                        load.refused += 1;
                    }
                }
            }
            tokio::time::advance(STEP).await;
            for _ in 0..rate / steps {
                if queue.front().is_none_or(|(begun, _)| begun.elapsed() < least) {
                    break;
                }
                let Some((begun, place)) = queue.pop_front() else { break };
                admission.observe(begun.elapsed());
                load.done += 1;
                load.longest = load.longest.max(begun.elapsed());
                drop(place);
            }
        }
        load
    }

    const FAST: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn at_three_times_the_load_the_node_does_what_it_can_and_refuses_the_rest() {
        let admission = Admission::of("writes");
        let (rate, offered) = (7_000, 21_000);
        // The first calls fill the queue before a delay shows it.
        offer(&admission, (rate, FAST), offered, 1).await;
        let load = offer(&admission, (rate, FAST), offered, 5).await;
        assert!(load.done >= 5 * rate * 95 / 100, "{load:?}");
        assert!(load.refused >= 5 * rate, "{load:?}");
        assert!(load.longest <= 3 * TARGET, "{load:?}");
        // Below what it can do nothing is refused, as soon as the queue is gone.
        offer(&admission, (rate, FAST), rate / 2, 1).await;
        let load = offer(&admission, (rate, FAST), rate / 2, 5).await;
        assert_eq!(load.refused, 0, "{load:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_follows_a_node_that_becomes_faster() {
        let admission = Admission::of("writes");
        offer(&admission, (6_000, FAST), 20_000, 3).await;
        let slow = admission.limit();
        assert!(slow <= 600, "{slow} calls take 100 ms");
        offer(&admission, (15_000, FAST), 20_000, 3).await;
        let load = offer(&admission, (15_000, FAST), 20_000, 2).await;
        assert!(load.done >= 2 * 15_000 * 9 / 10, "{load:?}, {slow} then {}", admission.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_is_no_overload() {
        let admission = Admission::of("writes");
        // All that fits under the floor shares barriers of 200 ms.
        let disk = (100_000, Duration::from_millis(200));
        let load = offer(&admission, disk, 1_000, 10).await;
        assert_eq!((load.refused, load.done / 900), (0, 10), "{load:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_enough_time_is_refused_at_once() {
        let admission = Admission::of("reads");
        admission.observe(Duration::from_millis(30));
        assert!(admission.admit(&context("100m")).is_ok());
        let refused = admission.admit(&context("20m")).expect_err("30 ms are more");
        assert_eq!(refused.reason(), Reason::Overloaded);
        assert!(refused.message.starts_with("the call has 18.0ms left, and reads now take 30.0ms"));
        tokio::time::advance(3 * WINDOW).await;
        assert!(admission.admit(&context("20m")).is_ok(), "the delay was long ago");
        assert_eq!(admission.under_way.load(Ordering::Acquire), 0, "each place was given back");
    }
}
