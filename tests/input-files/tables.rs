//! One table reader: every format gives the same cells.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{cell::Cell, fs, fs::File, path::Path, sync::Arc};

use arrow::{
    array::{
        ArrayRef, DictionaryArray, Int64Array, LargeStringArray, RecordBatch, StringArray,
        StringViewArray,
    },
    datatypes::Int32Type,
};
use input_files::{Progress, TableReader, TextRow, TextUnit, Texts};
use parquet::{
    arrow::ArrowWriter,
    basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel},
    file::properties::WriterProperties,
};

fn write(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn batch() -> RecordBatch {
    let dictionary: DictionaryArray<Int32Type> =
        vec![Some("whale"), Some("ship")].into_iter().collect();
    RecordBatch::try_from_iter_with_nullable([
        ("word", Arc::new(dictionary) as ArrayRef, true),
        (
            "context",
            Arc::new(StringArray::from(vec![Some("the white "), None])) as _,
            true,
        ),
        ("step", Arc::new(Int64Array::from(vec![1, 2])) as _, true),
        (
            "view",
            Arc::new(StringViewArray::from(vec!["a", "b"])) as _,
            true,
        ),
        (
            "large",
            Arc::new(LargeStringArray::from(vec!["c", "d"])) as _,
            true,
        ),
    ])
    .unwrap()
}

#[track_caller]
fn check(path: &Path) {
    let table = TableReader::open(path).unwrap();
    assert_eq!(table.rows().unwrap(), 2);
    let columns = table.read(&["step", "word", "context"]).unwrap();
    assert_eq!(
        columns.text("word").unwrap(),
        ["whale", "ship"],
        "{}",
        path.display()
    );
    assert_eq!(columns.i64("step").unwrap(), [1, 2]);
    assert_eq!(
        columns.opt_text("context").unwrap(),
        [Some("the white ".to_owned()), None]
    );
}

#[test]
fn text_formats_agree() {
    for (name, text) in [
        (
            "a.CSV",
            "\u{feff} word ,context,step\nwhale,the white ,1\nship,, 2.0\n",
        ),
        (
            "a.tsv",
            "word\tcontext\tstep\r\nwhale\tthe white \t1\r\nship\t\t2\r\n",
        ),
        (
            "a.jsonl",
            "{\"word\": \"whale\", \"context\": \"the white \", \"step\": 1}\n\n{\"step\": 2, \"word\": \"ship\"}\n",
        ),
        (
            "a.json",
            "[{\"word\": \"whale\", \"context\": \"the white \", \"step\": 1}, {\"word\": \"ship\", \"context\": null, \"step\": 2}]",
        ),
        (
            "b.json",
            "{\"step\": 1, \"word\": \"whale\", \"context\": \"the white \"}\n{\"step\": 2, \"word\": \"ship\", \"context\": \"\"}",
        ),
    ] {
        let (_folder, path) = write(name, text);
        check(&path);
    }
}

#[test]
fn every_codec_of_parquet_and_both_kinds_of_arrow() {
    let folder = tempfile::tempdir().unwrap();
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let path = folder.path().join("a.parquet");
        let properties = WriterProperties::builder().set_compression(codec).build();
        let file = File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch().schema(), Some(properties)).unwrap();
        writer.write(&batch()).unwrap();
        writer.close().unwrap();
        check(&path);
        assert_eq!(texts(&path, "word"), ["whale", "ship"], "{codec}");
    }
    let path = folder.path().join("a.feather");
    let mut writer =
        arrow::ipc::writer::FileWriter::try_new(File::create(&path).unwrap(), &batch().schema())
            .unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    check(&path);
    for (column, expected) in [
        ("word", ["whale", "ship"]),
        ("view", ["a", "b"]),
        ("large", ["c", "d"]),
    ] {
        assert_eq!(texts(&path, column), expected);
    }
    // As the `datasets` library caches its tables.
    let path = folder.path().join("b.arrow");
    let mut writer =
        arrow::ipc::writer::StreamWriter::try_new(File::create(&path).unwrap(), &batch().schema())
            .unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    check(&path);
}

/// Rows that the footer says and the row groups do not have are missing, and a part of a table is not the table.
#[test]
fn a_parquet_file_with_fewer_rows_than_its_footer_says_is_an_error() {
    let mut bytes = vec![];
    let mut writer = ArrowWriter::try_new(&mut bytes, batch().schema(), None).unwrap();
    writer.write(&batch()).unwrap();
    writer.close().unwrap();
    // `num_rows` of the file, an i64 of 2, before the list of one row group; then of 18.
    let said = [0x16, 0x04, 0x19, 0x1c];
    let at = bytes.windows(4).rposition(|window| window == said).unwrap();
    bytes[at + 1] = 0x24;
    let (_folder, path) = write("a.parquet", "");
    fs::write(&path, bytes).unwrap();
    let error = TableReader::open(&path)
        .unwrap()
        .read(&["word"])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("its footer says 18 rows, but it has 2"),
        "{error}"
    );
    let path = Arc::new(path);
    let mut texts = Texts::open(&path, "word", TextUnit::Line, &Progress::default()).unwrap();
    assert!((0..3).any(|_| texts.next_row(true).is_err()));
}

/// Arrow panics on some of these files; every one of its panics has to become an error, and a program has to know that it will.
#[test]
fn damaged_arrow_is_an_error() {
    thread_local! {
        static CAUGHT: Cell<usize> = const { Cell::new(0) };
    }
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if input_files::panic_becomes_error() {
            CAUGHT.set(CAUGHT.get() + 1);
        } else {
            shown(panic);
        }
    }));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.feather");
    let mut sound = vec![];
    let mut writer =
        arrow::ipc::writer::FileWriter::try_new(&mut sound, &batch().schema()).unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let mut read = 0;
    for at in 0..sound.len() {
        if CAUGHT.get() < 3 {
            let mut damaged = sound.clone();
            damaged[at] = 0xff;
            std::fs::write(&path, damaged).unwrap();
            let rows = TableReader::open(&path)
                .and_then(|table| table.read(&["step", "word", "context", "view", "large"]));
            read += usize::from(rows.is_ok());
        }
    }
    assert!(
        CAUGHT.get() > 0,
        "none of these files makes arrow panic any more"
    );
    assert!(!input_files::panic_becomes_error());
    assert!(read > 0);
}

/// Sizes are checked before there is room made for them.
#[test]
fn sizes_that_an_arrow_file_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.feather");
    let options = arrow::ipc::writer::IpcWriteOptions::default()
        .try_with_compression(Some(arrow::ipc::CompressionType::LZ4_FRAME))
        .unwrap();
    let mut sound = vec![];
    let mut writer = arrow::ipc::writer::FileWriter::try_new_with_options(
        &mut sound,
        &batch().schema(),
        options,
    )
    .unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    fs::write(&path, &sound).unwrap();
    check(&path);

    let trailer = sound.len() - 10;
    let footer_len = i32::from_le_bytes(sound[trailer..trailer + 4].try_into().unwrap());
    let footer = trailer - usize::try_from(footer_len).unwrap();
    let (start, body) = {
        let footer = arrow::ipc::root_as_footer(&sound[footer..trailer]).unwrap();
        let block = *footer.recordBatches().unwrap().iter().next().unwrap();
        let start = usize::try_from(block.offset()).unwrap();
        let head = usize::try_from(block.metaDataLength()).unwrap();
        (start + head, block.bodyLength())
    };
    // Where the block says its length, and where a buffer says that it is not compressed.
    let claims = (footer..trailer).find(|&at| sound[at..].starts_with(&body.to_le_bytes()));
    let compressed = (start..footer).find(|&at| sound[at..].starts_with(&[0xff; 8]));
    for (at, size, what) in [
        (trailer, 4, "a footer has 1073741824 bytes"),
        (claims.unwrap(), 8, "a block has"),
        (compressed.unwrap(), 8, "a compressed buffer has"),
    ] {
        let mut damaged = sound.clone();
        damaged[at..at + size].copy_from_slice(&(1i64 << 30).to_le_bytes()[..size]);
        fs::write(&path, damaged).unwrap();
        let error = TableReader::open(&path).unwrap_err().to_string();
        assert!(error.contains(what), "no `{what}` in: {error}");
    }
}

fn texts(path: &Path, column: &str) -> Vec<String> {
    let path = Arc::new(path.to_owned());
    let mut texts = Texts::open(&path, column, TextUnit::Line, &Progress::default()).unwrap();
    std::iter::from_fn(|| texts.next_row(true).unwrap())
        .map(|row| match row {
            TextRow::Text(text) => text,
            TextRow::Bad(reason) => format!("!{reason}"),
        })
        .collect()
}

#[test]
fn what_is_wrong_with_a_row_is_said() {
    for (name, text, expected) in [
        (
            "a.csv",
            "word,step\nwhale,1\nship\n",
            "row 1: 1 fields, but the header has 2",
        ),
        ("a.csv", "word,step\nwhale,one\n", "column `step` of"),
        (
            "a.csv",
            "word,step\nwhale,1.5\n",
            "holds 1.5, expected whole numbers",
        ),
        ("a.csv", "word,step\nwhale,\n", "column `step` of"),
        (
            "a.csv",
            "word,step,word\nwhale,1,ship\n",
            "has two columns `word`",
        ),
        (
            "a.csv",
            "words,step\nwhale,1\n",
            "has no column `word`; its columns: words, step",
        ),
        (
            "a.jsonl",
            "{\"word\": \"a\", \"step\": NaN}\n",
            "NaN and Infinity are not JSON",
        ),
        (
            "a.jsonl",
            "{\"word\": \"a\", \"word\": \"b\", \"step\": 1}\n",
            "the key `word` is there twice",
        ),
        (
            "a.jsonl",
            "{\"word\": \"\\ud83d\", \"step\": 1}\n",
            "half of a surrogate pair",
        ),
        (
            "a.jsonl",
            "{\n\"word\": 1\n}\n",
            "where JSON Lines has one per line",
        ),
    ] {
        let (_folder, path) = write(name, text);
        let read = || -> Result<(), input_files::InputError> {
            let columns = TableReader::open(&path)?.read(&["word", "step"])?;
            columns.text("word")?;
            columns.i64("step")?;
            Ok(())
        };
        let err = read().unwrap_err().to_string();
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn rows_of_json_lines_say_what_is_wrong() {
    let (_folder, path) = write(
        "a.jsonl",
        "{\"meta\": {\"text\": \"inner\"}, \"text\": \"outer\"}\r\n\r\n{\"text\": \"x\", \"score\": -Infinity}\n{\"text\": \"\\udc0b\"}\n{\"text\": \"a\", \"text\": \"b\"}\n{\"text\": \"\"}\n{\"text\": \"cut",
    );
    let rows = texts(&path, "text");
    for (row, expected) in rows.iter().zip([
        "outer",
        "!not a JSON object: invalid number",
        "!not a JSON object: ",
        "!not a JSON object: the key `text` is there twice",
        "",
        "!not a JSON object: EOF",
    ]) {
        assert!(row.starts_with(expected), "{row}");
    }
    assert!(
        rows[1].contains("NaN and Infinity") && rows[5].contains("cut off"),
        "{rows:?}"
    );
    assert_eq!(texts(&path, "meta.text")[0], "inner");

    let (_folder, path) = write("a.json", " [{\"text\": \"a\"}]");
    let path = Arc::new(path);
    let err = Texts::open(&path, "text", TextUnit::Line, &Progress::default());
    let err = err.err().unwrap().to_string();
    assert!(
        err.contains("one JSON array; write one object per line"),
        "{err}"
    );
}
