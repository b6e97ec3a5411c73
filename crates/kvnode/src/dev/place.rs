//! Where a dev cluster keeps its data.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use etcetera::BaseStrategy;
use quorate_node::{Fatal, secret};
use rustix::fs::{FlockOperation, flock};

use super::DevArgs;

/// Holds what the cluster was created with. It also marks a directory as one that `--fresh` may
/// empty.
const MARKER: &str = "dev-cluster";
/// Begins the line of the marker with the first port.
const PORT: &str = "base-port=";
/// Ends the marker of a cluster whose nodes have listeners of their own for each other. Nodes that
/// were made without know each other at the addresses for clients, where they are not served now.
const APART: &str = "peers=apart\n";
/// What the nodes prove to each other.
const SECRET: &str = "secret";

/// The directory of a dev cluster, held by this process alone.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// Locked as long as this process lives; the kernel releases it however the process ends.
    _lock: File,
    ephemeral: bool,
}

impl Place {
    /// Finds or creates the directory.
    pub(super) fn open(args: &DevArgs) -> Result<Self, Fatal> {
        let directory = match &args.data_dir {
            Some(directory) => directory.clone(),
            None if args.ephemeral => temporary(),
            None => usual()?,
        };
        let failed = |error: io::Error| {
            Fatal::Usage(format!("cannot use {} for the data: {error}", directory.display()))
        };
        // Absolute, because the children and the user may look from elsewhere.
        let directory = std::path::absolute(&directory).map_err(failed)?;
        let failed = |error: io::Error| {
            Fatal::Usage(format!("cannot use {} for the data: {error}", directory.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(failed)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Fatal::InUse(format!(
                "another kvnode dev runs with the data in {}; use --ephemeral or another \
                 --data-dir for a second one",
                directory.display()
            )));
        }
        let place = Self { directory, _lock: lock, ephemeral: args.ephemeral };
        if args.fresh {
            place.empty().map_err(failed_at(&place.directory))?;
        }
        place.compare_or_mark(args)?;
        secret::create(&place.secret(), true)?;
        Ok(place)
    }

    /// The directory of all nodes.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the data is deleted at the end.
    pub(super) const fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    /// The file with the secret of the cluster.
    pub(super) fn secret(&self) -> PathBuf {
        self.directory.join(SECRET)
    }

    /// The data directory of a node.
    pub(super) fn node(&self, id: u16) -> PathBuf {
        self.directory.join(format!("n{id}"))
    }

    /// What the node logs.
    pub(super) fn log(&self, id: u16) -> PathBuf {
        self.directory.join(format!("n{id}.log"))
    }

    /// Deletes the data if it was not meant to last.
    pub(super) fn close(self) {
        if self.ephemeral
            && let Err(error) = fs::remove_dir_all(&self.directory)
        {
            eprintln!("kvnode: cannot delete {}: {error}", self.directory.display());
        }
    }

    /// Deletes what earlier runs left, and nothing else: only in a marked directory, only nodes and
    /// their logs.
    fn empty(&self) -> io::Result<()> {
        if !self.directory.join(MARKER).exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let of_node = name.to_str().and_then(|name| name.strip_prefix('n')).unwrap_or_default();
            let (id, kind) = of_node.split_once('.').unwrap_or((of_node, ""));
            if id.parse::<u16>().is_err() {
                continue;
            }
            let is_directory = entry.file_type()?.is_dir();
            match (kind, is_directory) {
                ("", true) => fs::remove_dir_all(entry.path())?,
                ("log" | "log.old", false) => fs::remove_file(entry.path())?,
                _ => {}
            }
        }
        // An older version did not make one.
        let _ = fs::remove_file(self.secret());
        fs::remove_file(self.directory.join(MARKER))
    }

    /// A cluster keeps the nodes, shards and ports it was created with: its nodes know each other
    /// by their ports.
    fn compare_or_mark(&self, args: &DevArgs) -> Result<(), Fatal> {
        let path = self.directory.join(MARKER);
        let DevArgs { nodes, shards, .. } = args;
        let flags = format!("nodes={nodes}\nshards={shards}\n{PORT}{}\n", args.first_port());
        let wanted = format!("{flags}{APART}");
        match fs::read_to_string(&path) {
            Ok(stored) if stored == wanted => Ok(()),
            Ok(stored) if !stored.ends_with(APART) => Err(Fatal::Usage(format!(
                "the cluster in {} was created by an earlier version, whose nodes know each other \
                 at the addresses for clients, where other nodes are not served any more; delete \
                 it with --fresh, or keep it and use another --data-dir",
                self.directory.display(),
            ))),
            Ok(stored) => Err(Fatal::Usage(format!(
                "the cluster in {} was created with {}, not with {}; start it as it was created, \
                 delete it with --fresh, or keep it and use another --data-dir",
                self.directory.display(),
                as_flags(&stored),
                as_flags(&flags),
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_marker(&self.directory, &wanted).map_err(failed_at(&self.directory))
            }
            Err(error) => Err(failed_at(&self.directory)(error)),
        }
    }
}

/// The lines of a marker as they would be written on the command line.
fn as_flags(marker: &str) -> String {
    let flag = |line: &str| format!("--{}", line.replace('=', " "));
    let flags: Vec<_> = marker.lines().filter(|line| *line != APART.trim_end()).map(flag).collect();
    flags.join(" ")
}

/// The first port of the cluster whose data is found and kept.
pub(super) fn stored_port(args: &DevArgs) -> Option<u16> {
    if args.fresh || args.ephemeral {
        return None;
    }
    let directory = args.data_dir.clone().or_else(|| usual().ok())?;
    let stored = fs::read_to_string(directory.join(MARKER)).ok()?;
    stored.lines().find_map(|line| line.strip_prefix(PORT)?.parse().ok())
}

fn failed_at(directory: &Path) -> impl Fn(io::Error) -> Fatal {
    let directory = directory.display().to_string();
    move |error| Fatal::Usage(format!("cannot use {directory} for the data: {error}"))
}

/// Written beside and renamed, so that a crash leaves no half of it.
fn write_marker(directory: &Path, text: &str) -> io::Result<()> {
    let beside = directory.join(format!("{MARKER}.new"));
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, directory.join(MARKER))
}

/// The place that is found again next time.
fn usual() -> Result<PathBuf, Fatal> {
    let strategy = etcetera::choose_base_strategy().map_err(|error| {
        Fatal::Usage(format!("cannot find your data directory: {error}; name one with --data-dir"))
    })?;
    Ok(strategy.data_dir().join("quorate").join("dev"))
}

fn temporary() -> PathBuf {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    std::env::temp_dir().join(format!("quorate-dev-{}-{nanos}", std::process::id()))
}
