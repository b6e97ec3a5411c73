//! `kvnode dev` as a user meets it: on a terminal, with its printed lines copied, its nodes killed
//! and started again, its data found again.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use quorate_tests::binaries;
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::needs::{Need, met};
use quorate_tests::ports::{Port, lease_at};
use quorate_tests::watched::{process_state, until_gone};
use quorate_tests::{Exit, Watched, until};
use rustix::process::Signal;

/// The ports of three nodes, of their metrics, and among them.
const DISTANCES: [u16; 9] = [0, 1, 2, 50, 51, 52, 100, 101, 102];

fn dev(home: &Path, ports: &[Port]) -> Command {
    let mut command = Command::new(binaries::path("kvnode"));
    command.args(["dev", "--base-port", &ports[0].number().to_string()]);
    // The data goes where the user's data goes.
    command.env("XDG_DATA_HOME", home).env("NO_COLOR", "1");
    command
}

/// The process of a node, from a line of the program.
fn pid_in(line: &str) -> u32 {
    let rest = line.split("pid ").nth(1).expect("the line names a process");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a process id is a number")
}

fn introduced(dev: &mut Watched) -> Vec<u32> {
    (1..=3).map(|id| pid_in(&dev.line(&[&format!("n{id}  pid "), "metrics http://"]))).collect()
}

/// A line that the program printed to be copied, and is.
fn copied(dev: &mut Watched, parts: &[&str]) -> String {
    dev.line(parts).trim().to_owned()
}

fn sh(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().expect("sh starts")
}

/// Runs a line that must succeed, and gives what it printed.
fn run(line: &str) -> String {
    let output = sh(line);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("the output is text")
}

/// Asks the program for the status until the line of a node, and the count of shards with leaders,
/// say this.
fn until_status(dev: &mut Watched, node: &str, said: &str, led: &str) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        dev.forget();
        dev.type_in("status\n");
        let of_node = dev.line(&[&format!("{node}  127.0.0.1:")]);
        let of_shards = dev.line(&["shards have leaders"]);
        if of_node.contains(said) && of_shards.starts_with(led) {
            return;
        }
        let wanted = format!("{node} … {said}, and {led}");
        assert!(Instant::now() < deadline, "not {wanted}, but {of_node}, and {of_shards}");
    }
}

#[test]
fn a_user_breaks_and_mends_a_cluster_from_its_terminal() {
    let home = tempfile::tempdir().expect("a directory");
    let ports = lease_at(&DISTANCES);
    let mut dev_1 = Watched::spawn_on_terminal(&mut dev(home.path(), &ports));
    let pids = introduced(&mut dev_1);
    dev_1.line(&["data ", &home.path().join("quorate/dev").display().to_string()]);
    let put = copied(&mut dev_1, &["kvctl", "put greeting hello"]);
    let get = copied(&mut dev_1, &["kvctl", "get greeting"]);
    let status = copied(&mut dev_1, &["kvctl", "status"]);
    let kill = copied(&mut dev_1, &["kill -9 "]);
    dev_1.line(&["type help for commands"]);
    dev_1.line(&["ready: 8 of 8 shards have leaders"]);

    run(&put);
    assert_eq!(run(&get), "hello");
    assert!(run(&status).contains("8 of 8 shards serve"), "{status}");

    // A node is killed from outside, with the printed line, and started again from inside.
    assert_eq!(kill, format!("kill -9 {}", pids[1]));
    run(&kill);
    dev_1.line(&["n2 was killed (signal 9); start 2 starts it again"]);
    assert_eq!(run(&get), "hello", "two of three go on");
    until_status(&mut dev_1, "n2", "not running  no answer", "8 of 8");
    dev_1.type_in("start 2\n");
    let second = pid_in(&dev_1.line(&["n2 is started, pid "]));
    assert_ne!(second, pids[1]);
    until_status(&mut dev_1, "n2", &format!("running, pid {second}  ready"), "8 of 8");

    // Another is killed from inside.
    dev_1.type_in("kill 3\n");
    dev_1.line(&["n3 was killed (signal 9); start 3 starts it again"]);
    until_gone(&pids[2..]);
    run(&put.replace("hello", "hello-2"));
    dev_1.type_in("start 3\n");
    let third = pid_in(&dev_1.line(&["n3 is started, pid "]));
    until_status(&mut dev_1, "n3", &format!("running, pid {third}  ready"), "8 of 8");

    // One is paused: the others answer for it, and it continues.
    dev_1.type_in("pause 1\n");
    dev_1.line(&["n1 is paused; start 1 lets it go on"]);
    until("n1 is stopped", TIMEOUT, || (process_state(pids[0]) == Some('T')).then_some(()));
    assert_eq!(run(&get), "hello-2");
    dev_1.type_in("start 1\n");
    dev_1.line(&[&format!("n1 continues, pid {}", pids[0])]);
    until_status(&mut dev_1, "n1", "running, pid", "8 of 8");

    // Mistakes are sentences and change nothing.
    dev_1.type_in("kill 9\n");
    dev_1.line(&["there is no node 9; the nodes are 1 to 3"]);

    dev_1.type_in("quit\n");
    for id in 1..=3 {
        dev_1.line(&[&format!("n{id} ended")]);
    }
    assert_eq!(dev_1.wait_end(), Exit::Code(0));
    until_gone(&[pids[0], second, third]);

    // The next one finds the data.
    let mut dev_2 = Watched::spawn_on_terminal(&mut dev(home.path(), &ports));
    let pids = introduced(&mut dev_2);
    dev_2.line(&["ready: 8 of 8 shards have leaders"]);
    assert_eq!(run(&get), "hello-2");
    dev_2.type_in("quit\n");
    assert_eq!(dev_2.wait_end(), Exit::Code(0));
    until_gone(&pids);
}

#[test]
fn ctrl_c_ends_the_nodes_in_order() {
    if !met("ctrl_c_ends_the_nodes_in_order", Need::Setsid) {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let ports = lease_at(&DISTANCES);
    let mut dev = Watched::spawn_controlled(&dev(home.path(), &ports));
    let pids = introduced(&mut dev);
    dev.line(&["ready: 8 of 8 shards have leaders"]);
    dev.type_in("\x03");
    dev.line(&["ending the nodes"]);
    // The signal reached the program alone: each node ends because it was asked to.
    for id in 1..=3 {
        assert!(dev.line(&[&format!("n{id} ended")]).ends_with("ended"), "n{id} ends well");
    }
    assert_eq!(dev.wait_end(), Exit::Code(0));
    until_gone(&pids);
}

#[test]
fn killed_itself_it_leaves_no_node_and_loses_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let ports = lease_at(&DISTANCES);
    let mut first = Watched::spawn(&mut dev(home.path(), &ports));
    let pids = introduced(&mut first);
    let put = copied(&mut first, &["kvctl", "put greeting hello"]);
    let get = copied(&mut first, &["kvctl", "get greeting"]);
    first.line(&["ready: 8 of 8 shards have leaders"]);
    run(&put);
    first.signal(Signal::KILL);
    assert_eq!(first.wait_end(), Exit::Signal(9));
    until_gone(&pids);

    let mut second = Watched::spawn(&mut dev(home.path(), &ports));
    let pids = introduced(&mut second);
    second.line(&["ready: 8 of 8 shards have leaders"]);
    assert_eq!(run(&get), "hello");
    second.signal(Signal::TERM);
    assert_eq!(second.wait_end(), Exit::Code(0));
    until_gone(&pids);
}

#[test]
fn a_port_that_is_taken_is_a_sentence_and_exit_13() {
    let home = tempfile::tempdir().expect("a directory");
    let ports = lease_at(&DISTANCES);
    let taken = ports[4].address();
    let _held = TcpListener::bind(&taken).expect("the port is leased");
    let output = dev(home.path(), &ports).output().expect("kvnode starts");
    assert_eq!(output.status.code(), Some(13));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("node 2 cannot listen on {taken}")), "{said}");
    assert!(said.contains("--base-port"), "{said}");
    assert!(!home.path().join("quorate").exists(), "nothing was begun");
}
