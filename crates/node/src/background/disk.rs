//! The watch over the disk: measures the used and free space, and acts at the reserve.

use std::sync::Arc;
use std::time::Duration;

use quorate_service::cluster::disk_status;
use quorate_service::health::Health;
use quorate_service::shared::Shared;
use quorate_storage::{Database, DiskLevel, StorageError};
use tracing::warn;

use crate::cluster::give_all_away;
use crate::metrics::Metrics;

/// Interval of the measurements.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Publishes the used space, and transfers all leaderships when the reserve is reached. The level
/// itself is updated at each barrier, by the thread that runs it.
pub(crate) async fn keep(
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    health: Health,
    sled: Database,
) {
    let mut before = DiskLevel::Ok;
    let mut interval = tokio::time::interval(POLL_INTERVAL);
    loop {
        interval.tick().await;
        let sled = sled.clone();
        let seen = tokio::task::spawn_blocking(move || {
            Ok::<_, StorageError>((sled.look_at_space()?, sled.disk_bytes()?))
        });
        let (space, used) = match seen.await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => {
                warn!(%error, "disk: not measured");
                continue;
            }
            Err(_) => return,
        };
        let level = shared.disk.level();
        if before != level {
            let (free, reserve) = (space.free, space.reserve());
            let room = shared.disk.room();
            warn!(free, room, reserve, ?level, ?before, "disk: level changed");
        }
        if before == DiskLevel::Ok && level > DiskLevel::Ok {
            // Once per crossing: if all nodes run short together, no node is a better leader.
            give_all_away(&shared).await;
        }
        before = level;
        metrics.node.disk_used_bytes.set(used as i64);
        metrics.node.disk_level.set(level as i64);
        metrics.node.disk_free_bytes.set(space.free as i64);
        metrics.node.log_bytes.set(shared.engine.log_progress().stored_bytes() as i64);
        metrics.node.delta_bytes.set(shared.budget.used() as i64);
        health.set_disk(disk_status(used, &space, &shared.disk));
    }
}
