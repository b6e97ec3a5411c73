//! Recovery of service after all faults have ended, within a bound.

use quorate_raft::{Config, Entry};

use super::cluster::Cluster;

/// The longest payload that the simulator proposes: a number of 8 bytes, and fewer than 60 further
/// bytes.
const LARGEST_ENTRY: u64 = Entry::OVERHEAD_BYTES + 8 + 60;

/// Ticks of a round trip of entries without faults: the append is delivered, waits for the running
/// barrier and for its own, and the answer is delivered.
const ROUND_TRIP: u64 = 4;

/// Ticks to apply a page of entries without faults.
const PAGE: u64 = 1;

/// An upper bound of the ticks that a backlog of this many entries takes: it is first sent, a full
/// window per round trip, and then applied, page by page. In a run the two overlap.
fn backlog_ticks(config: &Config, entries: u64) -> u64 {
    let fitting = |bytes: u64| (bytes / LARGEST_ENTRY).max(1);
    let by_messages =
        fitting(config.max_append_bytes).saturating_mul(config.max_inflight_messages as u64);
    let window = by_messages.min(fitting(config.max_inflight_bytes));
    let page = fitting(config.max_committed_bytes);
    entries.div_ceil(window) * ROUND_TRIP + entries.div_ceil(page) * PAGE
}

/// Runs a healed cluster until every node has answered a read that began after the healing, has
/// applied a later proposal, and knows that its state is newer than the healing. Ten election
/// timeouts are allowed for elections and failing snapshots, plus the time to send and apply the
/// backlog. Returns the ticks it took.
pub fn serve_again(cluster: &mut Cluster, config: &Config) -> u64 {
    let healed = cluster.now;
    let backlog = cluster.backlog();
    let allowed = 10 * config.election_max.0 + backlog_ticks(config, backlog);
    let mut mark = None;
    loop {
        cluster.tick();
        if let Some(leader) = cluster.leader()
            && cluster.now.is_multiple_of(20)
        {
            mark = cluster.propose(leader, 1).or(mark);
            (0..cluster.size()).for_each(|node| cluster.read(node));
        }
        let served = |node: usize| cluster.last_read[node] > healed;
        let applied = |node: usize| mark.is_some_and(|mark| cluster.position(node) >= mark);
        let fresh = |node: usize| {
            cluster.leader() == Some(node)
                || cluster.fresh_since(node).is_some_and(|since| since > healed)
        };
        if (0..cluster.size()).all(|node| served(node) && applied(node) && fresh(node)) {
            return cluster.now - healed;
        }
        assert!(
            cluster.now < healed + allowed,
            "no full service within {allowed} ticks of the healing, with {backlog} entries to send \
             and to apply: {}",
            cluster.describe()
        );
    }
}
