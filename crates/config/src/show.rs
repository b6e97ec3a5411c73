//! Table of `kvnode config show`.

use super::Resolved;
use super::value::format_bytes;

/// The effective value of every setting with its source, and below them the shares of the memory
/// and what a node takes beside them.
#[must_use]
pub fn table(resolved: &Resolved) -> String {
    let rows = resolved.settings.iter().map(|setting| {
        let value = if setting.value.is_empty() { "-" } else { &setting.value };
        [setting.key.name().to_owned(), value.to_owned(), setting.source.to_string()]
    });
    let mut text = aligned(["KEY", "VALUE", "SOURCE"], rows.collect());
    text.push('\n');
    let plan = &resolved.config.memory;
    let nodes = resolved.config.initial_cluster.len() as u64;
    let beside = ("beside these", plan.with_all_beside(nodes, 0) - plan.total);
    let shares = plan.shares().into_iter().chain([beside]).map(|(name, bytes)| {
        let percent = format!("{}%", bytes * 100 / plan.total.max(1));
        [name.to_owned(), format_bytes(bytes), percent]
    });
    text.push_str(&aligned(["MEMORY", "SHARE", "OF ALL"], shares.collect()));
    text
}

fn aligned<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(head.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(&row) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
