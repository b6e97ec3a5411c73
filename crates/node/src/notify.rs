//! What the service manager that started this process is notified of, by systemd's protocol
//! `sd_notify`: that the start is over, how the node stands, and that it ends.
//!
//! `READY=1` is sent once, when the start is over, after which `systemctl start` returns. That is
//! when the node takes requests; or when it has begun to wait for the other founders of a new
//! cluster, because machines that are set up one after the other would otherwise wait for each
//! other without end; or when its storage did not open and it stays up to report that. `/readyz`
//! and the metric `quorate_ready` say whether it takes requests. `STATUS=` has the phase, and what
//! the node waits for or failed at.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::NodePhase;
use quorate_service::shared::Lifecycle;
use tracing::warn;

/// The variable with the address of the service manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// How often a change of the phase is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The service manager of this process.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    /// The one that the environment names. `None` without one, and, after a warning, for one that
    /// cannot be used: a node serves without it.
    pub(crate) fn of_environment() -> Option<Self> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        Self::at(name.as_bytes())
            .inspect_err(|error| {
                let name = name.to_string_lossy();
                warn!(%name, %error, "service manager: {VARIABLE} cannot be used");
            })
            .ok()
    }

    /// The one that listens at this path or, after an `@`, abstract name.
    fn at(name: &[u8]) -> io::Result<Self> {
        let address = match name {
            [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => {
                let why = "expected an absolute path, or @ and a name";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up the node.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    /// Notifies it that the node begins to end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=draining");
    }

    /// Notifies it of each change, until the node drains.
    pub(crate) async fn report(self: Arc<Self>, life: Arc<Lifecycle>) {
        let mut reported = Reported::default();
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        loop {
            interval.tick().await;
            let phase = life.phase();
            if phase == NodePhase::Draining {
                return;
            }
            if let Some(news) = reported.news(phase, &life.detail()) {
                self.send(&news);
            }
        }
    }

    fn send(&self, text: &str) {
        if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.address) {
            warn!(%error, "service manager: not notified");
        }
    }
}

/// What was reported last.
#[derive(Debug, Default)]
struct Reported {
    is_over: bool,
    status: String,
}

impl Reported {
    /// The message for the node as it is now; `None` if it is as reported.
    fn news(&mut self, phase: NodePhase, detail: &str) -> Option<String> {
        let is_over = match phase {
            NodePhase::Ready | NodePhase::StorageFailed => true,
            // It has a detail from the first second of waiting on.
            NodePhase::Forming => !detail.is_empty(),
            _ => false,
        };
        let name = phase.as_str_name().trim_start_matches("NODE_PHASE_").to_lowercase();
        let mut status = name.replace('_', " ");
        if !detail.is_empty() {
            // A line ends an assignment.
            status.push_str(": ");
            status.push_str(&detail.replace('\n', " "));
        }
        let begins = is_over && !self.is_over;
        if !begins && status == self.status {
            return None;
        }
        self.is_over |= is_over;
        self.status.clone_from(&status);
        let ready = if begins { "READY=1\n" } else { "" };
        Some(format!("{ready}STATUS={status}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_reported_once_and_the_end_of_the_start_once() {
        let mut reported = Reported::default();
        let mut news = |phase, detail| reported.news(phase, detail);
        assert_eq!(news(NodePhase::Forming, "").unwrap(), "STATUS=forming");
        assert_eq!(news(NodePhase::Forming, ""), None);
        let starting = news(NodePhase::Starting, "opening\nthe storage").unwrap();
        assert_eq!(starting, "STATUS=starting: opening the storage");
        assert_eq!(news(NodePhase::Ready, "").unwrap(), "READY=1\nSTATUS=ready");
        assert_eq!(news(NodePhase::Ready, ""), None);
    }

    #[test]
    fn a_start_that_waits_for_founders_or_failed_is_over() {
        let waiting = Reported::default().news(NodePhase::Forming, "waiting for node 2");
        assert_eq!(waiting.unwrap(), "READY=1\nSTATUS=forming: waiting for node 2");
        let failed = Reported::default().news(NodePhase::StorageFailed, "no");
        assert_eq!(failed.unwrap(), "READY=1\nSTATUS=storage failed: no");
        let starting = Reported::default().news(NodePhase::Starting, "no map");
        assert_eq!(starting.unwrap(), "STATUS=starting: no map");
    }

    #[test]
    fn an_abstract_name_is_reached_and_others_are_refused() {
        let name = format!("quorate-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Manager::at(format!("@{name}").as_bytes()).unwrap().stopping();
        let mut text = [0; 64];
        let length = socket.recv(&mut text).unwrap();
        assert_eq!(&text[..length], b"STOPPING=1\nSTATUS=draining");
        let refused = Manager::at(b"vsock:2:1").unwrap_err();
        assert_eq!(refused.to_string(), "expected an absolute path, or @ and a name");
    }
}
