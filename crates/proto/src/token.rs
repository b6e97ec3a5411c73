//! Session tokens: merging and lookup.

use crate::v1::{Receipt, SessionToken, SessionTokenPart};

/// The error of merging two tokens of different clusters, or of different histories of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignToken;

impl std::fmt::Display for ForeignToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the session token is of another cluster or of another history of this one")
    }
}

impl std::error::Error for ForeignToken {}

impl SessionToken {
    /// Merges `other` into this token: of each shard the greater index. Afterwards the parts are in
    /// shard order. An empty token adopts the cluster and history of the other one.
    ///
    /// # Errors
    /// When the tokens are of different clusters or histories; this one is then unchanged.
    pub fn merge(&mut self, other: &SessionToken) -> Result<(), ForeignToken> {
        if other.parts.is_empty() && other.cluster_id.is_empty() {
            return Ok(());
        }
        if self.cluster_id.is_empty() && self.parts.is_empty() {
            self.cluster_id = other.cluster_id.clone();
            self.history = other.history.clone();
        } else if self.cluster_id != other.cluster_id || self.history != other.history {
            return Err(ForeignToken);
        }
        self.map_epoch = self.map_epoch.max(other.map_epoch);
        if !self.parts.is_sorted_by(|a, b| a.shard < b.shard) {
            let unsorted = std::mem::take(&mut self.parts);
            for part in unsorted {
                self.raise(part.shard, part.index);
            }
        }
        for part in &other.parts {
            self.raise(part.shard, part.index);
        }
        Ok(())
    }

    /// The index seen of a shard; 0 = nothing. The parts may be in any order.
    #[must_use]
    pub fn index_of(&self, shard: u64) -> u64 {
        let of_shard = self.parts.iter().filter(|p| p.shard == shard);
        of_shard.map(|p| p.index).max().unwrap_or(0)
    }

    /// The token of the shard and index in a receipt.
    #[must_use]
    pub fn of_receipt(cluster_id: bytes::Bytes, receipt: &Receipt) -> Self {
        Self {
            cluster_id,
            history: receipt.history.clone(),
            map_epoch: receipt.map_epoch,
            parts: vec![SessionTokenPart { shard: receipt.shard, index: receipt.index }],
        }
    }

    /// Raises one part; the parts must be in shard order.
    fn raise(&mut self, shard: u64, index: u64) {
        match self.parts.binary_search_by_key(&shard, |p| p.shard) {
            Ok(i) => self.parts[i].index = self.parts[i].index.max(index),
            Err(i) => self.parts.insert(i, SessionTokenPart { shard, index }),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;

    fn token(cluster: &'static str, epoch: u64, parts: &[(u64, u64)]) -> SessionToken {
        let part = |(shard, index): &(u64, u64)| SessionTokenPart { shard: *shard, index: *index };
        SessionToken {
            cluster_id: Bytes::from_static(cluster.as_bytes()),
            history: Bytes::from_static(b"h"),
            map_epoch: epoch,
            parts: parts.iter().map(part).collect(),
        }
    }

    /// Clients keep tokens between processes and versions.
    #[test]
    fn the_bytes_are_fixed() {
        let token = token("c", 3, &[(5, 300), (6, 1)]);
        // Cluster, history, epoch of the map, parts.
        let expected =
            b"\x0a\x01c\x12\x01h\x18\x03\x22\x05\x08\x05\x10\xac\x02\x22\x04\x08\x06\x10\x01";
        assert_eq!(token.encode_to_vec(), expected);
        assert_eq!(SessionToken::decode(&expected[..]), Ok(token));
    }

    #[test]
    fn merge_takes_the_greater_of_each_shard() {
        let mut a = token("c", 3, &[(5, 10), (2, 7), (2, 9)]);
        a.merge(&token("c", 2, &[(9, 1), (5, 4), (2, 8)])).unwrap();
        assert_eq!(a, token("c", 3, &[(2, 9), (5, 10), (9, 1)]));
        a.merge(&token("c", 4, &[(5, 11)])).unwrap();
        assert_eq!(a.index_of(5), 11);
        assert_eq!(a.index_of(6), 0);
        assert_eq!(a.map_epoch, 4);
    }

    #[test]
    fn merging_with_an_empty_token_gives_the_other_one() {
        let mut empty = SessionToken::default();
        empty.merge(&token("c", 1, &[(1, 1)])).unwrap();
        assert_eq!(empty, token("c", 1, &[(1, 1)]));
        empty.merge(&SessionToken::default()).unwrap();
        assert_eq!(empty, token("c", 1, &[(1, 1)]));
    }

    #[test]
    fn foreign_tokens_do_not_merge() {
        let mut a = token("c", 1, &[(1, 1)]);
        assert_eq!(a.merge(&token("d", 9, &[(1, 5)])), Err(ForeignToken));
        let mut other_history = token("c", 9, &[(1, 5)]);
        other_history.history = Bytes::from_static(b"i");
        assert_eq!(a.merge(&other_history), Err(ForeignToken));
        assert_eq!(a, token("c", 1, &[(1, 1)]));
    }
}
