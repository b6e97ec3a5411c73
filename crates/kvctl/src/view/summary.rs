//! Summary of a view: one sentence, and the list of problems.

use std::collections::BTreeMap;

use super::{Diverged, META, NodeView, ShardView, Trouble, View};
use crate::duration;
use crate::wire::NodePhase;

/// Maximum number of groups of shards that the sentence names; the rest is only counted.
const GROUPS_NAMED_MAX: usize = 3;

impl View {
    /// The summary of what serves and what does not: `7 of 8 shards serve; shard 3 has no leader
    /// for 4 s (needs 2 of n1 n2 n3; has n2)`.
    pub fn sentence(&self) -> String {
        if self.answering() == 0 {
            let refusing = self.refusing().map(|sentence| format!(": {sentence}"));
            return format!("no node answers{}", refusing.unwrap_or_default());
        }
        let total = self.user_shards().count();
        if total == 0 {
            return format!("{}; the cluster has no map yet", self.nodes_sentence());
        }
        let serving = self.serving();
        let mut parts = vec![format!("{serving} of {total} shards serve")];
        let mut groups = self.diverged();
        groups.extend(self.troubled());
        let more = groups.split_off(groups.len().min(GROUPS_NAMED_MAX));
        parts.extend(groups);
        if !more.is_empty() {
            parts.push(format!("{} more problems", more.len()));
        }
        if parts.len() == 1 || self.answering() < self.nodes.len() {
            parts.push(self.nodes_sentence());
        }
        parts.extend(self.storage_failed_sentence());
        parts.join("; ")
    }

    /// The part about nodes: `1 of 3 nodes answers; n2 n3 cannot be reached from here`.
    fn nodes_sentence(&self) -> String {
        let (answering, total) = (self.answering(), self.nodes.len());
        let nodes = if total == 1 { "node" } else { "nodes" };
        let verb = if answering == 1 { "answers" } else { "answer" };
        let sentence = format!("{answering} of {total} {nodes} {verb}");
        let hidden = self.named(|node| node.out_of_reach);
        let hidden = hidden.map(|names| format!("{names} cannot be reached from here"));
        let parts = [Some(sentence), hidden, self.refusing()];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    /// The part about nodes that have no place for this client: `n2 refuses this client`.
    fn refusing(&self) -> Option<String> {
        let refusing = self.nodes.iter().filter(|node| node.refused).count();
        let verb = if refusing == 1 { "refuses" } else { "refuse" };
        match self.named(|node| node.refused) {
            Some(names) => Some(format!("{names} {verb} this client")),
            // No map names it.
            None => (refusing > 0).then(|| "its node refuses this client".to_owned()),
        }
    }

    /// The names of such nodes; `None` if there are none.
    fn named(&self, is_one: impl Fn(&NodeView) -> bool) -> Option<String> {
        let ones = self.nodes.iter().filter(|node| is_one(node));
        let mut ids: Vec<u64> = ones.filter_map(|node| node.id).collect();
        ids.sort_unstable();
        (!ids.is_empty()).then(|| node_names(&ids))
    }

    /// The part about nodes that answer but could not open their storage: `n2 could not open its
    /// storage`.
    fn storage_failed_sentence(&self) -> Option<String> {
        let failed = self.nodes.iter().filter(|node| {
            let status = node.status.as_ref();
            status.is_ok_and(|status| status.phase() == NodePhase::StorageFailed)
        });
        let mut failed: Vec<u64> = failed.filter_map(|node| node.id).collect();
        failed.sort_unstable();
        let its = if failed.len() == 1 { "its" } else { "their" };
        let names = (!failed.is_empty()).then(|| node_names(&failed))?;
        Some(format!("{names} could not open {its} storage"))
    }

    /// All problems, the most severe first.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.diverged();
        problems.extend(self.troubled());
        for node in &self.nodes {
            if let Some(problem) = &node.problem {
                problems.push(match node.id {
                    Some(id) => format!("n{id} ({}) {problem}", node.address),
                    None => format!("{} {problem}", node.address),
                });
            }
        }
        problems.extend(self.clock_problems());
        for shard in &self.shards {
            for (node, ailment) in &shard.ailing {
                problems.push(format!("the replica of {} on n{node} {ailment}", shard.name()));
            }
        }
        let thin: Vec<u64> = self.under_replicated().map(|shard| shard.id).collect();
        if let Some(wanted) = self.map.as_ref().map(|map| map.replicas_wanted)
            && !thin.is_empty()
        {
            problems.push(format!(
                "UNDER_REPLICATED: {} {} fewer than {wanted} replicas",
                shards(&thin),
                if thin.len() == 1 { "has" } else { "have" },
            ));
        }
        problems
    }

    fn under_replicated(&self) -> impl Iterator<Item = &ShardView> {
        self.user_shards().filter(|shard| shard.under_replicated)
    }

    /// The shards whose replicas differ. Nothing is more severe, because some answers are wrong.
    fn diverged(&self) -> Vec<String> {
        let diverged = self.shards.iter().filter_map(|shard| {
            let Diverged { index, sides } = shard.diverged.as_ref()?;
            let sides: Vec<String> = sides.iter().map(|nodes| node_names(nodes)).collect();
            let sides = sides.join(" | ");
            let name = shard.name();
            Some(format!("DIVERGED: the replicas of {name} differ at index {index} ({sides})"))
        });
        diverged.collect()
    }

    /// The shards that do not serve, grouped by trouble and voters.
    fn troubled(&self) -> Vec<String> {
        type Kind<'a> = (std::mem::Discriminant<Trouble>, &'a [u64], &'a [u64], Option<u64>);
        let mut groups: Vec<(Kind, Vec<&ShardView>)> = Vec::new();
        for shard in &self.shards {
            let Some(trouble) = &shard.trouble else { continue };
            let leader = match trouble {
                Trouble::LeaderSilent { leader } | Trouble::NoQuorum { leader } => Some(*leader),
                Trouble::NoLeader { .. } | Trouble::Unseen => None,
            };
            let kind =
                (std::mem::discriminant(trouble), &shard.voters[..], &shard.present[..], leader);
            match groups.iter_mut().find(|(known, members)| {
                *known == kind && members[0].id != META && shard.id != META
            }) {
                Some((_, members)) => members.push(shard),
                None => groups.push((kind, vec![shard])),
            }
        }
        groups.into_iter().filter_map(|(_, members)| sentence_of(&members)).collect()
    }
}

impl ShardView {
    /// The shard's name within a sentence.
    pub fn name(&self) -> String {
        shards(&[self.id])
    }
}

/// A sentence about shards with the same trouble; it shows the longest time of them.
fn sentence_of(members: &[&ShardView]) -> Option<String> {
    let shard = members.iter().max_by_key(|shard| &shard.trouble)?;
    let ids: Vec<u64> = members.iter().map(|shard| shard.id).collect();
    let (names, has) = (shards(&ids), if ids.len() == 1 { "has" } else { "have" });
    let is = if ids.len() == 1 { "is" } else { "are" };
    let quorum = shard.voters.len() / 2 + 1;
    let needs = |present: &[u64]| match &shard.voters[..] {
        [] => String::new(),
        voters => {
            let present = if present.is_empty() { "none".into() } else { node_names(present) };
            format!(" (needs {quorum} of {}; has {present})", node_names(voters))
        }
    };
    Some(match shard.trouble.as_ref()? {
        Trouble::NoLeader { since } => {
            let since = since.map(|since| format!(" for {}", duration::show_rough(since)));
            format!("{names} {has} no leader{}{}", since.unwrap_or_default(), needs(&shard.present))
        }
        Trouble::LeaderSilent { leader } => {
            format!("{names} {is} led by n{leader}, which does not answer")
        }
        Trouble::NoQuorum { leader } => {
            let led = format!("{names} {is} led by n{leader}, which hears from no quorum");
            format!("{led}{}", needs(&shard.present))
        }
        Trouble::Unseen => format!("{names} {has} no replica that answers{}", needs(&[])),
    })
}

/// The names of shards: `shard 3`, `shards 3 5 7`, `shards 1–8`, `the meta group`.
fn shards(ids: &[u64]) -> String {
    match ids {
        [META] => "the meta group".into(),
        [id] => format!("shard {id}"),
        ids => {
            let mut runs: BTreeMap<u64, u64> = BTreeMap::new();
            for &id in ids {
                match runs.last_entry() {
                    Some(mut run) if *run.get() + 1 == id => *run.get_mut() = id,
                    _ => {
                        runs.insert(id, id);
                    }
                }
            }
            let runs = runs.into_iter().map(|(first, last)| match last - first {
                0 => format!("{first}"),
                1 => format!("{first} {last}"),
                _ => format!("{first}–{last}"),
            });
            format!("shards {}", runs.collect::<Vec<_>>().join(" "))
        }
    }
}

/// The names of nodes: `n1 n2 n3`.
pub fn node_names(ids: &[u64]) -> String {
    ids.iter().map(|id| format!("n{id}")).collect::<Vec<_>>().join(" ")
}
