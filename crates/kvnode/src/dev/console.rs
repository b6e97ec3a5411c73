//! The console of a dev cluster: the commands that are typed while it runs.

use std::io::BufRead;

use tokio::sync::mpsc;

/// A line that was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// `kill 2`: end the node as a power cut would.
    Kill(u16),
    /// `pause 2`: stop the process without ending it.
    Pause(u16),
    /// `start 2`: start it again, or let it continue.
    Start(u16),
    /// `status`: the state of each node.
    Status,
    /// `help`.
    Help,
    /// `quit`, or the end of the input.
    Quit,
}

/// The help of the console.
pub(super) const HELP: &str = "  kill N    end node N immediately, as kill -9 does
  pause N   stop node N; it keeps its memory and its connections
  start N   start node N again, or let it continue
  status    print the state of each node
  quit      end all nodes, then this program (also Ctrl-C)";

/// Parses a line; an empty one is not a command.
pub(super) fn parse(line: &str) -> Result<Option<Command>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let node = |verb: &str, text: &str| {
        text.trim_start_matches('n')
            .parse::<u16>()
            .map_err(|_| format!("{verb} takes the number of a node, for example: {verb} 2"))
    };
    let command = match words[..] {
        [] => return Ok(None),
        ["kill", id] => Command::Kill(node("kill", id)?),
        ["pause", id] => Command::Pause(node("pause", id)?),
        ["start", id] => Command::Start(node("start", id)?),
        ["kill" | "pause" | "start", ..] => {
            return Err(format!("{0} takes the number of one node, for example: {0} 2", words[0]));
        }
        ["status"] => Command::Status,
        ["help" | "?"] => Command::Help,
        ["quit" | "exit" | "q"] => Command::Quit,
        _ => return Err(format!("unknown command {:?}; help lists them", line.trim())),
    };
    Ok(Some(command))
}

/// Reads commands from the terminal on a thread of its own, until the input ends.
pub(super) fn read_commands() -> mpsc::Receiver<Command> {
    let (sender, receiver) = mpsc::channel(16);
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match parse(&line) {
                Ok(None) => {}
                Ok(Some(command)) => {
                    if sender.blocking_send(command).is_err() {
                        return;
                    }
                }
                Err(sentence) => super::say(&sentence),
            }
        }
        let _ = sender.blocking_send(Command::Quit);
    };
    if let Err(error) = std::thread::Builder::new().name("console".to_owned()).spawn(read) {
        super::say(&format!("no commands are taken: {error}"));
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert_eq!(parse("kill 2"), Ok(Some(Command::Kill(2))));
        assert_eq!(parse("  pause   n3 "), Ok(Some(Command::Pause(3))));
        assert_eq!(parse("start 1"), Ok(Some(Command::Start(1))));
        assert_eq!(parse("quit"), Ok(Some(Command::Quit)));
        assert_eq!(parse(" "), Ok(None));
    }

    #[test]
    fn mistakes_are_sentences() {
        for (line, sentence) in [
            ("kill", "kill takes the number of one node, for example: kill 2"),
            ("start 1 2", "start takes the number of one node, for example: start 2"),
            ("pause two", "pause takes the number of a node, for example: pause 2"),
            ("dance now", "unknown command \"dance now\"; help lists them"),
        ] {
            assert_eq!(parse(line), Err(sentence.to_owned()));
        }
    }
}
