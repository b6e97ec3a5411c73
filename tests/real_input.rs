//! A real file, loaded while leaders are killed: every record of it is there at the end, at the
//! very revision that was acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use quorate_client::Client;
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::needs::{Need, UNICODE_DATA, met};
use quorate_tests::{Cluster, ClusterOptions, Exit, binaries, until, until_async};

/// Leaders killed while the file is loaded.
const KILLS: u64 = 10;

/// Records per second: the load lasts longer than ten kills and restarts in a row.
const RATE: &str = "1500";

/// Records acknowledged between two kills, at least: the cluster has taken writes with all nodes.
/// All of them together are a third of the file, so that slow restarts find it still being loaded.
const BETWEEN: usize = 1200;

/// The keys of this test.
const PREFIX: &str = "unicode/";

/// How many reads of one comparison are asked for at a time.
const READS: usize = 512;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_file_survives_ten_killed_leaders_and_the_end_of_all_nodes() {
    if !met("real_input", Need::UnicodeData) {
        return;
    }
    let file = fs::read_to_string(UNICODE_DATA).expect("the file is text");
    let records: BTreeMap<String, &str> = file.lines().map(|line| (key(line), line)).collect();
    assert_eq!(records.len(), file.lines().count(), "every record has a key of its own");
    assert!(records.len() > 30_000, "this is the file that was meant");

    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let journal = cluster.directory().join("acknowledged.tsv");
    let begun = Instant::now();
    let mut load = start_load(&cluster, &journal);
    for number in 0..KILLS {
        let acknowledged = lines(&journal);
        until("the load continues", TIMEOUT, || {
            still_loads(&mut load);
            (lines(&journal) >= acknowledged + BETWEEN).then_some(())
        });
        // The leader of another shard each time, the meta group among them.
        let shard = number % 9;
        let victim = cluster.leader(shard).await;
        let before = lines(&journal);
        assert_eq!(cluster.kill(victim), Exit::Signal(9));
        still_loads(&mut load);
        eprintln!("kill {number}: node {victim}, leader of shard {shard}, after {before} records");
        cluster.start_node(victim);
        cluster.wait_ready().await;
    }
    let all_killed = lines(&journal);
    assert!(all_killed < records.len(), "writes were in flight at the last kill, too");

    let mut counts = String::new();
    let mut stdout = load.stdout.take().expect("its output is a pipe");
    stdout.read_to_string(&mut counts).expect("kvctl writes text");
    let status = load.wait().expect("kvctl is this test's child");
    eprintln!("{KILLS} leaders killed during a load of {:?}: {}", begun.elapsed(), counts.trim());
    assert_eq!(status.code(), Some(0), "{counts}");
    assert_eq!(counts.trim(), format!("{} put, 0 unchanged, 0 failed, 0 unknown", records.len()));

    let revisions = acknowledged(&journal);
    assert_eq!(revisions.len(), records.len(), "one acknowledgement for each record");
    compare(&cluster.client(), &records, &revisions).await;
    cluster.wait_equal().await;

    cluster.kill_all();
    cluster.start_all().await;
    compare(&cluster.client(), &records, &revisions).await;
    cluster.wait_equal().await;
    // Loaded again, the file changes nothing: kvctl agrees that every record is there.
    let arguments = load_arguments(&cluster.directory().join("again.tsv"));
    let again = cluster.kvctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let expected = format!("0 put, {} unchanged, 0 failed, 0 unknown", records.len());
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), expected);
    let keys = until_async("the keys are counted", TIMEOUT, || async {
        let mut rows = cluster.client().scan().prefix(PREFIX).keys_only().rows();
        let mut keys = 0;
        while rows.next().await.ok()?.is_some() {
            keys += 1;
        }
        Some(keys)
    })
    .await;
    assert_eq!(keys, records.len(), "and no record that the file does not have");
}

/// The key of a record: its first field, behind the prefix.
fn key(line: &str) -> String {
    let field = line.split(';').next().expect("a line has a first field");
    format!("{PREFIX}{field}")
}

fn load_arguments(journal: &Path) -> Vec<String> {
    let journal = journal.to_str().expect("a path of ASCII");
    let plain = ["load", UNICODE_DATA, "--format", "tsv", "--delimiter", ";", "--key-field", "1"];
    plain
        .iter()
        .chain(&["--key-prefix", PREFIX, "--journal", journal])
        .map(|a| (*a).to_owned())
        .collect()
}

fn start_load(cluster: &Cluster, journal: &Path) -> Child {
    Command::new(binaries::path("kvctl"))
        .args(["--endpoints", &cluster.endpoints()])
        .args(load_arguments(journal))
        .args(["--rate", RATE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kvctl starts")
}

/// The load is still running, so writes are in flight.
fn still_loads(load: &mut Child) {
    let ended = load.try_wait().expect("kvctl is this test's child");
    assert!(ended.is_none(), "the load ended too early: {ended:?}");
}

/// The number of records that the load knows to be stored.
fn lines(journal: &Path) -> usize {
    let text = fs::read(journal).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// Key and revision of each acknowledged record.
fn acknowledged(journal: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(journal).expect("the journal is text");
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let key = fields.next().expect("a key").to_owned();
        let revision = fields.next().expect("a revision").parse().expect("a number");
        (key, revision)
    };
    let revisions: BTreeMap<String, u64> = text.lines().map(line).collect();
    assert_eq!(revisions.len(), text.lines().count(), "no record is acknowledged twice");
    revisions
}

/// Reads every record, linearizably, and compares it with the file and with what was acknowledged.
async fn compare(
    client: &Client,
    records: &BTreeMap<String, &str>,
    revisions: &BTreeMap<String, u64>,
) {
    let begun = Instant::now();
    let all: Vec<_> = records.iter().collect();
    for some in all.chunks(READS) {
        let keys = some.iter().map(|(key, _)| (*key).clone());
        let answers = client.multi_get(keys).await;
        for ((key, line), answer) in some.iter().zip(answers) {
            let got = answer.unwrap_or_else(|error| panic!("{key}: {error}"));
            assert!(got.found, "{key} is lost; it was acknowledged at {}", revisions[*key]);
            assert_eq!(got.value, line.as_bytes(), "{key}");
            assert_eq!(got.revision, revisions[*key], "{key}: not the revision acknowledged");
        }
    }
    eprintln!("{} records compared in {:?}", records.len(), begun.elapsed());
}
