//! Copies of data directories: a directory is one node, at one place, at one time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{GetStatusRequest, GetStatusResponse, NodePhase};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::files::{copy, copy_at_rest};
use quorate_tests::named::{check, fill};
use quorate_tests::ports::{Port, lease};
use quorate_tests::{Cluster, ClusterOptions, Exit, binaries, until, until_async};
use tonic::transport::Endpoint;

fn options(arguments: &[&str]) -> ClusterOptions {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    ClusterOptions { shards: 2, arguments, ..ClusterOptions::default() }
}

/// A second process for a node of a cluster, with a directory and addresses of its own.
struct Second {
    process: Child,
    log: PathBuf,
    client: Port,
}

impl Second {
    fn start(cluster: &Cluster, id: u64, data: &Path) -> Second {
        let mut ports = lease(2);
        let (client, peer) = (ports.remove(0), ports.remove(0));
        let mut arguments = cluster.arguments(id);
        let changed = [
            ("--data-dir", data.display().to_string()),
            ("--listen", client.address()),
            ("--peer-listen", peer.address()),
            ("--advertise", peer.address()),
            ("--metrics-listen", "127.0.0.1:0".to_owned()),
        ];
        for (flag, value) in changed {
            let at = arguments.iter().position(|usual| usual == flag).expect("a usual flag");
            arguments[at + 1] = value;
        }
        let log = data.with_extension("log");
        let file = File::create(&log).expect("a log file");
        let process = Command::new(binaries::path("kvnode"))
            .arg("start")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log file is open"))
            .stderr(file)
            .spawn()
            .expect("kvnode starts");
        Second { process, log, client }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("its log")
    }

    async fn status(&self) -> Option<GetStatusResponse> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.client.address()));
        let channel = endpoint.expect("an address is an endpoint").connect_lazy();
        let mut client = ClusterClient::new(channel);
        let ask = client.get_status(GetStatusRequest::default());
        let answer = tokio::time::timeout(Duration::from_secs(2), ask).await.ok()?.ok()?;
        Some(answer.into_inner())
    }

    /// Waits until both others have refused it; it must never have been taken.
    fn wait_refused(&self, sentence: &str) {
        until("both others refuse the second process", TIMEOUT, || {
            let log = self.log();
            assert!(!log.contains("peer: connected"), "it takes part: {log}");
            let refused =
                |peer: &str| log.lines().any(|line| line.contains(peer) && line.contains(sentence));
            (refused("\"peer\":1") && refused("\"peer\":2")).then_some(())
        });
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // It has ended already where the test ended it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(30)..];
            eprintln!("--- the end of the second process's log\n{}", tail.join("\n"));
        }
    }
}

/// Waits until node `id` is connected, as all others see it.
async fn wait_connected(cluster: &Cluster, id: u64) {
    until_async(&format!("the others are connected to node {id}"), TIMEOUT, || async {
        for other in cluster.ids().into_iter().filter(|other| *other != id) {
            let status = cluster.status(other).await?;
            status.peers.iter().find(|peer| peer.node_id == id && peer.connected)?;
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_started_elsewhere_while_its_node_runs_takes_no_part() {
    let mut cluster = Cluster::start(options(&[])).await;
    fill(&cluster.client(), "before", 20).await;
    cluster.wait_equal().await;
    let data = cluster.directory().join("copy");
    copy_at_rest(&cluster.node(3).data, &data, TIMEOUT);
    let second = Second::start(&cluster, 3, &data);
    second.wait_refused("another process");
    for id in [1, 2] {
        let log = cluster.log(id);
        assert!(log.contains("peer: refused") && log.contains("another process"), "node {id}");
    }
    let status = second.status().await.expect("it says how it stands");
    assert!(!status.ready && status.peers.iter().all(|peer| !peer.connected), "{status:?}");
    assert!(status.peers.iter().all(|p| p.detail.contains("another process")), "{status:?}");

    // The original is not the one that is locked out, whichever connects first after a break.
    for _ in 0..3 {
        cluster.kill(1);
        cluster.start_node(1);
        cluster.wait_ready().await;
        wait_connected(&cluster, 3).await;
        assert!(!second.log().contains("peer: connected"), "{}", second.log());
    }
    fill(&cluster.client(), "after", 20).await;
    cluster.wait_equal().await;
    check(&cluster.client(), "before", 20).await;

    // Its number counts for nothing: the node starts again with a lower one.
    drop(second);
    assert_eq!(cluster.stop(3), Exit::Code(0));
    cluster.start_node(3);
    cluster.wait_ready().await;
    wait_connected(&cluster, 3).await;
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_with_its_directory_goes_on_there() {
    let mut cluster = Cluster::start(options(&[])).await;
    fill(&cluster.client(), "before", 20).await;
    for _ in 0..2 {
        cluster.kill(3);
        let port = lease(1).remove(0);
        let data = cluster.directory().join(format!("moved-to-{}", port.number()));
        copy(&cluster.node(3).data, &data);
        let (address, data) = (port.address(), data.display().to_string());
        let there = ["--data-dir", &data, "--peer-listen", &address, "--advertise", &address];
        cluster.start_node_with(3, &there);
        cluster.wait_ready().await;
        wait_connected(&cluster, 3).await;
        cluster.wait_equal().await;
        assert_eq!(cluster.stop(3), Exit::Code(0));
        // And back: the directory of before is gone.
        cluster.wipe(3);
        copy(Path::new(&data), &cluster.node(3).data);
        cluster.start_node(3);
        cluster.wait_ready().await;
        wait_connected(&cluster, 3).await;
    }
    fill(&cluster.client(), "after", 20).await;
    cluster.wait_equal().await;
    check(&cluster.client(), "before", 20).await;
}

/// Waits until node 3 says that its disk went back in time, and checks which nodes know it and
/// which still serve.
async fn is_found_out(cluster: &Cluster) {
    let status = until_async("node 3 knows that its disk went back in time", TIMEOUT, || async {
        let status = cluster.status(3).await?;
        assert_ne!(status.phase(), NodePhase::Ready, "it takes part: {}", cluster.log(3));
        (status.phase() == NodePhase::StorageFailed).then_some(status)
    })
    .await;
    assert!(!status.ready && status.live, "{status:?}");
    for part in ["went back in time", "Stop it", "newest"] {
        assert!(status.detail.contains(part), "{part}: {}", status.detail);
    }
    assert!(cluster.log(3).contains("went back in time"), "its log says so");
    let words = cluster.kvctl(&["status"]);
    let text = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(text.contains("went back in time"), "kvctl status says so: {text}");
    until("a node that remembers more says so", TIMEOUT, || {
        let told = |id| cluster.log(id).contains("the disk of node 3 went back in time");
        (told(1) || told(2)).then_some(())
    });
    fill(&cluster.client_of(&[1, 2]), "meanwhile", 10).await;
}

/// Takes the newest directory of node 3, which does not run, away, and puts an older one in its
/// place.
fn put_back(cluster: &Cluster, older: &Path, newest: &Path) {
    fs::rename(&cluster.node(3).data, newest).expect("the newest directory is moved away");
    copy(older, &cluster.node(3).data);
}

async fn older_copies(store: &str) {
    let mut cluster = Cluster::start(options(&["--log-store", store])).await;
    fill(&cluster.client(), "old", 20).await;
    cluster.wait_equal().await;
    let (older, newest) = (cluster.directory().join("older"), cluster.directory().join("newest"));

    // Copied while its first process ran, and writes since: the number of its next start is new.
    copy_at_rest(&cluster.node(3).data, &older, TIMEOUT);
    fill(&cluster.client(), "new", 20).await;
    cluster.wait_equal().await;
    assert_eq!(cluster.stop(3), Exit::Code(0));
    put_back(&cluster, &older, &newest);
    cluster.start_node(3);
    is_found_out(&cluster).await;
    // The others remember it over their own end.
    for id in [1, 2] {
        cluster.kill(id);
        cluster.start_node(id);
    }
    assert_eq!(cluster.stop(3), Exit::Code(0));
    cluster.start_node(3);
    is_found_out(&cluster).await;

    // What the sentence advises: the newest directory is taken.
    assert_eq!(cluster.stop(3), Exit::Code(0));
    cluster.wipe(3);
    fs::rename(&newest, &cluster.node(3).data).expect("the newest is put back");
    cluster.start_node(3);
    cluster.wait_ready().await;
    cluster.wait_equal().await;

    // Copied between two runs of which the second wrote nothing that the others had to hear of.
    assert_eq!(cluster.stop(3), Exit::Code(0));
    fs::remove_dir_all(&older).expect("removed");
    copy(&cluster.node(3).data, &older);
    cluster.start_node(3);
    cluster.wait_ready().await;
    wait_connected(&cluster, 3).await;
    assert_eq!(cluster.stop(3), Exit::Code(0));
    put_back(&cluster, &older, &newest);
    cluster.start_node(3);
    is_found_out(&cluster).await;
    check(&cluster.client_of(&[1, 2]), "new", 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_put_back_from_an_older_copy_is_found_out_with_the_log_in_sled() {
    older_copies("sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_put_back_from_an_older_copy_is_found_out_with_the_log_in_a_file() {
    older_copies("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_directories_put_back_from_copies_of_one_moment_are_the_cluster_of_that_moment() {
    let mut cluster = Cluster::start(options(&[])).await;
    fill(&cluster.client(), "kept", 20).await;
    cluster.wait_equal().await;
    cluster.kill_all();
    let backup = |cluster: &Cluster, id: u64| cluster.directory().join(format!("backup-{id}"));
    for id in cluster.ids() {
        copy(&cluster.node(id).data, &backup(&cluster, id));
    }
    cluster.start_all().await;
    fill(&cluster.client(), "gone", 20).await;
    cluster.kill_all();
    for id in cluster.ids() {
        cluster.wipe(id);
        copy(&backup(&cluster, id), &cluster.node(id).data);
    }
    cluster.start_all().await;
    cluster.wait_equal().await;
    check(&cluster.client(), "kept", 20).await;
    assert!(!cluster.client().get("gone-0").await.expect("a read").found);
}
