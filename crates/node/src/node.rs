//! The node that `kvnode start` runs, from the lock on its directory to the clean end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_config::Config;
use quorate_engine::MapCell;
use quorate_engine::clock::Clock;
use quorate_engine::scrub;
use quorate_engine::{BARRIER_MAX, Engine, FatalHook, Limits, Parts};
use quorate_machine::{Map, SessionKey, SessionMint};
use quorate_proto::secret::ClusterSecret;
use quorate_proto::v1::NodePhase;
use quorate_service::admission::Admissions;
use quorate_service::call::Calls;
use quorate_service::cluster::ClusterService;
use quorate_service::draft::RequestRules;
use quorate_service::forward::Forwarder;
use quorate_service::health::Health;
use quorate_service::kept::Transfers;
use quorate_service::kv::KvService;
use quorate_service::shared::{Shared, SharedCell};
use quorate_storage::{DeltaBudget, NodeRecords};
use quorate_transport::{LocalNode, PeerService, ProofKey, Transport};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::background::{disk, gauges, readiness};
use crate::cluster::{self, AskAnswers, Formed, Identity, Keeper, Plan};
use crate::exit::{Fatal, end_for_storage};
use crate::limits;
use crate::metrics::Metrics;
use crate::net::bodies::Budget;
use crate::net::http;
use crate::net::listener::{self, Services};
use crate::notify::Manager;
use crate::peers::{self, Connections, Incoming, Outgoing, Peers, send_snapshots};
use crate::replicas::{self, OpenFailed, Storage};
use crate::secret;

/// Threads that may wait for the disk on behalf of reads.
const READ_THREADS: usize = 16;
/// Threads that may wait for the disk on behalf of scans.
const SCAN_THREADS: usize = 8;
/// All threads for work that may block: those above, snapshots, scrubs, and names that a DNS server
/// does not resolve, of which each connection to another node may hold one.
const BLOCKING_THREADS: usize = 512;
/// Bound of ordered snapshots that have not begun.
const SNAPSHOT_ORDERS: usize = 4096;
/// Longest wait of a drain for calls in flight.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait of a drain, after that, for the connections of clients to close: their last answers
/// may be on the way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a node until a signal asks it to stop. `Ok` is a clean stop (exit code 0).
///
/// # Errors
/// The reason that the process ends with, and its exit code.
pub fn run(config: Config) -> Result<(), Fatal> {
    limits::raise_open_files(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|error| Fatal::Bug(format!("cannot start the runtime: {error}")))?;
    let ended = runtime.block_on(Node::run(config));
    // Open streams of clients must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// A node, from its listeners on.
struct Node {
    config: Arc<Config>,
    identity: Arc<Identity>,
    cell: SharedCell,
    health: Health,
    metrics: Arc<Metrics>,
    secret: ClusterSecret,
    peer_service: PeerService,
    /// What all listeners hold of requests and answers.
    bodies: Arc<Budget>,
    stop: CancellationToken,
}

impl Node {
    async fn run(config: Config) -> Result<(), Fatal> {
        let config = Arc::new(config);
        let ended = wait_for_signal()?;
        tokio::pin!(ended);
        let identity = Identity::of_config(&config)?;
        let plan = Plan::of_config(&config)?;
        let secret = secret::of_config(&config)?;
        let cell = SharedCell::default();
        let health = Health::new(cell.clone());
        let answers = Arc::new(AskAnswers::new(identity.clone(), &plan));
        let peer_service = PeerService::new(answers, ProofKey::of(&secret));
        let metrics = Arc::new(Metrics::new());
        let bodies = Arc::new(Budget::new(config.memory.bodies, &metrics));
        let node = Node {
            config,
            identity,
            health,
            metrics,
            secret,
            peer_service,
            bodies,
            stop: CancellationToken::new(),
            cell,
        };
        let clients = node.listen().await?;
        let manager = Manager::of_environment().map(Arc::new);
        if let Some(manager) = manager.clone() {
            tokio::spawn(manager.report(node.cell.life.clone()));
        }
        let stopping = || manager.iter().for_each(|manager| manager.stopping());
        let serving = tokio::select! {
            name = &mut ended => {
                stopping();
                info!(signal = name, "node: stopped before it was ready");
                return Ok(());
            }
            serving = node.start(&plan) => serving?,
        };
        let name = ended.await;
        stopping();
        info!(signal = name, "node: draining");
        match serving {
            Some(serving) => node.drain(serving, clients).await,
            None => Ok(()),
        }
    }

    /// Opens the listeners, on which the node answers with STARTING until it is ready. Returns the
    /// task of the one for clients, which ends after the last of them was served.
    async fn listen(&self) -> Result<JoinHandle<()>, Fatal> {
        let config = &self.config;
        let clients = listener::bind(config.listen, "--listen").await?;
        let (reporter, _) = tonic_health::server::health_reporter();
        for name in listener::HEALTH_SERVICES {
            let status = tonic_health::ServingStatus::NotServing;
            reporter.set_service_status(name, status).await;
        }
        let calls = Calls::new(self.cell.clone(), self.metrics.service.clone());
        let cluster = ClusterService::new(calls.clone(), config.clone(), self.health.clone());
        let services = Services {
            kv: KvService::new(calls),
            cluster,
            peer: self.peer_service.clone(),
            health: reporter.clone(),
        };
        let bodies = self.bodies.clone();
        if let Some(address) = config.peer_listen {
            let peers = listener::bind(address, "--peer-listen").await?;
            let (services, config) = (services.clone(), config.clone());
            let (metrics, stop) = (self.metrics.clone(), self.stop.clone());
            let bodies = bodies.clone();
            tokio::spawn(async move {
                listener::serve_peers(peers, services, &config, bodies, metrics, stop).await;
            });
        }
        if let Some(address) = config.metrics_listen {
            let listener = http::bind(address).await?;
            let (metrics, health) = (self.metrics.clone(), Arc::new(self.health.clone()));
            let stop = self.stop.clone();
            tokio::spawn(async move {
                served(http::serve(listener, metrics, health, stop.cancelled_owned()).await);
            });
        }
        tokio::spawn(self.health.clone().report(reporter));
        let (config, metrics) = (config.clone(), self.metrics.clone());
        let stop = self.stop.clone();
        let clients = tokio::spawn(async move {
            listener::serve_clients(clients, services, &config, bodies, metrics, stop).await;
        });
        let config = &self.config;
        let (node, listen) = (config.node_id.0, config.listen);
        let peers = config.peer_listen.map(tracing::field::display);
        info!(node, %listen, peers, "node: listening");
        Ok(clients)
    }

    /// Forms or joins the cluster, opens the storage, starts all parts. `None` = the storage did
    /// not open, and the node stays up to report that.
    async fn start(&self, plan: &Plan) -> Result<Option<Serving>, Fatal> {
        let life = self.cell.life.clone();
        let say = |sentence: &str| {
            life.enter(NodePhase::Forming, sentence);
            info!("cluster: {sentence}");
        };
        let key = ProofKey::of(&self.secret);
        let formed = cluster::form(&self.identity, plan, &key, say).await.map_err(Fatal::from)?;
        info!(cluster = %formed.cluster_id, name = formed.cluster_name, "cluster: member");
        self.cell.life.enter(NodePhase::Starting, "opening the storage");
        let started = Instant::now();
        let opened = {
            let (config, identity) = (self.config.clone(), self.identity.clone());
            let formed = formed.clone();
            tokio::task::spawn_blocking(move || replicas::open_storage(&config, &identity, &formed))
                .await
        };
        let opened = opened.map_err(|_| Fatal::Bug("the storage was not opened".to_owned()))?;
        let storage = match opened {
            Ok(storage) => storage,
            Err(OpenFailed::Ends(fatal)) => return Err(fatal),
            Err(OpenFailed::Stays(why)) => {
                error!(why, "storage: not opened; the node stays up without serving");
                self.cell.life.enter(NodePhase::StorageFailed, why);
                return Ok(None);
            }
        };
        info!(took = ?started.elapsed(), replicas = storage.stores.len(), "storage: open");
        self.serve(formed, storage).await.map(Some)
    }

    async fn serve(&self, formed: Formed, storage: Storage) -> Result<Serving, Fatal> {
        let config = &self.config;
        let Storage { sled, budget, records, log, recovered, stores, .. } = storage;
        let Storage { mut damaged, map, memories, last_run, .. } = storage;
        let map_cell = MapCell::default();
        let peers = Arc::new(Peers::default());
        let outgoing = Arc::new(Outgoing::default());
        let (orders, owed) = mpsc::channel(SNAPSHOT_ORDERS);
        let incarnation = self.identity.incarnation().0;
        let engine = Engine::start(Parts {
            node: config.node_id,
            seed: (incarnation as u64) ^ self.identity.boot_counter().rotate_left(32),
            raft: replicas::raft_config(config, formed.shards, formed.members.len()),
            limits: Limits {
                log_node: config.memory.log_node,
                log_group: config.memory.log_group,
                request_queue: config.memory.commands_queued(),
            },
            log,
            budget: budget.clone(),
            outbox: outgoing.clone(),
            map: map_cell.clone(),
            snapshots: orders,
            metrics: self.metrics.engine.clone(),
            fatal: FatalHook(end_for_storage),
            barrier_max: BARRIER_MAX,
        })
        .map_err(|error| Fatal::Bug(format!("the engine cannot be started: {error}")))?;
        if let Some(map) = map {
            if let Some(notice) = cluster::notice(config, &map) {
                warn!("map: not equal to the flags; {notice}");
            }
            map_cell.offer(Map::new(map));
        }
        let inbound = Arc::new(Incoming {
            engine: engine.clone(),
            peers: peers.clone(),
            disk: sled.disk().clone(),
            clocks: Arc::default(),
            life: self.cell.life.clone(),
        });
        let targets = match map_cell.get() {
            Some(map) => peers::targets(map.proto()),
            None => peers::founders(config, &formed.members),
        };
        let transport_config = peers::transport_config(config, formed.members.len());
        let recollection = peers::recollection(memories, records.clone());
        let local = LocalNode {
            node: self.identity.node_id(),
            incarnation: self.identity.incarnation(),
            boot_counter: self.identity.boot_counter(),
            cluster_id: formed.cluster_id,
            cluster_name: formed.cluster_name.clone(),
            key: ProofKey::of(&self.secret),
        };
        let transport =
            Transport::start(transport_config, local, &targets, recollection, inbound.clone())
                .map_err(Fatal::Bug)?;
        outgoing.attach(transport.clone());
        self.peer_service.attach(&transport);
        self.health.set_peers(Box::new(Connections(transport.clone())));
        let shared = self.shared(&inbound, &map_cell, &budget, &formed, transport.clone());
        self.cell.set(shared.clone());
        let waiting = replicas::open_replicas(
            &shared,
            &sled,
            &formed,
            stores,
            recovered,
            last_run,
            &mut damaged,
        )?;
        shared.damaged.lock().clone_from(&damaged);
        if !waiting.is_empty() {
            let engine = engine.clone();
            tokio::task::spawn_blocking(move || scrub::scrub_before_service(&engine, &waiting));
        }
        tokio::spawn(scrub::keep(engine.clone(), last_run));
        tokio::spawn(send_snapshots(engine.clone(), transport.clone(), self.metrics.clone(), owed));
        let keeper = Keeper {
            config: Config::clone(config),
            identity: self.identity.clone(),
            formed,
            engine,
            transport: transport.clone(),
            peers: peers.clone(),
            map: map_cell,
            sled: sled.clone(),
            budget,
            records: records.clone(),
            damaged,
        };
        tokio::spawn(keeper.run());
        tokio::spawn(cluster::keep_leaderships(shared.clone(), peers));
        let (metrics, service) = (self.metrics.clone(), self.peer_service.clone());
        tokio::spawn(gauges::keep(shared.clone(), metrics, transport.clone(), service));
        tokio::spawn(disk::keep(shared.clone(), self.metrics.clone(), self.health.clone(), sled));
        tokio::spawn(readiness::become_ready(shared.clone()));
        Ok(Serving { shared, transport, records })
    }

    fn shared(
        &self,
        inbound: &Incoming,
        map: &MapCell,
        budget: &Arc<DeltaBudget>,
        formed: &Formed,
        transport: Transport,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            config: Config::clone(&self.config),
            node: self.config.node_id,
            cluster_id: formed.cluster_id.to_bytes().to_vec().into(),
            engine: inbound.engine.clone(),
            map: map.clone(),
            forward: Forwarder::new(Box::new(move |node, call| transport.prove_call(node, call))),
            read_threads: Arc::new(Semaphore::new(READ_THREADS)),
            scan_threads: Arc::new(Semaphore::new(SCAN_THREADS)),
            sessions: SessionMint::new(self.config.node_id.0),
            budget: budget.clone(),
            rules: RequestRules {
                value_bytes_max: self.config.max_value_size.0,
                session_key: SessionKey::of(&self.secret),
            },
            metrics: self.metrics.service.clone(),
            admission: Admissions::new(self.config.memory.requests_held()),
            answers: self.bodies.clone(),
            life: self.cell.life.clone(),
            transfers: Transfers::default(),
            disk: inbound.disk.clone(),
            damaged: Mutex::default(),
            clock: Clock,
            clocks: inbound.clocks.clone(),
        })
    }

    /// Drains the node: stops being ready, transfers leaderships, rejects new calls, finishes the
    /// calls in flight, checkpoints everything.
    async fn drain(&self, serving: Serving, clients: JoinHandle<()>) -> Result<(), Fatal> {
        let Serving { shared, transport, records } = serving;
        shared.life.enter(NodePhase::Draining, "the node is going down");
        // Calls are still accepted and forwarded while leaderships move, so none is rejected for
        // it.
        cluster::drain_leaderships(&shared).await;
        shared.life.refuse();
        let started = Instant::now();
        while shared.life.calls() > 0 && started.elapsed() < FINISH_TIMEOUT {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop.cancel();
        let engine = shared.engine.clone();
        // Late, because a quorum may need a replica here. On a thread of its own, because all
        // threads of the blocking pool may be waiting for the disk.
        let (end, ended) = oneshot::channel();
        let memory = transport.clone();
        let stop = move || {
            engine.stop();
            memory.close_memory();
            // The receiver is below.
            let _ = end.send(scrub::end_run(&records));
        };
        std::thread::Builder::new()
            .name("engine-stop".to_owned())
            .spawn(stop)
            .map_err(|error| Fatal::Bug(format!("cannot start a thread to stop: {error}")))?;
        let ended = ended.await;
        transport.finish().await;
        if timeout(CLOSE_TIMEOUT, clients).await.is_err() {
            info!("node: some clients did not close their connections");
        }
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fatal::from(&error)),
            Err(_) => return Err(Fatal::Bug("the engine could not be stopped".to_owned())),
        }
        info!(took = ?started.elapsed(), "node: stopped");
        Ok(())
    }
}

/// The parts of a running node that its end needs.
struct Serving {
    shared: Arc<Shared>,
    transport: Transport,
    records: Arc<NodeRecords>,
}

fn served<E: std::fmt::Display>(ended: Result<(), E>) {
    if let Err(error) = ended {
        Fatal::Bug(format!("a listener failed: {error}")).end_process();
    }
}

/// Resolves with the name of the signal that asks the node to end.
fn wait_for_signal() -> Result<impl Future<Output = &'static str>, Fatal> {
    let install =
        |kind| signal(kind).map_err(|error| Fatal::Bug(format!("cannot handle signals: {error}")));
    let mut terminate = install(SignalKind::terminate())?;
    let mut interrupt = install(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
