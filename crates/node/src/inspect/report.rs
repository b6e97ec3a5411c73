//! What is reported of a data directory. The names of the fields are those of the JSON form, and
//! never change.

use std::collections::BTreeMap;

use quorate_engine::OpenReplicaError;
use quorate_machine::ApplyError;
use quorate_storage::StorageError;
use serde::Serialize;

/// A data directory.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The directory, as it was given.
    pub data_dir: String,
    /// The node that it belongs to.
    pub node_id: u64,
    /// The number drawn when the directory was new: 32 hexadecimal digits.
    pub incarnation: String,
    /// Starts of a process on this directory.
    pub boot_counter: u64,
    /// Whether the node belongs to a cluster.
    pub formed: bool,
    /// The cluster: 32 hexadecimal digits; `None` before it has formed, as the next four.
    pub cluster_id: Option<String>,
    /// The name of the cluster.
    pub cluster_name: Option<String>,
    /// The first members of the cluster, in the order of their node ids.
    pub members: Option<Vec<Member>>,
    /// Shards when the cluster formed, group 0 not counted.
    pub shards: Option<u32>,
    /// Wanted replicas of each shard.
    pub replicas: Option<u32>,
    /// The format numbers of what was read, by name.
    pub formats: BTreeMap<&'static str, u32>,
    /// The back end of the log, `sled` or `file`; `None` while there is no log.
    pub log_store: Option<&'static str>,
    /// The log of all groups; `None` if there is none or it cannot be read.
    pub log: Option<LogSummary>,
    /// The epoch of the newest cluster map that the node knew; `None` if there is none.
    pub map_epoch: Option<u64>,
    /// How the last run ended: `clean`, `killed`, or `may_have_lost` (killed, and the machine has
    /// been started again since); `None` if there was none or it is not known.
    pub last_run: Option<&'static str>,
    /// The groups, in the order of their shards; 0 is the meta group.
    pub groups: Vec<Group>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Whether nothing is wrong.
    pub sound: bool,
}

/// A member of the cluster when it formed.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// The node.
    pub node_id: u64,
    /// Its incarnation: 32 hexadecimal digits.
    pub incarnation: String,
}

/// The log of all groups.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LogSummary {
    /// The first record that could be read; `None` if there is none.
    pub first_record: Option<u64>,
    /// The last record that could be read.
    pub last_record: Option<u64>,
    /// Bytes of the log in its back end, dead records included.
    pub bytes: u64,
    /// Whether the remains of a record follow that was never durable: the process was killed while
    /// it wrote it. That is not damage.
    pub unfinished_record: bool,
}

/// One replica of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The shard; 0 is the meta group.
    pub shard: u64,
    /// The replica of this node; `None` if neither its log nor its state could be read.
    pub replica_id: Option<u64>,
    /// Its term; `None` without a log that can be read, as the next two.
    pub term: Option<u64>,
    /// The replica that it voted for in this term; `None` also if it has not voted.
    pub vote: Option<u64>,
    /// The index up to which entries are known to be committed, by what is durable here: what the
    /// log says, what the checkpoint has applied, and all of the log if this is the only voter. The
    /// group may have committed more.
    pub commit: Option<u64>,
    /// Its part of the log.
    pub log: GroupLog,
    /// Its last checkpoint; `None` if the state cannot be opened, as what follows.
    pub checkpoint: Option<Checkpoint>,
    /// The voters of the group as of the checkpoint.
    pub voters: Option<Vec<Voter>>,
    /// Live rows of all kinds, as of the checkpoint, like what follows.
    pub rows: Option<u64>,
    /// Live keys of users.
    pub keys: Option<u64>,
    /// Bytes of these keys and their records.
    pub bytes: Option<u64>,
    /// Client sessions that it remembers; `None` also if their rows cannot be read.
    pub sessions: Option<u64>,
    /// The digest of all live rows by the header: 32 hexadecimal digits.
    pub digest: Option<String>,
    /// The digest computed from the rows that are there; `None` if they cannot all be read.
    pub digest_computed: Option<String>,
    /// Whether it can be trusted.
    pub health: Health,
}

/// The entries of a group that the log holds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GroupLog {
    /// The index of the first entry; `None` if there is none.
    pub first: Option<u64>,
    /// The index of the last entry.
    pub last: Option<u64>,
    /// Bytes of these entries, as the core counts them.
    pub bytes: u64,
}

/// A checkpoint of a group's state.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Checkpoint {
    /// Its number; each is one more than the last.
    pub number: u64,
    /// The index of the last entry applied in it; 0 if there is none.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The log time of that entry: Unix milliseconds.
    pub log_time_ms: u64,
    /// The counter within the millisecond.
    pub log_time_logical: u16,
}

/// A voter of a group.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Voter {
    /// The replica.
    pub replica_id: u64,
    /// Its node.
    pub node_id: u64,
}

/// Whether a replica can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No damage was found.
    Ok,
    /// The log of the node is damaged: term, vote, commit and entries are those of the last record
    /// that could be read.
    LogIncomplete,
    /// Something of this replica is damaged.
    Damaged,
}

impl Health {
    /// Its name in the JSON form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::LogIncomplete => "log_incomplete",
            Self::Damaged => "damaged",
        }
    }
}

/// What is wrong with a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// Its bytes are not those that were written.
    Damaged,
    /// A newer version wrote it.
    NewerFormat,
    /// The operating system or the database did not give it.
    Unreadable,
}

impl From<&StorageError> for ProblemKind {
    fn from(error: &StorageError) -> Self {
        match error {
            StorageError::NewerFormat { .. } => Self::NewerFormat,
            error if error.is_damage() => Self::Damaged,
            _ => Self::Unreadable,
        }
    }
}

impl From<&ApplyError> for ProblemKind {
    fn from(error: &ApplyError) -> Self {
        match error {
            ApplyError::UnknownFeature { .. } => Self::NewerFormat,
            ApplyError::Damaged(_) => Self::Damaged,
            ApplyError::Storage(error) => error.into(),
        }
    }
}

impl From<&OpenReplicaError> for ProblemKind {
    fn from(_: &OpenReplicaError) -> Self {
        Self::Damaged
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// What sort of thing.
    pub kind: ProblemKind,
    /// The file or folder, from the data directory on.
    pub file: Option<String>,
    /// The tree of the database.
    pub tree: Option<String>,
    /// The record of the log.
    pub record: Option<u64>,
    /// The shard; `None` if it concerns the whole node or is not known.
    pub shard: Option<u64>,
    /// A sentence for people.
    pub what: String,
}
