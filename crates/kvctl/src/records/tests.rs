use super::*;

fn layout(format: RecordFormat) -> Layout {
    Layout { format, delimiter: None, key_field: None, key_prefix: Bytes::new() }
}

fn read(text: &[u8], layout: Layout) -> Vec<Result<Record, RecordError>> {
    RecordReader::new(text, layout).collect()
}

fn pairs(text: &[u8], layout: Layout) -> Vec<(Vec<u8>, Vec<u8>)> {
    let records = read(text, layout).into_iter().map(Result::unwrap);
    records.map(|record| (record.key.to_vec(), record.value.to_vec())).collect()
}

/// The line and the sentence of the only error, which must be last.
fn error(text: &[u8], layout: Layout) -> (u64, String) {
    match read(text, layout).pop().unwrap() {
        Err(RecordError::Malformed { line, message }) => (line, message),
        other => panic!("{other:?} instead of an error"),
    }
}

#[test]
fn dump_then_load_is_the_identity_on_binary_data() {
    let all: Vec<u8> = (0..=255).collect();
    let mut samples = vec![
        (b"plain".to_vec(), b"value".to_vec()),
        (b"empty value".to_vec(), Vec::new()),
        (all.clone(), all.clone()),
        (b"\"quoted\",\r\n".to_vec(), b"a\r\nb\n\n\"\"\t,;".to_vec()),
        (b"\\".to_vec(), b"\\x00\\n".to_vec()),
        ("\u{feff}bom".into(), "grüße 世界 \u{9b}".into()),
        (b"\r".to_vec(), b"\r".to_vec()),
        (b"\n".to_vec(), b"\n".to_vec()),
        (b" ".to_vec(), b" ".to_vec()),
    ];
    for byte in 0..=255u8 {
        samples.push((vec![byte], vec![byte, b'"', byte]));
    }
    for format in [RecordFormat::Tsv, RecordFormat::Csv, RecordFormat::Jsonl] {
        let mut text = Vec::new();
        for (key, value) in &samples {
            write_pair(&mut text, format, key, value).unwrap();
        }
        let loaded = pairs(&text, layout(format));
        assert_eq!(loaded.len(), samples.len(), "{format:?}");
        for (loaded, sample) in loaded.iter().zip(&samples) {
            assert_eq!(loaded, sample, "{format:?}");
        }
    }
}

/// A dump may be kept for years, and other programs read it.
#[test]
fn the_bytes_of_a_dump_are_fixed() {
    let pair = ("k\té".as_bytes(), &b"v,\xff\"\n"[..]);
    for (format, text) in [
        (RecordFormat::Tsv, &b"k\\t\xc3\xa9\tv,\\xff\"\\n\n"[..]),
        (RecordFormat::Csv, b"k\t\xc3\xa9,\"v,\xff\"\"\n\"\n"),
        (RecordFormat::Jsonl, b"{\"key\":\"k\\t\xc3\xa9\",\"value_base64\":\"diz/Igo=\"}\n"),
    ] {
        let mut dump = Vec::new();
        write_pair(&mut dump, format, pair.0, pair.1).unwrap();
        assert_eq!(dump.escape_ascii().to_string(), text.escape_ascii().to_string(), "{format:?}");
        assert_eq!(pairs(text, layout(format)), [(pair.0.to_vec(), pair.1.to_vec())]);
    }
}

#[test]
fn a_delimited_file_gives_a_field_and_the_whole_line() {
    let text = b"0041;LATIN CAPITAL LETTER A;Lu\r\n\n0042;\"B\\t;Lu";
    let mut with = layout(RecordFormat::Tsv);
    with.delimiter = Some(b';');
    with.key_prefix = Bytes::from_static(b"u/");
    let records: Vec<Record> = read(text, with.clone()).into_iter().map(Result::unwrap).collect();
    assert_eq!(records[0].key, "u/0041");
    assert_eq!(records[0].value, "0041;LATIN CAPITAL LETTER A;Lu");
    assert_eq!((records[0].line, records[0].end), (1, 32));
    assert_eq!(records[1].key, "u/0042");
    assert_eq!(records[1].value, "0042;\"B\\t;Lu");
    assert_eq!((records[1].line, records[1].end), (3, text.len() as u64));
    assert_eq!(records.len(), 2);

    with.key_field = Some(3);
    assert_eq!(pairs(b"a;b;c", with.clone())[0].0, b"u/c");
    with.key_field = Some(4);
    assert_eq!(
        error(b"a;b;c;d\na;b;c\n", with),
        (2, "the record has 3 fields; expected a field 4".into())
    );
}

#[test]
fn a_quoted_field_may_contain_line_ends() {
    let mut with = layout(RecordFormat::Csv);
    with.key_field = Some(2);
    let text = b"\"a\r\nb\",k1,5\" pipe\n\"x\",\"k,\"\"2\",\n";
    assert_eq!(
        pairs(text, with),
        [
            (b"k1".to_vec(), b"\"a\r\nb\",k1,5\" pipe".to_vec()),
            (b"k,\"2".to_vec(), b"\"x\",\"k,\"\"2\",".to_vec()),
        ]
    );
    assert_eq!(
        error(b"k,v\nk,\"never\nclosed\n", layout(RecordFormat::Csv)),
        (2, "a quote that is opened here is never closed".into())
    );
}

#[test]
fn an_error_names_its_line() {
    let tsv = |text: &str| error(text.as_bytes(), layout(RecordFormat::Tsv));
    assert_eq!(tsv("a\tb\n\n\nc\n").0, 4);
    assert!(tsv("a\tb\tc").1.contains("found 3 fields"));
    assert_eq!(tsv("\tv"), (1, "the key is empty".into()));
    assert!(tsv("k\t\\q").1.starts_with("the value has the unknown escape"));
    let csv = |text: &str| error(text.as_bytes(), layout(RecordFormat::Csv));
    assert!(csv("a,b\n\"x\ny\",1\nlone").0 == 4);
    let json = |text: &str| error(text.as_bytes(), layout(RecordFormat::Jsonl));
    assert!(json("{\"key\": \"a\"}").1.contains("expected value or value_base64"));
    assert!(
        json("{\"key\":\"a\",\"key_base64\":\"\",\"value\":\"\"}").1.contains("only one of key")
    );
    assert!(json("{\"key\":1,\"value\":\"\"}").1.contains("is not a JSON object"));
    assert!(json("{\"key_base64\":\"*\",\"value\":\"\"}").1.contains("key_base64 is not base64"));
}

#[test]
fn an_endless_line_is_an_error_and_does_not_fill_the_memory() {
    let endless = io::BufReader::new(io::repeat(b'x').take(1 << 30));
    let mut reader = RecordReader::new(endless, layout(RecordFormat::Tsv));
    let Some(Err(RecordError::Malformed { line: 1, message })) = reader.next() else {
        panic!("an endless line was read");
    };
    assert!(message.contains("longer than 6291456 bytes"), "{message}");
}

#[test]
fn what_scan_prints_as_json_can_be_loaded() {
    let text = b"{\"key\":\"k\",\"value\":\"v\",\"revision\":7}\n";
    assert_eq!(pairs(text, layout(RecordFormat::Jsonl)), [(b"k".to_vec(), b"v".to_vec())]);
}

#[test]
fn a_byte_order_mark_at_the_beginning_is_not_part_of_the_first_record() {
    let mark = "\u{feff}";
    for (format, text) in [
        (RecordFormat::Tsv, "k\tv\n"),
        (RecordFormat::Csv, "k,v\r\n"),
        (RecordFormat::Csv, "\"k\",\"v\"\n"),
        (RecordFormat::Jsonl, "{\"key\":\"k\",\"value\":\"v\"}\n"),
        (RecordFormat::Tsv, "\r\nk\tv"),
    ] {
        let file = format!("{mark}{text}");
        assert_eq!(pairs(file.as_bytes(), layout(format)), [(b"k".to_vec(), b"v".to_vec())]);
        // A reader that returns one byte at a time, as from a slow pipe.
        let slow = io::BufReader::with_capacity(1, file.as_bytes());
        let mut slow = RecordReader::new(slow, layout(format));
        let record = slow.next().unwrap().unwrap();
        assert_eq!((&record.key[..], record.end), (&b"k"[..], file.len() as u64));
        assert!(slow.next().is_none());
    }
    let mut whole = layout(RecordFormat::Csv);
    whole.key_field = Some(1);
    let file = format!("{mark}\"a\nb\",c\n");
    assert_eq!(
        pairs(file.as_bytes(), whole),
        [(b"a\nb".to_vec(), b"\"a\nb\",c".to_vec())],
        "the quote after the mark opens a field"
    );
    let later = format!("a\tb\n{mark}k\tv\n");
    let later = pairs(later.as_bytes(), layout(RecordFormat::Tsv));
    assert_eq!(later[1].0, "\u{feff}k".as_bytes(), "only the beginning of a file has a mark");
    assert!(read(mark.as_bytes(), layout(RecordFormat::Tsv)).is_empty());
}

#[test]
fn a_first_key_that_begins_with_a_mark_is_dumped_so_that_it_is_loaded_again() {
    for format in [RecordFormat::Tsv, RecordFormat::Csv, RecordFormat::Jsonl] {
        let key = "\u{feff}k".as_bytes();
        let mut text = Vec::new();
        write_pair(&mut text, format, key, b"v").unwrap();
        assert_eq!(pairs(&text, layout(format)), [(key.to_vec(), b"v".to_vec())], "{format:?}");
    }
}

#[test]
fn files_in_another_encoding_than_utf_8_are_refused_with_a_sentence() {
    for (bytes, encoding) in [
        (&b"\xff\xfek\0\t\0v\0\n\0"[..], "UTF-16"),
        (b"\xfe\xff\0k\0\t\0v\0\n", "UTF-16"),
        (b"\xff\xfe\0\0k\0\0\0", "UTF-32"),
        (b"\0\0\xfe\xff\0\0\0k", "UTF-32"),
    ] {
        for format in [RecordFormat::Tsv, RecordFormat::Csv, RecordFormat::Jsonl] {
            let first = read(bytes, layout(format)).swap_remove(0);
            let Err(RecordError::Malformed { line: 1, message }) = first else {
                panic!("{format:?}: {first:?}");
            };
            let begins = format!("the file begins with the byte order mark of {encoding}; ");
            assert!(message.starts_with(&begins), "{format:?}: {message}");
        }
    }
}
