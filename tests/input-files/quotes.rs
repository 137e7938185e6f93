//! Quotes in CSV and TSV: what they enclose, and that none swallows rows.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, sync::Arc};

use input_files::{Progress, TextRow, TextUnit, Texts};

/// The rows of column `text`, bad ones as `!` and the reason.
fn rows(name: &str, text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = Arc::new(folder.path().join(name));
    fs::write(path.as_path(), text).unwrap();
    let mut texts = Texts::open(&path, "text", TextUnit::Line, &Progress::default()).unwrap();
    let mut rows = Vec::new();
    while let Some(row) = texts.next_row(true).unwrap() {
        rows.push(match row {
            TextRow::Text(text) => text,
            TextRow::Bad(reason) => format!("!{reason}"),
        });
    }
    rows
}

#[track_caller]
fn check(name: &str, text: &str, expected: &[&str]) {
    let found = rows(name, text);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        let bad = expected.starts_with('!') && found.starts_with(expected);
        assert!(bad || found == expected, "{found:?}, expected {expected:?}");
    }
}

#[test]
fn a_csv_field_is_quoted_from_end_to_end() {
    check(
        "a.csv",
        "id,text\n1,\"a, \"\"b\"\"\"\n2,\"over\r\ntwo lines\"\r\n3, \"spaces around\" \n4,said \"so\" plainly\n\n5,\"\"\"whole\"\"\"\n",
        &[
            "a, \"b\"",
            "over\r\ntwo lines",
            "spaces around",
            "said \"so\" plainly",
            "\"whole\"",
        ],
    );
    check(
        "a.csv",
        "\"id\",\"text\"\n\"1\",\"last, without a line end\"",
        &["last, without a line end"],
    );
    check("a.csv", " id , text \n1,a\n", &["a"]);
    check("a.csv", "id,text\r1,old\r2,lines\r", &["old", "lines"]);
}

#[test]
fn a_csv_quote_that_never_closes_is_one_bad_row() {
    check(
        "a.csv",
        "id,text\n1,first\n2,\"opens, and goes on\n3,third\n4,fourth\n",
        &[
            "first",
            "!the quote that opens in line 3 never closes",
            "third",
            "fourth",
        ],
    );
    check(
        "a.csv",
        "id,text\n1,\"opens\n2,\"quoted\"\n3,third\n",
        &[
            "!text after the closing quote of a field whose quote opens in line 2",
            "quoted",
            "third",
        ],
    );
    check(
        "a.csv",
        "id,text\n1,\"Hi\" she said\n2,b\n",
        &["!text after the closing quote", "b"],
    );
    // A quoted field before it goes over lines of its own.
    check(
        "a.csv",
        "id,text\n\"one\ntwo\",\"opens\n3,third\n",
        &["!the quote that opens in line 3 never closes", "third"],
    );
}

#[test]
fn a_tsv_quote_is_an_ordinary_character() {
    check(
        "a.tsv",
        "id\ttext\n1\t\"Call me, he said\n2\tthe whale\n3\t\"No\" he said\n4\tthe \"end\"\n5\t\"open\n6\tto the end",
        &[
            "\"Call me, he said",
            "the whale",
            "\"No\" he said",
            "the \"end\"",
            "\"open",
            "to the end",
        ],
    );
    // A quote that closes at the end of a later row is no pair with it either.
    check(
        "a.tsv",
        "id\ttext\n1\t\"Call me\n2\tIshmael\"\n",
        &["\"Call me", "Ishmael\""],
    );
    check(
        "a.tsv",
        "text\tid\n\"Call me\t1\nIshmael\"\t2\n",
        &["\"Call me", "Ishmael\""],
    );
}

#[test]
fn a_tsv_field_that_is_quoted_as_pandas_does_is_unquoted() {
    check(
        "a.tsv",
        "id\ttext\n1\t\"a \"\"b\"\"\"\n2\t\"with\ta tab\"\n3\t\"over\ntwo lines\"\n",
        &["a \"b\"", "with\ta tab", "over\ntwo lines"],
    );
}

#[test]
fn rows_of_another_length_are_bad() {
    check(
        "a.csv",
        "id,text\n1\n2,b,c\n3,d\n4,\n",
        &["!1 fields, but the header has 2", "!3 fields", "d", ""],
    );
    check("a.tsv", "text\tid\n\t\na\t1\n \nb\t2\n", &["", "a", "b"]);
}
