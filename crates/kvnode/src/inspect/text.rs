//! The report for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use quorate_node::inspect::{Group, Problem, Report};

/// The whole report, with a line end.
pub fn of(report: &Report) -> String {
    let mut lines = vec![
        row("node", &format!("{}, boot counter {}", report.node_id, report.boot_counter)),
        row("incarnation", &report.incarnation),
        row("cluster", &cluster(report)),
    ];
    if let Some(members) = &report.members {
        let members = members.iter().map(|one| format!("{} {}", one.node_id, one.incarnation));
        lines.push(row("members", &members.collect::<Vec<_>>().join(", ")));
    }
    lines.push(row("log", &log(report)));
    lines.push(row("map", &or_none(report.map_epoch.map(|epoch| format!("epoch {epoch}")))));
    lines.push(row("last run", report.last_run.map_or("none is known", last_run)));
    let formats = report.formats.iter().map(|(name, number)| format!("{name} {number}"));
    lines.push(row("formats", &formats.collect::<Vec<_>>().join(", ")));
    if !report.groups.is_empty() {
        lines.push(String::new());
        lines.extend(groups(&report.groups));
    }
    lines.push(String::new());
    match &report.problems[..] {
        [] => lines.push("Nothing is wrong.".to_owned()),
        problems => {
            lines.push(format!("{} wrong:", problems.len()));
            lines.extend(problems.iter().map(|found| format!("  {}", problem(found))));
        }
    }
    lines.join("\n") + "\n"
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<13}{value}")
}

fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| "none".to_owned())
}

fn cluster(report: &Report) -> String {
    let formed = (&report.cluster_name, &report.cluster_id, report.shards, report.replicas);
    let (Some(name), Some(id), Some(shards), Some(replicas)) = formed else {
        return "not formed yet".to_owned();
    };
    format!("{} {id}, {shards} shards, {replicas} replicas of each wanted", name.escape_debug())
}

fn log(report: &Report) -> String {
    let Some(store) = report.log_store else { return "none".to_owned() };
    let Some(log) = &report.log else { return format!("{store}, cannot be read") };
    let records = match (log.first_record, log.last_record) {
        (Some(first), Some(last)) => format!("records {first} to {last}"),
        _ => "no records".to_owned(),
    };
    let tail = if log.unfinished_record { ", and one that was never finished" } else { "" };
    format!("{store}, {records}, {} bytes{tail}", log.bytes)
}

fn last_run(name: &'static str) -> &'static str {
    match name {
        "clean" => "stopped in order",
        "killed" => "killed",
        "may_have_lost" => "killed, and the machine has been started again since",
        other => other,
    }
}

/// The columns of the table of groups: heading, and whether it holds numbers.
const COLUMNS: [(&str, bool); 16] = [
    ("SHARD", true),
    ("REPLICA", true),
    ("HEALTH", false),
    ("TERM", true),
    ("VOTE", true),
    ("COMMIT", true),
    ("LOG", true),
    ("LOG BYTES", true),
    ("CHECKPOINT", true),
    ("LOG TIME", true),
    ("VOTERS", false),
    ("ROWS", true),
    ("KEYS", true),
    ("BYTES", true),
    ("SESSIONS", true),
    ("DIGEST", false),
];

fn groups(groups: &[Group]) -> Vec<String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(COLUMNS.map(|(heading, _)| heading));
    for (place, (_, is_number)) in COLUMNS.into_iter().enumerate() {
        if let Some(column) = table.column_mut(place) {
            column.set_padding((0, 2));
            if is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    for group in groups {
        table.add_row(cells(group));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn cells(group: &Group) -> [String; COLUMNS.len()] {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let absent = || "-".to_owned();
    let log = match (group.log.first, group.log.last) {
        (Some(first), Some(last)) => format!("{first}-{last}"),
        _ => absent(),
    };
    let checkpoint = group.checkpoint.as_ref();
    let voters = group.voters.as_ref().map(|voters| {
        let voters = voters.iter().map(|one| format!("{}@n{}", one.replica_id, one.node_id));
        voters.collect::<Vec<_>>().join(" ")
    });
    let digest = match (&group.digest, &group.digest_computed) {
        (Some(stated), Some(computed)) if stated != computed => {
            format!("{stated}, but {computed} by the rows")
        }
        (Some(stated), None) => format!("{stated}, not checked"),
        (stated, _) => stated.clone().unwrap_or_else(absent),
    };
    [
        group.shard.to_string(),
        number(group.replica_id),
        group.health.name().to_owned(),
        number(group.term),
        number(group.vote),
        number(group.commit),
        log,
        group.log.bytes.to_string(),
        checkpoint.map_or_else(absent, |at| format!("{} in term {}", at.index, at.term)),
        checkpoint.map_or_else(absent, |at| format!("{}.{}", at.log_time_ms, at.log_time_logical)),
        voters.unwrap_or_else(absent),
        number(group.rows),
        number(group.keys),
        number(group.bytes),
        number(group.sessions),
        digest,
    ]
}

/// What is wrong, and where, in one line.
pub fn problem(problem: &Problem) -> String {
    let record = problem.record.map(|record| format!("record {record}"));
    let tree = problem.tree.as_ref().map(|tree| format!("tree {tree}"));
    let shard = problem.shard.map(|shard| format!("shard {shard}"));
    let place: Vec<String> =
        [problem.file.clone(), tree, record, shard].into_iter().flatten().collect();
    if place.is_empty() {
        problem.what.clone()
    } else {
        format!("{}: {}", place.join(", "), problem.what)
    }
}
