//! The release binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a directory with `kvnode` and `kvctl` that is used as it is, instead of a build.
pub const BIN_DIR: &str = "QUORATE_BIN_DIR";

/// The path of a release binary. `cargo test` does not build the binaries of other packages, so the
/// first call of a process does; cargo makes the calls of several processes wait for each other.
///
/// # Panics
/// If the build fails, or the directory that was named has no such binary.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| match std::env::var_os(BIN_DIR) {
        Some(directory) => directory.into(),
        None => build(),
    });
    let path = directory.join(name);
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// The top of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    // The manifest of this package lies in the folder `tests` at the top.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is below the top")
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--bin", "kvnode", "--bin", "kvctl", "--message-format=json"])
        .current_dir(repository())
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "the release binaries do not build");
    let messages = String::from_utf8_lossy(&built.stdout);
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    let kvnode = executables.rfind(|path| path.ends_with("kvnode"));
    let kvnode = kvnode.expect("cargo names the executables that it built");
    kvnode.parent().expect("an executable lies in a directory").to_owned()
}
