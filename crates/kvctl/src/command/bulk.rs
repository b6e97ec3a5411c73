//! `load` and `dump`: read many records from files and write them to files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_client::{Client, Rows};
use serde_json::json;

use super::kv::decode;
use super::load::{self, Counts, Journal, Limits, Loading, Progress, Stored};
use crate::again;
use crate::cli::{DumpArgs, Format, LoadArgs, RecordFormat};
use crate::context::Context;
use crate::encoding::Encoding;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::describe::{self, plural};
use crate::output::{Output, note};
use crate::records::{Layout, write_pair};
use crate::wire::{PutResponse, Receipt};

pub async fn load(context: &mut Context, args: LoadArgs) -> Result<Exit> {
    let layout = Layout {
        format: args.format.unwrap_or_else(|| format_of(&args.file)),
        delimiter: args.delimiter,
        key_field: args.key_field.map(|number| number as usize),
        key_prefix: decode(Encoding::Utf8, &args.key_prefix)?,
    };
    if layout.format == RecordFormat::Jsonl
        && (args.delimiter.is_some() || args.key_field.is_some())
    {
        return Err(Failure::usage("--delimiter and --key-field cannot be used with jsonl"));
    }
    let (input, size) = load::open(&args.file)?;
    // Endpoints of several clusters are reported once, not for each record. Other failures to fetch
    // the map may be temporary; the records are retried.
    if context.wait_for("the cluster map", context.client.map()).await.is_err() {
        context.client.check_endpoints()?;
    }
    let journal = args.journal.as_deref().map(Journal::create).transpose()?;
    let limits = Limits {
        in_flight: args.in_flight as usize,
        rate: args.rate,
        max_failures: args.max_failures,
    };
    context.interrupt.take_first();
    let interrupt = context.interrupt.clone();
    let client = context.client.clone();
    // Only the last receipt of each shard is printed: one for each record would drown everything
    // else.
    let receipts: Arc<Mutex<BTreeMap<u64, Receipt>>> = Arc::default();
    let store = |key, value| {
        let in_flight = interrupt.write_in_flight();
        let stored = store(client.clone(), key, value, Arc::clone(&receipts));
        async move {
            let stored = stored.await;
            drop(in_flight);
            stored
        }
    };
    let begun = Instant::now();
    let json = context.global.output == Some(Format::Json);
    let progress = Progress::begin(size, json);
    let loading = Loading::new(store, limits, journal, progress);
    let loaded = loading.run(load::read_records(input, layout), &interrupt).await;
    let took = begun.elapsed();

    let counts = loaded.counts;
    let receipts = std::mem::take(&mut *receipts.lock().unwrap_or_else(PoisonError::into_inner));
    context.report_receipts(receipts.values());
    if let Err(error) = print_counts(&mut context.output, counts, took) {
        let failure = Failure::from(error);
        let applied = counts.put > 0;
        return Err(if applied { failure.though_applied(None) } else { failure });
    }
    let rate = counts.stored() as f64 / took.as_secs_f64().max(0.001);
    context.explain(format!(
        "{} stored in {}, {} per second",
        plural(counts.stored(), "record"),
        crate::duration::show(took),
        describe::count(rate as u64)
    ));
    if counts.unknown > 0 {
        report_load_again(context, &args.file);
    }
    match loaded.stopped {
        Some(failure) => Err(Failure { exit: loaded.exit, ..failure }),
        None => Ok(loaded.exit),
    }
}

/// Prints the command that settles records of unknown outcome: loading again writes only what is
/// not stored yet.
fn report_load_again(context: &Context, file: &Path) {
    let words: Vec<_> = std::env::args_os().collect();
    let again = again::load_line(&words);
    let input = if file.as_os_str() == "-" { " with the same input" } else { "" };
    let message = format!(
        "To settle the unknown outcomes, load again{input} (records that are \
         already stored are not written again):"
    );
    if context.global.output == Some(Format::Json) {
        note(json!({ "message": message, "ask_again": again }).to_string());
    } else {
        note(message);
        note(format!("  {again}"));
    }
}

/// Prints the counts of a load and flushes them.
fn print_counts(output: &mut Output, counts: Counts, took: Duration) -> io::Result<()> {
    match output.format_or(Format::Raw) {
        Format::Json => output.json(&json!({
            "put": counts.put,
            "unchanged": counts.unchanged,
            "failed": counts.failed,
            "unknown": counts.unknown,
            "elapsed_ms": took.as_millis() as u64,
        })),
        Format::Tsv => {
            let counts = [counts.put, counts.unchanged, counts.failed, counts.unknown];
            output.fields(&counts.map(|count| count.to_string()).each_ref().map(|c| &**c))
        }
        Format::Raw | Format::Table => output.line(format!(
            "{} put, {} unchanged, {} failed, {} unknown",
            counts.put, counts.unchanged, counts.failed, counts.unknown
        )),
    }?;
    output.flush()
}

/// Stores a record unless the key already has its value. A new key takes one write; a changed one
/// takes a second, unconditional write, because the file decides the value.
async fn store(
    client: Client,
    key: Bytes,
    value: Bytes,
    receipts: Arc<Mutex<BTreeMap<u64, Receipt>>>,
) -> Result<Stored> {
    let stored = |answer: PutResponse, unchanged| {
        let stored = stored(&answer, unchanged);
        if let Some(receipt) = answer.receipt {
            let mut receipts = receipts.lock().unwrap_or_else(PoisonError::into_inner);
            receipts.insert(receipt.shard, receipt);
        }
        stored
    };
    let first = client.put(key.clone(), value.clone()).if_absent().return_previous().await?;
    if first.applied {
        return Ok(stored(first, false));
    }
    let there = first.previous.as_ref().filter(|previous| !previous.value_omitted);
    if there.is_some_and(|previous| previous.value == value) {
        return Ok(stored(first, true));
    }
    Ok(stored(client.put(key, value).await?, false))
}

fn stored(answer: &PutResponse, unchanged: bool) -> Stored {
    let shard = answer.receipt.as_ref().map_or(0, |receipt| receipt.shard);
    Stored { unchanged, revision: answer.revision, shard }
}

pub async fn dump(context: &mut Context, args: DumpArgs) -> Result<Exit> {
    let by_name = args.file.as_deref().map(format_of);
    let format = args.format.or(by_name).unwrap_or(RecordFormat::Tsv);
    let mut scan = context.client.scan().level(context.level());
    if let Some(staleness) = context.global.max_staleness {
        scan = scan.max_staleness(staleness);
    }
    if let Some(prefix) = &args.prefix {
        scan = scan.prefix(decode(args.key_encoding, prefix)?);
    }
    let mut rows = scan.rows();
    let dumped = match &args.file {
        None => {
            let dumped = copy(context, &mut rows, format, None).await;
            context.output.flush()?;
            dumped?
        }
        Some(path) => {
            let file = File::create_new(path).map_err(|error| Failure::file(path, &error))?;
            let mut file = BufWriter::with_capacity(256 << 10, file);
            let dumped = copy(context, &mut rows, format, Some((&mut file, path))).await?;
            // A dump may be a backup: it is durable when the command succeeds.
            let failed = |error| Failure::file(path, &error);
            file.flush().map_err(failed)?;
            file.get_ref().sync_all().map_err(failed)?;
            dumped
        }
    };
    let receipts: Vec<Receipt> = rows.receipts().to_vec();
    context.report_receipts(&receipts);
    context.remark(plural(dumped, "record"));
    Ok(Exit::Done)
}

/// Writes every row to the file, or to standard output, and returns their number.
async fn copy(
    context: &mut Context,
    rows: &mut Rows,
    format: RecordFormat,
    mut file: Option<(&mut BufWriter<File>, &Path)>,
) -> Result<u64> {
    let mut count = 0;
    while let Some(row) = context.wait_for("the next rows", rows.next()).await? {
        match &mut file {
            None => write_pair(&mut context.output.writer(), format, &row.key, &row.value)?,
            Some((file, path)) => write_pair(*file, format, &row.key, &row.value)
                .map_err(|error| Failure::file(path, &error))?,
        }
        count += 1;
    }
    Ok(count)
}

/// The format that the extension of a file names, else tsv.
fn format_of(path: &Path) -> RecordFormat {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => RecordFormat::Csv,
        Some("jsonl" | "ndjson" | "json") => RecordFormat::Jsonl,
        _ => RecordFormat::Tsv,
    }
}
