//! What a run does.

use std::time::Duration;

use quorate_client::api::ReadLevel;

use crate::keys::Distribution;

/// Which operations a run consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Writes alone.
    Put,
    /// Reads alone, of keys that are stored before the clock starts.
    Get,
    /// Both.
    Mixed {
        /// Reads in a hundred operations.
        reads: u8,
    },
}

impl Kind {
    /// How many in a hundred operations are reads.
    pub fn reads(self) -> u8 {
        match self {
            Kind::Put => 0,
            Kind::Get => 100,
            Kind::Mixed { reads } => reads.min(100),
        }
    }
}

/// What a run does, and how much of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which operations.
    pub kind: Kind,
    /// Workers of a closed loop; each has one operation under way. At least 1.
    pub clients: u32,
    /// How long is measured.
    pub duration: Duration,
    /// Operations after which the run ends early.
    pub count: Option<u64>,
    /// Bytes of a value, at least [`crate::VALUE_SIZE_MIN`].
    pub value_size: usize,
    /// Number of different keys, at least 1.
    pub keys: u64,
    /// Which of them are taken.
    pub distribution: Distribution,
    /// What each key begins with.
    pub key_prefix: String,
    /// Makes the loop an open one: this number of operations begins per second, whatever became of
    /// those before them.
    pub rate: Option<u32>,
    /// The most operations of an open loop that are under way. One that is due beyond that is
    /// skipped, and counted. At least 1.
    pub in_flight: u32,
    /// Seed of the choice of keys.
    pub seed: u64,
    /// The level of reads.
    pub level: ReadLevel,
    /// The greatest age of reads at the bounded level.
    pub max_staleness: Option<Duration>,
    /// How long one operation may take.
    pub timeout: Duration,
}

impl Plan {
    /// The key with a number. All are of one length, so that they cost the same.
    pub fn key(&self, number: u64) -> String {
        format!("{}{number:012}", self.key_prefix)
    }
}
