//! Parser of the golden scripts: words to values.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_raft::{
    AppendResult, Config, Entry, EntryKind, Envelope, HardState, Index, LogId, Membership, Message,
    ReadRequest, ReplicaId, ReplicationSession, SnapshotMeta, SnapshotResult, Term, Ticks, Timing,
};

use super::{GROUP, members, number, of_voters, replica};
use crate::disk::Disk;

fn pairs(args: &[&str]) -> BTreeMap<String, String> {
    args.iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn id(word: &str) -> LogId {
    let (index, term) =
        word.split_once('@').unwrap_or_else(|| panic!("{word:?} is not index@term"));
    LogId::new(Term(number(term)), Index(number(index)))
}

/// `4@2`, `4@2:payload`, `4@2:voters=1,2`.
fn entry(word: &str) -> Entry {
    let (name, payload) = word.split_once(':').unwrap_or((word, ""));
    let LogId { term, index } = id(name);
    let (kind, payload) = match payload.strip_prefix("voters=") {
        Some("?") => (EntryKind::Membership, Bytes::from_static(b"?")),
        Some(voters) => (EntryKind::Membership, of_voters(voters).encode()),
        None => (EntryKind::Command, Bytes::copy_from_slice(payload.as_bytes())),
    };
    Entry { term, index, kind, stamp: index.0, payload }
}

/// The members, and the settings given with them.
pub fn membership(args: &[&str]) -> (Membership, Vec<(String, String)>) {
    let mut roles: BTreeMap<u64, u8> = BTreeMap::new();
    let mut settings = Vec::new();
    for (name, value) in pairs(args) {
        let bit = match name.as_str() {
            "voters" => 1,
            "outgoing" => 2,
            "learners" => 4,
            "next" => 8,
            _ => {
                settings.push((name, value));
                continue;
            }
        };
        members(&value).for_each(|id| *roles.entry(id).or_default() |= bit);
    }
    let parts = roles.into_iter().map(|(id, bits)| (replica(id), bits));
    (Membership::from_parts(parts, false).expect("sound roles"), settings)
}

pub fn setting(config: &mut Config, name: &str, value: &str) {
    match name {
        "pre_vote" => config.pre_vote = value == "on",
        "check_quorum" => config.check_quorum = value == "on",
        "max_append_bytes" => config.max_append_bytes = number(value),
        "max_entry_bytes" => config.max_entry_bytes = number(value),
        "max_persist_bytes" => config.max_persist_bytes = number(value),
        "max_inflight_messages" => config.max_inflight_messages = number(value) as usize,
        "max_inflight_bytes" => config.max_inflight_bytes = number(value),
        "max_uncommitted_bytes" => config.max_uncommitted_bytes = number(value),
        "max_committed_bytes" => config.max_committed_bytes = number(value),
        "max_pending_reads" => config.max_pending_reads = number(value) as usize,
        "retain_entries" => config.retain_entries = number(value),
        other => panic!("unknown setting {other:?}"),
    }
}

pub fn disk(args: &[&str], membership: Membership) -> Disk {
    let pairs = pairs(args);
    let get = |name: &str| pairs.get(name).map(String::as_str);
    let base = get("base").map_or(LogId::ZERO, id);
    let mut disk = Disk::new(get("voters").map_or(membership, of_voters));
    disk.hard_state = HardState {
        term: Term(get("term").map_or(0, number)),
        vote: get("vote").map(|vote| ReplicaId(number(vote))),
        commit: Index(get("commit").map_or(0, number)),
    };
    disk.base = base;
    disk.checkpoint.last = get("applied").map_or(base, id);
    let log = get("log").unwrap_or("").split(',').filter(|word| !word.is_empty());
    disk.entries = log.map(entry).collect();
    disk
}

/// Filter words `1->2`, `->2`, `1->` and names of messages; all must match.
pub fn matches(envelope: &Envelope, filter: &[&str]) -> bool {
    filter.iter().all(|word| match word.split_once("->") {
        Some((from, to)) => {
            (from.is_empty() || number(from) == envelope.from.id.0)
                && (to.is_empty() || number(to) == envelope.to.id.0)
        }
        None => *word == envelope.message.name(),
    })
}

/// `2 1@3 Append prev=3@1 commit=2 4@2:a 5@2:b`: to, from@term, kind, fields, entries.
pub fn envelope(args: &[&str]) -> Envelope {
    let to = args[0].split(':').next_back().expect("a last part");
    let (from, term) = args[1].split_once('@').expect("from@term");
    Envelope {
        group: GROUP,
        from: replica(number(from)),
        to: replica(number(to)),
        term: Term(number(term)),
        message: message(args[2], &args[3..], Term(number(term))),
    }
}

fn message(kind: &str, args: &[&str], term: Term) -> Message {
    let pairs = pairs(args);
    let get = |name: &str| pairs.get(name).map(String::as_str);
    let log_id = |name: &str| get(name).map_or(LogId::ZERO, id);
    let count = |name: &str| get(name).map_or(0, number);
    let says = |word: &str| args.contains(&word);
    let session = get("session").map_or(ReplicationSession { term, counter: 1 }, |word| {
        let (term, counter) = word.split_once('.').expect("term.counter");
        ReplicationSession { term: Term(number(term)), counter: number(counter) }
    });
    let timing = Timing {
        probe_time: Ticks(count("probe")),
        echo_time: Ticks(count("echo")),
        round: count("round"),
        clock: count("clock"),
        ..Timing::default()
    };
    let request = ReadRequest { boot: count("boot"), counter: count("request") };
    match kind {
        "PreVote" => Message::PreVote { last: log_id("last") },
        "PreVoteReply" => {
            Message::PreVoteReply { proposed: Term(count("for")), granted: says("granted") }
        }
        "Vote" => Message::Vote { last: log_id("last"), transfer: says("transfer") },
        "VoteReply" => {
            let asked = get("for").map_or(term, |asked| Term(number(asked)));
            Message::VoteReply { asked, granted: says("granted") }
        }
        "Append" => {
            let entries = args.iter().filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
            let entries = entries.map(|word| entry(word)).collect();
            let (prev, commit) = (log_id("prev"), Index(count("commit")));
            Message::Append { session, prev, commit, entries, timing }
        }
        "AppendReply" => {
            let result = match get("accepted") {
                Some(last) => AppendResult::Accepted { last: Index(number(last)) },
                None => {
                    let prev = Index(count("rejected"));
                    AppendResult::Rejected { prev, hint: log_id("hint") }
                }
            };
            Message::AppendReply { session, result, timing }
        }
        "Heartbeat" => Message::Heartbeat { session, commit: Index(count("commit")), timing },
        "HeartbeatReply" => {
            let last = get("last").map(id);
            Message::HeartbeatReply { session, installing: says("installing"), last, timing }
        }
        "InstallSnapshot" => {
            let membership = of_voters(get("voters").unwrap_or("1,2,3"));
            let meta = SnapshotMeta { last: log_id("last"), stamp: count("stamp"), membership };
            Message::InstallSnapshot { session, meta }
        }
        "SnapshotReply" => {
            let result = match get("installed") {
                Some(last) => SnapshotResult::Installed { last: Index(number(last)) },
                None => SnapshotResult::Failed,
            };
            Message::SnapshotReply { session, result }
        }
        "ReadIndex" => Message::ReadIndex { request },
        "ReadIndexReply" => {
            let index = get("index").map(|index| Index(number(index)));
            Message::ReadIndexReply { request, index }
        }
        "TimeoutNow" => Message::TimeoutNow { last: log_id("last") },
        "ReplicaGone" => Message::ReplicaGone,
        other => panic!("unknown message {other:?}"),
    }
}
