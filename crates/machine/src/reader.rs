//! Row reader: decoding of the state machine's binary rows.
//!
//! Rows are small: fixed-width integers are little-endian, counts and revisions are LEB128
//! variable-length integers, and byte strings are a length in that form, followed by the bytes.

use bytes::Bytes;

use super::error::Damaged;

/// Appends `value` as a LEB128 variable-length integer, 1 to 10 bytes.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and then the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over a stored row; if the row ends too early, the error names the row.
pub(super) struct Reader {
    rest: Bytes,
    what: &'static str,
}

impl Reader {
    /// Begins to read a row, which errors call `what`.
    pub(super) fn new(row: Bytes, what: &'static str) -> Reader {
        Reader { rest: row, what }
    }

    /// The error "this row is damaged", with the detail.
    pub(super) fn damaged(&self, detail: &'static str) -> Damaged {
        Damaged::new(self.what, detail)
    }

    fn take(&mut self, len: usize) -> Result<Bytes, Damaged> {
        if self.rest.len() < len {
            return Err(self.damaged("it ends too early"));
        }
        Ok(self.rest.split_to(len))
    }

    /// One byte.
    pub(super) fn u8(&mut self) -> Result<u8, Damaged> {
        Ok(self.take(1)?[0])
    }

    /// Eight bytes, little-endian.
    pub(super) fn u64(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N)?);
        Ok(array)
    }

    /// A LEB128 integer in its shortest form; any other form is damage, so that one value has one
    /// row.
    pub(super) fn varint(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.damaged("an integer is larger than 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if bits == 0 && shift > 0 {
                    return Err(self.damaged("an integer is longer than it must be"));
                }
                return Ok(value);
            }
        }
        Err(self.damaged("an integer is longer than ten bytes"))
    }

    /// A length and that many bytes, without copying them.
    pub(super) fn bytes(&mut self) -> Result<Bytes, Damaged> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| self.damaged("a length is beyond memory"))?;
        self.take(len)
    }

    /// The remaining bytes.
    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    /// Succeeds if no bytes remain.
    pub(super) fn end(self) -> Result<(), Damaged> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.damaged("it is longer than its content"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_comes_back_in_at_most_ten_bytes(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert!(out.len() <= 10);
            let mut reader = Reader::new(Bytes::from(out), "test");
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert!(reader.end().is_ok());
        }

        #[test]
        fn any_bytes_are_an_error_or_a_value_never_a_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(Bytes::from(bytes.clone()), "test");
            if let Ok(value) = reader.varint() {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&bytes[..out.len()], &out[..], "one value has one form");
            }
            let _ = Reader::new(Bytes::from(bytes), "test").bytes();
        }
    }

    #[test]
    fn each_broken_form_says_what_is_wrong() {
        let read = |bytes: &'static [u8]| {
            Reader::new(Bytes::from_static(bytes), "the row").varint().unwrap_err().to_string()
        };
        assert_eq!(read(b""), "the row is damaged: it ends too early");
        assert_eq!(read(b"\x80\x00"), "the row is damaged: an integer is longer than it must be");
        assert_eq!(
            read(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
            "the row is damaged: an integer is larger than 64 bits"
        );
        let mut short = Reader::new(Bytes::from_static(b"\x05abc"), "the row");
        assert!(short.bytes().is_err());
        assert!(Reader::new(Bytes::from_static(b"x"), "the row").end().is_err());
    }
}
