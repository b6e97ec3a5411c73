//! The queue in front of a thread: bounded in bytes for inputs that may be refused, never refusing
//! inputs that must arrive.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_raft::Taken;
use tokio::sync::Notify;

/// The size of an input in its queue.
pub(crate) trait Weigh {
    /// The size in bytes, including a fixed part for the input itself.
    fn weight(&self) -> usize;
}

/// A queue with many senders and one receiver that drains it whole.
///
/// Three kinds of input share the order of arrival.
/// - *Offers* (requests of clients) are refused once the queue holds three quarters of its bound in
///   bytes; large ones once it holds three quarters of that, so that small ones still pass.
/// - *Urgent offers* (messages of peers) are refused once it holds all of its bound: however many
///   clients there are, they do not keep heartbeats and votes out.
/// - *Completions* (a disk write that is done, entries that are applied) are never refused: the
///   outstanding tokens bound their number, so a ring of full queues cannot deadlock.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    bound: usize,
    queue: Mutex<Queue<T>>,
    filled: Condvar,
    /// Notified when a queue without room for offers was drained.
    drained: Notify,
}

#[derive(Debug)]
struct Queue<T> {
    items: Vec<T>,
    taken: Taken,
    closed: bool,
    receiver_waits: bool,
}

/// Why an offer was refused. The caller gets the input back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<T> {
    /// The queue has reached its bound.
    Full(T),
    /// The receiver is ending.
    Closed(T),
}

impl<T> Queue<T> {
    fn bytes(&self) -> usize {
        self.taken.all as usize
    }
}

impl<T: Weigh> Inbox<T> {
    /// A queue of `bound` bytes, completions not counted: it refuses once it holds that much, so
    /// the last input may exceed the bound.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        let queue = Queue {
            items: Vec::new(),
            taken: Taken::default(),
            closed: false,
            receiver_waits: false,
        };
        Self { bound, queue: Mutex::new(queue), filled: Condvar::new(), drained: Notify::new() }
    }

    /// The number of bytes from which on offers are refused.
    fn offer_bound(&self) -> usize {
        self.bound - self.bound / 4
    }

    /// Queues an input unless the queue has no room for offers or is closed.
    ///
    /// # Errors
    /// The input, with the reason of the refusal.
    pub fn offer(&self, item: T) -> Result<(), Refused<T>> {
        self.push_below(self.offer_bound(), item)
    }

    /// Queues an input unless the queue is full to its bound or closed.
    ///
    /// # Errors
    /// The input, with the reason of the refusal.
    pub fn offer_urgent(&self, item: T) -> Result<(), Refused<T>> {
        self.push_below(self.bound, item)
    }

    fn push_below(&self, bound: usize, item: T) -> Result<(), Refused<T>> {
        let weight = item.weight();
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Refused::Closed(item));
        }
        if !queue.taken.has_room(weight as u64, bound as u64) {
            return Err(Refused::Full(item));
        }
        self.push(&mut queue, item, weight);
        Ok(())
    }

    /// Whether an offer would be accepted. A closed queue accepts none and still counts as having
    /// room, because waiting for it is pointless.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let queue = self.queue.lock();
        queue.closed || queue.bytes() < self.offer_bound()
    }

    /// Waits until the queue [has room](Self::has_room).
    pub async fn room(&self) {
        loop {
            // Created before the check, so that a drain between the two is not missed.
            let drained = self.drained.notified();
            if self.has_room() {
                return;
            }
            drained.await;
        }
    }

    /// Queues a completion, whatever the queue holds. Once the receiver has ended it is dropped.
    pub fn complete(&self, item: T) {
        let weight = item.weight();
        let mut queue = self.queue.lock();
        if !queue.closed {
            self.push(&mut queue, item, weight);
        }
    }

    fn push(&self, queue: &mut Queue<T>, item: T, weight: usize) {
        queue.items.push(item);
        queue.taken = queue.taken.with(weight as u64);
        if queue.receiver_waits {
            // One wake-up for each time the receiver slept, however many inputs follow.
            queue.receiver_waits = false;
            self.filled.notify_one();
        }
    }

    /// Takes all that is queued into `into`, waiting at most `patience` for the first input.
    pub fn drain(&self, into: &mut Vec<T>, patience: Duration) {
        let mut queue = self.queue.lock();
        if queue.items.is_empty() && !queue.closed && !patience.is_zero() {
            queue.receiver_waits = true;
            self.filled.wait_while_for(
                &mut queue,
                |queue| queue.items.is_empty() && !queue.closed,
                patience,
            );
            queue.receiver_waits = false;
        }
        let was_full = queue.bytes() >= self.offer_bound();
        queue.taken = Taken::default();
        if into.is_empty() {
            std::mem::swap(into, &mut queue.items);
        } else {
            into.append(&mut queue.items);
        }
        drop(queue);
        if was_full {
            self.drained.notify_waiters();
        }
    }

    /// Refuses all further input; what is queued can still be drained.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.filled.notify_all();
        self.drained.notify_waiters();
    }

    /// Bytes queued now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes()
    }
}

#[cfg(test)]
mod tests {
    use quorate_raft::SMALL_BYTES;

    use super::*;
    use std::sync::Arc;

    #[derive(Debug, PartialEq, Eq)]
    struct Item(usize);

    impl Weigh for Item {
        fn weight(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn offers_are_refused_when_full_and_completions_are_not() {
        let inbox = Inbox::new(12);
        assert_eq!(inbox.offer(Item(9)), Ok(()));
        assert_eq!(inbox.offer(Item(1)), Err(Refused::Full(Item(1))));
        assert_eq!(inbox.offer_urgent(Item(3)), Ok(()), "the last quarter is for what is urgent");
        assert_eq!(inbox.offer_urgent(Item(1)), Err(Refused::Full(Item(1))));
        inbox.complete(Item(2));
        assert_eq!(inbox.bytes(), 14);
        let mut drained = Vec::new();
        inbox.drain(&mut drained, Duration::ZERO);
        assert_eq!(drained, [Item(9), Item(3), Item(2)]);
        assert_eq!(inbox.offer(Item(1)), Ok(()), "a drained queue has room again");
        inbox.close();
        assert_eq!(inbox.offer(Item(1)), Err(Refused::Closed(Item(1))));
        drained.clear();
        inbox.drain(&mut drained, Duration::from_secs(60));
        assert_eq!(drained, [Item(1)], "what was queued before the end is still there");
    }

    #[test]
    fn large_offers_leave_room_for_small_ones() {
        let large = SMALL_BYTES as usize + 1;
        let inbox = Inbox::new(16 * large);
        let taken = (0..100).take_while(|_| inbox.offer(Item(large)).is_ok()).count();
        assert_eq!(taken, 9, "of the 12 in the part for offers");
        assert_eq!(inbox.offer(Item(1)), Ok(()));
        inbox.complete(Item(20 * large));
        assert_eq!(inbox.offer(Item(1)), Ok(()), "small ones have not had their part");
        assert!(matches!(inbox.offer(Item(large)), Err(Refused::Full(_))));
    }

    #[tokio::test]
    async fn a_sender_that_waits_for_room_wakes_when_the_queue_is_drained_or_closed() {
        let inbox = Inbox::new(8);
        inbox.room().await;
        inbox.complete(Item(6));
        assert!(!inbox.has_room());
        let mut room = std::pin::pin!(inbox.room());
        assert!(futures::poll!(room.as_mut()).is_pending());
        inbox.drain(&mut Vec::new(), Duration::ZERO);
        assert!(futures::poll!(room).is_ready());

        inbox.complete(Item(6));
        let mut room = std::pin::pin!(inbox.room());
        assert!(futures::poll!(room.as_mut()).is_pending());
        inbox.close();
        assert!(futures::poll!(room).is_ready());
    }

    #[test]
    fn a_sleeping_receiver_wakes_for_the_first_input() {
        let inbox = Arc::new(Inbox::new(100));
        let receiver = std::thread::spawn({
            let inbox = inbox.clone();
            move || {
                let mut drained = Vec::new();
                while drained.is_empty() {
                    inbox.drain(&mut drained, Duration::from_secs(60));
                }
                drained
            }
        });
        assert_eq!(inbox.offer(Item(3)), Ok(()));
        assert_eq!(receiver.join().expect("the receiver ends"), [Item(3)]);
    }
}
