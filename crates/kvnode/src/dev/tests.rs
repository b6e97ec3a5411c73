//! The supervisor with shell scripts for nodes, driven as by a terminal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::sync::mpsc;

use super::console::Command;
use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    dev: DevArgs,
}

/// Each start of a node adds its process id to the file named in its data directory. Only what the
/// shell itself brings is used.
const NODE: &str = "#!/bin/sh
for flag in \"$@\"; do case $flag in --data-dir=*) dir=${flag#*=};; esac; done
echo $$ >> \"$dir/pids\"
while read -r line; do :; done
";

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The processes a node had, oldest first.
fn pids(place: &Place, id: u16) -> Vec<u32> {
    let text = fs::read_to_string(place.node(id).join("pids")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The state letter of a process, `None` when it has ended and was waited for.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[tokio::test]
async fn nodes_are_killed_paused_and_started_by_command() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("node.sh");
    fs::write(&program, NODE).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let data = home.path().join("data");
    let args = Cli::parse_from(["dev", "--data-dir", data.to_str().unwrap()]).dev;
    let place = Place::open(&args).unwrap();
    for id in 1..=3 {
        fs::create_dir_all(place.node(id)).unwrap();
    }
    let supervisor = Supervisor::new(program, plans(&args, &place), args.shards, args.logs);

    let (commands, receiver) = mpsc::channel(1);
    let script = async {
        let first = until("n2 runs", || pids(&place, 2).first().copied()).await;
        let other = until("n1 runs", || pids(&place, 1).first().copied()).await;

        commands.send(Command::Kill(2)).await.unwrap();
        until("n2 is gone", || state(first).is_none().then_some(())).await;
        // Commands for nodes that are not there change nothing.
        commands.send(Command::Pause(2)).await.unwrap();
        commands.send(Command::Kill(9)).await.unwrap();
        commands.send(Command::Start(2)).await.unwrap();
        let second = until("n2 runs again", || pids(&place, 2).get(1).copied()).await;

        commands.send(Command::Pause(2)).await.unwrap();
        until("n2 is stopped", || (state(second) == Some('T')).then_some(())).await;
        commands.send(Command::Start(2)).await.unwrap();
        until("n2 continues", || (state(second) != Some('T')).then_some(())).await;
        commands.send(Command::Start(2)).await.unwrap();

        // A paused node ends with the others.
        commands.send(Command::Pause(1)).await.unwrap();
        until("n1 is stopped", || (state(other) == Some('T')).then_some(())).await;
        commands.send(Command::Quit).await.unwrap();
        (first, second, other)
    };
    let (result, (_, second, other)) = tokio::join!(supervisor.run(&place, Some(receiver)), script);
    assert_eq!(result, Ok(0));
    assert_eq!((state(second), state(other)), (None, None));
    assert_eq!((pids(&place, 1).len(), pids(&place, 2).len()), (1, 2));
}
