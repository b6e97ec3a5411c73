//! The file with the secret of the cluster.
//!
//! It is read at each start, and nothing of it is kept elsewhere: a node whose file has another
//! secret than that of its peers finds that out when they refuse each other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use quorate_config::Config;
use quorate_proto::secret::ClusterSecret;
use tracing::info;

use crate::exit::Fatal;

/// The name of the file that a node alone makes in its data directory.
const OWN_FILE: &str = "secret";
/// The longest file that is read; a secret needs a tenth of it.
const BYTES_MAX: u64 = 1024;
/// The bits of a mode that allow others than the owner something.
const OTHERS: u32 = 0o077;

/// The secret of this node: that of `--secret-file`, else the one in its data directory, which is
/// made at the first start.
///
/// # Errors
/// [`Fatal::Usage`] with a sentence that names the file.
pub(crate) fn of_config(config: &Config) -> Result<ClusterSecret, Fatal> {
    if let Some(file) = &config.secret_file {
        return read(&file.0);
    }
    // Checked before: only a node alone comes here.
    let path = config.data_dir.join(OWN_FILE);
    if write(&path)? {
        info!(file = %path.display(), "secret: made, for this node alone");
    }
    read(&path)
}

/// A new secret, as the text of its file.
#[must_use]
pub fn draw() -> String {
    ClusterSecret::from_bytes(rand::random()).to_text()
}

/// Makes a secret and writes it to a new file that only its owner may read. An existing file is
/// never overwritten; with `if_absent` one with a secret in it is as good as a new one.
///
/// # Errors
/// [`Fatal::Usage`] with a sentence that names the file.
pub fn create(path: &Path, if_absent: bool) -> Result<(), Fatal> {
    match (write(path)?, if_absent) {
        (true, _) => Ok(()),
        (false, true) => read(path).map(|_| ()),
        (false, false) => Err(Fatal::Usage(format!(
            "{} exists, and a secret that nodes may use is never overwritten; name another file, \
             or keep this one with --if-absent",
            path.display()
        ))),
    }
}

/// The secret in a file.
fn read(path: &Path) -> Result<ClusterSecret, Fatal> {
    let refused = |why: String| Fatal::Usage(format!("the secret file {} {why}", path.display()));
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => refused(
            "does not exist; make one with `kvnode secret --out FILE` and copy it to each node \
             (--secret-file)"
                .to_owned(),
        ),
        _ => refused(format!("cannot be read: {error} (--secret-file)")),
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    if mode & OTHERS != 0 {
        return Err(refused(format!(
            "may be used by others than its owner (mode {:03o}); take that away with \
             `chmod 600 {}`",
            mode & 0o777,
            path.display()
        )));
    }
    let mut text = String::new();
    file.take(BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| refused(format!("cannot be read: {error}")))?;
    ClusterSecret::parse(&text)
        .map_err(|expected| refused(format!("holds no secret: {expected} (`kvnode secret`)")))
}

/// Writes a new secret to a file, whole or not at all, unless there is one already. Returns whether
/// it did.
fn write(path: &Path) -> Result<bool, Fatal> {
    let failed = |error: io::Error| {
        Fatal::Usage(format!("cannot write the secret file {}: {error}", path.display()))
    };
    if path.exists() {
        return Ok(false);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let beside = format!(".{}.{}.new", name.to_string_lossy(), std::process::id());
    let beside = directory.join(beside);
    let made = || -> io::Result<bool> {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        file.write_all(draw().as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, a second name does not replace a file that appeared meanwhile.
        match fs::hard_link(&beside, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    };
    let made = made();
    // What was not written need not be removed.
    let _ = fs::remove_file(&beside);
    let made = made.map_err(failed)?;
    File::open(directory).and_then(|handle| handle.sync_all()).map_err(failed)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn usage(result: Result<impl std::fmt::Debug, Fatal>) -> String {
        match result {
            Err(Fatal::Usage(sentence)) => sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_secret_is_made_once_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cluster.secret");
        create(&path, false).unwrap();
        let first = read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(usage(create(&path, false)).contains("is never overwritten"));
        create(&path, true).unwrap();
        assert_eq!(read(&path).unwrap(), first);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "something is left beside it");
        create(&home.path().join("other"), true).unwrap();
        assert_ne!(read(&home.path().join("other")).unwrap(), first);
    }

    #[test]
    fn each_bad_file_gets_its_sentence() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cluster.secret");
        assert!(usage(read(&path)).contains("does not exist; make one with `kvnode secret"));
        create(&path, false).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let said = usage(read(&path));
            assert!(said.contains(&format!("(mode {mode:03o})")), "{said}");
            assert!(said.contains("`chmod 600 "), "{said}");
        }
        for content in ["", "hunter2", "quorate-secret-2 00"] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&path, content).unwrap();
            for said in [usage(read(&path)), usage(create(&path, true))] {
                assert!(said.contains("holds no secret: expected one line"), "{said}");
                assert!(said.contains("cluster.secret") && !said.contains("hunter2"), "{said}");
            }
        }
        assert!(usage(create(&home.path().join("no/dir"), false)).contains("cannot write"));
    }
}
