//! `kvnode dev` with nodes that are shell scripts, but for one test: starting, ending, and who ends
//! with whom. What the real nodes do beside that is tested with the whole system.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Far above what anything here takes; only a failure waits for it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A node that ends when its input does, as real ones do.
const NODE: &str = "#!/bin/sh\necho \"up $*\"\nwhile read -r line; do :; done\n";

/// A running `kvnode dev` and what it says.
struct Dev {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
    home: tempfile::TempDir,
}

impl Dev {
    fn start(node: &str, flags: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self::start_at(home, node, flags)
    }

    fn start_at(home: tempfile::TempDir, node: &str, flags: &[&str]) -> Self {
        let script = home.path().join("node.sh");
        fs::write(&script, node).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let program = ["--node-binary", script.to_str().unwrap()];
        Self::run(home, &[&program, flags].concat())
    }

    /// Starts real nodes.
    fn start_real(flags: &[&str]) -> Self {
        Self::run(tempfile::tempdir().unwrap(), flags)
    }

    fn run(home: tempfile::TempDir, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvnode"))
            .arg("dev")
            .args(flags)
            .env("XDG_DATA_HOME", home.path().join("data"))
            .env("TMPDIR", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = BufReader::new(child.stderr.take().unwrap());
        let other = sender.clone();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).for_each(|l| drop(sender.send(l)));
        });
        std::thread::spawn(move || {
            err.lines().map_while(Result::ok).for_each(|l| drop(other.send(l)));
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, seen: Vec::new(), home }
    }

    /// Waits for a line that contains all parts, among those not yet waited for.
    fn line(&mut self, parts: &[&str]) -> String {
        let wanted = |line: &String| parts.iter().all(|part| line.contains(part));
        if let Some(at) = self.seen.iter().position(wanted) {
            return self.seen.remove(at);
        }
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted(&line) => return line,
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("no line with {parts:?} among {:#?}", self.seen),
            }
        }
    }

    /// The process of a node, from the line that introduces it.
    fn pid(&mut self, node: &str) -> Pid {
        let line = self.line(&[node, "pid "]);
        let rest = line.split("pid ").nth(1).unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Pid::from_raw(digits.parse().unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data/quorate/dev")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The state letter of a process; `None` for one that has ended, even if it was not waited for yet.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    let letter = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    (!['Z', 'X'].contains(&letter)).then_some(letter)
}

/// A first port such that all three ports of `nodes` nodes are free: below the range the kernel
/// hands out by itself, and another two hundred for each test, in this process or beside it.
fn base_port(nodes: u16) -> String {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() + 37 * TAKEN.fetch_add(1, Ordering::Relaxed);
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (0..50)
        .map(|step| 20_000 + u16::try_from((first + step) % 50).unwrap() * 200)
        .find(|base| (0..nodes).all(|n| [0, 50, 100].iter().all(|above| free(base + above + n))))
        .unwrap()
        .to_string()
}

#[test]
fn it_starts_every_node_with_its_own_addresses_and_ends_with_all_of_them() {
    let port = base_port(3);
    let mut dev = Dev::start(NODE, &["--base-port", &port]);
    let base: u16 = port.parse().unwrap();
    let started = dev.line(&["n2 | up start --exit-with-parent"]);
    let data = dev.data();
    for flag in [
        format!("--data-dir={}", data.join("n2").display()),
        format!("--listen=127.0.0.1:{}", base + 1),
        format!("--metrics-listen=127.0.0.1:{}", base + 51),
        format!("--peer-listen=127.0.0.1:{}", base + 101),
        format!("--advertise=127.0.0.1:{}", base + 101),
        format!("--advertise-client=127.0.0.1:{}", base + 1),
        format!(
            "--initial-cluster=1=127.0.0.1:{},2=127.0.0.1:{},3=127.0.0.1:{}",
            base + 100,
            base + 101,
            base + 102
        ),
        format!("--secret-file={}", data.join("secret").display()),
        "--shards=8".to_owned(),
        "--replicas=3".to_owned(),
    ] {
        assert!(started.contains(&flag), "{flag} is missing in {started}");
    }
    let pids: Vec<_> = ["n1", "n2", "n3"].iter().map(|node| dev.pid(node)).collect();
    dev.line(&["data ", "quorate/dev"]);
    dev.line(&[&format!("--endpoints 127.0.0.1:{base},127.0.0.1:"), "put greeting hello"]);
    dev.line(&[&format!("kill -9 {}", pids[1].as_raw_pid())]);
    assert!(pids.iter().all(|pid| state(*pid).is_some()));
    dev.signal(Signal::TERM);
    assert_eq!(dev.wait().code(), Some(0));
    assert!(pids.iter().all(|pid| state(*pid).is_none()));
}

#[test]
fn a_node_that_dies_is_reported_and_stays_dead() {
    let mut dev = Dev::start(NODE, &["--base-port", &base_port(3)]);
    let (first, second) = (dev.pid("n1"), dev.pid("n2"));
    kill_process(second, Signal::KILL).unwrap();
    dev.line(&["n2 was killed (signal 9); start 2 starts it again"]);
    assert_eq!((state(first).is_some(), state(second)), (true, None));
    dev.signal(Signal::INT);
    assert_eq!(dev.wait().code(), Some(0));
    assert!(!dev.seen.iter().any(|line| line.contains("n2 is started")));
}

#[test]
fn a_node_that_fails_is_reported_with_its_exit_status() {
    let node =
        "#!/bin/sh\ncase \"$*\" in *--node-id=2*) exit 20;; esac\nwhile read -r line; do :; done\n";
    let mut dev = Dev::start(node, &["--base-port", &base_port(3)]);
    dev.line(&["n2 ended with exit status 20; ", "start 2 starts it again"]);
}

#[test]
fn without_a_terminal_it_ends_with_its_last_node() {
    let node = "#!/bin/sh\necho storage failed >&2\nexit 20\n";
    let mut dev = Dev::start(node, &["--base-port", &base_port(3)]);
    dev.line(&["n3 | storage failed"]);
    dev.line(&["all nodes have ended"]);
    assert_eq!(dev.wait().code(), Some(1));
}

#[test]
fn killed_itself_it_leaves_no_node_behind_not_even_a_paused_one() {
    let mut dev = Dev::start_real(&["--ephemeral", "--logs", "--base-port", &base_port(3)]);
    let pids: Vec<_> = ["n1", "n2", "n3"].iter().map(|node| dev.pid(node)).collect();
    dev.line(&["n3 | ", "node: listening"]);
    kill_process(pids[2], Signal::STOP).unwrap();
    until("the node is stopped", || state(pids[2]) == Some('T'));
    dev.signal(Signal::KILL);
    assert_eq!(dev.wait().signal(), Some(9));
    until("all nodes end", || pids.iter().all(|pid| state(*pid).is_none()));
}

#[test]
fn a_node_that_does_not_end_is_killed_by_the_second_signal() {
    // It ignores the request to end, and its input.
    let node = "#!/bin/sh\ntrap '' TERM\necho up\nwhile :; do read -r line || :; done\n";
    let mut dev = Dev::start(node, &["--nodes", "1", "--base-port", &base_port(1)]);
    let pid = dev.pid("n1");
    dev.line(&["n1 | up"]);
    dev.signal(Signal::TERM);
    dev.line(&["ending the nodes; Ctrl-C again ends them at once"]);
    dev.signal(Signal::TERM);
    assert_eq!(dev.wait().code(), Some(0));
    assert_eq!(state(pid), None);
    dev.line(&["n1 was killed (signal 9)"]);
}

#[test]
fn input_that_is_no_terminal_is_neither_read_nor_waited_for() {
    let mut dev = Dev::start(NODE, &["--base-port", &base_port(3)]);
    let pid = dev.pid("n1");
    let mut stdin = dev.stdin.take().unwrap();
    stdin.write_all(b"quit\n").unwrap();
    drop(stdin);
    // A cluster that took the line or the end of the input would end its nodes before it reports
    // this.
    kill_process(pid, Signal::KILL).unwrap();
    dev.line(&["n1 was killed (signal 9); start 1 starts it again"]);
    assert!(state(dev.pid("n2")).is_some());
}

#[test]
fn a_port_that_is_taken_is_a_sentence_and_exit_13() {
    let base = base_port(2);
    let second = base.parse::<u16>().unwrap() + 1;
    let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, second)).unwrap();
    let mut dev = Dev::start(NODE, &["--nodes", "2", "--base-port", &base]);
    let said = dev.line(&["kvnode: "]);
    assert!(said.contains(&format!("node 2 cannot listen on 127.0.0.1:{second}: ")), "{said}");
    assert!(said.contains("--base-port"), "{said}");
    assert_eq!(dev.wait().code(), Some(13));
}

#[test]
fn data_is_found_again_compared_and_only_deleted_when_asked() {
    let port = base_port(3);
    let run = |home, flags: &[&str]| {
        let mut all = vec!["--base-port", &port];
        all.extend_from_slice(flags);
        Dev::start_at(home, NODE, &all)
    };
    // The first line of the node may come after the report that it runs: only then may it be ended.
    let end = |mut dev: Dev, starts| {
        dev.pid("n1");
        let log = dev.home.path().join("data/quorate/dev/n1.log");
        until(&format!("the log of n1 holds {starts} starts"), || {
            fs::read_to_string(&log).is_ok_and(|text| text.matches("up start").count() == starts)
        });
        dev.signal(Signal::TERM);
        assert_eq!(dev.wait().code(), Some(0), "{:?}", dev.seen);
        std::mem::replace(&mut dev.home, tempfile::tempdir().unwrap())
    };
    let home = end(run(tempfile::tempdir().unwrap(), &[]), 1);
    let kept = home.path().join("data/quorate/dev/n1/kept");
    let foreign = home.path().join("data/quorate/dev/notes");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::write(&kept, "x").unwrap();
    fs::create_dir(&foreign).unwrap();

    let home = end(run(home, &[]), 2);
    assert!(kept.exists());

    let mut refused = run(home, &["--nodes", "5", "--shards", "16"]);
    let said = refused.line(&["kvnode: "]);
    assert!(
        said.contains(&format!(
            "was created with --nodes 3 --shards 8 --base-port {port}, not with --nodes 5 \
             --shards 16"
        )),
        "{said}"
    );
    assert_eq!(refused.wait().code(), Some(2));
    let home = std::mem::replace(&mut refused.home, tempfile::tempdir().unwrap());
    assert!(kept.exists());

    // The nodes know each other by their ports, so these stay too, and are found without a flag.
    let other = base_port(3);
    let mut refused = Dev::start_at(home, NODE, &["--base-port", &other]);
    let said = refused.line(&["kvnode: "]);
    let sentence =
        format!(" --base-port {port}, not with --nodes 3 --shards 8 --base-port {other};");
    assert!(said.contains(&sentence) && said.contains("--fresh"), "{said}");
    assert_eq!(refused.wait().code(), Some(2));
    let home = std::mem::replace(&mut refused.home, tempfile::tempdir().unwrap());
    let mut found = Dev::start_at(home, NODE, &[]);
    found.line(&["n1 | up", &format!("--listen=127.0.0.1:{port} ")]);
    let home = end(found, 3);

    // A cluster of an earlier version: its nodes look for each other at the ports for clients.
    let marker = home.path().join("data/quorate/dev/dev-cluster");
    fs::write(&marker, format!("nodes=3\nshards=8\nbase-port={port}\n")).unwrap();
    let mut refused = run(home, &[]);
    let said = refused.line(&["kvnode: "]);
    assert!(said.contains("earlier version") && said.contains("--fresh"), "{said}");
    assert_eq!(refused.wait().code(), Some(2));
    let home = std::mem::replace(&mut refused.home, tempfile::tempdir().unwrap());

    // A fresh start has fresh logs.
    let home = end(run(home, &["--fresh", "--shards", "16"]), 1);
    assert!(!kept.exists() && foreign.exists());
    drop(home);
}

#[test]
fn a_second_one_on_the_same_data_is_refused() {
    let mut first = Dev::start(NODE, &["--base-port", &base_port(3)]);
    first.pid("n3");
    let mut second = Command::new(env!("CARGO_BIN_EXE_kvnode"))
        .args(["dev", "--base-port", &base_port(3)])
        .env("XDG_DATA_HOME", first.home.path().join("data"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(wait(&mut second).code(), Some(11));
    let said = std::io::read_to_string(second.stderr.take().unwrap()).unwrap();
    assert!(said.contains("another kvnode dev runs with the data in "), "{said}");
}

#[test]
fn ephemeral_data_is_gone_at_the_end() {
    let mut dev = Dev::start(NODE, &["--ephemeral", "--base-port", &base_port(3)]);
    let said = dev.line(&["data ", "(deleted at the end)"]);
    let path =
        said.trim_start_matches("data ").trim_end_matches(" (deleted at the end)").to_owned();
    assert!(Path::new(&path).starts_with(dev.home.path()) && Path::new(&path).is_dir(), "{path}");
    dev.signal(Signal::TERM);
    assert_eq!(dev.wait().code(), Some(0));
    assert!(!Path::new(&path).exists());
    assert!(!dev.data().exists());
}

#[test]
fn a_first_start_is_one_screen_without_log_lines_and_names_their_files() {
    let mut dev = Dev::start_real(&["--base-port", &base_port(3)]);
    let logs = dev.data().join("n*.log").display().to_string();
    let named = dev.line(&["logs ", "--logs"]);
    assert!(named.contains(&logs), "{named}");
    dev.line(&["ready: 8 of 8 shards have leaders"]);
    for parts in [&["  ", "put greeting hello"], &["  ", "kill -9 "]] {
        dev.line(parts);
    }
    // With the four lines waited for.
    assert!(dev.seen.len() + 4 <= 12, "{:#?}", dev.seen);
    let noisy: Vec<_> = dev.seen.iter().filter(|line| line.contains(" | ")).collect();
    assert!(noisy.is_empty(), "{noisy:#?}");
    dev.signal(Signal::TERM);
    assert_eq!(dev.wait().code(), Some(0));
    for id in 1..=3 {
        let log = fs::read_to_string(dev.data().join(format!("n{id}.log"))).unwrap();
        for line in ["node: listening", "role: changed", "node: stopped"] {
            assert!(log.contains(line), "{line} is missing in {log}");
        }
    }
}

#[test]
fn with_logs_a_start_is_calm_and_ends_with_the_lines_to_copy() {
    let mut dev = Dev::start_real(&["--ephemeral", "--logs", "--base-port", &base_port(3)]);
    dev.line(&["  kill -9 "]);
    dev.line(&["n2 | ", "INFO", "node: listening"]);
    dev.line(&["ready: 8 of 8 shards have leaders"]);
    while dev.seen.last().is_none_or(|line| line != "try") {
        let line = dev.lines.recv_timeout(TIMEOUT).unwrap();
        dev.seen.push(line);
    }
    dev.line(&["put greeting hello"]);
    dev.line(&["  kill -9 "]);
    for noise in ["role: changed", "WARN"] {
        let noisy: Vec<_> = dev.seen.iter().filter(|line| line.contains(noise)).collect();
        assert!(noisy.is_empty(), "{noisy:#?}");
    }
}

#[test]
fn warnings_and_last_words_are_shown_and_everything_is_in_the_file() {
    let node = "#!/bin/sh
echo '2026-11-26T13:21:06.423820Z  INFO node: listening'
echo '2026-11-26T13:21:06.423820Z DEBUG node: detail'
echo '2026-11-26T13:21:06.423820Z  WARN node: a warning' >&2
echo '2026-11-26T13:21:06.423820Z ERROR node: an error' >&2
echo 'kvnode: storage failed' >&2
exit 20
";
    let mut dev = Dev::start(node, &["--nodes", "1", "--base-port", &base_port(1)]);
    for shown in ["WARN node: a warning", "ERROR node: an error", "kvnode: storage failed"] {
        dev.line(&["n1 | ", shown]);
    }
    let log = dev.data().join("n1.log");
    dev.line(&["n1 ended with exit status 20; ", &format!("its log is {}", log.display())]);
    dev.line(&["all nodes have ended"]);
    assert!(!dev.seen.iter().any(|line| line.contains("node: ")), "{:#?}", dev.seen);
    let lines = fs::read_to_string(log).unwrap();
    let mut lines: Vec<_> = lines.lines().filter_map(|line| line.split("node: ").last()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a warning", "an error", "detail", "listening", "storage failed"]);
}
