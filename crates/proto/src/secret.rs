//! The secret of a cluster: what its nodes know and strangers do not.
//!
//! No two uses share a key: each takes [`ClusterSecret::derive`] with a label of its own, and the
//! secret itself is written nowhere but into its file.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The label of the key by which nodes prove the secret to each other. The number is the wire
/// version that it belongs to.
pub const PEER_LABEL: &str = "quorate hello v2";

/// The label of the key by which a node that passes a call on proves the secret in that call.
pub const CALL_LABEL: &str = "quorate passed-on call v1";

/// The label of the key by which nodes know the session ids that they gave.
pub const SESSION_LABEL: &str = "quorate session id";

/// Begins the line of the file; the number is the format.
const PREFIX: &str = "quorate-secret-1 ";

/// The secret of a cluster: 32 random bytes, the same on each of its nodes.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; 32]);

impl ClusterSecret {
    /// The secret of these bytes, which the caller has drawn at random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret in the text of its file.
    ///
    /// # Errors
    /// A sentence about what was expected, which repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let digits = line.strip_prefix(PREFIX).filter(|digits| digits.len() == 64);
        let mut bytes = [0; 32];
        match digits.map(|digits| hex::decode_to_slice(digits, &mut bytes)) {
            Some(Ok(())) => Ok(Self(bytes)),
            _ => Err(format!("expected one line, {:?} and 64 hex digits", PREFIX.trim_end())),
        }
    }

    /// The text of its file.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{PREFIX}{}\n", hex::encode(self.0))
    }

    /// The key for one use: HMAC-SHA256 of the label with the secret. It says nothing about the
    /// secret or about the key of another label.
    #[must_use]
    pub fn derive(&self, label: &str) -> [u8; 32] {
        mac(&self.0, &[label.as_bytes()])
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret")
    }
}

/// HMAC-SHA256 of the parts, one after another.
#[must_use]
pub fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    keyed(key, parts).finalize().into_bytes().into()
}

/// Whether `given` is [`mac`] of the parts; takes the same time wherever they differ.
#[must_use]
pub fn verify(key: &[u8; 32], parts: &[&[u8]], given: &[u8]) -> bool {
    keyed(key, parts).verify_slice(given).is_ok()
}

/// [`mac`] cut to its first 128 bits, where bytes are dear.
#[must_use]
pub fn mac_128(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
    let mut cut = [0; 16];
    cut.copy_from_slice(&mac(key, parts)[..16]);
    cut
}

/// Whether `given` is [`mac_128`] of the parts; takes the same time wherever they differ.
#[must_use]
pub fn verify_128(key: &[u8; 32], parts: &[&[u8]], given: &[u8]) -> bool {
    // The library takes any shorter part of the MAC as well.
    given.len() == 16 && keyed(key, parts).verify_truncated_left(given).is_ok()
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    // A key of any length is valid, and `new` takes the length of a block.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!());
    parts.iter().for_each(|part| mac.update(part));
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_one_line_and_is_read_back() {
        let secret = ClusterSecret::from_bytes(std::array::from_fn(|at| at as u8));
        let text = "quorate-secret-1 \
                    000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
        assert_eq!(secret.to_text(), text);
        assert_eq!(ClusterSecret::parse(text), Ok(secret.clone()));
        assert_eq!(ClusterSecret::parse(text.trim_end()), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "ClusterSecret");
    }

    #[test]
    fn bad_content_is_not_repeated() {
        let good = ClusterSecret::from_bytes([7; 32]).to_text();
        let cases = [
            String::new(),
            "hunter2hunter2".to_owned(),
            good.replace("-1 ", "-2 "),
            good.replacen("07", "0", 1),
            good.replacen("07", "0x", 1),
            format!("{good}{good}"),
            format!("{good}\n"),
        ];
        for text in cases {
            let why = ClusterSecret::parse(&text).unwrap_err();
            assert_eq!(why, "expected one line, \"quorate-secret-1\" and 64 hex digits");
        }
    }

    /// The second case of RFC 4231, and a key that must stay as it is: nodes of two versions
    /// compute it.
    #[test]
    fn keys_are_hmac_sha256_of_their_labels() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let parts: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex::encode(mac(&key, &parts)), expected);
        assert!(verify(&key, &parts, &hex::decode(expected).unwrap()));
        assert!(!verify(&key, &parts[..1], &hex::decode(expected).unwrap()));
        assert!(!verify(&key, &parts, &[]));
        let cut = mac_128(&key, &parts);
        assert_eq!(hex::encode(cut), expected[..32]);
        assert!(verify_128(&key, &parts, &cut));
        assert!(!verify_128(&key, &parts[..1], &cut));
        assert!(!verify_128(&key, &parts, &cut[..15]) && !verify_128(&key, &parts, &[]));
        assert!(!verify_128(&key, &parts, &mac(&key, &parts)), "the whole MAC is another one");
        let secret = ClusterSecret::from_bytes([7; 32]);
        assert_eq!(secret.derive(PEER_LABEL), mac(&[7; 32], &[b"quorate hello v2"]));
        assert_eq!(secret.derive(SESSION_LABEL), mac(&[7; 32], &[b"quorate session id"]));
        assert_eq!(secret.derive(CALL_LABEL), mac(&[7; 32], &[b"quorate passed-on call v1"]));
        assert_ne!(secret.derive(PEER_LABEL), secret.derive(SESSION_LABEL));
    }
}
