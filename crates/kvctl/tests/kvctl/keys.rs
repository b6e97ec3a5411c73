//! Commands on single keys.

use std::os::unix::ffi::OsStringExt as _;

use quorate_client::api::ReadLevel;
use quorate_testkit::{FakeCluster, REQUEST_ID};

use crate::{call, call_with};

#[test]
fn put_then_get_prints_the_value_and_nothing_else() {
    let fake = FakeCluster::single();
    let put = call(&fake, &["put", "greeting", "hello"]);
    assert_eq!(put.stderr, "");
    assert_eq!(put.ends(0), "OK\n");
    let got = call(&fake, &["get", "greeting"]);
    assert_eq!(got.stderr, "");
    assert_eq!(got.ends(0), "hello");

    let absent = call(&fake, &["get", "nothing"]);
    assert_eq!(absent.stderr, "there is no key nothing\n");
    assert_eq!(absent.ends(1), "");
}

#[test]
fn any_argument_can_be_a_value() {
    let fake = FakeCluster::single();
    for value in ["-5", "--", "-x", "--no-such-flag", "", " ", "="] {
        let words: &[&str] =
            if value == "--" { &["put", "k", "--", value] } else { &["put", "k", value] };
        call(&fake, words).ends(0);
        assert_eq!(call(&fake, &["get", "k"]).ends(0), value);
    }
    // Also a value that is an option of put, after `--`.
    call(&fake, &["put", "--", "k", "-v"]).ends(0);
    assert_eq!(call(&fake, &["get", "k"]).ends(0), "-v");
}

#[test]
fn all_byte_values_go_in_and_come_out_by_each_way() {
    let fake = FakeCluster::single();
    let all: Vec<u8> = (0..=255).collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    std::fs::write(&file, &all).unwrap();
    let path = file.to_str().unwrap();
    let hexadecimal: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &all);
    let ways: [(&[&str], &[u8]); 6] = [
        (&["put", "k", "--stdin"], &all),
        (&["put", "k", "--file", path], b""),
        (&["put", "k", &hexadecimal, "--value-encoding", "hex"], b""),
        (&["put", "k", &base64, "--value-encoding", "base64"], b""),
        (&["put", "k", "--stdin", "--value-encoding", "hex"], hexadecimal.as_bytes()),
        (&["cas", "k", "--absent", "--value", &base64, "--value-encoding", "base64"], b""),
    ];
    for (words, input) in ways {
        call(&fake, &["del", "k"]).ends(0);
        call_with(&fake, words, input).ends(0);
        assert_eq!(call(&fake, &["get", "k"]).stdout, all, "{words:?}");
    }
    let shown = call(&fake, &["get", "k", "--value-encoding", "hex"]);
    assert_eq!(shown.ends(0), hexadecimal);

    // Keys too; an argument may contain every byte but NUL.
    let key = std::ffi::OsString::from_vec((1..=255).collect());
    call_with(&fake, &["put".into(), key.clone(), "v".into()], b"").ends(0);
    call(&fake, &["put", &hexadecimal, "w", "--key-encoding", "hex"]).ends(0);
    let mut keys = fake.state().store.rows.keys().cloned().collect::<Vec<_>>();
    keys.retain(|key| key.len() > 1);
    assert_eq!(keys, [&all[..], &all[1..]]);
    assert_eq!(call_with(&fake, &["get".into(), key], b"").ends(0), "v");
}

#[test]
fn conditions_decide_and_a_false_one_prints_what_is_there() {
    let fake = FakeCluster::single();
    call(&fake, &["put", "k", "1", "--if-absent"]).ends(0);
    let refused = call(&fake, &["put", "k", "2", "--if-absent"]);
    assert_eq!(refused.stderr, "not applied: the key is at revision 1\n");
    assert_eq!(refused.ends(1), "1");
    call(&fake, &["put", "k", "2", "--if-revision", "1"]).ends(0);
    assert_eq!(call(&fake, &["cas", "k", "--expect", "1", "--value", "3"]).ends(1), "2");
    assert_eq!(call(&fake, &["cas", "k", "--expect", "2", "--value", "-3"]).ends(0), "OK\n");
    assert_eq!(call(&fake, &["del", "k", "--if-revision", "99"]).ends(1), "-3");
    let absent = call(&fake, &["cas", "new", "--expect-revision", "4", "--value", "x"]);
    assert_eq!(absent.stderr, "not applied: the key is absent\n");
    assert_eq!(absent.ends(1), "");
    assert_eq!(call(&fake, &["cas", "new", "--absent", "--value", "x"]).ends(0), "OK\n");
}

#[test]
fn an_increment_adds_and_rejects_what_is_not_a_number() {
    let fake = FakeCluster::single();
    assert_eq!(call(&fake, &["incr", "n"]).ends(0), "1\n");
    assert_eq!(call(&fake, &["incr", "n", "41"]).ends(0), "42\n");
    assert_eq!(call(&fake, &["incr", "n", "-50"]).ends(0), "-8\n");
    assert_eq!(call(&fake, &["get", "n"]).ends(0), "-8");
    call(&fake, &["put", "n", "text"]).ends(0);
    let refused = call(&fake, &["incr", "n"]);
    let message = format!("kvctl: the value is not a number (request {REQUEST_ID})\n");
    assert_eq!(refused.stderr, message);
    refused.ends(5);
}

#[test]
fn del_counts_what_was_there() {
    let fake = FakeCluster::single();
    for key in ["a/1", "a/2", "b"] {
        call(&fake, &["put", key, "v"]).ends(0);
    }
    assert_eq!(call(&fake, &["del", "nothing"]).ends(0), "0\n");
    assert_eq!(call(&fake, &["del", "b", "nothing"]).ends(0), "1\n");
    let removed = call(&fake, &["del", "--prefix", "a/"]);
    assert_eq!(removed.stderr, "removing 2 keys that begin with a/\n");
    assert_eq!(removed.ends(0), "2\n");
    assert!(fake.state().store.rows.is_empty());
    call(&fake, &["put", "a/1", "v"]).ends(0);
    let removed = call(&fake, &["del", "--prefix", "a/"]);
    assert_eq!(removed.stderr, "removing 1 key that begins with a/\n");
}

#[test]
fn an_empty_prefix_means_every_key() {
    let fake = FakeCluster::single();
    for key in ["a", "b"] {
        call(&fake, &["put", key, "v"]).ends(0);
    }
    assert_eq!(call(&fake, &["scan", "", "--keys-only"]).ends(0), "a\nb\n");
    // There is no terminal to ask on, and `--yes` is missing.
    let refused = call(&fake, &["del", "--prefix", ""]);
    assert_eq!(
        refused.stderr,
        "kvctl: an empty prefix means every key, 2 keys in all; --yes removes them\n"
    );
    refused.ends(2);
    let removed = call(&fake, &["del", "--prefix", "", "--yes"]);
    assert_eq!(removed.stderr, "removing 2 keys in all\n");
    assert_eq!(removed.ends(0), "2\n");
    assert!(fake.state().store.rows.is_empty());
}

#[test]
fn several_keys_are_lines_and_an_absent_one_is_an_exit_code() {
    let fake = FakeCluster::single();
    call(&fake, &["put", "a", "1\t2"]).ends(0);
    call(&fake, &["put", "b", ""]).ends(0);
    assert_eq!(call(&fake, &["get", "b", "a"]).ends(0), "b\t\na\t1\\t2\n");
    assert_eq!(
        call(&fake, &["get", "b", "a", "-o", "table"]).ends(0),
        "KEY  VALUE\nb\na    1\\t2\n"
    );
    let mixed = call(&fake, &["get", "a", "nothing", "b"]);
    assert_eq!(mixed.stderr, "there is no key nothing\n");
    assert_eq!(mixed.ends(1), "a\t1\\t2\nb\t\n");
    let json = call(&fake, &["get", "a", "nothing", "-o", "json"]).ends(1);
    let found: Vec<bool> = json
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["found"] == true)
        .collect();
    assert_eq!(found, [true, false]);
    let asked = std::mem::take(&mut fake.state().multi_gets);
    assert_eq!(asked, [(1, 2), (1, 2), (1, 3), (1, 2)], "each command is one call");
    // A node from before MultiGet is asked for each key, with the same output.
    fake.state().serves_no_multi_get = true;
    let mixed = call(&fake, &["get", "a", "nothing", "b"]);
    assert_eq!(mixed.stderr, "there is no key nothing\n");
    assert_eq!(mixed.ends(1), "a\t1\\t2\nb\t\n");
    assert!(fake.state().multi_gets.is_empty());
}

#[test]
fn scan_prints_ranges() {
    let fake = FakeCluster::single();
    for key in ["a", "ab", "b", "c"] {
        call(&fake, &["put", key, key]).ends(0);
    }
    assert_eq!(call(&fake, &["scan"]).ends(0), "a\ta\nab\tab\nb\tb\nc\tc\n");
    assert_eq!(call(&fake, &["scan", "a", "--keys-only"]).ends(0), "a\nab\n");
    assert_eq!(
        call(&fake, &["scan", "--start", "ab", "--end", "c", "-o", "raw"]).ends(0),
        "ab\nb\n"
    );
    assert_eq!(
        call(&fake, &["scan", "--reverse", "--limit", "2", "--keys-only"]).ends(0),
        "c\nb\n"
    );
    assert_eq!(call(&fake, &["scan", "--count"]).ends(0), "4\n");
    assert_eq!(
        call(&fake, &["scan", "a", "-o", "table"]).ends(0),
        "KEY  VALUE  REVISION\na    a             1\nab   ab            2\n"
    );
    assert_eq!(
        call(&fake, &["scan", "b", "-o", "json"]).ends(0),
        "{\"key\":\"b\",\"value\":\"b\",\"revision\":3,\"create_revision\":3,\"log_time_ms\":7,\
         \"log_time_logical\":0}\n"
    );
}

/// The levels of the reads that the cluster received, and whether they had a token.
fn asked(fake: &FakeCluster) -> Vec<(ReadLevel, bool)> {
    let state = fake.state();
    state.reads.iter().map(|(_, read)| (read.level(), read.token.is_some())).collect()
}

#[test]
fn verbose_prints_receipts() {
    let fake = FakeCluster::single();
    let put = call(&fake, &["put", "k", "v", "-v"]);
    assert_eq!(put.stderr, "linearizable · shard 1 · term 2 · index 1 · n1\n");
    let stale = call(&fake, &["get", "k", "-v", "--consistency", "stale"]);
    assert_eq!(stale.stderr, "stale · of unknown age · shard 1 · term 2 · index 1 · n1\n");
    assert_eq!(stale.ends(0), "v");
    assert_eq!(asked(&fake), [(ReadLevel::Stale, false)]);
    let receipt = "linearizable · shard 1 · term 2 · index 1 · n1\n";
    assert_eq!(call(&fake, &["scan", "--count", "-v"]).stderr, receipt);
    let loaded = call_with(&fake, &["load", "-", "-v"], b"k\tv\nl\tv\n");
    let receipts = loaded.stderr.lines().filter(|line| line.starts_with("linearizable · shard 1"));
    assert_eq!(receipts.count(), 1, "{loaded:?}");
}

#[test]
fn a_token_file_carries_what_was_seen() {
    let fake = FakeCluster::single();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("session");
    let path = file.to_str().unwrap();
    call(&fake, &["put", "k", "v", "--token-file", path]).ends(0);
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.ends_with("\"map_epoch\":1,\"parts\":[{\"shard\":1,\"index\":1}]}\n"), "{kept}");
    let words = ["get", "k", "--token-file", path, "--consistency", "session"];
    assert_eq!(call(&fake, &words).ends(0), "v");
    assert_eq!(asked(&fake), [(ReadLevel::Session, true)]);
}
