//! `load`, `dump` and `bench`.

use bytes::Bytes;
use quorate_client::api::Reason;
use quorate_testkit::{FakeCluster, Row, Step};

use crate::{call, call_with};

#[test]
fn dump_then_load_is_the_identity_on_binary_data() {
    let source = FakeCluster::single();
    let all: Vec<u8> = (0..=255).collect();
    for byte in 0..=255u8 {
        let value = match byte {
            0 => Bytes::new(),
            _ => Bytes::from([&all[..usize::from(byte)], b"\r\n\"\\\t,"].concat()),
        };
        let row = Row { value, revision: 1, create_revision: 1 };
        source.state().store.rows.insert(Bytes::from(vec![byte, b'\n', byte]), row);
    }
    for format in ["tsv", "csv", "jsonl"] {
        let dumped = call(&source, &["dump", "--format", format]);
        assert_eq!(dumped.stderr, "256 records\n");
        assert_eq!(dumped.code, Some(0));
        let target = FakeCluster::single();
        let loaded = call_with(&target, &["load", "-", "--format", format], &dumped.stdout);
        assert_eq!(loaded.ends(0), "256 put, 0 unchanged, 0 failed, 0 unknown\n", "{format}");
        let values = |fake: &FakeCluster| {
            let state = fake.state();
            state
                .store
                .rows
                .iter()
                .map(|(k, row)| (k.clone(), row.value.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(values(&target), values(&source), "{format}");
        // Loaded again, nothing is written.
        let again = call_with(&target, &["load", "-", "--format", format], &dumped.stdout);
        assert_eq!(again.ends(0), "0 put, 256 unchanged, 0 failed, 0 unknown\n", "{format}");
    }
}

#[test]
fn a_delimited_file_is_loaded_line_by_line_with_a_journal() {
    let fake = FakeCluster::single();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("UnicodeData.txt");
    let journal = directory.path().join("journal");
    let lines: String = (0..500).map(|i| format!("{i:04X};NAME {i};Lu;0\n")).collect();
    std::fs::write(&file, &lines).unwrap();
    let words = [
        "load",
        file.to_str().unwrap(),
        "--delimiter",
        ";",
        "--key-field",
        "1",
        "--key-prefix",
        "u/",
        "--rate",
        "2000",
        "-o",
        "json",
        "--journal",
        journal.to_str().unwrap(),
    ];
    let begun = std::time::Instant::now();
    let loaded = call(&fake, &words);
    assert!(begun.elapsed().as_millis() >= 249, "500 records at 2000/s took {:?}", begun.elapsed());
    let counts: serde_json::Value = serde_json::from_str(&loaded.ends(0)).unwrap();
    assert_eq!((&counts["put"], &counts["failed"]), (&500.into(), &0.into()));
    let rows = fake.state().store.rows.clone();
    assert_eq!(&rows[&b"u/01F3"[..]].value[..], b"01F3;NAME 499;Lu;0");
    let acknowledged = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(acknowledged.lines().count(), 500);
    for line in acknowledged.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let row = &rows[fields[0].as_bytes()];
        assert_eq!(fields[1..], [row.revision.to_string(), "1".into()], "{line}");
    }
}

#[test]
fn a_byte_order_mark_is_not_stored_and_not_in_the_way_of_a_batch() {
    let fake = FakeCluster::single();
    let loaded = call_with(&fake, &["load", "-"], "\u{feff}k\tv\n".as_bytes());
    assert_eq!(loaded.ends(0), "1 put, 0 unchanged, 0 failed, 0 unknown\n");
    assert_eq!(fake.state().store.rows.keys().collect::<Vec<_>>(), ["k"]);
    let text = "\u{feff}{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\r\n";
    let batch = call_with(&fake, &["batch", "-"], text.as_bytes());
    assert_eq!(batch.ends(0), "a\t2\n");
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for command in ["load", "batch"] {
        let refused = call_with(&fake, &[command, "-"], &wide);
        let sentence = "line 1: the file begins with the byte order mark of UTF-16; ";
        assert!(refused.stderr.contains(sentence), "{refused:?}");
        assert_eq!(refused.ends(2), refused_counts(command));
    }
}

/// What a refused command still prints: `load` counts what was stored before.
fn refused_counts(command: &str) -> &'static str {
    match command {
        "load" => "0 put, 0 unchanged, 0 failed, 0 unknown\n",
        _ => "",
    }
}

#[test]
fn an_error_names_the_line() {
    let fake = FakeCluster::single();
    let loaded = call_with(&fake, &["load", "-"], b"a\t1\nb\n");
    assert!(loaded.stderr.contains("kvctl: line 2: expected a key and a value"), "{loaded:?}");
    assert_eq!(loaded.ends(2), "1 put, 0 unchanged, 0 failed, 0 unknown\n");
}

#[test]
fn a_record_that_the_cluster_refuses_is_named_and_the_rest_is_stored() {
    let fake = FakeCluster::single();
    fake.script(1, [Step::Refuse(Reason::BadValue)]);
    let loaded = call_with(&fake, &["load", "-", "--in-flight", "1"], b"a\t1\nb\t2\n");
    assert!(loaded.stderr.starts_with("line 1: as the test says"), "{loaded:?}");
    assert_eq!(loaded.ends(2), "1 put, 0 unchanged, 1 failed, 0 unknown\n");

    fake.script(1, [Step::Refuse(Reason::BadValue)]);
    let loaded = call_with(&fake, &["load", "-", "-o", "json"], b"c\t1\n");
    let object = "{\"line\":1,\"reason\":\"BAD_VALUE\",\"outcome\":\"not_applied\",";
    assert!(loaded.stderr.starts_with(object), "{loaded:?}");
}

#[test]
fn bench_measures_for_the_time_it_was_given() {
    let fake = FakeCluster::single();
    let words = [
        "bench",
        "mixed",
        "--reads",
        "50",
        "--clients",
        "4",
        "--duration",
        "500ms",
        "--keys",
        "20",
        "--value-size",
        "16",
        "-o",
        "json",
    ];
    let begun = std::time::Instant::now();
    let measured = call(&fake, &words);
    assert!(begun.elapsed().as_secs() < 15, "it took {:?}", begun.elapsed());
    let report = measured.ends(0);
    let lines: Vec<serde_json::Value> =
        report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{report}");
    for (line, name) in lines.iter().zip(["put", "get"]) {
        assert_eq!(line["operation"], name);
        assert!(line["count"].as_u64().unwrap() > 0);
        assert_eq!(line["failed"], 0);
        assert_eq!(line["elapsed_ms"], 500);
        let latency = &line["latency_us"];
        let at = |name: &str| latency[name].as_u64().unwrap();
        assert!(at("p50") > 0 && at("p50") <= at("p99") && at("p99") <= at("max"), "{line}");
    }
    let state = fake.state();
    assert_eq!(state.store.rows.len(), 20);
    // Every value differs from every other one.
    let values: std::collections::BTreeSet<_> =
        state.store.rows.values().map(|row| &row.value).collect();
    assert_eq!(values.len(), 20);
}

#[test]
fn bench_ends_with_its_count() {
    let fake = FakeCluster::single();
    let words =
        ["bench", "put", "--clients", "3", "--count", "50", "--duration", "60s", "-o", "tsv"];
    let report = call(&fake, &words).ends(0);
    assert!(report.starts_with("put\t50\t"), "{report}");
    assert_eq!(fake.writes().len(), 50);
}

#[test]
fn an_open_loop_begins_on_time_whatever_the_answers_do() {
    let fake = FakeCluster::single();
    let begin = |more: &[&str]| {
        let words = ["bench", "put", "--rate", "500", "--duration", "400ms", "-o", "json"];
        call(&fake, &[&words[..], more].concat())
    };
    let line = |text: &str| -> serde_json::Value { serde_json::from_str(text.trim()).unwrap() };
    let all = line(&begin(&[]).ends(0));
    let number = |name: &str| all[name].as_u64().unwrap();
    // The last ones may end after the time.
    assert_eq!(number("count") + number("late"), 200, "{all}");
    assert_eq!((number("skipped"), number("rate")), (0, 500), "{all}");
    // The first answer does not come, and the one place is taken by it.
    fake.script(1, [Step::Hang]);
    let stalled = begin(&["--in-flight", "1", "--no-retries", "--timeout", "1s"]);
    let stalled = line(&stalled.ends(4));
    assert_eq!((&stalled["count"], &stalled["unknown"]), (&0.into(), &1.into()), "{stalled}");
    assert_eq!(stalled["skipped"], 199, "{stalled}");
}
