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

/// Endpoints used when neither `--endpoints` nor the environment names any: those of `kvnode dev`.
pub const DEFAULT_ENDPOINTS: &str = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";

/// Environment variable with the endpoints, used when `--endpoints` is absent.
const ENDPOINTS_VARIABLE: &str = "KVCTL_ENDPOINTS";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    negative answer: an absent key, a false condition, an unhealthy cluster
  2    invalid usage
  3    unavailable or overloaded; certainly not applied, safe to retry
  4    the outcome of a write is unknown; the command that retries it safely is printed
  5    rejected; a retry will be rejected too
  70   internal error (a bug)
  130  interrupted";

const TRANSFER_NOTES: &str = "\
The node keeps the leadership while it leads. Once it has lost it, in a restart or a failure, the
preferred leader gets it again, after 10 s.";

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

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    // `help` and not a doc comment, in which the brackets would be a link. `Global::settle` reads
    // the environment, because clap would show an option that it finds there in each usage line.
    #[arg(help = "Nodes to contact, as host:port, [v6]:port or http://host:port; repeated or \
        separated by commas. All are asked in parallel, and the first to answer is used \
        [env: KVCTL_ENDPOINTS] [default: 127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403]")]
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub endpoints: Vec<String>,

    /// Consistency level of reads
    #[arg(long, global = true, value_enum, value_name = "LEVEL")]
    #[arg(default_value_t, hide_possible_values = false)]
    pub consistency: Consistency,

    /// Maximum age of the data that a bounded read returns
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse)]
    pub max_staleness: Option<Duration>,

    /// Keep the session token in FILE, so that later calls see what earlier ones saw
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Retry a write: the session and sequence number that it was first sent with
    #[arg(long, global = true, value_name = "HEX/N")]
    pub write_id: Option<WriteId>,

    /// Output format; each command has its own default
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,

    /// Print the receipt to standard error (level, shard, index, node)
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// Timeout of the whole command [default: 5s]; of each request for scan, load, dump and bench
    /// [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse_positive)]
    pub timeout: Option<Duration>,

    /// Timeout of opening a connection
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
    /// Fills in the endpoints if the command line names none: from the environment, else those of
    /// `kvnode dev`.
    pub fn settle(&mut self) {
        if self.endpoints.is_empty() {
            let named = std::env::var(ENDPOINTS_VARIABLE).ok().filter(|named| !named.is_empty());
            let named = named.as_deref().unwrap_or(DEFAULT_ENDPOINTS);
            self.endpoints = named.split(',').map(str::to_owned).collect();
        }
    }
}

/// A read level, as `--consistency` takes it: a row of the table of levels.
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

    /// The level to send with reads.
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

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Only the bytes
    Raw,
    /// One line per result, fields separated by tabs, with \t \n \r \\ \xHH escapes
    Tsv,
    /// A table with headings
    Table,
    /// One JSON object per result, one per line
    Json,
}

/// The commands with their arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store a value under a key
    Put(PutArgs),
    /// Print the value of a key; exit code 1 if it is absent
    Get(GetArgs),
    /// Remove keys; absent keys are not an error
    Del(DelArgs),
    /// Store a value only if the key is as expected
    Cas(CasArgs),
    /// Add to the decimal number under a key; an absent key is 0
    Incr(IncrArgs),
    /// Apply several operations on one shard, all or nothing
    Batch(BatchArgs),
    /// Print keys and values in byte order
    Scan(ScanArgs),
    /// Store the records of a file
    Load(LoadArgs),
    /// Write all records in a format that load reads
    Dump(DumpArgs),
    /// Show where a key is stored: hash tag, hash, shard, replicas, leader
    Locate(LocateArgs),
    /// Show which nodes and shards serve and which do not; needs no quorum
    Status(WatchArgs),
    /// List the shards: leader, term, indexes, lag, keys, bytes
    Shards(WatchArgs),
    /// List the nodes: address, state, shards led, keys, bytes, disk, memory
    Nodes(WatchArgs),
    /// Check the cluster: exit code 0 if every shard serves, 1 if not
    Health,
    /// Print the limits and defaults of the nodes, and where they differ
    Limits,
    /// Measure throughput and latency
    Bench(BenchArgs),
    /// Transfer the leadership of a shard to a node, and wait until that leads
    #[command(after_help = TRANSFER_NOTES)]
    Transfer {
        /// Shard whose leader to change; 0 or meta for the cluster map's own
        #[arg(value_parser = shard_id)]
        shard: u64,
        /// Node to make leader, as n2 or 2; or preferred, the first replica in the map
        #[arg(value_parser = node_id)]
        node: u64,
    },
    /// Print the versions of kvctl and of the nodes that answer
    Version,
    /// Print a completion script for a shell
    Completion {
        /// Shell to write the script for
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// The command's name on the command line.
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

    /// Whether the command's own output says which nodes cannot be reached.
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

    /// Whether the command is a single write, which `--write-id` can retry.
    pub fn is_single_write(&self) -> bool {
        match self {
            Command::Put(_) | Command::Cas(_) | Command::Incr(_) | Command::Batch(_) => true,
            Command::Del(args) => args.keys.len() == 1,
            // Each is listed, so that a new write cannot be left out: kvctl would print a retry
            // command that it rejects itself.
            Command::Get(_)
            | Command::Scan(_)
            | Command::Load(_)
            | Command::Dump(_)
            | Command::Locate(_)
            | Command::Status(_)
            | Command::Shards(_)
            | Command::Nodes(_)
            | Command::Health
            | Command::Limits
            | Command::Bench(_)
            | Command::Transfer { .. }
            | Command::Version
            | Command::Completion { .. } => false,
        }
    }
}

fn shard_id(text: &str) -> Result<u64, String> {
    match text {
        "meta" => Ok(0),
        _ => text.parse().map_err(|_| "expected a shard, as 3, or meta".into()),
    }
}

/// The node that an argument names; 0 for the preferred one.
fn node_id(text: &str) -> Result<u64, String> {
    if text == "preferred" {
        return Ok(0);
    }
    let number = text.strip_prefix('n').unwrap_or(text).parse();
    let number = number.ok().filter(|id| *id != 0);
    number.ok_or_else(|| "expected a node, as n2 or 2, or preferred".into())
}

/// Arguments of the commands whose tables can be watched.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Print again every DURATION (default 1s) until interrupted
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1s")]
    #[arg(value_parser = duration::parse_positive)]
    pub watch: Option<Duration>,
}

/// Encodings of keys and values in arguments and in output.
#[derive(Clone, Copy, Debug, Args)]
pub struct Encodings {
    /// Encoding of keys in arguments and in raw, tsv and table output
    #[arg(long, value_enum, value_name = "ENCODING", default_value_t)]
    pub key_encoding: Encoding,

    /// Encoding of values in arguments and in raw, tsv and table output
    #[arg(long, value_enum, value_name = "ENCODING", default_value_t)]
    pub value_encoding: Encoding,
}

impl Encodings {
    /// The key in an argument, decoded.
    pub fn key(&self, argument: &OsString) -> Result<bytes::Bytes, String> {
        use std::os::unix::ffi::OsStrExt as _;
        let key = self.key_encoding.decode(argument.as_bytes());
        let key = key.map_err(|error| format!("the key {} {error}", argument.display()))?;
        if key.is_empty() { Err("a key has at least one byte".into()) } else { Ok(key) }
    }

    /// The value in an argument or in a file, decoded.
    pub fn value(&self, argument: &[u8]) -> Result<bytes::Bytes, String> {
        self.value_encoding.decode(argument).map_err(|error| format!("the value {error}"))
    }
}
