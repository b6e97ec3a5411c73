//! What waits to be sent to one peer on one lane, and the stream that a connection pulls it from.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::Stream;
use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_raft::{Envelope, GroupId, ReplicaId, room_for};
use tokio::sync::{Notify, mpsc};

use super::{Shared, convert};

/// A bound of the slots of one peer, far above kinds × groups: a peer that asks for replicas which
/// do not exist must not grow the table of answers.
const SLOTS_MAX: usize = 65_536;

/// A replica whose messages were lost.
pub(super) type Lost = (GroupId, ReplicaId);

/// How messages of a lane wait.
pub(super) trait Queue: Default + Send + 'static {
    /// Takes a message; `false` drops it. `open`: a connection stands.
    fn put(&mut self, envelope: Envelope, open: bool, bytes_max: usize) -> bool;
    /// Removes the next frame: up to `bytes_max` (by [`convert::size_bound`]) or one message.
    fn take(&mut self, frame: u64, bytes_max: usize) -> Vec<Envelope>;
    /// The peer has read all frames through this one.
    fn acknowledged(&mut self, frame: u64);
    /// The connection is gone. Returns whose messages are or may be lost, each once.
    fn cut(&mut self) -> Vec<Lost>;
    /// Whether frames of this lane also report what no message does.
    fn announces(&self) -> bool;
    fn is_empty(&self) -> bool;
    fn bytes(&self) -> usize;
}

/// The control lane: of each kind, between the same replicas, only the latest message waits.
#[derive(Default)]
pub(super) struct LatestQueue {
    slots: BTreeMap<Slot, Envelope>,
    /// The last slot taken. The next frame continues after it, so that no slot waits forever behind
    /// busier ones.
    taken: Option<Slot>,
}

/// Group, kind, sender, receiver.
type Slot = (GroupId, u8, ReplicaId, ReplicaId);

impl Queue for LatestQueue {
    fn put(&mut self, envelope: Envelope, _open: bool, _bytes_max: usize) -> bool {
        let slot = (envelope.group, envelope.message.kind(), envelope.from.id, envelope.to.id);
        if self.slots.len() >= SLOTS_MAX && !self.slots.contains_key(&slot) {
            return false;
        }
        self.slots.insert(slot, envelope);
        true
    }

    fn take(&mut self, _frame: u64, bytes_max: usize) -> Vec<Envelope> {
        let whole: usize = self.slots.values().map(convert::size_bound).sum();
        if whole <= bytes_max {
            self.taken = None;
            return std::mem::take(&mut self.slots).into_values().collect();
        }
        let mut frame = Vec::new();
        let mut bytes = 0;
        loop {
            let next = match self.taken {
                Some(taken) => {
                    let after = (std::ops::Bound::Excluded(taken), std::ops::Bound::Unbounded);
                    self.slots.range(after).next().or_else(|| self.slots.iter().next())
                }
                None => self.slots.iter().next(),
            };
            let Some((&slot, envelope)) = next else { return frame };
            bytes += convert::size_bound(envelope);
            if bytes > bytes_max && !frame.is_empty() {
                return frame;
            }
            frame.extend(self.slots.remove(&slot));
            self.taken = Some(slot);
        }
    }

    fn acknowledged(&mut self, _frame: u64) {}

    /// Drops queued messages: they are stale. Not reported, because the core expects the loss of
    /// any of these.
    fn cut(&mut self) -> Vec<Lost> {
        self.slots.clear();
        Vec::new()
    }

    fn announces(&self) -> bool {
        true
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn bytes(&self) -> usize {
        self.slots.values().map(convert::size_bound).sum()
    }
}

/// The bulk lane: in order, bounded in bytes. Large messages leave a quarter of it to small ones:
/// what is dropped here is probed for and sent again, which costs a group of small entries as much
/// as one of large ones.
#[derive(Default)]
pub(super) struct FifoQueue {
    queue: VecDeque<(Envelope, usize)>,
    bytes: usize,
    /// For whom frames are under way, and the last of those frames. As many as there are replicas.
    unacknowledged: BTreeMap<Lost, u64>,
}

impl Queue for FifoQueue {
    fn put(&mut self, envelope: Envelope, open: bool, bytes_max: usize) -> bool {
        let bytes = convert::size_bound(&envelope);
        let room = room_for(bytes as u64, bytes_max as u64) as usize;
        // A message above the bound passes alone, else it would never pass.
        if !open || (self.bytes + bytes > room && !self.queue.is_empty()) {
            return false;
        }
        self.bytes += bytes;
        self.queue.push_back((envelope, bytes));
        true
    }

    fn take(&mut self, frame: u64, bytes_max: usize) -> Vec<Envelope> {
        let mut taken = Vec::new();
        let mut taken_bytes = 0;
        while let Some((_, bytes)) = self.queue.front() {
            if taken_bytes + bytes > bytes_max && !taken.is_empty() {
                break;
            }
            if let Some((envelope, bytes)) = self.queue.pop_front() {
                taken_bytes += bytes;
                self.bytes -= bytes;
                self.unacknowledged.insert((envelope.group, envelope.to.id), frame);
                taken.push(envelope);
            }
        }
        taken
    }

    fn acknowledged(&mut self, frame: u64) {
        self.unacknowledged.retain(|_, last| *last > frame);
    }

    fn cut(&mut self) -> Vec<Lost> {
        for (envelope, _) in self.queue.drain(..) {
            self.unacknowledged.insert((envelope.group, envelope.to.id), 0);
        }
        self.bytes = 0;
        std::mem::take(&mut self.unacknowledged).into_keys().collect()
    }

    fn announces(&self) -> bool {
        false
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A queue and the connection that pulls from it, if there is one.
pub(super) struct Outbox<Q> {
    inner: Mutex<Inner<Q>>,
    /// The peer has read more, or the connection is gone.
    progress: Notify,
    queue_bytes_max: usize,
    frame_bytes_max: usize,
}

#[derive(Default)]
struct Inner<Q> {
    queue: Q,
    /// Counts connections; the stream of an older one ends.
    generation: u64,
    /// The Hello of this generation was accepted.
    open: bool,
    /// The connection that found nothing to send.
    waker: Option<Waker>,
    /// A frame is to go out although no message waits, and is to report which processes are alive.
    nudged: bool,
    /// Frames taken by this generation.
    frames: u64,
    acknowledged: u64,
    /// Since when a frame waits for an acknowledgement, or for the next one.
    waiting_since: Option<Instant>,
    counts: Counts,
}

/// Since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub messages: u64,
    pub frames: u64,
    pub dropped: u64,
}

impl<Q: Queue> Inner<Q> {
    fn has_frame(&self) -> bool {
        self.nudged || !self.queue.is_empty()
    }
}

impl<Q: Queue> Outbox<Q> {
    pub fn new(queue_bytes_max: usize, frame_bytes_max: usize) -> Self {
        let (inner, progress) = (Mutex::new(Inner::default()), Notify::new());
        Self { inner, progress, queue_bytes_max, frame_bytes_max }
    }

    /// Takes a message without waking anybody; `false`: dropped.
    pub fn put(&self, envelope: Envelope) -> bool {
        let mut inner = self.inner.lock();
        let open = inner.open;
        let taken = inner.queue.put(envelope, open, self.queue_bytes_max);
        inner.counts.dropped += u64::from(!taken);
        taken
    }

    /// Wakes the connection when there is something for it.
    pub fn wake(&self) {
        let waker = {
            let mut inner = self.inner.lock();
            if inner.open && inner.has_frame() { inner.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Lets a frame go out even if no message waits, for what it reports besides.
    pub fn nudge(&self) {
        {
            let mut inner = self.inner.lock();
            // A new connection begins with one.
            inner.nudged = inner.open;
        }
        self.wake();
    }

    /// A new connection: the number of its generation. Frames flow when it is opened.
    pub fn begin(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.generation += 1;
        inner.open = false;
        inner.nudged = false;
        inner.frames = 0;
        inner.acknowledged = 0;
        inner.waiting_since = None;
        inner.generation
    }

    /// The Hello of the newest generation was accepted.
    pub fn open(&self) {
        {
            let mut inner = self.inner.lock();
            inner.open = true;
            inner.nudged = inner.queue.announces();
        }
        self.wake();
    }

    /// The connection is gone, or could not be made.
    pub fn cut(&self) -> Vec<Lost> {
        let (waker, lost) = {
            let mut inner = self.inner.lock();
            inner.generation += 1;
            inner.open = false;
            inner.waiting_since = None;
            (inner.waker.take(), inner.queue.cut())
        };
        self.progress.notify_waiters();
        // The old stream learns that it has ended.
        if let Some(waker) = waker {
            waker.wake();
        }
        lost
    }

    /// The peer has read the frames of this connection through `frame`.
    ///
    /// # Errors
    /// A sentence when it acknowledges what was never sent.
    pub fn acknowledge(&self, frame: u64) -> Result<(), String> {
        let mut inner = self.inner.lock();
        if frame > inner.frames {
            return Err(format!("it acknowledges frame {frame} of {}", inner.frames));
        }
        if frame > inner.acknowledged {
            inner.acknowledged = frame;
            inner.queue.acknowledged(frame);
            inner.waiting_since = (frame < inner.frames).then(Instant::now);
            self.progress.notify_waiters();
        }
        Ok(())
    }

    /// Waits until the peer has read everything, a nudge included, or is not connected.
    pub async fn read(&self) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            // From here on no progress is missed.
            progress.as_mut().enable();
            {
                let inner = self.inner.lock();
                if !inner.open || (!inner.has_frame() && inner.waiting_since.is_none()) {
                    return;
                }
            }
            progress.await;
        }
    }

    /// How long the peer has acknowledged nothing though there was something.
    pub fn silent_for(&self) -> Option<Duration> {
        self.inner.lock().waiting_since.map(|since| since.elapsed())
    }

    pub fn counts(&self) -> Counts {
        self.inner.lock().counts
    }

    pub fn bytes(&self) -> usize {
        self.inner.lock().queue.bytes()
    }

    /// The next frame for the connection of this generation.
    fn poll_frame(&self, generation: u64, cx: &Context<'_>) -> Poll<Option<Ready>> {
        let mut inner = self.inner.lock();
        if inner.generation != generation {
            return Poll::Ready(None);
        }
        if !inner.open || !inner.has_frame() {
            match &mut inner.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let announces = std::mem::take(&mut inner.nudged);
        inner.frames += 1;
        let number = inner.frames;
        let messages = inner.queue.take(number, self.frame_bytes_max);
        inner.counts.frames += 1;
        inner.counts.messages += messages.len() as u64;
        inner.waiting_since.get_or_insert_with(Instant::now);
        Poll::Ready(Some(Ready { number, messages, announces }))
    }
}

/// A frame, taken from the outbox.
struct Ready {
    number: u64,
    messages: Vec<Envelope>,
    /// It reports which processes are alive.
    announces: bool,
}

/// What a connection sends: what opens it, then frames as the outbox has them. Polled only when
/// HTTP/2 has room, so what is not read stays in the outbox, where it is bounded or replaced.
pub(super) struct FrameStream<Q> {
    outbox: Arc<Outbox<Q>>,
    generation: u64,
    /// The Hello and the proof; frames follow when its sender is gone.
    opening: Option<mpsc::Receiver<wire::link_request::Content>>,
    shared: Arc<Shared>,
}

impl<Q: Queue> FrameStream<Q> {
    pub fn new(
        outbox: Arc<Outbox<Q>>,
        generation: u64,
        opening: mpsc::Receiver<wire::link_request::Content>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { outbox, generation, opening: Some(opening), shared }
    }
}

impl<Q: Queue> Stream for FrameStream<Q> {
    type Item = wire::LinkRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use wire::link_request::Content;
        let request = |content| wire::LinkRequest { content: Some(content) };
        if let Some(opening) = &mut self.opening {
            match opening.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(content)) => return Poll::Ready(Some(request(content))),
                Poll::Ready(None) => self.opening = None,
            }
        }
        self.outbox.poll_frame(self.generation, cx).map(|frame| {
            frame.map(|Ready { number, messages, announces }| {
                // Read after the messages were taken: each of them was put here after its barrier.
                let log_sequence = self.shared.inbound.log_sequence();
                let live = announces.then(|| self.shared.live_processes());
                // Converted outside the lock: a sender must not wait for an encoding.
                let messages = messages.into_iter().map(convert::to_wire).collect();
                request(Content::Frame(wire::Frame { number, messages, log_sequence, live }))
            })
        })
    }
}
