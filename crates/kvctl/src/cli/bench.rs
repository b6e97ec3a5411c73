//! Arguments of `bench`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::duration;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// The kinds of load.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Writes; each stores a new value
    Put(LoadShape),
    /// Reads at the level of --consistency; the keys are stored first
    Get(LoadShape),
    /// Reads and writes
    Mixed {
        /// Share of reads, in percent
        #[arg(long, value_name = "PERCENT", default_value_t = 50)]
        #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
        reads: u8,

        #[command(flatten)]
        shape: LoadShape,
    },
}

/// The size and form of the load.
#[derive(Clone, Debug, Args)]
pub struct LoadShape {
    /// Number of clients; each has one operation in flight. Not used with --rate
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,

    /// Number of connections that the clients share [default: one per 64 clients]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: Option<u32>,

    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = duration::parse_positive)]
    pub duration: Duration,

    /// Stop after N operations, even before the duration has passed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Size of each value in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub value_size: u32,

    /// Number of different keys
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,

    /// Distribution of the keys
    #[arg(long, value_enum, default_value_t)]
    pub distribution: Distribution,

    /// Prefix of every key
    #[arg(long, value_name = "PREFIX", default_value = "bench/")]
    pub key_prefix: String,

    /// Open loop: begin N operations per second, however many are unanswered
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,

    /// With --rate: maximum number of operations in flight; others are skipped and counted
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub in_flight: u32,

    /// Make one attempt per operation
    #[arg(long)]
    pub no_retries: bool,

    /// Send each operation as a call of its own, not on a stream per node
    #[arg(long)]
    pub unary: bool,

    /// Seed of the random choice of keys, for repeatable runs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Distributions of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// All keys equally often
    #[default]
    Uniform,
    /// A few keys often, most keys rarely (Zipf, exponent 0.99)
    Zipf,
}
