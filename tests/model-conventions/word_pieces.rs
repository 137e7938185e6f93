//! What begins a word, against the tokenizers' own decoders.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use model_conventions::WordPieces;
use model_conventions::word_pieces::pieces_in_text;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn tokenizer(parts: Value) -> Tokenizer {
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    });
    for (key, part) in parts.as_object().unwrap() {
        json[key] = part.clone();
    }
    json.to_string().parse().unwrap()
}

/// A BPE that merges every word of `words`, letter by letter from the left, with `space` in front.
fn bpe(space: &str, words: &[&str]) -> Value {
    let mut vocab = vec!["<unk>".to_owned(), space.to_owned()];
    vocab.extend(('a'..='z').map(String::from));
    vocab.extend([",", "(", "Ã", "©", "<0x20>", "<0xC3>"].map(String::from));
    let mut merges = vec![];
    for word in words {
        let mut left = String::new();
        for c in word.chars() {
            if !left.is_empty() {
                let merged = format!("{left}{c}");
                if !vocab.contains(&merged) {
                    merges.push(json!([left, c.to_string()]));
                    vocab.push(merged);
                }
            }
            left.push(c);
        }
    }
    let vocab: serde_json::Map<String, Value> =
        vocab.into_iter().zip((0..).map(Value::from)).collect();
    json!({"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "byte_fallback": false,
        "dropout": null, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false})
}

fn vocab(tokens: &[&str]) -> Value {
    tokens
        .iter()
        .zip(0..)
        .map(|(token, id)| ((*token).to_owned(), Value::from(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn unigram_model() -> Value {
    let pieces = ["<unk>", "▁", "▁the", "▁whale", "whale", "s", "n", "a", "r"];
    let pieces: Vec<Value> = pieces
        .iter()
        .zip(1..)
        .map(|(piece, i)| json!([piece, -f64::from(i)]))
        .collect();
    json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false})
}

fn byte_level(add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true})
}

const WORDS: [&str; 3] = ["Ġthe", "Ġwhale", "whales"];

/// Where the tokenizer's decoder puts a space before a piece in the middle of a text, a word begins, and nowhere else.
#[track_caller]
fn agrees_with_decoder(name: &str, tokenizer: &Tokenizer) {
    let pieces = WordPieces::new(tokenizer, None).unwrap();
    let before = tokenizer
        .token_to_id("a")
        .or_else(|| tokenizer.token_to_id("s"))
        .unwrap();
    let alone = tokenizer.decode(&[before, before], false).unwrap();
    let (first, _) = alone.split_at(alone.len() / 2);
    let mut begin = 0;
    for id in 0..tokenizer.get_vocab_size(true) as u32 {
        let text = tokenizer.decode(&[before, id], false).unwrap();
        let inside = text.strip_prefix(first).unwrap();
        assert_eq!(
            pieces.begins(Some(before), id),
            inside.starts_with(' '),
            "{name}: {:?}",
            tokenizer.id_to_token(id)
        );
        assert_eq!(pieces.begins_after_word(id), Some(inside.starts_with(' ')));
        begin += usize::from(inside.starts_with(' '));
    }
    assert!(begin > 2, "{name}: {begin}");
    whole_words(name, tokenizer);
}

/// Pieces that are words are what running text has for them.
#[track_caller]
fn whole_words(name: &str, tokenizer: &Tokenizer) {
    let pieces = WordPieces::new(tokenizer, None).unwrap();
    let ids = pieces_in_text(tokenizer, "whale").unwrap();
    assert_eq!(ids.len(), 1, "{name}: {ids:?}");
    assert_eq!(pieces.word(ids[0]), Some("whale"), "{name}");
    let longer = pieces_in_text(tokenizer, "narwhale").unwrap();
    assert!(longer.len() > 1, "{name}");
    let text = tokenizer.encode("the whale", false).unwrap();
    let ids = text.get_ids();
    assert!(
        pieces.begins(Some(ids[ids.len() - 2]), ids[ids.len() - 1]),
        "{name}: {:?}",
        text.get_tokens()
    );
    for pair in longer.windows(2) {
        assert!(!pieces.begins(Some(pair[0]), pair[1]), "{name}");
    }
}

#[test]
fn byte_level_with_and_without_a_prefix_space() {
    for add in [false, true] {
        agrees_with_decoder(
            "ByteLevel",
            &tokenizer(
                json!({"model": bpe("Ġ", &WORDS), "pre_tokenizer": byte_level(add), "decoder": byte_level(add)}),
            ),
        );
    }
}

#[test]
fn byte_level_without_a_decoder_or_inside_a_sequence() {
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": " ?[a-z]+"}, "behavior": "Isolated", "invert": false}, byte_level(false)]});
    whole_words(
        "no decoder",
        &tokenizer(json!({"model": bpe("Ġ", &WORDS), "pre_tokenizer": split})),
    );
    let sequence = json!({"type": "Sequence", "decoders": [byte_level(false)]});
    agrees_with_decoder(
        "sequence",
        &tokenizer(json!({"model": bpe("Ġ", &WORDS), "pre_tokenizer": split, "decoder": sequence})),
    );
}

#[test]
fn metaspace_of_every_scheme() {
    let words = ["▁the", "▁whale", "whales"];
    for scheme in ["always", "first", "never"] {
        agrees_with_decoder(
            scheme,
            &tokenizer(
                json!({"model": bpe("▁", &words), "pre_tokenizer": metaspace(scheme), "decoder": metaspace(scheme)}),
            ),
        );
        whole_words(
            scheme,
            &tokenizer(json!({"model": bpe("▁", &words), "pre_tokenizer": metaspace(scheme)})),
        );
    }
    let old = json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true});
    agrees_with_decoder(
        "add_prefix_space",
        &tokenizer(json!({"model": bpe("▁", &words), "pre_tokenizer": old, "decoder": old})),
    );
}

/// The tokenizers of Llama 2 and Gemma: no pre-tokenizer, a normalizer that writes `▁`.
#[test]
fn replaced_spaces_with_byte_fallback() {
    let words = ["▁the", "▁whale", "whales"];
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend =
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
    let back = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let decoder = |strip: bool| {
        let mut decoders = vec![
            back.clone(),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        decoders
            .extend(strip.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})));
        json!({"type": "Sequence", "decoders": decoders})
    };
    agrees_with_decoder(
        "llama",
        &tokenizer(
            json!({"model": bpe("▁", &words), "normalizer": prepend, "decoder": decoder(true)}),
        ),
    );
    agrees_with_decoder(
        "gemma",
        &tokenizer(
            json!({"model": bpe("▁", &words), "normalizer": replace, "decoder": decoder(false)}),
        ),
    );
    // A decoder that leaves the mark.
    whole_words(
        "fuse alone",
        &tokenizer(
            json!({"model": bpe("▁", &words), "normalizer": replace, "decoder": {"type": "Fuse"}}),
        ),
    );
}

#[test]
fn unigram() {
    let sequence = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always")]});
    for pre_tokenizer in [metaspace("always"), sequence] {
        agrees_with_decoder(
            "Unigram",
            &tokenizer(
                json!({"model": unigram_model(), "pre_tokenizer": pre_tokenizer, "decoder": metaspace("always")}),
            ),
        );
    }
}

#[test]
fn word_piece_marks_what_continues() {
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocab(&["[UNK]", "the", "whale", "nar", "##whale", "##s", ",", "a"])});
    let bert = json!({"type": "BertPreTokenizer"});
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    for decoder in [decoder, Value::Null] {
        let tokenizer =
            tokenizer(json!({"model": model, "pre_tokenizer": bert, "decoder": decoder}));
        whole_words("WordPiece", &tokenizer);
        let pieces = WordPieces::new(&tokenizer, None).unwrap();
        let id = |token| tokenizer.token_to_id(token).unwrap();
        // A comma ends the word before it, whatever the decoder's clean-up does to the space.
        assert!(pieces.begins(Some(id("whale")), id(",")));
        assert!(!pieces.begins(Some(id("whale")), id("##s")));
        assert_eq!(pieces.word(id("##whale")), None);
    }
}

/// GPT-1 (a decoder that knows the suffix) and CLIP (a byte-level one that does not).
#[test]
fn an_end_of_word_suffix_marks_what_ends() {
    let model = json!({"type": "BPE", "unk_token": "<unk>", "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
        "dropout": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": vocab(&["<unk>", "a", "e", "h", "l", "n", "r", "t", "w", "a</w>", "e</w>", "th", "the</w>", "wh", "wha", "whal", "whale</w>"]),
        "merges": [["t", "h"], ["th", "e</w>"], ["w", "h"], ["wh", "a"], ["wha", "l"], ["whal", "e</w>"]]});
    let space = json!({"type": "WhitespaceSplit"});
    for decoder in [json!({"type": "BPEDecoder", "suffix": "</w>"}), Value::Null] {
        let tokenizer =
            tokenizer(json!({"model": model, "pre_tokenizer": space, "decoder": decoder}));
        whole_words("</w>", &tokenizer);
        let pieces = WordPieces::new(&tokenizer, None).unwrap();
        let id = |token| tokenizer.token_to_id(token).unwrap();
        assert!(pieces.begins(None, id("wh")));
        assert!(pieces.begins(Some(id("the</w>")), id("wh")));
        assert!(!pieces.begins(Some(id("n")), id("whale</w>")));
        // Whatever comes behind a word begins the next: the boundary has all the mass.
        assert!((0..17).all(|id| pieces.begins_after_word(id) == Some(true)));
        assert_eq!(pieces.begins_after_word(17), None);
        assert_eq!(pieces.word(id("whal")), None);
    }
}

#[test]
fn plain_spaces_and_whole_words() {
    whole_words(
        "plain",
        &tokenizer(
            json!({"model": bpe(" ", &[" the", " whale", "whales"]), "decoder": {"type": "Fuse"}}),
        ),
    );
    let model = json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab(&["<unk>", "the", "whale"])});
    let tokenizer = tokenizer(json!({"model": model, "pre_tokenizer": {"type": "Whitespace"}}));
    let pieces = WordPieces::new(&tokenizer, None).unwrap();
    assert!(pieces.begins(Some(1), 2) && pieces.word(2) == Some("whale"));
}

#[test]
fn what_is_not_known_is_an_error_until_it_is_said() {
    let tokenizer = tokenizer(
        json!({"model": bpe("_", &["_the", "_whale"]), "pre_tokenizer": {"type": "Whitespace"}}),
    );
    let message = WordPieces::new(&tokenizer, None).unwrap_err().to_string();
    assert!(message.contains("which pieces begin a word"), "{message}");
    let pieces = WordPieces::new(&tokenizer, Some("_")).unwrap();
    let id = tokenizer.token_to_id("_whale").unwrap();
    assert!(pieces.begins(None, id) && pieces.word(id) == Some("whale"));
    assert!(
        WordPieces::new(&tokenizer, Some("#"))
            .unwrap_err()
            .to_string()
            .contains('#')
    );
}
