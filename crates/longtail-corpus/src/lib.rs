//! Token frequencies, long-tail bands, rare words and their contexts, from text corpora.
//!
//! Plain text and counts: this crate never sees a model and needs no libtorch. The feature `parquet`, on by default, is for corpora and counts
//! in Parquet, Arrow and other tables; without it there are 101 dependencies instead of 150.
//!
//! ```
//! use longtail_corpus::{BandSpec, Bound, Frequencies, TokenCounts};
//!
//! // A Zipfian corpus over 1,000 tokens.
//! let counts = TokenCounts::new((1..=1000u64).map(|rank| 1_000_000 / rank).collect(), 1000)?;
//! let spec = BandSpec::default().with_upper(Bound::RankPercentile(20.0));
//! let band = spec.resolve(&Frequencies::add_one(&counts), 1000)?;
//! assert_eq!(band.tokens, 800);
//! assert!((band.zipf.exponent - 1.0).abs() < 1e-3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod band;
mod batch;
mod context;
mod counts;
mod document;
mod elbow;
mod fnv;
mod frequency;
mod lexicon;
mod pack;
mod reader;
mod sentence;
mod split;
mod tally;
mod words;
#[cfg(feature = "parquet")]
mod write_counts;
mod zipf;

pub use band::{Band, BandError, BandReading, BandSpec, BandWarning, Bound};
pub use context::{
    Choice, Context, ContextError, ContextOptions, ContextReading, FoundContexts, WordContexts,
    find_contexts,
};
pub use counts::{CountsError, TokenCounts};
pub use document::{BadRow, Document};
pub use elbow::Elbow;
pub use frequency::Frequencies;
pub use input_files::{InputError, TextUnit};
pub use lexicon::{Lexicon, LexiconError};
pub use model_conventions::{UnknownWordStart, WordPieces, n_tokens};
pub use pack::{PackedCorpus, TokenizeError, load_tokenizer, pack_sequences};
pub use reader::{BadRows, CorpusError, CorpusReader, CorpusSummary, Documents, ReadOptions};
pub use sentence::SentenceRule;
pub use split::{KnownTexts, ShareOutOfRange, Split};
pub use tally::{Tally, count_tokens};
/// The crate whose [`Tokenizer`](tokenizers::Tokenizer) is part of this one's interface.
pub use tokenizers;
pub use words::{
    CasePolicy, LeftOut, LongTailWord, LongTailWords, WordCounts, WordOptions, long_tail_words,
};
#[cfg(feature = "parquet")]
pub use write_counts::write_counts;
pub use zipf::{RankCurve, ZipfFit};
