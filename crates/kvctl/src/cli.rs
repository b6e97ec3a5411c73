//! The command line: every command, argument and flag, with the help that is printed for it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_client::WriteId;
use quorate_client::level::{LEVELS, LevelRow};

use crate::duration;
use crate::encoding::Encoding;
use crate::wire::ReadLevel;

mod bench;
mod bulk;
mod kv;

pub use bench::{BenchArgs, BenchCommand, Distribution};
pub use bulk::{DumpArgs, LoadArgs, RecordFormat, ScanArgs};
pub use kv::{BatchArgs, CasArgs, DelArgs, GetArgs, IncrArgs, LocateArgs, PutArgs};

/// The nodes that are asked when no `--endpoints` is given: those of `kvnode dev`.
pub const DEFAULT_ENDPOINTS: &str = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";

/// Where endpoints are looked for that are not given.
const ENDPOINTS_VARIABLE: &str = "KVCTL_ENDPOINTS";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the answer is no: an absent key, a false condition, an unhealthy cluster
  2    a wrong command line or argument
  3    unavailable or overloaded, certainly not applied: asking again is safe
  4    a write whose outcome is unknown; the command that asks again safely is printed
  5    refused
  70   a defect of Quorate
  130  interrupted";

/// Talks to a Quorate cluster.
///
/// Data goes to standard output, everything else to standard error.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, after_help = EXIT_CODES, max_term_width = 100)]
#[command(disable_help_subcommand = true, infer_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,

    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    // Not a doc comment: there the brackets would be a link. The environment is looked at by
    // `Global::settle`, because clap would show an option that it finds there in each usage line.
    #[arg(
        help = "Nodes to ask, as host:port, [v6]:port or http://host:port; repeated or separated \
        by commas. They are asked in parallel, and one that answers is enough \
        [env: KVCTL_ENDPOINTS] [default: 127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403]"
    )]
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub endpoints: Vec<String>,

    /// What a read must guarantee
    #[arg(long, global = true, value_enum, value_name = "LEVEL")]
    #[arg(default_value_t, hide_possible_values = false)]
    pub consistency: Consistency,

    /// How old a bounded read may be at most
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse)]
    pub max_staleness: Option<Duration>,

    /// Keep the session token in FILE: what one call has seen, the next one sees too
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Ask a write again: the session and the sequence number that it was first sent with
    #[arg(long, global = true, value_name = "HEX/N")]
    pub write_id: Option<WriteId>,

    /// How to print what was found; each command has a default of its own
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,

    /// Say on standard error what was guaranteed (level, shard, index, node)
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// How long the whole command may take [default: 5s]; scan, load, dump and bench take it for each
    /// request [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse_positive)]
    pub timeout: Option<Duration>,

    /// How long opening a connection may take
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse_positive)]
    #[arg(default_value = "2s")]
    pub connect_timeout: Duration,

    /// Certificate authority of the nodes (TLS is not offered yet)
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub cacert: Option<PathBuf>,

    /// Certificate of this client (TLS is not offered yet)
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub cert: Option<PathBuf>,

    /// Private key of this client (TLS is not offered yet)
    #[arg(
        long = "key",
        id = "tls_key",
        global = true,
        value_name = "FILE",
        hide_short_help = true
    )]
    pub tls_key: Option<PathBuf>,

    /// Name in the nodes' certificate (TLS is not offered yet)
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub server_name: Option<String>,
}

impl Global {
    /// Fills in the endpoints that the command line does not name: those of the environment, else those
    /// of `kvnode dev`.
    pub fn settle(&mut self) {
        if self.endpoints.is_empty() {
            let named = std::env::var(ENDPOINTS_VARIABLE).ok().filter(|named| !named.is_empty());
            let named = named.as_deref().unwrap_or(DEFAULT_ENDPOINTS);
            self.endpoints = named.split(',').map(str::to_owned).collect();
        }
    }
}

/// What a read guarantees: a row of the table of levels.
#[derive(Clone, Copy, Debug)]
pub struct Consistency(&'static LevelRow);

impl Consistency {
    const ALL: [Consistency; LEVELS.len()] = {
        let mut all = [Consistency(&LEVELS[0]); LEVELS.len()];
        let mut place = 0;
        while place < LEVELS.len() {
            all[place] = Consistency(&LEVELS[place]);
            place += 1;
        }
        all
    };

    /// The level that reads ask for.
    pub fn level(self) -> ReadLevel {
        self.0.level
    }
}

impl Default for Consistency {
    fn default() -> Self {
        Consistency(ReadLevel::default().row())
    }
}

impl ValueEnum for Consistency {
    fn value_variants<'a>() -> &'a [Self] {
        &Consistency::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let row = self.0;
        let not_yet = if row.offered { "" } else { " (not offered yet)" };
        Some(PossibleValue::new(row.name).help(format!("{}{not_yet}", row.guarantee)))
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes and nothing else
    Raw,
    /// One line each, fields separated by a tab, with \t \n \r \\ \xHH escapes
    Tsv,
    /// A table for people
    Table,
    /// One JSON object each, one per line
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store a value under a key
    Put(PutArgs),
    /// Print the value of a key; exit code 1 if it is absent
    Get(GetArgs),
    /// Remove keys; a key that is absent is no error
    Del(DelArgs),
    /// Store a value only if the key is as expected
    Cas(CasArgs),
    /// Add to the decimal number under a key; an absent key is 0
    Incr(IncrArgs),
    /// Several operations on one shard, all or nothing
    Batch(BatchArgs),
    /// Print keys and values in byte order
    Scan(ScanArgs),
    /// Store the records of a file
    Load(LoadArgs),
    /// Write all records in a form that load reads
    Dump(DumpArgs),
    /// Tell where a key lives: hash tag, hash, shard, replicas, leader
    Locate(LocateArgs),
    /// Tell what serves and what does not; needs no quorum
    Status(WatchArgs),
    /// List the shards: leader, term, indexes, lag, keys, bytes
    Shards(WatchArgs),
    /// List the nodes: address, state, shards led, keys, bytes, disk, memory
    Nodes(WatchArgs),
    /// Exit code 0 if every shard serves, 1 if not
    Health,
    /// Print the limits of the cluster
    Limits,
    /// Measure throughput and latency
    Bench(BenchArgs),
    /// Hand the leadership of a shard to a node
    Transfer {
        /// Shard to hand over
        shard: u64,
        /// Node that shall lead it, as n2 or 2
        #[arg(value_parser = node_id)]
        node: u64,
    },
    /// Print the version of kvctl and of the nodes that answer
    Version,
    /// Print a completion script for a shell
    Completion {
        /// Shell to complete in
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// The name, as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Put(_) => "put",
            Command::Get(_) => "get",
            Command::Del(_) => "del",
            Command::Cas(_) => "cas",
            Command::Incr(_) => "incr",
            Command::Batch(_) => "batch",
            Command::Scan(_) => "scan",
            Command::Load(_) => "load",
            Command::Dump(_) => "dump",
            Command::Locate(_) => "locate",
            Command::Status(_) => "status",
            Command::Shards(_) => "shards",
            Command::Nodes(_) => "nodes",
            Command::Health => "health",
            Command::Limits => "limits",
            Command::Bench(_) => "bench",
            Command::Transfer { .. } => "transfer",
            Command::Version => "version",
            Command::Completion { .. } => "completion",
        }
    }

    /// Whether its output itself says which nodes cannot be reached.
    pub fn reports_nodes(&self) -> bool {
        matches!(
            self,
            Command::Status(_)
                | Command::Shards(_)
                | Command::Nodes(_)
                | Command::Health
                | Command::Version
        )
    }

    /// Whether it is one write that can be asked again by session and sequence.
    pub fn is_single_write(&self) -> bool {
        match self {
            Command::Put(_) | Command::Cas(_) | Command::Incr(_) | Command::Batch(_) => true,
            Command::Del(args) => args.keys.len() == 1,
            _ => false,
        }
    }
}

fn node_id(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix('n').unwrap_or(text).parse();
    number.ok().filter(|id| *id != 0).ok_or_else(|| "must be a node, as n2 or 2".into())
}

/// For the tables that can be watched.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Print again every DURATION (1s if none is given) until interrupted
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1s")]
    #[arg(value_parser = duration::parse_positive)]
    pub watch: Option<Duration>,
}

/// How arguments are to be read, and results printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Encodings {
    /// How keys are written, as arguments and in raw, tsv and table output
    #[arg(long, value_enum, value_name = "ENCODING", default_value_t)]
    pub key_encoding: Encoding,

    /// How values are written, as arguments and in raw, tsv and table output
    #[arg(long, value_enum, value_name = "ENCODING", default_value_t)]
    pub value_encoding: Encoding,
}

impl Encodings {
    /// The key that an argument stands for.
    pub fn key(&self, argument: &OsString) -> Result<bytes::Bytes, String> {
        use std::os::unix::ffi::OsStrExt as _;
        let key = self.key_encoding.decode(argument.as_bytes());
        let key = key.map_err(|error| format!("the key {} {error}", argument.display()))?;
        if key.is_empty() { Err("a key has at least one byte".into()) } else { Ok(key) }
    }

    /// The value that an argument, or what was read for it, stands for.
    pub fn value(&self, argument: &[u8]) -> Result<bytes::Bytes, String> {
        self.value_encoding.decode(argument).map_err(|error| format!("the value {error}"))
    }
}
