//! Sessions: the identities that make the retries of writes safe.
//!
//! A client has one session for each shard it writes to, so that a shard without a leader holds up no
//! other, opened at the first write. Each write takes the next sequence number; all below the lowest
//! unanswered one are announced as answered, so that the shard forgets them. A session takes new writes
//! until half its life is over, while at most 1,024 numbers are open, and until one of its writes ended
//! with an unknown outcome: that number must stay open for whoever asks again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::limits::SESSION_UNANSWERED_MAX;
use quorate_proto::v1::WriteSession;
use tokio::sync::Notify;

use crate::pool::Connection;

/// The sessions of a client, by shard; shard 0 stands for all while no map is known.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    current: Mutex<HashMap<u64, Arc<Session>>>,
    /// Held while one call opens the session of a shard, so that the others wait for it.
    opening: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>,
}

impl Sessions {
    /// The session that new writes to a shard go through; none when one has to be opened.
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

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    id: Bytes,
    /// The node that opened it.
    opened_by: Option<Arc<Connection>>,
    /// From when on nothing new is begun in it.
    no_new_after: Instant,
    window: Mutex<Window>,
    /// Told when the window moves on or the session retires.
    moved: Notify,
}

/// The sequence numbers that were given and not all answered.
#[derive(Debug)]
struct Window {
    /// Every number below was answered.
    answered_below: u64,
    /// For each number from `answered_below` on, whether it was answered. Never begins with true.
    answered: VecDeque<bool>,
    retired: bool,
}

impl Session {
    /// A session that takes new writes until `no_new_after`.
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

    /// The next number, waiting while too many are open; none once the session takes nothing new.
    pub async fn next(self: &Arc<Self>) -> Option<Ticket> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the look at the window, so that no move in between is missed.
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

    /// Begins nothing new in this session.
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

/// One number of a session, held by one write. Dropped, it counts as answered: nobody is left who could
/// ask about it again.
#[derive(Debug)]
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

    /// What travels with the write now.
    pub fn wire(&self, last: bool) -> WriteSession {
        WriteSession {
            id: self.session.id.clone(),
            sequence: self.sequence,
            answered_below: self.session.window.lock().answered_below,
            last,
        }
    }

    /// The outcome stays unknown: the number is kept open for good, and the session takes nothing new.
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
    async fn a_full_window_waits_for_the_lowest() {
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
        assert_eq!(other.wire(false).answered_below, 1, "others go on beside it");
    }

    #[tokio::test]
    async fn nothing_new_past_the_rest() {
        let over = Session::new(Bytes::new(), Instant::now(), None);
        assert!(over.next().await.is_none());
    }
}
