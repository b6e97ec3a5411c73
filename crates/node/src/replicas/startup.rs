//! The storage at startup: opens the database, the log, the states and the map of a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message;
use quorate_config::{Config, LogStore};
use quorate_engine::quarantine::guarded_open;
use quorate_engine::scrub::{self, LastRun};
use quorate_engine::settle_log;
use quorate_proto::v1::ClusterMap;
use quorate_raft::GroupId;
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, FatalHook, LogBackend, NodeRecords, RecordLog,
    RecoveredGroup, ReplicaKey, ShardStore, StorageError,
};
use quorate_transport::Memories;
use tracing::{error, info};

use crate::cluster::{Formed, Identity, MAP_RECORD};
use crate::exit::{Fatal, end_for_storage};
use crate::peers::load_memories;

/// The open storage and its content.
pub(crate) struct Storage {
    pub(crate) sled: Database,
    pub(crate) budget: Arc<DeltaBudget>,
    pub(crate) records: Arc<NodeRecords>,
    pub(crate) log: RecordLog,
    pub(crate) recovered: BTreeMap<ReplicaKey, RecoveredGroup>,
    pub(crate) stores: Vec<ShardStore>,
    /// Replicas whose state cannot be opened.
    pub(crate) damaged: BTreeSet<GroupId>,
    pub(crate) map: Option<ClusterMap>,
    /// The boot numbers and log positions that the peers have reported.
    pub(crate) memories: Memories,
    pub(crate) last_run: LastRun,
}

/// Error type of [`open_storage`]: the consequence of the failure.
pub(crate) enum OpenFailed {
    /// The process ends with this reason.
    Ends(Fatal),
    /// The node stays up, live and not ready, and reports this sentence.
    Stays(String),
}

impl From<StorageError> for OpenFailed {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::InUse { .. } => Self::Ends(Fatal::InUse(error.to_string())),
            StorageError::NewerFormat { .. } => Self::Ends(Fatal::NewerFormat(error.to_string())),
            StorageError::WrongBackend { .. } => Self::Ends(Fatal::Usage(error.to_string())),
            StorageError::Barrier { .. } => Self::Ends(Fatal::Fsync(error.to_string())),
            other => Self::Stays(other.to_string()),
        }
    }
}

/// The hook for the first failure of the database: ends the process once the storage is open. Until
/// then the failure is returned as a value, and [`OpenFailed`] is its consequence.
fn end_process_once(opened: &Arc<AtomicBool>) -> FatalHook {
    let opened = Arc::clone(opened);
    Arc::new(move |error: &StorageError| {
        if opened.load(Ordering::SeqCst) {
            end_for_storage(error);
        }
    })
}

/// Adds the directory and the consequence, which the error of the database does not name.
fn cannot_open(sled: &Path, error: StorageError) -> OpenFailed {
    match error {
        StorageError::Database { .. } | StorageError::OpenPanicked { .. } => {
            OpenFailed::Stays(format!(
                "{} cannot be opened: {error}. It was not changed; the other nodes serve its \
                 shards",
                sled.display()
            ))
        }
        other => other.into(),
    }
}

/// Opens the storage in a member's directory. All of it is guarded: otherwise bytes that make any
/// part panic would end the process at every start.
///
/// # Errors
/// Whether the process ends, or the node stays up to report why it does not serve.
pub(crate) fn open_storage(
    config: &Config,
    identity: &Identity,
    formed: &Formed,
) -> Result<Storage, OpenFailed> {
    stays_on_panic(identity.dir().path(), || open_all(config, identity, formed))
}

fn stays_on_panic<T>(
    dir: &Path,
    open: impl FnOnce() -> Result<T, OpenFailed>,
) -> Result<T, OpenFailed> {
    guarded_open(open).unwrap_or_else(|panicked| {
        Err(OpenFailed::Stays(format!(
            "{} cannot be opened: reading it {panicked}. It was not changed; the other nodes \
             serve its shards",
            dir.display()
        )))
    })
}

fn open_all(config: &Config, identity: &Identity, formed: &Formed) -> Result<Storage, OpenFailed> {
    let dir = identity.dir();
    if identity.storage_created() && !dir.sled_dir().join("db").exists() {
        return Err(OpenFailed::Stays(format!(
            "{} is missing, and with it votes and entries that this node has acknowledged. Restore \
             the directory that was moved away; with an older copy the node could vote twice",
            dir.sled_dir().display()
        )));
    }
    let opened = Arc::new(AtomicBool::new(false));
    let options = DatabaseOptions {
        cache_bytes: config.memory.engine_cache,
        on_fatal: end_process_once(&opened),
        ..DatabaseOptions::default()
    };
    let sled = Database::open(&dir.sled_dir(), options)
        .map_err(|error| cannot_open(&dir.sled_dir(), error))?;
    let backend = match config.log_store {
        LogStore::Sled => LogBackend::Sled,
        LogStore::File => LogBackend::File,
    };
    let (mut log, mut recovered) = RecordLog::open(backend, &sled, dir.path())?;
    // No replica sends a message before this is written, so a loss of the storage is noticed.
    identity.set_storage_created().map_err(|error| OpenFailed::Ends(error.into()))?;
    let records = Arc::new(NodeRecords::open(&sled)?);
    let map = match records.get(MAP_RECORD)? {
        Some(bytes) => Some(ClusterMap::decode(bytes.as_slice()).map_err(|error| {
            OpenFailed::Stays(format!("the stored cluster map does not decode: {error}"))
        })?),
        None => None,
    };
    if let Some(map) = &map
        && map.cluster_id[..] != formed.cluster_id.to_bytes()
    {
        return Err(OpenFailed::Ends(Fatal::Identity(format!(
            "{} holds data of another cluster than IDENTITY says",
            dir.path().display()
        ))));
    }
    let memories = load_memories(&records)?.map_err(OpenFailed::Stays)?;
    let plan = config.memory;
    let budget = Arc::new(DeltaBudget::with_cache(plan.delta, plan.value_cache));
    let (mut stores, mut damaged) = (Vec::new(), BTreeSet::new());
    for (group, store) in ShardStore::open_all(&sled, &budget)? {
        match store {
            Ok(store) => stores.push(store),
            // Only this replica is lost; its peers serve the shard.
            Err(error) => {
                error!(shard = group.0, %error, "replica: not opened, damaged");
                damaged.insert(group);
            }
        }
    }
    settle_log(&mut log, stores.iter().map(ShardStore::header), &mut recovered)?;
    let last_run = scrub::begin_run(&records)?;
    if last_run != LastRun::Clean {
        info!(?last_run, "storage: open after an unclean end");
    }
    opened.store(true, Ordering::SeqCst);
    Ok(Storage { sled, budget, records, log, recovered, stores, damaged, map, memories, last_run })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_panic_over_the_directory_the_node_stays_up_to_report_it() {
        let met = stays_on_panic::<()>(Path::new("/data"), || panic!("a record that cannot be"));
        let Err(OpenFailed::Stays(why)) = met else { panic!("the node would end or continue") };
        assert!(why.starts_with("/data cannot be opened") && why.contains("cannot be."), "{why}");
    }

    #[test]
    fn a_failure_of_the_engine_does_not_end_a_process_that_only_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Arc::new(AtomicBool::new(false));
        let on_fatal = end_process_once(&opened);
        let options = DatabaseOptions { on_fatal, ..DatabaseOptions::default() };
        let sled = Database::open(dir.path(), options).unwrap();
        let message = "a page cannot be".to_owned();
        let error = sled.fail(StorageError::Database { action: "insert a value into", message });
        assert!(matches!(OpenFailed::from(error), OpenFailed::Stays(_)));
    }
}
