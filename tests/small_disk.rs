//! Small real file systems: one that runs full is left by deleting, without a restart; what each
//! level takes; what a power cut leaves while the storage database is being collected; and one that
//! hangs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use quorate_client::{Client, Error};
use quorate_proto::v1::{DiskLevel, DiskStatus, Reason};
use quorate_storage::{Database, DatabaseOptions, Tree};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::disks::SmallDisk;
use quorate_tests::named::{check, fill};
use quorate_tests::needs::{Need, met};
use quorate_tests::raw::CALL;
use quorate_tests::{Cluster, ClusterOptions, Exit, until, until_async};
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;

/// Of which the reserve is 256 MiB, and a quarter of that the last.
const DISK_BYTES: u64 = 420 * MIB;
const RESERVE_BYTES: u64 = 256 * MIB;

/// A value that no compression and no reuse makes smaller.
fn value(key: u32, version: u32, bytes: usize) -> Vec<u8> {
    let mut state = u64::from(key) << 32 | u64::from(version) << 1 | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// How long a write that is refused is tried again.
const REFUSED: Duration = Duration::from_secs(3);

/// How the disk of a node stands, as the node says.
async fn disk(cluster: &Cluster, id: u64) -> Option<DiskStatus> {
    cluster.status(id).await?.disk
}

/// Waits until the disk of a node is at this level.
async fn wait_level(cluster: &Cluster, id: u64, level: DiskLevel) -> DiskStatus {
    let shown = match level {
        DiskLevel::Unspecified | DiskLevel::Ok => 0.0,
        DiskLevel::Low => 1.0,
        DiskLevel::Critical => 2.0,
    };
    until(&format!("node {id} shows {level:?} as a metric"), TIMEOUT, || {
        (cluster.metric(id, "quorate_disk_level") == shown).then_some(())
    });
    until_async(&format!("node {id} finds its disk {level:?}"), TIMEOUT, || async {
        disk(cluster, id).await.filter(|disk| disk.level() == level)
    })
    .await
}

/// Whether a write was taken; `false` = refused for want of disk.
fn taken<T>(what: &str, result: Result<T, Error>) -> bool {
    match result {
        Ok(_) => true,
        Err(Error::NotApplied(detail)) if detail.reason == Some(Reason::DiskFull) => false,
        Err(error) => panic!("{what}: {error}"),
    }
}

const LARGE_BYTES: usize = 64 << 10;

/// Puts until the disk is full; the number of keys that were acknowledged.
async fn fill_up(client: &Client) -> u32 {
    let mut acknowledged = 0;
    loop {
        let keys = acknowledged..acknowledged + 16;
        let puts = keys.map(|key| async move {
            let put = client.put(format!("large-{key}"), value(key, 0, LARGE_BYTES));
            taken(&format!("large-{key}"), put.timeout(CALL).await)
        });
        let done: Vec<bool> = futures::future::join_all(puts).await;
        // Those of one round go on beside each other: what follows a refusal is written again
        // later.
        let in_order = done.iter().take_while(|taken| **taken).count();
        acknowledged += in_order as u32;
        if in_order < done.len() {
            return acknowledged;
        }
        assert!(acknowledged < 20_000, "the disk does not become full");
    }
}

/// Reads one key after the other until it is stopped; how many answers there were.
async fn keep_reading(client: Client, keys: u32, stop: Arc<AtomicBool>) -> u32 {
    let mut answers = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = answers % keys;
        let got = client.get(format!("kept-{key}")).timeout(TIMEOUT).await;
        let got = got.unwrap_or_else(|error| panic!("reads go on: {error}"));
        assert_eq!(got.value, format!("kept {key}"));
        answers += 1;
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_left_by_deleting_and_nothing_is_lost() {
    if !met("small_disk", Need::LoopMount) {
        return;
    }
    let disks: Vec<SmallDisk> = (0..3).map(|_| SmallDisk::new(DISK_BYTES)).collect();
    let mut cluster = Cluster::prepare(ClusterOptions { shards: 2, ..ClusterOptions::default() });
    for (id, disk) in (1..).zip(&disks) {
        // The root of a file system, with its `lost+found`, as a disk of its own is mounted.
        cluster.place(id, disk.path().to_owned());
    }
    cluster.start_all().await;
    let client = cluster.client();
    fill(&client, "kept", 20).await;
    let stop = Arc::new(AtomicBool::new(false));
    let reads = tokio::spawn(keep_reading(cluster.client(), 20, Arc::clone(&stop)));

    let full = fill_up(&client).await;
    eprintln!("{full} keys of 64 KiB fill disks of {DISK_BYTES} bytes");
    assert!(full > 100, "{full} keys were taken");
    for disk in &disks {
        assert!(disk.free() > RESERVE_BYTES / 4, "the last quarter is left: {}", disk.free());
    }
    let keeps = |key: u32| key.is_multiple_of(8);
    let deletes = (0..full).filter(|key| !keeps(*key)).map(|key| {
        let delete = client.delete(format!("large-{key}")).timeout(TIMEOUT);
        async move { assert!(taken("a delete", delete.await), "the reserve is there for deletes") }
    });
    futures::stream::iter(deletes).buffer_unordered(16).collect::<Vec<()>>().await;

    // Without a restart, and without anybody else making room.
    let again = full / 3;
    for key in 0..again {
        until_async("puts go on", TIMEOUT, || async {
            let put = client.put(format!("again-{key}"), value(key, 1, LARGE_BYTES));
            taken("a put", put.timeout(CALL).await).then_some(())
        })
        .await;
    }
    let reusable = disk(&cluster, 1).await.expect("node 1 answers").reusable_bytes;
    eprintln!("{again} keys more; node 1 can reuse {reusable} bytes");
    stop.store(true, Ordering::Relaxed);
    let answers = reads.await.expect("every read was answered");
    assert!(answers > 20, "{answers} reads were answered meanwhile");

    cluster.wait_equal().await;
    cluster.kill_all();
    cluster.start_all().await;
    check(&client, "kept", 20).await;
    for key in 0..full {
        let got = client.get(format!("large-{key}")).await.expect("a read");
        assert_eq!(got.found, keeps(key), "large-{key}");
        assert!(!got.found || got.value == value(key, 0, LARGE_BYTES), "large-{key}");
    }
    for key in 0..again {
        let got = client.get(format!("again-{key}")).await.expect("a read");
        assert!(got.found && got.value == value(key, 1, LARGE_BYTES), "again-{key}");
    }
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_level_takes_what_it_says_and_passes_without_a_restart() {
    if !met("small_disk", Need::LoopMount) {
        return;
    }
    let small = SmallDisk::new(DISK_BYTES);
    let mut cluster =
        Cluster::prepare(ClusterOptions { nodes: 1, shards: 1, ..ClusterOptions::default() });
    cluster.place(1, small.path().to_owned());
    cluster.start_all().await;
    let client = cluster.client();
    fill(&client, "kept", 20).await;
    let status = |cluster: &Cluster| {
        let output = cluster.kvctl(&["status"]);
        String::from_utf8(output.stdout).expect("kvctl writes text")
    };
    let seen = wait_level(&cluster, 1, DiskLevel::Ok).await;
    assert!(!seen.writes_refused && !status(&cluster).contains("its disk"), "{seen:?}");
    assert_eq!(seen.reserve_bytes, RESERVE_BYTES);
    // What the node says is what the system says, but for what was written since.
    assert!(seen.free_bytes.abs_diff(small.free()) < 32 * MIB, "{seen:?}, {}", small.free());

    small.leave_free(RESERVE_BYTES / 2);
    let seen = wait_level(&cluster, 1, DiskLevel::Low).await;
    assert!(
        seen.writes_refused && seen.free_bytes + seen.reusable_bytes < RESERVE_BYTES,
        "{seen:?}"
    );
    assert!(status(&cluster).contains("accepts only deletes"), "{}", status(&cluster));
    assert!(!taken("a put", client.put("kept-0", "new").timeout(REFUSED).await));
    assert!(taken("a delete", client.delete("kept-0").await));
    // A program that begins now has to open a session first.
    let output = cluster.kvctl(&["del", "kept-1"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!client.get("kept-0").await.expect("a read").found);

    small.leave_free(RESERVE_BYTES / 8);
    let seen = wait_level(&cluster, 1, DiskLevel::Critical).await;
    assert!(seen.writes_refused, "{seen:?}");
    assert!(status(&cluster).contains("rejects all writes"), "{}", status(&cluster));
    assert!(!taken("a put", client.put("kept-2", "new").timeout(REFUSED).await));
    assert!(!taken("a delete", client.delete("kept-2").timeout(REFUSED).await));
    assert_eq!(client.get("kept-2").await.expect("reads go on").value, "kept 2");

    small.give_back();
    wait_level(&cluster, 1, DiskLevel::Ok).await;
    assert!(taken("a put", client.put("kept-2", "new").timeout(TIMEOUT).await));
    assert!(taken("a delete", client.delete("kept-3").timeout(TIMEOUT).await));
    assert_eq!(client.get("kept-2").await.expect("a read").value, "new");
    assert!(!client.get("kept-3").await.expect("a read").found);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_disk_stops_only_its_node_and_that_catches_up() {
    if !met("small_disk", Need::LoopMount) {
        return;
    }
    let small = SmallDisk::new(DISK_BYTES);
    let mut cluster = Cluster::prepare(ClusterOptions { shards: 3, ..ClusterOptions::default() });
    cluster.place(3, small.path().to_owned());
    cluster.start_all().await;
    let client = cluster.client();
    fill(&client, "before", 20).await;
    cluster.wait_equal().await;
    small.leave_free(RESERVE_BYTES / 8);
    wait_level(&cluster, 3, DiskLevel::Critical).await;
    until_async("the node leads no shard of its full disk", TIMEOUT, || async {
        let leaders = cluster.leaders().await;
        (leaders.len() == 4 && leaders.values().all(|leader| *leader != 3)).then_some(())
    })
    .await;
    fill(&client, "meanwhile", 200).await;
    check(&client, "meanwhile", 200).await;
    let indexes = |statuses: &BTreeMap<u64, quorate_proto::v1::GetStatusResponse>, id: u64| {
        let replicas = statuses.get(&id).map(|status| status.replicas.clone()).unwrap_or_default();
        replicas.iter().map(|replica| replica.applied).sum::<u64>()
    };
    let statuses = cluster.statuses().await;
    let behind = indexes(&statuses, 1).saturating_sub(indexes(&statuses, 3));
    assert!(behind >= 200, "node 3 took entries in the last quarter: {behind} behind");

    small.give_back();
    wait_level(&cluster, 3, DiskLevel::Ok).await;
    cluster.wait_equal().await;
    let statuses = cluster.statuses().await;
    assert_eq!(indexes(&statuses, 1), indexes(&statuses, 3));
    check(&client, "before", 20).await;
}

/// Names the directory in which this program, started again, writes until it is killed.
const WRITER: &str = "QUORATE_SMALL_DISK_WRITER";
const POWER_CUTS: u64 = 6;
/// Rows that are written in turn, and those behind them that are written again and again meanwhile.
const COLD: u64 = 8_000;
const HOT: u64 = 1_000;
const ROW_BYTES: usize = 300;
const COLD_PER_ROUND: u64 = 64;
const HOT_PER_ROUND: u64 = 192;
const PAGES_PER_ROUND: u64 = 64;
/// Rounds after which the file is made shorter again.
const SHRUNK_EACH: u64 = 3;
/// Rounds without moving: in the end a little of every segment is alive.
const CHURN: u64 = 2 * COLD / COLD_PER_ROUND;

/// The rows of a round: neighbours that share pages, and others that do not.
fn rows_of(round: u64) -> impl Iterator<Item = u64> {
    let cold = round * COLD_PER_ROUND..(round + 1) * COLD_PER_ROUND;
    let hot = round * HOT_PER_ROUND..(round + 1) * HOT_PER_ROUND;
    cold.map(|number| number % COLD).chain(hot.map(|number| COLD + number * 7_919 % HOT))
}

fn row(number: u64, round: u64) -> Vec<u8> {
    format!("{number} {round} ").bytes().cycle().take(ROW_BYTES).collect()
}

fn open(directory: &Path) -> (Database, Tree) {
    let database = Database::open(&directory.join("sled"), DatabaseOptions::default());
    let database = database.expect("the database opens");
    let tree = database.tree(b"rows").expect("a tree");
    (database, tree)
}

/// Writes rows and has pages moved, round after round; reports each round that is behind a barrier.
fn write_without_end(directory: &Path) {
    let (database, tree) = open(directory);
    for round in 0.. {
        for number in rows_of(round) {
            tree.insert(&number.to_be_bytes(), &row(number, round)).expect("inserted");
        }
        if round >= CHURN {
            database.collect(PAGES_PER_ROUND).expect("collected");
        }
        if round >= CHURN && round % SHRUNK_EACH == 0 {
            database.shrink().expect("shrunk");
        }
        database.barrier().expect("durable");
        let mut out = std::io::stdout().lock();
        writeln!(out, "durable {round}").and_then(|()| out.flush()).expect("reported");
    }
}

/// The writer, which is killed when this is dropped.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Writer {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id() as i32).expect("a process id is not 0");
        kill_process(pid, signal).expect("the writer is this test's own");
    }

    /// Stops it in its tracks: all its threads stand still when this returns.
    fn pause(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.0.id());
        until("the writer stands still", TIMEOUT, || {
            let threads = std::fs::read_dir(&threads).expect("its threads").flatten();
            let still =
                |stat: String| stat.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with('T'));
            let stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")));
            stats.map(Result::unwrap_or_default).all(still).then_some(())
        });
    }
}

/// The shards that a node leads, as the others see it.
async fn led_by(cluster: &Cluster, id: u64) -> Vec<u64> {
    let leaders = cluster.leaders().await.into_iter();
    leaders.filter(|(_, leader)| *leader == id).map(|(shard, _)| shard).collect()
}

/// Leaderships leave the node after about one election timeout, a second; the process ends after 30
/// seconds. Each bound is ten times, or a minute more.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_costs_its_node_leaderships_at_once_and_the_process_later() {
    if !met("small_disk", Need::LoopMount) {
        return;
    }
    let disk = SmallDisk::new(DISK_BYTES);
    let mut cluster = Cluster::prepare(ClusterOptions { shards: 6, ..ClusterOptions::default() });
    cluster.place(1, disk.path().to_owned());
    cluster.start_all().await;
    let client = cluster.client();
    fill(&client, "kept", 60).await;
    let led = until_async("node 1 leads some shards", TIMEOUT, || async {
        Some(led_by(&cluster, 1).await).filter(|led| !led.is_empty())
    })
    .await;

    let frozen = disk.freeze();
    let begun = Instant::now();
    // Writes to all shards go on, those of node 1 too: somebody else leads them soon.
    fill(&client, "hanging", 60).await;
    let written = begun.elapsed();
    until_async("node 1 leads nothing any more", TIMEOUT, || async {
        led_by(&cluster, 1).await.is_empty().then_some(())
    })
    .await;
    eprintln!("it led {led:?}: written after {written:?}, free of them {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "it led for {:?}", begun.elapsed());

    until("node 1 says why it ends", Duration::from_secs(90), || {
        cluster.log(1).contains("it has not returned for").then_some(())
    });
    let said = begun.elapsed();
    eprintln!("it ended after {said:?}");
    assert!(said > Duration::from_secs(20), "a disk may be slow for longer: {said:?}");
    // The system ends no thread that waits for the disk.
    drop(frozen);
    assert_eq!(cluster.wait_end_within(1, TIMEOUT), Exit::Code(21));
    cluster.start_node(1);
    cluster.wait_ready().await;
    cluster.wait_equal().await;
    for name in ["kept", "hanging"] {
        check(&client, name, 60).await;
    }
}

/// A kill of the process leaves what the system's memory holds; this takes only what reached the
/// device.
#[test]
fn a_power_cut_while_pages_are_moved_loses_nothing() {
    if let Ok(directory) = std::env::var(WRITER) {
        return write_without_end(Path::new(&directory));
    }
    if !met("small_disk", Need::LoopMount) {
        return;
    }
    let disk = SmallDisk::new(DISK_BYTES);
    let program = std::env::current_exe().expect("this program");
    let mut writer = Command::new(program)
        .args(["--exact", "a_power_cut_while_pages_are_moved_loses_nothing", "--nocapture"])
        .env(WRITER, disk.path())
        .stdout(Stdio::piped())
        .spawn()
        .map(Writer)
        .expect("it starts again");
    let output = writer.0.stdout.take().expect("its output is a pipe");
    let durable = Arc::new(AtomicU64::new(0));
    let reported = Arc::clone(&durable);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(round) = line.strip_prefix("durable ") {
                reported.store(round.parse().expect("a number"), Ordering::SeqCst);
            }
        }
    });
    let first = CHURN + 5;
    for cut in 0..POWER_CUTS {
        let from = first + cut * 7;
        until("the writer continues", TIMEOUT, || {
            (durable.load(Ordering::SeqCst) >= from).then_some(())
        });
        writer.pause();
        let acknowledged = durable.load(Ordering::SeqCst);
        let left = disk.after_power_cut();
        writer.signal(Signal::CONT);
        let mut rounds = BTreeMap::new();
        for round in 0..=acknowledged {
            rounds.extend(rows_of(round).map(|number| (number, round)));
        }
        let (database, tree) = open(left.path());
        for (number, round) in rounds {
            let found = tree.get(&number.to_be_bytes()).expect("it can be read");
            let found = found.unwrap_or_else(|| panic!("cut {cut}: row {number} is lost"));
            let text = String::from_utf8_lossy(&found).into_owned();
            let got: u64 = text.split(' ').nth(1).and_then(|r| r.parse().ok()).expect("a round");
            assert_eq!(found[..], row(number, got), "cut {cut}: row {number} is torn");
            assert!(got >= round, "cut {cut}: row {number} of round {round} is that of {got}");
        }
        database.check_blobs().expect("no page is outside the file");
        let length = std::fs::metadata(left.path().join("sled/db")).map_or(0, |file| file.len());
        eprintln!("cut {cut} after round {acknowledged}, the file has {} MiB", length / MIB);
    }
}
