//! Starting the nodes, and the handle that tests hold.

use std::net::TcpListener;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use quorate_proto::v1::ClusterMap;
use tokio::sync::oneshot;

use crate::node::{self, Shared};
use crate::state::{Calls, SeenWrite, State, Step, map_of};

/// A running cluster. It ends when this is dropped.
pub struct FakeCluster {
    /// Where the nodes serve, in the order of their ids, which begin with 1.
    pub addresses: Vec<String>,
    shared: Arc<Shared>,
    /// Dropped, it ends the thread that serves.
    _stop: oneshot::Sender<()>,
}

impl FakeCluster {
    /// Starts `nodes` nodes with one shard on all of them. No node is said to lead; a client then
    /// takes the first replica to.
    ///
    /// # Panics
    ///
    /// If the system gives no socket or no thread.
    #[must_use]
    pub fn start(nodes: usize) -> FakeCluster {
        let bind = |_| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            listener.set_nonblocking(true).expect("a socket can be made not to block");
            listener
        };
        let listeners: Vec<TcpListener> = (0..nodes).map(bind).collect();
        let address = |listener: &TcpListener| {
            listener.local_addr().expect("a bound socket has an address").to_string()
        };
        let addresses: Vec<String> = listeners.iter().map(address).collect();
        let state = Mutex::new(State::new(&addresses));
        let shared = Arc::new(Shared { state, sockets: Mutex::default() });
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        std::thread::spawn(move || {
            runtime.block_on(async {
                for (id, listener) in (1..).zip(listeners) {
                    tokio::spawn(node::serve(id, listener, Arc::clone(&serving)));
                }
                // An error too means that the cluster was dropped.
                let _ = stopped.await;
            });
        });
        FakeCluster { addresses, shared, _stop: stop }
    }

    /// Starts one node, which leads.
    #[must_use]
    pub fn single() -> FakeCluster {
        let cluster = FakeCluster::start(1);
        cluster.state().leader = 1;
        cluster
    }

    /// What the nodes hold, do and have seen. They wait while it is held.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    /// Sets what a node does with its next calls, after what its script already has.
    pub fn script(&self, node: u64, steps: impl IntoIterator<Item = Step>) {
        self.state().script.entry(node).or_default().extend(steps);
    }

    /// Sets what a node does with all calls once its script has ended.
    pub fn always(&self, node: u64, step: Step) {
        self.always_on(node, Calls::All, step);
    }

    /// Sets what a node does with such calls once its script has ended.
    pub fn always_on(&self, node: u64, calls: Calls, step: Step) {
        self.state().always.insert((node, calls), step);
    }

    /// The writes that came, also those that failed.
    #[must_use]
    pub fn writes(&self) -> Vec<SeenWrite> {
        self.state().writes.clone()
    }

    /// A map of these nodes with `shards` shards, all on all nodes, replica lists in node order.
    #[must_use]
    pub fn map_of(&self, epoch: u64, shards: u64) -> ClusterMap {
        map_of(&self.addresses, epoch, shards)
    }
}
