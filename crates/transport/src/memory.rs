//! Memory of the peers' processes: what a peer has reported of its disk may not be less at its next
//! start.
//!
//! A data directory that was put back from an older copy has forgotten votes and acknowledgements
//! that others count on. Two numbers show it. The boot number grows with each start of a process,
//! and no two processes have the same one. The sequence of the record log grows with each promise:
//! a copy that was accepted during boot 6 starts as boot 7, which is new, but its log ends before
//! what boot 6 went on to promise. Both are durable where they come from before they are reported,
//! so that the end of a process or of a machine loses neither, and the highest of both may be held
//! against the next process.
//!
//! **When it is durable here.** The number and start id of a new process before its first message
//! counts, and everything before a refusal is said: a refusal holds over this node's own end. The
//! sequence while a process runs within [`SAVE_INTERVAL`], and at once when the last connection of
//! it ends, which is before its directory can be replaced. What is left is the end of this node
//! within a second of a peer's promise, and that peer put back to a copy from within the same
//! second.
//!
//! **What the two numbers show, and what they do not.** Every connected peer hears of every end:
//! with the next frame, within a quarter of a second without one, and at a clean stop before the
//! connections end. Each of them refuses an older copy and takes the newest directory. A peer that
//! was not connected (or had its node killed within that quarter) takes the copy at its word, and
//! then the numbers do not show that another directory is newer. Copy and newest directory start
//! with the same boot number, and both write records after the point where they part; a sequence
//! says how much was promised, not what. The copy may have voted here, and the newest directory
//! does not hold that vote. So this peer refuses the newest directory as one that went back, until
//! its boot number is above that of the copy. From then on the peer takes it, and does not notice
//! that what the copy promised is missing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use quorate_proto::ids::Incarnation;

/// How long a higher sequence may wait before it is made durable.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Drawn at random by each process, and never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StartId(pub u64);

impl StartId {
    /// A new one.
    #[must_use]
    pub fn draw() -> Self {
        Self(rand::random::<u64>().max(1))
    }
}

impl fmt::Display for StartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What is remembered of the processes of one incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The number of the newest process that was accepted.
    pub boot_counter: u64,
    /// The start id of that process.
    pub start: StartId,
    /// The highest sequence of its record log that any of them has reported.
    pub log_sequence: u64,
}

/// What is remembered, by incarnation. As many as there were ever members.
pub type Memories = BTreeMap<Incarnation, Remembered>;

/// Where memories outlive the process.
pub trait MemoryStore: Send + Sync + 'static {
    /// Replaces what is kept; it is durable when this returns. A failure ends the process. Called
    /// on a thread that may wait for the disk.
    fn keep(&self, memories: &Memories);
}

/// What was kept, and where to keep it.
pub struct Recollection {
    /// What the last process remembered.
    pub memories: Memories,
    /// Keeps it for the next one.
    pub store: Arc<dyn MemoryStore>,
}

/// The memories of this process, and the thread that keeps them durable.
pub(super) struct Memory {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// The last version that is durable; [`CLOSED`] at the end.
    saved: watch::Sender<u64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Above every version, so that every waiter is woken.
const CLOSED: u64 = u64::MAX;

#[derive(Default)]
struct Inner {
    memories: Memories,
    /// Grows with each change.
    version: u64,
    /// The version at the last change of a process.
    process_version: u64,
    /// Somebody waits for this version, or has reason to hurry.
    wanted: u64,
    /// Since when there is something that is not durable.
    dirty_since: Option<Instant>,
    closing: bool,
}

impl Inner {
    fn touched(&mut self) {
        self.version += 1;
        self.dirty_since.get_or_insert_with(Instant::now);
    }
}

impl Memory {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(recollection: Recollection) -> Result<Arc<Self>, String> {
        let Recollection { memories, store } = recollection;
        let memory = Arc::new(Self {
            inner: Mutex::new(Inner { memories, ..Inner::default() }),
            changed: Condvar::new(),
            saved: watch::Sender::new(0),
            thread: Mutex::default(),
        });
        let saver = Arc::clone(&memory);
        let thread = std::thread::Builder::new()
            .name("peer-memory".to_owned())
            .spawn(move || saver.run(&*store))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        *memory.thread.lock() = Some(thread);
        Ok(memory)
    }

    /// What is remembered of an incarnation.
    pub fn of(&self, incarnation: Incarnation) -> Option<Remembered> {
        self.inner.lock().memories.get(&incarnation).copied()
    }

    /// A process of this incarnation is accepted. What it says of itself is not less than what is
    /// remembered, or it is the process that is remembered.
    pub fn accepted(&self, incarnation: Incarnation, said: Remembered) {
        let mut inner = self.inner.lock();
        let remembered = inner.memories.entry(incarnation).or_default();
        let before = *remembered;
        remembered.boot_counter = before.boot_counter.max(said.boot_counter);
        remembered.start = said.start;
        remembered.log_sequence = before.log_sequence.max(said.log_sequence);
        let after = *remembered;
        if after != before {
            inner.touched();
            if after.start != before.start {
                inner.process_version = inner.version;
            }
            self.changed.notify_one();
        }
    }

    /// The process that was accepted last ran on a copy: its numbers do not count, and those
    /// of the original take their place.
    pub fn corrected(&self, incarnation: Incarnation, original: Remembered) {
        let mut inner = self.inner.lock();
        inner.memories.insert(incarnation, original);
        inner.touched();
        inner.process_version = inner.version;
        inner.wanted = inner.version;
        self.changed.notify_one();
    }

    /// Stores a sequence that the process which was accepted last has reported.
    pub fn told(&self, incarnation: Incarnation, start: StartId, log_sequence: u64) {
        let mut inner = self.inner.lock();
        match inner.memories.get_mut(&incarnation) {
            Some(known) if known.start == start && known.log_sequence < log_sequence => {
                known.log_sequence = log_sequence;
            }
            _ => return,
        }
        let first = inner.dirty_since.is_none();
        inner.touched();
        if first {
            self.changed.notify_one();
        }
    }

    /// Makes everything durable without waiting for it.
    pub fn save_soon(&self) {
        let mut inner = self.inner.lock();
        inner.wanted = inner.version;
        self.changed.notify_one();
    }

    /// Waits until the processes that were accepted are durable; `false` when that will never be.
    pub async fn processes_saved(&self) -> bool {
        let version = self.inner.lock().process_version;
        self.saved(version).await
    }

    /// Waits until everything is durable; `false` when that will never be.
    pub async fn all_saved(&self) -> bool {
        let version = self.inner.lock().version;
        self.saved(version).await
    }

    async fn saved(&self, version: u64) -> bool {
        let mut saved = self.saved.subscribe();
        if *saved.borrow() < version {
            let mut inner = self.inner.lock();
            inner.wanted = inner.wanted.max(version);
            self.changed.notify_one();
        }
        let reached = saved.wait_for(|saved| *saved >= version).await;
        reached.is_ok_and(|saved| *saved != CLOSED)
    }

    /// Makes everything durable, and nothing any more afterwards. Waits for the disk.
    pub fn close(&self) {
        self.end();
        if let Some(thread) = self.thread.lock().take() {
            // It panics only where the process ends with it.
            let _ = thread.join();
        }
    }

    /// As [`Memory::close`], without waiting.
    pub fn end(&self) {
        self.inner.lock().closing = true;
        self.changed.notify_one();
    }

    fn run(&self, store: &dyn MemoryStore) {
        loop {
            let (version, memories, closing) = self.next();
            if let Some(memories) = memories {
                store.keep(&memories);
                self.saved.send_replace(version);
            }
            if closing {
                self.saved.send_replace(CLOSED);
                return;
            }
        }
    }

    /// Waits until there is something to save; what it is, if there is anything, and whether that
    /// is the end.
    fn next(&self) -> (u64, Option<Memories>, bool) {
        let mut inner = self.inner.lock();
        let due = |inner: &Inner| match inner.dirty_since {
            Some(_) if inner.wanted > *self.saved.borrow() => Some(Instant::now()),
            Some(since) => Some(since + SAVE_INTERVAL),
            None => None,
        };
        while !inner.closing {
            match due(&inner) {
                Some(due) if due <= Instant::now() => break,
                Some(due) => drop(self.changed.wait_until(&mut inner, due)),
                None => self.changed.wait(&mut inner),
            }
        }
        let dirty = inner.dirty_since.take().is_some();
        (inner.version, dirty.then(|| inner.memories.clone()), inner.closing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Incarnation = Incarnation(7);

    /// Counts what it is given.
    #[derive(Default)]
    struct Kept(Mutex<Vec<Memories>>);

    impl MemoryStore for Kept {
        fn keep(&self, memories: &Memories) {
            self.0.lock().push(memories.clone());
        }
    }

    fn memory() -> (Arc<Kept>, Arc<Memory>) {
        let kept = Arc::new(Kept::default());
        let store: Arc<dyn MemoryStore> = kept.clone();
        let recollection = Recollection { memories: Memories::default(), store };
        (kept, Memory::start(recollection).unwrap())
    }

    fn said(boot_counter: u64, start: u64, log_sequence: u64) -> Remembered {
        Remembered { boot_counter, start: StartId(start), log_sequence }
    }

    #[tokio::test]
    async fn a_process_is_durable_when_it_was_waited_for() {
        let (kept, memory) = memory();
        memory.accepted(PEER, said(3, 1, 50));
        assert!(memory.processes_saved().await);
        assert_eq!(kept.0.lock().last().unwrap()[&PEER], said(3, 1, 50));
        // The same one again costs no write.
        let writes = kept.0.lock().len();
        memory.accepted(PEER, said(3, 1, 50));
        assert!(memory.processes_saved().await);
        assert_eq!(kept.0.lock().len(), writes);
        memory.close();
    }

    #[tokio::test]
    async fn sequences_only_rise_and_are_saved_together() {
        let (kept, memory) = memory();
        memory.accepted(PEER, said(3, 1, 50));
        assert!(memory.all_saved().await);
        for sequence in (51..5_000).chain([60]) {
            memory.told(PEER, StartId(1), sequence);
        }
        // Of a process that is not the one that was accepted last, nothing is learned.
        memory.told(PEER, StartId(2), 9_999);
        memory.told(Incarnation(8), StartId(1), 9_999);
        assert_eq!(memory.of(PEER), Some(said(3, 1, 4_999)));
        memory.close();
        let kept = kept.0.lock();
        assert_eq!(kept.last().unwrap(), &Memories::from([(PEER, said(3, 1, 4_999))]));
        // One for the process, one at the end, and one for each second that this took.
        assert!(kept.len() < 20, "{} writes", kept.len());
    }

    #[tokio::test]
    async fn a_told_sequence_is_saved_by_itself() {
        let (kept, memory) = memory();
        memory.accepted(PEER, said(1, 1, 1));
        assert!(memory.all_saved().await);
        memory.told(PEER, StartId(1), 2);
        let mut saved = memory.saved.subscribe();
        let version = memory.inner.lock().version;
        saved.wait_for(|saved| *saved >= version).await.unwrap();
        assert_eq!(kept.0.lock().last().unwrap()[&PEER], said(1, 1, 2));
        memory.close();
    }

    #[tokio::test]
    async fn nothing_is_saved_after_the_end() {
        let (kept, memory) = memory();
        memory.accepted(PEER, said(1, 1, 1));
        memory.close();
        let writes = kept.0.lock().len();
        assert_eq!(writes, 1);
        memory.accepted(PEER, said(2, 2, 2));
        assert!(!memory.all_saved().await, "no caller waits forever");
        assert_eq!(kept.0.lock().len(), writes);
    }
}
