//! Arguments of `bench`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::duration;

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Writes: each stores a value that was never stored before
    Put(LoadShape),
    /// Reads at the level of --consistency, of keys that are stored first
    Get(LoadShape),
    /// Reads and writes
    Mixed {
        /// Reads in a hundred operations
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
    /// Clients; each has one operation under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,

    /// Connections that the clients share [default: one for 64 clients]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: Option<u32>,

    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = duration::parse_positive)]
    pub duration: Duration,

    /// Stop after N operations, even if the duration is not over
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub value_size: u32,

    /// Number of different keys
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,

    /// Which keys are taken
    #[arg(long, value_enum, default_value_t)]
    pub distribution: Distribution,

    /// Put PREFIX before each key
    #[arg(long, value_name = "PREFIX", default_value = "bench/")]
    pub key_prefix: String,

    /// At most N operations per second, all clients together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,

    /// Seed of the choice of keys, to take the same ones again
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Which keys are taken how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// All keys equally
    #[default]
    Uniform,
    /// Few keys often, most keys seldom (exponent 0.99)
    Zipf,
}
