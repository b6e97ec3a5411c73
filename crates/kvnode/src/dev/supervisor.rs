//! Starts the nodes of a dev cluster, watches them, and ends them.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use quorate_config::DEFAULT_PORT;
use quorate_node::Fatal;
use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

use super::child::{Node, State};
use super::console::{Command, HELP};
use super::place::Place;
use super::{NodePlan, console, probe, say};

/// How long the nodes may take to end in order: longer than a drain (5 s to hand over leaderships,
/// 20 s to finish what is in flight) and a checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// How often the nodes are asked whether the cluster is ready.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// The processes of a dev cluster.
pub(super) struct Supervisor {
    program: PathBuf,
    nodes: Vec<Node>,
    shards: u32,
    shows_logs: bool,
}

impl Supervisor {
    pub(super) fn new(
        program: PathBuf,
        plans: Vec<NodePlan>,
        shards: u32,
        shows_logs: bool,
    ) -> Self {
        let nodes = plans.into_iter().map(Node::new).collect();
        Self { program, nodes, shards, shows_logs }
    }

    /// Starts all nodes and runs until `quit`, a signal, or the end of the terminal; then ends
    /// them. Without a terminal a node could not be started again, so it also ends with the last of
    /// them, and that is not a success.
    pub(super) async fn run(
        mut self,
        place: &Place,
        mut commands: Option<mpsc::Receiver<Command>>,
    ) -> Result<u8, Fatal> {
        let mut stop = StopSignals::new()?;
        for at in 0..self.nodes.len() {
            if let Err(error) = self.nodes[at].spawn(&self.program) {
                let program = self.program.display().to_string();
                self.stop_all(&mut stop).await;
                return Err(Fatal::Usage(format!("cannot run {program}: {error}")));
            }
        }
        self.introduce(place, commands.is_some());
        let clients = self.nodes.iter().map(|node| node.plan.client).collect();
        let mut ready = std::pin::pin!(until_ready(clients, self.shards).fuse());
        loop {
            tokio::select! {
                (at, status) = next_end(&mut self.nodes) => {
                    self.report_end(at, &status);
                    if commands.is_none() && self.all_stopped() {
                        say("all nodes have ended");
                        return Ok(1);
                    }
                }
                command = next_command(&mut commands) => {
                    if command == Command::Quit {
                        break;
                    }
                    self.obey(command).await;
                }
                () = stop.received() => break,
                sentence = &mut ready => {
                    say(&sentence);
                    if self.shows_logs {
                        // What was said at the start is far above by now.
                        self.suggest();
                    }
                }
            }
        }
        self.stop_all(&mut stop).await;
        Ok(0)
    }

    fn all_stopped(&self) -> bool {
        self.nodes.iter().all(|node| node.state() == State::Stopped)
    }

    /// What a user wants to know and copy.
    fn introduce(&self, place: &Place, takes_commands: bool) {
        for node in &self.nodes {
            let (State::Running(pid) | State::Paused(pid)) = node.state() else { continue };
            let NodePlan { id, client, metrics, .. } = &node.plan;
            say(&format!(
                "n{id}  pid {pid}  clients and nodes {client}  metrics http://{metrics}/metrics"
            ));
        }
        let fate = if place.is_ephemeral() { " (deleted at the end)" } else { "" };
        say(&format!("data {}{fate}", place.directory().display()));
        let here = if self.shows_logs { "" } else { " (--logs shows them here)" };
        say(&format!("logs {}{here}", place.directory().join("n*.log").display()));
        self.suggest();
        if takes_commands {
            say("type help for commands, quit or Ctrl-C to end");
        }
    }

    /// Lines to copy.
    fn suggest(&self) {
        let clients: Vec<_> = self.nodes.iter().map(|node| node.plan.client).collect();
        let kvctl = kvctl_words(&clients);
        say("try");
        say(&format!("  {kvctl} put greeting hello"));
        say(&format!("  {kvctl} get greeting"));
        say(&format!("  {kvctl} status"));
        if let Some(State::Running(pid)) = self.nodes.get(1).or(self.nodes.first()).map(Node::state)
        {
            say(&format!("  kill -9 {pid}"));
        }
    }

    fn report_end(&self, at: usize, status: &io::Result<ExitStatus>) {
        let NodePlan { id, log, .. } = &self.nodes[at].plan;
        let how = match status {
            // It ended by itself, so it said why.
            Ok(status) if status.code().is_some() => {
                format!("{}; its log is {}", ending(*status), log.display())
            }
            Ok(status) => ending(*status),
            Err(error) => format!("ended, and its status is lost: {error}"),
        };
        say(&format!("n{id} {how}; start {id} starts it again"));
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Quit => {}
            Command::Help => say(HELP),
            Command::Status => self.show_status().await,
            Command::Kill(id) => {
                self.with_running(id, |node| node.signal(Signal::KILL));
            }
            Command::Pause(id) => {
                if self.with_running(id, Node::pause) {
                    say(&format!("n{id} is paused; start {id} lets it go on"));
                }
            }
            Command::Start(id) => self.start(id),
        }
    }

    /// Does something to a node that has a process; says so if it has none.
    fn with_running(&mut self, id: u16, act: impl FnOnce(&mut Node)) -> bool {
        match self.find(id) {
            Some(node) if node.state() == State::Stopped => {
                say(&format!("n{id} is not running; start {id} starts it"));
                false
            }
            Some(node) => {
                act(node);
                true
            }
            None => false,
        }
    }

    fn start(&mut self, id: u16) {
        let program = self.program.clone();
        let Some(node) = self.find(id) else { return };
        match node.state() {
            State::Running(pid) => say(&format!("n{id} is running already, pid {pid}")),
            State::Paused(pid) => {
                node.go_on();
                say(&format!("n{id} continues, pid {pid}"));
            }
            State::Stopped => match node.spawn(&program) {
                Ok(pid) => say(&format!("n{id} is started, pid {pid}")),
                Err(error) => say(&format!("n{id} cannot be started: {error}")),
            },
        }
    }

    fn find(&mut self, id: u16) -> Option<&mut Node> {
        let count = self.nodes.len();
        let node = self.nodes.iter_mut().find(|node| node.plan.id == id);
        if node.is_none() {
            say(&format!("there is no node {id}; the nodes are 1 to {count}"));
        }
        node
    }

    async fn show_status(&self) {
        let reports = probe::ask_all(self.nodes.iter().map(|node| node.plan.client)).await;
        for (node, report) in self.nodes.iter().zip(&reports) {
            let state = match node.state() {
                State::Running(pid) => format!("running, pid {pid}"),
                State::Paused(pid) => format!("paused, pid {pid}"),
                State::Stopped => "not running".to_owned(),
            };
            let said = match report {
                Some(report) => format!("{}, leads {} shards", report.phase, report.leads.len()),
                None => "no answer".to_owned(),
            };
            say(&format!("n{}  {}  {state}  {said}", node.plan.id, node.plan.client));
        }
        say(&format!("{} of {} shards have leaders", probe::led_shards(&reports), self.shards));
    }

    /// Ends all nodes in order; a second signal, or too long a wait, ends them at once.
    async fn stop_all(&mut self, stop: &mut StopSignals) {
        if self.all_stopped() {
            return;
        }
        say("ending the nodes; Ctrl-C again ends them at once");
        for node in &mut self.nodes {
            node.terminate();
        }
        let mut deadline = std::pin::pin!(tokio::time::sleep(STOP_TIMEOUT));
        let mut killed = false;
        while !self.all_stopped() {
            tokio::select! {
                (at, status) = next_end(&mut self.nodes) => {
                    let id = self.nodes[at].plan.id;
                    match status {
                        Ok(status) if status.success() => say(&format!("n{id} ended")),
                        Ok(status) => say(&format!("n{id} {}", ending(status))),
                        Err(error) => say(&format!("n{id} ended, and its status is lost: {error}")),
                    }
                }
                () = async {
                    tokio::select! { () = stop.received() => {}, () = &mut deadline => {} }
                }, if !killed =>
                {
                    killed = true;
                    for node in &self.nodes {
                        node.signal(Signal::KILL);
                    }
                }
            }
        }
    }
}

/// How a process ended, as a sentence without its subject.
fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(9)) => "was killed (signal 9)".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The next process that ends, by its place.
async fn next_end(nodes: &mut [Node]) -> (usize, io::Result<ExitStatus>) {
    let ends = nodes.iter_mut().map(|node| Box::pin(node.ended()));
    let (status, at, _) = select_all(ends).await;
    (at, status)
}

async fn next_command(commands: &mut Option<mpsc::Receiver<Command>>) -> Command {
    match commands {
        Some(commands) => commands.recv().await.unwrap_or(console::Command::Quit),
        None => std::future::pending().await,
    }
}

/// Asks until every node is ready and every shard has a leader; the result is the sentence to say.
async fn until_ready(clients: Vec<SocketAddr>, shards: u32) -> String {
    loop {
        let reports = probe::ask_all(clients.iter().copied()).await;
        let led = probe::led_shards(&reports);
        let all_ready = reports.iter().all(|report| report.as_ref().is_some_and(|node| node.ready));
        if all_ready && u32::try_from(led) == Ok(shards) {
            return format!("ready: {led} of {shards} shards have leaders");
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

/// How the command-line tool is called from here: the program beside this one, or by cargo where
/// this one was built by it and the tool was not yet.
fn kvctl_words(clients: &[SocketAddr]) -> String {
    let beside = |name| std::env::current_exe().ok().map(|this| this.with_file_name(name));
    let tool = match beside("kvctl") {
        Some(tool) if tool.is_file() => {
            let here = std::env::current_dir().ok();
            let short = here.as_ref().and_then(|here| tool.strip_prefix(here).ok());
            short.unwrap_or(&tool).display().to_string()
        }
        // Where cargo puts programs it also keeps this directory.
        _ if beside("deps").is_some_and(|deps| deps.is_dir()) => {
            "cargo run --release --bin kvctl --".to_owned()
        }
        _ => "kvctl".to_owned(),
    };
    // The tool asks the usual ports by itself.
    if clients.first().is_none_or(|first| first.port() == DEFAULT_PORT) {
        return tool;
    }
    let endpoints: Vec<_> = clients.iter().map(SocketAddr::to_string).collect();
    format!("{tool} --endpoints {}", endpoints.join(","))
}

/// The signals that end a dev cluster.
struct StopSignals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl StopSignals {
    fn new() -> Result<Self, Fatal> {
        let on = |kind| {
            unix::signal(kind).map_err(|error| Fatal::Bug(format!("cannot take signals: {error}")))
        };
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {
                // The terminal shows ^C where the next line would begin.
                if io::stdout().is_terminal() {
                    say("");
                }
            }
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
