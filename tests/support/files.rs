//! Directories of nodes: copied, and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wait::until;

/// Copies a directory with everything in it.
///
/// # Panics
/// If something in it cannot be read, or the copy not written.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Copies the directory of a node that runs, as it was at one moment: the copy is made again until
/// nothing changed meanwhile.
///
/// # Panics
/// If it never stands still within `patience`.
pub fn copy_at_rest(from: &Path, to: &Path, patience: Duration) {
    until("the directory stands still while it is copied", patience, || {
        if to.exists() {
            fs::remove_dir_all(to).expect("the last attempt can be removed");
        }
        copy(from, to);
        let (mut original, mut copied) = (BTreeMap::new(), BTreeMap::new());
        read(from, from, &mut original);
        read(to, to, &mut copied);
        (original == copied).then_some(())
    });
}

/// The content of every file, by its path below `root`.
fn read(root: &Path, directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if entry.file_type().expect("a type").is_dir() {
            read(root, &path, files);
        } else if let Ok(bytes) = fs::read(&path) {
            let below = path.strip_prefix(root).expect("it is below the root");
            files.insert(below.to_owned(), bytes);
        }
    }
}
