//! The cluster of containers as a user runs it, tested from the host: built from the Dockerfile,
//! loaded, a leader killed, a node cut off and given another address, everything taken down and up
//! again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use quorate_tests::binaries::{self, repository};
use quorate_tests::needs::{Need, met};
use quorate_tests::ports::{Port, lease};
use quorate_tests::until;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

/// The project's name, always the same: so the engine's layers are found again by the next run, and
/// what a run that was killed has left is removed by it.
const PROJECT: &str = "quorate-test";
/// The image to build in, where no other is named and none can be pulled.
const BASE: &str = "quorate-build-base";
/// Containers start and elect on machines that do much else.
const TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn the_cluster_of_containers() {
    if !met("the_cluster_of_containers", Need::Docker) {
        return;
    }
    let began = Instant::now();
    let project = Project::new();
    project.up();
    eprintln!("built and up after {:?}", began.elapsed());
    let mut stored = BTreeMap::new();
    project.load(&mut stored, "first", 2_000);
    project.check_manners();
    project.kill_a_leader_under_load(&mut stored);
    project.disconnect_and_come_back_elsewhere(&mut stored);
    project.compare(&stored);
    project.down_and_up();
    project.compare(&stored);
    project.load(&mut stored, "last", 100);
    project.remove();
    assert_eq!(project.leftovers(), "", "everything is removed");
    eprintln!("all of it took {:?}", began.elapsed());
}

/// The compose project of this test.
struct Project {
    ports: Vec<Port>,
    base: String,
    opt_level: String,
    directory: TempDir,
    _alone: File,
}

impl Project {
    /// Waits until it is the only one, and removes what an earlier one left.
    fn new() -> Project {
        let path = std::env::temp_dir().join("quorate-test-compose.lock");
        let alone = File::options().create(true).truncate(false).write(true).open(path);
        let alone = alone.expect("a lock file");
        flock(&alone, FlockOperation::LockExclusive).expect("the lock is waited for");
        let base = std::env::var("RUST_BASE").unwrap_or_else(|_| made_here());
        // By default the image is looked at, not its speed: that spares some of the build.
        let opt_level = std::env::var("OPT_LEVEL").unwrap_or_else(|_| "1".to_owned());
        let directory = tempfile::tempdir().expect("a directory");
        let project = Project { ports: lease(6), base, opt_level, directory, _alone: alone };
        project.remove();
        project
    }

    /// A command at the top of the repository, with this project's settings.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(repository())
            .env("COMPOSE_PROJECT_NAME", PROJECT)
            .env("RUST_BASE", &self.base)
            .env("OPT_LEVEL", &self.opt_level)
            .env("NODE_MEMORY", "256MiB")
            .stdin(Stdio::null());
        for id in 1..=3 {
            command.env(format!("NODE{id}_PORT"), self.port(id).number().to_string());
            let metrics = self.ports[id + 2].number().to_string();
            command.env(format!("NODE{id}_METRICS_PORT"), metrics);
        }
        command
    }

    fn port(&self, id: usize) -> &Port {
        &self.ports[id - 1]
    }

    fn compose(&self, arguments: &[&str]) -> String {
        output_of(&mut self.command("docker-compose", arguments))
    }

    /// The README's command; then every container becomes healthy, and the cluster serves.
    fn up(&self) {
        let readme = fs::read_to_string(repository().join("README.md")).expect("the README");
        let line = "docker-compose up --build --detach";
        assert!(readme.lines().any(|of_readme| of_readme == line), "the README says {line}");
        output_of(&mut self.command("sh", &["-c", line]));
        self.wait_healthy();
    }

    fn wait_healthy(&self) {
        until("every container is healthy", TIMEOUT, || {
            (1..=3).all(|id| self.health(id) == "healthy").then_some(())
        });
        self.wait_served("64 of 64 shards serve; 3 of 3 nodes answer");
    }

    fn wait_served(&self, sentence: &str) {
        until(sentence, TIMEOUT, || {
            let output = self.kvctl(&["status"]).output().expect("kvctl starts");
            String::from_utf8_lossy(&output.stdout).contains(sentence).then_some(())
        });
    }

    fn health(&self, id: usize) -> String {
        docker(&["inspect", "--format", "{{.State.Health.Status}}", &self.container(id)])
    }

    fn container(&self, id: usize) -> String {
        let service = format!("label=com.docker.compose.service=node{id}");
        let found = docker(&["ps", "-aq", "--filter", &of_project(), "--filter", &service]);
        assert_eq!(found.lines().count(), 1, "node {id} is one container: {found}");
        found
    }

    /// kvctl on this machine, asking the published ports.
    fn kvctl(&self, arguments: &[&str]) -> Command {
        let endpoints: Vec<String> = (1..=3).map(|id| self.port(id).address()).collect();
        let mut command = Command::new(binaries::path("kvctl"));
        command.args(["--endpoints", &endpoints.join(",")]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Starts to load records; each is expected to be there from now on.
    fn begin_load(
        &self,
        stored: &mut BTreeMap<String, String>,
        prefix: &str,
        count: usize,
        more: &[&str],
    ) -> Child {
        let file = self.directory.path().join(prefix);
        let records = (0..count).map(|n| (format!("{prefix}-{n:05}"), format!("value {n}")));
        let records: BTreeMap<String, String> = records.collect();
        let lines = records.iter().map(|(key, value)| format!("{key}\t{value}\n"));
        fs::write(&file, lines.collect::<String>()).expect("the directory is ours");
        stored.extend(records);
        let mut command = self.kvctl(&["--timeout", "120s", "load"]);
        command.args(more).arg(file).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("kvctl starts")
    }

    fn end_load(load: Child, count: usize) {
        let output = load.wait_with_output().expect("kvctl ends");
        let said = text_of(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains(&format!("{count} put, 0 unchanged, 0 failed, 0 unknown")), "{said}");
    }

    fn load(&self, stored: &mut BTreeMap<String, String>, prefix: &str, count: usize) {
        Self::end_load(self.begin_load(stored, prefix, count, &[]), count);
    }

    /// What the image and deploy/README.md promise beside the data.
    fn check_manners(&self) {
        assert_eq!(
            self.compose(&["exec", "-T", "node2", "kvctl", "get", "first-00007"]),
            "value 7"
        );
        let shown = self.compose(&["exec", "-T", "node1", "kvnode", "config", "show"]);
        assert!(shown.contains("environment QUORATE_SHARDS"), "{shown}");
        let user = docker(&["inspect", "--format", "{{.Config.User}}", &self.container(1)]);
        assert_eq!(user, "10001:10001");
        let published = docker(&["port", &self.container(1)]);
        assert!(published.lines().all(|line| line.contains("127.0.0.1:")), "{published}");
    }

    /// The node that leads the shard of a key.
    fn leader_of(&self, key: &str) -> usize {
        until("the shard has a leader", TIMEOUT, || {
            let output = self.kvctl(&["locate", key]).output().expect("kvctl starts");
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            let leader = told.lines().find_map(|line| line.strip_prefix("leader"))?.trim();
            leader.strip_prefix('n')?.parse().ok()
        })
    }

    /// Nothing fails, and nothing becomes unknown, while a leader is killed in the middle of a
    /// load.
    fn kill_a_leader_under_load(&self, stored: &mut BTreeMap<String, String>) {
        let load = self.begin_load(stored, "killed", 3_000, &["--rate", "500"]);
        until("the load has begun", TIMEOUT, || {
            let got = self.kvctl(&["get", "killed-00100"]).output().expect("kvctl starts");
            got.status.success().then_some(())
        });
        let victim = self.leader_of("killed-00100");
        docker(&["kill", &self.container(victim)]);
        let got = self.kvctl(&["get", "killed-02999"]).output().expect("kvctl starts");
        assert_eq!(got.status.code(), Some(1), "the load was still under way: {}", text_of(&got));
        Self::end_load(load, 3_000);
        self.wait_served("64 of 64 shards serve; 2 of 3 nodes answer");
        docker(&["start", &self.container(victim)]);
        self.wait_healthy();
    }

    /// A node off its network is not restarted for that, the others go on, and it catches up at
    /// another address.
    fn disconnect_and_come_back_elsewhere(&self, stored: &mut BTreeMap<String, String>) {
        let away = self.leader_of("first-00000");
        let container = self.container(away);
        let network = docker(&["network", "ls", "-q", "--filter", &of_project()]);
        let address = || {
            let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
            docker(&["inspect", "--format", format, &container])
        };
        let before = address();
        docker(&["network", "disconnect", &network, &container]);
        self.load(stored, "without", 1_000);
        self.wait_served("64 of 64 shards serve; 2 of 3 nodes answer");
        assert_eq!(self.health(away), "healthy", "a node is not judged by the others");

        // Somebody else takes its address meanwhile.
        let image = docker(&["inspect", "--format", "{{.Image}}", &container]);
        let label = of_project();
        let label = label.strip_prefix("label=").expect("a filter of a label");
        docker(&["run", "--detach", "--label", label, "--network", &network, &image]);
        let alias = format!("node{away}");
        docker(&["network", "connect", "--alias", &alias, &network, &container]);
        assert_ne!(address(), before, "it has another address");
        self.wait_healthy();
        until("it has what was written without it", TIMEOUT, || {
            let mut command = Command::new(binaries::path("kvctl"));
            command.args(["--endpoints", &self.port(away).address(), "--consistency", "stale"]);
            let got = command.args(["get", "without-00999"]).output().expect("kvctl starts");
            (got.stdout == b"value 999").then_some(())
        });
    }

    /// Every record is there, and nothing else.
    fn compare(&self, stored: &BTreeMap<String, String>) {
        let scanned = output_of(self.kvctl(&["--timeout", "60s", "scan"]).stderr(Stdio::piped()));
        let found: BTreeMap<String, String> = scanned
            .lines()
            .map(|line| line.split_once('\t').expect("key and value"))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let missing = stored.iter().filter(|(key, value)| found.get(*key) != Some(value)).count();
        assert_eq!((missing, found.len()), (0, stored.len()), "missing or other; found");
    }

    /// The volumes outlive the containers.
    fn down_and_up(&self) {
        self.compose(&["stop"]);
        for id in 1..=3 {
            let code = docker(&["inspect", "--format", "{{.State.ExitCode}}", &self.container(id)]);
            assert_eq!(code, "0", "node {id} ends in order");
        }
        docker(&["rm", "--force", "--volumes", &self.others()]);
        self.compose(&["down"]);
        assert_eq!(docker(&["ps", "-aq", "--filter", &of_project()]), "");
        let volumes = docker(&["volume", "ls", "-q", "--filter", &of_project()]);
        assert_eq!(volumes.lines().count(), 4, "one of each node and the secret's: {volumes}");
        self.compose(&["up", "--detach"]);
        self.wait_healthy();
    }

    /// The container that took an address, which is none of a service.
    fn others(&self) -> String {
        let all = docker(&["ps", "-aq", "--filter", &of_project()]);
        let nodes: Vec<String> = (1..=3).map(|id| self.container(id)).collect();
        let made = ["--filter", "label=com.docker.compose.service=secret"];
        let secret = docker(&[&["ps", "-aq", "--filter", &of_project()][..], &made].concat());
        let mut others =
            all.lines().filter(|id| *id != secret && !nodes.iter().any(|node| node == id));
        others.next().expect("it runs").to_owned()
    }

    /// Removes the project's containers, networks and volumes; images stay for the next run.
    fn remove(&self) {
        for (list, remove) in [
            (&["ps", "-aq"][..], &["rm", "--force", "--volumes"][..]),
            (&["network", "ls", "-q"], &["network", "rm"]),
            (&["volume", "ls", "-q"], &["volume", "rm"]),
        ] {
            let found = docker(&[list, &["--filter", &of_project()]].concat());
            let found: Vec<&str> = found.lines().collect();
            if !found.is_empty() {
                docker(&[remove, &found].concat());
            }
        }
    }

    fn leftovers(&self) -> String {
        [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]]
            .map(|list| docker(&[list, &["--filter", &of_project()]].concat()))
            .concat()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.command("docker-compose", &["logs", "--no-color", "--tail", "40"]);
            let mut logs = logs;
            if let Ok(output) = logs.output() {
                eprintln!("--- the end of the logs\n{}", text_of(&output));
            }
            // What cannot be removed now is removed by the next run.
            let _ = std::panic::catch_unwind(|| self.remove());
        }
    }
}

fn of_project() -> String {
    format!("label=com.docker.compose.project={PROJECT}")
}

/// The base image of this very system, made if it is not there.
fn made_here() -> String {
    let there = Command::new("docker").args(["image", "inspect", BASE]).output();
    if !there.expect("docker starts").status.success() {
        let script = Path::new("deploy/base-image.sh");
        output_of(Command::new(repository().join(script)).arg(BASE).current_dir(repository()));
    }
    BASE.to_owned()
}

fn docker(arguments: &[&str]) -> String {
    output_of(Command::new("docker").args(arguments))
}

/// Runs a command that must succeed; its standard output, trimmed.
fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text_of(&output));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn text_of(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}
