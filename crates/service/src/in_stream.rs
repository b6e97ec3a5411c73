//! What an operation of a Pipeline holds while it is carried out, and gives back as early as it
//! can.

use std::any::Any;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// Bytes of answers of one stream that may be held while their reader takes none.
pub const ROOM_BYTES: usize = 4 << 20;

/// Bytes of a unit of room.
const UNIT_BYTES: usize = 1 << 10;

/// The state of one operation in its stream.
#[derive(Debug)]
pub struct InStream {
    /// The turn of a write among those on its shard, until it is handed over.
    turn: Mutex<Option<OwnedMutexGuard<()>>>,
    /// Its place among the calls under way, which is only dropped here.
    place: Mutex<Option<Box<dyn Any + Send>>>,
    /// The room for its answer.
    taken: Mutex<Option<OwnedSemaphorePermit>>,
    /// The room of its stream, in units.
    room: Arc<Semaphore>,
}

impl InStream {
    /// An operation of the stream with this room.
    #[must_use]
    pub fn new(room: Arc<Semaphore>) -> Self {
        Self { turn: Mutex::default(), place: Mutex::default(), taken: Mutex::default(), room }
    }

    /// The units of room for a number of bytes, at least one.
    #[must_use]
    pub fn units(bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).unwrap_or(u32::MAX)
    }

    /// Holds the turn until the write is handed over.
    pub fn keep_turn(&self, turn: OwnedMutexGuard<()>) {
        *self.turn.lock() = Some(turn);
    }

    /// Lets the next write on the shard have its turn.
    pub fn handed_over(&self) {
        self.turn.lock().take();
    }

    /// Holds a place among the calls under way until the operation ends, or waits for room.
    pub fn keep_place(&self, place: impl Any + Send) {
        *self.place.lock() = Some(Box::new(place));
    }

    /// Waits for room for an answer of up to `bytes`. If that takes long, it is the reader who
    /// makes it wait: the place among the calls under way is given back.
    pub async fn take_room(&self, bytes: usize) {
        if self.taken.lock().is_some() {
            return;
        }
        let units = Self::units(bytes).min(Self::units(ROOM_BYTES));
        let room = match self.room.clone().try_acquire_many_owned(units) {
            Ok(room) => Some(room),
            Err(_) => {
                self.place.lock().take();
                // It is never closed.
                self.room.clone().acquire_many_owned(units).await.ok()
            }
        };
        *self.taken.lock() = room;
    }

    /// The room that an answer of `bytes` takes of what was held for it; the rest is given back.
    pub fn room_of_answer(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let mut taken = self.taken.lock().take()?;
        let kept = (Self::units(bytes) as usize).min(taken.num_permits());
        taken.split(kept)
    }
}
