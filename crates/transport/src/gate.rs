//! The gate of the incoming side: who says Hello proves the secret of the cluster, and is then
//! admitted or refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_proto::raft::v1 as wire;
use quorate_raft::NodeId;
use tonic::Request;
use tonic::metadata::MetadataMap;
use tracing::warn;

use super::admission::Connection;
use super::peer::Peer;
use super::presence::Refused;
use super::proof::{Claim, Pending, ProofKey, Strangers, unproven};
use super::{PeerHello, Shared, passed};

/// What a listener does for the connection of a stream whose caller has proved the secret: it gives
/// it a place among those of nodes. In the extensions of the request; without it nothing is done.
#[derive(Clone, Default)]
pub struct Entrance(Option<Arc<dyn Fn() -> Result<(), String> + Send + Sync>>);

impl Entrance {
    /// `enter` gets the place, or says why there is none. It is called for each stream.
    pub fn new(enter: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(enter)))
    }

    /// The one that came with a request.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Gets the place.
    ///
    /// # Errors
    /// Why there is none, in a sentence.
    pub fn enter(&self) -> Result<(), String> {
        self.0.as_ref().map_or(Ok(()), |enter| enter())
    }
}

/// Refused node ids whose sentences are remembered, so that each is logged once per change.
const REFUSALS_MAX: usize = 64;

/// The gate of a node.
pub(super) struct Gate {
    key: ProofKey,
    /// The last sentences to nodes that have proved the secret.
    refusals: Mutex<BTreeMap<u64, String>>,
    strangers: Strangers,
}

impl Gate {
    pub fn new(key: ProofKey) -> Self {
        Self { key, refusals: Mutex::default(), strangers: Strangers::default() }
    }

    /// Callers since the start that were refused because they did not prove the secret.
    pub fn unproven(&self) -> u64 {
        self.strangers.count()
    }

    /// Counts a caller that has not proved the secret; why is for the log.
    pub fn stranger(&self, sentence: &str) {
        self.strangers.note(sentence);
    }

    /// What the called side proves with.
    pub fn key(&self) -> &ProofKey {
        &self.key
    }

    /// Whether a call that this process is to take from another node has proved the secret.
    ///
    /// # Errors
    /// A sentence, when it has not.
    pub fn check_call(&self, shared: &Shared, metadata: &MetadataMap) -> Result<(), String> {
        let checked = passed::check(&self.key, shared.local.node, shared.start, metadata);
        checked.inspect_err(|sentence| self.strangers.note(sentence))
    }

    /// The challenge to a Hello, which has no effect yet.
    ///
    /// # Errors
    /// A sentence, when its sender does not know this way of proving.
    pub fn challenge(
        &self,
        shared: &Shared,
        hello: &wire::Hello,
    ) -> Result<(wire::Challenge, Pending), String> {
        let claim = Claim::of_hello(hello);
        let checked = shared.check_versions(hello).and_then(|()| match claim.has_nonce() {
            true => Ok(()),
            false => Err(format!("the Hello of node {} has no nonce", hello.from_node)),
        });
        match checked {
            Ok(()) => Ok(claim.challenge(&self.key)),
            Err(sentence) => {
                self.strangers.note(&sentence);
                Err(sentence)
            }
        }
    }

    /// Whether the caller, which says that it is this node, has proved the secret.
    ///
    /// # Errors
    /// A sentence, when it has not.
    pub fn prove(
        &self,
        node: u64,
        pending: &Pending,
        proof: Option<wire::Proof>,
    ) -> Result<(), String> {
        if proof.is_some_and(|proof| pending.is_proven(&proof)) {
            return Ok(());
        }
        let sentence = unproven(node);
        self.strangers.note(&sentence);
        Err(sentence)
    }

    /// The peer that says this, and has proved that it knows the secret; or why it is refused.
    pub async fn admit(
        &self,
        shared: &Shared,
        hello: &wire::Hello,
    ) -> Result<(Arc<Peer>, PeerHello, Connection), Refused> {
        let admitted = Self::check(shared, hello).await;
        let mut refusals = self.refusals.lock();
        match &admitted {
            Ok(_) => drop(refusals.remove(&hello.from_node)),
            // It comes again in a moment, and then there is something to say.
            Err(refused) if refused.reason == wire::RefusalReason::Undecided => {}
            Err(Refused { sentence, .. }) => {
                if refusals.get(&hello.from_node) != Some(sentence) {
                    warn!(peer = hello.from_node, sentence, "peer: refused");
                    if refusals.len() >= REFUSALS_MAX {
                        refusals.clear();
                    }
                    refusals.insert(hello.from_node, sentence.clone());
                }
            }
        }
        admitted
    }

    async fn check(
        shared: &Shared,
        hello: &wire::Hello,
    ) -> Result<(Arc<Peer>, PeerHello, Connection), Refused> {
        if let Some(sentence) = shared.fenced.get() {
            return Err(format!("node {} takes no part: {sentence}", shared.local.node.0).into());
        }
        let peer = shared.peer(NodeId(hello.from_node));
        let target = peer.as_ref().map(|peer| peer.target());
        let theirs = shared.check_hello(hello, target.as_ref())?;
        // check_hello refuses what has no target.
        let unknown = || format!("node {} is not known here", hello.from_node);
        let peer = peer.ok_or_else(unknown)?;
        let connection = peer.take(&theirs, false, &shared.memory).await?;
        Ok((peer, theirs, connection))
    }
}
