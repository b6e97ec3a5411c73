//! Write sessions of a client, which make retries of writes safe.
//!
//! A client opens one session per shard at the first write to it, so that a shard without a leader
//! does not delay others. Each write takes the next sequence number. Every write announces that all
//! numbers below the lowest unanswered one are answered, so that the shard can forget them. A
//! session accepts new writes until half its life has passed or one of its writes has ended with an
//! unknown outcome, whose number must stay open for a retry. At most 1,024 numbers are open.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::limits::SESSION_UNANSWERED_MAX;
use quorate_proto::v1::WriteSession;
use tokio::sync::Notify;

use crate::pool::Connection;

/// The sessions of a client, by shard; shard 0 means all shards while no map is known.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    current: Mutex<HashMap<u64, Arc<Session>>>,
    /// Held while one call opens the session of a shard, so that the others wait for it.
    opening: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>,
}

impl Sessions {
    /// The session for new writes to a shard; none if one must be opened.
    pub fn current(&self, shard: u64) -> Option<Arc<Session>> {
        let current = self.current.lock();
        current.get(&shard).filter(|s| s.takes_new()).cloned()
    }

    pub fn opening(&self, shard: u64) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.opening.lock().entry(shard).or_default())
    }

    pub fn replace(&self, shard: u64, session: Arc<Session>) {
        self.current.lock().insert(shard, session);
    }
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    id: Bytes,
    /// The node that opened it.
    opened_by: Option<Arc<Connection>>,
    /// The time after which it accepts no new writes.
    no_new_after: Instant,
    window: Mutex<Window>,
    /// Notified when the window advances or the session retires.
    moved: Notify,
}

/// The window of sequence numbers from the lowest unanswered one.
#[derive(Debug)]
struct Window {
    /// Every number below was answered.
    answered_below: u64,
    /// Whether each number from `answered_below` on was answered. The first is never true.
    answered: VecDeque<bool>,
    retired: bool,
}

impl Session {
    /// A session that accepts new writes until `no_new_after`.
    pub fn new(
        id: Bytes,
        no_new_after: Instant,
        opened_by: Option<Arc<Connection>>,
    ) -> Arc<Session> {
        Arc::new(Session {
            id,
            opened_by,
            no_new_after,
            window: Mutex::new(Window {
                answered_below: 1,
                answered: VecDeque::new(),
                retired: false,
            }),
            moved: Notify::new(),
        })
    }

    pub fn opened_by(&self) -> Option<&Arc<Connection>> {
        self.opened_by.as_ref()
    }

    pub fn takes_new(&self) -> bool {
        Instant::now() < self.no_new_after && !self.window.lock().retired
    }

    /// Takes the next number; waits while too many are open. None once the session accepts no new
    /// writes.
    pub async fn next(self: &Arc<Self>) -> Option<Ticket> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the window is checked, so that no notification in between is
            // missed.
            moved.as_mut().enable();
            if !self.takes_new() {
                return None;
            }
            if let Some(ticket) = self.try_next() {
                return Some(ticket);
            }
            moved.await;
        }
    }

    /// Stops the session from accepting new writes.
    pub fn retire(&self) {
        self.window.lock().retired = true;
        self.moved.notify_waiters();
    }

    fn try_next(self: &Arc<Self>) -> Option<Ticket> {
        let mut window = self.window.lock();
        if window.answered.len() as u64 >= SESSION_UNANSWERED_MAX {
            return None;
        }
        let sequence = window.answered_below + window.answered.len() as u64;
        window.answered.push_back(false);
        Some(Ticket { session: Arc::clone(self), sequence, open: true })
    }

    fn answered(&self, sequence: u64) {
        let mut window = self.window.lock();
        let i = sequence - window.answered_below;
        window.answered[i as usize] = true;
        let mut moved = false;
        while window.answered.front() == Some(&true) {
            window.answered.pop_front();
            window.answered_below += 1;
            moved = true;
        }
        if moved {
            self.moved.notify_waiters();
        }
    }
}

/// One sequence number of a session, held by one write. A dropped ticket counts as answered,
/// because no caller is left that could retry it.
#[derive(Debug)]
#[must_use = "a dropped ticket counts as answered"]
pub(crate) struct Ticket {
    session: Arc<Session>,
    sequence: u64,
    open: bool,
}

impl Ticket {
    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn id(&self) -> crate::WriteId {
        crate::WriteId { session: self.session.id.clone(), sequence: self.sequence }
    }

    /// The session fields to send with the write.
    pub fn wire(&self, last: bool) -> WriteSession {
        WriteSession {
            id: self.session.id.clone(),
            sequence: self.sequence,
            answered_below: self.session.window.lock().answered_below,
            last,
        }
    }

    /// Keeps the number open permanently, because its outcome is unknown, and retires the session.
    pub fn keep_open(mut self) {
        self.open = false;
        self.session.retire();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            self.session.answered(self.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn session() -> Arc<Session> {
        let no_new_after = Instant::now() + Duration::from_secs(60);
        Session::new(Bytes::from_static(b"s"), no_new_after, None)
    }

    #[tokio::test]
    async fn answered_below_is_the_lowest_open_number() {
        let session = session();
        let first = session.next().await.unwrap();
        let second = session.next().await.unwrap();
        let third = session.next().await.unwrap();
        assert_eq!(third.wire(false).sequence, 3);
        assert_eq!(third.wire(false).answered_below, 1);
        drop(second);
        assert_eq!(third.wire(false).answered_below, 1);
        drop(first);
        assert_eq!(third.wire(false).answered_below, 3);
        drop(third);
        let fourth = session.next().await.unwrap().wire(true);
        assert_eq!((fourth.sequence, fourth.answered_below), (4, 4));
        assert!(fourth.last);
    }

    #[tokio::test]
    async fn a_full_window_waits_for_its_lowest_number() {
        let session = session();
        let mut open = VecDeque::new();
        for _ in 0..SESSION_UNANSWERED_MAX {
            open.push_back(session.next().await.unwrap());
        }
        let next = session.next();
        tokio::pin!(next);
        assert!(futures::poll!(next.as_mut()).is_pending());
        drop(open.remove(5));
        assert!(futures::poll!(next.as_mut()).is_pending(), "the lowest is still open");
        drop(open.pop_front());
        let ticket = next.await.unwrap();
        assert_eq!(ticket.sequence, SESSION_UNANSWERED_MAX + 1);
    }

    #[tokio::test]
    async fn an_unknown_outcome_retires_the_session_and_stays_open() {
        let session = session();
        let unknown = session.next().await.unwrap();
        let other = session.next().await.unwrap();
        unknown.keep_open();
        assert!(!session.takes_new());
        assert!(session.next().await.is_none());
        assert_eq!(other.wire(false).answered_below, 1, "other writes continue");
    }

    #[tokio::test]
    async fn an_old_session_accepts_no_new_writes() {
        let over = Session::new(Bytes::new(), Instant::now(), None);
        assert!(over.next().await.is_none());
    }
}
