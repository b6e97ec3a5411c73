//! `put`, `get`, `del`, `cas` and `incr`: the commands on single keys.

use std::ffi::OsStr;
use std::future::IntoFuture as _;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};

use crate::again;
use crate::cli::{CasArgs, DelArgs, Encodings, Format, GetArgs, IncrArgs, PutArgs};
use crate::context::Context;
use crate::encoding::Encoding;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::describe::plural;
use crate::output::json::Object;
use crate::output::note;
use crate::output::shapes::Written;
use crate::wire::{Condition, GetResponse, condition::Expect};

/// Maximum number of keys of one command in flight.
const AT_ONCE: usize = 64;

/// Maximum size of the input: more than a value may have, so that the cluster rejects a value over
/// its limit with its own error.
const INPUT_BYTES_MAX: u64 = 8 << 20;

/// Sends the only write of a command, with the given write id or in a session of its own, and
/// counts it as in flight meanwhile.
macro_rules! single_write {
    ($context:expr, $what:expr, $call:expr) => {{
        let context: &Context = $context;
        let again = context.write_again();
        let slot = quorate_client::WriteIdSlot::default();
        let in_flight = context.interrupt.single_write_in_flight(&slot);
        let call = match again {
            Some(id) => $call.write_id(id),
            None => $call.one_shot(),
        };
        let answer = context.wait_for($what, call.note_write_id(&slot).into_future()).await;
        drop(in_flight);
        if answer.as_ref().is_ok_and(|answer| answer.applied) {
            context.note_applied(slot.get());
        }
        answer
    }};
}
pub(super) use single_write;

pub async fn put(context: &mut Context, args: PutArgs) -> Result<Exit> {
    let with = args.encodings;
    let key = with.key(&args.key).map_err(Failure::usage)?;
    let value = match (&args.value, &args.file) {
        (Some(value), _) => with.value(value.as_bytes()),
        (None, Some(file)) => with.value(&input(file, &with)?),
        (None, None) => with.value(&input(Path::new("-"), &with)?),
    };
    let value = value.map_err(Failure::usage)?;
    let mut call = context.client.put(key.clone(), value);
    if let Some(condition) = condition(args.if_absent, args.if_revision) {
        call = call.condition(condition).return_previous();
    }
    let written: Written = single_write!(context, "an answer to the write", call)?.into();
    context.output.stored(&key, &written, &with)?;
    Ok(report_write(context, &written))
}

pub async fn cas(context: &mut Context, args: CasArgs) -> Result<Exit> {
    let with = args.encodings;
    let key = with.key(&args.key).map_err(Failure::usage)?;
    let value = with.value(args.value.as_bytes()).map_err(Failure::usage)?;
    let call = context.client.compare_and_set(key.clone(), value).return_previous();
    let call = match (&args.expect, args.expect_revision) {
        (Some(expect), _) => call.if_value(with.value(expect.as_bytes()).map_err(Failure::usage)?),
        (None, Some(revision)) => call.if_revision(revision),
        (None, None) => call.if_absent(),
    };
    let written: Written = single_write!(context, "an answer to the write", call)?.into();
    context.output.stored(&key, &written, &with)?;
    Ok(report_write(context, &written))
}

pub async fn incr(context: &mut Context, args: IncrArgs) -> Result<Exit> {
    let key = args.encodings.key(&args.key).map_err(Failure::usage)?;
    let call = context.client.increment(key.clone(), args.by);
    let written: Written = single_write!(context, "an answer to the write", call)?.into();
    context.output.summed(&key, &written, &args.encodings)?;
    Ok(report_write(context, &written))
}

pub async fn get(context: &mut Context, args: GetArgs) -> Result<Exit> {
    let with = args.encodings;
    let keys: Vec<Bytes> =
        args.keys.iter().map(|key| with.key(key).map_err(Failure::usage)).collect::<Result<_>>()?;
    if let [key] = &keys[..] {
        let got = context.wait_for("an answer to the read", read(context, key.clone())).await?;
        context.report_receipts(&got.receipt);
        context.output.got(key, &got, &with)?;
        return Ok(report_absent(context, key, got.found));
    }
    let mut call = context.client.multi_get(keys.clone()).level(context.level());
    if let Some(staleness) = context.global.max_staleness {
        call = call.max_staleness(staleness);
    }
    let answers = context.wait_for("an answer to the read", call.into_future()).await;
    let mut exit = Exit::Done;
    for (key, answer) in keys.iter().zip(answers) {
        match answer.map_err(Failure::from) {
            Ok(got) => {
                context.report_receipts(&got.receipt);
                context.output.got_one(key, &got, &with)?;
                exit = exit.and(report_absent(context, key, got.found));
            }
            Err(failure) => {
                exit = exit.and(failure.exit);
                report_item(context, key, &failure, None);
            }
        }
    }
    Ok(exit)
}

/// Reads a key at the level that the flags ask for.
async fn read(context: &Context, key: Bytes) -> Result<GetResponse> {
    let mut get = context.client.get(key).level(context.level());
    if let Some(staleness) = context.global.max_staleness {
        get = get.max_staleness(staleness);
    }
    Ok(get.await?)
}

fn report_absent(context: &Context, key: &[u8], found: bool) -> Exit {
    if found {
        return Exit::Done;
    }
    context.explain(format!("there is no key {}", Encoding::Utf8.field(key)));
    Exit::No
}

pub async fn del(context: &mut Context, args: DelArgs) -> Result<Exit> {
    let with = args.encodings;
    if let Some(prefix) = &args.prefix {
        // An empty prefix is valid: every key begins with it.
        let prefix = decode(with.key_encoding, prefix)?;
        return del_prefix(context, prefix, args.yes, &with).await;
    }
    let keys: Vec<Bytes> =
        args.keys.iter().map(|key| with.key(key).map_err(Failure::usage)).collect::<Result<_>>()?;
    let condition = condition(args.if_absent, args.if_revision);
    if let [key] = &keys[..] {
        let mut call = context.client.delete(key.clone());
        if let Some(condition) = condition {
            call = call.condition(condition).return_previous();
        }
        let written: Written = single_write!(context, "an answer to the delete", call)?.into();
        context.output.removed(key, &written, &with)?;
        if written.applied {
            say_removed(context, u64::from(written.found))?;
        }
        return Ok(report_write(context, &written));
    }
    let (removed, exit) = remove(context, stream::iter(keys), condition, &with).await?;
    say_removed(context, removed)?;
    Ok(exit)
}

/// Removes all keys that begin with a prefix, after it has printed their number and, on a terminal,
/// the user has confirmed.
async fn del_prefix(
    context: &mut Context,
    prefix: Bytes,
    confirmed: bool,
    with: &Encodings,
) -> Result<Exit> {
    let scan = context.client.scan().prefix(prefix.clone());
    let count = context.wait_for("the number of keys", scan.count()).await?;
    let what = counted(count, &with.key_encoding.field(&prefix));
    let asks = io::stdin().is_terminal() && io::stderr().is_terminal();
    if prefix.is_empty() && !confirmed && !asks {
        return Err(Failure::usage(format!(
            "an empty prefix means every key, {what}; --yes removes them"
        )));
    }
    if count > 0 && !confirmed && asks {
        let asked =
            tokio::task::spawn_blocking(move || ask(&format!("Remove {what}? [y/N] "))).await;
        if !asked.unwrap_or(false) {
            context.remark("nothing was removed");
            return Ok(Exit::No);
        }
    } else {
        context.remark(format!("removing {what}"));
    }
    let rows = context.client.scan().prefix(prefix).keys_only().rows();
    let failed = std::sync::Mutex::new(None);
    let keys = rows.into_stream().filter_map(|row| {
        let key = match row {
            Ok(row) => Some(row.key),
            Err(error) => {
                // The stream ends here; its error is reported after the keys received before it.
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                None
            }
        };
        std::future::ready(key)
    });
    let (removed, exit) = remove(context, keys, None, with).await?;
    say_removed(context, removed)?;
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => {
            let failure = Failure::from(error);
            let exit = exit.and(failure.exit);
            Err(Failure { exit, ..failure })
        }
        None => Ok(exit),
    }
}

/// A count with its prefix: `2 keys that begin with a/`. An empty prefix means all keys.
fn counted(count: u64, prefix: &str) -> String {
    let keys = plural(count, "key");
    let begin = if count == 1 { "begins" } else { "begin" };
    match prefix {
        "" => format!("{keys} in all"),
        _ => format!("{keys} that {begin} with {prefix}"),
    }
}

/// Removes keys, many in parallel. Returns how many existed, and the weightiest exit code.
async fn remove(
    context: &mut Context,
    keys: impl stream::Stream<Item = Bytes>,
    condition: Option<Condition>,
    with: &Encodings,
) -> Result<(u64, Exit)> {
    let client = context.client.clone();
    let interrupt = context.interrupt.clone();
    let answers = keys.map(|key| {
        let mut call = client.delete(key.clone());
        if let Some(condition) = &condition {
            call = call.condition(condition.clone()).return_previous();
        }
        let in_flight = interrupt.write_in_flight();
        async move {
            let answer = call.await;
            drop(in_flight);
            (key, answer)
        }
    });
    let mut answers = std::pin::pin!(answers.buffered(AT_ONCE));
    let (mut removed, mut exit) = (0, Exit::Done);
    while let Some((key, answer)) =
        context.wait_for("an answer to the delete", answers.next()).await
    {
        match answer {
            Ok(answer) => {
                let written = Written::from(answer);
                removed += u64::from(written.applied && written.found);
                if written.applied {
                    context.note_applied(None);
                }
                context.output.removed(&key, &written, with)?;
                exit = exit.and(report_write(context, &written));
            }
            Err(error) => {
                let failure = Failure::from(error);
                exit = exit.and(failure.exit);
                let endpoints = &context.global.endpoints;
                let again = failure
                    .write()
                    .map(|write| again::delete_line(endpoints, &flags_of(&condition), &key, write));
                report_item(context, &key, &failure, again.as_deref());
            }
        }
    }
    Ok((removed, exit))
}

/// Prints the number of removed keys, in the format that has no line for each key.
fn say_removed(context: &mut Context, removed: u64) -> Result<()> {
    if context.output.format_or(Format::Raw) == Format::Raw {
        context.output.line(removed.to_string())?;
    }
    Ok(())
}

fn ask(question: &str) -> bool {
    let _ = write!(io::stderr(), "{question}");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Reports the failure of one of several items, and the command that retries it if there is one.
fn report_item(context: &Context, key: &[u8], failure: &Failure, again: Option<&str>) {
    if context.global.output == Some(Format::Json) {
        note(failure.json_of(Object::new().with_bytes("key", key), again).to_string());
        return;
    }
    note(format!("{}: {failure}", Encoding::Utf8.field(key)));
    if let Some(again) = again {
        note(again::INTRODUCTION);
        note(format!("  {again}"));
    }
}

/// Prints the receipt of a write and why it was not applied, and returns the exit code.
pub(super) fn report_write(context: &Context, written: &Written) -> Exit {
    context.report_receipts(&written.receipt);
    if written.replayed && context.global.verbose {
        context.explain("this is the stored answer of an earlier attempt");
    }
    if written.applied {
        return Exit::Done;
    }
    context.explain(match written.found {
        true => format!("not applied: the key is at revision {}", written.revision),
        false => "not applied: the key is absent".into(),
    });
    Exit::No
}

fn condition(if_absent: bool, if_revision: Option<u64>) -> Option<Condition> {
    let expect = match (if_absent, if_revision) {
        (true, _) => Expect::Absent(true),
        (false, Some(revision)) => Expect::Revision(revision),
        (false, None) => return None,
    };
    Some(Condition { expect: Some(expect) })
}

/// The flags of `del` for a condition.
fn flags_of(condition: &Option<Condition>) -> Vec<String> {
    match condition.as_ref().and_then(|condition| condition.expect.as_ref()) {
        Some(Expect::Absent(_)) => vec!["--if-absent".into()],
        Some(Expect::Revision(revision)) => vec!["--if-revision".into(), revision.to_string()],
        // `del` has no flag for it.
        Some(Expect::Value(_)) | None => Vec::new(),
    }
}

/// Decodes an argument.
pub(super) fn decode(encoding: Encoding, argument: &OsStr) -> Result<Bytes> {
    let decoded = encoding.decode(argument.as_bytes());
    decoded.map_err(|error| Failure::usage(format!("{} {error}", argument.display())))
}

/// Reads a whole file, or standard input. Encodings other than UTF-8 lose trailing white space,
/// such as the line end.
fn input(path: &Path, with: &Encodings) -> Result<Vec<u8>> {
    let failed = |error| Failure::file(path, &error);
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::usage(format!("the value is longer than {INPUT_BYTES_MAX} bytes")));
    }
    if with.value_encoding != Encoding::Utf8 {
        bytes.truncate(bytes.trim_ascii_end().len());
    }
    Ok(bytes)
}
