//! The command line, and the checks that clap cannot make.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use quorate_bench::VALUE_SIZE_MIN;

use super::cluster::{NODES, Setup};
use super::fatal::Fatal;
use super::rounds::{Plan, plural};
use super::slice::Shape;

/// Calls that `kvnode` allows on one connection by default (`--max-calls-per-connection`).
const CALLS_PER_CONNECTION: u32 = 256;

/// How the comparison is made, for `--help`: a reader of the figures must know.
const CHOICES: &str = "\
How the stores are compared:
  Clusters    Three processes on 127.0.0.1 with data directories of their own below one --dir. In
              each round every contender is visited once, and every second round goes the other way
              round. A visit starts an empty cluster, so that nothing else runs beside it, stores
              all keys, and measures writes and then reads with each number of clients.
  Clients     A closed loop: each client has one operation under way, and makes one attempt. Bare
              clients of both stores are generated gRPC code over the same number of connections to
              each node, and take these in turn, operation by operation: no routing to leaders. The
              native client is what users of ours have: routed, with sessions, retrying.
  Durability  Each store's default: a write is acknowledged when a majority has it behind an
              fdatasync. Reads are linearizable in both.
  Keys        Taken equally often. No value is ever written twice.
  etcd        Its defaults, except for a larger --quota-backend-bytes (8 GiB), which ends no long
              run; nothing is compacted. Ours: kvnode's defaults, with --shards. Variables
              QUORATE_* and ETCD_* of the environment do not reach the servers.
  CPU         utime + stime of /proc/PID/stat over the measured time, of all three servers, and of
              this process, per operation that ended in that time.
  Syncs       fdatasyncs of the logs as the servers count them, over all three, per acknowledged
              write: quorate_fsync_seconds_count, etcd_disk_wal_fsync_duration_seconds_count.
              What is written later and in the background (checkpoints of ours, etcd's database)
              is not in either.
  Memory      VmRSS of the three servers; pages of etcd's database are mapped and count.
  Disk        What is allocated; etcd allocates files of its log in advance, 64 MB each.
  Ratios      Of the contender to etcd, in the same round; the median and the quartiles over the
              rounds. Other figures are medians over the rounds.
The servers end with this program and their data is removed. Only after kill -9 of it does etcd
continue; kvnode ends even then.";

/// Measures three nodes of Quorate beside three of etcd, on this machine
#[derive(Debug, Parser)]
#[command(name = "kvbench", version, max_term_width = 100, after_long_help = CHOICES)]
pub(super) struct Args {
    /// etcd's server program, 3.4 or later [default: etcd in PATH]
    #[arg(long, value_name = "FILE", conflicts_with = "without_etcd")]
    pub(super) etcd: Option<PathBuf>,

    /// Measure Quorate alone
    #[arg(long)]
    pub(super) without_etcd: bool,

    /// Quorate's server program, a release build [default: kvnode beside this program]
    #[arg(long, value_name = "FILE")]
    pub(super) kvnode: Option<PathBuf>,

    /// Shards of Quorate's cluster; each has three replicas
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) shards: u32,

    /// Store of Quorate's log, as kvnode --log-store takes it [default: that of kvnode]
    #[arg(long, value_name = "STORE")]
    pub(super) log_store: Option<String>,

    /// Numbers of clients, each measured for itself
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 64, 256])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) clients: Vec<u32>,

    /// HTTP/2 connections to each of the three nodes, which the clients share
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) connections: u32,

    /// Number of different keys, all stored before anything is measured
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(super) keys: u64,

    /// Size of each value in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(VALUE_SIZE_MIN as i64..=1_048_576))]
    pub(super) value_size: u32,

    /// Rounds; quartiles of fewer than three mean little
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) rounds: u32,

    /// How long each slice is measured
    #[arg(long, value_name = "DURATION", default_value = "4s", value_parser = duration)]
    pub(super) duration: Duration,

    /// How long each slice runs before it is measured
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub(super) warm_up: Duration,

    /// Directory below which the servers keep their data [default: that for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,

    /// Form of the result
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// Forms of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// A table of medians and ratios
    #[default]
    Table,
    /// One object with these, and with the figures of each round
    Json,
}

/// A duration of up to an hour; at least a millisecond, so that there is something to count.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    let expected = "expected a duration from 1ms to 1h, such as 500ms or 4s";
    let duration = parsed.map_err(|error| format!("{error}; {expected}"))?;
    if !(Duration::from_millis(1)..=Duration::from_secs(3_600)).contains(&duration) {
        return Err(expected.to_owned());
    }
    Ok(duration)
}

impl Args {
    /// What is to be done.
    ///
    /// # Errors
    /// More calls would be on one connection than a node allows.
    pub(super) fn plan(&self) -> Result<Plan, Fatal> {
        let most = self.clients.iter().copied().max().unwrap_or_default();
        let allowed = CALLS_PER_CONNECTION * self.connections;
        // Clients take the connections of all nodes in turn, and may meet at those of one.
        if most > allowed {
            return Err(Fatal::Usage(format!(
                "{most} clients (--clients) may meet on {} to one node, and a node takes \
                 {CALLS_PER_CONNECTION} calls of one connection: give --connections {} or more",
                plural(self.connections, "connection"),
                most.div_ceil(CALLS_PER_CONNECTION)
            )));
        }
        let shape = Shape {
            keys: self.keys,
            value_size: self.value_size as usize,
            warm_up: self.warm_up,
            duration: self.duration,
        };
        let mut clients = self.clients.clone();
        clients.sort_unstable();
        clients.dedup();
        Ok(Plan { rounds: self.rounds, clients, connections: self.connections, shape })
    }

    /// With what it is done.
    ///
    /// # Errors
    /// A program is not there.
    pub(super) fn setup(&self) -> Result<Setup, Fatal> {
        let kvnode = match &self.kvnode {
            Some(kvnode) => kvnode.clone(),
            None => beside_this_program("kvnode")?,
        };
        if !kvnode.is_file() {
            return Err(Fatal::Usage(format!(
                "there is no server at {}: build it (cargo build --release --bin kvnode) or name \
                 one (--kvnode FILE)",
                kvnode.display()
            )));
        }
        let etcd = match &self.etcd {
            _ if self.without_etcd => None,
            Some(etcd) => Some(etcd.clone()),
            None => Some(in_path("etcd").ok_or_else(|| {
                Fatal::Usage(
                    "no etcd is in PATH: install Debian's etcd-server, name one (--etcd FILE), or \
                     measure Quorate alone (--without-etcd)"
                        .to_owned(),
                )
            })?),
        };
        if let Some(etcd) = etcd.as_ref().filter(|etcd| !etcd.is_file()) {
            return Err(Fatal::Usage(format!("there is no etcd at {} (--etcd)", etcd.display())));
        }
        let directory = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let (shards, log_store) = (self.shards, self.log_store.clone());
        Ok(Setup { kvnode, etcd, shards, log_store, directory })
    }

    /// How many connections each contender has.
    pub(super) fn connections_in_all(&self) -> u32 {
        self.connections * NODES as u32
    }
}

fn beside_this_program(name: &str) -> Result<PathBuf, Fatal> {
    let this = std::env::current_exe();
    let this = this.map_err(Fatal::machine("cannot find this program's own file"))?;
    Ok(this.with_file_name(name))
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit_and_have_limits() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        for text in ["", "4", "0s", "-1s", "61m", "1us"] {
            let sentence = duration(text).unwrap_err();
            assert!(sentence.contains("expected a duration from 1ms to 1h"), "{text}: {sentence}");
        }
    }

    #[test]
    fn clients_that_find_no_room_are_a_sentence_with_the_way_out() {
        let plan = |list: &str| Args::parse_from(["kvbench", "--clients", list]).plan();
        assert_eq!(plan("256,1,256").unwrap().clients, [1, 256]);
        let sentence = plan("4,700").unwrap_err().to_string();
        assert!(sentence.starts_with("700 clients (--clients) may meet on 1 connection"));
        assert!(sentence.ends_with("give --connections 3 or more"), "{sentence}");
    }

    #[test]
    fn a_program_that_is_not_there_is_a_sentence() {
        let setup = |more: &[&str]| {
            let args = ["kvbench"].iter().chain(more);
            Args::parse_from(args).setup().unwrap_err().to_string()
        };
        let sentence = setup(&["--without-etcd", "--kvnode", "/none/kvnode"]);
        assert!(sentence.contains("/none/kvnode: build it"), "{sentence}");
        let sentence = setup(&["--kvnode", "/proc/self/exe", "--etcd", "/none/etcd"]);
        assert_eq!(sentence, "there is no etcd at /none/etcd (--etcd)");
    }
}
