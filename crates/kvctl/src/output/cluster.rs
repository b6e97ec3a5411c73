//! Output of `status`, `shards`, `nodes` and `locate` in each format.

use std::io;
use std::time::Duration;

use serde_json::Value;

use super::describe;
use super::json::Object;
use super::table::{Align, Column, Table, Tone, painted};
use super::{Output, color_wanted};
use crate::cli::Format;
use crate::duration;
use crate::encoding::escape;
use crate::view::{META, NodeView, ShardView, Trouble, View, node_names};
use crate::wire::{DiskLevel, DiskStatus, GetStatusResponse, NodePhase, ReplicaRole};
use crate::wire::{ReplicaStatus, std_duration};

const SHARDS: [Column; 10] = [
    Column("SHARD", Align::Right),
    Column("STATE", Align::Left),
    Column("LEADER", Align::Left),
    Column("REPLICAS", Align::Left),
    Column("TERM", Align::Right),
    Column("COMMIT", Align::Right),
    Column("APPLIED", Align::Right),
    Column("LAG", Align::Right),
    Column("KEYS", Align::Right),
    Column("BYTES", Align::Right),
];

const NODES: [Column; 12] = [
    Column("NODE", Align::Left),
    Column("ADDRESS", Align::Left),
    Column("STATE", Align::Left),
    Column("LEADS", Align::Right),
    Column("REPLICAS", Align::Right),
    Column("KEYS", Align::Right),
    Column("BYTES", Align::Right),
    Column("DISK", Align::Right),
    Column("FREE", Align::Right),
    Column("REUSABLE", Align::Right),
    Column("MEMORY", Align::Right),
    Column("UPTIME", Align::Right),
];

impl Output {
    /// Prints `status`: the summary, the problems, then the nodes.
    pub fn status(&mut self, view: &View) -> io::Result<()> {
        let problems = view.problems();
        match self.format_or(Format::Table) {
            Format::Json => {
                let value = Object::new()
                    .with("summary", view.sentence())
                    .with("healthy", view.healthy())
                    .with("shards", view.user_shards().count())
                    .with("serving", view.serving())
                    .with("problems", problems)
                    .with("nodes", view.nodes.iter().map(node_json).collect::<Vec<_>>());
                self.json(&value.into())
            }
            Format::Raw => self.line(view.sentence()),
            Format::Tsv => {
                self.fields(&["summary", &view.sentence()])?;
                problems
                    .iter()
                    .try_for_each(|problem| self.fields(&["problem", &escape(problem.as_bytes())]))
            }
            Format::Table => {
                let color = self.color;
                let tone = if view.healthy() { Tone::Plain } else { Tone::Bad };
                self.line(painted(tone, &view.sentence(), color))?;
                for problem in &problems {
                    let line = format!("  • {}", escape(problem.as_bytes()));
                    self.line(painted(Tone::Warning, &line, color))?;
                }
                self.line("")?;
                self.table(&nodes_table(view))
            }
        }
    }

    /// Prints `shards`: one row or object per shard.
    pub fn shards(&mut self, view: &View) -> io::Result<()> {
        match self.format_or(Format::Table) {
            Format::Json => {
                view.shards.iter().try_for_each(|shard| self.json(&shard_json(view, shard)))
            }
            Format::Raw | Format::Tsv => view
                .shards
                .iter()
                .try_for_each(|shard| self.cells(&shard_cells(shard, Figures::Exact))),
            Format::Table => {
                let mut table = Table::new(&SHARDS);
                for shard in &view.shards {
                    table.row(shard_tone(shard), shard_cells(shard, Figures::Rounded));
                }
                self.table(&table)
            }
        }
    }

    /// Prints `nodes`: one row or object per node.
    pub fn nodes(&mut self, view: &View) -> io::Result<()> {
        match self.format_or(Format::Table) {
            Format::Json => view.nodes.iter().try_for_each(|node| self.json(&node_json(node))),
            Format::Raw | Format::Tsv => {
                view.nodes.iter().try_for_each(|node| self.cells(&node_cells(node, Figures::Exact)))
            }
            Format::Table => self.table(&nodes_table(view)),
        }
    }

    /// Writes a line of cells, separated by tabs.
    fn cells(&mut self, cells: &[String]) -> io::Result<()> {
        self.line(cells.join("\t"))
    }

    /// Clears the screen before a watched table is printed again.
    pub fn begin_picture(&mut self) -> io::Result<()> {
        if self.terminal && color_wanted() {
            // Cursor home, then clear to the end, so that the screen does not flicker.
            self.bytes(b"\x1b[H\x1b[J")?;
        }
        Ok(())
    }
}

fn nodes_table(view: &View) -> Table {
    let mut table = Table::new(&NODES);
    for node in &view.nodes {
        let tone = match (&node.problem, &node.status) {
            (None, _) => Tone::Plain,
            (Some(_), Err(_)) => Tone::Bad,
            (Some(_), Ok(status)) => match status.phase() {
                NodePhase::StorageFailed => Tone::Bad,
                _ => Tone::Warning,
            },
        };
        table.row(tone, node_cells(node, Figures::Rounded));
    }
    table
}

fn shard_tone(shard: &ShardView) -> Tone {
    if shard.diverged.is_some() {
        return Tone::Bad;
    }
    match (&shard.trouble, shard.under_replicated || !shard.ailing.is_empty()) {
        (Some(_), _) => Tone::Bad,
        (None, true) => Tone::Warning,
        (None, false) => Tone::Plain,
    }
}

/// `-`, for a value that is not known.
fn unknown() -> String {
    "-".into()
}

/// Formats of numbers.
#[derive(Clone, Copy, PartialEq)]
enum Figures {
    /// For programs: plain integers, bytes and milliseconds.
    Exact,
    /// For people: digits in groups, sizes and times in suitable units.
    Rounded,
}

impl Figures {
    fn count(self, count: u64) -> String {
        if self == Figures::Exact { count.to_string() } else { describe::count(count) }
    }

    fn bytes(self, bytes: u64) -> String {
        if self == Figures::Exact { bytes.to_string() } else { describe::bytes(bytes) }
    }

    fn duration(self, duration: Duration) -> String {
        match self {
            Figures::Exact => millis(duration).to_string(),
            Figures::Rounded => duration::show_rough(duration),
        }
    }
}

fn shard_cells(shard: &ShardView, figures: Figures) -> Vec<String> {
    let seen = |text: String| if shard.present.is_empty() { unknown() } else { text };
    let replicas = shard.voters.iter().map(|voter| {
        // A replica that did not answer is in parentheses.
        if shard.present.contains(voter) { format!("n{voter}") } else { format!("(n{voter})") }
    });
    vec![
        if shard.id == META { "meta".into() } else { shard.id.to_string() },
        state(shard).into(),
        shard.leader.map_or_else(unknown, |leader| format!("n{leader}")),
        replicas.collect::<Vec<_>>().join(" "),
        seen(shard.term.to_string()),
        seen(figures.count(shard.commit)),
        seen(figures.count(shard.applied)),
        shard.lag.map_or_else(unknown, |(lag, _)| figures.count(lag)),
        seen(figures.count(shard.keys)),
        seen(figures.bytes(shard.bytes)),
    ]
}

fn state(shard: &ShardView) -> &'static str {
    match &shard.trouble {
        Some(Trouble::NoLeader { .. }) => "no leader",
        Some(Trouble::LeaderSilent { .. }) => "leader silent",
        Some(Trouble::NoQuorum { .. }) => "no quorum",
        Some(Trouble::Unseen) => "unseen",
        None if shard.diverged.is_some() => "diverged",
        None if shard.under_replicated => "thin",
        None if !shard.ailing.is_empty() => "ailing",
        None => "serves",
    }
}

fn node_cells(node: &NodeView, figures: Figures) -> Vec<String> {
    let name = node.id.map_or_else(unknown, |id| format!("n{id}"));
    let address = escape(node.address.as_bytes());
    let Ok(status) = &node.status else {
        let state = match () {
            () if node.refused => "refuses us",
            () if node.out_of_reach => "out of reach",
            () => "silent",
        };
        let mut cells = vec![name, address, state.into()];
        cells.resize(NODES.len(), unknown());
        return cells;
    };
    let total = totals(status);
    let bytes = |value: Option<u64>| value.map_or_else(unknown, |value| figures.bytes(value));
    vec![
        name,
        address,
        node_state(status).into(),
        total.leads.to_string(),
        total.replicas.to_string(),
        figures.count(total.keys),
        figures.bytes(total.bytes),
        bytes(status.disk.as_ref().map(|disk| disk.used_bytes)),
        bytes(status.disk.as_ref().map(|disk| disk.free_bytes)),
        bytes(status.disk.as_ref().map(|disk| disk.reusable_bytes)),
        bytes(status.memory.as_ref().map(|memory| memory.resident_bytes)),
        status.uptime.as_ref().map_or_else(unknown, |up| figures.duration(std_duration(up))),
    ]
}

fn disk_level(disk: &DiskStatus) -> &'static str {
    match disk.level() {
        DiskLevel::Unspecified => "unknown",
        DiskLevel::Ok => "ok",
        DiskLevel::Low => "low",
        DiskLevel::Critical => "critical",
    }
}

fn node_state(status: &GetStatusResponse) -> &'static str {
    match status.phase() {
        _ if !status.live => "stuck",
        NodePhase::Forming => "forming",
        NodePhase::Starting => "starting",
        NodePhase::Draining => "draining",
        NodePhase::StorageFailed => "storage failed",
        NodePhase::Ready | NodePhase::Unspecified if status.ready => "ready",
        NodePhase::Ready | NodePhase::Unspecified => "not ready",
    }
}

/// Totals over the shards of a node, without the meta group.
#[derive(Default)]
struct Totals {
    leads: usize,
    replicas: usize,
    keys: u64,
    bytes: u64,
}

fn totals(status: &GetStatusResponse) -> Totals {
    let mut total = Totals::default();
    for replica in status.replicas.iter().filter(|replica| replica.shard != META) {
        total.leads += usize::from(replica.role() == ReplicaRole::Leader);
        total.replicas += 1;
        total.keys += replica.keys;
        total.bytes += replica.bytes;
    }
    total
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn node_json(node: &NodeView) -> Value {
    let object = Object::new()
        .with("node_id", node.id)
        .with("address", node.address.as_str())
        .with("answers", node.status.is_ok())
        .with("problem", node.problem.as_deref());
    let Ok(status) = &node.status else { return object.into() };
    let total = totals(status);
    let mut object = object
        .with("phase", node_state(status).replace(' ', "_"))
        .with("ready", status.ready)
        .with("live", status.live)
        .with("detail", status.detail.as_str())
        .with_some("uptime_ms", status.uptime.as_ref().map(|up| millis(std_duration(up))))
        .with("version", status.version.as_str())
        .with("pid", status.pid)
        .with("cluster_id", hex::encode(&status.cluster_id))
        .with("history", hex::encode(&status.history))
        .with("map_epoch", status.map_epoch)
        .with("leads", total.leads)
        .with("replicas", total.replicas)
        .with("keys", total.keys)
        .with("bytes", total.bytes)
        .with("clock_ms", status.clock_ms)
        .with_some("clock_ahead_ms", node.clock_ahead_ms);
    if let Some(disk) = &status.disk {
        object = object.with(
            "disk",
            Object::new()
                .with("used_bytes", disk.used_bytes)
                .with("free_bytes", disk.free_bytes)
                .with("total_bytes", disk.total_bytes)
                .with("reserve_bytes", disk.reserve_bytes)
                .with("writes_refused", disk.writes_refused)
                .with("reusable_bytes", disk.reusable_bytes)
                .with("level", disk_level(disk)),
        );
    }
    if let Some(memory) = &status.memory {
        object = object.with(
            "memory",
            Object::new()
                .with("resident_bytes", memory.resident_bytes)
                .with("budget_bytes", memory.budget_bytes)
                .with("delta_bytes", memory.delta_bytes)
                .with("delta_bytes_max", memory.delta_bytes_max),
        );
    }
    let peers = status.peers.iter().map(|peer| {
        Object::new()
            .with("node_id", peer.node_id)
            .with("connected", peer.connected)
            .with("address", peer.address.as_str())
            .with("detail", peer.detail.as_str())
            .with_some("silent_for_ms", peer.silent_for.as_ref().map(|d| millis(std_duration(d))))
            .with_some("clock_offset_ms", peer.clock_offset_ms)
            .into()
    });
    object.with("peers", peers.collect::<Vec<Value>>()).into()
}

/// The digests of a replica at the indexes at which replicas are compared.
fn marks_json(replica: &ReplicaStatus) -> Vec<Value> {
    let marks = replica.marks.iter().map(|mark| {
        Object::new().with("applied", mark.applied).with("digest", hex::encode(&mark.digest))
    });
    marks.map(Value::from).collect()
}

fn shard_json(view: &View, shard: &ShardView) -> Value {
    let mut replicas: Vec<Value> = Vec::new();
    for node in &view.nodes {
        let Ok(status) = &node.status else { continue };
        for replica in status.replicas.iter().filter(|replica| replica.shard == shard.id) {
            let leaderless = replica.leaderless_for.as_ref();
            let object = Object::new()
                .with("node_id", status.node_id)
                .with("replica_id", replica.replica_id)
                .with("role", lower_name(replica.role().as_str_name(), "REPLICA_ROLE_"))
                .with("term", replica.term)
                .with("leader_node_id", replica.leader_node_id)
                .with("commit", replica.commit)
                .with("applied", replica.applied)
                .with("last", replica.last)
                .with("lag", replica.lag)
                .with("keys", replica.keys)
                .with("bytes", replica.bytes)
                .with("digest", hex::encode(&replica.digest))
                .with("digest_applied", replica.digest_applied)
                .with("marks", marks_json(replica))
                .with("log_bytes", replica.log_bytes)
                .with("log_base", replica.log_base)
                .with("checkpoint_applied", replica.checkpoint_applied)
                .with("health", lower_name(replica.health().as_str_name(), "REPLICA_HEALTH_"))
                .with_some("leaderless_for_ms", leaderless.map(|d| millis(std_duration(d))))
                .with("shard_epoch", replica.shard_epoch)
                .with_log_time(replica.log_time)
                .with("sessions", replica.sessions);
            replicas.push(object.into());
        }
    }
    Object::new()
        .with("shard", shard.id)
        .with("state", state(shard).replace(' ', "_"))
        .with("serves", shard.trouble.is_none())
        .with("leader_node_id", shard.leader.unwrap_or(0))
        .with("term", shard.term)
        .with("commit", shard.commit)
        .with("applied", shard.applied)
        .with("lag", shard.lag.map(|(lag, _)| lag))
        .with("keys", shard.keys)
        .with("bytes", shard.bytes)
        .with("voter_node_ids", shard.voters.clone())
        .with("replicas", replicas)
        .into()
}

/// The name of an enum value in JSON: `REPLICA_ROLE_PRE_CANDIDATE` is `pre_candidate`.
fn lower_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// The result of `locate`.
pub struct Location<'a> {
    /// The key asked for.
    pub key: &'a [u8],
    /// The part of it that is hashed.
    pub tag: &'a [u8],
    /// The hash of the tag.
    pub hash: u64,
    /// The shard of the hash; `None` if no node sent a map.
    pub place: Option<Place>,
}

/// The shard that owns a hash, from the cluster map.
pub struct Place {
    /// The id of the shard.
    pub shard: u64,
    /// Its first and last hash, both inclusive.
    pub range: (u64, u64),
    /// The epoch of the shard.
    pub shard_epoch: u64,
    /// The epoch of the map.
    pub map_epoch: u64,
    /// The nodes of its replicas, the preferred leader first.
    pub replicas: Vec<u64>,
    /// The leader, as far as the node that sent the map knows.
    pub leader: Option<u64>,
}

impl Output {
    /// Prints `locate`.
    pub fn location(&mut self, at: &Location<'_>) -> io::Result<()> {
        let hash = format!("{:016x}", at.hash);
        if self.format_or(Format::Table) == Format::Json {
            let object = Object::new()
                .with_bytes("key", at.key)
                .with_bytes("tag", at.tag)
                .with("hash", hash);
            let object = match &at.place {
                None => object,
                Some(place) => object
                    .with("shard", place.shard)
                    .with("first", format!("{:016x}", place.range.0))
                    .with("last", format!("{:016x}", place.range.1))
                    .with("shard_epoch", place.shard_epoch)
                    .with("map_epoch", place.map_epoch)
                    .with("replica_node_ids", place.replicas.clone())
                    .with("leader_node_id", place.leader.unwrap_or(0)),
            };
            return self.json(&object.into());
        }
        let mut facts = vec![("tag", escape(at.tag)), ("hash", hash)];
        if let Some(place) = &at.place {
            facts.push(("shard", place.shard.to_string()));
            facts.push(("range", format!("{:016x}–{:016x}", place.range.0, place.range.1)));
            facts.push(("replicas", node_names(&place.replicas)));
            let leader = place.leader.map_or_else(|| "unknown".into(), |node| format!("n{node}"));
            facts.push(("leader", leader));
        }
        let plain = self.format_or(Format::Table) != Format::Table;
        facts.into_iter().try_for_each(|(name, fact)| match plain {
            true => self.fields(&[name, &fact]),
            false => self.line(format!("{name:<10}{fact}")),
        })
    }
}

#[cfg(test)]
mod tests;
