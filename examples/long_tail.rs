//! The rare words of a corpus and the sentences they stand in, as a table: no model, and no libtorch.
//!
//! `cargo run -p longtail-corpus --example long_tail`

use std::{error::Error, path::Path};

use longtail_corpus::{
    BandSpec, Bound, ContextOptions, CorpusReader, Frequencies, ReadOptions, WordOptions,
    WordPieces, count_tokens, find_contexts, load_tokenizer, long_tail_words, n_tokens,
};

fn main() -> Result<(), Box<dyn Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data");
    let tokenizer = load_tokenizer(data.join("tiny-neox/tokenizer.json"))?;
    let pieces = WordPieces::new(&tokenizer, None)?;
    let path = data.join("corpus/held-out.jsonl");
    let corpus = CorpusReader::open(&[path], ReadOptions::default())?;

    let d_vocab = n_tokens(&tokenizer);
    let tally = count_tokens(corpus.documents(), &tokenizer, d_vocab, None)?;
    let frequencies = Frequencies::add_one(&tally.to_counts()?);
    let upper = Some(Bound::RankPercentile(50.0)); // the rarer half of the tokens
    let half = BandSpec::default().with_upper(upper);
    let band = half.resolve(&frequencies, d_vocab)?;
    let options = WordOptions::default();
    let found = long_tail_words(
        &band,
        &frequencies,
        &tokenizer,
        &pieces,
        None,
        None,
        options,
    )?;

    let rare: Vec<String> = found.words.iter().map(|rare| rare.word.clone()).collect();
    let contexts = find_contexts(|| corpus.documents(), &rare, &ContextOptions::default())?;
    println!("word\tZipf\tcontexts\tthe first of them");
    for (rare, with) in found.words.iter().zip(&contexts.words).take(10) {
        let first = with.contexts.first().map_or("", |context| &*context.text);
        let number = with.contexts.len();
        println!("{}\t{:.2}\t{number}\t{first:?}", rare.word, rare.zipf);
    }
    Ok(())
}
