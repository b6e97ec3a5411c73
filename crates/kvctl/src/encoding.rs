//! Encodings of keys and values on a command line, in a file and on a terminal.
//!
//! Keys and values are bytes. Each of three encodings can represent any bytes on a command line;
//! the escaped form can represent any bytes in one field of a line of text, and leaves ordinary
//! text as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::ValueEnum;

/// Encodings of bytes in arguments and in the output formats `raw` and `tsv`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    /// The bytes themselves (an argument may hold any byte but NUL)
    #[default]
    Utf8,
    /// Two hexadecimal digits for each byte
    Hex,
    /// Base64 with the standard alphabet and padding
    Base64,
}

impl Encoding {
    /// Decodes an argument. The error is a sentence without subject and full stop, to follow the
    /// name of the argument.
    pub fn decode(self, text: &[u8]) -> Result<Bytes, String> {
        match self {
            Encoding::Utf8 => Ok(Bytes::copy_from_slice(text)),
            Encoding::Hex => hex::decode(text).map(Bytes::from).map_err(|error| match error {
                hex::FromHexError::OddLength => "has an odd number of hexadecimal digits".into(),
                hex::FromHexError::InvalidHexCharacter { c, index } => {
                    format!("has {c:?} at position {index}, which is not a hexadecimal digit")
                }
                other => format!("is not hexadecimal: {other}"),
            }),
            Encoding::Base64 => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| format!("is not base64: {error}")),
        }
    }

    /// Encodes bytes exactly, as `get` prints them. With `utf8` these are the bytes themselves.
    pub fn encode(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Encoding::Utf8 => bytes.to_vec(),
            Encoding::Hex => hex::encode(bytes).into_bytes(),
            Encoding::Base64 => STANDARD.encode(bytes).into_bytes(),
        }
    }

    /// Encodes bytes as one field of a line: as [`Encoding::encode`], but `utf8` is escaped (see
    /// [`escape`]).
    pub fn field(self, bytes: &[u8]) -> String {
        match self {
            Encoding::Utf8 => escape(bytes),
            Encoding::Hex => hex::encode(bytes),
            Encoding::Base64 => STANDARD.encode(bytes),
        }
    }
}

/// Encodes bytes in base64 with the standard alphabet and padding, as in the JSON fields
/// `key_base64` and `value_base64`.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The inverse of [`to_base64`].
pub fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| error.to_string())
}

/// The byte order mark: at the beginning of a file it names the encoding, elsewhere it is
/// invisible.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Encodes any bytes as one field of a line: printable text stays as it is, `\`, tab, line feed and
/// carriage return become `\\`, `\t`, `\n` and `\r`, and every other control character, the byte
/// order mark and every byte that is not UTF-8 becomes `\x` and two hexadecimal digits.
///
/// A line of such fields is safe to print: no byte of a key can move a terminal's cursor.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() || c == BYTE_ORDER_MARK => {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        push_hex(&mut text, byte);
                    }
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            push_hex(&mut text, *byte);
        }
    }
    text
}

fn push_hex(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str("\\x");
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// The inverse of [`escape`]. Bytes that `escape` would have escaped are accepted as they are; a
/// backslash that begins none of its escapes is an error.
pub fn unescape(field: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let Some((&kind, tail)) = rest.split_first() else {
            return Err("ends in a lone backslash (write \\\\ for a backslash)".into());
        };
        rest = tail;
        match kind {
            b'\\' => bytes.push(b'\\'),
            b't' => bytes.push(b'\t'),
            b'n' => bytes.push(b'\n'),
            b'r' => bytes.push(b'\r'),
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| hex::decode(digits).ok());
                let Some(digits) = digits else {
                    return Err("has \\x without two hexadecimal digits after it".into());
                };
                bytes.extend(digits);
                rest = &rest[2..];
            }
            other => {
                return Err(format!(
                    "has the unknown escape \\{} (write \\\\ for a backslash)",
                    char::from(other).escape_default()
                ));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_bytes() -> Vec<u8> {
        (0..=255).collect()
    }

    #[test]
    fn all_byte_values_round_trip_in_each_encoding() {
        for encoding in [Encoding::Utf8, Encoding::Hex, Encoding::Base64] {
            let text = encoding.encode(&all_bytes());
            assert_eq!(encoding.decode(&text).unwrap(), all_bytes(), "{encoding:?}");
        }
        assert_eq!(from_base64(&to_base64(&all_bytes())).unwrap(), all_bytes());
    }

    #[test]
    fn all_byte_values_round_trip_escaped() {
        let text = escape(&all_bytes());
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert_eq!(unescape(text.as_bytes()).unwrap(), all_bytes());
        // Pairs of bytes too: an escape must not swallow the byte after it.
        for first in 0..=255u8 {
            for second in [0u8, b'0', b'\\', b'n', b'x', 0x80, 0xc3, 0xff] {
                let bytes = [first, second];
                assert_eq!(unescape(escape(&bytes).as_bytes()).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn ordinary_text_is_not_escaped() {
        assert_eq!(escape("grüße, 世界".as_bytes()), "grüße, 世界");
        assert_eq!(escape(b"a\tb\\c\n\x1b[2J\xff"), "a\\tb\\\\c\\n\\x1b[2J\\xff");
        // A C1 control character is two bytes of UTF-8, and terminals obey it.
        assert_eq!(escape("\u{9b}".as_bytes()), "\\xc2\\x9b");
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        let hex = |text: &str| Encoding::Hex.decode(text.as_bytes()).unwrap_err();
        assert_eq!(hex("abc"), "has an odd number of hexadecimal digits");
        assert_eq!(hex("zz"), "has 'z' at position 0, which is not a hexadecimal digit");
        assert!(Encoding::Base64.decode(b"a").unwrap_err().starts_with("is not base64: "));
        assert!(unescape(b"a\\").unwrap_err().contains("lone backslash"));
        assert!(unescape(b"\\xf").unwrap_err().contains("two hexadecimal digits"));
        assert!(unescape(b"\\q").unwrap_err().contains("unknown escape \\q"));
    }
}
