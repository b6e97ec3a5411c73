//! The proof that opens every stream: both sides know the secret of the cluster.
//!
//! ```text
//!  caller                                                     called
//!    │  claim: who it is, whom it looks for, a nonce             │
//!    │ ────────────────────────────────────────────────────────▶ │  nothing happens yet
//!    │            challenge: a nonce, the proof of the called    │
//!    │ ◀──────────────────────────────────────────────────────── │
//!    │  proof of the caller                                      │
//!    │ ────────────────────────────────────────────────────────▶ │  the claim counts
//! ```
//!
//! Each proof covers both nonces, the claim and the side that proves. So a stream that was recorded
//! proves nothing to a node that draws another nonce, and what one side has said cannot be sent
//! back to it. Who stands on the path between two nodes can still read and change what follows:
//! against that helps only TLS.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_proto::secret::{self, CALL_LABEL, ClusterSecret, PEER_LABEL};
use tracing::warn;

/// Characters that are shown of what a called node says that has proved nothing.
pub(crate) const STRANGE_WORDS_MAX: usize = 300;
/// Bytes of a nonce.
const NONCE_BYTES: usize = 32;
/// The sentence about a called node that has not proved the secret.
const FOREIGN: &str = "it does not know the secret of this node's cluster: its --secret-file has \
                       another secret, or it does not belong here";
/// Interval between two lines in the log about callers without a proof: anyone who reaches the
/// listener can be one.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// The keys by which a node proves to its peers that it knows the secret of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ProofKey {
    streams: [u8; 32],
    calls: [u8; 32],
}

impl ProofKey {
    /// The keys that follow from the secret of the cluster.
    #[must_use]
    pub fn of(secret: &ClusterSecret) -> Self {
        Self { streams: secret.derive(PEER_LABEL), calls: secret.derive(CALL_LABEL) }
    }

    /// The key of the proofs that open streams.
    pub(crate) fn streams(&self) -> &[u8; 32] {
        &self.streams
    }

    /// The key of the proofs in calls that are passed on.
    pub(crate) fn calls(&self) -> &[u8; 32] {
        &self.calls
    }
}

impl std::fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProofKey")
    }
}

/// A nonce for a claim.
pub(crate) fn nonce() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; NONCE_BYTES]>())
}

/// The side that proves.
#[derive(Clone, Copy)]
enum Side {
    Called,
    Caller,
}

impl Side {
    fn word(self) -> &'static [u8] {
        match self {
            Self::Called => b"called\0",
            Self::Caller => b"caller\0",
        }
    }
}

/// What a stream opens with, as both sides compute their proofs over it.
pub(crate) struct Claim {
    nonce: Bytes,
    bytes: Vec<u8>,
}

impl Claim {
    /// The claim of a Hello.
    pub fn of_hello(hello: &wire::Hello) -> Self {
        let mut claim = Self { nonce: hello.nonce.clone(), bytes: b"link\0".to_vec() };
        claim.put(&hello.cluster_id);
        claim.put_number(hello.from_node);
        claim.put(&hello.from_incarnation);
        claim.put_number(hello.to_node);
        claim.put(&hello.to_incarnation);
        claim.put_number(hello.wire_version_min.into());
        claim.put_number(hello.wire_version_max.into());
        claim.put_number(hello.lane as u64);
        claim.put_number(hello.boot_counter);
        claim.put_number(hello.start_id);
        claim.put_number(hello.log_sequence);
        claim
    }

    /// The claim of a question.
    pub fn of_ask(ask: &wire::AskRequest) -> Self {
        let mut claim = Self { nonce: ask.nonce.clone(), bytes: b"ask\0".to_vec() };
        claim.put_number(ask.from_node);
        claim.put(&ask.from_incarnation);
        claim.put_number(ask.to_node);
        claim.put(ask.cluster_name.as_bytes());
        claim.put_number(ask.plan_hash);
        claim
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    fn put_number(&mut self, number: u64) {
        self.put(&number.to_be_bytes());
    }

    /// What one side proves, where the called one has drawn this nonce.
    fn parts<'a>(&'a self, side: Side, theirs: &'a [u8]) -> [&'a [u8]; 4] {
        [side.word(), &self.nonce, theirs, &self.bytes]
    }

    /// The called side: what it answers, and what it expects then.
    pub fn challenge(self, key: &ProofKey) -> (wire::Challenge, Pending) {
        let mine = nonce();
        let proof = secret::mac(key.streams(), &self.parts(Side::Called, &mine));
        let challenge =
            wire::Challenge { nonce: mine.clone(), proof: Bytes::copy_from_slice(&proof) };
        (challenge, Pending { key: key.clone(), claim: self, nonce: mine })
    }

    /// The calling side: its proof, once the challenge has shown that the called node knows the
    /// secret too.
    ///
    /// # Errors
    /// A sentence, when it has not.
    pub fn answer(
        &self,
        key: &ProofKey,
        challenge: &wire::Challenge,
    ) -> Result<wire::Proof, String> {
        let theirs = &challenge.nonce;
        let proven = theirs.len() == NONCE_BYTES
            && secret::verify(key.streams(), &self.parts(Side::Called, theirs), &challenge.proof);
        if !proven {
            return Err(FOREIGN.to_owned());
        }
        let proof = secret::mac(key.streams(), &self.parts(Side::Caller, theirs));
        Ok(wire::Proof { proof: Bytes::copy_from_slice(&proof) })
    }

    /// Whether the nonce has the right length. Without one the caller knows wire version 1 only.
    pub fn has_nonce(&self) -> bool {
        self.nonce.len() == NONCE_BYTES
    }
}

/// A challenge that was sent.
pub(crate) struct Pending {
    key: ProofKey,
    claim: Claim,
    nonce: Bytes,
}

impl Pending {
    /// Whether the caller has proved that it knows the secret.
    pub fn is_proven(&self, proof: &wire::Proof) -> bool {
        let parts = self.claim.parts(Side::Caller, &self.nonce);
        secret::verify(self.key.streams(), &parts, &proof.proof)
    }
}

/// Callers that did not prove the secret. They are counted, and mentioned in the log now and then;
/// nothing else is kept of them.
#[derive(Default)]
pub(crate) struct Strangers(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    all: u64,
    /// Those that no line of the log has counted yet.
    unlogged: u64,
    logged: Option<Instant>,
}

impl Strangers {
    /// Counts one; the sentence is logged unless there was a line a moment ago.
    pub fn note(&self, sentence: &str) {
        let mut seen = self.0.lock();
        seen.all += 1;
        seen.unlogged += 1;
        if seen.logged.is_some_and(|at| at.elapsed() < WARN_INTERVAL) {
            return;
        }
        let count = std::mem::take(&mut seen.unlogged);
        seen.logged = Some(Instant::now());
        drop(seen);
        warn!(sentence, count, "caller: refused, without proof");
    }

    /// All since the start.
    pub fn count(&self) -> u64 {
        self.0.lock().all
    }
}

/// The sentence about a caller that ended or went wrong before it had proved the secret.
pub(crate) fn unproven(node: u64) -> String {
    format!(
        "a caller that says it is node {node} has not proved that it knows the secret of this \
         cluster: its --secret-file has another secret, or it does not belong here"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> wire::Hello {
        wire::Hello { from_node: 1, to_node: 2, start_id: 7, nonce: nonce(), ..Default::default() }
    }

    fn key(byte: u8) -> ProofKey {
        ProofKey::of(&ClusterSecret::from_bytes([byte; 32]))
    }

    #[test]
    fn who_knows_the_secret_proves_it_on_both_sides() {
        let hello = hello();
        let (challenge, pending) = Claim::of_hello(&hello).challenge(&key(1));
        let proof = Claim::of_hello(&hello).answer(&key(1), &challenge).unwrap();
        assert!(pending.is_proven(&proof));
        assert!(!pending.is_proven(&wire::Proof::default()));
        // The called node's own proof, sent back to it.
        assert!(!pending.is_proven(&wire::Proof { proof: challenge.proof.clone() }));
        // Another secret, on either side.
        assert!(Claim::of_hello(&hello).answer(&key(2), &challenge).is_err());
        let (foreign, _) = Claim::of_hello(&hello).challenge(&key(2));
        assert!(Claim::of_hello(&hello).answer(&key(1), &foreign).is_err());
        // The same stream again: the called node draws another nonce.
        let (_, again) = Claim::of_hello(&hello).challenge(&key(1));
        assert!(!again.is_proven(&proof));
    }

    #[test]
    fn a_proof_is_for_one_claim() {
        let changes: [fn(&mut wire::Hello); 12] = [
            |h| h.nonce = nonce(),
            |h| h.cluster_id = Bytes::from_static(b"1"),
            |h| h.from_node = 3,
            |h| h.from_incarnation = Bytes::from_static(b"1"),
            |h| h.to_node = 3,
            |h| h.to_incarnation = Bytes::from_static(b"1"),
            |h| h.wire_version_min = 9,
            |h| h.wire_version_max = 9,
            |h| h.lane = 2,
            |h| h.boot_counter = 9,
            |h| h.start_id = 9,
            |h| h.log_sequence = 9,
        ];
        let honest = hello();
        for change in changes {
            let mut other = honest.clone();
            change(&mut other);
            let (challenge, pending) = Claim::of_hello(&honest).challenge(&key(1));
            assert!(Claim::of_hello(&other).answer(&key(1), &challenge).is_err(), "{other:?}");
            let claim = Claim::of_hello(&other);
            let parts = claim.parts(Side::Caller, &challenge.nonce);
            let proof = Bytes::copy_from_slice(&secret::mac(key(1).streams(), &parts));
            assert!(!pending.is_proven(&wire::Proof { proof }), "{other:?}");
        }
        // Fields do not run into each other, and a question is not a Hello.
        let ask = |name: &str, incarnation: &'static [u8]| {
            Claim::of_ask(&wire::AskRequest {
                cluster_name: name.to_owned(),
                from_incarnation: Bytes::from_static(incarnation),
                ..Default::default()
            })
            .bytes
        };
        assert_ne!(ask("ab", b""), ask("b", b"a"));
        let empty = Claim::of_hello(&wire::Hello::default()).bytes;
        assert!(!empty.starts_with(b"ask\0"));
    }

    /// Nodes of two versions compute the same.
    #[test]
    fn the_bytes_of_a_proof_stay() {
        let hello = wire::Hello {
            cluster_id: Bytes::from_static(&[1; 16]),
            from_node: 2,
            from_incarnation: Bytes::from_static(&[3; 16]),
            to_node: 4,
            to_incarnation: Bytes::from_static(&[5; 16]),
            wire_version_min: 2,
            wire_version_max: 2,
            lane: 1,
            boot_counter: 6,
            start_id: 7,
            log_sequence: 8,
            nonce: Bytes::from_static(&[9; 32]),
            ..Default::default()
        };
        let claim = Claim::of_hello(&hello);
        let mut expected = b"link\0".to_vec();
        let fields: [&[u8]; 11] = [
            &[1; 16],
            &2_u64.to_be_bytes(),
            &[3; 16],
            &4_u64.to_be_bytes(),
            &[5; 16],
            &2_u64.to_be_bytes(),
            &2_u64.to_be_bytes(),
            &1_u64.to_be_bytes(),
            &6_u64.to_be_bytes(),
            &7_u64.to_be_bytes(),
            &8_u64.to_be_bytes(),
        ];
        for field in fields {
            expected.extend_from_slice(&(field.len() as u64).to_be_bytes());
            expected.extend_from_slice(field);
        }
        assert_eq!(claim.bytes, expected);
        let proof = secret::mac(key(1).streams(), &claim.parts(Side::Caller, &[10; 32]));
        let whole = [&b"caller\0"[..], &[9; 32], &[10; 32], &expected].concat();
        assert_eq!(proof, secret::mac(key(1).streams(), &[&whole]));
    }

    #[test]
    fn strangers_are_counted_and_the_log_is_not_flooded() {
        let strangers = Strangers::default();
        (0..100).for_each(|_| strangers.note("one"));
        assert_eq!((strangers.count(), strangers.0.lock().unlogged), (100, 99));
    }
}
