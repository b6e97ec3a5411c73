//! Content hash of a write, which detects a session sequence reused with other content.
//!
//! It is computed over a canonical form, never over received bytes: two encoders may encode one
//! message differently, and a retry may be sent by another client. The form, with all numbers
//! little-endian and a *string* being its length as u32 and its bytes:
//!
//! ```text
//! u8 the form's version; u32 number of operations; then for each operation:
//!   u32 keyspace id; string key
//!   u8 condition: 0 none · 1 absent (revision 0 too) · 2 revision, u64 · 3 value, string
//!   u8 return_previous: 0 or 1
//!   u8 kind: 0 none · 1 put, string · 2 delete · 3 increment, i64 · 4 check · 5 get
//! in version 3 then: the tag of the principal, 16 bytes
//! ```
//!
//! Version 1 is hashed with xxh3_64, which finds mistakes; but who chooses the writes easily makes
//! two of one hash, and the second would get the answer of the first. Versions 2 and 3 are hashed
//! with SHA-256.
//!
//! The principal is the last part of the form, only where the write has one, and a write without
//! one keeps version 2: what was stored before there were principals is compared as before.
//! Another principal that repeats the (session, sequence) of a write gets SEQUENCE_REUSED so, and
//! never the stored answer. A row of version 1 is of a write without a principal, and never of a
//! write that has one.

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use crate::limits::PRINCIPAL_TAG_BYTES;
use crate::raft::v1::CommandOperation;
use crate::raft::v1::command_operation::Kind;
use crate::v1::condition::Expect;

/// The length of a [`content_digest`] in bytes.
pub const CONTENT_DIGEST_BYTES: usize = 16;

/// xxh3_64, seed 0, of version 1 of the canonical form of a write's operations.
#[must_use]
pub fn content_hash(operations: &[CommandOperation]) -> u64 {
    Form(Xxh3::new()).of(1, operations).digest()
}

/// SHA-256 of the canonical form of a write's operations, cut to 128 bits: to find two writes of
/// one digest takes 2^64 attempts. The form is of version 2, or of version 3 with a principal.
#[must_use]
pub fn content_digest(
    operations: &[CommandOperation],
    principal: Option<&[u8; PRINCIPAL_TAG_BYTES]>,
) -> [u8; CONTENT_DIGEST_BYTES] {
    let mut form = Form(Sha256::new()).of(if principal.is_some() { 3 } else { 2 }, operations);
    if let Some(principal) = principal {
        Digest::update(&mut form, principal);
    }
    let whole = form.finalize();
    let mut cut = [0; CONTENT_DIGEST_BYTES];
    cut.copy_from_slice(&whole[..CONTENT_DIGEST_BYTES]);
    cut
}

/// What takes the bytes of the canonical form.
trait Hasher {
    fn update(&mut self, bytes: &[u8]);
}

impl Hasher for Xxh3 {
    fn update(&mut self, bytes: &[u8]) {
        Xxh3::update(self, bytes);
    }
}

impl Hasher for Sha256 {
    fn update(&mut self, bytes: &[u8]) {
        Digest::update(self, bytes);
    }
}

/// A hasher that is fed the canonical form.
struct Form<H>(H);

impl<H: Hasher> Form<H> {
    /// The hasher after the whole form of this version.
    fn of(mut self, version: u8, operations: &[CommandOperation]) -> H {
        self.byte(version);
        self.length(operations.len());
        for operation in operations {
            self.operation(operation);
        }
        self.0
    }

    fn operation(&mut self, operation: &CommandOperation) {
        self.0.update(&operation.keyspace.to_le_bytes());
        self.string(&operation.key);
        match operation.condition.as_ref().map(|c| &c.expect) {
            // An empty condition is rejected earlier; it is hashed as none.
            None | Some(None) => self.byte(0),
            Some(Some(Expect::Absent(_) | Expect::Revision(0))) => self.byte(1),
            Some(Some(Expect::Revision(revision))) => {
                self.byte(2);
                self.0.update(&revision.to_le_bytes());
            }
            Some(Some(Expect::Value(value))) => {
                self.byte(3);
                self.string(value);
            }
        }
        self.byte(operation.return_previous.into());
        match &operation.kind {
            None => self.byte(0),
            Some(Kind::Put(value)) => {
                self.byte(1);
                self.string(value);
            }
            Some(Kind::Delete(_)) => self.byte(2),
            Some(Kind::Increment(delta)) => {
                self.byte(3);
                self.0.update(&delta.to_le_bytes());
            }
            Some(Kind::Check(_)) => self.byte(4),
            Some(Kind::Get(_)) => self.byte(5),
        }
    }

    fn byte(&mut self, byte: u8) {
        self.0.update(&[byte]);
    }

    /// A length or count. Requests are at most 2 MiB, so every length fits into u32.
    fn length(&mut self, length: usize) {
        self.0.update(&(length as u32).to_le_bytes());
    }

    fn string(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::raft::v1::{CheckKey, DeleteKey, GetKey};
    use crate::v1::Condition;

    fn operation(key: &'static str, kind: Kind) -> CommandOperation {
        CommandOperation {
            key: Bytes::from_static(key.as_bytes()),
            kind: Some(kind),
            ..CommandOperation::default()
        }
    }

    fn under(expect: Expect) -> CommandOperation {
        CommandOperation {
            condition: Some(Condition { expect: Some(expect) }),
            ..operation("k", Kind::Delete(DeleteKey {}))
        }
    }

    #[test]
    fn the_hash_is_taken_over_the_documented_form() {
        let put = CommandOperation {
            keyspace: 2,
            return_previous: true,
            ..operation("key", Kind::Put(Bytes::from_static(b"v")))
        };
        let revision = under(Expect::Revision(9));
        let number = operation("n", Kind::Increment(-2));
        let form = b"\x03\0\0\0\
            \x02\0\0\0\x03\0\0\0key\x00\x01\x01\x01\0\0\0v\
            \0\0\0\0\x01\0\0\0k\x02\x09\0\0\0\0\0\0\0\x00\x02\
            \0\0\0\0\x01\0\0\0n\x00\x00\x03\xfe\xff\xff\xff\xff\xff\xff\xff";
        let operations = [put, revision, number];
        let with_version = |version: u8| [&[version], &form[..]].concat();
        assert_eq!(content_hash(&operations), xxh3_64(&with_version(1)));
        let digest = Sha256::digest(with_version(2));
        assert_eq!(content_digest(&operations, None), digest[..16]);
        // Rows keep it: what one version writes another one compares.
        let hex = "db2fbe1b69c0e53dce183a2aba807e44";
        assert_eq!(hex::encode(content_digest(&operations, None)), hex);

        let principal = *b"a principal's ID";
        let with_principal = [&with_version(3)[..], &principal].concat();
        let digest = content_digest(&operations, Some(&principal));
        assert_eq!(digest, Sha256::digest(with_principal)[..16]);
        assert_eq!(hex::encode(digest), "6bb0fa0e1452a362bd2c649a62b4afcf");
    }

    /// Otherwise one principal would get the answer that is stored for another.
    #[test]
    fn writes_of_two_principals_or_of_none_differ() {
        let operations = [operation("k", Kind::Delete(DeleteKey {}))];
        let digests = [None, Some([0; 16]), Some([1; 16])]
            .map(|principal| content_digest(&operations, principal.as_ref()));
        assert!(digests[0] != digests[1] && digests[0] != digests[2] && digests[1] != digests[2]);
    }

    #[test]
    fn every_part_of_a_write_changes_the_hash() {
        let value = |v: &'static str| Kind::Put(Bytes::from_static(v.as_bytes()));
        let mut all = vec![
            vec![],
            vec![operation("k", value("v"))],
            vec![operation("k", value("w"))],
            vec![operation("kv", value(""))],
            vec![operation("k", Kind::Delete(DeleteKey {}))],
            vec![operation("k", Kind::Check(CheckKey {}))],
            vec![operation("k", Kind::Get(GetKey {}))],
            vec![operation("k", Kind::Increment(0))],
            vec![operation("k", Kind::Increment(1))],
            vec![under(Expect::Absent(true))],
            vec![under(Expect::Revision(1))],
            vec![under(Expect::Value(Bytes::new()))],
            vec![under(Expect::Value(Bytes::from_static(b"x")))],
            vec![operation("k", value("v")), operation("l", value("v"))],
            vec![operation("l", value("v")), operation("k", value("v"))],
        ];
        let mut other_keyspace = operation("k", value("v"));
        other_keyspace.keyspace = 1;
        let mut asked = operation("k", value("v"));
        asked.return_previous = true;
        all.extend([vec![other_keyspace], vec![asked]]);
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(content_hash(a), content_hash(b), "{a:?} and {b:?}");
                assert_ne!(content_digest(a, None), content_digest(b, None), "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn absent_and_revision_0_have_the_same_hash() {
        let [absent, zero] = [Expect::Absent(true), Expect::Revision(0)].map(|e| [under(e)]);
        assert_eq!(content_hash(&absent), content_hash(&zero));
        assert_eq!(content_digest(&absent, None), content_digest(&zero, None));
    }
}
