//! Contexts, against the Python package, against a naive scan, and on real text.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use longtail_corpus::{
    Choice, ContextError, ContextOptions, ContextReading, CorpusError, CorpusReader, Document,
    FoundContexts, ReadOptions, SentenceRule, find_contexts,
};
use proptest::prelude::*;
use unicode_segmentation::UnicodeSegmentation;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");

fn find(
    texts: &[impl AsRef<str>],
    words: &[&str],
    options: &ContextOptions,
) -> Result<FoundContexts, ContextError> {
    let documents: Vec<Document> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| Document::from_text(index, text.as_ref()))
        .collect();
    let words: Vec<String> = words.iter().map(|&word| word.into()).collect();
    find_contexts(
        || documents.clone().into_iter().map(Ok::<_, CorpusError>),
        &words,
        options,
    )
}

fn top(window: usize, contexts: usize) -> ContextOptions {
    ContextOptions::default()
        .with_window(window)
        .with_contexts(contexts)
        .with_choice(Choice::TopK)
}

/// Two words may share a context, each in a document of its own: each names the file and row of its own.
#[test]
fn words_that_share_a_context_name_their_own_documents() {
    let document = |index: usize, file: &str, row, text: &str| {
        let mut document = Document::from_text(index, text);
        (document.file, document.row) = (Arc::new(PathBuf::from(file)), row);
        document
    };
    let documents = [
        document(0, "a.txt", 0, "Nothing here."),
        document(1, "a.txt", 1, "Then came the great storm."),
        document(
            2,
            "b.txt",
            0,
            "Then came the great whale. Then came the great storm.",
        ),
        document(3, "b.txt", 1, "Then came the great calm."),
    ];
    for reading in [ContextReading::Corrected, ContextReading::Liu2025] {
        let options = top(3, 5).with_reading(reading);
        let words = ["storm", "storm.", "whale", "whale.", "calm", "calm."].map(String::from);
        let found = find_contexts(
            || documents.clone().into_iter().map(Ok::<_, CorpusError>),
            &words,
            &options,
        )
        .unwrap();
        let places: Vec<_> = found
            .words
            .iter()
            .flat_map(|word| &word.contexts)
            .map(|c| (c.document, c.file.to_str().unwrap(), c.row, &*c.text))
            .collect();
        let text = places[0].3;
        assert_eq!(
            places,
            [
                (1, "a.txt", 1, text),
                (2, "b.txt", 0, text),
                (3, "b.txt", 1, text)
            ]
        );
        assert!(text.starts_with("Then came the great"));
    }
}

/// `tests/golden/tiny-neox/contexts.json`: the Python package on a list of sentences; every word, context, number and the order.
#[test]
fn contexts_match_the_python_package() {
    let golden: serde_json::Value = serde_json::from_slice(
        &std::fs::read(format!("{GOLDEN}/tiny-neox/contexts.json")).unwrap(),
    )
    .unwrap();
    let strings = |key: &str| -> Vec<&str> {
        golden[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap())
            .collect()
    };
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let options = top(
        number(&golden["min_window_size"]) as usize,
        number(&golden["n_contexts"]) as usize,
    )
    .with_reading(ContextReading::Liu2025)
    .with_sentences(SentenceRule::Document);
    let found = find(&strings("sentences"), &strings("words"), &options).unwrap();
    assert_eq!(serde_json::to_value(&found).unwrap(), golden["selected"]);
    assert_eq!(
        found.windows,
        number(&golden["corpus_stats"]["total_windows"])
    );
}

#[test]
fn contexts_are_byte_exact() {
    let texts = [
        "  He said: “Call  me Ishmael”, and the\nwhale — the White whale-hunter’s whale — rose. A whale!",
        "No such word here.",
    ];
    let found = find(
        &texts,
        &["whale", "whale-hunter’s", "Ishmael", "walrus", "whale"],
        &top(2, 9),
    )
    .unwrap();
    assert_eq!(
        (found.documents, found.sentences, found.repeated),
        (2, 3, 1)
    );
    let [whale, hunter, ishmael, walrus] = &found.words[..] else {
        panic!("{} words", found.words.len())
    };
    let contexts = |word: &longtail_corpus::WordContexts| {
        word.contexts
            .iter()
            .map(|c| c.text.clone())
            .collect::<Vec<_>>()
    };
    let sentence =
        "He said: “Call  me Ishmael”, and the\nwhale — the White whale-hunter’s whale — rose. ";
    let before = |word: &str, nth: usize| {
        sentence[..sentence.match_indices(word).nth(nth).unwrap().0].to_owned()
    };
    assert_eq!(
        contexts(whale),
        [before("whale", 0), before("whale", 1), before("whale", 2)]
    );
    assert_eq!(contexts(hunter), [before("whale-hunter’s", 0)]);
    assert_eq!(contexts(ishmael), [before("Ishmael", 0)]);
    assert_eq!(
        (
            walrus.word.as_str(),
            walrus.occurrences,
            walrus.contexts.len()
        ),
        ("walrus", 0, 0)
    );
    for word in &found.words {
        for context in &word.contexts {
            assert_eq!(
                &texts[context.document][context.start..context.word.start],
                context.text
            );
            assert_eq!(texts[context.document][context.word.clone()], word.word);
        }
    }
}

#[test]
fn frequencies_are_of_what_follows() {
    let texts = [
        "the white whale",
        "the white whale",
        "the white shark",
        "the white",
        "of whales the white whale",
    ];
    let found = find(&texts, &["whale", "shark"], &top(2, 9)).unwrap();
    let whale = &found.words[0].contexts[0];
    assert_eq!((whale.text.as_str(), whale.count), ("the white ", 2));
    assert!((whale.frequency - 2.0 / 3.0).abs() < 1e-12);
    assert!((whale.log_freq_per_million() - (2e6f64 / 3.0).log10()).abs() < 1e-12);
    let second = &found.words[0].contexts[1];
    assert_eq!(
        (second.text.as_str(), second.count, second.frequency),
        ("of whales the white ", 1, 1.0)
    );
}

/// A sample is drawn from the distinct contexts, the same for the same seed whatever the threads, another for another.
#[test]
fn random_contexts_depend_on_the_seed_only() {
    let corpus = CorpusReader::open(
        &[format!("{DATA}/corpus/held-out.jsonl")],
        ReadOptions::default(),
    )
    .unwrap();
    let words: Vec<String> = ["the", "of", "whale", "government"]
        .map(String::from)
        .to_vec();
    let draw = |seed| {
        find_contexts(
            || corpus.documents(),
            &words,
            &ContextOptions::default().with_choice(Choice::Random { seed }),
        )
        .unwrap()
    };
    let first = draw(1);
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    assert_eq!(first, threads.install(|| draw(1)));
    assert_ne!(first, draw(2));
    for word in &first.words[..2] {
        assert_eq!(word.contexts.len(), 20);
        let distinct: BTreeSet<&str> = word.contexts.iter().map(|c| c.text.as_str()).collect();
        assert_eq!(distinct.len(), 20);
    }
}

#[test]
fn impossible_requests_are_errors() {
    assert!(matches!(
        find(&["a b"], &[], &top(1, 1)),
        Err(ContextError::NoWords)
    ));
    assert!(matches!(
        find(&["a b"], &["b"], &top(0, 1)),
        Err(ContextError::Zero { name: "window" })
    ));
    assert!(matches!(
        find(&["a b"], &["b"], &top(1, 0)),
        Err(ContextError::Zero { name: "contexts" })
    ));
    let missing = CorpusReader::open(
        &[format!("{DATA}/corpus/held-out.jsonl")],
        ReadOptions::default().with_column("body"),
    )
    .unwrap();
    assert!(matches!(
        find_contexts(|| missing.documents(), &["b".into()], &top(1, 1)),
        Err(ContextError::Corpus(_))
    ));
}

/// Every place where a target stands between Unicode word boundaries with enough words before it: target by target, by searching the text.
fn naive(texts: &[String], word: &str, window: usize) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (document, text) in texts.iter().enumerate() {
        let words: Vec<(usize, usize)> = text
            .unicode_word_indices()
            .map(|(at, word)| (at, at + word.len()))
            .collect();
        for at in 0..text.len() {
            let fits = text.is_char_boundary(at) && text[at..].starts_with(word);
            let before = words.iter().filter(|(_, end)| *end <= at).count();
            if fits
                && words.iter().any(|w| w.0 == at)
                && words.iter().any(|w| w.1 == at + word.len())
                && before >= window
            {
                found.push((document, at));
            }
        }
    }
    found
}

proptest! {
    /// The index finds exactly what a naive scan finds, and the counts of the contexts add up to it.
    #[test]
    fn the_index_finds_what_a_naive_scan_finds(
        texts in proptest::collection::vec("((whale|whales|a|well-known|don't|well|é|кит|,|\\.|-| |  |\\n)[ ,]?){0,20}", 1..6),
        window in 1usize..4,
    ) {
        let words = ["whale", "a", "well-known", "well", "don't", "é", "кит", "known", "whale a"];
        let options = top(window, 1000).with_sentences(SentenceRule::Document);
        let found = find(&texts, &words, &options).unwrap();
        for word in &found.words {
            let expected = naive(&texts, &word.word, window);
            prop_assert_eq!(word.occurrences, expected.len() as u64, "{}", &word.word);
            prop_assert_eq!(word.contexts.iter().map(|c| c.count).sum::<u64>(), word.occurrences);
            let places: BTreeSet<(usize, usize)> = word.contexts.iter().map(|c| (c.document, c.word.start)).collect();
            prop_assert!(places.iter().all(|place| expected.contains(place)));
            let start = |text: &str| text.len() - text.trim_start().len();
            let distinct: BTreeSet<&str> = expected.iter().map(|&(document, at)| &texts[document][start(&texts[document])..at]).collect();
            prop_assert_eq!(word.contexts.iter().map(|c| c.text.as_str()).collect::<BTreeSet<_>>(), distinct);
            prop_assert!(word.contexts.windows(2).all(|pair| pair[0].count >= pair[1].count));
        }
    }
}
