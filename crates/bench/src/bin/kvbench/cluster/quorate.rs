//! A cluster of ours: how its nodes are started, and when it is ready.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::api::cluster_client::ClusterClient;
use quorate_client::api::{GetStatusRequest, GetStatusResponse, ReplicaRole};
use tonic::transport::Endpoint;

use super::{NODES, Places, Setup, make_data, run};
use crate::fatal::Fatal;

/// A node that takes longer to say how it stands is not ready.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// The program and the arguments of each node. Makes its directory, and the secret of all.
///
/// What is not named here is the node's default.
pub(super) fn commands(
    setup: &Setup,
    home: &Path,
    places: &[Places],
) -> Result<Vec<(PathBuf, Vec<String>)>, Fatal> {
    let secret = home.join("secret").display().to_string();
    run(&setup.kvnode, &["secret", "--out", &secret])?;
    let all: Vec<String> =
        (1..).zip(places).map(|(id, at): (usize, _)| format!("{id}={}", at.peer)).collect();
    let command = |(id, at): (usize, &Places)| {
        let data = make_data(home, id)?;
        let mut flags = vec![
            ("node-id", id.to_string()),
            ("data-dir", data),
            ("listen", at.client.clone()),
            ("peer-listen", at.peer.clone()),
            ("advertise", at.peer.clone()),
            ("advertise-client", at.client.clone()),
            ("metrics-listen", at.pages.clone()),
            ("initial-cluster", all.join(",")),
            ("secret-file", secret.clone()),
            ("shards", setup.shards.to_string()),
            ("replicas", NODES.to_string()),
            ("log-format", "text".to_owned()),
        ];
        flags.extend(setup.log_store.iter().map(|store| ("log-store", store.clone())));
        let first = ["start".to_owned(), "--exit-with-parent".to_owned()];
        let flags = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
        Ok((setup.kvnode.clone(), first.into_iter().chain(flags).collect()))
    };
    (1..).zip(places).map(command).collect()
}

/// The place in the list of a node that is not ready, and what it lacks; `None` once all nodes are,
/// and every shard has a leader.
pub(super) async fn lacking(places: &[&Places], shards: u32) -> Option<(usize, String)> {
    let mut led = BTreeSet::new();
    for (at, node) in places.iter().enumerate() {
        let Some(status) = status(&node.client).await else {
            return Some((at, "does not answer".to_owned()));
        };
        if !status.ready {
            return Some((at, format!("says that it is not ready: {}", status.detail)));
        }
        let leads = |role: i32| role == ReplicaRole::Leader as i32;
        led.extend(status.replicas.iter().filter(|one| leads(one.role)).map(|one| one.shard));
    }
    // Shard 0, the cluster's own, has a leader too.
    let missing = (0..=u64::from(shards)).find(|shard| !led.contains(shard))?;
    Some((0, format!("knows no leader of shard {missing}")))
}

async fn status(address: &str) -> Option<GetStatusResponse> {
    let ask = async {
        let channel = Endpoint::from_shared(format!("http://{address}")).ok()?.connect().await;
        let mut node = ClusterClient::new(channel.ok()?);
        Some(node.get_status(GetStatusRequest::default()).await.ok()?.into_inner())
    };
    tokio::time::timeout(ANSWER_PATIENCE, ask).await.ok()?
}
