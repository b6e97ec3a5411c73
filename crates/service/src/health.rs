//! Whether the node is well: live when its threads move, ready when it takes requests.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use quorate_proto::health::{LIVE_SERVICE, READY_SERVICE};
use quorate_proto::v1::{DiskStatus, NodePhase, PeerStatus};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::shared::{Lifecycle, SharedCell};

/// An event loop that has not iterated for this long counts as stuck.
const STANDSTILL: Duration = Duration::from_secs(5);
/// How often the health service learns of a change.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// What knows how the other nodes stand.
pub trait PeerSource: Send + Sync {
    /// How each of them stands, as this node sees it.
    fn peers(&self) -> Vec<PeerStatus>;
}

/// What is known of the node's condition. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    cell: SharedCell,
    life: Arc<Lifecycle>,
    peers: Arc<ArcSwapOption<Box<dyn PeerSource>>>,
    disk: Arc<ArcSwap<Option<DiskStatus>>>,
}

impl Health {
    /// The health of a node that has just begun.
    #[must_use]
    pub fn new(cell: SharedCell) -> Self {
        let life = cell.life.clone();
        Self { cell, life, peers: Arc::default(), disk: Arc::default() }
    }

    /// From now on the peers are known.
    pub fn set_peers(&self, peers: Box<dyn PeerSource>) {
        self.peers.store(Some(Arc::new(peers)));
    }

    /// How the other nodes stand, as this one sees them; empty while it knows none.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.peers.load().as_ref().map_or_else(Vec::new, |peers| peers.peers())
    }

    /// Notes how the disk stands.
    pub fn set_disk(&self, disk: DiskStatus) {
        self.disk.store(Arc::new(Some(disk)));
    }

    /// The disk as it was last seen.
    #[must_use]
    pub fn disk(&self) -> Option<DiskStatus> {
        *self.disk.load_full()
    }

    /// Whether the engine's loops and the disk move.
    ///
    /// # Errors
    /// What stands still.
    pub fn check_live(&self) -> Result<(), String> {
        let Some(shared) = self.cell.get() else { return Ok(()) };
        let idle = shared.engine.idle_for();
        if idle > STANDSTILL {
            return Err(format!("an engine loop has not turned for {} s", idle.as_secs()));
        }
        let busy = shared.engine.disk_busy_for();
        if busy > STANDSTILL {
            return Err(format!("a write to the disk has been under way for {} s", busy.as_secs()));
        }
        Ok(())
    }

    /// Whether the node takes requests.
    ///
    /// # Errors
    /// What it waits for.
    pub fn check_ready(&self) -> Result<(), String> {
        match self.life.phase() {
            NodePhase::Ready => Ok(()),
            phase => {
                let name = phase.as_str_name().trim_start_matches("NODE_PHASE_").to_lowercase();
                let detail = self.life.detail();
                Err(if detail.is_empty() { name } else { format!("{name}: {detail}") })
            }
        }
    }

    /// Keeps the gRPC health service true until the node ends.
    pub async fn report(self, reporter: HealthReporter) {
        let status = |well: bool| match well {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        let mut told = (None, None);
        let mut interval = tokio::time::interval(REPORT_INTERVAL);
        loop {
            interval.tick().await;
            let now = (Some(self.check_ready().is_ok()), Some(self.check_live().is_ok()));
            if let (true, Some(ready)) = (told.0 != now.0, now.0) {
                reporter.set_service_status(READY_SERVICE, status(ready)).await;
            }
            if let (true, Some(live)) = (told.1 != now.1, now.1) {
                reporter.set_service_status(LIVE_SERVICE, status(live)).await;
            }
            told = now;
        }
    }
}
