//! What a test needs beyond a plain user, named in one place.
//!
//! Where a need is absent the test says so and ends, and one line per need stands at the end of the
//! run: `tests/tidy.rs`, whose suite is the last, prints it. `QUORATE_SKIPPED` names a file that
//! collects the lines of the tests; `.ci/run` prints that. With `QUORATE_REQUIRE=all` an absent
//! need is a failure, but for those in [`NOT_IN_CI`]. `tests/README.md` lists each test with a
//! need; `tests/tidy.rs` compares.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::disks::SmallDisk;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A container engine that this user may use, and docker-compose.
    Docker,
    /// Debian's package `unicode-data`: the real input of the load tests.
    UnicodeData,
    /// Python 3 with grpcio, grpcio-tools, grpcio-status and grpcio-reflection.
    PythonGrpc,
    /// Python 3 with grpcio, grpcio-tools and h2.
    PythonH2,
    /// grpcurl.
    Grpcurl,
    /// setsid, of util-linux: gives a program a controlling terminal.
    Setsid,
    /// Root that may mount, a loop device, and mkfs.ext4: a small file system of the test's own.
    LoopMount,
    /// Root that may make a network and mounts of its own, with ip.
    Namespaces,
    /// etcd's server, to be measured beside ours: Debian's package `etcd-server`.
    Etcd,
    /// systemd-analyze, which needs no running systemd: Debian's package `systemd`.
    Systemd,
    /// promtool, of Debian's package `prometheus`.
    Promtool,
}

/// What CI may lack. grpcurl is packaged neither by Debian nor by a language's registry, and what
/// its line in the README shows, that the server describes its own API, is tested from Python too.
pub const NOT_IN_CI: &[Need] = &[Need::Grpcurl];

/// Where `UnicodeData.txt` lies.
pub const UNICODE_DATA: &str = "/usr/share/unicode/UnicodeData.txt";

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker and docker-compose",
            Self::UnicodeData => "UnicodeData.txt (Debian's package unicode-data)",
            Self::PythonGrpc => {
                "Python 3 with grpcio, grpcio-tools, grpcio-status and grpcio-reflection"
            }
            Self::PythonH2 => "Python 3 with grpcio, grpcio-tools and h2",
            Self::Grpcurl => "grpcurl",
            Self::Setsid => "setsid (util-linux)",
            Self::LoopMount => "root that may mount ext4 on a loop device (e2fsprogs, util-linux)",
            Self::Namespaces => {
                "root that may make a network and mounts of its own (util-linux, iproute2)"
            }
            Self::Etcd => "etcd (Debian's package etcd-server)",
            Self::Systemd => "systemd-analyze (Debian's package systemd)",
            Self::Promtool => "promtool (Debian's package prometheus)",
        })
    }
}

impl Need {
    /// All of them.
    pub const ALL: [Need; 11] = [
        Need::Docker,
        Need::UnicodeData,
        Need::PythonGrpc,
        Need::PythonH2,
        Need::Grpcurl,
        Need::Setsid,
        Need::LoopMount,
        Need::Namespaces,
        Need::Etcd,
        Need::Systemd,
        Need::Promtool,
    ];

    /// Whether this machine has it.
    #[must_use]
    pub fn is_met(self) -> bool {
        match self {
            Self::Docker => {
                succeeds("docker", &["version"]) && succeeds("docker-compose", &["version"])
            }
            Self::UnicodeData => std::path::Path::new(UNICODE_DATA).is_file(),
            Self::PythonGrpc => {
                let modules = "import grpc, grpc_tools, grpc_status, grpc_reflection";
                succeeds("python3", &["-c", modules])
            }
            Self::PythonH2 => succeeds("python3", &["-c", "import grpc, grpc_tools, h2"]),
            Self::Grpcurl => succeeds("grpcurl", &["-version"]),
            Self::Setsid => succeeds("setsid", &["--version"]),
            // What is asked for is tried, with little: who may do it is not to be read anywhere.
            Self::LoopMount => SmallDisk::try_new(4 << 20).is_ok(),
            Self::Namespaces => {
                let tried = "ip link set lo up && mount --bind /etc/resolv.conf /etc/resolv.conf";
                succeeds("unshare", &["--net", "--mount", "sh", "-c", tried])
            }
            Self::Etcd => succeeds("etcd", &["--version"]),
            Self::Systemd => succeeds("systemd-analyze", &["--version"]),
            Self::Promtool => succeeds("promtool", &["--version"]),
        }
    }
}

/// True if the need is met. Otherwise the test must return: the absence is noted, or, with
/// `QUORATE_REQUIRE=all`, fails it here. `test` is the name of the calling test.
///
/// # Panics
/// If the need is required and absent.
#[must_use]
pub fn met(test: &str, need: Need) -> bool {
    if need.is_met() {
        return true;
    }
    let required = std::env::var("QUORATE_REQUIRE").is_ok_and(|require| require == "all")
        && !NOT_IN_CI.contains(&need);
    assert!(!required, "{test} needs {need}, and QUORATE_REQUIRE=all");
    let line = format!("skipped: {test}: needs {need}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("QUORATE_SKIPPED") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the note is written");
    }
    false
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
