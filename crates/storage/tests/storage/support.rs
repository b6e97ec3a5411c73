//! Helpers that several crash and damage tests share.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls `check` with each crash point from 1 to `points`, on this many threads: the children that
/// it starts mostly wait for the disk.
pub fn at_each_point(points: u64, threads: usize, check: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(1);
    let work = || {
        loop {
            let point = next.fetch_add(1, Ordering::Relaxed);
            if point > points {
                return;
            }
            check(point);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
}

/// Copies a directory with all that is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
