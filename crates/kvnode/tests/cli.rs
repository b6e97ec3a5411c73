//! The command line from outside: what is printed where, and the exit code.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// Runs `kvnode` with these variables of its own and no others; gives exit code, stdout, stderr.
fn kvnode(variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvnode"));
    command.args(arguments);
    run(variables, &mut command)
}

fn run(variables: &[(&str, &str)], command: &mut Command) -> (i32, String, String) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn version_and_usage() {
    let version = format!("kvnode {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(kvnode(&[], &["version"]), (0, version.clone(), String::new()));
    assert_eq!(kvnode(&[], &["--version"]), (0, version, String::new()));
    let (code, out, err) = kvnode(&[], &["start", "--shard", "3"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("'--shard'") && err.contains("'--shards'"), "{err}");
}

#[test]
fn config_show_names_each_value_and_where_it_came_from() {
    let home = tempfile::tempdir().unwrap();
    let file = write(home.path(), "node.toml", "shards = 16\nmemory = \"1GiB\"\n");
    let variables = [("QUORATE_CONFIG", file.as_str()), ("QUORATE_LISTEN", "127.0.0.1:7411")];
    let (code, out, err) =
        kvnode(&variables, &["config", "show", "--data-dir", "d1", "--node-id", "3"]);
    let shown = out.replace(&file, "node.toml");
    // Columns are as wide as their widest cell, so they are compared without their spaces.
    let squeezed = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let golden = "KEY VALUE SOURCE
node-id 3 flag
data-dir d1 flag
listen 127.0.0.1:7411 environment QUORATE_LISTEN
peer-listen - default: none: a node alone
metrics-listen - default: none
advertise 127.0.0.1:7411 default: as listen
advertise-client 127.0.0.1:7411 default: as advertise
cluster-name quorate default
initial-cluster 3=127.0.0.1:7411 default: only this node
secret-file - default: none
shards 16 node.toml:1
replicas 3 default
log-store sled default
locality - default
memory 1GiB node.toml:2
max-value-size 1MiB default
max-connections 1024 default
max-calls-per-connection 256 default
max-connection-idle 5m default
max-connection-age 1h default
heartbeat 100ms default
election-min 600ms default
election-max 1200ms default
insecure false default
log-level info default
log-format auto default

MEMORY SHARE OF ALL
engine cache 160MiB 15%
delta 64MiB 6%
log, node 256MiB 25%
log, each group 64MiB 6%
value cache 64MiB 6%
transport queues 64MiB 6%
request queues 64MiB 6%
bodies 64MiB 6%
beside these 100MiB 9%";
    assert_eq!(squeezed(&shown), squeezed(golden), "{shown}");
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn config_show_shows_first_and_refuses_then() {
    let variables = [("QUORATE_SHARD", "1")];
    let (code, out, err) = kvnode(&variables, &["config", "show", "--data-dir=d", "--replicas=2"]);
    assert!(out.contains("\nreplicas                  2                 flag\n"), "{out}");
    assert_eq!(
        err,
        "kvnode: the environment variable QUORATE_SHARD is unknown and ignored; did you mean \
         QUORATE_SHARDS?\n\
         kvnode: replicas is 2, but must be 1, 3, 5 or 7: an even number adds a replica but no \
         fault tolerance (--replicas or QUORATE_REPLICAS)\n"
    );
    assert_eq!(code, 2);
}

#[test]
fn config_show_needs_no_directory_and_refuses_all_that_is_wrong() {
    let (code, out, err) = kvnode(&[], &["config", "show"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("\ndata-dir "), "{out}");
    let flags = ["config", "show", "--replicas=9", "--shards=0", "--memory=100"];
    let (code, _, err) = kvnode(&[], &flags);
    assert_eq!(code, 2, "{err}");
    let lines: Vec<_> = err.lines().collect();
    assert_eq!(lines[0], "kvnode: 3 settings are rejected:");
    let starts = ["  shards is 0, ", "  replicas is 9, ", "  memory is 100, "];
    assert_eq!(lines.len(), 4, "{err}");
    assert!(starts.iter().zip(&lines[1..]).all(|(start, line)| line.starts_with(start)), "{err}");
}

#[test]
fn start_refuses_what_it_cannot_use_before_it_touches_anything() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let data_dir = format!("--data-dir={}", data.display());
    let typo = write(home.path(), "typo.toml", "shards = 8\nlisten-peer = \"x\"\n");
    let missing = home.path().join("missing.toml");
    for (arguments, sentence) in [
        (vec!["start"], "kvnode: data-dir is not set; a node needs a directory of its own"),
        (vec!["start", &data_dir, "--config", &typo], "typo.toml:2: unknown key listen-peer"),
        (
            vec!["start", &data_dir, "--config", missing.to_str().unwrap()],
            "missing.toml: No such file or directory",
        ),
        (
            vec!["start", &data_dir, "--log-level", "loud=="],
            "kvnode: log-level = \"loud==\" (flag): expected one of off, error, warn, ",
        ),
        (
            vec!["start", &data_dir, "--log-level", "info,waning"],
            "kvnode: log-level = \"info,waning\" (flag): expected one of off, error, warn, ",
        ),
        (vec!["start", &data_dir, "--listen", "192.0.2.1:7401"], "allow it with --insecure"),
    ] {
        let (code, out, err) = kvnode(&[], &arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(sentence) && err.lines().count() == 1, "{arguments:?}: {err}");
    }
    assert!(!data.exists());
}

#[test]
fn a_misspelt_level_is_refused_by_config_show_too() {
    let (code, _, err) = kvnode(&[("QUORATE_LOG", "inof")], &["config", "show", "--data-dir=d"]);
    assert_eq!(code, 2, "{err}");
    assert_eq!(
        err,
        "kvnode: log-level = \"inof\" (environment QUORATE_LOG): expected one of off, error, warn, \
         info, debug, trace, or a filter such as info,quorate_raft=debug\n"
    );
}

#[test]
fn the_reason_of_an_end_is_said_whatever_the_log_leaves_out() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = format!("--data-dir={}", home.path().join("data").display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["start", &data_dir, "--listen", &address, "--log-level", "off"];
    let (code, _, err) = kvnode(&[], &flags);
    assert_eq!(code, 13, "{err}");
    assert!(err.contains(&format!("cannot listen on {address}")), "{err}");
}

#[test]
fn too_few_files_for_the_connections_is_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = format!("--data-dir={}", home.path().join("data").display());
    let mut command = Command::new("sh");
    let kvnode = env!("CARGO_BIN_EXE_kvnode");
    command.args(["-c", "ulimit -n 300; exec \"$@\"", "sh", kvnode, "start", &data_dir]);
    let (code, _, err) = run(&[("QUORATE_LOG_FORMAT", "json")], &mut command);
    assert_eq!(code, 2, "{err}");
    // By now the log has begun, and it is one object per line.
    assert!(err.starts_with('{') && err.lines().count() == 1, "{err}");
    assert!(err.contains("\"level\":\"ERROR\"") && err.contains("\"exit_code\":2"), "{err}");
    assert!(
        err.contains("this process may open 300 files, but max-connections = 1024 needs 1472"),
        "{err}"
    );
}

#[test]
fn a_path_that_cannot_be_a_data_directory_is_a_usage_error() {
    let home = tempfile::tempdir().unwrap();
    let file = write(home.path(), "file", "");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for path in ["/proc/quorate", &file] {
        let (code, _, err) = kvnode(&[], &["start", "--data-dir", path, "--listen", &free]);
        assert!(code == 2 && err.contains(path) && err.contains("--data-dir"), "{code}: {err}");
    }
}

#[test]
fn a_configuration_file_may_begin_with_a_byte_order_mark_but_is_utf_8() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.toml");
    let file = path.to_str().unwrap();
    let text = "\u{feff}node-id = 7\nshards = 8\n";
    std::fs::write(&path, text).unwrap();
    let (code, out, err) = kvnode(&[], &["config", "show", "--config", file]);
    assert!(code == 0 && err.is_empty(), "{code}: {err}");
    let from = |key: &str, line: u32| {
        let row = out.lines().find(|row| row.starts_with(key)).unwrap();
        assert!(row.ends_with(&format!("{file}:{line}")), "{row}");
    };
    from("node-id", 1);
    from("shards", 2);
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(&path, wide).unwrap();
    let (code, _, err) = kvnode(&[], &["config", "show", "--config", file]);
    let sentence = "begins with the byte order mark of UTF-16; it must be UTF-8";
    assert!(code == 2 && err.contains(sentence) && err.contains(file), "{code}: {err}");
}

#[test]
fn the_help_of_inspect_is_fixed() {
    let golden = "\
Show what is in the data directory of a node that is stopped; exit code 1 names damage

Usage: kvnode inspect [OPTIONS] --data-dir <DIR>

Options:
      --data-dir <DIR>     Data directory of a node that is stopped; it is copied, and stays as it
                           is
  -o, --output <FORM>      Form of the report [default: text] [possible values: text, json]
      --entries [<SHARD>]  Print the committed entries instead, of all shards or of one, as JSON
                           lines without keys and values
      --copy-dir <DIR>     Directory for the copy, which is removed at the end [default: that of
                           TMPDIR, or else the one that the data directory is in]
  -h, --help               Print help (see more with '--help')
";
    let (code, out, err) = kvnode(&[], &["inspect", "-h"]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, golden, ""));
    let (code, _, err) = kvnode(&[], &["inspect", "--data-dir=d", "--entries", "--output=json"]);
    assert_eq!(code, 2);
    assert!(err.contains("cannot be used with"), "{err}");
}

#[test]
fn health_of_a_node_that_is_not_there_is_no() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let expected =
        format!("not live: {address}: cannot connect: Connection refused (os error 111)\n");
    let by_flag = kvnode(&[], &["health", "--live", "--endpoint", &address]);
    assert_eq!(by_flag, (1, expected.clone(), String::new()));
    let by_environment = kvnode(&[("QUORATE_LISTEN", &address)], &["health", "--live"]);
    assert_eq!(by_environment, (1, expected, String::new()));
    assert_eq!(kvnode(&[], &["health", "--live", "--ready"]).0, 2);
    assert_eq!(kvnode(&[], &["health", "--endpoint", "nowhere"]).0, 2);
    for endpoint in ["http://user:secret@127.0.0.1:1", "user:secret@127.0.0.1:1"] {
        let (code, out, err) = kvnode(&[], &["health", "--endpoint", endpoint]);
        assert!(code == 2 && err.contains("no user information"), "{code}: {err}");
        assert!(!err.contains("secret") && out.is_empty(), "{out}{err}");
    }
    for timeout in ["1s", "1500ms", "3"] {
        let flags = ["health", "--endpoint", &address, "--timeout", timeout];
        assert_eq!(kvnode(&[], &flags).0, 1, "{timeout}");
    }
    for (timeout, sentence) in
        [("0", "the timeout must not be zero"), ("soon", "such as 100ms or 2s")]
    {
        let (code, _, err) = kvnode(&[], &["health", "--timeout", timeout]);
        assert!(code == 2 && err.contains(sentence), "{timeout}: {err}");
    }
}

#[test]
fn the_sample_file_has_every_setting_with_its_default() {
    use quorate_config::{Environment, Key, Layers, Source, resolve};

    const MEMORY: u64 = 2 << 30;
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config/node.toml");
    let text = fs::read_to_string(sample).unwrap();
    let is_setting =
        |line: &str| Key::ALL.iter().any(|key| line.starts_with(&format!("# {key} = ")));
    let enabled: Vec<_> =
        text.lines().map(|line| if is_setting(line) { &line[2..] } else { line }).collect();
    let enabled = enabled.join("\n");

    let resolved = |file: Option<(&Path, &str)>| {
        let layers = Layers::new([].into(), &Environment::default(), file).unwrap();
        resolve(&layers, MEMORY).unwrap()
    };
    let shown = resolved(Some((Path::new("node.toml"), &enabled)));
    shown.config.validate().unwrap();
    let defaults = resolved(None);
    for (shown, default) in shown.settings.iter().zip(&defaults.settings) {
        assert!(matches!(shown.source, Source::File(..)), "{} is missing", shown.key);
        // These have no default; the file shows an example.
        let examples =
            [Key::DataDir, Key::PeerListen, Key::MetricsListen, Key::SecretFile, Key::Locality];
        if !examples.contains(&shown.key) {
            assert_eq!(shown.value, default.value, "{}", shown.key);
        }
    }
    // As it is shipped it changes nothing.
    assert_eq!(resolved(Some((Path::new("node.toml"), &text))).config, defaults.config);
}

/// The allocator of a node gives large buffers back, unless the user says otherwise.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn a_node_starts_with_an_allocator_that_gives_back() {
    let name = "MALLOC_MMAP_THRESHOLD_";
    for (of_user, expected) in [(None, "262144"), (Some("1048576"), "1048576")] {
        let home = tempfile::tempdir().unwrap();
        let mut start = Command::new(env!("CARGO_BIN_EXE_kvnode"));
        start.args(["start", "--listen=127.0.0.1:0", "--advertise=127.0.0.1:9"]);
        start.arg("--data-dir").arg(home.path().join("data")).env_remove(name);
        start.envs(of_user.map(|value| (name, value)));
        start.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut node = start.spawn().unwrap();
        let environment = format!("/proc/{}/environ", node.id());
        let wanted = format!("{name}={expected}");
        let began = std::time::Instant::now();
        let mut found = false;
        while !found && began.elapsed() < std::time::Duration::from_secs(20) {
            std::thread::sleep(std::time::Duration::from_millis(10));
            let variables = fs::read(&environment).unwrap_or_default();
            found = variables.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes());
        }
        node.kill().unwrap();
        node.wait().unwrap();
        assert!(found, "the same process, with {wanted}");
    }
}
