//! The proof in a call that one node passes on to another: the caller knows the secret of the
//! cluster.
//!
//! Such a call is one request on a connection that reconnects by itself, so that it has no room for
//! a challenge. Its proof is a MAC over the sending node, the called node and the start id that the
//! called process has drawn. The caller knows that id from streams on which both sides have proved
//! the secret. It is the same for every call between two processes: it is computed once, and
//! compared after that.
//!
//! **It holds against** everyone who can reach the listener and does not know the secret: nothing
//! that such a caller learns elsewhere makes a proof. A proof for one node is of no use at another,
//! nor at the next process of the same node: recorded traffic is worthless when the process that it
//! was sent to has ended.
//!
//! **It does not hold against** a reader of the traffic between two nodes: the proof is in it, and
//! can be sent again from anywhere until the called process ends. Nor does it cover the content of
//! the call, nor show the caller who answers: any process at the address of a node gets the call.
//! Against all of that only TLS helps.

use quorate_proto::secret;
use quorate_raft::NodeId;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use super::memory::StartId;
use super::proof::{ProofKey, unproven};

/// The header with the proof: the sending node, the start id of the called process in hexadecimal,
/// and the MAC in hexadecimal, with spaces between them.
pub const CALL_PROOF: &str = "quorate-peer-proof";

/// Why a call without a proof is refused.
const MISSING: &str = "this listener takes calls of nodes alone, and this one does not prove the \
                       cluster's secret (--secret-file); clients use the address of --listen";

/// The value of the header.
pub(super) type CallProof = MetadataValue<Ascii>;

/// The proof of a call from one node to a process of another. It always fits into a header.
pub(super) fn prove(key: &ProofKey, from: NodeId, to: NodeId, start: StartId) -> Option<CallProof> {
    let mac = secret::mac(key.calls(), &parts(&numbers(from.0, to, start)));
    let (from, start, mac) = (from.0, start.0, hex::encode(mac));
    format!("{from} {start:016x} {mac}").parse().ok()
}

/// Checks the proof of a call to a process of a node.
///
/// # Errors
/// A sentence about what is wrong with it.
pub(super) fn check(
    key: &ProofKey,
    to: NodeId,
    start: StartId,
    metadata: &MetadataMap,
) -> Result<(), String> {
    let given = metadata.get(CALL_PROOF).ok_or(MISSING)?;
    let given = given.to_str().ok().and_then(parse);
    let (from, for_start, mac) =
        given.ok_or("the proof of the cluster's secret is not readable")?;
    if for_start != start {
        return Err(format!(
            "node {from} passes a call on to a process of node {} that has ended",
            to.0
        ));
    }
    match secret::verify(key.calls(), &parts(&numbers(from, to, start)), &mac) {
        true => Ok(()),
        false => Err(unproven(from)),
    }
}

fn parse(text: &str) -> Option<(u64, StartId, [u8; 32])> {
    let mut words = text.split(' ');
    let (from, start, digits) = (words.next()?, words.next()?, words.next()?);
    let mut mac = [0; 32];
    hex::decode_to_slice(digits, &mut mac).ok()?;
    let start = StartId(u64::from_str_radix(start, 16).ok()?);
    words.next().is_none().then_some((from.parse().ok()?, start, mac))
}

fn numbers(from: u64, to: NodeId, start: StartId) -> [[u8; 8]; 3] {
    [from, to.0, start.0].map(u64::to_be_bytes)
}

/// Each has its fixed length, so that they do not run into each other.
fn parts(numbers: &[[u8; 8]; 3]) -> [&[u8]; 3] {
    numbers.each_ref().map(|number| &number[..])
}

#[cfg(test)]
mod tests {
    use quorate_proto::secret::ClusterSecret;

    use super::*;

    fn key(byte: u8) -> ProofKey {
        ProofKey::of(&ClusterSecret::from_bytes([byte; 32]))
    }

    fn checked(text: &str) -> Result<(), String> {
        let mut metadata = MetadataMap::new();
        metadata.insert(CALL_PROOF, text.parse().unwrap());
        check(&key(1), NodeId(2), StartId(7), &metadata)
    }

    fn proof(secret: u8, from: u64, to: u64, start: u64) -> String {
        let proof = prove(&key(secret), NodeId(from), NodeId(to), StartId(start)).unwrap();
        proof.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_proof_is_for_one_pair_of_nodes_and_one_process() {
        let good = proof(1, 1, 2, 7);
        assert_eq!(checked(&good), Ok(()));
        let lacking = |text: &str| checked(text).unwrap_err().contains("has not proved");
        assert!(lacking(&proof(2, 1, 2, 7)), "another secret");
        assert!(lacking(&proof(1, 1, 3, 7)), "for another node");
        assert!(lacking(&good.replacen('1', "3", 1)), "in the name of another node");
        let old = proof(1, 1, 2, 8);
        assert!(checked(&old).unwrap_err().contains("process of node 2 that has ended"));
        // It is of the old process, whatever it says.
        assert!(lacking(&old.replacen("0008", "0007", 1)));
        let none = check(&key(1), NodeId(2), StartId(7), &MetadataMap::new()).unwrap_err();
        assert!(none.contains("does not prove") && none.contains("--secret-file"), "{none}");
        let cut = &good[..good.len() - 2];
        for bad in ["", "x", "1 7", cut, &format!("{good} 0"), &good.replace(' ', "-")] {
            assert!(checked(bad).unwrap_err().contains("not readable"), "{bad:?}");
        }
        // The key of streams proves nothing here.
        assert_ne!(key(1).calls(), key(1).streams());
    }

    /// Nodes of two versions compute the same.
    #[test]
    fn the_bytes_of_a_proof_stay() {
        let key = ClusterSecret::from_bytes([1; 32]).derive("quorate passed-on call v1");
        let bytes = [1_u64, 2, 7].map(u64::to_be_bytes).concat();
        let mac = hex::encode(secret::mac(&key, &[&bytes]));
        assert_eq!(proof(1, 1, 2, 7), format!("1 0000000000000007 {mac}"));
    }
}
