//! Address check: the addresses in the flags of a node against those in the cluster map.

use quorate_proto::v1::ClusterMap;

use quorate_config::Config;

/// The notice that the flags of a member name other addresses than the map. `None` when they agree,
/// or when the map does not know the node.
#[must_use]
pub fn notice(config: &Config, map: &ClusterMap) -> Option<String> {
    let me = map.nodes.iter().find(|node| node.id == config.node_id.0)?;
    let mut parts = Vec::new();
    let mut own = vec![
        ("--advertise", config.advertise.to_string(), &me.peer_address),
        ("--advertise-client", config.advertise_client.to_string(), &me.client_address),
    ];
    // One listener for both has one address: a difference is named once.
    own.dedup_by(|second, first| (&second.1, second.2) == (&first.1, first.2));
    for (flag, here, known) in own.iter().filter(|(_, here, known)| here != *known) {
        parts.push(format!(
            "{flag} is {here}, but the cluster map has {known} for this node, and keeps it until \
             this node has announced the new address; change one node at a time"
        ));
    }
    for (id, address) in config.initial_cluster.iter().filter(|(id, _)| **id != config.node_id) {
        let here = address.to_string();
        let known = match map.nodes.iter().find(|node| node.id == id.0) {
            Some(node) if node.peer_address == here => continue,
            Some(node) => format!("has {} for node {}", node.peer_address, id.0),
            None => format!("does not have node {}", id.0),
        };
        parts.push(format!(
            "--initial-cluster has {}={here}, but the cluster map {known}; the map is used: that \
             flag counts only at the first start",
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
    fn addresses_equal_to_those_of_the_map_need_no_notice() {
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
            "--advertise is 127.0.0.1:7501, but the cluster map has 127.0.0.1:7401 for this node",
            "--initial-cluster has 2=b:1, but the cluster map has 127.0.0.1:7402 for node 2",
            "--initial-cluster has 3=c:1, but the cluster map does not have node 3",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("--advertise-client"), "{said}");
        let flags = [(Key::AdvertiseClient, "c:1")];
        let said = notice(&config(&flags), &map()).unwrap();
        assert!(said.starts_with("--advertise-client is c:1, but "), "{said}");
    }
}
