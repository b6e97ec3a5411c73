//! Session token of this client: what it has seen, for its session reads.

use parking_lot::Mutex;
use quorate_proto::v1::{SessionToken, SessionTokenPart};

/// The merged token of all answers.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    seen: Mutex<SessionToken>,
}

impl Tokens {
    /// Merges the token of an answer. A token of another history is ignored: the cluster may have
    /// lost data, and with the old token session reads fail until [`Tokens::reset`].
    pub fn note(&self, token: &SessionToken) {
        if self.seen.lock().merge(token).is_err() {
            tracing::warn!("token: of another history; session reads fail until it is reset");
        }
    }

    pub fn whole(&self) -> SessionToken {
        self.seen.lock().clone()
    }

    /// The token of one shard only; none while nothing of it was seen.
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
