//! Names that are not resolved: a name server that hangs, in a network that the test makes.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs};

use quorate_proto::v1::{GetRequest, ReadLevel};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::named::fill;
use quorate_tests::needs::{Need, met};
use quorate_tests::raw::{CALL, at, within};
use quorate_tests::{Cluster, ClusterOptions, Exit, until};

/// Set in the process that runs inside the network.
const INSIDE: &str = "QUORATE_TEST_INSIDE";

/// Brings the loopback device of the new network up, and puts the file of the first argument in the
/// place of the system's; then the rest of the arguments is run.
const ENTER: &str =
    "ip link set lo up && mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";

const READS: usize = 80;

/// As many threads as the reads of a node have, and as all blocking work once had together.
const HANGING: usize = 16;

/// A name server on the loopback device: every name is there, until it is to hang.
fn serve_names(hangs: &AtomicBool) {
    let socket = UdpSocket::bind("127.0.0.1:53").expect("the network is the test's own");
    let mut query = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut query).expect("a query");
        if hangs.load(Ordering::Relaxed) {
            continue;
        }
        // RFC 1035: the id; flags; how many questions, answers, and others; and the question, a
        // name with a zero at its end, a type and a class.
        let query = &query[..length];
        let name = query[12..].iter().position(|byte| *byte == 0).expect("the end of the name");
        let question = &query[12..12 + name + 5];
        let is_address = question[name + 1..name + 3] == [0, 1];
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
        answer.extend(question);
        if is_address {
            // The name of the question; an address of the internet; kept for no time.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&answer, client).expect("an answer");
    }
}

#[test]
fn a_name_server_that_hangs_holds_up_no_read() {
    if env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        return runtime.block_on(reads_while_names_hang());
    }
    if !met("a_name_server_that_hangs_holds_up_no_read", Need::Namespaces) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let servers = directory.path().join("resolv.conf");
    fs::write(&servers, "nameserver 127.0.0.1\n").expect("a file");
    let inside = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", ENTER, "sh"])
        .arg(&servers)
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", "a_name_server_that_hangs_holds_up_no_read", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("it starts again");
    assert!(inside.success(), "inside: {inside}");
}

/// The threads of a node's runtime now: one for each processor, and those that wait for something.
fn threads(pid: u32) -> usize {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
    let tasks = tasks.expect("the process is there").map_while(Result::ok);
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("tokio-rt-worker")).count()
}

async fn reads_while_names_hang() {
    let hangs = Arc::new(AtomicBool::new(false));
    let server = Arc::clone(&hangs);
    std::thread::spawn(move || serve_names(&server));
    let mut cluster = Cluster::prepare(ClusterOptions { shards: 2, ..ClusterOptions::default() });
    let named: Vec<String> = cluster
        .ids()
        .into_iter()
        .map(|id| cluster.peer_address(id).replace("127.0.0.1", &format!("node{id}.quorate.test")))
        .collect();
    let initial: Vec<String> =
        (1..).zip(&named).map(|(id, address)| format!("{id}={address}")).collect();
    let initial = initial.join(",");
    let names = |id: u64| ["--advertise", &named[id as usize - 1], "--initial-cluster", &initial];
    for id in cluster.ids() {
        cluster.start_node_with(id, &names(id));
    }
    cluster.wait_ready().await;
    fill(&cluster.client(), "kept", READS as u32).await;
    cluster.wait_equal().await;
    for id in cluster.ids() {
        assert_eq!(cluster.stop(id), Exit::Code(0));
    }

    // Alone, so that it asks for the names of the others without end, with nothing in its caches.
    hangs.store(true, Ordering::Relaxed);
    cluster.start_node_with(1, &names(1));
    let processors = std::thread::available_parallelism().expect("their number").get();
    until("the threads of node 1 wait for names", TIMEOUT, || {
        (threads(cluster.pid(1)) >= processors + HANGING).then_some(())
    });
    let kv = cluster.kv(1);
    let reads = (0..READS).map(|number| {
        let mut kv = kv.clone();
        async move {
            let key = format!("kept-{number}").into();
            let read = at(ReadLevel::Stale);
            let get = GetRequest { key, read, ..GetRequest::default() };
            let got = kv.get(within(CALL, get)).await;
            let got = got.unwrap_or_else(|status| panic!("read {number}: {status}")).into_inner();
            assert_eq!(got.value, format!("kept {number}"));
        }
    });
    let began = std::time::Instant::now();
    futures::future::join_all(reads).await;
    let took = began.elapsed();
    eprintln!("{READS} reads beside {} threads took {took:?}", threads(cluster.pid(1)));
    assert!(took < Duration::from_secs(1), "they waited: {took:?}");
}
