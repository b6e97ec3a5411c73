//! `kvbench`: the ruler of speed. One command starts three of our nodes and three of etcd in turn,
//! drives both with the same loop, and prints what an operation costs in each.
//!
//! | module | what it does |
//! |---|---|
//! | `args` | the command line; its help says how the stores are compared, choice by choice |
//! | `rounds` | who is visited when, and what a visit consists of |
//! | `slice` | the closed loop, and the readings before and after it |
//! | `store` | the three ways to reach a store, behind one trait |
//! | `cluster`, `process` | the servers: started, watched, ended, removed |
//! | `usage`, `page` | processor time, memory, disk; metrics over HTTP |
//! | `stats`, `report` | medians, quartiles, paired ratios; the table and JSON |
//!
//! Why it is fair, or where it is not:
//! - Both stores run with their defaults and their full durability, on one file system, one after
//!   the other and never side by side. A cluster is new at each visit: a database that grew in an
//!   earlier slice would otherwise be charged to a later one.
//! - A bare client knows no leader: of three operations two reach a follower in both stores. What a
//!   store does then, it pays for.
//! - Our keys are divided among shards, as they are in use; etcd has one group. `--shards 1` makes
//!   ours one too.
//! - Processor time, not throughput, is what holds on another machine: here the servers and the
//!   load share the processors, and the throughput ends where these do.
//! - The disk is that of the machine. Where its syncs are slow they decide every latency; where
//!   they cost nothing (a file system in memory, which is reported), the figures are of no use.

mod args;
mod cluster;
mod fatal;
mod page;
mod process;
mod report;
mod rounds;
mod slice;
mod stats;
mod store;
mod usage;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, Output};
use cluster::Setup;
use fatal::Fatal;
use report::{Machine, Report};
use rounds::plural;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            eprintln!("kvbench: {fatal}");
            ExitCode::from(fatal.code())
        }
    }
}

fn run(args: &Args) -> Result<(), Fatal> {
    let plan = args.plan()?;
    let setup = args.setup()?;
    let machine = machine(&setup)?;
    for note in notes(&setup.directory) {
        eprintln!("note: {note}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Fatal::machine("cannot start the runtime"))?;
    // On this thread, which lives longest: servers of ours end with the thread that started them.
    let samples = runtime.block_on(async {
        tokio::select! {
            samples = rounds::run(&plan, &setup) => samples,
            // The clusters end where the other branch is dropped.
            error = interrupted() => Err(error),
        }
    })?;
    let report = Report::new(&machine, &plan, &samples);
    let text = match args.output {
        Output::Json => report.json().map_err(std::io::Error::other),
        Output::Table => Ok(format!("{}\n\n{}", report.table(), legend(args, &machine))),
    };
    let text = text.map_err(Fatal::machine("cannot write the report as JSON"))?;
    let mut out = std::io::stdout().lock();
    let printed = writeln!(out, "{text}").and_then(|()| out.flush());
    printed.map_err(Fatal::machine("cannot print the report"))
}

/// Waits for a signal that asks this process to end.
async fn interrupted() -> Fatal {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let signals: std::io::Result<Vec<_>> = kinds.into_iter().map(signal).collect();
    let mut signals = match signals {
        Ok(signals) => signals,
        Err(error) => return Fatal::machine("cannot listen for signals")(error),
    };
    std::future::poll_fn(|context| {
        let come = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if come { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    Fatal::Interrupted
}

/// What is measured, and on what.
fn machine(setup: &Setup) -> Result<Machine, Fatal> {
    let etcd = setup.etcd.as_ref().map(|etcd| cluster::version(etcd, "--version"));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(Machine {
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        load: load.split(' ').next().and_then(|one| one.parse().ok()).unwrap_or_default(),
        kvnode: cluster::version(&setup.kvnode, "version")?,
        etcd: etcd.transpose()?,
        shards: setup.shards,
        log_store: setup.log_store.clone(),
    })
}

/// What makes figures worthless, as sentences.
fn notes(directory: &Path) -> Vec<String> {
    /// The magic number of a file system in memory.
    const TMPFS: u64 = 0x0102_1994;
    let mut notes = Vec::new();
    if cfg!(debug_assertions) {
        notes.push("this kvbench is a debug build: its own CPU is far from a user's".to_owned());
    }
    if rustix::fs::statfs(directory).is_ok_and(|is| is.f_type as u64 == TMPFS) {
        let place = directory.display();
        notes.push(format!("{place} is in memory, where a sync costs nothing: give another --dir"));
    }
    notes
}

/// What a reader of the table must know.
fn legend(args: &Args, machine: &Machine) -> String {
    let etcd = machine.etcd.as_deref().map(|version| format!(" and {version}"));
    let store = machine.log_store.as_deref().map(|store| format!(", log in {store}"));
    format!(
        "medians over {}; {} and {}; {}{}, {} keys, values of {} bytes, {}; \
         {}{}; load average before the run {:.2}",
        plural(args.rounds, "round"),
        format_args!("slices of {}", humantime::format_duration(args.duration)),
        format_args!("{} of warm-up", humantime::format_duration(args.warm_up)),
        plural(args.shards, "shard"),
        store.unwrap_or_default(),
        args.keys,
        args.value_size,
        plural(args.connections_in_all(), "connection"),
        machine.kvnode,
        etcd.unwrap_or_default(),
        machine.load,
    )
}
