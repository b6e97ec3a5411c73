//! Kills a process at every write of a fixed workload and checks the disk: it must hold everything
//! acknowledged, and at most the one record that was being written.
//!
//! The process is this test binary, started again with a variable in its environment that makes it
//! run the workload and kill itself with SIGKILL at the n-th crash point.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs};

use crate::support::{at_each_point, copy_dir};
use quorate_raft::Index;
use quorate_storage::testing::{
    DirHome, Groups, Home, Log, Twin, append, entries, entry, hard_state, key, reset,
};
use quorate_storage::{LogBackend, LogTuning, Section, crash};

const VARIABLE: &str = "QUORATE_LOG_CRASH";

/// Small enough that the head moves and files end every few records.
const TUNING: LogTuning = LogTuning { move_from_bytes: 2_000, move_bytes: 900, file_bytes: 1_500 };

/// A process forked while the database is open holds its lock until it executes the other program.
static NO_FORK_WHILE_OPEN: Mutex<()> = Mutex::new(());

enum Step {
    Append(Vec<Section>),
    Purge(u64, u64),
    Maintain,
}

fn workload() -> Vec<Step> {
    let mut steps = vec![
        Step::Append(vec![hard_state(1, 1, 0), append(1, entries(1, 1, 3))]),
        Step::Append(vec![append(1, entries(1, 4, 6)), append(2, entries(1, 1, 4))]),
        Step::Append(vec![reset(3, 2, 10), append(3, entries(2, 11, 12)), hard_state(3, 2, 10)]),
        // Three pieces in the database.
        Step::Append(vec![append(1, vec![entry(1, 7, 13_000)])]),
        Step::Append(vec![append(1, entries(2, 6, 7)), append(2, entries(2, 3, 3))]),
        Step::Purge(1, 7),
    ];
    for round in 0..4 {
        let first = 8 + round * 5;
        steps.extend([
            Step::Append(vec![append(1, entries(3, first, first + 4))]),
            Step::Maintain,
            Step::Purge(1, first + 3),
            Step::Append(vec![
                append(2, entries(3, 4 + round, 4 + round)),
                hard_state(1, 3, first),
            ]),
            Step::Maintain,
        ]);
    }
    steps.push(Step::Append(vec![append(2, entries(4, 5, 6)), append(3, entries(4, 12, 12))]));
    steps.extend([Step::Maintain, Step::Maintain]);
    steps
}

fn run_step(log: &mut dyn Log, step: &Step) {
    match step {
        Step::Append(sections) => log.append(sections).unwrap(),
        Step::Purge(group, through) => log.purge(key(*group), Index(*through)),
        Step::Maintain => log.maintain().unwrap(),
    }
}

/// The twin after the first `steps` steps.
fn twin_after(steps: usize) -> Twin {
    let mut twin = Twin::default();
    for step in workload().iter().take(steps) {
        match step {
            Step::Append(sections) => twin.append(sections).unwrap(),
            Step::Purge(group, through) => twin.purge(key(*group), Index(*through)),
            Step::Maintain => {}
        }
    }
    twin
}

/// Runs the workload in `dir`, dies at crash point `fatal`, and records each completed step in the
/// file `acks`. Returns the number of crash points passed.
fn run_workload(dir: &Path, backend: LogBackend, fatal: u64) -> u64 {
    crash::arm(fatal);
    let mut acks = Vec::new();
    let (mut log, _) = DirHome::new(dir, backend, TUNING).open().unwrap();
    for step in &workload() {
        run_step(&mut *log, step);
        acks.push(b'.');
        fs::write(dir.join("acks"), &acks).unwrap();
    }
    log.close().unwrap();
    crash::passed()
}

/// Opens the log in `dir` and dies at crash point `fatal`.
fn run_recovery(dir: &Path, backend: LogBackend, fatal: u64) -> u64 {
    crash::arm(fatal);
    let (log, _) = DirHome::new(dir, backend, TUNING).open().unwrap();
    log.close().unwrap();
    crash::passed()
}

/// The child process that the other tests start; without the variable it runs the workload to its
/// end, and compares the log with the twin.
#[test]
fn child() {
    let Ok(order) = env::var(VARIABLE) else {
        for backend in [LogBackend::Sled, LogBackend::File] {
            let dir = tempfile::tempdir().unwrap();
            run_workload(dir.path(), backend, 0);
            verify(dir.path(), backend, "no crash");
        }
        return;
    };
    let order: Vec<&str> = order.split('|').collect();
    let [what, backend, fatal, dir] = order[..] else { panic!("{order:?}") };
    let backend = if backend == "sled" { LogBackend::Sled } else { LogBackend::File };
    let (dir, fatal) = (PathBuf::from(dir), fatal.parse().unwrap());
    let passed = match what {
        "workload" => run_workload(&dir, backend, fatal),
        _ => run_recovery(&dir, backend, fatal),
    };
    fs::write(dir.join("passed"), passed.to_string()).unwrap();
}

/// Starts a child and waits for its end; true if it was killed at its crash point.
fn start_child(what: &str, dir: &Path, backend: LogBackend, fatal: u64) -> bool {
    let order = format!("{what}|{}|{fatal}|{}", backend.name(), dir.display());
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "log_crash::child", "--nocapture"]).env(VARIABLE, order);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = {
        let _exclusive = NO_FORK_WHILE_OPEN.lock().unwrap();
        command.spawn().unwrap()
    };
    let output = child.wait_with_output().unwrap();
    let killed = output.status.signal() == Some(9);
    let done = output.status.success() && dir.join("passed").exists();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(killed || done, "{what} in {backend:?} at {fatal}: {:?}\n{words}", output.status);
    killed
}

fn points_passed(what: &str, dir: &Path, backend: LogBackend) -> u64 {
    assert!(!start_child(what, dir, backend, 0));
    fs::read_to_string(dir.join("passed")).unwrap().parse().unwrap()
}

fn open(dir: &Path, backend: LogBackend) -> (Box<dyn Log>, Groups) {
    DirHome::new(dir, backend, TUNING).open().unwrap()
}

/// Recovers a child's directory and compares it with the twin; then continues with it.
fn verify(dir: &Path, backend: LogBackend, when: &str) {
    let _exclusive = NO_FORK_WHILE_OPEN.lock().unwrap();
    let acked = fs::read(dir.join("acks")).map_or(0, |acks| acks.len());
    let (mut log, groups) = open(dir, backend);
    let (exact, one_more) = (twin_after(acked), twin_after(acked + 1));
    let mut twin = match (exact.compare(&groups), one_more.compare(&groups)) {
        (Ok(()), _) => exact,
        (_, Ok(())) => one_more,
        (Err(a), Err(b)) => panic!("{backend:?}, {when}, {acked} steps done: {a}; or {b}"),
    };
    // The log must be usable, not only readable.
    twin.repeat_purges(&mut *log);
    let next = twin.groups().get(&key(1)).and_then(|g| g.entries.last()).map(|e| e.index.0 + 1);
    for index in next.into_iter().flat_map(|next| next..next + 3) {
        let sections = [append(1, entries(9, index, index)), hard_state(2, 9, index)];
        log.append(&sections).unwrap();
        twin.append(&sections).unwrap();
        log.maintain().unwrap();
    }
    drop(log);
    let (_, groups) = open(dir, backend);
    if let Err(error) = twin.compare(&groups) {
        panic!("{backend:?}, {when}, {acked} steps done, then three more: {error}");
    }
}

fn kill_at_every_write(backend: LogBackend) {
    let dir = tempfile::tempdir().unwrap();
    let points = points_passed("workload", dir.path(), backend);
    assert!(points > 100, "only {points} crash points");
    let killed = AtomicU64::new(0);
    at_each_point(points, 2, |point| {
        let dir = tempfile::tempdir().unwrap();
        if start_child("workload", dir.path(), backend, point) {
            killed.fetch_add(1, Ordering::SeqCst);
        }
        verify(dir.path(), backend, &format!("killed at point {point} of {points}"));
    });
    // MARK is refreshed by the clock, so a slow run may pass a few points more than a quick one.
    let killed = killed.into_inner();
    assert!(killed + 12 >= points, "{killed} of {points} points killed");
    println!("{backend:?}: killed at {killed} points");
}

#[test]
fn sled_killed_at_every_write() {
    kill_at_every_write(LogBackend::Sled);
}

#[test]
fn files_killed_at_every_write() {
    kill_at_every_write(LogBackend::File);
}

/// Kills in the middle of the workload, and then at every write of the recovery from that.
fn kill_recovery_at_every_write(backend: LogBackend) {
    let dir = tempfile::tempdir().unwrap();
    let points = points_passed("workload", dir.path(), backend);
    for fatal in [points / 3, points / 2, points * 5 / 6] {
        let crashed = tempfile::tempdir().unwrap();
        assert!(start_child("workload", crashed.path(), backend, fatal));
        let copy = tempfile::tempdir().unwrap();
        copy_dir(crashed.path(), copy.path());
        let recovery = points_passed("recovery", copy.path(), backend);
        assert!(recovery > 5, "only {recovery} crash points in recovery");
        for point in 1..=recovery {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(crashed.path(), copy.path());
            assert!(start_child("recovery", copy.path(), backend, point));
            verify(copy.path(), backend, &format!("killed at {fatal}, recovery at {point}"));
        }
    }
}

#[test]
fn sled_killed_at_every_write_of_recovery() {
    kill_recovery_at_every_write(LogBackend::Sled);
}

#[test]
fn files_killed_at_every_write_of_recovery() {
    kill_recovery_at_every_write(LogBackend::File);
}
