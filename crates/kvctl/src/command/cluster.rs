//! `status`, `shards`, `nodes`, `health`, `locate`, `version` and `transfer`: commands about the
//! cluster.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use quorate_client::hash;
use serde_json::{Value, json};

use super::kv::decode;
use crate::cli::{Format, LocateArgs, WatchArgs};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::output::cluster::{Location, Place};
use crate::output::json::Object;
use crate::view::{Answer, View};

/// Timeout of one node's answer about itself.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);

pub async fn status(context: &mut Context, args: WatchArgs) -> Result<Exit> {
    // The output of `status` already names the problems.
    show(context, &args, Output::status, false).await
}

pub async fn shards(context: &mut Context, args: WatchArgs) -> Result<Exit> {
    show(context, &args, Output::shards, true).await
}

pub async fn nodes(context: &mut Context, args: WatchArgs) -> Result<Exit> {
    show(context, &args, Output::nodes, true).await
}

/// Prints the state of the cluster once, or repeatedly with `--watch`.
async fn show(
    context: &mut Context,
    args: &WatchArgs,
    print: fn(&mut Output, &View) -> io::Result<()>,
    names_problems: bool,
) -> Result<Exit> {
    let Some(pause) = args.watch else {
        let view = look(context).await?;
        print(&mut context.output, &view)?;
        return Ok(match view.answering() {
            0 if names_problems => unanswered(context, &view),
            0 => Exit::Unavailable,
            _ => Exit::Done,
        });
    };
    loop {
        let view = look(context).await?;
        context.output.begin_picture()?;
        print(&mut context.output, &view)?;
        context.output.flush()?;
        tokio::time::sleep(pause).await;
    }
}

pub async fn health(context: &mut Context) -> Result<Exit> {
    let view = look(context).await?;
    let sentence = view.sentence();
    match context.output.format_or(Format::Raw) {
        Format::Json => context.output.json(
            &Object::new().with("healthy", view.healthy()).with("summary", sentence).into(),
        )?,
        _ => context.output.line(sentence)?,
    }
    Ok(match (view.answering(), view.healthy()) {
        (0, _) => unanswered(context, &view),
        (_, true) => Exit::Done,
        (_, false) => Exit::No,
    })
}

/// Asks all nodes for their status in parallel.
async fn look(context: &Context) -> Result<View> {
    let asked = context.wait_for("the nodes' status", context.client.status(TIMEOUT)).await;
    context.client.check_endpoints()?;
    let answers = asked.into_iter().map(|node| Answer {
        id: node.node_id,
        refused: node.status.as_ref().is_err_and(refuses),
        status: node.status.map_err(|error| why_silent(&error.detail().message, &node.address)),
        address: node.address,
    });
    Ok(View::of(answers.collect(), context.client.known_map()))
}

/// Whether the node answered, and has no place for this client.
fn refuses(error: &quorate_client::Error) -> bool {
    error.detail().code == quorate_client::Code::ResourceExhausted
}

/// Why a node does not answer, without the address, which its row already shows, and without the
/// number of the system's error.
fn why_silent(message: &str, address: &str) -> String {
    let own = message.strip_prefix(address).map_or(message, str::trim_start);
    let own = own.strip_prefix("cannot be reached: ").unwrap_or(own);
    own.split(" (os error").next().unwrap_or(own).to_owned()
}

/// Reports on standard error that no node answered, because standard output may be a file.
fn unanswered(context: &Context, view: &View) -> Exit {
    if context.global.output == Some(Format::Json) {
        return Exit::Unavailable;
    }
    for problem in view.problems() {
        crate::output::note(problem);
    }
    Exit::Unavailable
}

pub async fn locate(context: &mut Context, args: LocateArgs) -> Result<Exit> {
    let key = decode(args.key_encoding, &args.key)?;
    if key.is_empty() {
        return Err(Failure::usage("a key has at least one byte"));
    }
    let tag = Bytes::copy_from_slice(hash::hash_tag(&key));
    let found = context.wait_for("the cluster map", context.client.locate(key.clone())).await;
    let place = found.as_ref().ok().map(|at| Place {
        shard: at.shard,
        range: (at.first, at.last),
        shard_epoch: at.shard_epoch,
        map_epoch: at.map_epoch,
        replicas: at.replicas.iter().map(|replica| replica.node_id).collect(),
        leader: Some(at.leader_node_id).filter(|node| *node != 0),
    });
    // Tag and hash depend only on the key and are printed even when no node answers.
    let at = Location { key: &key, tag: &tag, hash: hash::key_hash(&key), place };
    context.output.location(&at)?;
    found?;
    Ok(Exit::Done)
}

/// Transfers the leadership of a shard and prints the node that leads it now.
pub async fn transfer(context: &mut Context, shard: u64, node: u64) -> Result<Exit> {
    let asked = context.client.transfer_leader(shard, node);
    let answer = context.wait_for("the new leader", asked).await?;
    let leader = answer.leader_node_id;
    match context.output.format_or(Format::Raw) {
        Format::Json => context
            .output
            .json(&json!({ "shard": shard, "leader_node_id": leader, "term": answer.term }))?,
        _ => context.output.line(format!("n{leader}"))?,
    }
    Ok(if leader == node || node == 0 { Exit::Done } else { Exit::No })
}

/// Prints the versions. It succeeds even if no node answers, because kvctl's own version is known.
pub async fn version(context: &mut Context) -> Result<Exit> {
    let own = env!("CARGO_PKG_VERSION");
    let view = look(context).await?;
    let mut nodes: Vec<(u64, String)> = Vec::new();
    for node in &view.nodes {
        if let Ok(status) = &node.status {
            nodes.push((status.node_id, status.version.clone()));
        }
    }
    nodes.sort_unstable();
    if nodes.is_empty() {
        context.remark(format!("no node answers ({})", context.global.endpoints.join(", ")));
    }
    match context.output.format_or(Format::Table) {
        Format::Json => {
            let nodes: Vec<Value> = nodes
                .iter()
                .map(|(node_id, version)| json!({ "node_id": node_id, "version": version }))
                .collect();
            context.output.json(&json!({ "kvctl": own, "nodes": nodes }))?;
        }
        format => {
            let plain = format != Format::Table;
            let mut line = |name: &str, version: &str| match plain {
                true => context.output.fields(&[name, version]),
                false => context.output.line(format!("{name:<8}{version}")),
            };
            line("kvctl", own)?;
            for (node, version) in nodes {
                line(&format!("n{node}"), &crate::encoding::escape(version.as_bytes()))?;
            }
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_missing_answer_repeats_neither_address_nor_error_number() {
        let why = |message| why_silent(message, "h:1");
        assert_eq!(
            why("h:1 cannot be reached: Connection refused (os error 111)"),
            "Connection refused"
        );
        assert_eq!(why("h:1 did not answer within 1.0s"), "did not answer within 1.0s");
        assert_eq!(why("something else"), "something else");
    }
}
