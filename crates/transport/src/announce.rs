//! Reports to the peers besides messages: how far this node's log is durable, and which processes
//! are alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::ids::Incarnation;
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;

use super::Shared;
use super::memory::{Remembered, StartId};
use super::peer::Peer;
use super::reports::{Process, REPORT_LIFETIME, Report, Since};

/// Interval at which this node checks whether its log has grown, to report it to the peers.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(250);
/// Longest time between two reports, a fraction of [`REPORT_LIFETIME`].
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// Reports to every peer even if no message does: immediately when a peer is connected or
    /// disconnected, within [`ANNOUNCE_INTERVAL`] when the log has grown, and else once in
    /// [`IDLE_INTERVAL`].
    pub(super) async fn announce_to_peers(self: Arc<Self>) {
        let mut announced = self.inbound.log_sequence();
        let mut announced_at = tokio::time::Instant::now();
        loop {
            let at_once = tokio::select! {
                () = self.announce.notified() => true,
                () = tokio::time::sleep(ANNOUNCE_INTERVAL) => false,
            };
            let sequence = self.inbound.log_sequence();
            if at_once || sequence != announced || announced_at.elapsed() >= IDLE_INTERVAL {
                announced = sequence;
                announced_at = tokio::time::Instant::now();
                self.peers.load().values().for_each(|peer| peer.nudge());
            }
        }
    }

    /// The processes of peers that are connected and were heard lately.
    pub(super) fn live_processes(&self) -> wire::LiveProcesses {
        let peers = self.peers.load();
        let processes = peers.values().filter_map(|peer| self.live_process(peer)).collect();
        wire::LiveProcesses { processes }
    }

    fn live_process(&self, peer: &Peer) -> Option<wire::LiveProcess> {
        if peer.silent_for() >= REPORT_LIFETIME {
            return None;
        }
        let process = peer.presence.borrow().connected()?.clone();
        let accepted = process.age(Instant::now())?;
        let said = self.memory.of(process.incarnation).filter(|s| s.start == process.start)?;
        Some(wire::LiveProcess {
            node_id: peer.node.0,
            incarnation: process.incarnation.to_bytes().to_vec().into(),
            start_id: process.start.0,
            boot_counter: said.boot_counter,
            log_sequence: said.log_sequence,
            taken_ms: accepted.as_millis() as u64,
            peer_address: process.address,
        })
    }

    /// Stores the list of processes that are alive at node `by`, in place of its last list.
    pub(super) fn reported(&self, by: NodeId, live: &wire::LiveProcesses) {
        let by_node: BTreeMap<u64, &wire::LiveProcess> =
            live.processes.iter().map(|process| (process.node_id, process)).collect();
        for peer in self.peers.load().values().filter(|peer| peer.node != by) {
            let report = by_node.get(&peer.node.0).and_then(|process| report(by, process));
            peer.reported(by, report);
        }
    }
}

/// `None` where it names no process.
fn report(by: NodeId, live: &wire::LiveProcess) -> Option<Report> {
    let incarnation = Incarnation::from_bytes(&live.incarnation)?;
    let (start, came) = (StartId(live.start_id), Instant::now());
    let accepted = Some(Since::of(Duration::from_millis(live.taken_ms), came));
    let address = live.peer_address.clone();
    (start.0 != 0).then_some(Report {
        by,
        came,
        process: Process { incarnation, start, address, accepted },
        said: Remembered {
            boot_counter: live.boot_counter,
            start,
            log_sequence: live.log_sequence,
        },
    })
}
