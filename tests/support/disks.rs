//! Small real file systems: ext4 in a file, mounted through a loop device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::statvfs;
use tempfile::TempDir;

/// The file that takes the space which a test wants gone.
const BALLAST: &str = "ballast";

/// An ext4 file system of its own, unmounted and removed when this is dropped. No process may
/// have files open on it then: declare it before the cluster that uses it.
#[derive(Debug)]
pub struct SmallDisk {
    directory: TempDir,
    path: PathBuf,
}

impl SmallDisk {
    /// Makes a file system of this number of bytes and mounts it.
    ///
    /// # Panics
    /// If that does not work: [`crate::needs::Need::LoopMount`] says beforehand whether it can.
    #[must_use]
    pub fn new(bytes: u64) -> SmallDisk {
        SmallDisk::try_new(bytes).expect("a small file system is made and mounted")
    }

    /// As [`SmallDisk::new`].
    ///
    /// # Errors
    /// What did not work.
    pub fn try_new(bytes: u64) -> Result<SmallDisk, String> {
        let directory = tempfile::Builder::new().prefix("quorate-disk-").tempdir();
        let directory = directory.map_err(|error| error.to_string())?;
        let image = directory.path().join("image");
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        // No blocks for root: what is free is free for everybody. The tables are written now and
        // not in the background.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", text(&image)])?;
        SmallDisk::mount(directory)
    }

    /// Mounts the image in `directory`.
    fn mount(directory: TempDir) -> Result<SmallDisk, String> {
        let (image, path) = (directory.path().join("image"), directory.path().join("mounted"));
        fs::create_dir(&path).map_err(|error| error.to_string())?;
        // The journal is written where somebody syncs, and not because time has passed: a copy of
        // the image then is what a power cut leaves.
        run("mount", &["-o", "loop,commit=300", text(&image), text(&path)])?;
        Ok(SmallDisk { directory, path })
    }

    /// What would be left of it if the power went now: everything that has reached the device, and
    /// nothing that only the system's memory holds. Its writers must stand still
    /// meanwhile.
    ///
    /// # Panics
    /// If the image cannot be copied or mounted.
    #[must_use]
    pub fn after_power_cut(&self) -> SmallDisk {
        let directory = tempfile::Builder::new().prefix("quorate-disk-").tempdir();
        let directory = directory.expect("a directory for the copy");
        let (from, to) = (self.directory.path().join("image"), directory.path().join("image"));
        let copied = run("cp", &["--sparse=always", text(&from), text(&to)]);
        copied.and_then(|()| SmallDisk::mount(directory)).expect("the copy is mounted")
    }

    /// Hangs: what writes to it from now on does not return, until what is returned here is
    /// dropped.
    ///
    /// # Panics
    /// If the file system cannot be frozen.
    #[must_use]
    pub fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", text(&self.path)]).expect("the file system is frozen");
        Frozen(self)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that can still be written.
    ///
    /// # Panics
    /// If the system does not say.
    #[must_use]
    pub fn free(&self) -> u64 {
        let stat = statvfs(&self.path).expect("the system says how much is free");
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves about this number of bytes free: takes the others away, or gives some back.
    ///
    /// # Panics
    /// If they cannot be taken.
    pub fn leave_free(&self, bytes: u64) {
        self.give_back();
        let taken = self.free().saturating_sub(bytes);
        let ballast = self.path.join(BALLAST);
        run("fallocate", &["--length", &taken.to_string(), text(&ballast)])
            .expect("the disk has so much");
    }

    /// Gives back what [`SmallDisk::leave_free`] has taken.
    ///
    /// # Panics
    /// If the file system refuses.
    pub fn give_back(&self) {
        let ballast = self.path.join(BALLAST);
        if ballast.exists() {
            fs::remove_file(ballast).expect("the ballast can be removed");
            // ext4 counts the blocks as free when its journal is written.
            run("sync", &["--file-system", text(&self.path)]).expect("it can be synced");
        }
    }
}

/// A disk that hangs. It does not, once this is dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a SmallDisk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = run("fsfreeze", &["--unfreeze", text(&self.0.path)]) {
            eprintln!("{} stays frozen: {error}", self.0.path.display());
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Where a process still holds it, it goes with that process.
        let path = text(&self.path);
        if run("umount", &[path]).is_err()
            && let Err(error) = run("umount", &["--lazy", path])
        {
            eprintln!("{path} stays mounted: {error}");
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
