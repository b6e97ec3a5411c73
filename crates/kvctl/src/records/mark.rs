//! Byte order marks, which some programs write at the beginning of a text file.

/// U+FEFF in UTF-8.
pub const UTF_8: &[u8] = b"\xef\xbb\xbf";

/// The marks of encodings that are not supported. Those of UTF-32 are first: one begins like
/// UTF-16.
const OTHERS: [(&[u8], &str); 4] = [
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
];

/// Removes the mark from the first line of a file.
///
/// # Errors
/// A sentence, if the mark is that of an encoding other than UTF-8.
pub fn strip(first_line: &mut Vec<u8>) -> Result<(), String> {
    if first_line.starts_with(UTF_8) {
        first_line.drain(..UTF_8.len());
        return Ok(());
    }
    match OTHERS.iter().find(|(mark, _)| first_line.starts_with(mark)) {
        None => Ok(()),
        Some((_, encoding)) => Err(format!(
            "the file begins with the byte order mark of {encoding}; it must be UTF-8 \
             (iconv -f {encoding} -t UTF-8 converts it)"
        )),
    }
}
