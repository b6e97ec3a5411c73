//! Golden bytes of formats, as tests write them: hexadecimal digits with spaces between the fields.

/// The digits of `bytes`, without spaces.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that the fields stand for.
pub fn bytes(fields: &str) -> Vec<u8> {
    let digits = fields.replace(' ', "");
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Compares written bytes with the golden ones; a failure shows both as digits.
#[track_caller]
pub fn assert_golden(written: &[u8], fields: &str) {
    assert_eq!(hex(written), fields.replace(' ', ""));
}
