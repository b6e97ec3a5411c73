//! Golden help texts of every command: a change of one is a change of the interface.
//!
//! After an intended change, `cargo bless` rewrites the files.

use std::path::Path;

use crate::{program, run};

fn help(command: &str, flag: &str) -> String {
    let mut program = program();
    program.args(command.split_whitespace()).arg(flag);
    let called = run(program, b"");
    assert_eq!(called.stderr, "");
    called.ends(0)
}

/// All commands, as the help lists them: "" is `kvctl` itself, `bench put` a command of a command.
fn commands() -> Vec<String> {
    let mut all = vec![String::new()];
    let mut at = 0;
    while let Some(parent) = all.get(at).cloned() {
        let text = help(&parent, "-h");
        let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
        let names = listed.take_while(|line| line.starts_with(' '));
        let names = names.filter_map(|line| line.split_whitespace().next());
        all.extend(names.map(|name| format!("{parent} {name}").trim_start().to_owned()));
        at += 1;
    }
    all
}

#[test]
fn help_is_golden() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kvctl/help");
    let bless = std::env::var_os("QUORATE_BLESS").is_some();
    let commands = commands();
    for command in &commands {
        let name = if command.is_empty() { "kvctl".into() } else { command.replace(' ', "-") };
        let path = golden.join(format!("{name}.txt"));
        // The whole text for `kvctl` itself; for a command its own part, without the global
        // options.
        let shown = match command.as_str() {
            "" => help(command, "--help"),
            _ => {
                let text = help(command, "-h");
                let (own, global) = text.split_once("\nGlobal options:").unwrap();
                let after = global.split_once("\n\n").map_or("", |(_, after)| after);
                format!("{own}\n{after}").trim_end().to_owned() + "\n"
            }
        };
        if bless {
            std::fs::write(&path, &shown).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(shown, expected, "the help of `kvctl {command}` is not {}", path.display());
    }
    let files = std::fs::read_dir(&golden).unwrap().count();
    assert_eq!(files, commands.len(), "a golden file belongs to no command");
}

#[test]
fn a_completion_script_names_the_commands() {
    let mut program = program();
    program.args(["completion", "bash"]);
    let script = run(program, b"").ends(0);
    assert!(script.contains("kvctl__subcmd__locate") || script.contains("locate"), "{script}");
}
