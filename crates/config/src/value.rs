//! Values of settings: addresses, sizes, durations, with their parsers and formatters.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use quorate_raft::NodeId;

/// Stores of the Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStore {
    /// The database that also holds the applied state.
    Sled,
    /// A plain append-only file.
    File,
}

impl FromStr for LogStore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sled" => Ok(Self::Sled),
            "file" => Ok(Self::File),
            _ => Err("expected sled or file".to_owned()),
        }
    }
}

impl fmt::Display for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sled => "sled",
            Self::File => "file",
        })
    }
}

/// An address that others connect to: a name or an IP address, and a port. A name is kept as a
/// name, so that it is resolved again at each connection. It is normalised, to lower case and the
/// shortest form of an IP address, because nodes compare the addresses of their plans as text. A
/// final dot of a name stays, because it keeps search domains from being appended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A DNS name or an IP address, an IPv6 one without brackets.
    pub host: String,
    /// The TCP port, never 0.
    pub port: u16,
}

impl HostPort {
    /// Whether the host is the unspecified address, "every address of this machine", to which other
    /// machines cannot connect.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// The address to listen on that is reached at this one: its port, at its IP address, or at
    /// that of `listen` where it has a name.
    #[must_use]
    pub fn listened(&self, listen: SocketAddr) -> SocketAddr {
        let ip = match self.host.as_str() {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().unwrap_or(listen.ip()),
        };
        SocketAddr::new(ip, self.port)
    }
}

/// The path of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath(pub PathBuf);

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected HOST:PORT, for example node1:7401 or [::1]:7401";
        is_bare(text)?;
        let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
        let port: u16 = port.parse().map_err(|_| EXPECTED)?;
        if port == 0 {
            return Err("nothing can connect to port 0".to_owned());
        }
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| EXPECTED)?.to_string(),
            None if host.parse::<Ipv6Addr>().is_ok() => {
                return Err(format!("{EXPECTED}; an IPv6 address needs brackets"));
            }
            None => host.to_ascii_lowercase(),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || "-._%".contains(c);
        let is_v6 = host.contains(':') && host.parse::<Ipv6Addr>().is_ok();
        if host.is_empty() || !(is_v6 || host.chars().all(legal)) {
            return Err(EXPECTED.to_owned());
        }
        Ok(Self { host, port })
    }
}

/// Rejects an address with more than a host and a port.
fn is_bare(text: &str) -> Result<(), String> {
    no_user_information(text)?;
    if text.contains("://") {
        let reason = "an address has no scheme; expected HOST:PORT, for example node1:7401";
        return Err(reason.to_owned());
    }
    Ok(())
}

/// Rejects user information, the part before an `@`, without repeating it: it may be a password.
fn no_user_information(text: &str) -> Result<(), String> {
    if has_user_information(text) {
        let reason = "an address has no user information; leave out the part before the `@`";
        return Err(reason.to_owned());
    }
    Ok(())
}

/// Whether an invalid value may contain a password and must not be repeated.
pub(super) fn has_user_information(text: &str) -> bool {
    text.contains('@')
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An address to listen on: an IP address, or `localhost`. Other names are rejected, because the
/// address of a name can change, and with it which machines can reach the node. Port 0 means any
/// free port.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    is_bare(text)?;
    if let Some(port) = text.strip_prefix("localhost:")
        && let Ok(port) = port.parse()
    {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        "expected IP:PORT, for example 127.0.0.1:7401 or [::1]:7401 (names are not accepted)"
            .to_owned()
    })
}

/// Parses nodes and their peer addresses: `1=host:port,2=host:port`.
pub(super) fn parse_initial_cluster(text: &str) -> Result<BTreeMap<NodeId, HostPort>, String> {
    // Checked before the text is split: a password with a comma would be split and repeated.
    no_user_information(text)?;
    let mut nodes = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (id, address) =
            part.split_once('=').ok_or_else(|| format!("{part:?}: expected ID=HOST:PORT"))?;
        let id = parse_node_id(id.trim()).map_err(|reason| format!("{part:?}: {reason}"))?;
        let address: HostPort =
            address.trim().parse().map_err(|reason| format!("{part:?}: {reason}"))?;
        if address.is_unspecified() {
            return Err(format!("{part:?}: no other node can connect to {}", address.host));
        }
        if let Some((other, _)) = nodes.iter().find(|(_, known)| **known == address) {
            return Err(format!(
                "nodes {other} and {id} have the same address {address}",
                other = plain(*other),
                id = plain(id)
            ));
        }
        if nodes.insert(id, address).is_some() {
            return Err(format!("node {} is listed twice", plain(id)));
        }
    }
    if nodes.is_empty() { Err("expected at least one ID=HOST:PORT".to_owned()) } else { Ok(nodes) }
}

pub(super) fn format_initial_cluster(nodes: &BTreeMap<NodeId, HostPort>) -> String {
    let parts: Vec<_> =
        nodes.iter().map(|(id, address)| format!("{}={address}", plain(*id))).collect();
    parts.join(",")
}

/// A node id as a number.
pub(super) const fn plain(id: NodeId) -> u64 {
    id.0
}

pub(super) fn parse_node_id(text: &str) -> Result<NodeId, String> {
    match text.parse::<u32>() {
        Ok(id) if id >= 1 => Ok(NodeId(u64::from(id))),
        _ => Err(format!("expected a node id from 1 to {}", u32::MAX)),
    }
}

/// Parses labels: `region=eu,zone=a`.
pub(super) fn parse_locality(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let legal = |s: &str| {
            !s.is_empty()
                && s.len() <= 64
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        };
        match part.split_once('=') {
            Some((label, value)) if legal(label) && legal(value) => {
                if labels.insert(label.to_owned(), value.to_owned()).is_some() {
                    return Err(format!("label {label} is given twice"));
                }
            }
            _ => {
                return Err(format!(
                    "{part:?}: expected LABEL=VALUE, each 1 to 64 of a-z A-Z 0-9 - _ . /"
                ));
            }
        }
    }
    Ok(labels)
}

pub(super) fn format_locality(labels: &BTreeMap<String, String>) -> String {
    let parts: Vec<_> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    parts.join(",")
}

/// A number of bytes, written in binary units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(usize::try_from(parse_bytes(text)?).unwrap_or(usize::MAX)))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_bytes(self.0 as u64))
    }
}

const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Parses a number of bytes: `512MiB`, `2GiB`, `65536`. Units are powers of 1,024; the short forms
/// `512M` and
/// `512MB` mean the same, as in other programs.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 512MiB, 2GiB or 65536";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    let unit = unit.trim();
    let factor = if unit.is_empty() || unit == "B" {
        1
    } else {
        UNITS
            .iter()
            .find(|(name, _)| {
                let (letter, rest) = unit.split_at_checked(1).unwrap_or(("", ""));
                letter.eq_ignore_ascii_case(&name[..1])
                    && ["", "b", "ib"].contains(&rest.to_ascii_lowercase().as_str())
            })
            .map(|(_, factor)| *factor)
            .ok_or(EXPECTED)?
    };
    number.checked_mul(factor).ok_or_else(|| "the size is too large".to_owned())
}

/// Formats the exact size in its largest whole unit: `512MiB`, `1536KiB`, `1000`.
pub(super) fn format_bytes(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// Parses a duration of whole milliseconds: `100ms`, `2s`.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration such as 100ms or 2s";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(EXPECTED.to_owned()),
    }
}

pub(super) fn format_duration(duration: Duration) -> String {
    let whole = |unit: u64| {
        let seconds = duration.as_secs();
        (seconds >= unit && seconds.is_multiple_of(unit) && duration.subsec_nanos() == 0)
            .then(|| seconds / unit)
    };
    match (whole(3600), whole(60)) {
        (Some(hours), _) => format!("{hours}h"),
        (None, Some(minutes)) => format!("{minutes}m"),
        (None, None) => format!("{}ms", duration.as_millis()),
    }
}
