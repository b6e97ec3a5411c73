//! `kvnode dev`: a whole cluster on this machine, of real processes.
//!
//! Each node is a child process that runs `kvnode start`, in a process group of its own: Ctrl-C
//! reaches this process alone, which then ends its children in order. This process holds the other
//! end of each child's standard input and never writes to it. When this process ends, however it
//! ends, the kernel closes that pipe and the children see the end of their input; on Linux it kills
//! them as well, the paused ones too ([`exit_with_parent`]). So no child is orphaned, even by `kill
//! -9`.

mod child;
mod console;
mod log;
mod place;
mod probe;
mod supervisor;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use clap::Args;
use quorate_config::{self as config, DEFAULT_PORT, Key, MEMORY_MIN};
use quorate_proto::limits::SHARDS_MAX;
#[cfg(target_os = "linux")]
use rustix::process::{Signal, set_parent_process_death_signal};

use quorate_node::Fatal;

use place::Place;
use supervisor::Supervisor;

/// Metrics are served this far above the port of the node.
const METRICS_OFFSET: u16 = 50;
/// The other nodes are served this far above the port of the node.
const PEERS_OFFSET: u16 = 100;
/// What the nodes log where it is shown: each change of a role would bury what a user wants to
/// read.
const CALM: &str = "info,quorate_engine::group=warn";
/// So that the three kinds of ports do not meet.
const NODES_MAX: u16 = 15;

/// The flags of `kvnode dev`.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Nodes of the cluster, 1 to 15
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Shards of the cluster, 1 to 4096
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..=SHARDS_MAX as i64))]
    shards: u32,
    /// Port of the first node; the others follow, the metrics 50 above, and the ports among the
    /// nodes 100 above [default: the one that the data was made with, else 7401]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_400))]
    base_port: Option<u16>,
    /// Keep the data here [default: the user's data directory, found again next time]
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    data_dir: Option<PathBuf>,
    /// Keep the data in a temporary directory and delete it at the end
    #[arg(long)]
    ephemeral: bool,
    /// Delete the data of earlier runs first
    #[arg(long, conflicts_with = "ephemeral")]
    fresh: bool,
    /// Show what the nodes log, each line behind the name of its node; it is in files in any case
    #[arg(long)]
    logs: bool,
    /// Run this program in place of the nodes
    #[arg(long, hide = true, value_name = "FILE")]
    node_binary: Option<PathBuf>,
}

/// What one node of the cluster is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodePlan {
    id: u16,
    client: SocketAddr,
    metrics: SocketAddr,
    arguments: Vec<String>,
    /// The file that takes what the node logs.
    log: PathBuf,
    /// Whether all of that is shown as well.
    shows_log: bool,
}

/// Runs a cluster until it is asked to stop. The result is the exit code.
///
/// # Errors
/// The cluster could not be started.
pub fn run(args: &DevArgs) -> Result<u8, Fatal> {
    let program = match &args.node_binary {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| {
            Fatal::Usage(format!("cannot find this program's own file: {error}"))
        })?,
    };
    let base_port = args.base_port.or_else(|| place::stored_port(args));
    let args = &DevArgs { base_port, ..args.clone() };
    check_ports(args)?;
    let place = Place::open(args)?;
    let plans = plans(args, &place);
    // One thread, and it is the one that starts the children and waits for them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::Bug(format!("cannot start the runtime: {error}")))?;
    let interactive = std::io::stdin().is_terminal();
    let commands = interactive.then(console::read_commands);
    let supervisor = Supervisor::new(program, plans, args.shards, args.logs);
    let result = runtime.block_on(supervisor.run(&place, commands));
    place.close();
    result
}

impl DevArgs {
    fn first_port(&self) -> u16 {
        self.base_port.unwrap_or(DEFAULT_PORT)
    }
}

/// Where a node serves clients, metrics and the other nodes.
fn addresses(args: &DevArgs, id: u16) -> [SocketAddr; 3] {
    let port = args.first_port() + id - 1;
    [0, METRICS_OFFSET, PEERS_OFFSET]
        .map(|offset| SocketAddr::from((Ipv4Addr::LOCALHOST, port + offset)))
}

/// A port that is taken is found before anything is started, and not by one child among three.
fn check_ports(args: &DevArgs) -> Result<(), Fatal> {
    for id in 1..=args.nodes {
        for address in addresses(args, id) {
            if let Err(error) = TcpListener::bind(address) {
                return Err(Fatal::AddressTaken(format!(
                    "node {id} cannot listen on {address}: {error}; is another cluster running? \
                     (--base-port takes other ports)"
                )));
            }
        }
    }
    Ok(())
}

fn plans(args: &DevArgs, place: &Place) -> Vec<NodePlan> {
    let nodes: Vec<String> =
        (1..=args.nodes).map(|id| format!("{id}={}", addresses(args, id)[2])).collect();
    // The nodes share one machine, and with it what one node would take of it.
    let memory = (config::default_memory() / u64::from(args.nodes)).max(MEMORY_MIN);
    let replicas = if args.nodes >= 3 { 3 } else { 1 };
    // A flag would win over the filter that the user set.
    let unfiltered = std::env::var_os(Key::LogLevel.env()).is_none_or(|filter| filter.is_empty());
    let plan = |id| {
        let [client, metrics, peers] = addresses(args, id);
        let settings = [
            (Key::NodeId, id.to_string()),
            (Key::DataDir, place.node(id).display().to_string()),
            (Key::Listen, client.to_string()),
            (Key::PeerListen, peers.to_string()),
            (Key::MetricsListen, metrics.to_string()),
            (Key::Advertise, peers.to_string()),
            (Key::AdvertiseClient, client.to_string()),
            (Key::InitialCluster, nodes.join(",")),
            (Key::SecretFile, place.secret().display().to_string()),
            (Key::Shards, args.shards.to_string()),
            (Key::Replicas, replicas.to_string()),
            (Key::Memory, memory.to_string()),
            // Far below 4,096 with the node's own files: what a plain user may open everywhere.
            (Key::MaxConnections, "448".to_owned()),
            (Key::LogFormat, "text".to_owned()),
        ];
        let log = (args.logs && unfiltered).then(|| (Key::LogLevel, CALM.to_owned()));
        let flags = settings.into_iter().chain(log).map(|(key, value)| format!("--{key}={value}"));
        let first = ["start".to_owned(), "--exit-with-parent".to_owned()];
        NodePlan {
            id,
            client,
            metrics,
            arguments: first.into_iter().chain(flags).collect(),
            log: place.log(id),
            shows_log: args.logs,
        }
    };
    (1..=args.nodes).map(plan).collect()
}

/// Ends this process as soon as the other end of its standard input is closed, which the kernel
/// does when the process that holds it ends. It ends immediately: no process is left to
/// wait for a slow stop, and a store that survives a power cut survives this.
///
/// A paused process cannot read its input, so on Linux the kernel is asked to kill it in that case.
/// It counts the thread that started this process as the parent; `kvnode dev` has one thread only.
pub fn exit_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::warn!("cannot ask to be ended with the parent process: {error}");
    }
    // The parent may have ended before that: the end of the input is seen all the same.
    let watch = || {
        drain(std::io::stdin().lock());
        std::process::exit(0);
    };
    if let Err(error) = std::thread::Builder::new().name("parent-watch".to_owned()).spawn(watch) {
        tracing::warn!("cannot watch the parent process: {error}");
    }
}

/// Reads until the end, whatever it is that ends it.
fn drain(mut input: impl Read) {
    let mut buffer = [0; 256];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Prints a line of this process's own. A terminal that went away is noticed elsewhere.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
