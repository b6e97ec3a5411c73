//! What makes a session id one of this cluster, and names the client that it was opened for.
//!
//! A client holds more than what shards store of its session:
//!
//! | bytes | of the id as clients hold it |
//! |---|---|
//! | 24 | the [`SessionId`] |
//! | 16 | tag of the client: HMAC-SHA256 of `client` and its address, cut to 128 bits |
//! | 16 | HMAC-SHA256 of these 40 bytes, cut to 128 bits |
//!
//! So only the nodes, which share the key, can make ids: a client has no more sessions than it
//! asked for, and in none of them is it another client. The tag says nothing about an address to
//! those who do not have the key.

use std::fmt;
use std::net::IpAddr;

use quorate_proto::limits::{CLIENT_TAG_BYTES, SESSION_ID_BYTES, SESSION_WIRE_BYTES};
use quorate_proto::secret::{ClusterSecret, SESSION_LABEL, mac_128, verify_128};

use crate::session_id::SessionId;

/// Where the MAC begins.
const SEALED_BYTES: usize = SESSION_ID_BYTES + CLIENT_TAG_BYTES;

/// A session id as clients hold it.
pub type WireSessionId = [u8; SESSION_WIRE_BYTES];

/// The tag of a client, by which shards tell clients apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientTag([u8; CLIENT_TAG_BYTES]);

impl ClientTag {
    /// The tag of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; CLIENT_TAG_BYTES]) -> ClientTag {
        ClientTag(bytes)
    }

    /// Reads a tag; `None` if it is not 16 bytes long.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<ClientTag> {
        Some(ClientTag(bytes.try_into().ok()?))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; CLIENT_TAG_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ClientTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTag({})", hex::encode(self.0))
    }
}

/// The key of a cluster's session ids.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// The key that follows from the secret of the cluster.
    #[must_use]
    pub fn of(secret: &ClusterSecret) -> SessionKey {
        SessionKey(secret.derive(SESSION_LABEL))
    }

    /// The key of these bytes, for tests.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> SessionKey {
        SessionKey(bytes)
    }

    /// The tag of a client by its address; `None` = it has no address, as within one process. One
    /// client easily has all addresses of an IPv6 network of 64 bits, so they count as one.
    #[must_use]
    pub fn client(&self, address: Option<IpAddr>) -> ClientTag {
        let tag = |address: &[u8]| ClientTag(mac_128(&self.0, &[b"client", address]));
        match address.map(|address| address.to_canonical()) {
            None => tag(&[]),
            Some(IpAddr::V4(address)) => tag(&address.octets()),
            Some(IpAddr::V6(address)) => tag(&address.octets()[..8]),
        }
    }

    /// The id of a session as the client holds it for which it was opened.
    #[must_use]
    pub fn seal(&self, id: &SessionId, client: &ClientTag) -> WireSessionId {
        let mut wire = [0; SESSION_WIRE_BYTES];
        wire[..SESSION_ID_BYTES].copy_from_slice(id.as_bytes());
        wire[SESSION_ID_BYTES..SEALED_BYTES].copy_from_slice(client.as_bytes());
        let mac = mac_128(&self.0, &[&wire[..SEALED_BYTES]]);
        wire[SEALED_BYTES..].copy_from_slice(&mac);
        wire
    }

    /// Session and client of an id that a node of this cluster has sealed; `None` = it has not.
    #[must_use]
    pub fn open(&self, wire: &[u8]) -> Option<(SessionId, ClientTag)> {
        let (sealed, mac) = wire.split_at_checked(SEALED_BYTES)?;
        if !verify_128(&self.0, &[sealed], mac) {
            return None;
        }
        let (id, client) = sealed.split_at(SESSION_ID_BYTES);
        Some((SessionId::from_slice(id)?, ClientTag::from_slice(client)?))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LogTime;

    fn key() -> SessionKey {
        SessionKey::of(&ClusterSecret::from_bytes([7; 32]))
    }

    fn tag(address: &str) -> ClientTag {
        key().client(Some(address.parse().unwrap()))
    }

    /// Clients hold such ids, and nodes of two versions check them.
    #[test]
    fn the_bytes_of_a_sealed_id_are_fixed() {
        let id = SessionId::from_parts(LogTime(1), 2, 3, 4);
        let wire = key().seal(&id, &tag("10.0.0.1"));
        let expected = [
            "0000000000000001 00000002 00000003 0000000000000004", // the stored id
            "0189c3be74032cf532c82045820adb9b",                    // tag
            "c309194e82ec2da5a5ac3999f90868ac",                    // MAC
        ];
        assert_eq!(hex::encode(wire), expected.concat().replace(' ', ""));
        assert_eq!(key().open(&wire), Some((id, tag("10.0.0.1"))));
        assert_eq!(format!("{:?}", key()), "SessionKey");
    }

    #[test]
    fn nobody_else_makes_or_changes_an_id() {
        let wire = key().seal(&SessionId::from_parts(LogTime(1), 2, 3, 4), &tag("10.0.0.1"));
        for at in 0..wire.len() {
            let mut forged = wire;
            forged[at] ^= 1;
            assert_eq!(key().open(&forged), None, "byte {at}");
        }
        for length in 0..wire.len() {
            assert_eq!(key().open(&wire[..length]), None, "{length} bytes");
        }
        assert_eq!(key().open(&[&wire[..], &[0]].concat()), None);
        let other = SessionKey::of(&ClusterSecret::from_bytes([8; 32]));
        assert_eq!(other.open(&wire), None, "of another cluster");
    }

    #[test]
    fn a_client_is_its_address_or_its_network() {
        assert_ne!(tag("10.0.0.1"), tag("10.0.0.2"));
        assert_eq!(tag("10.0.0.1"), tag("::ffff:10.0.0.1"), "the same on a listener for both");
        assert_eq!(tag("2001:db8::1"), tag("2001:db8::ffff:1"));
        assert_ne!(tag("2001:db8::1"), tag("2001:db8:0:1::1"));
        assert_ne!(key().client(None), tag("0.0.0.0"));
    }
}
