//! Words under intervention, against other people's programs and against the model's own forward.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;

use neox_core::{
    ForwardError, HookError, Hooks, LoadOptions, Model, NoHooks, Recorder, Site, Text,
};
use neuron_ablate::{
    Intervention, InterventionError, InterventionHooks, Join, NeuronId, NeuronSite, Operation,
    ScoreError, Scorer, WordBoundary, WordRequest, WordScore, WordStart, WordVocabulary,
};
use surprisal_metrics::{MetricError, WordForm};
use tch::{Kind, Tensor};

const LAYER: usize = 3;
const EOS: i64 = 0;

struct Tiny {
    model: Model,
    text: Text,
    words: WordVocabulary,
}

impl Tiny {
    fn load() -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tiny-neox");
        let model = Model::load(&root.join("step4000"), &LoadOptions::default()).unwrap();
        let text = Text::from_file(&root.join("tokenizer.json")).unwrap();
        let words = WordVocabulary::new(&text, EOS, model.config().vocab_size as usize).unwrap();
        Self { model, text, words }
    }

    fn scorer(&self, batch_tokens: usize) -> Scorer<'_> {
        Scorer::new(&self.model, &self.words, batch_tokens).unwrap()
    }

    /// Words of some length under several contexts.
    fn requests(&self) -> Vec<WordRequest> {
        [
            (
                "The annexation of many small German States to Prussia and the",
                "reorganization",
            ),
            (
                "The annexation of many small German States to Prussia and the",
                "constitution",
            ),
            ("The annexation of many small German States", "to"),
            ("", "whale"),
            ("He peremptorily denied for example, that any", "whale"),
            ("He said \"", "harpoon"),
            ("I", "submit"),
        ]
        .iter()
        .map(|(context, word)| {
            WordRequest::joint(&self.text, Some(EOS), context, word, Join::Space).unwrap()
        })
        .collect()
    }
}

fn golden(name: &str) -> serde_json::Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/tiny-neox")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn neurons(indices: &[usize]) -> Vec<NeuronId> {
    indices
        .iter()
        .map(|&index| NeuronId {
            layer: LAYER,
            neuron: index,
        })
        .collect()
}

fn at_post(name: &str, indices: &[usize], operation: Operation) -> Intervention {
    Intervention::new(name, NeuronSite::Post, neurons(indices), operation).unwrap()
}

/// Made by the PyPI package wordsprobability 0.17 on step4000, nats: every word of 80 sentences,
/// corrected and uncorrected.
#[test]
fn words_match_wordsprobability() {
    let (tiny, golden) = (Tiny::load(), golden("word-surprisal.json"));
    let mut requests = Vec::new();
    let mut per_sentence = Vec::new();
    for sentence in golden["sentences"].as_array().unwrap() {
        let words = WordRequest::words_of(&tiny.text, EOS, sentence.as_str().unwrap()).unwrap();
        per_sentence.push(requests.len());
        requests.extend(words);
    }
    let scores = tiny
        .scorer(4096)
        .score(&requests, &[Intervention::base()])
        .unwrap();
    let rows = golden["rows"].as_array().unwrap();
    assert_eq!(rows.len(), requests.len());
    for row in rows {
        let index =
            per_sentence[row[0].as_u64().unwrap() as usize] + row[1].as_u64().unwrap() as usize;
        let sentence = &golden["sentences"][row[0].as_u64().unwrap() as usize];
        let score = &scores[index][0];
        assert_eq!(&*score.text, row[2].as_str().unwrap());
        assert_eq!(
            &sentence.as_str().unwrap()[score.span.clone()],
            &*score.text
        );
        for (form, expected) in [
            (WordForm::Corrected, &row[3]),
            (WordForm::Uncorrected, &row[4]),
        ] {
            let got = scores[index][0].surprisal_nats(form).unwrap();
            let expected = expected.as_f64().unwrap();
            assert!((got - expected).abs() <= 1e-4, "{row}, {form:?}: {got}");
        }
    }
}

/// Made by the Python package of Liu et al. (2025) on step4000, nats: all interventions at once.
#[test]
fn interventions_match_liu2025() {
    let (tiny, golden) = (Tiny::load(), golden("surprisal-interventions.json"));
    let set: Vec<usize> = golden["neurons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as usize)
        .collect();
    let at_pre = |name: &str, operation| {
        Intervention::new(name, NeuronSite::Pre, neurons(&set), operation).unwrap()
    };
    let interventions = [
        Intervention::base(),
        at_pre("zero", Operation::Set(vec![0.0; set.len()])),
        at_pre("full", Operation::Set(vec![1.0; set.len()])),
        at_pre("mean", Operation::LayerMean),
    ];
    let rows = golden["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 576);
    let requests: Vec<WordRequest> = rows
        .iter()
        .map(|row| {
            WordRequest::liu2025(
                &tiny.text,
                EOS,
                row[1].as_str().unwrap(),
                row[2].as_str().unwrap(),
                row[3].as_bool().unwrap(),
            )
            .unwrap()
        })
        .collect();
    let scorer = tiny.scorer(2048).without_boundaries();
    let scores = scorer.score(&requests, &interventions).unwrap();
    for (row, scores) in rows.iter().zip(&scores) {
        let which = interventions
            .iter()
            .position(|i| Some(i.name()) == row[0].as_str())
            .unwrap();
        let got = scores[which].surprisal_nats(WordForm::FirstPiece).unwrap();
        let expected = row[4].as_f64().unwrap();
        assert!((got - expected).abs() <= 1e-4, "{row}: {got}");
    }
}

#[track_caller]
fn assert_close(got: &WordScore, expected: &WordScore, atol: f64, case: &str) {
    let flat = |score: &WordScore| {
        let boundaries = [
            score.before.ln_begins,
            score.before.ln_eos,
            score.after.ln_begins,
            score.after.ln_eos,
        ];
        [score.ln_probs.clone(), boundaries.to_vec()].concat()
    };
    for (got, expected) in flat(got).iter().zip(flat(expected)) {
        assert!(
            *got == expected || (got - expected).abs() <= atol,
            "{case}: {got} against {expected}"
        );
    }
}

fn all_kinds() -> Vec<Intervention> {
    let set = [3, 17, 42, 100, 200];
    let wide: Vec<usize> = (0..200).collect();
    vec![
        Intervention::base(),
        at_post("zero", &set, Operation::Set(vec![0.0; 5])),
        at_post(
            "mean",
            &set,
            Operation::Set(vec![0.1, -0.05, 0.2, 0.0, 0.4]),
        ),
        at_post("scaled", &set, Operation::Scale(3.0)),
        at_post("clip", &set, Operation::Clip(vec![0.05; 5])),
        at_post(
            "clamp",
            &set,
            Operation::Clamp {
                low: -0.02,
                high: 0.05,
            },
        ),
        Intervention::new(
            "clamp-before",
            NeuronSite::Pre,
            neurons(&set),
            Operation::Clamp {
                low: 0.0,
                high: f64::INFINITY,
            },
        )
        .unwrap(),
        at_post("wide", &wide, Operation::Set(vec![0.0; 200])),
        Intervention::new("pre", NeuronSite::Pre, neurons(&set), Operation::Scale(0.5)).unwrap(),
        Intervention::new(
            "other-layer",
            NeuronSite::Post,
            vec![
                NeuronId {
                    layer: 1,
                    neuron: 5,
                },
                NeuronId {
                    layer: 3,
                    neuron: 9,
                },
            ],
            Operation::Set(vec![1.0, -1.0]),
        )
        .unwrap(),
    ]
}

/// Requests scored together have the values that each has alone.
#[track_caller]
fn same_alone(
    scorer: &Scorer<'_>,
    requests: &[WordRequest],
    interventions: &[Intervention],
) -> Vec<Vec<WordScore>> {
    let together = scorer.score(requests, interventions).unwrap();
    for (request, together) in requests.iter().zip(&together) {
        let alone = scorer
            .score(std::slice::from_ref(request), interventions)
            .unwrap();
        for ((alone, together), intervention) in alone[0].iter().zip(together).zip(interventions) {
            assert_close(together, alone, 1e-5, intervention.name());
        }
    }
    together
}

#[test]
fn a_batch_says_what_single_texts_say() {
    let tiny = Tiny::load();
    let (requests, interventions) = (tiny.requests(), all_kinds());
    let scorer = tiny.scorer(4096);
    let together = same_alone(&scorer, &requests, &interventions);
    // Nor does it matter how many fit into a forward.
    for (a, b) in tiny
        .scorer(16)
        .score(&requests, &interventions)
        .unwrap()
        .iter()
        .zip(&together)
    {
        assert!(
            a.iter()
                .zip(b)
                .all(|(a, b)| (a.ln_probs[0] - b.ln_probs[0]).abs() < 1e-5)
        );
    }
}

/// The short way (one forward, low-rank change of the logits) against the model run with hooks.
#[test]
fn interventions_say_what_a_hooked_forward_says() {
    let tiny = Tiny::load();
    let (requests, interventions) = (tiny.requests(), all_kinds());
    let scores = tiny.scorer(4096).score(&requests, &interventions).unwrap();
    for (i, intervention) in interventions.iter().enumerate() {
        for (request, scores) in requests.iter().zip(&scores) {
            let tokens = Tensor::from_slice(&request.tokens).view([1, -1]);
            let mut hooks = InterventionHooks::new(intervention);
            let logits = tiny.model.forward(&tokens, None, &mut hooks).unwrap();
            let ln_probs = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
            for (piece, got) in request.word.clone().zip(&scores[i].ln_probs) {
                let expected = ln_probs.double_value(&[0, piece as i64 - 1, request.tokens[piece]]);
                assert!(
                    (got - expected).abs() < 2e-5,
                    "{}: {got} against {expected}",
                    intervention.name()
                );
            }
            let after = ln_probs.get(0).get(request.word.end as i64 - 1).exp();
            let begins: f64 = (1..4079)
                .filter(|&v| tiny.text.token(v).unwrap().starts_with('Ġ'))
                .map(|v| after.double_value(&[v]))
                .sum();
            assert!(
                (scores[i].after.ln_begins - begins.ln()).abs() < 2e-5,
                "{}",
                intervention.name()
            );
            assert!((scores[i].after.ln_eos - after.double_value(&[EOS]).ln()).abs() < 2e-5);
        }
    }
}

#[test]
fn pieces_are_the_same_without_boundaries() {
    let tiny = Tiny::load();
    let (requests, interventions) = (tiny.requests(), all_kinds());
    let with = tiny.scorer(4096).score(&requests, &interventions).unwrap();
    let scorer = tiny.scorer(4096).without_boundaries();
    let without = scorer.score(&requests, &interventions).unwrap();
    for (with, without) in with.iter().flatten().zip(without.iter().flatten()) {
        for (a, b) in with.ln_probs.iter().zip(&without.ln_probs) {
            // Other texts in other batches.
            assert!((a - b).abs() < 3e-5, "{a} against {b}");
        }
        assert!(without.surprisal_nats(WordForm::Uncorrected).is_ok());
        assert!(matches!(
            without.surprisal_nats(WordForm::Corrected),
            Err(MetricError::NoBoundaryMass { .. })
        ));
    }
}

/// Ablating nothing changes nothing: a factor of 1, and the values the neurons have anyway.
#[test]
fn an_intervention_that_changes_nothing_changes_nothing() {
    let tiny = Tiny::load();
    let requests = tiny.requests();
    let idle = [
        Intervention::base(),
        at_post("scale by 1", &[3, 17], Operation::Scale(1.0)),
        at_post("clip far above", &[3, 17], Operation::Clip(vec![1e6; 2])),
        at_post(
            "clamp far away",
            &[3, 17],
            Operation::Clamp {
                low: f64::NEG_INFINITY,
                high: 1e6,
            },
        ),
        Intervention::new(
            "pre",
            NeuronSite::Pre,
            neurons(&[3, 17]),
            Operation::Scale(1.0),
        )
        .unwrap(),
    ];
    for scores in tiny.scorer(4096).score(&requests, &idle).unwrap() {
        for (intervention, score) in idle.iter().zip(&scores) {
            assert_close(score, &scores[0], 1e-6, intervention.name());
        }
    }
    let active = [
        Intervention::base(),
        at_post("zero", &[3, 17, 42], Operation::Set(vec![0.0; 3])),
    ];
    let scores = tiny.scorer(4096).score(&requests, &active).unwrap();
    assert!(
        scores
            .iter()
            .any(|s| (s[0].ln_probs[0] - s[1].ln_probs[0]).abs() > 1e-3)
    );
}

#[test]
fn pieces_come_from_joint_tokenization() {
    let tiny = Tiny::load();
    let request = |context: &str, word: &str, join| {
        WordRequest::joint(&tiny.text, Some(EOS), context, word, join).unwrap()
    };
    let pieces = |r: &WordRequest| tiny.text.decode(&r.tokens[r.word.clone()]).unwrap();
    let spaced = request("I know", "that", Join::Space);
    assert_eq!(
        (pieces(&spaced).as_str(), spaced.start),
        (" that", WordStart::Space)
    );
    assert_eq!(request("I know ", "that", Join::AsIs), spaced);
    assert_eq!(request("I know", " that", Join::AsIs), spaced);
    let merged = request("I know th", "at", Join::AsIs);
    assert_eq!(
        (pieces(&merged).as_str(), merged.start),
        (" that", WordStart::Merged)
    );
    let quoted = request("He said \"", "whale", Join::AsIs);
    assert_eq!(quoted.start, WordStart::Inside);
    assert!(pieces(&quoted).ends_with("whale"));
    for break_ in ["\n", "\n\n", "\r\n"] {
        let line = request(&format!("Loomings{break_}"), "Whale", Join::AsIs);
        assert_eq!(line.start, WordStart::Line, "{break_:?}");
    }
    assert_eq!(
        request("Loomings\n ", "Whale", Join::AsIs).start,
        WordStart::Space
    );
    let first = request("", "Whale", Join::Space);
    assert_eq!(
        (first.start, first.word.start, pieces(&first).as_str()),
        (WordStart::Text, 1, "Whale")
    );
    let accents = request("“Où est le café, l’œuvre", "naïveté", Join::Space);
    assert_eq!(pieces(&accents), " naïveté");
    assert!(matches!(
        WordRequest::joint(&tiny.text, None, "", "whale", Join::Space),
        Err(neuron_ablate::RequestError::NothingBefore { .. })
    ));
    assert!(matches!(
        WordRequest::joint(&tiny.text, Some(EOS), "the", "", Join::Space),
        Err(neuron_ablate::RequestError::NoPiece { .. })
    ));
}

/// A tokenizer that cuts off each digit, as Llama's and SmolLM2's do, leaves the space before a number as a piece of its own: the number's
/// first piece, since it is what begins the word.
#[test]
fn the_space_before_a_number_is_its_first_piece() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox/tokenizer.json"
    );
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let byte_level = tokenizer["pre_tokenizer"].take();
    tokenizer["pre_tokenizer"] = serde_json::json!({
        "type": "Sequence",
        "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level],
    });
    // With the places of pieces as they are, and with the spaces trimmed off.
    for trim_offsets in [false, true] {
        tokenizer["post_processor"] = serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim_offsets, "use_regex": true,
        });
        let changed = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(changed.path(), tokenizer.to_string()).unwrap();
        let text = Text::from_file(changed.path()).unwrap();
        let request = |context: &str, word: &str, join| {
            let request = WordRequest::joint(&text, Some(EOS), context, word, join).unwrap();
            let pieces = request.tokens[request.word.clone()].iter();
            let pieces: Vec<String> = pieces.map(|id| text.decode(&[*id]).unwrap()).collect();
            (pieces, request.start)
        };
        let number = [" ", "1", "9", "1", "3"].map(String::from).to_vec();
        for (context, word, join) in [
            ("In the year", "1913", Join::Space),
            ("In the year ", "1913", Join::AsIs),
            ("In the year", " 1913", Join::AsIs),
        ] {
            let found = request(context, word, join);
            assert_eq!(found, (number.clone(), WordStart::Space));
        }
        // No space before it, and one that belongs to the piece itself.
        let quoted = request("\"", "1913", Join::AsIs);
        assert_eq!(quoted, (number[1..].to_vec(), WordStart::Inside));
        let after_line = request("In\n", "1913", Join::AsIs);
        assert_eq!(after_line, (number[1..].to_vec(), WordStart::Line));
        let word = request("In the", "year", Join::Space);
        assert_eq!(word, (vec![" year".to_owned()], WordStart::Space));
    }
}

/// Boundaries and the entropy where a word begins, against sums over the model's own probabilities.
#[test]
fn boundaries_and_entropies_are_sums_over_the_next_token() {
    let tiny = Tiny::load();
    let all = |text: &str, word| {
        WordRequest::joint(&tiny.text, Some(EOS), text, word, Join::AsIs).unwrap()
    };
    let requests = [
        all("They hunted the ", "whale"),
        all("Loomings\n", "Call"),
        all("He said, \"", "Call"),
    ];
    let active = [
        Intervention::base(),
        at_post("zero", &[3, 17], Operation::Set(vec![0.0; 2])),
    ];
    let next = |tokens: &[i64]| -> Vec<f64> {
        let tokens_tensor = Tensor::from_slice(tokens).view([1, -1]);
        let logits = tiny
            .model
            .forward(&tokens_tensor, None, &mut NoHooks)
            .unwrap();
        let last = logits
            .select(1, tokens.len() as i64 - 1)
            .to_kind(Kind::Double);
        Vec::try_from(last.softmax(-1, Kind::Double).view(-1)).unwrap()
    };
    let text_of = |id: usize| tiny.text.decode(&[id as i64]).unwrap();
    let mass = |p: &[f64], counts: &dyn Fn(&str) -> bool| -> f64 {
        let with = (0..p.len()).filter(|&id| id as i64 != EOS && counts(&text_of(id)));
        with.map(|id| p[id]).sum()
    };
    let spaced = |text: &str| text.starts_with(' ');
    let ends = |text: &str| {
        spaced(text)
            || text
                .starts_with(|c: char| c == '\n' || c.is_ascii_punctuation() || "“”‘’—".contains(c))
    };
    for boundary in [WordBoundary::Space, WordBoundary::SpacePunctuationNewline] {
        let words = WordVocabulary::new(&tiny.text, EOS, 4096)
            .unwrap()
            .with_boundary(&tiny.text, boundary)
            .unwrap();
        let scorer = Scorer::new(&tiny.model, &words, 4096).unwrap();
        let scores = scorer.score(&requests, &active).unwrap();
        for (request, scores) in requests.iter().zip(&scores) {
            let before = next(&request.tokens[..request.word.start]);
            let after = next(&request.tokens[..request.word.end]);
            let entropy: f64 = before.iter().map(|p| -p * p.ln()).sum();
            let close = |a: f64, b: f64, what: &str| {
                assert!(
                    (a - b).abs() < 2e-4,
                    "{what} {:?} {boundary:?}: {a} and {b}",
                    request.start
                );
            };
            close(scores[0].entropy_nats.unwrap(), entropy, "entropy");
            assert_eq!(scores[1].entropy_nats, None);
            let (expected, counts): (_, &dyn Fn(&str) -> bool) = match boundary {
                WordBoundary::Space => (mass(&before, &spaced), &spaced),
                WordBoundary::SpacePunctuationNewline => (mass(&before, &ends), &ends),
            };
            let expected = match request.start {
                WordStart::Space => expected,
                WordStart::Line => mass(&before, &|text| !spaced(text)),
                _ => 1.0,
            };
            close(scores[0].before.ln_begins, expected.ln(), "before");
            close(
                scores[0].after.ln_begins,
                mass(&after, counts).ln(),
                "after",
            );
        }
        assert_eq!(requests[1].start, WordStart::Line);
    }
}

/// A text longer than the model reads goes through in windows; the score of a late word is that of
/// the window's own text.
#[test]
fn long_texts_go_through_in_windows() {
    let tiny = Tiny::load();
    let long = "We hold these truths and the constitution of the United States ".repeat(60);
    let max = tiny.model.config().max_position_embeddings as usize;
    let full = WordRequest::joint(&tiny.text, Some(EOS), &long, "whale", Join::Space).unwrap();
    assert!(full.tokens.len() > max);
    let scorer = tiny.scorer(4096);
    assert!(matches!(
        scorer.score(std::slice::from_ref(&full), &[Intervention::base()]),
        Err(ScoreError::Forward(_))
    ));
    let cut = full.within(max, true).unwrap();
    let score = &scorer
        .score(std::slice::from_ref(&cut), &[Intervention::base()])
        .unwrap()[0][0];
    let logits = tiny
        .model
        .forward(
            &Tensor::from_slice(&cut.tokens).view([1, -1]),
            None,
            &mut NoHooks,
        )
        .unwrap();
    let at = cut.word.start as i64;
    let expected = logits
        .to_kind(Kind::Double)
        .log_softmax(-1, Kind::Double)
        .double_value(&[0, at - 1, cut.tokens[at as usize]]);
    assert!((score.ln_probs[0] - expected).abs() < 1e-5);
}

#[test]
fn impossible_requests_are_errors() {
    let tiny = Tiny::load();
    let scorer = tiny.scorer(4096);
    let request = |word| WordRequest::new(vec![0, 5, 6], word, WordStart::Space);
    let score = |request, intervention| scorer.score(&[request], &[intervention]).unwrap_err();
    assert!(matches!(
        score(request(0..1), Intervention::base()),
        ScoreError::Word { request: 0, .. }
    ));
    assert!(matches!(
        score(request(2..4), Intervention::base()),
        ScoreError::Word { .. }
    ));
    assert!(matches!(
        score(request(2..2), Intervention::base()),
        ScoreError::Word { .. }
    ));
    let missing = at_post("zero", &[256], Operation::Scale(0.0));
    let error = score(request(1..2), missing);
    assert_eq!(
        error.to_string(),
        "intervention `zero`: there is no neuron 3.256; the model has layers 0 to 3 of 256 neurons"
    );
    assert!(matches!(
        error,
        ScoreError::Intervention(InterventionError::NoSuchNeuron { .. })
    ));
    let beyond = WordRequest::new(vec![0, 4096], 1..2, WordStart::Space);
    assert!(matches!(
        score(beyond, Intervention::base()),
        ScoreError::Forward(_)
    ));
    let small = WordVocabulary::new(&tiny.text, EOS, 50).unwrap();
    assert!(matches!(
        Scorer::new(&tiny.model, &small, 100),
        Err(ScoreError::Vocabulary { found: 50, .. })
    ));
    for eos in [-1, 4096] {
        let without_end = WordVocabulary::without_words(eos, 4096);
        let refused = Scorer::new(&tiny.model, &without_end, 100).err();
        let text = refused.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(&format!("token {eos} ends a text")), "{text}");
    }
    let overflow = at_post("overflow", &[3], Operation::Set(vec![f64::MAX]));
    assert!(matches!(
        score(request(1..2), overflow),
        ScoreError::NotFinite { .. }
    ));
    let base = scorer.score(&[request(1..2)], &[Intervention::base()]);
    let mut no_pieces = base.unwrap().remove(0).remove(0);
    no_pieces.ln_probs.clear();
    assert!(matches!(
        no_pieces.surprisal_nats(WordForm::Corrected),
        Err(MetricError::Empty { .. })
    ));
}

/// Words in the same context are computed in one row, the context once, and keep their values.
#[test]
fn words_that_share_a_context_keep_their_values() {
    let tiny = Tiny::load();
    let context = "The annexation of many small German States to Prussia and the";
    let words = [
        "reorganization",
        "whale",
        "constitution",
        "of",
        "harpooneer",
    ];
    let requests: Vec<WordRequest> = words
        .iter()
        .map(|word| WordRequest::joint(&tiny.text, Some(EOS), context, word, Join::Space).unwrap())
        .collect();
    let interventions = all_kinds();
    let scorer = tiny.scorer(4096);
    same_alone(&scorer, &requests, &interventions);
}

/// Multiplies what passes at a site, or some values of its last dimension.
struct Times {
    site: Site,
    places: Option<Vec<i64>>,
    factor: f64,
}

impl Hooks for Times {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        let Some(places) = &self.places else {
            return Ok(value.f_mul_scalar(self.factor)?);
        };
        let places = Tensor::f_from_slice(places)?;
        let new = value
            .f_index_select(-1, &places)?
            .f_mul_scalar(self.factor)?;
        Ok(value.f_index_copy(-1, &places, &new)?)
    }
}

/// Neurons scaled by a hook of one's own have the scores that the built-in operation gives them, of the last layer in closed form.
#[test]
fn a_hook_of_ones_own_says_what_the_operation_says() {
    let tiny = Tiny::load();
    let (requests, scorer) = (tiny.requests(), tiny.scorer(256));
    let set = [3, 17, 42];
    for layer in [1, 3] {
        let neurons = set.map(|neuron| NeuronId { layer, neuron }).to_vec();
        let scaled = Operation::Scale(-3.0);
        let built_in = Intervention::new("scaled", NeuronSite::Post, neurons, scaled).unwrap();
        let expected = scorer
            .score(&requests, &[Intervention::base(), built_in])
            .unwrap();
        let mut hook = Times {
            site: Site::MlpPost(layer),
            places: Some(set.map(|neuron| neuron as i64).to_vec()),
            factor: -3.0,
        };
        let found = scorer.score_with(&requests, &mut hook).unwrap();
        let untouched = scorer.score_with(&requests, &mut NoHooks).unwrap();
        assert_eq!(found.len(), requests.len());
        for (i, expected) in expected.iter().enumerate() {
            let name = format!("{layer}: {}", found[i].text);
            assert_eq!(
                (&found[i].text, &found[i].span),
                (&requests[i].text, &requests[i].span)
            );
            assert_close(&untouched[i], &expected[0], 2e-5, &name);
            assert_close(&found[i], &expected[1], 2e-5, &name);
        }
        let moved = |i: usize| (found[i].ln_probs[0] - untouched[i].ln_probs[0]).abs();
        assert!((0..found.len()).any(|i| moved(i) > 1e-2));
    }
}

/// Whatever the site, scores are those of a forward of the text alone that passes through the same hook.
#[test]
fn hooks_at_any_site_say_what_a_hooked_forward_says() {
    let tiny = Tiny::load();
    let requests = tiny.requests();
    for site in [
        Site::ResidPre(0),
        Site::ResidMid(2),
        Site::ResidPost(3),
        Site::Pattern(1),
        Site::HeadOut(0),
        Site::MlpPre(3),
        Site::LnFinalScale,
        Site::Logits,
    ] {
        let mut hook = Times {
            site,
            places: None,
            factor: 0.75,
        };
        let scores = tiny.scorer(64).score_with(&requests, &mut hook).unwrap();
        for (request, score) in requests.iter().zip(&scores) {
            let tokens = Tensor::from_slice(&request.tokens).view([1, -1]);
            let logits = tiny.model.forward(&tokens, None, &mut hook).unwrap();
            let ln_probs = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
            for (piece, got) in request.word.clone().zip(&score.ln_probs) {
                let expected = ln_probs.double_value(&[0, piece as i64 - 1, request.tokens[piece]]);
                assert!(
                    (got - expected).abs() < 2e-5,
                    "{site}: {got} against {expected}"
                );
            }
        }
    }
}

#[test]
fn a_hook_that_cannot_be_is_an_error() {
    let tiny = Tiny::load();
    let (requests, scorer) = (tiny.requests(), tiny.scorer(4096));
    let nowhere = scorer.score_with(&requests, &mut Recorder::new([Site::MlpPost(4)]));
    assert!(matches!(
        nowhere,
        Err(ScoreError::Forward(ForwardError::NoSite { .. }))
    ));
    let mut overflow = Times {
        site: Site::ResidPost(3),
        places: None,
        factor: f64::NAN,
    };
    assert!(matches!(
        scorer.score_with(&requests, &mut overflow),
        Err(ScoreError::NotFinite { .. })
    ));
}

/// A word knows how it is spelled, and where it stands, whatever the tokenizer made of it.
#[test]
fn words_know_their_text_and_span() {
    let tiny = Tiny::load();
    let spelled = |sentence: &str| -> Vec<String> {
        let words = WordRequest::words_of(&tiny.text, EOS, sentence).unwrap();
        let each = words.iter().map(|word| {
            assert_eq!(&sentence[word.span.clone()], &*word.text);
            word.text.to_string()
        });
        each.collect()
    };
    let sentence = " The naïve whale — 1,234 tons —  said: “reorganization”\n";
    assert_eq!(
        spelled(sentence).join("|"),
        "The|naïve|whale|—|1,234|tons|—| |said:|“reorganization”" // the second of two spaces is a piece
    );
    assert_eq!(spelled(""), Vec::<String>::new());
    let joint = |context, word, join| {
        let request = WordRequest::joint(&tiny.text, Some(EOS), context, word, join).unwrap();
        (request.text.to_string(), request.span)
    };
    assert_eq!(joint("the", "whale", Join::Space), ("whale".into(), 4..9));
    assert_eq!(
        joint("the ", " whale ", Join::AsIs),
        ("whale".into(), 5..10)
    );
    assert_eq!(joint("un", "happy", Join::AsIs), ("happy".into(), 2..7));
    let last = WordRequest::joint(
        &tiny.text,
        Some(EOS),
        &"the ".repeat(40),
        "whale",
        Join::AsIs,
    );
    let last = last.unwrap();
    assert_eq!(last.within(16, true).unwrap().span, last.span);
    let vocabulary = WordVocabulary::new(&tiny.text, EOS, 4096).unwrap();
    let id = |token| tiny.text.id(token).unwrap();
    assert!(vocabulary.begins(id("Ġthe")) && !vocabulary.begins(id("the")));
    assert!(![EOS, -1, 4096].into_iter().any(|id| vocabulary.begins(id)));
}

/// Limits the first neurons at a site, number by number, and counts what was below, within and above.
struct Limit {
    site: Site,
    neurons: usize,
    low: f64,
    high: f64,
    seen: [usize; 3],
}

impl Hooks for Limit {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        let size = value.size();
        let mut all = Vec::<f32>::try_from(&value.f_view(-1)?)?;
        for row in all.chunks_mut(256) {
            for a in &mut row[..self.neurons] {
                let (x, old) = (f64::from(*a), *a);
                if x < self.low {
                    *a = self.low as f32;
                } else if x > self.high {
                    *a = self.high as f32;
                }
                self.seen[match *a {
                    new if new > old => 0,
                    new if new < old => 2,
                    _ => 1,
                }] += 1;
            }
        }
        Ok(Tensor::f_from_slice(&all)?.f_view(size.as_slice())?)
    }
}

/// A clamp in the last layer is read off its closed form, elsewhere it is a hook: both are what limiting each number by itself is.
#[test]
fn a_clamp_limits_each_activation() {
    let tiny = Tiny::load();
    let (requests, scorer) = (tiny.requests(), tiny.scorer(4096));
    for (layer, site) in [
        (1, NeuronSite::Post),
        (3, NeuronSite::Post),
        (1, NeuronSite::Pre),
        (3, NeuronSite::Pre),
    ] {
        let (low, high) = match site {
            NeuronSite::Post => (-0.02, 0.05),
            NeuronSite::Pre => (-0.5, 0.1),
        };
        let neurons = (0..40).map(|neuron| NeuronId { layer, neuron }).collect();
        let clamp = Operation::Clamp { low, high };
        let clamp = Intervention::new("clamp", site, neurons, clamp).unwrap();
        let mut limit = Limit {
            site: match site {
                NeuronSite::Post => Site::MlpPost(layer),
                NeuronSite::Pre => Site::MlpPre(layer),
            },
            neurons: 40,
            low,
            high,
            seen: [0; 3],
        };
        let expected = scorer.score_with(&requests, &mut limit).unwrap();
        assert!(
            limit.seen.iter().all(|&seen| seen > 100),
            "{:?}",
            limit.seen
        );
        for (found, expected) in scorer
            .score(&requests, &[clamp])
            .unwrap()
            .iter()
            .zip(&expected)
        {
            assert_close(&found[0], expected, 2e-5, &format!("{layer}, {site:?}"));
        }
    }
}
