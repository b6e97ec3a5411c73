//! Configuration of a client.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use quorate_proto::limits;
use quorate_proto::v1::{ReadLevel, Reason};

use crate::error::{Error, Result};

/// Configuration of a client: its endpoints and the defaults of its calls.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Endpoints to fetch the cluster map from; the first to answer is used. Never empty.
    pub endpoints: Vec<Endpoint>,
    /// Timeout of a call with all its retries. A node limits it to 30 s.
    pub timeout: Duration,
    /// Timeout of opening a connection.
    pub connect_timeout: Duration,
    /// The keyspace; empty = the default one.
    pub keyspace: String,
    /// The read level of calls that do not set one.
    pub level: ReadLevel,
    /// Whether writes go through sessions, which makes retries safe. Without a session, a write is
    /// sent once.
    pub sessions: bool,
    /// Whether a call may make more than one attempt.
    pub retries: bool,
    /// Whether operations on keys travel together on one stream per node, where the node serves
    /// streams; otherwise each is a call of its own.
    pub pipelined: bool,
}

impl ClientConfig {
    /// The defaults: 5 s for a call, 2 s for a connection, linearizable reads, sessions.
    ///
    /// # Errors
    /// When there is no endpoint, or one is malformed.
    pub fn new<E: AsRef<str>>(endpoints: impl IntoIterator<Item = E>) -> Result<ClientConfig> {
        let endpoints: Vec<E> = endpoints.into_iter().collect();
        // All are checked before one is parsed: a password with a comma is split into two
        // endpoints, and the error would repeat its other half.
        endpoints.iter().try_for_each(|e| no_user_information(e.as_ref()))?;
        let endpoints: Vec<Endpoint> =
            endpoints.iter().map(|e| e.as_ref().parse()).collect::<Result<_>>()?;
        if endpoints.is_empty() {
            let message = "no endpoint is given; expected at least one";
            return Err(Error::invalid(Reason::BadRequest, message));
        }
        Ok(ClientConfig {
            endpoints,
            timeout: limits::TIMEOUT_DEFAULT,
            connect_timeout: Duration::from_secs(2),
            keyspace: String::new(),
            level: ReadLevel::Linearizable,
            sessions: true,
            retries: true,
            pipelined: true,
        })
    }

    /// Sets the timeout of a call with all its retries.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the timeout of opening a connection.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the read level of calls that do not set one.
    #[must_use]
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.level = level;
        self
    }

    /// Sets the keyspace of calls that do not set one.
    #[must_use]
    pub fn keyspace(mut self, keyspace: impl Into<String>) -> Self {
        self.keyspace = keyspace.into();
        self
    }

    /// Sends writes without sessions: each once, and a lost answer leaves its outcome unknown
    /// permanently.
    #[must_use]
    pub fn without_sessions(mut self) -> Self {
        self.sessions = false;
        self
    }

    /// Sends each operation as a call of its own: for a program that makes few, for which it is not
    /// worth while to open a stream.
    #[must_use]
    pub fn unary(mut self) -> Self {
        self.pipelined = false;
        self
    }

    /// Makes one attempt per call, which has all its time: for measurements.
    #[must_use]
    pub fn without_retries(mut self) -> Self {
        self.retries = false;
        self
    }
}

/// The address of a node: `host:port`, `[v6]:port`, either with an optional `http://` in front, in
/// any case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    address: String,
}

impl Endpoint {
    /// The address without a scheme: `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Endpoint> {
        no_user_information(text)?;
        let wrong = |why: &str| {
            let message = format!("the endpoint `{text}` {why}");
            Err(Error::invalid(Reason::BadRequest, message))
        };
        let address = match text.trim().split_once("://") {
            None => text.trim(),
            Some((scheme, address)) if scheme.eq_ignore_ascii_case("http") => address,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return wrong("asks for TLS, which is not offered yet");
            }
            Some(_) => {
                return wrong("has a scheme other than http; expected host:port");
            }
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let Some((host, port)) = address.rsplit_once(':') else {
            return wrong("has no port; expected host:port");
        };
        if !port.parse::<u16>().is_ok_and(|p| p != 0) {
            return wrong("has an invalid port; expected 1 to 65535");
        }
        if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if v6.parse::<Ipv6Addr>().is_err() {
                return wrong("has an invalid IPv6 address between its brackets");
            }
            return Ok(Endpoint { address: address.to_owned() });
        }
        if host.parse::<Ipv6Addr>().is_ok() {
            return wrong("is an IPv6 address without brackets; expected [address]:port");
        }
        let bad = |c: char| c.is_whitespace() || c.is_control() || "/@?#:[]".contains(c);
        if host.is_empty() || host.contains(bad) {
            return wrong("has an invalid host; expected host:port");
        }
        Ok(Endpoint { address: address.to_owned() })
    }
}

/// Rejects user information, the part before an `@`, without repeating it: it may be a password,
/// and messages end up in logs.
fn no_user_information(text: &str) -> Result<()> {
    if !text.contains('@') {
        return Ok(());
    }
    let message = "an endpoint has user information before its `@`, which nodes do not support; \
                   expected host:port";
    Err(Error::invalid(Reason::BadRequest, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed() {
        for (text, address) in [
            ("127.0.0.1:7401", "127.0.0.1:7401"),
            (" node-1.example:80 ", "node-1.example:80"),
            ("http://a:1/", "a:1"),
            ("[::1]:7401", "[::1]:7401"),
            ("http://[fe80::1]:7401", "[fe80::1]:7401"),
            ("HTTP://127.0.0.1:7401", "127.0.0.1:7401"),
            ("Http://a:1/", "a:1"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().address(), address);
        }
    }

    #[test]
    fn invalid_endpoints_are_rejected_with_a_sentence() {
        for (text, part) in [
            ("", "has no port"),
            ("host", "has no port"),
            ("host:", "expected 1 to 65535"),
            ("host:0", "expected 1 to 65535"),
            ("host:70000", "expected 1 to 65535"),
            (":80", "an invalid host"),
            ("::1:80", "expected [address]:port"),
            ("a b:80", "an invalid host"),
            ("a/b:80", "an invalid host"),
            ("https://a:1", "TLS"),
            ("HTTPS://a:1", "TLS"),
            ("grpc://a:1", "has a scheme other than http"),
            ("a:b:80", "an invalid host"),
            ("[a]:80", "an invalid IPv6 address between its brackets"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert!(matches!(error, Error::Invalid(_)));
        }
        let none: [&str; 0] = [];
        assert!(ClientConfig::new(none).is_err());
    }

    #[test]
    fn user_information_is_rejected_without_repeating_it() {
        for texts in [
            &["http://user:secret@127.0.0.1:7401"][..],
            &["HTTPS://user:secret@127.0.0.1:7401"],
            &["user:secret@127.0.0.1:7401"],
            &["secret@a:1"],
            &["a:1", "http://user:sec@secret:80@a:1/"],
            &["http://user:secret@a"],
            // A password with a comma, which a list separated by commas splits.
            &["http://user:secret", "secret@a:1"],
        ] {
            let error = ClientConfig::new(texts).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("has user information before its `@`"), "{texts:?}: {text}");
            assert!(!text.contains("secret"), "{texts:?}: {text}");
        }
    }
}
