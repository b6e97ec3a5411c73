//! Tests of the watchdog: each barrier of a node, on a disk that hangs, ends the process.

use std::io::{self, BufRead, BufReader};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use quorate_storage::{DatabaseOptions, LogBackend, NodeRecords, StorageError};
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::testing::{GROUP, Node, SMALL, checkpoint, put, small, wait};

/// Far more than a barrier takes on a busy machine.
const HANGS_AFTER: Duration = Duration::from_secs(3);

/// A disk on which the syncs of some files do not return while it hangs.
struct HangingDisk {
    hangs_on: &'static str,
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl HangingDisk {
    fn new(hangs_on: &'static str) -> Arc<Self> {
        Arc::new(Self { hangs_on, hangs: Mutex::new(false), changed: Condvar::new() })
    }

    fn options(self: &Arc<Self>) -> DatabaseOptions {
        let disk = self.clone();
        let before_sync = Arc::new(move |path: &Path| -> io::Result<()> {
            if path.display().to_string().contains(disk.hangs_on) {
                let mut hangs = disk.hangs.lock();
                while *hangs {
                    disk.changed.wait(&mut hangs);
                }
            }
            Ok(())
        });
        DatabaseOptions { before_sync, ..DatabaseOptions::default() }
    }

    fn set_hangs(&self, hangs: bool) {
        *self.hangs.lock() = hangs;
        self.changed.notify_all();
    }
}

/// Ends the hang of a disk when it is dropped, so that a test that fails does not hang with it.
struct Heals<'a>(&'a HangingDisk);

impl Drop for Heals<'_> {
    fn drop(&mut self) {
        self.0.set_hangs(false);
    }
}

/// What ended a process, of all tests of this file.
static ENDS: Mutex<Vec<StorageError>> = Mutex::new(Vec::new());

/// Ends the thread where a node ends its process.
fn end(error: &StorageError) -> ! {
    ENDS.lock().push(error.clone());
    resume_unwind(Box::new("the process ends here"));
}

/// Why the process of the node with this directory ended.
fn why_ended(dir: &Path) -> Option<StorageError> {
    let is_ours = |error: &&StorageError| match error {
        StorageError::Barrier { path, .. } => path.starts_with(dir),
        _ => false,
    };
    ENDS.lock().iter().find(is_ours).cloned()
}

/// A node whose log is kept there, and which ends when a sync of `disk` hangs.
fn node_on(disk: &Arc<HangingDisk>, backend: LogBackend) -> Node {
    let ends = (FatalHook(end), HANGS_AFTER);
    Node::with_parts(SMALL, 256 << 10, disk.options(), backend, ends)
}

/// Lets the disk hang while `barrier` needs it, and expects the end for `file` of the data
/// directory.
fn expect_end(disk: &HangingDisk, node: &Node, file: &str, barrier: impl FnOnce() + Send) {
    let dir = node.dir();
    assert!(why_ended(dir).is_none(), "it ends before the disk hangs");
    std::thread::scope(|scope| {
        let _heals = Heals(disk);
        disk.set_hangs(true);
        scope.spawn(barrier);
        wait("it is seen before", || node.engine.disk_busy_for() > HANGS_AFTER / 2);
        wait("the process ends", || why_ended(dir).is_some());
    });
    let error = why_ended(dir).unwrap();
    assert!(error.is_barrier_failure());
    let sentence = error.to_string();
    let begin = format!("a write could not be made durable (fdatasync of {}/{file}", dir.display());
    assert!(sentence.starts_with(&begin), "{sentence}");
    assert!(sentence.ends_with("): it has not returned for 3 s"), "{sentence}");
    node.engine.stop();
}

#[test]
fn a_barrier_of_the_log_in_the_database() {
    let disk = HangingDisk::new("/sled/db");
    let node = node_on(&disk, LogBackend::Sled);
    node.lead(GROUP, 1);
    expect_end(&disk, &node, "sled/db", || drop(node.propose(GROUP, put(GROUP, "key", 10))));
}

#[test]
fn a_barrier_of_the_log_in_files() {
    let disk = HangingDisk::new("/log/0");
    let node = node_on(&disk, LogBackend::File);
    node.lead(GROUP, 1);
    expect_end(&disk, &node, "log/0", || drop(node.propose(GROUP, put(GROUP, "key", 10))));
}

#[test]
fn a_barrier_of_the_mark() {
    let disk = HangingDisk::new("/MARK");
    let node = node_on(&disk, LogBackend::File);
    node.lead(GROUP, 1);
    // The mark is written when it is a second old, and the log has grown.
    expect_end(&disk, &node, "MARK", || drop(node.propose(GROUP, put(GROUP, "key", 10))));
}

/// The log is in files, so it is not the one that hangs.
#[test]
fn a_barrier_of_a_checkpoint() {
    let disk = HangingDisk::new("/sled/db");
    let node = node_on(&disk, LogBackend::File);
    let shard = node.lead(GROUP, 1);
    expect_end(&disk, &node, "sled/db", || checkpoint(&node, &shard));
}

#[test]
fn a_barrier_of_a_snapshot_install() {
    let sender = small();
    let sent = sender.lead(GROUP, 1);
    checkpoint(&sender, &sent);
    let mut snapshot = sender.pin_snapshot(GROUP);
    let disk = HangingDisk::new("/sled/db");
    let node = node_on(&disk, LogBackend::File);
    node.add(GROUP, 1, None, true);
    let installer = node.engine.begin_install(GROUP, snapshot.meta()).blocking_recv();
    let mut installer = installer.unwrap().unwrap();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        installer.write(&chunk).unwrap();
    }
    drop(snapshot);
    sender.engine.stop();
    expect_end(&disk, &node, "sled/db", || drop(installer.finish().unwrap()));
}

#[test]
fn a_barrier_of_a_node_record() {
    let disk = HangingDisk::new("/sled/db");
    let node = node_on(&disk, LogBackend::File);
    let records = NodeRecords::open(&node.sled).unwrap();
    expect_end(&disk, &node, "sled/db", || records.put("map", b"record").unwrap());
}

/// Says to a child of the test below that it is one.
const CHILD: &str = "QUORATE_WATCHDOG_CHILD";
/// On the disk of the child a sync takes this long, so that one is nearly always under way.
const SLOW_SYNC: Duration = Duration::from_millis(100);
/// In the child a sync that takes longer than this hangs.
const CHILD_MAX: Duration = Duration::from_secs(1);

/// Writes without end on a slow disk, and reports each write.
fn write_without_end() {
    let before_sync = Arc::new(|_: &Path| {
        std::thread::sleep(SLOW_SYNC);
        Ok(())
    });
    let options = DatabaseOptions { before_sync, ..DatabaseOptions::default() };
    let ends = (FatalHook(|_| std::process::exit(21)), CHILD_MAX);
    let node = Node::with_parts(SMALL, 256 << 10, options, LogBackend::File, ends);
    node.lead(GROUP, 1);
    loop {
        node.propose(GROUP, put(GROUP, "key", 10)).blocking_recv().unwrap();
        println!("\nwritten");
    }
}

/// A child, which is killed when this is dropped.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Writer {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

#[test]
fn time_in_which_the_whole_process_stands_still_is_not_the_disks() {
    if std::env::var_os(CHILD).is_some() {
        return write_without_end();
    }
    let name = "watchdog::tests::time_in_which_the_whole_process_stands_still_is_not_the_disks";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "yes")
        .stdout(Stdio::piped())
        .spawn();
    let mut writer = Writer(child.unwrap());
    let (report, reports) = mpsc::channel();
    let output = BufReader::new(writer.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        let written = output.lines().map_while(Result::ok).filter(|line| line == "written");
        written.for_each(|_| report.send(()).unwrap_or_default());
    });
    for _ in 0..4 {
        // The next write is under way when one is reported.
        reports.recv_timeout(Duration::from_secs(10)).expect("it writes");
        writer.signal(Signal::STOP);
        std::thread::sleep(CHILD_MAX + WATCH_INTERVAL * 2);
        while reports.try_recv().is_ok() {}
        writer.signal(Signal::CONT);
        for _ in 0..2 {
            let written = reports.recv_timeout(Duration::from_secs(10));
            written.unwrap_or_else(|_| panic!("it ended: {:?}", writer.0.wait()));
        }
    }
}
