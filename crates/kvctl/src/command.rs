//! The commands: one file per family.

use crate::cli::Command;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Result;

mod batch;
mod bench;
mod bulk;
mod cluster;
mod kv;
mod limits;
mod load;
mod scan;

/// Runs a command.
pub async fn run(context: &mut Context, command: Command) -> Result<Exit> {
    match command {
        Command::Put(args) => kv::put(context, args).await,
        Command::Get(args) => kv::get(context, args).await,
        Command::Del(args) => kv::del(context, args).await,
        Command::Cas(args) => kv::cas(context, args).await,
        Command::Incr(args) => kv::incr(context, args).await,
        Command::Batch(args) => batch::batch(context, args).await,
        Command::Scan(args) => scan::scan(context, args).await,
        Command::Load(args) => bulk::load(context, args).await,
        Command::Dump(args) => bulk::dump(context, args).await,
        Command::Locate(args) => cluster::locate(context, args).await,
        Command::Status(args) => cluster::status(context, args).await,
        Command::Shards(args) => cluster::shards(context, args).await,
        Command::Nodes(args) => cluster::nodes(context, args).await,
        Command::Health => cluster::health(context).await,
        Command::Limits => limits::limits(context).await,
        Command::Version => cluster::version(context).await,
        Command::Transfer { shard, node } => cluster::transfer(context, shard, node).await,
        Command::Bench(args) => bench::bench(context, args).await,
        Command::Completion { shell } => completion(context, shell),
    }
}

fn completion(context: &mut Context, shell: clap_complete::Shell) -> Result<Exit> {
    use clap::CommandFactory as _;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::cli::Cli::command(), "kvctl", &mut script);
    context.output.bytes(&script)?;
    Ok(Exit::Done)
}
