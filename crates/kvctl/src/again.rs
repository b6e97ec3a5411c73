//! The command that asks a write of unknown outcome again, safely: the same words, and the session and
//! sequence that it was sent with, by which the cluster knows it again. A load needs neither: it writes
//! only what is not there yet.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use quorate_client::WriteId;

/// The line before the command.
pub const INTRODUCTION: &str =
    "To ask again safely (it is applied once, however often it is asked):";

/// The command line to type into a shell, made of the words that this process was started with.
pub fn command_line(words: &[OsString], id: &WriteId) -> String {
    let mut words = words.iter();
    let program = words.next().map_or_else(|| OsStr::new("kvctl"), OsString::as_os_str);
    let mut line = quote(program);
    line.push_str(&format!(" --write-id {id}"));
    let mut given_before = false;
    for word in words {
        let bytes = word.as_bytes();
        if std::mem::take(&mut given_before) {
            continue;
        }
        if bytes == b"--write-id" {
            given_before = true;
            continue;
        }
        if bytes.starts_with(b"--write-id=") {
            continue;
        }
        line.push(' ');
        line.push_str(&quote(word));
    }
    line
}

/// The command line that deletes one key of several again, by the session and sequence of its own write.
/// `options` are the conditions it was sent with.
pub fn delete_line(endpoints: &[String], options: &[String], key: &[u8], id: &WriteId) -> String {
    let mut words: Vec<OsString> = std::env::args_os().take(1).collect();
    words.extend(["--endpoints".into(), endpoints.join(",").into(), "del".into()]);
    words.extend(options.iter().map(OsString::from));
    if key.contains(&0) {
        // No argument can hold this byte.
        words.extend(["--key-encoding".into(), "hex".into(), hex::encode(key).into()]);
    } else {
        words.extend(["--".into(), OsStr::from_bytes(key).to_owned()]);
    }
    command_line(&words, id)
}

/// The command line that loads the same file again. A journal is a new file each time, and is left out.
pub fn load_line(words: &[OsString]) -> String {
    let mut line: Vec<String> = Vec::new();
    let mut is_journal = false;
    for word in words {
        if std::mem::take(&mut is_journal) || word.as_bytes().starts_with(b"--journal=") {
            continue;
        }
        is_journal = word == "--journal";
        if !is_journal {
            line.push(quote(word));
        }
    }
    line.join(" ")
}

/// One word as a shell reads it back: plain where that is safe, in single quotes where it is text,
/// and as `$'…'` with escapes (bash, zsh, ksh, POSIX 2024) where it is not.
fn quote(word: &OsStr) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(byte);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.as_bytes().iter().all(plain) => text.to_owned(),
        Some(text) if !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => {
            let mut quoted = String::from("$'");
            for &byte in word.as_bytes() {
                match byte {
                    b'\'' | b'\\' => quoted.extend(['\\', char::from(byte)]),
                    b' '..=b'~' => quoted.push(char::from(byte)),
                    // Octal, because a hexadecimal escape would go on into digits that follow it.
                    _ => quoted.push_str(&format!("\\{byte:03o}")),
                }
            }
            quoted.push('\'');
            quoted
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn id() -> WriteId {
        WriteId { session: bytes::Bytes::from(vec![0xab; 24]), sequence: 7 }
    }

    fn again(words: &[&str]) -> String {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        command_line(&words, &id()).replace(&"ab".repeat(24), "ID")
    }

    #[test]
    fn the_same_words_with_the_session() {
        assert_eq!(
            again(&["kvctl", "--endpoints", "h:1", "put", "k", "it's new"]),
            r"kvctl --write-id ID/7 --endpoints h:1 put k 'it'\''s new'"
        );
        assert_eq!(
            again(&["./kvctl", "put", "--write-id", "00/3", "k", ""]),
            "./kvctl --write-id ID/7 put k ''"
        );
        assert_eq!(
            again(&["./kvctl", "put", "--write-id=00/3", "k", ""]),
            "./kvctl --write-id ID/7 put k ''"
        );
    }

    #[test]
    fn a_load_is_the_same_without_its_journal() {
        let words = ["kvctl", "load", "--journal", "j", "--journal=k", "a file"];
        assert_eq!(load_line(&words.map(OsString::from)), "kvctl load 'a file'");
    }

    #[test]
    fn one_key_of_several_is_deleted_by_its_own_write() {
        let line = |key: &[u8]| {
            let line =
                delete_line(&["h:1".into(), "i:2".into()], &["--if-absent".into()], key, &id());
            line.split_once("/7 ").unwrap().1.to_owned()
        };
        assert_eq!(line(b"-k 1"), "--endpoints h:1,i:2 del --if-absent -- '-k 1'");
        assert_eq!(line(b"\0a"), "--endpoints h:1,i:2 del --if-absent --key-encoding hex 0061");
    }

    #[test]
    fn a_shell_reads_every_byte_back() {
        let word = OsString::from_vec((1..=255).collect());
        let quoted = quote(&word);
        // `sh` need not know $'…'; bash does.
        let Ok(output) = std::process::Command::new("bash")
            .arg("-c")
            .arg(format!("printf %s {quoted}"))
            .output()
        else {
            assert!(quoted.starts_with("$'\\001"));
            return;
        };
        assert_eq!(output.stdout, word.as_bytes());
    }
}
