//! Golden bytes of session rows: their format is fixed forever.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_storage::{RowKey, RowKind};

use super::build::session;
use crate::{
    Done, LogTime, NotANumber, OperationResult, Previous, ReadValue,
    answer_row::{AnswerRow, Stored, answer_row_key, read_answer_row_key},
};

fn golden() -> AnswerRow {
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
    AnswerRow { last: true, content_hash: 0xabcd, answered_below: 4, stored: Stored::Done(done) }
}

#[test]
fn the_bytes_of_a_row_are_fixed() {
    let expected = [
        "01 05 cdab000000000000 0400000000000000 ac02 0900000000000000 03",
        "1f 02 c801 02 0800000000000000 03 6f6c64",
        "25 ac02 feffffffffffffff",
        "43 07 0500000000000000 06",
    ];
    assert_eq!(hex::encode(golden().encode()), expected.concat().replace(' ', ""));
    assert_eq!(AnswerRow::decode(golden().encode().into()), Ok(golden()));

    let barred =
        AnswerRow { last: false, content_hash: 0, answered_below: 4, stored: Stored::Barred };
    assert_eq!(hex::encode(barred.encode()), "010200000000000000000400000000000000");
    assert_eq!(AnswerRow::decode(barred.encode().into()), Ok(barred));

    let stored = Stored::NotANumber(NotANumber { operation: 300, overflow: true });
    let refused = AnswerRow { last: false, content_hash: 0xabcd, answered_below: 4, stored };
    assert_eq!(hex::encode(refused.encode()), "0108cdab0000000000000400000000000000ac0201");
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
    let row = golden().encode();
    for len in 0..row.len() {
        assert!(AnswerRow::decode(Bytes::copy_from_slice(&row[..len])).is_err(), "cut at {len}");
    }
    let mut longer = row.clone();
    longer.push(0);
    assert!(AnswerRow::decode(longer.into()).is_err());
    for (at, byte) in [(0, 2), (1, 16), (1, 7), (1, 13), (29, 0x80), (29, 0x10)] {
        let mut broken = row.clone();
        broken[at] = byte;
        assert!(AnswerRow::decode(broken.into()).is_err(), "byte {at} = {byte:#x}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_row_or_damage(mut bytes: Vec<u8>, begin in 0..4u8) {
        if begin > 0 && bytes.len() > 2 {
            (bytes[0], bytes[1]) = (1, 1 << begin);
        }
        let _ = AnswerRow::decode(bytes.into());
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0..63usize, byte: u8) {
        let mut row = golden().encode();
        let at = at % row.len();
        row[at] = byte;
        let _ = AnswerRow::decode(row.into());
    }
}
