//! Bad input of every kind: a clear sentence, the right code, and nothing lost.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use quorate_proto::limits::{KEY_BYTES_MAX, REQUEST_BYTES_MAX, VALUE_BYTES_MAX};
use quorate_proto::v1::batch_operation::Action;
use quorate_proto::v1::condition::Expect;
use quorate_proto::v1::{
    BatchOperation, BatchRequest, CompareAndSetRequest, Condition, Failure, GetRequest,
    IncrementRequest, Outcome, PutAction, PutRequest, ReadLevel, ReadOptions, Reason, RouteHint,
    ScanRequest, SessionToken, SessionTokenPart, WriteSession,
};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::ports::lease;
use quorate_tests::raw::{failure, key_in};
use quorate_tests::{Cluster, ClusterOptions, Exit, binaries, until, until_async};
use tonic::{Code, Status};

fn one_node(shards: u32) -> ClusterOptions {
    ClusterOptions { nodes: 1, shards, ..ClusterOptions::default() }
}

/// Runs kvnode to its end.
fn kvnode(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binaries::path("kvnode"));
    command.args(arguments).stdin(Stdio::null());
    command.envs(environment.iter().copied());
    command.output().expect("kvnode runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("it ended by a signal: {output:?}"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("node.toml");
    fs::write(&file, "node-id = 1\n\nlisten = \"127.0.0.1:0\"\nshrads = 8\n").expect("written");
    let file = file.to_str().expect("a path in UTF-8");
    let data = directory.path().join("data");
    let data = data.to_str().expect("a path in UTF-8");

    for words in [&["config", "show"][..], &["start", "--data-dir", data]] {
        let output = kvnode(&[words, &["--config", file]].concat(), &[]);
        assert_eq!(code(&output), 2, "{output:?}");
        let said = said(&output);
        assert!(said.contains("node.toml:4: unknown key shrads; did you mean shards?"), "{said}");
    }

    // A variable may be meant for another program, so it only warns.
    let show = ["config", "show", "--data-dir", data];
    let output = kvnode(&show, &[("QUORATE_SHRADS", "8")]);
    assert_eq!(code(&output), 0, "{output:?}");
    let words = said(&output);
    let warning = "the environment variable QUORATE_SHRADS is unknown and ignored";
    assert!(words.contains(warning) && words.contains("QUORATE_SHARDS"), "{words}");

    let output = kvnode(&show, &[("QUORATE_SHARDS", "many")]);
    assert_eq!(code(&output), 2);
    let words = said(&output);
    assert!(words.contains("shards") && words.contains("QUORATE_SHARDS"), "{words}");

    for (arguments, sentence) in [
        (&["--shards", "0"][..], "must be from 1 to 4096"),
        (&["--replicas", "2"], "replicas"),
        (&["--memory", "64MiB"], "at least 128"),
        (&["--log-store", "tape"], "tape"),
        (&["--listen", "0.0.0.0:0"], "--insecure"),
        (
            &["--initial-cluster", "2=127.0.0.1:1,3=127.0.0.1:2"],
            "lists only 2, 3; it must list this node too",
        ),
        (&["--initial-cluster", "nonsense"], "initial-cluster"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let base = ["start", "--data-dir", data, "--listen", "127.0.0.1:0"];
        // The flag comes last and once.
        let base: Vec<&str> = match arguments[0] {
            "--listen" => base[..3].to_vec(),
            _ => base.to_vec(),
        };
        let output = kvnode(&[&base, arguments].concat(), &[]);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        let said = said(&output);
        assert!(said.contains(sentence), "{arguments:?}: {said}");
    }
    let formed = Path::new(data).join("IDENTITY");
    let formed = fs::read_to_string(formed).is_ok_and(|text| text.contains("formed=true"));
    assert!(!formed, "nothing was founded by a mistake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_another_ones_is_refused_and_left_alone() {
    let mut cluster = Cluster::start(one_node(2)).await;
    let client = cluster.client();
    client.put("mine", "kept").await.expect("a put");
    let data = cluster.node(1).data.clone();
    let path = data.to_str().expect("a path in UTF-8").to_owned();
    let ports = lease(1);
    let address = ports[0].address();
    let start = |node: &str| {
        kvnode(&["start", "--data-dir", &path, "--node-id", node, "--listen", &address], &[])
    };

    // In use, while the node runs.
    let output = start("1");
    assert_eq!(code(&output), 11, "{output:?}");
    let words = said(&output);
    assert!(words.contains(&path) && words.contains("is in use by another process"), "{words}");

    // The address of the running node is taken.
    let taken = cluster.endpoint(1);
    let fresh = cluster.directory().join("fresh");
    let fresh = fresh.to_str().expect("a path in UTF-8");
    let output = kvnode(&["start", "--data-dir", fresh, "--listen", &taken], &[]);
    assert_eq!(code(&output), 13, "{output:?}");
    let words = said(&output);
    assert!(words.contains(&format!("cannot listen on {taken}")), "{words}");
    assert!(words.contains("--listen"), "{words}");
    let busy = TcpListener::bind("127.0.0.1:0").expect("some port");
    let busy = busy.local_addr().expect("it is bound").to_string();
    let output = kvnode(
        &["start", "--data-dir", fresh, "--listen", &address, "--metrics-listen", &busy],
        &[],
    );
    assert_eq!(code(&output), 13, "{output:?}");
    assert!(said(&output).contains(&busy), "{}", said(&output));
    assert_eq!(client.get("mine").await.expect("the node still serves").value, "kept");
    assert_eq!(cluster.stop(1), Exit::Code(0));

    // Another node id, a newer format, damage.
    let identity = data.join("IDENTITY");
    let before = fs::read(&identity).expect("IDENTITY is there");
    let output = start("2");
    assert_eq!(code(&output), 10, "{output:?}");
    let words = said(&output);
    assert!(words.contains("belongs to node 1") && words.contains("--node-id 2"), "{words}");

    let text = String::from_utf8(before.clone()).expect("IDENTITY is text");
    let body: String = text
        .lines()
        .filter(|line| !line.starts_with("crc32c="))
        .fold(String::new(), |body, line| {
            body + line.replace("format=1", "format=2").as_str() + "\n"
        });
    assert!(body.contains("format=2"), "{body}");
    // A newer format may check itself otherwise; so may this one.
    for newer in [format!("{body}crc32c=00000000\n"), format!("{body}{}", crc_line(&body))] {
        fs::write(&identity, &newer).expect("written");
        let output = start("1");
        assert_eq!(code(&output), 12, "{output:?}");
        let words = said(&output);
        assert!(words.contains("format 2") && words.contains("start a newer version"), "{words}");
        assert_eq!(fs::read(&identity).expect("it is there"), newer.as_bytes(), "left as it was");
    }
    for position in [0, before.len() / 2, before.len() - 2] {
        let mut damaged = before.clone();
        damaged[position] ^= 1;
        fs::write(&identity, &damaged).expect("written");
        let output = start("1");
        // One bit of the format's own line may as well say that it is newer.
        assert_eq!(code(&output), 10, "byte {position}: {output:?}");
        let words = said(&output);
        assert!(words.contains("IDENTITY is damaged"), "{words}");
        assert_eq!(fs::read(&identity).expect("it is there"), damaged, "left as it was");
    }
    fs::remove_file(&identity).expect("removed");
    let output = start("1");
    assert_eq!(code(&output), 10, "{output:?}");
    assert!(said(&output).contains("holds data but no file IDENTITY"), "{}", said(&output));
    assert!(!identity.exists(), "no new identity for old data");

    fs::write(&identity, &before).expect("put back");
    cluster.start_node(1);
    cluster.wait_ready().await;
    assert_eq!(cluster.client().get("mine").await.expect("nothing was lost").value, "kept");
}

/// The last line of IDENTITY, for this text above it: CRC-32C (Castagnoli), bit by bit.
fn crc_line(body: &str) -> String {
    let crc = body.bytes().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    });
    format!("crc32c={:08x}\n", !crc)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_refused_by_both_sides() {
    let mut ours = Cluster::start(ClusterOptions { shards: 1, ..ClusterOptions::default() }).await;
    // They have one secret, so that nothing but the cluster differs.
    let mut theirs = Cluster::prepare(one_node(1));
    fs::copy(ours.secret_file(), theirs.secret_file()).expect("a copy of the secret");
    theirs.start_node(1);
    theirs.wait_ready().await;
    ours.client().put("whose", "ours").await.expect("a put");
    theirs.client().put("whose", "theirs").await.expect("a put");

    // A new node that is asked to found a cluster with nodes that have one.
    let directory = ours.directory().join("new");
    let ports = lease(1);
    let address = ports[0].address();
    let secret = ours.secret_file().display().to_string();
    let peers = |cluster: &Cluster, id: u64| flag(&cluster.arguments(id), "--advertise");
    for (initial, sentence) in [
        (
            format!("1={},2={},4={address}", peers(&ours, 1), peers(&ours, 2)),
            "a new node cannot be added yet",
        ),
        (format!("1={},4={address}", peers(&theirs, 1)), "node 4 is not a member of it"),
    ] {
        let arguments = [
            "start",
            "--node-id",
            "4",
            "--data-dir",
            directory.to_str().expect("a path in UTF-8"),
            "--listen",
            "127.0.0.1:0",
            "--advertise-client",
            "127.0.0.1:1",
            "--initial-cluster",
            &initial,
            "--secret-file",
            &secret,
        ];
        let output = kvnode(&arguments, &[]);
        assert_eq!(code(&output), 10, "{initial}: {output:?}");
        assert!(said(&output).contains(sentence), "{}", said(&output));
    }

    // The directories of two clusters are mixed up: theirs is served at the place of our node 3.
    assert_eq!(ours.stop(3), Exit::Code(0));
    assert_eq!(theirs.stop(1), Exit::Code(0));
    let place = peers(&ours, 3);
    let foreign = ["--peer-listen", &place, "--advertise", &place];
    let initial = format!("1={place}");
    let foreign = [&foreign[..], &["--initial-cluster", &initial]].concat();
    theirs.start_node_with(1, &foreign);
    theirs.wait_ready().await;
    let cluster_id = theirs.status(1).await.expect("it answers").cluster_id;
    let detail = until_async("our node 1 says why node 3 is not connected", TIMEOUT, || async {
        let status = ours.status(1).await?;
        let peer = status.peers.into_iter().find(|peer| peer.node_id == 3)?;
        (!peer.connected && peer.detail.contains("belongs to cluster")).then_some(peer.detail)
    })
    .await;
    assert!(detail.contains(&hex(&cluster_id)) || detail.contains("node 1 belongs"), "{detail}");
    until("their node logs whom it refused", TIMEOUT, || {
        theirs.log(1).contains("belongs to cluster").then_some(())
    });
    ours.client_of(&[1, 2]).put("more", "ours").await.expect("ours still serves");
    theirs.client().put("more", "theirs").await.expect("theirs still serves");
    assert_eq!(theirs.client().get("whose").await.expect("a read").value, "theirs");
    // A client whose hint is of another cluster learns that.
    let route = RouteHint { cluster_id, ..RouteHint::default() };
    let request = GetRequest { key: "whose".into(), route: Some(route), ..GetRequest::default() };
    let refused = ours.kv(1).get(request).await.expect_err("it is for another cluster");
    assert_eq!(failure(&refused).reason(), Reason::WrongShard);

    assert_eq!(theirs.stop(1), Exit::Code(0));
    ours.start_node(3);
    ours.wait_ready().await;
    ours.wait_equal().await;
    for key in ["whose", "more"] {
        assert_eq!(ours.client().get(key).await.expect("a read").value, "ours");
    }
}

fn flag(arguments: &[String], name: &str) -> String {
    let at = arguments.iter().position(|argument| argument == name).expect("the flag is given");
    arguments[at + 1].clone()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A refused call: INVALID_ARGUMENT, certainly not applied, for this reason.
fn invalid<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) -> Failure {
    let failure = refused(result, reason);
    let applied = failure.outcome();
    assert!(matches!(applied, Outcome::NotApplied | Outcome::AttemptNotApplied), "{failure:?}");
    failure
}

/// A read changes nothing, so that there is no outcome to report.
fn invalid_read<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) {
    let failure = refused(result, reason);
    assert_eq!(failure.outcome(), Outcome::Unspecified, "{failure:?}");
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) -> Failure {
    let status = result.expect_err("the call is refused");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let failure = failure(&status);
    assert_eq!(failure.reason(), reason, "{failure:?}");
    assert!(failure.message.len() > 20 && failure.message == status.message(), "{failure:?}");
    failure
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_a_limit_or_without_a_meaning_are_refused_with_a_reason() {
    let cluster = Cluster::start(one_node(4)).await;
    let mut kv = cluster.kv(1);
    kv.put(put("before", "kept")).await.expect("a put");

    // Keys and values: at the limit, and one byte over it.
    let longest = vec![b'k'; KEY_BYTES_MAX];
    let largest = vec![b'v'; VALUE_BYTES_MAX];
    kv.put(put(longest.clone(), largest.clone())).await.expect("both at their limits");
    let request = GetRequest { key: longest.into(), ..GetRequest::default() };
    assert_eq!(kv.get(request).await.expect("a read").into_inner().value, largest);
    let refused = invalid(kv.put(put(vec![b'k'; KEY_BYTES_MAX + 1], "v")).await, Reason::BadKey);
    assert_eq!((refused.field.as_str(), refused.limit), ("key", KEY_BYTES_MAX as u64));
    let refused = invalid(kv.put(put("", "v")).await, Reason::BadKey);
    assert_eq!(refused.field, "key");
    let get = GetRequest { key: Bytes::new(), ..GetRequest::default() };
    invalid_read(kv.get(get).await, Reason::BadKey);
    let large = vec![b'v'; VALUE_BYTES_MAX + 1];
    let refused = invalid(kv.put(put("large", large)).await, Reason::BadValue);
    assert_eq!((refused.field.as_str(), refused.limit), ("value", VALUE_BYTES_MAX as u64));
    assert_eq!(refused.config_key, "max-value-size");
    assert!(refused.message.contains("1048577") && refused.message.contains("1048576"));

    // Whole messages: ours up to 4 MiB, the library's above.
    let operations = |count: usize, bytes: usize| BatchRequest {
        operations: (0..count)
            .map(|number| BatchOperation {
                key: format!("{{b}}{number}").into(),
                action: Some(Action::Put(PutAction { value: vec![b'v'; bytes].into() })),
                ..BatchOperation::default()
            })
            .collect(),
        ..BatchRequest::default()
    };
    let refused = invalid(kv.batch(operations(3, 1 << 20)).await, Reason::TooLarge);
    assert_eq!(refused.limit, REQUEST_BYTES_MAX as u64);
    invalid(kv.put(put("large", vec![b'v'; 3 << 20])).await, Reason::BadValue);
    for bytes in [5 << 20, 64 << 20] {
        let refused = kv.put(put("large", vec![b'v'; bytes])).await.expect_err("over 4 MiB");
        assert_eq!(refused.code(), Code::OutOfRange, "{bytes} bytes: {refused:?}");
    }
    let refused = invalid(kv.batch(operations(4_097, 1)).await, Reason::TooLarge);
    assert_eq!(refused.limit, 4_096);

    meaningless(&cluster).await;
    let got = kv.get(GetRequest { key: "large".into(), ..GetRequest::default() }).await;
    assert!(!got.expect("the node still serves").into_inner().found, "nothing of it was applied");
    let got = kv.get(GetRequest { key: "before".into(), ..GetRequest::default() }).await;
    assert_eq!(got.expect("the node still serves").into_inner().value, "kept");
}

async fn meaningless(cluster: &Cluster) {
    let mut kv = cluster.kv(1);
    let operation = |key: &str| BatchOperation {
        key: key.to_owned().into(),
        action: Some(Action::Put(PutAction { value: "v".into() })),
        ..BatchOperation::default()
    };
    let batch = |operations| BatchRequest { operations, ..BatchRequest::default() };
    let (one, other) = (key_in(1, 4, "one"), key_in(3, 4, "other"));
    let crossing = batch(vec![operation(&one), operation(&other)]);
    let refused = invalid(kv.batch(crossing).await, Reason::CrossShard);
    for part in [one.as_str(), other.as_str(), "shard 1", "shard 3", "hash tag"] {
        assert!(refused.message.contains(part), "{part}: {}", refused.message);
    }
    invalid(kv.batch(batch(vec![operation("a"), operation("a")])).await, Reason::BadKey);
    invalid(kv.batch(batch(Vec::new())).await, Reason::BadRequest);
    let empty = BatchOperation { key: "a".into(), ..BatchOperation::default() };
    invalid(kv.batch(batch(vec![empty])).await, Reason::BadRequest);

    let expect = Some(Condition { expect: Some(Expect::Absent(false)) });
    let conditional = PutRequest { condition: expect, ..put("c", "v") };
    invalid(kv.put(conditional).await, Reason::BadCondition);
    let without = CompareAndSetRequest { key: "c".into(), ..CompareAndSetRequest::default() };
    invalid(kv.compare_and_set(without).await, Reason::BadCondition);
    let elsewhere = PutRequest { keyspace: "other".into(), ..put("c", "v") };
    invalid(kv.put(elsewhere).await, Reason::BadKeyspace);
    let session = WriteSession { id: "short".into(), sequence: 1, ..WriteSession::default() };
    let signed = PutRequest { session: Some(session), ..put("c", "v") };
    invalid(kv.put(signed).await, Reason::BadToken);

    kv.put(put("text", "no number")).await.expect("a put");
    let add = IncrementRequest { key: "text".into(), delta: 1, ..IncrementRequest::default() };
    let refused = kv.increment(add).await.expect_err("it is not a number");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(failure(&refused).reason(), Reason::NotANumber);

    // Levels and page tokens.
    let level = Some(ReadOptions { level: 42, ..ReadOptions::default() });
    let get = GetRequest { key: "text".into(), read: level.clone(), ..GetRequest::default() };
    let refused = kv.get(get).await.expect_err("no such level");
    let named = |status: &Status| (failure(status).reason(), failure(status).field);
    assert_eq!(named(&refused), (Reason::BadLevel, "read.level".to_owned()));
    let refused = kv.scan(ScanRequest { read: level, ..ScanRequest::default() }).await;
    let refused = refused.map(|_| ()).expect_err("no such level");
    assert_eq!(named(&refused), (Reason::BadLevel, "read.level".to_owned()));
    let parts = [(0, 0), (1, 3)].map(|(at, first)| {
        let part = |shard| SessionTokenPart { shard, index: 1 };
        (at, SessionToken { parts: vec![part(first), part(3)], ..SessionToken::default() })
    });
    for (at, token) in parts {
        let read = ReadOptions { token: Some(token), ..ReadOptions::default() };
        let read = Some(ReadOptions { level: ReadLevel::Session as i32, ..read });
        let get = GetRequest { key: "text".into(), read, ..GetRequest::default() };
        let refused = kv.get(get).await.expect_err("no shard, or one twice");
        assert_eq!(refused.code(), Code::InvalidArgument);
        let field = format!("read.token.parts[{at}].shard");
        assert_eq!(named(&refused), (Reason::BadToken, field));
    }
    for page_token in ["x".into(), Bytes::from(vec![1; 60]), Bytes::from(vec![0; 5_000])] {
        let scan = ScanRequest { page_token, ..ScanRequest::default() };
        let refused = kv.scan(scan).await.map(|_| ()).expect_err("no token of ours");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(named(&refused), (Reason::BadPageToken, "page_token".to_owned()));
    }
    let both = ScanRequest { prefix: "a".into(), start: "b".into(), ..ScanRequest::default() };
    let refused = kv.scan(both).await.map(|_| ()).expect_err("one or the other");
    assert_eq!(failure(&refused).reason(), Reason::BadRequest);
    let inverted = ScanRequest { start: "b".into(), end: "a".into(), ..ScanRequest::default() };
    let refused = kv.scan(inverted).await.map(|_| ()).expect_err("the end is before the start");
    assert_eq!(failure(&refused).reason(), Reason::BadRequest);
}

#[tokio::test(flavor = "multi_thread")]
async fn kvctl_ends_with_the_code_of_what_went_wrong() {
    let mut cluster = Cluster::start(one_node(4)).await;
    let ends = |output: &Output, expected: i32, part: &str| {
        assert_eq!(code(output), expected, "{output:?}");
        assert!(said(output).contains(part), "{part:?} is missing: {}", said(output));
    };
    ends(&cluster.kvctl(&["put", "k", "v"]), 0, "");
    ends(&cluster.kvctl(&["get", "none"]), 1, "");
    ends(&cluster.kvctl(&["put", "k", "w", "--if-absent"]), 1, "");
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    ends(&cluster.kvctl(&["put", &long, "v"]), 2, "4096");
    let large = vec![b'v'; VALUE_BYTES_MAX + 1];
    let output = cluster.kvctl_with_input(&["put", "large", "--stdin"], &large);
    ends(&output, 2, "max-value-size");
    let output = cluster.kvctl_with_input(&["put", "large", "--stdin"], &vec![b'v'; 5 << 20]);
    ends(&output, 2, "");
    ends(&cluster.kvctl(&["get", "k", "--consistency", "sometimes"]), 2, "sometimes");
    ends(&cluster.kvctl(&["get", "k", "--consistency", "lease"]), 5, "LEASE");
    ends(&cluster.kvctl(&["incr", "k"]), 5, "not a decimal signed 64-bit number");
    let (one, other) = (key_in(1, 4, "one"), key_in(3, 4, "other"));
    let lines = format!(
        "{{\"op\":\"put\",\"key\":\"{one}\",\"value\":\"v\"}}\n\
         {{\"op\":\"put\",\"key\":\"{other}\",\"value\":\"v\"}}\n"
    );
    ends(&cluster.kvctl_with_input(&["batch"], lines.as_bytes()), 2, "hash tag");

    // A file that breaks off in the middle: the line is named, and what came before is there.
    let file = cluster.directory().join("records");
    for (format, text, line) in [
        ("tsv", "a\t1\nb\t2\nno separator\nc\t3\n", "line 3"),
        ("csv", "a,1\nb,2\n\"never closed,3\n", "line 3"),
        ("jsonl", "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"val\n", "line 2"),
    ] {
        fs::write(&file, text).expect("written");
        let path = file.to_str().expect("a path in UTF-8");
        let output = cluster.kvctl(&["load", path, "--format", format]);
        ends(&output, 2, line);
        assert!(said(&output).contains(" stored in "), "it ends with counts: {}", said(&output));
        assert_eq!(cluster.kvctl(&["get", "a"]).stdout, b"1");
    }
    let long = format!("a\t1\n{}\t2\n", "k".repeat(KEY_BYTES_MAX + 1));
    let output = cluster.kvctl_with_input(&["load", "-", "--format", "tsv"], long.as_bytes());
    ends(&output, 2, "line 2");

    assert_eq!(cluster.stop(1), Exit::Code(0));
    ends(&cluster.kvctl(&["--timeout", "1s", "put", "k", "gone"]), 3, "");
    ends(&cluster.kvctl(&["--timeout", "1s", "get", "k"]), 3, "");
    cluster.start_node(1);
    cluster.wait_ready().await;
    assert_eq!(cluster.kvctl(&["get", "k"]).stdout, b"v", "nothing was lost on the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_the_largest_values_ends_no_node_and_is_kept() {
    let cluster = Cluster::start(ClusterOptions { shards: 4, ..ClusterOptions::default() }).await;
    let client = cluster.client();
    let value = |number: usize| vec![number as u8; VALUE_BYTES_MAX];
    let puts = (0..96).map(|number| {
        let put = client.put(format!("large-{number}"), value(number));
        async move { put.timeout(TIMEOUT).await.expect("it is taken in time") }
    });
    futures::future::join_all(puts).await;
    for node in 1..=3 {
        assert!(!cluster.has_ended(node), "node {node} has ended");
    }
    for number in [0, 47, 95] {
        let got = client.get(format!("large-{number}")).await.expect("a read");
        assert!(got.value == value(number), "value {number} is another one");
    }
}
