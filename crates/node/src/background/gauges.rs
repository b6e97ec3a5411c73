//! The gauges, which are set once a second, and the check of the clocks at the same time.

use std::sync::Arc;
use std::time::Duration;

use quorate_engine::clock::Clock;
use quorate_engine::clock_offset::ClockOffsets;
use quorate_service::shared::Shared;
use quorate_transport::{PeerService, Transport};

use crate::metrics::{Metrics, NodeMetrics};
use crate::peers::{ClockWatch, Finding};

/// Interval of the updates.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Sets the gauges until the node ends.
pub async fn keep(
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    transport: Transport,
    service: PeerService,
) {
    let mut interval = tokio::time::interval(POLL_INTERVAL);
    let mut watch = ClockWatch::default();
    loop {
        interval.tick().await;
        groups(&shared, &metrics.node).await;
        peers(&metrics, &transport);
        let unproven = &metrics.node.peer_calls_unproven;
        unproven.inc_by(service.unproven().saturating_sub(unproven.get()));
        clock_offsets(&metrics, &shared.clocks);
        let ahead_ms = shared.clocks.recent_ms(shared.clock.moment());
        watch.look(shared.node, ahead_ms).iter().for_each(Finding::log);
        let queue = metrics.queue("engine");
        queue.bytes.set(shared.engine.queued_bytes() as i64);
    }
}

async fn groups(shared: &Shared, metrics: &NodeMetrics) {
    let shards = shared.engine.shards().all();
    let (mut leaders, mut leaderless, mut sessions) = (0, 0, 0);
    let mut damaged = shared.damaged.lock().len() as i64;
    for shard in shards.values() {
        let leadership = shard.leadership();
        leaders += i64::from(leadership.is_leader);
        leaderless += i64::from(leadership.leader.is_none());
        sessions += shard.sessions() as i64;
        damaged += i64::from(shard.is_damaged());
    }
    metrics.groups.set(shards.len() as i64);
    metrics.leaders.set(leaders);
    metrics.groups_without_leader.set(leaderless);
    metrics.sessions.set(sessions);
    metrics.replicas_damaged.set(damaged);
    let (mut apply_lag, mut replication_lag) = (0, 0);
    for (group, status) in shared.engine.status().await {
        let Some(shard) = shards.get(&group) else { continue };
        apply_lag = apply_lag.max(status.commit.0.saturating_sub(shard.gate.applied().0));
        let behind = status.progress.iter().map(|other| status.last.index.0 - other.matched.0);
        replication_lag = replication_lag.max(behind.max().unwrap_or(0));
    }
    metrics.apply_lag_entries.set(apply_lag as i64);
    metrics.replication_lag_entries.set(replication_lag as i64);
}

fn peers(metrics: &Metrics, transport: &Transport) {
    for view in transport.peers() {
        let peer = metrics.peer(view.node.0);
        peer.connected.set(i64::from(view.connected));
        // The views count from the start of the process; the counters follow them.
        peer.sent.inc_by(view.messages_sent.saturating_sub(peer.sent.get()));
        peer.dropped.inc_by(view.bulk_dropped.saturating_sub(peer.dropped.get()));
    }
}

pub(crate) fn clock_offsets(metrics: &Metrics, clocks: &ClockOffsets) {
    for (node, seconds) in clocks.publish(Clock.moment()) {
        metrics.set_clock_offset(node.0, seconds);
    }
}
