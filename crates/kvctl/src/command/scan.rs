//! `scan`: prints keys and values in byte order.

use quorate_client::Rows;

use super::kv::decode;
use crate::cli::{Format, ScanArgs};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::shapes::row_json;
use crate::output::table::{Align, Column, Table, Tone};
use crate::wire::ScanRow;

/// Maximum number of rows of one table; the widths of its columns fit these rows.
const TABLE_ROWS: usize = 1_000;

pub async fn scan(context: &mut Context, args: ScanArgs) -> Result<Exit> {
    let with = args.encodings;
    let mut scan = context.client.scan().level(context.level());
    if let Some(staleness) = context.global.max_staleness {
        scan = scan.max_staleness(staleness);
    }
    if let Some(prefix) = &args.prefix {
        scan = scan.prefix(decode(with.key_encoding, prefix)?);
    }
    if let Some(start) = &args.start {
        scan = scan.start(decode(with.key_encoding, start)?);
    }
    if let Some(end) = &args.end {
        scan = scan.end(decode(with.key_encoding, end)?);
    }
    if args.reverse {
        scan = scan.reverse();
    }
    if let Some(limit) = args.limit {
        scan = scan.limit(limit);
    }
    if args.count {
        let counted = context.wait_for("the number of keys", scan.count_with_receipts());
        let (count, receipts) = counted.await?;
        match context.output.format_or(Format::Raw) {
            Format::Json => context.output.json(&serde_json::json!({ "count": count }))?,
            _ => context.output.line(count.to_string())?,
        }
        context.report_receipts(&receipts);
        return Ok(Exit::Done);
    }
    if args.keys_only {
        scan = scan.keys_only();
    }
    let mut rows = scan.rows();
    let printed = print(context, &args, &mut rows).await;
    // Rows received before an error are printed.
    context.output.flush()?;
    printed?;
    context.report_receipts(rows.receipts());
    Ok(Exit::Done)
}

async fn print(context: &mut Context, args: &ScanArgs, rows: &mut Rows) -> Result<()> {
    let with = &args.encodings;
    let cells = |row: &ScanRow| {
        let mut cells = vec![with.key_encoding.field(&row.key)];
        if !args.keys_only {
            cells.push(with.value_encoding.field(&row.value));
        }
        cells
    };
    let mut table = new_table(args.keys_only);
    let mut in_table = 0;
    while let Some(row) = context.wait_for("the next rows", rows.next()).await? {
        let output = &mut context.output;
        match output.format_or(Format::Tsv) {
            Format::Json => output.json(&row_json(&row, !args.keys_only))?,
            Format::Tsv => output.line(cells(&row).join("\t"))?,
            Format::Raw => {
                let shown = if args.keys_only {
                    with.key_encoding.encode(&row.key)
                } else {
                    with.value_encoding.encode(&row.value)
                };
                output.bytes(&shown)?;
                output.bytes(b"\n")?;
            }
            Format::Table => {
                let mut cells = cells(&row);
                cells.push(row.revision.to_string());
                table.row(Tone::Plain, cells);
                in_table += 1;
                if in_table == TABLE_ROWS {
                    output.table(&std::mem::replace(&mut table, new_table(args.keys_only)))?;
                    in_table = 0;
                }
            }
        }
    }
    if context.output.format_or(Format::Tsv) == Format::Table && in_table > 0 {
        context.output.table(&table)?;
    }
    Ok(())
}

fn new_table(keys_only: bool) -> Table {
    let mut columns = vec![Column("KEY", Align::Left)];
    if !keys_only {
        columns.push(Column("VALUE", Align::Left));
    }
    columns.push(Column("REVISION", Align::Right));
    Table::new(&columns)
}
