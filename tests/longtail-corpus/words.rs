//! Long-tail words from the real Pythia tokenizer and counts, and from small corpora.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::fs;

use longtail_corpus::{
    Band, BandSpec, Bound, CasePolicy, CorpusError, CorpusReader, Document, Frequencies, Lexicon,
    LongTailWords, ReadOptions, TokenCounts, WordCounts, WordOptions, load_tokenizer,
    long_tail_words, n_tokens,
};
use model_conventions::WordPieces;
use tokenizers::Tokenizer;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");

fn lexicon() -> Lexicon {
    Lexicon::open(&[format!("{DATA}/hunspell/en_US")]).unwrap()
}

fn long_tail() -> BandSpec {
    BandSpec::default()
        .with_lower(Bound::Elbow)
        .with_upper(Bound::RankPercentile(20.0))
}

/// Tokenizer, frequencies and long-tail band of a folder of the bundled data.
fn read(folder: &str, counts: &str, d_vocab: usize) -> (Tokenizer, Frequencies, Band) {
    let tokenizer = load_tokenizer(format!("{DATA}/{folder}/tokenizer.json")).unwrap();
    let counts = TokenCounts::read(format!("{DATA}/{folder}/{counts}"), d_vocab).unwrap();
    let frequencies = Frequencies::add_one(&counts);
    let band = long_tail()
        .resolve(&frequencies, n_tokens(&tokenizer))
        .unwrap();
    (tokenizer, frequencies, band)
}

fn pythia(lexicon: Option<&Lexicon>, options: WordOptions) -> LongTailWords {
    let (tokenizer, frequencies, band) = read("pythia", "unigrams.npy", 50_304);
    let pieces = WordPieces::new(&tokenizer, None).unwrap();
    long_tail_words(
        &band,
        &frequencies,
        &tokenizer,
        &pieces,
        lexicon,
        None,
        options,
    )
    .unwrap()
}

#[test]
fn the_dictionary_knows_words() {
    let lexicon = lexicon();
    for word in [
        "whale",
        "whales",
        "Whale",
        "WHALE",
        "Ahab",
        "unhappiest",
        "don't",
    ] {
        assert!(lexicon.contains(word), "{word}");
    }
    for word in ["wat", "ahab", "whal", "ing", "tion", "qwzxy"] {
        assert!(!lexicon.contains(word), "{word}");
    }
}

#[test]
fn pythia_words_are_words() {
    let found = pythia(Some(&lexicon()), WordOptions::default());
    assert!(
        (8_000..20_000).contains(&found.words.len()),
        "{} words",
        found.words.len()
    );
    let left_out = found.left_out;
    let accounted = found.words.len()
        + left_out.not_word_initial
        + left_out.not_letters
        + left_out.too_short
        + left_out.upper_case
        + left_out.not_whole
        + left_out.not_in_lexicon
        + left_out.merged;
    assert_eq!(accounted, found.candidates);
    assert!(
        left_out.not_in_lexicon > 0 && left_out.not_word_initial > 0,
        "{left_out:?}"
    );
    assert!(!found.words.iter().any(|w| w.word == "wat"));
    let tokenizer = load_tokenizer(format!("{DATA}/pythia/tokenizer.json")).unwrap();
    for pair in found.words.windows(2) {
        assert!(pair[0].per_million <= pair[1].per_million);
        assert_ne!(pair[0].word, pair[1].word);
    }
    for word in &found.words {
        assert_eq!(
            tokenizer
                .encode(format!(" {}", word.word), false)
                .unwrap()
                .get_ids(),
            word.token_ids
        );
        assert!((word.zipf - (word.per_million * 1e3).log10()).abs() < 1e-9);
    }
}

#[test]
fn case_policies_differ_as_stated() {
    let keep = pythia(Some(&lexicon()), WordOptions::default());
    let lower = pythia(
        Some(&lexicon()),
        WordOptions::default().with_case(CasePolicy::Lower),
    );
    let lower_only = pythia(
        Some(&lexicon()),
        WordOptions::default().with_case(CasePolicy::LowerOnly),
    );
    assert!(
        keep.words
            .iter()
            .any(|w| w.word.starts_with(char::is_uppercase))
    );
    assert!(
        lower
            .words
            .iter()
            .chain(&lower_only.words)
            .all(|w| w.word == w.word.to_lowercase())
    );
    let left_out = lower.left_out;
    assert_eq!(
        lower.candidates,
        lower.words.len()
            + left_out.not_word_initial
            + left_out.not_letters
            + left_out.too_short
            + left_out.not_whole
            + left_out.not_in_lexicon
            + left_out.merged
            + left_out.with_other_spellings_outside_band
    );
    assert!(left_out.with_other_spellings_outside_band > 100);
    // Spellings are added up before the band is tested: that ` THAT` is rare makes no rare word of `that`.
    let has = |found: &LongTailWords, word: &str| found.words.iter().any(|w| w.word == word);
    assert!(has(&keep, "THAT") && !has(&lower, "that"));
    assert!(has(&lower, "whale"));
    assert!(lower_only.words.len() < lower.words.len() && lower_only.left_out.upper_case > 0);
}

/// Counting a corpus adds words of several pieces whose own frequency is in the band, and gives every word its own count.
#[test]
fn words_of_several_pieces_come_from_corpus_counts() {
    let (tokenizer, frequencies, band) = read("tiny-neox", "train-unigrams.npy", 4096);
    let corpus = CorpusReader::open(
        &[format!("{DATA}/corpus/held-out.jsonl")],
        ReadOptions::default(),
    )
    .unwrap();
    let counts = WordCounts::count(corpus.documents()).unwrap();
    let found = long_tail_words(
        &band,
        &frequencies,
        &tokenizer,
        &WordPieces::new(&tokenizer, None).unwrap(),
        Some(&lexicon()),
        Some(&counts),
        WordOptions::default(),
    )
    .unwrap();
    let several: Vec<_> = found
        .words
        .iter()
        .filter(|w| w.token_ids.len() > 1)
        .collect();
    assert!(
        several.len() > 100,
        "{} words of several pieces",
        several.len()
    );
    for word in &found.words {
        assert_eq!(word.count, counts.get(&word.word), "{}", word.word);
    }
    for word in several {
        let q = word.per_million * 1e-6;
        assert!(
            band.min_frequency * (1.0 - 1e-9) <= q && q <= band.max_frequency * (1.0 + 1e-9),
            "{}",
            word.word
        );
    }
}

/// As above, of words of several pieces.
#[test]
fn spellings_in_a_corpus_are_added_up_before_the_band_is_tested() {
    let (tokenizer, frequencies, band) = read("tiny-neox", "train-unigrams.npy", 4096);
    // One spelling of `zymurgy` is as frequent as a word of the band, the three together are not.
    let text = "zymurgy ZYMURGY Zymurgy ".repeat(15)
        + &"quokka Quokka ".repeat(3)
        + &"of the ".repeat(50_000);
    let document = Document::from_text(0, text);
    let counts = WordCounts::count(std::iter::once(Ok::<_, CorpusError>(document))).unwrap();
    let words = |case| {
        let found = long_tail_words(
            &band,
            &frequencies,
            &tokenizer,
            &WordPieces::new(&tokenizer, None).unwrap(),
            Some(&Lexicon::from_words(["zymurgy", "quokka"])),
            Some(&counts),
            WordOptions::default().with_case(case),
        )
        .unwrap();
        let words = found.words.into_iter().map(|w| (w.word, w.count));
        words.collect::<Vec<_>>()
    };
    let list = |words: &[(&str, u64)]| -> Vec<(String, u64)> {
        words.iter().map(|&(word, n)| (word.into(), n)).collect()
    };
    assert_eq!(
        words(CasePolicy::Keep),
        list(&[
            ("Quokka", 3),
            ("quokka", 3),
            ("ZYMURGY", 15),
            ("Zymurgy", 15),
            ("zymurgy", 15)
        ])
    );
    assert_eq!(words(CasePolicy::Lower), list(&[("quokka", 6)]));
}

#[test]
fn word_counts_are_of_unicode_words() {
    let texts = ["The whale, the WHALE; don't 42 x-ray.", "кит whale"];
    let documents = texts
        .iter()
        .enumerate()
        .map(|(index, text)| Ok::<_, CorpusError>(Document::from_text(index, *text)));
    let counts = WordCounts::count(documents.collect::<Vec<_>>().into_iter()).unwrap();
    for (word, count) in [
        ("whale", 2),
        ("WHALE", 1),
        ("The", 1),
        ("don't", 1),
        ("x", 1),
        ("ray", 1),
        ("кит", 1),
        ("42", 0),
    ] {
        assert_eq!(counts.get(word), count, "{word}");
    }
    assert_eq!((counts.total(), counts.distinct()), (9, 8));
}

#[test]
fn lexicons_load_or_say_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("list.txt"), "# comment\nwhale\r\nAhab\n").unwrap();
    let list = Lexicon::open(&[path("list.txt")]).unwrap();
    assert!(
        list.contains("whale")
            && list.contains("Whale")
            && list.contains("AHAB")
            && !list.contains("ahab")
            && !list.contains("# comment")
    );
    fs::write(path("latin.aff"), b"SET ISO8859-1\n").unwrap();
    fs::write(path("latin.dic"), b"1\nna\xefve\n").unwrap();
    assert!(
        Lexicon::open(&[path("latin.dic")])
            .unwrap()
            .contains("naïve")
    );
    fs::write(path("empty.txt"), "# nothing\n").unwrap();
    fs::write(path("koi.aff"), "SET KOI8-R\n").unwrap();
    fs::write(path("koi.dic"), "0\n").unwrap();
    fs::write(path("half.aff"), "SET UTF-8\n").unwrap();
    for (name, expected) in [
        ("empty.txt", "is empty"),
        ("koi.aff", "is in KOI8-R, expected UTF-8 or ISO8859-1"),
        ("half", "half.dic` not found"),
        (
            "missing",
            "is neither a word list (.txt) nor a Hunspell dictionary",
        ),
        ("missing.txt", "missing.txt` not found"),
    ] {
        let err = Lexicon::open(&[path(name)]).unwrap_err().to_string();
        assert!(err.contains(expected), "{name}: {err}");
    }
}
