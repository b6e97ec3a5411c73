//! Background work: the table in `crates/node/src/lib.rs` against the constants of the code.

use std::collections::BTreeMap;

use super::sources::{assert_none, sources};

/// The crates whose background work is in the table.
const CRATES: [&str; 5] = ["engine", "node", "service", "storage", "transport"];

/// The period that a constant's expression gives, as the table writes it; `None` for another form.
fn period(expression: &str) -> Option<String> {
    let (unit, number) = expression.strip_prefix("Duration::from_")?.split_once('(')?;
    let number = number.strip_suffix(')')?;
    match unit {
        "millis" => Some(format!("{number} ms")),
        "secs" => Some(match number.strip_suffix(" * 3600") {
            Some(hours) => format!("{hours} h"),
            None => format!("{number} s"),
        }),
        _ => None,
    }
}

/// Every constant of the code that is the interval of something: its name with its module, which
/// together are unique, and its period.
fn constants() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for name in CRATES {
        let root = format!("crates/{name}/src/");
        for source in sources(&root).iter().filter(|source| !source.is_test()) {
            for (number, line) in source.code() {
                let Some((_, declared)) = line.split_once("const ") else { continue };
                let Some((constant, value)) = declared.split_once(": Duration = ") else {
                    continue;
                };
                if constant.ends_with("INTERVAL") {
                    let file = source.path.rsplit('/').next().unwrap_or_default();
                    let path = format!("{}::{constant}", file.trim_end_matches(".rs"));
                    let period = period(value.trim_end_matches(';'));
                    let period =
                        period.unwrap_or_else(|| panic!("{}:{number}: {value}", source.path));
                    let twice = found.insert(path, period).is_some();
                    assert!(!twice, "{}:{number}: name it otherwise", source.path);
                }
            }
        }
    }
    found
}

/// The rows of the table: the constant, with its module, and the period.
fn rows() -> BTreeMap<String, String> {
    let node = sources("crates/node/src");
    let text = node.iter().find(|source| source.path == "crates/node/src/lib.rs");
    let text = &text.expect("the crate's root").text;
    let (_, table) = text.split_once("# Background work").expect("the table of background work");
    let rows = table.lines().filter_map(|line| line.strip_prefix("//! | "));
    let mut found = BTreeMap::new();
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let [_, period, constant, _] = cells[..] else { panic!("four cells: {row}") };
        if constant != "–" {
            let constant = constant.trim_matches('`').to_owned();
            assert!(found.insert(constant, period.to_owned()).is_none(), "twice: {row}");
        }
    }
    found
}

#[test]
fn all_background_work_is_in_the_table_with_its_period() {
    let (code, table) = (constants(), rows());
    let mut wrong = Vec::new();
    for (constant, period) in &code {
        match table.get(constant) {
            None => wrong.push(format!("{constant} ({period}) is missing")),
            Some(written) if written != period => {
                wrong.push(format!("{constant} is {period}, and the table says {written}"));
            }
            Some(_) => {}
        }
    }
    for constant in table.keys().filter(|constant| !code.contains_key(*constant)) {
        wrong.push(format!("{constant} is not in the code"));
    }
    assert_none("crates/node/src/lib.rs lists all background work", &wrong);
}

/// A period has a constant, so that the table can name it.
#[test]
fn no_ticker_has_its_period_in_the_text() {
    let mut found = Vec::new();
    for name in CRATES {
        let all = sources(&format!("crates/{name}/src"));
        for source in all.iter().filter(|source| !source.is_test()) {
            let tickers = source.code().filter(|(_, line)| line.contains("interval(Duration::"));
            found.extend(tickers.map(|(number, _)| format!("{}:{number}", source.path)));
        }
    }
    assert_none("a period is a constant *_INTERVAL", &found);
}
