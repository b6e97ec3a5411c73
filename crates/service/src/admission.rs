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
use quorate_raft::{Taken, room_for};
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
    /// Bytes of their requests, and the bound of these.
    held: Mutex<Taken>,
    held_max: u64,
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
    /// Of reads of keys that are named. Scans have bounds of their own.
    pub reads: Arc<Admission>,
}

impl Admissions {
    /// The admissions of a node that holds up to `held_max` bytes of the requests of writes, and of
    /// the keys of reads a quarter of that. A Get is small, and counts by its number alone.
    #[must_use]
    pub fn new(held_max: u64) -> Self {
        let reads = Admission::of("reads", held_max / 4);
        Self { writes: Admission::of("writes", held_max), reads }
    }

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
            Method::Get | Method::MultiGet => Some(&self.reads),
            Method::Scan
            | Method::Pipeline
            | Method::OpenSession
            | Method::GetInfo
            | Method::GetMap
            | Method::GetStatus
            | Method::TransferLeader => None,
        }
    }

    /// A place for a call whose request has `bytes`, which it holds until its end.
    ///
    /// # Errors
    /// OVERLOADED: a limit is reached, or the call's time is shorter than the shortest delay.
    pub fn admit(
        &self,
        method: Method,
        context: &Context,
        bytes: u64,
    ) -> Result<Option<Admitted>, Failure> {
        self.of(method).map(|admission| admission.admit(context, bytes)).transpose()
    }
}

/// The place of one call under way.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    /// The bytes that it holds.
    bytes: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.under_way.fetch_sub(1, Ordering::AcqRel);
        let mut held = admission.held.lock();
        *held = held.without(self.bytes);
    }
}

impl Admission {
    /// The admission of calls of a sort, named in the plural, with up to `held_max` bytes of
    /// requests.
    #[must_use]
    pub fn of(what: &'static str, held_max: u64) -> Arc<Self> {
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
            held: Mutex::default(),
            held_max,
            window: Mutex::new(window),
        })
    }

    /// A place for a call whose request has `bytes`. Calls with large requests leave a quarter of
    /// the places and of the bytes to small ones.
    ///
    /// # Errors
    /// OVERLOADED: a limit is reached, or the call's time is shorter than the shortest delay.
    pub fn admit(self: &Arc<Self>, context: &Context, bytes: u64) -> Result<Admitted, Failure> {
        let under_way = self.under_way.fetch_add(1, Ordering::AcqRel) + 1;
        // From here on it is given back, whatever comes.
        let mut place = Admitted { admission: self.clone(), bytes: 0 };
        let limit = room_for(bytes, self.limit.load(Ordering::Acquire) as u64) as usize;
        let what = self.what;
        if under_way > limit {
            let message = format!(
                "this node has {limit} {what} under way and takes no more, because each waits \
                 longer than {TARGET:?}; try again later"
            );
            return Err(overloaded(message));
        }
        if !self.hold(&mut place, bytes) {
            let message = format!(
                "this node holds too many bytes of {what} under way for one of {bytes} bytes; the \
                 limit is {} bytes, a share of --memory; try again later",
                self.held_max
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

    /// Counts the bytes of a call, if they have room.
    fn hold(&self, place: &mut Admitted, bytes: u64) -> bool {
        let mut held = self.held.lock();
        let fits = held.has_room(bytes, self.held_max);
        if fits {
            *held = held.with(bytes);
            place.bytes = bytes;
        }
        fits
    }

    /// The bytes of large requests of calls under way.
    #[must_use]
    pub fn large_bytes(&self) -> u64 {
        self.held.lock().large
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

    /// How many calls are under way.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
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

    use quorate_raft::SMALL_BYTES;
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
                match admission.admit(&context("5S"), 0) {
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
        let admission = Admission::of("writes", u64::MAX);
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
        let admission = Admission::of("writes", u64::MAX);
        offer(&admission, (6_000, FAST), 20_000, 3).await;
        let slow = admission.limit();
        assert!(slow <= 600, "{slow} calls take 100 ms");
        offer(&admission, (15_000, FAST), 20_000, 3).await;
        let load = offer(&admission, (15_000, FAST), 20_000, 2).await;
        assert!(load.done >= 2 * 15_000 * 9 / 10, "{load:?}, {slow} then {}", admission.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_is_no_overload() {
        let admission = Admission::of("writes", u64::MAX);
        // All that fits under the floor shares barriers of 200 ms.
        let disk = (100_000, Duration::from_millis(200));
        let load = offer(&admission, disk, 1_000, 10).await;
        assert_eq!((load.refused, load.done / 900), (0, 10), "{load:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_enough_time_is_refused_at_once() {
        let admission = Admission::of("reads", u64::MAX);
        admission.observe(Duration::from_millis(30));
        assert!(admission.admit(&context("100m"), 0).is_ok());
        let refused = admission.admit(&context("20m"), 0).expect_err("30 ms are more");
        assert_eq!(refused.reason(), Reason::Overloaded);
        assert!(refused.message.starts_with("the call has 18.0ms left, and reads now take 30.0ms"));
        tokio::time::advance(3 * WINDOW).await;
        assert!(admission.admit(&context("20m"), 0).is_ok(), "the delay was long ago");
        assert_eq!(admission.under_way.load(Ordering::Acquire), 0, "each place was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_leave_places_and_bytes_to_small_ones() {
        let (large, time) = (SMALL_BYTES + 1, context("5S"));
        let admitted = |admission: &Arc<Admission>, bytes: u64| -> Vec<Admitted> {
            (0..1_000).map_while(|_| admission.admit(&time, bytes).ok()).collect()
        };
        // Few bytes: the bytes end first.
        let admission = Admission::of("writes", 16 * large);
        let mut places = admitted(&admission, large);
        assert_eq!((places.len() as u64, admission.large_bytes()), (12, 12 * large));
        let small = admitted(&admission, 1_000);
        assert_eq!(small.len(), FLOOR - 12, "all other places");
        drop(small);
        places.pop();
        assert_eq!(admitted(&admission, large).len(), 1, "what is given back is taken again");
        drop(places);
        assert_eq!(admission.large_bytes(), 0);
        // Many bytes: the places end first.
        let admission = Admission::of("writes", u64::MAX);
        let places = admitted(&admission, large);
        assert_eq!(places.len(), FLOOR / 4 * 3);
        assert_eq!(admitted(&admission, 1).len(), FLOOR / 4);
    }
}
