//! Every format gives the same documents; bad rows are named.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, io::Write, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray},
    datatypes::Schema,
};
use longtail_corpus::{BadRows, CorpusError, CorpusReader, ReadOptions, TextUnit};
use tempfile::TempDir;

const TEXTS: [&str; 3] = [
    "Call me Ishmael.",
    "Some \"years\" ago,\nnever mind.",
    "naïve 🐋",
];

fn json_lines() -> String {
    TEXTS
        .iter()
        .map(|text| {
            format!(
                "{}\n",
                serde_json::json!({"id": 1, "text": text, "meta": {"text": "no"}})
            )
        })
        .collect()
}

fn csv_text(delimiter: char) -> String {
    let rows = TEXTS
        .iter()
        .map(|text| format!("1{delimiter}\"{}\"\n", text.replace('"', "\"\"")));
    format!("id{delimiter}text\n{}", rows.collect::<String>())
}

fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    write_parquet(path, batch.schema(), &[batch]);
}

fn write_parquet(path: &Path, schema: Arc<Schema>, batches: &[RecordBatch]) {
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None)
            .unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read(path: &Path, options: ReadOptions) -> Result<Vec<String>, CorpusError> {
    CorpusReader::open(&[path], options)?
        .documents()
        .map(|document| document.map(|d| d.text))
        .collect()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn formats_agree() {
    let json = json_lines();
    let folder = folder(&[
        ("a.jsonl", json.as_bytes()),
        ("b.json.gz", &gzip(json.as_bytes())),
        (
            "c.ndjson.zst",
            &zstd::encode_all(json.as_bytes(), 1).unwrap(),
        ),
        ("d.csv", csv_text(',').as_bytes()),
        ("e.tsv.gz", &gzip(csv_text('\t').as_bytes())),
        (
            "f.jsonl",
            format!("\u{feff}{}", json.replace('\n', "\r\n\r\n")).as_bytes(),
        ),
        ("g.txt", TEXTS.join("\n\n").as_bytes()),
    ]);
    parquet(
        &folder.path().join("h.parquet"),
        vec![
            ("id", Arc::new(Int64Array::from(vec![1; 3]))),
            ("text", Arc::new(StringArray::from(TEXTS.to_vec()))),
        ],
    );
    let mut files: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 8);
    for file in files {
        assert_eq!(
            read(&file, ReadOptions::default()).unwrap(),
            TEXTS,
            "{}",
            file.display()
        );
    }
}

#[test]
fn plain_text_has_three_units() {
    let folder = folder(&[("a.txt", b"one\ntwo\n\n \nthree\n")]);
    let unit = |text_unit| {
        read(
            &folder.path().join("a.txt"),
            ReadOptions::default().with_text_unit(text_unit),
        )
        .unwrap()
    };
    assert_eq!(unit(TextUnit::Line), ["one", "two", "three"]);
    assert_eq!(unit(TextUnit::Paragraph), ["one\ntwo", "three"]);
    assert_eq!(unit(TextUnit::File), ["one\ntwo\n\n \nthree"]);
}

#[test]
fn folders_and_globs_are_read_in_order_and_once() {
    let folder = folder(&[
        ("b/1.jsonl", b"{\"text\":\"b1\"}"),
        ("a/2.txt", b"a2"),
        ("a/1.txt", b"a1"),
        ("notes.md", b"not a corpus"),
    ]);
    let glob = folder.path().join("*/*.txt");
    let corpus = CorpusReader::open(&[folder.path(), &glob], ReadOptions::default()).unwrap();
    let documents: Vec<_> = corpus.documents().map(Result::unwrap).collect();
    assert_eq!(
        documents
            .iter()
            .map(|d| d.text.as_str())
            .collect::<Vec<_>>(),
        ["a1", "a2", "b1"]
    );
    assert_eq!(
        documents
            .iter()
            .map(|d| (d.index, d.row))
            .collect::<Vec<_>>(),
        [(0, 0), (1, 0), (2, 0)]
    );
    assert_eq!(corpus.ignored(), [folder.path().join("notes.md")]);
    let mut watched = corpus.documents();
    while let Some(Ok(_)) = watched.next() {}
    assert_eq!(
        watched
            .bytes_read()
            .load(std::sync::atomic::Ordering::Relaxed),
        corpus.total_bytes()
    );
}

#[test]
fn rows_are_a_range_of_the_whole_corpus() {
    let json = json_lines();
    let folder = folder(&[("a.jsonl", json.as_bytes()), ("b.jsonl", json.as_bytes())]);
    let rows = |rows| read(folder.path(), ReadOptions::default().with_rows(rows));
    assert_eq!(rows(2..4).unwrap(), [TEXTS[2], TEXTS[0]]);
    assert_eq!(rows(5..100).unwrap(), [TEXTS[2]]);
    assert_eq!(
        rows(6..7).unwrap_err().to_string(),
        "rows 6..7 hold no document: 6 rows were read"
    );
    assert_eq!(
        rows(2..2).unwrap_err().to_string(),
        "rows 2..2 hold no document: 2 rows were read"
    );
}

/// One bad row of each kind among good ones: counted, named by file and row, and left out or fatal as configured.
#[test]
fn bad_rows_are_named() {
    let folder = folder(&[
        ("a.jsonl", b"{\"text\":\"good\"}\n{\"test\":1}\n{\"text\":null}\n{\"text\":\"\xff\"}\n[1]\n{\"text\":2}\n"),
        ("b.csv", b"text,x\ngood,1\nbad\n\xffbad,2\n"),
        ("c.txt", b"good\n\n\xff\xfe\n"),
    ]);
    parquet(
        &folder.path().join("d.parquet"),
        vec![(
            "text",
            Arc::new(StringArray::from(vec![Some("good"), None])),
        )],
    );
    let binary: Vec<&[u8]> = vec![b"good", b"\xff"];
    parquet(
        &folder.path().join("e.parquet"),
        vec![("text", Arc::new(BinaryArray::from(binary)))],
    );
    let skip = ReadOptions::default().with_bad_rows(BadRows::Skip);
    let mut documents = CorpusReader::open(&[folder.path()], skip)
        .unwrap()
        .documents();
    let texts: Vec<String> = documents.by_ref().map(|d| d.unwrap().text).collect();
    assert_eq!(texts, ["good"; 5]);
    let summary = documents.summary();
    assert_eq!(
        (
            summary.rows,
            summary.documents,
            summary.bad_rows,
            summary.text_bytes
        ),
        (15, 5, 10, 20)
    );
    let reasons: Vec<String> = summary
        .bad_row_samples
        .iter()
        .map(|bad| {
            format!(
                "{} {}: {}",
                bad.file.file_name().unwrap().display(),
                bad.row,
                bad.reason
            )
        })
        .collect();
    assert_eq!(reasons.len(), 10);
    for (got, expected) in reasons.iter().zip([
        "a.jsonl 1: no column `text`",
        "a.jsonl 2: column `text` is null",
        "a.jsonl 3: not a JSON object: invalid unicode code point",
        "a.jsonl 4: not a JSON object: invalid type: sequence, expected an object",
        "a.jsonl 5: column `text` is not text",
        "b.csv 1: 1 fields, but the header has 2",
        "b.csv 2: not UTF-8 at byte 0",
        "c.txt 1: not UTF-8 at byte 0",
        "d.parquet 1: column `text` is null",
        "e.parquet 1: not UTF-8 at byte 0",
    ]) {
        assert!(got.starts_with(expected), "{got}, expected {expected}");
    }
    let err = read(folder.path(), ReadOptions::default()).unwrap_err();
    assert!(
        err.to_string()
            .ends_with("a.jsonl`, row 1: no column `text`"),
        "{err}"
    );
}

#[test]
fn wrong_files_are_errors() {
    let folder = folder(&[
        ("good.csv", b"id,body\n1,x\n"),
        ("cut.jsonl.gz", &gzip(json_lines().as_bytes())[..20]),
        ("not.parquet", b"PAR1 not really"),
        ("notes.md", b""),
        ("empty.jsonl", b""),
    ]);
    fs::create_dir(folder.path().join("none")).unwrap();
    parquet(
        &folder.path().join("ints.parquet"),
        vec![("text", Arc::new(Int64Array::from(vec![1])))],
    );
    for (name, expected) in [
        (
            "good.csv",
            "good.csv` has no column `text`; its columns: id, body",
        ),
        ("cut.jsonl.gz", "failed to read `"),
        ("not.parquet", "is not valid Parquet"),
        (
            "ints.parquet",
            "is not valid Parquet: column `text` is not text",
        ),
        ("notes.md", "has an unknown format: expected .parquet"),
        (
            "empty.jsonl",
            "the corpus holds no document: its file is empty",
        ),
        ("none", "holds no file that ends in"),
        ("missing.jsonl", "missing.jsonl` not found"),
        ("*.docx", "holds no file that ends in"),
    ] {
        let err = read(&folder.path().join(name), ReadOptions::default())
            .unwrap_err()
            .to_string();
        assert!(err.contains(expected), "{name}: {err}");
    }
}

/// Nulls, many row groups and large rows come back in order.
#[test]
fn parquet_row_groups_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let texts: Vec<Option<String>> = (0..1000)
        .map(|row| (row % 7 != 0).then(|| format!("row {row} {}", "x".repeat(row % 50))))
        .collect();
    let batches: Vec<RecordBatch> = texts
        .chunks(300)
        .map(|part| {
            RecordBatch::try_from_iter([(
                "text",
                Arc::new(StringArray::from(part.to_vec())) as ArrayRef,
            )])
            .unwrap()
        })
        .collect();
    write_parquet(&path, batches[0].schema(), &batches);
    let options = ReadOptions::default()
        .with_bad_rows(BadRows::Skip)
        .with_rows(10..990);
    let documents: Vec<_> = CorpusReader::open(&[&path], options)
        .unwrap()
        .documents()
        .map(Result::unwrap)
        .collect();
    let expected: Vec<(usize, String)> = (10..990)
        .filter_map(|row| Some((row, texts[row].clone()?)))
        .collect();
    assert_eq!(
        documents
            .into_iter()
            .map(|d| (d.row, d.text))
            .collect::<Vec<_>>(),
        expected
    );
}

/// What is not read is counted and named: hidden files, other formats, empty files, bad rows.
#[test]
fn what_is_left_out_is_counted() {
    let folder = folder(&[
        ("a.jsonl", b"{\"text\":\"good\"}\n{\"text\":null}\n"),
        ("b.txt", b""),
        (
            ".ipynb_checkpoints/a-checkpoint.jsonl",
            b"{\"text\":\"copy\"}\n",
        ),
        ("__MACOSX/._a.jsonl", b"{\"text\":\"copy\"}\n"),
        ("notes.md", b"not a corpus"),
    ]);
    let skip = ReadOptions::default().with_bad_rows(BadRows::Skip);
    let corpus = CorpusReader::open(&[folder.path()], skip).unwrap();
    let mut documents = corpus.documents();
    let texts: Vec<String> = documents.by_ref().map(|d| d.unwrap().text).collect();
    assert_eq!(texts, ["good"]);
    let summary = documents.summary();
    assert_eq!(
        (summary.files, summary.empty_files, summary.bad_rows),
        (2, 1, 1)
    );
    assert_eq!(summary.bad_row_samples[0].reason, "column `text` is null");
    assert_eq!((corpus.ignored().len(), corpus.hidden().len()), (1, 2));
    let warnings = summary.warnings().join("\n");
    for part in [
        "notes.md",
        ".ipynb_checkpoints",
        "__MACOSX",
        "row 1: column `text` is null",
        "1 of 2 files of the corpus are empty",
    ] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
}

/// A text with nothing in it is a document in every format; a null is a bad row where a format has nulls.
#[test]
fn an_empty_text_is_a_document_everywhere() {
    let folder = folder(&[
        ("a.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"\"}\n"),
        ("b.csv", b"id,text\n1,a\n2,\n"),
        ("c.TSV", b"id\ttext\n1\ta\n2\t\n"),
    ]);
    parquet(
        &folder.path().join("d.parquet"),
        vec![("text", Arc::new(StringArray::from(vec!["a", ""])))],
    );
    for name in ["a.jsonl", "b.csv", "c.TSV", "d.parquet"] {
        let texts = read(&folder.path().join(name), ReadOptions::default()).unwrap();
        assert_eq!(texts, ["a", ""], "{name}");
    }
}
