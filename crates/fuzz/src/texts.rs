//! Corpora, token counts and dictionaries.

use longtail_corpus::{
    BadRows, ContextOptions, CorpusError, CorpusReader, Document, Lexicon, ReadOptions,
    TokenCounts, find_contexts,
};

use crate::{file, named};

/// The names that a corpus may have; the first byte of an input chooses one.
pub(crate) const CORPUS_NAMES: [&str; 8] = [
    "a.jsonl",
    "a.csv",
    "a.tsv",
    "a.txt",
    "a.parquet",
    "a.jsonl.gz",
    "a.csv.zst",
    "a.txt.gz",
];

/// Documents or an error, and at most one error, at the end.
pub(crate) fn corpus(input: &[u8]) -> bool {
    let Some((name, bytes)) = named(&CORPUS_NAMES, input) else {
        return false;
    };
    let path = file(name, bytes);
    let mut whole = false;
    for bad_rows in [BadRows::Fail, BadRows::Skip] {
        let options = ReadOptions::default().with_bad_rows(bad_rows);
        // A file that is empty or no text may be refused at once.
        if let Ok(corpus) = CorpusReader::open(&[&path], options) {
            let documents: Vec<_> = corpus.documents().take(10_000).collect();
            assert!(documents.iter().rev().skip(1).all(Result::is_ok));
            whole |= documents.iter().all(Result::is_ok);
        }
    }
    whole
}

/// The names that token counts may have.
pub(crate) const COUNT_NAMES: [&str; 3] = ["a.npy", "a.json", "a.parquet"];

/// Counts of the size asked for, or an error.
pub(crate) fn counts(input: &[u8]) -> bool {
    let Some((name, bytes)) = named(&COUNT_NAMES, input) else {
        return false;
    };
    let Ok(counts) = TokenCounts::read(file(name, bytes), 1000) else {
        return false;
    };
    assert_eq!(counts.d_vocab(), 1000);
    assert_eq!(counts.as_slice().iter().sum::<u64>(), counts.total());
    true
}

/// A word, a zero byte, a text: every context is where it says it is.
pub(crate) fn contexts(input: &[u8]) -> bool {
    let Ok(input) = std::str::from_utf8(input) else {
        return false;
    };
    let Some((word, text)) = input.split_once('\0') else {
        return false;
    };
    let document = Document::from_text(0, text);
    let options = ContextOptions::default().with_window(1);
    let found = find_contexts(
        || std::iter::once(Ok::<_, CorpusError>(document.clone())),
        &[word.into()],
        &options,
    )
    .expect("nothing to fail at");
    for context in &found.words[0].contexts {
        assert_eq!(&text[context.start..context.word.start], context.text);
        assert_eq!(&text[context.word.clone()], word);
    }
    !found.words[0].contexts.is_empty()
}

/// A word, a zero byte, affix rules, a zero byte, a dictionary: looked up in it, and in it as a list of words.
pub(crate) fn lexicon(input: &[u8]) -> bool {
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let (Some(word), Some(affixes), Some(words)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Ok(word) = std::str::from_utf8(word) else {
        return false;
    };
    file("a.aff", affixes);
    let lexicons = [file("a.dic", words), file("a.txt", words)].map(|path| Lexicon::open(&[path]));
    for lexicon in lexicons.iter().flatten() {
        lexicon.contains(word);
    }
    lexicons.iter().all(Result::is_ok)
}
