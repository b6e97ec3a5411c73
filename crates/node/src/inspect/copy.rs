//! The copy of a data directory that is read in its place.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use quorate_storage::{Space, SpaceProbe, StorageError};
use tempfile::TempDir;

use super::report::{Problem, ProblemKind};
use crate::cluster::{Record, look};
use crate::exit::Fatal;
use crate::log;

/// What is copied: all that the storage consists of.
const PARTS: [&str; 3] = ["MARK", "log", "sled"];
/// How often a copy is removed at most, until it is gone.
const REMOVALS: usize = 10;
/// Bytes that reading writes beside the copy: the database begins a few segments of 8 MiB.
const WORK_BYTES: u64 = 32 << 20;

/// The data directory of a node that does not run, locked.
pub struct Source {
    pub(super) path: PathBuf,
    pub(super) identity: Record,
    /// Released when the copy is made.
    lock: Option<File>,
}

impl Source {
    /// Locks the directory and reads its identity; nothing in it is changed.
    ///
    /// # Errors
    /// The reason why the directory cannot be read, as `kvnode start` has it: it is in use, is
    /// none, is of a newer format, or has a damaged identity.
    pub fn open(path: &Path) -> Result<Source, Fatal> {
        let (identity, lock) = look(path)?;
        Ok(Source { path: path.to_owned(), identity, lock })
    }

    /// Makes the copy and releases the lock. What cannot be copied is a problem of the report.
    ///
    /// # Errors
    /// The file system of the copy is full.
    pub(super) fn copy_to(&mut self, place: &Path) -> Result<Vec<Problem>, Fatal> {
        let mut problems = Vec::new();
        for part in PARTS {
            copy(&self.path, Path::new(part), place, &mut problems)?;
        }
        self.lock = None;
        Ok(problems)
    }
}

/// The directory of a copy, which is removed when this is dropped.
#[derive(Debug)]
pub struct CopyPlace(TempDir);

impl CopyPlace {
    /// Makes an empty directory for the copy of `source`, in `under`; else in the directory that
    /// `TMPDIR` names; else beside the data directory.
    ///
    /// # Errors
    /// It cannot be made there, or there is too little space; the sentence names the setting.
    pub fn new(source: &Source, under: Option<&Path>) -> Result<CopyPlace, Fatal> {
        let of_environment = std::env::var_os("TMPDIR").filter(|value| !value.is_empty());
        let under = match (under, of_environment) {
            (Some(under), _) => under.to_owned(),
            (None, Some(under)) => under.into(),
            (None, None) => {
                let whole = source.path.canonicalize();
                let parent = whole.ok().and_then(|path| path.parent().map(Path::to_owned));
                parent.unwrap_or_else(|| PathBuf::from("/"))
            }
        };
        let probe: SpaceProbe = std::sync::Arc::new(Space::of);
        Self::with_probe(&source.path, &under, &probe)
    }

    fn with_probe(data: &Path, under: &Path, probe: &SpaceProbe) -> Result<CopyPlace, Fatal> {
        let knobs = "(--copy-dir or TMPDIR)";
        let refuse = |error: &dyn std::fmt::Display| {
            let (data, under) = (data.display(), under.display());
            Fatal::Usage(format!("cannot copy {data} to {under}: {error} {knobs}"))
        };
        let inside = under.canonicalize().map_err(|error| refuse(&error))?;
        if data.canonicalize().is_ok_and(|data| inside.starts_with(data)) {
            return Err(refuse(
                &"the copy must not lie in the data directory, which stays as it is",
            ));
        }
        let need = PARTS.iter().map(|part| size_of(&data.join(part))).sum::<u64>() + WORK_BYTES;
        let free = probe(under).map_err(|error| refuse(&error))?.free;
        if free < need {
            return Err(refuse(&format!("it needs {need} bytes, but only {free} are free there")));
        }
        let made = tempfile::Builder::new().prefix("quorate-inspect-").tempdir_in(under);
        made.map(CopyPlace).map_err(|error| refuse(&error))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes the copy. What cannot be removed stays, and is reported on standard error.
    pub fn remove(self) {
        let path = self.0.keep();
        // A thread of the database that still ends may make a file meanwhile.
        let mut removed = fs::remove_dir_all(&path);
        for _ in 1..REMOVALS {
            if removed.is_ok() {
                break;
            }
            removed = fs::remove_dir_all(&path);
        }
        if let Err(error) = removed {
            log::line(&format!("kvnode: cannot remove the copy {}: {error}", path.display()));
        }
    }
}

/// Bytes of the files at and below `path`, as far as they can be read.
fn size_of(path: &Path) -> u64 {
    let Ok(stat) = fs::metadata(path) else { return 0 };
    if !stat.is_dir() {
        return stat.len();
    }
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries.flatten().map(|entry| size_of(&entry.path())).sum()
}

/// Copies the file or folder `part` of `from`, if it is there.
fn copy(from: &Path, part: &Path, to: &Path, problems: &mut Vec<Problem>) -> Result<(), Fatal> {
    let (source, target) = (from.join(part), to.join(part));
    let mut unreadable = |error: &io::Error| {
        problems.push(Problem {
            kind: ProblemKind::Unreadable,
            file: Some(part.display().to_string()),
            tree: None,
            record: None,
            shard: None,
            what: format!("cannot read {}: {error}", source.display()),
        });
    };
    let failed = |error: io::Error| {
        let error = StorageError::io("write the copy", &target, error);
        Fatal::Usage(format!("{error} (--copy-dir or TMPDIR)"))
    };
    let stat = match fs::metadata(&source) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            unreadable(&error);
            return Ok(());
        }
    };
    if stat.is_dir() {
        DirBuilder::new().mode(0o700).create(&target).map_err(failed)?;
        let names = fs::read_dir(&source).and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()
        });
        match names {
            Ok(names) => {
                for name in names {
                    copy(from, &part.join(name), to, problems)?;
                }
            }
            Err(error) => unreadable(&error),
        }
        return Ok(());
    }
    let mut reader = match File::open(&source) {
        Ok(reader) => reader,
        Err(error) => {
            unreadable(&error);
            return Ok(());
        }
    };
    let mut writer = File::create(&target).map_err(failed)?;
    match io::copy(&mut reader, &mut writer) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(failed(error)),
        Err(error) => unreadable(&error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn data() -> TempDir {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("data/sled/blobs")).unwrap();
        fs::create_dir(home.path().join("copies")).unwrap();
        fs::write(home.path().join("data/sled/db"), [7; 5000]).unwrap();
        fs::write(home.path().join("data/MARK"), [8; 1000]).unwrap();
        fs::write(home.path().join("data/secret"), "of the cluster").unwrap();
        home
    }

    fn with_free(home: &Path, free: u64) -> Result<CopyPlace, Fatal> {
        let probe: SpaceProbe = Arc::new(move |_| Ok(Space { total: 1 << 40, free }));
        CopyPlace::with_probe(&home.join("data"), &home.join("copies"), &probe)
    }

    #[test]
    fn too_little_space_is_refused_before_anything_is_written() {
        let home = data();
        let need = 6000 + WORK_BYTES;
        let refused = with_free(home.path(), need - 1).unwrap_err();
        let sentence = refused.to_string();
        assert_eq!(refused.code(), 2);
        assert!(sentence.contains("are free there (--copy-dir or TMPDIR)"), "{sentence}");
        assert_eq!(fs::read_dir(home.path().join("copies")).unwrap().count(), 0);

        let place = with_free(home.path(), need).unwrap();
        let mut problems = Vec::new();
        for part in PARTS {
            copy(&home.path().join("data"), Path::new(part), place.path(), &mut problems).unwrap();
        }
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(fs::read(place.path().join("sled/db")).unwrap(), [7; 5000]);
        assert_eq!(fs::read(place.path().join("MARK")).unwrap(), [8; 1000]);
        assert!(!place.path().join("secret").exists(), "only what is read is copied");
        drop(place);
        assert_eq!(fs::read_dir(home.path().join("copies")).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_does_not_lie_in_what_it_copies() {
        let home = data();
        let probe: SpaceProbe = Arc::new(Space::of);
        let inside = home.path().join("data/sled");
        let refused = CopyPlace::with_probe(&home.path().join("data"), &inside, &probe);
        let sentence = refused.unwrap_err().to_string();
        assert!(sentence.contains("must not lie in the data directory"), "{sentence}");
    }
}
