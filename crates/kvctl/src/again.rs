//! Retry commands: the command line that retries a write of unknown outcome safely.
//!
//! It is the same command line with the session and the sequence that the write was sent with, so
//! that the cluster recognises it. A load needs neither: it only writes what is not stored yet.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use quorate_client::WriteId;

/// The line printed before the retry command.
pub const INTRODUCTION: &str =
    "To retry safely (the write is applied once, however often it is retried):";

/// The command line that retries a write: the words of this process plus the write's id, quoted for
/// a shell.
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

/// The command line that retries the deletion of one key of several, with that write's own id.
/// `options` are the conditions it was sent with.
pub fn delete_line(endpoints: &[String], options: &[String], key: &[u8], id: &WriteId) -> String {
    let mut words: Vec<OsString> = std::env::args_os().take(1).collect();
    words.extend(["--endpoints".into(), endpoints.join(",").into(), "del".into()]);
    words.extend(options.iter().map(OsString::from));
    if key.contains(&0) {
        // An argument cannot contain this byte.
        words.extend(["--key-encoding".into(), "hex".into(), hex::encode(key).into()]);
    } else {
        words.extend(["--".into(), OsStr::from_bytes(key).to_owned()]);
    }
    command_line(&words, id)
}

/// The command line that loads the same file again. It omits `--journal`, because a journal must be
/// a new file.
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

/// Quotes one word for a shell: plain where that is safe, in single quotes if it is text, else as
/// `$'…'` with escapes (bash, zsh, ksh, POSIX 2024).
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
                    // Octal, because a hexadecimal escape would swallow digits that follow it.
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
    fn a_retry_has_the_same_words_and_the_write_id() {
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
        // `sh` need not support $'…'; bash does.
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
