//! Executes README.md: every command of its code blocks, and its Python program. Commands are taken
//! from the text as they stand; only ports, directories, and `cargo run` (the program is built
//! already) are replaced. A command that this file has no expectation for fails it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use quorate_tests::binaries::{self, repository};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::needs::{Need, met};
use quorate_tests::ports::{Port, lease_at};
use quorate_tests::{Cluster, ClusterOptions, Exit, Watched, until};
use rustix::process::Signal;
use tempfile::TempDir;

/// A fenced block: the heading it stands under, its language, its text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    heading: String,
    language: String,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let (heading, language) = (heading.clone(), language.to_owned());
            blocks.push(Block { heading, language, text: text.join("\n") });
        } else if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim().to_owned();
        }
    }
    blocks
}

fn readme() -> Vec<Block> {
    blocks(&fs::read_to_string(repository().join("README.md")).expect("the README"))
}

/// The commands under a heading, in order.
fn commands(heading: &str) -> Vec<String> {
    let of_heading = readme().into_iter().filter(|b| b.heading == heading && b.language == "sh");
    of_heading.flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// A place to run commands in: an empty directory, the programs on the PATH, kvctl's usual
/// endpoints replaced.
struct Place {
    directory: TempDir,
    endpoints: String,
}

impl Place {
    fn new(endpoints: &str) -> Place {
        let directory = tempfile::tempdir().expect("a directory");
        let programs = directory.path().join("bin");
        fs::create_dir(&programs).expect("the directory is empty");
        for program in ["kvnode", "kvctl"] {
            let target = binaries::path(program).canonicalize().expect("the program is there");
            symlink(target, programs.join(program)).expect("the directory is empty");
        }
        symlink(repository().join("proto"), directory.path().join("proto")).expect("as before");
        Place { directory, endpoints: endpoints.to_owned() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The command that a line is, with the programs that are built already.
    fn command(&self, line: &str) -> Command {
        let line = line.replace("cargo run --release --bin kvnode --", "kvnode");
        let line = line.replace("cargo run --release --bin kvctl --", "kvctl");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .args(["-c", &line])
            .current_dir(self.path())
            .env("PATH", format!("{}:{path}", self.path().join("bin").display()))
            .env("KVCTL_ENDPOINTS", &self.endpoints)
            .env("XDG_DATA_HOME", self.path());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("sh starts")
    }

    /// Runs a line that must succeed and print exactly this on its standard output.
    fn expect(&self, line: &str, printed: &str) {
        let output = self.run(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}\n{errors}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), printed, "{line}\n{errors}");
    }

    /// Runs a line that must succeed and print each of these somewhere.
    fn expect_parts(&self, line: &str, parts: &[&str]) {
        let output = self.run(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}\n{errors}");
        let printed = format!("{}{errors}", String::from_utf8_lossy(&output.stdout));
        for part in parts {
            assert!(printed.contains(part), "{line}: no {part:?} in\n{printed}");
        }
    }
}

fn endpoints(ports: &[Port]) -> String {
    ports.iter().map(Port::address).collect::<Vec<_>>().join(",")
}

/// Replaces the ports that the README uses.
fn with_ports(text: &str, ports: &[Port]) -> String {
    let numbers = (7401..7404).chain(7501..7504).zip(ports);
    numbers.fold(text.to_owned(), |text, (written, port)| {
        text.replace(&format!("127.0.0.1:{written}"), &port.address())
    })
}

#[test]
fn every_block_is_executed_by_a_test() {
    let found: BTreeSet<(String, String)> =
        readme().into_iter().map(|block| (block.heading, block.language)).collect();
    let executed = [
        ("One minute", "sh"),
        ("A cluster by hand", "sh"),
        ("kvctl", "sh"),
        ("From any language", "sh"),
        ("From any language", "python"),
        // What runs this test; `.ci/run` runs it as it stands.
        ("Tests", "sh"),
    ];
    let executed = executed.map(|(heading, language)| (heading.to_owned(), language.to_owned()));
    assert_eq!(found, BTreeSet::from(executed));
    let tests = commands("Tests");
    assert_eq!(tests, ["cargo test --workspace"]);
    let ci = fs::read_to_string(repository().join(".ci/run")).expect("what CI runs");
    assert!(ci.lines().any(|line| line.contains(&tests[0])), "CI runs the README's test command");
}

#[test]
fn the_first_minute() {
    let lines = commands("One minute");
    let [dev, put, get, status] = &lines[..] else { panic!("four commands: {lines:#?}") };
    let ports = lease_at(&[0, 1, 2, 50, 51, 52, 100, 101, 102]);
    let place = Place::new(&endpoints(&ports[..3]));
    assert!(dev.ends_with("kvnode -- dev"), "{dev}");
    let dev = format!("exec {dev} --base-port {}", ports[0].number());
    let mut cluster = Watched::spawn(&mut place.command(&dev));
    let kill = cluster.line(&["kill -9 "]);
    cluster.line(&["ready: 8 of 8 shards have leaders"]);
    place.expect(put, "OK\n");
    place.expect(get, "hello, world");
    place.expect_parts(status, &["8 of 8 shards serve; 3 of 3 nodes answer"]);

    // "Kill any node and go on": the others elect, and nothing is lost.
    place.expect(&kill, "");
    cluster.line(&["n2 was killed (signal 9)"]);
    place.expect(get, "hello, world");
    place.expect(put, "OK\n");
    until("the others serve all shards", TIMEOUT, || {
        let output = place.run(status);
        let printed = String::from_utf8_lossy(&output.stdout);
        printed.contains("8 of 8 shards serve; 2 of 3 nodes answer").then_some(())
    });
    cluster.signal(Signal::INT);
    assert_eq!(cluster.wait_end(), Exit::Code(0));
}

#[test]
fn a_cluster_by_hand_and_kvctl() {
    let lines = commands("A cluster by hand");
    let [secret, first, second, third, inspect, entries, compose] = &lines[..] else {
        panic!("seven commands: {lines:#?}")
    };
    // The test of the containers runs it.
    assert_eq!(compose, "docker-compose up --build --detach");
    let ports = lease_at(&[0, 1, 2, 100, 101, 102]);
    let place = Place::new(&endpoints(&ports[..3]));
    place.expect(secret, "");
    let mut nodes: Vec<Watched> = [first, second, third]
        .map(|line| {
            Watched::spawn(&mut place.command(&format!("exec {}", with_ports(line, &ports))))
        })
        .into();
    for node in &mut nodes {
        node.line(&["ready: 64 of 64 shards have leaders"]);
    }

    for line in commands("kvctl") {
        match line.as_str() {
            "kvctl put user:1 ada" => place.expect(&line, "OK\n"),
            "kvctl put user:1 grace --if-revision 0 || echo \"somebody was here before\"" => {
                // A condition that does not hold prints what is there: here without a new line,
                // because this is not a terminal.
                place.expect(&line, "adasomebody was here before\n");
            }
            "kvctl cas user:1 --expect ada --value grace" => place.expect(&line, "OK\n"),
            "kvctl incr visits 3" => place.expect(&line, "3\n"),
            // It promises no more than some state of the past.
            "kvctl get user:1 --consistency stale -v" => until("it says grace", TIMEOUT, || {
                let output = place.run(&line);
                let receipt = String::from_utf8_lossy(&output.stderr);
                assert!(receipt.contains("stale · "), "{receipt}");
                (output.stdout == b"grace").then_some(())
            }),
            "kvctl scan user: -o json" => {
                place.expect_parts(&line, &[r#""key":"user:1","value":"grace""#]);
            }
            r"printf 'a\t1\nb\t2\n' | kvctl load -" => {
                place.expect_parts(&line, &["2 put, 0 unchanged, 0 failed, 0 unknown"]);
            }
            r#"echo '{"op": "increment", "key": "visits", "by": 2}' | kvctl batch"# => {
                place.expect(&line, "visits\t5\n");
            }
            "kvctl transfer 1 n2" => place.expect(&line, "n2\n"),
            "kvctl limits" => place.expect_parts(&line, &["key_bytes_max", "levels"]),
            "kvctl locate user:1" => place.expect_parts(&line, &["shard ", "leader ", "replicas "]),
            "kvctl shards" => place.expect_parts(&line, &["SHARD", " 64 "]),
            "kvctl bench put --clients 64 --duration 5s" => {
                place.expect_parts(&line, &["64 clients", "PER SECOND", "P99"]);
            }
            _ => panic!("no expectation for {line:?}"),
        }
    }
    // The commands that the text names.
    place.expect_parts("kvctl --help", &["Usage: kvctl"]);
    place.expect_parts("kvnode config show --data-dir d", &["KEY", "SOURCE", "data-dir"]);
    for node in &nodes {
        node.signal(Signal::TERM);
    }
    for node in &mut nodes {
        assert_eq!(node.wait_end(), Exit::Code(0));
    }
    place.expect_parts(inspect, &["last run     stopped in order", "SHARD", "Nothing is wrong."]);
    // How many are still there depends on the last checkpoint: none, where it covers all of them.
    let output = place.run(entries);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout).expect("text").lines() {
        assert!(line.starts_with(r#"{"shard":1,"index":"#) && line.ends_with('}'), "{line}");
    }
}

#[test]
fn one_node_alone() {
    let text = fs::read_to_string(repository().join("README.md")).expect("the README");
    let line = "kvnode start --data-dir d";
    assert!(text.contains(&format!("`{line}` without more is a cluster of one node")));
    let ports = lease_at(&[0]);
    let place = Place::new(&ports[0].address());
    let listen = format!(" --listen {}", ports[0].address());
    let mut node = Watched::spawn(&mut place.command(&format!("exec {line}{listen}")));
    node.line(&["ready: 64 of 64 shards have leaders"]);
    place.expect("kvctl put greeting hello", "OK\n");
    node.signal(Signal::TERM);
    assert_eq!(node.wait_end(), Exit::Code(0));

    // Beyond loopback it does not start without `--insecure`.
    let output = place.run(&format!("{line} --listen 0.0.0.0:{}", ports[0].number()));
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--insecure"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_python() {
    if !met("from_python", Need::PythonGrpc) {
        return;
    }
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let place = Place::new(&cluster.endpoints());
    let generate = &commands("From any language")[0];
    place.expect(generate, "");
    let program = readme().into_iter().find(|block| block.language == "python");
    let program = program.expect("the README has a program").text;
    let lines = program.lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 25, "{lines} lines");
    let program = program.replace("127.0.0.1:7401", &cluster.endpoint(1));
    fs::write(place.path().join("example.py"), program).expect("the directory is ours");
    let output = place.run("python3 example.py");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let printed = String::from_utf8(output.stdout).expect("text");
    let [first, again, read, refused] = printed.lines().collect::<Vec<_>>()[..] else {
        panic!("four lines: {printed}");
    };
    assert_eq!((first, again), ("1 applied", "1 replayed"));
    assert!(read.starts_with("b'1' by node "), "{read}");
    assert!(refused.starts_with("REASON_BAD_KEY - "), "{refused}");
}

/// What grpcurl does with the server's description of its own API, done by Python's implementation.
#[tokio::test(flavor = "multi_thread")]
async fn reflection_from_python() {
    if !met("reflection_from_python", Need::PythonGrpc) {
        return;
    }
    let cluster = Cluster::start(ClusterOptions { shards: 1, ..ClusterOptions::default() }).await;
    let put = cluster.kvctl(&["put", "greeting", "hello"]);
    assert!(put.status.success());
    let place = Place::new(&cluster.endpoints());
    fs::write(place.path().join("reflect.py"), REFLECT).expect("the directory is ours");
    let output = place.run(&format!("python3 reflect.py {}", cluster.endpoint(1)));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let expected = "grpc.health.v1.Health\nquorate.v1.Cluster\nquorate.v1.Kv\nhello\n";
    let printed = String::from_utf8_lossy(&output.stdout);
    let without_itself: Vec<&str> =
        printed.lines().filter(|line| !line.starts_with("grpc.reflection.")).collect();
    assert_eq!(without_itself.join("\n") + "\n", expected, "{printed}");
}

/// Lists the services, then calls Get with messages made of what the server says of them.
const REFLECT: &str = r#"
import sys
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

channel = grpc.insecure_channel(sys.argv[1])
reflection = ProtoReflectionDescriptorDatabase(channel)
for service in sorted(reflection.get_services()):
    print(service)
method = DescriptorPool(reflection).FindMethodByName("quorate.v1.Kv.Get")
request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
get = channel.unary_unary(
    "/quorate.v1.Kv/Get", request.SerializeToString, response.FromString
)
print(get(request(key=b"greeting"), timeout=5).value.decode())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn from_grpcurl() {
    if !met("from_grpcurl", Need::Grpcurl) {
        return;
    }
    let cluster = Cluster::start(ClusterOptions { shards: 1, ..ClusterOptions::default() }).await;
    let put = cluster.kvctl(&["put", "greeting", "hello, world"]);
    assert!(put.status.success());
    let place = Place::new(&cluster.endpoints());
    let line = commands("From any language")[1].replace("127.0.0.1:7401", &cluster.endpoint(1));
    place.expect_parts(&line, &["aGVsbG8sIHdvcmxk"]);
}
