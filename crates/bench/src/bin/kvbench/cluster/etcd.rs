//! A cluster of etcd: how its nodes are started, and when it is ready.

use std::path::{Path, PathBuf};

use super::{Places, Setup, make_data};
use crate::fatal::Fatal;
use crate::page;

/// The most that etcd's database may hold, in bytes. Its default of 2 GiB would end the writes of a
/// long run; the limit itself costs nothing.
const QUOTA: u64 = 8 << 30;

/// The program and the arguments of each node. Makes its directory.
///
/// What is not named here is etcd's default, among it the durability, and that nothing compacts by
/// itself: a run is too short for it.
pub(super) fn commands(
    setup: &Setup,
    home: &Path,
    places: &[Places],
) -> Result<Vec<(PathBuf, Vec<String>)>, Fatal> {
    let missing = || Fatal::Usage("no etcd was named (--etcd)".to_owned());
    let program = setup.etcd.clone().ok_or_else(missing)?;
    let all: Vec<String> =
        (1..).zip(places).map(|(id, at): (usize, _)| format!("n{id}=http://{}", at.peer)).collect();
    let command = |(id, at): (usize, &Places)| {
        let data = make_data(home, id)?;
        let flags = [
            ("name", format!("n{id}")),
            ("data-dir", data),
            ("listen-client-urls", format!("http://{}", at.client)),
            ("advertise-client-urls", format!("http://{}", at.client)),
            ("listen-peer-urls", format!("http://{}", at.peer)),
            ("initial-advertise-peer-urls", format!("http://{}", at.peer)),
            ("listen-metrics-urls", format!("http://{}", at.pages)),
            ("initial-cluster", all.join(",")),
            ("initial-cluster-state", "new".to_owned()),
            ("initial-cluster-token", "kvbench".to_owned()),
            ("quota-backend-bytes", QUOTA.to_string()),
        ];
        let flags = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
        Ok((program.clone(), flags.collect()))
    };
    (1..).zip(places).map(command).collect()
}

/// The place in the list of a node that is not ready, and what it lacks; `None` once all nodes are.
/// A node of etcd is healthy when it has a leader and has made a linearizable read.
pub(super) async fn lacking(places: &[&Places]) -> Option<(usize, String)> {
    for (at, node) in places.iter().enumerate() {
        if let Err(error) = page::get(&node.pages, "/health").await {
            return Some((at, format!("is not healthy: {error}")));
        }
    }
    None
}
