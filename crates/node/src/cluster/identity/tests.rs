use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use quorate_raft::NodeId;
use tempfile::TempDir;

use super::record::{Record, RecordError};
use super::{ClusterId, DataDir, Formed, IDENTITY_FILE, Identity, IdentityError, Incarnation};
use crate::exit::Fatal;

fn open(dir: &Path, node: u64) -> Result<Identity, IdentityError> {
    Identity::open(DataDir::open(dir)?, NodeId(node))
}

fn code(error: IdentityError) -> u8 {
    Fatal::from(error).code()
}

fn formed(identity: &Identity) -> Formed {
    let members = BTreeMap::from([
        (identity.node_id(), identity.incarnation()),
        (NodeId(9), Incarnation(u128::MAX)),
    ]);
    Formed::new("a name = 50% of\nit", members, 64, 3)
}

#[test]
fn a_first_start_draws_an_incarnation_and_later_ones_keep_it() {
    let temp = TempDir::new().unwrap();
    let dir = temp.path().join("deep").join("d1");
    let (incarnation, agreed);
    {
        let first = open(&dir, 1).unwrap();
        assert_eq!((first.boot_counter(), first.formed()), (1, None));
        incarnation = first.incarnation();
        assert_ne!(incarnation, Incarnation(0));
        agreed = formed(&first);
        first.set_formed(agreed.clone()).unwrap();
        assert!(!first.storage_created());
        first.set_storage_created().unwrap();
        assert_eq!(first.formed(), Some(agreed.clone()));
    }
    let second = open(&dir, 1).unwrap();
    assert_eq!((second.boot_counter(), second.incarnation()), (2, incarnation));
    assert_eq!(second.formed(), Some(agreed));
    assert!(second.storage_created());

    let other = open(&temp.path().join("d2"), 1).unwrap();
    assert_ne!(other.incarnation(), incarnation);
}

#[test]
fn the_directory_is_private_and_explains_itself() {
    let temp = TempDir::new().unwrap();
    let dir = temp.path().join("d1");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let _identity = open(&dir, 1).unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let explained = fs::read_to_string(dir.join("README")).unwrap();
    for name in ["IDENTITY", "LOCK", "MARK", "sled/", "log/"] {
        assert!(explained.lines().any(|line| line.starts_with(name)), "{name}: {explained}");
    }
    assert!(!explained.contains("kvnode inspect"), "there is no such command yet");

    // A directory with other files in it keeps its mode.
    let shared = temp.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("a file"), "").unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    let _identity = open(&shared, 2).unwrap();
    assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_directory_in_use_is_refused_until_its_owner_has_ended() {
    let temp = TempDir::new().unwrap();
    let first = open(temp.path(), 1).unwrap();
    let error = open(temp.path(), 1).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    assert_eq!(code(error), 11);
    drop(first);
    assert_eq!(open(temp.path(), 1).unwrap().boot_counter(), 2);
}

#[test]
fn another_node_id_is_refused() {
    let temp = TempDir::new().unwrap();
    drop(open(temp.path(), 1).unwrap());
    let error = open(temp.path(), 2).unwrap_err();
    assert!(error.to_string().contains("belongs to node 1"), "{error}");
    assert_eq!(code(error), 10);
    assert_eq!(open(temp.path(), 1).unwrap().boot_counter(), 2, "a refused start is not a boot");
}

#[test]
fn a_newer_format_is_refused_whatever_its_checksum() {
    let temp = TempDir::new().unwrap();
    drop(open(temp.path(), 1).unwrap());
    fs::write(temp.path().join(IDENTITY_FILE), "format=2\nsomething new\n").unwrap();
    let error = open(temp.path(), 1).unwrap_err();
    assert!(error.to_string().contains("has format 2"), "{error}");
    assert_eq!(code(error), 12);
}

#[test]
fn every_damaged_byte_is_found_and_the_file_is_left_as_it_is() {
    let temp = TempDir::new().unwrap();
    let identity = open(temp.path(), 1).unwrap();
    identity.set_formed(formed(&identity)).unwrap();
    drop(identity);
    let path = temp.path().join(IDENTITY_FILE);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        fs::write(&path, &bad).unwrap();
        let error = open(temp.path(), 1).unwrap_err();
        // A flipped format digit can look like a newer format; it is refused too.
        assert!(matches!(code(error), 10 | 12), "byte {at}");
        assert_eq!(fs::read(&path).unwrap(), bad, "byte {at}");
    }
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        let error = open(temp.path(), 1).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "cut to {length}: {error}");
    }
}

#[test]
fn data_without_an_identity_is_refused() {
    for name in ["sled", "log", "MARK", "snapshots", "aside"] {
        let temp = TempDir::new().unwrap();
        fs::create_dir(temp.path().join(name)).unwrap();
        let error = open(temp.path(), 1).unwrap_err();
        assert!(error.to_string().contains("no file IDENTITY"), "{name}: {error}");
        assert_eq!(code(error), 10);
        assert!(!temp.path().join(IDENTITY_FILE).exists());
    }
}

#[test]
fn a_temporary_file_that_a_crash_left_is_not_read() {
    let temp = TempDir::new().unwrap();
    let before = open(temp.path(), 1).unwrap().incarnation();
    // A crash during the next replacement leaves the temporary file, whole or torn.
    fs::write(temp.path().join("IDENTITY.tmp"), "format=1\nnode_id=7\n").unwrap();
    let after = open(temp.path(), 1).unwrap();
    assert_eq!((after.incarnation(), after.boot_counter()), (before, 2));
    // At the first start there is no IDENTITY yet, so the node draws a new incarnation.
    let fresh = TempDir::new().unwrap();
    fs::write(fresh.path().join("IDENTITY.tmp"), "for").unwrap();
    assert_eq!(open(fresh.path(), 1).unwrap().boot_counter(), 1);
}

#[test]
#[should_panic(expected = "cannot form otherwise")]
fn a_node_forms_once() {
    let temp = TempDir::new().unwrap();
    let identity = open(temp.path(), 1).unwrap();
    identity.set_formed(formed(&identity)).unwrap();
    identity.set_formed(formed(&identity)).unwrap();
    let members = BTreeMap::from([(identity.node_id(), identity.incarnation())]);
    let _ = identity.set_formed(Formed::new("other", members, 64, 3));
}

#[test]
fn the_cluster_id_follows_only_from_name_and_members() {
    let members = BTreeMap::from([(NodeId(1), Incarnation(1)), (NodeId(2), Incarnation(2))]);
    let id = |name: &str, members: &BTreeMap<_, _>, shards| {
        Formed::new(name, members.clone(), shards, 3).cluster_id
    };
    // A golden value: every node of every version must compute the same one.
    assert_eq!(id("quorate", &members, 64).to_string(), GOLDEN_CLUSTER_ID);
    assert_eq!(id("quorate", &members, 64), id("quorate", &members, 8));
    assert_ne!(id("quorate", &members, 64), id("other", &members, 64));
    let mut wiped = members.clone();
    wiped.insert(NodeId(2), Incarnation(3));
    assert_ne!(id("quorate", &members, 64), id("quorate", &wiped, 64));
}

const GOLDEN_CLUSTER_ID: &str = "2c803bf1f87f570b3fbc939565ba7df3";

#[test]
fn the_text_is_readable() {
    let record = Record {
        node_id: NodeId(1),
        incarnation: Incarnation(0xab),
        boot_counter: 3,
        storage_created: false,
        formed: None,
    };
    let text = record.to_text();
    let (body, checksum) = text.split_at(text.len() - "crc32c=00000000\n".len());
    assert_eq!(
        body,
        "format=1\nnode_id=1\nincarnation=000000000000000000000000000000ab\nboot_counter=3\n\
         storage_created=false\nformed=false\n"
    );
    assert!(checksum.starts_with("crc32c="));
}

/// Later versions read the file: a change of a byte is a new format.
#[test]
fn the_text_is_fixed() {
    let text = concat!(
        "format=1\n",
        "node_id=1\n",
        "incarnation=000000000000000000000000000000ab\n",
        "boot_counter=3\n",
        "storage_created=true\n",
        "formed=true\n",
        "cluster_id=000102030405060708090a0b0c0d0e0f\n",
        "cluster_name=50%25 of%0ait\n",
        "members=1:000000000000000000000000000000ab,9:ffffffffffffffffffffffffffffffff\n",
        "shards=64\n",
        "replicas=3\n",
        "crc32c=c4596acf\n",
    );
    let members =
        BTreeMap::from([(NodeId(1), Incarnation(0xab)), (NodeId(9), Incarnation(u128::MAX))]);
    let formed = Formed {
        cluster_id: ClusterId(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f),
        cluster_name: "50% of\nit".to_owned(),
        members,
        shards: 64,
        replicas: 3,
    };
    let record = Record {
        node_id: NodeId(1),
        incarnation: Incarnation(0xab),
        boot_counter: 3,
        storage_created: true,
        formed: Some(formed),
    };
    assert_eq!(record.to_text(), text);
    assert_eq!(Record::from_bytes(text.as_bytes()), Ok(record));
}

#[test]
fn a_record_that_does_not_name_its_own_node_is_damaged() {
    let record = Record {
        node_id: NodeId(1),
        incarnation: Incarnation(1),
        boot_counter: 1,
        storage_created: true,
        formed: Some(Formed::new("q", BTreeMap::from([(NodeId(2), Incarnation(1))]), 1, 1)),
    };
    let read = Record::from_bytes(record.to_text().as_bytes());
    assert_eq!(read, Err(RecordError::Damaged("its members do not name this node".into())));
}

proptest! {
    #[test]
    fn a_written_record_reads_back_equal(
        node in any::<u64>(), incarnation in any::<u128>(), boot_counter in any::<u64>(),
        name in any::<String>(),
        others in proptest::collection::btree_map(any::<u64>(), any::<u128>(), 0..5),
        shards in any::<u32>(), replicas in any::<u32>(),
        is_formed in any::<bool>(), storage_created in any::<bool>(),
    ) {
        let mut members: BTreeMap<_, _> =
            others.into_iter().map(|(node, id)| (NodeId(node), Incarnation(id))).collect();
        members.insert(NodeId(node), Incarnation(incarnation));
        let record = Record {
            node_id: NodeId(node),
            incarnation: Incarnation(incarnation),
            boot_counter,
            storage_created,
            formed: is_formed.then(|| Formed::new(&name, members, shards, replicas)),
        };
        prop_assert_eq!(Record::from_bytes(record.to_text().as_bytes()), Ok(record));
    }
}
