//! Links between nodes that a test can cut.
//!
//! Each node advertises, and is named in `--initial-cluster` by, the address of a proxy of its own,
//! so everything that another node sends to it passes here. Who called is found out by the owner of
//! the calling socket: all nodes run as this test's user.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

/// Which nodes are processes, and which links between them are cut.
#[derive(Debug, Default)]
pub struct Links {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// (node, process id).
    processes: Vec<(u64, u32)>,
    /// (from, to): nothing that `from` sends arrives at `to`.
    cut: BTreeSet<(u64, u64)>,
    /// Streams under way: from, to, both ends.
    streams: Vec<(u64, u64, TcpStream, TcpStream)>,
}

impl Links {
    /// Notes the process of a node.
    pub fn set_process(&self, node: u64, pid: u32) {
        let mut state = self.state.lock();
        state.processes.retain(|(known, _)| *known != node);
        state.processes.push((node, pid));
    }

    /// Cuts one direction: connections under way are reset, new ones are closed at once.
    pub fn cut(&self, from: u64, to: u64) {
        let mut state = self.state.lock();
        state.cut.insert((from, to));
        state.streams.retain(|(a, b, caller, called)| {
            let is_cut = (*a, *b) == (from, to);
            if is_cut {
                // An end that is closed already needs no closing.
                let _ = caller.shutdown(Shutdown::Both);
                let _ = called.shutdown(Shutdown::Both);
            }
            !is_cut
        });
    }

    /// Restores one direction.
    pub fn heal(&self, from: u64, to: u64) {
        self.state.lock().cut.remove(&(from, to));
    }

    fn admit(&self, to: u64, caller: &TcpStream) -> Option<u64> {
        let port = caller.peer_addr().ok()?.port();
        let inode = socket_inode(port)?;
        let state = self.state.lock();
        let from = state.processes.iter().find(|(_, pid)| holds_socket(*pid, inode))?.0;
        (!state.cut.contains(&(from, to))).then_some(from)
    }
}

/// Forwards what comes to `listen` to the peer listener of `node`, as far as its links allow. Ends
/// with the returned guard.
#[must_use]
pub fn spawn(listen: SocketAddr, node: u64, target: SocketAddr, links: Arc<Links>) -> Guard {
    let listener = TcpListener::bind(listen).expect("the leased port is free");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    thread::spawn(move || {
        for caller in listener.incoming() {
            if stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(caller) = caller else { continue };
            let links = links.clone();
            thread::spawn(move || connect(&links, node, target, caller));
        }
    });
    Guard { listen, stop }
}

/// Ends its proxy.
#[derive(Debug)]
pub struct Guard {
    listen: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept; whether it is still there does not matter.
        let _ = TcpStream::connect_timeout(&self.listen, Duration::from_millis(200));
    }
}

fn connect(links: &Links, to: u64, target: SocketAddr, caller: TcpStream) -> Option<()> {
    let from = links.admit(to, &caller)?;
    // A node that is down refuses: closing the caller's end passes that on.
    let called = TcpStream::connect_timeout(&target, Duration::from_secs(1)).ok()?;
    caller.set_nodelay(true).ok()?;
    called.set_nodelay(true).ok()?;
    let (caller_in, called_in) = (caller.try_clone().ok()?, called.try_clone().ok()?);
    let ends = (caller.try_clone().ok()?, called.try_clone().ok()?);
    {
        let mut state = links.state.lock();
        if state.cut.contains(&(from, to)) {
            return None;
        }
        state.streams.push((from, to, ends.0, ends.1));
    }
    thread::spawn(move || pump(caller_in, called));
    pump(called_in, caller);
    Some(())
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either end may be gone already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The inode of the socket that has this local port, from the kernel's table.
fn socket_inode(port: u16) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let inode = fields.nth(7)?;
        (local.ends_with(&wanted) && inode != "0").then(|| inode.parse().ok())?
    })
}

fn holds_socket(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        fs::read_link(descriptor.path()).is_ok_and(|link| link.to_string_lossy() == wanted)
    })
}
