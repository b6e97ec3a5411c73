//! `bench`: measures throughput and latency.

use std::sync::Arc;
use std::time::Duration;

use quorate_bench::{Kind, OperationReport, Plan, Progress, Report};
use quorate_client::{Client, ClientConfig};
use serde_json::Value;

use crate::cli::{self, BenchArgs, BenchCommand, Format};
use crate::context::Context;
use crate::duration;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::describe::plural;
use crate::output::json::Object;
use crate::output::table::{Align, Column, Table, Tone};
use crate::output::{describe, note, waiting};

const COLUMNS: [Column; 9] = [
    Column("OPERATION", Align::Left),
    Column("COUNT", Align::Right),
    Column("PER SECOND", Align::Right),
    Column("FAILED", Align::Right),
    Column("P50", Align::Right),
    Column("P90", Align::Right),
    Column("P99", Align::Right),
    Column("P99.9", Align::Right),
    Column("MAX", Align::Right),
];

/// Default number of clients per connection: with more, the task of one connection becomes the
/// bottleneck that is measured.
const CLIENTS_PER_CONNECTION: u32 = 64;

pub async fn bench(context: &mut Context, args: BenchArgs) -> Result<Exit> {
    let (kind, shape) = match args.command {
        BenchCommand::Put(shape) => (Kind::Put, shape),
        BenchCommand::Get(shape) => (Kind::Get, shape),
        BenchCommand::Mixed { reads, shape } => (Kind::Mixed { reads }, shape),
    };
    let timeout = context.global.timeout.unwrap_or(Duration::from_secs(30));
    let connections = shape.connections.unwrap_or(shape.clients.div_ceil(CLIENTS_PER_CONNECTION));
    let mut config = ClientConfig::new(&context.global.endpoints)?
        .timeout(timeout)
        .connect_timeout(context.global.connect_timeout);
    if shape.no_retries {
        config = config.without_retries();
    }
    if shape.unary {
        config = config.unary();
    }
    let clients: Vec<Client> = (0..connections).map(|_| Client::new(config.clone())).collect();
    let plan = Plan {
        kind,
        clients: shape.clients,
        duration: shape.duration,
        count: shape.count,
        value_size: shape.value_size as usize,
        keys: shape.keys,
        distribution: match shape.distribution {
            cli::Distribution::Uniform => quorate_bench::Distribution::Uniform,
            cli::Distribution::Zipf => quorate_bench::Distribution::Zipf,
        },
        key_prefix: shape.key_prefix,
        rate: shape.rate,
        in_flight: shape.in_flight,
        seed: shape.seed,
        level: context.level(),
        max_staleness: context.global.max_staleness,
        timeout,
    };
    // An unreachable cluster is reported immediately, not after a run in which everything fails.
    context.wait_for("the cluster map", context.client.map()).await?;
    let progress = Arc::new(Progress::default());
    context.interrupt.take_first();
    let interrupt = context.interrupt.clone();
    let running = quorate_bench::run(&clients, plan.clone(), Arc::clone(&progress));
    let stop = async {
        interrupt.first().await;
        progress.end();
        std::future::pending().await
    };
    // A read benchmark writes its keys first; writes are in flight only until then.
    let in_flight = interrupt.write_in_flight();
    let until_measuring = async {
        progress.begun_measuring().await;
        if kind == Kind::Get {
            drop(in_flight);
        }
        std::future::pending().await
    };
    let report = tokio::select! {
        report = waiting::show_progress(&progress, plan.duration, running) => report,
        never = stop => never,
        never = until_measuring => never,
    };
    let report = report.map_err(failed)?;
    print(context, &plan, connections, &report)?;
    Ok(exit(&report))
}

fn failed(error: quorate_bench::BenchError) -> Failure {
    let message = error.to_string();
    match error {
        quorate_bench::BenchError::Preparation(error) => {
            Failure { message, ..Failure::from(error) }
        }
        quorate_bench::BenchError::TooManyKeys { .. } => Failure::usage(message),
        quorate_bench::BenchError::Worker(_) => Failure::of(Exit::Bug, message),
    }
}

fn exit(report: &Report) -> Exit {
    let failed: u64 = report.operations().map(|(_, operation)| operation.failed()).sum();
    match (report.put.unknown, failed) {
        (1.., _) => Exit::Unknown,
        _ if report.ended_early => Exit::Interrupted,
        (0, 0) => Exit::Done,
        (0, _) => Exit::Unavailable,
    }
}

fn print(context: &mut Context, plan: &Plan, connections: u32, report: &Report) -> Result<()> {
    match context.output.format_or(Format::Table) {
        Format::Json => {
            for (name, operation) in report.operations() {
                context.output.json(&json(name, operation, plan, connections, report))?;
            }
        }
        Format::Raw | Format::Tsv => {
            for (name, operation) in report.operations() {
                let latency = operation.latencies.summary();
                let times = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
                let mut cells = vec![
                    name.to_owned(),
                    operation.succeeded().to_string(),
                    format!("{:.1}", report.rate(operation)),
                    operation.failed().to_string(),
                ];
                cells.extend(times.map(|time| time.as_micros().to_string()));
                context.output.line(cells.join("\t"))?;
            }
        }
        Format::Table => {
            let mut table = Table::new(&COLUMNS);
            for (name, operation) in report.operations() {
                let latency = operation.latencies.summary();
                let times = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
                let mut cells = vec![
                    name.to_owned(),
                    describe::count(operation.succeeded()),
                    describe::count(report.rate(operation) as u64),
                    describe::count(operation.failed()),
                ];
                cells.extend(times.map(duration::show));
                let tone = if operation.failed() > 0 { Tone::Warning } else { Tone::Plain };
                table.row(tone, cells);
            }
            context.output.table(&table)?;
            let load = match plan.rate {
                None => plural(plan.clients.into(), "client"),
                Some(rate) => format!("{} begun per second", plural(rate.into(), "operation")),
            };
            note(format!(
                "{load} on {}, {}, values of {}",
                plural(connections.into(), "connection"),
                duration::show(report.elapsed),
                plural(plan.value_size as u64, "byte"),
            ));
            for (name, operation) in report.operations() {
                for (reason, count) in &operation.failures {
                    let sentence = operation.sentences.get(reason).map_or("", String::as_str);
                    note(format!("{name}: {count} failed with {reason}, first: {sentence}"));
                }
                if operation.unknown > 0 {
                    note(format!("{name}: {} of the failed are unknown", operation.unknown));
                }
                if operation.late > 0 {
                    note(format!("{name}: {} done after the time", operation.late));
                }
            }
            if report.skipped > 0 {
                note(format!("{} skipped: too many in flight", report.skipped));
            }
        }
    }
    Ok(())
}

fn json(
    name: &str,
    operation: &OperationReport,
    plan: &Plan,
    connections: u32,
    report: &Report,
) -> Value {
    let latency = operation.latencies.summary();
    let micros = |time: Duration| time.as_micros() as u64;
    let failures = operation
        .failures
        .iter()
        .fold(Object::new(), |object, (reason, count)| object.with(reason, *count));
    let first_failures = operation
        .sentences
        .iter()
        .fold(Object::new(), |object, (reason, sentence)| object.with(reason, sentence.as_str()));
    Object::new()
        .with("operation", name)
        .with("count", operation.succeeded())
        .with("per_second", report.rate(operation))
        .with("failed", operation.failed())
        .with("unknown", operation.unknown)
        .with("failures", failures)
        .with("first_failures", first_failures)
        .with("late", operation.late)
        .with("skipped", report.skipped)
        .with("rate", plan.rate)
        .with("elapsed_ms", report.elapsed.as_millis() as u64)
        .with("clients", plan.clients)
        .with("connections", connections)
        .with("value_size", plan.value_size)
        .with("keys", plan.keys)
        .with(
            "latency_us",
            Object::new()
                .with("mean", micros(latency.mean))
                .with("p50", micros(latency.p50))
                .with("p90", micros(latency.p90))
                .with("p99", micros(latency.p99))
                .with("p99_9", micros(latency.p999))
                .with("max", micros(latency.max)),
        )
        .into()
}
