//! Text forms of receipts, sizes and counts.

use std::time::Duration;

use quorate_client::level::LevelRow;

use super::json;
use crate::duration;
use crate::wire::{Receipt, std_duration};

/// Formats a receipt in one line: `stale · at most 37 ms old · shard 3 · term 4 · index 812 · n2`.
pub fn receipt(receipt: &Receipt) -> String {
    let mut parts = vec![json::level(receipt.level).to_owned()];
    match &receipt.age_bound {
        Some(age) => {
            let age = Duration::from_millis(json::millis_up(std_duration(age)));
            parts.push(format!("at most {} old", duration::show_rough(age)));
        }
        None if !is_current(receipt) => parts.push("of unknown age".to_owned()),
        None => {}
    }
    parts.push(format!("shard {}", receipt.shard));
    parts.push(format!("term {}", receipt.term));
    parts.push(format!("index {}", receipt.index));
    parts.push(format!("n{}", receipt.node_id));
    parts.join(" · ")
}

/// Whether an answer with this receipt cannot be outdated, so that its age need not be shown.
pub fn is_current(receipt: &Receipt) -> bool {
    LevelRow::of_number(receipt.level).is_some_and(|row| row.needs_leader)
}

/// Formats a number of bytes: `812 B`, `37.4 KiB`, `2.1 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // An amount that would be rounded to 1024 belongs to the next unit.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// Formats a count with its noun: `1 key`, `2 keys`; for nouns with a regular plural.
pub fn plural(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {noun}{s}", count(number))
}

/// Formats a count in groups of three digits: `34 924`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            // A narrow no-break space keeps the number one word and cannot be mistaken for a point.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ReadLevel;

    #[test]
    fn a_receipt_is_one_line() {
        let mut it = Receipt { shard: 3, term: 4, index: 812, node_id: 2, ..Default::default() };
        it.level = ReadLevel::Linearizable.into();
        assert_eq!(receipt(&it), "linearizable · shard 3 · term 4 · index 812 · n2");
        it.level = ReadLevel::Stale.into();
        assert_eq!(receipt(&it), "stale · of unknown age · shard 3 · term 4 · index 812 · n2");
        it.level = 99;
        assert_eq!(receipt(&it), "unknown · of unknown age · shard 3 · term 4 · index 812 · n2");
        it.level = ReadLevel::Stale.into();
        // Rounded up: a bound must stay one.
        it.age_bound = Duration::from_nanos(36_000_001).try_into().ok();
        assert_eq!(receipt(&it), "stale · at most 37 ms old · shard 3 · term 4 · index 812 · n2");
    }

    #[test]
    fn sizes_and_counts_are_formatted() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(38_297), "37.4 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(34_924), "34\u{202f}924");
        assert_eq!(count(1_000_000), "1\u{202f}000\u{202f}000");
    }
}
