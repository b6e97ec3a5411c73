//! Tests of the database: durability, caps, barriers, closing and free space.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::call::read;
use super::*;
use crate::space::DiskLevel;

fn open(dir: &Path) -> Database {
    Database::open(dir, DatabaseOptions::default()).unwrap()
}

/// The number of completed barriers.
fn barriers(database: &Database) -> u64 {
    database.0.barriers.completed()
}

#[test]
fn inserted_values_are_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    let database = open(&path);
    let tree = database.tree(b"t").unwrap();
    tree.insert(b"a", b"1").unwrap();
    tree.insert(b"b", b"2").unwrap();
    tree.remove(b"a").unwrap();
    database.barrier().unwrap();
    database.check_blobs().unwrap();
    drop((tree, database));
    let database = open(&path);
    let tree = database.tree(b"t").unwrap();
    assert_eq!(tree.get(b"a").unwrap(), None);
    assert_eq!(tree.get(b"b").unwrap().unwrap()[..], *b"2");
    assert_eq!(database.tree_names(), [b"t".to_vec()]);
    database.drop_tree(b"t").unwrap();
    assert!(database.tree_names().is_empty());
    assert!(tree.insert(b"c", b"3").is_err());
    database.check_poisoned().unwrap();
}

#[test]
fn ranges_are_in_order_and_end_at_their_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let tree = open(dir.path()).tree(b"t").unwrap();
    for key in [b"a", b"b", b"c", b"d"] {
        tree.insert(key, key).unwrap();
    }
    let keys = |range: TreeRange| range.map(|r| r.unwrap().0[0]).collect::<Vec<_>>();
    assert_eq!(keys(tree.range(&b"b"[..]..&b"d"[..])), b"bc");
    assert_eq!(keys(tree.range(&b"a"[..]..)), b"abcd");
}

#[test]
fn the_directory_is_private_and_unfinished_snapshot_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("database");
    drop(open(&path));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let half = path.join("snap.00000000000000FF.generating");
    fs::write(&half, b"half").unwrap();
    drop(open(&path));
    assert!(!half.exists());
}

#[test]
fn a_second_open_reports_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _database = open(dir.path());
    let error = Database::open(dir.path(), DatabaseOptions::default()).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
}

#[test]
fn keys_and_values_over_the_caps_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let tree = database.tree(b"t").unwrap();
    let (key, value) = (vec![1; SLED_KEY_BYTES_MAX + 1], vec![1; SLED_VALUE_BYTES_MAX + 1]);
    for result in [tree.insert(&key, b""), tree.insert(b"k", &value), tree.remove(&key)] {
        let error = result.unwrap_err();
        assert!(matches!(error, StorageError::TooLarge { .. }) && !error.is_fatal(), "{error}");
    }
    tree.insert(&key[1..], &value[1..]).unwrap();
    database.check_poisoned().unwrap();
}

/// A page over a quarter of a segment would become a blob. A leaf is split when it has more than
/// 16 items, an index node when it has more than 256 children; 64 bytes for an item and 4 KiB for a
/// page's head are more than the database uses.
#[test]
fn no_page_can_become_a_blob() {
    let quarter = SEGMENT_BYTES / 4;
    let leaf = 17 * (SLED_KEY_BYTES_MAX + SLED_VALUE_BYTES_MAX + 64) + 4096;
    let index = 257 * (SLED_KEY_BYTES_MAX + 64) + 4096;
    assert!(leaf < quarter, "{leaf}");
    assert!(index < quarter, "{index}");
}

/// The same with real pages: the longest keys with long common prefixes, the longest values.
#[test]
fn the_largest_rows_make_no_blob() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let tree = database.tree(b"t").unwrap();
    let mut key = vec![7; SLED_KEY_BYTES_MAX];
    for i in 0..1_000u32 {
        key[SLED_KEY_BYTES_MAX - 4..].copy_from_slice(&i.to_be_bytes());
        tree.insert(&key, &[i as u8; SLED_VALUE_BYTES_MAX]).unwrap();
        if i % 100 == 0 {
            database.barrier().unwrap();
            database.check_blobs().unwrap();
        }
    }
    database.barrier().unwrap();
    database.check_blobs().unwrap();
}

#[test]
fn a_blob_file_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("blobs/123"), b"x").unwrap();
    let error = Database::open(dir.path(), DatabaseOptions::default()).unwrap_err();
    assert!(matches!(error, StorageError::BlobFile { .. }) && error.is_fatal(), "{error}");
}

/// Damage of the database's own files is an error value, however the database reacts to it.
#[test]
fn garbage_in_the_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("conf"), b"segment_size: 8388608\nuse_compression").unwrap();
    let error = Database::open(dir.path(), DatabaseOptions::default()).unwrap_err();
    assert!(error.is_fatal(), "{error}");
    assert!(!panic_is_caught());
}

#[test]
fn too_many_bytes_force_a_barrier() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let before = barriers(&database);
    let tree = database.tree(b"t").unwrap();
    let per_barrier = BARRIER_BYTES as usize / (SLED_VALUE_BYTES_MAX + 4);
    for i in 0..per_barrier as u32 {
        tree.insert(&i.to_be_bytes(), &[1; SLED_VALUE_BYTES_MAX]).unwrap();
    }
    assert_eq!(barriers(&database), before);
    for i in 0..2 * per_barrier as u32 {
        tree.insert(&i.to_be_bytes(), &[2; SLED_VALUE_BYTES_MAX]).unwrap();
    }
    assert_eq!(barriers(&database), before + 2);
}

#[test]
fn barriers_are_shared_and_the_limit_holds_with_many_writers() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let before = barriers(&database);
    std::thread::scope(|scope| {
        for writer in 0..8u8 {
            let database = database.clone();
            scope.spawn(move || {
                let tree = database.tree(b"t").unwrap();
                for i in 0..100u8 {
                    tree.insert(&[writer, i], &[i; 2_000]).unwrap();
                    let open = database.0.barriers.inserted.load(Ordering::SeqCst)
                        - database.0.barriers.durable.load(Ordering::SeqCst);
                    assert!(open <= BARRIER_BYTES, "{open}");
                    database.barrier().unwrap();
                }
            });
        }
    });
    let barriers = barriers(&database) - before;
    // A barrier serves up to eight threads; without sharing each call would need its own.
    assert!((100..=800).contains(&barriers), "{barriers}");
}

#[test]
fn the_first_failure_closes_the_database_and_calls_the_hook_once() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    let on_fatal: FatalHook = Arc::new(move |error| {
        assert!(error.is_barrier_failure());
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let database =
        Database::open(dir.path(), DatabaseOptions { on_fatal, ..DatabaseOptions::default() })
            .unwrap();
    let tree = database.tree(b"t").unwrap();
    for message in ["first", "second"] {
        database.fail(StorageError::Barrier {
            stage: "fdatasync",
            path: "db".into(),
            message: message.into(),
        });
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    for result in [database.barrier(), tree.insert(b"a", b"b"), database.drop_tree(b"t")] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("first") && error.is_fatal(), "{error}");
    }
}

/// Reads during a start may make the database panic: only that tree is damaged, the others
/// continue.
#[test]
fn a_panic_of_a_read_is_damage_of_the_tree_and_closes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let met = read::<()>("read a range of", b"s1/1", || {
        assert!(panic_is_caught());
        panic!("no page 7")
    });
    let error = met.unwrap_err();
    assert_eq!(
        error.to_string(),
        "damaged: the storage database cannot read a range of tree s1/1: it panicked: no page 7"
    );
    assert!(error.is_damage() && !error.is_fatal() && !panic_is_caught());
    database.barrier().unwrap();
}

#[test]
fn a_panic_of_a_write_closes_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let error =
        database.write::<()>("insert a value into", b"t", || panic!("half done")).unwrap_err();
    assert!(error.is_fatal() && error.to_string().contains("panicked: half done"), "{error}");
    assert!(matches!(database.barrier(), Err(StorageError::Poisoned { .. })));
}

/// A disk of 1 GiB, of which `free` bytes are free.
fn open_with(dir: &Path, free: &Arc<AtomicU64>) -> Database {
    let free = Arc::clone(free);
    let space: SpaceProbe =
        Arc::new(move |_| Ok(Space { total: 1 << 30, free: free.load(Ordering::SeqCst) }));
    Database::open(dir, DatabaseOptions { space, ..DatabaseOptions::default() }).unwrap()
}

/// However fast the disk fills, the level is current after each barrier.
#[test]
fn the_free_space_is_checked_with_every_barrier() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 30));
    let database = open_with(dir.path(), &free);
    let tree = database.tree(b"t").unwrap();
    let write = |left: u64| {
        free.store(left << 20, Ordering::SeqCst);
        tree.insert(&left.to_be_bytes(), b"value").unwrap();
        database.barrier().unwrap();
        database.disk().level()
    };
    assert_eq!(write(300), DiskLevel::Ok);
    assert_eq!(write(255), DiskLevel::Low);
    assert_eq!(write(63), DiskLevel::Critical);
    assert_eq!(write(288), DiskLevel::Ok);
}

#[test]
fn a_mostly_free_file_becomes_short() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path());
    let tree = database.tree(b"t").unwrap();
    for i in 0..6_000u32 {
        tree.insert(&i.to_be_bytes(), &[i as u8; SLED_VALUE_BYTES_MAX]).unwrap();
    }
    let kept = |i: &u32| i.is_multiple_of(16);
    for i in (0..6_000).filter(|i| !kept(i)) {
        tree.remove(&i.to_be_bytes()).unwrap();
    }
    while database.collect(512).unwrap() == 512 {}
    database.barrier().unwrap();
    let before = fs::metadata(dir.path().join("db")).unwrap().len();
    // A thread of the database cuts the file off, at its own time.
    let mut lengths = vec![before];
    while lengths.len() <= 16 && lengths.last() >= Some(&(before / 3 * 2)) {
        lengths.push(database.shrink().unwrap());
    }
    assert!(lengths.last() < Some(&(before / 3 * 2)), "{lengths:?}");
    let now = fs::metadata(dir.path().join("db")).unwrap().len();
    assert_eq!(lengths.last(), Some(&now));
    for i in (0..6_000).filter(kept) {
        assert_eq!(
            tree.get(&i.to_be_bytes()).unwrap().unwrap()[..],
            [i as u8; SLED_VALUE_BYTES_MAX]
        );
    }
}
