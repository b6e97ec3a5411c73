//! Processes killed at bad moments, while clients write, read and swap: nothing acknowledged is
//! lost, nothing is done twice, nothing that was said not to be applied is seen, and all replicas
//! hold the same at the end.
//!
//! `QUORATE_KILLS=100 cargo test -p quorate-tests --test kills` kills a hundred times; the default
//! is 20. `QUORATE_SEED` repeats the plan of a run, whose seed is printed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_client::{Client, ClientConfig};
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{GetRequest, ReadLevel, ReadOptions, ReplicaRole};
use quorate_tests::cluster::TIMEOUT;
use quorate_tests::history::{History, Outcome};
use quorate_tests::registers::{Recorded, Registers};
use quorate_tests::{Cluster, ClusterOptions, until_async};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

/// Clients that read and write.
const CLIENTS: usize = 6;

/// Clients that do so without the native client, and take each node at its word.
const PLAIN: usize = 2;

/// Long enough for an election on a machine that does much else besides.
const LONG: Duration = Duration::from_secs(30);

/// Operations answered between two kills, at least.
const BETWEEN: u64 = 50;

/// How often a kill is tried again when the moment was missed.
const TRIES: u32 = 5;

/// The tests of this file take the whole machine, one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// When, or what, a kill hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Category {
    MetaLeader,
    ShardLeader,
    Follower,
    Checkpoint,
    Snapshot,
    Start,
}

const ALL: [Category; 6] = [
    Category::MetaLeader,
    Category::ShardLeader,
    Category::Follower,
    Category::Checkpoint,
    Category::Snapshot,
    Category::Start,
];

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MetaLeader => "leader of group 0",
            Self::ShardLeader => "leader of a shard",
            Self::Follower => "follower",
            Self::Checkpoint => "during a checkpoint",
            Self::Snapshot => "during a snapshot transfer",
            Self::Start => "during start",
        })
    }
}

/// How many kills were meant for a category, and how many hit it.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    kills: u32,
    hits: u32,
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

fn kills() -> usize {
    let kills = number("QUORATE_KILLS").unwrap_or(20) as usize;
    assert!(kills >= ALL.len(), "at least one kill of each category");
    kills
}

fn patient(cluster: &Cluster) -> Client {
    let config =
        ClientConfig::new(cluster.endpoints().split(',')).expect("addresses are endpoints");
    Client::new(config.timeout(LONG))
}

/// Each category once, then random ones, in a random order.
fn plan(kills: usize, random: &mut StdRng) -> Vec<Category> {
    let mut plan = ALL.to_vec();
    plan.resize_with(kills, || *ALL.choose(random).expect("there are categories"));
    plan.shuffle(random);
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_loses_what_was_acknowledged() {
    let _one = ONE_AT_A_TIME.lock().await;
    let seed = number("QUORATE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    eprintln!("QUORATE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let plan = plan(kills(), &mut random);
    // Either log must bear it; which one it is this time, the seed says.
    let log_store = *["sled", "file"].choose(&mut random).expect("there are two");
    let arguments = [
        format!("--log-store={log_store}"),
        // The least memory makes checkpoints frequent; their beginnings are logged at debug.
        "--memory=128MiB".to_owned(),
        "--log-level=info,quorate_engine::checkpointer=debug".to_owned(),
    ]
    .to_vec();
    let cluster = Cluster::start(ClusterOptions { arguments, ..ClusterOptions::default() }).await;
    let clients = (0..CLIENTS).map(|_| patient(&cluster)).collect();
    let nodes = || cluster.ids().into_iter().map(|id| cluster.channel(id)).collect();
    let plain = (0..PLAIN).map(|_| nodes()).collect();
    let registers = Registers::start(clients, plain, seed);
    let mut campaign = Campaign { cluster, registers, random };

    let begun = Instant::now();
    let mut table: BTreeMap<Category, Tally> = BTreeMap::new();
    for (number, category) in plan.iter().enumerate() {
        for _ in 0..TRIES {
            let started = Instant::now();
            let hit = campaign.kill(*category).await;
            let tally = table.entry(*category).or_default();
            tally.kills += 1;
            tally.hits += u32::from(hit);
            let what = if hit { "hit" } else { "missed" };
            eprintln!("kill {number}: {category}: {what}, {:.1?}", started.elapsed());
            if hit {
                break;
            }
        }
    }
    eprintln!("seed {seed}, log in {log_store}, {:.1?}", begun.elapsed());
    eprintln!("{:28}kills  hits", "category");
    for (category, tally) in &table {
        eprintln!("{category:28}{:5} {:5}", tally.kills, tally.hits);
    }
    let without = ALL.iter().filter(|category| table.get(category).is_none_or(|t| t.hits == 0));
    let without: Vec<_> = without.collect();

    campaign.kill_all_at_once().await;
    let Campaign { mut cluster, registers, .. } = campaign;
    let mut recorded = registers.stop().await;
    check(&cluster, &mut recorded, "after the kills").await;
    cluster.kill_all();
    cluster.start_all().await;
    check(&cluster, &mut recorded, "after the end of all nodes").await;
    tell(&recorded);
    assert!(without.is_empty(), "never hit: {without:?}");
}

/// The cluster under its clients.
struct Campaign {
    cluster: Cluster,
    registers: Registers,
    random: StdRng,
}

impl Campaign {
    /// Kills once, and waits until the cluster is whole again. Whether the moment was the one meant
    /// is decided by what the nodes have said and logged, not by what was attempted.
    async fn kill(&mut self, category: Category) -> bool {
        let hit = match category {
            Category::MetaLeader => self.kill_leader(0).await,
            Category::ShardLeader => {
                let shard = self.random.random_range(1..=8);
                self.kill_leader(shard).await
            }
            Category::Follower => self.kill_follower().await,
            Category::Checkpoint => self.kill_in_checkpoint().await,
            Category::Snapshot => self.kill_in_snapshot().await,
            Category::Start => self.kill_in_start().await,
        };
        self.registers.set_heavy(false);
        self.cluster.start_all().await;
        self.wait_answers().await;
        hit
    }

    /// The end of all nodes, while clients write as fast as they can.
    async fn kill_all_at_once(&mut self) {
        self.registers.set_heavy(true);
        self.wait_answers().await;
        self.cluster.kill_all();
        self.registers.set_heavy(false);
        self.cluster.start_all().await;
        self.wait_answers().await;
    }

    /// Waits until clients were answered some more.
    async fn wait_answers(&self) {
        let enough = self.registers.answered() + BETWEEN;
        until_async("clients are answered", TIMEOUT, || async {
            (self.registers.answered() >= enough).then_some(())
        })
        .await;
    }

    fn any_node(&mut self) -> u64 {
        *self.cluster.ids().choose(&mut self.random).expect("there are nodes")
    }

    /// A hit is a kill after which another node leads.
    async fn kill_leader(&mut self, shard: u64) -> bool {
        let victim = self.cluster.leader(shard).await;
        self.cluster.kill(victim);
        self.cluster.leader(shard).await != victim
    }

    /// A hit is a kill of a node that does not lead, while the leader keeps running.
    async fn kill_follower(&mut self) -> bool {
        let shard = self.random.random_range(0..=8);
        let leader = self.cluster.leader(shard).await;
        let others: Vec<_> = self.cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let victim = *others.choose(&mut self.random).expect("two nodes follow");
        self.cluster.kill(victim);
        self.wait_answers().await;
        self.cluster.leader(shard).await == leader
    }

    /// A hit is a kill of a node whose log ends within a checkpoint.
    async fn kill_in_checkpoint(&mut self) -> bool {
        const WORDS: [&str; 2] = ["checkpoint: started", "checkpoint: written"];
        let victim = self.any_node();
        let mut log = self.cluster.watch_log(victim);
        self.registers.set_heavy(true);
        log.wait_for(&WORDS, TIMEOUT);
        self.cluster.kill(victim);
        log.last(&WORDS).is_some_and(|line| line.message.starts_with(WORDS[0]))
    }

    /// A hit is a kill of sender or receiver while neither has the transfer behind it.
    async fn kill_in_snapshot(&mut self) -> bool {
        let receiver = self.any_node();
        self.cluster.kill(receiver);
        // What the node has ends at or before what the others have once it is gone.
        let mut had: BTreeMap<u64, u64> = BTreeMap::new();
        for replica in self.cluster.statuses().await.values().flat_map(|s| &s.replicas) {
            let last = had.entry(replica.shard).or_default();
            *last = (*last).max(replica.last);
        }
        self.registers.set_heavy(true);
        until_async("a leader has compacted past what the node has", TIMEOUT, || async {
            let statuses = self.cluster.statuses().await;
            let replicas = statuses.values().flat_map(|status| &status.replicas);
            let mut led = replicas.filter(|replica| replica.role() == ReplicaRole::Leader);
            led.any(|replica| replica.log_base > had[&replica.shard]).then_some(())
        })
        .await;
        self.registers.set_heavy(false);
        let mut logs: BTreeMap<u64, _> =
            self.cluster.ids().into_iter().map(|id| (id, self.cluster.watch_log(id))).collect();
        self.cluster.start_node(receiver);
        const RECEIVER: [&str; 3] = ["snapshot: receiving", "snapshot: installed", "snapshot: not"];
        const SENDER: [&str; 2] = ["snapshot: sent", "snapshot: not sent"];
        let log = logs.get_mut(&receiver).expect("each node has a log");
        let transfer = log.wait_for(&RECEIVER, TIMEOUT);
        let sender = transfer.peer.expect("a snapshot comes from a node");
        let victim = if self.random.random() { receiver } else { sender };
        self.cluster.kill(victim);
        let mut ended = |node: u64, words: &[&str]| {
            let lines = logs.get_mut(&node).expect("each node has a log").lines();
            let of_shard = lines.iter().filter(|line| line.shard == transfer.shard);
            let found = |line: &&_| {
                let line: &quorate_tests::logs::Line = line;
                words.iter().any(|words| line.message.starts_with(words))
            };
            of_shard.filter(found).count() > 0
        };
        !ended(receiver, &RECEIVER[1..]) && !ended(sender, &SENDER)
    }

    /// A hit is a kill of a node that has begun, and has not yet said that all its shards are
    /// served.
    async fn kill_in_start(&mut self) -> bool {
        const STAGES: [&str; 4] =
            ["node: listening", "storage: open", "cluster: member", "node: serving"];
        let victim = self.any_node();
        let stage = *STAGES.choose(&mut self.random).expect("there are stages");
        self.cluster.kill(victim);
        let mut log = self.cluster.watch_log(victim);
        self.cluster.start_node(victim);
        log.wait_for(&[stage], TIMEOUT);
        self.cluster.kill(victim);
        log.last(&["ready: "]).is_none()
    }
}

/// What clients have seen, and what each replica holds now, makes sense.
async fn check(cluster: &Cluster, recorded: &mut Recorded, when: &str) {
    recorded.read_all().await;
    let contradictions = recorded.history.contradictions();
    assert!(contradictions.is_empty(), "{when}: {}", contradictions.join("\n"));
    cluster.wait_equal().await;
    // Digests are kept along with the rows; the rows themselves are compared, too.
    let first = replica(cluster, 1, &recorded.keys()).await;
    for id in cluster.ids() {
        let rows = replica(cluster, id, &recorded.keys()).await;
        for (key, row) in &rows {
            assert_eq!(row, &first[key], "{when}: {key} differs between nodes 1 and {id}");
        }
    }
}

/// Value and revision of each key as one node's own replicas have them.
async fn replica(cluster: &Cluster, id: u64, keys: &[String]) -> BTreeMap<String, (Vec<u8>, u64)> {
    let mut node = KvClient::new(cluster.channel(id));
    let mut rows = BTreeMap::new();
    for key in keys {
        let read = Some(ReadOptions { level: ReadLevel::Stale as i32, ..ReadOptions::default() });
        let key_bytes = key.clone().into();
        let request = GetRequest { key: key_bytes, read, ..GetRequest::default() };
        let got = node.get(request).await.expect("a stale read is always answered").into_inner();
        assert_eq!(got.receipt.map(|receipt| receipt.node_id), Some(id), "its own replica");
        rows.insert(key.clone(), (got.value.to_vec(), got.revision));
    }
    rows
}

fn tell(recorded: &Recorded) {
    let told = |name: &str, history: &History| {
        let of = |wanted: fn(Outcome) -> bool| history.count(wanted);
        let written = of(|outcome| matches!(outcome, Outcome::Written { .. }));
        let seen = of(|outcome| matches!(outcome, Outcome::Seen { .. }));
        let failed = of(|outcome| outcome == Outcome::NotApplied);
        let unknown = of(|outcome| outcome == Outcome::Unknown);
        eprintln!("{name}: {written} writes, {seen} reads, {failed} failed, {unknown} unknown");
        (written, seen, failed, unknown)
    };
    let all = told("all", &recorded.history);
    let plain = told("without the native client", &recorded.plain);
    assert!(all.0 > 1000 && all.1 > 500, "the clients were busy");
    assert!(plain.0 > 50, "those without the native client were busy");
    // Sessions make every retry safe, and two of three nodes are always there to retry with.
    let native = (all.2 - plain.2, all.3 - plain.3);
    assert_eq!(native, (0, 0), "each operation of a native client was answered in the end");
}

/// When writes of one shard were acknowledged.
type Acknowledged = Arc<Mutex<Vec<Instant>>>;

/// Writes to a shard, one after the other.
async fn probe(client: Client, key: String, acknowledged: Acknowledged) {
    loop {
        let put = client.put(key.clone(), "x").await;
        put.unwrap_or_else(|error| panic!("{key}: {error}"));
        acknowledged.lock().push(Instant::now());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The longest time from `kill` on in which no write was acknowledged.
fn longest_silence(acknowledged: &Acknowledged, kill: Instant) -> Duration {
    let all = acknowledged.lock();
    let after = all.iter().copied().filter(|at| *at > kill);
    let mut last = kill;
    let mut longest = Duration::ZERO;
    for at in after {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_writes_go_on_soon() {
    /// Ten times what is expected: this machine may be busy with other things.
    const BOUND: Duration = Duration::from_secs(30);
    let _one = ONE_AT_A_TIME.lock().await;
    let wanted = if kills() >= 100 { 20 } else { 5 };
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let client = patient(&cluster);
    let mut shards: BTreeMap<u64, Acknowledged> = BTreeMap::new();
    let mut probes = Vec::new();
    for number in 0.. {
        let key = format!("probe-{number}");
        let shard = client.locate(key.clone()).await.expect("the map is known").shard;
        if shards.contains_key(&shard) {
            continue;
        }
        let acknowledged = Acknowledged::default();
        shards.insert(shard, acknowledged.clone());
        probes.push(tokio::spawn(probe(client.clone(), key, acknowledged)));
        if shards.len() == 8 {
            break;
        }
    }

    let (mut of_leaders, mut of_followers) = (Vec::new(), Vec::new());
    while of_leaders.len() < wanted || of_followers.len() < wanted {
        // Every process leads some shards and follows in others: each kill is one of both kinds.
        let shard = 1 + of_leaders.len() as u64 % 8;
        let victim = cluster.leader(shard).await;
        let leaders = cluster.leaders().await;
        let kill = Instant::now();
        cluster.kill(victim);
        until_async("every shard takes writes", TIMEOUT, || async {
            let after = |all: &Acknowledged| all.lock().iter().filter(|at| **at > kill).count();
            shards.values().all(|acknowledged| after(acknowledged) >= 20).then_some(())
        })
        .await;
        let longest = |led: bool| {
            let of_kind = shards.iter().filter(|(shard, _)| (leaders[shard] == victim) == led);
            of_kind.map(|(_, acknowledged)| longest_silence(acknowledged, kill)).max()
        };
        of_leaders.extend(longest(true));
        of_followers.extend(longest(false));
        cluster.start_all().await;
    }
    for probe in probes {
        assert!(!probe.is_finished(), "a write failed");
        probe.abort();
    }
    for (kind, mut times) in [("leader", of_leaders), ("follower", of_followers)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        let (median, p99, longest) = (at(0.5), at(0.99), at(1.0));
        let count = times.len();
        eprintln!(
            "time without writes after the kill of a {kind}, {count} kills: \
             median {median:.0?}, p99 {p99:.0?}, longest {longest:.0?}"
        );
        assert!(longest < BOUND, "{kind}: {times:?}");
    }
}
