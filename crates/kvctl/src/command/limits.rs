//! `limits`: what the nodes accept, and what they fill in.

use std::time::Duration;

use quorate_client::NodeInfo;
use serde_json::Value;

use super::cluster::TIMEOUT;
use crate::cli::Format;
use crate::context::Context;
use crate::duration;
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::json::{Object, level};
use crate::view::node_names;
use crate::wire::{GetInfoResponse, std_duration};

/// What a node reports of one limit or default.
#[derive(Clone, Debug, PartialEq)]
enum Fact {
    Number(u64),
    Time(Duration),
    Level(&'static str),
    Levels(Vec<&'static str>),
}

impl Fact {
    /// The fact in a table.
    fn shown(&self) -> String {
        match self {
            Fact::Time(time) => duration::show_rough(*time),
            _ => self.plain(),
        }
    }

    /// The fact as a field: times in milliseconds.
    fn plain(&self) -> String {
        match self {
            Fact::Number(number) => number.to_string(),
            Fact::Time(time) => time.as_millis().to_string(),
            Fact::Level(level) => (*level).to_owned(),
            Fact::Levels(levels) => levels.join(","),
        }
    }

    fn json(&self) -> Value {
        match self {
            Fact::Number(number) => (*number).into(),
            Fact::Time(time) => (time.as_millis() as u64).into(),
            Fact::Level(level) => (*level).into(),
            Fact::Levels(levels) => levels.clone().into(),
        }
    }
}

/// The facts of one node, or of several that report the same: names as in JSON.
type Facts = Vec<(&'static str, Fact)>;

/// Nodes that report the same.
type Group = (Vec<u64>, Facts);

/// One fact, with each value and the nodes that report it.
type Row<'a> = (&'static str, Vec<(Vec<u64>, &'a Fact)>);

pub async fn limits(context: &mut Context) -> Result<Exit> {
    let asked = context.wait_for("the limits", context.client.infos(TIMEOUT)).await;
    context.client.check_endpoints()?;
    let (groups, silent) = grouped(asked);
    for (name, why) in &silent {
        context.remark(format!("{name}: {why}"));
    }
    match context.output.format_or(Format::Table) {
        Format::Json => {
            for (nodes, facts) in &groups {
                let of = Object::new().with("nodes", nodes.clone());
                let add =
                    |object: Object, (name, fact): &(&str, Fact)| object.with(name, fact.json());
                context.output.json(&facts.iter().fold(of, add).into())?;
            }
        }
        Format::Table => {
            for (name, values) in by_name(&groups) {
                let name = name.trim_end_matches("_ms");
                let of = |(nodes, fact): &(Vec<u64>, &Fact)| match values.len() {
                    1 => fact.shown(),
                    _ => format!("{} ({})", fact.shown(), node_names(nodes)),
                };
                let values: Vec<String> = values.iter().map(of).collect();
                context.output.line(format!("{name:<24}{}", values.join(", ")))?;
            }
        }
        Format::Raw | Format::Tsv => {
            for (name, values) in by_name(&groups) {
                for (nodes, fact) in values {
                    context.output.fields(&[name, &fact.plain(), &node_names(&nodes)])?;
                }
            }
        }
    }
    Ok(if groups.is_empty() { Exit::Unavailable } else { Exit::Done })
}

/// The nodes that answered, together where they report the same, and why the others did not.
fn grouped(asked: Vec<NodeInfo>) -> (Vec<Group>, Vec<(String, String)>) {
    let (mut groups, mut silent) = (Vec::<Group>::new(), Vec::new());
    for node in asked {
        match node.info {
            Ok(info) => {
                let facts = facts(&info);
                match groups.iter_mut().find(|(_, known)| *known == facts) {
                    Some((nodes, _)) => nodes.push(info.node_id),
                    None => groups.push((vec![info.node_id], facts)),
                }
            }
            Err(error) => {
                let name = node.node_id.map_or(node.address, |id| format!("n{id}"));
                silent.push((name, error.detail().message.clone()));
            }
        }
    }
    (groups, silent)
}

/// Each fact with its values, and the nodes that report them.
fn by_name(groups: &[Group]) -> Vec<Row<'_>> {
    let mut all: Vec<Row<'_>> = Vec::new();
    for (nodes, facts) in groups {
        for (place, (name, fact)) in facts.iter().enumerate() {
            if all.len() == place {
                all.push((name, Vec::new()));
            }
            let values = &mut all[place].1;
            match values.iter_mut().find(|(_, known)| *known == fact) {
                Some((known, _)) => {
                    known.extend(nodes);
                    known.sort_unstable();
                }
                None => values.push((nodes.clone(), fact)),
            }
        }
    }
    all
}

/// The facts of a node, the same names in the same order for each.
fn facts(info: &GetInfoResponse) -> Facts {
    let limits = info.limits.unwrap_or_default();
    let defaults = info.defaults.unwrap_or_default();
    let numbers = [
        ("key_bytes_max", limits.key_bytes_max),
        ("value_bytes_max", limits.value_bytes_max),
        ("request_bytes_max", limits.request_bytes_max),
        ("message_bytes_max", limits.message_bytes_max),
        ("token_parts_max", limits.token_parts_max),
        ("session_unanswered_max", limits.session_unanswered_max),
        ("scan_rows_max", limits.scan_rows_max),
        ("scan_bytes_max", limits.scan_bytes_max),
        ("batch_operations_max", limits.batch_operations_max),
    ];
    let times = [
        ("scan_time_max_ms", limits.scan_time_max),
        ("timeout_ms", defaults.timeout),
        ("timeout_max_ms", defaults.timeout_max),
        ("session_ttl_ms", defaults.session_ttl),
    ];
    let time = |time: Option<_>| Fact::Time(time.as_ref().map(std_duration).unwrap_or_default());
    let levels = info.levels.iter().map(|number| level(*number)).collect();
    numbers
        .into_iter()
        .map(|(name, number)| (name, Fact::Number(number)))
        .chain(times.into_iter().map(|(name, of)| (name, time(of))))
        .chain([
            ("level", Fact::Level(defaults.level().row().name)),
            ("levels", Fact::Levels(levels)),
        ])
        .collect()
}
