//! Ports for servers under test, each leased by a lock file, so that tests run side by side.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

/// Below the ephemeral range of Linux, from which the kernel gives ports to clients: a port that a
/// stopped node has freed cannot be taken by a passing connection before the node comes back.
const RANGE: std::ops::Range<u16> = 21_000..31_000;

/// A port that is this test's until it is dropped.
#[derive(Clone, Debug)]
pub struct Port {
    number: u16,
    _lock: Arc<File>,
}

impl Port {
    /// The number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

/// Leases `count` ports.
///
/// # Panics
/// If there are not as many in the range.
#[must_use]
pub fn lease(count: usize) -> Vec<Port> {
    // Processes begin at different places, so that they seldom look at the same file.
    let length = usize::from(RANGE.end - RANGE.start);
    let begin = process::id() as usize * 61 % length;
    let numbers = (0..length).map(|at| RANGE.start + ((begin + at) % length) as u16);
    let ports: Vec<Port> = numbers.filter_map(try_lease).take(count).collect();
    assert_eq!(ports.len(), count, "no {count} ports are free in {RANGE:?}");
    ports
}

/// Leases the ports at these distances above a common base, which is the first of the result if 0
/// is the first distance.
///
/// # Panics
/// If the range has no such base.
#[must_use]
pub fn lease_at(distances: &[u16]) -> Vec<Port> {
    let reach = distances.iter().max().copied().unwrap_or(0);
    let length = usize::from(RANGE.end - RANGE.start - reach);
    let begin = process::id() as usize * 61 % length;
    let bases = (0..length).map(|at| RANGE.start + ((begin + at) % length) as u16);
    let mut leased = bases.filter_map(|base| {
        distances.iter().map(|distance| try_lease(base + distance)).collect::<Option<Vec<Port>>>()
    });
    leased.next().unwrap_or_else(|| panic!("no ports are free at {distances:?} in {RANGE:?}"))
}

fn try_lease(number: u16) -> Option<Port> {
    let directory: PathBuf = std::env::temp_dir().join("quorate-test-ports");
    std::fs::create_dir_all(&directory).expect("the directory of the leases is made");
    let path = directory.join(number.to_string());
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Something else on this machine may listen there. It is asked, because a socket that is bound
    // here may live on for a moment in a process that another thread is starting.
    let is_free = TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_err();
    is_free.then(|| Port { number, _lock: Arc::new(lock) })
}
