//! Failures: exit codes, messages, and the commands that retry.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use quorate_client::api::Reason;
use quorate_testkit::{Calls, FakeCluster, REQUEST_ID, Row, Step};
use rustix::process::{Pid, Signal, kill_process};

use crate::{call, program, run};

#[test]
fn a_wrong_command_line_is_2() {
    let fake = FakeCluster::single();
    for words in [
        &["nonsense"][..],
        &["get"],
        &["put", "k"],
        &["put", "k", "v", "--if-absent", "--if-revision", "1"],
        &["put", "", "v"],
        &["put", "zz", "v", "--key-encoding", "hex"],
        &["get", "k", "--consistency", "bounded"],
        &["get", "k", "--write-id", "6162636465666768696a6b6c6d6e6f707172737475767778/1"],
        &["put", "k", "v", "--write-id", "6162636465666768696a6b6c6d6e6f707172737475767778"],
        &["put", "k", "v", "--write-id", "6162636465666768696a6b6c6d6e6f707172737475767778/0"],
        &["put", "k", "v", "--write-id", "00/1"],
        &["get", "k", "--timeout", "5"],
        &["load", "/no/such/file"],
        &["--endpoints", "nonsense", "get", "k"],
    ] {
        let called = call(&fake, words);
        assert!(!called.stderr.is_empty(), "{words:?} said nothing");
        assert_eq!(called.ends(2), "", "{words:?}");
    }
    assert!(fake.writes().is_empty());
}

#[test]
fn a_password_in_an_endpoint_is_not_repeated() {
    for endpoint in ["http://user:secret@127.0.0.1:1", "HTTP://user:se,secret@127.0.0.1:1"] {
        for words in [&["get", "k"][..], &["status", "-o", "json"], &["bench", "put"]] {
            for by_flag in [true, false] {
                let mut command = program();
                match by_flag {
                    true => command.args(["--endpoints", endpoint]).args(words),
                    false => command.env("KVCTL_ENDPOINTS", endpoint).args(words),
                };
                let called = run(command, b"");
                assert!(called.stderr.contains("user information"), "{called:?}");
                assert!(!called.stderr.contains("se,") && !called.stderr.contains("secret"));
                assert_eq!(called.ends(2), "", "{words:?}");
            }
        }
    }
}

#[test]
fn what_is_not_offered_is_5() {
    let fake = FakeCluster::single();
    let tls = call(&fake, &["get", "k", "--cacert", "ca.pem"]);
    assert_eq!(tls.stderr, "kvctl: TLS is not offered yet\n");
    tls.ends(5);
    fake.script(1, [Step::Refuse(Reason::NotOffered)]);
    let refused = call(&fake, &["get", "k", "-o", "json"]);
    assert_eq!(
        refused.stderr,
        format!(
            "{{\"reason\":\"NOT_OFFERED\",\"outcome\":\"not_applied\",\
             \"message\":\"as the test says\",\
             \"request_id\":\"{REQUEST_ID}\"}}\n"
        )
    );
    refused.ends(5);
}

#[test]
fn nobody_there_is_3() {
    // The near end of a connection: its port is taken, and no process listens on it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let address = near.local_addr().unwrap().to_string();
    for words in [&["get", "k"][..], &["put", "k", "v"], &["status"], &["health"]] {
        let mut command = program();
        command.args(["--timeout", "400ms", "--endpoints", &address]).args(words);
        let called = run(command, b"");
        // The status is data, even if no node answers.
        let text = if words == ["status"] { called.text() } else { called.stderr.clone() };
        assert!(text.contains("Connection refused"), "{words:?} {called:?}");
        assert_eq!(called.code, Some(3), "{words:?} {called:?}");
    }
}

#[test]
fn the_environment_names_endpoints_and_is_not_in_the_usage() {
    let fake = FakeCluster::single();
    let with = |words: &[&str]| {
        let mut command = program();
        command.env("KVCTL_ENDPOINTS", &fake.addresses[0]).args(words);
        run(command, b"")
    };
    with(&["put", "k", "v"]).ends(0);
    assert_eq!(fake.writes().len(), 1);
    let wrong = with(&["get"]);
    assert!(wrong.stderr.contains("Usage: kvctl get <KEY>..."), "{wrong:?}");
    let version = {
        let mut command = program();
        command.args(["--endpoints", "127.0.0.1:1", "version"]);
        run(command, b"")
    };
    assert_eq!(version.stderr, "no node answers (127.0.0.1:1)\n");
    version.ends(0);
}

#[test]
fn the_first_endpoint_to_answer_is_used() {
    let fake = FakeCluster::single();
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Accepts connections and never answers.
    let silent = reserved.local_addr().unwrap().to_string();
    let mut command = program();
    command.args(["--endpoints", &format!("{silent},{}", fake.addresses[0]), "put", "k", "v"]);
    run(command, b"").ends(0);
}

#[test]
fn calls_through_the_given_endpoint_are_reported_once() {
    let fake = FakeCluster::single();
    fake.state().map.as_mut().unwrap().nodes[0].client_address = "127.0.0.1:1".into();
    let remark = "n1 cannot be reached from here at the address that the cluster advertises \
                (127.0.0.1:1); the given endpoints forward instead";
    let put = call(&fake, &["put", "k", "v"]);
    assert_eq!(put.stderr, format!("{remark}\n"));
    assert_eq!(put.ends(0), "OK\n");
    let got = call(&fake, &["get", "k", "nothing", "k", "-o", "json"]);
    let line = got.stderr.lines().find(|line| line.contains("advertises")).unwrap();
    let object: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(object["message"], remark);
    assert_eq!(got.stderr.matches("advertises").count(), 1);
    // The node answers a status request at the given endpoint, so there is nothing to report.
    assert_eq!(call(&fake, &["status"]).stderr, "");
}

#[test]
fn endpoints_of_several_clusters_are_2() {
    let (fake, other) = (FakeCluster::single(), FakeCluster::single());
    let odd = bytes::Bytes::from_static(b"other---16-bytes");
    other.state().map.as_mut().unwrap().cluster_id = odd;
    for words in
        [&["get", "k"][..], &["put", "k", "v"], &["status"], &["health"], &["scan"], &["load", "-"]]
    {
        let mut command = program();
        command
            .args(["--endpoints", &format!("{},{}", fake.addresses[0], other.addresses[0])])
            .args(words);
        let called = run(command, b"k\tv\nl\tv\n");
        assert_eq!(called.stderr.matches("several").count(), 1, "{called:?}");
        assert!(called.stderr.contains("endpoints belong to several clusters"), "{called:?}");
        let odd = format!("{} belongs to cluster 6f746865", other.addresses[0]);
        assert!(called.stderr.contains(&odd), "{called:?}");
        assert_eq!(called.ends(2), "", "{words:?}");
    }
    assert_eq!(fake.writes().len() + other.writes().len(), 0);
}

#[test]
fn json_output_has_nothing_but_objects_on_stderr() {
    let fake = FakeCluster::single();
    call(&fake, &["put", "k", "v"]).ends(0);
    for (words, input, code) in [
        (&["get", "nothing"][..], &b""[..], 1),
        (&["get", "k", "nothing"], b"", 1),
        (&["put", "k", "w", "--if-absent"], b"", 1),
        (&["del", "--prefix", "x"], b"", 0),
        (&["load", "-"], b"l\tv\n", 0),
        (&["load", "-"], b"l\n", 2),
        (&["dump"], b"", 0),
        (&["get", "k", "--no-such-flag"], b"", 2),
        (&["get", "k", "-v"], b"", 0),
    ] {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        let called = crate::call_with(&fake, &words, input);
        for line in called.stderr.lines() {
            let object: Result<serde_json::Value, _> = serde_json::from_str(line);
            assert!(object.is_ok_and(|object| object.is_object()), "{words:?} {line}");
        }
        assert_eq!(called.code, Some(code), "{words:?} {called:?}");
    }
}

#[test]
fn a_refusal_of_the_cluster_has_its_code() {
    let fake = FakeCluster::single();
    for (reason, code) in [(Reason::BadKey, 2), (Reason::TokenForeign, 5), (Reason::Internal, 70)] {
        fake.always(1, Step::Refuse(reason));
        let called = call(&fake, &["--timeout", "300ms", "get", "k"]);
        assert_eq!(called.code, Some(code), "{reason:?} {called:?}");
    }
}

/// The retry command that a failed call printed.
pub fn again(stderr: &str) -> String {
    let line = stderr.lines().find(|line| line.contains("--write-id")).expect(stderr);
    line.trim().to_owned()
}

#[test]
fn a_lost_answer_is_4_and_the_printed_command_settles_it() {
    let fake = FakeCluster::single();
    fake.always_on(1, Calls::Writes, Step::Hang);
    let lost = call(&fake, &["--timeout", "600ms", "incr", "n", "5"]);
    assert_eq!(lost.code, Some(4), "{lost:?}");
    let again = again(&lost.stderr);
    fake.always_on(1, Calls::Writes, Step::Answer);
    let mut shell = Command::new("sh");
    shell.args(["-c", &again]);
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    assert_eq!(run(shell, b"").ends(0), "5\n");
    // It was received at least twice and applied once.
    assert!(fake.writes().len() >= 2);
    assert_eq!(&fake.state().store.rows[&b"n"[..]].value[..], b"5");
}

#[test]
fn a_token_file_that_cannot_be_written_is_reported_before_the_write() {
    let fake = FakeCluster::single();
    let put = call(&fake, &["put", "k", "v", "--token-file", "/no/such/place/session"]);
    assert_eq!(put.stderr, "kvctl: /no/such/place/session: No such file or directory\n");
    assert_eq!(put.ends(2), "");
    assert!(fake.writes().is_empty());
}

#[test]
fn an_applied_write_whose_answer_cannot_be_printed_is_4() {
    let fake = FakeCluster::single();
    let called = |words: &[&str], input: &[u8]| {
        let mut command = program();
        command.args(["--endpoints", &fake.addresses[0]]).args(words);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let lost =
        "applied, but the answer could not be printed: standard output: No space left on device";
    let (code, stderr) = called(&["incr", "n"], b"");
    assert!(stderr.starts_with(&format!("kvctl: {lost}\n")), "{stderr}");
    assert_eq!(code, Some(4), "{stderr}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &again(&stderr)]);
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    assert_eq!(run(shell, b"").ends(0), "1\n");

    for (words, input) in [(&["del", "n", "m"][..], &b""[..]), (&["load", "-"], b"k\tv\n")] {
        let (code, stderr) = called(words, input);
        assert_eq!(code, Some(4), "{words:?} {stderr}");
        assert!(stderr.contains(lost), "{words:?} {stderr}");
    }
    // A command that writes nothing keeps its exit code.
    let (code, stderr) = called(&["get", "k"], b"");
    assert_eq!((code, &*stderr), (Some(2), "kvctl: standard output: No space left on device\n"));
}

#[test]
fn each_lost_delete_of_several_can_be_asked_again() {
    let fake = FakeCluster::single();
    for key in ["a", "b"] {
        call(&fake, &["put", key, "v"]).ends(0);
    }
    fake.always_on(1, Calls::Writes, Step::Hang);
    let lost = call(&fake, &["--timeout", "600ms", "del", "a", "b"]);
    assert_eq!(lost.code, Some(4), "{lost:?}");
    assert!(!lost.stderr.contains("expired: Timeout"), "{lost:?}");
    fake.always_on(1, Calls::Writes, Step::Answer);
    let commands: Vec<&str> =
        lost.stderr.lines().filter(|line| line.contains("--write-id")).collect();
    assert_eq!(commands.len(), 2, "{lost:?}");
    for command in commands {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        // The stored answer: the key existed.
        assert_eq!(run(shell, b"").ends(0), "1\n", "{command}");
    }
    fake.always_on(1, Calls::Writes, Step::Hang);
    let lost = call(&fake, &["--timeout", "600ms", "del", "a", "b", "-o", "json"]);
    for line in lost.stderr.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(object["ask_again"].as_str().unwrap().contains("--write-id"), "{line}");
    }
}

#[test]
fn a_load_of_unknown_outcome_says_how_to_load_again() {
    let fake = FakeCluster::single();
    fake.always_on(1, Calls::Writes, Step::Hang);
    let words = ["--timeout", "600ms", "load", "-"];
    let lost = crate::call_with(&fake, &words, b"k\tv\n");
    let command = lost.stderr.lines().last().unwrap().trim().to_owned();
    assert!(lost.stderr.contains("load again with the same input"), "{lost:?}");
    assert_eq!(lost.ends(4), "0 put, 0 unchanged, 0 failed, 1 unknown\n");
    fake.always_on(1, Calls::Writes, Step::Answer);
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]);
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    assert_eq!(run(shell, b"k\tv\n").ends(0), "0 put, 1 unchanged, 0 failed, 0 unknown\n");
}

pub fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < until, "the program does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn interrupt(child: &Child) {
    send(child, Signal::INT);
}

pub fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn ctrl_c_is_130_but_4_when_a_write_is_in_flight() {
    let fake = FakeCluster::single();
    fake.always_on(1, Calls::Reads, Step::Hang);
    fake.always_on(1, Calls::Writes, Step::Hang);
    let start = |words: &[&str]| {
        let mut command = program();
        command.args(["--endpoints", &fake.addresses[0], "--timeout", "20s"]).args(words);
        command.spawn().unwrap()
    };
    let until = |came: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !came() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the request never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut read = start(&["get", "k"]);
    until(&|| !fake.state().reads.is_empty());
    interrupt(&read);
    assert_eq!(wait(&mut read), Some(130));

    let mut write = start(&["put", "k", "v"]);
    until(&|| !fake.writes().is_empty());
    interrupt(&write);
    assert_eq!(wait(&mut write), Some(4));
    let mut stderr = String::new();
    write.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.starts_with("kvctl: interrupted while a write was in flight"), "{stderr}");
    assert!(again(&stderr).contains("put k v"), "{stderr}");
}

#[test]
fn an_interrupted_load_waits_for_the_writes_in_flight_and_prints_its_counts() {
    a_load_ended_by(Signal::INT);
}

#[test]
fn a_load_ended_by_sigterm_prints_its_counts_too() {
    a_load_ended_by(Signal::TERM);
}

fn a_load_ended_by(signal: Signal) {
    let fake = FakeCluster::single();
    let mut command = program();
    // Slow enough that it cannot end by itself during the test.
    command.args(["--endpoints", &fake.addresses[0], "load", "-", "--rate", "20"]);
    command.stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines: String = (0..2_000).map(|number| format!("{number}\tv\n")).collect();
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    let begun = Instant::now();
    while fake.writes().len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was loaded");
        std::thread::sleep(Duration::from_millis(5));
    }
    send(&child, signal);
    assert_eq!(wait(&mut child), Some(130));
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let stored = fake.state().store.rows.len();
    assert_eq!(stdout, format!("{stored} put, 0 unchanged, 0 failed, 0 unknown\n"));
    assert!((3..2_000).contains(&stored), "{stored}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let fake = FakeCluster::single();
    let value = bytes::Bytes::from(vec![b'v'; 1_000]);
    for number in 0..2_000u64 {
        let row = Row { value: value.clone(), revision: 1, create_revision: 1 };
        fake.state().store.rows.insert(format!("k{number:05}").into(), row);
    }
    let mut command = program();
    command.args(["--endpoints", &fake.addresses[0], "scan"]);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.starts_with("k00000\tvvv"));
    drop(lines);
    assert_eq!(wait(&mut child), Some(0));
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
}
