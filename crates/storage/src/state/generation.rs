//! Generations: the trees of a shard, a new one for each installed snapshot.

use quorate_raft::GroupId;

use super::cache::CacheId;
use crate::database::Tree;

/// One tree of a shard.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) tree: Tree,
    pub(crate) cache_id: CacheId,
}

impl Generation {
    /// The name of a shard's tree.
    pub(crate) fn tree_name(group: GroupId, number: u64) -> Vec<u8> {
        format!("s{}/{number}", group.0).into_bytes()
    }

    /// The shard and the generation in a tree's name; `None` if it is not the name of a shard's
    /// tree.
    pub(crate) fn parse_name(name: &[u8]) -> Option<(GroupId, u64)> {
        let (group, number) = std::str::from_utf8(name).ok()?.strip_prefix('s')?.split_once('/')?;
        let (group, number) = (GroupId(group.parse().ok()?), number.parse().ok()?);
        (Generation::tree_name(group, number) == name).then_some((group, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another name would hide the state of every shard.
    #[test]
    fn the_name_of_a_tree_is_fixed() {
        let name = Generation::tree_name(GroupId(12), 3);
        assert_eq!(name, b"s12/3");
        assert_eq!(Generation::parse_name(&name), Some((GroupId(12), 3)));
        for other in [&b"s12/03"[..], b"s12", b"shards", b"12/3", b"s-1/3", b"s12/3/4"] {
            assert_eq!(Generation::parse_name(other), None, "{}", other.escape_ascii());
        }
    }
}
