//! Retries of a write of unknown outcome, with `--write-id`: it stays unknown until it is settled.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use quorate_client::api::Reason;
use quorate_testkit::{Calls, FakeCluster, Step};
use rustix::process::Signal;

use crate::endings::{again, send, wait};
use crate::{Called, call, program, run};

/// Runs a printed command line in a shell.
fn typed(line: &str) -> Called {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).stdout(Stdio::piped()).stderr(Stdio::piped());
    run(shell, b"")
}

const GIVEN: [&str; 2] = ["--write-id", "6162636465666768696a6b6c6d6e6f707172737475767778/3"];

#[test]
fn the_printed_command_stays_4_until_it_is_answered() {
    let fake = FakeCluster::single();
    fake.always_on(1, Calls::Writes, Step::Hang);
    let lost = call(&fake, &["--timeout", "600ms", "incr", "n", "5"]);
    assert_eq!(lost.code, Some(4), "{lost:?}");
    let mut line = again(&lost.stderr);
    fake.always_on(1, Calls::Writes, Step::Answer);
    for reason in
        [Reason::NoLeader, Reason::Overloaded, Reason::SessionExpired, Reason::SessionFromFuture]
    {
        fake.always_on(1, Calls::Writes, Step::Refuse(reason));
        let refused = typed(&line);
        assert_eq!(refused.code, Some(4), "{reason:?}: {refused:?}");
        assert!(refused.stderr.contains("the outcome is unknown"), "{refused:?}");
        // It prints the same command again.
        assert_eq!(again(&refused.stderr), line, "{reason:?}");
        line = again(&refused.stderr);
    }
    fake.always_on(1, Calls::Writes, Step::Answer);
    assert_eq!(typed(&line).ends(0), "5\n");
    assert_eq!(&fake.state().store.rows[&b"n"[..]].value[..], b"5");
}

#[test]
fn the_same_refusal_of_a_first_attempt_is_3_and_not_applied() {
    let fake = FakeCluster::single();
    fake.always_on(1, Calls::Writes, Step::Refuse(Reason::NoLeader));
    let words = ["--timeout", "400ms", "incr", "n", "5", "-o", "json"];
    let outcome = |called: &Called| {
        let object: serde_json::Value = serde_json::from_str(&called.stderr).unwrap();
        (called.code, object["outcome"].clone(), object.get("ask_again").is_some())
    };
    let first = call(&fake, &words);
    assert_eq!(outcome(&first), (Some(3), "not_applied".into(), false), "{first:?}");
    let again = call(&fake, &[&words[..], &GIVEN].concat());
    assert_eq!(outcome(&again), (Some(4), "unknown".into(), true), "{again:?}");
    // Invalid usage now says nothing about the write that was sent before.
    fake.always_on(1, Calls::Writes, Step::Refuse(Reason::SequenceReused));
    let wrong = call(&fake, &[&words[..], &GIVEN].concat());
    assert_eq!(outcome(&wrong), (Some(2), "attempt_not_applied".into(), false), "{wrong:?}");
}

#[test]
fn a_write_asked_again_of_nobody_is_4() {
    let mut command = program();
    command.args(["--timeout", "400ms", "--endpoints", "127.0.0.1:1", "put", "k", "v"]);
    command.args(GIVEN);
    let called = run(command, b"");
    assert_eq!(called.code, Some(4), "{called:?}");
    assert!(again(&called.stderr).contains(GIVEN[1]), "{called:?}");
}

#[test]
fn a_write_asked_again_that_is_interrupted_before_it_is_sent_is_4() {
    // Accepts connections and never answers, so that no request is ever sent.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for (given, code) in [(&GIVEN[..], 4), (&[], 130)] {
        let mut command = program();
        command.args(["--timeout", "20s", "--endpoints", &address, "put", "k", "v"]).args(given);
        let mut child = command.spawn().unwrap();
        let connection = silent.accept().unwrap();
        send(&child, Signal::INT);
        assert_eq!(wait(&mut child), Some(code), "{given:?}");
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(stderr.contains("--write-id"), code == 4, "{stderr}");
        drop(connection);
    }
}

#[test]
fn a_bench_that_ends_while_writes_are_in_flight_is_4() {
    // After the first Ctrl-C it waits for the writes in flight; the second ends it immediately.
    for (timeout, twice) in [("1s", false), ("20s", true)] {
        let fake = FakeCluster::single();
        fake.always_on(1, Calls::Writes, Step::Hang);
        let mut command = program();
        command.args(["--endpoints", &fake.addresses[0], "--timeout", timeout]);
        command.args(["bench", "put", "--clients", "2", "--duration", "60s"]);
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        while fake.writes().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing was written");
            std::thread::sleep(Duration::from_millis(5));
        }
        send(&child, Signal::INT);
        // Two signals in quick succession may be delivered as one.
        while twice && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(15), "the second does not end it");
            std::thread::sleep(Duration::from_millis(50));
            send(&child, Signal::INT);
        }
        assert_eq!(wait(&mut child), Some(4), "{timeout}");
    }
}
