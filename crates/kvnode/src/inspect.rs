//! `kvnode inspect`: what is in the data directory of a node that is stopped.

mod text;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use quorate_node::inspect::{CopyPlace, Inspection, Source, read};
use quorate_node::{Fatal, log};
use tokio::signal::unix::{SignalKind, signal};

/// The exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// The arguments of `kvnode inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Data directory of a node that is stopped; it is copied, and stays as it is
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Form of the report
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
    /// Print the committed entries instead, of all shards or of one, as JSON lines without keys
    /// and values
    #[arg(long, value_name = "SHARD", num_args = 0..=1, conflicts_with = "output")]
    #[expect(clippy::option_option, reason = "the flag, and its value")]
    entries: Option<Option<u64>>,
    /// Directory for the copy, which is removed at the end [default: that of TMPDIR, or else the
    /// one that the data directory is in]
    #[arg(long, value_name = "DIR")]
    copy_dir: Option<PathBuf>,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// One JSON object
    Json,
}

/// Inspects the directory and prints what was found; gives the exit code: 0 if nothing is wrong, 1
/// for damage.
///
/// # Errors
/// It is not the data directory of a node that is stopped, or cannot be copied.
pub fn run(args: InspectArgs) -> Result<u8, Fatal> {
    let source = Source::open(&args.data_dir)?;
    let place = CopyPlace::new(&source, args.copy_dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::Bug(format!("cannot start: {error}")))?;
    let copied = place.path().to_owned();
    let code = runtime.block_on(async {
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let work = tokio::task::spawn_blocking(move || inspect(source, &copied, &args));
        tokio::select! {
            done = work => done.map_err(|error| Fatal::Bug(error.to_string()))?,
            _ = interrupt.recv() => Ok(INTERRUPTED),
            _ = terminate.recv() => Ok(INTERRUPTED),
        }
    });
    // After a signal the work is left as it is: it ends with the process.
    runtime.shutdown_background();
    place.remove();
    code
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Fatal> {
    signal(kind).map_err(|error| Fatal::Bug(format!("cannot listen for signals: {error}")))
}

fn inspect(source: Source, copy: &Path, args: &InspectArgs) -> Result<u8, Fatal> {
    let mut inspection = read(source, copy)?;
    let Some(shard) = args.entries else {
        let report = &inspection.report;
        let text = match args.output {
            Form::Text => text::of(report),
            Form::Json => {
                let line = serde_json::to_string(report);
                line.map_err(|error| Fatal::Bug(error.to_string()))? + "\n"
            }
        };
        // A reader that went away is not a reason to fail.
        let _ = io::stdout().lock().write_all(text.as_bytes());
        return Ok(inspection.code());
    };
    if let Some(wanted) = shard
        && inspection.shards().all(|there| there != wanted)
    {
        let there: Vec<String> = inspection.shards().map(|shard| shard.to_string()).collect();
        report_problems(&inspection);
        return Err(Fatal::Usage(format!(
            "{} has no replica of shard {wanted}, only of these: {} (--entries)",
            args.data_dir.display(),
            if there.is_empty() { "none".to_owned() } else { there.join(", ") }
        )));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = inspection.entries(shard, |line| -> io::Result<()> {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")
    });
    // As above.
    let _ = printed.and_then(|()| out.flush());
    report_problems(&inspection);
    Ok(inspection.code())
}

/// Prints what is wrong to standard error, where it does not mix with the entries.
fn report_problems(inspection: &Inspection) {
    for problem in &inspection.report.problems {
        log::line(&format!("kvnode: {}", text::problem(problem)));
    }
    log::flush();
}
