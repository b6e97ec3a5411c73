//! Addresses that a node is started with, against those that the cluster knows.

use quorate_proto::v1::ClusterMap;

use quorate_config::Config;

/// A sentence when the flags of a member name other addresses than the map: `None` when they agree, or
/// the map does not know the node.
#[must_use]
pub fn notice(config: &Config, map: &ClusterMap) -> Option<String> {
    let me = map.nodes.iter().find(|node| node.id == config.node_id.0)?;
    let mut parts = Vec::new();
    let mut own = vec![
        ("--advertise", config.advertise.to_string(), &me.peer_address),
        ("--advertise-client", config.advertise_client.to_string(), &me.client_address),
    ];
    // Where one listener serves both they move together, and that is one thing to say.
    own.dedup_by(|second, first| (&second.1, second.2) == (&first.1, first.2));
    for (flag, here, known) in own.iter().filter(|(_, here, known)| here != *known) {
        parts.push(format!(
            "{flag} is {here}, and the cluster knows this node at {known}, which holds until this \
             node has told the others; change one node at a time"
        ));
    }
    for (id, address) in config.initial_cluster.iter().filter(|(id, _)| **id != config.node_id) {
        let here = address.to_string();
        let known = match map.nodes.iter().find(|node| node.id == id.0) {
            Some(node) if node.peer_address == here => continue,
            Some(node) => format!("knows node {} at {}", id.0, node.peer_address),
            None => format!("has no node {}", id.0),
        };
        parts.push(format!(
            "--initial-cluster has {}={here}, and the cluster {known}, which holds: that flag is for \
             the first start",
            id.0
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use quorate_config::{Environment, Key, Layers, resolve};
    use quorate_proto::v1::MapNode;

    use super::*;

    fn config(flags: &[(Key, &str)]) -> Config {
        let flags = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let layers = Layers::new(flags, &Environment::default(), None).unwrap();
        resolve(&layers, 1 << 30).unwrap().config
    }

    fn map() -> ClusterMap {
        let node = |id| MapNode {
            id,
            peer_address: format!("127.0.0.1:740{id}"),
            client_address: format!("127.0.0.1:740{id}"),
            ..MapNode::default()
        };
        ClusterMap { nodes: vec![node(1), node(2)], ..ClusterMap::default() }
    }

    #[test]
    fn addresses_that_the_map_has_are_no_news() {
        let all = (Key::InitialCluster, "1=127.0.0.1:7401,2=127.0.0.1:7402");
        assert_eq!(notice(&config(&[all]), &map()), None);
        assert_eq!(notice(&config(&[]), &map()), None);
        assert_eq!(notice(&config(&[(Key::NodeId, "9")]), &map()), None);
    }

    #[test]
    fn each_address_that_differs_is_named_with_both_values() {
        let flags = [
            (Key::Listen, "127.0.0.1:7501"),
            (Key::InitialCluster, "1=127.0.0.1:7501,2=b:1,3=c:1"),
        ];
        let said = notice(&config(&flags), &map()).unwrap();
        for part in [
            "--advertise is 127.0.0.1:7501, and the cluster knows this node at 127.0.0.1:7401, which",
            "--initial-cluster has 2=b:1, and the cluster knows node 2 at 127.0.0.1:7402, which holds",
            "--initial-cluster has 3=c:1, and the cluster has no node 3, which holds",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("--advertise-client"), "{said}");
        let flags = [(Key::AdvertiseClient, "c:1")];
        let said = notice(&config(&flags), &map()).unwrap();
        assert!(said.starts_with("--advertise-client is c:1, and "), "{said}");
    }
}
