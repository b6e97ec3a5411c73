//! What this client has seen, for its session reads.

use parking_lot::Mutex;
use quorate_proto::v1::{SessionToken, SessionTokenPart};

/// The merged token of all answers.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    seen: Mutex<SessionToken>,
}

impl Tokens {
    /// Takes in an answer's token. One of another history is left out: data may have gone back, and the
    /// old token makes session reads say so until [`Tokens::reset`].
    pub fn note(&self, token: &SessionToken) {
        if self.seen.lock().merge(token).is_err() {
            tracing::warn!(
                "the cluster's history changed; session reads fail until the token is reset"
            );
        }
    }

    pub fn whole(&self) -> SessionToken {
        self.seen.lock().clone()
    }

    /// The part of one shard; none while nothing of it was seen.
    pub fn of_shard(&self, shard: u64) -> Option<SessionToken> {
        let seen = self.seen.lock();
        let index = seen.index_of(shard);
        (index != 0).then(|| SessionToken {
            cluster_id: seen.cluster_id.clone(),
            history: seen.history.clone(),
            map_epoch: seen.map_epoch,
            parts: vec![SessionTokenPart { shard, index }],
        })
    }

    pub fn reset(&self) {
        *self.seen.lock() = SessionToken::default();
    }
}
