//! The files in `deploy/` for operators, against the programs: the unit of systemd and what a node
//! notifies it of, and the metrics that rules, alerts and the dashboard name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};

use quorate_tests::binaries::{self, repository};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::needs::{Need, met};
use quorate_tests::raw::key_in;
use quorate_tests::{Cluster, ClusterOptions, Exit, Watched, until};
use rustix::process::Signal;
use serde_json::Value;

const UNIT: &str = "deploy/systemd/kvnode.service";
const RULES: &str = "deploy/prometheus/rules.yml";
const ALERTS: &str = "deploy/prometheus/alerts.yml";
const SCRAPE: &str = "deploy/prometheus/scrape.yml";
const DASHBOARD: &str = "deploy/grafana/quorate.json";
const ALERT_TESTS: &str = "tests/deploy/alerts.yml";

fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is a text in {value}"))
}

/// All rules of a file of Prometheus.
fn rules(file: &str) -> Vec<Value> {
    let groups = yaml(file)["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// The queries of the dashboard: of its panels, and of its variables.
fn dashboard() -> Vec<String> {
    let page: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let panels = page["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| text(target, "expr").to_owned()).collect()
}

/// Every query, with the file that it is in.
fn queries() -> Vec<(&'static str, String)> {
    let mut found: Vec<_> = [RULES, ALERTS]
        .into_iter()
        .flat_map(|file| rules(file).into_iter().map(move |rule| (file, rule)))
        .map(|(file, rule)| (file, text(&rule, "expr").to_owned()))
        .collect();
    found.extend(dashboard().into_iter().map(|query| (DASHBOARD, query)));
    found
}

/// Words of the language that stand where a name of a metric may.
const WORDS: [&str; 18] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "and",
    "or",
    "unless",
    "sum",
    "min",
    "max",
    "avg",
    "count",
    "topk",
    "quantile",
];

/// The metrics that a query names, each with the labels that it chooses them by.
fn metrics_of(query: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut rest = query;
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let after = rest[end..].trim_start();
        if end > 0 && c.is_ascii_digit() {
            rest = &rest[end..];
        } else if end > 0 {
            let (name, is_word) = (&rest[..end], WORDS.contains(&&rest[..end]));
            rest = after;
            // The labels of `by (…)` are not metrics; a function's arguments may be.
            let lists = ["by", "without", "on", "ignoring", "group_left", "group_right"];
            if lists.contains(&name) {
                rest = after.split_once(')').map_or("", |(_, rest)| rest);
            } else if !is_word && !after.starts_with('(') {
                found.push((name.to_owned(), Vec::new()));
            }
        } else if c == '{' {
            let (inside, after) = rest[1..].split_once('}').expect("braces are closed");
            // Texts go first: they may have commas and names.
            let plain: String = inside.split('"').step_by(2).collect();
            let names = plain.split(|c| !is_name(c)).filter(|name| !name.is_empty());
            let metric = found.last_mut().expect("a selector begins with its metric");
            metric.1.extend(names.map(str::to_owned));
            rest = after;
        } else if c == '[' {
            rest = rest.split_once(']').expect("brackets are closed").1;
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

#[test]
fn the_search_for_metrics_sees_them() {
    let found = |query: &str| {
        let found = metrics_of(query).into_iter();
        found.map(|(name, labels)| format!("{name} {}", labels.join(","))).collect::<Vec<_>>()
    };
    assert_eq!(found(r#"up{job="a, b", c=~"d|e"} == 0"#), ["up job,c"]);
    assert_eq!(
        found("sum by (job) (rate(a_total[5m])) / on (x) b:c:d5m > 3 * 1e3"),
        ["a_total ", "b:c:d5m "]
    );
    assert_eq!(found(r#"predict_linear(a{x="1"}[1h], 4 * 3600) < 0 and b"#), ["a x", "b "]);
    assert_eq!(found("histogram_quantile(0.99, sum by (le) (rate(a_bucket[$x])))"), ["a_bucket "]);
}

/// The samples that the page of a node can have, by its lines of types, each with the labels that
/// were seen.
fn samples(page: &str, into: &mut BTreeMap<String, BTreeSet<String>>) {
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').expect("a name and a type");
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                other => panic!("{name} has the type {other}"),
            };
            for ending in endings {
                into.entry(format!("{name}{ending}")).or_default();
            }
        } else if let Some((name, labels)) = line.split_once('{') {
            let (labels, _) = labels.split_once('}').expect("braces are closed");
            let plain: Vec<&str> = labels.split('"').step_by(2).collect();
            let names = plain.iter().map(|name| name.trim_matches([',', '=']));
            let known = into.get_mut(name).unwrap_or_else(|| panic!("{name} has a type"));
            known.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
}

/// What the queries name and no node has: neither a sample nor a rule.
fn unknown(known: &BTreeMap<String, BTreeSet<String>>, recorded: &BTreeSet<String>) -> Vec<String> {
    let mut unknown = Vec::new();
    for (file, query) in queries() {
        let metrics = metrics_of(&query);
        assert!(!metrics.is_empty(), "{file}: {query}");
        for (name, labels) in metrics {
            // Prometheus itself adds what its target is and whether it answers.
            if name == "up" || recorded.contains(&name) {
                continue;
            }
            let Some(has) = known.get(&name) else {
                unknown.push(format!("{file}: {name}"));
                continue;
            };
            let of_target = |label: &String| label == "job" || label == "instance";
            let other =
                labels.into_iter().filter(|label| !of_target(label) && !has.contains(label));
            unknown.extend(other.map(|label| format!("{file}: {name} has no label {label}")));
        }
    }
    unknown
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_rules_alerts_and_dashboard_is_on_a_nodes_page() {
    let cluster = Cluster::start(ClusterOptions { shards: 2, ..ClusterOptions::default() }).await;
    let client = cluster.client();
    client.put(key_in(1, 2, "a"), "b").await.expect("a put");
    let recorded: BTreeSet<String> =
        rules(RULES).iter().map(|rule| text(rule, "record").to_owned()).collect();
    let mut known = BTreeMap::new();
    let mut left = Vec::new();
    // The gauges are set once a second, and a peer's clock is known after its first heartbeat.
    until("the pages have every metric that is named", TIMEOUT, || {
        for id in cluster.ids() {
            let (code, page) = cluster.page(id, "/metrics");
            assert_eq!(code, 200, "{page}");
            samples(&page, &mut known);
        }
        let now = unknown(&known, &recorded);
        if now != left {
            eprintln!("not on a page yet: {now:?}");
            left = now;
        }
        left.is_empty().then_some(())
    });
}

#[test]
fn each_alert_has_its_section_and_its_tests() {
    let alerts = rules(ALERTS);
    let names: BTreeSet<&str> = alerts.iter().map(|alert| text(alert, "alert")).collect();
    assert_eq!(names.len(), alerts.len(), "each has a name of its own");
    for alert in &alerts {
        let name = text(alert, "alert");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        let notes = &alert["annotations"];
        assert!(!text(notes, "summary").is_empty(), "{name}");
        assert!(text(notes, "description").ends_with('.'), "{name}");
        let section = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(text(notes, "runbook"), section, "{name}");
    }
    let book = read("deploy/RUNBOOK.md");
    let sections: Vec<&str> = book.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let set: BTreeSet<&str> = sections.iter().copied().collect();
    assert_eq!(set, names, "the runbook has one section for each alert");
    assert_eq!(sections.len(), names.len(), "and each once");
    let tests = yaml(ALERT_TESTS)["tests"].as_array().expect("tests").clone();
    let tested: BTreeSet<&str> = tests.iter().map(|test| text(test, "name")).collect();
    assert_eq!(tested, names, "{ALERT_TESTS} has one test for each alert");
    for test in &tests {
        let expected = test["promql_expr_test"].to_string();
        let fires = format!("alertname=\\\"{}\\\"", text(test, "name"));
        assert!(expected.contains(&fires), "the test of {} makes it fire", text(test, "name"));
    }
}

/// Every command of ours in the runbook's blocks is one that the program has.
#[test]
fn the_commands_of_the_runbook_exist() {
    let book = read("deploy/RUNBOOK.md");
    let mut tried = BTreeSet::new();
    for block in book.split("```sh\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block ends");
        for line in block.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["kvctl" | "kvnode", ..] = words[..] else { continue };
            let is_flag_or_value = |word: &&&str| word.contains(['-', '/']);
            let known = words.iter().filter(|word| !is_flag_or_value(word)).take(2);
            tried.insert(known.copied().collect::<Vec<_>>());
        }
    }
    assert!(tried.len() > 5, "{tried:?}");
    for command in tried {
        let mut program = Command::new(binaries::path(command[0]));
        let output = program.args(&command[1..]).arg("--help").output().expect("it starts");
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
}

/// Runs promtool at the top of the repository.
fn promtool(arguments: &[&str]) -> Output {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(repository()).output().expect("promtool starts")
}

#[test]
fn promtool_takes_the_files_and_each_alert_fires_and_stays_silent() {
    if !met("promtool_takes_the_files_and_each_alert_fires_and_stays_silent", Need::Promtool) {
        return;
    }
    // The queries of the dashboard become rules, for their syntax.
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("dashboard.json");
    let rules: Vec<Value> = dashboard()
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let query = query.replace("$__rate_interval", "5m");
            serde_json::json!({"record": format!("panel:{number}"), "expr": query})
        })
        .collect();
    let group = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(&page, group.to_string()).expect("a file");
    let page = page.to_str().expect("a path in UTF-8");
    for arguments in [
        &["check", "rules", RULES, ALERTS, page][..],
        &["check", "config", SCRAPE],
        &["test", "rules", ALERT_TESTS],
    ] {
        let output = promtool(arguments);
        assert!(output.status.success(), "promtool {arguments:?}: {output:?}");
    }
}

/// The value of a setting of the unit.
fn setting(name: &str) -> String {
    let unit = read(UNIT);
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("{UNIT} has no {name}"));
    assert_eq!(values.next(), None, "{name} once");
    value.to_owned()
}

#[test]
fn systemd_takes_the_unit() {
    if !met("systemd_takes_the_unit", Need::Systemd) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let unit = directory.path().join("kvnode.service");
    let installed = "ExecStart=/usr/local/bin/kvnode ";
    assert!(read(UNIT).contains(installed), "{UNIT} starts the program where it is installed");
    let here = format!("ExecStart={} ", binaries::path("kvnode").display());
    fs::write(&unit, read(UNIT).replace(installed, &here)).expect("a file");
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg(&unit).output().expect("systemd-analyze starts")
    };
    // What it does not understand is a warning and no failure.
    let output = analyze(&["verify", "--man=no", "--recursive-errors=no"]);
    let warnings = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = warnings.lines().filter(|line| line.contains("kvnode")).collect();
    assert!(output.status.success() && ours.is_empty(), "{output:?}");
    // Of 100, where 100 is a unit that may do everything.
    let output = analyze(&["security", "--offline=true", "--threshold=20"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The seconds of a constant in a file of the node.
fn seconds(file: &str, constant: &str) -> u64 {
    let source = read(file);
    let (_, rest) = source
        .split_once(&format!("const {constant}: Duration = Duration::from_secs("))
        .unwrap_or_else(|| panic!("{file} has no {constant} in seconds"));
    rest.split_once(')').and_then(|(number, _)| number.parse().ok()).expect("a number")
}

#[test]
fn the_unit_leaves_a_drain_its_time_and_names_exit_codes_that_exist() {
    let drain = seconds("crates/node/src/cluster/leadership.rs", "DRAIN_TIMEOUT")
        + seconds("crates/node/src/node.rs", "FINISH_TIMEOUT")
        + seconds("crates/node/src/node.rs", "CLOSE_TIMEOUT");
    let stop: u64 = setting("TimeoutStopSec").parse().expect("a number of seconds");
    assert!(stop >= drain + 20, "{stop} s for a drain of {drain} s, and then a checkpoint");
    let source = read("crates/node/src/exit.rs");
    for code in setting("RestartPreventExitStatus").split(' ') {
        assert!(source.contains(&format!(" => {code},")), "kvnode never ends with {code}");
    }
}

/// A service manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_read_timeout(Some(TIMEOUT)).expect("a time limit can be set");
        Manager { socket }
    }

    /// The next notice.
    fn notice(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("a notice of the node");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// Waits for a notice that contains this; those before it must not say that the start is over.
    fn wait(&self, wanted: &str) -> String {
        loop {
            let notice = self.notice();
            if notice.contains(wanted) {
                return notice;
            }
            assert!(!notice.contains("READY=1"), "{notice} before {wanted}");
        }
    }
}

/// Starts a node as the unit does, with the limit of open files that it sets, at most as many
/// connections as it says it is enough for, and this socket.
fn start(cluster: &Cluster, id: u64, socket: Option<&Path>) -> Watched {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {} && exec \"$@\"", setting("LimitNOFILE")), "sh"]);
    command.arg(binaries::path("kvnode")).arg("start").args(cluster.arguments(id));
    command.args(["--max-connections", "10000"]);
    match socket {
        Some(path) => command.env("NOTIFY_SOCKET", path),
        None => command.env_remove("NOTIFY_SOCKET"),
    };
    Watched::spawn(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_notifies_its_service_manager() {
    let mut cluster = Cluster::prepare(ClusterOptions { shards: 2, ..ClusterOptions::default() });
    let path = cluster.directory().join("notify");
    let manager = Manager::at(&path);

    // Alone at its first start, it must not make the others wait for it.
    let mut node = start(&cluster, 1, Some(&path));
    let notice = manager.wait("READY=1");
    assert!(notice.contains("STATUS=forming: waiting to form the cluster: "), "{notice}");
    assert_eq!(cluster.page(1, "/readyz").0, 503);
    cluster.start_node(2);
    cluster.start_node(3);
    manager.wait("STATUS=ready");
    node.signal(Signal::TERM);
    manager.wait("STOPPING=1");
    assert_eq!(node.wait_end(), Exit::Code(0));

    // Later the start is over when it takes requests.
    let mut node = start(&cluster, 1, Some(&path));
    assert_eq!(manager.wait("READY=1"), "READY=1\nSTATUS=ready");
    assert_eq!(cluster.page(1, "/readyz").0, 200);
    node.signal(Signal::TERM);
    assert_eq!(manager.notice(), "STOPPING=1\nSTATUS=draining");
    assert_eq!(node.wait_end(), Exit::Code(0));

    // Without the variable it says nothing to anyone.
    let mut node = start(&cluster, 1, None);
    node.line(&["ready: 2 of 2 shards have leaders"]);
    node.signal(Signal::TERM);
    assert_eq!(node.wait_end(), Exit::Code(0));
    manager.socket.set_nonblocking(true).expect("a socket can be asked");
    let nothing = manager.socket.recv(&mut [0; 64]).expect_err("no notice");
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);

    // One that cannot be used is a warning, and the node serves.
    let mut node = start(&cluster, 1, Some(Path::new("relative")));
    node.line(&["NOTIFY_SOCKET cannot be used"]);
    node.line(&["ready: 2 of 2 shards have leaders"]);
}
