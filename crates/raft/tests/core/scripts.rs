//! Golden scripts: one behaviour per file under `scripts/`, to be read from top to bottom.
//!
//! A line `> …` is a command, the lines after it are its effects on the replicas, and `#` lines say
//! why. `~ …` is a command whose effects are not shown. The commands are listed in
//! `scripted.rs`. `cargo bless` writes the current effects into the files; read the difference
//! before you commit it.

use std::path::{Path, PathBuf};

use crate::scripted::Script;

/// The text of the file with the current effects.
fn replay(text: &str) -> String {
    let mut script = Script::default();
    let mut replayed = String::new();
    for line in text.lines() {
        let command = line.strip_prefix("> ").or(line.strip_prefix("~ "));
        let is_comment = line.is_empty() || line.starts_with('#');
        if let Some(command) = command {
            let effects = script.run(command);
            replayed += line;
            replayed.push('\n');
            if line.starts_with('>') {
                replayed += &effects;
            }
        } else if is_comment {
            replayed += line;
            replayed.push('\n');
        }
    }
    replayed
}

fn files(under: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(under).expect("the scripts directory exists");
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            found.push(path);
        }
    }
}

#[test]
fn every_script_shows_the_current_effects() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let update = std::env::var_os("QUORATE_BLESS").is_some();
    let mut found = Vec::new();
    files(&root, &mut found);
    found.sort();
    assert!(found.len() >= 45, "only {} scripts", found.len());
    let mut failed = Vec::new();
    for path in &found {
        let text = std::fs::read_to_string(path).expect("a readable script");
        assert!(
            text.starts_with('#'),
            "{} does not begin with a comment that explains it",
            path.display()
        );
        assert!(text.contains("\n> "), "{} shows nothing", path.display());
        let result = std::panic::catch_unwind(|| replay(&text));
        let Ok(replayed) = result else {
            eprintln!("in {}", path.display());
            failed.push(path);
            continue;
        };
        if replayed == text {
            continue;
        }
        if update {
            std::fs::write(path, replayed).expect("a writable script");
        } else {
            let first = text.lines().zip(replayed.lines()).position(|(a, b)| a != b);
            let line = first.unwrap_or(text.lines().count().min(replayed.lines().count()));
            eprintln!(
                "{}:{}\n  expected: {}\n  happened: {}",
                path.display(),
                line + 1,
                text.lines().nth(line).unwrap_or("(end)"),
                replayed.lines().nth(line).unwrap_or("(end)")
            );
            failed.push(path);
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {} scripts differ from the current effects",
        failed.len(),
        found.len()
    );
}
