//! The queue in front of a thread: bounded in bytes for what may be refused, never refusing what
//! must arrive.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How much room an input takes in its queue.
pub trait Weigh {
    /// Bytes, including a fixed part for the input itself.
    fn weight(&self) -> usize;
}

/// A queue with many senders and one receiver that drains it whole.
///
/// Two kinds of input share the order of arrival. *Offers* (client requests, messages of peers)
/// are refused when the queue holds more than its bound in bytes. *Completions* (a disk write that
/// is done, entries that are applied) are never refused: their number is bounded by the tokens
/// that are outstanding, so a ring of full queues cannot come to a stop.
#[derive(Debug)]
pub struct Inbox<T> {
    bound: usize,
    queue: Mutex<Queue<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Queue<T> {
    items: Vec<T>,
    bytes: usize,
    closed: bool,
    receiver_waits: bool,
}

/// Why an offer was refused. The input comes back to whoever offered it.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The queue holds as many bytes as it may.
    Full(T),
    /// The receiver is ending.
    Closed(T),
}

impl<T: Weigh> Inbox<T> {
    /// A queue that refuses offers once it holds `bound` bytes.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        let queue = Queue { items: Vec::new(), bytes: 0, closed: false, receiver_waits: false };
        Self { bound, queue: Mutex::new(queue), filled: Condvar::new() }
    }

    /// Queues an input unless the queue is full or closed.
    ///
    /// # Errors
    ///
    /// The input, with the reason of the refusal.
    pub fn offer(&self, item: T) -> Result<(), Refused<T>> {
        let weight = item.weight();
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Refused::Closed(item));
        }
        if queue.bytes >= self.bound {
            return Err(Refused::Full(item));
        }
        self.push(&mut queue, item, weight);
        Ok(())
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
        queue.bytes += weight;
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
        queue.bytes = 0;
        if into.is_empty() {
            std::mem::swap(into, &mut queue.items);
        } else {
            into.append(&mut queue.items);
        }
    }

    /// Refuses all further input; what is queued can still be drained.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.filled.notify_all();
    }

    /// Bytes queued now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }
}

#[cfg(test)]
mod tests {
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
        let inbox = Inbox::new(10);
        assert_eq!(inbox.offer(Item(10)), Ok(()));
        assert_eq!(inbox.offer(Item(1)), Err(Refused::Full(Item(1))));
        inbox.complete(Item(2));
        assert_eq!(inbox.bytes(), 12);
        let mut drained = Vec::new();
        inbox.drain(&mut drained, Duration::ZERO);
        assert_eq!(drained, [Item(10), Item(2)]);
        assert_eq!(inbox.offer(Item(1)), Ok(()), "a drained queue has room again");
        inbox.close();
        assert_eq!(inbox.offer(Item(1)), Err(Refused::Closed(Item(1))));
        drained.clear();
        inbox.drain(&mut drained, Duration::from_secs(60));
        assert_eq!(drained, [Item(1)], "what was queued before the end is still there");
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
