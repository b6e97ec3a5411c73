//! The memory of the process; a program of its own, because it reads that of all of it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test program")]

use quorate_storage::{Database, DatabaseOptions, SLED_VALUE_BYTES_MAX};

const MIB: u64 = 1 << 20;

/// The memory that the process has now, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn after_a_load_of_several_threads_what_they_have_replaced_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let cache_bytes = 8 * MIB;
    let options = DatabaseOptions { cache_bytes, ..DatabaseOptions::default() };
    let database = Database::open(dir.path(), options).unwrap();
    let before = resident();
    let gate = std::sync::Barrier::new(9);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let (database, gate) = (&database, &gate);
            scope.spawn(move || {
                let tree = database.tree(&[b't', thread]).unwrap();
                let mut value = vec![thread; SLED_VALUE_BYTES_MAX];
                for key in 0..(24 << 20) / SLED_VALUE_BYTES_MAX as u64 {
                    value[..8].copy_from_slice(&key.to_be_bytes());
                    tree.insert(&(key % 256).to_be_bytes(), &value).unwrap();
                }
                database.barrier().unwrap();
                gate.wait();
                gate.wait();
            });
        }
        gate.wait();
        for _ in 0..16 {
            database.give_back();
        }
        let grown = resident() - before;
        gate.wait();
        // The cache, and a few segments of 8 MiB that are being filled or are waited for.
        assert!(grown <= cache_bytes + 32 * MIB, "{} MiB are kept", grown / MIB);
    });
}
