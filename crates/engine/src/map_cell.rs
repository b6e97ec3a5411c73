//! The cell that holds the newest cluster map of this node.

use std::sync::Arc;

use quorate_machine::Map;
use tokio::sync::watch;

/// The newest cluster map that this node knows. Readers never wait; a newer map wakes watchers.
#[derive(Clone, Debug)]
pub struct MapCell {
    sender: Arc<watch::Sender<Option<Arc<Map>>>>,
}

impl Default for MapCell {
    fn default() -> Self {
        Self { sender: Arc::new(watch::Sender::new(None)) }
    }
}

impl MapCell {
    /// The newest map; `None` until the cluster has one.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Map>> {
        self.sender.borrow().clone()
    }

    /// The epoch of the newest map; 0 while there is none.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.sender.borrow().as_ref().map_or(0, |map| map.epoch())
    }

    /// Stores the map if it is newer than the one held; returns whether it was.
    pub fn offer(&self, map: Map) -> bool {
        self.sender.send_if_modified(|held| {
            let newer = held.as_ref().is_none_or(|held| held.epoch() < map.epoch());
            if newer {
                *held = Some(Arc::new(map));
            }
            newer
        })
    }

    /// A receiver that wakes with each newer map.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Map>>> {
        self.sender.subscribe()
    }
}
