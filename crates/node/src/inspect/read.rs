//! Reading a whole data directory from its copy.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use quorate_engine::quarantine::{guarded, guarded_open};
use quorate_engine::scrub::{self, LastRun};
use quorate_proto::v1::ClusterMap;
use quorate_raft::GroupId;
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, LogBackend, LogReading, NodeRecords, ShardStore,
    StorageError, formats, log_backend, read_log,
};

use super::copy::Source;
use super::entries::EntryLine;
use super::groups::{Found, GroupParts};
use super::report::{Group, LogSummary, Member, Problem, ProblemKind, Report};
use crate::cluster::{FORMAT, MAP_RECORD, Record};
use crate::exit::Fatal;
use crate::peers::load_memories;

/// Memory for what a shard has applied since its checkpoint; nothing is applied here.
const BUDGET_BYTES: u64 = 1 << 20;
/// The name of the database in a data directory.
const SLED: &str = "sled";

/// A data directory that was read.
pub struct Inspection {
    /// What was found.
    pub report: Report,
    groups: BTreeMap<u64, GroupParts>,
}

impl Inspection {
    /// The exit code that says how the directory is: 0 if nothing is wrong, 12 if all that is wrong
    /// is that a newer version wrote some of it, else 1.
    #[must_use]
    pub fn code(&self) -> u8 {
        let newer = |problem: &Problem| problem.kind == ProblemKind::NewerFormat;
        match &self.report.problems[..] {
            [] => 0,
            problems if problems.iter().all(newer) => Fatal::NewerFormat(String::new()).code(),
            _ => 1,
        }
    }

    /// The committed entries that the log holds, by shard and index; of all shards, or of one. A
    /// command that cannot be read is a problem that is added to the report, and ends its shard.
    ///
    /// # Errors
    /// `visit` has failed.
    pub fn entries<E>(
        &mut self,
        shard: Option<u64>,
        mut visit: impl FnMut(&EntryLine) -> Result<(), E>,
    ) -> Result<(), E> {
        for (id, parts) in &self.groups {
            if shard.is_some_and(|wanted| wanted != *id) {
                continue;
            }
            for entry in &parts.committed {
                let line = guarded(|| EntryLine::of(GroupId(*id), entry, parts.state.as_ref()));
                let (kind, what) = match line {
                    Ok(Ok(line)) => {
                        visit(&line)?;
                        continue;
                    }
                    Ok(Err(error)) => ((&error).into(), error.to_string()),
                    Err(panicked) => (ProblemKind::Damaged, panicked.to_string()),
                };
                let what = format!("entry {} of shard {id}: {what}", entry.index.0);
                self.report.problems.push(Problem {
                    kind,
                    file: None,
                    tree: None,
                    record: None,
                    shard: Some(*id),
                    what,
                });
                break;
            }
        }
        self.report.sound = self.report.problems.is_empty();
        Ok(())
    }

    /// The shards of which there is a replica, or something of one.
    pub fn shards(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.keys().copied()
    }
}

/// Copies the data directory to `place`, which is a [`CopyPlace`](super::CopyPlace), and reads the
/// copy.
///
/// # Errors
/// The copy cannot be made. What is wrong with the directory is in the report.
pub fn read(mut source: Source, place: &Path) -> Result<Inspection, Fatal> {
    let problems = source.copy_to(place)?;
    let mut reading = Reading {
        copy: place,
        data: &source.path,
        problems,
        report: of_identity(&source),
        groups: BTreeMap::new(),
    };
    reading.read_all(&source.identity);
    let Reading { mut report, groups, problems, .. } = reading;
    report.groups = groups.values().map(|parts| parts.group.clone()).collect::<Vec<Group>>();
    report.sound = problems.is_empty();
    report.problems = problems;
    Ok(Inspection { report, groups })
}

/// The report of a directory of which only the identity is known.
fn of_identity(source: &Source) -> Report {
    let Record { node_id, incarnation, boot_counter, formed, .. } = &source.identity;
    let members = formed.as_ref().map(|formed| {
        let member = |(node, incarnation): (&quorate_raft::NodeId, &_)| Member {
            node_id: node.0,
            incarnation: format!("{incarnation}"),
        };
        formed.members.iter().map(member).collect()
    });
    let formed = formed.as_ref();
    Report {
        data_dir: source.path.display().to_string(),
        node_id: node_id.0,
        incarnation: incarnation.to_string(),
        boot_counter: *boot_counter,
        formed: formed.is_some(),
        cluster_id: formed.map(|formed| formed.cluster_id.to_string()),
        cluster_name: formed.map(|formed| formed.cluster_name.clone()),
        members,
        shards: formed.map(|formed| formed.shards),
        replicas: formed.map(|formed| formed.replicas),
        formats: BTreeMap::from([("identity", FORMAT)]),
        log_store: None,
        log: None,
        map_epoch: None,
        last_run: None,
        groups: Vec::new(),
        problems: Vec::new(),
        sound: true,
    }
}

/// A directory that is being read.
struct Reading<'a> {
    copy: &'a Path,
    data: &'a Path,
    report: Report,
    problems: Vec<Problem>,
    groups: BTreeMap<u64, GroupParts>,
}

impl Reading<'_> {
    fn read_all(&mut self, identity: &Record) {
        let database = self.open_database(identity);
        let backend = self.backend();
        self.report.log_store = backend.map(LogBackend::name);
        let log = backend.and_then(|backend| self.read_log(backend, database.as_ref()));
        if database.is_some() || log.is_some() {
            let has_files = backend == Some(LogBackend::File);
            let used = formats().into_iter().filter(|(name, _)| has_files || *name != "log_file");
            self.report.formats.extend(used.map(|(name, number)| (name, u32::from(number))));
        }
        if let Some(database) = &database {
            self.read_node_records(database, identity);
        }
        self.read_groups(database.as_ref(), log);
    }

    fn note(&mut self, problem: Problem) {
        // The copy is an image of the data directory, which is the one that people know.
        let (copy, data) = (self.copy.display().to_string(), self.data.display().to_string());
        let what = problem.what.replace(&copy, &data);
        self.problems.push(Problem { what, ..problem });
    }

    /// A problem of a file or folder of the directory, and perhaps of a tree or record in it.
    fn problem(&self, file: &Path, kind: ProblemKind, what: &dyn std::fmt::Display) -> Problem {
        let file = file.strip_prefix(self.copy).unwrap_or(file).display().to_string();
        let file = Some(file);
        Problem { kind, file, tree: None, record: None, shard: None, what: what.to_string() }
    }

    fn open_database(&mut self, identity: &Record) -> Option<Database> {
        let dir = self.copy.join(SLED);
        if !dir.join("db").exists() {
            if identity.storage_created {
                let what = format!(
                    "{} is missing, and with it votes and entries that this node has acknowledged",
                    dir.join("db").display()
                );
                let problem = self.problem(&dir.join("db"), ProblemKind::Damaged, &what);
                self.note(problem);
            }
            return None;
        }
        let problem = match guarded_open(|| Database::open(&dir, DatabaseOptions::default())) {
            Ok(Ok(database)) => return Some(database),
            Ok(Err(error)) => {
                // What the database refuses to open is damaged, whatever it calls it.
                let kind = match &error {
                    StorageError::Database { .. } => ProblemKind::Damaged,
                    error => error.into(),
                };
                self.problem(&dir, kind, &error)
            }
            Err(panicked) => self.problem(&dir, ProblemKind::Damaged, &panicked),
        };
        self.note(problem);
        None
    }

    /// The back end of the log: as `MARK` names it, or else the one of which there is something.
    fn backend(&mut self) -> Option<LogBackend> {
        let mark = self.copy.join("MARK");
        let why = match log_backend(self.copy) {
            Ok(Some(backend)) => return Some(backend),
            Ok(None) => None,
            Err(error) => Some(self.problem(&mark, (&error).into(), &error)),
        };
        let has_files = self.copy.join("log").exists();
        if let Some(problem) = why {
            self.note(problem);
        } else if has_files {
            let what = format!("{} is missing, but there is a log", mark.display());
            let problem = self.problem(&mark, ProblemKind::Damaged, &what);
            self.note(problem);
        } else if !self.copy.join(SLED).join("db").exists() {
            return None;
        }
        Some(if has_files { LogBackend::File } else { LogBackend::Sled })
    }

    fn read_log(&mut self, backend: LogBackend, database: Option<&Database>) -> Option<LogReading> {
        let scratch;
        let database = match (database, backend) {
            (Some(database), _) => database,
            (None, LogBackend::Sled) => return None,
            // The files need a database to report failures to, and nothing else of it.
            (None, LogBackend::File) => {
                let dir = self.copy.join("scratch");
                scratch = Database::open(&dir, DatabaseOptions::default()).ok()?;
                &scratch
            }
        };
        let place = match backend {
            LogBackend::Sled => self.copy.join(SLED),
            LogBackend::File => self.copy.join("log"),
        };
        let tree = (backend == LogBackend::Sled).then(|| "log".to_owned());
        let read = match guarded(|| read_log(backend, database, self.copy)) {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                let problem = self.problem(&place, (&error).into(), &error);
                self.note(Problem { tree, ..problem });
                return None;
            }
            Err(panicked) => {
                let problem = self.problem(&place, ProblemKind::Damaged, &panicked);
                self.note(Problem { tree, ..problem });
                return None;
            }
        };
        for found in &read.problems {
            let file = found.file.as_deref().unwrap_or(&place);
            let problem = self.problem(file, (&found.error).into(), &found.error);
            self.note(Problem { tree: tree.clone(), record: found.record, ..problem });
        }
        let any = read.last >= read.first;
        self.report.log = Some(LogSummary {
            first_record: any.then_some(read.first),
            last_record: any.then_some(read.last),
            bytes: read.bytes,
            unfinished_record: read.has_tail,
        });
        Some(read)
    }

    fn read_node_records(&mut self, database: &Database, identity: &Record) {
        let tree = Some("node".to_owned());
        let sled = self.copy.join(SLED);
        let mut wrong: Vec<(ProblemKind, String)> = Vec::new();
        let read = guarded(|| -> Result<_, StorageError> {
            let records = NodeRecords::open(database)?;
            let last_run = scrub::last_run(&records)?;
            if let Err(sentence) = load_memories(&records)? {
                wrong.push((ProblemKind::Damaged, sentence));
            }
            Ok((last_run, records.get(MAP_RECORD)?))
        });
        let map = match read {
            Ok(Ok((last_run, map))) => {
                self.report.last_run = last_run.map(|last| match last {
                    LastRun::Clean => "clean",
                    LastRun::Killed => "killed",
                    LastRun::MayHaveLost => "may_have_lost",
                });
                map
            }
            Ok(Err(error)) => {
                wrong.push(((&error).into(), error.to_string()));
                None
            }
            Err(panicked) => {
                wrong.push((ProblemKind::Damaged, panicked.to_string()));
                None
            }
        };
        match map.map(|bytes| ClusterMap::decode(bytes.as_slice())) {
            None => {}
            Some(Ok(map)) => {
                self.report.map_epoch = Some(map.epoch);
                let cluster = identity.formed.as_ref().map(|formed| formed.cluster_id.to_bytes());
                if cluster.is_some_and(|cluster| map.cluster_id[..] != cluster) {
                    let what = "the stored cluster map is of another cluster than IDENTITY says";
                    wrong.push((ProblemKind::Damaged, what.to_owned()));
                }
            }
            Some(Err(error)) => {
                let what = format!("the stored cluster map does not decode: {error}");
                wrong.push((ProblemKind::Damaged, what));
            }
        }
        for (kind, what) in wrong {
            let problem = self.problem(&sled, kind, &what);
            self.note(Problem { tree: tree.clone(), ..problem });
        }
    }

    fn read_groups(&mut self, database: Option<&Database>, log: Option<LogReading>) {
        let log_is_whole = log.as_ref().is_some_and(|log| log.problems.is_empty());
        let mut recovered = log.map(|log| log.groups).unwrap_or_default();
        let budget = std::sync::Arc::new(DeltaBudget::with_cache(BUDGET_BYTES, BUDGET_BYTES));
        let stores = match database.map(|all| guarded(|| ShardStore::open_all(all, &budget))) {
            None => None,
            Some(Ok(Ok(stores))) => Some(stores),
            Some(failed) => {
                let (kind, what) = match failed {
                    Ok(Err(error)) => ((&error).into(), error.to_string()),
                    Err(panicked) => (ProblemKind::Damaged, panicked.to_string()),
                    Ok(Ok(_)) => unreachable!("it was matched above"),
                };
                let problem = self.problem(&self.copy.join(SLED), kind, &what);
                self.note(Problem { tree: Some("shards".to_owned()), ..problem });
                None
            }
        };
        // Without the states nothing can be said of logs that have none.
        let has_states = stores.is_some();
        let mut found: BTreeMap<GroupId, Found> = BTreeMap::new();
        for (id, store) in stores.unwrap_or_default() {
            let replica = store.as_ref().ok().map(|store| store.header().replica);
            let key = match replica {
                Some(replica) => Some((id, replica)),
                None => recovered.keys().find(|(group, _)| *group == id).copied(),
            };
            let own = key.and_then(|key| Some((key.1, recovered.remove(&key)?)));
            found.insert(id, Found { id, store: Some(store), recovered: own, log_is_whole });
        }
        for ((id, replica), group) in recovered {
            if found.contains_key(&id) {
                let what = format!("the log has entries of {replica}, but there is no state of it");
                let problem = self.problem(&self.copy.join(SLED), ProblemKind::Damaged, &what);
                let tree = Some("shards".to_owned());
                self.note(Problem { tree, shard: Some(id.0), ..problem });
                continue;
            }
            let log_is_whole = log_is_whole && has_states;
            let recovered = Some((replica, group));
            found.insert(id, Found { id, store: None, recovered, log_is_whole });
        }
        for (id, group) in found {
            let mut parts = group.read();
            for problem in std::mem::take(&mut parts.problems) {
                self.note(problem);
            }
            if self.report.map_epoch.is_none() {
                self.report.map_epoch = parts.map_epoch;
            }
            self.groups.insert(id.0, parts);
        }
    }
}
