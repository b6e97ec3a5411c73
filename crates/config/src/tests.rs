//! Tests of layers, sources, and the sentence of every error.

use std::path::Path;

use super::*;

const GIB: u64 = 1 << 30;

/// The flags, variables and file of a start.
#[derive(Default)]
struct Start<'a> {
    flags: &'a [(Key, &'a str)],
    variables: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
}

impl Start<'_> {
    fn environment(&self) -> Environment {
        let pairs = self.variables.iter();
        Environment::from_pairs(pairs.map(|(name, value)| ((*name).into(), (*value).into())))
    }

    fn resolve(&self) -> Result<Resolved, ConfigError> {
        let flags = self.flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let file = self.file.map(|text| (Path::new("node.toml"), text));
        resolve(&Layers::new(flags, &self.environment(), file)?, 2 * GIB)
    }

    /// The error of the whole start.
    fn refusal(&self) -> String {
        let refused = self.resolve().and_then(|resolved| resolved.config.validate());
        refused.expect_err("the start is refused").to_string()
    }
}

/// The effective value and source of one setting.
fn effective(start: &Start<'_>, key: Key) -> (String, String) {
    let resolved = start.resolve().unwrap();
    let setting = resolved.settings.iter().find(|setting| setting.key == key).unwrap();
    (setting.value.clone(), setting.source.to_string())
}

fn pair(value: &str, source: &str) -> (String, String) {
    (value.to_owned(), source.to_owned())
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let flags: &[_] = &[(Key::Shards, "10")];
    let variables: &[_] = &[("QUORATE_SHARDS", "20")];
    let file = Some("# the cluster\nshards = 30\n");
    for (start, expected) in [
        (Start { flags, variables, file }, pair("10", "flag")),
        (Start { flags, file, ..Start::default() }, pair("10", "flag")),
        (Start { variables, file, ..Start::default() }, pair("20", "environment QUORATE_SHARDS")),
        (Start { file, ..Start::default() }, pair("30", "node.toml:2")),
        (Start::default(), pair("64", "default")),
    ] {
        assert_eq!(effective(&start, Key::Shards), expected);
    }
}

#[test]
fn an_empty_variable_is_not_set() {
    let start = Start { variables: &[("QUORATE_SHARDS", "")], ..Start::default() };
    assert_eq!(effective(&start, Key::Shards), pair("64", "default"));
}

#[test]
fn every_setting_is_shown_once_in_order() {
    let resolved = Start::default().resolve().unwrap();
    let keys: Vec<_> = resolved.settings.iter().map(|setting| setting.key).collect();
    assert_eq!(keys, Key::ALL);
    let table = table(&resolved);
    assert!(table.contains("\nshards                    64                default\n"), "{table}");
    assert!(table.contains("\ndelta             64MiB   3%\n"), "{table}");
}

#[test]
fn the_help_of_a_flag_is_the_first_paragraph_of_its_row_and_the_default() {
    let help = |key: Key| key.flag().get_help().unwrap().to_string();
    for (key, expected) in [
        (Key::Shards, "Shards of a new cluster, 1 to 4096 [default: 64]"),
        (
            Key::PeerListen,
            "Address to serve other nodes on, never that of --listen [default: its entry in \
             --initial-cluster; nowhere for a node alone]",
        ),
        (
            Key::Advertise,
            "Address at which other nodes reach this one [default: its entry in --initial-cluster, \
             else --peer-listen or, for a node alone, --listen]",
        ),
        (
            Key::LogLevel,
            "Least severe log line written, or a filter such as info,quorate_raft=debug \
             [env: QUORATE_LOG] [default: info]",
        ),
    ] {
        assert_eq!(help(key), expected);
    }
}

#[test]
fn a_shown_value_can_be_parsed_again() {
    let start = Start {
        flags: &[
            (Key::NodeId, "2"),
            (Key::DataDir, "/d"),
            (Key::InitialCluster, "1=a:1, 2=[::1]:2"),
            (Key::SecretFile, "/s"),
            (Key::Shards, "8"),
            (Key::Replicas, "5"),
            (Key::Locality, "zone=a,region=eu"),
            (Key::Memory, "1536MiB"),
            (Key::MetricsListen, "localhost:7451"),
            (Key::Heartbeat, "1s"),
            (Key::ElectionMin, "3s"),
            (Key::ElectionMax, "6000ms"),
        ],
        ..Start::default()
    };
    let resolved = start.resolve().unwrap();
    resolved.config.validate().unwrap();
    let given_back = resolved.settings.iter().filter(|setting| !setting.value.is_empty());
    let flags = given_back.map(|setting| (setting.key, setting.value.clone())).collect();
    let layers = Layers::new(flags, &Environment::default(), None).unwrap();
    assert_eq!(resolve(&layers, GIB).unwrap().config, resolved.config);
}

#[test]
fn a_node_with_only_a_data_directory_is_a_cluster_of_one() {
    let start = Start { flags: &[(Key::DataDir, "d1")], ..Start::default() };
    let config = start.resolve().unwrap().config;
    config.validate().unwrap();
    let own: HostPort = "127.0.0.1:7401".parse().unwrap();
    assert_eq!(config.node_id, NodeId(1));
    assert_eq!(config.initial_cluster, BTreeMap::from([(NodeId(1), own.clone())]));
    assert_eq!((config.advertise, config.advertise_client), (own.clone(), own));
    assert_eq!((config.peer_listen, config.secret_file), (None, None));
    assert_eq!((config.shards, config.replicas, config.metrics_listen), (64, 3, None));
}

#[test]
fn advertised_addresses_follow_from_the_others() {
    let nodes = "1=node1:7501,2=node2:7501";
    let flags = [(Key::InitialCluster, nodes), (Key::NodeId, "2"), (Key::Listen, "0.0.0.0:7401")];
    let start = Start { flags: &flags, ..Start::default() };
    let source = "default: the entry in initial-cluster";
    assert_eq!(effective(&start, Key::Advertise), pair("node2:7501", source));
    assert_eq!(effective(&start, Key::AdvertiseClient), pair("0.0.0.0:7401", "default: as listen"));
    let alone = [(Key::Advertise, "node1:7401")];
    let start = Start { flags: &alone, ..Start::default() };
    let source = "default: as advertise";
    assert_eq!(effective(&start, Key::AdvertiseClient), pair("node1:7401", source));
    let asked = [(Key::PeerListen, "127.0.0.1:7501")];
    let start = Start { flags: &asked, ..Start::default() };
    let source = "default: as peer-listen";
    assert_eq!(effective(&start, Key::Advertise), pair("127.0.0.1:7501", source));
}

#[test]
fn other_nodes_are_served_where_initial_cluster_says() {
    let served = |nodes: &str, listen: &str| {
        let flags = [(Key::InitialCluster, nodes), (Key::Listen, listen)];
        effective(&Start { flags: &flags, ..Start::default() }, Key::PeerListen)
    };
    let source = "default: the entry in initial-cluster";
    for (entry, listen, expected) in [
        ("127.0.0.1:7501", "127.0.0.1:7401", "127.0.0.1:7501"),
        ("10.0.0.1:7501", "0.0.0.0:7401", "10.0.0.1:7501"),
        ("[::1]:7501", "127.0.0.1:7401", "[::1]:7501"),
        ("localhost:7501", "0.0.0.0:7401", "127.0.0.1:7501"),
        ("node1:7501", "0.0.0.0:7401", "0.0.0.0:7501"),
        ("node1:7501", "[::]:7401", "[::]:7501"),
    ] {
        assert_eq!(served(&format!("1={entry},2=b:1"), listen), pair(expected, source));
    }
    let nowhere = pair("", "default: none: a node alone");
    assert_eq!(served("1=127.0.0.1:7501", "127.0.0.1:7401"), nowhere);
}

#[test]
fn one_address_in_two_spellings_is_one_plan() {
    let plan = |nodes| {
        let flags = [(Key::InitialCluster, nodes)];
        Start { flags: &flags, ..Start::default() }.resolve().unwrap().config.initial_cluster
    };
    let one = plan("1=node1.example:7401,2=[::1]:7401,3=10.0.0.3:7401");
    assert_eq!(plan("3=10.0.0.3:07401,2=[0:0::0:1]:7401, 1=Node1.EXAMPLE:7401"), one);
    assert_eq!(one[&NodeId(1)].to_string(), "node1.example:7401");
    assert_ne!(plan("1=node1.example.:7401,2=[::1]:7401,3=10.0.0.3:7401"), one);
}

#[test]
fn the_file_may_contain_strings_numbers_booleans_and_lists() {
    let file = Some(
        "node-id = 2\nshards = 1_000\ninsecure = true\nheartbeat = \"200ms\"\n\
         initial-cluster = [\"1=a:1\", \"2=b:2\"]\nmemory = 1073741824\n",
    );
    let config = Start { file, ..Start::default() }.resolve().unwrap().config;
    assert_eq!((config.node_id, config.shards, config.insecure), (NodeId(2), 1000, true));
    assert_eq!(config.heartbeat, Duration::from_millis(200));
    assert_eq!((config.initial_cluster.len(), config.memory.total), (2, GIB));
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line() {
    for (text, sentence) in [
        ("\nshard = 3\n", "node.toml:2: unknown key shard; did you mean shards?"),
        ("peer_listen = \"x\"", "node.toml:1: unknown key peer_listen; did you mean peer-listen?"),
        ("colour = 1", "node.toml:1: unknown key colour"),
        ("[node]\nid = 1", "node.toml:1: unknown key node; did you mean node-id?"),
        (
            "memory = 1.5",
            "node.toml:1: memory has the type float; expected a string, a number, true or false, \
             or a list of strings",
        ),
        (
            "shards = 0x10",
            "node.toml:1: shards has the type integer; expected a string, a number, \
             true or false, or a list of strings",
        ),
        ("a = 1\nshards = = 2", "node.toml:2: extra `=`, expected nothing"),
        ("shards = \"x\"", "shards = \"x\" (node.toml:1): expected a whole number"),
    ] {
        let refusal = Start { file: Some(text), ..Start::default() }.refusal();
        assert_eq!(refusal, sentence, "{text}");
    }
}

#[test]
fn unknown_variables_are_named_once() {
    let start = Start {
        variables: &[
            ("QUORATE_SHARD", "3"),
            ("QUORATE_COLOUR", "red"),
            ("QUORATE_SHARDS", "8"),
            ("QUORATE_CONFIG", "x"),
            ("QUORATE_LOG", "debug"),
            ("QUORATE_BIN_DIR", "x"),
            ("QUORATE_REQUIRE", "x"),
            ("QUORATE_SEEDED_BUG", "x"),
            ("PATH", "x"),
        ],
        ..Start::default()
    };
    assert_eq!(
        start.environment().warnings(),
        [
            "the environment variable QUORATE_COLOUR is unknown and ignored",
            "the environment variable QUORATE_SHARD is unknown and ignored; did you mean \
             QUORATE_SHARDS?",
        ]
    );
}

#[test]
fn values_that_cannot_be_parsed_are_rejected_with_their_source() {
    for (key, value, reason) in [
        (Key::NodeId, "0", "expected a node id from 1 to 4294967295"),
        (Key::NodeId, "4294967296", "expected a node id from 1 to 4294967295"),
        (
            Key::Listen,
            "node1:7401",
            "expected IP:PORT, for example 127.0.0.1:7401 or [::1]:7401 (names are not accepted)",
        ),
        (Key::Advertise, "node1", "expected HOST:PORT, for example node1:7401 or [::1]:7401"),
        (Key::Advertise, "node1:0", "nothing can connect to port 0"),
        (
            Key::Advertise,
            "::1:7401",
            "expected HOST:PORT, for example node1:7401 or [::1]:7401; an IPv6 address \
             needs brackets",
        ),
        (Key::InitialCluster, "a:1", "\"a:1\": expected ID=HOST:PORT"),
        (Key::InitialCluster, "1=a:1,1=b:1", "node 1 is listed twice"),
        (Key::InitialCluster, "1=a:1,2=a:1", "nodes 1 and 2 have the same address a:1"),
        (
            Key::InitialCluster,
            "1=0.0.0.0:1",
            "\"1=0.0.0.0:1\": no other node can connect to 0.0.0.0",
        ),
        (Key::InitialCluster, "", "expected at least one ID=HOST:PORT"),
        (Key::LogStore, "rocks", "expected sled or file"),
        (
            Key::Locality,
            "zone",
            "\"zone\": expected LABEL=VALUE, each 1 to 64 of a-z A-Z 0-9 - _ . /",
        ),
        (Key::Locality, "zone=a,zone=b", "label zone is given twice"),
        (Key::Memory, "lots", "expected a size such as 512MiB, 2GiB or 65536"),
        (Key::Memory, "99999999TiB", "the size is too large"),
        (Key::Heartbeat, "100", "expected a duration such as 100ms or 2s"),
        (Key::MaxConnections, "-1", "expected a whole number"),
        (Key::Insecure, "yes", "expected true or false"),
        (Key::LogFormat, "xml", "expected auto, text or json"),
    ] {
        let refusal = Start { flags: &[(key, value)], ..Start::default() }.refusal();
        assert_eq!(refusal, format!("{key} = {value:?} (flag): {reason}"));
    }
}

#[test]
fn the_error_of_an_address_says_what_is_wrong_and_repeats_no_password() {
    let scheme = "an address has no scheme; expected HOST:PORT, for example node1:7401";
    for (key, value, reason) in [
        (Key::Advertise, "http://node1:7401", scheme),
        (Key::AdvertiseClient, "HTTP://node1:7401/", scheme),
        (Key::Listen, "http://127.0.0.1:7401", scheme),
        (Key::InitialCluster, "1=http://a:1", &format!("\"1=http://a:1\": {scheme}")),
    ] {
        let refusal = Start { flags: &[(key, value)], ..Start::default() }.refusal();
        assert_eq!(refusal, format!("{key} = {value:?} (flag): {reason}"));
    }
    for (key, value) in [
        (Key::Advertise, "http://user:secret@node1:7401"),
        (Key::AdvertiseClient, "user:secret@node1:7401"),
        (Key::Listen, "http://user:sec@secret:1@127.0.0.1:7401"),
        (Key::PeerListen, "user:secret@127.0.0.1:7401"),
        (Key::MetricsListen, "user:secret@127.0.0.1:7401"),
        (Key::InitialCluster, "1=a:1,2=http://user:secret@b:1"),
        (Key::InitialCluster, "1=http://user:secret,secret@a:1"),
    ] {
        let refusal = Start { flags: &[(key, value)], ..Start::default() }.refusal();
        let reason = "an address has no user information; leave out the part before the `@`";
        assert_eq!(refusal, format!("{key} (flag): {reason}"));
    }
}

#[test]
fn durations_are_parsed_and_shown_in_whole_hours_and_minutes() {
    for (given, shown) in
        [("90m", "90m"), ("7200s", "2h"), ("1500ms", "1500ms"), ("61s", "61000ms")]
    {
        let start = Start { flags: &[(Key::MaxConnectionAge, given)], ..Start::default() };
        assert_eq!(effective(&start, Key::MaxConnectionAge), pair(shown, "flag"));
    }
}

#[test]
fn errors_of_limits_and_combinations_name_the_flag() {
    for (flags, sentence) in [
        (
            &[(Key::DataDir, "")][..],
            "data-dir is not set; a node needs a directory of its own (--data-dir or \
             QUORATE_DATA_DIR)",
        ),
        (
            &[(Key::Shards, "4097")],
            "shards is 4097, but must be from 1 to 4096 (--shards or QUORATE_SHARDS)",
        ),
        (
            &[(Key::Replicas, "4")],
            "replicas is 4, but must be 1, 3, 5 or 7: an even number adds a replica but no fault \
             tolerance (--replicas or QUORATE_REPLICAS)",
        ),
        (
            &[(Key::Memory, "127MiB")],
            "memory is 127MiB, but must be at least 128MiB (--memory or QUORATE_MEMORY)",
        ),
        (
            &[(Key::MaxValueSize, "2MiB")],
            "max-value-size is 2097152, but must be from 1 to 2031616 (--max-value-size or \
             QUORATE_MAX_VALUE_SIZE)",
        ),
        (
            &[(Key::MaxConnectionIdle, "999ms")],
            "max-connection-idle is 999ms, but must be from 1000ms to 8760h \
             (--max-connection-idle or QUORATE_MAX_CONNECTION_IDLE)",
        ),
        (
            &[(Key::MaxConnectionAge, "0s")],
            "max-connection-age is 0ms, but must be from 1000ms to 8760h (--max-connection-age or \
             QUORATE_MAX_CONNECTION_AGE)",
        ),
        (
            &[(Key::ClusterName, "my cluster")],
            "cluster-name is \"my cluster\", but must be 1 to 64 of a-z A-Z 0-9 - _ . \
             (--cluster-name or QUORATE_CLUSTER_NAME)",
        ),
        (
            &[(Key::InitialCluster, "1=a:1,2=b:1")],
            "secret-file is not set, but initial-cluster has 2 nodes, which prove to each other \
             that they know one secret; make it once with `kvnode secret --out quorate.secret`, \
             copy that file to each node, and start each with `--secret-file quorate.secret` \
             (--secret-file or QUORATE_SECRET_FILE)",
        ),
        (
            &[(Key::InitialCluster, "1=127.0.0.1:7401,2=b:1"), (Key::SecretFile, "s")],
            "peer-listen is 127.0.0.1:7401, but that is the address of --listen, and clients and \
             other nodes have listeners of their own; give the nodes another port, here and in \
             initial-cluster, as in 1=127.0.0.1:7501 (--peer-listen or QUORATE_PEER_LISTEN)",
        ),
        (
            &[(Key::NodeId, "4"), (Key::InitialCluster, "1=a:1,2=b:1"), (Key::SecretFile, "s")],
            "node-id is 4, but initial-cluster lists only 1, 2; it must list this node too \
             (--node-id or QUORATE_NODE_ID)",
        ),
        (
            &[(Key::Listen, "0.0.0.0:7401")],
            "listen is 0.0.0.0:7401, but there is no TLS yet, so anyone who reaches it can read \
             and change everything; listen on loopback, or allow it with --insecure (--listen or \
             QUORATE_LISTEN)",
        ),
        (
            &[(Key::Listen, "0.0.0.0:7401"), (Key::Insecure, "true")],
            "advertise is 0.0.0.0:7401, but other machines cannot connect to that address, which \
             means every address of this machine; give a name or an address that they can connect \
             to (--advertise or QUORATE_ADVERTISE)",
        ),
        (
            &[(Key::Listen, "127.0.0.1:0")],
            "advertise is 127.0.0.1:0, but nothing can connect to port 0; give the real port \
             (--advertise or QUORATE_ADVERTISE)",
        ),
        (
            &[(Key::MetricsListen, "127.0.0.1:7401")],
            "metrics-listen is 127.0.0.1:7401, but that address already serves clients or nodes \
             (--metrics-listen or QUORATE_METRICS_LISTEN)",
        ),
        (
            &[(Key::Heartbeat, "15ms")],
            "heartbeat is 15ms, but must be a multiple of 10ms, from 10ms to 60s (--heartbeat or \
             QUORATE_HEARTBEAT)",
        ),
        (
            &[(Key::ElectionMin, "200ms")],
            "election-min is 200ms, but must be at least three times heartbeat (100ms), or one \
             lost message starts an election (--election-min or QUORATE_ELECTION_MIN)",
        ),
        (
            &[(Key::ElectionMax, "650ms")],
            "election-max is 650ms, but must exceed election-min (600ms) by at least one heartbeat \
             (100ms), or candidates keep splitting the vote (--election-max or \
             QUORATE_ELECTION_MAX)",
        ),
    ] {
        let mut all = vec![(Key::DataDir, "d")];
        all.extend_from_slice(flags);
        assert_eq!(Start { flags: &all, ..Start::default() }.refusal(), sentence);
    }
}

#[test]
fn sizes_are_parsed_in_every_usual_form() {
    for (text, bytes) in [
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("512mb", 512 << 20),
        ("2 GiB", 2 << 30),
        ("64k", 64 << 10),
        ("1TiB", 1 << 40),
        ("65536", 65536),
        ("10B", 10),
    ] {
        assert_eq!(value::parse_bytes(text), Ok(bytes), "{text}");
    }
    for text in ["", "MiB", "1.5GiB", "-1", "1XiB", "1MiBs", "1é"] {
        assert!(value::parse_bytes(text).is_err(), "{text}");
    }
    for bytes in [0, 1, 1000, 1024, 1536 << 10, 512 << 20, 3 << 30] {
        assert_eq!(value::parse_bytes(&value::format_bytes(bytes)), Ok(bytes));
    }
}
