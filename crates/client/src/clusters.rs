//! Check that the given endpoints are nodes of one cluster. Endpoints of several clusters are
//! rejected, because answers would be from one or the other at random.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use quorate_proto::v1::Reason;

use crate::attempt::AttemptError;

/// Result of the check: once endpoints of several clusters were found, they stay rejected.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    mixed: OnceLock<String>,
}

impl Clusters {
    /// Records the cluster of each endpoint that answered.
    pub fn note<'a>(&self, endpoints: impl IntoIterator<Item = (&'a str, &'a Bytes)>) {
        if let Some(sentence) = mixed(endpoints) {
            tracing::warn!(why = sentence, "endpoints: of several clusters");
            // It may be set already.
            let _ = self.mixed.set(sentence);
        }
    }

    /// Fails once endpoints of several clusters were found.
    pub fn check(&self) -> Result<(), AttemptError> {
        match self.mixed.get() {
            Some(sentence) => Err(AttemptError::local(Reason::BadRequest, sentence.as_str())),
            None => Ok(()),
        }
    }
}

/// The sentence that names the endpoints of each cluster, the smallest group first; none if there
/// is only one cluster.
fn mixed<'a>(endpoints: impl IntoIterator<Item = (&'a str, &'a Bytes)>) -> Option<String> {
    let mut clusters: BTreeMap<&Bytes, Vec<&str>> = BTreeMap::new();
    for (address, cluster) in endpoints {
        // A node that is still forming belongs to none.
        if !cluster.is_empty() {
            clusters.entry(cluster).or_default().push(address);
        }
    }
    if clusters.len() < 2 {
        return None;
    }
    let mut groups: Vec<(&Bytes, Vec<&str>)> = clusters.into_iter().collect();
    groups.sort_by_key(|(_, addresses)| addresses.len());
    let of = |(cluster, addresses): &(&Bytes, Vec<&str>)| {
        let verb = if addresses.len() == 1 { "belongs" } else { "belong" };
        format!("{} {verb} to cluster {}", addresses.join(" and "), short(cluster))
    };
    let groups: Vec<String> = groups.iter().map(of).collect();
    Some(format!(
        "the given endpoints belong to several clusters: {}; give the nodes of one",
        groups.join(", but ")
    ))
}

/// The first four bytes of a cluster's id, as eight hexadecimal digits.
fn short(cluster: &Bytes) -> String {
    cluster.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cluster_is_named_first() {
        let (one, other) = (Bytes::from(vec![0xab; 16]), Bytes::from(vec![0x12; 16]));
        let forming = Bytes::new();
        assert_eq!(mixed([("a:1", &one), ("b:1", &one), ("c:1", &forming)]), None);
        assert_eq!(
            mixed([("a:1", &one), ("b:1", &other), ("c:1", &one)]).unwrap(),
            "the given endpoints belong to several clusters: b:1 belongs to cluster 12121212, \
             but a:1 and \
             c:1 belong to cluster abababab; give the nodes of one"
        );
    }
}
