//! Golden bytes of commands and of session rows: their formats are fixed forever.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use quorate_proto::raft::v1::{Command, Write, command::Action};
use quorate_proto::v1::{ClusterMap, condition::Expect};
use quorate_storage::{RowKey, RowKind};

use super::build::{
    add, and_previous, at_level_1, cancel, check, client, command, delete, get, last, put, session,
    value, when, within,
};
use crate::{
    Done, LogTime, NotANumber, OperationResult, Previous, ReadValue,
    answer_row::{AnswerRow, Mark, Stored, answer_row_key, read_answer_row_key},
    command::{encode, encode_change_map},
};

const OF_LEVEL_1: Mark = Mark::Xxh3 { content: 0xabcd };

fn golden(mark: Mark) -> AnswerRow {
    let put = OperationResult {
        condition_held: true,
        found: true,
        revision: 300,
        create_revision: 2,
        log_time: LogTime(9),
        previous: Some(Previous {
            value: Some(Bytes::from_static(b"old")),
            revision: 200,
            create_revision: 2,
            log_time: LogTime(8),
        }),
        ..OperationResult::default()
    };
    let number = OperationResult {
        condition_held: true,
        revision: 300,
        create_revision: 300,
        log_time: LogTime(9),
        number: Some(-2),
        ..OperationResult::default()
    };
    let get = OperationResult {
        condition_held: true,
        found: true,
        revision: 7,
        create_revision: 6,
        log_time: LogTime(5),
        read: ReadValue::Omitted,
        ..OperationResult::default()
    };
    let results = vec![put, number, get];
    let done = Done { applied: true, replayed: true, index: 300, log_time: LogTime(9), results };
    AnswerRow { last: true, mark, answered_below: 4, stored: Stored::Done(done) }
}

/// Logs are full of them: another encoding of a field would change what a replay does.
#[test]
fn the_bytes_of_commands_are_fixed() {
    let operations = vec![
        and_previous(when(put("k", "v"), Expect::Revision(7))),
        when(delete("k"), value("x")),
        add("k", -2),
        check("k", Expect::Absent(true)),
        get("k"),
    ];
    let write = command(Action::Write(Write {
        operations: operations.clone(),
        content_hash: 0xabcd,
        ..Write::default()
    }));
    let mut write = last(at_level_1(within(write, session(0), 300, 4)));
    let expected = [
        "0801 1001 1805 2002", // version, feature level, shard, epoch
        "2a21 0a18 0000000f42400000 00000001 00000002 0000000000000003", // session
        "10ac02 1804 2001",    // sequence, answered below, last
        "3237 0a0c 12016b 1a021007 2001 2a0176", // write: put, with a condition and the previous
        "0a0a 12016b 1a031a0178 3200 0a05 12016b 3803", // delete, increment
        "0a09 12016b 1a020801 4200 0a05 12016b 4a00", // check, get
        "10cdd702",            // content hash
    ];
    let bytes = encode(&mut write, 5, 2);
    assert_eq!(hex::encode(&bytes), expected.concat().replace(' ', ""));
    assert_eq!(Command::decode(bytes), Ok(write));

    let content_digest = Bytes::from_static(&[0xab; 16]);
    let write = Write { operations, content_digest, ..Write::default() };
    let mut write = last(within(command(Action::Write(write)), session(0), 300, 4));
    let expected_at_2 = [
        "0801 1002 1805 2002", // version, feature level, shard, epoch
        "2a33",
        expected[1].strip_prefix("2a21").unwrap(), // session
        expected[2],
        "2a10 01010101010101010101010101010101", // client
        "3245",
        expected[3].strip_prefix("3237").unwrap(),
        expected[4],
        expected[5],                             // operations
        "1a10 abababababababababababababababab", // content digest
    ];
    let bytes = encode(&mut write, 5, 2);
    assert_eq!(hex::encode(&bytes), expected_at_2.concat().replace(' ', ""));
    assert_eq!(Command::decode(bytes), Ok(write));

    // No level has it yet; its place is fixed.
    let mut with_principal = Command { principal: Bytes::from_static(&[0xef; 16]), ..cancel() };
    let bytes = encode(&mut with_principal, 5, 2);
    assert_eq!(
        hex::encode(bytes),
        format!("0801 1001 1805 2002 3a00 4a10{}", "ef".repeat(16)).replace(' ', "")
    );

    assert_eq!(hex::encode(encode(&mut cancel(), 5, 2)), "08011001180520023a00");
    let map = ClusterMap { epoch: 2, ..ClusterMap::default() };
    assert_eq!(hex::encode(encode_change_map(1, map)), "08011001420608011202".to_owned() + "2002");
}

#[test]
fn the_key_of_a_session_row_is_fixed() {
    let key = answer_row_key(&session(0), 300);
    let expected =
        "02 00000000 0000000f42400000 00000001 00000002 0000000000000003 000000000000012c";
    assert_eq!(hex::encode(key.as_bytes()), expected.replace(' ', ""));
    assert_eq!(read_answer_row_key(&key), Ok((session(0), 300)));
}

#[test]
fn the_bytes_of_a_row_are_fixed() {
    let expected = [
        "01 05 cdab000000000000 0400000000000000 ac02 0900000000000000 03",
        "1f 02 c801 02 0800000000000000 03 6f6c64",
        "25 ac02 feffffffffffffff",
        "43 07 0500000000000000 06",
    ];
    assert_eq!(hex::encode(golden(OF_LEVEL_1).encode()), expected.concat().replace(' ', ""));
    assert_eq!(AnswerRow::decode(golden(OF_LEVEL_1).encode().into()), Ok(golden(OF_LEVEL_1)));

    let barred = AnswerRow {
        last: false,
        mark: OF_LEVEL_1.barred(),
        answered_below: 4,
        stored: Stored::Barred,
    };
    assert_eq!(hex::encode(barred.encode()), "010200000000000000000400000000000000");
    assert_eq!(AnswerRow::decode(barred.encode().into()), Ok(barred));

    let stored = Stored::NotANumber(NotANumber { operation: 300, overflow: true });
    let refused = AnswerRow { last: false, mark: OF_LEVEL_1, answered_below: 4, stored };
    assert_eq!(hex::encode(refused.encode()), "0108cdab0000000000000400000000000000ac0201");
    assert_eq!(AnswerRow::decode(refused.encode().into()), Ok(refused));
}

/// Format 2 beside format 1: only what the row is known by is another.
#[test]
fn the_bytes_of_a_row_of_format_2_are_fixed() {
    let mark = Mark::Sha256 { content: [0xab; 16], client: client(0xcd) };
    let (content, tag) = ("ab".repeat(16), "cd".repeat(16));
    let rest_of = |row: &AnswerRow, from: usize| hex::encode(&row.encode()[from..]);
    let row = golden(mark);
    assert_eq!(
        hex::encode(row.encode()),
        format!("0205{content}{tag}{}", rest_of(&golden(OF_LEVEL_1), 10))
    );
    assert_eq!(AnswerRow::decode(row.encode().into()), Ok(row));

    let barred =
        AnswerRow { last: false, mark: mark.barred(), answered_below: 4, stored: Stored::Barred };
    let nothing = "00".repeat(16);
    assert_eq!(hex::encode(barred.encode()), format!("0202{nothing}{tag}0400000000000000"));
    assert_eq!(AnswerRow::decode(barred.encode().into()), Ok(barred));

    let stored = Stored::NotANumber(NotANumber { operation: 300, overflow: true });
    let refused = AnswerRow { last: false, mark, answered_below: 4, stored };
    let expected = format!("0208{content}{tag}0400000000000000ac0201");
    assert_eq!(hex::encode(refused.encode()), expected);
    assert_eq!(AnswerRow::decode(refused.encode().into()), Ok(refused));
}

#[test]
fn rows_are_in_the_order_of_birth_session_and_sequence() {
    let keys = [(0, 1), (0, 2), (0, 256), (1, 1), (300, 0)];
    let keys = keys.map(|(born, sequence)| answer_row_key(&session(born), sequence));
    assert!(keys.is_sorted());
    assert_eq!(read_answer_row_key(&keys[2]), Ok((session(0), 256)));
    let short = RowKey::new(RowKind::Session, 0, &keys[0].key()[1..]);
    assert!(read_answer_row_key(&short).is_err());
}

#[test]
fn a_cut_or_longer_row_is_damaged() {
    for mark in [OF_LEVEL_1, Mark::Sha256 { content: [0xab; 16], client: client(0xcd) }] {
        let row = golden(mark).encode();
        for len in 0..row.len() {
            let cut = AnswerRow::decode(Bytes::copy_from_slice(&row[..len]));
            assert!(cut.is_err(), "cut at {len}");
        }
    }
    let row = golden(OF_LEVEL_1).encode();
    let mut longer = row.clone();
    longer.push(0);
    assert!(AnswerRow::decode(longer.into()).is_err());
    for (at, byte) in [(0, 0), (0, 3), (1, 16), (1, 7), (1, 13), (29, 0x80), (29, 0x10)] {
        let mut broken = row.clone();
        broken[at] = byte;
        assert!(AnswerRow::decode(broken.into()).is_err(), "byte {at} = {byte:#x}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_row_or_damage(mut bytes: Vec<u8>, format in 1..3u8, begin in 0..4u8) {
        if begin > 0 && bytes.len() > 2 {
            (bytes[0], bytes[1]) = (format, 1 << begin);
        }
        let _ = AnswerRow::decode(bytes.into());
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0..63usize, byte: u8) {
        let mut row = golden(OF_LEVEL_1).encode();
        let at = at % row.len();
        row[at] = byte;
        let _ = AnswerRow::decode(row.into());
    }
}
