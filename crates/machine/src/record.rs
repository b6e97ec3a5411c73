//! Value records: the stored form of a user row's value.
//!
//! Format 1, forever (integers little-endian):
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format = 1 |
//! | 1 | flags: bit 0 = an expiry follows; the others are 0 |
//! | 8 | create revision |
//! | 8 | revision |
//! | 8 | log time |
//! | 8 | expiry, only with flag bit 0 |
//! | rest | the value |
//!
//! Storage checks the row's checksum; a row that this decoder rejects is damaged nevertheless,
//! because it must not be answered.

use bytes::Bytes;

use super::{error::Damaged, reader::Reader};

const FORMAT: u8 = 1;
const FLAG_EXPIRY: u8 = 1;
const HEADER_BYTES: usize = 26;

/// A key's current value and its revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The Raft index at which the key was created, or created again after a delete; never 0.
    pub create_revision: u64,
    /// The Raft index of the last write; never below `create_revision`.
    pub revision: u64,
    /// The log time of the last write: Unix milliseconds << 16 | logical.
    pub log_time: u64,
    /// The log time from which the key counts as absent; `None` = never. Reserved: nothing sets it
    /// yet.
    pub expiry: Option<u64>,
    /// The value.
    pub value: Bytes,
}

impl Record {
    /// The row's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let expiry_bytes = if self.expiry.is_some() { 8 } else { 0 };
        let mut out = Vec::with_capacity(HEADER_BYTES + expiry_bytes + self.value.len());
        out.push(FORMAT);
        out.push(if self.expiry.is_some() { FLAG_EXPIRY } else { 0 });
        out.extend_from_slice(&self.create_revision.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.log_time.to_le_bytes());
        if let Some(expiry) = self.expiry {
            out.extend_from_slice(&expiry.to_le_bytes());
        }
        out.extend_from_slice(&self.value);
        out
    }

    /// Reads a row; the value is a slice of it.
    ///
    /// # Errors
    /// The bytes are not a record.
    pub fn decode(row: Bytes) -> Result<Record, Damaged> {
        let mut reader = Reader::new(row, "a value record");
        if reader.u8()? != FORMAT {
            return Err(reader.damaged("its format is not 1"));
        }
        let flags = reader.u8()?;
        if flags & !FLAG_EXPIRY != 0 {
            return Err(reader.damaged("it has flags that this version does not know"));
        }
        let create_revision = reader.u64()?;
        let revision = reader.u64()?;
        if create_revision == 0 || revision < create_revision {
            return Err(reader.damaged("its revisions contradict each other"));
        }
        let log_time = reader.u64()?;
        let expiry = if flags & FLAG_EXPIRY != 0 { Some(reader.u64()?) } else { None };
        Ok(Self { create_revision, revision, log_time, expiry, value: reader.rest() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        (1..u64::MAX / 2, 0..u64::MAX / 2, any::<u64>(), any::<Option<u64>>(), any::<Vec<u8>>())
            .prop_map(|(create_revision, more, log_time, expiry, value)| Record {
                create_revision,
                revision: create_revision + more,
                log_time,
                expiry,
                value: Bytes::from(value),
            })
    }

    proptest! {
        #[test]
        fn a_record_comes_back(record in record()) {
            prop_assert_eq!(Record::decode(Bytes::from(record.encode())).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_one_record_or_damage(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            if let Ok(record) = Record::decode(bytes.clone()) {
                prop_assert_eq!(record.encode(), &bytes[..]);
            }
        }
    }

    #[test]
    fn the_bytes_of_format_1_are_fixed() {
        let record = Record {
            create_revision: 5,
            revision: 0x0102,
            log_time: 7,
            expiry: None,
            value: Bytes::from_static(b"v"),
        };
        assert_eq!(
            hex::encode(record.encode()),
            concat!("0100", "0500000000000000", "0201000000000000", "0700000000000000", "76")
        );
        let with_expiry = Record { expiry: Some(9), ..record.clone() };
        assert_eq!(
            hex::encode(with_expiry.encode()),
            concat!(
                "0101",
                "0500000000000000",
                "0201000000000000",
                "0700000000000000",
                "0900000000000000",
                "76"
            )
        );
        for record in [record, with_expiry] {
            assert_eq!(Record::decode(record.encode().into()), Ok(record));
        }
    }

    #[test]
    fn a_broken_record_is_damaged() {
        let good = Record {
            create_revision: 5,
            revision: 6,
            log_time: 7,
            expiry: None,
            value: Bytes::new(),
        }
        .encode();
        for cut in 0..good.len() {
            assert!(Record::decode(Bytes::copy_from_slice(&good[..cut])).is_err(), "cut at {cut}");
        }
        for (at, byte) in [(0, 2), (0, 0), (1, 2), (1, 0x80), (2, 0), (2, 7)] {
            let mut broken = good.clone();
            broken[at] = byte;
            assert!(Record::decode(Bytes::from(broken)).is_err(), "byte {at} = {byte}");
        }
    }
}
