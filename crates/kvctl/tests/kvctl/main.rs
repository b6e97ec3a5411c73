//! End-to-end tests of the `kvctl` program against scripted nodes: its output and exit codes.

// The lint exempts only functions marked as tests, not their helpers.
#![allow(clippy::unwrap_used)]

mod asked_again;
mod batch;
mod bulk;
mod cluster;
mod endings;
mod help;
mod keys;

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};

use quorate_testkit::FakeCluster;

/// Output and exit code of one call.
#[derive(Debug)]
struct Called {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Called {
    fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// Standard output of a call, which must have ended with this code.
    #[track_caller]
    fn ends(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.text()
    }
}

/// The program, without the environment variables that it would read.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    for name in ["KVCTL_ENDPOINTS", "KVCTL_LOG", "COLUMNS"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn call(fake: &FakeCluster, words: &[&str]) -> Called {
    call_with(fake, words, b"")
}

fn call_with(fake: &FakeCluster, words: &[impl AsRef<OsStr>], input: &[u8]) -> Called {
    let mut command = program();
    command.arg("--endpoints").arg(&fake.addresses[0]).args(words);
    run(command, input)
}

fn run(mut command: Command, input: &[u8]) -> Called {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // The program may end without reading its input; the test decides whether that is an error.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Called {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
