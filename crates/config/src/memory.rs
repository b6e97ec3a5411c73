//! Memory plan: the division of `--memory` among caches, logs and queues.
//!
//! # Outside the plan
//!
//! A node takes more than `--memory`, by what no share bounds. `BESIDE` lists it, measured under
//! values of 1 MiB, which are the worst: the program at rest; buffers of whole segments in the
//! storage engine; its cache, which has 256 parts and in each keeps the page used last, however
//! small the share is; the record that is being written to the log, as its sections and whole; and
//! what peers send and receive, 2 MiB for each lane of a connection to another node.
//!
//! # Connections of clients
//!
//! HTTP/2 lets a client send what no call has asked for. A connection has a window of a quarter of
//! `bodies`, between 1 and 8 MiB, over all its streams, each of which has one of 1 MiB; the other
//! way a stream may queue 32 KiB. By these alone, 1,024 connections of 256 calls could hold 8 GiB
//! of requests and as much of answers. They do not: of a request whose headers have come a task
//! takes each frame as it arrives, and counts it as `bodies` or refuses the call, which frees it.
//! So in the window is only what came since the task ran last. An answer is handed over in pieces
//! of 16 KiB that count until the reader has taken them, and its last KiB, which does not count.
//! What is left per call of a client that reads nothing is that KiB and its task, for 30 s.

use std::path::Path;

use super::value::{format_bytes, parse_bytes};

/// The minimum of `--memory`.
pub const MEMORY_MIN: u64 = 128 << 20;
/// The maximum of the default of `--memory`.
const MEMORY_DEFAULT_MAX: u64 = 2 << 30;
/// Assumed memory of a machine that does not report how much it has.
const ASSUMED_MACHINE: u64 = 4 << 30;

/// What a node takes outside the plan, in bytes; see the head of this module.
const BESIDE: [(&str, u64); 4] = [
    ("program", 16 << 20),
    // One that is filled, one that is written, two that are about to be freed.
    ("segments of the storage engine", 4 * (8 << 20)),
    ("parts of its cache", 40 << 20),
    // Up to 4 MiB and the largest command, twice.
    ("record of the log", 2 * (6 << 20)),
];
/// The same for each peer: the windows of its two lanes for messages, and what was asked of them.
const BESIDE_EACH_PEER: u64 = 2 * 2 * (2 << 20);
/// The same for each call of a client that does not read: the last of its answer, and its task.
const BESIDE_EACH_CALL: u64 = 16 << 10;

/// The shares of `--memory`, all in bytes. Their sum is below the total; the rest is for code,
/// stacks, connections and the overhead of the allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The total, as configured.
    pub total: u64,
    /// Page cache of the storage engine.
    pub engine_cache: u64,
    /// Applied state that is not yet checkpointed, over all shards. At this size proposals are
    /// rejected; a follower stops applying at twice this size, so it counts twice in the sum.
    pub delta: u64,
    /// Raft log in memory, over all groups; more forces checkpoints.
    pub log_node: u64,
    /// Raft log in memory of one group; more forces a checkpoint of its shard.
    pub log_group: u64,
    /// Recently read values.
    pub value_cache: u64,
    /// Queued messages to all peers.
    pub transport_queue: u64,
    /// Requests of clients that wait for their proposal, application or answer: half as they came,
    /// half as commands that are not in the log yet.
    pub request_queue: u64,
    /// Requests that are being received and answers that are not taken yet, over all connections.
    pub bodies: u64,
}

impl MemoryPlan {
    /// Divides `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        // Beyond these caps more does not help: 64 MiB of delta and 512 MiB of log hold several
        // seconds of writes at the full rate, so a large node uses the rest for caches.
        let log_node = (total / 4).min(512 << 20);
        Self {
            total,
            engine_cache: total / 32 * 5,
            delta: (total / 16).min(64 << 20),
            log_node,
            log_group: (log_node / 2).min(64 << 20),
            value_cache: total / 16,
            transport_queue: (total / 16).min(64 << 20),
            request_queue: (total / 16).min(128 << 20),
            bodies: (total / 16).min(128 << 20),
        }
    }

    /// The part of `request_queue` for requests as they came.
    #[must_use]
    pub const fn requests_held(&self) -> u64 {
        self.request_queue / 2
    }

    /// The part of `request_queue` for commands that wait to be proposed, and for messages of
    /// peers beside them.
    #[must_use]
    pub const fn commands_queued(&self) -> u64 {
        self.request_queue / 2
    }

    /// What a node takes at most, with what is outside the plan, among `nodes` nodes and beside
    /// `calls` calls whose answers are not read.
    #[must_use]
    pub fn with_all_beside(&self, nodes: u64, calls: u64) -> u64 {
        let beside: u64 = BESIDE.iter().map(|(_, bytes)| bytes).sum();
        self.total + beside + nodes.saturating_sub(1) * BESIDE_EACH_PEER + calls * BESIDE_EACH_CALL
    }

    /// The shares with their names, to show.
    #[must_use]
    pub fn shares(&self) -> [(&'static str, u64); 8] {
        [
            ("engine cache", self.engine_cache),
            ("delta", self.delta),
            ("log, node", self.log_node),
            ("log, each group", self.log_group),
            ("value cache", self.value_cache),
            ("transport queues", self.transport_queue),
            ("request queues", self.request_queue),
            ("bodies", self.bodies),
        ]
    }

    /// Maximum of all shares together.
    #[must_use]
    pub const fn committed(&self) -> u64 {
        // One group's log is part of the node's.
        self.engine_cache
            + 2 * self.delta
            + self.log_node
            + self.value_cache
            + self.transport_queue
            + self.request_queue
            + self.bodies
    }
}

/// The default of `--memory`: a quarter of the memory of the machine or of the control group, at
/// least [`MEMORY_MIN`] and at most 2 GiB.
#[must_use]
pub fn default_memory() -> u64 {
    default_of(available(Path::new("/")))
}

/// The default for a machine of `available` bytes.
pub(super) fn default_of(available: u64) -> u64 {
    // Whole MiB, so that the value is readable and can be used as a flag.
    let quarter = available / 4 / (1 << 20) * (1 << 20);
    quarter.clamp(MEMORY_MIN, MEMORY_DEFAULT_MAX)
}

/// The smallest of the machine's memory and the limits of the control groups around this process.
/// `root` is `/`, except in tests.
pub(super) fn available(root: &Path) -> u64 {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| machine_memory(&text));
    let limits = read("proc/self/cgroup").unwrap_or_default();
    let groups = limits.lines().flat_map(|line| cgroup_files(line).into_iter());
    let limit = groups.filter_map(|path| read(&path)).filter_map(|text| cgroup_limit(&text)).min();
    machine.into_iter().chain(limit).min().unwrap_or(ASSUMED_MACHINE)
}

/// Parses `MemTotal:  16384 kB` of /proc/meminfo.
fn machine_memory(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    parse_bytes(&rest.trim().replace(" kB", "KiB")).ok()
}

/// The files that may contain a limit, for a line of /proc/self/cgroup: of the group itself and of
/// each group above it. In a container the path is often that of the host, while the container's
/// own group is mounted at the top, so the top is always included.
fn cgroup_files(line: &str) -> Vec<String> {
    let mut fields = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
    else {
        return Vec::new();
    };
    let (top, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        .map(|group| Path::new(top).join(group).join(file).to_string_lossy().into_owned())
        .collect()
}

/// Parses the limit of a control group: bytes, or `max` for none.
fn cgroup_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format_bytes(self.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_a_fifth_and_grow_with_the_total() {
        let mut total = MEMORY_MIN;
        while total <= 256 << 30 {
            let plan = MemoryPlan::new(total);
            assert!(plan.committed() <= total / 5 * 4, "{plan:?}");
            assert!(plan.log_group <= plan.log_node, "{plan:?}");
            for (name, share) in plan.shares() {
                assert!(share >= 4 << 20, "{name} has {share} of {total}");
            }
            total += total / 3;
        }
        let plan = MemoryPlan::new(MEMORY_DEFAULT_MAX);
        assert_eq!((plan.delta, plan.log_group, plan.log_node), (64 << 20, 64 << 20, 512 << 20));
    }

    #[test]
    fn the_shares_and_what_is_beside_them_add_up() {
        let plan = MemoryPlan::new(MEMORY_MIN);
        assert_eq!(plan.requests_held() + plan.commands_queued(), plan.request_queue);
        // Named twice in the sum is only the delta, and one group's log is in the node's.
        let named: u64 = plan.shares().iter().map(|(_, share)| share).sum();
        assert_eq!(plan.committed(), named + plan.delta - plan.log_group);
        let mib = |bytes: u64| bytes >> 20;
        assert_eq!(mib(plan.with_all_beside(1, 0)), 128 + 16 + 32 + 40 + 12);
        assert_eq!(mib(plan.with_all_beside(3, 256)), 228 + 16 + 4);
    }

    #[test]
    fn the_default_is_a_quarter_between_its_bounds() {
        assert_eq!(default_of(1 << 30), 256 << 20);
        assert_eq!(default_of((1 << 30) + 5), 256 << 20);
        assert_eq!(default_of(64 << 30), 2 << 30);
        assert_eq!(default_of(100 << 20), MEMORY_MIN);
    }

    /// A file system with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:          1024 kB\n");

    #[test]
    fn the_smallest_limit_of_the_machine_and_the_control_groups_is_used() {
        for (name, files, expected) in [
            ("nothing is known", vec![], ASSUMED_MACHINE),
            ("no control group", vec![MEMINFO], 16 << 30),
            (
                "v2, the group above is smaller",
                vec![
                    MEMINFO,
                    ("proc/self/cgroup", "0::/system/quorate\n"),
                    ("sys/fs/cgroup/system/quorate/memory.max", "max\n"),
                    ("sys/fs/cgroup/system/memory.max", "1073741824\n"),
                ],
                1 << 30,
            ),
            (
                "v2 in a container: the path is the host's, the limit is at the top",
                vec![
                    MEMINFO,
                    ("proc/self/cgroup", "0::/docker/abc\n"),
                    ("sys/fs/cgroup/memory.max", "536870912\n"),
                ],
                512 << 20,
            ),
            (
                "v1 without a limit",
                vec![
                    MEMINFO,
                    ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/x\n0::/\n"),
                    ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                16 << 30,
            ),
            (
                "v1 with a limit",
                vec![
                    MEMINFO,
                    ("proc/self/cgroup", "4:memory:/x\n"),
                    ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "268435456\n"),
                ],
                256 << 20,
            ),
        ] {
            assert_eq!(available(machine(&files).path()), expected, "{name}");
        }
    }
}
