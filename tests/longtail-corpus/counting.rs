//! Token counts and packed sequences, against the counts that trained tiny-neox and by their own laws.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::fs;

use longtail_corpus::{
    CorpusReader, CountsError, Document, KnownTexts, ReadOptions, Split, TokenCounts,
    TokenizeError, count_tokens, load_tokenizer, n_tokens, pack_sequences, write_counts,
};
use proptest::prelude::*;
use tokenizers::Tokenizer;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");

/// `<|endoftext|>`, BOS and EOS of both tokenizers.
const EOS: u32 = 0;

fn tiny() -> Tokenizer {
    load_tokenizer(format!("{DATA}/tiny-neox/tokenizer.json")).unwrap()
}

fn documents(
    texts: Vec<String>,
) -> impl Iterator<Item = Result<Document, longtail_corpus::CorpusError>> + Send {
    let texts = texts.into_iter().enumerate();
    texts.map(|(index, text)| Ok(Document::from_text(index, text)))
}

/// Ids counted one document after the other, each tokenized whole.
fn naive_counts(texts: &[String], tokenizer: &Tokenizer, d_vocab: usize) -> Vec<u64> {
    let mut counts = vec![0; d_vocab];
    for text in texts {
        for &id in tokenizer.encode(text.as_str(), false).unwrap().get_ids() {
            counts[id as usize] += 1;
        }
    }
    counts
}

/// `train-unigrams.npy` holds the counts over the training text, one EOS before each document.
#[test]
fn training_counts_of_tiny_neox_come_out() {
    let corpus = CorpusReader::open(
        &[format!("{DATA}/corpus/train.jsonl.gz")],
        ReadOptions::default(),
    )
    .unwrap();
    let tally = count_tokens(corpus.documents(), &tiny(), 4096, Some(EOS)).unwrap();
    let expected = TokenCounts::read(format!("{DATA}/tiny-neox/train-unigrams.npy"), 4096).unwrap();
    assert_eq!(tally.documents, 7395);
    assert_eq!(tally.to_counts().unwrap().total(), 2_987_320);
    assert_eq!(tally.counts, expected.as_slice());
}

/// The way by distinct chunks gives what whole documents give, with Pythia's tokenizer too, whose added tokens are runs of spaces.
#[test]
fn pythia_counts_are_those_of_whole_documents() {
    let tokenizer = load_tokenizer(format!("{DATA}/pythia/tokenizer.json")).unwrap();
    assert_eq!(n_tokens(&tokenizer), 50_277);
    let corpus = CorpusReader::open(
        &[format!("{DATA}/corpus/held-out.jsonl")],
        ReadOptions::default().with_rows(0..100),
    )
    .unwrap();
    let mut texts: Vec<String> = corpus.documents().map(|d| d.unwrap().text).collect();
    texts.push(
        "if x:\n        return  y \n\n\n    # <|endoftext|> here\r\n\tend\u{a0} e\u{301} don't  "
            .into(),
    );
    let tally = count_tokens(documents(texts.clone()), &tokenizer, 50_304, None).unwrap();
    assert_eq!(tally.counts, naive_counts(&texts, &tokenizer, 50_304));
}

#[test]
fn packed_sequences_are_the_stream_cut() {
    let tokenizer = tiny();
    let texts: Vec<String> = [
        "Call me Ishmael.",
        "Some years ago, never mind how long precisely.",
        "",
        "The whale.",
    ]
    .map(String::from)
    .to_vec();
    let mut stream = Vec::new();
    for (k, text) in texts.iter().enumerate() {
        stream.extend(std::iter::repeat_n(EOS, usize::from(k > 0)));
        stream.extend_from_slice(tokenizer.encode(text.as_str(), false).unwrap().get_ids());
    }
    let packed = pack_sequences(documents(texts.clone()), &tokenizer, EOS, EOS, 6).unwrap();
    assert_eq!((packed.documents, packed.tokens), (4, stream.len()));
    assert_eq!(packed.dropped_tokens, stream.len() % 5);
    assert_eq!(packed.sequences.len(), stream.len() / 5);
    // The first document fills the first sequences, and the last one is in the last.
    assert_eq!(packed.most_from.len(), packed.sequences.len());
    assert_eq!(packed.most_from[0], 0);
    assert!(packed.most_from.is_sorted(), "{:?}", packed.most_from);
    // Documents go by their row in the corpus, whatever of it is read.
    let later = documents(texts).map(|document| {
        document.map(|document| Document::from_text(document.index + 40, document.text))
    });
    let later = pack_sequences(later, &tokenizer, EOS, EOS, 6).unwrap();
    let moved: Vec<usize> = packed.most_from.iter().map(|row| row + 40).collect();
    assert_eq!(later.most_from, moved);
    for (sequence, piece) in packed.sequences.iter().zip(stream.chunks_exact(5)) {
        assert_eq!(sequence[0], EOS);
        assert_eq!(&sequence[1..], piece);
    }
    let err =
        pack_sequences(documents(vec!["whale".into()]), &tokenizer, EOS, EOS, 64).unwrap_err();
    assert!(matches!(err, TokenizeError::TooShort { .. }), "{err}");
    let err = pack_sequences(documents(vec!["whale".into()]), &tokenizer, EOS, EOS, 1).unwrap_err();
    assert!(
        matches!(err, TokenizeError::ContextLength { found: 1 }),
        "{err}"
    );
}

#[test]
fn a_token_past_the_vocabulary_is_an_error() {
    let err = count_tokens(documents(vec!["whale".into()]), &tiny(), 10, None).unwrap_err();
    assert!(
        matches!(err, TokenizeError::Vocabulary { d_vocab: 10, .. }),
        "{err}"
    );
}

#[test]
fn counts_files_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let expected = TokenCounts::new(vec![5, 0, 2], 3).unwrap();
    fs::write(path("list.json"), "[5, 0, 2]").unwrap();
    fs::write(path("object.json"), "{\"2\": 2, \"0\": 5}").unwrap();
    write_counts(
        fs::File::create(path("a.parquet")).unwrap(),
        &expected,
        &tiny(),
        &[("tokenizer_sha256".into(), "abc".into())],
    )
    .unwrap();
    fs::write(path("a.CSV"), "\u{feff}token_id, count\n0,5\n2 , 2.0\n").unwrap();
    fs::write(path("marked.json"), "\u{feff}[5, 0, 2.0]").unwrap();
    for name in [
        "list.json",
        "object.json",
        "a.parquet",
        "a.CSV",
        "marked.json",
    ] {
        assert_eq!(
            TokenCounts::read(path(name), 3).unwrap(),
            expected,
            "{name}"
        );
    }
    for (dtype, bytes) in [
        (
            "<i8",
            [5i64, 0, 2]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>(),
        ),
        (
            ">i4",
            [5i32, 0, 2].iter().flat_map(|v| v.to_be_bytes()).collect(),
        ),
        (
            "<u8",
            [5u64, 0, 2].iter().flat_map(|v| v.to_le_bytes()).collect(),
        ),
    ] {
        fs::write(path("a.npy"), npy(dtype, "(3,)", &bytes)).unwrap();
        assert_eq!(
            TokenCounts::read(path("a.npy"), 3).unwrap(),
            expected,
            "{dtype}"
        );
    }
}

fn npy(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn wrong_counts_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let files: [(&str, Vec<u8>, &str); 18] = [
        (
            "negative.npy",
            npy("<i8", "(2,)", &[1i64, -2].map(i64::to_le_bytes).concat()),
            "token 1 has count -2",
        ),
        (
            "float.npy",
            npy("<f8", "(1,)", &1f64.to_le_bytes()),
            "it holds floating-point numbers (dtype `<f8`), expected integers",
        ),
        (
            "matrix.npy",
            npy("<i8", "(1, 1)", &1i64.to_le_bytes()),
            "has shape [1, 1], expected one dimension",
        ),
        (
            "cut.npy",
            npy("<i8", "(9,)", &1i64.to_le_bytes()),
            "it ends after 1 of the 9 values",
        ),
        (
            "huge.npy",
            npy("<i8", "(99999999999,)", &1i64.to_le_bytes()),
            "it ends after 1 of the 99999999999 values",
        ),
        (
            "long.json",
            b"[1, 2, 3, 4, 5]".to_vec(),
            "5 token counts for a vocabulary of 4",
        ),
        (
            "zero.json",
            b"[0, 0]".to_vec(),
            "all 4 token counts are zero",
        ),
        (
            "keys.json",
            b"{\"whale\": 1}".to_vec(),
            "key `whale` is not a token id",
        ),
        (
            "far.json",
            b"{\"99999999999\": 1}".to_vec(),
            "token id 99999999999 is over",
        ),
        (
            "counts.bin",
            b"".to_vec(),
            "has an unknown format: expected .npy, .json, .parquet",
        ),
        (
            "nested.json",
            b"{\"counts\": [5, 0, 2]}".to_vec(),
            "it holds a list of 3: if these are the counts, write them alone",
        ),
        (
            "half.json",
            b"[1, 0.5]".to_vec(),
            "token 1 has count `0.5`, expected a whole number",
        ),
        (
            "twice.json",
            b"{\"1\": 5, \"1\": 7}".to_vec(),
            "token 1 is listed twice",
        ),
        (
            "text.json",
            b"\"five\"".to_vec(),
            "expected a list of counts by token id",
        ),
        (
            "null.csv",
            b"token_id,count\n0,5\n1,\n".to_vec(),
            "column `count` of",
        ),
        (
            "below.csv",
            b"token_id,count\n0,-5\n".to_vec(),
            "token 0 has count -5",
        ),
        ("a.npz", b"PK\x03\x04".to_vec(), "is a zip archive"),
        (
            "lfs.npy",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "is a Git LFS pointer, not the data",
        ),
    ];
    for (name, bytes, expected) in files {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let err = TokenCounts::read(&path, 4).unwrap_err().to_string();
        assert!(err.contains(expected), "{name}: {err}");
    }
    let overflow = TokenCounts::new(vec![u64::MAX, 1], 2).unwrap_err();
    assert!(matches!(overflow, CountsError::Overflow));
    let counts = TokenCounts::new(vec![1, 1, 0, 3], 6).unwrap();
    assert_eq!((counts.listed(), counts.padded()), (4, 2));
    assert!(counts.check_tokenizer(4).is_ok());
    assert_eq!(
        counts.check_tokenizer(5).unwrap_err().to_string(),
        "token counts do not fit the tokenizer: 4 counts for 5 tokens"
    );
    assert_eq!(
        counts.check_tokenizer(3).unwrap_err().to_string(),
        "token counts do not fit the tokenizer: token 3 was seen 3 times, but the tokenizer ends at 2"
    );
}

#[test]
fn splits_and_known_texts_keep_documents_apart() {
    for share in [5.0, -0.1, f64::NAN] {
        let refused = Split::new(share, 3).unwrap_err().to_string();
        assert!(refused.contains(&format!("is {share}")), "{refused}");
    }
    let texts: Vec<String> = (0..500).map(|k| format!("document {}", k % 400)).collect();
    let split = Split::new(0.25, 3).unwrap();
    let held_out: Vec<Document> = documents(texts.clone())
        .map(Result::unwrap)
        .filter(|d| split.holds_out(d))
        .collect();
    assert!(
        (60..190).contains(&held_out.len()),
        "{} of 500",
        held_out.len()
    );
    let counted: Vec<Document> = documents(texts.clone())
        .map(Result::unwrap)
        .filter(|d| !split.holds_out(d))
        .collect();
    let known = KnownTexts::of(counted.into_iter().map(Ok)).unwrap();
    assert!(
        held_out.iter().all(|d| !known.contains(d)),
        "a text is on both sides"
    );
    assert_eq!(
        documents(texts.clone())
            .filter(|d| Split::new(0.0, 3).unwrap().holds_out(d.as_ref().unwrap()))
            .count(),
        0
    );
    assert_eq!(
        documents(texts)
            .filter(|d| Split::new(1.0, 3).unwrap().holds_out(d.as_ref().unwrap()))
            .count(),
        500
    );
}

/// Text with what splitting at spaces could get wrong: runs of white space, contractions, marks, special tokens.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ \\n\\t\\r]{1,4}",
        "[a-zA-Z']{1,8}",
        "\\PC{1,3}",
        Just("<|endoftext|>".to_owned()),
        Just("\u{a0}".to_owned()),
        Just("\u{180e} ".to_owned()),
        Just("e\u{301}".to_owned()),
        Just(" \u{301}".to_owned()),
        Just("    ".to_owned())
    ];
    proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Counting any text by chunks is counting it whole.
    #[test]
    fn chunks_do_not_change_the_tokens(texts in proptest::collection::vec(text(), 1..4)) {
        thread_local!(static TOKENIZERS: [(Tokenizer, usize); 2] = [(tiny(), 4096), (load_tokenizer(format!("{DATA}/pythia/tokenizer.json")).unwrap(), 50_304)]);
        TOKENIZERS.with(|tokenizers| {
            for (tokenizer, d_vocab) in tokenizers {
                let tally = count_tokens(documents(texts.clone()), tokenizer, *d_vocab, None).unwrap();
                prop_assert_eq!(&tally.counts, &naive_counts(&texts, tokenizer, *d_vocab));
            }
            Ok(())
        })?;
    }

    /// The counts of a corpus are the sum of the counts of its parts, however it is cut.
    #[test]
    fn counts_add_up_over_any_split(texts in proptest::collection::vec(text(), 0..8), cut in 0usize..8) {
        let tokenizer = tiny();
        let cut = cut.min(texts.len());
        let count = |texts: &[String]| count_tokens(documents(texts.to_vec()), &tokenizer, 4096, Some(EOS)).unwrap().counts;
        let whole = count(&texts);
        let parts: Vec<u64> = count(&texts[..cut]).iter().zip(count(&texts[cut..])).map(|(a, b)| a + b).collect();
        prop_assert_eq!(whole, parts);
    }
}
