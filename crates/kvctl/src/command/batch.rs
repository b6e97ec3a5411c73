//! `batch`: several operations on one shard, all or nothing.

use std::future::IntoFuture as _;
use std::io::{self, BufRead, BufReader};

use serde::Deserialize;
use serde_json::Value;

use super::kv::single_write;
use crate::cli::{BatchArgs, Format};
use crate::context::Context;
use crate::encoding::{Encoding, escape};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::json::{self, Object};
use crate::records::{one_of, strip_mark, why};
use crate::wire::batch_operation::Action;
use crate::wire::condition::Expect;
use crate::wire::{
    BatchOperation, BatchResponse, BatchResult, CheckAction, Condition, DeleteAction, GetAction,
    IncrementAction, PutAction,
};

/// Maximum size of the input: more than a request may contain, so that the cluster rejects a
/// request over its limit with its own error.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// One line of the input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: Op,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    by: Option<i64>,
    #[serde(default)]
    if_absent: bool,
    if_revision: Option<u64>,
    if_value: Option<String>,
    if_value_base64: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Op {
    Put,
    // Alias: the name of the command.
    #[serde(alias = "del")]
    Delete,
    #[serde(alias = "incr")]
    Increment,
    Check,
    Get,
}

pub async fn batch(context: &mut Context, args: BatchArgs) -> Result<Exit> {
    let (input, _) = super::load::open(&args.file)?;
    let operations = operations(BufReader::new(input))?;
    let mut call = context.client.batch();
    for operation in &operations {
        call = call.operation(operation.clone());
    }
    let answer = single_write!(context, "an answer to the batch", call)?;
    print(context, &operations, &answer)?;
    context.report_receipts(&answer.receipt);
    if answer.applied {
        return Ok(Exit::Done);
    }
    for (operation, result) in operations.iter().zip(&answer.results) {
        if !result.condition_held {
            let key = escape(&operation.key);
            context.explain(match result.found {
                true => format!("not applied: {key} is at revision {}", result.revision),
                false => format!("not applied: {key} is absent"),
            });
        }
    }
    Ok(Exit::No)
}

/// Parses one operation per line; ignores blank lines.
fn operations(input: impl BufRead) -> Result<Vec<BatchOperation>> {
    let mut operations = Vec::new();
    for (place, line) in input.take(INPUT_BYTES_MAX).split(b'\n').enumerate() {
        let mut line = line.map_err(|error| wrong(place, &error))?;
        if place == 0 {
            strip_mark(&mut line).map_err(|error| wrong(place, &error))?;
        }
        let line = String::from_utf8(line).map_err(|_| wrong(place, &"is not UTF-8"))?;
        if !line.trim().is_empty() {
            operations.push(operation(&line).map_err(|error| wrong(place, &error))?);
        }
    }
    match operations.is_empty() {
        true => Err(Failure::usage("the input contains no operation")),
        false => Ok(operations),
    }
}

fn wrong(place: usize, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("line {}: {error}", place + 1))
}

fn operation(text: &str) -> Result<BatchOperation, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| why(&error))?;
    let given = |field: &str, is_given: bool, wanted: bool| match (is_given, wanted) {
        (true, false) => Err(format!("{field} is not allowed with this operation")),
        _ => Ok(()),
    };
    given("value", line.value.is_some() || line.value_base64.is_some(), line.op == Op::Put)?;
    given("by", line.by.is_some(), line.op == Op::Increment)?;
    let condition = condition(&line)?;
    given("a condition", condition.is_some(), line.op != Op::Get)?;
    let action = match line.op {
        Op::Put => {
            Action::Put(PutAction { value: one_of("value", line.value, line.value_base64)?.into() })
        }
        Op::Delete => Action::Delete(DeleteAction {}),
        Op::Increment => Action::Increment(IncrementAction { delta: line.by.unwrap_or(1) }),
        Op::Check if condition.is_none() => return Err("check needs a condition".into()),
        Op::Check => Action::Check(CheckAction {}),
        Op::Get => Action::Get(GetAction {}),
    };
    Ok(BatchOperation {
        key: one_of("key", line.key, line.key_base64)?.into(),
        condition,
        return_previous: false,
        action: Some(action),
    })
}

fn condition(line: &Line) -> Result<Option<Condition>, String> {
    let value = match (&line.if_value, &line.if_value_base64) {
        (None, None) => None,
        (text, base64) => Some(one_of("if_value", text.clone(), base64.clone())?),
    };
    let expects = [
        line.if_absent.then_some(Expect::Absent(true)),
        line.if_revision.map(Expect::Revision),
        value.map(|value| Expect::Value(value.into())),
    ];
    let mut expects = expects.into_iter().flatten();
    match (expects.next(), expects.next()) {
        (_, Some(_)) => Err("expected at most one condition".into()),
        (expect, None) => Ok(expect.map(|expect| Condition { expect: Some(expect) })),
    }
}

/// Prints the results, one line per operation, in order.
fn print(
    context: &mut Context,
    operations: &[BatchOperation],
    answer: &BatchResponse,
) -> io::Result<()> {
    let output = &mut context.output;
    let format = output.format_or(Format::Tsv);
    for (operation, result) in operations.iter().zip(&answer.results) {
        match format {
            Format::Json => output.json(&result_json(operation, result, answer))?,
            _ => {
                let shown = match &operation.action {
                    Some(Action::Get(_)) if result.found => Encoding::Utf8.field(&result.value),
                    Some(Action::Increment(_)) if answer.applied => result.number.to_string(),
                    Some(Action::Get(_)) | None => continue,
                    Some(_) => result.revision.to_string(),
                };
                output.entry("RESULT", &Encoding::Utf8.field(&operation.key), &shown)?;
            }
        }
    }
    Ok(())
}

fn result_json(operation: &BatchOperation, result: &BatchResult, answer: &BatchResponse) -> Value {
    let (op, is_get) = match &operation.action {
        Some(Action::Put(_)) => ("put", false),
        Some(Action::Delete(_)) => ("delete", false),
        Some(Action::Increment(_)) => ("increment", false),
        Some(Action::Check(_)) => ("check", false),
        Some(Action::Get(_)) => ("get", true),
        None => ("none", false),
    };
    let mut object = Object::new()
        .with("op", op)
        .with_bytes("key", &operation.key)
        .with("applied", answer.applied)
        .with("condition_held", result.condition_held)
        .with("found", result.found);
    if is_get && result.value_omitted {
        object = object.with("value_omitted", true);
    } else if is_get && result.found {
        object = object.with_bytes("value", &result.value);
    }
    if op == "increment" && answer.applied {
        object = object.with("number", result.number);
    }
    object
        .with_version(result.revision, result.create_revision, result.log_time)
        .with_some("previous", result.previous.as_ref().map(json::stored_value))
        .with("replayed", answer.replayed)
        .with_receipt(answer.receipt.as_ref())
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_parsed() {
        let text = "\
{\"op\":\"put\",\"key\":\"{a}1\",\"value_base64\":\"/w==\",\"if_absent\":true}

{\"op\":\"delete\",\"key_base64\":\"/w==\",\"if_revision\":0}
{\"op\":\"increment\",\"key\":\"{a}2\",\"by\":-3}
{\"op\":\"check\",\"key\":\"{a}3\",\"if_value\":\"v\"}
{\"op\":\"get\",\"key\":\"{a}4\"}
{\"op\":\"del\",\"key\":\"{a}5\"}
{\"op\":\"incr\",\"key\":\"{a}6\"}
";
        let read = operations(text.as_bytes()).unwrap();
        assert_eq!(read.len(), 7);
        assert_eq!(read[0].action, Some(Action::Put(PutAction { value: vec![0xff].into() })));
        assert_eq!(read[0].condition, Some(Condition { expect: Some(Expect::Absent(true)) }));
        assert_eq!(read[1].key, [0xff][..]);
        assert_eq!(read[1].condition, Some(Condition { expect: Some(Expect::Revision(0)) }));
        assert_eq!(read[2].action, Some(Action::Increment(IncrementAction { delta: -3 })));
        assert_eq!(read[3].condition, Some(Condition { expect: Some(Expect::Value("v".into())) }));
        assert_eq!(read[4].action, Some(Action::Get(GetAction {})));
        assert_eq!(read[5].action, Some(Action::Delete(DeleteAction {})));
        assert_eq!(read[6].action, Some(Action::Increment(IncrementAction { delta: 1 })));
    }

    #[test]
    fn an_error_names_its_line() {
        for (line, part) in [
            ("{\"op\":\"put\",\"key\":\"a\"}", "expected value or value_base64"),
            ("{\"op\": put", "line 2: expected value (column 8)"),
            ("{\"op\":\"putt\",\"key\":\"a\"}", "unknown variant `putt`"),
            ("{\"op\":\"get\",\"key\":\"a\",\"valu\":1}", "unknown field `valu`"),
            ("{\"op\":\"get\",\"key\":\"a\",\"value\":\"\"}", "value is not allowed with"),
            ("{\"op\":\"put\",\"key\":\"a\",\"value\":\"\",\"by\":1}", "by is not allowed with"),
            ("{\"op\":\"check\",\"key\":\"a\"}", "check needs a condition"),
            (
                "{\"op\":\"get\",\"key\":\"a\",\"if_absent\":true}",
                "a condition is not allowed with",
            ),
            (
                "{\"op\":\"delete\",\"key\":\"a\",\"if_absent\":true,\"if_revision\":1}",
                "at most one condition",
            ),
        ] {
            let failure = operations(format!("\n{line}\n").as_bytes()).unwrap_err();
            assert!(failure.message.starts_with("line 2: "), "{failure}");
            assert!(failure.message.contains(part), "{failure}");
            assert!(!failure.message.contains("line 1"), "{failure}");
        }
        assert!(operations(&b"\n"[..]).is_err());
    }
}
